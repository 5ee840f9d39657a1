# SPDX-License-Identifier: Apache-2.0
"""
Parameters of all nodes, declared once as data.

A node's parameters are the fields of dataclasses (:class:`NodeConfig` and the engine's
``TrackerConfig`` for the tracker). Their metadata give the ROS descriptors and ranges, the
checks, and what :mod:`drift_ros.ros.parameter_docs` writes: the parameter file and the tables of
the documentation.
"""

from __future__ import annotations

import array
from collections.abc import Iterable, Iterator
import dataclasses
from dataclasses import dataclass
import re
from typing import Any, get_args, get_type_hints, TypeVar

from drift_ros.engine.config import DROPPED, find_option, RENAMED, TrackerConfig
from drift_ros.engine.options import Option, option, options_of
from drift_ros.space.following import FollowOptions, GoalConfig
from drift_ros.space.options import SpaceConfig


@dataclass(frozen=True)
class NodeConfig:
    """Parameters of the tracker node besides the engine's."""

    cameras: tuple[str, ...] = option(
        (),
        'Names of several cameras, for one node and one model: each has topics and services of '
        'its own, <name>/image and ~/<name>/mask. Empty: one camera, image and ~/mask.',
        applies='start',
    )
    model: str = option(
        '',
        'Folder or hub id of a diffusers checkpoint. Empty: the embedded model.',
        applies='configure',
    )
    device: str = option(
        'auto', 'Where the network runs: auto, cpu, cuda or cuda:N.', applies='configure'
    )
    image_transport: str = option(
        'raw',
        'raw: sensor_msgs/Image on image; compressed: sensor_msgs/CompressedImage on '
        'image/compressed.',
        applies='activate',
        choices=('raw', 'compressed'),
    )
    replay: bool = option(
        False,
        'Subscribe reliably, drop no frame and keep their order, instead of taking the '
        'newest frame only.',
        applies='activate',
    )
    replay_queue_mb: int = option(
        256,
        'Replay: megabytes of frames that may wait before reception is held back.',
        applies='activate',
        low=1,
        high=65536,
    )
    buffer_frames: int = option(
        30,
        'Received frames kept for masks that refer to them by stamp.',
        applies='activate',
        low=1,
        high=10000,
    )
    buffer_mb: int = option(
        128,
        'Megabytes those frames may take; the newest is always kept.',
        applies='activate',
        low=1,
        high=65536,
    )
    grey_range: tuple[int, ...] = option(
        (),
        'Values of 16-bit images that become black and white, [0, 4095] for 12 bits. Empty: found '
        'from the images, with a warning where that is not all 16 bits.',
        applies='activate',
    )
    overlay_opacity: float = option(
        0.5,
        'Opacity of the masks in the overlay; 0 draws outlines only.',
        applies='now',
        low=0.0,
        high=1.0,
    )
    diagnostics_period: float = option(
        1.0, 'Seconds between two messages on /diagnostics.', applies='now', low=0.1, high=60.0
    )
    input_timeout: float = option(
        5.0,
        'Seconds without a frame after which diagnostics warn.',
        applies='now',
        low=0.1,
        high=3600.0,
    )

    def __post_init__(self) -> None:
        """Check what ranges cannot say; raises ValueError."""
        names = self.cameras
        wrong = [name for name in names if not re.fullmatch('[A-Za-z](_?[A-Za-z0-9])*', name)]
        if wrong or len(set(names)) < len(names):
            raise ValueError(
                f'cameras is {list(names)}; it must be names, each once, of letters, digits and '
                'single underscores, that begin with a letter'
            )
        values = self.grey_range
        if values and (len(values) != 2 or not 0 <= values[0] < values[1] <= 65535):
            raise ValueError(
                f'grey_range is {list(values)}; it must be two numbers from 0 to 65535, black and '
                'a larger white, or empty'
            )

    @property
    def greys(self) -> tuple[int, int] | None:
        """The range of 16-bit images; None: automatic."""
        return (self.grey_range[0], self.grey_range[1]) if self.grey_range else None


