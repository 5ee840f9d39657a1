# SPDX-License-Identifier: Apache-2.0
"""
``drift_ros ablate``: what each part of the method brings, and costs, on sequences with truth.

Five parts, after the figures and tables of DRIFT (arXiv 2511.19936)::

    kernel   the attention kernel against cosine similarity of features (figures 2 and 3)
    noise    DDIM inversion, random noise, ensembles, over noise levels (figure 4)
    heads    uniform and adaptive head weights; null, category and learnt prompts (figure 5)
    paper    the paper's three optimisations together, each left out in turn
    parts    the tracker's own parts, each left out in turn, and candidates for its presets

Every row is one configuration of the tracker, run by the protocol of ``drift_ros eval davis``;
a finished (row, sequence) is kept and taken over when the command is run again. Rows that look at
frames in the same way run in lock-step on a sequence and share each frame's features, whose time
counts for every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from importlib import util
import itertools
import os
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from drift_ros.commands.running import shared_options, user_errors
from drift_ros.evaluation import run as runner
from drift_ros.evaluation.datasets import SequenceSource
from drift_ros.evaluation.engines import load_params_file, split_settings
from drift_ros.evaluation.provenance import versions
from drift_ros.evaluation.results import JobResult, write_json
from drift_ros.experiments.ablation_report import Results, table, write
from drift_ros.experiments.rows import LearningTracker, make_rows, PARTS, RowSpec, SharedFeatures

_OPTIONS = runner.RunOptions(save_masks=False)


@click.command()
@click.argument('root', type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    '--parts',
    default=','.join(PARTS),
    show_default=True,
    help='Comparisons to make, separated by commas.',
)
@click.option('--sequences', help='Names, separated by commas [default: all].')
@click.option(
    '--max-frames',
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help='Use only the first frames of each sequence (0: all).',
)
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
    from drift_ros.evaluation.datasets import find_sequences

    with user_errors():
        chosen = [part.strip() for part in parts.split(',') if part.strip()]
        unknown = [part for part in chosen if part not in PARTS]
        if unknown or not chosen:
            raise ValueError(f'--parts {parts}: choose from {", ".join(PARTS)}')
        limits = {**dict.fromkeys(chosen, max_frames), **_part_frames(part_frames)}
        names = [name for name in (sequences or '').split(',') if name]
        found = {
            limit: find_sequences(root, names=names, max_frames=limit)
            for limit in {limits[part] for part in chosen}
        }
        base = {
            **(load_params_file(params_file) if params_file else {}),
            **split_settings(settings),
        }
        if 'heads' in chosen and util.find_spec('sklearn') is None:
            raise ValueError(
                'the part "heads" draws a t-SNE with scikit-learn, which is not installed: '
                'pip install "drift_ros[experiments]"'
            )
        used, late, default_every = _choose_layers(model, base, device)
        chosen_every = [p.strip() for p in every.split(',')] if every else default_every
        rows = make_rows(
            chosen, late, chosen_every, [int(tau) for tau in timesteps.split(',')], budget
        )
        threads = threads or max((os.cpu_count() or 1) // workers, 1)
        jobs = [
            (row.spec(item.name, base, model, device), item)
            for row in rows
            for item in found[limits[row.part]]
        ]
        description = {
            'root': str(root),
            'sequences': [item.name for item in found[limits[chosen[0]]]],
            'first frames of each sequence': {part: limits[part] or 'all' for part in chosen},
            'options': base,
            'model': model,
            'layers': list(used),
            'later layer': late,
            'many layers': list(chosen_every),
            'processes': workers,
            'threads of each': threads,
            'versions': versions(),
        }
        with runner.exclusive(out):
            results = _run(jobs, out, workers, threads)
            write(out, rows, results, description)
        console = Console()
        console.print(table(rows, results))
        console.print(f'report: {out / "report.html"}; rows: {out / "rows.csv"}', soft_wrap=True)


def _choose_layers(
    model: str | None, base: Mapping[str, Any], device: str
) -> tuple[tuple[str, ...], str, list[str]]:
    """Choose the tracker's layers, one behind cross-attention, and those of head weighting."""
    from drift_ros.diffusion.attention import select_layers, self_attention_layers
    from drift_ros.diffusion.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(model, device=device)
    used = select_layers(
        checkpoint.unet, tuple(base.get('features.layers', ())) or checkpoint.layers
    )
    (late,) = select_layers(checkpoint.unet, ())
    available = self_attention_layers(checkpoint.unet)
    reached = available[: available.index(late) + 1]
    return (
        used,
        late,
        [
            name
            for name in available
            if name in used or (name in reached and name.startswith('up_'))
        ],
    )


