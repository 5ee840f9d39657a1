# SPDX-License-Identifier: Apache-2.0
"""
The follower node: a pose, or a bearing alone, to velocity commands. It avoids no obstacles.

The law is :mod:`drift_ros.space.following`; here are the messages, the frames and the ways out. On
every one of them the last command is zero, and waits to be received.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
import math
import threading
import traceback
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PoseStamped, Twist, TwistStamped, Vector3Stamped
import numpy as np
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from std_srvs.srv import SetBool
from tf2_msgs.msg import TFMessage

from drift_ros.ros import messages, parameters, qos, runtime, stamp
from drift_ros.space.following import Command, Follower, FollowOptions, Mode, Sighting
from drift_ros.space.frames import FrameError, FrameTree

_DIAGNOSTICS = 0.5  # seconds
_AHEAD = 0.5  # seconds by which a stamp may lie in the future
_ACKNOWLEDGED = Duration(seconds=0.2)  # wait for who listens to the last command


@dataclass
class News:
    """A pose or a bearing that came."""

    message: PoseStamped | Vector3Stamped
    stamp: int
    """Nanoseconds."""
    received: int
    """Nanoseconds, by the node's clock."""
    fixed: np.ndarray | None = None
    """(3,) the place, or the direction of a bearing, in the fixed frame; None: not yet known."""

    @property
    def values(self) -> np.ndarray:
        """(3,) metres, or a direction."""
        where = self.message
        point = where.pose.position if isinstance(where, PoseStamped) else where.vector
        return np.array([point.x, point.y, point.z])


