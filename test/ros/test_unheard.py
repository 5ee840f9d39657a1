# SPDX-License-Identifier: Apache-2.0
"""A camera the node cannot hear is named in the diagnostics, with what to do about it."""

from pathlib import Path

from harness import Client, NodeProcess, ROOT
import pytest
from rclpy.qos import QoSProfile, ReliabilityPolicy
from scenes import RED, scene
from security_policy import read, used, with_parameters
from sensor_msgs.msg import CompressedImage, Image

from drift_ros.ros import conversions

DOMAIN = 77
PROGRAM = Path(__file__).with_name('weightless_tracker.py')
FRAME = scene((16, 16, 24, RED))


@pytest.fixture(scope='module')
def client(tmp_path_factory):
    node = NodeProcess(
        PROGRAM,
        DOMAIN,
        tmp_path_factory.mktemp('unheard') / 'log',
        parameters={'diagnostics_period': 0.2},
    )
    client = Client(DOMAIN)
    client.start()
    client.listen('mask', 'diagnostics')
    yield client
    client.close()
    code, _ = node.interrupt()
    assert code == 0 and 'Traceback' not in node.output, node.output


def test_another_type(client):
    publisher = client.node.create_publisher(CompressedImage, '/image', 1)
    status, _ = client.diagnostics(lambda v: 'CompressedImage' in v['message'])
    assert status.level == b'\x02' and 'image_transport compressed' in status.message
    client.node.destroy_publisher(publisher)
    client.diagnostics(lambda v: v['level'] == 0)


def test_less_quality_of_service_than_is_asked_for(client):
    assert client.change('deactivate')
    assert client.set(replay=True) == ['']
    assert client.change('activate')
    careless = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
    publisher = client.node.create_publisher(Image, '/image', careless)
    status, _ = client.diagnostics(lambda v: 'offers less' in v['message'])
    assert status.level == b'\x02' and 'set replay to false' in status.message
    client.node.destroy_publisher(publisher)
    # one that fits is heard
    client.result(client.publish(FRAME))
    client.diagnostics(lambda v: v['level'] == 0)


@pytest.mark.parametrize('transport', ['raw'])
def test_a_compressed_topic_by_its_own_name(tmp_path, transport):
    """What is meant by image:=/cam/compressed, whatever image_transport says."""
    remap = ['--ros-args', '-r', 'image:=/cam/compressed', '-r', '__ns:=/other']
    node = NodeProcess(
        PROGRAM, DOMAIN, tmp_path / 'log', remap, parameters={'image_transport': transport}
    )
    client = Client(DOMAIN, tracker='other/tracker')
    try:
        client.start()
        client.listen('mask')
        header = client.header()
        client.send(conversions.rgb_to_compressed(FRAME, header), '/cam/compressed')
        client.result(header)
    finally:
        client.close()
        node.close()


def test_the_security_policy_allows_what_the_node_does_and_no_more(client):
    """Compared with the graph: every topic, service and action of a node that works."""
    allowed = read(ROOT / 'config' / 'sros2_policy.xml')
    assert all(len(names) == len(set(names)) for names in allowed.values())
    found = with_parameters(used(client.node))
    assert {right: set(names) for right, names in allowed.items()} == found
