# SPDX-License-Identifier: Apache-2.0
"""
The web node: listens to a tracker and its camera, and serves the page.

It is a process of its own that stands back behind others (its priority is lowered), and listens
to the camera only while a page is open, so that it takes nothing from tracking.
"""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import logging
import os
import time
from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from vision_msgs.msg import LabelInfo

from drift_ros.nodes.tracker.frames import ReceivedImage
from drift_ros.nodes.web import pictures
from drift_ros.nodes.web.asker import TrackerAsker
from drift_ros.nodes.web.followers import Followers
from drift_ros.nodes.web.scene import Condition, Scene
from drift_ros.nodes.web.server import Server
from drift_ros.ros import conversions, parameters, qos, runtime, stamp
from drift_ros.ros.client import TrackerClient
from drift_ros.ros.client_errors import ClientError
from drift_ros.ros.parameters import WebConfig
from drift_ros.ros.received import Result, Results

_LOOK = 0.5
"""Seconds between two looks at the graph."""
_LINGER = 10.0
"""Seconds for which the camera is still listened to after the last page was closed."""
_TYPES = {'sensor_msgs/msg/Image': Image, 'sensor_msgs/msg/CompressedImage': CompressedImage}


class WebNode(Node):
    """Node ``web``; see docs/ui.md."""

    def __init__(self, **kwargs: Any) -> None:
        """
        Serve the page.

        Raises
        ------
        ValueError
            The address cannot be used, or the token is no good.

        """
        super().__init__('web', automatically_declare_parameters_from_overrides=True, **kwargs)
        parameters.declare(self, WebConfig)
        config = parameters.read(self, WebConfig)
        self._stopping = False
        self.client = TrackerClient(
            config.tracker, node=self, timeout=config.timeout, watch=self._watch
        )
        self.scene = Scene(size=config.buffer_mb << 20)
        self.scene.assess(Condition(self.client.tracker))
        self._followers = Followers(self.client, self.scene)
        self._diagnosed: Any = None
        self._sequence = 0
        self._camera: Any = None
        self._results: Results | None = None
        self._viewed = float('-inf')
        self._images_group = MutuallyExclusiveCallbackGroup()
        self._look_group = MutuallyExclusiveCallbackGroup()
        everything = {'callback_group': self.client.callback_group}
        self.create_subscription(
            DiagnosticArray, '/diagnostics', self._diagnose, qos.DIAGNOSTICS, **everything
        )
        self.create_subscription(
            LabelInfo,
            f'{self.client.tracker}/label_info',
            lambda message: self.scene.name(
                {item.class_id: item.class_name for item in message.class_map}
            ),
            qos.LATCHED,
            **everything,
        )
        self.create_subscription(
            Image, f'{self.client.tracker}/seeds', self._seeded, qos.RESULTS, **everything
        )
        self.server = Server(
            self.scene,
            TrackerAsker(self.client, self._followers),
            host=config.host,
            port=config.port,
            token=config.token,
            clients=config.clients,
            rate=config.rate,
        )
        address = self.server.start()
        # steady: the page goes on when simulated time stands still
        self.create_timer(
            _LOOK,
            self._look,
            callback_group=self._look_group,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )
        self.get_logger().info(f'open {address}')
        if self.server.open:
            self.get_logger().warning(
                f'the page is open to the network at {config.host}, to those who have the token; '
                'the connection is not encrypted'
            )

    def _watch(self) -> None:
        """End calls that wait when the node ends."""
        if self._stopping:
            raise ClientError('the node of this page is ending')

    # -- the graph

    def _look(self) -> None:
        """See how the tracker is, and listen to what pages need."""
        now = time.monotonic()
        if self.scene.viewers:
            self._viewed = now
        wanted = now - self._viewed < _LINGER
        camera = self._find_camera()
        self._assess(camera[0] if camera else '')
        self._followers.look()
        self._listen(camera if wanted else None)
        if wanted and self._results is None:
            self._results = self.client.results(callback=self._tracked)
        elif not wanted and self._results is not None:
            self._results.close()
            self._results = None

    def _find_camera(self) -> tuple[str, str] | None:
        """Give the topic and type of the images that the tracker listens to."""
        found = self._images_of(self.client.tracker)
        # one of several cameras of a node is called below it
        others = [] if found else self._images_of(self.client.tracker.rpartition('/')[0])
        # it may listen to depth images, too; its diagnostics name the camera's
        said = '' if self._diagnosed is None else self._diagnosed.hardware_id
        named = [item for item in found + others if item[0] in (said, f'{said}/compressed')]
        return next(iter(named or found), None)

    def _images_of(self, node: str) -> list[tuple[str, str]]:
        """Give topics and types of the images a node listens to."""
        namespace, _, name = node.rpartition('/')
        with contextlib.suppress(Exception):  # rclpy raises where no such node is known
            listed = self.get_subscriber_names_and_types_by_node(name, namespace or '/')
            return [(topic, kind) for topic, kinds in listed for kind in kinds if kind in _TYPES]
        return []

    def _listen(self, camera: tuple[str, str] | None) -> None:
        """Subscribe to a camera's topic, and to no other."""
        if self._camera is not None and self._camera[0] != camera:
            self.destroy_subscription(self._camera[1])
            self._camera = None
        if camera is not None and self._camera is None:
            topic, kind = camera
            self._camera = (
                camera,
                self.create_subscription(
                    _TYPES[kind],
                    topic,
                    self._receive,
                    qos.LIVE_IMAGES,
                    callback_group=self._images_group,
                ),
            )

    def _assess(self, camera: str) -> None:
        present = self.client.present
        before = self.scene.condition
        if not present:
            self._diagnosed = None
            self.scene.assess(
                Condition(
                    before.tracker, text=f'{before.tracker} is not running, or not in this domain'
                )
            )
            return
        level, text, values = 0, 'it is there, and has not said yet how it is', {}
        if self._diagnosed is not None:
            status = self._diagnosed
            level, text = int.from_bytes(status.level, 'little'), status.message
            values = {item.key: item.value for item in status.values}
        self.scene.assess(Condition(before.tracker, True, camera, level, text, values))

    def _diagnose(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == f'{self.client.tracker.lstrip("/")}: tracking':
                self._diagnosed = status
        self._followers.hear(message)

    # -- pictures

    def _receive(self, message: Image | CompressedImage) -> None:
        self.scene.frame(ReceivedImage.now(self._sequence, message))
        self._sequence += 1

    def _tracked(self, result: Result) -> None:
        self.scene.result(result)
        seen = {item.id for item in result.tracks.tracks if item.area}
        self._picture(result.stamp, result.labels, seen - set(self.scene.thumbnails))

    def _seeded(self, message: Image) -> None:
        """Keep a small picture of what was marked."""
        labels = conversions.image_to_labels(message)
        marked = set(np.unique(labels).tolist()) - {0}
        self._picture(stamp.nanoseconds(message.header.stamp), labels, marked)

    def _picture(self, when: int, labels: np.ndarray, wanted: set[int]) -> None:
        if not wanted:
            return
        with contextlib.suppress(LookupError, conversions.ConversionError):
            frame = conversions.to_rgb(self.scene.find(when).message)
            for number, data in pictures.thumbnails(frame, labels, wanted).items():
                self.scene.thumbnail(number, data)

    # -- the end

    def stop(self) -> None:
        """End the server and calls that wait; see :func:`drift_ros.ros.runtime.run`."""
        self._stopping = True
        self.server.stop()

    def join(self, timeout: float) -> bool:
        """Wait for the server."""
        return self.server.join(timeout)


def main(args: Sequence[str] | None = None) -> None:
    """Run the node as a process: ``ros2 run drift_ros web``."""
    logging.basicConfig(format='[%(levelname)s] [%(name)s]: %(message)s', level=logging.WARNING)
    with contextlib.suppress(OSError):
        os.nice(10)  # tracking goes first
    runtime.run(WebNode, args)


if __name__ == '__main__':
    main()
