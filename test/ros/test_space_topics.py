# SPDX-License-Identifier: Apache-2.0
"""Places of the tracker node over a real ROS graph: what is told, when, and what is silent."""

from pathlib import Path
import time

from geometry_msgs.msg import PoseStamped, Vector3Stamped
from harness import Client, tracker_process, TYPES
import numpy as np
import pytest
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy
from scenes import GREEN, RED, scene, square_mask
from sensor_msgs.msg import CameraInfo
from std_msgs.msg import Header
from tf2_msgs.msg import TFMessage
from vision_msgs.msg import Detection3DArray
from visualization_msgs.msg import MarkerArray

from drift_ros.ros import conversions, stamp

DOMAIN = 95
CUP, BOX = (16, 16, 24), (80, 40, 30)
FRAME = scene((*CUP, RED), (*BOX, GREEN))
GONE = scene((*BOX, GREEN))
FOCAL = 100.0
CENTRE = (63.5, 47.5)
TYPES.update(
    {
        'detections_3d': Detection3DArray,
        'pose': PoseStamped,
        'bearing': Vector3Stamped,
        'markers': MarkerArray,
    }
)


@pytest.fixture(scope='module')
def process(tmp_path_factory):
    program = Path(__file__).with_name('weightless_tracker.py')
    log = tmp_path_factory.mktemp('space') / 'log'
    with tracker_process(DOMAIN, log, program, diagnostics_period=0.2) as node:
        yield node


@pytest.fixture(scope='module')
def client(process):
    client = Client(DOMAIN)
    client.listen('diagnostics')
    client.transforms = []
    client.node.create_subscription(TFMessage, '/tf', client.transforms.append, 10)
    yield client
    client.close()


@pytest.fixture
def tracker(client):
    """Give an active node without objects, which knows nothing of cameras."""
    client.unconfigure()
    values = {
        'space.target': '',
        'space.publish_tf': True,
        'space.rectified': False,
        'space.depth_tolerance': 0.0,
    }
    assert client.set(**values) == [''] * 4
    assert client.change('configure')
    names = ('mask', 'tracks', 'detections', 'detections_3d', 'pose', 'bearing', 'markers')
    client.listen(*(name for name in names if name not in client.subscriptions))
    for kept in (client.transforms, *(client.messages[name] for name in names)):
        kept.clear()
    assert client.change('activate')
    return client


def info(header, **changes):
    fx, (cx, cy) = FOCAL, CENTRE
    values = {
        'width': 128,
        'height': 96,
        'k': [fx, 0.0, cx, 0.0, fx, cy, 0.0, 0.0, 1.0],
        'p': [fx, 0.0, cx, 0.0, 0.0, fx, cy, 0.0, 0.0, 0.0, 1.0, 0.0],
        **changes,
    }
    return CameraInfo(header=header, **values)


def depths(near=1.5):
    """Depth of the scene: the cup at ``near``, the box at 2 m, a wall at 4 m."""
    image = np.full(FRAME.shape[:2], 4.0, np.float32)
    for (x, y, side), depth in ((CUP, near), (BOX, 2.0)):
        image[y : y + side, x : x + side] = depth
    return image


def depth_image(depth, header, encoding='32FC1'):
    message = conversions.labels_to_image(np.zeros(depth.shape, np.uint16), header)
    message.encoding = encoding
    values = depth.astype('<f4' if encoding == '32FC1' else '<u2')
    message.step = values.strides[0]
    message.data = values.tobytes()
    return message


def show(tracker, frame=FRAME, depth=None, when=None, camera=True, **changes):
    """Publish camera_info, depth and an image of one stamp; wait for the tracks; give them."""
    header = tracker.header(when)
    if camera:
        tracker.send(info(header, **changes), '/camera_info')
    if depth is not None:
        tracker.send(depth_image(depth, header), '/depth')
    tracker.send(conversions.rgb_to_image(frame, header))
    return tracker.result(header, 'tracks')


def seed(tracker, *names):
    tracks = show(tracker)
    squares = {'cup': CUP, 'box': BOX}
    answer = tracker.ask_seed(
        square_mask(*(squares[name.partition(' ')[0]] for name in names)), tracks.header, names
    )
    assert answer.success, answer.message
    return list(answer.object_ids)


def places(tracker, tracks):
    """Wait for the places of a frame, by id."""
    array = tracker.result(tracks, 'detections_3d')
    return {int(item.id): item for item in array.detections}


