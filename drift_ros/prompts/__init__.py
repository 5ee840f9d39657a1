# SPDX-License-Identifier: Apache-2.0
"""Masks of boxes and points."""
