# SPDX-License-Identifier: Apache-2.0
"""
A simulated robot driven by the real nodes: tracker and follower, over the real middleware.

This process is the robot and its camera. Time is simulated (/clock): it waits for the tracker's
answer to each image, and for the follower's to each tick, so that how it goes does not depend on
the machine, but for which tick a pose is in time for. An answer takes between half a frame and a
frame of simulated time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
import contextlib
from dataclasses import asdict, dataclass, field
import json
import math
from pathlib import Path
import time
from typing import Any

import numpy as np

from drift_ros.ros.processes import Children, prepare_environment, ProcessError
from drift_ros.simulation.scenario import Scenario
from drift_ros.simulation.world import BASE_HEIGHT, CAMERA_AT, SURFACE, World

NAMESPACE = '/drift_ros_follow'
RATE = 10
"""Images a second."""
TICKS = 2
"""Ticks of the clock an image; the follower sends a command at each."""
_START = 10.0  # simulated time begins here: stamps of zero mean none
_PATIENCE = 120.0
_WATCHDOG = 0.5  # seconds without a command after which the base stops, as bases do
FOLLOWER: dict[str, object] = {
    'use_sim_time': True,
    'rate': float(RATE * TICKS),
    'distance': 1.0,
    'max_speed': 0.5,
    'max_turn': 1.0,
    'gain': 2.0,
    'timeout': 0.25,
}
# replay: images come reliably; as each is waited for, it is otherwise like a live camera
TRACKER: dict[str, object] = {'use_sim_time': True, 'replay': True, 'space.target': 'cup'}


@dataclass
class Moment:
    """What was the case at an image; metres, radians and seconds."""

    time: float
    robot: tuple[float, float, float]
    target: tuple[float, float]
    other: tuple[float, float]
    clear: float
    """Share of the object's front that nothing hides."""
    inside: float
    """Share that is in the picture as well."""
    distance: float
    """From the robot to the object's front, on the ground."""
    bearing: float
    """Of the object, to the left."""
    state: int = 0
    """What the tracker says of it; 0: nothing."""
    pose: tuple[float, float] | None = None
    """Where the tracker says it is, in the room."""


@dataclass
class Record:
    """A whole run."""

    seed: int
    options: dict[str, Any]
    moments: list[Moment] = field(default_factory=list)
    commands: list[tuple[float, float, float]] = field(default_factory=list)
    """Time, speed and turn of each."""
    unanswered: int = 0
    """Images without tracks, and ticks without a command in time."""

    def write(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self)), encoding='utf-8')

    @classmethod
    def read(cls, path: Path) -> Record:
        """Read what :meth:`write` wrote."""
        values = json.loads(path.read_text(encoding='utf-8'))
        moments = [Moment(**item) for item in values.pop('moments')]
        commands = [(item[0], item[1], item[2]) for item in values.pop('commands')]
        return cls(**values, moments=moments, commands=commands)


