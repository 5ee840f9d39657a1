# SPDX-License-Identifier: Apache-2.0
"""
Replay recorded images to a tracker node at a given pace, and note what comes back, and when.

The node is a process of its own and follows one camera or several; images and masks go through the
middleware, as on a robot. The
images are published as they were recorded (serialised, never decoded here), but for their stamp,
which is the time of publication, as a camera's is. No scores: see ``drift_ros.evaluation.live``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
import contextlib
from dataclasses import dataclass, field
import heapq
import math
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


@dataclass(frozen=True)
class Stream:
    """
    What one camera shows.

    Attributes
    ----------
    images : iterable of (int, bytes)
        Stamp in nanoseconds, and serialised (Compressed)Image, of every frame.
    seeds : sequence of Seed
        The first must be of frame 0.
    compressed : bool
        Whether the images are CompressedImage.
    rate : float, optional
        Frames a second; None: as the stamps say.
    progress : callable
        Called after every frame that was published.

    """

    images: Iterable[tuple[int, bytes]]
    seeds: Sequence[Seed]
    compressed: bool = False
    rate: float | None = None
    progress: Callable[[], None] = lambda: None


@dataclass
class Recording:
    """
    What a replay saw. All times are seconds since the first frame's instant, one clock for all.

    ``published`` (n,): when each frame was given to the middleware. ``arrivals``: frame, time
    and serialised mask (compressed; see :meth:`masks`) of what came back, in order of arrival.
    ``tracks``: TrackArray by frame. ``table``: object id -> label of its seed. Of all that took
    part: ``cpu``, processor seconds per second; ``memory`` (m,), resident bytes, sampled;
    ``proportional``, bytes at the end, of which pages that processes share count once.
    """

    published: list[float] = field(default_factory=list)
    arrivals: list[tuple[int, float, bytes]] = field(default_factory=list)
    tracks: dict[int, Any] = field(default_factory=dict)
    table: dict[int, int] = field(default_factory=dict)
    cpu: float = 0.0
    memory: list[int] = field(default_factory=list)
    proportional: int = 0

    def mask(self, number: int) -> np.ndarray:
        """Decode the mask of an arrival: (H, W) uint8 or uint16, pixel = object id."""
        from rclpy.serialization import deserialize_message
        from sensor_msgs.msg import Image

        from drift_ros.ros import conversions

        return conversions.image_to_labels(
            deserialize_message(zlib.decompress(self.arrivals[number][2]), Image)
        )


def replay(
    streams: Mapping[str, Stream],
    parameters: Mapping[str, object],
    logs: Path,
    *,
    threads: int = 0,
    apart: bool = False,
) -> dict[str, Recording]:
    """
    Show a new tracker process images at a pace, and note its answers.

    The first seed of a camera is given before the clock starts: its frame 0 is not published
    again. A seed of a later frame is sent when that frame is published, with the frame, and takes
    effect when the node gets to it. After the last frame, its mask is waited for.

    Parameters
    ----------
    streams : mapping of str to Stream
        By the name of the camera. A single one is shown to a node with one camera.
    parameters : mapping of str to object
        Of the tracker node.
    logs : Path
        Folder for the nodes' output.
    threads : int
        Of the node's numeric libraries, 0: all processors.
    apart : bool
        Show each camera to a node of its own rather than all to one.

    Returns
    -------
    dict of str to Recording

    Raises
    ------
    ProcessError
        A node did not come up, refused a seed, died, or fell silent.

    """
    if any(not stream.seeds or stream.seeds[0].index != 0 for stream in streams.values()):
        raise ValueError('a replay needs a seed for its first frame')
    prepare_environment()
    with contextlib.ExitStack() as stack:
        shown: dict[str, _Shown] = {}
        nodes: list[_Node] = []
        for group in [[name] for name in streams] if apart else [list(streams)]:
            space = f'{NAMESPACE}/{group[0]}' if apart and len(streams) > 1 else NAMESPACE
            node = _Node(group, streams, space, parameters, logs, threads, stack)
            nodes.append(node)
            for name in group:
                camera = node.camera(name if len(group) > 1 else '')
                shown[name] = _Shown(camera, node, streams[name])
        try:
            for node in nodes:
                node.bring_up()
            for one in shown.values():
                one.start()
            with _Usage([node.pid for node in nodes]) as usage:
                _show(list(shown.values()))
            for one in shown.values():
                one.finish()
                one.recording.cpu, one.recording.memory = usage.cpu, usage.memory
                one.recording.proportional = usage.proportional
        except ClientError as error:
            raise ProcessError(
                '\n'.join([str(error), *(node.tail() for node in nodes)])
            ) from error
        return {name: one.recording for name, one in shown.items()}


def _show(shown: Sequence[_Shown]) -> None:
    """Publish all cameras' frames when they are due, and wait for the last answers."""
    first = min(one.first for one in shown)
    start = time.monotonic()
    due: list[tuple[float, int]] = []
    for number, one in enumerate(shown):
        one.begin(start, first)
        heapq.heappush(due, (one.due, number))
    while due:
        when, number = heapq.heappop(due)
        if when == math.inf:
            break
        one = shown[number]
        one.node.sleep_until(when)
        one.publish()
        heapq.heappush(due, (one.due, number))
    for one in shown:
        one.settle()


