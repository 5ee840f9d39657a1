# SPDX-License-Identifier: Apache-2.0
"""What is said of a frame."""

import numpy as np

from drift_ros.engine.estimates import box_of, robust_box


def test_a_robust_box_leaves_strays_out():
    mask = np.zeros((100, 120), bool)
    assert robust_box(mask) is None
    mask[20:50, 30:60] = True
    assert robust_box(mask) == box_of(mask) == (30, 20, 60, 50)
    mask[52:60, 62:72] = True  # a part of some size, close by
    assert robust_box(mask) == (30, 20, 72, 60)
    mask[90:98, 100:115] = True  # far away
    mask[10, 28] = True  # close by and tiny
    assert robust_box(mask) == (30, 20, 72, 60)
    assert box_of(mask) == (28, 10, 115, 98)
