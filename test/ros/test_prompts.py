# SPDX-License-Identifier: Apache-2.0
"""Boxes and clicks through a tracker process: services, subscription and command."""

from pathlib import Path
import re
import subprocess
import sys
import threading

from drift_ros_msgs.msg import Prompt, PromptPoint
from drift_ros_msgs.srv import SeedPrompt, Segment
from geometry_msgs.msg import PointStamped
from harness import Client, environment, tracker_process, wait_for
import numpy as np
import pytest
from scenes import GREEN, overlap, RED, scene, square_mask
from std_msgs.msg import Header

from drift_ros.ros import conversions

DOMAIN = 86
FRAME = scene((16, 16, 32, RED), (80, 40, 36, GREEN))
CUP, CAN = square_mask((16, 16, 32)) == 1, square_mask((80, 40, 36)) == 1
CUP_BOX, CAN_BOX = [13.0, 13.0, 51.0, 51.0], [77.0, 37.0, 119.0, 79.0]
PARAMETERS = {
    'features.resolution': 96,
    'kernel.radius': 6,
    'states.confidence': 0.0,
    'states.existence': 0.0,
    'states.lost_after': 1000,
    'refinement.prompts': 'grabcut',
    'diagnostics_period': 0.2,
}


@pytest.fixture(scope='module')
def process(tmp_path_factory):
    log = tmp_path_factory.mktemp('prompts') / 'log'
    # clicks go along a frame's own attention, of which random weights have none: colours do
    program = Path(__file__).with_name('weightless_tracker.py')
    with tracker_process(DOMAIN, log, program, **PARAMETERS) as node:
        yield node


@pytest.fixture(scope='module')
def client(process):
    client = Client(DOMAIN)
    client.start()
    client.listen('mask', 'tracks')
    yield client
    client.close()


@pytest.fixture
def tracker(client):
    assert client.ask_reset().success
    client.result(client.publish(FRAME))
    return client


def box(corners, name=''):
    return Prompt(box=corners, name=name)


def click(*points, name=''):
    return Prompt(
        points=[PromptPoint(x=float(x), y=float(y), positive=on) for x, y, on in points], name=name
    )


def seed(tracker, *prompts, **request):
    return tracker.ask(
        SeedPrompt, 'seed_prompt', SeedPrompt.Request(prompts=list(prompts), **request)
    )


def segment(tracker, *prompts, **request):
    return tracker.ask(Segment, 'segment', Segment.Request(prompts=list(prompts), **request))


def followed(tracker):
    return [(item.id, item.name) for item in tracker.track(FRAME).tracks]


def test_box_and_clicks_in_one_request(tracker):
    answer = seed(tracker, box(CAN_BOX, 'can'), click((32, 32, True), (96, 60, False), name='cup'))
    assert answer.success, answer.message
    can, cup = answer.object_ids
    labels = conversions.image_to_labels(answer.mask)
    assert overlap(labels == can, CAN) > 0.85 and overlap(labels == cup, CUP) > 0.85
    assert list(answer.errors) == ['', ''] and all(0 <= score <= 1 for score in answer.scores)
    assert followed(tracker) == [(can, 'can'), (cup, 'cup')]


def test_the_frame_is_picked_by_its_stamp(tracker):
    header = tracker.publish(FRAME)
    tracker.result(header)
    tracker.result(tracker.publish(scene((60, 10, 30, GREEN))))
    answer = segment(tracker, box(CUP_BOX), stamp=header.stamp)
    assert answer.success and answer.mask.header == header
    assert overlap(conversions.image_to_labels(answer.mask) == 1, CUP) > 0.85
    sent = conversions.rgb_to_image(FRAME, Header(frame_id='mine'))
    assert segment(tracker, box(CUP_BOX), image=sent).mask.header.frame_id == 'mine'


def test_segmenting_follows_nothing(tracker):
    answer = segment(tracker, box(CUP_BOX), box(CAN_BOX))
    assert answer.success, answer.message
    assert set(np.unique(conversions.image_to_labels(answer.mask))) == {0, 1, 2}
    assert followed(tracker) == []


