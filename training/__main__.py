# SPDX-License-Identifier: Apache-2.0
"""Command line of the training."""

from __future__ import annotations

import os
from pathlib import Path
import time

# Waiting threads must not spin: with other work on the machine that costs a factor of five.
os.environ.setdefault('OMP_WAIT_POLICY', 'PASSIVE')

import click  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import (  # noqa: E402
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


def show_progress(console: Console) -> Progress:
    """Make a progress bar with a note at its end."""
    return Progress(
        TextColumn('{task.description}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn('{task.fields[note]}'),
        console=console,
    )


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
    '--config',
    'config_file',
    type=click.Path(path_type=Path, exists=True),
    help='YAML file whose keys override those of training/config.yaml, or with several '
    'stages (training/published.yaml).',
)
@click.option(
    '--set',
    'overrides',
    multiple=True,
    metavar='KEY=VALUE',
    help='Override one key, for instance --set views.size=128.',
)
@click.option(
    '--start-from',
    type=click.Path(path_type=Path, exists=True),
    help='state.pt or exported folder of another run whose weights a new run starts from.',
)
@click.option(
    '--dev',
    type=click.Path(path_type=Path, exists=True),
    help='DAVIS-style folder for the J&F curve (JPEGImages/, Annotations/).',
)
@click.option('--dev-every', default=200, show_default=True, help='Steps between J&F scores.')
@click.option(
    '--dev-frames',
    default=16,
    show_default=True,
    help='Frames per sequence of those scores, 0: all.',
)
@click.option('--minutes', type=float, help='Stop after so many minutes (resume later).')
@click.option(
    '--decoder-steps',
    default=1500,
    show_default=True,
    help='Steps of the decoder training at the end.',
)
@click.option('--threads', default=os.cpu_count(), show_default=True, help='CPU threads.')
def main(
    folders: tuple[Path, ...],
    out: Path,
    config_file: Path | None,
    overrides: tuple[str, ...],
    start_from: Path | None,
    dev: Path | None,
    dev_every: int,
    dev_frames: int,
    minutes: float | None,
    decoder_steps: int,
    threads: int,
) -> None:
    """
    Train the embedded image diffusion model from folders of photographs.

    The result is OUT/model, a stock diffusers folder in half precision.
    """
    import torch

    from .finish import export_run, plot_curves, train_decoder
    from .model import build_vae
    from .trainer import load_stages, Trainer
    from .views import PhotoFolder

    torch.set_num_threads(threads)
    console = Console()
    try:
        stages = load_stages(config_file, overrides)
        photos = PhotoFolder(list(folders))
    except (ValueError, FileNotFoundError) as error:
        raise click.ClickException(str(error)) from error
    started = time.monotonic()
    shown: dict[str, float] = {}

    def late() -> bool:
        return minutes is not None and time.monotonic() - started > 60 * minutes

    with show_progress(console) as progress:
        for name, config in stages:
            trainer = Trainer(config, photos, out / name)
            if trainer.resume():
                console.print(f'{name} resumed at step {trainer.step}'.lstrip())
            elif start_from is not None:
                trainer.start_from(start_from)
            start_from = trainer.out / 'state.pt'
            console.print(
                f'{len(photos)} photographs in {len(photos.categories)} categories, '
                f'{sum(p.numel() for p in trainer.parameters) / 1e6:.1f} M parameters'
            )
            task = progress.add_task(
                f'training {name}'.rstrip(), total=config['steps'], completed=trainer.step, note=''
            )

            def on_step(
                row: dict[str, float], trainer: Trainer = trainer, task: TaskID = task
            ) -> bool:
                for key, value in row.items():
                    shown[key] = 0.95 * shown.get(key, value) + 0.05 * value
                note = ' '.join(
                    f'{k} {shown[k]:.3f}'
                    for k in ('denoise', 'correspondence', 'transport', 'accuracy', 'dev_jf')
                    if k in shown
                )
                progress.update(task, completed=trainer.step, note=note)
                if dev is not None and trainer.step % dev_every == 0:
                    from .dev import model_score

                    export_run(trainer, build_vae(), trainer.out / 'model')
                    score, _ = model_score(dev, trainer.out / 'model', dev_frames)
                    row['dev_jf'] = shown['dev_jf'] = score
                    console.print(f'step {trainer.step}: {note} J&F {score:.4f}')
                if trainer.step % 50 == 0:
                    plot_curves(trainer.history, trainer.out / 'curves.png')
                    if not console.is_terminal:
                        console.print(f'step {trainer.step}: {note}')
                return late()

            trainer.run(on_step=on_step)
            plot_curves(trainer.history, trainer.out / 'curves.png')
            if late():
                break
        decode = progress.add_task('decoder', total=decoder_steps, note='')
        vae = train_decoder(
            trainer,
            decoder_steps,
            lambda step, loss: progress.update(decode, completed=step, note=f'mse {loss:.4f}'),
        )
    export_run(trainer, vae, out / 'model')
    size = sum(p.stat().st_size for p in (out / 'model').rglob('*') if p.is_file()) / 1e6
    console.print(f'exported step {trainer.step} to {out / "model"} ({size:.1f} MB)')


if __name__ == '__main__':
    main()
