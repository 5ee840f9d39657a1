# SPDX-License-Identifier: Apache-2.0
"""The page's node lets a real follower drive after a real tracker's object, and stops it."""

import contextlib
from pathlib import Path
import re
import threading
import time

from geometry_msgs.msg import TransformStamped, TwistStamped
from harness import Client, NodeProcess, tracker_process, wait_for
from lifecycle_msgs.srv import GetState
import numpy as np
import pytest
from scenes import scene, square_mask
from sensor_msgs.msg import CameraInfo
from tf2_msgs.msg import TFMessage
from web_client import Page

from drift_ros.ros import conversions, lifecycle, qos
from drift_ros.ros.client_errors import RefusedError

WEIGHTLESS = Path(__file__).parent / 'weightless_tracker.py'
DOMAIN = 88
CUP, BOX = (16, 16, 24), (64, 48, 28)
FRAME = scene((*CUP, (200, 40, 40)), (*BOX, (40, 60, 190)))
EVIL = '<script>document.title="owned"</script>'
# steps of a slow machine are long, and what it says comes late
FOLLOWER = {'fixed_frame': "''", 'timeout': 3.0, 'max_age': 8.0, 'distance': 0.5}
POSE = ('--ros-args', '-r', 'pose:=/tracker/pose', '-r', 'bearing:=/tracker/bearing')


class Camera:
    """Publishes colour, depth and camera_info of a scene that stands still, stamped as of now."""

    def __init__(self, client):
        self._client = client
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        depth = np.full(FRAME.shape[:2], 4.0, '<f4')
        for (x, y, side), metres in ((CUP, 1.5), (BOX, 2.0)):
            depth[y : y + side, x : x + side] = metres
        height, width = depth.shape
        flat = {'k': [150.0, 0.0, 64.0, 0.0, 150.0, 48.0, 0.0, 0.0, 1.0]}
        flat['p'] = [150.0, 0.0, 64.0, 0.0, 0.0, 150.0, 48.0, 0.0, 0.0, 0.0, 1.0, 0.0]
        while not self._stop.wait(0.15):
            if not self._client.node.count_subscribers('/image'):
                continue
            header = self._client.header(time.time_ns())
            info = CameraInfo(header=header, width=width, height=height, **flat)
            self._client.send(info, '/camera_info')
            message = conversions.labels_to_image(np.zeros(depth.shape, np.uint16), header)
            message.encoding, message.step, message.data = '32FC1', 4 * width, depth.tobytes()
            self._client.send(message, '/depth')
            self._client.send(conversions.rgb_to_image(FRAME, header))

    def close(self):
        self._stop.set()
        self._thread.join(5)


class Stage:
    """A tracker, its camera, the page's node, and wheels; a follower comes and goes."""

    def __init__(self, folder):
        self.folder = folder
        self.web = NodeProcess('web', DOMAIN, folder / 'web.log', parameters={'port': 0})
        self.client = Client(DOMAIN)
        self.commands = []
        self.client.node.create_subscription(
            TwistStamped, '/cmd_vel', self.commands.append, qos.LISTENING
        )
        self._static = self.client.node.create_publisher(
            TFMessage, '/tf_static', qos.STATIC_TRANSFORMS
        )
        where = TransformStamped(child_frame_id='test_camera')
        where.header.frame_id = 'base_link'
        turn = where.transform.rotation
        turn.x, turn.y, turn.z, turn.w = -0.5, 0.5, -0.5, 0.5
        self._static.publish(TFMessage(transforms=[where]))
        self.followers = 0
        self.client.start()
        self.client.listen('tracks')
        self.camera = Camera(self.client)
        found = wait_for(
            lambda: re.search(r'open (http://127\.0\.0\.1:\d+/)', self.web.output), 'the address'
        )
        self.address = found[1]

    @contextlib.contextmanager
    def follower(self, ready=True, name='follower', remappings=POSE):
        """Run a follower."""
        self.followers += 1
        log = self.folder / f'follower{self.followers}.log'
        arguments = (*remappings, '-r', f'__node:={name}')
        node = NodeProcess('follower', DOMAIN, log, arguments, FOLLOWER)
        try:
            if ready:
                self.set_up(name)
            yield node
        finally:
            node.close()
            assert 'Traceback' not in node.output, node.output
            # a request to the one that has ended, while it still seems to be there, has no answer
            wait_for(lambda: not self.seen(name), 'the end of the follower')

    def seen(self, name):
        """Whether a node's services are discovered."""
        return self.client.prepare(GetState, f'/{name}/get_state').service_is_ready()

    def set_up(self, name):
        for transition in ('configure', 'activate'):
            assert lifecycle.change_state(self.client, f'/{name}', transition)

    @property
    def moves(self):
        """Whether the newest command is not to stand."""
        twist = self.commands[-1].twist if self.commands else None
        return bool(twist and (twist.linear.x or twist.angular.z))

    def close(self):
        self.camera.close()
        self.client.close()
        self.web.close()
        assert 'Traceback' not in self.web.output, self.web.output


@pytest.fixture(scope='module')
def stage(tmp_path_factory):
    folder = tmp_path_factory.mktemp('robot')
    parameters = {'features.resolution': 96, 'diagnostics_period': 0.2}
    with tracker_process(DOMAIN, folder / 'tracker.log', WEIGHTLESS, **parameters):
        stage = Stage(folder)
        yield stage
        stage.close()


