# SPDX-License-Identifier: Apache-2.0
"""The tracker node as a process of its own, over a real ROS graph (Fast DDS)."""

from pathlib import Path
import re
import shutil
import threading

import cv2
from drift_ros_msgs.srv import SeedMask
from harness import Client, compressed, NodeProcess, TIMEOUT, tracker_process, wait_for
from lifecycle_msgs.srv import ChangeState
import numpy as np
import pytest
from scenes import GREEN, RED, scene, square_mask
from std_msgs.msg import Header
import yaml

from drift_ros.ros import conversions, stamp

DOMAIN = 41
SQUARE = (16, 16, 24)
FRAME = scene((*SQUARE, RED), (80, 40, 30, GREEN))
MASK = square_mask(SQUARE)
OTHER = square_mask((80, 40, 30))
# found whatever the weights: what is tested here is the node, with a network of random weights
FAST = {
    'features.resolution': 96,
    'kernel.radius': 6,
    'states.confidence': 0.0,
    'states.existence': 0.0,
    'states.lost_after': 1000,
}


@pytest.fixture(scope='module')
def process(checkpoint, tmp_path_factory):
    log = tmp_path_factory.mktemp('tracker') / 'log'
    with tracker_process(DOMAIN, log, model=checkpoint, diagnostics_period=0.2, **FAST) as node:
        yield node


@pytest.fixture(scope='module')
def client(process):
    client = Client(DOMAIN)
    yield client
    client.close()


@pytest.fixture
def tracker(client, process):
    """Give an active node without objects, at the settings above, with all outputs listened to."""
    client.unconfigure()
    assert (
        client.set(
            replay=False, buffer_frames=30, image_transport='raw', max_objects=64, resolution=96
        )
        == [''] * 5
    )
    assert client.change('configure')
    client.listen('mask', 'tracks', 'detections', 'diagnostics')
    assert client.change('activate')
    return client


def as_it_was(tracker, number):
    """Check that exactly one object, of this id, is still followed."""
    tracks = tracker.track(FRAME)
    assert [(item.id, item.name) for item in tracks.tracks] == [(number, 'cup')]
    assert tracks.tracks[0].age > 0
    assert set(np.unique(conversions.image_to_labels(tracker.result(tracks)))) <= {0, number}


def seed_cup(tracker):
    header = tracker.publish(FRAME)
    tracker.result(header)
    answer = tracker.ask_seed(MASK, header, ['cup'])
    assert answer.success, answer.message
    (number,) = answer.object_ids
    return number


# -- lifecycle


def test_lifecycle_from_end_to_end(tracker):
    assert tracker.state() == 'active'
    number = seed_cup(tracker)
    as_it_was(tracker, number)
    assert tracker.change('deactivate') and tracker.state() == 'inactive'
    before = len(tracker.messages['mask'])
    wait_for(lambda: tracker.node.count_subscribers('/image') == 0, 'no subscription')
    assert tracker.change('activate') and tracker.state() == 'active'
    as_it_was(tracker, number)  # objects outlive an inactive spell
    assert len(tracker.messages['mask']) == before + 1
    assert not tracker.change('configure')  # not from here
    assert tracker.change('deactivate') and tracker.change('cleanup')
    assert tracker.state() == 'unconfigured'
    answer = tracker.ask_seed(MASK, frame=FRAME)
    assert not answer.success and 'configure' in answer.message


def test_services_answer_while_the_model_is_loaded(tracker):
    assert tracker.change('deactivate') and tracker.change('cleanup')
    states = []
    done = threading.Event()
    thread = threading.Thread(target=lambda: (tracker.change('configure'), done.set()))
    other = Client(DOMAIN)
    try:
        other.state()  # connected
        thread.start()
        while not done.is_set():
            states.append(other.state())
        thread.join()
    finally:
        other.close()
    assert 'configuring' in states
    assert tracker.state() == 'inactive'


