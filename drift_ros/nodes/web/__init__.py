# SPDX-License-Identifier: Apache-2.0
"""The web node: mark, correct and watch objects in a browser; see docs/ui.md."""
