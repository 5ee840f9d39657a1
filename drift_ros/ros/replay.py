# SPDX-License-Identifier: Apache-2.0
"""
Replay recorded images to a tracker node at a given pace, and note what comes back, and when.

The node is a process of its own; images and masks go through the middleware, as on a robot. The
images are published as they were recorded (serialised, never decoded here), but for their stamp,
which is the time of publication, as a camera's is. No scores: see ``drift_ros.evaluation.live``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
import struct
import threading
import time
from typing import Any
import zlib

import numpy as np

from drift_ros.ros.processes import Children, GraphClient, prepare_environment, ProcessError

NAMESPACE = '/drift_ros_eval'
_PATIENCE = 60.0
"""Seconds to wait for an answer that must come."""
_SAMPLE = 0.2
"""Seconds between two looks at the node's memory."""


@dataclass(frozen=True)
class Seed:
    """A mask for one of the frames: (H, W) uint8 labels, and the frame (H, W, 3) uint8 RGB."""

    index: int
    labels: np.ndarray
    image: np.ndarray


@dataclass
class Recording:
    """
    What a replay saw. All times are seconds since the first frame's instant, one clock for all.

    ``published`` (n,): when each frame was given to the middleware. ``arrivals``: frame, time
    and serialised mask (compressed; see :meth:`masks`) of what came back, in order of arrival.
    ``tracks``: TrackArray by frame. ``table``: object id -> label of its seed.
    ``cpu``: processor seconds per second the node used; ``memory`` (m,): resident bytes, sampled.
    """

    published: list[float] = field(default_factory=list)
    arrivals: list[tuple[int, float, bytes]] = field(default_factory=list)
    tracks: dict[int, Any] = field(default_factory=dict)
    table: dict[int, int] = field(default_factory=dict)
    cpu: float = 0.0
    memory: list[int] = field(default_factory=list)

    def mask(self, number: int) -> np.ndarray:
        """Decode the mask of an arrival: (H, W) uint8 or uint16, pixel = object id."""
        from rclpy.serialization import deserialize_message
        from sensor_msgs.msg import Image

        from drift_ros.ros import conversions

        return conversions.image_to_labels(
            deserialize_message(zlib.decompress(self.arrivals[number][2]), Image)
        )


def restamp(data: bytes, stamp: int) -> bytes:
    """
    Set the stamp, in nanoseconds, of a serialised message that begins with a header.

    CDR: four bytes that tell the byte order, then the stamp's seconds and nanoseconds.
    """
    order = '<' if data[1] & 1 else '>'
    return bytes(data[:4]) + struct.pack(f'{order}iI', *divmod(stamp, 10**9)) + bytes(data[12:])


def stamp_of(data: bytes) -> int:
    """Read the stamp, in nanoseconds, of a serialised message that begins with a header."""
    seconds, rest = struct.unpack_from('<iI' if data[1] & 1 else '>iI', data, 4)
    return seconds * 10**9 + rest


class _Listener(GraphClient):
    """Publishes the frames and notes what the tracker answers."""

    def __init__(self, compressed: bool) -> None:
        from drift_ros_msgs.msg import TrackArray
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import CompressedImage, Image

        super().__init__('replay', NAMESPACE)
        self.frames: dict[int, int] = {}  # stamp -> frame
        self.arrivals: list[tuple[int, float, bytes]] = []
        self.tracks: dict[int, Any] = {}
        self.seeded = threading.Event()
        # as cameras do; the tracker's subscription is best effort too
        self._publisher = self.node.create_publisher(
            CompressedImage if compressed else Image,
            'image/compressed' if compressed else 'image',
            QoSProfile(depth=2, reliability=ReliabilityPolicy.BEST_EFFORT),
        )
        self.node.create_subscription(Image, 'tracker/mask', self._mask, 100, raw=True)
        self.node.create_subscription(TrackArray, 'tracker/tracks', self._track, 100)
        self.node.create_subscription(Image, 'tracker/seeds', lambda _: self.seeded.set(), 10)

    def publish(self, index: int, data: bytes) -> float:
        """Publish a frame; return when (time.monotonic())."""
        stamp = time.time_ns()
        self.frames[stamp] = index
        message = restamp(data, stamp)
        now = time.monotonic()
        self._publisher.publish(message)
        return now

    def _mask(self, data: bytes) -> None:
        now = time.monotonic()
        index = self.frames.get(stamp_of(data))
        if index is not None:
            self.arrivals.append((index, now, zlib.compress(data, 1)))

    def _track(self, message: Any) -> None:
        stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
        if stamp in self.frames:
            self.tracks[self.frames[stamp]] = message


