# SPDX-License-Identifier: Apache-2.0
"""Command lines of the evaluation: ``drift_ros eval`` and ``drift_ros bag``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
import contextlib
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from drift_ros.engine.config import OPTIONS
from drift_ros.evaluation.baselines import (
    ENGINES,
    EngineSpec,
    load_params_file,
    parse_engine,
    split_settings,
)


def _tracker_options() -> str:
    """Help for all tracker options, made from their declaration."""
    lines = []
    for item in OPTIONS.values():
        default = ','.join(item.default) if isinstance(item.default, tuple) else item.default
        lines.append(f'  {item.name}={default}  {item.help}')
    return '\b\nTracker options for --set, with their defaults:\n' + '\n'.join(lines)


def _engine_options(function: Callable) -> Callable:
    """Add the options that choose and configure engines, common to all evaluations."""
    engines = ', '.join(f'{name} ({text})' for name, text in ENGINES.items())
    for option in reversed(
        [
            click.option(
                '--engine',
                '-e',
                'engines',
                multiple=True,
                default=('tracker',),
                show_default=True,
                metavar='[LABEL=]NAME[:OPTION=VALUE,...]',
                help=f'What to run; may be repeated. {engines}.',
            ),
            click.option(
                '--set',
                'settings',
                multiple=True,
                metavar='OPTION=VALUE',
                help='A tracker option for all engines; may be repeated.',
            ),
            click.option(
                '--params-file',
                type=click.Path(exists=True, dir_okay=False),
                help='Tracker options from a ROS 2 parameter file (config/tracker.yaml).',
            ),
            click.option(
                '--model',
                help='Folder or hub id of a diffusers checkpoint [default: the embedded model].',
            ),
            click.option(
                '--device', default='auto', show_default=True, help='auto, cpu, cuda[:N].'
            ),
            click.option(
                '--out',
                type=click.Path(file_okay=False, path_type=Path),
                help='Folder of results; finished parts of an earlier run are kept.',
            ),
            click.option(
                '--workers',
                type=click.IntRange(1),
                default=1,
                show_default=True,
                help='Processes.',
            ),
            click.option(
                '--ray',
                metavar='ADDRESS',
                help='Run the jobs on the Ray cluster there (auto, ray://HOST:10001, ...), '
                'or on --workers local Ray processes (local).',
            ),
            click.option(
                '--threads',
                type=click.IntRange(0),
                default=0,
                show_default=True,
                help='Threads per process; 0: processors shared among the workers.',
            ),
            click.option(
                '--late-objects',
                is_flag=True,
                help='Seed and score objects that appear after the first mask, too '
                '(not in the official protocol).',
            ),
            click.option(
                '--report/--no-report',
                default=True,
                show_default=True,
                help='Write report.html with overlays and videos.',
            ),
        ]
    ):
        function = option(function)
    return function


@click.group()
def evaluate() -> None:
    """Measure tracking accuracy on datasets and bags."""


@evaluate.command(epilog=_tracker_options())
@click.argument('root', type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    '--resolution',
    help='Folder level below JPEGImages, where there is one [default: the only one, or 480p].',
)
@click.option('--subset', help='List in ImageSets, such as val [default: all sequences found].')
@click.option('--year', help='Folder of that list, where several have one.')
@click.option('--sequences', help='Names, separated by commas.')
@click.option(
    '--task',
    type=click.Choice(['auto', 'multi', 'single']),
    default='auto',
    show_default=True,
    help='single: whatever is not background is one object (DAVIS '
    '2016). auto: so where masks hold 0 and 255 only.',
)
@click.option(
    '--max-frames',
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help='Use only the first frames of each sequence (0: all).',
)
@_engine_options
def davis(
    root: Path,
    resolution: str | None,
    subset: str | None,
    year: str | None,
    sequences: str | None,
    task: str,
    max_frames: int,
    **options: Any,
) -> None:
    """
    Score engines on the DAVIS-layout folder ROOT (semi-supervised protocol).

    The first annotation of each sequence seeds the engine. Prints J and F; writes masks the
    official tools can score, CSV, JSON, a chart and an HTML report.
    """
    from drift_ros.evaluation.datasets import find_sequences

    with user_errors():
        found = find_sequences(
            root,
            resolution=resolution,
            subset=subset,
            year=year,
            task=task,
            names=[name for name in (sequences or '').split(',') if name],
            max_frames=max_frames,
        )
        data = {
            'kind': 'davis',
            'root': str(root),
            'resolution': resolution,
            'subset': subset,
            'year': year,
            'task': task,
            'max_frames': max_frames,
            'sequences': [item.name for item in found],
        }
        failed = _evaluate(
            found, data, Path('out', 'eval', f'davis-{root.resolve().name}'), options
        )
    if failed:
        raise click.exceptions.Exit(1)


@evaluate.command('bag', epilog=_tracker_options())
@click.argument(
    'bags', nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    '--offline/--live',
    default=True,
    show_default=True,
    help='offline: straight through the engine, as fast as it goes. live: through a '
    'tracker node, too, over ROS 2: latency, drops, streaming accuracy.',
)
@click.option(
    '--rate',
    metavar='HZ[,HZ...]',
    help='live: frames per second; every rate is a run [default: as the stamps of the bag say].',
)
@click.option(
    '--image',
    'images',
    multiple=True,
    help='Image topic; repeat it for several cameras [default: the only one].',
)
@click.option(
    '--truth',
    'truths',
    multiple=True,
    help='Topic of true label images; once, or once per --image '
    '[default: /ground_truth/mask, if the bag has it; "none": do not use it].',
)
@click.option(
    '--truth-folder',
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help='True label PNG files named by the stamp of their image: nanoseconds, or '
    'seconds.nanoseconds with nine digits. For one bag and one camera.',
)
@click.option(
    '--seed-mask',
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='Label PNG to start from, for one bag and one camera [default: the first true mask].',
)
@click.option(
    '--seed-stamp',
    metavar='STAMP',
    help='Stamp of its image, as in --truth-folder [default: the first image].',
)
@click.option(
    '--seeds',
    'seed_topic',
    metavar='TOPIC',
    help='Topic of recorded seeds (~/seeds of the tracker node) to start from '
    '[default without ground truth: the only one there].',
)
@click.option(
    '--compare',
    'compare_run',
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help='Without ground truth: the results whose masks to compare with '
    '[default: the first engine of this run].',
)
@click.option(
    '--max-frames',
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help='Use only the first frames of each camera (0: all).',
)
@click.option(
    '--write-bags',
    is_flag=True,
    help='Write bags/NAME (mcap) with masks, boxes, tracks and overlays beside the input.',
)
@_engine_options
def evaluate_bag(
    bags: Sequence[Path],
    offline: bool,
    rate: str | None,
    images: Sequence[str],
    truths: Sequence[str],
    max_frames: int,
    write_bags: bool,
    compare_run: Path | None,
    **options: Any,
) -> None:
    """
    Score engines on rosbag2 BAGS (sqlite3 or mcap, raw or compressed images).

    The first true mask of each camera seeds the engine. The numbers are those of "eval davis"
    on the same frames, digit for digit. Without ground truth (then give seeds), stability,
    survival and the agreement of engines are reported instead of accuracy.
    """
    from drift_ros.evaluation.live import parse_rates

    with user_errors():
        if rate is not None and offline:
            raise ValueError('--rate is the pace of a live replay: add --live')
        single = {
            key: options.pop(key)
            for key in ('truth_folder', 'seed_mask', 'seed_stamp', 'seed_topic')
        }
        found = _open_bags(bags, images, truths, max_frames, single)
        rates = [] if offline else parse_rates(rate)
        data = {
            'kind': 'bag',
            'bags': [str(path) for path in bags],
            'mode': 'offline' if offline else 'live',
            'rates': rates,
            'topics': {
                item.name: [item.image_topic, item.truth_topic, item.seed_topic] for item in found
            },
            **{key: value and str(value) for key, value in single.items()},
            'compare': compare_run and str(compare_run),
            'max_frames': max_frames,
            'sequences': [item.name for item in found],
        }
        folder = options['out'] or Path('out', 'eval', f'bag-{found[0].name}')
        failed = _evaluate(
            found, data, folder, options, rates=rates, compare=compare_run, write_bags=write_bags
        )
    if failed:
        raise click.exceptions.Exit(1)


def _open_bags(
    bags: Sequence[Path],
    images: Sequence[str],
    truths: Sequence[str],
    max_frames: int,
    single: dict[str, Any],
) -> list[Any]:
    """Open every camera of every bag; ``single`` are options that fit one sequence only."""
    from drift_ros.evaluation.bags import open_sequence

    if len(truths) > 1 and len(truths) != len(images):
        raise ValueError(
            f'{len(truths)} topics of --truth for {len(images)} of --image: '
            'give one for all, or one each'
        )
    cameras: Sequence[str | None] = images or (None,)
    topics: list[str | None] = list(truths) or [None]
    topics *= len(cameras) if len(topics) == 1 else 1
    files = [key for key in ('truth_folder', 'seed_mask', 'seed_stamp') if single[key]]
    if files and len(bags) * len(cameras) > 1:
        raise ValueError(
            f'--{files[0].replace("_", "-")} belongs to one camera of one bag, but '
            f'{len(bags) * len(cameras)} are given: evaluate them one by one'
        )
    found = []
    for path in bags:
        for image, truth in zip(cameras, topics, strict=True):
            name = path.resolve().name
            if len(cameras) > 1:
                name += (image or '').replace('/', '-')
            found.append(
                open_sequence(
                    path,
                    image_topic=image,
                    truth_topic=truth,
                    name=name,
                    max_frames=max_frames,
                    **single,
                )
            )
    names = [item.name for item in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f'two bags are named {name!r}: results would overwrite each other; rename one'
            )
    return found


@evaluate.command()
@click.argument('first', type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument(
    'second', type=click.Path(exists=True, file_okay=False, path_type=Path), required=False
)
@click.option(
    '--engines',
    metavar='A,B',
    help='Engines to compare, of FIRST and of SECOND [default: the only one of each].',
)
@click.option(
    '--confidence',
    type=click.FloatRange(0.5, 0.999),
    default=0.95,
    show_default=True,
    help='Of the bootstrap intervals.',
)
def compare(first: Path, second: Path | None, engines: str | None, confidence: float) -> None:
    """
    Compare the results in the folder FIRST with those in SECOND, object by object.

    Without SECOND, two engines of FIRST are compared. Prints paired differences B - A and
    bootstrap confidence intervals of their means.
    """
    from drift_ros.evaluation.compare import compare as compare_results
    from drift_ros.evaluation.run import load_results

    with user_errors():
        wanted = (engines or '').split(',') if engines else [None, None]
        if len(wanted) != 2:
            raise ValueError(f'--engines {engines}: name two, separated by a comma')
        chosen, names = [], []
        for folder, name in zip((first, second or first), wanted, strict=True):
            _, results = load_results(folder)
            there = list(dict.fromkeys(row.engine for row in results))
            if name is None and len(there) == 1:
                name = there[0]
            if name not in there:
                raise ValueError(
                    f'{folder} has the engines {", ".join(there)}: choose with --engines A,B'
                )
            chosen.append([row for row in results if row.engine == name])
            names.append(name)
        outcome = compare_results(*chosen, confidence=confidence)
    console = Console()
    console.print(
        f'A: {names[0]} in {first}\nB: {names[1]} in {second or first}',
        soft_wrap=True,
        highlight=False,
    )
    table = Table(title='J&F in percent', title_justify='left')
    for title in ('sequence, object', 'A', 'B', 'B - A'):
        table.add_column(title, justify='left' if title.startswith('seq') else 'right')
    for (sequence, item), a, b in zip(outcome.objects, outcome.first, outcome.second, strict=True):
        table.add_row(
            f'{sequence} {item}',
            f'{100 * a[2]:.1f}',
            f'{100 * b[2]:.1f}',
            f'{100 * (b[2] - a[2]):+.1f}',
        )
    console.print(table)
    table = Table(title='Means over objects, in percent', title_justify='left')
    for title in ('measure', 'A', 'B', 'B - A', f'{100 * confidence:g} % interval', ''):
        table.add_column(title, justify='left' if title in ('measure', '') else 'right')
    for row in outcome.differences:
        interval = '-' if row.low != row.low else f'{100 * row.low:+.1f} .. {100 * row.high:+.1f}'
        verdict = (
            '' if row.low != row.low else ('differs' if row.significant else 'no clear difference')
        )
        table.add_row(
            row.measure,
            f'{100 * row.first:.1f}',
            f'{100 * row.second:.1f}',
            f'{100 * row.difference:+.1f}',
            interval,
            verdict,
        )
    console.print(table)
    for name, keys in (('A', outcome.only_first), ('B', outcome.only_second)):
        if keys:
            listed = ', '.join(f'{sequence} {item}' for sequence, item in keys)
            console.print(f'only in {name}, left out: {listed}', soft_wrap=True)


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


def _evaluate(
    sequences: Sequence[Any],
    data: dict[str, Any],
    default_out: Path,
    options: dict[str, Any],
    *,
    rates: Sequence[float | None] = (),
    compare: Path | None = None,
    write_bags: bool = False,
) -> dict[tuple[str, str], str]:
    """Run, show and write an evaluation; returns the errors of jobs that failed."""
    from drift_ros.evaluation import live, report, stability, tables
    from drift_ros.evaluation import run as runner

    specs = _specs(options)
    for spec in specs:
        if rates and spec.name != 'tracker':
            raise ValueError(
                f'{spec.name} cannot run live: the tracker node runs the engine "tracker" only'
            )
    folder = options['out'] or default_out
    run_options = runner.RunOptions(options['late_objects'], options['threads'])
    description = runner.describe_run(
        specs,
        run_options,
        {
            **data,
            'workers': options['workers'],
            'threads': options['threads'],
            'ray': options['ray'],
        },
    )
    console = Console()
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
            more, failed = live.run_live(specs, sequences, rates, folder, run_options, progress)
            results, errors = [*results, *more], {**errors, **failed}
        bar.update(task, description='done')
    unscored = stability.stability_rows(folder, results, sequences, compare=compare)
    live_rows = live.live_rows(results)
    runner.write_results(
        folder,
        description,
        results,
        errors,
        {'live': live_rows, 'stability': stability.columns(unscored)},
    )
    if any(row.scored for row in results):
        console.print(tables.score_table(results))
        report.write_chart(folder / 'scores.png', results)
    for title, columns, rows in (
        ('Live', tables.LIVE, live_rows),
        ('No ground truth: this is not accuracy (percent)', tables.STABILITY, unscored),
    ):
        if rows:
            console.print(tables.text_table(title, columns, rows))
    if results and options['report']:
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
    if write_bags:
        from drift_ros.evaluation.result_bag import write_result_bag

        for sequence in sequences:
            chosen = [row for row in results if row.sequence == sequence.name]
            if chosen:
                path = write_result_bag(sequence, chosen, folder, folder / 'bags' / sequence.name)
                console.print(f'bag: {path}', soft_wrap=True)
    console.print(
        f'results: {folder / "results.csv"}, {folder / "results.json"}; masks: {folder / "masks"}',
        soft_wrap=True,
    )
    for (engine, sequence), text in errors.items():
        console.print(f'[red]failed:[/] {engine} on {sequence}: {text}', soft_wrap=True)
    return errors


@click.group()
def bag() -> None:
    """Make rosbag2 bags from datasets and videos."""


def _bag_options(function: Callable) -> Callable:
    for option in reversed(
        [
            click.option(
                '--storage',
                type=click.Choice(['mcap', 'sqlite3']),
                default='mcap',
                show_default=True,
            ),
            click.option(
                '--compressed',
                is_flag=True,
                help='sensor_msgs/CompressedImage instead of sensor_msgs/Image; nothing is lost.',
            ),
            click.option(
                '--rate',
                type=click.FloatRange(0, min_open=True),
                help='Frames per second [default: those of the video; 24 for folders].',
            ),
            click.option(
                '--max-frames',
                type=click.IntRange(0),
                default=0,
                show_default=True,
                help='Take only the first frames (0: all).',
            ),
        ]
    ):
        function = option(function)
    return function


@bag.command('from-davis')
@click.argument('root', type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument('sequence')
@click.argument('out', type=click.Path(path_type=Path))
@click.option('--resolution', help='Folder level below JPEGImages.')
@click.option(
    '--task',
    type=click.Choice(['auto', 'multi', 'single']),
    default='auto',
    show_default=True,
    help='As in "drift_ros eval davis".',
)
@_bag_options
def from_davis(
    root: Path,
    sequence: str,
    out: Path,
    resolution: str | None,
    task: str,
    storage: str,
    compressed: bool,
    rate: float | None,
    max_frames: int,
) -> None:
    """
    Make the bag OUT of SEQUENCE in the DAVIS-layout folder ROOT.

    Topics: /camera/image_raw[/compressed], /camera/camera_info, /ground_truth/mask.
    """
    from drift_ros.evaluation.bags import bag_from_davis
    from drift_ros.evaluation.datasets import find_sequences

    with user_errors():
        found = find_sequences(
            root, resolution=resolution, names=[sequence], task=task, max_frames=max_frames
        )[0]
        with click.progressbar(length=len(found), label=f'{sequence} to {out}') as bar:
            bag_from_davis(
                found,
                out,
                storage=storage,
                compressed=compressed,
                rate=rate or 24.0,
                progress=bar.update,
            )


@bag.command('from-video')
@click.argument('video', type=click.Path(exists=True, path_type=Path))
@click.argument('out', type=click.Path(path_type=Path))
@click.option(
    '--masks',
    type=click.Path(exists=True, path_type=Path),
    help='Folder of label PNG files named by frame number (00000.png), or one file '
    'for the first frame: the ground truth.',
)
@_bag_options
def from_video(
    video: Path,
    out: Path,
    masks: Path | None,
    storage: str,
    compressed: bool,
    rate: float | None,
    max_frames: int,
) -> None:
    """
    Make the bag OUT of a VIDEO file or a folder of images.

    Topics: /camera/image_raw[/compressed], /camera/camera_info, /ground_truth/mask.
    """
    from drift_ros.evaluation.bags import bag_from_video
    from drift_ros.media.video import VideoReader

    with user_errors():
        reader = VideoReader(video, count=max_frames)
        with click.progressbar(length=len(reader), label=f'{video} to {out}') as bar:
            bag_from_video(
                reader,
                out,
                storage=storage,
                compressed=compressed,
                rate=rate or reader.rate,
                masks=masks,
                progress=bar.update,
            )
