# SPDX-License-Identifier: Apache-2.0
"""The online algorithm: no ROS, no files."""
