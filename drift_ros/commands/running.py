# SPDX-License-Identifier: Apache-2.0
"""What the commands of an evaluation share: choice of engines, the run, what is shown of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
from pathlib import Path
from typing import Any, TYPE_CHECKING

import click
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from drift_ros.engine.config import OPTIONS
from drift_ros.evaluation.engines import (
    ENGINES,
    EngineSpec,
    load_params_file,
    parse_engine,
    split_settings,
)

if TYPE_CHECKING:
    from drift_ros.evaluation.results import JobResult
    from drift_ros.evaluation.run import RunOptions


def tracker_options() -> str:
    """Help for all tracker options, made from their declaration."""
    lines = []
    for item in OPTIONS.values():
        default = ','.join(item.default) if isinstance(item.default, tuple) else item.default
        lines.append(f'  {item.name}={default}  {item.help}')
    return '\b\nTracker options for --set, with their defaults:\n' + '\n'.join(lines)


_ENGINES = ', '.join(f'{name} ({text})' for name, text in ENGINES.items())
_SHARED: dict[str, Callable[[Callable], Callable]] = {
    'engines': click.option(
        '--engine',
        '-e',
        'engines',
        multiple=True,
        default=('tracker',),
        show_default=True,
        metavar='[LABEL=]NAME[:OPTION=VALUE,...]',
        help=f'What to run; may be repeated. {_ENGINES}.',
    ),
    'settings': click.option(
        '--set',
        'settings',
        multiple=True,
        metavar='OPTION=VALUE',
        help='A tracker option for all engines; may be repeated.',
    ),
    'params_file': click.option(
        '--params-file',
        type=click.Path(exists=True, dir_okay=False),
        help='Tracker options from a ROS 2 parameter file (config/tracker.yaml).',
    ),
    'model': click.option(
        '--model',
        help='Folder or hub id of a diffusers checkpoint [default: the embedded model].',
    ),
    'device': click.option(
        '--device', default='auto', show_default=True, help='auto, cpu, cuda[:N].'
    ),
    'out': click.option(
        '--out',
        type=click.Path(file_okay=False, path_type=Path),
        help='Folder of results; finished parts of an earlier run are kept.',
    ),
    'workers': click.option(
        '--workers',
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help='Processes.',
    ),
    'ray': click.option(
        '--ray',
        metavar='ADDRESS',
        help='Run the jobs on the Ray cluster there (auto, ray://HOST:10001, ...), '
        'or on --workers local Ray processes (local).',
    ),
    'threads': click.option(
        '--threads',
        type=click.IntRange(0),
        default=0,
        show_default=True,
        help='Threads per process; 0: processors shared among the workers.',
    ),
    'late_objects': click.option(
        '--late-objects',
        is_flag=True,
        help='Seed and score objects that appear after the first mask, too '
        '(not in the official protocol).',
    ),
    'report': click.option(
        '--report/--no-report',
        default=True,
        show_default=True,
        help='Write report.html with overlays and videos.',
    ),
}
"""Options that choose and configure engines and runs, by parameter."""


max_frames_option = click.option(
    '--max-frames',
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help='Use only the first frames of each sequence (0: all).',
)
"""Cuts the sequences of a dataset short."""


def shared_options(*names: str) -> Callable[[Callable], Callable]:
    """Make a decorator that adds the options of these names to a command (none: all)."""

    def add(function: Callable) -> Callable:
        for name in reversed(names or tuple(_SHARED)):
            function = _SHARED[name](function)
        return function

    return add


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Show the user's mistakes as messages, not as tracebacks."""
    try:
        yield
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


def _specs(options: dict[str, Any]) -> list[EngineSpec]:
    settings: dict[str, Any] = {}
    if options['params_file']:
        settings.update(load_params_file(options['params_file']))
    settings.update(split_settings(options['settings']))
    specs = [
        parse_engine(text, settings, options['model'], options['device'])
        for text in options['engines']
    ]
    labels = [spec.label for spec in specs]
    for label in labels:
        if labels.count(label) > 1:
            raise ValueError(f'two engines are named {label!r}; tell them apart with LABEL=NAME')
    return specs


