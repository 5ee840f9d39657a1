# SPDX-License-Identifier: Apache-2.0
"""``drift_ros eval``: score engines on datasets and bags."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from drift_ros.commands.comparison import compare
from drift_ros.commands.paper import paper
from drift_ros.commands.running import (
    max_frames_option,
    run_and_show,
    shared_options,
    tracker_options,
    user_errors,
)
from drift_ros.evaluation.composites import composed, KINDS


@click.group()
def evaluate() -> None:
    """Measure tracking accuracy on datasets and bags."""


@evaluate.command(epilog=tracker_options())
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
@max_frames_option
@click.option(
    '--compose',
    type=click.Choice(KINDS),
    help='Make sequences of two objects of each sequence and the next: beside (side by side), '
    'pasted (the object of the next cut out and pasted in), or of it alone: mirrored (its object '
    'and the mirror image of it, which cross).',
)
@click.option(
    '--splice',
    is_flag=True,
    help='The absence test: 25 frames of each sequence, 20 of the next, in which the object is '
    'not, then the rest.',
)
@click.option(
    '--splice-zoom',
    type=click.FloatRange(0.25, 4.0),
    help='The same, and the object comes back so many times larger.',
)
@shared_options()
def davis(
    root: Path,
    resolution: str | None,
    subset: str | None,
    year: str | None,
    sequences: str | None,
    task: str,
    max_frames: int,
    compose: str | None,
    splice: bool,
    splice_zoom: float | None,
    **options: Any,
) -> None:
    """
    Score engines on the DAVIS-layout folder ROOT (semi-supervised protocol).

    The first annotation of each sequence seeds the engine. Prints J and F; writes masks the
    official tools can score, CSV, JSON, a chart and an HTML report.
    """
    from drift_ros.evaluation.datasets import BrokenSequence, find_sequences, SequenceSource
    from drift_ros.evaluation.splice import spliced

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
        broken = [item for item in found if isinstance(item, BrokenSequence)]
        made: Sequence[SequenceSource] = [item for item in found if item not in broken]
        made = composed(made, compose) if compose else made
        made = [*(spliced(made, splice_zoom or 1.0) if splice or splice_zoom else made), *broken]
        data = {
            'kind': 'davis',
            'root': str(root),
            'resolution': resolution,
            'subset': subset,
            'year': year,
            'task': task,
            'max_frames': max_frames,
            'compose': compose,
            'splice': splice or splice_zoom is not None,
            'splice_zoom': splice_zoom,
            'sequences': [item.name for item in made],
        }
        failed = run_and_show(
            made, data, Path('out', 'eval', f'davis-{root.resolve().name}'), options
        )
    if failed:
        raise click.exceptions.Exit(1)


@evaluate.command('bag', epilog=tracker_options())
@click.argument('bags', nargs=-1, required=True, type=click.Path(exists=True, path_type=Path))
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
    '--together',
    is_flag=True,
    help='live: show all cameras of a bag to one node at once, as on a robot.',
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
@shared_options()
def evaluate_bag(
    bags: Sequence[Path],
    offline: bool,
    rate: str | None,
    together: bool,
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
    from drift_ros.evaluation.bags import BagSequence
    from drift_ros.evaluation.live import parse_rates

    with user_errors():
        if rate is not None and offline:
            raise ValueError('--rate is the pace of a live replay: add --live')
        if together and offline:
            raise ValueError('--together is how a live replay is shown: add --live')
        single = {
            key: options.pop(key)
            for key in ('truth_folder', 'seed_mask', 'seed_stamp', 'seed_topic')
        }
        found = _open_bags(bags, images, truths, max_frames, single)
        rates = [] if offline else parse_rates(rate)
        notes = [note for item in found for note in getattr(item, 'notes', ())]
        data = {
            'kind': 'bag',
            'bags': [str(path) for path in bags],
            'mode': 'offline' if offline else 'live',
            'rates': rates,
            'together': together,
            'topics': {
                item.name: [item.image_topic, item.truth_topic, item.seed_topic]
                for item in found
                if isinstance(item, BagSequence)
            },
            'notes': notes,
            **{key: value and str(value) for key, value in single.items()},
            'compare': compare_run and str(compare_run),
            'max_frames': max_frames,
            'sequences': [item.name for item in found],
        }
        for note in notes:
            click.echo(f'note: {note}', err=True)
        folder = options['out'] or Path('out', 'eval', f'bag-{found[0].name}')
        failed = run_and_show(
            found,
            data,
            folder,
            options,
            rates=rates,
            together=together,
            compare=compare_run,
            write_bags=write_bags,
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
    """
    Open every camera of every bag; ``single`` are options that fit one sequence only.

    One that cannot be opened does not keep the others from being evaluated.
    """
    from drift_ros.evaluation.bags import BagError, open_sequence
    from drift_ros.evaluation.datasets import BrokenSequence

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
    found: list[Any] = []
    for path in bags:
        for image, truth in zip(cameras, topics, strict=True):
            name = path.resolve().name
            if len(cameras) > 1:
                name += (image or '').replace('/', '-')
            try:
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
            except BagError as error:
                found.append(BrokenSequence(name, str(error)))
    broken = [item for item in found if isinstance(item, BrokenSequence)]
    if len(broken) == len(found):
        raise ValueError(broken[0].reason)
    names = [item.name for item in found]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f'two bags are named {name!r}: results would overwrite each other; rename one'
            )
    return found


evaluate.add_command(compare)
evaluate.add_command(paper)
