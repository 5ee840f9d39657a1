# SPDX-License-Identifier: Apache-2.0
"""
What a robot acts on: the published box, and whether the object is said to be there at all.

The frames are those that J and F count. A frame is *present* where the truth has pixels of the
object, *absent* where it has none; an object is *reported* where the engine gives it a box or
pixels. A *return* is the first present frame after absent ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from drift_ros.evaluation.metric import SequenceScore
    from drift_ros.evaluation.protocol import Track

Box = tuple[int, int, int, int]
"""(x_min, y_min, x_max, y_max) in pixels, maxima exclusive."""


@dataclass(frozen=True)
class ObjectRecord:
    """
    One object in the n frames in which it is scored.

    Attributes
    ----------
    present, reported : np.ndarray
        (n,) bool.
    box_iou : np.ndarray
        (n,) intersection over union of published and true box; 0 where none is published, NaN
        where the object is absent.
    centre_error : np.ndarray
        (n,) distance of the boxes' centres in diagonals of the true box; NaN without a box.
    existence : np.ndarray
        (n,) the engine's probability that the object is there; NaN where it gives none.
    j : np.ndarray
        (n,) intersection over union of the masks.

    """

    present: np.ndarray
    reported: np.ndarray
    box_iou: np.ndarray
    centre_error: np.ndarray
    existence: np.ndarray
    j: np.ndarray


def records(
    score: SequenceScore,
    truth_boxes: Sequence[Sequence[Box | None]],
    tracks: Sequence[Sequence[Track]],
) -> dict[int, ObjectRecord]:
    """
    Put truth and claims side by side.

    Parameters
    ----------
    score : SequenceScore
    truth_boxes : sequence
        Of the score's frames and objects; None where the object is absent.
    tracks : sequence
        What the engine said, of every frame of the sequence.

    Returns
    -------
    dict from int to ObjectRecord
        By object; empty where boxes or tracks were not kept.

    """
    if len(truth_boxes) != len(score.frames) or not tracks:
        return {}
    found = {}
    for column, item in enumerate(score.objects):
        rows = []
        for line, frame in enumerate(score.frames):
            if not np.isnan(score.j[line, column]):
                said = next((each for each in tracks[frame] if each.label == item), None)
                rows.append((*_frame(truth_boxes[line][column], said), score.j[line, column]))
        present, reported, *values = np.array(rows, dtype=np.float64).reshape(-1, 6).T
        found[item] = ObjectRecord(present > 0, reported > 0, *values)
    return found


def _frame(truth: Box | None, said: Track | None) -> tuple[float, float, float, float, float]:
    box = said.box if said else None
    reported = float(said is not None and (box is not None or said.area > 0))
    existence = said.existence if said else math.nan
    if truth is None:
        return 0.0, reported, math.nan, math.nan, existence
    if box is None:
        return 1.0, reported, 0.0, math.nan, existence
    return 1.0, reported, box_iou(truth, box), centre_error(truth, box), existence


def box_iou(first: Box, second: Box) -> float:
    """Give the intersection over union of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    inter = max(width, 0) * max(height, 0)
    return inter / (_area(first) + _area(second) - inter)


def _area(box: Box) -> int:
    return (box[2] - box[0]) * (box[3] - box[1])


def centre_error(truth: Box, box: Box) -> float:
    """Give the distance of two boxes' centres in diagonals of the first."""
    x, y = ((box[k] + box[k + 2] - truth[k] - truth[k + 2]) / 2 for k in (0, 1))
    return math.hypot(x, y) / math.hypot(truth[2] - truth[0], truth[3] - truth[1])


def returns(record: ObjectRecord) -> list[np.ndarray]:
    """
    Find the returns of an object.

    Returns
    -------
    list of np.ndarray
        For each, J of the frames from the return to the next absence.

    """
    bounds = np.flatnonzero(np.diff(record.present.astype(int))) + 1
    parts = np.split(np.arange(len(record.present)), bounds)
    return [record.j[part] for part in parts[1:] if record.present[part[0]]]


