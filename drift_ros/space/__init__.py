# SPDX-License-Identifier: Apache-2.0
"""From pixels to places: cameras, depth, where an object is, and how to drive after it. No ROS."""
