# SPDX-License-Identifier: Apache-2.0
"""Paired comparison of two evaluations."""

import dataclasses

import numpy as np
import pytest

from drift_ros.evaluation.compare import compare, intervals
from drift_ros.evaluation.metric import SequenceScore
from drift_ros.evaluation.results import JobResult


def results(engine, levels, frames=6):
    """Return one result per sequence, J constant at the level given, F a tenth below."""
    rows = []
    for name, level in levels.items():
        j = np.full((frames, 1), level)
        score = SequenceScore(np.arange(1, frames + 1), (1,), j, j - 0.1)
        rows.append(
            JobResult(
                engine, name, score, np.ones(frames), (4, 4), tuple('abcdefgh'[: frames + 2])
            )
        )
    return rows


def test_clear_difference():
    """Ten sequences, all better by about 0.1: the interval lies around 0.1 and excludes 0."""
    rng = np.random.default_rng(0)
    base = {f's{i}': float(v) for i, v in enumerate(rng.uniform(0.3, 0.8, 10))}
    better = {name: value + 0.1 + float(rng.normal(0, 0.01)) for name, value in base.items()}
    outcome = compare(results('a', base), results('b', better))
    for row in outcome.differences:
        assert row.pairs == 10
        assert row.low < row.difference < row.high
        assert row.low > 0.08 and row.high < 0.12 and row.significant
    again = compare(results('a', base), results('b', better))
    assert outcome.differences == again.differences
    reverse = compare(results('b', better), results('a', base))
    assert reverse.differences[0].difference == pytest.approx(-outcome.differences[0].difference)


def test_no_difference():
    """Differences of both signs: the interval holds 0."""
    base = {f's{i}': 0.5 for i in range(10)}
    other = {f's{i}': 0.5 + (0.1 if i % 2 else -0.1) for i in range(10)}
    row = compare(results('a', base), results('b', other)).differences[2]
    assert row.measure == 'j_and_f' and row.low < 0 < row.high and not row.significant


def test_equal_or_single_pairs_have_no_interval():
    """Nothing to resample: NaN instead of a made-up interval."""
    for levels in ({'x': 0.5, 'y': 0.6}, {'x': 0.5}):
        row = compare(results('a', levels), results('b', levels)).differences[0]
        assert np.isnan(row.low) and row.difference == 0 and not row.significant


def test_pairs_only():
    """What only one side has is left out and named."""
    outcome = compare(results('a', {'x': 0.5, 'y': 0.6}), results('b', {'y': 0.7, 'z': 0.1}))
    assert outcome.objects == (('y', 1),)
    assert outcome.only_first == (('x', 1),) and outcome.only_second == (('z', 1),)


def test_nothing_in_common():
    """Other sequences, or other frames of the same, cannot be compared."""
    with pytest.raises(ValueError, match='in common'):
        compare(results('a', {'x': 0.5}), results('b', {'y': 0.5}))
    with pytest.raises(ValueError, match='different frames'):
        compare(results('a', {'x': 0.5}), results('b', {'x': 0.5}, frames=4))


def test_boxes_are_compared_where_both_have_them():
    """Measures of which nothing can be said are left out; the others have their own pairs."""
    from drift_ros.evaluation.protocol import Track

    def boxed(rows, box):
        frames = len(rows[0].score.frames)
        tracks = tuple((Track(1, 1, 1.0, 9, 0, box),) for _ in range(frames + 2))
        truths = tuple(((0, 0, 10, 10),) for _ in range(frames))
        return [dataclasses.replace(row, tracks=tracks, truth_boxes=truths) for row in rows]

    first = boxed(results('a', {f's{i}': 0.5 for i in range(6)}), (0, 0, 10, 10))
    second = boxed(results('b', {f's{i}': 0.5 for i in range(6)}), (5, 0, 15, 10))
    second[0] = results('b', {'s0': 0.5})[0]
    found = {row.measure: row for row in compare(first, second).differences}
    boxes = {'box_iou', 'box_half', 'centre_error', 'false_losses'}
    assert set(found) == {'j', 'f', 'j_and_f', *boxes}
    assert found['j'].pairs == 6 and found['box_iou'].pairs == 5
    assert found['box_iou'].difference == pytest.approx(1 / 3 - 1)
    means = intervals(first)['a']
    assert means['box_half'][0] == 1 and np.isnan(means['box_half'][1])