def test_a_broken_checkpoint_fails_with_the_reason_and_can_be_put_right(
    tracker, checkpoint, tmp_path, process
):
    broken = shutil.copytree(checkpoint, tmp_path / 'broken')
    shutil.rmtree(broken / 'vae')
    assert tracker.change('deactivate') and tracker.change('cleanup')
    assert tracker.set(model=str(broken)) == ['']
    assert not tracker.change('configure')
    assert tracker.state() == 'unconfigured'
    status, values = tracker.diagnostics(lambda v: v['level'] == 2)
    assert 'vae' in status.message and str(broken) in status.message
    assert 'cannot configure' in process.output and 'vae' in process.output
    answer = tracker.ask_seed(MASK, frame=FRAME)
    assert not answer.success and 'vae' in answer.message
    assert tracker.set(model=str(checkpoint)) == ['']
    tracker.start()
    assert tracker.track(FRAME).header.frame_id == 'test_camera'


# -- parameters


def test_bad_parameter_values_are_refused_with_a_reason(tracker):
    (reason,) = tracker.set(method='magic')
    assert 'refinement.method' in reason and 'colour' in reason
    (reason,) = tracker.set(overlay_opacity=1.5)
    assert 'overlay_opacity' in reason
    (reason,) = tracker.set(radius=3)
    assert 'radius' in reason and 'cleanup' in reason
    (reason,) = tracker.set(replay=True)
    assert 'replay' in reason and 'deactivate' in reason
    assert tracker.get('radius') == 6 and tracker.get('replay') is False
    assert tracker.set(overlay_opacity=0.25, input_timeout=9.0) == ['', '']
    assert tracker.get('overlay_opacity') == 0.25


def test_values_that_contradict_each_other_are_refused_when_set_and_when_configured(
    tracker, tmp_path
):
    assert tracker.change('deactivate') and tracker.change('cleanup')
    (reason,) = tracker.set(recovery=-1.0)
    assert 'states.recovery' in reason and 'out of range' in reason
    (reason,) = tracker.set(every=3)
    assert 'refinement.every' in reason and 'refinement.method is sam' in reason
    assert tracker.get('every') == 1
    assert tracker.set(existence=0.1, recovery=0.2) == ['', '']  # in turn
    (reason,) = tracker.set(existence=0.3)
    assert 'states.existence' in reason and 'at once' in reason
    assert tracker.set(existence=0.0, recovery=0.5) == ['', '']
    tracker.start()
    other = DOMAIN + 3
    node = NodeProcess(
        'tracker', other, tmp_path / 'log', parameters={'features.inversion_steps': 4}
    )
    client = Client(other)
    try:
        client.listen('diagnostics')
        assert not client.change('configure') and client.state() == 'unconfigured'
        status, _ = client.diagnostics(lambda v: v['level'] == 2)
        assert 'features.inversion_steps is 4' in status.message
    finally:
        client.close()
        node.close()


@pytest.mark.parametrize(
    ('parameters', 'words'),
    [
        ({'kernel.radius': 100000}, ['kernel.radius', '512']),
        ({'radius': 3, 'refinement': 'none'}, ['now called kernel.radius', 'refinement.method']),
        ({'memory_labels': 'coarse'}, ['memory_labels any more']),
        ({'kernel.raduis': 3}, ["'kernel.raduis'", 'kernel.radius']),
        ({'kernel': 3}, ["'kernel'", 'kernel.radius']),
        ({'features.resolution': 'high'}, ['features.resolution']),
    ],
    ids=lambda value: '-'.join(value),
)
def test_what_is_wrong_at_start_ends_the_process_with_the_reason(tmp_path, parameters, words):
    """Also names nobody knows, which rclpy would ignore; by option and by parameter file."""
    file = tmp_path / 'parameters.yaml'
    file.write_text(yaml.safe_dump({'/**': {'ros__parameters': parameters}}))
    by_file = ['--ros-args', '--params-file', str(file)]
    for given in ({'parameters': parameters}, {'arguments': by_file}):
        node = NodeProcess('tracker', DOMAIN + 1, tmp_path / 'log', **given)
        try:
            assert node.process.wait(TIMEOUT) == 1
        finally:
            node.close()
        assert 'Traceback' not in node.output, node.output
        for word in words:
            assert word in node.output


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--params-file', 'missing.yaml'], 'missing.yaml'),
        (['--frobnicate'], 'frobnicate'),
    ],
    ids=['missing file', 'unknown'],
)
def test_ros_arguments_that_are_none_end_the_process_with_the_reason(tmp_path, arguments, words):
    node = NodeProcess('recorder', DOMAIN + 1, tmp_path / 'log', ['--ros-args', *arguments])
    try:
        assert node.process.wait(TIMEOUT) == 1
    finally:
        node.close()
    assert 'Traceback' not in node.output, node.output
    assert 'cannot use the ROS arguments: ' in node.output and words in node.output


