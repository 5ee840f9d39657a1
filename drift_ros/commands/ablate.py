# SPDX-License-Identifier: Apache-2.0
"""
``drift_ros ablate``: what each part of the method brings, and costs, on sequences with truth.

Five parts, after the figures and tables of DRIFT (arXiv 2511.19936)::

    kernel   the attention kernel against cosine similarity of features (figures 2 and 3)
    noise    DDIM inversion, random noise, ensembles, over noise levels (figure 4)
    heads    uniform and adaptive head weights; null, category and learnt prompts (figure 5)
    paper    the paper's three optimisations together, each left out in turn
    parts    the tracker's own parts, each left out in turn, and candidates for its presets
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from drift_ros.commands.running import max_frames_option, shared_options, user_errors
from drift_ros.evaluation.engines import load_params_file, split_settings
from drift_ros.experiments.rows import PARTS


@click.command()
@click.argument('root', type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    '--parts',
    default=','.join(PARTS),
    show_default=True,
    help='Comparisons to make, separated by commas.',
)
@click.option('--sequences', help='Names, separated by commas [default: all].')
@max_frames_option
@click.option(
    '--frames',
    'part_frames',
    multiple=True,
    metavar='PART=N',
    help='The same for one part; may be repeated.',
)
@click.option(
    '--timesteps',
    default='10,51,201,401',
    show_default=True,
    help='Noise levels of the part "noise".',
)
@click.option(
    '--budget',
    default=10.0,
    show_default=True,
    help='Seconds of learning prompt tokens per sequence and row.',
)
@click.option(
    '--layers',
    'every',
    help="Layers over which heads are weighed, separated by commas [default: the tracker's and "
    'those of the up blocks as far as the later layer].',
)
@shared_options('settings', 'params_file', 'model', 'device', 'workers', 'threads')
@click.option(
    '--out',
    type=click.Path(file_okay=False, path_type=Path),
    default=Path('out', 'ablate'),
    show_default=True,
    help='Folder of results; finished rows of an earlier run are kept.',
)
def ablate(
    root: Path,
    parts: str,
    sequences: str | None,
    max_frames: int,
    part_frames: Sequence[str],
    timesteps: str,
    budget: float,
    every: str | None,
    settings: Sequence[str],
    params_file: str | None,
    model: str | None,
    device: str,
    workers: int,
    threads: int,
    out: Path,
) -> None:
    """
    Compare the parts of the method on the DAVIS-layout folder ROOT.

    Prints a table; writes rows.csv, frames.csv, tables.md, figures (PNG) and report.html.
    Interrupt it when you like: the same command goes on where it stopped.
    """
    from drift_ros.experiments.ablation import run_ablation
    from drift_ros.experiments.ablation_report import table

    with user_errors():
        chosen = _listed(parts)
        if not chosen or set(chosen) - set(PARTS):
            raise ValueError(f'--parts {parts}: choose from {", ".join(PARTS)}')
        limits = {**dict.fromkeys(chosen, max_frames), **_part_frames(part_frames)}
        rows, results = run_ablation(
            root,
            out,
            limits={part: limits[part] for part in chosen},
            names=_listed(sequences or ''),
            timesteps=[int(tau) for tau in _listed(timesteps)],
            budget=budget,
            layers=_listed(every or ''),
            base={
                **(load_params_file(params_file) if params_file else {}),
                **split_settings(settings),
            },
            model=model,
            device=device,
            workers=workers,
            threads=threads,
        )
    console = Console()
    console.print(table(rows, results))
    console.print(f'report: {out / "report.html"}; rows: {out / "rows.csv"}', soft_wrap=True)


def _listed(text: str) -> list[str]:
    """Split at commas."""
    return [part.strip() for part in text.split(',') if part.strip()]


def _part_frames(pairs: Sequence[str]) -> dict[str, int]:
    """Read ``--frames part=number`` arguments."""
    limits = {}
    for pair in pairs:
        part, _, number = pair.partition('=')
        if part not in PARTS or not number.isdigit():
            raise ValueError(f'--frames {pair}: expected PART=N, PART one of {", ".join(PARTS)}')
        limits[part] = int(number)
    return limits
