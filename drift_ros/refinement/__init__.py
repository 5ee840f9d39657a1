# SPDX-License-Identifier: Apache-2.0
"""Refiners: from blurred token-grid probabilities to the image's edges."""

from typing import Protocol

import numpy as np

from drift_ros.refinement.guided import GuidedFilter


class FrameRefiner(Protocol):
    """Refines the objects of one frame, whose image was looked at once."""

    def refine(self, probability: np.ndarray) -> np.ndarray:
        """Refine one object's (H, W) float32 probability in [0, 1]: same shape and range."""


class Refiner(Protocol):
    """Makes a :class:`FrameRefiner` of each frame."""

    def begin(self, frame: np.ndarray) -> FrameRefiner:
        """Look at a frame, (H, W, 3) uint8 RGB."""


def make_refiner(name: str) -> Refiner | None:
    """Make the refiner that the option ``refinement`` names; None for 'none'."""
    return GuidedFilter() if name == 'guided' else None
