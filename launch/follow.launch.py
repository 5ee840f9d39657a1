# SPDX-License-Identifier: Apache-2.0
"""
Start the tracker and what drives after the object of a name: nav2, or our own follower.

``ros2 launch drift_ros follow.launch.py name:=cup image:=/camera/image_raw depth:=/camera/depth``

It says how to set the robot off, or does so itself with ``follow:=true``, once the object is seen.
"""

from pathlib import Path

from launch import LaunchContext, LaunchDescription, LaunchDescriptionEntity
from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    LogInfo,
    OpaqueFunction,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessStart
from launch.events import matches_action
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.event_handlers import OnStateTransition
from launch_ros.events.lifecycle import ChangeState
from lifecycle_msgs.msg import Transition

TRACKER = str(Path(__file__).with_name('tracker.launch.py'))

ARGUMENTS = (
    ('name', '', 'Name (or id) of the object to follow. Empty: the first one.', None),
    ('namespace', '', 'Namespace of the nodes, e.g. robot1.', None),
    ('use_sim_time', 'false', 'Take the time from /clock.', ('true', 'false')),
    ('follow', 'false', 'Set the robot off once the object is seen.', ('true', 'false')),
    (
        'controller',
        'nav2',
        'Who drives. nav2: its following server, started elsewhere; follower: the node of this '
        'package, which avoids no obstacles.',
        ('nav2', 'follower'),
    ),
    ('follower_params_file', '', 'Parameter file of the follower. Empty: defaults.', None),
    ('cmd_vel', 'cmd_vel', 'Topic of the velocity commands of the follower.', None),
)


def start(context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """Return what drives, or says how to."""

    def value(name: str) -> str:
        return LaunchConfiguration(name).perform(context)

    controller, prefix = value('controller'), f'/{value("namespace")}'.rstrip('/')
    pose = f'{prefix}/tracker/pose'.replace('//', '/')
    sim_time = {'use_sim_time': value('use_sim_time').lower() == 'true'}
    actions: list[LaunchDescriptionEntity] = []
    if controller == 'follower':
        actions += start_follower(value, sim_time)
    if value('follow').lower() == 'true':
        actions.append(
            Node(
                package='drift_ros',
                executable='follow_goal',
                name='follow_goal',
                namespace=value('namespace'),
                parameters=[{'server': controller, **sim_time}],
                remappings=[('pose', 'tracker/pose')],
                output='screen',
                emulate_tty=True,
            )
        )
    elif controller == 'nav2':
        goal = f"{{pose_topic: '{pose}'}}"
        actions.append(
            LogInfo(
                msg='to follow: ros2 action send_goal --feedback '
                f'{prefix}/follow_object nav2_msgs/action/FollowObject "{goal}"'
            )
        )
    else:
        actions.append(
            LogInfo(
                msg=f'to follow: ros2 service call {prefix}/follower/enable std_srvs/srv/SetBool '
                '"{data: true}"'
            )
        )
    return actions


def start_follower(value, sim_time) -> list[LaunchDescriptionEntity]:
    """Return the follower with what makes it active; it stays off until it is enabled."""
    file = value('follower_params_file')
    follower = LifecycleNode(
        package='drift_ros',
        executable='follower',
        name='follower',
        namespace=value('namespace'),
        parameters=[*([file] if file else []), sim_time],
        remappings=[
            ('pose', 'tracker/pose'),
            ('bearing', 'tracker/bearing'),
            ('cmd_vel', value('cmd_vel')),
        ],
        output='screen',
        emulate_tty=True,
    )

    def request(transition: int) -> EmitEvent:
        return EmitEvent(
            event=ChangeState(
                lifecycle_node_matcher=matches_action(follower), transition_id=transition
            )
        )

    return [
        RegisterEventHandler(
            OnProcessStart(
                target_action=follower, on_start=[request(Transition.TRANSITION_CONFIGURE)]
            )
        ),
        RegisterEventHandler(
            OnStateTransition(
                target_lifecycle_node=follower,
                start_state='configuring',
                goal_state='inactive',
                entities=[request(Transition.TRANSITION_ACTIVATE)],
            )
        ),
        follower,
    ]


def generate_launch_description() -> LaunchDescription:
    """Return what ``ros2 launch`` runs. Arguments of tracker.launch.py hold as well."""
    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(
                    name, default_value=default, description=text, choices=choices
                )
                for name, default, text, choices in ARGUMENTS
            ),
            IncludeLaunchDescription(
                PythonLaunchDescriptionSource(TRACKER),
                launch_arguments=[('target', LaunchConfiguration('name'))],
            ),
            OpaqueFunction(function=start),
        ]
    )
