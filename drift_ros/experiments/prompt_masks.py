# SPDX-License-Identifier: Apache-2.0
"""How good masks of boxes and clicks are, with clicks as a patient person makes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

from drift_ros.prompts.segmenter import Prompt, Segmentation

if TYPE_CHECKING:
    from drift_ros.evaluation.datasets import SequenceSource

Segment = Callable[[np.ndarray, Sequence[Prompt]], Sequence[Segmentation]]
CLICKS = 3
WAYS = (
    *(f'{n} click{"s" * (n > 1)}' for n in range(1, CLICKS + 1)),
    'box',
    *(f'box, {n} click{"s" * (n > 1)}' for n in range(1, CLICKS)),
)
"""What is measured, in order."""


def measure(sequence: SequenceSource, segment: Segment) -> dict[str, list[float]]:
    """
    Mark each object of a sequence's first frame with boxes and clicks.

    The first click is at the pixel farthest from the object's edge, further ones where the largest
    remaining error is widest; the box is the bounding box of the truth.

    Returns
    -------
    dict
        For each of :data:`WAYS`, intersection over union with the truth, 0 to 1, by object.

    """
    from drift_ros.evaluation.protocol import seed_mask

    frame = next(iter(sequence))
    labels = seed_mask(frame, 0, ())
    assert labels is not None  # find_sequences asks for a true mask in the first frame
    found: dict[str, list[float]] = {way: [] for way in WAYS}
    for number in np.unique(labels[labels > 0]):
        truth = labels == number
        overlaps = [
            *_clicked(frame.image, truth, segment, None, CLICKS),
            *_clicked(frame.image, truth, segment, _box(truth), CLICKS),
        ]
        for way, overlap in zip(WAYS, overlaps, strict=True):
            found[way].append(overlap)
    return found


def _clicked(
    image: np.ndarray,
    truth: np.ndarray,
    segment: Segment,
    box: tuple[float, float, float, float] | None,
    count: int,
) -> Iterator[float]:
    """Give the overlap of so many masks, after a click more each; with a box, the first is it."""
    points: list[tuple[float, float, bool]] = []
    mask = np.zeros_like(truth)
    for turn in range(count):
        if box is None or turn:
            points.append(next_click(truth, mask))
        mask = segment(image, [Prompt(box=box, points=tuple(points))])[0].mask
        yield np.count_nonzero(mask & truth) / np.count_nonzero(mask | truth)


def next_click(truth: np.ndarray, mask: np.ndarray) -> tuple[float, float, bool]:
    """Give x, y of where the largest error of a mask (H, W) bool is widest, and what is there."""
    missed, leaked = (
        cv2.distanceTransform(np.pad(wrong.astype(np.uint8), 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
        for wrong in (truth & ~mask, mask & ~truth)
    )
    positive = missed.max() >= leaked.max()
    away = missed if positive else leaked
    y, x = np.unravel_index(int(away.argmax()), away.shape)
    return float(x), float(y), bool(positive)


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return float(x), float(y), float(x + width), float(y + height)
