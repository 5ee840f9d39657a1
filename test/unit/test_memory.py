# SPDX-License-Identifier: Apache-2.0
"""What the reference memory keeps, and how it looks at seed frames."""

import pytest
from scenes import BLUE, ColourFeatures, configure, GREEN, RED, scene
import torch

from drift_ros import TrackerConfig
from drift_ros.engine.frame_features import FrameFeatures, LayerFeatures
from drift_ros.engine.memory import ReferenceMemory


def labels_of(*boxes, grid=(24, 32)):
    """Background and one channel a box (row, column, rows, columns)."""
    masks = torch.zeros(*grid, len(boxes))
    for channel, (row, column, rows, columns) in enumerate(boxes):
        masks[row : row + rows, column : column + columns, channel] = 1.0
    return torch.cat([1.0 - masks.sum(-1, keepdim=True), masks], dim=-1)


def remembering(*boxes):
    """Seed one object a box in a frame of coloured squares."""
    memory = ReferenceMemory(configure(radius=3, seed_radius=3))
    squares = [
        (4 * column, 4 * row, 4 * rows, colour)
        for (row, column, rows, _), colour in zip(boxes, (RED, GREEN, BLUE), strict=False)
    ]
    features = ColourFeatures().extract(scene(*squares))
    ids = list(range(1, 1 + len(boxes)))
    channels = {number: number for number in ids}
    return memory.pin(features, labels_of(*boxes)[..., 1:], ids, channels), features


def test_a_seed_frame_follows_its_objects():
    memory, features = remembering((2, 2, 6, 6), (2, 22, 6, 6))
    now = labels_of((14, 8, 6, 6), (6, 20, 6, 6))
    memory = memory.push(features, now)
    (seed,) = memory.pinned
    aligned = memory.aligned(seed)
    for around in ((slice(12, 22), slice(6, 16)), (slice(4, 14), slice(18, 28))):
        assert torch.equal(aligned.labels[around], now[around])
    # keys move with the labels: the red square's stand where the object is now
    assert torch.equal(
        aligned.features.layers[0].key[0, 14:20, 8:14], seed.features.layers[0].key[0, 2:8, 2:8]
    )
    assert seed.labels.argmax(-1)[4, 4] == 1, 'the memory itself is as it was'


@pytest.mark.parametrize('side', [4, 12])
def test_a_seed_frame_takes_its_objects_size(side):
    memory, features = remembering((8, 8, 8, 8))
    now = labels_of((6, 14, side, side))
    memory = memory.push(features, now)
    aligned = memory.aligned(memory.pinned[0])
    around = (slice(5, 7 + side), slice(13, 15 + side))
    differ = aligned.labels[around].argmax(-1) != now[around].argmax(-1)
    assert differ.float().mean() < 0.2, 'a token of play at the edges'


def test_a_seed_frame_stays_while_its_object_is_missing():
    memory, features = remembering((2, 2, 6, 6))
    assert memory.aligned(memory.pinned[0]) is memory.pinned[0], 'nothing was seen since'
    memory = memory.push(features, labels_of((0, 0, 0, 0)))
    assert memory.aligned(memory.pinned[0]) is memory.pinned[0]


def test_what_moved_beyond_the_window_is_still_matched_to_the_seed():
    """Frames in between say little (half object, half not); the seed frame decides."""
    memory, _ = remembering((2, 2, 6, 6))
    vague = labels_of((14, 20, 6, 6)) * 0.6
    vague[..., 0] = 1.0 - vague[..., 1]
    later = ColourFeatures().extract(scene((80, 56, 24, RED)))
    memory = memory.push(later, vague)
    found = memory.read(later)[..., 1]
    assert found[14:20, 20:26].mean() > 0.7
    assert found[:10].max() < 0.1


def test_queries_that_are_the_keys_are_kept_once():
    (layer,) = ColourFeatures().extract(scene()).layers
    sizes = []
    for key in (layer.query, layer.query.clone()):
        seen = FrameFeatures((LayerFeatures(layer.query, key),))
        memory = ReferenceMemory(TrackerConfig()).push(seen, labels_of((2, 2, 6, 6)))
        sizes.append(memory.nbytes)
    assert sizes[1] - sizes[0] == 2 * layer.key.numel()