def replay(
    images: Iterable[tuple[int, bytes]],
    seeds: Sequence[Seed],
    parameters: Mapping[str, object],
    logs: Path,
    *,
    compressed: bool,
    rate: float | None = None,
    threads: int = 0,
    progress: Callable[[], None] = lambda: None,
) -> Recording:
    """
    Show a new tracker process a sequence of images at a pace, and note its answers.

    The first seed must be of frame 0. It is given before the clock starts: frame 0 is not
    published again. A seed of a later frame is sent when that frame is published, with the
    frame, and takes effect when the node gets to it. After the last frame, its mask is waited
    for.

    :param images: stamp in nanoseconds, and serialised (Compressed)Image, of every frame
    :param parameters: of the tracker node
    :param logs: folder for the node's output
    :param rate: frames a second; None: as the stamps say
    :param threads: of the node's numeric libraries, 0: all processors
    :param progress: called after every frame that was published
    :raises ProcessError: the node did not come up, refused a seed, died, or fell silent
    """
    prepare_environment()
    with contextlib.ExitStack() as stack:
        children = Children(logs, NAMESPACE)
        stack.callback(children.stop_all)
        transport = 'compressed' if compressed else 'raw'
        pid = children.start(
            'tracker', {**parameters, 'image_transport': transport}, threads=threads
        )
        client = _Listener(compressed)
        stack.callback(client.close)
        return _Replay(client, children, pid, rate, progress).run(iter(images), seeds)


