# SPDX-License-Identifier: Apache-2.0
"""
The camera of the soak, a process of its own that may be killed.

``camera.py EPOCH RATE`` publishes on ``image``; lines of JSON on its standard input change
``size`` (rows, columns), ``paused``, ``loss`` (share of frames left out), ``offset`` (seconds
added to stamps) and ``frozen`` (one stamp for all).
"""

import json
import random
import sys
import threading
import time

import rclpy
from scene import MARK, picture
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from drift_ros.ros import conversions, qos, stamp


def main() -> None:
    """Publish until the input ends."""
    epoch, rate = float(sys.argv[1]), float(sys.argv[2])
    settings = {'size': None, 'paused': False, 'loss': 0.0, 'offset': 0.0, 'frozen': False}
    ended = threading.Event()

    def listen() -> None:
        for line in sys.stdin:
            settings.update(json.loads(line))
        ended.set()

    threading.Thread(target=listen, daemon=True).start()
    rclpy.init(args=[])
    node = rclpy.create_node('soak_camera')
    publisher = node.create_publisher(Image, '/image', qos.CAMERA)
    last = 0
    while not ended.wait(max(0.0, 1 / rate - (time.time() - epoch) % (1 / rate))):
        index = int((time.time() - epoch) * rate)
        if settings['paused'] or random.random() < settings['loss']:
            continue
        now = time.time_ns() + int(settings['offset'] * 1e9)
        last = last if settings['frozen'] else now
        header = Header(stamp=stamp.message(max(last, 0)), frame_id=f'{MARK}{index}')
        size = settings['size']
        frame, _ = picture(index, tuple(size)) if size else picture(index)
        publisher.publish(conversions.rgb_to_image(frame, header))
    node.destroy_node()
    rclpy.try_shutdown()


if __name__ == '__main__':
    main()
