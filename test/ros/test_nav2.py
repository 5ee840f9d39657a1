# SPDX-License-Identifier: Apache-2.0
"""The tracker's pose under the rules of nav2's following server, and who sets it off."""

from pathlib import Path
import threading

from geometry_msgs.msg import TransformStamped
from harness import Client, NodeProcess, tracker_process, wait_for
import numpy as np
import pytest
import rclpy
from scenes import GREEN, RED, scene, square_mask
from sensor_msgs.msg import CameraInfo
from tf2_msgs.msg import TFMessage

nav2 = pytest.importorskip('nav2_msgs.action', reason='nav2_msgs is not installed')
if not hasattr(nav2, 'FollowObject'):
    pytest.skip('this nav2_msgs has no FollowObject', allow_module_level=True)

from following_server import FollowingServer  # noqa: E402
from test_space_topics import CENTRE, depth_image, FOCAL  # noqa: E402

from drift_ros.ros import conversions, qos, stamp  # noqa: E402

DOMAIN = 98
CUP, BOX = (52, 36, 24), (8, 60, 20)
FRAME, GONE = scene((*CUP, RED), (*BOX, GREEN)), scene((*BOX, GREEN))


class Camera:
    """Publishes what a camera sees at ten images a second, stamped now, and its frames."""

    def __init__(self, client):
        self.client, self.frame, self.depth = client, FRAME, 2.0
        self._stop = threading.Event()
        self._random = np.random.default_rng(0)
        self._tf = client.node.create_publisher(TFMessage, '/tf', qos.TRANSFORMS)
        self.headers = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self):
        self._stop.set()
        self._thread.join()

    def _run(self):
        while not self._stop.wait(0.1):
            self.show()

    def show(self):
        client = self.client
        header = client.header(client.node.get_clock().now().nanoseconds)
        moved = []
        for parent, child, turn in (
            ('odom', 'base_link', (0.0, 0.0, 0.0, 1.0)),
            ('base_link', 'test_camera', (-0.5, 0.5, -0.5, 0.5)),
        ):
            item = TransformStamped(child_frame_id=child)
            item.header.stamp, item.header.frame_id = header.stamp, parent
            rotation = item.transform.rotation
            rotation.x, rotation.y, rotation.z, rotation.w = turn
            moved.append(item)
        self._tf.publish(TFMessage(transforms=moved))
        matrix = [FOCAL, 0.0, CENTRE[0], 0.0, FOCAL, CENTRE[1], 0.0, 0.0, 1.0]
        client.send(CameraInfo(header=header, width=128, height=96, k=matrix), '/camera_info')
        noise = self._random.normal(0, 0.002, FRAME.shape[:2])
        depth = (self.depth + noise).astype(np.float32)
        client.send(depth_image(depth, header), '/depth')
        client.send(conversions.rgb_to_image(self.frame, header))
        self.headers.append(header)


@pytest.fixture(scope='module')
def system(tmp_path_factory):
    """Give client, camera and following server around a tracker that follows a cup."""
    program = Path(__file__).with_name('weightless_tracker.py')
    log = tmp_path_factory.mktemp('nav2') / 'log'
    with tracker_process(DOMAIN, log, program) as _:
        client = Client(DOMAIN)
        client.start()
        context = rclpy.Context()
        rclpy.init(args=[], context=context, domain_id=DOMAIN)
        server = FollowingServer(rclpy.create_node('following_server', context=context))
        camera = Camera(client)
        wait_for(lambda: camera.headers, 'a picture')
        wait_for(
            lambda: client.ask_seed(square_mask(CUP), frame=FRAME, names=['cup']).success, 'a seed'
        )
        yield client, camera, server
        camera.close()
        server.close()
        rclpy.shutdown(context=context)
        client.close()


def test_nav2_follows_what_the_tracker_sees_and_only_that(system, tmp_path):
    client, camera, server = system
    node = NodeProcess(
        'follow_goal',
        DOMAIN,
        tmp_path / 'log',
        arguments=['--ros-args', '-r', 'pose:=tracker/pose'],
    )
    try:
        wait_for(lambda: len(server.used) > 5, 'poses that nav2 takes')
        assert [goal.pose_topic for goal in server.goals] == ['/tracker/pose']
        # the image's stamp and frame; where the cup is: 2 m ahead of the robot
        stamps = [stamp.nanoseconds(header.stamp) for header in camera.headers]
        assert all(stamp.nanoseconds(pose.header.stamp) in stamps for pose in server.used)
        assert {pose.header.frame_id for pose in server.used} == {'test_camera'}
        point = server.used[-1].pose.position
        np.testing.assert_allclose((point.x, point.y, point.z), (0, 0, 2), atol=0.05)
        assert max(speed for speed, _ in server.commands) > 0 and not server.lost
        camera.depth = 1.0  # it is there
        wait_for(lambda: server.states[-1] == 3, 'STOPPING')
        # gone: silence, so that nav2 retries; back: it goes on with the same goal
        camera.frame = GONE
        wait_for(lambda: server.retries == 2, 'retries')
        camera.frame, before = FRAME, len(server.used)
        wait_for(lambda: len(server.used) > before + 3, 'poses again')
        assert len(server.goals) == 1
        # gone for good: nav2 gives up, and whoever set it off says so and ends
        camera.frame = GONE
        assert wait_for(lambda: node.process.poll() is not None, 'its end')
        assert node.process.returncode == 1
        assert 'error code 902' in node.output and set(server.lost) == {'the detection is too old'}
        assert server.commands[-1] == (0.0, 0.0)
    finally:
        camera.frame, camera.depth = FRAME, 2.0
        node.close()


def test_the_goal_is_cancelled_when_who_sent_it_ends(system, tmp_path):
    client, camera, server = system
    before = len(server.used)
    node = NodeProcess(
        'follow_goal',
        DOMAIN,
        tmp_path / 'log',
        arguments=['--ros-args', '-r', 'pose:=tracker/pose'],
    )
    wait_for(lambda: len(server.used) > before + 3, 'poses that nav2 takes')
    code, _ = node.interrupt()
    assert code == 0
    wait_for(lambda: server.commands[-1] == (0.0, 0.0), 'a stop')
    used = len(server.used)
    wait_for(lambda: len(camera.headers), 'a picture')
    camera.headers.clear()
    wait_for(lambda: len(camera.headers) > 3, 'pictures')
    assert len(server.used) == used
