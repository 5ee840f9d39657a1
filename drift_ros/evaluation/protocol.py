# SPDX-License-Identifier: Apache-2.0
"""The protocol: when an engine is seeded, with what, and what is noted of each frame."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
import math
import time
from typing import Any, NamedTuple, Protocol

import numpy as np

from drift_ros.engine.estimates import box_of
from drift_ros.engine.table import ObjectState
from drift_ros.evaluation.datasets import SequenceFrame
from drift_ros.evaluation.metric import MetricError, VOID_LABEL


class EngineResult(Protocol):
    """What an engine says of a frame; :class:`drift_ros.TrackResult` has it all."""

    @property
    def labels(self) -> np.ndarray:
        """Label image (H, W), pixel = object id."""

    @property
    def timings(self) -> dict[str, float]:
        """Milliseconds, 'total' among them."""


class Engine(Protocol):
    """Anything that follows masks through frames, as :class:`drift_ros.Tracker` does."""

    def seed(self, frame: np.ndarray, label_mask: np.ndarray) -> list[int]:
        """Take the objects of a label image (H, W); return one id per label, ascending."""

    def step(self, frame: np.ndarray) -> EngineResult:
        """Find the objects in the next frame (H, W, 3) uint8 RGB."""


@dataclass(frozen=True)
class Track:
    """
    What an engine says of one object in one frame.

    Attributes
    ----------
    label : int
        The object's label in the seed (and the truth).
    state : int
        An ``ObjectState``.
    confidence : float
        [0, 1].
    area : int
        Pixels.
    age : int
        Frames since the seed.
    box : tuple of int, optional
        (x_min, y_min, x_max, y_max) with exclusive maxima.
    existence : float
        Probability that the object is there; NaN of an engine that gives none.

    """

    label: int
    state: int
    confidence: float
    area: int
    age: int
    box: tuple[int, int, int, int] | None
    existence: float = math.nan

    def as_list(self) -> list[Any]:
        """Return plain data for JSON."""
        return [
            self.label,
            int(self.state),
            float(self.confidence),
            int(self.area),
            int(self.age),
            self.box and [int(value) for value in self.box],
            None if math.isnan(self.existence) else float(self.existence),
        ]

    @classmethod
    def from_list(cls, data: list[Any]) -> Track:
        """Read what :meth:`as_list` gave, now or before there was existence."""
        label, state, confidence, area, age, box, existence = [*data, None][:7]
        return cls(
            label,
            state,
            confidence,
            area,
            age,
            box and tuple(box),
            math.nan if existence is None else existence,
        )

    @classmethod
    def of_mask(cls, label: int, labels: np.ndarray, age: int) -> Track:
        """Describe an object by its pixels alone: seen, or not."""
        mask = labels == label
        area = int(np.count_nonzero(mask))
        state = ObjectState.TRACKING if area else ObjectState.OCCLUDED
        return cls(label, state, float(area > 0), area, age, box_of(mask))


class Step(NamedTuple):
    """
    One frame's outcome.

    ``labels`` (H, W) uint8 are in the labels of the seed; ``milliseconds`` is None for a frame
    that only seeds.
    """

    frame: SequenceFrame
    labels: np.ndarray
    milliseconds: float | None
    tracks: tuple[Track, ...]


def seed_mask(
    frame: SequenceFrame, index: int, known: Collection[int], late_objects: bool = False
) -> np.ndarray | None:
    """
    Choose the mask an engine is seeded with in a frame.

    Parameters
    ----------
    frame : SequenceFrame
    index : int
        Of the frame in its sequence.
    known : collection of int
        Labels that were seeded; they are never seeded again.
    late_objects : bool
        Whether labels that appear later are seeded, too.

    Returns
    -------
    np.ndarray, optional
        (H, W) uint8: the frame's own seed where it has one; else its truth, in the first frame
        and, with ``late_objects``, wherever it shows new labels. Void is background.

    Raises
    ------
    MetricError
        The first frame offers nothing.

    """
    source = frame.seed
    if source is None and (index == 0 or late_objects):
        source = frame.truth
    if source is None:
        return None
    new = [int(v) for v in np.unique(source) if v not in (0, VOID_LABEL) and int(v) not in known]
    if not new:
        if index == 0 and not late_objects:
            raise MetricError('the first mask is empty: there is nothing to seed')
        return None
    return np.where(np.isin(source, new), source, 0).astype(np.uint8)


def track(
    engine: Engine, frames: Iterable[SequenceFrame], late_objects: bool = False
) -> Iterator[Step]:
    """
    Follow a sequence's objects by the semi-supervised protocol.

    The engine gets the seeds (see :func:`seed_mask`) and never sees another mask. Yields the
    outcome of every frame.
    """
    table = np.zeros(1, np.uint8)  # engine id -> label of the seed
    born: dict[int, int] = {}
    for index, frame in enumerate(frames):
        labels = np.zeros(frame.image.shape[:2], np.uint8)
        elapsed, tracks = None, {}
        if born:
            start = time.perf_counter()
            result = engine.step(frame.image)
            elapsed = 1e3 * (time.perf_counter() - start)
            labels = table[result.labels]
            for item in getattr(result, 'objects', ()):
                label = int(table[item.id])
                tracks[label] = Track(
                    label,
                    item.state,
                    item.confidence,
                    item.area,
                    item.age,
                    item.box,
                    item.existence,
                )
        mask = seed_mask(frame, index, born, late_objects)
        if mask is not None:
            ids = engine.seed(frame.image, mask)
            new = [int(label) for label in np.unique(mask) if label]
            table = relabel(table, dict(zip(ids, new, strict=True)))
            labels = np.where(mask > 0, mask, labels)
            born.update(dict.fromkeys(new, index))
        # baselines know nothing but pixels
        yield Step(
            frame,
            labels,
            elapsed,
            tuple(
                tracks.get(label) or Track.of_mask(label, labels, index - born[label])
                for label in sorted(born)
            ),
        )


def relabel(table: np.ndarray, labels: dict[int, int]) -> np.ndarray:
    """Extend a table (n,) uint8 from engine id to label by more ids."""
    table = np.concatenate([table, np.zeros(max(max(labels) + 1 - len(table), 0), np.uint8)])
    table[list(labels)] = list(labels.values())
    return table
