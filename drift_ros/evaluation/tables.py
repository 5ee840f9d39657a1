# SPDX-License-Identifier: Apache-2.0
"""Tables of an evaluation: their columns once, for the terminal and the HTML report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from drift_ros.evaluation.run import engine_summary, JobResult


def number(value: float | None, digits: int = 1) -> str:
    """Write a number, '-' for None."""
    return '-' if value is None else f'{value:.{digits}f}'


def percent(value: float | None, digits: int = 1) -> str:
    """Write a share in percent, '-' for None."""
    return number(None if value is None else 100 * value, digits)


def whole(value: float | None) -> str:
    """Write a whole number, '-' for None."""
    return number(value, 0)


Columns = Mapping[str, tuple[str, Callable[[Any], str]]]
"""Key of a row -> title and the way to write its values."""

LIVE: Columns = {
    'engine': ('live run', str),
    'sequence': ('sequence', str),
    'rate_in': ('in, Hz', number),
    'rate_out': ('out, Hz', number),
    'frames': ('frames', whole),
    'dropped': ('dropped', whole),
    'latency_median': ('latency, ms: median', whole),
    'latency_95': ('latency, 95 %', whole),
    'latency_max': ('latency, max', whole),
    'cpu': ('CPU, %', whole),
    'memory_mean': ('memory, MB: mean', whole),
    'memory_max': ('memory, max', whole),
    'streaming': ('J&F streaming', percent),
    'on_arrival': ('J&F on arrival', percent),
    'offline': ('J&F offline', percent),
}
STABILITY: Columns = {
    'engine': ('engine', str),
    'sequence': ('sequence', str),
    'objects': ('objects', whole),
    'temporal_iou': ('IoU with the last mask', percent),
    'warped_iou': ('the same, moved by flow', percent),
    'survival': ('tracking', percent),
    'first_loss': ('first loss, frame', whole),
    'agreement_j': ('agreement: J', percent),
    'agreement_f': ('agreement: F', percent),
    'reference': ('with', lambda value: value or '-'),
}


def text_table(title: str, columns: Columns, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Make a table for the terminal: a line per measure, a column per row."""
    table = Table(title=title, title_justify='left', show_header=False)
    table.add_column()
    for _ in rows:
        table.add_column(justify='right')
    for key, (name, write) in columns.items():
        table.add_row(name, *(write(row[key]) for row in rows))
    return table


def cells(columns: Columns, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Write the cells of a table: titles, then rows."""
    return [
        [name for name, _ in columns.values()],
        *([write(row[key]) for key, (_, write) in columns.items()] for row in rows),
    ]


def score_table(results: Sequence[JobResult]) -> Table:
    """Make the table of J and F per sequence, and means over objects, of every engine."""
    summary = engine_summary(results)
    table = Table(title='J / F, in percent', title_justify='left')
    table.add_column('sequence')
    for engine in summary:
        table.add_column(engine, justify='right')
    by_key = {(row.engine, row.sequence): row.summary for row in results if row.scored}
    for name in dict.fromkeys(row.sequence for row in results):
        cells = []
        for engine in summary:
            found = by_key.get((engine, name))
            cells.append(f'{100 * found.j.mean:.1f} / {100 * found.f.mean:.1f}' if found else '-')
        table.add_row(name, *cells)
    table.add_section()
    for title, keys in (
        ('mean over objects', ('j_mean', 'f_mean')),
        ('recall', ('j_recall', 'f_recall')),
        ('decay', ('j_decay', 'f_decay')),
    ):
        table.add_row(
            title,
            *(f'{percent(row[keys[0]])} / {percent(row[keys[1]])}' for row in summary.values()),
        )
    table.add_row('J&F', *(percent(row['j_and_f'], 2) for row in summary.values()), style='bold')
    table.add_row('ms per frame (median)', *(number(row['ms_median']) for row in summary.values()))
    return table
