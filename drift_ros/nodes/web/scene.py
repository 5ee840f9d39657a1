# SPDX-License-Identifier: Apache-2.0
"""What there is to see: frames by stamp, what the tracker says of them, names. Imports no ROS."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
import threading
import time
from typing import Any

from drift_ros.nodes.tracker.frames import FrameBuffer, ReceivedImage

_PATIENCE = 1.0
"""Seconds without a result after which frames are shown as they come from the camera."""
_NOTICES = 30
"""Things said to everybody that who comes later still gets told."""


@dataclass(frozen=True)
class Shown:
    """
    One picture for the pages.

    Attributes
    ----------
    number : int
        1, 2, 3...: newer pictures have higher ones.
    frame : ReceivedImage
    result : drift_ros.ros.received.Result, optional
        Of this very frame. None: the tracker says nothing at present.
    names : mapping of int to str, optional
        Of the live objects; None where nobody has told.

    """

    number: int
    frame: ReceivedImage
    result: Any = None
    names: Mapping[int, str] | None = None


@dataclass(frozen=True)
class Condition:
    """
    How the tracker is.

    Attributes
    ----------
    tracker : str
        Full name of its node.
    present : bool
        Whether it is there.
    camera : str
        Topic of its images; '' while it listens to none.
    level : int
        Of its diagnostics: 0 fine, 1 warning, 2 error.
    text : str
        What it says of itself.
    values : mapping of str to str
        The values of its diagnostics.

    """

    tracker: str = ''
    present: bool = False
    camera: str = ''
    level: int = 0
    text: str = ''
    values: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Robot:
    """
    Whether a robot follows, and what.

    Attributes
    ----------
    follower : str
        Full name of the node that drives after the tracker's target; '' where there is none, and
        nothing else is of meaning.
    on : bool
        Whether it drives, or would once it sees the object.
    level : int
        Of its diagnostics: 0 fine, 1 warning, 2 error.
    text : str
        What it says of itself.
    target : int
        Id of the object whose pose the tracker gives it; 0: none.

    """

    follower: str = ''
    on: bool = False
    level: int = 0
    text: str = ''
    target: int = 0


class Scene:
    """
    The newest of everything. Written by ROS's threads, read by the server's; thread safe.

    Attributes
    ----------
    viewers : int
        Pages that are open; without any, nobody needs to listen to the camera.

    """

    def __init__(
        self, frames: int = 90, size: int = 128 << 20, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Keep at most so many frames, of so many bytes together."""
        self.viewers = 0
        self._buffer = FrameBuffer(frames, size)
        self._clock = clock
        self._lock = threading.Lock()
        self._notify: Callable[[], None] = lambda: None
        self._shown: Shown | None = None
        self._names: Mapping[int, str] | None = None
        self._condition = Condition()
        self._robot = Robot()
        self._thumbnails: dict[int, bytes] = {}
        self._notices: deque[tuple[int, str]] = deque(maxlen=_NOTICES)
        self._noticed = 0
        self._number = 0
        self._last_result = float('-inf')
        self._interval = 0.0

    def on_change(self, notify: Callable[[], None]) -> None:
        """Call this after every change, on the thread that made it."""
        self._notify = notify

    @property
    def shown(self) -> Shown | None:
        """The picture to show."""
        return self._shown

    @property
    def condition(self) -> Condition:
        """How the tracker is."""
        return self._condition

    @property
    def robot(self) -> Robot:
        """How the robot is; the same object until that changes."""
        return self._robot

    @property
    def names(self) -> Mapping[int, str]:
        """Names of the live objects by id, as far as the tracker has told."""
        return self._names or {}

    @property
    def thumbnails(self) -> Mapping[int, bytes]:
        """JPEG of each object as it was marked or first seen, by id."""
        with self._lock:
            return dict(self._thumbnails)

    def notices(self, after: int = 0) -> list[tuple[int, str]]:
        """What was said to everybody since a number, with the numbers of each."""
        with self._lock:
            return [item for item in self._notices if item[0] > after]

    def find(self, when: int) -> ReceivedImage:
        """Find a frame by its stamp in nanoseconds; raises LookupError where it is forgotten."""
        if when == 0:  # to the buffer, that is the newest one
            raise LookupError('the frame has no stamp')
        return self._buffer.find(when)

    def frame(self, frame: ReceivedImage) -> None:
        """Take a camera frame; shown at once only while the tracker says nothing."""
        self._buffer.add(frame)
        patience = max(_PATIENCE, 3.0 * self._interval)
        if self._clock() - self._last_result > patience:
            self._show(frame, None)

    def result(self, result: Any) -> None:
        """Take what the tracker says of a frame, a :class:`drift_ros.ros.received.Result`."""
        now = self._clock()
        since = now - self._last_result
        self._last_result = now
        self._interval = 0.7 * self._interval + 0.3 * since if since < 10.0 else 0.0
        try:
            frame = self._buffer.find(result.stamp)
        except LookupError:
            return  # lost on its way here; the next one comes
        self._show(frame, result)

    def _show(self, frame: ReceivedImage, result: Any) -> None:
        with self._lock:
            self._number += 1
            self._shown = Shown(self._number, frame, result, self._names)
        self._notify()

    def name(self, names: Mapping[int, str]) -> None:
        """Take the names of all live objects."""
        with self._lock:
            self._names = dict(names)
            self._thumbnails = {k: v for k, v in self._thumbnails.items() if k in names}
            if self._shown is not None:
                self._number += 1
                self._shown = Shown(
                    self._number, self._shown.frame, self._shown.result, self._names
                )
        self._notify()

    def thumbnail(self, object_id: int, picture: bytes) -> None:
        """Take a small picture of an object."""
        with self._lock:
            self._thumbnails[object_id] = picture
        self._notify()

    def assess(self, condition: Condition) -> None:
        """Take how the tracker is. When it goes, its objects go: ids start anew with the next."""
        with self._lock:
            before, self._condition = self._condition, condition
            if before.present and not condition.present:
                self._names, self._thumbnails = None, {}
                self._last_result = float('-inf')
                if self._shown is not None:
                    self._number += 1
                    self._shown = Shown(self._number, self._shown.frame)
            error = condition.values.get('last error', '')
            if error and error != before.values.get('last error', ''):
                self._say(error)
        if before != condition:
            self._notify()

    def drive(self, robot: Robot) -> None:
        """Take how the robot is."""
        if robot != self._robot:
            self._robot = robot
            self._notify()

    def say(self, text: str) -> None:
        """Tell something to everybody."""
        with self._lock:
            self._say(text)
        self._notify()

    def _say(self, text: str) -> None:
        self._noticed += 1
        self._notices.append((self._noticed, text))
