# SPDX-License-Identifier: Apache-2.0
"""A live node whose engine fails goes on: every later frame is answered, and seeds are taken."""

import array
from pathlib import Path

import cv2
from drift_ros_msgs.msg import Prompt
from drift_ros_msgs.srv import SeedMask, SeedPrompt
from geometry_msgs.msg import PointStamped
from harness import Client, NodeProcess, wait_for
import numpy as np
import pytest
from scenes import GREEN, RED, scene, square_mask
from std_msgs.msg import Header
from weightless_tracker import mark, NO_PICTURE, NOT_A_NUMBER, OTHER_GRID

from drift_ros.ros import conversions

DOMAIN = 71
FRAME = scene((16, 16, 24, RED), (80, 40, 30, GREEN))
CUP, CAN = square_mask((16, 16, 24)), square_mask((80, 40, 30))
FRAMES = 20
FAILURES = [
    pytest.param(1, 'RuntimeError', id='error'),
    pytest.param(2, 'MemoryError', id='memory'),
    pytest.param(3, 'KeyboardInterrupt', id='interrupt'),
    pytest.param(NOT_A_NUMBER, '', id='not-a-number'),
]
# what does not fit what is remembered: nothing must be remembered for it to fit
MISFIT = pytest.param(OTHER_GRID, '', id='other-grid')


@pytest.fixture(scope='module')
def process(tmp_path_factory):
    program = Path(__file__).with_name('weightless_tracker.py')
    node = NodeProcess(
        program,
        DOMAIN,
        tmp_path_factory.mktemp('failures') / 'log',
        parameters={'diagnostics_period': 0.2, 'refinement.prompts': 'grabcut'},
    )
    yield node
    code, _ = node.interrupt()
    assert code == 0, node.output


@pytest.fixture(scope='module')
def client(process):
    client = Client(DOMAIN)
    client.start()
    client.listen('mask', 'tracks', 'diagnostics')
    yield client
    client.close()


@pytest.fixture
def tracker(client):
    client.reset()
    # the reset is in, and a frame is buffered
    wait_for(lambda: not client.track(FRAME).tracks, 'no objects')
    return client


def every_frame_is_answered(tracker, names):
    """Send frames; each is answered, with these objects."""
    answered = 0
    for _ in range(FRAMES):
        tracks = tracker.track(FRAME)
        answered += sorted(item.name for item in tracks.tracks) == sorted(names)
        assert tracker.result(tracks).height == FRAME.shape[0]
    assert answered == FRAMES


def reported(tracker):
    """Wait until the failure is in the diagnostics."""
    tracker.diagnostics(lambda v: v['level'] == 2)


@pytest.mark.parametrize(('what', 'name'), [*FAILURES, MISFIT])
def test_a_seed_that_fails(tracker, what, name):
    """Its answer came before; afterwards the object is not there, and all else goes on."""
    (cup,) = tracker.seed(CUP, names=['cup'])
    every_frame_is_answered(tracker, ['cup'])
    tracker.seed(CAN, names=['can'], frame=mark(FRAME, what))
    reported(tracker)
    every_frame_is_answered(tracker, ['cup'])
    (can,) = tracker.seed(CAN, names=['can'])
    assert can.id > cup.id
    every_frame_is_answered(tracker, ['can', 'cup'])


@pytest.mark.parametrize(('what', 'name'), FAILURES)
def test_the_first_seed_fails(tracker, what, name):
    tracker.seed(CUP, names=['cup'], frame=mark(FRAME, what))
    reported(tracker)
    every_frame_is_answered(tracker, [])
    tracker.seed(CUP, names=['cup'])
    every_frame_is_answered(tracker, ['cup'])