def poses(tracker, tracks):
    """Give the poses of a frame, after its places have come: there is none or one."""
    places(tracker, tracks)
    time.sleep(0.15)  # bearing and pose are published right after them
    return [item for item in tracker.messages['pose'] if item.header.stamp == tracks.header.stamp]


def at(point):
    return np.array([point.x, point.y, point.z])


def test_places_of_a_frame(tracker):
    (cup, box) = seed(tracker, 'cup', 'box')
    tracks = show(tracker, depth=depths())
    found = places(tracker, tracks)
    assert set(found) == {cup, box}
    true = np.array([(27.5 - CENTRE[0]) / FOCAL, (27.5 - CENTRE[1]) / FOCAL, 1.0]) * 1.5
    result = found[cup].results[0]
    np.testing.assert_allclose(at(result.pose.pose.position), true, atol=0.03)
    assert found[cup].bbox.size.x == pytest.approx(24 / FOCAL * 1.5, rel=0.25)
    covariance = np.array(result.pose.covariance).reshape(6, 6)
    assert 0 < covariance[2, 2] < 0.01 < 1e5 < covariance[3, 3]  # no orientation is measured
    assert result.hypothesis.class_id == str(cup)
    # a pose of the first object; image stamp and frame
    (pose,) = poses(tracker, tracks)
    assert pose.header == tracks.header and pose.header.frame_id == 'test_camera'
    np.testing.assert_allclose(at(pose.pose.position), true, atol=0.03)
    bearing = tracker.result(tracks, 'bearing')
    np.testing.assert_allclose(at(bearing.vector), true / np.linalg.norm(true), atol=0.02)
    # the 2D detection has it too, the markers show it, TF has it
    flat = {int(item.id): item for item in tracker.result(tracks, 'detections').detections}
    np.testing.assert_allclose(at(flat[cup].results[0].pose.pose.position), true, atol=0.03)
    (shown,) = (
        array.markers
        for array in tracker.messages['markers']
        if array.markers[0].header.stamp == tracks.header.stamp
    )
    texts = [item.text for item in shown if item.text]
    assert texts[0].startswith('cup: 1.') and texts[1].startswith('box: 2.')
    frames = [
        item
        for message in tracker.transforms
        for item in message.transforms
        if item.header.stamp == tracks.header.stamp
    ]
    assert {item.child_frame_id for item in frames} == {f'object_{cup}', f'object_{box}'}


def test_the_pose_is_reliable_with_depth_one_and_silent_while_the_object_is_not_seen(tracker):
    seed(tracker, 'cup', 'box')
    (endpoint,) = tracker.node.get_publishers_info_by_topic('/tracker/pose')
    profile = endpoint.qos_profile
    assert profile.reliability == ReliabilityPolicy.RELIABLE
    assert profile.durability == DurabilityPolicy.VOLATILE
    (pose,) = poses(tracker, show(tracker, depth=depths()))
    assert pose
    states, gone = set(), []
    for _ in range(12):  # occluded first, then lost
        tracks = show(tracker, GONE, depth=depths(4.0))
        cup = tracks.tracks[0]
        states.add(cup.state)
        assert cup.name == 'cup' and cup.state != 1
        assert places(tracker, tracks).keys() == {tracks.tracks[1].id}
        gone.append(tracks.header.stamp)
    assert states == {2, 3}
    for _ in range(10):
        tracks = show(tracker, depth=depths())
        if tracks.tracks[0].state == 1:
            break
    assert poses(tracker, tracks)  # it is back
    told = [item.header.stamp for name in ('pose', 'bearing') for item in tracker.messages[name]]
    assert tracks.header.stamp in told and not [stamp for stamp in gone if stamp in told]


def test_what_is_far_too_small_for_the_object_is_not_told_until_a_person_says_it_is(tracker):
    (cup,) = seed(tracker, 'cup')
    assert poses(tracker, show(tracker, depth=depths()))
    for _ in range(3):
        tracks = show(tracker, depth=depths(0.5))  # it looks as large, and is much nearer
        assert tracks.tracks[0].state == 1
        assert places(tracker, tracks) == {} and not poses(tracker, tracks)
    bearings = [item.header.stamp for item in tracker.messages['bearing']]
    assert tracks.header.stamp not in bearings
    words = 'only a small part of object'
    tracker.diagnostics(lambda values: 'target' in values and words in values['message'])
    assert not poses(tracker, show(tracker, depth=depths()))  # as large as it was: once
    assert poses(tracker, show(tracker, depth=depths()))
    tracks = show(tracker, depth=depths(0.5))
    answer = tracker.ask_seed(square_mask(CUP), tracks.header, ['cup'], object_ids=[cup])
    assert answer.success, answer.message
    (pose,) = poses(tracker, show(tracker, depth=depths(0.5)))
    assert pose.pose.position.z == pytest.approx(0.5, abs=0.02)


