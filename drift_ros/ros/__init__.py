# SPDX-License-Identifier: Apache-2.0
"""What needs rclpy but is no node: messages, parameters, processes."""