@pytest.mark.parametrize(('what', 'name'), [*FAILURES, MISFIT])
def test_a_frame_that_fails_is_refused_and_the_next_is_tracked(tracker, what, name):
    (cup,) = tracker.seed(CUP, names=['cup'])
    age = tracker.track(FRAME).tracks[0].age
    seen = {message.header.stamp.nanosec for message in tracker.messages['mask']}
    header = tracker.publish(mark(FRAME, what))
    _, values = tracker.diagnostics(lambda v: v['level'] == 2 and name in v['message'])
    assert name in values['last error']
    every_frame_is_answered(tracker, ['cup'])
    stamps = {message.header.stamp.nanosec for message in tracker.messages['mask']} - seen
    assert header.stamp.nanosec not in stamps
    (track,) = tracker.track(FRAME).tracks
    # the frame that failed did not count
    assert (track.id, track.state, track.age) == (cup.id, 1, age + FRAMES + 1)
    tracker.seed(CAN, names=['can'])
    every_frame_is_answered(tracker, ['can', 'cup'])


@pytest.mark.parametrize(('what', 'name'), FAILURES)
def test_a_prompt_that_fails_is_answered_with_the_reason(tracker, what, name):
    from drift_ros.ros import conversions

    request = SeedPrompt.Request(prompts=[Prompt(box=[13.0, 13.0, 43.0, 43.0], name='cup')])
    plain = conversions.rgb_to_image(FRAME, tracker.header())
    request.image = conversions.rgb_to_image(mark(FRAME, what), plain.header)
    answer = tracker.ask(SeedPrompt, 'seed_prompt', request)
    assert not answer.success and answer.message and name in answer.message
    assert list(answer.object_ids) == [0]
    every_frame_is_answered(tracker, [])
    request.image = plain
    answer = tracker.ask(SeedPrompt, 'seed_prompt', request)
    assert answer.success, answer.message
    every_frame_is_answered(tracker, ['cup'])
    assert np.count_nonzero(conversions.image_to_labels(answer.mask))


def test_a_click_on_a_picture_that_opencv_refuses(tracker):
    """What is raised in the callback is reported, and the node goes on."""
    clicks = tracker.node.create_publisher(PointStamped, '/tracker/seed_point', 1)
    wait_for(clicks.get_subscription_count, 'the tracker')
    header = tracker.publish(mark(FRAME, NO_PICTURE))
    reported(tracker)
    for when in (header, tracker.publish(mark(FRAME, NO_PICTURE))):
        click = PointStamped(header=when)
        click.point.x, click.point.y = 20.0, 20.0
        clicks.publish(click)
    tracker.seed(CUP, names=['cup'], frame=FRAME)
    every_frame_is_answered(tracker, ['cup'])
    answer = tracker.ask_seed(CUP, header)  # the same in a service
    assert not answer.success and 'refused as the mark asks' in answer.message
    every_frame_is_answered(tracker, ['cup'])


def test_masks_are_read_by_the_rule_for_all_label_images(tracker):
    """White is an object, 255 beside other values is void, blurred edges are refused."""
    answer = tracker.ask_seed(CUP * 255, frame=FRAME)
    assert answer.success and list(answer.labels) == [255], answer.message
    both = np.where(CAN > 0, 7, CUP * 255).astype(np.uint8)
    answer = tracker.ask_seed(both, frame=FRAME)
    assert answer.success and list(answer.labels) == [7], answer.message
    for blurred in (
        cv2.GaussianBlur(CUP * 255, (0, 0), 2),
        cv2.imdecode(cv2.imencode('.jpg', cv2.GaussianBlur(CUP * 255, (0, 0), 1))[1], 0),
    ):
        answer = tracker.ask_seed(blurred, frame=FRAME)
        assert not answer.success and 'not crisp' in answer.message, answer.message
    huge = CUP.astype(np.int32) * (2**31 - 1)
    request = SeedMask.Request(mask=conversions.labels_to_image(CUP.astype(np.uint8), Header()))
    request.mask.encoding, request.mask.step = '32SC1', 4 * huge.shape[1]
    request.mask.data = array.array('B', huge.tobytes())
    answer = tracker.ask(SeedMask, 'seed_mask', request)
    assert not answer.success and 'labels are 0' in answer.message, answer.message
    every_frame_is_answered(tracker, [f'object {number}' for number in sorted(ids(tracker))])


def ids(tracker):
    return [item.id for item in tracker.track(FRAME).tracks]
