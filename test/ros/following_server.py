# SPDX-License-Identifier: Apache-2.0
"""
A following server with the rules of nav2's, as far as they concern who publishes the pose.

It subscribes to the topic of the goal, reliable with depth 1; waits for a first pose; takes a pose
whose stamp is zero or older than ``detection_timeout`` for none; needs its frame; retries a few
times and then aborts with FAILED_TO_DETECT_OBJECT. What it does is kept for the test to look at.
"""

import threading
import time

from geometry_msgs.msg import PoseStamped, TwistStamped
from nav2_msgs.action import FollowObject
import numpy as np
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import MultiThreadedExecutor
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from tf2_msgs.msg import TFMessage

from drift_ros.ros import qos, stamp
from drift_ros.space.frames import FrameError, FrameTree

RATE = 20.0
STANDARD_TOPIC = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.VOLATILE
)


class NotDetectedError(Exception):
    """The object's pose is missing, too old, or in no known frame."""


class FollowingServer:
    """Serves ``follow_object`` on a node; spin it with :meth:`spin`."""

    def __init__(self, node, detection_timeout=1.0, max_retries=3, distance=1.0):
        self.node, self.timeout, self.retries_allowed = node, detection_timeout, max_retries
        self.distance = distance
        self.frames, self.states, self.commands, self.used = FrameTree(), [], [], []
        self.retries, self.goals, self.lost = 0, [], []
        self._pose = PoseStamped()
        group = ReentrantCallbackGroup()
        more = {'callback_group': group}
        self._velocity = node.create_publisher(TwistStamped, 'cmd_vel', 1)
        for topic, profile, static in (
            ('/tf', qos.TRANSFORMS, False),
            ('/tf_static', qos.STATIC_TRANSFORMS, True),
        ):
            node.create_subscription(
                TFMessage,
                topic,
                lambda message, static=static: self._moved(message, static),
                profile,
                **more,
            )
        self._server = ActionServer(
            node,
            FollowObject,
            'follow_object',
            self._follow,
            cancel_callback=lambda _: CancelResponse.ACCEPT,
            **more,
        )
        self._group = group
        self._executor = MultiThreadedExecutor(4, context=node.context)
        self._executor.add_node(node)
        self._thread = threading.Thread(target=self._executor.spin, daemon=True)
        self._thread.start()

    def close(self):
        self._executor.shutdown(2.0)
        self._server.destroy()
        self.node.destroy_node()

    def _moved(self, message, static):
        for item in message.transforms:
            where, turn = item.transform.translation, item.transform.rotation
            self.frames.add(
                item.header.frame_id,
                item.child_frame_id,
                stamp.nanoseconds(item.header.stamp),
                (where.x, where.y, where.z),
                (turn.x, turn.y, turn.z, turn.w),
                static,
            )

    def _receive(self, message):
        self._pose = message

    def _detect(self):
        """Give the object's place in odom, or raise."""
        if stamp.nanoseconds(self._pose.header.stamp) == 0:
            end = time.monotonic() + self.timeout
            while stamp.nanoseconds(self._pose.header.stamp) == 0:
                if time.monotonic() > end:
                    raise NotDetectedError('no detection within the timeout')
                time.sleep(0.01)
        pose = self._pose
        when = stamp.nanoseconds(pose.header.stamp)
        if (self.node.get_clock().now().nanoseconds - when) / 1e9 > self.timeout:
            raise NotDetectedError('the detection is too old')
        point = pose.pose.position
        try:
            way = self.frames.lookup('odom', pose.header.frame_id, when)
        except FrameError as error:
            raise NotDetectedError(str(error)) from None
        self.used.append(pose)
        return way(np.array([point.x, point.y, point.z]))

    def _follow(self, handle):
        goal, result = handle.request, FollowObject.Result()
        self.goals.append(goal)
        self._pose, self.retries = PoseStamped(), 0
        subscription = self.node.create_subscription(
            PoseStamped, goal.pose_topic, self._receive, STANDARD_TOPIC, callback_group=self._group
        )
        began = time.monotonic()
        try:
            while True:
                if handle.is_cancel_requested:
                    handle.canceled()
                    return result
                most = goal.max_duration.sec + goal.max_duration.nanosec / 1e9
                if most and time.monotonic() - began > most:
                    handle.succeed()
                    return result
                try:
                    x, y, _ = self._detect()
                    reached = abs(np.hypot(x, y) - self.distance) < 0.15
                    state = (
                        FollowObject.Feedback.STOPPING
                        if reached
                        else (FollowObject.Feedback.CONTROLLING)
                    )
                    self._drive(0.0 if reached else 0.2, float(np.arctan2(y, x)))
                except NotDetectedError as error:
                    self.retries += 1
                    self.lost.append(str(error))
                    state = FollowObject.Feedback.RETRY
                    if self.retries > self.retries_allowed:
                        result.error_code = FollowObject.Result.FAILED_TO_DETECT_OBJECT
                        result.error_msg, result.num_retries = str(error), self.retries
                        handle.abort()
                        return result
                    time.sleep(0.5)
                self.states.append(state)
                handle.publish_feedback(
                    FollowObject.Feedback(state=state, num_retries=self.retries)
                )
                time.sleep(1 / RATE)
        finally:
            self._drive(0.0, 0.0)
            self.node.destroy_subscription(subscription)

    def _drive(self, speed, turn):
        message = TwistStamped()
        message.twist.linear.x, message.twist.angular.z = speed, turn
        self.commands.append((speed, turn))
        self._velocity.publish(message)