class FollowerNode(LifecycleNodeMixin, Node):
    """Lifecycle node ``follower``; see docs/nodes.md. Off until ``~/enable`` is called."""

    def __init__(self, **kwargs: Any) -> None:
        """
        Declare parameters, create the service.

        Raises
        ------
        ValueError, rclpy.exceptions.ParameterException
            A parameter given at start is refused.

        """
        group = ReentrantCallbackGroup()
        Node.__init__(
            self, 'follower', automatically_declare_parameters_from_overrides=True, **kwargs
        )
        LifecycleNodeMixin.__init__(self, callback_group=group)
        parameters.declare(self, *parameters.NODES['follower'])
        self._table = {
            item.name: item for item in parameters.parameters(*parameters.NODES['follower'])
        }
        self._group = MutuallyExclusiveCallbackGroup()
        self._lock = threading.RLock()
        self._follower = Follower(parameters.read(self, FollowOptions))
        self._frames = FrameTree()
        self._news: dict[type, News] = {}
        self._problem = ''
        self._refused: dict[type, str] = {}
        self._sighting: Sighting | None = None
        self._publisher: Any = None
        self._inputs: list[Any] = []
        self._timer: Any = None
        self._configured = False
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._parameters_changed)
        self.create_service(SetBool, '~/enable', self._enable, callback_group=group)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', qos.DIAGNOSTICS)
        self._diagnosis = self.create_timer(
            _DIAGNOSTICS, self._diagnose, group, Clock(clock_type=ClockType.STEADY_TIME)
        )

    # -- parameters

    def _check_parameters(self, changes: Iterable[Any]) -> SetParametersResult:
        """Refuse what would have no effect until a later transition."""
        for change in changes:
            item = self._table.get(change.name)
            applies = '' if item is None else item.applies
            if applies == 'configure' and self._configured:
                reason = f'{change.name} takes effect when the node is configured: call cleanup'
            elif applies == 'activate' and self._inputs:
                reason = f'{change.name} takes effect when the node is activated: call deactivate'
            else:
                continue
            return SetParametersResult(successful=False, reason=f'{reason}, then set it')
        return SetParametersResult(successful=True)

    def _parameters_changed(self, _: Sequence[Any]) -> None:
        with self._lock:
            self._follower.options = parameters.read(self, FollowOptions)

    # -- transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Create the publisher of commands."""
        options = self._follower.options = parameters.read(self, FollowOptions)
        kind = Twist if options.twist == 'plain' else TwistStamped
        self._publisher = self.create_publisher(kind, 'cmd_vel', qos.COMMANDS)
        self._configured = True
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Listen to poses, bearings and frames; drive nowhere until enabled."""
        options = self._follower.options
        self._frames = FrameTree()
        self._news.clear()
        self._refused.clear()
        self._problem = ''
        more = {'callback_group': self._group}
        self._inputs = [
            self.create_subscription(PoseStamped, 'pose', self._receive, qos.POSES, **more),
            self.create_subscription(Vector3Stamped, 'bearing', self._receive, qos.POSES, **more),
            self.create_subscription(TFMessage, '/tf', self._moved, qos.TRANSFORMS, **more),
            self.create_subscription(
                TFMessage,
                '/tf_static',
                lambda message: self._moved(message, static=True),
                qos.STATIC_TRANSFORMS,
                **more,
            ),
        ]
        self._timer = self.create_timer(1 / options.rate, self._step, **more)
        self.get_logger().info(
            f'ready, off; once enabled it stands {options.stop_time:.2f} s after the object was '
            'seen last, at most. It avoids no obstacles.'
        )
        return super().on_activate(state)

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the robot and listen to nothing."""
        self._halt()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the robot and take the publisher down."""
        return self._release()

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the robot, from any state."""
        return self._release()

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop the robot after a transition went wrong."""
        return self._release()

    def _halt(self) -> None:
        """Switch off, say zero, and listen to nothing."""
        with self._lock:
            self._follower.disable()
            self._send(Command(), wait=True)
            if self._timer is not None:
                self.destroy_timer(self._timer)
                self._timer = None
            for subscription in self._inputs:
                self.destroy_subscription(subscription)
            self._inputs = []

    def _release(self) -> TransitionCallbackReturn:
        self._halt()
        with self._lock:
            if self._publisher is not None:
                self.destroy_publisher(self._publisher)
                self._publisher = None
            self._configured = False
        return TransitionCallbackReturn.SUCCESS

    def stop(self) -> None:
        """Stop the robot at the end of the process; see :func:`runtime.run`."""
        self._diagnosis.cancel()
        with self._lock:
            self._follower.disable()
            self._send(Command(), wait=True)

    def endure(self, error: BaseException) -> None:
        """Stop the robot when a callback raised; see :func:`runtime.run`."""
        with self._lock:
            self._problem = f'{type(error).__name__}: {error}'
            self._follower.disable()
            self._send(Command(), wait=True)
        self.get_logger().error(''.join(traceback.format_exception(error)))

    # -- what comes in

    def _enable(self, request: SetBool.Request, response: SetBool.Response) -> SetBool.Response:
        with self._lock:
            if request.data and not self._inputs:
                response.message = 'the node is not active: call its activate transition first'
                return response
            if request.data:
                self._follower.enable()
                response.message = 'following; it avoids no obstacles'
            else:
                self._follower.disable()
                self._send(Command(), wait=True)
                response.message = 'off'
            response.success = True
        self.get_logger().info(response.message)
        return response

    def _receive(self, message: PoseStamped | Vector3Stamped) -> None:
        when, now = stamp.nanoseconds(message.header.stamp), self._now()
        news = News(message, when, now)
        with self._lock:
            reason = self._refusal(news)
            self._refused[type(message)] = reason
            if not reason:
                self._news[type(message)] = news

    def _refusal(self, news: News) -> str:
        """Say why a pose or a bearing cannot be used; empty when it can."""
        name, last = _name(news.message), self._news.get(type(news.message))
        if not news.stamp:
            return f'{name} has no stamp: its publisher has to set it'
        if not np.isfinite(news.values).all():
            return f'{name} is not finite'
        ahead = (news.stamp - news.received) / 1e9
        if ahead > _AHEAD:
            return f'{name} is stamped {ahead:.1f} s in the future: check clocks and use_sim_time'
        if last is not None and news.stamp <= last.stamp and news.received >= last.received:
            return f'{name} comes with the same stamp again, or an older one'
        return ''

    def _moved(self, message: TFMessage, static: bool = False) -> None:
        for item in message.transforms:
            where, turn = item.transform.translation, item.transform.rotation
            try:
                self._frames.add(
                    item.header.frame_id,
                    item.child_frame_id,
                    stamp.nanoseconds(item.header.stamp),
                    (where.x, where.y, where.z),
                    (turn.x, turn.y, turn.z, turn.w),
                    static,
                )
            except FrameError as error:
                self._problem = str(error)

    # -- what goes out

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds

    def _step(self) -> None:
        """Decide and send; whatever goes wrong, the robot is stopped."""
        with self._lock:
            if not self._follower.enabled or self._publisher is None:
                return
            try:
                now = self._now()
                self._sighting, fresh = self._look(now)
                command = self._follower.step(now / 1e9, self._sighting, fresh)
            except Exception as error:
                self._problem = f'{type(error).__name__}: {error}'
                self.get_logger().error(traceback.format_exc())
                self._follower.disable()
                command = Command()
            self._send(command)
            if self._follower.mode is Mode.OFF:
                self.get_logger().warning(
                    'following is switched off: the object did not come back'
                )

    def _send(self, command: Command, wait: bool = False) -> None:
        publisher = self._publisher
        if publisher is None:
            return
        twist = Twist()
        twist.linear.x, twist.angular.z = command.speed, command.turn
        if publisher.msg_type is Twist:
            publisher.publish(twist)
        else:
            message = TwistStamped(twist=twist)
            message.header.stamp = self.get_clock().now().to_msg()
            message.header.frame_id = self._follower.options.base_frame
            publisher.publish(message)
        if wait:
            publisher.wait_for_all_acked(_ACKNOWLEDGED)

    def _look(self, now: int) -> tuple[Sighting | None, float]:
        """Give where the object is by the newest news, a pose if there is one; and its age."""
        poses, bearings = self._news.get(PoseStamped), self._news.get(Vector3Stamped)
        newest = max(filter(None, (poses, bearings)), key=lambda news: news.stamp, default=None)
        if newest is None:
            self._problem = (
                f'nothing on {self._inputs[0].topic_name} and '
                f'{self._inputs[1].topic_name}: is the tracker active and the target seen?'
            )
            return None, math.inf
        if poses is not None and newest.stamp == poses.stamp:
            newest = poses
        age = (now - newest.stamp) / 1e9
        fresh = (now - newest.received) / 1e9
        options = self._follower.options
        if age > options.max_age:
            self._problem = (
                f'the newest {_name(newest.message)} is {age:.1f} s old (max_age '
                f'{options.max_age:g} s): the object is not seen, or the tracker is too slow'
            )
            return None, fresh
        try:
            place = self._in_base(newest)
        except FrameError as error:
            self._problem = str(error)
            return None, fresh
        self._problem = ''
        bearing = math.atan2(place[1], place[0])
        if newest is poses:
            return Sighting(bearing, float(np.hypot(place[0], place[1]))), fresh
        return Sighting(bearing, None), fresh

    def _in_base(self, news: News) -> np.ndarray:
        """
        Carry a place, or a direction, into the robot's frame as it stands now.

        Raises
        ------
        FrameError

        """
        options, frame = self._follower.options, news.message.header.frame_id
        direction = isinstance(news.message, Vector3Stamped)
        if news.fixed is None:
            way = self._frames.lookup(options.fixed_frame or options.base_frame, frame, news.stamp)
            news.fixed = way.rotation.apply(news.values) if direction else way(news.values)
        if not options.fixed_frame:
            return news.fixed
        now = self._frames.lookup(options.base_frame, options.fixed_frame)
        return now.rotation.apply(news.fixed) if direction else now(news.fixed)

    def _diagnose(self) -> None:
        with self._lock:
            follower, seen = self._follower, self._sighting
            level, message = 0, follower.mode.value
            problem = '; '.join(filter(None, [*self._refused.values(), self._problem]))
            if not self._inputs:
                message = 'not active'
            elif follower.enabled and problem:
                level, message = 1, f'{message}: {problem}'
            known = seen is not None and follower.enabled
            values = {
                'mode': follower.mode.value,
                'distance (m)': seen.distance if known and seen and seen.distance else 'unknown',
                'bearing (rad)': seen.bearing if known and seen else 'unknown',
                'speed (m/s)': follower.command.speed,
                'turn (rad/s)': follower.command.turn,
                'stop time (s)': follower.options.stop_time,
                'problem': problem,
            }
        array = DiagnosticArray()
        array.header.stamp = self.get_clock().now().to_msg()
        name = self.get_fully_qualified_name().lstrip('/')
        array.status = [
            messages.diagnostic(
                f'{name}: following', self.resolve_topic_name('pose'), level, message, values
            )
        ]
        self._diagnostics.publish(array)


def _name(message: PoseStamped | Vector3Stamped) -> str:
    return 'pose' if isinstance(message, PoseStamped) else 'bearing'


def main(args: Sequence[str] | None = None) -> None:
    """Run the node as a process: ``ros2 run drift_ros follower``."""
    runtime.run(FollowerNode, args)


if __name__ == '__main__':
    main()
