# SPDX-License-Identifier: Apache-2.0
"""What is made of an ablation's results: tables, CSV, Markdown and the report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import json
from pathlib import Path
from typing import Any

from rich.table import Table

from drift_ros.evaluation.summaries import write_table
from drift_ros.experiments.figures import FIGURES, per_frame, Results, summaries
from drift_ros.experiments.rows import PARTS, Row

PAGE = Path(__file__).with_name('ablation.html.j2')
_COLUMNS = ('j_and_f', 'j_mean', 'f_mean', 'box_half', 'ms_median', 'sequences', 'frames')


def table(rows: Sequence[Row], results: Results) -> Table:
    """Make the table of all rows."""
    shown = Table(title='J&F in percent', title_justify='left')
    for title in ('part', 'row', 'J&F', 'J', 'F', 'ms per frame', 'frames'):
        shown.add_column(title, justify='left' if title in ('part', 'row') else 'right')
    part = ''
    for row, found in summaries(rows, results):
        if part and part != row.part:
            shown.add_section()
        shown.add_row(
            '' if part == row.part else row.part,
            row.text,
            *(f'{100 * found[key]:.1f}' for key in ('j_and_f', 'j_mean', 'f_mean')),
            f'{found["ms_median"]:.0f}',
            str(found['frames']),
        )
        part = row.part
    return shown


def write(
    out: Path, rows: Sequence[Row], results: Results, description: Mapping[str, Any]
) -> Path:
    """Write CSV, figures and the report into a folder; returns the report's path."""
    write_table(
        out / 'rows.csv',
        [
            {
                'part': row.part,
                'row': row.label,
                'text': row.text,
                **{key: found[key] for key in _COLUMNS},
                'options': json.dumps({**row.options, 'learn': row.learn}, default=list),
            }
            for row, found in summaries(rows, results)
        ],
    )
    (out / 'tables.md').write_text(_markdown(rows, results), encoding='utf-8')
    write_table(
        out / 'frames.csv',
        [
            {
                'part': row.part,
                'row': row.label,
                'sequence': result.sequence,
                'frame': int(frame),
                'j_and_f': value,
            }
            for row in rows
            for result in results[row.part, row.label]
            for frame, value in zip(result.score.frames, per_frame(result), strict=True)
        ],
    )
    figures = [
        (name, text)
        for name, text, draw in FIGURES
        if draw(out / f'{name}.png', rows, results, description)
    ]
    return _write_report(out, rows, results, figures, description)


def _markdown(rows: Sequence[Row], results: Results) -> str:
    """Make a Markdown table of each part."""
    lines, part = [], ''
    for row, found in summaries(rows, results):
        if row.part != part:
            part = row.part
            lines += [
                '',
                f'### {part}',
                '',
                f'{found["frames"]} frames. {PARTS[part]}',
                '',
                '| row | J&F | J | F | ms |',
                '|---|---|---|---|---|',
            ]
        scores = (f'{100 * found[key]:.1f}' for key in ('j_and_f', 'j_mean', 'f_mean'))
        text = row.text.replace('<', '&lt;').replace('>', '&gt;')
        lines.append(f'| {text} | {" | ".join(scores)} | {found["ms_median"]:.0f} |')
    return '\n'.join(lines[1:]) + '\n'


def _write_report(
    out: Path,
    rows: Sequence[Row],
    results: Results,
    figures: Sequence[tuple[str, str]],
    description: Mapping[str, Any],
) -> Path:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters['percent'] = lambda value: f'{100 * value:.1f}'
    learnt = []
    for path in sorted((out / 'tokens').rglob('*.json')):
        data = json.loads(path.read_text())
        for number, (before, after) in data['agreement'].items():
            learnt.append((path.parent.name, path.stem, number, before, after, data['seconds']))
    page = environment.from_string(PAGE.read_text(encoding='utf-8')).render(
        rows=list(summaries(rows, results)),
        figures=figures,
        learnt=learnt,
        sequences=len(description['sequences']),
        notes=[(part, PARTS[part]) for part in dict.fromkeys(row.part for row in rows)],
        description=json.dumps(description, indent=2, default=list),
    )
    path = out / 'report.html'
    path.write_text(page, encoding='utf-8')
    return path
