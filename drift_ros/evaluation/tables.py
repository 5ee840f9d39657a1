# SPDX-License-Identifier: Apache-2.0
"""Tables of an evaluation: their columns once, for the terminal and the HTML report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.table import Table

from drift_ros.evaluation.compare import intervals
from drift_ros.evaluation.results import JobResult
from drift_ros.evaluation.summaries import engine_summary


def number(value: float | None, digits: int = 1) -> str:
    """Write a number, '-' for None."""
    return '-' if value is None else f'{value:.{digits}f}'


def percent(value: float | None, digits: int = 1) -> str:
    """Write a share in percent, '-' for None."""
    return number(None if value is None else 100 * value, digits)


def whole(value: float | None) -> str:
    """Write a whole number, '-' for None."""
    return number(value, 0)


def _estimate(value: float | tuple[float, float, float] | None, scale: float = 100) -> str:
    """Write a mean in percent, with its interval where there is one."""
    if not isinstance(value, tuple):
        return number(None if value is None else scale * value)
    mean, low, high = (scale * item for item in value)
    return f'{mean:.1f}' if low != low else f'{mean:.1f} ({low:.1f} .. {high:.1f})'


Columns = Mapping[str, tuple[str, Callable[[Any], str]]]
"""Key of a row -> title and the way to write its values."""

SUMMARY: Columns = {
    'engine': ('engine', str),
    'j_and_f': ('J&F', percent),
    'j_mean': ('J mean', percent),
    'j_recall': ('J recall', percent),
    'j_decay': ('J decay', percent),
    'f_mean': ('F mean', percent),
    'f_recall': ('F recall', percent),
    'f_decay': ('F decay', percent),
    'objects': ('objects', whole),
    'frames': ('frames', whole),
    'ms_median': ('step, ms: median', number),
    'ms_95': ('step, 95 %', number),
    'latency_median': ('live: latency, ms: median', number),
    'latency_95': ('latency, 95 %', number),
}
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
PRESENCE: Columns = {
    'engine': ('engine', str),
    'sequence': ('sequence', str),
    'objects': ('objects', whole),
    'box_iou': ('box IoU', _estimate),
    'box_half': ('boxes with IoU > .5', _estimate),
    'centre_error': ('centre error, of the box diagonal', _estimate),
    'false_losses': ('false losses', _estimate),
    'absent_frames': ('frames without the object', whole),
    'false_finds': ('false finds in them', _estimate),
    'existence_auc': ('existence: AUC', _estimate),
    'returns': ('returns', whole),
    'found_again': ('found again', _estimate),
    'again_frames': ('found again: frames', _estimate),
    'again_delay': ('found again: delay', lambda value: _estimate(value, 1)),
}


def presence(
    results: Sequence[JobResult], *, by_sequence: bool = False, with_intervals: bool = False
) -> list[dict[str, Any]]:
    """
    Make the rows of :data:`PRESENCE`: each engine's means over objects.

    Parameters
    ----------
    results : sequence of JobResult
    by_sequence : bool
        Whether rows of the single sequences follow.
    with_intervals : bool
        Whether means come with the bounds of their 95 % intervals.

    """
    scored = [row for row in results if row.presence()]
    bounds = intervals(scored) if with_intervals else {}
    rows = []
    for engine, found in engine_summary(scored).items():
        values = {
            name: (found[name], *around[1:]) if name != 'existence_auc' else found[name]
            for name, around in bounds.get(engine, {}).items()
            if name in found
        }
        rows.append({**found, **values, 'engine': engine, 'sequence': 'all'})
    for row in scored if by_sequence else ():
        (found,) = engine_summary([row]).values()
        rows.append({**found, 'engine': row.engine, 'sequence': row.sequence})
    return rows


def text_table(title: str, columns: Columns, rows: Sequence[Mapping[str, Any]]) -> Table:
    """Make a table for the terminal: a line per measure that says anything, a column per row."""
    table = Table(title=title, title_justify='left', show_header=False)
    table.add_column()
    for _ in rows:
        table.add_column(justify='right')
    for key, (name, write) in columns.items():
        cells = [write(row[key]) for row in rows]
        if set(cells) != {'-'}:
            table.add_row(name, *cells)
    return table


def cells(columns: Columns, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Write the cells of a table: titles, then rows; without the columns that say nothing."""
    written = {key: [write(row[key]) for row in rows] for key, (_, write) in columns.items()}
    said = [key for key, values in written.items() if set(values) != {'-'}]
    return [
        [columns[key][0] for key in said],
        *([written[key][number] for key in said] for number in range(len(rows))),
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
    for title, key in (
        ('step, ms (median)', 'ms_median'),
        ('live: latency, ms (median)', 'latency_median'),
    ):
        values = [number(row[key]) for row in summary.values()]
        if set(values) != {'-'}:
            table.add_row(title, *values)
    return table


def absence_table(results: Sequence[JobResult]) -> Table | None:
    """Make the table of false finds and returns per sequence; None without absent frames."""
    rows = {
        (row['engine'], row['sequence']): row
        for row in presence(results, by_sequence=True)
        if row['absent_frames']
    }
    if not rows:
        return None
    engines, names = ([*dict.fromkeys(key[k] for key in rows)] for k in (0, 1))
    table = Table(title='False finds / frames found again, in percent', title_justify='left')
    table.add_column('sequence')
    for engine in engines:
        table.add_column(engine, justify='right')
    for name in sorted(names, key=lambda name: name == 'all'):
        cells = []
        for engine in engines:
            row = rows.get((engine, name), {})
            cells.append(
                ' / '.join(_estimate(row.get(key)) for key in ('false_finds', 'again_frames'))
            )
        table.add_row(name, *cells, style='bold' if name == 'all' else None)
    return table