class _Camera:
    """Publishes the frames, and notes what the tracker answers."""

    def __init__(self, client: TrackerClient, compressed: bool) -> None:
        from drift_ros_msgs.msg import TrackArray
        from sensor_msgs.msg import CompressedImage, Image

        from drift_ros.ros import qos

        self.client = client
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


class _Node:
    """A tracker process with one camera or several."""

    def __init__(
        self,
        names: Sequence[str],
        streams: Mapping[str, Stream],
        namespace: str,
        parameters: Mapping[str, object],
        logs: Path,
        threads: int,
        stack: contextlib.ExitStack,
    ) -> None:
        several = len(names) > 1
        self._namespace, self._stack = namespace, stack
        self._compressed = {name: streams[name].compressed for name in names}
        self._children = Children(logs / names[0] if namespace != NAMESPACE else logs, namespace)
        stack.callback(self._children.stop_all)
        given: dict[str, object] = {**parameters, 'image_transport': 'raw'}
        remap = []
        if several:
            given['cameras'] = list(names)
            remap = [
                f'{name}/image:={name}/image/compressed'
                for name, compressed in self._compressed.items()
                if compressed
            ]
        elif self._compressed[names[0]]:
            given['image_transport'] = 'compressed'
        self._only = '' if several else names[0]
        self.pid = self._children.start('tracker', given, remap, threads)
        self._client = self._join('')

    def _join(self, camera: str) -> TrackerClient:
        from drift_ros.ros.client import TrackerClient

        client = TrackerClient(
            f'{self._namespace}/tracker' + (f'/{camera}' if camera else ''),
            namespace=f'{self._namespace}/{camera}' if camera else self._namespace,
            name='replay',
            timeout=_PATIENCE,
            watch=self.watch,
        )
        return self._stack.enter_context(client)

    def camera(self, name: str) -> _Camera:
        """Give a camera, '' where there is but one."""
        client = self._join(name) if name else self._client
        return _Camera(client, self._compressed[name or self._only])

    def bring_up(self) -> None:
        """Configure and activate the node."""
        for transition in ('configure', 'activate'):
            if not self._client.change_state(transition):
                raise ProcessError(f'the tracker could not be {transition}d:\n{self.tail()}')

    def tail(self) -> str:
        """Give the end of the node's log."""
        return self._children.tail('tracker')

    def watch(self) -> None:
        """Raise ProcessError when the process ended."""
        self._children.check()
        if self._children.ended('tracker') is not None:
            raise ProcessError(f'the tracker process ended before the replay did:\n{self.tail()}')

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
                self.watch()
                checked = now
            time.sleep(0.001)
        return True


