# SPDX-License-Identifier: Apache-2.0
"""Streams that are not one sound stream: the node says so, and says where a mask landed."""

from pathlib import Path

from drift_ros_msgs.msg import Prompt
from drift_ros_msgs.srv import SeedPrompt
from harness import Client, NodeProcess, wait_for
import numpy as np
import pytest
from rclpy.node import Node
from scenes import RED, scene, square_mask
from sensor_msgs.msg import Image

from drift_ros.ros import conversions, qos, stamp

DOMAIN = 91
FRAME = scene((16, 16, 24, RED))
CUP = square_mask((16, 16, 24))
WARN = b'\x01'


@pytest.fixture(scope='module')
def process(tmp_path_factory):
    node = NodeProcess(
        Path(__file__).with_name('weightless_tracker.py'),
        DOMAIN,
        tmp_path_factory.mktemp('flaws') / 'log',
        parameters={'diagnostics_period': 0.2},
    )
    yield node
    code, _ = node.interrupt()
    assert code == 0 and 'Traceback' not in node.output, node.output


@pytest.fixture(scope='module')
def client(process):
    client = Client(DOMAIN)
    assert client.change('configure')
    client.listen('mask', 'tracks', 'diagnostics')
    yield client
    client.close()


@pytest.fixture
def tracker(client):
    """Give an active node with no past."""
    client.reset()
    assert client.change('activate')
    yield client
    assert client.change('deactivate')
    client.set(grey_range=[])


def warned(tracker, words):
    """Wait for a warning in diagnostics."""
    return tracker.diagnostics(lambda v: words in v['message'] and v['level'] == WARN[0])[1]


def test_a_sound_stream_is_fine(tracker):
    for _ in range(5):
        header = tracker.publish(FRAME)
        tracker.result(header)
    answer = tracker.ask_seed(CUP, header)
    assert answer.success and list(answer.notes) == ['']
    status, values = tracker.diagnostics(lambda v: v['frames tracked'] == '5')
    assert status.level == b'\x00', status.message
    for name in ('frames without a stamp', 'repeated stamps', 'time jumps', 'changes of size'):
        assert values[name] == '0'
    assert values['publishers'] == '/test_client' and values['grey range'] == (
        '0 to 65535 (automatic)'
    )


def test_stamps_that_are_all_zero(tracker):
    for number in range(3):
        header = tracker.publish(FRAME, when=0)
        tracker.diagnostics(lambda v, n=number: v['frames received'] == str(n + 1))
    values = warned(tracker, 'without stamps')
    assert values['frames without a stamp'] == '3' and values['repeated stamps'] == '0'
    answer = tracker.ask_seed(CUP, header)
    assert answer.success
    assert 'taken for the newest one, received' in answer.notes[0]
    assert 'send that image along' in answer.notes[0]
    answer = tracker.ask_seed(CUP, header, frame=FRAME)  # along with its image: no doubt
    assert answer.success and 'newest' not in answer.notes[0]
    request = SeedPrompt.Request(prompts=[Prompt(box=[16, 16, 40, 40])])
    answer = tracker.ask(SeedPrompt, 'seed_prompt', request)
    assert answer.success and 'taken for the newest one' in answer.notes[0], answer.message


def test_one_stamp_for_two_images(tracker):
    header = tracker.publish(FRAME)
    tracker.result(header)
    tracker.publish(np.ascontiguousarray(FRAME[:, ::-1]), when=stamp.nanoseconds(header.stamp))
    values = warned(tracker, 'with one stamp')
    assert values['repeated stamps'] == '1'
    answer = tracker.ask_seed(CUP[:, ::-1], header)
    assert answer.success and '2 images came with the stamp' in answer.notes[0]


