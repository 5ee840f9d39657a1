# SPDX-License-Identifier: Apache-2.0
"""
The node that sets a robot off: nav2's following server, or the follower of this package.

It waits for a first pose, asks to follow, tells what comes of it, and takes that back when it
ends: a robot does not drive on after who started it is gone.
"""

from __future__ import annotations

from collections.abc import Sequence
import importlib
import threading
from typing import Any

from action_msgs.msg import GoalStatus
from geometry_msgs.msg import PoseStamped
from rclpy.action import ActionClient
from rclpy.duration import Duration
from rclpy.node import Node
from std_srvs.srv import SetBool

from drift_ros.ros import parameters, qos, runtime
from drift_ros.space.following import GoalConfig

_LOOK = 5.0  # seconds between two words on what is waited for


class FollowGoalNode(Node):
    """
    Node ``follow_goal``; see docs/nodes.md. It ends when following has ended.

    Attributes
    ----------
    finished : threading.Event
    exit_code : int
        0 when following ended as it should.

    """

    def __init__(self, **kwargs: Any) -> None:
        """
        Wait for a pose.

        Raises
        ------
        ValueError
            The action is not installed.

        """
        super().__init__(
            'follow_goal', automatically_declare_parameters_from_overrides=True, **kwargs
        )
        parameters.declare(self, GoalConfig)
        self._config = parameters.read(self, GoalConfig)
        self.finished, self.exit_code = threading.Event(), 0
        self._handle: Any = None
        self._server: Any = None
        self._kind: Any = None
        if self._config.server == 'nav2':
            self._kind = _follow_object()
            self._server = ActionClient(self, self._kind, 'follow_object')
        else:
            self._server = self.create_client(SetBool, 'follower/enable')
        self._asked = False
        self._subscription = self.create_subscription(PoseStamped, 'pose', self._see, qos.POSES)
        self._timer = self.create_timer(_LOOK, self._remind)

    @property
    def _ready(self) -> bool:
        if self._kind is not None:
            return self._server.server_is_ready()
        return self._server.service_is_ready()

    def _remind(self) -> None:
        if self._asked:
            return
        topic = self._subscription.topic_name
        if not self.count_publishers(topic):
            waits = f'a publisher of {topic}'
        elif self._ready:
            waits = f'a pose on {topic}: seed the object, and set space.target to its name'
        else:
            waits = 'the action follow_object' if self._kind else 'the service follower/enable'
        self.get_logger().info(f'waiting for {waits}')

    def _see(self, _: PoseStamped) -> None:
        """Ask once the object is seen and somebody is there to ask."""
        if self._asked or not self._ready:
            return
        self._asked = True
        topic = self._subscription.topic_name
        if self._kind is None:
            self._server.call_async(SetBool.Request(data=True)).add_done_callback(self._enabled)
            return
        goal = self._kind.Goal(
            pose_topic=topic,
            max_duration=Duration(seconds=self._config.max_duration).to_msg(),
        )
        self.get_logger().info(f'asking nav2 to follow {topic}')
        self._server.send_goal_async(goal).add_done_callback(self._accepted)

    def _enabled(self, future: Any) -> None:
        answer = future.result()
        self.get_logger().info(f'follower: {answer.message}')
        if not answer.success:
            self._end(1)

    def _accepted(self, future: Any) -> None:
        handle = future.result()
        if not handle.accepted:
            self.get_logger().error('the following server refused the goal')
            self._end(1)
            return
        self._handle = handle
        handle.get_result_async().add_done_callback(self._done)

    def _done(self, future: Any) -> None:
        answer, self._handle = future.result(), None
        result, good = answer.result, answer.status == GoalStatus.STATUS_SUCCEEDED
        seconds = result.total_elapsed_time.sec + result.total_elapsed_time.nanosec / 1e9
        text = (
            f'followed for {seconds:.1f} s, {result.num_retries} retries, error code '
            f'{result.error_code} {result.error_msg}'
        )
        (self.get_logger().info if good else self.get_logger().error)(text)
        self._end(0 if good else 1)

    def _end(self, code: int) -> None:
        self.exit_code = code
        self.finished.set()

    def stop(self) -> None:
        """Take the wish back at the end of the process; see :func:`runtime.run`."""
        if self._kind is not None and self._handle is not None:
            self._handle.cancel_goal_async()
        elif self._kind is None and self._asked and self._ready:
            self._server.call_async(SetBool.Request(data=False))

    def join(self, timeout: float) -> bool:
        """Let the last request go out."""
        threading.Event().wait(min(0.3, timeout) if self._asked else 0.0)
        return True


def _follow_object() -> Any:
    """
    Import nav2_msgs/action/FollowObject, which few installations have.

    Raises
    ------
    ValueError

    """
    try:
        return importlib.import_module('nav2_msgs.action').FollowObject
    except (ImportError, AttributeError):
        raise ValueError(
            'nav2_msgs with the action FollowObject is not installed: install a nav2 that has '
            'it (Jazzy from 1.3.13, Lyrical), or set server to follower'
        ) from None


def main(args: Sequence[str] | None = None) -> None:
    """Run the node as a process: ``ros2 run drift_ros follow_goal``."""
    runtime.run(FollowGoalNode, args)


if __name__ == '__main__':
    main()
