# SPDX-License-Identifier: Apache-2.0
"""
The one thread that tracks. No ROS.

A :class:`Worker` owns a tracker and does what is asked of it, one thing at a time: images that
were received, and jobs, for each of which it hands out a future. Whatever a job or an image
raises, the thread goes on with the next: the tracker's operations happen wholly or not at all, and
the worker keeps nothing that could be left half done.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
import contextlib
from dataclasses import dataclass, field
import threading
from typing import Any, TYPE_CHECKING, TypeVar

from drift_ros.engine.errors import DriftRosError
from drift_ros.nodes.tracker.frames import ReceivedImage

if TYPE_CHECKING:
    from drift_ros.api import Tracker

Result = TypeVar('Result')


@dataclass(frozen=True)
class Job:
    """Something the worker does between two images."""

    work: Callable[[Any], Any]
    """Called with the tracker."""
    after: int = -1
    """In replay, not before the image of this sequence number was handed out."""
    background: bool = False
    """Waits until there is no other job, and lets images that wait take turns with it."""
    future: Future[Any] = field(default_factory=Future)
    """Of what ``work`` gives."""


class Mailbox:
    """
    Hands the worker one thing at a time: jobs first, then the next image. Thread safe.

    Background jobs come when no image waits, or one between two images: neither images nor
    background work can starve the other.

    Live (``replay=False``) it holds one image, and a newer one replaces it. In replay it holds
    every image, in order; once they exceed ``limit`` bytes :meth:`put` waits, so that the
    middleware's own queue and then the publisher slow down instead of images being lost.
    """

    def __init__(self, replay: bool = False, limit: int = 256 << 20) -> None:
        self._condition = threading.Condition()
        self._frames: deque[ReceivedImage] = deque()
        self._jobs: deque[Job] = deque()
        self._background: deque[Job] = deque()
        self._frames_turn = False
        self._bytes = 0
        self._taken = -1  # sequence number of the last image handed out or thrown away
        self._closed = False
        self._accepting = True
        self._replay, self._limit = replay, limit

    def configure(self, replay: bool, limit: int) -> None:
        """Change the mode; waiting images are thrown away."""
        self.clear()
        with self._condition:
            self._replay, self._limit = replay, limit
            self._accepting = True

    def put(self, frame: ReceivedImage) -> ReceivedImage | None:
        """
        Hand an image in.

        Returns
        -------
        ReceivedImage, optional
            The image that was dropped for it, if any. In replay, this waits while the queue is
            full, and gives ``frame`` itself when the mailbox was cleared meanwhile.

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
        """Queue a job; once the mailbox is closed, cancel it."""
        with self._condition:
            if not self._closed:
                (self._background if job.background else self._jobs).append(job)
                self._condition.notify_all()
                return
        job.future.cancel()

    def get(self) -> ReceivedImage | Job | None:
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
        """Throw the waiting images away and take no more until configured again."""
        with self._condition:
            if self._frames:
                self._taken = self._frames[-1].sequence
            self._frames.clear()
            self._bytes = 0
            self._accepting = False
            self._condition.notify_all()

    def close(self) -> None:
        """Throw everything away, cancel what is queued, and let :meth:`get` return None."""
        self.clear()
        with self._condition:
            left = [*self._jobs, *self._background]
            self._jobs.clear()
            self._background.clear()
            self._closed = True
            self._condition.notify_all()
        for job in left:
            job.future.cancel()

    @property
    def closed(self) -> bool:
        """Whether nothing is handed out any more."""
        with self._condition:
            return self._closed

    @property
    def waiting(self) -> int:
        """Images that wait."""
        with self._condition:
            return len(self._frames)


class Worker:
    """
    Owns a tracker, and the thread that alone uses its network and memory.

    Attributes
    ----------
    tracker : Tracker
        For what it allows from any thread: ``prepare_seed``, ``check_object``, ``objects``...
    mailbox : Mailbox
        Takes images. Jobs go through :meth:`submit`.

    """

    def __init__(
        self,
        tracker: Tracker,
        on_image: Callable[[Tracker, ReceivedImage], None],
        on_error: Callable[[BaseException], None],
    ) -> None:
        """
        Start the thread.

        Parameters
        ----------
        tracker : Tracker
        on_image : callable
            Tracks one image, on the thread.
        on_error : callable
            Told on the thread what an image raised, and what a job raised that is no
            DriftRosError; those are for who holds the job's future.

        """
        self.tracker = tracker
        self.mailbox = Mailbox()
        self._on_image, self._on_error = on_image, on_error
        # a thread in a network pass cannot be interrupted; the process may end without it
        self._thread = threading.Thread(target=self._run, name='tracking', daemon=True)
        self._thread.start()

    def submit(
        self, work: Callable[[Tracker], Result], *, after: int = -1, background: bool = False
    ) -> Future[Result]:
        """
        Have something done with the tracker, on the thread; see :class:`Job`.

        Returns
        -------
        Future
            Of what ``work`` gives; cancelled when the worker is closed before it got to it.

        """
        job = Job(work, after, background)
        self.mailbox.submit(job)
        return job.future

    def close(self) -> None:
        """Take no more; the thread ends after what it is doing. Does not wait."""
        self.mailbox.close()

    def join(self, timeout: float | None = None) -> bool:
        """Wait for the thread to end; False when it has not within ``timeout`` seconds."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            # everything: no image, no job and no report of what they raised ends tracking
            with contextlib.suppress(BaseException):
                item = self.mailbox.get()
                if item is None:
                    return
                try:
                    self._do(item)
                except BaseException as error:
                    self._on_error(error)

    def _do(self, item: ReceivedImage | Job) -> None:
        if isinstance(item, ReceivedImage):
            self._on_image(self.tracker, item)
            return
        if not item.future.set_running_or_notify_cancel():
            return
        try:
            result = item.work(self.tracker)
        except BaseException as error:
            item.future.set_exception(error)
            if not isinstance(error, DriftRosError):
                raise
        else:
            item.future.set_result(result)
