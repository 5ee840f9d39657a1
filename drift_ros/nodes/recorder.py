# SPDX-License-Identifier: Apache-2.0
"""
The recorder node: write topics to a rosbag2 (mcap) without rosbag2.

Messages are stored as they arrive (CDR), with the definitions of their types as installed here,
so that the bag can be read where the types are unknown.
"""

from __future__ import annotations

from collections.abc import Sequence
import importlib
from pathlib import Path
import threading
import time
from typing import Any

from rclpy.node import Node
from rclpy.qos import DurabilityPolicy
from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores

from drift_ros.ros import parameters, qos, runtime
from drift_ros.ros.messages import register_type
from drift_ros.ros.parameters import RecorderConfig


def message_class(name: str) -> type:
    """Import a message's class by its type name."""
    package, folder, kind = name.split('/')
    return getattr(importlib.import_module(f'{package}.{folder}'), kind)


class BagRecorder:
    """A bag that is being written; from any thread."""

    def __init__(self, path: str | Path) -> None:
        """
        Create the bag.

        Parameters
        ----------
        path : str or Path
            Folder of the new bag.

        Raises
        ------
        ValueError
            It exists already.

        """
        path = Path(path)
        if path.exists():
            raise ValueError(f'{path} exists already: choose another output or remove it')
        path.parent.mkdir(parents=True, exist_ok=True)
        self._store = get_typestore(Stores.EMPTY)
        self._lock = threading.Lock()
        self._writer: Writer | None = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        self._writer.open()
        self._connections: dict[str, Any] = {}

    def add_topic(self, topic: str, kind: str, latched: bool = False) -> None:
        """Add a topic of a message type; ``latched`` makes players offer it transient local."""
        register_type(self._store, kind)
        zero = QosTime(0, 0)
        qos = Qos(
            QosHistory.KEEP_LAST,
            10,
            QosReliability.RELIABLE,
            QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
            zero,
            zero,
            QosLiveliness.AUTOMATIC,
            zero,
            False,
        )
        with self._lock:
            if self._writer is not None:
                self._connections[topic] = self._writer.add_connection(
                    topic, kind, typestore=self._store, offered_qos_profiles=[qos]
                )

    def write(self, topic: str, stamp: int, data: bytes) -> None:
        """Write one serialised message (CDR) with its time of reception in nanoseconds."""
        with self._lock:
            if self._writer is not None:
                self._writer.write(self._connections[topic], stamp, data)

    def close(self) -> None:
        """Finish the bag."""
        with self._lock:
            if self._writer is not None:
                self._writer.close()
                self._writer = None


class RecorderNode(Node):
    """Node ``recorder``; see docs/nodes.md. Subscribes to a topic once it has a publisher."""

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
            lambda data: self._bag.write(topic, self.get_clock().now().nanoseconds, data),
            profile,
            raw=True,
        )
        self.get_logger().info(f'recording {topic} [{kind}]')

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
        return True


def main(args: Sequence[str] | None = None) -> None:
    """Run the node as a process: ``ros2 run drift_ros recorder --ros-args -p output:=DIR ...``."""
    runtime.run(RecorderNode, args)


if __name__ == '__main__':
    main()
