# SPDX-License-Identifier: Apache-2.0
"""Random mask pairs of many kinds: blobs, shifts, noise, border-touching, empty, tiny."""

import cv2
import numpy as np


def blob(rng, shape):
    """Return a smooth random mask (H, W) bool with holes and several parts."""
    height, width = shape
    noise = rng.standard_normal((max(height // 24, 2), max(width // 24, 2))).astype(np.float32)
    field = cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)
    return field > rng.uniform(-0.5, 1.2)


def ellipse(rng, shape):
    """Return a random ellipse (H, W) bool that may leave the image."""
    height, width = shape
    canvas = np.zeros(shape, np.uint8)
    centre = (int(rng.integers(0, width)), int(rng.integers(0, height)))
    axes = (int(rng.integers(1, max(width // 4, 2))), int(rng.integers(1, max(height // 4, 2))))
    cv2.ellipse(canvas, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return canvas > 0


def mask_pair(seed, shape=None):
    """Return a reproducible pair of masks (H, W) bool, related or not."""
    rng = np.random.default_rng(seed)
    if shape is None:
        shape = (int(rng.integers(2, 200)), int(rng.integers(2, 300)))
        if seed // 8 % 12 == 0:
            shape = (480, 854)
    kind = seed % 8
    truth = blob(rng, shape) if kind in (0, 1, 2) else ellipse(rng, shape)
    if kind in (0, 3):
        shift = (int(rng.integers(-12, 13)), int(rng.integers(-12, 13)))
        prediction = np.roll(truth, shift, (0, 1))
    elif kind in (1, 4):
        prediction = cv2.dilate(truth.astype(np.uint8), np.ones((5, 9), np.uint8)) > 0
    elif kind == 5:
        prediction = truth ^ (rng.random(shape) < 0.01)
    elif kind == 6:
        prediction = np.zeros(shape, bool)
        prediction[tuple(rng.integers(0, side) for side in shape)] = True
    elif kind == 7:
        prediction = np.zeros(shape, bool)
    else:
        prediction = ellipse(rng, shape)
    return (truth, prediction) if rng.random() < 0.5 else (prediction, truth)
