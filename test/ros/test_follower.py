# SPDX-License-Identifier: Apache-2.0
"""The follower node as a process: what it sends, when it stops, and that it always does."""

import math
import time

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, TransformStamped, Twist, TwistStamped, Vector3Stamped
from harness import NodeProcess, SETTLE, TIMEOUT, wait_for
import pytest
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Header
from std_srvs.srv import SetBool
from tf2_msgs.msg import TFMessage

from drift_ros.ros import lifecycle, qos, stamp
from drift_ros.ros.connection import Connection

DOMAIN = 96
RATE = 20
SECOND = 10**9


class Bench(Connection):
    """A clock, a tracker and wheels: what is around a follower."""

    def __init__(self, domain, kind=TwistStamped):
        super().__init__(domain_id=domain, name='bench', timeout=30.0)
        self.now = 100 * SECOND
        self.commands, self.statuses = [], []
        publish, listen = self.node.create_publisher, self.node.create_subscription
        self.clock = publish(Clock, '/clock', qos.RESULTS)
        self.pose = publish(PoseStamped, '/pose', qos.POSES)
        self.bearing = publish(Vector3Stamped, '/bearing', qos.POSES)
        self.tf = publish(TFMessage, '/tf', qos.TRANSFORMS)
        self.static = publish(TFMessage, '/tf_static', qos.STATIC_TRANSFORMS)
        listen(kind, '/cmd_vel', self.commands.append, qos.LISTENING)
        listen(DiagnosticArray, '/diagnostics', self._diagnose, qos.DIAGNOSTICS)

    def _diagnose(self, message):
        self.statuses += [item for item in message.status if item.name == 'follower: following']

    def change(self, name):
        return lifecycle.change_state(self, '/follower', name)

    def enable(self, on=True):
        return self.call(SetBool, '/follower/enable', SetBool.Request(data=on))

    def set(self, **values):  # noqa: A003
        changes = [Parameter(key, value=item).to_parameter_msg() for key, item in values.items()]
        request = SetParameters.Request(parameters=changes)
        return [
            item.reason
            for item in self.call(SetParameters, '/follower/set_parameters', request).results
        ]

    def frames(self, odom=True):
        """Say where the camera is on the robot, and the robot in the world: at its origin."""
        camera = TransformStamped(child_frame_id='camera')
        camera.header.frame_id = 'base_link'
        rotation = camera.transform.rotation
        rotation.x, rotation.y, rotation.z, rotation.w = -0.5, 0.5, -0.5, 0.5
        self.static.publish(TFMessage(transforms=[camera]))
        if odom:
            base = TransformStamped(child_frame_id='base_link')
            base.header.frame_id, base.header.stamp = 'odom', stamp.message(self.now)
            base.transform.rotation.w = 1.0
            self.tf.publish(TFMessage(transforms=[base]))

    def see(self, ahead=3.0, right=0.0, when=None, frame='camera'):
        """Publish a pose of the object."""
        message = PoseStamped(header=self.header(when, frame))
        message.pose.position.z, message.pose.position.x = ahead, right
        self.pose.publish(message)

    def header(self, when=None, frame='camera'):
        return Header(stamp=stamp.message(self.now if when is None else when), frame_id=frame)

    def step(self, silent=False):
        """Let a period of the follower pass; give its command (forward, turn)."""
        before = len(self.commands)
        self.now += SECOND // RATE
        for _ in range(100):  # the clock is best effort: it may have to be told again
            self.clock.publish(Clock(clock=stamp.message(self.now)))
            end = time.monotonic() + 0.3
            while len(self.commands) == before and time.monotonic() < end:
                time.sleep(0.002)
                if silent and time.monotonic() > end - 0.2:
                    return None
            if len(self.commands) > before:
                return self.last
        raise AssertionError('no command')

    @property
    def last(self):
        twist = getattr(self.commands[-1], 'twist', self.commands[-1])
        return twist.linear.x, twist.angular.z

    def run(self, steps, **place):
        """See the object at each step; give all commands."""
        found = []
        for _ in range(steps):
            self.frames()
            self.see(**place)
            time.sleep(0.01)
            found.append(self.step())
        return found

    def problem(self, words):
        def told():
            return any(
                words in item.message and item.level == b'\x01' for item in self.statuses[before:]
            )

        before = len(self.statuses)
        wait_for(told, f'a diagnosis of {words!r}')


def begin(bench):
    assert bench.change('configure') and bench.change('activate')
    time.sleep(SETTLE)


@pytest.fixture(scope='module')
def process(tmp_path_factory):
    node = NodeProcess(
        'follower',
        DOMAIN,
        tmp_path_factory.mktemp('follower') / 'log',
        parameters={'use_sim_time': True, 'rate': float(RATE)},
    )
    yield node
    node.close()
    assert 'Traceback' not in node.output, node.output


@pytest.fixture(scope='module')
def shared(process):
    bench = Bench(DOMAIN)
    refused = bench.enable()
    assert not refused.success and 'not active' in refused.message
    begin(bench)
    yield bench
    bench.close()