@dataclass(frozen=True)
class PlayerConfig:
    """Parameters of the player node."""

    source: str = option(
        '', 'Video file, folder of images or DAVIS sequence to publish.', applies='start'
    )
    start: int = option(
        0, 'Frames to leave out at the beginning.', applies='start', low=0, high=10**9
    )
    count: int = option(
        0, 'Frames to publish at most; 0: all.', applies='start', low=0, high=10**9
    )
    rate: float = option(
        0.0,
        "Frames per second; 0: as the source's own times say.",
        applies='start',
        low=0.0,
        high=1000.0,
    )
    loop: bool = option(False, 'Start again at the end; stamps go on ascending.', applies='start')
    frame_id: str = option('camera', 'frame_id of the headers.', applies='start')
    image_transport: str = option(
        'raw',
        'raw: sensor_msgs/Image on image; compressed: JPEG on image/compressed.',
        applies='start',
        choices=('raw', 'compressed'),
    )
    wait_for_subscribers: int = option(
        1, 'Subscribers to wait for before the first frame.', applies='start', low=0, high=100
    )
    lockstep: bool = option(
        False,
        'Publish a frame only after an image with the stamp of the one before arrived on '
        'answer (remap it to a mask topic): nothing is ever dropped.',
        applies='start',
    )
    lockstep_timeout: float = option(
        30.0,
        'Lockstep: seconds to wait for the answer before giving up.',
        applies='start',
        low=0.1,
        high=3600.0,
    )
    stamps: str = option(
        'regular',
        'regular: as far apart as the frames are, whatever the pace; now: the time of '
        'publication.',
        applies='start',
        choices=('regular', 'now'),
    )
    hold_at: tuple[int, ...] = option(
        (),
        'Indices of published frames after which to pause until ~/resume is called.',
        applies='start',
    )


@dataclass(frozen=True)
class RecorderConfig:
    """Parameters of the recorder node."""

    output: str = option('', 'Folder of the bag to write; it must not exist yet.', applies='start')
    topics: tuple[str, ...] = option(
        (),
        'Topics to record; relative names are resolved in the namespace of the node.',
        applies='start',
    )


@dataclass(frozen=True)
class WebConfig:
    """Parameters of the web node."""

    tracker: str = option(
        'tracker',
        'Name of the tracker node, absolute or relative to the namespace.',
        applies='start',
    )
    host: str = option(
        '127.0.0.1',
        'Address to serve at. 127.0.0.1: this machine only; 0.0.0.0: every network it is in, '
        'with a token.',
        applies='start',
    )
    port: int = option(
        8686, 'Port to serve at; 0: any that is free.', applies='start', low=0, high=65535
    )
    token: str = option(
        '',
        'What pages have to know, at least 8 letters, digits, "-" or "_". Empty: none on '
        '127.0.0.1, one that is made up and printed elsewhere.',
        applies='start',
    )
    clients: int = option(8, 'Pages at once, at most.', applies='start', low=1, high=64)
    rate: float = option(
        20.0, 'Pictures a second at most, for each page.', applies='start', low=0.2, high=60.0
    )
    buffer_mb: int = option(
        128,
        'Megabytes of frames kept, so that one that is looked at can still be marked.',
        applies='start',
        low=1,
        high=65536,
    )
    timeout: float = option(
        15.0, 'Seconds to wait for an answer of the tracker.', applies='start', low=0.5, high=600.0
    )


NODES: dict[str, tuple[type, ...]] = {
    'tracker': (NodeConfig, SpaceConfig, TrackerConfig),
    'player': (PlayerConfig,),
    'recorder': (RecorderConfig,),
    'follower': (FollowOptions,),
    'follow_goal': (GoalConfig,),
    'web': (WebConfig,),
}
"""The dataclasses that make up each node's parameters."""


@dataclass(frozen=True)
class Parameter(Option):
    """One parameter: an option of one of the dataclasses, and when a value takes effect."""

    kind: str = ''
    """bool, int, float, str, list[int] or list[str]."""
    applies: str = 'configure'
    """When a value takes effect: configure, activate, now, start."""

    def range_text(self) -> str:
        """What is allowed, for people; empty when everything of the type is."""
        if self.choices:
            return ', '.join(self.choices)
        if self.low is None and self.high is None:
            return ''
        low, high = ('' if end is None else end for end in (self.low, self.high))
        return f'{low} to {high}'

    def check(self, value: Any) -> str:
        """Say why a value is refused; empty when it is fine."""
        if self.kind.startswith('list'):
            item = int if self.kind == 'list[int]' else str
            if not isinstance(value, (list, tuple, array.array)) or not all(
                type(entry) is item for entry in value
            ):
                return f'{self.name} is {value!r}; it must be a {self.kind}'
            value = tuple(value)
        reason = super().check(value)
        if reason and self.kind == 'str' and isinstance(value, (bool, int, float)):
            reason += (
                f'. YAML takes a text that looks like a number or a truth value for one: quote it '
                f'(-p \'{self.name}:="..."\' on the command line, "..." in a file)'
            )
        return reason


def parameters(*configs: type) -> tuple[Parameter, ...]:
    """List the parameters that dataclasses declare."""
    return tuple(
        Parameter(
            **{item.name: getattr(declared, item.name) for item in dataclasses.fields(Option)},
            kind=_kind(declared.default, hint),
            applies=applies,
        )
        for config in configs
        for declared, hint, applies in _declared(config)
    )