def test_time_that_jumps_back_and_comes_by_again(tracker):
    headers = []
    for _ in range(4):
        headers.append(tracker.publish(FRAME))
        tracker.result(headers[-1])
    again = tracker.publish(FRAME, when=stamp.nanoseconds(headers[1].stamp))
    values = warned(tracker, 'time jumped back by 0.200 s')
    assert values['time jumps'] == '1'
    answer = tracker.ask_seed(CUP, again)
    assert answer.success and '2 images came with the stamp' in answer.notes[0]
    gone = tracker.ask_seed(CUP, headers[-1])
    assert not gone.success and 'no frame with stamp' in gone.message


def test_a_frame_id_and_a_size_that_change(tracker):
    tracker.result(tracker.publish(FRAME))
    left = tracker.header(frame_id='left')
    tracker.send(conversions.rgb_to_image(np.ascontiguousarray(FRAME[:80]), left))
    tracker.result(left)
    values = warned(tracker, "frame_id changed from 'test_camera' to 'left'")
    assert values['changes of frame_id'] == '1'
    values = warned(tracker, 'size changed from 128x96 to 128x80')
    assert values['changes of size'] == '1'


def test_a_mask_of_another_camera_or_another_image(tracker):
    header = tracker.publish(FRAME)
    tracker.result(header)
    header.frame_id = 'other_camera'
    answer = tracker.ask_seed(CUP, header)
    assert answer.success
    assert "of frame_id 'other_camera', its image of 'test_camera'" in answer.notes[0]
    header.frame_id = ''  # masks that carry a stamp alone are common
    assert 'frame_id' not in tracker.ask_seed(CUP, header).notes[0]


def test_two_publishers_on_one_topic(tracker):
    tracker.result(tracker.publish(FRAME))
    other = Node('other_camera', context=tracker.node.context)
    publisher = other.create_publisher(Image, '/image', qos.CAMERA)
    try:
        values = warned(tracker, '2 publishers on /image (/other_camera, /test_client)')
        assert values['publishers'] == '/other_camera, /test_client'
        answer = tracker.ask_seed(CUP)  # of the newest image: of which camera?
        assert answer.success and '2 publishers' in answer.notes[0]
    finally:
        other.destroy_publisher(publisher)
        other.destroy_node()
    tracker.diagnostics(lambda v: v['publishers'] == '/test_client')


def thermal(low, high, header):
    """Make a 16UC1 image of the scene, in hundredths of a kelvin."""
    grey = low + FRAME[..., 0].astype(np.uint32) * (high - low) // 255
    message = conversions.labels_to_image(grey.astype(np.uint16), header)
    message.encoding = '16UC1'
    return message


def test_sixteen_bits_are_scaled_and_that_is_said(tracker):
    header = tracker.header()
    tracker.send(thermal(29000, 31000, header))
    tracker.result(header)
    values = warned(tracker, 'chosen automatically: set grey_range')
    low, high = (int(text) for text in values['grey range'].split()[::2][:2])
    assert 28000 < low < 29700 and 31000 < high < 33000  # the scene is not black
    assert tracker.ask_seed(CUP, header).success
    assert tracker.change('deactivate')
    assert 'black' in tracker.set(grey_range=[5, 5])[0]
    assert tracker.set(grey_range=[29000, 31000]) == ['']
    assert tracker.change('activate')
    header = tracker.header()
    tracker.send(thermal(29000, 31000, header))
    tracker.result(header)
    status, values = tracker.diagnostics(lambda v: v['frames tracked'] == '1')
    assert values['grey range'] == '29000 to 31000' and status.level == b'\x00'


def test_images_the_middleware_loses_are_said_with_the_remedy(tracker, tmp_path):
    camera = NodeProcess(Path(__file__).with_name('plain_camera.py'), DOMAIN, tmp_path / 'log')
    try:
        values = warned(tracker, 'images are lost before they arrive')
        assert int(values['frames lost by the middleware']) > 0
        status, _ = tracker.diagnostics(lambda v: 'lost' in v['message'])
        for words in ("*camera's* process", 'fastdds_large_images.xml', 'compressed'):
            assert words in status.message
        wait_for(lambda: 'images are lost before they arrive' in status.message)
    finally:
        camera.close()
