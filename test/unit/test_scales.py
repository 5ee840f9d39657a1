# SPDX-License-Identifier: Apache-2.0
"""Lost objects that come back smaller, with the embedded model on pictures made here."""

import cv2
import numpy as np

from drift_ros import ObjectState, Tracker
from drift_ros.engine import find
from drift_ros.engine.config import TrackerConfig

SIZE = (240, 320)


def texture(seed, size, deviation, colour):
    """Smooth noise around a colour, (h, w, 3) uint8."""
    noise = np.random.default_rng(seed).normal(0, 1, (*size, 3)).astype(np.float32)
    noise = cv2.GaussianBlur(noise, (0, 0), deviation)
    return np.clip(noise / noise.std() * 45 + colour, 0, 255).astype(np.uint8)


GROUNDS = [texture(0, SIZE, 9, (90, 120, 90)), texture(1, SIZE, 6, (140, 130, 100))]
THING = texture(2, (96, 96), 4, (180, 60, 60))


def frame(ground, scale=1.0, place=(120, 160)):
    """The thing on a ground, and where it is."""
    side = round(96 * scale)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    thing = cv2.resize(THING, (side, side), interpolation=how)
    image, mask = GROUNDS[ground].copy(), np.zeros(SIZE, np.uint8)
    rows, columns = (slice(middle - side // 2, middle - side // 2 + side) for middle in place)
    image[rows, columns] = thing
    mask[rows, columns] = 1
    return image, mask


def found_again(scale):
    """Frames with the thing until it is tracked where it is; None: it is not."""
    tracker = Tracker(config=TrackerConfig.of({'states.lost_after': 2}))
    image, mask = frame(0)
    tracker.seed(image, mask)
    for _ in range(3):
        assert tracker.step(image).objects[0].state is ObjectState.TRACKING
    for _ in range(4):
        result = tracker.step(GROUNDS[1])
    assert result.objects[0].state is ObjectState.LOST
    image, mask = frame(0, scale, (120, 120))
    for number in range(16):
        result = tracker.step(image)
        shown = result.labels == 1
        if shown.any():
            overlap = (shown & (mask == 1)).sum() / (shown | (mask == 1)).sum()
            assert overlap > 0.6
            later = [tracker.step(image).objects[0].state for _ in range(3)]
            assert later == [ObjectState.TRACKING] * 3
            return number
    return None


def test_what_has_become_smaller_is_found(monkeypatch):
    assert found_again(0.6) is not None
    monkeypatch.setattr(find, '_SCALES', (0.0,))
    assert found_again(0.6) is None


def test_what_is_as_large_as_before_is_found_at_once():
    assert found_again(1.0) <= 1