def test_without_depth_there_is_a_bearing_and_with_a_known_size_a_distance(tracker):
    (cup,) = seed(tracker, 'cup')
    tracks = show(tracker)
    found = places(tracker, tracks)[cup].results[0].pose
    covariance = np.array(found.covariance).reshape(6, 6)[:3, :3]
    way = at(found.pose.position)
    assert np.linalg.norm(way) == pytest.approx(1.0)
    assert way @ covariance @ way > 1e5  # not known along the bearing
    across = np.cross(way, [0, 1, 0]) / np.linalg.norm(np.cross(way, [0, 1, 0]))
    assert across @ covariance @ across < 0.1
    assert not poses(tracker, tracks) and tracker.result(tracks, 'bearing')
    assert tracker.set(**{'space.sizes': ['cup=0.36']}) == ['']
    (pose,) = poses(tracker, show(tracker))
    assert np.linalg.norm(at(pose.pose.position)) == pytest.approx(1.5 * 1.09, rel=0.12)
    (reason,) = tracker.set(**{'space.sizes': ['cup']})
    assert 'NAME=METRES' in reason
    assert tracker.set(**{'space.sizes': []}) == ['']
    assert not poses(tracker, show(tracker))


def test_late_depth_delays_places_and_no_masks(tracker):
    (cup,) = seed(tracker, 'cup')
    places(tracker, show(tracker, depth=depths()))
    header = tracker.header()
    tracker.send(conversions.rgb_to_image(FRAME, header))
    tracker.result(header, 'mask')  # without its depth
    tracks = tracker.result(header, 'tracks')
    assert not [m for m in tracker.messages['detections_3d'] if m.header.stamp == header.stamp]
    tracker.send(depth_image(depths(), header), '/depth')
    assert places(tracker, tracks)[cup].bbox.center.position.z == pytest.approx(1.5, abs=0.01)
    # one that never comes: told without when the next frame is there
    header = tracker.header()
    tracker.send(conversions.rgb_to_image(FRAME, header))
    tracks = tracker.result(header, 'tracks')
    places(tracker, show(tracker, depth=depths()))
    assert np.linalg.norm(at(places(tracker, tracks)[cup].bbox.center.position)) == pytest.approx(
        1
    )


def test_depth_of_another_rate_is_paired_within_half_a_frame(tracker):
    (cup,) = seed(tracker, 'cup')
    for _ in range(3):
        places(tracker, show(tracker, depth=depths()))
    for off, near in ((0.03, True), (-0.03, True), (0.08, False), (-0.08, False)):
        header = tracker.header()
        now = stamp.nanoseconds(header.stamp)
        shifted = Header(stamp=stamp.message(now + int(off * 1e9)), frame_id=header.frame_id)
        tracker.send(depth_image(depths(), shifted), '/depth')
        tracker.send(conversions.rgb_to_image(FRAME, header))
        tracks = tracker.result(header, 'tracks')
        later = Header(stamp=stamp.message(now + 10**8), frame_id=header.frame_id)
        tracker.send(depth_image(depths(3.0), later), '/depth')
        z = places(tracker, tracks)[cup].bbox.center.position.z
        assert (z == pytest.approx(1.5, abs=0.01)) == near, off
        tracker.header()


def broken(tracker, what):
    """Publish a frame with something wrong; give its tracks."""
    header = tracker.header()
    camera, depth, image = info(header), depths(), conversions.rgb_to_image(FRAME, header)
    message = depth_image(depth, header)
    other = Header(stamp=header.stamp, frame_id='elsewhere')
    if what == 'zero K':
        camera = info(header, k=[0.0] * 9)
    elif what == 'frame of camera_info':
        camera = info(other)
    elif what == 'size of camera_info':
        camera = info(header, width=640, height=480)
    elif what == 'NaN in K':
        camera = info(header, k=[float('nan')] * 9)
    elif what == 'unknown distortion':
        camera = info(header, d=[0.1] * 5, distortion_model='magic')
    elif what == 'size of depth':
        message = depth_image(depth[::2, ::2], header)
    elif what == 'frame of depth':
        message = depth_image(depth, other)
    elif what == 'encoding of depth':
        message.encoding = 'mono8'
    elif what == 'truncated depth':
        message.data = message.data[:1000]
    elif what == 'millimetres as metres':
        message = depth_image(1000 * depth, header)
    elif what == 'NaN everywhere':
        message = depth_image(np.full_like(depth, np.nan), header)
    tracker.send(camera, '/camera_info')
    tracker.send(message, '/depth')
    tracker.send(image)
    return tracker.result(header, 'tracks')


