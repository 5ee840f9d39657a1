# SPDX-License-Identifier: Apache-2.0
"""
The DAVIS measures: region similarity J and boundary accuracy F, and their statistics.

Definitions follow Perazzi et al., "A Benchmark Dataset and Evaluation Methodology for Video
Object Segmentation" (CVPR 2016), and Pont-Tuset et al., "The 2017 DAVIS Challenge on Video
Object Segmentation" (arXiv 1704.00675), semi-supervised track:

* J is intersection over union; an empty union counts as 1.
* F is the harmonic mean of boundary precision and recall with a tolerance of 0.8 % of the
  image diagonal.
* Objects are the ids of the first true mask; ids that only appear later are background.
* The first frame (given) and the last one are not scored.
* Void pixels (255 in the truth) are background.

Everything works on NumPy arrays, frame by frame, so that memory does not grow with the length
of a video by more than the scores themselves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
import math

import cv2
import numpy as np

from drift_ros.media.labels import VOID_LABEL

BOUNDARY_TOLERANCE = 0.008
"""Boundary tolerance of F as a share of the image diagonal."""


class MetricError(ValueError):
    """The masks cannot be scored; the message names the cause and the remedy."""


@dataclass(frozen=True)
class MeasureStatistics:
    """
    Summary of one measure over the frames of one object.

    Attributes
    ----------
    mean, recall : float
        [0, 1]; recall is the share of frames above 0.5.
    decay : float
        [-1, 1], mean of the first quarter less mean of the last quarter.

    """

    mean: float
    recall: float
    decay: float


@dataclass(frozen=True)
class SequenceScore:
    """
    Scores of every counted frame and object of one sequence.

    Attributes
    ----------
    frames : np.ndarray
        (n,) int, indices of the counted frames.
    objects : tuple of int
        The m scored ids.
    j, f : np.ndarray
        (n, m) float64 in [0, 1]. NaN marks a frame on which an object is not scored (before it
        appears, see ``late_objects`` of :class:`SequenceScorer`).

    """

    frames: np.ndarray
    objects: tuple[int, ...]
    j: np.ndarray
    f: np.ndarray

    def statistics(self, object_id: int) -> tuple[MeasureStatistics, MeasureStatistics]:
        """Return the statistics of J and of F for one object."""
        column = self.objects.index(object_id)
        return statistics(self.j[:, column]), statistics(self.f[:, column])


@dataclass(frozen=True)
class Summary:
    """Means of the objects' statistics, over any number of sequences."""

    j: MeasureStatistics
    f: MeasureStatistics
    objects: int

    @property
    def j_and_f(self) -> float:
        """Mean of the means of J and F: the number by which DAVIS ranks."""
        return (self.j.mean + self.f.mean) / 2


def boundary_radius(shape: tuple[int, int]) -> int:
    """Return F's tolerance in pixels for images of ``shape`` (H, W): 8 at 480x854."""
    return math.ceil(BOUNDARY_TOLERANCE * math.hypot(*shape))


