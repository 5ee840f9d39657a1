# SPDX-License-Identifier: Apache-2.0
"""The part of a frame in which an object is looked at."""

import cv2
import numpy as np


def object_window(
    mask: np.ndarray, size: tuple[int, ...], margin: float = 0.3
) -> tuple[int, int, int, int] | None:
    """
    Find the part of a frame in which to look at the objects of a coarse mask.

    Parameters
    ----------
    mask : np.ndarray
        (h, w) bool, on any grid.
    size : tuple of int
        (H, W) of the frame.
    margin : float
        Share of the longer side of the mask's box added at each side.

    Returns
    -------
    tuple of int or None
        (x_min, y_min, x_max, y_max) in pixels, maxima exclusive; None for an empty mask.

    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    if not width:
        return None
    scale = np.array([size[1] / mask.shape[1], size[0] / mask.shape[0]] * 2)
    pad = margin * max(width, height) + 2
    box = np.array([x - pad, y - pad, x + width + pad, y + height + pad]) * scale
    x0, y0 = np.maximum(np.floor(box[:2]), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(box[2:]), [size[1], size[0]]).astype(int)
    return int(x0), int(y0), int(x1), int(y1)


def reduced_part(
    frame: np.ndarray, window: tuple[int, int, int, int], side: int
) -> tuple[np.ndarray, float]:
    """Give a window of a frame with its longer side reduced to ``side``, and the scale."""
    x0, y0, x1, y1 = window
    scale = min(side / max(x1 - x0, y1 - y0), 1.0)
    size = (max(round(scale * (x1 - x0)), 8), max(round(scale * (y1 - y0)), 8))
    return cv2.resize(frame[y0:y1, x0:x1], size, interpolation=cv2.INTER_AREA), scale