class _Replay:
    """One replay; its steps share the client and the process."""

    def __init__(
        self,
        client: _Listener,
        children: Children,
        pid: int,
        rate: float | None,
        progress: Callable[[], None],
    ) -> None:
        self._client, self._children, self._pid = client, children, pid
        self._rate, self._progress = rate, progress

    def run(self, images: Any, seeds: Sequence[Seed]) -> Recording:
        if not seeds or seeds[0].index != 0:
            raise ValueError('a replay needs a seed for its first frame')
        self._bring_up()
        first_stamp, first = next(images)
        recording = Recording()
        self._start(first, seeds[0], recording)
        late = {seed.index: seed for seed in seeds[1:]}
        threads: list[threading.Thread] = []
        failures: list[ProcessError] = []

        def seed(index: int) -> None:
            try:
                recording.table.update(
                    self._flip(
                        self._client.seed(
                            late[index].labels,
                            self._header(index),
                            lambda: None,
                            image=late[index].image,
                        )
                    )
                )
            except ProcessError as error:
                failures.append(error)

        with _Usage(self._pid) as usage:
            start = time.monotonic()
            recording.published.append(0.0)
            self._progress()
            for index, (stamp, data) in enumerate(images, start=1):
                due = start + (index / self._rate if self._rate else (stamp - first_stamp) / 1e9)
                self._sleep_until(due)
                recording.published.append(self._client.publish(index, data) - start)
                if index in late:
                    threads.append(threading.Thread(target=seed, args=(index,), daemon=True))
                    threads[-1].start()
                self._progress()
            last = len(recording.published) - 1
            # the newest frame always wins: it is answered, unless the middleware lost it
            slowest = max(
                (
                    at - start - recording.published[index]
                    for index, at, _ in list(self._client.arrivals)
                ),
                default=0.0,
            )
            self._wait(lambda: self._client.arrivals[-1][0] == last, 30.0 + 3 * slowest)
        for thread in threads:
            thread.join(_PATIENCE)
        if failures:
            raise failures[0]
        recording.arrivals = [
            (index, at - start, data) for index, at, data in list(self._client.arrivals) if index
        ]
        if last and not recording.arrivals:
            raise ProcessError(
                'the tracker answered none of the frames:\n' + self._children.tail('tracker')
            )
        self._wait(lambda: recording.arrivals[-1][0] in self._client.tracks, 2.0)
        recording.tracks = dict(self._client.tracks)
        recording.cpu, recording.memory = usage.cpu, usage.memory
        return recording

    def _watch(self) -> None:
        self._children.check()
        if self._children.ended('tracker') is not None:
            raise ProcessError(
                'the tracker process ended before the replay did:\n'
                + self._children.tail('tracker')
            )

    def _sleep_until(self, due: float) -> None:
        self._wait(lambda: time.monotonic() >= due, due - time.monotonic() + 1.0)

    def _wait(self, condition: Callable[[], Any], timeout: float) -> bool:
        """Wait for something, watching the process; False when it did not come about."""
        end = time.monotonic() + timeout
        checked = 0.0
        while not condition():
            now = time.monotonic()
            if now > end:
                return False
            if now - checked > 0.1:
                self._watch()
                checked = now
            time.sleep(0.001)
        return True

    def _bring_up(self) -> None:
        from lifecycle_msgs.msg import Transition

        for transition, what in (
            (Transition.TRANSITION_CONFIGURE, 'configured'),
            (Transition.TRANSITION_ACTIVATE, 'activated'),
        ):
            if not self._client.change_state(transition, self._watch):
                raise ProcessError(
                    f'the tracker could not be {what}:\n' + self._children.tail('tracker')
                )

    def _start(self, first: bytes, seed: Seed, recording: Recording) -> None:
        """Show the first frame until it is answered, so that both sides know each other; seed."""
        end = time.monotonic() + _PATIENCE
        while not self._client.arrivals:
            if time.monotonic() > end:
                raise ProcessError(
                    f'no mask came within {_PATIENCE:.0f} s of the first frame:\n'
                    + self._children.tail('tracker')
                )
            self._client.publish(0, first)
            self._wait(lambda: self._client.arrivals, 1.0)
        recording.table.update(
            self._flip(
                self._client.seed(seed.labels, self._header(0), self._watch, image=seed.image)
            )
        )
        if not self._wait(self._client.seeded.is_set, _PATIENCE):
            raise ProcessError(
                f'the seed was not applied within {_PATIENCE:.0f} s:\n'
                + self._children.tail('tracker')
            )

    def _header(self, index: int) -> Any:
        from std_msgs.msg import Header

        stamp = next(
            stamp for stamp, frame in list(self._client.frames.items())[::-1] if frame == index
        )
        header = Header(frame_id='replay')
        header.stamp.sec, header.stamp.nanosec = divmod(stamp, 10**9)
        return header

    @staticmethod
    def _flip(ids: Mapping[int, int]) -> dict[int, int]:
        return {number: label for label, number in ids.items()}


class _Usage:
    """Watches what a process uses while the block runs."""

    def __init__(self, pid: int) -> None:
        import psutil

        self._process = psutil.Process(pid)
        self._gone = psutil.Error
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.cpu, self.memory = 0.0, [self._process.memory_info().rss]

    def _seconds(self) -> float:
        times = self._process.cpu_times()
        return times.user + times.system

    def _sample(self) -> None:
        with contextlib.suppress(self._gone):
            while not self._stop.wait(_SAMPLE):
                self.memory.append(self._process.memory_info().rss)

    def __enter__(self) -> _Usage:
        self._begin = time.monotonic(), self._seconds()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        with contextlib.suppress(self._gone):
            elapsed = time.monotonic() - self._begin[0]
            self.cpu = (self._seconds() - self._begin[1]) / max(elapsed, 1e-6)