def test_parameters_of_others_do_no_harm(checkpoint, tmp_path):
    """A file for all nodes of a robot may hold names of theirs."""
    parameters = {'model': checkpoint, 'fps': 30, 'camera.exposure': 5, 'use_sim_time': True}
    node = NodeProcess('tracker', DOMAIN + 4, tmp_path / 'log', parameters=parameters)
    client = Client(DOMAIN + 4)
    try:
        assert client.state() == 'unconfigured'
        assert client.get('model') == str(checkpoint) and client.get('use_sim_time') is True
        code, _ = node.interrupt()
    finally:
        client.close()
        node.close()
    assert code == 0, node.output


# -- tracking


def test_two_objects_seeded_at_different_times(tracker):
    first = seed_cup(tracker)
    for _ in range(3):
        tracks = tracker.track(FRAME)
    answer = tracker.ask_seed(OTHER, tracks.header, ['box'])
    assert answer.success and list(answer.errors) == ['']
    (second,) = answer.object_ids
    assert second > first
    tracks = tracker.track(FRAME)
    assert [(item.id, item.name, item.age) for item in tracks.tracks] == [
        (first, 'cup', 4),
        (second, 'box', 1),
    ]
    assert tracker.ask_remove(first).success
    again = tracker.ask_remove(first)
    assert not again.success and str(first) in again.message
    assert [item.id for item in tracker.track(FRAME).tracks] == [second]
    assert tracker.ask_reset().success
    assert not tracker.track(FRAME).tracks
    third = tracker.ask_seed(MASK, frame=FRAME)
    assert third.object_ids[0] > second  # ids are never reused


def test_several_objects_in_one_mask(tracker):
    tracker.track(FRAME)
    labels = MASK.astype(np.uint16) * 7 + OTHER.astype(np.uint16) * 900
    answer = tracker.ask_seed(labels, names=['cup', 'box'])  # the newest frame
    assert answer.success and list(answer.labels) == [7, 900]
    assert answer.object_ids[1] == answer.object_ids[0] + 1
    assert [item.name for item in tracker.track(FRAME).tracks] == ['cup', 'box']


def test_outputs_carry_the_header_of_the_input(tracker):
    seed_cup(tracker)
    tracker.listen('overlay')
    header = tracker.publish(FRAME, when=123456 * 10**9 + 789)
    for name in ('mask', 'tracks', 'detections', 'overlay'):
        assert tracker.result(header, name).header == header
    mask = tracker.result(header)
    assert (mask.encoding, mask.width, mask.height) == ('mono8', 128, 96)
    for item in tracker.result(header, 'detections').detections:
        assert item.header == header
    overlay = tracker.result(header, 'overlay')
    assert overlay.encoding == 'rgb8' and (overlay.width, overlay.height) == (128, 96)
    tracker.forget('overlay')