class _Shown:
    """A camera's stream while it is shown to a node."""

    def __init__(self, camera: _Camera, node: _Node, stream: Stream) -> None:
        self._camera, self.node, self._stream = camera, node, stream
        self._images = iter(stream.images)
        self.first, self._opening = next(self._images)
        """Stamp of the first frame, in nanoseconds."""
        self._late = {seed.index: seed for seed in stream.seeds[1:]}
        self._threads: list[threading.Thread] = []
        self._failures: list[Exception] = []
        self._start = self._origin = 0.0
        self.due = math.inf
        """When the next frame is to be published; never, after the last one."""
        self._next = b''
        self.recording = Recording()

    def start(self) -> None:
        """Show the first frame until it is answered, so that both sides know each other; seed."""
        end = time.monotonic() + _PATIENCE
        while not self._camera.arrivals:
            if time.monotonic() > end:
                raise ProcessError(
                    f'no mask came within {_PATIENCE:.0f} s of the first frame:\n'
                    + self.node.tail()
                )
            self._camera.publish(0, self._opening)
            self.node.wait(lambda: self._camera.arrivals, 1.0)
        self._seed(self._stream.seeds[0])
        if not self.node.wait(self._camera.seeded.is_set, _PATIENCE):
            raise ProcessError(
                f'the seed was not applied within {_PATIENCE:.0f} s:\n' + self.node.tail()
            )

    def begin(self, start: float, first: int) -> None:
        """Start the clock; ``first`` is the stamp at which it does."""
        self._start = start
        self._origin = start + (0.0 if self._stream.rate else (self.first - first) / 1e9)
        self.recording.published.append(self._origin - start)
        self._stream.progress()
        self._advance()

    def _advance(self) -> None:
        """Have the next frame ready, and know when it is due."""
        index, rate = len(self.recording.published), self._stream.rate
        stamp, self._next = next(self._images, (None, b''))
        self.due = math.inf
        if stamp is not None:
            self.due = self._origin + (index / rate if rate else (stamp - self.first) / 1e9)

    def publish(self) -> None:
        """Publish the next frame."""
        index = len(self.recording.published)
        self.recording.published.append(self._camera.publish(index, self._next) - self._start)
        if index in self._late:
            self._threads.append(threading.Thread(target=self._seed_later, args=(index,)))
            self._threads[-1].daemon = True
            self._threads[-1].start()
        self._stream.progress()
        self._advance()

    def _seed(self, seed: Seed) -> None:
        """Give the tracker a mask of a frame that was published."""
        answers = self._camera.client.seed(
            seed.labels, header=self._camera.header(seed.index), frame=seed.image
        )
        self.recording.table.update({answer.id: answer.label for answer in answers})

    def _seed_later(self, index: int) -> None:
        try:
            self._seed(self._late[index])
        except Exception as error:  # for the thread that waits for this one
            self._failures.append(error)

    def settle(self) -> None:
        """Wait for the answer to the last frame."""
        published = self.recording.published
        last = len(published) - 1
        # the newest frame always wins: it is answered, unless the middleware lost it
        slowest = max(
            (at - self._start - published[index] for index, at, _ in list(self._camera.arrivals)),
            default=0.0,
        )
        self.node.wait(lambda: self._camera.arrivals[-1][0] == last, 30.0 + 3 * slowest)

    def finish(self) -> None:
        """Put together what came back."""
        for thread in self._threads:
            thread.join(_PATIENCE)
        if self._failures:
            raise self._failures[0]
        arrivals = [
            (index, at - self._start, data)
            for index, at, data in list(self._camera.arrivals)
            if index
        ]
        if len(self.recording.published) > 1 and not arrivals:
            raise ProcessError('the tracker answered none of the frames:\n' + self.node.tail())
        self.recording.arrivals = arrivals
        if arrivals:
            self.node.wait(lambda: arrivals[-1][0] in self._camera.tracks, 2.0)
        self.recording.tracks = dict(self._camera.tracks)


class _Usage:
    """Watches what processes use while the block runs."""

    def __init__(self, pids: Sequence[int]) -> None:
        import psutil

        self._processes = [psutil.Process(pid) for pid in pids]
        self._gone = psutil.Error
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self.cpu, self.memory, self.proportional = 0.0, [self._resident()], 0

    def _resident(self) -> int:
        return sum(process.memory_info().rss for process in self._processes)

    def _seconds(self) -> float:
        return sum(sum(process.cpu_times()[:2]) for process in self._processes)

    def _sample(self) -> None:
        with contextlib.suppress(self._gone):
            while not self._stop.wait(_SAMPLE):
                self.memory.append(self._resident())

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
            full = [process.memory_full_info() for process in self._processes]
            # only Linux knows what is shared
            self.proportional = sum(getattr(each, 'pss', each.rss) for each in full)
