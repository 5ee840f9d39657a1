# SPDX-License-Identifier: Apache-2.0
"""What the launch file declares; runs where ROS's launch packages are importable."""

import importlib.util
from pathlib import Path

import pytest
import yaml

pytest.importorskip('launch', exc_type=ImportError)
pytest.importorskip('launch_ros', exc_type=ImportError)
if not hasattr(pytest.importorskip('launch'), 'LaunchDescription'):
    # an empty namespace: the folder launch/ of this repository
    pytest.skip('the launch package of ROS is not installed', allow_module_level=True)

from launch import LaunchContext  # noqa: E402
from launch.actions import (  # noqa: E402
    DeclareLaunchArgument,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch_ros.actions import LifecycleNode  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def description():
    spec = importlib.util.spec_from_file_location(
        'tracker_launch', ROOT / 'launch' / 'tracker.launch.py'
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description()


@pytest.fixture
def context(monkeypatch):
    monkeypatch.delenv('ROS_DISTRO', raising=False)
    return LaunchContext()


def run(description, context, **arguments):
    """Execute the description; return the actions that start and manage the node."""
    context.launch_configurations.update(arguments)
    actions = []
    for entity in description.entities:
        if isinstance(entity, OpaqueFunction):
            actions += entity.execute(context)
        elif isinstance(entity, (DeclareLaunchArgument, SetEnvironmentVariable)):
            entity.visit(context)
    return actions


def test_declared_arguments(description):
    arguments = {
        item.name: item for item in description.entities if isinstance(item, DeclareLaunchArgument)
    }
    assert set(arguments) == {
        'namespace',
        'use_sim_time',
        'params_file',
        'autostart',
        'log_level',
        'image',
        'depth',
        'camera_info',
        'target',
        'model',
        'device',
        'image_transport',
    }
    for item in arguments.values():
        assert item.description
        assert item.default_value is not None, 'no argument is compulsory'


def test_default_parameter_file_exists(description, context):
    run(description, context)
    path = Path(context.launch_configurations['params_file'])
    assert yaml.safe_load(path.read_text())['/**']['tracker']['ros__parameters']


def test_only_given_arguments_override_parameters(description, context):
    node = next(
        item for item in run(description, context, device='cpu') if isinstance(item, LifecycleNode)
    )
    node._perform_substitutions(context)
    files = [Path(path) for path, is_file in node._Node__expanded_parameter_arguments if is_file]
    files = [path for path in files if path.name != 'tracker.yaml']
    (overrides,) = yaml.safe_load(files[0].read_text()).values()
    assert overrides['ros__parameters'] == {'device': 'cpu', 'use_sim_time': False}


@pytest.mark.parametrize('autostart', ['true', 'false'])
def test_autostart(description, context, autostart):
    actions = run(description, context, autostart=autostart)
    handlers = [item for item in actions if isinstance(item, RegisterEventHandler)]
    assert len(handlers) == 2
    assert all(item.condition.evaluate(context) is (autostart == 'true') for item in handlers)


def test_profile_is_set_unless_the_user_has_one(description, context, monkeypatch):
    monkeypatch.delenv('FASTDDS_DEFAULT_PROFILES_FILE', raising=False)
    run(description, context)
    assert Path(context.environment['FASTDDS_DEFAULT_PROFILES_FILE']).is_file()
    context.environment['FASTDDS_DEFAULT_PROFILES_FILE'] = '/my/profile.xml'
    run(description, context)
    assert context.environment['FASTDDS_DEFAULT_PROFILES_FILE'] == '/my/profile.xml'
