# SPDX-License-Identifier: Apache-2.0
"""What several cameras cost in one node, and in as many: memory, results and their latency."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path
import statistics
import tempfile
from typing import TYPE_CHECKING

from drift_ros.experiments.speed import as_seen, back_and_forth, Row, serialized
from drift_ros.ros.replay import replay, Stream

if TYPE_CHECKING:
    from drift_ros.evaluation.datasets import SequenceSource

SIZE = (640, 480)


def measure(
    sequences: Sequence[SequenceSource],
    count: int,
    rates: Sequence[float],
    together: bool,
    seconds: float,
) -> Row:
    """
    Show cameras to one node or as many, each a sequence and a seed of its own.

    Parameters
    ----------
    sequences : sequence of SequenceSource
        What the cameras see, in turn.
    count : int
        Cameras.
    rates : sequence of float
        Frames a second, in turn.
    together : bool
        One node for all, rather than one each.
    seconds : float

    Returns
    -------
    dict
        'name'; 'megabytes', the proportional resident memory of all nodes; 'processor', the share
        of one processor they use; 'results a second' and 'latency', the median in milliseconds,
        lists with an entry a camera.

    Raises
    ------
    ProcessError
        A node did not come up, or died.

    """
    streams = {}
    for number in range(count):
        rate = rates[number % len(rates)]
        images, seed = as_seen(sequences[number % len(sequences)], SIZE)
        # serialised ahead: the camera's work is not to be measured
        ready = [data for _, data in serialized(islice(back_and_forth(images), 60), rate)]
        frames = zip(range(round(seconds * rate)), cycle(ready))
        streams[f'camera{number + 1}'] = Stream(frames, [seed], rate=rate)
    with tempfile.TemporaryDirectory() as logs:
        recordings = replay(streams, {}, Path(logs), apart=not together).values()
    answers = [recording.arrivals for recording in recordings]
    return {
        'name': f'{count} at {", ".join(f"{stream.rate:g}" for stream in streams.values())} Hz, '
        + ('one node' if together else 'a node each'),
        'megabytes': max(recording.proportional for recording in recordings) / 1e6,
        'processor': max(recording.cpu for recording in recordings),
        'results a second': [len(each) / seconds for each in answers],
        'latency': [
            statistics.median(1e3 * (at - recording.published[index]) for index, at, _ in each)
            for recording, each in zip(recordings, answers, strict=True)
        ],
    }
