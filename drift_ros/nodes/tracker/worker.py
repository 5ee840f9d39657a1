# SPDX-License-Identifier: Apache-2.0
"""
The one thread that tracks. No ROS.

A :class:`Worker` owns a tracker and does what is asked of it, one thing at a time: images that
were received, and jobs, for each of which it hands out a future. Whatever a job or an image
raises, the thread goes on with the next: the tracker's operations happen wholly or not at all, and
the worker keeps nothing that could be left half done. Workers of several cameras share a
:class:`TrackingThread`, which gives each as much of its time as any other.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
import contextlib
from dataclasses import dataclass, field
import threading
import time
from typing import Any, TYPE_CHECKING, TypeVar

import numpy as np

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

    def __init__(
        self,
        replay: bool = False,
        limit: int = 256 << 20,
        condition: threading.Condition | None = None,
    ) -> None:
        # who empties several waits for all of them at once
        self._condition = condition or threading.Condition()
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

    def take(self) -> ReceivedImage | Job | None:
        """Give the next thing to do; None when there is nothing now."""
        with self._condition:
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
            return None

    def take_image(self) -> ReceivedImage | None:
        """As :meth:`take`, where that is an image."""
        with self._condition:
            waits = bool(self._frames) and not self._jobs and not self._background
            item = self.take() if waits else None
        assert not isinstance(item, Job)
        return item

    @property
    def ready(self) -> bool:
        """Whether :meth:`take` would give something."""
        with self._condition:
            return bool(self._jobs or self._background or self._frames)

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
        """Throw everything away, cancel what is queued, and take nothing more."""
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


Ahead = Callable[[list[tuple['Tracker', np.ndarray]]], None]
"""See :class:`TrackingThread`."""


class TrackingThread:
    """
    The thread that tracks, for one worker or several.

    Of those with something to do, the one that has used the least time comes next. Time in which
    a worker had nothing to do is not saved up: it cannot have the thread for itself afterwards.
    """

    def __init__(self, ahead: Ahead | None = None) -> None:
        """
        Start without workers; the thread starts with the first one.

        Parameters
        ----------
        ahead : callable, optional
            Given the trackers and images, (H, W, 3) uint8 RGB, of all workers that have one when
            it is an image's turn, before they are tracked one after the other: takes them through
            the network at once. None: each goes alone.

        """
        self._ahead = ahead
        self.condition = threading.Condition()
        """Of the workers' mailboxes."""
        self._workers: list[Worker] = []
        self._now = 0.0  # turn of the worker that was served last, before it was
        # a thread in a network pass cannot be interrupted; the process may end without it
        self._thread = threading.Thread(target=self._run, name='tracking', daemon=True)

    def add(self, worker: Worker) -> None:
        """Serve one more worker."""
        with self.condition:
            self._workers.append(worker)
            if len(self._workers) == 1:
                self._thread.start()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until all workers are closed and the thread has ended; False when it has not."""
        if self._thread.ident is None:  # there was no worker
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            # everything: no image, no job and no report of what they raised ends tracking
            with contextlib.suppress(BaseException):
                worker = self._next()
                if worker is None:
                    return
                item = worker.mailbox.take()
                if self._ahead is not None and isinstance(item, ReceivedImage):
                    self._at_once(self._ahead, worker, item)
                elif item is not None:
                    worker.work(item)

    def _at_once(self, ahead: Ahead, worker: Worker, first: ReceivedImage) -> None:
        """Take the image of a worker, and those of others that wait, through the network."""
        taken = [(worker, first)]
        with self.condition:
            others = [other for other in self._workers if other is not worker]
        for other in others:
            item = other.mailbox.take_image()
            if item is not None:
                taken.append((other, item))
        decoded = [(one, item, one.decoded(item)) for one, item in taken]
        sound = [(one, item, image) for one, item, image in decoded if image is not None]
        start = time.monotonic()
        if len(sound) > 1:
            with contextlib.suppress(Exception):  # then each looks for itself, and says why not
                ahead([(one.tracker, image) for one, _, image in sound])
        for one, _, _ in sound:
            one.spend((time.monotonic() - start) / len(sound))
        for one, item, image in sound:
            one.work(item, image)

    def _next(self) -> Worker | None:
        """Wait for a worker that has something to do; None when all are closed."""
        with self.condition:
            while any(not worker.mailbox.closed for worker in self._workers):
                waiting = [worker for worker in self._workers if worker.mailbox.ready]
                if waiting:
                    chosen = min(waiting, key=lambda worker: max(worker.turn, self._now))
                    self._now = chosen.turn = max(chosen.turn, self._now)
                    return chosen
                self.condition.wait()
            return None


class Worker:
    """
    Owns a tracker, and has a thread that alone uses its network and memory.

    Attributes
    ----------
    tracker : Tracker
        For what it allows from any thread: ``prepare_seed``, ``check_object``, ``objects``...
    mailbox : Mailbox
        Takes images. Jobs go through :meth:`submit`.
    used : float
        Seconds of the thread so far.
    turn : float
        The same, and what others used while this one had nothing to do: who has the least comes
        next.

    """

    def __init__(
        self,
        tracker: Tracker,
        decode: Callable[[ReceivedImage], np.ndarray],
        on_image: Callable[[Tracker, ReceivedImage, np.ndarray], None],
        on_error: Callable[[BaseException], None],
        thread: TrackingThread | None = None,
    ) -> None:
        """
        Begin to work.

        Parameters
        ----------
        tracker : Tracker
        decode : callable
            Gives an image that was received as (H, W, 3) uint8 RGB, on the thread.
        on_image : callable
            Tracks one image, on the thread.
        on_error : callable
            Told on the thread what an image raised, and what a job raised that is no
            DriftRosError; those are for who holds the job's future.
        thread : TrackingThread, optional
            Shared with other workers; None: one of its own.

        """
        self.tracker = tracker
        self._decode, self._on_image, self._on_error = decode, on_image, on_error
        self._thread = thread or TrackingThread()
        self.mailbox = Mailbox(condition=self._thread.condition)
        self.used = self.turn = 0.0
        self._thread.add(self)

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
        return self._thread.join(timeout)

    def spend(self, seconds: float) -> None:
        """Count time on the thread."""
        self.used += seconds
        self.turn += seconds

    def decoded(self, image: ReceivedImage) -> np.ndarray | None:
        """Decode an image, on the thread; None where that raised something, which is told."""
        start = time.monotonic()
        try:
            return self._decode(image)
        except BaseException as error:
            self._tell(error)
            return None
        finally:
            self.spend(time.monotonic() - start)

    def work(self, item: ReceivedImage | Job, image: np.ndarray | None = None) -> None:
        """Do a thing, on the thread; what it raises is told. ``image``: it is decoded already."""
        start = time.monotonic()
        try:
            if isinstance(item, Job):
                self._do(item)
            else:
                self._on_image(self.tracker, item, self._decode(item) if image is None else image)
        except BaseException as error:
            self._tell(error)
        finally:
            self.spend(time.monotonic() - start)

    def _tell(self, error: BaseException) -> None:
        """Report an error; a report that fails keeps nobody else waiting."""
        with contextlib.suppress(BaseException):
            self._on_error(error)

    def _do(self, item: Job) -> None:
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
