# SPDX-License-Identifier: Apache-2.0
"""
The launch file, executed: what it declares, starts, and gives to the nodes.

By the launch packages of ROS where they are installed or their sources are named (see
``launch_sources.py``), and always by a stand-in, so that it is executed wherever tests run.
"""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import launch_sources
import launch_stand_in
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / 'launch' / 'tracker.launch.py'
WHICH, REASON = launch_sources.find()


def load():
    spec = importlib.util.spec_from_file_location('tracker_launch', FILE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.generate_launch_description()


def by_stand_in(**arguments):
    """Execute the file by the stand-in; return what came of it."""
    with launch_stand_in.installed():
        description = load()
    context, done = launch_stand_in.execute(description, arguments)
    declared = [
        item
        for item in description.entities
        if isinstance(item, launch_stand_in.DeclareLaunchArgument)
    ]
    nodes = {}
    for node in done:
        if isinstance(node, launch_stand_in.Node):
            files, values = [], {}
            for item in node.parameters:
                if isinstance(item, dict):
                    for key, value in item.items():
                        # as launch_ros does: a text is read as YAML, unless its type is fixed
                        if isinstance(value, launch_stand_in.ParameterValue):
                            values[key] = value.evaluate(context)
                        elif isinstance(value, list):  # of texts: stays one
                            values[key] = value
                        else:
                            text = launch_stand_in.perform(value, context)
                            values[key] = yaml.safe_load(text) if isinstance(text, str) else text
                else:
                    files.append(launch_stand_in.perform(item, context))
            nodes[node.name] = SimpleNamespace(
                executable=node.executable,
                namespace=launch_stand_in.perform(node.namespace, context),
                files=files,
                values=values,
                remappings={
                    launch_stand_in.perform(a, context): launch_stand_in.perform(b, context)
                    for a, b in node.remappings
                },
                arguments=[launch_stand_in.perform(item, context) for item in node.arguments],
                starts=node.condition is None or node.condition.evaluate(context),
            )
    handlers = [item for item in done if isinstance(item, launch_stand_in.RegisterEventHandler)]
    return SimpleNamespace(
        declared={
            item.name: (item.description, launch_stand_in.perform(item.default_value, context))
            for item in declared
        },
        environment=context.environment,
        nodes=nodes,
        handlers=[item.condition.evaluate(context) for item in handlers],
    )


def by_launch(**arguments):
    """Execute the file by ROS's packages; return the same."""
    from launch import LaunchContext
    from launch.actions import (
        DeclareLaunchArgument,
        OpaqueFunction,
        RegisterEventHandler,
        SetEnvironmentVariable,
    )
    from launch.utilities import normalize_to_list_of_substitutions, perform_substitutions
    from launch_ros.actions import Node

    description, context, done = load(), LaunchContext(), []
    context.launch_configurations.update(arguments)
    for entity in description.entities:
        if isinstance(entity, OpaqueFunction):
            done += entity.execute(context)
        elif isinstance(entity, (DeclareLaunchArgument, SetEnvironmentVariable)):
            entity.visit(context)
    nodes = {}
    for node in (item for item in done if isinstance(item, Node)):
        node._perform_substitutions(context)
        files, values = [], {}
        for path, is_file in node._Node__expanded_parameter_arguments or ():
            assert is_file
            content = yaml.full_load(Path(path).read_text())  # launch_ros writes tuples
            if Path(path).name.startswith('launch_params_'):
                (given,) = content.values()
                values.update(given['ros__parameters'])
            else:
                files.append(str(path))
        nodes[node._Node__node_name] = SimpleNamespace(
            executable=node.node_executable,
            namespace=node.expanded_node_namespace.strip('/').replace('None', ''),
            files=files,
            values=values,
            remappings=dict(node.expanded_remapping_rules or ()),
            arguments=[
                perform_substitutions(context, normalize_to_list_of_substitutions(part))
                for part in node._Node__arguments or ()
            ],
            starts=node.condition is None or node.condition.evaluate(context),
        )
    handlers = [item for item in done if isinstance(item, RegisterEventHandler)]
    return SimpleNamespace(
        declared={
            item.name: (item.description, perform_substitutions(context, item.default_value))
            for item in description.entities
            if isinstance(item, DeclareLaunchArgument)
        },
        environment=context.environment,
        nodes=nodes,
        handlers=[item.condition.evaluate(context) for item in handlers],
    )


@pytest.fixture(
    params=[
        pytest.param(by_stand_in, id='stand-in'),
        *([pytest.param(by_launch, id='ros')] if WHICH else ()),
    ]
)
def launched(request, monkeypatch):
    monkeypatch.delenv('ROS_DISTRO', raising=False)
    return request.param


def test_declared_arguments(launched):
    declared = launched().declared
    assert set(declared) == {
        'namespace',
        'use_sim_time',
        'params_file',
        'preset',
        'autostart',
        'log_level',
        'image',
        'images',
        'cameras',
        'depth',
        'camera_info',
        'target',
        'model',
        'device',
        'image_transport',
        'ui',
        'ui_host',
        'ui_port',
    }
    for description, default in declared.values():
        assert description
        assert default is not None, 'no argument is compulsory'


def test_the_page_is_served_when_asked_for(launched):
    assert not launched().nodes['web'].starts
    page = launched(ui='true', ui_port='0', ui_host='0.0.0.0').nodes['web']
    assert page.starts
    assert (page.values['host'], page.values['port']) == ('0.0.0.0', 0)


def test_default_parameter_file_exists(launched):
    (path,) = launched().nodes['tracker'].files
    assert yaml.safe_load(Path(path).read_text())['/**']['tracker']['ros__parameters']


@pytest.mark.parametrize(
    ('given', 'file'),
    [
        ('quality', 'quality.yaml'),
        ('quality.yaml', 'quality.yaml'),
        ('config/quality.yaml', 'quality.yaml'),
        ('config/sd15', 'sd15.yaml'),
        ('mine.yaml', None),
        ('./config/mine.yaml', None),
    ],
)
def test_parameter_files_by_their_names(launched, tmp_path, monkeypatch, given, file):
    """From any folder; what is there comes before what the package has."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'config').mkdir()
    for name in ('mine.yaml', 'config/mine.yaml'):
        (tmp_path / name).write_text('{}')
    expected = ROOT / 'config' / file if file else tmp_path / given
    (path,) = launched(params_file=given).nodes['tracker'].files
    assert Path(path).samefile(expected)


@pytest.mark.parametrize(
    'given', ['no.yaml', 'config/no.yaml', '/no/where.yaml', '', 'config', '../quality.yaml']
)
def test_parameter_files_that_do_not_exist(launched, tmp_path, monkeypatch, given):
    """A node that is given one would warn, and run on defaults."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Exception, match='(?s)does not exist .*quality.yaml'):
        launched(params_file=given)


def names_of(found):
    return [Path(path).name for path in found.nodes['tracker'].files]


def test_presets(launched, tmp_path):
    """They are above the defaults, and below what a person gives."""
    assert names_of(launched()) == ['tracker.yaml']
    for preset in ('fast', 'quality', 'sd15', 'sd21', 'sdxl'):
        assert names_of(launched(preset=preset)) == ['tracker.yaml', f'{preset}.yaml']
    (tmp_path / 'mine.yaml').write_text('{}')
    given = launched(preset='sd21', params_file=str(tmp_path / 'mine.yaml'))
    assert names_of(given) == ['sd21.yaml', 'mine.yaml']


def test_only_given_arguments_override_parameters(launched):
    assert launched(device='cpu').nodes['tracker'].values == {
        'device': 'cpu',
        'use_sim_time': False,
    }


@pytest.mark.parametrize(
    'text', ['0001', 'on', 'take #2', '0', '1e3', 'null', '~', '[a]', 'a: b', "it's", '3.0']
)
def test_texts_stay_texts_whatever_they_look_like(launched, text):
    tracker = launched(model=text, device=text).nodes['tracker']
    assert tracker.values == {'model': text, 'device': text, 'use_sim_time': False}


@pytest.mark.parametrize('image', ['/cam/image_raw', '/cam/compressed'])
def test_the_image_topic_is_remapped(launched, image):
    assert launched(image=image).nodes['tracker'].remappings['image'] == image


@pytest.mark.parametrize(
    ('given', 'cameras', 'topics'),
    [
        ({'images': '[/front/image_raw, /rear/image_raw]'}, ['front', 'rear'], None),
        ({'images': '/arm/rgb/compressed'}, ['arm'], ['/arm/rgb/compressed']),
        ({'cameras': '[a, b]'}, ['a', 'b'], ['a/image', 'b/image']),
        ({'cameras': '[a, b]', 'images': '[/x, /y/z]'}, ['a', 'b'], ['/x', '/y/z']),
    ],
)
def test_several_cameras(launched, given, cameras, topics):
    nodes = launched(ui='true', **given).nodes
    tracker = nodes['tracker']
    assert list(tracker.values['cameras']) == cameras
    topics = topics or [f'/{name}/image_raw' for name in cameras]
    for name, topic in zip(cameras, topics):
        assert tracker.remappings[f'{name}/image'] == topic
        assert tracker.remappings[f'{name}/image/compressed'] == f'{topic}/compressed'
    info = topics[0].removesuffix('/compressed').rpartition('/')[0] + '/camera_info'
    assert tracker.remappings[f'{cameras[0]}/camera_info'].strip('/') == info.strip('/')
    assert 'image' not in tracker.remappings
    assert nodes['web'].values['tracker'] == f'tracker/{cameras[0]}'


@pytest.mark.parametrize(
    'given',
    [
        {'cameras': '[a]', 'images': '[/x, /y]'},
        {'cameras': '[a, a]'},
        {'images': '[/left/image, /left/rgb]'},
        {'images': '{a: b}'},
        {'images': '[1, 2]'},
    ],
)
def test_cameras_that_cannot_be_told_apart(launched, given):
    with pytest.raises(Exception, match='cameras:=|images:='):
        launched(**given)


@pytest.mark.parametrize('autostart', ['true', 'false'])
def test_autostart(launched, autostart):
    assert launched(autostart=autostart).handlers == [autostart == 'true'] * 2


@pytest.mark.parametrize('shown', ['true', 'false'])
def test_page(launched, shown):
    page = launched(ui=shown, ui_host='0', ui_port='9000').nodes['web']
    assert page.starts is (shown == 'true')
    assert (page.values['host'], page.values['port']) == ('0', 9000)


def test_namespace_and_log_level(launched):
    tracker = launched(namespace='robot1', log_level='debug').nodes['tracker']
    assert tracker.namespace.strip('/') == 'robot1'
    assert tracker.arguments == ['--ros-args', '--log-level', 'debug']
    assert tracker.executable == 'tracker'


@pytest.mark.parametrize('argument', ['autostart', 'use_sim_time', 'image_transport', 'ui'])
def test_arguments_have_choices(launched, argument):
    with pytest.raises(RuntimeError, match=argument):
        launched(**{argument: 'perhaps'})


def test_profile_is_set_unless_the_user_has_one(launched, monkeypatch):
    variable = 'FASTDDS_DEFAULT_PROFILES_FILE'
    monkeypatch.delenv(variable, raising=False)
    monkeypatch.delenv('FASTRTPS_DEFAULT_PROFILES_FILE', raising=False)
    assert Path(launched().environment[variable]).is_file()
    monkeypatch.setenv(variable, '/my/profile.xml')
    assert launched().environment[variable] == '/my/profile.xml'
    monkeypatch.setenv('ROS_DISTRO', 'jazzy')
    assert Path(launched().environment['FASTRTPS_DEFAULT_PROFILES_FILE']).is_file()


def test_the_stand_in_knows_what_ros_has():
    """Each name the stand-in offers is one of the real packages."""
    if not WHICH:
        pytest.skip(REASON)
    for module, names in launch_stand_in._MODULES.items():
        real = importlib.import_module(module)
        for name in names:
            assert hasattr(real, name), f'{module} has no {name}'
