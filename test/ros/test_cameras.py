# SPDX-License-Identifier: Apache-2.0
"""Several cameras, one node: each has its own topics, services, objects and faults."""

from pathlib import Path
import re

from click.testing import CliRunner
from harness import Client, compressed, NodeProcess, ROOT, wait_for
import numpy as np
import pytest
from scenes import GREEN, overlap, RED, scene, square_mask
from security_policy import read, used, with_parameters
from weightless_tracker import mark, NO_PICTURE, NOT_A_NUMBER

from drift_ros.commands.main import main
from drift_ros.ros import conversions
from drift_ros.ros.client import RefusedError

DOMAIN = 83
PROGRAM = Path(__file__).with_name('weightless_tracker.py')
FRONT = [scene((16 + 2 * i, 16, 24, RED)) for i in range(10)]
REAR = [scene((80 - 2 * i, 50, 28, GREEN), (16, 12, 20, RED)) for i in range(10)]


class Camera(Client):
    """One camera of the node /tracker, and who listens to it."""

    def __init__(self, name):
        super().__init__(DOMAIN, f'tracker/{name}', name=f'camera_{name}')
        self.image = f'/{name}/image'

    def send(self, message, topic=None):
        super().send(message, topic or self.image)


@pytest.fixture(scope='module')
def process(tmp_path_factory):
    log = tmp_path_factory.mktemp('node') / 'tracker.log'
    node = NodeProcess(
        PROGRAM,
        DOMAIN,
        log,
        ['--ros-args', '-r', 'rear/image:=/rear/image/compressed'],  # one of each kind
        {'cameras': '[front, rear]', 'kernel.radius': 6, 'features.resolution': 96},
    )
    yield node
    node.close()


@pytest.fixture(scope='module')
def clients(process):
    with Client(DOMAIN) as node, Camera('front') as front, Camera('rear') as rear:
        rear.image = '/rear/image/compressed'
        yield node, front, rear


@pytest.fixture
def cameras(clients):
    """Two cameras of an active node without objects."""
    node, front, rear = clients
    node.unconfigure()
    assert node.set(replay=False) == ['']
    node.start()
    for camera in (front, rear):
        camera.listen('mask', 'tracks', 'label_info')
    return node, front, rear


def send(camera, frame):
    """Publish a frame as its camera does."""
    header = camera.header()
    kind = compressed if camera.image.endswith('compressed') else conversions.rgb_to_image
    camera.send(kind(frame, header))
    return header


def follow(camera, frames):
    """Masks of frames, one after the other."""
    return [
        conversions.image_to_labels(camera.result(send(camera, frame))).copy() for frame in frames
    ]


def test_each_camera_has_its_objects_and_no_id_is_given_twice(cameras):
    _, front, rear = cameras
    (a,) = front.ask_seed(square_mask((16, 16, 24)), frame=FRONT[0], names=['red']).object_ids
    b, c = rear.ask_seed(square_mask((80, 50, 28), (16, 12, 20)), frame=REAR[0]).object_ids
    (d,) = front.ask_seed(square_mask((60, 40, 20)), frame=FRONT[0]).object_ids
    assert len({a, b, c, d}) == 4
    wait_for(lambda: len(front.messages['label_info'][-1].class_map) == 2, 'names of two')
    assert [item.class_name for item in front.messages['label_info'][-1].class_map][0] == 'red'
    assert front.ask_remove(d).success and not rear.ask_remove(a).success
    assert [item.id for item in front.result(send(front, FRONT[1]), 'tracks').tracks] == [a]
    assert [item.id for item in rear.result(send(rear, REAR[1]), 'tracks').tracks] == [b, c]
    assert front.ask_reset().success
    wait_for(lambda: not front.messages['label_info'][-1].class_map, 'no names')
    assert [item.id for item in rear.result(send(rear, REAR[2]), 'tracks').tracks] == [b, c]


def test_faults_of_one_camera_leave_the_others_masks_as_they_are(cameras):
    node, front, rear = cameras
    masks = square_mask((80, 50, 28), (16, 12, 20))

    def begin():
        assert rear.ask_reset().success
        return rear.ask_seed(masks, frame=REAR[0]).object_ids

    first = begin()
    undisturbed = [labels == first[0] for labels in follow(rear, REAR[1:])]
    assert all(mask.any() for mask in undisturbed)
    front.ask_seed(square_mask((16, 16, 24)), frame=FRONT[0])
    second, disturbed = begin(), []
    for number, frame in enumerate(REAR[1:]):
        what = (1, 2, 3, NOT_A_NUMBER, NO_PICTURE)[number % 5]
        send(front, mark(FRONT[number], what))
        disturbed += [labels == second[0] for labels in follow(rear, [frame])]
    assert all(map(np.array_equal, undisturbed, disturbed))
    # and the camera whose images fail says so, alone
    node.listen('diagnostics')
    failing, _ = node.diagnostics(lambda values: 'failed lately' in values['message'])
    assert failing.name == 'tracker/front: tracking'
    rear_status, values = node.diagnostics(lambda values: values['frames tracked'] == '18')
    assert rear_status.name == 'tracker/rear: tracking'
    assert values['frames refused'] == '0' and rear_status.level == b'\x00'


