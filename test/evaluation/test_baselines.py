# SPDX-License-Identifier: Apache-2.0
"""Baselines do what they are called, and engines are configured by data."""

from pathlib import Path

import numpy as np
import pytest

from drift_ros.api import Tracker
from drift_ros.engine.config import OPTIONS, TrackerConfig
from drift_ros.evaluation.baselines import (
    BoxSeeded,
    ColourPatches,
    FirstMask,
    OpticalFlow,
)
from drift_ros.evaluation.engines import load_params_file, parse_engine, split_settings
from drift_ros.evaluation.metric import mask_scores

from .conftest import scene


def test_first_mask_repeats():
    """Whatever the frame shows, the seeds stay; objects may come later."""
    frames, labels = scene(2, objects=2)
    engine = FirstMask()
    assert engine.seed(frames[0], np.where(labels[0] == 2, 7, 0)) == [1]
    assert engine.seed(frames[1], np.where(labels[1] == 1, 3, 0)) == [2]
    for frame in frames[1:]:
        result = engine.step(frame).labels
        np.testing.assert_array_equal(result == 1, labels[0] == 2)
        np.testing.assert_array_equal(result == 2, labels[1] == 1)


def test_flow_follows_a_moving_object():
    """A textured square that moves 3 pixels a frame is followed, unlike by the first mask."""
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 255, (240, 320, 3), np.uint8)
    frames = [np.roll(texture, 3 * index, 1) for index in range(6)]
    mask = np.zeros((240, 320), np.uint8)
    mask[80:160, 100:180] = 1
    flow, still = OpticalFlow(), FirstMask()
    for engine in (flow, still):
        assert engine.seed(frames[0], mask) == [1]
    for frame in frames[1:]:
        followed, stayed = flow.step(frame).labels, still.step(frame).labels
    truth = np.roll(mask, 15, 1) > 0
    assert mask_scores(truth, followed == 1)[0] > 0.9
    assert mask_scores(truth, stayed == 1)[0] < 0.75


