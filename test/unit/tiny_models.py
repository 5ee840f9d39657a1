# SPDX-License-Identifier: Apache-2.0
"""Small, randomly initialised checkpoints with the attention layouts of SD 1.x, 2.x and SDXL."""

import json
from pathlib import Path

from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
)

from drift_ros.experiments.full_size import write_tokenizer

# The fields in which the families differ, as in their published configs, at a small width.
FAMILIES = {
    # SD 1.x: a fixed number of heads, 1x1 convolutions around the transformer, epsilon.
    'sd1': {
        'unet': {'attention_head_dim': 4, 'use_linear_projection': False},
        'prediction_type': 'epsilon',
    },
    # SD 2.x: heads grow with the width, linear projections, v prediction.
    'sd2': {
        'unet': {
            'attention_head_dim': (2, 4, 4),
            'use_linear_projection': True,
            'upcast_attention': True,
        },
        'prediction_type': 'v_prediction',
    },
    # SDXL: no attention at the finest level, deeper transformers, pooled text and time ids.
    'sdxl': {
        'unet': {
            'attention_head_dim': (2, 4, 4),
            'use_linear_projection': True,
            'transformer_layers_per_block': (1, 2, 3),
            'addition_embed_type': 'text_time',
            'addition_time_embed_dim': 8,
            'projection_class_embeddings_input_dim': 6 * 8 + 32,
            'cross_attention_dim': 64,
            'down_block_types': (
                'DownBlock2D',
                'CrossAttnDownBlock2D',
                'CrossAttnDownBlock2D',
            ),
            'up_block_types': ('CrossAttnUpBlock2D', 'CrossAttnUpBlock2D', 'UpBlock2D'),
        },
        'prediction_type': 'epsilon',
    },
}


def make_unet(family: str) -> UNet2DConditionModel:
    torch.manual_seed(0)
    options = {
        'sample_size': 16,
        'in_channels': 4,
        'out_channels': 4,
        'block_out_channels': (16, 32, 32),
        'layers_per_block': 1,
        'norm_num_groups': 8,
        'cross_attention_dim': 32,
        'down_block_types': ('CrossAttnDownBlock2D', 'CrossAttnDownBlock2D', 'DownBlock2D'),
        'up_block_types': ('UpBlock2D', 'CrossAttnUpBlock2D', 'CrossAttnUpBlock2D'),
        **FAMILIES[family]['unet'],
    }
    return UNet2DConditionModel(**options).eval()


def save_checkpoint(folder: Path, family: str) -> Path:
    """Write a whole checkpoint folder of the family's layout."""
    torch.manual_seed(1)
    vae = AutoencoderKL(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=('DownEncoderBlock2D',) * 4,
        up_block_types=('UpDecoderBlock2D',) * 4,
        norm_num_groups=4,
        latent_channels=4,
    )
    text = CLIPTextConfig(
        vocab_size=300,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        projection_dim=32,
    )
    index = {'_class_name': 'StableDiffusionPipeline', '_diffusers_version': '0.30.0'}
    suffixes = ('', '_2') if family == 'sdxl' else ('',)
    for suffix in suffixes:
        cls = CLIPTextModelWithProjection if suffix else CLIPTextModel
        cls(text).save_pretrained(folder / f'text_encoder{suffix}')
        write_tokenizer(folder / f'tokenizer{suffix}', text.max_position_embeddings)
        index[f'text_encoder{suffix}'] = ['transformers', cls.__name__]
        index[f'tokenizer{suffix}'] = ['transformers', 'CLIPTokenizer']
    make_unet(family).save_pretrained(folder / 'unet')
    vae.save_pretrained(folder / 'vae')
    DDIMScheduler(prediction_type=FAMILIES[family]['prediction_type']).save_pretrained(
        folder / 'scheduler'
    )
    index.update(
        unet=['diffusers', 'UNet2DConditionModel'],
        vae=['diffusers', 'AutoencoderKL'],
        scheduler=['diffusers', 'DDIMScheduler'],
    )
    (folder / 'model_index.json').write_text(json.dumps(index))
    return folder
