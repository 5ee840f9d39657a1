# SPDX-License-Identifier: Apache-2.0
"""The action ~/optimize of a tracker node in a process of its own."""

import threading
import time

from drift_ros_msgs.action import Optimize
from harness import Client, SETTLE, TIMEOUT, tracker_process, wait_for
import pytest
from rclpy.action import ActionClient
from scenes import GREEN, RED, scene, square_mask

DOMAIN = 47
FRAME = scene((16, 16, 40, RED), (84, 40, 40, GREEN))
MASK = square_mask((16, 16, 40), (84, 40, 40))
SETTINGS = {
    'features.resolution': 96,
    'kernel.radius': 6,
    'states.confidence': 0.0,
    'states.existence': 0.0,
    'states.lost_after': 1000,
    'experimental.optimize_steps': 10000,
    'experimental.optimize_budget': 600.0,
    'diagnostics_period': 0.2,
}


@pytest.fixture(scope='module')
def process(checkpoint, tmp_path_factory):
    log = tmp_path_factory.mktemp('optimize') / 'log'
    with tracker_process(DOMAIN, log, model=checkpoint, **SETTINGS) as node:
        yield node


@pytest.fixture(scope='module')
def client(process):
    client = Client(DOMAIN)
    client.action = ActionClient(client.node, Optimize, '/tracker/optimize')
    assert client.action.wait_for_server(TIMEOUT)
    time.sleep(SETTLE)
    yield client
    client.close()


@pytest.fixture
def tracker(client):
    """Give an active node that follows objects 1 and 2 anew."""
    client.unconfigure()
    assert client.set(
        layers=['up_blocks.2.attentions.0'], optimize_steps=10000, optimize_rate=0.03
    ) == ['', '', '']
    assert client.change('configure')
    client.listen('mask', 'tracks')
    assert client.change('activate')
    header = client.publish(FRAME)
    client.result(header)
    answer = client.ask_seed(MASK, header, ['red', 'green'])
    assert answer.success, answer.message
    return client


def answer(future):
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    assert done.wait(TIMEOUT)
    return future.result()


class Goal:
    """A goal sent to the node, and the feedback that came."""

    def __init__(self, tracker, **fields):
        self.feedback = []
        self.handle = answer(
            tracker.action.send_goal_async(
                Optimize.Goal(**fields), lambda message: self.feedback.append(message.feedback)
            )
        )
        assert self.handle.accepted
        self.future = self.handle.get_result_async()

    def result(self):
        return answer(self.future).result


def follows(tracker, first=1):
    """
    Track a frame: both objects are there; returns the tracks and the mask's bytes.

    What they look like is up to random weights.
    """
    tracks = tracker.track(FRAME)
    assert [(item.id, item.name) for item in tracks.tracks] == [
        (first, 'red'),
        (first + 1, 'green'),
    ]
    return tracks, bytes(tracker.result(tracks).data)


def test_cancelled_halfway_with_tracking_unharmed(tracker):
    """The masks are those of a run without learning, to the pixel."""
    plain = [follows(tracker)[1] for _ in range(7)]
    assert any(any(mask) for mask in plain)
    assert tracker.ask_reset().success
    assert tracker.ask_seed(MASK, frame=FRAME, names=['red', 'green']).success
    goal = Goal(tracker)
    wait_for(lambda: len(goal.feedback) > 20, 'feedback')
    masks, ages = [], []
    for _ in range(5):  # frames are answered while it learns
        step = goal.feedback[-1].step
        tracks, mask = follows(tracker, 3)
        ages.append(tracks.tracks[0].age)
        masks.append(mask)
        wait_for(lambda step=step: goal.feedback[-1].step > step, 'more steps')
    assert ages == [1, 2, 3, 4, 5]
    assert {item.object_id for item in goal.feedback} == {3, 4}
    last = goal.feedback[-1]
    assert 0 < last.step < last.steps == 10000 and last.loss > 0 and 0 <= last.agreement <= 1
    assert answer(goal.handle.cancel_goal_async()).goals_canceling
    result = goal.result()
    assert not result.success and 'cancelled' in result.message
    assert 0 < result.steps < 10000 and result.seconds > 0
    masks += [follows(tracker, 3)[1] for _ in range(2)]
    renamed = bytes.maketrans(b'\x01\x02', b'\x03\x04')
    assert masks == [mask.translate(renamed) for mask in plain]


def test_success(tracker):
    assert tracker.change('deactivate') and tracker.change('cleanup')
    assert tracker.set(optimize_steps=60) == ['']
    tracker.start()
    header = tracker.publish(FRAME)
    tracker.result(header)
    assert list(tracker.ask_seed(MASK, header, ['red', 'green']).object_ids) == [1, 2]
    goal = Goal(tracker, object_ids=[2])
    result = goal.result()
    assert result.success and result.message == ''
    assert list(result.object_ids) == [2] and result.steps == 60 and result.seconds > 0
    losses = [item.loss for item in goal.feedback]
    assert losses[-1] < losses[0] and {item.object_id for item in goal.feedback} == {2}
    follows(tracker)
    assert Goal(tracker, budget=0.01).result().success  # and once more, for both


def test_one_goal_at_a_time(tracker):
    goal = Goal(tracker)
    wait_for(lambda: goal.feedback, 'feedback')
    assert 'another goal is running' in Goal(tracker).result().message
    answer(goal.handle.cancel_goal_async())
    assert not goal.result().success


def test_refusals_say_why(tracker, process):
    assert 'no object 9; live objects: 1, 2' in Goal(tracker, object_ids=[9]).result().message
    assert 'the budget is' in Goal(tracker, budget=-3.0).result().message
    assert 'the budget is' in Goal(tracker, budget=float('nan')).result().message
    assert tracker.ask_reset().success
    wait_for(lambda: 'no objects' in Goal(tracker).result().message, 'reset')
    assert tracker.change('deactivate')
    assert 'not active' in Goal(tracker).result().message
    assert tracker.change('cleanup')
    assert 'not configured' in Goal(tracker).result().message
    assert tracker.set(layers=['down_blocks.0']) == ['']
    tracker.start()
    header = tracker.publish(FRAME)
    tracker.result(header)
    assert tracker.ask_seed(MASK, header).success
    assert 'tokens would have no effect' in Goal(tracker).result().message


def test_what_ends_a_goal(tracker):
    goal = Goal(tracker)
    wait_for(lambda: goal.feedback, 'feedback')
    assert tracker.ask_remove(2).success
    assert 'object 2 has been removed' in goal.result().message
    goal = Goal(tracker)
    wait_for(lambda: goal.feedback, 'feedback')
    assert tracker.change('deactivate')
    assert 'deactivated' in goal.result().message


def test_the_process_ends_in_time_while_it_learns(tracker, process):
    goal = Goal(tracker)
    wait_for(lambda: goal.feedback, 'feedback')
    code, _ = process.interrupt()
    assert code == 0
