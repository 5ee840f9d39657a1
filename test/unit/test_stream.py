# SPDX-License-Identifier: Apache-2.0
"""What lies between the receiving threads and the tracking thread."""

import threading
import time

import pytest

from drift_ros.nodes.tracker.frames import FrameBuffer, ReceivedImage
from drift_ros.nodes.tracker.worker import Job, Mailbox


def frame(sequence, stamp=None, size=10):
    return ReceivedImage(
        sequence, 100 * (sequence + 1) if stamp is None else stamp, None, size, 0.0
    )


def test_live_keeps_the_newest_frame_only():
    box = Mailbox()
    assert box.put(frame(0)) is None
    assert box.put(frame(1)).sequence == 0
    assert box.put(frame(2)).sequence == 1
    assert box.take().sequence == 2
    assert box.put(frame(3)) is None


def test_jobs_come_before_frames_and_in_order():
    box = Mailbox()
    box.put(frame(0))
    jobs = [Job(lambda tracker: None), Job(lambda tracker: None, after=5)]
    for job in jobs:
        box.submit(job)
    assert [box.take() for _ in range(2)] == jobs
    assert box.take().sequence == 0


def test_replay_keeps_all_frames_in_order():
    box = Mailbox(replay=True)
    for number in range(50):
        assert box.put(frame(number)) is None
    assert [box.take().sequence for _ in range(50)] == list(range(50))


def test_replay_holds_a_job_until_its_frame_was_handed_out():
    box = Mailbox(replay=True)
    for number in range(4):
        box.put(frame(number))
    job = Job(lambda tracker: None, after=2)
    box.submit(job)
    order = [box.take() for _ in range(5)]
    assert [item if item is job else item.sequence for item in order] == [0, 1, 2, job, 3]


def test_a_job_for_a_frame_that_was_thrown_away_is_done_at_once():
    box = Mailbox(replay=True)
    for number in range(4):
        box.put(frame(number))
    job = Job(lambda tracker: None, after=3)
    box.submit(job)
    box.clear()
    assert box.take() is job


def test_replay_waits_while_the_queue_is_full():
    box = Mailbox(replay=True, limit=25)
    box.put(frame(0))
    box.put(frame(1))
    done = threading.Event()
    thread = threading.Thread(target=lambda: (box.put(frame(2)), done.set()))
    thread.start()
    time.sleep(0.05)
    assert not done.is_set() and box.waiting == 2
    assert box.take().sequence == 0
    thread.join()
    assert [box.take().sequence for _ in range(2)] == [1, 2]


def test_a_frame_larger_than_the_queue_still_gets_through():
    box = Mailbox(replay=True, limit=5)
    box.put(frame(0))
    assert box.take().sequence == 0


@pytest.mark.parametrize('end', ['clear', 'close'])
def test_a_waiting_put_is_released(end):
    box = Mailbox(replay=True, limit=10)
    box.put(frame(0))
    last = frame(1)
    results = []
    thread = threading.Thread(target=lambda: results.append(box.put(last)))
    thread.start()
    time.sleep(0.02)
    getattr(box, end)()
    thread.join(5)
    assert results == [last] and box.waiting == 0


def test_nothing_is_given_once_closed():
    box = Mailbox()
    box.submit(Job(lambda tracker: None))
    assert box.ready
    box.close()
    assert not box.ready and box.take() is None


def test_nothing_is_taken_after_clear_until_configured():
    box = Mailbox()
    box.clear()
    late = frame(0)
    assert box.put(late) is late and box.waiting == 0
    box.configure(replay=True, limit=100)
    assert box.put(frame(1)) is None and box.waiting == 1


def test_buffer_finds_by_stamp_and_gives_the_newest_for_zero():
    buffer = FrameBuffer(10, 1000)
    for number in range(3):
        assert not buffer.add(frame(number))
    assert buffer.find(200).sequence == 1
    assert buffer.find(0).sequence == 2


def test_buffer_is_bounded_in_number_and_bytes():
    buffer = FrameBuffer(3, 1000)
    for number in range(5):
        buffer.add(frame(number))
    assert len(buffer) == 3
    buffer = FrameBuffer(100, 45)
    for number in range(9):
        buffer.add(frame(number))
    assert len(buffer) == 4
    buffer.add(frame(9, size=5000))  # larger than the bound: kept, alone
    assert len(buffer) == 1 and buffer.find(0).sequence == 9


def test_what_is_not_buffered_is_explained():
    buffer = FrameBuffer(2, 1000)
    with pytest.raises(LookupError, match='no frames'):
        buffer.find(0)
    for number in range(4):
        buffer.add(frame(number, stamp=(number + 1) * 10**9))
    with pytest.raises(LookupError, match=r'1\.000000000 is.*3\.000000000 to 4\.000000000') as e:
        buffer.find(10**9)
    assert 'buffer_frames' in str(e.value)


def test_a_jump_back_in_time_forgets_the_future():
    buffer = FrameBuffer(10, 1000)
    for number in range(5):
        buffer.add(frame(number))
    assert buffer.add(frame(5, stamp=250))
    assert len(buffer) == 3 and buffer.find(0).sequence == 5
    with pytest.raises(LookupError):
        buffer.find(500)
    assert not buffer.add(frame(6, stamp=250))  # the same stamp again replaces, time stood still
    assert buffer.find(250).sequence == 6 and len(buffer) == 3


def test_statistics():
    pytest.importorskip('diagnostic_msgs')
    now = [0.0]
    from drift_ros.nodes.tracker.diagnostics import StreamStatistics

    statistics = StreamStatistics(window=10.0, clock=lambda: now[0])
    for number in range(20):
        now[0] = number / 2
        statistics.receive()
        if number % 2:
            statistics.drop()
        else:
            statistics.track(0.1 + number / 1000)
    statistics.refuse('bad')
    numbers = statistics.snapshot()
    assert (numbers['received'], numbers['tracked'], numbers['dropped'], numbers['refused']) == (
        20,
        10,
        10,
        1,
    )
    assert numbers['rate_in'] == pytest.approx(20 / 9.5)
    assert numbers['rate_out'] == pytest.approx(10 / 9.5)
    assert numbers['latency_median'] == pytest.approx(109.0)
    assert 109 < numbers['latency_95'] <= 118.1
    assert numbers['refused_recently'] == 1 and statistics.last_error == 'bad'
    now[0] = 100.0
    numbers = statistics.snapshot()
    assert numbers['rate_in'] == 0 and numbers['refused_recently'] == 0
    assert numbers['silence'] == pytest.approx(90.5)
    assert numbers['received'] == 20
    assert numbers['latency_median'] != numbers['latency_median']  # NaN: nothing lately


def test_background_jobs_take_turns_with_frames():
    mailbox, done = Mailbox(replay=True, limit=10**9), []
    mailbox.configure(True, 10**9)

    def again(left):
        done.append('step')
        if left:
            mailbox.submit(Job(lambda tracker: again(left - 1), background=True))

    mailbox.submit(Job(lambda tracker: again(5), background=True))
    mailbox.submit(Job(lambda tracker: done.append('job')))
    for number in range(3):
        mailbox.put(ReceivedImage(number, number, None, 1, 0.0))
    for _ in range(10):
        item = mailbox.take()
        if isinstance(item, Job):
            item.work(None)
        else:
            done.append(item.sequence)
    assert done == ['job', 'step', 0, 'step', 1, 'step', 2, 'step', 'step', 'step']
    assert not mailbox.closed
    mailbox.submit(Job(lambda tracker: None, background=True))
    mailbox.close()
    assert mailbox.closed and mailbox.take() is None
