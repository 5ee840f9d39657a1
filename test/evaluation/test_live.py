# SPDX-License-Identifier: Apache-2.0
"""What a live run is scored by, without a node: which mask was the newest when."""

import numpy as np
import pytest

from drift_ros.evaluation import live
from drift_ros.evaluation.bags import open_sequence
from drift_ros.evaluation.run import RunOptions

from .conftest import scene
from .test_bags import entries, write_bag

ARRIVALS = [(1, 0.9), (3, 1.2), (4, 2.0)]


def test_newest_mask_at_an_instant():
    """The seed before any; a mask counts from its arrival on; older ones never come back."""
    assert live.newest(ARRIVALS, [0, 0.5, 1.0, 1.5, 2.0]) == [0, 0, 1, 3, 4]
    assert live.newest([(2, 0.1), (1, 0.2)], [0.3]) == [2]
    assert live.newest([], [0, 1]) == [0, 0]


def test_rates():
    assert live.parse_rates(None) == [None]
    assert live.parse_rates('5, 10,5') == [5.0, 10.0]
    for text in ('x', '0', '-1', '5,,', 'nan'):
        with pytest.raises(ValueError, match='expected frames per second'):
            live.parse_rates(text)


class Replayed:
    """A recording whose masks are the truth, with ids of a node."""

    def __init__(self, published, arrivals, labels):
        self.published, self.cpu, self.memory = published, 0.5, [10**8, 3 * 10**8]
        self.arrivals = [(index, at, b'') for index, at in arrivals]
        self.tracks, self.table, self._labels = {}, {7: 1}, labels

    def mask(self, number):
        return (self._labels[self.arrivals[number][0]] * 7).astype(np.uint16)


def run(tmp_path, arrivals):
    _, labels = scene(1)
    sequence = open_sequence(write_bag(tmp_path / 'bag', entries()))
    recording = Replayed([float(index) for index in range(8)], arrivals, labels)
    result = live._score(
        'tracker@1Hz', sequence, labels[0], recording, 1.0, tmp_path / 'out', RunOptions()
    )
    return result, live.live_rows([result])[0], labels


def test_perfect_masks_without_delay_are_a_frame_old(tmp_path):
    """On arrival they are perfect; at the next instant the object has moved on."""
    result, row, labels = run(tmp_path, [(index, index + 0.25) for index in range(1, 8)])
    assert row['on_arrival'] == 1
    expected = [
        np.sum(labels[k] & labels[k - 1]) / np.sum(labels[k] | labels[k - 1]) for k in range(1, 7)
    ]
    np.testing.assert_allclose(result.score.j[:, 0], expected, atol=1e-12)
    assert row['latency_median'] == row['latency_max'] == 250 and row['dropped'] == 0
    assert row['rate_out'] == 1 and row['cpu'] == 50
    assert (row['memory_mean'], row['memory_max']) == (200, 300)


def test_late_masks_and_dropped_frames(tmp_path):
    """A mask of frame 2 that arrives in frame 4 is held against frames 5 and 6."""
    result, row, labels = run(tmp_path, [(2, 4.5), (6, 6.5)])
    assert row['dropped'] == 5 and row['latency_max'] == 2500
    shown = [0, 0, 0, 0, 2, 2]
    expected = [
        np.sum(labels[k] & labels[j]) / np.sum(labels[k] | labels[j])
        for k, j in zip(range(1, 7), shown, strict=True)
    ]
    np.testing.assert_allclose(result.score.j[:, 0], expected, atol=1e-12)
    assert row['on_arrival'] > row['streaming']
