# SPDX-License-Identifier: Apache-2.0
"""What several cameras cost in one node, and in as many: memory, results and their latency."""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
from dataclasses import dataclass
import heapq
from itertools import cycle, islice
from pathlib import Path
import statistics
import tempfile
import time
from typing import Any, TYPE_CHECKING

import psutil

from drift_ros.experiments.speed import as_seen, back_and_forth, Row, serialized
from drift_ros.ros.processes import Children, prepare_environment
from drift_ros.ros.replay import Camera, NAMESPACE, Recording, Replay

if TYPE_CHECKING:
    from drift_ros.evaluation.datasets import SequenceSource

SIZE = (640, 480)
PATIENCE = 120.0
"""Seconds to wait for an answer that must come."""


@dataclass
class _Shown:
    """One camera that is shown to a node."""

    camera: Camera
    replay: Replay
    images: list[bytes]
    rate: float
    published: dict[int, float]

    def publish(self, index: int) -> None:
        """Publish the frame of a number, round and round."""
        data = self.images[index % len(self.images)]
        self.published[index] = self.camera.publish(index, data)


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
        'name'; 'megabytes', the proportional resident memory of all processes; 'processor', the
        share of one processor they use; for each camera 'results a second NAME' and 'latency
        NAME', the median in milliseconds.

    Raises
    ------
    ProcessError
        A node did not come up, or died.

    """
    prepare_environment()
    from drift_ros.ros.client import TrackerClient

    names = [f'camera{number}' for number in range(1, count + 1)]
    pace = dict(zip(names, islice(cycle(rates), count)))
    with contextlib.ExitStack() as stack:
        logs = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        processes: dict[str, tuple[Children, int]] = {}
        for name in ['all'] if together else names:
            children = Children(logs / name, NAMESPACE if together else f'{NAMESPACE}/{name}')
            stack.callback(children.stop_all)
            given = {'cameras': names} if together else {}
            pid = children.start('tracker', {**given, 'image_transport': 'raw'})
            processes[name] = children, pid

        def replay_of(name: str, tracker: str, process: str) -> Replay:
            client = stack.enter_context(
                TrackerClient(
                    tracker, namespace=f'{NAMESPACE}/{name}', name='camera', timeout=PATIENCE
                )
            )
            camera = Camera(client, compressed=False)
            return Replay(client, camera, *processes[process], None, lambda: None)

        if together:
            replay_of('lifecycle', f'{NAMESPACE}/tracker', 'all').bring_up()
        shown = []
        for name, sequence in zip(names, islice(cycle(sequences), count), strict=False):
            tracker = f'{NAMESPACE}/tracker/{name}' if together else f'{NAMESPACE}/{name}/tracker'
            replay = replay_of(name, tracker, 'all' if together else name)
            if not together:
                replay.bring_up()
            images, seed = as_seen(sequence, SIZE)
            messages = [data for _, data in serialized(islice(back_and_forth(images), 60), 1.0)]
            replay.start(messages[0], seed, Recording())
            shown.append(_Shown(replay.camera, replay, messages, pace[name], {}))
        used = [psutil.Process(pid) for _, pid in processes.values()]
        before = sum(sum(process.cpu_times()[:2]) for process in used)
        start = _publish(shown, seconds)
        elapsed = time.monotonic() - start
        row: dict[str, Any] = {
            'name': f'{count} cameras at {", ".join(f"{rate:g}" for rate in pace.values())} Hz, '
            + ('one node' if together else 'a node each'),
            'megabytes': sum(process.memory_full_info().pss for process in used) / 1e6,
            'processor': (sum(sum(process.cpu_times()[:2]) for process in used) - before)
            / elapsed,
        }
        for name, one in zip(names, shown, strict=True):
            answered = [
                (when, 1e3 * (when - one.published[index]))
                for index, when, _ in list(one.camera.arrivals)
                if index in one.published and when >= start
            ]
            row[f'results a second, {name}'] = len(answered) / elapsed
            row[f'latency, {name}'] = statistics.median([late for _, late in answered])
        return row


def _publish(shown: Sequence[_Shown], seconds: float) -> float:
    """Publish all cameras' frames when they are due; give when that began."""
    start = time.monotonic()
    due = [(start, number, 1) for number in range(len(shown))]
    while due[0][0] < start + seconds:
        when, number, index = heapq.heappop(due)
        one = shown[number]
        one.replay.sleep_until(when)
        one.publish(index)
        heapq.heappush(due, (start + index / one.rate, number, index + 1))
    return start
