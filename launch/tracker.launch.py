# SPDX-License-Identifier: Apache-2.0
"""
Start the tracker node and bring it to its active state.

``ros2 launch drift_ros tracker.launch.py image:=/camera/image_raw``, with ``ui:=true`` to mark
objects in a browser (in the first camera of ``images:="[/front/image_raw, /rear/image_raw]"``).
"""

import os
from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.conditions import IfCondition
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from launch_ros.parameter_descriptions import ParameterValue
from lifecycle_msgs.msg import Transition
import yaml

# Installed as share/drift_ros/launch; in a checkout the same two folders lie side by side.
CONFIG = Path(__file__).parent.parent / 'config'

ARGUMENTS = (
    ('namespace', '', 'Namespace of the node, e.g. robot1.', None),
    ('use_sim_time', 'false', 'Take the time from /clock.', ('true', 'false')),
    (
        'params_file',
        str(CONFIG / 'tracker.yaml'),
        "Parameter file of the node: a path, or a name of this package's (quality.yaml).",
        None,
    ),
    (
        'preset',
        '',
        'Options that belong together, for a model or a purpose; params_file comes after it, if '
        'it is given.',
        ('', 'fast', 'quality', 'sd15', 'sd21', 'sdxl'),
    ),
    ('autostart', 'true', 'Configure and activate the node once it runs.', ('true', 'false')),
    (
        'log_level',
        'info',
        'Least severe messages to log.',
        ('debug', 'info', 'warn', 'error', 'fatal'),
    ),
    (
        'image',
        'image',
        'Topic of the camera images; one that ends in /compressed is read as such.',
        None,
    ),
    (
        'images',
        '',
        'Several cameras, as a list: "[/front/image_raw, /rear/image_raw]". In place of image.',
        None,
    ),
    (
        'cameras',
        '',
        'Their names, as a list. Empty: the names before the last one of their topics (front, '
        'rear).',
        None,
    ),
    ('depth', 'depth', 'Topic of depth images that are aligned with them.', None),
    ('camera_info', '', 'Topic of their calibration. Empty: camera_info beside image.', None),
    ('target', '', 'Name or id of the object of ~/pose. Empty: as in params_file.', None),
    ('model', '', 'Folder or hub id of a diffusers checkpoint. Empty: as in params_file.', None),
    ('device', '', 'auto, cpu, cuda or cuda:N. Empty: as in params_file.', None),
    (
        'image_transport',
        '',
        'raw, or compressed: images come from <image>/compressed. Empty: as in params_file.',
        ('', 'raw', 'compressed'),
    ),
    ('ui', 'false', 'Serve a page to mark, correct and watch objects.', ('true', 'false')),
    (
        'ui_host',
        '127.0.0.1',
        'Address of that page. 0.0.0.0: the network, with a token that is printed.',
        None,
    ),
    ('ui_port', '8686', 'Port of that page; 0: any that is free.', None),
)


def parameter_file(name: str) -> Path:
    """
    Find a parameter file: a path, or the name of one of this package's own.

    ``quality``, ``quality.yaml`` and ``config/quality.yaml`` all mean the same file of the
    package, unless there is one of that name where the command is given.

    Raises
    ------
    FileNotFoundError
        There is none. (A node that is given a file that does not exist only warns, and runs on
        defaults.)

    """
    given = Path(name).expanduser()
    short = Path(*given.parts[1:]) if given.parts[:1] == ('config',) else given
    places = [given]
    if name and not given.is_absolute():
        places += [CONFIG / short, CONFIG / f'{short}.yaml']
    for place in places:
        if place.is_file():
            return place.absolute()
    own = ', '.join(sorted(path.name for path in CONFIG.glob('*.yaml')))
    raise FileNotFoundError(
        f'params_file:={name} does not exist (looked for {", ".join(map(str, places))}). Give a '
        f'path, or one of {own}'
    )


def parameter_files(name: str, preset: str) -> list[str]:
    """
    Find the parameter files of the node, the later ones above the earlier ones.

    A preset is above this package's defaults, and below a file that was given.
    """
    files = [parameter_file(name)]
    if preset:
        defaults = files[0] == parameter_file(str(CONFIG / 'tracker.yaml'))
        files.insert(1 if defaults else 0, parameter_file(str(CONFIG / f'{preset}.yaml')))
    return [str(path) for path in files]


def listed(name: str, text: str) -> list[str]:
    """Read an argument that is a list of texts in YAML; empty where nothing was given."""
    values = yaml.safe_load(text) if text else []
    values = [values] if isinstance(values, str) else values
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f'{name}:={text} is no list of names: write {name}:="[one, another]"')
    return values


def camera_topics(cameras: list[str], images: list[str]) -> dict[str, str]:
    """
    Give the topic of each camera's images, by its name.

    Raises
    ------
    ValueError
        There is not one name for each topic, or a name is there twice.

    """
    if not images:
        images = [f'{name}/image' for name in cameras]
    if not cameras:
        # /front/image_raw/compressed is what the camera front sends compressed
        parts = [image.removesuffix('/compressed').strip('/').split('/') for image in images]
        cameras = [part[-2] if len(part) > 1 else part[0] for part in parts]
    if len(cameras) != len(images) or len(set(cameras)) < len(cameras):
        raise ValueError(
            f'cameras {cameras} and images {images} do not go together: give each topic a name '
            'of its own with cameras:="[one, another]"'
        )
    return dict(zip(cameras, images))


