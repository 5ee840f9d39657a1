# SPDX-License-Identifier: Apache-2.0
"""Synthetic scenes and a feature extractor that needs no weights."""

import collections

import cv2
import numpy as np
import torch

from drift_ros import TrackerConfig
from drift_ros.engine.config import OPTIONS
from drift_ros.engine.frame_features import FrameFeatures, LayerFeatures


def configure(**options):
    """Make a configuration; options go by the last part of their names, where that is unique."""
    count = collections.Counter(name.rpartition('.')[2] for name in OPTIONS)
    names = {name.rpartition('.')[2]: name for name in OPTIONS}
    names = {key: name for key, name in names.items() if count[key] == 1}
    return TrackerConfig.of({names[key]: value for key, value in options.items()})


class ColourFeatures:
    """One head of unit-length colour vectors on a stride-4 grid, sharpened."""

    def __init__(self):
        self.calls = 0

    def extract(self, frame):
        self.calls += 1
        height, width = frame.shape[0] // 4, frame.shape[1] // 4
        small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        colour = torch.from_numpy(small.astype(np.float32) / 127.5 - 1)
        colour = torch.cat([colour, torch.full((height, width, 1), 0.5)], -1)
        vectors = 12 * torch.nn.functional.normalize(colour, dim=-1)[None]
        return FrameFeatures((LayerFeatures(vectors, vectors),))


RED, GREEN, BLUE = (220, 30, 30), (30, 220, 30), (30, 30, 220)


def scene(*squares, size=(96, 128)):
    """Grey noise with coloured squares, each (x, y, side, colour): (H, W, 3) uint8."""
    image = np.random.default_rng(0).integers(90, 110, (*size, 3), np.uint8)
    for x, y, side, colour in squares:
        image[y : y + side, x : x + side] = colour
    return image


def square_mask(*squares, size=(96, 128)):
    """Labels 1, 2, ... for squares (x, y, side)."""
    mask = np.zeros(size, np.uint8)
    for label, (x, y, side) in enumerate(squares, start=1):
        mask[y : y + side, x : x + side] = label
    return mask


def overlap(first, second):
    """Intersection over union of two boolean masks."""
    return (first & second).sum() / max((first | second).sum(), 1)
