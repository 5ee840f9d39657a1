# SPDX-License-Identifier: Apache-2.0
"""The RViz file and the Foxglove layout show topics and fields that exist."""

import json
from pathlib import Path
import re

from rosbags.typesys import get_typestore, Stores
import yaml

from drift_ros.evaluation.bag_files import IMAGE_TOPIC
from drift_ros.evaluation.result_bag import OUTPUTS, TRACKS
from drift_ros.ros.messages import register_type

ROOT = Path(__file__).resolve().parents[2]
# what the node publishes, read without ROS
PUBLISHED = dict(
    re.findall(
        r"'(\w+)': \((Image|Detection2DArray|TrackArray|LabelInfo), ",
        (ROOT / 'drift_ros' / 'nodes' / 'tracker' / 'outputs.py').read_text(),
    )
)


def type_of(field):
    """Name the type of a field, or that of its elements."""
    kind, what = field
    if kind.name in ('ARRAY', 'SEQUENCE'):
        return type_of(what[0])
    return what if kind.name == 'NAME' else what[0]


def test_result_bags_have_the_node_s_topics():
    assert len(PUBLISHED) >= 6
    for name, kind in OUTPUTS.items():
        assert kind.endswith(f'/{PUBLISHED[name]}')


def test_rviz():
    data = yaml.safe_load((ROOT / 'config' / 'drift_ros.rviz').read_text())
    displays = data['Visualization Manager']['Displays']
    topics = {item['Topic']['Value'] for item in displays}
    assert topics == {IMAGE_TOPIC, '/tracker/overlay', '/tracker/mask'}
    for topic in topics - {IMAGE_TOPIC}:
        assert PUBLISHED[topic.rpartition('/')[2]] == 'Image'


def test_foxglove():
    data = json.loads((ROOT / 'config' / 'foxglove_layout.json').read_text())
    panels = data['configById']
    used = set(re.findall(r'"(?:first|second)": "([^"]+)"', json.dumps(data['layout'])))
    assert used == set(panels), 'every panel is laid out, and every place filled'
    text = json.dumps(panels)
    names = set(re.findall(r'/tracker/(\w+)', text))
    assert names == {'overlay', 'detections', 'tracks'} and names <= set(PUBLISHED)
    assert f'"{IMAGE_TOPIC}"' in text
    store = get_typestore(Stores.ROS2_KILTED)
    register_type(store, TRACKS)
    register_type(store, OUTPUTS['detections'])
    for name, path in re.findall(r'/tracker/(tracks|detections)\.([\w.\[\]:]+)', text):
        kind = OUTPUTS[name]
        for part in path.rstrip('.').split('.'):
            kind = type_of(dict(store.fielddefs[kind][1])[part.partition('[')[0]])
