# SPDX-License-Identifier: Apache-2.0
"""The worker: nothing that is raised on its thread ends it, or leaves anything half done."""

from concurrent.futures import CancelledError
import threading

import pytest

from drift_ros.engine.errors import FrameError
from drift_ros.nodes.tracker import worker as worker_module
from drift_ros.nodes.tracker.frames import ReceivedImage
from drift_ros.nodes.tracker.worker import TrackingThread, Worker

ERRORS = [FrameError, RuntimeError, MemoryError, KeyboardInterrupt, SystemExit, GeneratorExit]


def same(frame):
    """Decode nothing."""
    return frame


class Stage:
    """A worker whose tracker is a list, and what it was given."""

    def __init__(self):
        self.tracked, self.told = [], []
        self.fail = None
        self.worker = Worker([], same, self.track, self.tell)
        self.worker.mailbox.configure(True, 10**9)

    def track(self, tracker, frame, image):
        if self.fail:
            raise self.fail('frame')
        self.tracked.append(frame.sequence)

    def tell(self, error):
        self.told.append(error)

    def put(self, number):
        self.worker.mailbox.put(ReceivedImage(number, number, None, 1, 0.0))

    def settle(self):
        """Wait until all that was asked is done; background work comes last."""
        self.worker.submit(lambda tracker: None, background=True).result(10)


@pytest.fixture
def stage():
    stage = Stage()
    yield stage
    stage.worker.close()
    assert stage.worker.join(10)


def test_futures_give_what_jobs_give(stage):
    future = stage.worker.submit(lambda tracker: (tracker, threading.current_thread().name))
    assert future.result(10) == (stage.worker.tracker, 'tracking')


@pytest.mark.parametrize('error', ERRORS)
def test_a_job_that_raises_hurts_nobody_else(stage, error):
    def work(tracker):
        raise error('job')

    futures = [stage.worker.submit(work) for _ in range(3)]
    for number in range(5):
        stage.put(number)
    for future in futures:
        assert type(future.exception(10)) is error
    assert stage.worker.submit(lambda tracker: 7).result(10) == 7
    stage.settle()
    assert stage.tracked == list(range(5))
    # those the future's holder deals with are not reported as well
    assert len(stage.told) == (0 if error is FrameError else 3)


@pytest.mark.parametrize('error', ERRORS)
def test_a_frame_that_raises_is_told_and_the_next_is_tracked(stage, error):
    stage.fail = error
    stage.put(0)
    stage.settle()
    stage.fail = None
    stage.put(1)
    stage.settle()
    assert stage.tracked == [1]
    assert [type(item) for item in stage.told] == [error]


def test_a_report_that_raises_ends_nothing(stage):
    def tell(error):
        raise MemoryError

    stage.worker.close()
    worker = Worker([], same, stage.track, tell)
    try:
        with pytest.raises(KeyboardInterrupt):
            worker.submit(_interrupt).result(10)
        assert worker.submit(lambda tracker: 7).result(10) == 7
    finally:
        worker.close()
        assert worker.join(10)


def _interrupt(tracker):
    raise KeyboardInterrupt


def test_a_callback_of_a_future_that_raises_ends_nothing(stage):
    go = threading.Event()
    future = stage.worker.submit(lambda tracker: go.wait(10))

    def callback(done):
        raise KeyboardInterrupt

    future.add_done_callback(callback)
    go.set()
    assert stage.worker.submit(lambda tracker: 7).result(10) == 7


def test_closing_finishes_what_is_being_done_and_cancels_the_rest(stage):
    begun, go = threading.Event(), threading.Event()

    def work(tracker):
        begun.set()
        go.wait(10)
        return 'done'

    running = stage.worker.submit(work)
    queued = [stage.worker.submit(work, background=value) for value in (False, True)]
    assert begun.wait(10)
    stage.worker.close()
    late = stage.worker.submit(work)
    for future in (*queued, late):
        with pytest.raises(CancelledError):
            future.result(0)
    assert not stage.worker.join(0.01)
    go.set()
    assert running.result(10) == 'done' and stage.worker.join(10)


def test_what_was_cancelled_is_not_done(stage):
    go, done = threading.Event(), []
    stage.worker.submit(lambda tracker: go.wait(10))
    future = stage.worker.submit(lambda tracker: done.append(1))
    assert future.cancel()
    go.set()
    stage.settle()
    assert not done


class Cameras:
    """Workers that share a thread; an image of each takes so many seconds of a clock."""

    def __init__(self, seconds, monkeypatch, ahead=None):
        self.now, self.served = 0.0, []
        self.broken = None  # sequence number of images that cannot be decoded
        monkeypatch.setattr(worker_module.time, 'monotonic', lambda: self.now)
        self.thread = TrackingThread(ahead)
        self.hold = threading.Event()
        self.workers = []
        for number, each in enumerate(seconds):
            track = self.track(number, each)
            worker = Worker(number, self.decode, track, self.served.append, self.thread)
            self.workers.append(worker)
            self.workers[-1].mailbox.configure(True, 10**9)

    def track(self, number, seconds):
        def track(tracker, frame, image):
            self.now += seconds
            self.served.append(number)

        return track

    def decode(self, frame):
        if frame.sequence == self.broken:
            raise FrameError('damaged')
        return frame.sequence

    def put(self, number, count):
        for sequence in range(count):
            self.workers[number].mailbox.put(ReceivedImage(sequence, sequence, None, 1, 0.0))

    def fill(self, *counts):
        """Let images wait for all before the thread looks."""
        go = threading.Event()
        held = self.workers[0].submit(lambda tracker: go.wait(10))
        for number, count in enumerate(counts):
            self.put(number, count)
        go.set()
        held.result(10)

    def settle(self):
        for worker in self.workers:
            worker.submit(lambda tracker: None, background=True).result(10)

    def close(self):
        for worker in self.workers:
            worker.close()
        assert self.thread.join(10)


