# SPDX-License-Identifier: Apache-2.0
"""``drift_ros benchmark``: what a model needs, and what leaving heads out saves, measured here."""

from __future__ import annotations

from dataclasses import dataclass
import json
from pathlib import Path
import time
from typing import Any, TYPE_CHECKING

import click
import numpy as np
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from drift_ros.evaluation.baselines import EngineSpec
    from drift_ros.evaluation.datasets import DavisSequence

SD_1_5: dict[str, dict[str, Any]] = {
    'unet': {
        'sample_size': 64,
        'in_channels': 4,
        'out_channels': 4,
        'layers_per_block': 2,
        'block_out_channels': (320, 640, 1280, 1280),
        'attention_head_dim': 8,
        'cross_attention_dim': 768,
        'down_block_types': ('CrossAttnDownBlock2D',) * 3 + ('DownBlock2D',),
        'up_block_types': ('UpBlock2D',) + ('CrossAttnUpBlock2D',) * 3,
    },
    'vae': {
        'block_out_channels': (128, 256, 512, 512),
        'layers_per_block': 2,
        'latent_channels': 4,
        'down_block_types': ('DownEncoderBlock2D',) * 4,
        'up_block_types': ('UpDecoderBlock2D',) * 4,
        'sample_size': 512,
        'scaling_factor': 0.18215,
    },
    'text_encoder': {
        'vocab_size': 49408,
        'hidden_size': 768,
        'intermediate_size': 3072,
        'num_hidden_layers': 12,
        'num_attention_heads': 12,
        'max_position_embeddings': 77,
    },
    'scheduler': {
        'beta_start': 0.00085,
        'beta_end': 0.012,
        'beta_schedule': 'scaled_linear',
        'set_alpha_to_one': False,
        'steps_offset': 1,
        'clip_sample': False,
    },
}
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


@click.group()
def benchmark() -> None:
    """Measure what the tracker needs on this machine; no accuracy."""


@benchmark.command()
@click.option('--size', default=512, show_default=True, help='Side of a square frame, pixels.')
@click.option('--references', default=8, show_default=True, help='Remembered frames.')
@click.option(
    '--run',
    is_flag=True,
    help='Build it with random weights and follow an object for '
    'one frame on the CPU (needs 6 GB).',
)
def sd15(size: int, references: int, run: bool) -> None:
    """Estimate the memory of Stable Diffusion 1.5; with --run, check it with random weights."""
    console = Console()
    table = Table('', 'float32 (CPU)', 'float16 (GPU)', title='Stable Diffusion 1.5, GB')
    both = [estimate_memory(SD_1_5, size, size, half=half) for half in (False, True)]
    for name in ('unet', 'vae', 'text_encoder', 'activations', 'reference'):
        table.add_row(name, *(f'{getattr(each, name) / 1e9:.3f}' for each in both))
    table.add_row(
        f'tracking, {references} references',
        *(f'{each.tracking(references) / 1e9:.2f}' for each in both),
    )
    table.add_row('at most', *(f'{each.peak(references) / 1e9:.2f}' for each in both))
    console.print(table)
    if run:
        console.print_json(json.dumps(run_random(size)))


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
    layer = tracker._memory.pinned[0].features.layers[0]
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


@benchmark.command()
@click.argument('root')
@click.option('--sequences', default='', help='Names, separated by commas [default: all].')
@click.option(
    '--frames',
    default=24,
    show_default=True,
    type=click.IntRange(3),
    help='Per sequence; the first half warms up.',
)
@click.option(
    '-e',
    '--engine',
    'engines',
    multiple=True,
    metavar='[LABEL=]NAME[:OPTION=VALUE,...]',
    default=('attention=tracker:refinement=none', 'shipped=tracker', 'colour4:refinement=none'),
    show_default=True,
)
def step(root: str, sequences: str, frames: int, engines: tuple[str, ...]) -> None:
    """Time a step of the tracker on the DAVIS-layout folder ROOT, stage by stage."""
    from drift_ros.commands.evaluate import user_errors
    from drift_ros.evaluation.baselines import parse_engine
    from drift_ros.evaluation.datasets import find_sequences

    table = Table('engine', 'sequence', *STAGES, title='milliseconds, median')
    with user_errors():
        found = find_sequences(
            root, names=tuple(filter(None, sequences.split(','))), max_frames=frames
        )
        for engine in [parse_engine(text) for text in engines]:
            for sequence in found:
                row = time_steps(engine, sequence)
                table.add_row(
                    engine.label, sequence.name, *(f'{row[stage]:.0f}' for stage in STAGES)
                )
    Console().print(table)


