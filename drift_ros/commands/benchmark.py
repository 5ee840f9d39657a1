# SPDX-License-Identifier: Apache-2.0
"""``drift_ros benchmark``: what a model needs, and what leaving heads out saves, measured here."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from drift_ros.commands.running import user_errors


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
    from drift_ros.experiments.benchmarks import estimate_memory, run_random, SD_1_5

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
    from drift_ros.evaluation.datasets import find_sequences, sound
    from drift_ros.evaluation.engines import parse_engine
    from drift_ros.experiments.benchmarks import STAGES, time_steps

    table = Table('engine', 'sequence', *STAGES, title='milliseconds, median')
    with user_errors():
        found = find_sequences(
            root, names=tuple(filter(None, sequences.split(','))), max_frames=frames
        )
        for engine in [parse_engine(text) for text in engines]:
            for sequence in sound(found):
                row = time_steps(engine, sequence)
                table.add_row(
                    engine.label, sequence.name, *(f'{row[stage]:.0f}' for stage in STAGES)
                )
    Console().print(table)


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
    from drift_ros.experiments.benchmarks import draw_refiners
    from drift_ros.media.labels import read_labels
    from drift_ros.media.video import VideoReader, write_image

    with user_errors():
        frames = list(VideoReader(video, start, max(after) + 1))
        if len(frames) <= max(after):
            raise ValueError(
                f'{video} has {len(frames)} frames from frame {start} on; choose '
                '--after below that'
            )
        write_image(out, draw_refiners(frames, read_labels(mask), refiners.split(','), after))


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
    from drift_ros.experiments.benchmarks import time_heads

    table = Table(
        'milliseconds, median',
        '',
        title=f'{layers} layers x {heads} heads on {rows} x {columns} tokens',
    )
    found = time_heads(layers, heads, rows, columns, dim, radius, repeats)
    for name, value in found.items():
        table.add_row(name, f'{value:.1f}')
    Console().print(table)


@benchmark.command()
@click.option('--repeats', default=4, show_default=True, type=click.IntRange(1))
def space(repeats: int) -> None:
    """Locate objects in scenes of known geometry: errors by fault and distance."""
    from drift_ros.experiments.depth_scenes import DISTANCES, measure

    click.echo(
        '| fault | ' + ' | '.join(f'{item:g} m' for item in DISTANCES) + ' | all | honest |'
    )
    click.echo('|---' * (len(DISTANCES) + 3) + '|')
    row = ''
    for item in measure(repeats=repeats):
        row = row or f'| {item.fault} |'
        row += f' {100 * item.median:.2f} [{100 * item.high:.2f}]'
        row += f', {item.missing} missing |' if item.missing else ' |'
        if not item.distance:
            click.echo(f'{row} {item.honest:.1%} |')
            row = ''