def test_without_objects_every_frame_has_an_empty_mask(tracker):
    tracks = tracker.track(FRAME)
    assert not tracks.tracks
    assert not conversions.image_to_labels(tracker.result(tracks)).any()
    assert not tracker.result(tracks, 'detections').detections


def test_overlay_is_made_only_for_subscribers(tracker):
    seed_cup(tracker)
    tracker.track(FRAME)
    assert 'overlay' not in tracker.subscriptions
    tracker.listen('overlay')
    wait_for(lambda: tracker.result(tracker.track(FRAME), 'overlay', 1) or True, 'an overlay')
    tracker.forget('overlay')
    wait_for(lambda: tracker.node.count_subscribers('/tracker/overlay') == 0, 'unsubscription')
    count = len(tracker.messages['overlay'])
    tracker.track(FRAME)
    assert len(tracker.messages['overlay']) == count


def test_masks_that_were_taken_are_published(tracker):
    """With the ids they got and the header of their image; those refused are not."""
    tracker.listen('seeds')
    header = tracker.publish(FRAME)
    tracker.result(header)
    assert not tracker.ask_seed(MASK[:4], header).success
    response = tracker.ask_seed(MASK * 9, header)
    message = tracker.result(header, 'seeds')
    assert message.header.frame_id == 'test_camera'
    labels = conversions.image_to_labels(message)
    np.testing.assert_array_equal(labels, np.where(MASK > 0, response.object_ids[0], 0))
    assert len(tracker.messages['seeds']) == 1


def test_label_info_reaches_those_who_come_late(tracker):
    number = seed_cup(tracker)
    tracker.track(FRAME)
    tracker.listen('label_info')

    def known():
        return [
            (item.class_id, item.class_name)
            for message in tracker.messages['label_info'][-1:]
            for item in message.class_map
        ]

    assert wait_for(known, 'label_info') == [(number, 'cup')]
    assert len(tracker.messages['label_info']) == 1
    tracker.ask_remove(number)
    wait_for(lambda: len(tracker.messages['label_info']) == 2, 'label_info after removal')
    assert known() == []


def test_mono16_beyond_255_ids(tracker):
    assert tracker.change('deactivate') and tracker.change('cleanup')
    assert tracker.set(max_objects=400) == ['']
    tracker.start()
    wide = np.arange(1, 301, dtype=np.uint16).reshape(15, 20)
    labels = cv2.resize(wide, (320, 240), interpolation=cv2.INTER_NEAREST)
    frame = cv2.resize(FRAME, (320, 240))
    answer = tracker.ask_seed(labels, frame=frame)
    assert answer.success, answer.message
    assert max(answer.object_ids) > 255
    mask = tracker.result(tracker.publish(frame))
    assert mask.encoding == 'mono16'
    assert mask.step == 640 and not mask.is_bigendian


def test_compressed_transport(tracker):
    assert tracker.change('deactivate')
    assert tracker.set(image_transport='compressed') == ['']
    assert tracker.change('activate')
    header = tracker.header()
    tracker.send(compressed(FRAME, header), '/image/compressed')
    tracker.result(header)
    assert tracker.ask_seed(MASK, header, ['cup']).success
    header = tracker.header()
    tracker.send(compressed(FRAME, header), '/image/compressed')
    assert len(tracker.result(header, 'tracks').tracks) == 1
    header = tracker.header()
    cut = compressed(FRAME, header)
    cut.data = cut.data[:300]
    tracker.send(cut, '/image/compressed')
    tracker.diagnostics(lambda v: v['level'] == 2 and 'truncated' in v['message'])


# -- bad input leaves tracking as it was