STAGES = ('features', 'propagation', 'refinement', 'total')
"""Stages of a step: U-Net and autoencoder; kernel and memory; masks at the frame's size."""


def time_steps(engine: EngineSpec, sequence: DavisSequence) -> dict[str, float]:
    """
    Follow a sequence; give each stage's median in milliseconds over its second half.

    Raises
    ------
    ValueError
        The engine is not a tracker and knows no stages.

    """
    from drift_ros.api import Tracker
    from drift_ros.evaluation.protocol import seed_mask

    tracker = engine.make()
    if not isinstance(tracker, Tracker):
        raise ValueError(f'{engine.name} has no stages to time; choose tracker or colour4')
    frames = iter(sequence)
    first = next(frames)
    mask = seed_mask(first, 0, ())
    assert mask is not None  # find_sequences asks for a true mask in the first frame
    tracker.seed(first.image, mask)
    timings = [tracker.step(frame.image).timings for frame in frames]
    return {
        stage: float(np.median([row[stage] for row in timings[len(timings) // 2 :]]))
        for stage in STAGES
    }


@benchmark.command()
@click.argument('video', type=click.Path(path_type=Path, exists=True))
@click.argument('mask', type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option('--start', default=0, show_default=True, help='Frame of VIDEO the MASK is of.')
@click.option(
    '--after',
    multiple=True,
    default=(5, 20),
    show_default=True,
    type=click.IntRange(1),
    help='Tracked frames to show; may be repeated.',
)
@click.option('--refiners', default='none,colour,sam', show_default=True)
@click.option('--out', type=click.Path(path_type=Path), required=True, help='JPEG or PNG.')
def refiners(
    video: Path, mask: Path, start: int, after: tuple[int, ...], refiners: str, out: Path
) -> None:
    """Draw the masks of all refiners beside each other, frame by frame."""
    from drift_ros import Tracker, TrackerConfig
    from drift_ros.commands.evaluate import user_errors
    from drift_ros.media.overlay import contact_sheet, draw_labels
    from drift_ros.media.video import read_label_image, VideoReader, write_image

    names = refiners.split(',')
    with user_errors():
        frames = list(VideoReader(video, start, max(after) + 1))
        if len(frames) <= max(after):
            raise ValueError(
                f'{video} has {len(frames)} frames from frame {start} on; choose '
                '--after below that'
            )
        cells = {}
        for name in names:
            tracker = Tracker(config=TrackerConfig.of({'refinement.method': name}))
            tracker.seed(frames[0], read_label_image(mask))
            for index, frame in enumerate(frames[1:], start=1):
                labels = tracker.step(frame).labels
                if index in after:
                    cells[index, name] = draw_labels(frame, labels, 0.4)
        order = [(index, name) for index in after for name in names]
        write_image(
            out,
            contact_sheet(
                [cells[key] for key in order],
                3,
                captions=[f'{name}, +{index}' for index, name in order],
            ),
        )


@benchmark.command()
@click.option('--layers', default=3, show_default=True)
@click.option('--heads', default=8, show_default=True, help='Per layer.')
@click.option('--rows', default=30, show_default=True, help='Of the token grid (stride 8: 30).')
@click.option('--columns', default=54, show_default=True)
@click.option('--dim', default=40, show_default=True, help='Size of a head.')
@click.option('--radius', default=8, show_default=True, help='Window, in tokens.')
@click.option('--repeats', default=5, show_default=True)
def heads(
    layers: int, heads: int, rows: int, columns: int, dim: int, radius: int, repeats: int
) -> None:
    """Time the choice of head weights, and propagation with and without useless heads."""
    table = Table(
        'milliseconds, median',
        '',
        title=f'{layers} layers x {heads} heads on {rows} x {columns} tokens',
    )
    found = time_heads(layers, heads, rows, columns, dim, radius, repeats)
    for name, value in found.items():
        table.add_row(name, f'{value:.1f}')
    Console().print(table)


HEADS_BUDGET = 50.0
"""Milliseconds the choice of 3 x 8 heads at stride 8 may take on two cores."""


def time_heads(
    layers: int, heads: int, rows: int, columns: int, dim: int, radius: int, repeats: int
) -> dict[str, float]:
    """
    Time head weighting on random features, half of the heads useless: milliseconds.

    What is timed as the choice is all that is done between the passes of the network and the
    weights; those passes, of the embedded network over two altered copies, are timed apart.
    """
    import torch

    from drift_ros.diffusion.checkpoint import load_checkpoint
    from drift_ros.diffusion.features import DiffusionFeatures
    from drift_ros.engine.config import TrackerConfig
    from drift_ros.engine.features import FrameFeatures, LayerFeatures
    from drift_ros.engine.head_weights import choose_cells, HeadWeighting, Look, propagate_by_head
    from drift_ros.engine.memory import ReferenceMemory

    config = TrackerConfig.of({'kernel.radius': radius})
    generator = torch.Generator().manual_seed(0)
    mask = torch.zeros(rows, columns, 1)
    mask[rows // 4 : rows // 4 + rows // 3, columns // 4 : columns // 4 + columns // 3] = 1

    def layer() -> LayerFeatures:
        key = torch.randn(heads, rows, columns, dim, generator=generator)
        key[heads // 2 :] += (
            3.0 * mask[None] * torch.randn((heads - heads // 2, 1, 1, dim), generator=generator)
        )
        return LayerFeatures(key, key)

    image = np.zeros((8 * rows, 8 * columns, 3), np.uint8)
    features = FrameFeatures(tuple(layer() for _ in range(layers)), image)
    network = DiffusionFeatures(load_checkpoint(device='cpu'), resolution=8 * rows)
    times: dict[str, list[float]] = {}

    def clock(name: str, start: float) -> None:
        times.setdefault(name, []).append(1e3 * (time.perf_counter() - start))

    kept = 0
    looks = [
        Look(tuple(each.query for each in features.layers), mask, exclude)
        for exclude in (1, -1, -1)
    ]
    for _ in range(1 + repeats):  # the first is slower and left out
        weighting = HeadWeighting(config)
        start = time.perf_counter()
        weighting.add(features, mask, [1], lambda _: features)
        found = weighting.solve()
        clock(f'choice of weights (3 x 8 heads: {HEADS_BUDGET:.0f} at most)', start)
        places, _ = choose_cells(mask[..., 0].expand(3, -1, -1).numpy(), radius, weighting.cells)
        start = time.perf_counter()
        propagate_by_head(looks, features, mask, places, config)
        clock('  masks of every head, three looks', start)
        start = time.perf_counter()
        weighting.solve()
        clock('  solution', start)
        start = time.perf_counter()
        for _ in range(2):
            network.extract_resized(image)
        clock('not in it: two passes of the embedded network', start)
        memory = ReferenceMemory(config)
        memory.pin(features, mask, [1])
        for name, weights in (
            ('propagation of a frame, all heads', None),
            ('propagation of a frame, heads in use', found),
        ):
            memory.head_weights = weights
            start = time.perf_counter()
            memory.read(features)
            clock(name, start)
        kept = sum(int((each > 0).sum()) for each in found or ())
    medians = {name: float(np.median(values[1:])) for name, values in times.items()}
    every, used = (
        medians[f'propagation of a frame, {which}'] for which in ('all heads', 'heads in use')
    )
    return {
        **medians,
        'saved by heads of weight zero, per frame': every - used,
        'heads in use': float(kept),
    }
