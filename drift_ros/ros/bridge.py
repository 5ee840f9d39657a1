# SPDX-License-Identifier: Apache-2.0
"""
``cv_bridge``, where it is installed and works. Imports no ROS.

Frames of the encodings in :data:`SHARED`, which it reads as this package does, go through it, so
that what a distribution mends there is mended here. It is asked once per process, in another one:
built against another NumPy or another OpenCV than are installed, it does not always raise an
error, but may end the process. ``DRIFT_ROS_CV_BRIDGE=0`` leaves it alone.
"""

from __future__ import annotations

from functools import cache
import importlib
import importlib.util
import os
import subprocess
import sys
from typing import Any

import numpy as np

SHARED = ('rgb8', 'bgr8', 'rgba8', 'bgra8', 'mono8', '8UC3', '8UC1')
"""Encodings that both read to the same pixels. Of others, cv_bridge lacks some and scales some."""
_NAMED = {'8UC3': 'bgr8', '8UC1': 'mono8'}
"""What this package takes encodings without a colour for."""
VARIABLE = 'DRIFT_ROS_CV_BRIDGE'

_PATIENCE = 30.0
_PROBE = """
from types import SimpleNamespace
import numpy as np
from cv_bridge import CvBridge
pixels = np.arange(2 * 20, dtype=np.uint8).reshape(2, 20)
for step, given in ((18, pixels[:, :18]), (20, pixels)):
    image = SimpleNamespace(
        height=2, width=6, encoding='bgr8', is_bigendian=0, step=step, data=given.tobytes()
    )
    found = CvBridge().imgmsg_to_cv2(image, 'rgb8')
    assert np.array_equal(found, pixels[:, :18].reshape(2, 6, 3)[..., ::-1])
print('works')
"""


@cache
def find() -> tuple[Any, str]:
    """
    Look for a cv_bridge that works.

    Returns
    -------
    bridge : cv_bridge.CvBridge or None
    reason : str
        Why there is none; empty where there is.

    """
    if os.environ.get(VARIABLE, '') == '0':
        return None, f'{VARIABLE} is 0'
    if importlib.util.find_spec('cv_bridge') is None:
        return None, 'it is not installed'
    try:
        done = subprocess.run(
            [sys.executable, '-c', _PROBE],
            capture_output=True,
            text=True,
            timeout=_PATIENCE,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return None, f'it did not convert an image within {_PATIENCE:.0f} s'
    if done.returncode or 'works' not in done.stdout.split():
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        cause = lines[-1].strip() if lines else f'exit code {done.returncode}'
        return None, f'it does not work here ({cause}; NumPy {np.__version__})'
    try:
        return importlib.import_module('cv_bridge').CvBridge(), ''
    except Exception as error:
        return None, f'it does not work here ({error})'


def to_rgb(message: Any) -> np.ndarray | None:
    """
    Read a sound image message of one of :data:`SHARED` by cv_bridge.

    Returns
    -------
    np.ndarray or None
        (H, W, 3) uint8 RGB, C-contiguous; None where there is no cv_bridge, or it fails.

    """
    bridge, _ = find()
    if bridge is None or message.encoding not in SHARED:
        return None
    try:
        if message.encoding in _NAMED:  # what has no colours by its name
            pixels = bridge.cvtColor2(
                bridge.imgmsg_to_cv2(message), _NAMED[message.encoding], 'rgb8'
            )
        else:
            pixels = bridge.imgmsg_to_cv2(message, 'rgb8')
    except Exception:
        return None
    return np.ascontiguousarray(pixels)
