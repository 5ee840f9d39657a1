# SPDX-License-Identifier: Apache-2.0
"""
Checkpoints at their true size with random weights: what they need, estimated and measured.

No accuracy follows from any of it. What does: that a layout loads, which layers it has, how long a
frame takes, and whether the estimate that is asked for room before loading
(:mod:`drift_ros.diffusion.budget`) is true.
"""

from __future__ import annotations

from collections.abc import Mapping
import json
from pathlib import Path
import time
from typing import Any, TYPE_CHECKING

import numpy as np
import yaml

if TYPE_CHECKING:
    import torch

LAYOUTS: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name('layouts.yaml').read_text(encoding='utf-8')
)
"""By name: 'title', and the settings of 'unet', 'vae', 'text_encoder' and 'scheduler'."""


def write_random(
    layout: Mapping[str, Mapping[str, Any]],
    folder: Path,
    dtype: torch.dtype,
    shard: str = '10GB',
    variant: str | None = None,
) -> Path:
    """
    Write a checkpoint folder of random weights.

    Parameters
    ----------
    layout : mapping
        One of :data:`LAYOUTS`.
    folder : Path
    dtype : torch.dtype
        Of the U-Net's and the autoencoder's files.
    shard : str
        Files of weights are no larger.
    variant : str, optional
        Such as 'fp16': goes into the names of the files.

    Returns
    -------
    Path
        The folder.

    """
    from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    import torch
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        for name, cls in (('unet', UNet2DConditionModel), ('vae', AutoencoderKL)):
            model = cls(**layout[name])
            model.save_pretrained(folder / name, max_shard_size=shard, variant=variant)
            del model
    finally:
        torch.set_default_dtype(before)
    index = {
        '_class_name': 'StableDiffusionPipeline',
        'unet': ['diffusers', 'UNet2DConditionModel'],
        'vae': ['diffusers', 'AutoencoderKL'],
        'scheduler': ['diffusers', 'DDIMScheduler'],
    }
    for suffix, text in (('', CLIPTextModel), ('_2', CLIPTextModelWithProjection)):
        if f'text_encoder{suffix}' in layout:
            config = CLIPTextConfig(**layout[f'text_encoder{suffix}'])
            text(config).save_pretrained(folder / f'text_encoder{suffix}', variant=variant)
            write_tokenizer(folder / f'tokenizer{suffix}', config.max_position_embeddings)
            index[f'text_encoder{suffix}'] = ['transformers', text.__name__]
            index[f'tokenizer{suffix}'] = ['transformers', 'CLIPTokenizer']
    DDIMScheduler(**layout['scheduler']).save_pretrained(folder / 'scheduler')
    (folder / 'model_index.json').write_text(json.dumps(index))
    return folder


def write_tokenizer(folder: Path, length: int) -> None:
    """Write a tokenizer of letters: the empty prompt needs no words."""
    from transformers import CLIPTokenizer

    folder.mkdir(parents=True)
    letters = [chr(code) for code in range(ord('a'), ord('z') + 1)]
    tokens = [*letters, *(f'{c}</w>' for c in letters), '<|startoftext|>', '<|endoftext|>']
    numbered = {token: number for number, token in enumerate(tokens)}
    (folder / 'vocab.json').write_text(json.dumps(numbered))
    (folder / 'merges.txt').write_text('#version: 0.2\n')
    CLIPTokenizer.from_pretrained(folder, model_max_length=length).save_pretrained(folder)


def measure(folder: Path, resolution: int, dtype: torch.dtype) -> dict[str, Any]:
    """
    Load a folder on the CPU, follow an object for a frame, and note what that took.

    To be called in a process of its own: what others have left would hide what is taken.

    Returns
    -------
    dict
        'layers': (heads, rows, columns, size) by name; 'seconds' and 'bytes' by what they were
        spent on: 'weights' and 'reference' as tensors that are held, 'loading' and 'pass' as
        memory of the process, at most, without pages of files.

    """
    from drift_ros.api import Tracker
    from drift_ros.diffusion.checkpoint import load_checkpoint
    from drift_ros.diffusion.features import DiffusionFeatures
    from drift_ros.engine.config import TrackerConfig
    from drift_ros.experiments.speed import Peak

    start = time.perf_counter()
    with Peak(private=True) as loading:
        checkpoint = load_checkpoint(folder, device='cpu', dtype=dtype)
    loaded = time.perf_counter() - start
    config = TrackerConfig.of({'features.resolution': resolution, 'states.confidence': 0.0})
    features = DiffusionFeatures(checkpoint, resolution=resolution, precision='float32')
    frame = np.random.default_rng(0).integers(0, 256, (resolution, resolution, 3), np.uint8)
    start = time.perf_counter()
    with Peak(private=True) as taken:
        found = features.extract(frame)
    passed = time.perf_counter() - start
    mask = np.zeros((resolution, resolution), np.uint8)
    mask[resolution // 4 : resolution // 2, resolution // 4 : resolution // 2] = 1
    tracker = Tracker(config=config, features=features)
    tracker.seed(frame, mask)
    labels = 4 * 2 * found.grid[0] * found.grid[1]  # of the background and one object, float32
    reference = tracker.memory_bytes - labels
    tracker.step(frame)
    return {
        'layers': dict(
            zip(features.layers, (list(x.query.shape) for x in found.layers), strict=True)
        ),
        'seconds': {'loading': loaded, 'pass': passed},
        'bytes': {
            'loading': loading.more,
            'weights': checkpoint.nbytes,
            'pass': taken.more,
            'reference': reference,
        },
    }


def measured(
    layout: Mapping[str, Mapping[str, Any]],
    resolution: int,
    dtype: torch.dtype,
    folder: Path | None = None,
) -> dict[str, Any]:
    """
    Write random weights of a layout, and :func:`measure` them, each in a process of its own.

    Raises
    ------
    ValueError
        The folder holds something.

    """
    from concurrent.futures import ProcessPoolExecutor
    import multiprocessing
    import tempfile

    if folder is not None and folder.exists() and any(folder.iterdir()):
        raise ValueError(f'{folder} is not empty: give a folder that can be written to')
    spawn = multiprocessing.get_context('spawn')
    with tempfile.TemporaryDirectory(prefix='drift_ros_') as name:
        place = folder or Path(name, 'model')
        for call in ((write_random, layout, place, dtype), (measure, place, resolution, dtype)):
            with ProcessPoolExecutor(1, mp_context=spawn) as process:
                found = process.submit(*call).result()
    return found