def run_and_show(
    sequences: Sequence[Any],
    data: dict[str, Any],
    default_out: Path,
    options: dict[str, Any],
    *,
    rates: Sequence[float | None] = (),
    together: bool = False,
    compare: Path | None = None,
    write_bags: bool = False,
) -> dict[tuple[str, str], str]:
    """Run, show and write an evaluation; returns the errors of jobs that failed."""
    from drift_ros.evaluation import run as runner
    from drift_ros.evaluation.provenance import describe_run

    specs = _specs(options)
    for spec in specs:
        if rates and spec.name != 'tracker':
            raise ValueError(
                f'{spec.name} cannot run live: the tracker node runs the engine "tracker" only'
            )
    folder = options['out'] or default_out
    with runner.exclusive(folder):
        run_options = runner.RunOptions(options['late_objects'], options['threads'])
        description = describe_run(
            specs,
            run_options.late_objects,
            {**data, **{key: options[key] for key in ('workers', 'threads', 'ray')}},
        )
        console = Console()
        results, errors = _run(
            console, specs, sequences, folder, run_options, options, rates, together
        )
        _write_and_show(
            console, folder, description, results, errors, sequences, options['report'], compare
        )
        if write_bags:
            _write_bags(console, sequences, results, folder)
    console.print(
        f'results: {folder / "results.csv"}, {folder / "results.json"}; masks: {folder / "masks"}',
        soft_wrap=True,
    )
    for (engine, sequence), text in errors.items():
        told = escape(f'{engine} on {sequence}: {text}')
        console.print(f'[red]failed:[/] {told}', soft_wrap=True)
    return errors


def _run(
    console: Console,
    specs: Sequence[EngineSpec],
    sequences: Sequence[Any],
    folder: Path,
    run_options: RunOptions,
    options: Mapping[str, Any],
    rates: Sequence[float | None],
    together: bool,
) -> tuple[list[JobResult], dict[tuple[str, str], str]]:
    from drift_ros.evaluation import live
    from drift_ros.evaluation import run as runner

    total = sum(len(sequence) for sequence in sequences) * len(specs) * (1 + len(rates))
    with Progress(
        TextColumn('{task.description:40.40}'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('frames'),
        TimeRemainingColumn(),
        console=console,
    ) as bar:
        task = bar.add_task('', total=total)

        def progress(engine: str, name: str, count: int) -> None:
            bar.update(task, advance=count, description=f'{engine} {name}')

        results, errors = runner.run(
            specs,
            sequences,
            folder,
            options=run_options,
            workers=options['workers'],
            ray=options['ray'],
            progress=progress,
        )
        if rates:
            more, failed = live.run_live(
                specs, sequences, rates, folder, run_options, progress, together
            )
            results, errors = [*results, *more], {**errors, **failed}
        bar.update(task, description='done')
    return results, errors


def _write_and_show(
    console: Console,
    folder: Path,
    description: Mapping[str, Any],
    results: Sequence[JobResult],
    errors: Mapping[tuple[str, str], str],
    sequences: Sequence[Any],
    with_report: bool,
    compare: Path | None,
) -> None:
    from drift_ros.evaluation import charts, live, report, stability, summaries, tables

    unscored = stability.stability_rows(folder, results, sequences, compare=compare)
    live_rows = live.live_rows(results)
    boxes = tables.presence(results)
    summaries.write_results(
        folder,
        description,
        results,
        errors,
        {'live': live_rows, 'stability': stability.columns(unscored)},
    )
    if any(row.scored for row in results):
        console.print(tables.score_table(results))
        if absences := tables.absence_table(results):
            console.print(absences)
        charts.write_chart(folder / 'scores.png', results)
        charts.write_reliability(folder / 'existence.png', results)
    for title, columns, rows in (
        ('Boxes and presence, in percent but for delays', tables.PRESENCE, boxes),
        ('Live', tables.LIVE, live_rows),
        ('No ground truth: this is not accuracy (percent)', tables.STABILITY, unscored),
    ):
        if rows:
            console.print(tables.text_table(title, columns, rows))
    if not results or not with_report:
        return
    with Progress(
        TextColumn('report {task.description:33.33}'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('sequences'),
        console=console,
    ) as bar:
        task = bar.add_task('', total=len(sequences))
        report.write_report(
            folder,
            description,
            results,
            errors,
            sequences,
            lambda name: bar.update(task, advance=1, description=name),
            live=live_rows,
            stability=unscored,
        )
    console.print(f'report: {folder / "report.html"}')


def _write_bags(
    console: Console, sequences: Sequence[Any], results: Sequence[JobResult], folder: Path
) -> None:
    from drift_ros.evaluation.result_bag import write_result_bag

    for sequence in sequences:
        chosen = [row for row in results if row.sequence == sequence.name]
        if chosen:
            path = write_result_bag(sequence, chosen, folder, folder / 'bags' / sequence.name)
            console.print(f'bag: {path}', soft_wrap=True)
