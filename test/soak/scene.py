# SPDX-License-Identifier: Apache-2.0
"""
What the soak's camera sees: two objects that are always there and always move, before a wall.

Everything follows from a frame's number, so that whoever reads the number of a result in its
header can say what it should have been.
"""

from functools import lru_cache
import math

import cv2
import numpy as np

SIZE = (120, 160)
"""Rows and columns of an ordinary frame."""
PERIOD = 300
"""Frames after which the objects are back where they were."""
MARK = 'soak '
"""Before the number of the frame, in frame_id."""


def _texture(seed: int, size: tuple[int, int], low: tuple, high: tuple) -> np.ndarray:
    """Make noise of several scales between two colours: (H, W, 3) uint8."""
    random = np.random.default_rng(seed)
    total = np.zeros(size, np.float32)
    for scale in (32, 16, 8, 4, 2):
        shape = (max(size[0] // scale, 2), max(size[1] // scale, 2))
        total += scale**0.6 * cv2.resize(
            random.random(shape, np.float32), size[::-1], interpolation=cv2.INTER_CUBIC
        )
    total = (total - total.min()) / np.ptp(total)
    mixed = total[..., None] * (np.array(high) - low) + low
    return mixed.round().astype(np.uint8)


@lru_cache(4)
def _wall(size: tuple[int, int]) -> np.ndarray:
    return _texture(1, size, (70, 90, 80), (150, 150, 130))


@lru_cache(4)
def _things(side: int) -> tuple[np.ndarray, np.ndarray]:
    return (
        _texture(2, (side, side), (150, 20, 20), (250, 120, 60)),
        _texture(3, (side, side), (20, 30, 120), (90, 160, 250)),
    )


def picture(index: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """
    Draw a frame.

    Parameters
    ----------
    index : int
        Its number, 0 and up.
    size : tuple of int
        Rows, columns.

    Returns
    -------
    frame : np.ndarray
        (H, W, 3) uint8 RGB.
    labels : np.ndarray
        (H, W) uint8: 0 wall, 1 the disc, 2 the square. Both lie in the upper three quarters.

    """
    rows, columns = size
    side = max(min(rows, columns) // 4, 1)
    frame, labels = _wall(size).copy(), np.zeros(size, np.uint8)
    for label, texture in enumerate(_things(side), start=1):
        angle = 2 * math.pi * (index / PERIOD + 0.3 * label)
        x = int(columns * (0.27 if label == 1 else 0.73) + 0.1 * columns * math.sin(angle))
        y = int(rows * 0.38 + 0.12 * rows * math.cos(2 * angle))
        box = np.s_[y - side // 2 : y - side // 2 + side, x - side // 2 : x - side // 2 + side]
        inside = np.ones((side, side), bool)
        if label == 1:
            distance = np.arange(side) - (side - 1) / 2
            inside = distance[:, None] ** 2 + distance**2 <= (side / 2) ** 2
        frame[box][inside] = texture[inside]
        labels[box][inside] = label
    return frame, labels