@pytest.fixture
def page(stage):
    stage.client.ask_reset()
    stage.client.set(**{'space.target': ''})
    with Page(stage.address) as page:
        wait_robot(page, lambda robot: not robot['follower'])
        yield page


def wait_robot(page, condition, timeout=60.0):
    """Wait until that is what a page was told last of the robot."""
    end = time.monotonic() + timeout
    while True:
        told = [message for message in page.told if message['type'] == 'robot']
        if told and condition(told[-1]):
            return told[-1]
        try:
            page.next('robot', max(end - time.monotonic(), 0.1))
        except TimeoutError:
            raise AssertionError(f'told last: {told[-1:]}') from None


def moves(stage, wanted=True):
    """Wait until the robot drives, or stands."""
    wait_for(lambda: stage.moves is wanted, f'driving: {wanted}', 60.0)


def seed(stage, *names):
    """Follow the cup and the box in a frame that came just now."""
    count = len(stage.client.messages['tracks'])
    wait_for(lambda: len(stage.client.messages['tracks']) > count, 'a frame')
    masks = square_mask(CUP, BOX)
    made = stage.client.seed(masks, names=list(names))
    return [item.id for item in made]


def drive(page, number, patience=30.0):
    """Ask for it until the page's node has heard of the object."""
    end = time.monotonic() + patience
    while True:
        answer = page.ask(do='drive', id=1, object=number)
        if answer.get('error') != f'there is no object {number}' or time.monotonic() > end:
            return answer
        time.sleep(0.1)


def test_the_robot_follows_the_object_that_is_chosen_and_stops_at_once(stage, page):
    cup, box = seed(stage, 'cup', EVIL)
    with stage.follower():
        robot = wait_robot(page, lambda robot: robot['follower'])
        assert robot['follower'] == '/follower' and not robot['on']
        time.sleep(0.5)
        assert not stage.moves  # off until somebody wants it
        assert 'error' not in drive(page, box)
        robot = wait_robot(page, lambda robot: robot['on'] and robot['target'] == box)
        assert stage.client.get('space.target') == str(box)
        moves(stage)
        # another one, while it drives
        assert 'error' not in page.ask(do='drive', id=2, object=cup)
        wait_robot(page, lambda robot: robot['on'] and robot['target'] == cup)
        assert 'there is no object 99' in page.ask(do='drive', id=3, object=99)['error']
        moves(stage)
        begun = time.monotonic()
        assert 'error' not in page.ask(do='halt', id=4)
        took = time.monotonic() - begun
        assert took < 2.0, f'{took:.2f} s to stop'
        moves(stage, False)
        wait_robot(page, lambda robot: not robot['on'])
        count = len(stage.commands)
        time.sleep(0.5)
        assert not stage.moves and len(stage.commands) <= count + 1
    wait_robot(page, lambda robot: not robot['follower'])


def test_refusals_come_in_the_followers_words(stage, page):
    (cup, _) = seed(stage, 'cup', 'box')
    answer = drive(page, cup)
    assert answer['error'] == 'no follower takes its pose from /tracker/pose'
    with stage.follower(ready=False):
        assert wait_robot(page, lambda robot: robot['follower'])['text'] == 'not active'
        refused = page.ask(do='drive', id=1, object=cup)['error']
        assert refused == 'the node is not active: call its activate transition first'
        assert 'error' not in page.ask(do='halt', id=2)  # of what stands, too
        stage.set_up('follower')
        assert 'error' not in page.ask(do='drive', id=3, object=cup)
        wait_robot(page, lambda robot: robot['on'])


def test_a_follower_of_another_tracker_is_none_of_ours(stage, page):
    (cup, _) = seed(stage, 'cup', 'box')
    with stage.follower(name='other', remappings=('--ros-args', '-r', 'pose:=/elsewhere/pose')):
        time.sleep(2.0)
        assert 'no follower' in drive(page, cup)['error']
        with stage.follower(name='ours'):
            assert wait_robot(page, lambda robot: robot['follower'])['follower'] == '/ours'


def test_a_robot_that_was_set_off_elsewhere_is_shown_and_can_be_stopped(stage, page):
    (cup, _) = seed(stage, 'cup', 'box')
    with stage.follower(), Page(stage.address) as other:
        wait_robot(page, lambda robot: robot['follower'])
        assert 'error' not in drive(page, cup)
        wait_robot(other, lambda robot: robot['on'] and robot['target'] == cup)
        moves(stage)
        assert 'error' not in other.ask(do='halt', id=1)
        wait_robot(page, lambda robot: not robot['on'])
        moves(stage, False)
        assert 'error' not in page.ask(do='drive', id=5, object=cup)
        wait_robot(page, lambda robot: robot['on'])
    wait_robot(page, lambda robot: not robot['follower'])
    page.next('status')
    told = [message['text'] for message in page.told if message['type'] == 'notice']
    assert '/follower is gone while the robot was following' in told[-1]


def test_programs_choose_the_target_too(stage, page):
    stage.client.set_target('cup')
    assert stage.client.get('space.target') == 'cup'
    stage.client.set_target(7)
    assert stage.client.get('space.target') == '7'
    refused = pytest.raises(RefusedError)
    with refused, pytest.MonkeyPatch.context() as patch:
        patch.setattr('drift_ros.ros.client._name', lambda name: 5)
        stage.client.set_target('no text')
