# SPDX-License-Identifier: Apache-2.0
"""What moves with an object and what with the background, on textured scenes made here."""

import cv2
import numpy as np
import pytest
import torch

from drift_ros.engine.frame_features import FrameFeatures
from drift_ros.engine.motion import motion_votes, MotionOptions
from drift_ros.engine.reference import Reference

GRID = (30, 48)
TOKEN = 4
OBJECT = (slice(10, 20), slice(18, 32))
LEAK = (slice(11, 18), slice(6, 12))
OPTIONS = MotionOptions()


def texture(seed, size=(TOKEN * GRID[0], TOKEN * GRID[1])):
    noise = np.random.default_rng(seed).uniform(0, 255, (*size, 3)).astype(np.float32)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2.0)
    return np.clip((smooth - 127) * 4 + 127, 0, 255).astype(np.uint8)


def pixels(part):
    return tuple(slice(TOKEN * side.start, TOKEN * side.stop) for side in part)


def scene(move=(0, 0), background=(0, 0), parts=(OBJECT,)):
    """
    Two frames of a textured object before a textured background, both of which moved.

    ``parts`` are tokens of the object in the second frame; in the first one only the first part
    had been marked. Gives the second frame, the first one, and what was marked (H, W).
    """
    ground, surface = texture(0), texture(1)
    mask, marked = np.zeros(ground.shape[:2], bool), np.zeros(ground.shape[:2], bool)
    for part in parts:
        mask[pixels(part)] = True
    marked[pixels(parts[0])] = True
    now = np.where(mask[..., None], surface, np.roll(ground, background, axis=(0, 1)))
    back = (-move[0], -move[1])
    mask, marked, surface = (np.roll(each, back, axis=(0, 1)) for each in (mask, marked, surface))
    return now, np.where(mask[..., None], surface, ground), marked


def probabilities(values):
    """Token probabilities (h, w, 2) of (part, probability) pairs."""
    soft = torch.zeros(*GRID, 2)
    for part, value in values:
        soft[(*part, 1)] = value
    soft[..., 0] = 1.0 - soft[..., 1]
    return soft


def reference(image, back):
    share = cv2.resize(back.astype(np.float32), GRID[::-1], interpolation=cv2.INTER_AREA)
    labels = torch.from_numpy(np.stack([1.0 - share, share], axis=-1))
    return Reference(FrameFeatures((), image), labels)


def votes(frames, soft, options=OPTIONS, channels=(1,)):
    now, old, back = frames
    return motion_votes(now, reference(old, back), soft, channels, options)


def inside(part):
    """Tokens of a part that are not at its rim."""
    return tuple(slice(side.start + 2, side.stop - 2) for side in part)


def test_what_stays_with_the_background_is_voted_out_of_a_moving_object():
    soft = probabilities([(OBJECT, 0.98), (LEAK, 0.5)])
    found = votes(scene(move=(0, 6)), soft)
    assert found[(*inside(LEAK), 1)].max() < -1.0
    assert found[(*inside(OBJECT), 1)].min() > -0.05


def test_a_part_that_comes_along_joins():
    part = (slice(12, 18), slice(32, 40))
    soft = probabilities([(OBJECT, 0.98), (part, 0.4)])
    found = votes(scene(move=(0, 6), parts=(OBJECT, part)), soft)
    assert found[(*inside(part), 1)].min() > 0.3


def test_an_object_the_camera_follows_keeps_its_parts_while_the_background_streams_by():
    soft = probabilities([(OBJECT, 0.98), (LEAK, 0.5)])
    found = votes(scene(background=(3, -7)), soft)
    assert found[(*inside(LEAK), 1)].max() < -1.0


@pytest.mark.parametrize('shift', [(0, 0), (4, 5)])
def test_where_everything_moves_alike_nothing_is_said(shift):
    now, old = np.roll(texture(0), shift, axis=(0, 1)), texture(0)
    soft = probabilities([(OBJECT, 0.98), (LEAK, 0.5)])
    share = probabilities([(OBJECT, 1.0)])
    found = motion_votes(now, Reference(FrameFeatures((), old), share), soft, (1,), OPTIONS)
    assert found[5:-5, 5:-5].abs().max() < 0.3


