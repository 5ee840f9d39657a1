# SPDX-License-Identifier: Apache-2.0
"""What follow.launch.py starts, where ROS's launch packages are importable."""

import importlib.util
from pathlib import Path

import launch_sources
import pytest

WHICH, REASON = launch_sources.find()
if not WHICH:
    pytest.skip(REASON, allow_module_level=True)

ROOT = Path(__file__).resolve().parents[2]


def start(**arguments):
    """Execute the file; return its nodes by name, and what it says."""
    from launch import LaunchContext
    from launch.actions import DeclareLaunchArgument, LogInfo, OpaqueFunction
    from launch_ros.actions import Node

    path = ROOT / 'launch' / 'follow.launch.py'
    spec = importlib.util.spec_from_file_location('follow_launch', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    context, done = LaunchContext(), []
    context.launch_configurations.update(arguments)
    for entity in module.generate_launch_description().entities:
        if isinstance(entity, DeclareLaunchArgument):
            entity.visit(context)
        elif isinstance(entity, OpaqueFunction):
            done += entity.execute(context)
    nodes = {item.node_executable: item for item in done if isinstance(item, Node)}
    said = [
        ''.join(part.perform(context) for part in item.msg)
        for item in done
        if isinstance(item, LogInfo)
    ]
    return nodes, said


def test_it_says_how_to_follow():
    nodes, (said,) = start(namespace='robot1')
    assert not nodes
    assert '/robot1/follow_object nav2_msgs/action/FollowObject' in said
    assert "{pose_topic: '/robot1/tracker/pose'}" in said
    nodes, (said,) = start(controller='follower')
    assert set(nodes) == {'follower'} and ' /follower/enable std_srvs/srv/SetBool' in said


@pytest.mark.parametrize('controller', ['nav2', 'follower'])
def test_it_sets_the_robot_off_when_asked(controller):
    nodes, said = start(controller=controller, follow='true')
    assert 'follow_goal' in nodes and ('follower' in nodes) == (controller == 'follower')
    assert not said
