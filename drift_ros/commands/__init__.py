# SPDX-License-Identifier: Apache-2.0
"""The command line, one module a command."""

import sys

from drift_ros import starting


def run() -> None:
    """Run the command line: the program ``drift_ros``."""
    starting.end_quietly(starting.INTERRUPTED)
    from drift_ros.commands.main import main

    try:
        main()
    except ModuleNotFoundError as error:
        sys.exit(starting.missing(error))