class Robot:
    """The simulated robot on the graph: its camera, its frames and its wheels."""

    def __init__(self, world: World, node: Any, namespace: str = NAMESPACE) -> None:
        """
        Join the graph.

        Parameters
        ----------
        world : World
        node : Node
            Spun elsewhere.
        namespace : str

        """
        from drift_ros_msgs.msg import TrackArray
        from geometry_msgs.msg import PoseStamped, TwistStamped
        from rosgraph_msgs.msg import Clock
        from sensor_msgs.msg import CameraInfo, Image
        from tf2_msgs.msg import TFMessage

        from drift_ros.ros import qos

        self.world, self.offset = world, _START
        self.commands: list[tuple[float, float, float]] = []
        self.tracks: dict[int, Any] = {}
        self.poses: dict[int, Any] = {}
        self.labels: dict[int, Any] = {}
        self._kinds = (Image, CameraInfo, TFMessage, Clock)
        publish = node.create_publisher
        self._clock = publish(Clock, '/clock', qos.RESULTS)
        self._image = publish(Image, f'{namespace}/image', qos.PLAYED_IMAGES)
        self._depth = publish(Image, f'{namespace}/depth', qos.PLAYED_IMAGES)
        self._info = publish(CameraInfo, f'{namespace}/camera_info', qos.PLAYED_IMAGES)
        self._tf = publish(TFMessage, '/tf', qos.TRANSFORMS)
        self._static = publish(TFMessage, '/tf_static', qos.STATIC_TRANSFORMS)
        listen = node.create_subscription
        name = f'{namespace}/tracker'
        listen(TwistStamped, f'{namespace}/cmd_vel', self._command, qos.RESULTS)
        listen(TrackArray, f'{name}/tracks', self._keep(self.tracks), qos.RESULTS)
        listen(PoseStamped, f'{name}/pose', self._keep(self.poses), qos.POSES)
        listen(Image, f'{name}/mask', self._keep(self.labels), qos.RESULTS)
        self._send_static()

    def _keep(self, kept: dict[int, Any]) -> Callable[[Any], None]:
        from drift_ros.ros import stamp

        def keep(message: Any) -> None:
            kept[stamp.nanoseconds(message.header.stamp)] = message

        return keep

    def _command(self, message: Any) -> None:
        from drift_ros.ros import stamp

        when = stamp.nanoseconds(message.header.stamp) / 1e9
        self.commands.append((when, message.twist.linear.x, message.twist.angular.z))

    @property
    def now(self) -> int:
        """Simulated time in nanoseconds."""
        return round((self.world.time + self.offset) * 1e9)

    def _transform(self, parent: str, child: str, where: np.ndarray, turn: np.ndarray) -> Any:
        from geometry_msgs.msg import TransformStamped
        from std_msgs.msg import Header

        from drift_ros.ros import stamp

        made = TransformStamped(
            header=Header(stamp=stamp.message(self.now), frame_id=parent), child_frame_id=child
        )
        move, quaternion = made.transform.translation, made.transform.rotation
        move.x, move.y, move.z = map(float, where)
        quaternion.x, quaternion.y, quaternion.z, quaternion.w = map(float, turn)
        return made

    def _send_static(self) -> None:
        """Say where the camera is: it looks ahead; its axes are right, down, ahead."""
        x, y, z = CAMERA_AT
        optical = np.array([-0.5, 0.5, -0.5, 0.5])
        camera = self._transform('base_link', 'camera', np.array([x, y, z - BASE_HEIGHT]), optical)
        self._static.publish(self._kinds[2](transforms=[camera]))

    def tick(self) -> None:
        """Say what time it is, and where the robot."""
        from drift_ros.ros import stamp

        where = self._transform('odom', 'base_link', *self.world.robot_pose)
        self._tf.publish(self._kinds[2](transforms=[where]))
        self._clock.publish(self._kinds[3](clock=stamp.message(self.now)))

    def show(self) -> tuple[int, np.ndarray]:
        """Publish a picture; give its stamp and its colours."""
        from std_msgs.msg import Header

        from drift_ros.ros import conversions, stamp

        picture, camera = self.world.look(), self.world.camera
        header = Header(stamp=stamp.message(self.now), frame_id='camera')
        depth = conversions.labels_to_image(picture.depth, header)
        depth.encoding = '16UC1'
        matrix = camera.matrix
        info = self._kinds[1](
            header=header, width=camera.width, height=camera.height, k=matrix.ravel()
        )
        info.p = np.hstack([matrix, np.zeros((3, 1))]).ravel()
        self._info.publish(info)
        self._depth.publish(depth)
        self._image.publish(conversions.rgb_to_image(picture.colour, header))
        return self.now, picture.colour

    def answered(self, when: int, seconds: float, kept: dict[int, Any] | None = None) -> bool:
        """Wait for the tracks, or another output, of an image; False when they do not come."""
        answers = self.tracks if kept is None else kept
        return wait(lambda: when in answers, seconds)

    def located(self, when: int, seconds: float) -> bool:
        """
        Wait for the pose of an image that shows the object, which comes after its tracks.

        A robot that does not wait for it drives by an older one where the machine is busy. False
        when it does not come: the distance is not known.
        """
        tracks = self.tracks[when].tracks
        seen = bool(tracks) and tracks[0].state == tracks[0].TRACKING
        return not seen or self.answered(when, seconds, self.poses)

    def commanded(self, seconds: float) -> bool:
        """Wait for a command of now; False when it does not come."""
        due, end = self.now / 1e9 - 1e-3, time.monotonic() + seconds
        while not wait(lambda: bool(self.commands) and self.commands[-1][0] >= due, 0.4):
            if time.monotonic() > end:
                return False
            self.tick()  # /clock is best effort: it was lost
        return True

    def drive(self, until: float) -> None:
        """Let time pass as the last command says; without one for long the base stops."""
        when, speed, turn = self.commands[-1] if self.commands else (-1.0, 0.0, 0.0)
        stale = self.now / 1e9 - when > _WATCHDOG
        self.world.advance(until, *((0.0, 0.0) if stale else (speed, turn)))


