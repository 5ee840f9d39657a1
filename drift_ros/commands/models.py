# SPDX-License-Identifier: Apache-2.0
"""``drift_ros models``: known checkpoints, whether they are here, and are what they should be."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from drift_ros.commands.known_models import (
    check,
    default_folder,
    download,
    KNOWN,
    KnownModel,
    owners,
    sha256,
)
from drift_ros.engine.errors import CheckpointError

if TYPE_CHECKING:
    from drift_ros.diffusion.budget import Layout
    from drift_ros.engine.config import TrackerConfig

_SIZES = (240, 384, 512, 768)
"""Working sizes for which memory is told, pixels."""


@click.command()
@click.option(
    '--check',
    'path',
    type=click.Path(path_type=Path, exists=True),
    help='A file: tell which published checkpoint it is, by its hash. A diffusers folder: tell '
    'its files, layers and needs, load it, and take a small picture through it.',
)
@click.option('--download', 'name', type=click.Choice([m.name for m in KNOWN]), help='Get one.')
@click.option(
    '--half', is_flag=True, help='Download the files in half precision: half as large, for GPUs.'
)
@click.option(
    '--folder',
    type=click.Path(path_type=Path, file_okay=False),
    help='Where checkpoints are looked for and downloaded to.  [default: '
    '$DRIFT_ROS_MODELS, else ~/.cache/drift_ros]',
)
@click.option(
    '--device', default='auto', show_default=True, help='Where --check loads it: cpu, cuda[:N].'
)
@click.option(
    '--untrained',
    'blank',
    type=click.Path(path_type=Path, file_okay=False),
    help='Write a Segment Anything model of random weights to a folder, to see that '
    'the gate rejects what it says.',
)
def models(
    path: Path | None,
    name: str | None,
    half: bool,
    folder: Path | None,
    device: str,
    blank: Path | None,
) -> None:
    """
    List known checkpoints, check one, or download one.

    Give a folder to the tracker as the parameter model, a Segment Anything file as
    refinement.sam_checkpoint. docs/checkpoints.md goes through it.
    """
    folder = folder or default_folder()
    if half and name is None:
        raise click.UsageError('--half says what to --download')
    try:
        if path is not None and path.is_dir():
            _check_folder(path, device)
        elif path is not None:
            model = check(path)
            click.echo(f'{path} is {model.name} ({model.licence}): {model.purpose}')
        elif name is not None:
            _fetch(next(m for m in KNOWN if m.name == name), folder, half)
        elif blank is not None:
            from drift_ros.refinement.sam_weights import save_untrained

            save_untrained(blank)
            click.echo(
                f'{blank} holds random weights; give it to the tracker as '
                'refinement.sam_checkpoint'
            )
        else:
            _list(folder)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error


def _fetch(model: KnownModel, folder: Path, half: bool) -> None:
    click.echo(f'{model.name}: {model.licence}. {model.note}'.rstrip())
    path = folder / model.file
    if model.url and path.exists():
        check(path)
        click.echo(f'{path} is there already, and whole')
        return
    download(model, folder, half)
    if model.url:
        click.echo(f'{path} is whole; give it to the tracker as refinement.sam_checkpoint')
        return
    preset = f' preset:={model.preset}' if model.preset else ''
    click.echo(
        f'{path} is whole: drift_ros models --check {path}\n'
        f'ros2 launch drift_ros tracker.launch.py model:={path}{preset}'
    )


def _check_folder(folder: Path, device: str) -> None:
    """Tell everything about a diffusers folder; last what only loading it can tell."""
    from drift_ros.api import diffusion_features
    from drift_ros.diffusion.budget import layout_of
    from drift_ros.engine.config import TrackerConfig
    from drift_ros.engine.device import resolve_device
    from drift_ros.engine.finite import first_not_finite

    resolve_device(device)  # refused before the long part
    layout = layout_of(folder)
    click.echo(f'{folder}\n\nweights')
    _tell_files(folder)
    config = TrackerConfig()
    _tell_layers(layout)
    _tell_needs(folder, layout, config, device)
    features = diffusion_features(folder, config, device)
    if damaged := first_not_finite(features.checkpoint.unet):
        # behind the layer read here, where other layers and inversion go
        raise CheckpointError(
            f'{folder / "unet"} holds weights that are not finite numbers ({damaged}): get the '
            'folder again'
        )
    click.echo(
        f'\nit loads, and a small picture goes through it: read are '
        f'{", ".join(layer.removesuffix(".attn1") for layer in features.layers)} '
        f'at timestep {features.timestep}'
    )


def _tell_files(folder: Path) -> None:
    """Say of each file of weights what it is, by its hash."""
    parts = ('unet', 'vae', 'text_encoder', 'text_encoder_2')
    files = [path for part in parts for path in sorted((folder / part).glob('*.safetensors'))]
    found = {}
    with click.progressbar(
        length=sum(path.stat().st_size for path in files), label='  hashing'
    ) as bar:
        for path in files:
            found[path] = owners(sha256(path, bar.update))
    for path, known in found.items():
        told = known[0] if known else 'not a file that is known here'
        click.echo(f'  {path.relative_to(folder)}  {path.stat().st_size / 1e6:.0f} MB  {told}')


def _tell_layers(layout: Layout) -> None:
    """List the self-attention layers, in the order of a pass."""
    from drift_ros.diffusion.budget import plan
    from drift_ros.engine.config import TrackerConfig

    everything = TrackerConfig.of(
        {'features.layers': ('down_blocks', 'mid_block', 'up_blocks'), 'features.resolution': 512}
    )
    blocks: dict[str, list] = {}
    for layer in plan(layout, everything, half=False, size=(512, 512)).layers:
        blocks.setdefault(layer.name.split('.transformer_blocks')[0], []).append(layer)
    click.echo('\nself-attention (features.layers)')
    for block, layers in blocks.items():
        one = layers[0]
        click.echo(
            f'  {block}: stride {one.stride}, {one.heads} heads of {one.size}'
            + (f', {len(layers)} layers' if len(layers) > 1 else '')
        )


def _tell_needs(folder: Path, layout: Layout, config: TrackerConfig, device: str) -> None:
    """Tell memory and work for several working sizes, and what there is."""
    from rich.console import Console
    from rich.table import Column, Table

    from drift_ros.diffusion.budget import free_memory, plan, remembered, speed
    from drift_ros.diffusion.checkpoint import recommendations
    from drift_ros.engine.config import TrackerConfig
    from drift_ros.engine.device import resolve_device

    sized = [TrackerConfig.of({**config.flat(), 'features.resolution': size}) for size in _SIZES]
    columns = (Column(f'{size} px', justify='right') for size in _SIZES)
    table = Table(
        'GB at most', *columns, title=f'640 x 480, {remembered(config)} remembered frames'
    )
    for title, half in (('float32, CPU', False), ('float16, GPU', True)):
        plans = [
            plan(layout, config, half=half, layers=recommendations(folder).get('layers', ()))
            for config in sized
        ]
        table.add_row(
            title, *(f'{each.peak(remembered(config), half) / 1e9:.1f}' for each in plans)
        )
    target = resolve_device(device)
    rate = speed(target)
    table.add_row('Gflop a frame', *(f'{each.operations / 1e9:.0f}' for each in plans))
    table.add_row('seconds at least', *(f'{each.operations / rate:.2g}' for each in plans))
    click.echo()
    Console().print(table)
    click.echo(f'{target} convolves at {rate / 1e9:.0f} Gflop/s')
    click.echo(f'free on {target}: {free_memory(target) / 1e9:.1f} GB')


def _list(folder: Path) -> None:
    from drift_ros import __file__ as package

    embedded = Path(package).parent / 'checkpoints'
    rows = [
        (
            'embedded',
            _size(embedded, 'sam_small'),
            'Apache-2.0',
            'small diffusion model, the default of model',
            str(embedded),
        ),
        (
            'embedded',
            _size(embedded / 'sam_small'),
            'Apache-2.0',
            'small Segment Anything model, the default of refinement.sam_checkpoint',
            str(embedded / 'sam_small'),
        ),
    ]
    for model in KNOWN:
        path = folder / model.file
        half = f' (half: {model.megabytes["half"]} MB)' if 'half' in model.megabytes else ''
        rows.append(
            (
                model.name,
                f'{model.megabytes["full"]} MB{half}',
                model.licence,
                f'{model.purpose}. {model.note}'.rstrip(' .'),
                str(path) if path.exists() else f'not in {folder}: {model.address}',
            )
        )
    for name, size, licence, purpose, place in rows:
        click.echo(f'{name:24} {size:>8}  {licence}\n    {purpose}\n    {place}')
    click.echo('\nWhat a node or the tracker needs, it takes from a path; it never downloads.')


def _size(folder: Path, without: str = '\0') -> str:
    size = sum(
        path.stat().st_size
        for path in folder.rglob('*')
        if path.is_file() and without not in path.relative_to(folder).parts
    )
    return f'{size / 1e6:.0f} MB' if size else 'missing'
