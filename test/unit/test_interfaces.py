# SPDX-License-Identifier: Apache-2.0
"""The installed interfaces are the ones other ROS systems know."""

import json
import os
from pathlib import Path
import sys

import pytest
import rclpy
from rclpy.context import Context

# RIHS01 type hashes of the official vision_msgs (branch ros2, 4.1.1), computed from its own
# definitions. Two ROS 2 nodes talk to each other about a type only if these agree.
OFFICIAL = {
    'BoundingBox2D': '008eacbb0cf8f26e83795547bed013eec3675485ef386ec056d80eaaf1c1ce2f',
    'BoundingBox3D': 'bbb73a65c163d7f9bb29009c7bde9f7faa576bd2d23299c4511d19230dab4698',
    'Detection2D': '0d12b69df5c593b3455b7346fac8205437a7d4bcb09b9e0e0b2dde787ded38ea',
    'Detection2DArray': '214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968',
    'Detection3D': 'ddd703be132ab0b69d33121f1bb034132bfbb3b0ac5f9fb1516005ba1c8a265b',
    'Detection3DArray': '793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018',
    'LabelInfo': '3d37df4015cdf660cc851c51897f2acd957e1ca6205ba0a99aebffb9406b0783',
    'ObjectHypothesis': '51da43cec11c01957a64d1e05a24acd18aae7745ec30b74348ad5f6d634f7f90',
    'ObjectHypothesisWithPose': '41c12344c0396c48b81df12467c192d99b2a0eb1463c5c37194e4223251c80bc',
    'Point2D': 'eab0e83f44ab4de92ceaf76dd7d0e7638f2bdd1d16ffbe16c7a136c48e407247',
    'Pose2D': 'b0b5d1d7b4c20dd4fcde3ed1d4b289a919290572007d67a97043814db25d3648',
    'VisionClass': '1e4a11f0fed50b5623cb8ff26ca0e37952a48a9c074d16f804b44e9164c2037a',
}
ROOT = Path(__file__).resolve().parents[2]


# The same of tf2_msgs and of nav2_msgs 1.5.0, whose action its following server serves.
OTHERS = {
    'tf2_msgs/msg/TFMessage': 'e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087',
    'nav2_msgs/action/FollowObject': (
        '4d6e71c4308e19ff8ab8d1a2f48ff27f8d1e24456280c3d0f716893f76b5494d'
    ),
    'nav2_msgs/action/FollowObject_SendGoal': (
        'be8d4b9e9009767046743b47297c12d1487359a022888b04a72781cf029244d9'
    ),
    'nav2_msgs/action/FollowObject_GetResult': (
        'c185b60e2fb1198b2d388eca8bb6502f324e58d1364cd883376043558e60f5a1'
    ),
    'nav2_msgs/action/FollowObject_FeedbackMessage': (
        '0711fd141e723cc523724763fff0657e02d5e5292415ef1b19780e89308e8a23'
    ),
}


def description(package, name, kind='msg'):
    """Return what the build wrote about a type (share/PACKAGE/KIND/NAME.json)."""
    prefixes = [sys.prefix, *os.environ['AMENT_PREFIX_PATH'].split(os.pathsep)]
    found = [
        path
        for prefix in prefixes
        if (path := Path(prefix) / 'share' / package / kind / f'{name}.json').is_file()
    ]
    assert found, f'{package}/{name} is not installed: make setup'
    return json.loads(found[0].read_text())


@pytest.mark.parametrize('name', OFFICIAL)
def test_vision_msgs_hash_is_official(name):
    hashes = {
        entry['type_name']: entry['hash_string']
        for entry in description('vision_msgs', name)['type_hashes']
    }
    assert hashes[f'vision_msgs/msg/{name}'] == f'RIHS01_{OFFICIAL[name]}'


@pytest.mark.parametrize('name', OTHERS)
def test_other_hashes_are_official(name):
    package, kind, leaf = name.split('/')
    found = description(package, leaf.partition('_')[0], kind)
    hashes = {entry['type_name']: entry['hash_string'] for entry in found['type_hashes']}
    assert hashes[name] == f'RIHS01_{OTHERS[name]}'


def test_every_message_of_the_stand_ins_is_checked():
    names = {path.stem for path in (ROOT / 'tools' / 'vision_msgs' / 'msg').glob('*.msg')}
    assert names == set(OFFICIAL)
    others = {
        path for path in (ROOT / 'tools').glob('*_msgs/*/*') if path.parts[-3] != 'vision_msgs'
    }
    assert {'/'.join(path.with_suffix('').parts[-3:]) for path in others} <= set(OTHERS)


def test_hash_announced_on_the_wire(monkeypatch):
    """What a publisher tells the graph is the official hash, so discovery will match."""
    from vision_msgs.msg import Detection2DArray

    monkeypatch.setenv('ROS_DOMAIN_ID', '17')
    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node('hash', context=context)
    try:
        node.create_publisher(Detection2DArray, 'detections', 1)
        (endpoint,) = node.get_publishers_info_by_topic('detections')
        assert bytes(endpoint.topic_type_hash.value).hex() == OFFICIAL['Detection2DArray']
    finally:
        node.destroy_node()
        rclpy.shutdown(context=context)


def test_states_have_the_engine_s_values():
    from drift_ros_msgs.msg import Track

    from drift_ros.engine.table import ObjectState

    assert {state.name: getattr(Track, state.name) for state in ObjectState} == {
        state.name: state.value for state in ObjectState
    }


@pytest.mark.parametrize(
    'path',
    sorted(
        path
        for kind in ('action', 'msg', 'srv')
        for path in (ROOT / 'drift_ros_msgs').glob(f'{kind}/*')
    ),
    ids=lambda path: path.name,
)
def test_every_field_is_commented(path):
    """A field has a comment in its line or right above it; so has each file as a whole."""
    lines = path.read_text().splitlines()
    assert lines[1].startswith('# '), 'what the interface is for comes first'
    for number, line in enumerate(lines):
        if line and line != '---' and not line.startswith('#'):
            assert '#' in line or lines[number - 1].startswith('#'), line
