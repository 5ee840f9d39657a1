# SPDX-License-Identifier: Apache-2.0
"""Fixtures of the tests that run node processes over a real ROS graph."""

from pathlib import Path
import sys

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'unit'))
pytest.importorskip('rclpy', reason='ROS 2 is not installed')
pytest.importorskip('drift_ros_msgs', reason='drift_ros_msgs is not built')

from tiny_models import save_checkpoint  # noqa: E402


@pytest.fixture(scope='session')
def checkpoint(tmp_path_factory):
    """Folder of a small checkpoint of random weights: the nodes' behaviour is tested, not it."""
    return save_checkpoint(tmp_path_factory.mktemp('checkpoint') / 'tiny', 'sd1')