def test_an_object_of_one_camera_is_found_in_another_and_keeps_its_id(cameras):
    _, front, rear = cameras
    (red,) = front.seed(square_mask((16, 16, 24)), frame=FRONT[0], names=['red'])
    follow(front, FRONT[1:4])
    with pytest.raises(RefusedError, match='no frames have been received'):
        rear.find(red.id)
    rear.result(send(rear, REAR[0]))
    found = rear.find(red.id)
    assert found.id == red.id and found.score > 0.8
    assert overlap(found.mask, square_mask((16, 12, 20)) > 0) > 0.9
    labels = follow(rear, REAR[1:3])[-1]
    assert overlap(labels == red.id, square_mask((16, 12, 20)) > 0) > 0.9
    wait_for(lambda: rear.messages['label_info'], 'names')
    assert rear.messages['label_info'][-1].class_map[0].class_name == 'red'
    # what cannot be found is answered with the reason, and changes nothing
    with pytest.raises(RefusedError, match=f'object {red.id} is followed here already'):
        rear.find(red.id, frame=REAR[0])
    with pytest.raises(RefusedError, match='no other camera follows object 99; objects of'):
        rear.find(99)
    (green,) = rear.seed(square_mask((76, 50, 28)), frame=REAR[2], names=['green'])
    with pytest.raises(RefusedError, match='is not to be seen here'):
        front.find(green.id, frame=FRONT[4])
    assert front.find(green.id, frame=REAR[2]).id == green.id  # the frame that is sent counts
    assert [item.id for item in front.result(send(front, REAR[3]), 'tracks').tracks] == [
        red.id,
        green.id,
    ]


def test_replay_keeps_the_order_of_each_camera(cameras):
    node, front, rear = cameras
    assert node.change('deactivate') and node.set(replay=True) == [''] and node.change('activate')
    sent = {camera: [] for camera in (front, rear)}
    for number in range(10):
        for camera, frames in ((front, FRONT), (rear, REAR)):
            sent[camera].append(send(camera, frames[number]).stamp)
    for camera, stamps in sent.items():
        wait_for(lambda camera=camera: len(camera.messages['mask']) >= 10, 'ten masks')
        assert [message.header.stamp for message in camera.messages['mask']] == stamps


def test_one_transition_takes_all_cameras(cameras):
    node, front, rear = cameras
    assert node.change('deactivate')
    for camera in (front, rear):
        assert camera.ask_seed(square_mask((16, 16, 24)), frame=FRONT[0]).success
    assert node.change('cleanup')
    for camera in (front, rear):
        answer = camera.ask_seed(square_mask((16, 16, 24)), frame=FRONT[0])
        assert not answer.success and 'not configured' in answer.message


def test_the_security_policy_of_cameras_allows_what_the_node_does_and_no_more(cameras, tmp_path):
    node, _, _ = cameras
    names, path = ('front', 'rear'), tmp_path / 'policy.xml'
    options = [f'--camera={name}' for name in names]
    done = CliRunner().invoke(main, ['policy', *options, '--out', str(path)])
    assert done.exit_code == 0, done.output
    allowed = read(path)
    assert all(len(names) == len(set(names)) for names in allowed.values())
    found = with_parameters(used(node.node), names)
    assert {right: set(names) for right, names in allowed.items()} == found
    # both transports, and what only cameras have
    assert {'/front/image', '/rear/image/compressed'} <= used(node.node)['subscribe']
    assert {'/tracker/front/find', '/tracker/rear/find'} <= found['reply']


@pytest.mark.parametrize('names', ['[front, front]', '[1st]', '[a/b]', '["two words"]', '[a__b]'])
def test_names_that_are_none_are_refused(names, tmp_path):
    node = NodeProcess(PROGRAM, DOMAIN, tmp_path / 'log', parameters={'cameras': names})
    assert node.process.wait(60) == 1
    assert 'cameras is' in node.output and 'Traceback' not in node.output


def test_a_node_in_a_program_of_ones_own(tmp_path):
    """The program of docs/cameras.md as it is printed, with a tracker that needs no weights."""
    text = (ROOT / 'docs' / 'cameras.md').read_text()
    (program,) = re.findall(r'```python\n(import rclpy\n.*?)```', text, re.DOTALL)
    program = program.replace('TrackerNode()', 'FailingNode()')
    path = tmp_path / 'own.py'
    path.write_text(
        f'import sys\nsys.path.insert(0, {str(PROGRAM.parent)!r})\n'
        f'from weightless_tracker import FailingNode\n{program}'
    )
    node = NodeProcess(path, DOMAIN + 1, tmp_path / 'log')
    try:
        with Client(DOMAIN + 1) as client:
            wait_for(lambda: client.state() == 'active', 'an active node')
            client.listen('mask')
            assert client.ask_seed(square_mask((16, 16, 24)), frame=FRONT[0]).success
            mask = client.result(client.publish(FRONT[1]))
            assert conversions.image_to_labels(mask).any()
        assert node.interrupt()[0] == 0
    finally:
        node.close()
