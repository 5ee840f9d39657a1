# SPDX-License-Identifier: Apache-2.0
"""
The front of an object as it was seen whole, and where it is when only a part of it can be seen.

A mask says what is seen of an object. Where something nearer borders it, or the border of the
image, the object may go on behind: the front that was seen before tells how far.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import cached_property
import math

import cv2
import numpy as np

_LARGEST = 48  # pixels, of a front's longer side while it is sought: enough for a fiftieth
_ROUNDS = 8
_SETTLED = 0.002  # of the distance: less is no further round
_COVERED = 0.7  # of what is seen that a front has to cover, or it is another view
_TURNED = 0.05  # of the size: deviation of a front as the object has turned since


@dataclass(frozen=True)
class Front:
    """
    What is seen of a whole object.

    Attributes
    ----------
    cell : float
        Metres that a cell stands for, across the view.
    mask : np.ndarray
        (H, W) bool, cells that are of the object.
    relief : np.ndarray
        (H, W) float metres by which it lies behind its middle; any value outside of the mask.
    middle : tuple of float
        Column and row of the object's middle.
    size : np.ndarray
        (3,) metres along the axes.
    spread : np.ndarray
        (3, 3) square metres, of its points.
    first_area : float
        Square metres, of the first of the fronts of which this is the last one.

    """

    cell: float
    mask: np.ndarray
    relief: np.ndarray
    middle: tuple[float, float]
    size: np.ndarray
    spread: np.ndarray
    first_area: float

    @cached_property
    def area(self) -> float:
        """Square metres across the view."""
        return float(np.count_nonzero(self.mask)) * self.cell**2

    @property
    def least_area(self) -> float:
        """Square metres: the smaller one of the first front and of this one."""
        return min(self.area, self.first_area)


@dataclass(frozen=True)
class Fit:
    """
    Where a front lies in a picture.

    Attributes
    ----------
    middle : np.ndarray
        (2,) column and row, pixels.
    depth : float
        Metres, of the middle.
    covariance : np.ndarray
        (2, 2) square pixels, of the middle.
    hidden : float
        Share of the front that lies where it cannot be seen, 0 to 1.
    missing : float
        Share of the front that lies where it would be seen, but is not, 0 to 1.

    """

    middle: np.ndarray
    depth: float
    covariance: np.ndarray
    hidden: float
    missing: float


def fit(
    front: Front, seen: np.ndarray, unknown: np.ndarray, depth: np.ndarray, focal: float
) -> Fit | None:
    """
    Find where a front lies by the part of it that is seen.

    It has to cover what is seen and nothing where it would be seen; where something nearer is,
    anything may be. All places are weighed by that: with both ends hidden many are as good.

    Parameters
    ----------
    front : Front
    seen : np.ndarray
        (H, W) bool, pixels of the object.
    unknown : np.ndarray
        (H, W) bool, pixels where something nearer hides what is behind. What lies outside of the
        array is unknown as well.
    depth : np.ndarray
        (H, W) metres where ``seen``.
    focal : float
        Pixels.

    Returns
    -------
    Fit, optional
        None where it covers what is seen nowhere: the object shows another side than it did.

    """
    rows, columns = np.nonzero(seen)
    along = depth[rows, columns]
    distance = float(np.median(along))
    found = None
    for _ in range(_ROUNDS):  # the part that is seen may lie before or behind the middle
        found = _fit_at(front, seen, unknown, focal, distance)
        if found is None:
            return None
        column, row = (np.stack([columns, rows], -1) - found.middle).T
        scale = distance / focal / front.cell
        cells = np.rint(np.stack([row, column], -1) * scale + front.middle[::-1]).astype(int)
        within = ((cells >= 0) & (cells < front.mask.shape)).all(1)
        inside = np.zeros(len(cells), bool)
        inside[within] = front.mask[tuple(cells[within].T)]
        if not inside.any():
            return None
        before = distance
        distance = float(np.median(along[inside] - front.relief[tuple(cells[inside].T)]))
        if abs(distance - before) < _SETTLED * distance:
            break
    assert found is not None
    return dataclasses.replace(found, depth=distance)


def _fit_at(
    front: Front, seen: np.ndarray, unknown: np.ndarray, focal: float, distance: float
) -> Fit | None:
    """Find it for one distance of its middle."""
    pixels = front.cell * focal / distance  # a cell's
    coarse = max(1.0, max(front.mask.shape) * pixels / _LARGEST)
    shape = [max(1, round(side * pixels / coarse)) for side in front.mask.shape]
    template = _resized(front.mask.astype(np.float32), shape)
    # what is known of each pixel: the object's (1), not the object's (-1), nothing (0)
    known = np.where(seen, 1.0, np.where(unknown, 0.0, -1.0)).astype(np.float32)
    target = [max(1, round(side / coarse)) for side in known.shape]
    ratio = np.array([known.shape[1] / target[1], known.shape[0] / target[0]])
    picture = [_resized(part, target) for part in (known, np.maximum(known, 0))]
    padded = [
        cv2.copyMakeBorder(
            part, shape[0], shape[0], shape[1], shape[1], cv2.BORDER_CONSTANT, value=0
        )
        for part in picture
    ]
    score, covered = (cv2.matchTemplate(part, template, cv2.TM_CCORR) for part in padded)
    area = float(template.sum())
    best = np.unravel_index(score.argmax(), score.shape)
    if covered[best] < _COVERED * picture[1].sum():
        return None
    weight = np.exp((score - score[best]) / math.sqrt(area)).astype(float)
    weight /= weight.sum()
    places = np.stack(np.meshgrid(*(np.arange(n) for n in score.shape[::-1])), -1).reshape(-1, 2)
    mean = weight.ravel() @ places
    off = places - mean
    covariance = (off * weight.ravel()[:, None]).T @ off
    # from the template's corner to the middle, and from the coarse picture to the fine one
    anchor = np.array(
        [(front.middle[k] + 0.5) * shape[1 - k] / front.mask.shape[1 - k] for k in (0, 1)]
    )
    middle = (mean - np.array(shape[::-1]) + anchor) * ratio - 0.5
    turned = (_TURNED * np.array(shape[::-1]) * ratio) ** 2
    hidden = 1 - (2 * covered[best] - score[best]) / area
    missing = (covered[best] - score[best]) / area
    covariance = covariance * np.outer(ratio, ratio) + np.diag(turned)
    return Fit(middle, distance, covariance, float(hidden), float(missing))


def _resized(part: np.ndarray, shape: list[int]) -> np.ndarray:
    smaller = shape[0] < part.shape[0]
    how = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    return cv2.resize(part, (shape[1], shape[0]), interpolation=how)
