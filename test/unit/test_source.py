# SPDX-License-Identifier: Apache-2.0
"""Which topic images are taken from, who cannot be heard on it, and how parameters are written."""

from types import SimpleNamespace

import pytest
import yaml

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy  # noqa: E402
from sensor_msgs.msg import CompressedImage, Image  # noqa: E402

from drift_ros.nodes.tracker.source import choose, unheard  # noqa: E402
from drift_ros.ros import qos  # noqa: E402
from drift_ros.ros.parameters import NodeConfig, parameters  # noqa: E402
from drift_ros.ros.processes import parameter_text  # noqa: E402

BEST_EFFORT = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
RELIABLE = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


@pytest.mark.parametrize(
    ('base', 'transport', 'topic', 'kind'),
    [
        ('/cam', 'raw', '/cam', Image),
        ('/cam', 'compressed', '/cam/compressed', CompressedImage),
        ('/cam/compressed', 'compressed', '/cam/compressed', CompressedImage),
        ('/cam/compressed', 'raw', '/cam/compressed', CompressedImage),
        ('/cam/image_raw/compressed', 'raw', '/cam/image_raw/compressed', CompressedImage),
        ('/compressed_cam', 'raw', '/compressed_cam', Image),
        ('/compressed_cam', 'compressed', '/compressed_cam/compressed', CompressedImage),
        ('/compressedDepth', 'raw', '/compressedDepth', Image),
    ],
)
def test_the_topic(base, transport, topic, kind):
    assert choose(base, transport) == (topic, kind)


def publisher(kind, profile=RELIABLE, name='cam'):
    return SimpleNamespace(
        node_name=name,
        node_namespace='/',
        topic_type=f'{kind if isinstance(kind, str) else "sensor_msgs/msg/" + kind.__name__}',
        qos_profile=profile,
    )


@pytest.mark.parametrize(
    ('publishers', 'kind', 'profile', 'words', 'none'),
    [
        ([], Image, qos.LIVE_IMAGES, '', False),
        ([publisher(Image)], Image, qos.LIVE_IMAGES, '', False),
        ([publisher(Image, BEST_EFFORT)], Image, qos.LIVE_IMAGES, '', False),
        ([publisher(CompressedImage)], CompressedImage, qos.LIVE_IMAGES, '', False),
        (
            [publisher(CompressedImage)],
            Image,
            qos.LIVE_IMAGES,
            '/cam publishes sensor_msgs/msg/CompressedImage on /t.*image_transport compressed',
            True,
        ),
        (
            [publisher(Image)],
            CompressedImage,
            qos.LIVE_IMAGES,
            'publishes sensor_msgs/msg/Image.*set image_transport to raw',
            True,
        ),
        (
            [publisher('theora_image_transport/msg/Packet')],
            Image,
            qos.LIVE_IMAGES,
            'publishes theora_image_transport/msg/Packet.*ros2 topic list',
            True,
        ),
        (
            [publisher(Image, BEST_EFFORT)],
            Image,
            qos.ALL_IMAGES,
            '/cam offers less on /t .*best effort.*reliably, or set replay to false',
            True,
        ),
        (
            [publisher(Image, BEST_EFFORT, 'one'), publisher(Image, RELIABLE, 'two')],
            Image,
            qos.ALL_IMAGES,
            '/one offers less',
            False,
        ),
        (
            [publisher(CompressedImage, name='one'), publisher(Image, BEST_EFFORT, 'two')],
            Image,
            qos.ALL_IMAGES,
            '/one publishes.*; /two offers less',
            True,
        ),
    ],
)
def test_publishers_that_are_not_heard(publishers, kind, profile, words, none):
    import re

    text, nobody = unheard(publishers, '/t', kind, profile)
    assert re.search(words, text) and bool(text) == bool(words)
    assert nobody is none


TEXTS = [*'0001|on|take #2|0|1e3|null|~|[a]|a: b|"|é|it|'.split('|'), "it's", '\\']


@pytest.mark.parametrize(
    'value', [*TEXTS, True, False, 0, -3, 1.0, 0.5, 1e-9, ['0001', 'on'], [1, 2], [0.5, 2.0]]
)
def test_parameters_arrive_as_they_are(value):
    """Through the parser of ROS, as on a command line; and that is YAML."""
    text = parameter_text(value)
    if not isinstance(value, float):
        assert yaml.safe_load(text) == value
    context = rclpy.Context()
    rclpy.init(args=['--ros-args', '-p', f'key:={text}'], context=context)
    try:
        node = rclpy.create_node(
            'reads', context=context, automatically_declare_parameters_from_overrides=True
        )
        found = node.get_parameter('key').value
        node.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    if isinstance(value, list):
        found = list(found)
    assert found == value and type(found) is type(value)


def test_a_number_in_the_place_of_a_text_is_told_to_be_quoted():
    table = {item.name: item for item in parameters(NodeConfig)}
    for value in (1, True, 0.5):
        reason = table['model'].check(value)
        assert f'model is {value!r}' in reason and 'quote it' in reason
    assert table['model'].check('0001') == ''
    assert 'quote' not in table['buffer_frames'].check('three')