@pytest.mark.parametrize('stride, cells', [(4, 5), (8, 3), (4, 1)])
def test_colour_patches_are_unit_vectors_on_the_grid(stride, cells):
    """The grid is the resized frame's by stride; lengths are 1; a patch matches itself best."""
    frame = np.random.default_rng(1).integers(0, 255, (120, 214, 3), np.uint8)
    patches = ColourPatches(stride, cells, resolution=64).patches(frame)
    assert patches.shape[:2] == (64 // stride, round(214 * 64 / 120 / stride))
    assert patches.shape[2] == 3 * cells**2
    np.testing.assert_allclose(np.linalg.norm(patches, axis=-1), 1, atol=1e-5)
    flat = patches.reshape(-1, patches.shape[-1])
    if cells > 1:
        assert (np.argmax(flat @ flat.T, axis=1) == np.arange(len(flat))).all()


def test_colour_features_are_cosines_over_temperature():
    """Query times key, as attention scales it, is the cosine divided by the temperature."""
    frame = np.random.default_rng(1).integers(0, 255, (64, 96, 3), np.uint8)
    (layer,) = ColourPatches(8, 3, temperature=0.05, resolution=64).extract(frame).layers
    query, key = (np.asarray(item).reshape(-1, 27) for item in (layer.query, layer.key))
    logits = query @ key.T / 27**0.5
    np.testing.assert_allclose(logits.diagonal(), 20, rtol=1e-5)
    assert logits.max() <= 20.001


def test_colour_engine_tracks_a_square():
    """With the real tracker, raw colour follows a square of another colour."""
    frames, labels = scene(1)
    engine = parse_engine('colour4:features.resolution=64,refinement.method=none').make()
    (item,) = engine.seed(frames[0], labels[0])
    for frame in frames[1:]:
        result = engine.step(frame)
    assert mask_scores(labels[-1] > 0, labels[0] > 0)[0] < 0.1
    assert mask_scores(labels[-1] > 0, result.labels == item)[0] > 0.5


def test_boxes_take_the_place_of_masks():
    """The engine is told of boxes only, and finds what is in them."""
    image = np.random.default_rng(0).integers(90, 110, (96, 128, 3), np.uint8)
    image[20:60, 30:70] = (220, 30, 30)
    image[30:50, 90:110] = (30, 220, 30)
    labels = np.zeros((96, 128), np.uint8)
    labels[20:60, 30:70], labels[30:50, 90:110] = 4, 9
    config = TrackerConfig.of(
        {
            'features.resolution': 96,
            'kernel.radius': 6,
            'refinement.prompts': 'grabcut',
            'refinement.method': 'none',
        }
    )
    engine = BoxSeeded(Tracker(config=config, features=ColourPatches(resolution=96)))
    corners = np.where(labels == 4, 4, 0)
    corners[21:59, 31:69] = 0  # as large a box, another mask
    assert engine.seed(image, corners + np.where(labels == 9, 9, 0)) == [1, 2]
    result = engine.step(image)
    assert mask_scores(labels == 4, result.labels == 1)[0] > 0.8
    assert mask_scores(labels == 9, result.labels == 2)[0] > 0.7
    assert parse_engine('boxes', model='folder').model == 'folder'


def test_engine_options_are_complete_and_layered():
    """Settings of the run hold for all engines, an engine's own come on top."""
    spec = parse_engine(
        'wide=colour4:kernel.radius=16,features.layers=a,b,kernel.top_k=15',
        {'kernel.radius': 3, 'kernel.temperature': 0.5},
    )
    assert spec.label == 'wide' and spec.name == 'colour4'
    assert spec.options['kernel.radius'] == 16 and spec.options['kernel.top_k'] == 15
    assert spec.options['features.layers'] == ('a', 'b')
    assert spec.options['kernel.temperature'] == 0.5
    assert set(OPTIONS) <= set(spec.options)
    assert parse_engine('flow').options == {}


@pytest.mark.parametrize(
    'text, message',
    [
        ('magic', "no engine 'magic'.*tracker, boxes, cosine, first-mask"),
        ('tracker:radios=3', "no tracker option 'radios'.*radius"),
        ('tracker:kernel.radius=far', "radius is 'far'.*int"),
        ('tracker:kernel.radius=-1', 'radius is -1.*lie in'),
        ('tracker:radius=9', 'now called kernel.radius'),
        ('tracker:experimental.normalize=maybe', 'true or false'),
        ('tracker:refinement.method=magic', 'choose from'),
        ('tracker:3', 'expected option=value'),
        ('flow:kernel.radius=3', 'has no options'),
    ],
)
def test_bad_engines(text, message):
    """Mistakes are named, with what is possible."""
    with pytest.raises(ValueError, match=message):
        parse_engine(text)


def test_settings():
    """Values take the type of the option's default."""
    assert split_settings(
        [
            'kernel.radius=7',
            'kernel.temperature=1',
            'experimental.normalize=false',
            'features.layers=a,b',
        ]
    ) == {
        'kernel.radius': 7,
        'kernel.temperature': 1.0,
        'experimental.normalize': False,
        'features.layers': ('a', 'b'),
    }
    with pytest.raises(ValueError, match='option=value'):
        split_settings(['kernel.radius'])


def test_params_file(tmp_path):
    """A node's parameter file configures the evaluation, too; what is not the engine's is left."""
    path = tmp_path / 'tracker.yaml'
    path.write_text(
        '/**:\n  ros__parameters:\n'
        '    kernel: {radius: 9}\n    features.layers: [x]\n    replay: true\n'
    )
    assert load_params_file(path) == {'kernel.radius': 9, 'features.layers': ('x',)}
    path.write_text('radius: 9\n')
    with pytest.raises(ValueError, match='no option of the tracker'):
        load_params_file(path)
    path.write_text(':\n  - [')
    with pytest.raises(ValueError, match='cannot read'):
        load_params_file(path)


def test_shipped_params_file():
    """The shipped file holds the defaults."""
    path = Path(__file__).parents[2] / 'config' / 'tracker.yaml'
    found = load_params_file(path)
    assert found == {key: OPTIONS[key].default for key in found}
