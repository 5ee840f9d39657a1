# SPDX-License-Identifier: Apache-2.0
"""A camera as most start it: 640x480 in colour, best effort, the middleware's own defaults."""

import os

for distribution in ('FASTDDS', 'FASTRTPS'):  # before rclpy
    os.environ.pop(f'{distribution}_DEFAULT_PROFILES_FILE', None)

import array  # noqa: E402

from rclpy.node import Node  # noqa: E402
from rclpy.qos import qos_profile_sensor_data  # noqa: E402
from sensor_msgs.msg import Image  # noqa: E402

from drift_ros.ros import runtime  # noqa: E402


class PlainCamera(Node):
    """Publishes 60 images a second."""

    def __init__(self):
        super().__init__('plain_camera')
        self.publisher = self.create_publisher(Image, 'image', qos_profile_sensor_data)
        self.image = Image(height=480, width=640, step=1920, encoding='rgb8')
        self.image.header.frame_id = 'test_camera'
        self.image.data = array.array('B', bytes(640 * 480 * 3))
        self.create_timer(1 / 60, self.publish)

    def publish(self):
        self.image.header.stamp = self.get_clock().now().to_msg()
        self.publisher.publish(self.image)


if __name__ == '__main__':
    runtime.run(PlainCamera)
