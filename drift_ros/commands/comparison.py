# SPDX-License-Identifier: Apache-2.0
"""``drift_ros eval compare``: two evaluations side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from drift_ros.commands.running import user_errors

if TYPE_CHECKING:
    from drift_ros.evaluation.compare import Comparison


@click.command()
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
    from drift_ros.evaluation.summaries import load_results

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
    _print_objects(console, outcome)
    _print_means(console, outcome, confidence)
    for name, keys in (('A', outcome.only_first), ('B', outcome.only_second)):
        if keys:
            listed = ', '.join(f'{sequence} {item}' for sequence, item in keys)
            console.print(f'only in {name}, left out: {listed}', soft_wrap=True)


def _print_objects(console: Console, outcome: Comparison) -> None:
    table = Table(title='J&F in percent', title_justify='left')
    for title in ('sequence, object', 'A', 'B', 'B - A'):
        table.add_column(title, justify='left' if title.startswith('seq') else 'right')
    for (sequence, item), a, b in zip(
        outcome.objects, outcome.first['j_and_f'], outcome.second['j_and_f'], strict=True
    ):
        table.add_row(
            f'{sequence} {item}', f'{100 * a:.1f}', f'{100 * b:.1f}', f'{100 * (b - a):+.1f}'
        )
    console.print(table)


def _print_means(console: Console, outcome: Comparison, confidence: float) -> None:
    from drift_ros.evaluation.compare import FRAMES, SCORES

    table = Table(title='Means over objects, in percent but for delays', title_justify='left')
    for title in ('measure', 'n', 'A', 'B', 'B - A', f'{100 * confidence:g} % interval', ''):
        table.add_column(
            title,
            justify='left' if title in ('measure', '') else 'right',
            no_wrap=title != '',
        )
    for row in outcome.differences:
        scale = 1 if row.measure in FRAMES else 100
        known = row.low == row.low
        table.add_row(
            SCORES[row.measure],
            str(row.pairs),
            f'{scale * row.first:.1f}',
            f'{scale * row.second:.1f}',
            f'{scale * row.difference:+.1f}',
            f'{scale * row.low:+.1f} .. {scale * row.high:+.1f}' if known else '-',
            ('differs' if row.significant else 'no clear difference') if known else '',
        )
    console.print(table)
