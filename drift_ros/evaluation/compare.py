# SPDX-License-Identifier: Apache-2.0
"""Compare two evaluations pair by pair, with bootstrap confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
import warnings

import numpy as np

from drift_ros.evaluation.datasets import DatasetError
from drift_ros.evaluation.run import JobResult


@dataclass(frozen=True)
class Difference:
    """
    Paired difference B - A of one measure ('J', 'F' or 'J&F') over the common objects.

    ``low`` and ``high`` bound the mean difference with the confidence asked for; they are NaN
    where a single pair, or equal differences, allow no interval.
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
    """``objects``: (sequence, object) of every pair; ``first``, ``second``: (n, 3) J, F, J&F."""

    objects: tuple[tuple[str, int], ...]
    first: np.ndarray
    second: np.ndarray
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
    Pair the objects of two engines' results and bootstrap the mean difference.

    The resampled unit is the object (the unit DAVIS averages over); intervals are BCa, from
    ``scipy.stats.bootstrap``, and the same on every call with the same ``seed``.

    Raises DatasetError when no object is in both, or when the pairs were scored on different
    frames, which would compare different things.
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
    a = np.array([ours[key][1] for key in common])
    b = np.array([theirs[key][1] for key in common])
    differences = []
    for column, measure in enumerate(('J', 'F', 'J&F')):
        low, high = _interval(b[:, column] - a[:, column], confidence, resamples, seed)
        differences.append(
            Difference(
                measure,
                float(a[:, column].mean()),
                float(b[:, column].mean()),
                low,
                high,
                len(common),
            )
        )
    return Comparison(
        tuple(common),
        a,
        b,
        tuple(differences),
        tuple(key for key in ours if key not in theirs),
        tuple(key for key in theirs if key not in ours),
    )


def _by_object(results: Sequence[JobResult]) -> dict[tuple[str, int], tuple[np.ndarray, tuple]]:
    """Scored frames and (J, F, J&F) of every (sequence, object)."""
    found = {}
    for row in results:
        for item in row.score.objects:
            j, f = (values.mean for values in row.score.statistics(item))
            found[row.sequence, item] = (row.score.frames, (j, f, (j + f) / 2))
    return found


def _interval(
    values: np.ndarray, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
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