def _part_frames(pairs: Sequence[str]) -> dict[str, int]:
    """Read ``--frames part=number`` arguments."""
    limits = {}
    for pair in pairs:
        part, _, number = pair.partition('=')
        if part not in PARTS or not number.isdigit():
            raise ValueError(f'--frames {pair}: expected PART=N, PART one of {", ".join(PARTS)}')
        limits[part] = int(number)
    return limits


def _run(
    jobs: Sequence[tuple[RowSpec, SequenceSource]],
    out: Path,
    workers: int,
    threads: int,
) -> Results:
    """Run what is not finished yet."""
    done: dict[tuple[str, str], JobResult] = {}
    groups: dict[tuple, tuple[list[RowSpec], SequenceSource]] = {}
    with Progress(
        TextColumn('{task.description:40.40}'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('frames'),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
        speed_estimate_period=900,
    ) as bar:
        task = bar.add_task('', total=sum(len(sequence) for _, sequence in jobs))

        def progress(engine: str, name: str, count: int) -> None:
            bar.update(task, advance=count, description=f'{engine} {name}')

        for spec, sequence in jobs:
            kept = runner.finished(spec, sequence, out, _OPTIONS)
            if kept is not None:
                done[spec.label, sequence.name] = kept
                progress(spec.label, sequence.name, len(sequence))
                continue
            key = (sequence.name, len(sequence), spec.features_key)
            groups.setdefault(key, ([], sequence))[0].append(spec)
        # Sequence by sequence, so that the time left can be told from the time spent; what takes
        # long first, so that no process is left alone with it at the end.
        longest: dict[str, int] = {}
        for name, length, _ in groups:
            longest[name] = max(length, longest.get(name, 0))
        order = sorted(
            groups, key=lambda key: (-longest[key[0]], key[0], -len(groups[key][0]) * key[1])
        )
        calls = {key: (*groups[key], out) for key in order}
        if workers == 1:
            runner.limit_threads(threads)
            found = (run_group(*arguments, progress) for arguments in calls.values())
        else:
            found = (
                future.result()
                for _, future in runner.in_processes(run_group, calls, workers, threads, progress)
            )
        try:
            for result in itertools.chain.from_iterable(found):
                done[result.engine, result.sequence] = result
        except BrokenProcessPool:
            raise ValueError(runner.WORKER_DIED) from None
        bar.update(task, description='done')
    results: dict[tuple[str, str], list[JobResult]] = {}
    for spec, sequence in jobs:
        part, _, label = spec.label.partition('.')
        results.setdefault((part, label), []).append(done[spec.label, sequence.name])
    return results


def run_group(
    specs: Sequence[RowSpec],
    sequence: SequenceSource,
    out: Path,
    progress: runner.Progress,
) -> list[JobResult]:
    """Run rows of one :attr:`RowSpec.features_key` on a sequence, in lock-step."""
    from drift_ros.api import diffusion_features

    first = specs[0]
    shared = None
    if len(specs) > 1:
        shared = SharedFeatures(diffusion_features(first.model, first.config, first.device))
    engines = [(spec, spec.make(shared)) for spec in specs]
    results = runner.run_together(
        engines, sequence, out, _OPTIONS, progress, shared.owed if shared else lambda: 0.0
    )
    for spec, engine in engines:
        if isinstance(engine, LearningTracker):  # for figure 5
            write_json(
                out / 'tokens' / spec.label / f'{sequence.name}.json',
                {
                    'tokens': {number: value.tolist() for number, value in engine.tokens.items()},
                    'agreement': engine.agreement,
                    'seconds': engine.seconds,
                },
            )
    return results
