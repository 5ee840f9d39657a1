# SPDX-License-Identifier: Apache-2.0
"""``drift_ros benchmark``: what a model needs, and what leaving heads out saves, measured here."""

from __future__ import annotations

import json
from pathlib import Path
import statistics
from typing import Any

import click
from rich.console import Console
from rich.table import Column, Table

from drift_ros.commands.running import user_errors


@click.group()
def benchmark() -> None:
    """Measure what the tracker needs on this machine; no accuracy."""


@benchmark.command('model')
@click.argument('layout', type=click.Choice(('sd15', 'sd21', 'sdxl')))
@click.option(
    '--resolution', default=512, show_default=True, help='Side of a square frame, pixels.'
)
@click.option(
    '--precision',
    type=click.Choice(('float32', 'float16', 'bfloat16')),
    default='float32',
    show_default=True,
    help='Of the weights.',
)
@click.option(
    '--run',
    is_flag=True,
    help='Write it with random weights, load it, and follow an object for one frame on the CPU.',
)
@click.option(
    '--folder',
    type=click.Path(file_okay=False, path_type=Path),
    help='Keep what --run writes there.  [default: a temporary folder]',
)
def model(layout: str, resolution: int, precision: str, run: bool, folder: Path | None) -> None:
    """Estimate what a Stable Diffusion needs; with --run, compare with random weights."""
    import torch

    from drift_ros.diffusion.budget import plan, remembered
    from drift_ros.engine.config import TrackerConfig
    from drift_ros.experiments.full_size import LAYOUTS, measured

    config = TrackerConfig.of({'features.resolution': resolution})
    kind = getattr(torch, precision)
    size = (resolution, resolution)
    needed = plan(LAYOUTS[layout], config, half=kind.itemsize == 2, size=size)
    found: dict[str, Any] = {}
    if run:
        with user_errors(), Console(stderr=True).status('writing, loading and running it'):
            found = measured(LAYOUTS[layout], resolution, kind, folder)
    table = Table('GB', Column('estimated', justify='right'), Column('measured', justify='right'))
    table.title = f'{LAYOUTS[layout]["title"]}, {resolution} x {resolution}, {precision}'
    for title, value, key in (
        ('weights', needed.unet + needed.vae, 'weights'),
        ('text encoders, while loading', needed.text_encoders, ''),
        ('while loading', needed.loading(), 'loading'),
        ('a pass', needed.activations, 'pass'),
        ('a remembered frame', needed.reference, 'reference'),
        (f'at most, with {remembered(config)} of them', needed.peak(remembered(config)), ''),
    ):
        told = found.get('bytes', {}).get(key)
        table.add_row(title, f'{value / 1e9:.3f}', '' if told is None else f'{told / 1e9:.3f}')
    console = Console()
    console.print(table)
    console.print(f'{needed.operations / 1e12:.2f} Tflop a pass')
    for layer in needed.layers:
        console.print(
            f'{layer.name}: stride {layer.stride}, {layer.heads} heads of {layer.size}, '
            f'{layer.rows} x {layer.columns} tokens'
        )
    if found:
        console.print_json(json.dumps(found))


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
    default=('shipped=tracker',),
    show_default=True,
)
@click.option('--objects', default='', help='Numbers of objects to time, such as 1,8,32,64.')
@click.option('--resolutions', default='', help='Working sizes to time, such as 160,240,320.')
@click.option(
    '--dense',
    is_flag=True,
    help='Compare the kernel with the plain one that holds all affinities (needs 4 GB).',
)
@click.option('--soak', default=0, metavar='N', help='Follow the first sequence for N frames.')
@click.option(
    '--curves',
    type=click.Path(path_type=Path, dir_okay=False),
    help='PNG of time and memory during --soak.',
)
@click.option(
    '--node',
    default=0.0,
    metavar='HZ',
    help='Show the live node the first sequence at this rate, 640 x 480 (needs ROS).',
)
@click.option(
    '--json',
    'out',
    type=click.Path(path_type=Path, dir_okay=False),
    help='Write all figures there.',
)
@click.option(
    '--compare',
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help='JSON of an earlier run: print ratios, frame by frame.',
)
def step(
    root: str,
    sequences: str,
    frames: int,
    engines: tuple[str, ...],
    objects: str,
    resolutions: str,
    dense: bool,
    soak: int,
    curves: Path | None,
    node: float,
    out: Path | None,
    compare: Path | None,
) -> None:
    """
    Time a step of the tracker on the DAVIS-layout folder ROOT, stage by stage.

    Several objects are the first sequence's own, cut out and put side by side in its first
    picture. The first engine is also timed with other numbers of objects and resolutions,
    against the dense kernel, over many frames and in the node.
    """
    from drift_ros.evaluation.composites import Crowd
    from drift_ros.evaluation.datasets import find_sequences, sound
    from drift_ros.evaluation.engines import parse_engine
    from drift_ros.experiments import speed

    with user_errors():
        counts, sizes = _numbers(objects, 1, 255), _numbers(resolutions, 32, 2048)
        earlier = json.loads(compare.read_text(encoding='utf-8')) if compare else None
        names = tuple(filter(None, sequences.split(',')))
        found = sound(find_sequences(root, names=names, max_frames=frames))
        first = found[0]
        rows = [
            speed.steps(engine, sequence)
            for engine in map(parse_engine, engines)
            for sequence in found
        ]
        shipped = parse_engine(engines[0])
        rows += [
            speed.steps(shipped, Crowd(first, count), f'{count} objects, {first.name}')
            for count in counts
        ]
        for size in sizes:
            engine = parse_engine(engines[0], {'features.resolution': size})
            rows.append(speed.steps(engine, first, f'{size} pixels, {first.name}'))
        rows += [speed.dense(shipped, first)] if dense else []
        rows += [speed.soak(shipped, first, soak, curves)] if soak else []
        rows += [speed.live(shipped, first, node)] if node else []
        report = {'machine': speed.machine(), 'rows': rows}
        if out is not None:
            out.write_text(json.dumps(report), encoding='utf-8')
        _show(report, earlier)


