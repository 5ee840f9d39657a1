# SPDX-License-Identifier: Apache-2.0
"""What the tracker says of a frame."""

from dataclasses import dataclass, field
import time

import cv2
import numpy as np

from drift_ros.engine.protocols import Refined
from drift_ros.engine.table import ObjectState, TrackedObject


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
        cls, entry: TrackedObject, confidence: float, existence: float, labels: np.ndarray
    ) -> 'ObjectEstimate':
        """Say what a label image (H, W) shows of an object."""
        mask = labels == entry.info.id
        return cls(
            id=entry.info.id,
            name=entry.info.name,
            state=entry.state,
            confidence=confidence,
            existence=existence,
            box=box_of(mask),
            area=int(np.count_nonzero(mask)),
            age=entry.age,
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
        Milliseconds spent: 'features', 'propagation', 'refinement', 'total'.

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