@pytest.mark.parametrize(
    ('what', 'words'),
    [
        ('zero K', 'all zero'),
        ('frame of camera_info', "frame_id 'elsewhere'"),
        ('size of camera_info', '640x480'),
        ('NaN in K', 'not finite'),
        ('unknown distortion', "'magic'"),
        ('size of depth', '64x48'),
        ('frame of depth', "frame_id 'elsewhere'"),
        ('encoding of depth', "'mono8'"),
        ('truncated depth', 'truncated'),
        ('millimetres as metres', 'space.depth_scale'),
        ('NaN everywhere', '0% of object'),
    ],
)
def test_bad_input_is_named_no_pose_is_told_and_masks_go_on(tracker, what, words):
    (cup,) = seed(tracker, 'cup')
    tracks = broken(tracker, what)
    assert tracker.result(tracks, 'mask')
    assert [item.state for item in tracks.tracks] == [1]
    status, _ = tracker.diagnostics(lambda v: 'target' in v and words in v['message'])
    assert status.name == 'tracker: space' and status.level == b'\x01'
    found = places(tracker, tracks)
    assert cup not in found or np.linalg.norm(
        at(found[cup].bbox.center.position)
    ) == pytest.approx(1)
    assert not poses(tracker, tracks)


def test_no_camera_info_future_stamps_and_frozen_depth(tracker):
    tracks = show(tracker, camera=False)
    tracker.ask_seed(square_mask(CUP), tracks.header, ['cup'])
    show(tracker, depth=depths(), camera=False)
    tracker.diagnostics(
        lambda v: 'target' in v and 'no camera_info on /camera_info' in v['message']
    )
    assert not tracker.messages['pose'] and not tracker.messages['detections_3d']
    # frozen: the same bits while the images change
    random = np.random.default_rng(0)
    for number in range(18):
        noise = random.integers(-6, 7, FRAME.shape)
        frame = np.clip(FRAME + noise, 0, 255).astype(np.uint8)
        if number == 9:  # noise is no change
            assert poses(tracker, tracks)
        if number > 9:
            frame[80:] = 20 * (number % 10)
        tracks = show(tracker, frame, depth=depths())
    tracker.diagnostics(lambda v: 'target' in v and 'frozen' in v['causes'])
    assert not poses(tracker, tracks)
    tracks = show(tracker, depth=depths(1.4))
    assert poses(tracker, tracks)
    # in the future
    ahead = tracker.node.get_clock().now().nanoseconds + 10**11
    tracks = show(tracker, depth=depths(), when=ahead)
    tracker.diagnostics(lambda v: 'target' in v and 'in the future' in v['causes'])
    places(tracker, tracks)
    assert not [m for m in tracker.messages['pose'] if m.header.stamp == tracks.header.stamp]


def test_the_target_is_chosen_at_run_time_and_nothing_takes_its_place(tracker):
    cup, box = seed(tracker, 'cup', 'box')

    def followed():
        found = poses(tracker, show(tracker, depth=depths()))
        return [round(item.pose.position.z, 1) for item in found]

    assert followed() == [1.5]  # the first
    for wish, z in (('box', 2.0), (str(cup), 1.5), (str(box), 2.0)):
        assert tracker.set(**{'space.target': wish}) == ['']
        assert followed() == [z]
    assert tracker.ask_remove(box).success
    assert followed() == []
    tracker.diagnostics(lambda v: 'target' in v and f"no object '{box}'" in v['causes'])
    assert tracker.set(**{'space.target': ''}) == ['']
    assert followed() == [1.5]
    (other,) = seed(tracker, 'box too')
    assert tracker.ask_remove(cup).success
    assert followed() == []  # not the other one
    tracker.diagnostics(lambda v: 'target' in v and 'has been removed' in v['causes'])
    assert tracker.set(**{'space.target': 'box too'}) == ['']
    assert followed() == [2.0] and other > box