def test_refused_masks(tracker):
    number = seed_cup(tracker)
    header = tracker.publish(FRAME)
    tracker.result(header)

    answer = tracker.ask_seed(np.ones((10, 10), np.uint8), header)
    assert not answer.success and '10x10' in answer.message and '128x96' in answer.message
    answer = tracker.ask_seed(np.zeros_like(MASK), header)
    assert not answer.success and 'empty' in answer.message
    answer = tracker.ask_seed(MASK, header, encoding='32FC1')
    assert not answer.success and "'32FC1'" in answer.message and 'mono8' in answer.message
    request = SeedMask.Request(mask=conversions.labels_to_image(MASK, header))
    request.mask.data = request.mask.data[:100]
    answer = tracker.ask(SeedMask, 'seed_mask', request)
    assert not answer.success and 'truncated' in answer.message
    answer = tracker.ask_seed(MASK, header, names=['one', 'two'])
    assert not answer.success and 'two' in answer.message
    dot = OTHER.copy() * 3
    dot[0, 0] = 9
    answer = tracker.ask_seed(dot, header)
    assert not answer.success and list(answer.labels) == [3, 9]
    assert list(answer.object_ids) == [0, 0]
    assert answer.errors[0] == '' and 'pixels' in answer.errors[1]
    as_it_was(tracker, number)


def test_300_objects_at_once_are_refused_by_default(tracker):
    number = seed_cup(tracker)
    labels = np.repeat(np.repeat(np.arange(300, dtype=np.uint16).reshape(15, 20) + 1, 6, 0), 6, 1)
    labels = np.pad(labels, ((0, 6), (0, 8)))
    answer = tracker.ask_seed(labels)
    assert not answer.success
    assert '300 objects' in answer.message and 'max_objects' in answer.message
    assert set(answer.object_ids) == {0}
    as_it_was(tracker, number)


def test_a_stamp_that_is_no_longer_buffered(tracker):
    assert tracker.change('deactivate')
    assert tracker.set(buffer_frames=2) == ['']
    assert tracker.change('activate')
    headers = [tracker.track(FRAME).header for _ in range(4)]
    number = tracker.ask_seed(MASK, headers[-1], ['cup']).object_ids[0]
    answer = tracker.ask_seed(OTHER, headers[0])
    assert not answer.success
    for header in headers[2:]:  # the range that is buffered
        assert stamp.text(stamp.nanoseconds(header.stamp)) in answer.message
    assert 'buffer_frames' in answer.message
    as_it_was(tracker, number)
    # the way out the message names: send the image along
    assert tracker.ask_seed(OTHER, headers[0], frame=FRAME).success


def test_frames_that_cannot_be_used_are_dropped_and_reported(tracker):
    number = seed_cup(tracker)
    for spoil, words in (
        (lambda m: setattr(m, 'encoding', 'nv21'), "'nv21'"),
        (lambda m: setattr(m, 'data', m.data[:500]), 'truncated'),
    ):
        message = conversions.rgb_to_image(FRAME, tracker.header())
        spoil(message)
        tracker.send(message)
        status, values = tracker.diagnostics(lambda v, words=words: words in v['message'])
        assert status.level == b'\x02' and words in values['last error']
        as_it_was(tracker, number)
    small = cv2.resize(FRAME, (64, 48))
    header = tracker.publish(small)
    status, values = tracker.diagnostics(lambda v: '64x48' in v['message'])
    assert status.level == b'\x02' and '128x96' in status.message and 'reset' in status.message
    as_it_was(tracker, number)
    assert int(values['frames refused']) == 3
    # the way out the message names
    assert tracker.ask_reset().success
    header = tracker.publish(small)
    mask = tracker.result(header)
    assert (mask.width, mask.height) == (64, 48)


def test_time_that_jumps_back(tracker):
    number = seed_cup(tracker)
    late = tracker.publish(FRAME, when=5000 * 10**9)
    tracker.result(late)
    early = tracker.publish(FRAME, when=10 * 10**9)
    assert len(tracker.result(early, 'tracks').tracks) == 1
    answer = tracker.ask_seed(OTHER, late)
    assert not answer.success and 'buffered' in answer.message
    assert tracker.ask_seed(OTHER, early).success
    tracker.diagnostics(lambda v: v.get('time jumps') == '1')
    assert number in [
        item.id
        for item in tracker.result(tracker.publish(FRAME, when=11 * 10**9), 'tracks').tracks
    ]


