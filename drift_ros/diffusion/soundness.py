# SPDX-License-Identifier: Apache-2.0
"""
Whether a checkpoint can be tracked with: one small pass, before any frame comes.

A network whose weights are damaged, empty, of another kind, or too large for half precision would
otherwise fail on each frame, or give objects that are never found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from drift_ros.engine.errors import CheckpointError
from drift_ros.engine.finite import first_not_finite

if TYPE_CHECKING:
    from drift_ros.diffusion.checkpoint import Checkpoint
    from drift_ros.diffusion.features import DiffusionFeatures

_KINDS = {
    5: 'a depth-to-image model',
    7: 'an upscaler',
    8: 'an InstructPix2Pix model',
    9: 'an inpainting model',
}
"""What U-Nets with so many channels in are, where latents have 4."""


def check_channels(checkpoint: Checkpoint) -> None:
    """
    Check that the U-Net takes what the autoencoder gives, and nothing besides.

    Raises
    ------
    CheckpointError

    """
    wanted = int(checkpoint.unet.config.in_channels)
    given = int(checkpoint.vae.config.latent_channels)
    if wanted != given:
        kind = f'it is {_KINDS[wanted]}; ' if given == 4 and wanted in _KINDS else ''
        raise CheckpointError(
            f'the U-Net of {checkpoint.name} takes {wanted} channels, its autoencoder gives '
            f'{given} (unet/config.json, in_channels): {kind}use a text-to-image checkpoint of '
            'the same family'
        )


def check_features(features: DiffusionFeatures) -> None:
    """
    Take a small picture through everything a frame goes through.

    Parameters
    ----------
    features : DiffusionFeatures

    Raises
    ------
    CheckpointError
        That fails, or gives values that are not finite or the same everywhere; names the part.

    """
    checkpoint = features.checkpoint
    name = checkpoint.name
    check_channels(checkpoint)
    if not checkpoint.prompt.isfinite().all():
        raise CheckpointError(
            f'the text encoder of {name} gives values that are not finite numbers: its weights '
            'are damaged; get the folder again'
        )
    image = _picture(2 * features.stride)
    try:
        latents = features.encode(image)
        found = features.extract_resized(image)
    except torch.cuda.OutOfMemoryError as error:
        raise CheckpointError(f'the GPU has not enough memory for {name}: {error}') from error
    except Exception as error:  # whatever a network of another kind raises
        reason = ' '.join(str(error).split())[:300]
        raise CheckpointError(
            f'{name} loads, but a small picture cannot be taken through it '
            f'({type(error).__name__}: {reason}): its parts do not belong together, or it is not '
            'of the Stable Diffusion kind'
        ) from error
    if not latents.isfinite().all():
        raise _not_finite(name, 'autoencoder', checkpoint.vae)
    for layer in found.layers:
        if not (layer.query.isfinite().all() and layer.key.isfinite().all()):
            raise _not_finite(name, 'U-Net', checkpoint.unet)
    if not any(layer.key.flatten(1, 2).std(dim=1).any() for layer in found.layers):
        raise CheckpointError(
            f'{name} sees no difference between the parts of a picture: its weights are empty or '
            'were never trained; get the folder again'
        )


def _picture(side: int) -> np.ndarray:
    """Make a picture (side, side, 3) uint8 of slopes and noise; the same each time."""
    y, x = np.mgrid[0:side, 0:side] / side
    slopes = 255 * np.dstack([x, y, 0.5 + 0 * x])
    noise = np.random.default_rng(0).normal(0, 40, slopes.shape)
    return (slopes + noise).clip(0, 255).astype(np.uint8)


def _not_finite(name: str, part: str, model: torch.nn.Module) -> CheckpointError:
    weight = first_not_finite(model)
    kind = str(next(model.parameters()).dtype).removeprefix('torch.')
    if weight:
        wide = '' if kind == 'float32' else f', or too large for {kind}'
        return CheckpointError(
            f'the {part} of {name} has weights that are not finite numbers ({weight}): they are '
            f'damaged{wide}; get the folder again'
        )
    return CheckpointError(
        f'the {part} of {name} gives values that are not finite numbers in {kind}: it '
        'overflows. Use a '
        'checkpoint made for half precision (for SDXL one with a mended autoencoder, or '
        'force_upcast: true in vae/config.json), or device cpu'
    )
