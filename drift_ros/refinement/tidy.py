# SPDX-License-Identifier: Apache-2.0
"""What masks are rid of at the end: far small pieces and pinholes."""

import cv2
import numpy as np

from drift_ros.refinement.compiled import compiled


def without_strays(probability: np.ndarray) -> np.ndarray:
    """
    Drop pieces of a mask that are small for how far they are from the largest one.

    A piece stays if its share of the largest one's area is at least its distance in terms of
    that one's size; at least half as large is always enough, and very near always, too.
    """
    mask = (probability > 0.5).astype(np.uint8)
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask)
    if count <= 2:
        return probability
    area = stats[:, cv2.CC_STAT_AREA].astype(np.float64)
    area[0] = 0.0
    largest = int(area.argmax())
    size = float(np.sqrt(area[largest]))
    away = cv2.distanceTransform((pieces != largest).astype(np.uint8), cv2.DIST_L2, 3)
    gap = np.full(count, np.inf, np.float32)
    _least_of_each(pieces, away, gap)
    least = np.clip((gap - 1.0 - 0.2 * size) / (gap + size), 0.0, 0.5)
    stray = area < least * area[largest]
    stray[[0, largest]] = False
    return np.where(stray[pieces], np.float32(0.0), probability) if stray.any() else probability


@compiled('void(int32[:, :], float32[:, :], float32[::1])')
def _least_of_each(pieces, values, least):
    for y in range(pieces.shape[0]):
        for x in range(pieces.shape[1]):
            least[pieces[y, x]] = min(least[pieces[y, x]], values[y, x])


def without_pinholes(probability: np.ndarray, most: float = 0.01) -> np.ndarray:
    """Fill holes of a mask that are smaller than a share of its area."""
    outside = (probability <= 0.5).astype(np.uint8)
    _, holes, stats, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
    area = stats[:, cv2.CC_STAT_AREA]
    small = area < most * area[0]  # number 0 is the mask
    small[0] = False
    return np.where(small[holes], np.float32(1.0), probability) if small.any() else probability
