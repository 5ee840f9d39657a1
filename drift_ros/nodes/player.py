# SPDX-License-Identifier: Apache-2.0
"""
The player node: publish a video or a folder of images as a camera would.

Regular stamps start at the node's clock and advance as the source's frames are spaced (or by one
period of the rate asked for), whatever the actual pace, and go on ascending when the source is
looped. Of a damaged source everything that can be decoded is published; the end says what is
wrong.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import itertools
import threading
import time
from typing import Any

import numpy as np
from rclpy.duration import Duration
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from drift_ros.media.video import VideoDamage, VideoError, VideoReader
from drift_ros.ros import conversions, parameters, qos, runtime, stamp
from drift_ros.ros.parameters import PlayerConfig


class PlayerNode(Node):
    """Node ``player``; see docs/nodes.md. ``finished`` is set when the last frame is out."""

    def __init__(self, **kwargs: Any) -> None:
        """
        Open the source and start to play.

        Raises
        ------
        ValueError
            No source, or one that cannot be read.

        """
        super().__init__('player', automatically_declare_parameters_from_overrides=True, **kwargs)
        parameters.declare(self, PlayerConfig)
        self._config = parameters.read(self, PlayerConfig)
        if not self._config.source:
            raise VideoError("nothing to play: set the parameter 'source' (-p source:=FILE)")
        self._reader = VideoReader(self._config.source, self._config.start, self._config.count)
        for note in self._reader.notes:
            self.get_logger().warning(note)
        self.finished = threading.Event()
        self.exit_code = 0
        self._stopping = threading.Event()
        self._condition = threading.Condition()
        self._answered = -1
        self._holding = False
        compressed = self._config.image_transport == 'compressed'
        topic = self.resolve_topic_name('image') + ('/compressed' if compressed else '')
        self._publisher = self.create_publisher(
            CompressedImage if compressed else Image, topic, qos.PLAYED_IMAGES
        )
        if self._config.lockstep:
            self.create_subscription(Image, 'answer', self._answer, qos.PLAYED_IMAGES)
        self.create_service(Trigger, '~/resume', self._resume)
        self._thread = threading.Thread(target=self._play, name='player', daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop playing."""
        self._stopping.set()
        with self._condition:
            self._condition.notify_all()

    def join(self, timeout: float) -> bool:
        """Wait for the playing thread."""
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _answer(self, message: Image) -> None:
        with self._condition:
            self._answered = max(self._answered, stamp.nanoseconds(message.header.stamp))
            self._condition.notify_all()

    def _resume(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        with self._condition:
            response.success = self._holding
            response.message = '' if self._holding else 'the player is not on hold'
            self._holding = False
            self._condition.notify_all()
        return response

    def _frames(self) -> Iterator[tuple[int, float, np.ndarray]]:
        """Give each frame with its number and the seconds at which it is shown."""
        reader, rate = self._reader, self._config.rate
        times = np.arange(len(reader)) / rate if rate else reader.times
        # a round lasts until what would be the next frame
        length = len(reader) / rate if rate else float(times[-1:].sum()) + 1 / reader.rate
        for turn in itertools.count() if self._config.loop else range(1):
            try:
                for number, frame in reader.numbered():
                    yield (
                        turn * len(reader) + number,
                        turn * length + float(times[number]),
                        frame,
                    )
            except VideoDamage as damage:
                if not turn:
                    self.exit_code = 1
                    self.get_logger().error(str(damage))

    def _wait(self, condition: Any, timeout: float | None = None) -> bool:
        """Wait for a condition that callbacks change; False when time is up or at the end."""
        with self._condition:
            self._condition.wait_for(lambda: self._stopping.is_set() or condition(), timeout)
            return not self._stopping.is_set() and condition()

    def _play(self) -> None:
        try:
            published = self._publish_all()
            if not self._stopping.is_set():
                self._publisher.wait_for_all_acked(Duration(seconds=5))
            self.get_logger().info(f'published {published} frames')
        except Exception as error:  # this thread has nobody above it
            if not self._stopping.is_set():
                self.exit_code = 1
                self.get_logger().error(str(error))
        self.finished.set()

    def _publish_all(self) -> int:
        config = self._config
        while not self._stopping.is_set() and (
            self._publisher.get_subscription_count() < config.wait_for_subscribers
            or (config.lockstep and not self.count_publishers(self.resolve_topic_name('answer')))
        ):
            time.sleep(0.02)
        start, clock = self.get_clock().now().nanoseconds, time.monotonic()
        published = 0
        for index, seconds, frame in self._frames():
            delay = clock + seconds - time.monotonic()
            if self._stopping.wait(delay) if delay > 0 else self._stopping.is_set():
                break
            when = (
                self.get_clock().now().nanoseconds
                if config.stamps == 'now'
                else start + round(seconds * 1e9)
            )
            if index in config.hold_at:
                with self._condition:
                    self._holding = True
            header = Header(stamp=stamp.message(when), frame_id=config.frame_id)
            self._publisher.publish(
                conversions.rgb_to_compressed(frame, header)
                if config.image_transport == 'compressed'
                else conversions.rgb_to_image(frame, header)
            )
            published += 1
            if config.lockstep and not self._wait(
                lambda when=when: self._answered >= when, config.lockstep_timeout
            ):
                if self._stopping.is_set():
                    break
                raise VideoError(
                    f'no answer to frame {index} within {config.lockstep_timeout} '
                    's: is the tracker active, and answer remapped to its mask?'
                )
            if index in config.hold_at:
                held = time.monotonic()
                if not self._wait(lambda: not self._holding):
                    break
                clock += time.monotonic() - held
        return published


def main(args: Sequence[str] | None = None) -> None:
    """Run the node as a process: ``ros2 run drift_ros player --ros-args -p source:=FILE``."""
    runtime.run(PlayerNode, args)


if __name__ == '__main__':
    main()