@benchmark.command()
@click.argument('root')
@click.option('--counts', default='1,2,4', show_default=True, help='Numbers of cameras.')
@click.option(
    '--rates', default='30', show_default=True, help='Frames a second of the cameras, in turn.'
)
@click.option('--seconds', default=20.0, show_default=True, help='For each number of cameras.')
@click.option(
    '--json',
    'out',
    type=click.Path(path_type=Path, dir_okay=False),
    help='Write all figures there.',
)
def cameras(root: str, counts: str, rates: str, seconds: float, out: Path | None) -> None:
    """
    Compare one node for several cameras with a node for each (needs ROS).

    The cameras show sequences of the DAVIS-layout folder ROOT, 640 x 480, from their first masks
    on. Memory is the proportional resident size of all processes.
    """
    from drift_ros.evaluation.datasets import find_sequences, sound
    from drift_ros.experiments import speed
    from drift_ros.experiments.cameras import measure

    with user_errors():
        found = sound(find_sequences(root, max_frames=40))
        numbers, paces = _numbers(counts, 1, 64), _numbers(rates, 1, 240)
        rows = [
            measure(found, count, paces, together, seconds)
            for count in numbers
            for together in ((True, False) if count > 1 else (False,))
        ]
        if out is not None:
            out.write_text(json.dumps({'machine': speed.machine(), 'rows': rows}))
        table = Table('', 'MB', 'processor', 'results a second', 'latency, ms, median')
        for row in rows:
            cells = [
                ', '.join(f'{value:.1f}' for value in row[what])
                for what in ('results a second', 'latency')
            ]
            table.add_row(
                row['name'], f'{row["megabytes"]:.0f}', f'{row["processor"]:.2f}', *cells
            )
        Console(width=140).print(table)


def _numbers(text: str, low: int, high: int) -> list[int]:
    """Read numbers separated by commas."""
    try:
        found = [int(part) for part in text.split(',') if part]
    except ValueError:
        found = [low - 1]
    if any(not low <= number <= high for number in found):
        raise ValueError(f'{text}: expected numbers from {low} to {high}, separated by commas')
    return found


