# SPDX-License-Identifier: Apache-2.0
"""Whether an object exists: by comparison with itself, whatever the features are."""

import pytest
from scenes import ColourFeatures, configure, GREEN, overlap, RED, scene, square_mask
import torch

from drift_ros import Tracker
from drift_ros.engine.decide import forget, leave_out
from drift_ros.engine.existence import (
    ExistenceOptions,
    lacks,
    look_of,
    probability,
    show,
    Shown,
    Traits,
)
from drift_ros.engine.frame_features import FrameFeatures, LayerFeatures
from drift_ros.engine.table import ObjectState

OPTIONS = ExistenceOptions()


def frame(separation, seed=0, dim=64, grid=(12, 16)):
    """Unit tokens: noise, and in a square a direction of its own, by ``separation``."""
    noise = torch.randn(*grid, dim, generator=torch.Generator().manual_seed(seed))
    weight = torch.zeros(grid)
    weight[3:9, 4:10] = 1.0
    towards = torch.zeros(dim)
    towards[0] = separation * dim**0.5
    tokens = noise + weight[..., None] * towards
    return torch.nn.functional.normalize(tokens, dim=-1), weight


def asked(separation, gone):
    """Probability after five frames with the object, then of one with it or without."""
    tokens, weight = frame(separation)
    traits = Traits.of(tokens, weight, weight == 0, OPTIONS)
    for seed in range(1, 6):
        tokens, _ = frame(separation, seed)
        shown = show(tokens, weight, weight, weight, traits, OPTIONS)
        traits = traits.after(tokens, weight, shown, OPTIONS)
    tokens, _ = frame(0.0 if gone else separation, 9)
    score = weight * (0.1 if gone else 1.0)
    shown = show(tokens, weight, weight, score, traits, OPTIONS)
    return probability(shown, traits, OPTIONS)


def test_what_is_gone_does_not_exist_where_features_tell():
    assert asked(4.0, gone=False) > 0.9
    assert asked(4.0, gone=True) < 0.05


def test_features_that_tell_nothing_do_not_lose_an_object():
    assert asked(0.0, gone=False) > 0.8
    assert asked(0.0, gone=True) > 0.5


@pytest.mark.parametrize('scale', [1.0, 0.1])
def test_likeness_is_measured_on_the_scale_of_the_frame(scale):
    """Features whose differences are all ten times smaller say the same."""
    traits = Traits(torch.zeros(2, 1, 1), 0.5 * scale, Shown(0.05 * scale, 10.0, 1.0, 1.0), 5)
    cues = list(lacks(Shown(0.2 * scale, 10.0, 1.0, 1.0), traits, OPTIONS))
    assert cues[0] == pytest.approx(0.4) and cues[1:] == [0.0, 0.0, 0.0]


def test_cues_are_bounded():
    traits = Traits(torch.zeros(2, 1, 1), 0.0, Shown(0.0, 0.0, 0.0, 0.0))
    for shown in (Shown(2.0, 0.0, -9.0, 0.0), Shown(0.0, 1e9, 9.0, 1.0)):
        assert 0.0 <= probability(shown, traits, OPTIONS) <= 1.0
    assert probability(None, traits, OPTIONS) == 0.0


def test_looks_are_bounded_and_nothing_changes_in_place():
    tokens, weight = frame(2.0)
    options = ExistenceOptions(looks=8)
    traits = Traits.of(tokens, weight, weight == 0, options)
    assert traits.looks.shape == (2, 8, 64) and look_of(tokens, weight, options).shape == (8, 64)
    before = traits.looks.clone()
    later = traits.after(*frame(2.0, 1), Shown(0.1, 30.0, 0.5, 0.9), options)
    assert torch.equal(traits.looks, before) and torch.equal(later.looks[0], before[0])
    assert later.frames == 1 and later.usual.score == 0.5 and traits.usual.score == 0.0


def test_one_token_is_enough():
    tokens, weight = frame(2.0)
    weight = torch.zeros_like(weight)
    weight[5, 5] = 0.3
    traits = Traits.of(tokens, weight, weight == 0, OPTIONS)
    shown = show(tokens, weight, weight, weight, traits, OPTIONS)
    assert shown.distance == pytest.approx(0.0, abs=1e-3)
    assert probability(shown, traits, OPTIONS) > 0.9


def test_of_two_objects_one_leaves_and_returns():
    """The other one is followed all the while; what is remembered then is not held against it."""
    tracker = Tracker(
        config=configure(resolution=96, radius=6, method='none', lost_after=3, older_interval=2),
        features=ColourFeatures(),
    )
    tracker.seed(
        scene((16, 16, 24, RED), (70, 50, 24, GREEN)), square_mask((16, 16, 24), (70, 50, 24))
    )

    def step(*squares):
        return tracker.step(scene(*squares))

    for i in range(3):
        result = step((16 + 2 * i, 16, 24, RED), (70, 50, 24, GREEN))
    assert {item.state for item in result.objects} == {ObjectState.TRACKING}
    for i in range(20):  # longer than anything is remembered
        result = step((20 + i, 16, 24, RED))
        red, green = result.objects
        assert red.state is ObjectState.TRACKING and red.existence > 0.8
        assert green.state is not ObjectState.TRACKING and green.box is None
        assert not (result.labels == 2).any()
    for _ in range(3):
        result = step((40, 16, 24, RED), (88, 60, 24, GREEN))
    assert {item.state for item in result.objects} == {ObjectState.TRACKING}
    assert overlap(result.labels == 1, square_mask((40, 16, 24)) == 1) > 0.7
    assert overlap(result.labels == 2, square_mask((88, 60, 24)) == 1) > 0.5


def test_what_an_absent_object_left_is_remembered_as_unknown():
    tracker = Tracker(
        config=configure(resolution=96, radius=6, method='none', top_k=0),
        features=ColourFeatures(),
    )
    both = scene((16, 16, 24, RED), (70, 50, 24, GREEN))
    tracker.seed(both, square_mask((16, 16, 24), (70, 50, 24)))
    memory = tracker.state.memory
    features = ColourFeatures().extract(both)
    labels = memory.read(features)
    silent, wrong = memory, memory
    for _ in range(5):
        silent = silent.push(features, forget(labels, [2]))
        wrong = wrong.push(features, leave_out(labels, [2]))
    read = silent.read(features)
    torch.testing.assert_close(read.sum(-1), torch.ones(read.shape[:2]))
    inside = labels[..., 2] > 0.9
    assert read[..., 2][inside].mean() > 0.9 > 0.6 > wrong.read(features)[..., 2][inside].mean()


def test_layers_without_any_known_label_say_background():
    tokens, weight = frame(2.0)
    features = FrameFeatures((LayerFeatures(tokens[None], tokens[None]),))
    tracker = Tracker(config=configure(resolution=96, method='none'), features=ColourFeatures())
    memory = tracker.state.memory.push(features, torch.zeros(12, 16, 2))
    read = memory.read(features)
    assert torch.equal(read[..., 0], torch.ones(12, 16)) and not read[..., 1].any()
