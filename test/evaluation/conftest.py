# SPDX-License-Identifier: Apache-2.0
"""A small DAVIS-layout folder, made on the spot."""

import cv2
import numpy as np
import pytest

from drift_ros.media.labels import write_labels

SIZE = (64, 96)


def scene(number, objects=1, length=8):
    """Return frames (n, H, W, 3) and labels (n, H, W): textured squares that move apart."""
    rng = np.random.default_rng(number)
    height, width = SIZE
    background = cv2.resize(rng.integers(0, 90, (8, 12, 3), np.uint8), (width, height))
    textures = [
        cv2.resize(rng.integers(120, 255, (5, 5, 3), np.uint8), (20, 20)) for _ in range(objects)
    ]
    frames = np.repeat(background[None], length, 0)
    labels = np.zeros((length, height, width), np.uint8)
    for index in range(length):
        for item, texture in enumerate(textures):
            top, left = 6 + 28 * item, 10 + 3 * index + 8 * item
            frames[index, top : top + 20, left : left + 20] = texture
            labels[index, top : top + 20, left : left + 20] = item + 1
    return frames, labels


def write_sequence(root, name, frames, labels, level=''):
    """Write one sequence; frames as lossless PNG would be easier, but DAVIS has JPEG."""
    images, masks = root / 'JPEGImages' / level / name, root / 'Annotations' / level / name
    images.mkdir(parents=True)
    masks.mkdir(parents=True)
    for index, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        cv2.imwrite(str(images / f'{index:05d}.jpg'), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
        write_labels(masks / f'{index:05d}.png', label)


@pytest.fixture
def davis(tmp_path):
    """Two sequences without a resolution level, with one and with two objects."""
    root = tmp_path / 'davis'
    write_sequence(root, 'one', *scene(1))
    write_sequence(root, 'two', *scene(2, objects=2))
    return root
