# SPDX-License-Identifier: Apache-2.0
"""What the tracker says of a frame."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
import time

import cv2
import numpy as np

from drift_ros.engine.protocols import Refined
from drift_ros.engine.table import ObjectState, TrackedObject

# A piece of a mask strayed if it has less than this share of the largest one's area, or is
# further away than this many of its widths.
_STRAY_AREA, _STRAY_REACH = 0.02, 0.5


@dataclass(frozen=True)
class ObjectEstimate:
    """
    One object in one frame.

    Attributes
    ----------
    id, name
        As in :class:`drift_ros.ObjectInfo`.
    state : ObjectState
    confidence : float
        [0, 1], probability the object's own tokens give it, weighted by that probability: how
        crisp the mask is.
    existence : float
        [0, 1], probability that the object is in the frame at all.
    box : tuple of int, optional
        (x_min, y_min, x_max, y_max) in pixels, maxima exclusive; None unless pixels are assigned.
        Of all of them or without strays, as ``states.box`` says.
    area : int
        Pixels.
    age : int
        Frames since the object was seeded.

    """

    id: int
    name: str
    state: ObjectState
    confidence: float
    existence: float
    box: tuple[int, int, int, int] | None
    area: int
    age: int

    @classmethod
    def of(
        cls,
        entry: TrackedObject,
        confidence: float,
        existence: float,
        labels: np.ndarray,
        box: str = 'all',
    ) -> 'ObjectEstimate':
        """Say what a label image (H, W) shows of an object; ``box`` as in ``states.box``."""
        mask = labels == entry.info.id
        return cls(
            id=entry.info.id,
            name=entry.info.name,
            state=entry.state,
            confidence=confidence,
            existence=existence,
            box=robust_box(mask) if box == 'robust' else box_of(mask),
            area=int(np.count_nonzero(mask)),
            age=entry.age,
        )


def estimates(
    entries: Iterable[TrackedObject],
    confidence: Mapping[int, float],
    existence: Mapping[int, float],
    labels: np.ndarray,
    box: str,
) -> tuple[ObjectEstimate, ...]:
    """Say what a label image (H, W) shows of all objects, by ascending id."""
    return tuple(
        ObjectEstimate.of(entry, confidence[number], existence[number], labels, box)
        for number, entry in sorted({entry.info.id: entry for entry in entries}.items())
    )


@dataclass(frozen=True)
class TrackResult:
    """
    What the tracker says of one frame.

    Attributes
    ----------
    labels : np.ndarray
        (H, W) uint8, uint16 once an id exceeds 255; pixel = object id, 0 = background.
    objects : tuple of ObjectEstimate
        Every live object, by ascending id.
    timings : dict of str to float
        Milliseconds spent: 'features', 'propagation', 'refinement', 'memory', 'total'; nothing
        for memory where the result is given out before.

    """

    labels: np.ndarray
    objects: tuple[ObjectEstimate, ...]
    timings: dict[str, float]
    _refined: Refined | None = field(default=None, repr=False)

    def probability(self, object_id: int) -> np.ndarray:
        """Give the refined probability of an object: (H, W) float32 in [0, 1]; 0 if not found."""
        found = any(item.id == object_id and item.area for item in self.objects)
        if self._refined is None or not found:
            return np.zeros(self.labels.shape, np.float32)
        return self._refined.probability(object_id)


class Stopwatch:
    """Milliseconds between laps."""

    def __init__(self) -> None:
        """Start."""
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        """Note the time since the last lap."""
        now = time.perf_counter()
        self._laps[name] = 1e3 * (now - self._last)
        self._last = now

    def stop(self) -> dict[str, float]:
        """Give the laps by name, and their 'total'."""
        return {**self._laps, 'total': 1e3 * (time.perf_counter() - self._start)}


def box_of(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """(x_min, y_min, x_max, y_max) of the True pixels of a (H, W) mask, maxima exclusive."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return (x, y, x + width, y + height) if width else None


def robust_box(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """
    Give the box of the True pixels of a (H, W) mask without those that strayed.

    It is that of the largest piece, and of each other one that has at least a fiftieth of its
    area and whose box is not further from the box so far than half the largest piece is wide.
    """
    whole = box_of(mask)
    if whole is None:
        return None
    left, top, right, bottom = whole
    part = mask[top:bottom, left:right].astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(part)
    if count == 2:  # the rest, and one piece
        return whole
    pieces = stats[1:][np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind='stable')]
    pieces[:, :2] += (left, top)
    left, top, width, height, most = (int(value) for value in pieces[0])
    right, bottom, reach = left + width, top + height, _STRAY_REACH * most**0.5
    for x, y, width, height, area in pieces[1:].tolist():
        gap = max(x - right, left - x - width, y - bottom, top - y - height)
        if area >= _STRAY_AREA * most and gap <= reach:
            left, top = min(left, x), min(top, y)
            right, bottom = max(right, x + width), max(bottom, y + height)
    return left, top, right, bottom
