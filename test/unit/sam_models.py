# SPDX-License-Identifier: Apache-2.0
"""Segment Anything models of random weights, of the real classes but small."""

import json

from safetensors.torch import save_file
import torch

from drift_ros.refinement.sam_weights import build_sam

SMALL = {
    'image_size': 64,
    'patch_size': 8,
    'width': 16,
    'depth': 2,
    'heads': 2,
    'mlp_ratio': 2.0,
    'window': 4,
    'global_blocks': [1],
    'relative_positions': False,
    'prompt_width': 32,
    'decoder_heads': 4,
    'decoder_mlp': 32,
    'iou_width': 16,
}
# as published: relative positions, eight decoder heads
OFFICIAL = {**SMALL, 'relative_positions': True, 'decoder_heads': 8, 'mlp_ratio': 4.0}


def random_sam(config=None, seed=0):
    """Make a model whose masks are noise."""
    torch.manual_seed(seed)
    return build_sam(config or SMALL).eval()


def save_folder(folder):
    """Write a model as the training does."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.half().contiguous() for name, value in random_sam().state_dict().items()}
    save_file(state, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps({'model': SMALL}))
    return folder


def save_official(path):
    """Write a file as published: a pickled dictionary of tensors."""
    torch.save(random_sam(OFFICIAL).state_dict(), path)
    return path
