# SPDX-License-Identifier: Apache-2.0
"""
What an interrupt does while a program of this package is starting: its imports take a second.

Imported before anything else, so it imports next to nothing itself.
"""

import os
import signal
import sys

INTERRUPTED = 128 + signal.SIGINT
"""Exit code of a command that was interrupted, as shells have it."""
_NODES, _COMMANDS = 'drift_ros.nodes.', 'drift_ros.commands.'


def end_quietly(code: int) -> None:
    """
    From now on end the process at once when it is interrupted: it has nothing to take down yet.

    Only for processes of one's own that are starting; what comes next sets another handler. Does
    nothing in other threads than the main one.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
            try:
                signal.signal(number, lambda *_: os._exit(code))
            except ValueError:  # not the main thread
                return


def end_quietly_as_program() -> None:
    """Do so where this process is at the start of ``python -m`` with a node or a command."""
    words = sys.orig_argv
    if sys.argv[:1] != ['-m'] or '-m' not in words[:-1]:
        return
    module = f'{words[words.index("-m") + 1]}.'
    if module.startswith(_NODES):
        end_quietly(0)  # as nodes end after any signal
    elif module.startswith(_COMMANDS):
        end_quietly(INTERRUPTED)


def missing(error: ImportError) -> str:
    """Say which package a program lacks, and how to come by it."""
    name = (getattr(error, 'name', None) or '').partition('.')[0]
    program = os.path.basename(sys.argv[0])
    if name == 'drift_ros_msgs':
        return (
            f'{program}: the ROS interfaces drift_ros_msgs are not built, or not sourced. Build '
            'them beside this package (colcon build --packages-select drift_ros_msgs in a '
            'workspace, then source install/setup.bash), or set up a checkout with "make setup"'
        )
    if name in ('rclpy', 'rosidl_parser', 'rpyutils') or name.endswith(('_msgs', '_interfaces')):
        return (
            f'{program}: ROS 2 is needed, and its package {name} cannot be imported: source an '
            'installed ROS 2 whose Python this is, or set up a checkout with "make setup"'
        )
    return f'{program}: {error}: install what requirements.txt names'