# -- diagnostics


def test_diagnostics_tell_what_goes_on(tracker, checkpoint):
    number = seed_cup(tracker)
    for _ in range(3):
        tracker.track(FRAME)
    status, values = tracker.diagnostics(lambda v: v.get('frames tracked') == '4')
    assert status.name == 'tracker: tracking' and status.level == b'\x00'
    assert values['model'] == str(checkpoint) and values['device'] == 'cpu'
    assert values['frames received'] == '4' and values['frames dropped'] == '0'
    assert values['frame size'] == '128x96'
    assert float(values['rate in (Hz)']) > 0 and float(values['rate out (Hz)']) > 0
    median = float(values['latency median (ms)'])
    assert 0 < median <= float(values['latency 95th percentile (ms)'])
    assert float(values['memory (MB)']) > 50
    assert values['objects'] == '1'
    assert values[f'object {number}'].startswith('cup: ')
    assert tracker.set(input_timeout=0.2) == ['']
    status, _ = tracker.diagnostics(lambda v: v['level'] == 1)
    assert 'no frames' in status.message and '/image' in status.message
    assert tracker.set(input_timeout=5.0) == ['']
    assert tracker.change('deactivate')
    status, _ = tracker.diagnostics(lambda v: 'not active' in v['message'])
    assert status.level == b'\x00'


# -- under load: a step that takes long beside everything else


@pytest.fixture
def busy(tracker):
    """Give a node whose steps take a second or so."""
    assert tracker.change('deactivate') and tracker.change('cleanup')
    assert tracker.set(resolution=480) == ['']
    assert tracker.change('configure') and tracker.change('activate')
    frame = cv2.resize(FRAME, (640, 480))
    labels = cv2.resize(MASK, (640, 480), interpolation=cv2.INTER_NEAREST)
    header = tracker.publish(frame)
    tracker.result(header)
    assert tracker.ask_seed(labels, header, ['cup']).success
    tracker.result(tracker.publish(frame))  # the seed is in
    return tracker, frame, labels


def test_services_answer_while_a_frame_is_in_work(busy):
    tracker, frame, labels = busy
    before = len(tracker.messages['mask'])
    header = tracker.publish(frame)
    tracker.diagnostics(lambda v: v['frames received'] == '3' and v['frames waiting'] == '0')
    other = np.fliplr(labels)
    answer = tracker.ask_seed(other, header, ['box'])
    refused = tracker.ask_seed(np.zeros_like(labels), header)
    state = tracker.state()
    removed = tracker.ask_remove(999)
    assert len(tracker.messages['mask']) == before, 'the answers waited for the frame'
    assert answer.success and state == 'active'
    assert not refused.success and not removed.success
    tracker.result(header)
    assert [item.name for item in tracker.track(frame).tracks] == ['cup', 'box']


def test_the_newest_frame_wins_and_drops_are_counted(busy):
    tracker, frame, _ = busy
    base = len(tracker.messages['mask'])
    first = tracker.publish(frame)
    tracker.diagnostics(lambda v: v['frames received'] == '3' and v['frames waiting'] == '0')
    rest = []
    for count in range(4, 8):
        rest.append(tracker.publish(frame))
        tracker.diagnostics(lambda v, count=count: v['frames received'] == str(count))
    if len(tracker.messages['mask']) > base:
        pytest.skip('the first frame was done too soon on this machine')
    tracker.result(first)
    tracker.result(rest[-1])
    _, values = tracker.diagnostics(lambda v: v['frames tracked'] == '4')
    assert values['frames dropped'] == '3'
    assert len(tracker.messages['mask']) == base + 2


