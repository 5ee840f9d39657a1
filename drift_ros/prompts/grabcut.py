# SPDX-License-Identifier: Apache-2.0
"""GrabCut (Rother, Kolmogorov, Blake 2004): masks by colour statistics, without weights."""

import cv2
import numpy as np


def grab_cut(image: np.ndarray, mask: np.ndarray, iterations: int) -> bool:
    """
    Run GrabCut from a mask of its four labels, which it changes; the same on every run.

    Returns whether it could: an image may have fewer colours than its models have components.
    """
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(image, mask, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        return False
    return True


def foreground(mask: np.ndarray) -> np.ndarray:
    """Where a mask of GrabCut's labels says foreground, for sure or probably: bool."""
    return np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD))
