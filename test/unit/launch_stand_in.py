# SPDX-License-Identifier: Apache-2.0
"""
Executes a launch file where the launch packages of ROS are not installed.

A stand-in for what such a file uses of ``launch`` and ``launch_ros``: arguments with their
choices, substitutions, environment, conditions, nodes with their parameters. Nothing is started:
nodes and what happens on events are collected. A name it does not know is an ImportError, so that
a file that begins to use more is noticed.
"""

from contextlib import contextmanager
import os
import sys
from types import ModuleType
from typing import Any


class LaunchContext:
    """What a description is executed in."""

    def __init__(self) -> None:
        self.launch_configurations: dict[str, str] = {}
        self.environment = dict(os.environ)


class LaunchDescriptionEntity:
    """Anything that is executed."""

    condition: Any = None

    def visit(self, context: LaunchContext) -> list:
        """Execute; return what else there is to execute."""
        return [self]


class LaunchDescription(LaunchDescriptionEntity):
    """A list of entities."""

    def __init__(self, entities: list) -> None:
        self.entities = entities


def perform(value: Any, context: LaunchContext) -> Any:
    """Give the value of a substitution, of several one after another, or of anything else."""
    if isinstance(value, (list, tuple)):
        return ''.join(perform(item, context) for item in value)
    return value.perform(context) if hasattr(value, 'perform') else value


class LaunchConfiguration:
    """The value of an argument."""

    def __init__(self, name: str) -> None:
        self.name = name

    def perform(self, context: LaunchContext) -> str:
        return context.launch_configurations[self.name]


class EnvironmentVariable(LaunchConfiguration):
    """The value of a variable."""

    def __init__(self, name: str, *, default_value: str | None = None) -> None:
        super().__init__(name)
        self.default = default_value

    def perform(self, context: LaunchContext) -> str:
        value = context.environment.get(self.name, self.default)
        if value is None:
            raise LookupError(f'the variable {self.name} is not set')
        return value


class DeclareLaunchArgument(LaunchDescriptionEntity):
    """An argument."""

    def __init__(
        self, name: str, *, default_value: Any = None, description: str = '', choices: Any = None
    ) -> None:
        self.name, self.default_value = name, default_value
        self.description, self.choices = description, choices

    def visit(self, context: LaunchContext) -> list:
        value = context.launch_configurations.setdefault(
            self.name, perform(self.default_value, context)
        )
        if self.choices and value not in self.choices:
            raise RuntimeError(f'{self.name} is {value}, not one of {self.choices}')
        return []


class SetEnvironmentVariable(LaunchDescriptionEntity):
    """Sets a variable."""

    def __init__(self, name: Any, value: Any) -> None:
        self.name, self.value = name, value

    def visit(self, context: LaunchContext) -> list:
        context.environment[perform(self.name, context)] = perform(self.value, context)
        return []


class OpaqueFunction(LaunchDescriptionEntity):
    """A function that gives entities."""

    def __init__(self, *, function: Any) -> None:
        self.function = function

    def visit(self, context: LaunchContext) -> list:
        return self.function(context) or []


class IfCondition:
    """True for true and 1."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def evaluate(self, context: LaunchContext) -> bool:
        text = perform(self.value, context).strip().lower()
        if text not in ('true', '1', 'false', '0'):
            raise ValueError(f'{text} is no condition')
        return text in ('true', '1')


class ParameterValue:
    """A value whose type is fixed."""

    def __init__(self, value: Any, *, value_type: Any = None) -> None:
        self.value, self.kind = value, value_type

    def evaluate(self, context: LaunchContext) -> Any:
        value = perform(self.value, context)
        return value if self.kind is None else self.kind(value)


class _Keeps(LaunchDescriptionEntity):
    """Keeps what it was made of."""

    def __init__(self, *arguments: Any, condition: Any = None, **keywords: Any) -> None:
        self.arguments, self.condition = arguments, condition
        self.__dict__.update(keywords)


class RegisterEventHandler(_Keeps):
    """What happens on an event."""


class Node(_Keeps):
    """A node."""

    remappings: Any = ()
    arguments: Any = ()


class LifecycleNode(Node):
    """A managed node."""


def matches_action(action: Any) -> Any:
    """Give a predicate that is true of an action."""
    return lambda other: other is action


_MODULES = {
    'launch': {
        'LaunchContext': LaunchContext,
        'LaunchDescription': LaunchDescription,
        'LaunchDescriptionEntity': LaunchDescriptionEntity,
    },
    'launch.actions': {
        'DeclareLaunchArgument': DeclareLaunchArgument,
        'EmitEvent': _Keeps,
        'LogInfo': _Keeps,
        'OpaqueFunction': OpaqueFunction,
        'RegisterEventHandler': RegisterEventHandler,
        'SetEnvironmentVariable': SetEnvironmentVariable,
    },
    'launch.conditions': {'IfCondition': IfCondition},
    'launch.event_handlers': {'OnProcessStart': _Keeps},
    'launch.events': {'matches_action': matches_action},
    'launch.substitutions': {
        'EnvironmentVariable': EnvironmentVariable,
        'LaunchConfiguration': LaunchConfiguration,
    },
    'launch_ros': {},
    'launch_ros.actions': {'LifecycleNode': LifecycleNode, 'Node': Node},
    'launch_ros.event_handlers': {'OnStateTransition': _Keeps},
    'launch_ros.events': {},
    'launch_ros.events.lifecycle': {'ChangeState': _Keeps},
    'launch_ros.parameter_descriptions': {'ParameterValue': ParameterValue},
}


@contextmanager
def installed() -> Any:
    """Let the modules be importable for a while, in the place of real ones."""
    ours = {name: ModuleType(name) for name in _MODULES}
    for name, module in ours.items():
        module.__dict__.update(_MODULES[name])
        module.__path__ = []  # type: ignore[attr-defined]
    before = {
        name: module
        for name, module in sys.modules.items()
        if name.partition('.')[0] in ('launch', 'launch_ros')
    }
    for name in before:
        del sys.modules[name]
    sys.modules.update(ours)
    try:
        yield
    finally:
        for name in ours:
            del sys.modules[name]
        sys.modules.update(before)


def execute(description: LaunchDescription, arguments: dict[str, str]) -> tuple[Any, list]:
    """Execute a description with arguments; return the context and the entities that remain."""
    context = LaunchContext()
    context.launch_configurations.update(arguments)
    waiting, done = list(description.entities), []
    while waiting:
        entity = waiting.pop(0)
        more = entity.visit(context)
        if more == [entity]:
            done.append(entity)
        else:
            waiting[:0] = more
    return context, done
