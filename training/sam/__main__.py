# SPDX-License-Identifier: Apache-2.0
"""Command line of the training of the small Segment Anything model."""

from __future__ import annotations

import os
from pathlib import Path
import random
import time

# Waiting threads must not spin: with other work on the machine that costs a factor of five.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import click  # noqa: E402
from rich.console import Console  # noqa: E402

from training.__main__ import show_progress  # noqa: E402


@click.command()
@click.option(
    '--photos',
    'folders',
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    required=True,
    help='Folder with <category>/*.jpg; may be given more than once.',
)
@click.option(
    '--out',
    type=click.Path(path_type=Path),
    required=True,
    help='Run folder. An interrupted run in it is continued.',
)
@click.option(
    '--cutouts',
    'limit',
    default=3000,
    show_default=True,
    help='Objects to cut out of the photographs.',
)
@click.option(
    '--cache',
    type=click.Path(path_type=Path),
    help='Where the cut-outs are kept.  [default: OUT/cutouts]',
)
@click.option(
    '--config',
    'config_file',
    type=click.Path(path_type=Path, exists=True),
    help='YAML file whose keys override those of training/sam/config.yaml.',
)
@click.option(
    '--set',
    'overrides',
    multiple=True,
    metavar='KEY=VALUE',
    help='Override one key, for instance --set model.width=192.',
)
@click.option('--minutes', type=float, help='Stop after so many minutes (resume later).')
@click.option('--threads', default=os.cpu_count(), show_default=True, help='CPU threads.')
def main(
    folders: tuple[Path, ...],
    out: Path,
    limit: int,
    cache: Path | None,
    config_file: Path | None,
    overrides: tuple[str, ...],
    minutes: float | None,
    threads: int,
) -> None:
    """
    Train a small Segment Anything model from folders of photographs.

    Objects are cut out of the photographs first (kept, and continued when interrupted). The
    result is OUT/model: model.safetensors in half precision and config.json.
    """
    import torch

    from training.sam.cutouts import Cutouts, fill_cache
    from training.sam.sam_trainer import DEFAULT_CONFIG, plot_curves, SamTrainer
    from training.trainer import load_config
    from training.views import PhotoFolder

    torch.set_num_threads(threads)
    console = Console()
    cache = cache or out / 'cutouts'
    try:
        config = load_config(config_file, overrides, defaults=DEFAULT_CONFIG)
        photos = PhotoFolder(list(folders))
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    with show_progress(console) as progress:
        task = progress.add_task('cut-outs', total=limit, note='')
        paths = list(photos.paths)
        random.Random(0).shuffle(paths)
        for count in fill_cache(paths, cache, limit):
            progress.update(task, completed=count)
        try:
            trainer = SamTrainer(config, photos, Cutouts(cache), Cutouts(cache, True), out)
        except FileNotFoundError as error:
            raise click.ClickException(str(error)) from error
        if trainer.resume():
            console.print(f'resumed at step {trainer.step}')
        number = sum(p.numel() for p in trainer.model.parameters())
        console.print(
            f'{len(trainer.cutouts)} cut-outs and {len(trainer.held_back)} held back, '
            f'{number / 1e6:.2f} M parameters'
        )
        started = time.monotonic()
        shown: dict[str, float] = {}
        task = progress.add_task(
            'training', total=config['steps'], completed=trainer.step, note=''
        )

        def on_step(row: dict[str, float]) -> bool:
            for name, value in row.items():
                old = shown.get(name, value)
                shown[name] = value if name.startswith('iou_') else 0.97 * old + 0.03 * value
            note = ' '.join(
                f'{name} {shown[name]:.3f}'
                for name in ('loss', 'dice', 'iou_coarse', 'iou_tracker', 'iou_box', 'iou_click')
                if name in shown
            )
            progress.update(task, completed=trainer.step, note=note)
            if trainer.step % 50 == 0:
                plot_curves(trainer.history, out / 'curves.png')
                if not console.is_terminal:
                    console.print(f'step {trainer.step}: {note}')
            return minutes is not None and time.monotonic() - started > 60 * minutes

        trainer.run(on_step=on_step)
    plot_curves(trainer.history, out / 'curves.png')
    trainer.export(out / 'model')
    size = (out / 'model' / 'model.safetensors').stat().st_size / 1e6
    console.print(f'exported step {trainer.step} to {out / "model"} ({size:.1f} MB)')


if __name__ == '__main__':
    main()
