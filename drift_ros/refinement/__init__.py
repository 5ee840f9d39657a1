# SPDX-License-Identifier: Apache-2.0
"""
Refiners: from blurred token-grid probabilities to the image's edges.

A refiner looks at a frame once, with the coarse probabilities of all objects, and gives back a
:class:`Refined` that renders them one at a time.
"""

from collections.abc import Iterable, Mapping
from typing import Protocol, TYPE_CHECKING

import numpy as np

from drift_ros.refinement.bilateral import (
    OnTop,
    Smoother,
    Upsampling,
)
from drift_ros.refinement.colour import ColourSolver

if TYPE_CHECKING:
    import torch

    from drift_ros.engine.config import TrackerConfig


class Refined(Protocol):
    """
    The refined objects of one frame.

    Attributes
    ----------
    accepted : frozenset of int
        Objects whose masks were segmented anew and passed the gate. The masks of the others are
        the coarse ones, smoothed along edges.

    """

    accepted: frozenset[int]

    def probability(self, object_id: int) -> np.ndarray:
        """Render an object: (H, W) float32 in [0, 1]."""


class Refiner(Protocol):
    """Makes a :class:`Refined` of each frame."""

    def refine(self, frame: np.ndarray, coarse: Mapping[int, np.ndarray]) -> Refined:
        """
        Refine all objects of a frame.

        Parameters
        ----------
        frame : np.ndarray
            (H, W, 3) uint8 RGB.
        coarse : mapping from int to np.ndarray
            By object id, (h, w) float32 in [0, 1], probabilities on the token grid; their sum is
            at most 1.

        """

    def remember(self, frame: np.ndarray, masks: Mapping[int, np.ndarray]) -> None:
        """
        Look at new objects in their seed frame.

        Parameters
        ----------
        frame : np.ndarray
            (H, W, 3) uint8 RGB.
        masks : mapping from int to np.ndarray
            By object id, (H, W) bool.

        """

    def forget(self, object_ids: Iterable[int]) -> None:
        """Let go of what was remembered of objects."""


class Every(OnTop):
    """Refines every ``period``-th frame; a cheaper refiner does those between."""

    def __init__(self, refiner: Refiner, between: Smoother, period: int) -> None:
        self._refiner, self._smooth, self._period = refiner, between, period
        self._frame = 0

    def refine(self, frame: np.ndarray, coarse: Mapping[int, np.ndarray]) -> Refined:
        """Refine as one of the two does."""
        due = self._frame % self._period == 0
        self._frame += 1
        chosen: Refiner = self._refiner if due else self._smooth
        return chosen.refine(frame, coarse)


def make_refiner(config: 'TrackerConfig', device: 'str | torch.device' = 'auto') -> Refiner:
    """
    Make the refiner that the options ask for.

    Raises
    ------
    CheckpointError
        ``sam_checkpoint`` cannot be used; the message says what to do.

    """
    if config.refinement.method == 'none':
        return Upsampling()
    smooth = ColourSolver()
    if config.refinement.method == 'colour':
        return smooth
    from drift_ros.refinement.sam import sam_predictor, SamRefiner

    predictor = sam_predictor(config.refinement.sam_checkpoint, device)
    refiner = SamRefiner(predictor, smooth, gate=config.refinement.gate)
    every = config.refinement.every
    return Every(refiner, smooth, every) if every > 1 else refiner