def roc(present: np.ndarray, existence: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """
    Trace how well existence tells presence from absence.

    Parameters
    ----------
    present : np.ndarray
        (n,) bool.
    existence : np.ndarray
        (n,) float; frames of NaN are left out.

    Returns
    -------
    false, true : np.ndarray
        Shares of absent and of present frames at or above a threshold, from the highest down.
    area : float
        Area under the curve; NaN unless there are frames of both kinds.

    """
    known = ~np.isnan(existence)
    present, existence = present[known], existence[known]
    if present.all() or not present.any():
        return np.zeros(0), np.zeros(0), math.nan
    order = np.argsort(-existence, kind='stable')
    # equal values have one threshold
    last = np.append(np.diff(existence[order]) != 0, True)
    hits = present[order]
    true = np.append(0, np.cumsum(hits)[last]) / np.count_nonzero(hits)
    false = np.append(0, np.cumsum(~hits)[last]) / np.count_nonzero(~hits)
    return false, true, float(np.sum(np.diff(false) * (true[1:] + true[:-1]) / 2))


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else math.nan


def _found_again(record: ObjectRecord) -> float:
    return _mean(np.array([(values > 0.5).any() for values in returns(record)], float))


def _again_frames(record: ObjectRecord) -> float:
    return _mean(np.array([share for values in returns(record) for share in values > 0.5], float))


def _again_delay(record: ObjectRecord) -> float:
    found = (values > 0.5 for values in returns(record))
    return _mean(np.array([hits.argmax() for hits in found if hits.any()], float))


MEASURES: Mapping[str, Callable[[ObjectRecord], float]] = {
    'box_iou': lambda record: _mean(record.box_iou[record.present]),
    'box_half': lambda record: _mean(record.box_iou[record.present] > 0.5),
    'centre_error': lambda record: _mean(
        record.centre_error[~np.isnan(record.centre_error)],
    ),
    'false_finds': lambda record: _mean(record.reported[~record.present]),
    'false_losses': lambda record: _mean(~record.reported[record.present]),
    'existence_auc': lambda record: roc(record.present, record.existence)[2],
    'found_again': _found_again,
    'again_frames': _again_frames,
    'again_delay': _again_delay,
}
"""
Measures of one object, NaN where they say nothing.

``box_iou`` mean over present frames; ``box_half`` share of them with a box IoU above 0.5;
``centre_error`` mean over present frames with a box; ``false_finds`` share of absent frames in
which the object is reported; ``false_losses`` share of present frames in which it is not;
``existence_auc`` area under :func:`roc`; ``found_again`` share of returns after which J exceeds
0.5 before the next absence; ``again_frames`` share of the frames after returns with J above 0.5;
``again_delay`` frames from a return to the first of these, over returns that have one.
"""


def measure(found: Iterable[ObjectRecord]) -> dict[str, float | None]:
    """
    Average the measures over objects, those left out of which they say nothing.

    ``existence_auc`` is that of all frames of all objects, since one threshold serves them all.
    ``absent_frames`` and ``returns`` are counts.
    """
    found = list(found)
    values = {
        name: [value for record in found if not math.isnan(value := of(record))]
        for name, of in MEASURES.items()
    }
    means = {name: float(np.mean(row)) if row else None for name, row in values.items()}
    if found:
        area = roc(*pooled(found))[2]
        means['existence_auc'] = None if math.isnan(area) else area
    return {
        **means,
        'absent_frames': int(sum(np.count_nonzero(~record.present) for record in found)),
        'returns': sum(len(returns(record)) for record in found),
    }


def pooled(found: Sequence[ObjectRecord]) -> tuple[np.ndarray, np.ndarray]:
    """Give presence and existence of all objects' frames, one after another."""
    return (
        np.concatenate([record.present for record in found]),
        np.concatenate([record.existence for record in found]),
    )