@pytest.fixture
def bench(shared):
    """Give a bench whose follower is enabled, has forgotten, and stands."""
    shared.enable(False)
    assert shared.change('deactivate') and shared.change('activate')
    time.sleep(SETTLE)
    shared.now += 10 * SECOND
    shared.clock.publish(Clock(clock=stamp.message(shared.now)))
    shared.commands.clear()
    assert shared.enable().success
    return shared


def test_it_is_off_at_first_and_when_told(bench):
    bench.enable(False)
    bench.commands.clear()
    for _ in range(3):
        bench.frames()
        bench.see()
        bench.step(silent=True)
    assert not bench.commands
    assert bench.enable().success
    assert bench.run(5)[-1][0] > 0
    bench.enable(False)
    wait_for(lambda: bench.last == (0.0, 0.0), 'a zero')
    bench.step(silent=True)
    assert bench.last == (0.0, 0.0)


def test_it_drives_to_the_object_within_its_limits_and_stops_in_time_when_it_is_gone(bench):
    commands = bench.run(40, ahead=4.0, right=-1.0)
    assert commands[-1] == pytest.approx((0.5, 1.5 * math.atan2(1, 4)), rel=0.2)
    for axis, up in ((0, 0.5), (1, 3.0)):
        assert max(abs(b[axis]) - abs(a[axis]) for a, b in zip(commands, commands[1:])) <= (
            up / RATE + 1e-9
        )
    stop = 0.3 + 0.5 / 2.5 + 2 / RATE  # timeout, braking, two periods: what it says at its start
    after = [bench.step() for _ in range(round(stop * RATE))]
    assert after[-1] == (0.0, 0.0)
    assert [bench.step() for _ in range(5)] == [(0.0, 0.0)] * 5
    assert bench.run(5)[-1][0] > 0  # it is back


def test_a_bearing_alone_turns(bench):
    for _ in range(5):
        bench.frames()
        message = Vector3Stamped(header=bench.header())
        message.vector.x, message.vector.z = 0.3, 0.95
        bench.bearing.publish(message)
        time.sleep(0.01)
        speed, turn = bench.step()
    assert speed == 0 and turn < 0  # to the right


@pytest.mark.parametrize(
    ('place', 'words'),
    [
        ({'ahead': float('nan')}, 'not finite'),
        ({'when': 0}, 'no stamp'),
        ({'when': 10**6 * SECOND}, 'in the future'),
        ({'when': 5 * SECOND}, 's old'),
        ({'frame': 'elsewhere'}, "'elsewhere' is unknown"),
    ],
)
def test_bad_poses_are_named_and_nothing_moves(bench, place, words):
    assert set(bench.run(6, **place)) == {(0.0, 0.0)}
    bench.problem(words)


def test_missing_frames_and_frozen_poses_stop_it(bench):
    for _ in range(6):
        bench.see()  # no frames
        bench.step()
    assert bench.last == (0.0, 0.0)
    bench.problem('publish it on /tf')
    when = bench.now
    bench.run(5)
    moving = bench.run(1, when=when)
    for _ in range(15):  # one pose again and again
        bench.frames()
        bench.see(when=when)
        time.sleep(0.01)
        bench.step()
    assert moving[0][0] > 0 and bench.last == (0.0, 0.0)
    bench.problem('same stamp')


def test_parameters_say_when_they_take_effect(bench):
    (reason,) = bench.set(twist='plain')
    assert 'cleanup' in reason
    (reason,) = bench.set(rate=10.0)
    assert 'deactivate' in reason
    (reason,) = bench.set(max_speed=50.0)
    assert 'max_speed' in reason
    assert bench.set(max_speed=0.1) == ['']
    assert max(speed for speed, _ in bench.run(10)) <= 0.1
    assert bench.set(max_speed=0.5) == ['']


@pytest.mark.parametrize('way', ['deactivate', 'SIGINT', 'SIGTERM', 'failure'])
def test_the_last_command_is_zero_on_every_way_out(way, tmp_path):
    domain = DOMAIN + 1
    node = NodeProcess(
        'follower',
        domain,
        tmp_path / 'log',
        parameters={'use_sim_time': True, 'rate': float(RATE), 'twist': 'plain'},
    )
    bench = Bench(domain, Twist)
    try:
        begin(bench)
        assert bench.enable().success
        bench.clock.publish(Clock(clock=stamp.message(bench.now)))
        assert bench.run(10)[-1][0] > 0.1
        if way == 'deactivate':
            assert bench.change('deactivate')
        elif way == 'failure':  # its publisher's type is no longer that of what it publishes
            message = TFMessage(transforms=[TransformStamped(child_frame_id='base_link')])
            message.transforms[0].header.frame_id = 'camera'  # a circle of frames
            message.transforms[0].transform.rotation.w = 1.0
            bench.tf.publish(message)
            for _ in range(12):
                bench.see()
                bench.step()
        elif way == 'SIGINT':
            assert node.interrupt()[0] == 0
        else:
            node.process.terminate()
            assert node.process.wait(TIMEOUT) == 0
        wait_for(lambda: bench.last == (0.0, 0.0), 'a zero')
    finally:
        bench.close()
        node.close()
