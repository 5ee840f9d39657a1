# SPDX-License-Identifier: Apache-2.0
"""Raw colour as features: what a patch of the frame looks like, without a network."""

from collections.abc import Sequence

import cv2
import numpy as np


def colour_patches(image: np.ndarray, grid: Sequence[int], cells: int) -> np.ndarray:
    """
    Describe each token of a grid by the colours around it.

    Parameters
    ----------
    image : np.ndarray
        (H, W, 3) uint8 RGB.
    grid : sequence of int
        Rows and columns of the tokens; each is the mean of its part of the image in CIE Lab.
    cells : int
        Odd; a patch is the block of ``cells`` x ``cells`` tokens around each.

    Returns
    -------
    np.ndarray
        (h, w, 3 * cells^2) float32 of unit length.

    """
    lab = cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB) / 100
    lab[..., 0] -= 0.5  # mid grey is the origin: dark and light are opposite directions
    small = cv2.resize(lab, (grid[1], grid[0]), interpolation=cv2.INTER_AREA)
    margin = cells // 2
    padded = np.pad(small, ((margin, margin), (margin, margin), (0, 0)), mode='edge')
    blocks = np.lib.stride_tricks.sliding_window_view(padded, (cells, cells), axis=(0, 1))
    flat = blocks.reshape(*small.shape[:2], -1)  # from (h, w, 3, cells, cells)
    return flat / np.maximum(np.linalg.norm(flat, axis=-1, keepdims=True), 1e-6)
