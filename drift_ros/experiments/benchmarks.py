# SPDX-License-Identifier: Apache-2.0
"""What a model needs, and what leaving heads out saves, measured here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
import time
from typing import Any

import numpy as np
import yaml

SD_1_5: dict[str, dict[str, Any]] = yaml.safe_load(
    Path(__file__).with_name('stable_diffusion_1_5.yaml').read_text(encoding='utf-8')
)
"""The published layout of Stable Diffusion 1.5; 'unet', 'vae', 'text_encoder', 'scheduler'."""


@dataclass(frozen=True)
class MemoryEstimate:
    """
    Bytes a model takes while it follows objects.

    Attributes
    ----------
    unet, vae : int
        Weights.
    text_encoder : int
        Weights, in float32; only while the model is loaded.
    activations : int
        Largest of what the autoencoder and the U-Net hold at one time in a pass.
    reference : int
        One remembered frame of one layer on the finest grid but one of the latents: keys and
        queries in half precision.

    """

    unet: int
    vae: int
    text_encoder: int
    activations: int
    reference: int

    def tracking(self, references: int) -> int:
        """Bytes while tracking with this many remembered frames."""
        return self.unet + self.vae + self.activations + references * self.reference

    def peak(self, references: int) -> int:
        """Bytes at most: while loading, or while tracking."""
        return max(self.unet + self.vae + self.text_encoder, self.tracking(references))


def estimate_memory(
    layout: dict[str, dict[str, Any]], height: int, width: int, *, half: bool, samples: int = 1
) -> MemoryEstimate:
    """
    Estimate what a checkpoint of this layout needs for frames of this working size.

    Weights are counted exactly, without allocating them. Activations are an upper estimate for
    attention that does not store its affinities (as PyTorch's): in the U-Net the skip
    connections of the whole way down and eight maps of the widest level; in the autoencoder's
    encoder eight maps of the first level. Attention slicing is neither assumed nor needed.
    docs/ablation.md compares the estimate with a run.

    Parameters
    ----------
    layout : dict
        Configurations of 'unet', 'vae' and 'text_encoder', as :data:`SD_1_5`.
    height, width : int
        Working size in pixels.
    half : bool
        Whether the weights are float16 (as on a GPU) or float32.
    samples : int
        Latents in one pass (``noise_samples``).

    """
    import torch

    with torch.device('meta'):
        unet, vae, text = _build(layout)
    size = 2 if half else 4

    def weights(model: torch.nn.Module, each: int) -> int:
        return sum(p.numel() for p in model.parameters()) * each

    stride = 2 ** (len(vae.config.block_out_channels) - 1)
    channels = unet.config.block_out_channels
    maps = [
        samples * (height // stride >> level) * (width // stride >> level) * count
        for level, count in enumerate(channels)
    ]
    repeated = unet.config.layers_per_block + 1
    # A feed-forward layer is eight times as wide as its map, for a moment.
    deep = sum(repeated * each for each in maps) + 8 * max(maps)
    first = 8 * height * width * vae.config.block_out_channels[0]
    return MemoryEstimate(
        weights(unet, size),
        weights(vae, size),
        weights(text, 4),
        max(deep, first) * size,
        2 * 2 * maps[0] // samples,
    )


def _build(layout: dict[str, dict[str, Any]]) -> tuple[Any, Any, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    return (
        UNet2DConditionModel(**layout['unet']),
        AutoencoderKL(**layout['vae']),
        CLIPTextModel(CLIPTextConfig(**layout['text_encoder'])),
    )


def random_checkpoint(layout: dict[str, dict[str, Any]]) -> Any:
    """Make a :class:`~drift_ros.diffusion.checkpoint.Checkpoint` of random weights, float32."""
    from diffusers import DDIMScheduler
    import torch

    from drift_ros.diffusion.checkpoint import Checkpoint

    torch.manual_seed(0)
    unet, vae, text = _build(layout)
    for model in (unet, vae, text):
        model.eval().requires_grad_(False)
    with torch.no_grad():
        tokens = torch.full((1, layout['text_encoder']['max_position_embeddings']), 49407)
        prompt = text(tokens)[0]
    del text
    return Checkpoint(
        'random',
        unet.to(memory_format=torch.channels_last),
        vae.to(memory_format=torch.channels_last),
        DDIMScheduler(**layout['scheduler']),
        prompt,
        {},
    )


def run_random(size: int) -> dict[str, Any]:
    """Seed and step once with random weights of SD 1.5's size; shapes, seconds and gigabytes."""
    from drift_ros.api import Tracker
    from drift_ros.diffusion.features import DiffusionFeatures
    from drift_ros.engine.config import TrackerConfig

    start = time.perf_counter()
    checkpoint = random_checkpoint(SD_1_5)
    built = time.perf_counter() - start
    config = TrackerConfig.of({'features.resolution': size, 'states.confidence': 0.0})
    features = DiffusionFeatures(checkpoint, resolution=size)
    tracker = Tracker(config=config, features=features)
    frame = np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8)
    mask = np.zeros((size, size), np.uint8)
    mask[size // 4 : size // 2, size // 4 : size // 2] = 1
    start = time.perf_counter()
    tracker.seed(frame, mask)
    seeded = time.perf_counter() - start
    result = tracker.step(frame)
    layer = features.extract(frame).layers[0]
    return {
        'parameters of the U-Net': sum(p.numel() for p in checkpoint.unet.parameters()),
        'layers': features.layers,
        'query (heads, rows, columns, size)': list(layer.query.shape),
        'labels': list(result.labels.shape),
        'seconds to build': round(built, 1),
        'seconds to seed': round(seeded, 1),
        'milliseconds of a step': {k: round(v) for k, v in result.timings.items()},
        'peak resident GB': round(_peak_memory() / 1e9, 2),
    }


def _peak_memory() -> int:
    """Return this process's largest resident size so far, in bytes."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


STAGES = ('features', 'propagation', 'refinement', 'memory', 'total')
"""
Stages of a step: U-Net and autoencoder; kernel, prompt and motion; masks at the frame's size; what
comes after the result is given out, remembering and learning.
"""


HEADS_BUDGET = 50.0
"""Milliseconds the choice of 3 x 8 heads at stride 8 may take on two cores."""


class RandomHeads:
    """
    The same random queries and keys for every frame; half of the heads see an object.

    Parameters
    ----------
    layers, heads, rows, columns, dim : int
        Layers, heads of each, token grid, size of a head.

    """

    def __init__(self, layers: int, heads: int, rows: int, columns: int, dim: int) -> None:
        import torch

        from drift_ros.engine.frame_features import FrameFeatures, LayerFeatures

        generator = torch.Generator().manual_seed(0)
        self.mask = np.zeros((8 * rows, 8 * columns), np.uint8)
        top, left = 8 * (rows // 4), 8 * (columns // 4)
        self.mask[top : top + 8 * (rows // 3), left : left + 8 * (columns // 3)] = 1
        seen = torch.from_numpy(self.mask[::8, ::8].astype(np.float32))[None, ..., None]
        found = []
        for _ in range(layers):
            key = torch.randn(heads, rows, columns, dim, generator=generator)
            mark = torch.randn((heads - heads // 2, 1, 1, dim), generator=generator)
            key[heads // 2 :] += 3.0 * seen * mark
            found.append(LayerFeatures(key, key))
        self.image = np.zeros((*self.mask.shape, 3), np.uint8)
        self._found = FrameFeatures(tuple(found), self.image)

    def extract(self, frame: np.ndarray) -> Any:
        """Give the features, whatever the frame."""
        return self._found

    extract_resized = extract


def time_heads(
    layers: int, heads: int, rows: int, columns: int, dim: int, radius: int, repeats: int
) -> dict[str, float]:
    """
    Time seeds and steps on random features, half of the heads useless: medians in milliseconds.

    The passes of the network over altered copies, which the choice of weights needs besides,
    take no time here.
    """
    from drift_ros.api import Tracker
    from drift_ros.engine.config import TrackerConfig

    features = RandomHeads(layers, heads, rows, columns, dim)
    found: dict[str, float] = {}
    for name, weighting in (('all heads', 'uniform'), ('heads in use', 'adaptive')):
        config = TrackerConfig.of(
            {
                'kernel.radius': radius,
                'refinement.method': 'none',
                'experimental.head_weighting': weighting,
            }
        )
        tracker = Tracker(config=config, features=features)
        seeds, steps = [], []
        for _ in range(1 + repeats):  # the first is slower and left out
            tracker.reset()
            start = time.perf_counter()
            tracker.seed(features.image, features.mask)
            seeds.append(1e3 * (time.perf_counter() - start))
            steps.append(tracker.step(features.image).timings['propagation'])
        found[f'seed, {name}'] = float(np.median(seeds[1:]))
        found[f'propagation of a frame, {name}'] = float(np.median(steps[1:]))
    whole, used = (
        [found[f'{what}, {which}'] for which in ('all heads', 'heads in use')]
        for what in ('seed', 'propagation of a frame')
    )
    return {
        **found,
        f'choice of weights (3 x 8 heads: {HEADS_BUDGET:.0f} at most)': whole[1] - whole[0],
        'saved by heads of weight zero, per frame': used[0] - used[1],
    }


def draw_refiners(
    frames: Sequence[np.ndarray], mask: np.ndarray, names: Sequence[str], after: Sequence[int]
) -> np.ndarray:
    """
    Draw the masks of refiners beside each other.

    Parameters
    ----------
    frames : sequence of np.ndarray
        (H, W, 3) uint8 RGB.
    mask : np.ndarray
        (H, W) labels in the first frame.
    names : sequence of str
        Of refiners, a column each.
    after : sequence of int
        Tracked frames to show, a row each.

    Returns
    -------
    np.ndarray
        (h, w, 3) uint8 RGB.

    """
    from drift_ros import Tracker, TrackerConfig
    from drift_ros.media.overlay import contact_sheet, draw_labels

    cells = {}
    for name in names:
        tracker = Tracker(config=TrackerConfig.of({'refinement.method': name}))
        tracker.seed(frames[0], mask)
        for index, frame in enumerate(frames[1:], start=1):
            labels = tracker.step(frame).labels
            if index in after:
                cells[index, name] = draw_labels(frame, labels, 0.4)
    order = [(index, name) for index in after for name in names]
    return contact_sheet(
        [cells[key] for key in order], 3, captions=[f'{name}, +{index}' for index, name in order]
    )