def boundary_map(mask: np.ndarray) -> np.ndarray:
    """
    Return the pixels (H, W) bool that differ from their east, south or south-east neighbour.

    The last row looks east only, the last column south only, the corner nowhere.
    """
    mask = np.ascontiguousarray(mask, dtype=bool)
    edge = np.zeros_like(mask)
    here = mask[:-1, :-1]
    edge[:-1, :-1] = (here ^ mask[:-1, 1:]) | (here ^ mask[1:, :-1]) | (here ^ mask[1:, 1:])
    edge[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    edge[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return edge


def mask_scores(truth: np.ndarray, prediction: np.ndarray) -> tuple[float, float]:
    """
    Score one mask of an object.

    Parameters
    ----------
    truth, prediction : np.ndarray
        (H, W) bool.

    Returns
    -------
    j : float
        Intersection over union; 1 where both are empty.
    f : float
        Harmonic mean of boundary precision and recall; 1 where neither has a boundary, 0 where
        one has none.

    Raises
    ------
    MetricError
        The masks differ in size.

    """
    truth, prediction = np.asarray(truth, dtype=bool), np.asarray(prediction, dtype=bool)
    if truth.shape != prediction.shape or truth.ndim != 2:
        raise MetricError(
            f'The true mask has shape {truth.shape} and the prediction {prediction.shape}; both '
            'must be (H, W) of one size. Resize the prediction with nearest-neighbour '
            'interpolation.'
        )
    radius = boundary_radius(truth.shape)
    box = _joint_box(truth, prediction)
    if box is None:
        return 1.0, 1.0
    truth, prediction = truth[box], prediction[box]
    inter = np.count_nonzero(truth & prediction)
    union = np.count_nonzero(truth | prediction)
    return inter / union, _boundary_score(truth, prediction, radius)


def frame_scores(
    truth: np.ndarray,
    prediction: np.ndarray,
    objects: Sequence[int],
) -> tuple[np.ndarray, np.ndarray]:
    """
    Score every object of one frame.

    Parameters
    ----------
    truth, prediction : np.ndarray
        Label images (H, W) of any integer type.
    objects : sequence of int
        The m ids to score.

    Returns
    -------
    j, f : np.ndarray
        (m,) float64.

    Raises
    ------
    MetricError
        The label images differ in size.

    """
    rows = [mask_scores(truth == label, prediction == label) for label in objects]
    j, f = np.array(rows, dtype=np.float64).reshape(-1, 2).T.copy()
    return j, f


def statistics(values: Iterable[float]) -> MeasureStatistics:
    """
    Return mean, recall and decay of one object's scores; NaN entries are left out.

    The quarters of the decay are those of the official code: bounds at
    ``round(linspace(1, n, 5) + 1e-10) - 1``, both ends inclusive (computed here in full
    integers, so that videos longer than 255 frames are right).
    """
    values = np.asarray(
        list(values) if not isinstance(values, np.ndarray) else values, dtype=np.float64
    )
    values = values[~np.isnan(values)]
    if values.size == 0:
        raise MetricError(
            'No frame is scored: a sequence needs 3 frames or more, since the '
            'first and the last do not count.'
        )
    bounds = (np.round(np.linspace(1, values.size, 5) + 1e-10) - 1).astype(np.int64)
    first = values[bounds[0] : bounds[1] + 1].mean()
    last = values[bounds[3] : bounds[4] + 1].mean()
    mean, recall = float(values.mean()), float((values > 0.5).mean())
    return MeasureStatistics(mean, recall, float(first - last))


def summarize(scores: Iterable[SequenceScore]) -> Summary:
    """
    Average the statistics over *objects* (as DAVIS does), not over sequences.

    One sequence gives the sequence's summary, all of them the global one.
    """
    rows = [score.statistics(item) for score in scores for item in score.objects]
    if not rows:
        raise MetricError('No object to summarise.')

    def mean(index: int) -> MeasureStatistics:
        return MeasureStatistics(
            *(
                float(np.mean([getattr(row[index], name) for row in rows]))
                for name in ('mean', 'recall', 'decay')
            )
        )

    return Summary(mean(0), mean(1), len(rows))


class SequenceScorer:
    """
    Score a sequence frame by frame, in constant memory.

    >>> scorer = SequenceScorer()
    >>> for truth, prediction in pairs:          # frame 0 first        # doctest: +SKIP
    ...     scorer.add(truth, prediction)
    >>> score = scorer.finish()                                         # doctest: +SKIP

    ``late_objects=False`` is the official protocol: the ids of the first true mask are scored
    and any other id is background. With ``late_objects=True`` an object that appears in frame
    k is scored on frames k+1 .. n-2 (frame k is its seed).
    """

    def __init__(self, late_objects: bool = False) -> None:
        self._late = late_objects
        self._objects: list[int] = []
        self._first: dict[int, int] = {}
        self._count = 0
        self._rows: list[tuple[int, tuple[int, ...], np.ndarray, np.ndarray]] = []

    @property
    def objects(self) -> tuple[int, ...]:
        """Ids scored so far."""
        return tuple(self._objects)

    def add(self, truth: np.ndarray | None, prediction: np.ndarray | None) -> None:
        """
        Take the next frame.

        ``truth`` is None for a frame without annotation (it is not scored). The prediction of
        frame 0 is ignored and may be None.
        """
        index = self._count
        self._count += 1
        if truth is None:
            if index == 0:
                raise MetricError('The first frame has no true mask: there is nothing to seed.')
            return
        if index == 0 or self._late:
            found = [int(v) for v in np.unique(truth) if v not in (0, VOID_LABEL)]
            new = [v for v in found if v not in self._first]
            if index == 0 and not found and not self._late:
                raise MetricError('The first true mask is empty: no object can be scored.')
            for value in new:
                self._first[value] = index
                self._objects.append(value)
        if index == 0:
            return
        active = tuple(v for v in self._objects if self._first[v] < index)
        if not active:
            return
        if prediction is None:
            raise MetricError(f'Frame {index} has no prediction.')
        self._rows.append((index, active, *frame_scores(truth, prediction, active)))

    def finish(self) -> SequenceScore:
        """
        Return the scores of frames 1 .. n-2.

        Raises
        ------
        MetricError
            There are none.

        """
        if self._count < 3:
            raise MetricError(
                f'The sequence has {self._count} frames; 3 or more are needed, '
                'since the first and the last do not count.'
            )
        rows = [row for row in self._rows if row[0] < self._count - 1]
        # An object that appears in the last two frames has no counted frame at all.
        objects = tuple(v for v in self._objects if any(v in row[1] for row in rows))
        if not rows:
            raise MetricError('No annotated frame is left between the first and the last one.')
        column = {v: i for i, v in enumerate(objects)}
        j = np.full((len(rows), len(objects)), np.nan)
        f = np.full((len(rows), len(objects)), np.nan)
        for line, (_, active, row_j, row_f) in enumerate(rows):
            columns = [column[v] for v in active]
            j[line, columns] = row_j
            f[line, columns] = row_f
        return SequenceScore(np.array([row[0] for row in rows]), objects, j, f)


def score_sequence(
    truths: Iterable[np.ndarray | None],
    predictions: Iterable[np.ndarray | None],
    late_objects: bool = False,
) -> SequenceScore:
    """Score label images (H, W) of a whole sequence; see :class:`SequenceScorer`."""
    scorer = SequenceScorer(late_objects)
    for truth, prediction in zip(truths, predictions, strict=True):
        scorer.add(truth, prediction)
    return scorer.finish()


def _joint_box(first: np.ndarray, second: np.ndarray) -> tuple[slice, slice] | None:
    """
    Bounding box of both masks, one pixel larger where the image allows; None if both are empty.

    Boundary pixels lie on the mask or one pixel to its north or west, so nothing that J or F
    counts lies outside; and a crop that does not end at the image's border ends in zeros, so
    the border rule of the boundary map gives the same values.
    """
    union = (first | second).view(np.uint8)
    x, y, width, height = cv2.boundingRect(union)
    if width == 0:
        return None
    return (slice(max(y - 1, 0), y + height + 1), slice(max(x - 1, 0), x + width + 1))


def _boundary_score(truth: np.ndarray, prediction: np.ndarray, radius: int) -> float:
    true_edge, edge = boundary_map(truth), boundary_map(prediction)
    true_count, count = np.count_nonzero(true_edge), np.count_nonzero(edge)
    if true_count == 0 or count == 0:
        return float(true_count == count)
    pitch = truth.shape[1] + radius
    true_bits, bits = _pack(true_edge, pitch), _pack(edge, pitch)
    precision = (bits & _dilate(true_bits, pitch, radius)).bit_count() / count
    recall = (true_bits & _dilate(bits, pitch, radius)).bit_count() / true_count
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)


def _pack(edge: np.ndarray, pitch: int) -> int:
    """
    Pack a bool image (H, W) into one integer, a bit per pixel, ``pitch`` bits per row.

    A whole image is then moved, united and counted in single operations on long integers. The
    zeros between rows (pitch - W of them) keep rows apart when the image is moved sideways.
    """
    height, width = edge.shape
    rows = np.zeros((height, pitch), bool)
    rows[:, :width] = edge
    return int.from_bytes(np.packbits(rows).tobytes(), 'big')


def _dilate(bits: int, pitch: int, radius: int) -> int:
    """
    Dilate a packed image by the disk of all offsets with x^2 + y^2 <= radius^2.

    The disk is a stack of horizontal runs: the image is widened by one pixel at a time and
    each width is united at the heights at which the disk is that wide. Bits that leave the
    image are harmless: the result is only ever intersected with a packed image.
    """
    heights: dict[int, list[int]] = {}
    for dy in range(radius + 1):
        heights.setdefault(math.isqrt(radius * radius - dy * dy), []).append(dy)
    result, run = 0, bits
    for half_width in range(radius + 1):
        if half_width:
            run |= bits << half_width | bits >> half_width
        for dy in heights.get(half_width, ()):
            result |= run << dy * pitch | run >> dy * pitch
    return result