@pytest.mark.parametrize(
    'prompts, reasons',
    [
        ([box(CUP_BOX), box([300.0, 10.0, 340.0, 40.0])], ['', 'outside the image']),
        ([box([20.0, 10.0, 10.0, 40.0])], ['is empty; its order']),
        ([box([1.0, 2.0, 3.0])], ['the box has 3 numbers']),
        ([click((5, 5, False))], ['neither a box nor a positive point']),
        ([click((500, 5, True)), box(CUP_BOX)], ['outside the image', '']),
        ([], []),
    ],
)
def test_bad_requests_leave_tracking_as_it_was(tracker, prompts, reasons):
    (number,) = seed(tracker, box(CUP_BOX, 'cup')).object_ids
    for answer in (seed(tracker, *prompts), segment(tracker, *prompts)):
        assert not answer.success and answer.message
        assert len(answer.errors) == len(reasons)
        for error, reason in zip(answer.errors, reasons):
            assert reason in error and bool(error) == bool(reason)
    assert list(seed(tracker, *prompts).object_ids) == [0] * len(prompts)
    assert followed(tracker) == [(number, 'cup')]


def test_a_stamp_that_is_not_buffered(tracker):
    stamp = Header().stamp
    stamp.sec = 5
    answer = seed(tracker, box(CUP_BOX), stamp=stamp)
    assert not answer.success and 'no frame with stamp 5.0' in answer.message


def test_a_click_in_a_viewer(tracker, process):
    message = PointStamped(header=tracker.header(0))
    message.point.x, message.point.y = 32.0, 32.0
    tracker.send(message, '/tracker/seed_point')
    wait_for(lambda: followed(tracker), 'the object that was clicked')
    pixels = re.search(r'at a click: (\d+) pixels', process.output)
    assert 0.8 < int(pixels[1]) / CUP.sum() < 1.2
    message.point.x = 1000.0
    before = followed(tracker)
    tracker.send(message, '/tracker/seed_point')
    wait_for(
        lambda: 'seed_point refused: prompt 1: the point (1000, 32) is outside' in process.output,
        'the refusal in the log',
    )
    assert followed(tracker) == before


def test_requests_at_once_and_other_services_meanwhile(tracker):
    """Whatever many callers ask, state is told, and every one gets an answer."""
    request = SeedPrompt.Request(prompts=[box(CUP_BOX)])
    seed(tracker, box(CAN_BOX))  # the client exists
    client = tracker.prepare(SeedPrompt, '/tracker/seed_prompt')
    done = [threading.Event() for _ in range(6)]
    futures = [client.call_async(request) for _ in done]
    for future, event in zip(futures, done):
        future.add_done_callback(lambda _, event=event: event.set())
    assert tracker.state() == 'active'
    assert all(event.wait(60) for event in done)
    answers = [future.result() for future in futures]
    assert any(answer.success for answer in answers)
    assert all(answer.success or 'being worked on' in answer.message for answer in answers)
    numbers = [answer.object_ids[0] for answer in answers if answer.success]
    assert len(set(numbers)) == len(numbers)


def test_unconfigured_node_says_so(tracker):
    assert tracker.change('deactivate') and tracker.change('cleanup')
    try:
        answer = seed(tracker, box(CUP_BOX))
        assert not answer.success and 'not configured' in answer.message
    finally:
        tracker.start()


def test_the_seed_command(tracker, tmp_path):
    def command(*arguments):
        return subprocess.run(
            [sys.executable, '-m', 'drift_ros.commands.main', 'seed', *arguments],
            env=environment(DOMAIN),
            capture_output=True,
            text=True,
            timeout=120,
        )

    saved = tmp_path / 'mask.png'
    dry = command('--point', '32', '32', '--dry-run', '--save', str(saved))
    assert dry.returncode == 0, dry.stderr
    from drift_ros.media.labels import read_labels

    assert overlap(read_labels(saved) == 1, CUP) > 0.5
    assert followed(tracker) == []
    done = command('--box', *map(str, CUP_BOX), '--name', 'cup', '--node', '/tracker')
    assert done.returncode == 0, done.stderr
    ((number, name),) = followed(tracker)
    assert name == 'cup' and done.stdout.startswith(f'object {number}: ')
    refused = command('--box', '300', '0', '310', '9')
    assert refused.returncode == 1 and 'outside the image' in refused.stderr
    assert command().returncode == 2
    assert followed(tracker) == [(number, 'cup')]
