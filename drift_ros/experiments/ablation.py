# SPDX-License-Identifier: Apache-2.0
"""
Run the rows of an ablation (``rows.yaml``) by the protocol of ``drift_ros eval davis``.

A finished (row, sequence) is kept and taken over when the same is run again. Rows that look at
frames in the same way run in lock-step on a sequence and share each frame's features, whose time
counts for every one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
import contextlib
from importlib import util
import itertools
import os
from pathlib import Path
from typing import Any

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from drift_ros.evaluation import run as runner
from drift_ros.evaluation.datasets import find_sequences, SequenceSource, sound
from drift_ros.evaluation.provenance import versions
from drift_ros.evaluation.results import JobResult, write_json
from drift_ros.evaluation.workers import in_processes, limit_threads, WORKER_DIED
from drift_ros.experiments.ablation_report import Results, write
from drift_ros.experiments.rows import LearningTracker, make_rows, Row, RowSpec, SharedFeatures

_OPTIONS = runner.RunOptions(save_masks=False)


def run_ablation(
    root: Path,
    out: Path,
    *,
    limits: Mapping[str, int],
    names: Sequence[str] = (),
    timesteps: Sequence[int] = (51,),
    budget: float = 10.0,
    layers: Sequence[str] = (),
    base: Mapping[str, Any] | None = None,
    model: str | None = None,
    device: str = 'auto',
    workers: int = 1,
    threads: int = 0,
) -> tuple[list[Row], Results]:
    """
    Run the rows of parts on a DAVIS-layout folder, what is finished aside, and write the report.

    Parameters
    ----------
    root, out : Path
        The folder, and that of results.
    limits : mapping from str to int
        Parts to run, with the first frames of each sequence to use (0: all).
    names : sequence of str
        Sequences [all].
    timesteps : sequence of int
        Noise levels of the part "noise".
    budget : float
        Seconds of learning prompt tokens.
    layers : sequence of str
        Those over which heads are weighed [the tracker's and those of the up blocks as far as
        the later layer].
    base : mapping, optional
        Tracker options of all rows.
    model, device : str
    workers, threads : int
        Processes, and threads of each (0: processors shared among them).

    Raises
    ------
    ValueError

    """
    if 'heads' in limits and util.find_spec('sklearn') is None:
        raise ValueError(
            'the part "heads" draws a t-SNE with scikit-learn, which is not installed: '
            'pip install "drift_ros[experiments]"'
        )
    base = dict(base or {})
    found = {
        limit: sound(find_sequences(root, names=names, max_frames=limit))
        for limit in set(limits.values())
    }
    used, late, reached = _choose_layers(model, base, device)
    rows = make_rows(tuple(limits), late, layers or reached, timesteps, budget)
    threads = threads or max((os.cpu_count() or 1) // workers, 1)
    jobs = [
        (row.spec(item.name, base, model, device), item)
        for row in rows
        for item in found[limits[row.part]]
    ]
    description = {
        'root': str(root),
        'sequences': [item.name for item in next(iter(found.values()))],
        'first frames of each sequence': {part: count or 'all' for part, count in limits.items()},
        'options': base,
        'model': model,
        'layers': list(used),
        'later layer': late,
        'many layers': list(layers or reached),
        'processes': workers,
        'threads of each': threads,
        'versions': versions(),
    }
    with runner.exclusive(out):
        results = _run(jobs, out, workers, threads)
        write(out, rows, results, description)
    return rows, results


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
            limit_threads(threads)
            found = (run_group(*arguments, progress) for arguments in calls.values())
        else:
            found = (
                future.result()
                for _, future in in_processes(run_group, calls, workers, threads, progress)
            )
        try:
            with contextlib.closing(found):
                for result in itertools.chain.from_iterable(found):
                    done[result.engine, result.sequence] = result
        except BrokenProcessPool:
            raise ValueError(WORKER_DIED) from None
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
