# SPDX-License-Identifier: Apache-2.0
"""The ``drift_ros`` command. Subcommands load on use: help needs neither ROS nor torch."""

from __future__ import annotations

from collections.abc import Mapping
import importlib
from typing import Any

import click

import drift_ros
from drift_ros.ros import signals

_COMMANDS = {
    'ablate': (
        'drift_ros.commands.ablate:ablate',
        "Compare the parts of the method: the paper's figures and tables.",
    ),
    'benchmark': (
        'drift_ros.commands.benchmark:benchmark',
        'Measure what the tracker needs on this machine.',
    ),
    'eval': (
        'drift_ros.commands.evaluate:evaluate',
        'Measure tracking accuracy on datasets and bags.',
    ),
    'bag': ('drift_ros.commands.bag:bag', 'Make rosbag2 bags from datasets and videos.'),
    'models': (
        'drift_ros.commands.models:models',
        'List known checkpoints, check a file, download one.',
    ),
    'policy': (
        'drift_ros.commands.policy:policy',
        'Write the SROS 2 policy of a tracker node, for the cameras it has.',
    ),
    'seed': (
        'drift_ros.commands.seed:seed',
        'Ask a running tracker node to follow what a box or a point marks.',
    ),
    'ui': (
        'drift_ros.commands.ui:ui',
        'Mark, correct and watch the objects of a running tracker node in a browser.',
    ),
    'demo': (
        'drift_ros.commands.demo:demo',
        'Track real video through real ROS 2 nodes, end to end.',
    ),
    'demo-follow': (
        'drift_ros.commands.demo_follow:demo_follow',
        'Let a robot in a simulator follow an object, through the real nodes.',
    ),
}


class LazyGroup(click.Group):
    """A group that imports a subcommand only when it is run or asked for its own help."""

    def __init__(self, *args: Any, lazy: Mapping[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def main(self, *args: Any, **extra: Any) -> Any:
        """Run the command line; once interrupted, the exit code is 130 however it ends."""
        with signals.interruptible():
            return super().main(*args, **extra)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Name all subcommands."""
        return sorted({*super().list_commands(ctx), *self._lazy})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a subcommand."""
        if cmd_name not in self._lazy:
            return super().get_command(ctx, cmd_name)
        module, _, name = self._lazy[cmd_name][0].partition(':')
        try:
            return getattr(importlib.import_module(module), name)
        except ModuleNotFoundError as error:
            if (error.name or '').startswith('drift_ros.'):
                raise
            raise click.ClickException(
                f'"drift_ros {cmd_name}" needs the Python module {error.name}, which is not '
                'installed here. Install requirements.txt and, for commands that run nodes, '
                'source a ROS 2 installation or use the environment "make" sets up.'
            ) from error

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the subcommands with their help lines, without an import."""
        with formatter.section('Commands'):
            formatter.write_dl([(name, self._lazy[name][1]) for name in self.list_commands(ctx)])


@click.group(
    cls=LazyGroup, lazy=_COMMANDS, context_settings={'help_option_names': ['-h', '--help']}
)
@click.version_option(drift_ros.__version__, prog_name='drift_ros')
def main() -> None:
    """Follow any object a camera sees from one mask, online, on ROS 2 or on plain arrays."""


if __name__ == '__main__':
    main()