def test_replay_drops_nothing_and_keeps_order(tracker):
    assert tracker.change('deactivate')
    # a queue of less than two frames: reception has to be held back
    assert tracker.set(replay=True, replay_queue_mb=1) == ['', '']
    assert tracker.change('activate')
    frame = cv2.resize(FRAME, (640, 480))
    labels = cv2.resize(MASK, (640, 480), interpolation=cv2.INTER_NEAREST)
    first = tracker.publish(frame)
    tracker.result(first)
    assert tracker.ask_seed(labels, first, ['cup']).success
    headers = [tracker.publish(frame) for _ in range(40)]
    tracker.result(headers[-1], 'tracks')
    got = [message.header for message in tracker.messages['tracks']][-40:]
    assert got == headers
    assert [message.tracks[0].age for message in tracker.messages['tracks'][-40:]] == list(
        range(1, 41)
    )
    _, values = tracker.diagnostics(lambda v: v['frames tracked'] == '41')
    assert values['mode'] == 'replay'
    assert values['frames dropped'] == values['frames lost by the middleware'] == '0'


def test_a_seed_in_replay_takes_its_turn(tracker):
    """A mask for a frame that still waits is applied after that frame, not before."""
    assert tracker.change('deactivate') and tracker.change('cleanup')
    assert tracker.set(replay=True, resolution=240) == ['', '']
    assert tracker.change('configure') and tracker.change('activate')
    assert tracker.ask_seed(MASK, frame=FRAME, names=['cup']).success
    headers = [tracker.publish(FRAME) for _ in range(8)]
    tracker.diagnostics(lambda v: v['frames received'] == '8')
    answer = tracker.ask_seed(OTHER, headers[5], ['box'])
    assert answer.success, answer.message
    tracker.result(headers[-1], 'tracks')
    found = {
        stamp.nanoseconds(message.header.stamp): [item.name for item in message.tracks]
        for message in tracker.messages['tracks']
    }
    stamps = [stamp.nanoseconds(header.stamp) for header in headers]
    assert all('box' not in found[when] for when in stamps[:6])
    assert 'box' in found[stamps[-1]]


# -- the end


def shared_memory(pid):
    """List what a process and those it talks to have in shared memory."""
    maps = Path(f'/proc/{pid}/maps').read_text()
    return {Path(path) for path in re.findall(r'/dev/shm/fastdds_[0-9a-f]{16}\b', maps)}


@pytest.mark.parametrize('when', ['unconfigured', 'configuring', 'active', 'busy'])
def test_sigint_ends_the_process_cleanly(checkpoint, tmp_path, when):
    domain = DOMAIN + 2
    options = {**FAST, 'features.resolution': 480} if when == 'busy' else FAST
    node = NodeProcess(
        'tracker',
        domain,
        tmp_path / 'log',
        parameters={'model': checkpoint, 'diagnostics_period': 0.1, **options},
    )
    client = Client(domain)
    try:
        assert client.state() == 'unconfigured'
        assert not client.change('activate')  # not from here; connects the client
        if when == 'configuring':
            request = ChangeState.Request()
            request.transition.id = 1
            client.prepare(ChangeState, '/tracker/change_state').call_async(request)
            wait_for(lambda: client.state() == 'configuring', 'configuring')
        elif when != 'unconfigured':
            client.listen('diagnostics')
            client.start()
            size = (640, 480) if when == 'busy' else (128, 96)
            frame = cv2.resize(FRAME, size)
            labels = cv2.resize(MASK, size, interpolation=cv2.INTER_NEAREST)
            assert client.ask_seed(labels, Header(), frame=frame).success
            client.publish(frame)
            client.diagnostics(
                lambda v: v['frames received'] == '1' and v['frames waiting'] == '0'
            )
        mapped = shared_memory(node.process.pid)
        code, seconds = node.interrupt()
    finally:
        client.close()
        node.close()
    assert mapped and not [path for path in mapped if path.exists()]
    print(f'{when}: ended {seconds:.2f} s after SIGINT')
    assert code == 0, node.output
    assert 'Traceback' not in node.output and 'rror' not in node.output, node.output
