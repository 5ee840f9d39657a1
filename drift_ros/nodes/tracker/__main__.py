# SPDX-License-Identifier: Apache-2.0
"""``python -m drift_ros.nodes.tracker``."""

from drift_ros.nodes.tracker.node import main

main()
