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
import threading
import time
from typing import Any, TYPE_CHECKING
import zlib

import numpy as np

from drift_ros.ros import stamp as stamps
from drift_ros.ros.client_errors import ClientError
from drift_ros.ros.processes import Children, prepare_environment, ProcessError

if TYPE_CHECKING:
    from drift_ros.ros.client import TrackerClient

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


class Camera:
    """
    Publishes frames, and notes what the tracker answers.

    Attributes
    ----------
    frames : dict of int to int
        Frame by stamp, in nanoseconds.
    arrivals : list of tuple
        As of :class:`Recording`, in seconds of time.monotonic().
    tracks : dict of int to TrackArray
        By frame.
    seeded : threading.Event
        Whether a seed was carried out.

    """

    def __init__(self, client: TrackerClient, compressed: bool) -> None:
        from drift_ros_msgs.msg import TrackArray
        from sensor_msgs.msg import CompressedImage, Image

        from drift_ros.ros import qos

        self.frames: dict[int, int] = {}  # stamp -> frame
        self.arrivals: list[tuple[int, float, bytes]] = []
        self.tracks: dict[int, Any] = {}
        self.seeded = threading.Event()
        node, tracker = client.node, client.tracker
        self._publisher = node.create_publisher(
            CompressedImage if compressed else Image,
            'image/compressed' if compressed else 'image',
            qos.CAMERA,
        )
        # serialised: decoding is for later, and this clock runs
        node.create_subscription(Image, f'{tracker}/mask', self._mask, qos.LISTENING, raw=True)
        node.create_subscription(TrackArray, f'{tracker}/tracks', self._track, qos.LISTENING)
        node.create_subscription(
            Image, f'{tracker}/seeds', lambda _: self.seeded.set(), qos.LISTENING
        )

    def publish(self, index: int, data: bytes) -> float:
        """Publish a frame; return when (time.monotonic())."""
        stamp = time.time_ns()
        self.frames[stamp] = index
        message = stamps.restamp(data, stamp)
        now = time.monotonic()
        self._publisher.publish(message)
        return now

    def header(self, index: int) -> Any:
        """Give the header of the last publication of a frame."""
        from std_msgs.msg import Header

        stamp = next(stamp for stamp, frame in list(self.frames.items())[::-1] if frame == index)
        return Header(stamp=stamps.message(stamp), frame_id='replay')

    def _mask(self, data: bytes) -> None:
        now = time.monotonic()
        index = self.frames.get(stamps.of_serialized(data))
        if index is not None:
            self.arrivals.append((index, now, zlib.compress(data, 1)))

    def _track(self, message: Any) -> None:
        stamp = stamps.nanoseconds(message.header.stamp)
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

    Parameters
    ----------
    images : iterable of (int, bytes)
        Stamp in nanoseconds, and serialised (Compressed)Image, of every frame.
    seeds : sequence of Seed
    parameters : mapping of str to object
        Of the tracker node.
    logs : Path
        Folder for the node's output.
    compressed : bool
        Whether the images are CompressedImage.
    rate : float, optional
        Frames a second; None: as the stamps say.
    threads : int
        Of the node's numeric libraries, 0: all processors.
    progress : callable
        Called after every frame that was published.

    Raises
    ------
    ProcessError
        The node did not come up, refused a seed, died, or fell silent.

    """
    prepare_environment()
    from drift_ros.ros.client import TrackerClient

    with contextlib.ExitStack() as stack:
        children = Children(logs, NAMESPACE)
        stack.callback(children.stop_all)
        transport = 'compressed' if compressed else 'raw'
        pid = children.start(
            'tracker', {**parameters, 'image_transport': transport}, threads=threads
        )
        client = stack.enter_context(
            TrackerClient(namespace=NAMESPACE, name='replay', timeout=_PATIENCE)
        )
        camera = Camera(client, compressed)
        try:
            return Replay(client, camera, children, pid, rate, progress).run(iter(images), seeds)
        except ClientError as error:
            raise ProcessError(f'{error}\n{children.tail("tracker")}') from error


class Replay:
    """Shows a tracker images; its steps share the client and the process."""

    def __init__(
        self,
        client: TrackerClient,
        camera: Camera,
        children: Children,
        pid: int,
        rate: float | None,
        progress: Callable[[], None],
    ) -> None:
        self._client, self.camera, self._children = client, camera, children
        self._pid, self._rate, self._progress = pid, rate, progress
        client.watch = self._watch

    def run(self, images: Any, seeds: Sequence[Seed]) -> Recording:
        """Show all images at their pace, and give what came back."""
        if not seeds or seeds[0].index != 0:
            raise ValueError('a replay needs a seed for its first frame')
        self.bring_up()
        first_stamp, first = next(images)
        recording = Recording()
        self.start(first, seeds[0], recording)
        late = {seed.index: seed for seed in seeds[1:]}
        threads: list[threading.Thread] = []
        failures: list[Exception] = []

        def seed(index: int) -> None:
            try:
                self._seed(late[index], recording)
            except Exception as error:  # for the thread that waits for this one
                failures.append(error)

        with _Usage(self._pid) as usage:
            start = time.monotonic()
            recording.published.append(0.0)
            self._progress()
            for index, (stamp, data) in enumerate(images, start=1):
                due = start + (index / self._rate if self._rate else (stamp - first_stamp) / 1e9)
                self.sleep_until(due)
                recording.published.append(self.camera.publish(index, data) - start)
                if index in late:
                    threads.append(threading.Thread(target=seed, args=(index,), daemon=True))
                    threads[-1].start()
                self._progress()
            last = len(recording.published) - 1
            # the newest frame always wins: it is answered, unless the middleware lost it
            slowest = max(
                (
                    at - start - recording.published[index]
                    for index, at, _ in list(self.camera.arrivals)
                ),
                default=0.0,
            )
            self.wait(lambda: self.camera.arrivals[-1][0] == last, 30.0 + 3 * slowest)
        for thread in threads:
            thread.join(_PATIENCE)
        if failures:
            raise failures[0]
        recording.arrivals = [
            (index, at - start, data) for index, at, data in list(self.camera.arrivals) if index
        ]
        if last and not recording.arrivals:
            raise ProcessError(
                'the tracker answered none of the frames:\n' + self._children.tail('tracker')
            )
        self.wait(lambda: recording.arrivals[-1][0] in self.camera.tracks, 2.0)
        recording.tracks = dict(self.camera.tracks)
        recording.cpu, recording.memory = usage.cpu, usage.memory
        return recording

    def _watch(self) -> None:
        self._children.check()
        if self._children.ended('tracker') is not None:
            raise ProcessError(
                'the tracker process ended before the replay did:\n'
                + self._children.tail('tracker')
            )

    def sleep_until(self, due: float) -> None:
        """Sleep until a time.monotonic(), watching the process."""
        self.wait(lambda: time.monotonic() >= due, due - time.monotonic() + 1.0)

    def wait(self, condition: Callable[[], Any], timeout: float) -> bool:
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

    def bring_up(self) -> None:
        """Configure and activate the tracker."""
        for transition in ('configure', 'activate'):
            if not self._client.change_state(transition):
                raise ProcessError(
                    f'the tracker could not be {transition}d:\n' + self._children.tail('tracker')
                )

    def _seed(self, seed: Seed, recording: Recording) -> None:
        """Give the tracker a mask of a frame that was published."""
        answers = self._client.seed(
            seed.labels, header=self.camera.header(seed.index), frame=seed.image
        )
        recording.table.update({answer.id: answer.label for answer in answers})

    def start(self, first: bytes, seed: Seed, recording: Recording) -> None:
        """Show the first frame until it is answered, so that both sides know each other; seed."""
        end = time.monotonic() + _PATIENCE
        while not self.camera.arrivals:
            if time.monotonic() > end:
                raise ProcessError(
                    f'no mask came within {_PATIENCE:.0f} s of the first frame:\n'
                    + self._children.tail('tracker')
                )
            self.camera.publish(0, first)
            self.wait(lambda: self.camera.arrivals, 1.0)
        self._seed(seed, recording)
        if not self.wait(self.camera.seeded.is_set, _PATIENCE):
            raise ProcessError(
                f'the seed was not applied within {_PATIENCE:.0f} s:\n'
                + self._children.tail('tracker')
            )


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
