# SPDX-License-Identifier: Apache-2.0
"""Settings all tests share."""

import os
from pathlib import Path
import signal
import sys

from hypothesis import settings
import pytest

# Before anything imports torch or rclpy; processes that tests start inherit it.
# Waiting threads must not spin: the machines tests run on have few cores.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')
# Where tests run in the background of a script, SIGINT is ignored, and every process started from
# here would inherit that: many tests interrupt what they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
# ROS graphs of tests stay on this machine, whatever the shell says.
os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
os.environ.pop('ROS_STATIC_PEERS', None)
# Fast DDS reads its profiles once a process, when it makes its first participant. With its own
# small segments a worker's later tests would lose images of 640x480 now and then.
_profiles = 'FASTRTPS' if os.environ.get('ROS_DISTRO') == 'jazzy' else 'FASTDDS'
os.environ[f'{_profiles}_DEFAULT_PROFILES_FILE'] = str(
    Path(__file__).parents[1] / 'config' / 'fastdds_large_images.xml'
)
# Launch files and parameters are found in the environment.
_prefixes = [p for p in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep) if p]
if sys.prefix not in _prefixes:
    os.environ['AMENT_PREFIX_PATH'] = os.pathsep.join([sys.prefix, *_prefixes])

# How long an example takes says nothing on a busy machine; runs are repeatable.
settings.register_profile('drift_ros', deadline=None, derandomize=True)
# "make soak": 10^5 cases, other ones each time; what fails is kept in .hypothesis and tried again.
settings.register_profile('soak', deadline=None, max_examples=9_000, print_blob=True)
settings.load_profile('drift_ros')


@pytest.fixture(autouse=True)
def ordinary_priority():
    """No test leaves the process at real-time priority, as some libraries do for root."""
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    yield
    after = os.sched_getscheduler(0)
    os.sched_setscheduler(0, *before)  # the tests after this one are to run all the same
    assert after == before[0]


def pytest_report_header():
    """Say what executes the launch file."""
    sys.path.insert(0, os.path.join(os.path.dirname(__file__), 'unit'))
    import launch_sources

    which, reason = launch_sources.find()
    return f'launch file: executed by a stand-in and {which or f"not by ROS: {reason}"}'