def wait(condition: Callable[[], Any], seconds: float) -> bool:
    """Wait until something is the case; False when it is not after so many seconds."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.001)
    return True


@contextlib.contextmanager
def nodes(logs: Path, tracker: dict[str, object], follower: dict[str, object]) -> Iterator[Any]:
    """Run tracker and follower, configured and active; give children and a client."""
    from drift_ros.ros.client import TrackerClient

    prepare_environment()
    with contextlib.ExitStack() as stack:
        children = Children(logs, NAMESPACE)
        stack.callback(children.stop_all)
        children.start('tracker', {**TRACKER, **tracker})
        remap = ['pose:=tracker/pose', 'bearing:=tracker/bearing']
        children.start('follower', {**FOLLOWER, **follower}, remap)
        client = stack.enter_context(
            TrackerClient(namespace=NAMESPACE, name='robot', timeout=_PATIENCE)
        )
        client.watch = children.check
        yield children, client


def run(
    out: Path,
    seed: int = 0,
    scenario: Scenario | None = None,
    tracker: dict[str, object] | None = None,
    follower: dict[str, object] | None = None,
    watch: Callable[[World, Moment, np.ndarray, np.ndarray], None] | None = None,
) -> Record:
    """
    Let the robot follow the object through the scenario.

    Parameters
    ----------
    out : Path
        Folder for the logs of the nodes.
    seed : int
        Of textures, noise and paths.
    scenario : Scenario, optional
        What happens; default: all of it, varied by the seed.
    tracker, follower : dict, optional
        Further parameters of the nodes.
    watch : callable, optional
        Called at each image with the world, what is the case, the image and its labels.

    Raises
    ------
    RenderError, ProcessError, ClientError

    """
    from std_srvs.srv import SetBool

    from drift_ros.ros import conversions, lifecycle

    scenario = scenario or Scenario.of(seed)
    world = World(seed, scenario.screen)
    record = Record(seed, {**FOLLOWER, **(follower or {})})
    try:
        with nodes(out / 'logs', tracker or {}, follower or {}) as (children, client):
            robot = Robot(world, client.node)

            for transition in ('configure', 'activate'):
                if not lifecycle.change_state(client, f'{NAMESPACE}/follower', transition):
                    raise ProcessError(f'the follower:\n{children.tail("follower")}')
                if not client.change_state(transition):
                    raise ProcessError(f'the tracker:\n{children.tail("tracker")}')
            time.sleep(0.5)  # discovery of the tracker's subscriptions
            world.place(*scenario.at(0.0))
            world.advance(0.4, 0.0, 0.0)
            started = False
            while world.time < scenario.seconds:
                now = world.time
                world.place(*scenario.at(now))
                robot.tick()
                when, colour = robot.show()
                moment = _moment(world)
                if not started:
                    if not robot.answered(when, 30.0):
                        raise ProcessError(f'no tracks:\n{children.tail("tracker")}')
                    client.seed(world.mask('object'), names=['cup'])
                    answer = client.call(SetBool, 'follower/enable', SetBool.Request(data=True))
                    if not answer.success:
                        raise ProcessError(answer.message)
                    started = True
                children.check()
                for tick in range(1, TICKS + 1):
                    robot.drive(now + tick / RATE / TICKS)
                    if tick == TICKS:
                        if not robot.answered(when, 30.0):
                            record.unanswered += 1
                        else:
                            robot.located(when, 1.0)
                    robot.tick()
                    if not robot.commanded(5.0):
                        record.unanswered += 1
                _answers(robot, when, moment)
                record.moments.append(moment)
                if watch is not None and robot.answered(when, 1.0, robot.labels):
                    labels = conversions.image_to_labels(robot.labels.pop(when))
                    watch(world, moment, colour, labels)
            record.commands = [
                (when - robot.offset, speed, turn) for when, speed, turn in robot.commands
            ]
    finally:
        world.close()
    return record


def _moment(world: World) -> Moment:
    """Say what is the case."""
    x, y, heading = world.robot
    target, other = world.position('object'), world.position('look-alike')
    clear, inside = world.visible()
    dx, dy = target[0] - x, target[1] - y
    bearing = (math.atan2(dy, dx) - heading + math.pi) % (2 * math.pi) - math.pi
    return Moment(
        world.time,
        (x, y, heading),
        (float(target[0]), float(target[1])),
        (float(other[0]), float(other[1])),
        clear,
        inside,
        math.hypot(dx, dy) - SURFACE,
        bearing,
    )


def _answers(robot: Robot, when: int, moment: Moment) -> None:
    """Add what the nodes said of an image."""
    tracks = robot.tracks.pop(when, None)
    if tracks is not None and tracks.tracks:
        moment.state = tracks.tracks[0].state
    pose = robot.poses.pop(when, None)
    if pose is None:
        return
    point, (x, y, heading) = pose.pose.position, moment.robot
    ahead, left = CAMERA_AT[0] + point.z, -point.x
    moment.pose = (
        x + ahead * math.cos(heading) - left * math.sin(heading),
        y + ahead * math.sin(heading) + left * math.cos(heading),
    )
