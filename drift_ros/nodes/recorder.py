# SPDX-License-Identifier: Apache-2.0
"""
The recorder node: write topics to a rosbag2 (mcap) without rosbag2.

Messages are stored as they arrive (CDR), with the definitions of their types as installed here,
so that the bag can be read where the types are unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
import importlib
import threading
import time
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy

from drift_ros.ros import parameters, qos, runtime
from drift_ros.ros.bag_recorder import BagRecorder
from drift_ros.ros.parameters import RecorderConfig


def message_class(name: str) -> type:
    """Import a message's class by its type name."""
    package, folder, kind = name.split('/')
    return getattr(importlib.import_module(f'{package}.{folder}'), kind)


class RecorderNode(Node):
    """
    Node ``recorder``; see docs/nodes.md. Subscribes to a topic once it has a publisher.

    ``finished`` is set, and ``exit_code`` 1, when the bag takes no more: the disk is full.
    """

    def __init__(self, **kwargs: Any) -> None:
        """
        Create the bag and look for the topics.

        Raises
        ------
        ValueError
            No output or no topics given, or the output exists.

        """
        super().__init__(
            'recorder', automatically_declare_parameters_from_overrides=True, **kwargs
        )
        parameters.declare(self, RecorderConfig)
        config = parameters.read(self, RecorderConfig)
        if not config.output or not config.topics:
            raise ValueError("set the parameters 'output' (a new folder) and 'topics' (a list)")
        self._waiting = {self.resolve_topic_name(topic) for topic in config.topics}
        self._bag = BagRecorder(config.output)
        self.finished = threading.Event()
        self.exit_code = 0
        self.create_timer(0.05, self._discover)

    def _discover(self) -> None:
        for topic in sorted(self._waiting):
            publishers = self.get_publishers_info_by_topic(topic)
            if publishers:
                self._waiting.discard(topic)
                self._record(topic, publishers)

    def _record(self, topic: str, publishers: Sequence[Any]) -> None:
        kind = publishers[0].topic_type
        profile = qos.recording(item.qos_profile for item in publishers)
        latched = profile.durability == DurabilityPolicy.TRANSIENT_LOCAL
        try:
            self._bag.add_topic(topic, kind, latched)
            message = message_class(kind)
        except (LookupError, ImportError) as error:
            self.get_logger().error(f'cannot record {topic}: {error}')
            return
        self.create_subscription(
            message,
            topic,
            lambda data: self._write(topic, data),
            profile,
            raw=True,
        )
        self.get_logger().info(f'recording {topic} [{kind}]')

    def _write(self, topic: str, data: bytes) -> None:
        if not self._bag.write(topic, self.get_clock().now().nanoseconds, data):
            self.finished.set()

    def join(self, timeout: float) -> bool:
        """Write what has arrived but was not written when the executor stopped; finish the bag."""
        deadline = time.monotonic() + 0.8 * timeout
        for subscription in list(self.subscriptions):
            with subscription.handle:
                while time.monotonic() < deadline:
                    taken = subscription.handle.take_message(
                        subscription.msg_type, subscription.raw
                    )
                    if taken is None:
                        break
                    subscription.callback(taken[0])
        time.sleep(0.05)  # a callback the executor had begun ends meanwhile
        self._bag.close()
        if self._bag.failure:
            self.exit_code = 1
            self.get_logger().error(f'{self._bag.failure}. {self._bag.losses()}')
        return True


def main(args: Sequence[str] | None = None) -> None:
    """Run the node as a process: ``ros2 run drift_ros recorder --ros-args -p output:=DIR ...``."""
    runtime.run(RecorderNode, args)


if __name__ == '__main__':
    main()
