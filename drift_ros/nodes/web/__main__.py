# SPDX-License-Identifier: Apache-2.0
"""``python -m drift_ros.nodes.web``."""

from drift_ros.nodes.web.node import main

main()
