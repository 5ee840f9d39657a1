# SPDX-License-Identifier: Apache-2.0
"""ROS 2 nodes: thin shells around the engine. See docs/nodes.md."""

from drift_ros.ros import signals

# "python -m drift_ros.nodes.tracker": what follows imports for a second, and has nothing to end
if signals.starts_as_program(f'{__name__}.'):
    signals.end_quietly(0)
