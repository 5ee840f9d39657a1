# SPDX-License-Identifier: Apache-2.0
"""``drift_ros eval paper``: the paper's benchmarks, with published numbers beside our own."""

from __future__ import annotations

from collections.abc import Sequence
import json
from pathlib import Path
from typing import Any, TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from drift_ros.commands.running import (
    max_frames_option,
    run_and_show,
    shared_options,
    tracker_options,
    user_errors,
)
from drift_ros.evaluation.datasets import BrokenSequence, DatasetError, DavisSequence

if TYPE_CHECKING:
    from drift_ros.evaluation.layouts import Split
    from drift_ros.evaluation.paper import Outcome


@click.command(epilog=tracker_options())
@click.argument('roots', nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option('--sequences', help='Names, separated by commas [default: all].')
@max_frames_option
@shared_options()
def paper(roots: Sequence[Path], sequences: str | None, max_frames: int, **options: Any) -> None:
    """
    Run the benchmarks of the paper that lie in ROOTS, and print their table.

    ROOTS are folders as the archives of DAVIS 2016 and 2017, YouTube-VOS 2018 and 2019, Long
    Videos, LVOS and MOSE unpack. Published numbers stand beside our own; where a set's truth is
    not public, the masks are packed for its server. Without ROOTS, the published numbers alone.
    What was finished earlier is taken from --out.
    """
    from drift_ros.evaluation.layouts import recognise
    from drift_ros.evaluation.paper import kept, write_table

    names = [name for name in (sequences or '').split(',') if name]
    folder = options['out'] or Path('out', 'eval', 'paper')
    outcomes: list[Outcome] = []
    problems: list[str] = []
    met: set[str] = set()
    console = Console()
    with user_errors():
        splits = [split for root in roots for split in recognise(root)]
        for key in {split.key for split in splits}:
            twice = [str(split.root) for split in splits if split.key == key]
            if len(twice) > 1:
                raise ValueError(f'{" and ".join(twice)} are both {key}: give one of them')
        for split in splits:
            try:
                found = split.sequences(names, max_frames)
            except DatasetError as error:  # the other sets are run all the same
                problems.append(f'{split.title}: {error}')
                continue
            met |= {item.name for item in found}
            if found:
                console.rule(escape(split.title))
                partly = bool(names or max_frames)
                done, problem = _run(split, found, partly, folder / split.key, options)
                outcomes += done
                problems += [f'{split.title}: {problem}'] if problem else []
        if unknown := sorted(set(names) - met):
            problems.append(f'no sequence {", ".join(unknown)} in what was given')
        outcomes += kept(folder, [split.key for split in splits])
        path = write_table(folder, outcomes)
    _show(console, outcomes)
    console.print(f'all of the table, with sources: {escape(str(path))}', soft_wrap=True)
    for problem in problems:
        console.print(f'[red]failed:[/] {escape(problem)}', soft_wrap=True)
    if problems:
        raise click.exceptions.Exit(1)


def _run(
    split: Split,
    found: Sequence[DavisSequence | BrokenSequence],
    partly: bool,
    out: Path,
    options: dict[str, Any],
) -> tuple[list[Outcome], str]:
    """Run a set, pack what is for a server, and read what each engine reached; say what failed."""
    from drift_ros.evaluation.paper import Outcome
    from drift_ros.evaluation.submission import write_submission

    data = {
        'kind': split.key,
        'root': str(split.root),
        'subset': split.subset,
        'year': split.year,
        'all_frames': split.all_frames and str(split.all_frames),
        'partly': partly,
        'sequences': [item.name for item in found],
    }
    late = options['late_objects'] or split.late_objects
    errors = run_and_show(found, data, out, {**options, 'out': out, 'late_objects': late})
    problem = f'{len(errors)} of its runs' if errors else ''
    results = json.loads((out / 'results.json').read_text())
    sound = [item for item in found if isinstance(item, DavisSequence)]
    packed = set()
    for engine in results['engines']:
        (out / 'submission' / f'{engine}.zip').unlink(missing_ok=True)  # of an earlier run
        if partly or errors or all(item.with_truth for item in sound):
            continue
        try:
            path = write_submission(out, engine, split, sound)
        except DatasetError as error:
            problem = str(error)
            continue
        click.echo(f'to submit: {path}')
        packed.add(engine)
    unusual = bool(options['late_objects']) and not split.late_objects
    hidden = not all(item.with_truth for item in sound)
    return [
        Outcome(
            engine,
            _model(results, engine),
            split.key,
            split.title,
            {} if hidden else _scores(row),
            row['sequences'],
            '; '.join(
                _notes(split, results, row, engine, partly or bool(errors), hidden, packed)
                + (['objects that appear later are scored as well'] if unusual else [])
            ),
        )
        for engine, row in results['engines'].items()
    ], problem


def _scores(row: dict[str, Any]) -> dict[str, float]:
    keys = (('j_and_f', 'j_and_f'), ('j', 'j_mean'), ('f', 'f_mean'))
    return {key: 100 * row[column] for key, column in keys if row[column] is not None}


def _notes(
    split: Split,
    results: dict[str, Any],
    row: dict[str, Any],
    engine: str,
    partly: bool,
    hidden: bool,
    packed: set[str],
) -> list[str]:
    """Say what a reader of a number must know."""
    notes = [f'not the whole set, sequences: {row["sequences"]}'] if partly else []
    if hidden:
        notes.append('no truth to score against')
        notes += ['masks are packed for the server'] if engine in packed else []
    elif split.key.startswith(('youtube', 'lvos')):
        notes.append("means over objects; the server's are over seen and unseen categories")
    elif split.key == 'long-videos':
        notes.append("all annotated frames but the first, as AFB-URR's evaluation")
    elif split.key == 'davis-2016-val' and _model(results, engine).startswith('embedded'):
        notes.append('weights and constants were chosen on ten of these sequences')
    return notes


def _model(data: dict[str, Any], engine: str) -> str:
    (spec,) = (item for item in data['run']['engines'] if item['label'] == engine)
    if spec['model_digest'] is None:
        return 'nothing'
    return str(spec['model'] or 'embedded model: photographs')


def _show(console: Console, outcomes: Sequence[Outcome]) -> None:
    from drift_ros.evaluation.paper import table

    titles, rows, notes = table(outcomes)
    shown = Table(title='J&F, percent', caption_justify='left')
    # what was learnt from, sources, and benchmarks that are not here are in the file
    run = {item.title for item in outcomes}
    here = [place for place in range(2, len(titles) - 1) if not run or titles[place] in run]
    own = len({(item.engine, item.model) for item in outcomes})
    for place in (0, *here):
        shown.add_column(titles[place], justify='right' if place else 'left', overflow='fold')
    for number, row in enumerate(rows):
        if number >= len(rows) - own or any(row[place] for place in here):
            shown.add_row(*(escape(row[place]) for place in (0, *here)))
    console.print(shown)
    for number, note in enumerate(notes, start=1):
        console.print(f'{escape(f"[{number}]")} {escape(note)}', soft_wrap=True)