@pytest.fixture
def cameras(monkeypatch):
    made = []

    def make(*seconds, **more):
        made.append(Cameras(seconds, monkeypatch, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()


def test_cameras_that_share_a_thread_get_equal_time_whatever_their_images_take(cameras):
    three = cameras(1.0, 3.0, 2.0)
    three.fill(60, 60, 60)
    three.settle()
    used = [0.0, 0.0, 0.0]
    for number in three.served[:110]:  # while images of all three wait
        used[number] += (1.0, 3.0, 2.0)[number]
        assert max(used) - min(used) <= 3.0
    assert [three.served.count(number) for number in range(3)] == [60, 60, 60]


def test_a_camera_that_was_quiet_does_not_get_the_thread_for_itself(cameras):
    two = cameras(1.0, 1.0)
    two.fill(50, 0)
    two.settle()
    two.served.clear()
    two.fill(10, 10)
    two.settle()
    for end in range(2, 20, 2):
        assert abs(two.served[:end].count(0) - end // 2) <= 1
    assert [worker.used for worker in two.workers] == [60.0, 10.0]  # what each took, no more


def test_a_camera_that_sends_seldom_is_served_as_soon_as_it_sends(cameras):
    two = cameras(1.0, 1.0)
    begun = threading.Event()

    def send(tracker):  # in the midst of the other's images
        two.put(1, 1)
        begun.set()

    two.fill(30, 0)
    two.workers[0].submit(send).result(10)
    at = len([number for number in two.served if number == 0])
    two.settle()
    assert two.served.index(1) <= at + 1


def test_closing_one_camera_leaves_the_others(cameras):
    two = cameras(1.0, 1.0)
    two.workers[0].close()
    two.put(1, 3)
    two.workers[1].submit(lambda tracker: None, background=True).result(10)
    assert two.served == [1, 1, 1]
    assert not two.thread.join(0.01)


def test_a_thread_without_workers_is_over():
    assert TrackingThread().join(0)


def test_images_that_wait_go_through_the_network_at_once(cameras):
    batches = []
    three = cameras(1.0, 1.0, 1.0, ahead=batches.append)
    three.fill(3, 2, 1)
    three.settle()
    # trackers and decoded images; whoever has none left does not hold up the others
    assert [sorted(batch) for batch in batches] == [[(0, 0), (1, 0), (2, 0)], [(0, 1), (1, 1)]]
    assert sorted(three.served) == [0, 0, 0, 1, 1, 2]
    assert [worker.used for worker in three.workers] == [3.0, 2.0, 1.0]


def test_a_job_comes_before_the_images_that_wait_also_where_they_go_at_once(cameras):
    batches, done = [], []
    two = cameras(1.0, 1.0, ahead=batches.append)

    def work(tracker):
        done.append(list(two.served))

    go = threading.Event()
    held = two.workers[0].submit(lambda tracker: go.wait(10))
    two.put(0, 1)
    two.put(1, 1)
    job = two.workers[1].submit(work)
    go.set()
    held.result(10)
    job.result(10)
    two.settle()
    assert done == [[]] or done == [[0]]  # not after an image of its own camera
    assert sorted(two.served) == [0, 1]


def test_an_image_that_cannot_be_decoded_leaves_the_others_their_batch(cameras):
    batches = []
    three = cameras(1.0, 1.0, 1.0, ahead=batches.append)
    three.broken = 1
    three.fill(1, 2, 1)
    three.settle()
    assert [sorted(batch) for batch in batches] == [[(0, 0), (1, 0), (2, 0)]]
    assert sorted(item for item in three.served if isinstance(item, int)) == [0, 1, 2]
    assert [type(item) for item in three.served if not isinstance(item, int)] == [FrameError]


def test_a_batch_that_fails_is_made_up_for_one_by_one(cameras):
    def fail(batch):
        raise MemoryError

    two = cameras(1.0, 1.0, ahead=fail)
    two.fill(2, 2)
    two.settle()
    assert sorted(two.served) == [0, 0, 1, 1]


def test_a_report_that_fails_leaves_the_others_their_images(cameras):
    two = cameras(1.0, 1.0, ahead=lambda batch: None)

    def fail(error):
        raise MemoryError

    def broken(tracker, frame, image):
        raise RuntimeError

    two.workers[0]._on_image, two.workers[0]._on_error = broken, fail
    two.fill(2, 2)
    two.settle()
    assert two.served == [1, 1]