def test_where_nothing_is_to_be_seen_nothing_is_said():
    now, old, back = scene(move=(0, 6))
    now, old = now.copy(), old.copy()
    for image in (now, old):
        image[:, : TOKEN * 14] = 90
    found = votes((now, old, back), probabilities([(OBJECT, 0.98), (LEAK, 0.5)]))
    assert found[(*inside(LEAK), 1)].abs().max() < 0.05


def test_what_is_sure_stays_and_what_is_far_from_it_has_no_vote():
    soft = probabilities([(OBJECT, 0.98), (LEAK, 1.0)])
    found = votes(scene(move=(0, 6)), soft)
    assert found[(*LEAK, 1)].abs().max() == 0.0
    assert found[soft[..., 1] == 0].abs().max() == 0.0


def test_background_that_was_just_uncovered_does_not_join():
    ground, surface, back = texture(0), texture(1), np.zeros(texture(0).shape[:2], bool)
    back[pixels(OBJECT)] = True
    ground[:, TOKEN * 14 : TOKEN * 36] = 120  # a wall behind it: beside it all looks the same
    mask, surface_now = np.roll(back, 12, axis=1), np.roll(surface, 12, axis=1)
    old = np.where(back[..., None], surface, ground)
    now = np.where(mask[..., None], surface_now, ground)
    moved = (OBJECT[0], slice(OBJECT[1].start + 3, OBJECT[1].stop + 3))
    uncovered = (OBJECT[0], slice(OBJECT[1].start, OBJECT[1].start + 3))
    soft = probabilities([(moved, 0.98), (uncovered, 0.4)])
    assert votes((now, old, back), soft)[(*uncovered, 1)].max() < 0.1
    assert votes((now, old, np.zeros_like(back)), soft)[(*uncovered, 1)].max() > 0.3


def test_each_object_is_compared_with_its_own_motion():
    other = (slice(11, 18), slice(36, 44))
    now, old, back = scene(move=(0, 6), parts=(OBJECT, other))
    soft = torch.cat([probabilities([(OBJECT, 0.98)]), torch.zeros(*GRID, 1)], dim=-1)
    soft[(*other, 2)], soft[(*LEAK, 2)] = 0.98, 0.5
    soft[..., 0] = 1.0 - soft[..., 1:].sum(dim=-1)
    labels = torch.cat([reference(old, back).labels, torch.zeros(*GRID, 1)], dim=-1)
    seen = Reference(FrameFeatures((), old), labels)
    both = motion_votes(now, seen, soft, (1, 2), OPTIONS)
    assert both[(*inside(LEAK), 2)].max() < -1.0
    assert both[(*LEAK, 1)].abs().max() == 0.0
    one = motion_votes(now, seen, soft, (1,), OPTIONS)
    assert one[..., 2].abs().max() == 0.0


@pytest.mark.parametrize(
    'case', ['no image before', 'another size', 'nothing sure', 'no background', 'tiny', 'gain 0']
)
def test_without_evidence_no_vote(case):
    now, old, back = scene(move=(0, 6))
    soft, options = probabilities([(OBJECT, 0.98), (LEAK, 0.5)]), OPTIONS
    seen = reference(old, back)
    if case == 'no image before':
        seen = reference(None, back)
    elif case == 'another size':
        seen = reference(old[:-4], back)
    elif case == 'nothing sure':
        soft = probabilities([(OBJECT, 0.4)])
    elif case == 'no background':
        soft = probabilities([((slice(None), slice(None)), 0.6)])
    elif case == 'tiny':
        now, seen = now[:8], reference(old[:8], back)
    else:
        options = MotionOptions(gain=0.0)
    found = motion_votes(now, seen, soft, (1,), options)
    assert found.shape == soft.shape
    assert found.abs().max() == 0.0


def test_nothing_given_is_changed():
    now, old, back = scene(move=(0, 6))
    soft, seen = probabilities([(OBJECT, 0.98), (LEAK, 0.5)]), reference(old, back)
    copies = now.copy(), old.copy(), soft.clone(), seen.labels.clone()
    motion_votes(now, seen, soft, (1,), OPTIONS)
    assert np.array_equal(now, copies[0])
    assert np.array_equal(old, copies[1])
    assert torch.equal(soft, copies[2])
    assert torch.equal(seen.labels, copies[3])
