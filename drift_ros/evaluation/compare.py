# SPDX-License-Identifier: Apache-2.0
"""Means over objects with bootstrap confidence intervals: of one evaluation, of two in pairs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
import warnings

import numpy as np

from drift_ros.evaluation.datasets import DatasetError
from drift_ros.evaluation.presence import MEASURES
from drift_ros.evaluation.results import JobResult

SCORES: Mapping[str, str] = {
    'j': 'J',
    'f': 'F',
    'j_and_f': 'J&F',
    'box_iou': 'box IoU',
    'box_half': 'boxes with IoU > .5',
    'centre_error': 'centre error',
    'false_finds': 'false finds',
    'false_losses': 'false losses',
    'existence_auc': 'existence: AUC',
    'found_again': 'found again',
    'again_frames': 'found again: frames',
    'again_delay': 'found again: delay',
}
"""Measures of an object, with their titles; see :data:`drift_ros.evaluation.presence.MEASURES`."""
FRAMES = ('again_delay',)
"""Measures in frames; the others are shares."""


@dataclass(frozen=True)
class Difference:
    """
    Paired difference B - A of one measure over the common objects of which it says something.

    Attributes
    ----------
    measure : str
        Of :data:`SCORES`.
    first, second : float
        Means of A and B.
    low, high : float
        Bounds of the mean difference with the confidence asked for; NaN where a single pair, or
        equal differences, allow no interval.
    pairs : int

    """

    measure: str
    first: float
    second: float
    low: float
    high: float
    pairs: int

    @property
    def difference(self) -> float:
        """Mean of B - A."""
        return self.second - self.first

    @property
    def significant(self) -> bool:
        """Whether the interval excludes zero."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True)
class Comparison:
    """
    Two evaluations side by side.

    Attributes
    ----------
    objects : tuple
        (sequence, object) of every pair.
    first, second : dict from str to np.ndarray
        Values (n,) of both, by measure; NaN where it says nothing.
    differences : tuple of Difference
        Of the measures that say something of at least one pair.
    only_first, only_second : tuple
        (sequence, object) left out.

    """

    objects: tuple[tuple[str, int], ...]
    first: dict[str, np.ndarray]
    second: dict[str, np.ndarray]
    differences: tuple[Difference, ...]
    only_first: tuple[tuple[str, int], ...]
    only_second: tuple[tuple[str, int], ...]


def compare(
    first: Sequence[JobResult],
    second: Sequence[JobResult],
    *,
    confidence: float = 0.95,
    resamples: int = 9999,
    seed: int = 0,
) -> Comparison:
    """
    Pair the objects of two engines' results and bootstrap the mean differences.

    Parameters
    ----------
    first, second : sequence of JobResult
    confidence : float
    resamples, seed : int
        See :func:`interval`.

    Raises
    ------
    DatasetError
        No object is in both, or the pairs were scored on different frames, which would compare
        different things.

    """
    ours, theirs = _by_object(first), _by_object(second)
    common = [key for key in ours if key in theirs]
    if not common:
        raise DatasetError('the two results have no sequence and object in common')
    for key in common:
        if not np.array_equal(ours[key][0], theirs[key][0]):
            raise DatasetError(
                f'sequence {key[0]} was scored on different frames in the two '
                'results (--max-frames?): run both alike'
            )
    a, b = (
        {name: np.array([side[key][1][name] for key in common]) for name in SCORES}
        for side in (ours, theirs)
    )
    differences = []
    for name in SCORES:
        both = ~np.isnan(a[name]) & ~np.isnan(b[name])
        x, y = a[name][both], b[name][both]
        if len(x):
            low, high = interval(y - x, confidence, resamples, seed)
            differences.append(
                Difference(name, float(x.mean()), float(y.mean()), low, high, len(x))
            )
    return Comparison(
        tuple(common),
        a,
        b,
        tuple(differences),
        tuple(key for key in ours if key not in theirs),
        tuple(key for key in theirs if key not in ours),
    )


def _by_object(
    results: Iterable[JobResult],
) -> dict[tuple[str, int], tuple[np.ndarray, dict[str, float]]]:
    """Scored frames and measures of every (sequence, object)."""
    found = {}
    for row in results:
        presence = row.presence()
        for item in row.score.objects:
            j, f = (values.mean for values in row.score.statistics(item))
            values = {'j': j, 'f': f, 'j_and_f': (j + f) / 2}
            for name, of in MEASURES.items():
                values[name] = of(presence[item]) if item in presence else float('nan')
            found[row.sequence, item] = (row.score.frames, values)
    return found


def intervals(
    results: Iterable[JobResult], *, confidence: float = 0.95, resamples: int = 1999
) -> dict[str, dict[str, tuple[float, float, float]]]:
    """
    Bootstrap the means over objects of every engine.

    Returns
    -------
    dict
        Mean, lower and upper bound by engine and measure, of those that say something.

    """
    grouped: dict[str, list[JobResult]] = {}
    for row in results:
        grouped.setdefault(row.engine, []).append(row)
    found: dict[str, dict[str, tuple[float, float, float]]] = {}
    for engine, rows in grouped.items():
        objects = [values for _, values in _by_object(rows).values()]
        found[engine] = {}
        for name in SCORES:
            values = np.array([item[name] for item in objects])
            values = values[~np.isnan(values)]
            if len(values):
                found[engine][name] = (
                    float(values.mean()),
                    *interval(values, confidence, resamples, 0),
                )
    return found


def interval(
    values: np.ndarray, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """
    Bootstrap the mean of values, one for each object (the unit DAVIS averages over).

    Returns
    -------
    low, high : float
        BCa, from ``scipy.stats.bootstrap``; the same on every call with the same ``seed``. NaN
        where a single value, or equal ones, allow no interval.

    """
    if len(values) < 2 or np.ptp(values) == 0:
        return float('nan'), float('nan')
    from scipy.stats import bootstrap

    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # degenerate resamples: the interval is NaN, as said
        found = bootstrap(
            (values,),
            np.mean,
            confidence_level=confidence,
            n_resamples=resamples,
            method='BCa',
            random_state=np.random.default_rng(seed),
        ).confidence_interval
    return float(found.low), float(found.high)
