# SPDX-License-Identifier: Apache-2.0
"""Prompts for Segment Anything, read off a coarse probability map."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from drift_ros.refinement.window import Window


@dataclass(frozen=True)
class MaskPrompt:
    """
    What Segment Anything is told of one object, in pixels of the map it was read off.

    Attributes
    ----------
    box : np.ndarray
        (4,) float32, x_min, y_min, x_max, y_max, centres of the corner pixels.
    points : np.ndarray
        (N, 2) float32, x and y of pixel centres.
    labels : np.ndarray
        (N,) float32, 1 = on the object, 0 = not on it.

    """

    box: np.ndarray
    points: np.ndarray
    labels: np.ndarray


def read_prompt(
    own: np.ndarray,
    others: np.ndarray,
    *,
    positives: int = 3,
    negatives: int = 3,
    margin: float = 0.05,
) -> MaskPrompt | None:
    """
    Read a box and points off a probability map.

    Positive points are the peaks of the distance to the mask's edge, inside it. Negative points
    are such peaks inside the other objects, and in what is certainly not the object around it.

    Parameters
    ----------
    own : np.ndarray
        (h, w) float32 in [0, 1], probability of the object.
    others : np.ndarray
        (h, w) float32 in [0, 1], summed probability of the other objects.
    positives, negatives : int
        At most so many points.
    margin : float
        Share of the box's size added at each side.

    Returns
    -------
    MaskPrompt or None
        None where no pixel is more likely object than not.

    """
    inside = (own > 0.5).astype(np.uint8)
    x, y, width, height = cv2.boundingRect(inside)
    if not width:
        return None
    grow_x, grow_y = max(margin * width, 1.0), max(margin * height, 1.0)
    box = np.array([x - grow_x, y - grow_y, x + width - 1 + grow_x, y + height - 1 + grow_y])
    limit = np.array([own.shape[1], own.shape[0]] * 2) - 1
    box = np.clip(box, 0, limit).astype(np.float32)

    points = _peaks(inside, positives)
    rivals = _peaks((others > 0.5).astype(np.uint8), negatives // 2)
    around = np.zeros_like(inside)
    pad_x, pad_y = width // 4 + 2, height // 4 + 2
    near = (x - pad_x, y - pad_y, x + width + pad_x, y + height + pad_y)
    area = Window.clipped(near, own.shape).slices
    around[area] = own[area] < 0.1
    outside = _peaks(around, negatives - len(rivals))
    labels = [1.0] * len(points) + [0.0] * (len(rivals) + len(outside))
    return MaskPrompt(
        box,
        np.array([*points, *rivals, *outside], np.float32).reshape(-1, 2),
        np.array(labels, np.float32),
    )


def _peaks(mask: np.ndarray, count: int) -> list[tuple[float, float]]:
    """Points (x, y) far from a mask's edge and from each other, the farthest first."""
    found: list[tuple[float, float]] = []
    if count <= 0 or not mask.any():
        return found
    # the frame's border is an edge, too
    distance = cv2.distanceTransform(
        cv2.copyMakeBorder(mask, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3
    )[1:-1, 1:-1]
    least = 0.0
    for _ in range(count):
        _, best, _, place = cv2.minMaxLoc(distance)
        if best <= 0.3 * least or best <= 0:
            break
        least = least or best
        found.append((float(place[0]), float(place[1])))
        cv2.circle(distance, place, max(round(1.5 * best), 2), 0.0, -1)
    return found


def stack_points(
    prompts: Sequence[tuple[np.ndarray, np.ndarray]],
) -> tuple[np.ndarray, np.ndarray]:
    """
    Put the points of several prompts into one batch.

    Parameters
    ----------
    prompts : sequence of (points, labels)
        (N, 2) and (N,) float32 each; N may differ, and may be 0.

    Returns
    -------
    tuple of np.ndarray
        (K, M, 2) and (K, M) float32, M >= 1; label -1 marks what is no point.

    """
    longest = max([1, *(len(labels) for _, labels in prompts)])
    points = np.zeros((len(prompts), longest, 2), np.float32)
    padded = np.full((len(prompts), longest), -1, np.float32)
    for row, (places, labels) in enumerate(prompts):
        points[row, : len(labels)] = places
        padded[row, : len(labels)] = labels
    return points, padded
