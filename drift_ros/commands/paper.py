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

from drift_ros.commands.running import run_and_show, shared_options, tracker_options, user_errors

if TYPE_CHECKING:
    from drift_ros.evaluation.datasets import BrokenSequence, DavisSequence
    from drift_ros.evaluation.layouts import Split
    from drift_ros.evaluation.paper import Outcome


@click.command(epilog=tracker_options())
@click.argument('roots', nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option('--sequences', help='Names, separated by commas [default: all].')
@click.option(
    '--max-frames',
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help='Use only the first frames of each sequence (0: all).',
)
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
    from drift_ros.evaluation.paper import write_table

    names = [name for name in (sequences or '').split(',') if name]
    folder = options['out'] or Path('out', 'eval', 'paper')
    outcomes: list[Outcome] = []
    failed = False
    console = Console()
    with user_errors():
        splits = [split for root in roots for split in recognise(root)]
        for key in {split.key for split in splits}:
            twice = [str(split.root) for split in splits if split.key == key]
            if len(twice) > 1:
                raise ValueError(f'{" and ".join(twice)} are both {key}: give one of them')
        for split in splits:
            console.rule(split.title)
            found, errors = _run(split, names, max_frames, folder / split.key, options)
            failed |= bool(errors)
            outcomes += _outcomes(split, found, bool(names or max_frames or errors), folder)
        path = write_table(folder, outcomes)
    _show(console, outcomes)
    console.print(f'table: {path}', soft_wrap=True)
    if failed:
        raise click.exceptions.Exit(1)


def _run(
    split: Split, names: Sequence[str], max_frames: int, out: Path, options: dict[str, Any]
) -> tuple[list[DavisSequence | BrokenSequence], dict[tuple[str, str], str]]:
    found = split.sequences(names, max_frames)
    data = {
        'kind': split.key,
        'root': str(split.root),
        'subset': split.subset,
        'year': split.year,
        'all_frames': split.all_frames and str(split.all_frames),
        'max_frames': max_frames,
        'sequences': [item.name for item in found],
    }
    late = options['late_objects'] or split.late_objects
    return found, run_and_show(found, data, out, {**options, 'out': out, 'late_objects': late})


def _outcomes(
    split: Split, found: Sequence[DavisSequence | BrokenSequence], partly: bool, folder: Path
) -> list[Outcome]:
    """Read what each engine reached from its files; pack what is for a server."""
    from drift_ros.evaluation.datasets import DavisSequence
    from drift_ros.evaluation.paper import Outcome
    from drift_ros.evaluation.submission import write_submission

    out = folder / split.key
    data = json.loads((out / 'results.json').read_text())
    sound = [item for item in found if isinstance(item, DavisSequence)]
    hidden = [item for item in sound if not item.with_truth]
    outcomes = []
    for engine, row in data['engines'].items():
        notes = [f'{row["sequences"]} sequences, not the whole set'] if partly else []
        scores = {
            key: 100 * row[column]
            for key, column in (('j_and_f', 'j_and_f'), ('j', 'j_mean'), ('f', 'f_mean'))
            if row[column] is not None and not hidden
        }
        if hidden and not partly:
            path = write_submission(out, engine, split, sound)
            click.echo(f'to submit: {path}')
        if hidden:
            notes.append('the truth is not public: masks are packed for the server')
        elif split.key.startswith(('youtube', 'lvos')):
            notes.append("means over objects; the server's are over seen and unseen categories")
        elif split.key == 'long-videos':
            notes.append("all annotated frames but the first, as AFB-URR's evaluation")
        outcomes.append(
            Outcome(
                engine,
                _model(data, engine),
                split.key,
                split.title,
                scores,
                row['sequences'],
                '; '.join(notes),
            )
        )
    return outcomes


def _model(data: dict[str, Any], engine: str) -> str:
    (spec,) = (item for item in data['run']['engines'] if item['label'] == engine)
    if spec['model_digest'] is None:
        return 'nothing'
    return str(spec['model'] or 'embedded model: photographs')


def _show(console: Console, outcomes: Sequence[Outcome]) -> None:
    from drift_ros.evaluation.paper import table

    titles, rows, notes = table(outcomes)
    shown = Table(title='J&F, percent', caption_justify='left')
    here = [0, *range(2, len(titles) - 1)]  # what was learnt from, and sources, are in the file
    for place in here:
        shown.add_column(titles[place], justify='right' if place else 'left', overflow='fold')
    for row in rows:
        shown.add_row(*(escape(row[place]) for place in here))
    console.print(shown)
    for number, note in enumerate(notes, start=1):
        console.print(f'{escape(f"[{number}]")} {note}', soft_wrap=True)
