# SPDX-License-Identifier: Apache-2.0
"""A simulated robot that follows an object: its world, its messages, and how it went."""
