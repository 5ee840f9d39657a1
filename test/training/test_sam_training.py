# SPDX-License-Identifier: Apache-2.0
"""Training of the small Segment Anything model, in miniature."""

import json

import cv2
import numpy as np
import pytest
import torch

from drift_ros.refinement.sam_weights import load_sam
from training.sam.cutouts import cut_out, Cutouts, fill_cache
from training.sam.sam_trainer import (
    DEFAULT_CONFIG,
    KINDS,
    losses,
    make_example,
    plot_curves,
    predict,
    SamTrainer,
)
from training.sam.scenes import compose, degrade, person_prompt
from training.trainer import load_config
from training.views import PhotoFolder

TINY = (
    'model.image_size=64',
    'model.width=32',
    'model.depth=2',
    'model.heads=2',
    'model.window=4',
    'model.global_blocks=[1]',
    'model.prompt_width=32',
    'model.decoder_mlp=32',
    'model.iou_width=16',
    'batch=2',
    'steps=6',
    'save_every=2',
    'check_every=4',
    'check_pictures=1',
    'warmup=2',
)


def photo(index):
    """An ellipse on a plain background, or on noise."""
    rng = np.random.default_rng(index)
    image = np.full((96, 120, 3), rng.integers(160, 250, 3), np.uint8)
    colour = [int(c) for c in rng.integers(0, 90, 3)]
    cv2.ellipse(image, (60, 48), (36, 24), float(rng.uniform(0, 40)), 0, 360, colour, -1)
    if index % 3 == 2:
        image = cv2.add(image, rng.integers(0, 40, image.shape, np.uint8))
    return image


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp('photos')
    (folder / 'things').mkdir()
    for index in range(60):
        cv2.imwrite(str(folder / 'things' / f'{index:03}.png'), photo(index))
    photos = PhotoFolder([folder])
    cache = folder / 'cutouts'
    assert list(fill_cache(photos.paths, cache, 40))[-1] == 40
    assert not list(fill_cache(photos.paths, cache, 40)), 'nothing is done twice'
    return photos, Cutouts(cache), Cutouts(cache, held_back=True)


def test_objects_are_cut_out_without_labels():
    truth = np.zeros((96, 120), np.uint8)
    image = np.full((96, 120, 3), 220, np.uint8)
    cv2.ellipse(truth, (60, 48), (36, 24), 0, 0, 360, 1, -1)
    image[truth > 0] = (30, 60, 90)
    for method in ('clean', 'grabcut'):
        cut = cut_out(image, method)
        assert abs((cut[..., 3] > 127).sum() / truth.sum() - 1) < 0.08, method
    assert cut_out(np.full((96, 120, 3), 220, np.uint8), 'clean') is None


def test_training_and_held_back_cutouts_are_disjoint(data):
    _, training, held_back = data
    assert len(training) > 10 and len(held_back) > 0
    files = set(training._files)
    assert not files & set(held_back._files)


def test_pictures_know_their_objects(data):
    photos, cutouts, _ = data
    for seed in range(6):
        picture = compose(cutouts, photos, np.random.default_rng(seed), 64)
        height, width = picture.extent
        assert picture.image.shape == (64, 64, 3) and picture.masks.shape[1:] == (64, 64)
        assert picture.masks.sum(0).max() < 1.01, 'each pixel shows one object'
        assert not picture.masks[:, height:].any() and not picture.image[height:].any()
        assert not picture.masks[:, :, width:].any()
        again = compose(cutouts, photos, np.random.default_rng(seed), 64)
        assert np.array_equal(again.image, picture.image)


def test_prompts_resemble_the_object():
    mask = np.zeros((64, 64), np.float32)
    mask[16:48, 20:44] = 1
    others = np.zeros_like(mask)
    overlaps = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        coarse = degrade(mask, others, rng, 32)
        assert coarse.shape == (32, 32) and 0 <= coarse.min() and coarse.max() <= 1
        small = cv2.resize(mask, (32, 32), interpolation=cv2.INTER_AREA) > 0.5
        overlaps.append(((coarse > 0.5) & small).sum() / ((coarse > 0.5) | small).sum())
        person = person_prompt(mask, others, rng, box=False)
        for (x, y), label in zip(person.points.astype(int), person.labels):
            assert mask[y, x] == label
    assert 0.5 < np.mean(overlaps) < 0.99, 'degraded, but not beyond recognition'


def test_losses_prefer_the_truth():
    target = torch.zeros(1, 16, 16)
    target[:, 4:12, 4:12] = 1
    right = (20 * target - 10)[:, None].expand(1, 4, 16, 16)
    good = losses(right, torch.ones(1, 4), target, 3.0)
    bad = losses(-right, torch.ones(1, 4), target, 3.0)
    assert all(good[name] < 0.05 for name in good)
    assert all(bad[name] > 0.5 for name in bad)
    # of the further candidates only the best counts
    mixed = torch.cat([right[:, :1], -right[:, :2], right[:, :1]], 1)
    assert losses(mixed, torch.ones(1, 4), target, 3.0)['candidates'] < 0.05


@pytest.mark.parametrize('kind', KINDS)
def test_every_kind_of_prompt_trains(data, kind):
    photos, cutouts, held_back = data
    config = load_config(None, TINY, defaults=DEFAULT_CONFIG)
    torch.manual_seed(0)
    from drift_ros.refinement.sam_weights import build_sam

    model = build_sam(config['model'])
    example = make_example(cutouts, photos, np.random.default_rng(1), model, kind)
    assert (example.coarse is not None) == (kind == 'tracker')
    assert (example.boxes is None) == (kind == 'click')
    logits, quality = predict(model, model.image_encoder(example.image[None])[0], example)
    assert logits.shape == (len(example.target), 4, 32, 32) and quality.shape[1] == 4
    sum(losses(logits, quality, example.target, 3.0).values()).backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_resumed_run_is_the_uninterrupted_one(data, tmp_path):
    photos, cutouts, held_back = data
    config = load_config(None, TINY, defaults=DEFAULT_CONFIG)
    whole = SamTrainer(config, photos, cutouts, held_back, tmp_path / 'whole')
    whole.run()
    first = SamTrainer(config, photos, cutouts, held_back, tmp_path / 'parts')
    first.run(stop=3)
    second = SamTrainer(config, photos, cutouts, held_back, tmp_path / 'parts')
    assert second.resume() and second.step == 3
    second.run()
    for a, b in zip(whole.average.state_dict().values(), second.average.state_dict().values()):
        assert torch.equal(a, b)
    assert [row['step'] for row in second.history] == [1, 2, 3, 4, 5, 6]
    assert 0 <= second.history[3]['iou_box'] <= 1
    second.export(tmp_path / 'model')
    assert json.loads((tmp_path / 'model' / 'config.json').read_text())['training_steps'] == 6
    assert load_sam(tmp_path / 'model', 'cpu').image_encoder.img_size == 64
    plot_curves(second.history, tmp_path / 'curves.png')
    assert (tmp_path / 'curves.png').stat().st_size > 1000
