# SPDX-License-Identifier: Apache-2.0
"""
The nodes as installed programs: ``ros2 run drift_ros tracker``.

A node's imports take a second. An interrupt in that time must end the process as any other does,
so they come after the first handler of signals.
"""

from functools import partial
from importlib import import_module
import sys

from drift_ros import starting


def _run(module: str) -> None:
    starting.end_quietly(0)
    try:
        found = import_module(f'drift_ros.nodes.{module}')
    except ImportError as error:
        sys.exit(starting.missing(error))
    found.main()


tracker = partial(_run, 'tracker.node')
player = partial(_run, 'player')
recorder = partial(_run, 'recorder')
web = partial(_run, 'web.node')
follower = partial(_run, 'follower')
follow_goal = partial(_run, 'follow_goal')
