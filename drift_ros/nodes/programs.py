# SPDX-License-Identifier: Apache-2.0
"""
The nodes as installed programs: ``ros2 run drift_ros tracker``.

A node's imports take a second. An interrupt in that time must end the process as any other does,
so they come after the first handler of signals.
"""

from drift_ros import starting


def tracker() -> None:
    """Run the tracker."""
    starting.end_quietly(0)
    from drift_ros.nodes.tracker.node import main

    main()


def player() -> None:
    """Run the player."""
    starting.end_quietly(0)
    from drift_ros.nodes.player import main

    main()


def recorder() -> None:
    """Run the recorder."""
    starting.end_quietly(0)
    from drift_ros.nodes.recorder import main

    main()