def _declared(config: type) -> Iterator[tuple[Option, Any, str]]:
    """Give every option of a dataclass with its type hint and when it takes effect."""
    for name, declared in options_of(config).items():
        group = config
        *path, last = name.split('.')
        for step in path:
            group = get_type_hints(group)[step]
        (field,) = (item for item in dataclasses.fields(group) if item.name == last)
        yield declared, get_type_hints(group)[last], field.metadata.get('applies', 'configure')


def _kind(default: Any, hint: Any) -> str:
    return f'list[{get_args(hint)[0].__name__}]' if type(default) is tuple else hint.__name__


Config = TypeVar('Config')


def declare(node: Any, *configs: type) -> None:
    """
    Declare parameters on an rclpy node, with descriptors, ranges and values given at start.

    rclpy ignores values given at start for names that nobody declares. So the node has to be made
    with ``automatically_declare_parameters_from_overrides=True``: then it knows all that was
    given, and what is not ours can be refused instead.

    Parameters
    ----------
    node : rclpy.node.Node
    configs : types
        Dataclasses of options.

    Raises
    ------
    ValueError
        A name given at start has been renamed, or is none below one of the groups of options.
    rclpy.exceptions.ParameterException
        A value given at start is refused.

    """
    from rcl_interfaces.msg import SetParametersResult
    from rclpy.parameter import Parameter as RosParameter

    table = {item.name: item for item in parameters(*configs)}
    given = set(node.get_parameters_by_prefix(''))
    groups = {name.partition('.')[0] for name in table if '.' in name}
    _refuse_unknown(given - set(table), groups)

    def check(changes: Iterable[Any]) -> SetParametersResult:
        for change in changes:
            if change.name in table:
                reason = table[change.name].check(change.value)
                if reason:
                    return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    node.add_on_set_parameters_callback(check)
    for item in table.values():
        if item.name in given:
            node.undeclare_parameter(item.name)  # once more below, with its descriptor
        value = list(item.default) if isinstance(item.default, tuple) else item.default
        kind = RosParameter.Type[_ROS_TYPES[item.kind]]
        node.declare_parameter(
            item.name, RosParameter(item.name, kind, value).value, _descriptor(item, kind.value)
        )


_ROS_TYPES = {
    'bool': 'BOOL',
    'int': 'INTEGER',
    'float': 'DOUBLE',
    'str': 'STRING',
    'list[int]': 'INTEGER_ARRAY',
    'list[str]': 'STRING_ARRAY',
}


def _descriptor(item: Parameter, kind: int) -> Any:
    """Make the rcl_interfaces/ParameterDescriptor of a parameter."""
    from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor

    descriptor = ParameterDescriptor(
        name=item.name,
        type=kind,
        description=item.help,
        read_only=item.applies == 'start',
        # to rclpy an empty list is one of bytes: the type of lists is checked by ours
        dynamic_typing=item.kind.startswith('list'),
        additional_constraints='one of ' + item.range_text() if item.choices else '',
    )
    if item.low is not None and item.high is not None:
        if item.kind == 'int':
            descriptor.integer_range = [
                IntegerRange(from_value=int(item.low), to_value=int(item.high), step=1)
            ]
        elif item.kind == 'float':
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=float(item.low), to_value=float(item.high))
            ]
    return descriptor


def _refuse_unknown(names: Iterable[str], groups: set[str]) -> None:
    """Raise ValueError where a name is an old one of ours, or none below one of our groups."""
    reasons = []
    for name in sorted(names):
        ours = name.partition('.')[0] in groups or name in {**RENAMED, **DROPPED}
        if groups and ours:
            try:
                find_option(name)
            except ValueError as error:
                reasons.append(str(error).replace('option', 'parameter', 1))
    if reasons:
        raise ValueError('; '.join(reasons))


def read(node: Any, config: type[Config], changes: Iterable[Any] = ()) -> Config:
    """
    Make a dataclass, groups of options in it included, of a node's parameter values.

    Parameters
    ----------
    node : rclpy.node.Node
    config : type
        Dataclass whose parameters were declared.
    changes : iterable of rclpy.parameter.Parameter
        Take these values instead of the present ones.

    Raises
    ------
    ValueError
        Values contradict each other.

    """
    changed = {change.name: change.value for change in changes}
    values: dict[str, Any] = {}
    for item in parameters(config):
        value = changed.get(item.name, node.get_parameter(item.name).value)
        values[item.name] = tuple(value) if item.kind.startswith('list') else value
    make = getattr(config, 'of', None)  # what has groups makes itself of dotted names
    return make(values) if make else config(**values)
