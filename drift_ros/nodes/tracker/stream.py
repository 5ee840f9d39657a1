# SPDX-License-Identifier: Apache-2.0
"""
What lies between the threads that receive and the one thread that tracks. No ROS.

:class:`Mailbox` hands frames and jobs to the worker, :class:`FrameBuffer` keeps recent frames for
masks that arrive later, :class:`Statistics` counts. All of them are thread safe.
"""

from __future__ import annotations

from collections import deque, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
import threading
import time
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Frame:
    """One received image, not decoded yet."""

    sequence: int
    """0, 1, 2...: order of reception."""
    stamp: int
    """The header's stamp in nanoseconds."""
    message: Any
    """sensor_msgs/Image or CompressedImage."""
    size: int
    """Bytes of pixel data."""
    received: float
    """time.monotonic() at reception."""


@dataclass(frozen=True)
class Job:
    """Something the worker does between two frames."""

    run: Callable[[], None]
    after: int = -1
    """In replay, not before the frame of this sequence number was handed out."""
    background: bool = False
    """Waits until there is no other job, and lets frames that wait take turns with it."""


class Mailbox:
    """
    Hands the worker one thing at a time: jobs first, then the next frame.

    Background jobs come when no frame waits, or one between two frames: neither frames nor
    background work can starve the other.

    Live (``replay=False``) it holds one frame, and a newer one replaces it. In replay it holds
    every frame, in order; once they exceed ``limit`` bytes :meth:`put` waits, so that the
    middleware's own queue and then the publisher slow down instead of frames being lost.
    """

    def __init__(self, replay: bool = False, limit: int = 256 << 20) -> None:
        self._condition = threading.Condition()
        self._frames: deque[Frame] = deque()
        self._jobs: deque[Job] = deque()
        self._background: deque[Job] = deque()
        self._frames_turn = False
        self._bytes = 0
        self._taken = -1  # sequence number of the last frame handed out or thrown away
        self._closed = False
        self._accepting = True
        self._replay, self._limit = replay, limit

    def configure(self, replay: bool, limit: int) -> None:
        """Change the mode; waiting frames are thrown away."""
        self.clear()
        with self._condition:
            self._replay, self._limit = replay, limit
            self._accepting = True

    def put(self, frame: Frame) -> Frame | None:
        """
        Hand a frame in.

        Returns the frame that was dropped for it, if any. In replay, waits while the queue is
        full; returns ``frame`` itself when the mailbox was cleared meanwhile.
        """
        with self._condition:
            dropped = None
            if self._replay:
                self._condition.wait_for(
                    lambda: (
                        not self._accepting
                        or not self._frames
                        or self._bytes + frame.size <= self._limit
                    )
                )
            elif self._frames and self._accepting:
                dropped = self._frames.popleft()
                self._bytes -= dropped.size
            if not self._accepting:
                return frame
            self._frames.append(frame)
            self._bytes += frame.size
            self._condition.notify_all()
            return dropped

    def submit(self, job: Job) -> None:
        """Queue a job."""
        with self._condition:
            (self._background if job.background else self._jobs).append(job)
            self._condition.notify_all()

    def get(self) -> Frame | Job | None:
        """Wait for the next thing to do; None when the mailbox is closed."""
        with self._condition:
            while not self._closed:
                if self._jobs and (
                    not self._replay or not self._frames or self._jobs[0].after <= self._taken
                ):
                    return self._jobs.popleft()
                if self._background and not (self._frames and self._frames_turn):
                    self._frames_turn = True
                    return self._background.popleft()
                if self._frames:
                    self._frames_turn = False
                    frame = self._frames.popleft()
                    self._bytes -= frame.size
                    self._taken = frame.sequence
                    self._condition.notify_all()
                    return frame
                self._condition.wait()
            return None

    def clear(self) -> None:
        """Throw the waiting frames away and take no more until configured again."""
        with self._condition:
            if self._frames:
                self._taken = self._frames[-1].sequence
            self._frames.clear()
            self._bytes = 0
            self._accepting = False
            self._condition.notify_all()

    def close(self) -> None:
        """Throw everything away and let :meth:`get` return None."""
        self.clear()
        with self._condition:
            self._jobs.clear()
            self._background.clear()
            self._closed = True
            self._condition.notify_all()

    @property
    def closed(self) -> bool:
        """Whether nothing is handed out any more."""
        with self._condition:
            return self._closed

    @property
    def waiting(self) -> int:
        """Frames that wait."""
        with self._condition:
            return len(self._frames)


class FrameBuffer:
    """Recent frames by stamp, bounded in number and bytes; stamps always ascend."""

    def __init__(self, frames: int, size: int) -> None:
        self._lock = threading.Lock()
        self._frames: OrderedDict[int, Frame] = OrderedDict()
        self._limit, self._size_limit, self._size = frames, size, 0

    def add(self, frame: Frame) -> bool:
        """
        Keep a frame; the oldest go when a bound is reached, the newest always stays.

        Returns True when time jumped back (a bag that loops, a camera that restarted): the
        frames that are now in the future were forgotten, as their stamps would name two frames.
        """
        with self._lock:
            jump = False
            while self._frames and next(reversed(self._frames)) >= frame.stamp:
                stamp, old = self._frames.popitem()
                self._size -= old.size
                jump = jump or stamp > frame.stamp
            self._frames[frame.stamp] = frame
            self._size += frame.size
            while len(self._frames) > 1 and (
                len(self._frames) > self._limit or self._size > self._size_limit
            ):
                self._size -= self._frames.popitem(last=False)[1].size
            return jump

    def find(self, stamp: int) -> Frame:
        """
        Find a frame by its stamp in nanoseconds; 0 means the newest.

        :raises LookupError: it is not there; the text tells what is, and what to do
        """
        with self._lock:
            if not self._frames:
                raise LookupError(
                    'no frames have been received yet: check the image topic and '
                    'that the node is active, or send the image along'
                )
            if stamp == 0:
                return next(reversed(self._frames.values()))
            if stamp in self._frames:
                return self._frames[stamp]
            first, last = next(iter(self._frames)), next(reversed(self._frames))
            raise LookupError(
                f'no frame with stamp {seconds(stamp)} is buffered; the {len(self._frames)} '
                f'buffered ones have stamps {seconds(first)} to {seconds(last)}: use one of '
                'them, send the image along, or raise buffer_frames and buffer_mb'
            )

    def clear(self) -> None:
        """Forget all frames."""
        with self._lock:
            self._frames.clear()
            self._size = 0

    def __len__(self) -> int:
        with self._lock:
            return len(self._frames)


def seconds(stamp: int) -> str:
    """Write a stamp in nanoseconds as seconds with nine decimals."""
    return f'{stamp // 10**9}.{stamp % 10**9:09d}'


class Statistics:
    """
    Counts since activation, and rates and latencies over the last ``window`` seconds.

    Latency is the time from reception of a frame to the publication of its mask.
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
                'lost': 0,
                'jumps': 0,
            }
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

    def count(self, what: str, number: int = 1) -> None:
        """Count ``dropped`` (replaced by a newer one), ``lost`` (by the middleware), ``jumps``."""
        with self._lock:
            self._counts[what] += number

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
        in milliseconds (NaN without results); ``refused_recently``; ``silence``: seconds since
        the last frame, or since the start when there was none.
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
                'silence': now - last,
            }
