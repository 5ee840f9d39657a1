# SPDX-License-Identifier: Apache-2.0
"""How tracking goes: counts, rates and latencies, and their publication on /diagnostics."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import resource
import threading
import time
from typing import Any, TYPE_CHECKING

from diagnostic_msgs.msg import DiagnosticArray
import numpy as np
from rclpy.callback_groups import CallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node

from drift_ros.nodes.tracker.stream import FLAWS, LOST, several
from drift_ros.ros import messages, qos

if TYPE_CHECKING:
    from drift_ros.engine.estimates import ObjectEstimate

_OK, _WARN, _ERROR = 0, 1, 2


def memory_in_use() -> int:
    """Give this process's resident memory in bytes; its peak where the system does not tell."""
    try:
        with open('/proc/self/statm', encoding='ascii') as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class StreamStatistics:
    """
    Counts since activation, and rates and latencies over the last ``window`` seconds.

    Latency is the time from reception of a frame to the publication of its mask. Thread safe.
    """

    def __init__(self, window: float = 10.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._lock = threading.Lock()
        self._window, self._clock = window, clock
        self.reset()

    def reset(self) -> None:
        """Start again."""
        with self._lock:
            self._start = self._clock()
            self._counts = {
                'received': 0,
                'tracked': 0,
                'dropped': 0,
                'refused': 0,
                **dict.fromkeys(FLAWS, 0),
            }
            self._warnings: dict[str, tuple[float, str]] = {}
            self._arrivals: deque[float] = deque(maxlen=10_000)
            self._results: deque[tuple[float, float]] = deque(maxlen=10_000)
            self._refusals: deque[float] = deque(maxlen=10_000)
            self.last_error = ''
            self._last_arrival: float | None = None

    def receive(self) -> None:
        """Count a frame that arrived."""
        with self._lock:
            self._counts['received'] += 1
            self._last_arrival = self._clock()
            self._arrivals.append(self._last_arrival)

    def drop(self) -> None:
        """Count a frame that was replaced by a newer one."""
        with self._lock:
            self._counts['dropped'] += 1

    def warn(self, flaw: str, text: str, number: int = 1) -> None:
        """Count a flaw of the stream, one of FLAWS; the text is said while it is recent."""
        with self._lock:
            self._counts[flaw] += number
            self._warnings[flaw] = (self._clock(), text)

    def track(self, latency: float) -> None:
        """Count a frame whose results were published, ``latency`` seconds after its arrival."""
        with self._lock:
            self._counts['tracked'] += 1
            self._results.append((self._clock(), latency))

    def refuse(self, reason: str) -> None:
        """Count a frame that could not be used."""
        with self._lock:
            self._counts['refused'] += 1
            self._refusals.append(self._clock())
            self.last_error = reason

    def snapshot(self) -> dict[str, Any]:
        """
        Sum up.

        Counts by name; ``rate_in`` and ``rate_out`` in Hz; ``latency_median`` and ``latency_95``
        in milliseconds (NaN without results); ``refused_recently``; ``warnings``: what was
        said of the stream's flaws lately; ``silence``: seconds since the last frame, or since the
        start when there was none.
        """
        with self._lock:
            now = self._clock()
            for times in (self._arrivals, self._refusals):
                while times and times[0] < now - self._window:
                    times.popleft()
            while self._results and self._results[0][0] < now - self._window:
                self._results.popleft()
            span = max(min(self._window, now - self._start), 1e-3)
            latencies = [1e3 * latency for _, latency in self._results]
            median, high = (
                np.percentile(latencies, [50, 95]).tolist()
                if latencies
                else (float('nan'), float('nan'))
            )
            last = self._start if self._last_arrival is None else self._last_arrival
            return {
                **self._counts,
                'rate_in': len(self._arrivals) / span,
                'rate_out': len(self._results) / span,
                'latency_median': median,
                'latency_95': high,
                'refused_recently': len(self._refusals),
                'warnings': [
                    text for when, text in self._warnings.values() if when >= now - self._window
                ],
                'silence': now - last,
            }


@dataclass(frozen=True)
class Condition:
    """What the node says of itself and of one camera."""

    configured: bool
    active: bool
    failure: str
    """Why the last transition failed; empty where it did not."""
    model: str
    device: str
    replay: bool
    input_timeout: float
    """Seconds."""
    topic: str
    """Where images come from."""
    publishers: tuple[str, ...]
    """Names of the nodes that publish there."""
    unheard: tuple[str, bool]
    """Which of them are not heard and why, and whether none is."""
    grey_range: str
    """From which 16-bit values to which."""
    waiting: int
    """Frames that wait for the worker."""
    buffered: int
    """Frames kept for masks that come later."""
    reference_memory: int
    """Bytes."""
    live: tuple[int, ...]
    """Ids of the objects there are."""
    remedy: str
    """Against frames that the middleware loses."""
    used: float
    """Seconds that tracking took so far; cameras share one thread."""


class Status:
    """
    How the tracking of one camera goes.

    Attributes
    ----------
    statistics : StreamStatistics
    objects : sequence of ObjectEstimate
        The objects in the last frame that was published.
    size : str
        Width and height of the last frame, '640x480'.

    """

    def __init__(self, node: Node, condition: Callable[[], Condition], prefix: str) -> None:
        """
        Begin with nothing.

        Parameters
        ----------
        node : Node
        condition : callable
            Gives the node's condition, as far as this camera is concerned.
        prefix : str
            Of the camera's topics.

        """
        self.statistics = StreamStatistics()
        self.objects: Sequence[ObjectEstimate] = ()
        self.size = ''
        self._node, self._condition, self._prefix = node, condition, prefix

    def _health(
        self, node: Condition, numbers: dict[str, Any], objects: Sequence[ObjectEstimate]
    ) -> tuple[int, str]:
        """Sum the condition up: level and sentence."""
        if not node.configured:
            return (_ERROR, node.failure) if node.failure else (_OK, 'not configured')
        if not node.active:
            return _OK, 'configured, not active'
        if numbers['refused_recently']:
            return _ERROR, (
                f'{numbers["refused_recently"]} frames or requests failed lately: '
                f'{self.statistics.last_error}'
            )
        unheard, all_unheard = node.unheard
        if all_unheard:
            return _ERROR, unheard
        if numbers['silence'] > node.input_timeout:
            return _WARN, (
                f'no frames for {numbers["silence"]:.0f} s on {node.topic}: check the '
                'topic (ros2 topic list) and its publisher'
            )
        if node.replay and numbers[LOST]:
            return _ERROR, f'{numbers[LOST]} frames were lost before they arrived: {node.remedy}'
        warnings = [unheard, *numbers['warnings'], several(node.publishers, node.topic)]
        lost = [item.name or str(item.id) for item in objects if item.state.name == 'LOST']
        if lost:
            warnings.append(f'lost: {", ".join(lost)}')
        if any(warnings):
            return _WARN, '; '.join(filter(None, warnings))
        return _OK, f'following {len(objects)} objects'

    def diagnose(self) -> Any:
        """Sum up as a diagnostic_msgs/DiagnosticStatus."""
        numbers, node = self.statistics.snapshot(), self._condition()
        objects = [item for item in self.objects if item.id in node.live]
        level, message = self._health(node, numbers, objects)
        values: dict[str, object] = {
            'model': node.model,
            'device': node.device,
            'mode': 'replay' if node.replay else 'live',
            'frames received': numbers['received'],
            'frames tracked': numbers['tracked'],
            'frames dropped': numbers['dropped'],
            'frames refused': numbers['refused'],
            **{name: numbers[flaw] for flaw, name in FLAWS.items()},
            'publishers': ', '.join(sorted(node.publishers)),
            'grey range': node.grey_range,
            'frames waiting': node.waiting,
            'frames buffered': node.buffered,
            'frame size': self.size,
            'rate in (Hz)': numbers['rate_in'],
            'rate out (Hz)': numbers['rate_out'],
            'latency median (ms)': numbers['latency_median'],
            'latency 95th percentile (ms)': numbers['latency_95'],
            'tracking (s)': node.used,
            'memory (MB)': memory_in_use() / 1e6,
            'reference memory (MB)': node.reference_memory / 1e6,
            'objects': len(objects),
        }
        for item in objects:
            values[f'object {item.id}'] = (
                f'{item.name}: {item.state.name}, confidence {item.confidence:.2f}, '
                f'existence {item.existence:.2f}'
            )
        values['last error'] = self.statistics.last_error or node.failure
        return messages.diagnostic(
            messages.status_name(self._node, self._prefix, 'tracking'),
            self._node.resolve_topic_name(f'{self._prefix}image'),
            level,
            message,
            values,
        )


class Diagnostics:
    """Publishes statuses on /diagnostics."""

    def __init__(
        self,
        node: Node,
        statuses: Sequence[Callable[[], Any]],
        period: float,
        group: CallbackGroup,
    ) -> None:
        """
        Publish every ``period`` seconds from now on.

        Parameters
        ----------
        node : Node
        statuses : sequence of callable
            Give a diagnostic_msgs/DiagnosticStatus each; called by an executor thread.
        period : float
            Seconds.
        group : CallbackGroup

        """
        self._node, self._statuses = node, tuple(statuses)
        self._publisher = node.create_publisher(DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS)
        # steady: diagnostics go on when simulated time stands still
        self._timer = node.create_timer(
            period,
            self._publish,
            callback_group=group,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    def set_period(self, seconds: float) -> None:
        """Change how often is published."""
        self._timer.timer_period_ns = int(seconds * 1e9)

    def _publish(self) -> None:
        array = DiagnosticArray()
        array.header.stamp = self._node.get_clock().now().to_msg()
        array.status = [status() for status in self._statuses]
        self._publisher.publish(array)
