# SPDX-License-Identifier: Apache-2.0
"""The command line, one module a command."""

from drift_ros.ros import signals

if signals.starts_as_program(f'{__name__}.'):
    signals.end_quietly(signals.INTERRUPTED)


def run() -> None:
    """Run the command line: the program ``drift_ros``."""
    signals.end_quietly(signals.INTERRUPTED)
    from drift_ros.commands.main import main

    main()