def remapped(image: str, depth: str, info: str, prefix: str = '') -> list[tuple[str, str]]:
    """Give the remappings of one camera; without a topic of its own, camera_info is beside."""
    folder, slash, _ = image.removesuffix('/compressed').rpartition('/')
    return [
        (f'{prefix}image', image),
        (f'{prefix}image/compressed', f'{image}/compressed'),
        (f'{prefix}depth', depth),
        (f'{prefix}depth/compressedDepth', f'{depth}/compressedDepth'),
        (f'{prefix}camera_info', info or f'{folder}{slash}camera_info'),
    ]


def start_tracker(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return the node with what brings it up. Only arguments that are set become parameters."""
    overrides: dict[str, object] = {
        # as a text whatever it looks like: a model may be called 0001, a device is no number
        name: ParameterValue(value, value_type=str)
        for name in ('model', 'device', 'image_transport')
        if (value := LaunchConfiguration(name).perform(context))
    }
    if target := LaunchConfiguration('target').perform(context):
        overrides['space.target'] = ParameterValue(target, value_type=str)
    image, depth, info, *several = (
        LaunchConfiguration(name).perform(context)
        for name in ('image', 'depth', 'camera_info', 'cameras', 'images')
    )
    params_file, preset = (
        LaunchConfiguration(name).perform(context) for name in ('params_file', 'preset')
    )
    names, images = (listed(name, text) for name, text in zip(('cameras', 'images'), several))
    topics, followed = camera_topics(names, images), 'tracker'
    remappings = remapped(image, depth, info)
    if topics:
        overrides['cameras'] = list(topics)
        followed = f'tracker/{next(iter(topics))}'
        remappings = [
            pair
            for name, topic in topics.items()
            for pair in remapped(topic, f'{name}/depth', '', f'{name}/')
        ]
    use_sim_time = LaunchConfiguration('use_sim_time').perform(context).lower() == 'true'
    tracker = LifecycleNode(
        package='drift_ros',
        executable='tracker',
        name='tracker',
        namespace=LaunchConfiguration('namespace'),
        parameters=[
            *parameter_files(params_file, preset),
            {**overrides, 'use_sim_time': use_sim_time},
        ],
        remappings=remappings,
        arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
        output='screen',
        emulate_tty=True,
    )

    page = Node(
        package='drift_ros',
        executable='web',
        name='web',
        namespace=LaunchConfiguration('namespace'),
        parameters=[
            {
                'tracker': followed,
                # as a text whatever it looks like
                'host': ParameterValue(LaunchConfiguration('ui_host'), value_type=str),
                'port': ParameterValue(LaunchConfiguration('ui_port'), value_type=int),
                'use_sim_time': use_sim_time,
            }
        ],
        arguments=['--ros-args', '--log-level', LaunchConfiguration('log_level')],
        condition=IfCondition(LaunchConfiguration('ui')),
        output='screen',
        emulate_tty=True,
    )

    def request(transition: int) -> EmitEvent:
        return EmitEvent(
            event=ChangeState(
                lifecycle_node_matcher=matches_action(tracker), transition_id=transition
            )
        )

    autostart = IfCondition(LaunchConfiguration('autostart'))
    configure = RegisterEventHandler(
        condition=autostart,
        event_handler=OnProcessStart(
            target_action=tracker, on_start=[request(Transition.TRANSITION_CONFIGURE)]
        ),
    )
    # Only right after configuring: a node someone deactivates by hand stays inactive.
    activate = RegisterEventHandler(
        condition=autostart,
        event_handler=OnStateTransition(
            target_lifecycle_node=tracker,
            start_state='configuring',
            goal_state='inactive',
            entities=[
                LogInfo(msg='tracker is configured, activating it'),
                request(Transition.TRANSITION_ACTIVATE),
            ],
        ),
    )
    return [configure, activate, tracker, page]


def generate_launch_description() -> LaunchDescription:
    """Return what ``ros2 launch`` runs."""
    profile = str(CONFIG / 'fastdds_large_images.xml')
    # Fast DDS 2 knows the older name only; Fast DDS 3 warns about it.
    fast_dds_2 = os.environ.get('ROS_DISTRO') in ('humble', 'iron', 'jazzy')
    profile_variable = f'{"FASTRTPS" if fast_dds_2 else "FASTDDS"}_DEFAULT_PROFILES_FILE'
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(
                    name, default_value=default, description=text, choices=choices
                )
                for name, default, text, choices in ARGUMENTS
            ),
            # Log lines appear at once and in order, each with its time.
            SetEnvironmentVariable('RCUTILS_LOGGING_BUFFERED_STREAM', '1'),
            SetEnvironmentVariable(
                'RCUTILS_CONSOLE_OUTPUT_FORMAT',
                EnvironmentVariable(
                    'RCUTILS_CONSOLE_OUTPUT_FORMAT',
                    default_value='[{severity}] [{time}] [{name}]: {message}',
                ),
            ),
            # Whole images need more shared memory than Fast DDS takes by default. A profile that
            # is already set is kept.
            SetEnvironmentVariable(
                profile_variable, EnvironmentVariable(profile_variable, default_value=profile)
            ),
            OpaqueFunction(function=start_tracker),
        ]
    )