def _show(report: dict[str, Any], earlier: dict[str, Any] | None) -> None:
    """Print what was measured."""
    from drift_ros.experiments.benchmarks import STAGES
    from drift_ros.experiments.speed import ratios

    console, rows = Console(), report['rows']
    if not console.is_terminal:  # nothing is wrapped that is read later
        console.width = max(console.width, 120)
    console.print(', '.join(f'{name} {value}' for name, value in report['machine'].items()))
    timed = [row for row in rows if 'total' in row]
    table = Table(
        '',
        *(Column(stage, justify='right', no_wrap=True) for stage in (*STAGES, 'processor')),
        Column('over network', justify='right'),
        'found',
        title='milliseconds, median',
        box=None,
        padding=(0, 1, 0, 0),
    )
    for row in timed:
        cells = [f'{statistics.median(row[name]):.1f}' for name in (*STAGES, 'processor')]
        cells.append(f'{1.0 / row["share"]:.1f}')
        table.add_row(row['name'], *cells, f'{row["found"]}/{row["objects"]}')
    console.print(table)
    for row in rows:
        if 'total' not in row:
            table = Table(row['name'], '')
            for name, value in row.items():
                if isinstance(value, list):
                    table.add_row(f'{name}, median', f'{statistics.median(value):.1f}')
                elif name != 'name':
                    table.add_row(name, f'{value:.4g}')
            console.print(table)
    if earlier is not None:
        table = Table('now over before', 'median', '95 %')
        for name, middle, low, high in ratios(rows, earlier['rows']):
            table.add_row(name, f'{middle:.3f}', f'{low:.3f} to {high:.3f}')
        console.print(table)


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

    for seen in (False, True):
        title = 'seen whole a moment before' if seen else 'one picture'
        click.echo(
            f'\n| {title} | '
            + ' | '.join(f'{item:g} m' for item in DISTANCES)
            + ' | all | honest |'
        )
        click.echo('|---' * (len(DISTANCES) + 3) + '|')
        row = ''
        for item in measure(repeats=repeats, seen=seen):
            row = row or f'| {item.fault} |'
            row += f' {100 * item.median:.2f} [{100 * item.high:.2f}]'
            row += f', {item.missing} without |' if item.missing else ' |'
            if not item.distance:
                click.echo(f'{row} {item.honest:.1%} |')
                row = ''


@benchmark.command()
@click.argument('root', type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option('--sequences', default='', help='Names, separated by commas [default: all].')
@click.option(
    '-e',
    '--engine',
    default='tracker',
    show_default=True,
    metavar='NAME[:OPTION=VALUE,...]',
    help='Whose ~/segment.',
)
def prompts(root: Path, sequences: str, engine: str) -> None:
    """
    Mark the first frames of the DAVIS-layout folder ROOT by boxes and clicks: IoU with the truth.

    A box is the bounding box of the truth. The first click is at the pixel farthest from the
    object's edge, further ones where the largest remaining error is widest.
    """
    import numpy as np
    from rich.progress import track

    from drift_ros.api import Tracker
    from drift_ros.evaluation.datasets import find_sequences
    from drift_ros.evaluation.engines import parse_engine
    from drift_ros.experiments.prompt_masks import measure, WAYS

    table = Table('', *(Column(way, justify='right') for way in WAYS))
    overlaps: dict[str, list[float]] = {way: [] for way in WAYS}
    with user_errors():
        chosen = [name for name in sequences.split(',') if name]
        found = find_sequences(root, names=chosen)
        tracker = parse_engine(engine).make()
        if not isinstance(tracker, Tracker):
            raise ValueError(f'{engine} makes no masks of boxes and clicks; choose a tracker')
        for sequence in track(found, 'marking', console=Console(stderr=True)):
            one = measure(sequence, tracker.segment)
            table.add_row(sequence.name, *(f'{np.mean(one[way]):.2f}' for way in WAYS))
            for way in WAYS:
                overlaps[way] += one[way]
    table.add_section()
    table.add_row('mean over objects', *(f'{np.mean(overlaps[way]):.3f}' for way in WAYS))
    Console().print(table)
