# SPDX-License-Identifier: Apache-2.0
"""Edge-aware refinement without weights."""

import cv2
import numpy as np


class GuidedFilter:
    """Guided image filter (He, Sun, Tang 2010), OpenCV's, with the frame as its guide."""

    def __init__(self, radius: float = 1 / 60, smoothness: float = 5.0) -> None:
        """
        Set the filter.

        Parameters
        ----------
        radius : float
            Half width of the filter's window, in shares of the frame's shorter side.
        smoothness : float
            Grey levels (of 255) below which a difference does not count as an edge.

        """
        self._radius = radius
        self._epsilon = smoothness**2

    def begin(self, frame: np.ndarray) -> '_GuidedFrame':
        """Compute the guide's statistics once for all objects."""
        radius = max(round(self._radius * min(frame.shape[:2])), 1)
        return _GuidedFrame(cv2.ximgproc.createGuidedFilter(frame, radius, self._epsilon))


class _GuidedFrame:
    def __init__(self, guided: 'cv2.ximgproc.GuidedFilter') -> None:
        self._guided = guided

    def refine(self, probability: np.ndarray) -> np.ndarray:
        return np.clip(self._guided.filter(probability), 0.0, 1.0)
