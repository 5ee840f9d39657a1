# SPDX-License-Identifier: Apache-2.0
"""Refiners: from blurred token-grid probabilities to the image's edges."""

from typing import TYPE_CHECKING

from drift_ros.refinement.colour import ColourSolver
from drift_ros.refinement.refiner import Every, Refined, Refiner, SeedLook, Upsampling

if TYPE_CHECKING:
    import torch

    from drift_ros.engine.config import TrackerConfig

__all__ = ['make_refiner', 'Refined', 'Refiner', 'SeedLook']


def make_refiner(config: 'TrackerConfig', device: 'str | torch.device' = 'auto') -> Refiner:
    """
    Make the refiner that the options ask for.

    Raises
    ------
    CheckpointError
        ``sam_checkpoint`` cannot be used; the message says what to do.

    """
    options = config.refinement
    if options.method == 'none':
        return Upsampling()
    colour = ColourSolver()
    if options.method == 'colour':
        return colour
    from drift_ros.refinement.sam import SamRefiner, shared_sam

    sam = SamRefiner(shared_sam(options.sam_checkpoint, device), colour, gate=options.gate)
    return Every(sam, colour, options.every) if options.every > 1 else sam
