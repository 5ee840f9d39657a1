# SPDX-License-Identifier: Apache-2.0
"""Charts of an evaluation: J&F per sequence as PNG, what there is over time as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import io
from pathlib import Path
from typing import Any

import numpy as np

from drift_ros.evaluation.presence import ObjectRecord, pooled, roc
from drift_ros.evaluation.results import JobResult
from drift_ros.evaluation.summaries import engine_summary


def write_chart(path: Path, results: Sequence[JobResult]) -> None:
    """Write a bar chart of J&F per sequence and engine as PNG."""
    pyplot = _pyplot()
    results = [row for row in results if row.scored]
    summary = engine_summary(results)
    names = list(dict.fromkeys(row.sequence for row in results))
    scores = {(row.engine, row.sequence): 100 * row.summary.j_and_f for row in results}
    width = max(6, 0.35 * (len(names) + 1) * (len(summary) + 1))
    figure, axes = pyplot.subplots(figsize=(min(width, 40), 4.2), layout='constrained')
    bar = 0.8 / len(summary)
    for index, (engine, row) in enumerate(summary.items()):
        values = [scores.get((engine, name), 0) for name in names] + [100 * row['j_and_f']]
        places = np.arange(len(values)) + (index - (len(summary) - 1) / 2) * bar
        axes.bar(places, values, bar, label=f'{engine} ({100 * row["j_and_f"]:.1f})')
    axes.set_xticks(range(len(names) + 1), [*names, 'mean'], rotation=35, ha='right')
    axes.axvline(len(names) - 0.5, color='0.7', linewidth=1)
    axes.set_ylabel('J&F in percent')
    axes.set_ylim(0, 100)
    axes.grid(axis='y', color='0.9')
    axes.set_axisbelow(True)
    columns = max(1, min(len(summary), int(figure.get_figwidth() / 2.2)))
    figure.legend(loc='outside upper center', ncols=columns, frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def roc_chart(results: Sequence[JobResult]) -> str:
    """Draw how existence tells presence from absence as SVG; '' where no engine gives any."""
    found: dict[str, list[ObjectRecord]] = {}
    for row in results:
        found.setdefault(row.engine, []).extend(row.presence().values())
    curves = {engine: roc(*pooled(rows)) for engine, rows in found.items() if rows}
    lines = {
        f'{engine} ({100 * area:.1f})': (100 * false, 100 * true)
        for engine, (false, true, area) in curves.items()
        if not np.isnan(area)
    }
    title = 'frames with the object, percent, over those without it'
    return _chart([(title, lines, 102)], 'percent') if lines else ''


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    return pyplot


def frame_means(row: JobResult) -> np.ndarray:
    """Give J and F of each counted frame (2, n), means over the objects scored there."""
    return np.stack([np.nanmean(row.score.j, axis=1), np.nanmean(row.score.f, axis=1)])


def charts(
    rows: Sequence[JobResult],
    stability: Mapping[str, Sequence[float | None]],
) -> list[str]:
    """Draw what there is over time as SVG: J and F, latency of live runs, stability."""
    found = []
    scored = {row.engine: row for row in rows if row.scored}
    if scored:
        means = {engine: frame_means(row) for engine, row in scored.items()}
        found.append(
            _chart(
                [
                    (
                        f'{name}, percent',
                        {
                            engine: (scored[engine].score.frames, 100 * values[index])
                            for engine, values in means.items()
                        },
                        102,
                    )
                    for index, name in enumerate('JF')
                ]
            )
        )
    live = {row.engine: row for row in rows if row.live}
    if live:
        found.append(
            _chart(
                [
                    (
                        'latency of the masks that arrived, ms',
                        {
                            engine: (_arrived(row), row.milliseconds)
                            for engine, row in live.items()
                        },
                        None,
                    ),
                    (
                        'age of the newest mask, frames',
                        {
                            engine: (
                                np.arange(len(row.frame_names)),
                                np.arange(len(row.frame_names))
                                - np.array((row.live or {})['shown']),
                            )
                            for engine, row in live.items()
                        },
                        None,
                    ),
                ]
            )
        )
    if stability:
        found.append(
            _chart(
                [
                    (
                        'IoU with the last mask moved by flow, percent',
                        {
                            engine: (
                                np.arange(1, len(values) + 1),
                                100 * np.array(values, dtype=np.float64),
                            )
                            for engine, values in stability.items()
                        },
                        102,
                    ),
                    (
                        'confidence (mean over objects), percent',
                        {
                            row.engine: (
                                np.arange(len(row.tracks)),
                                100
                                * np.array(
                                    [
                                        np.mean([item.confidence for item in tracks])
                                        if tracks
                                        else np.nan
                                        for tracks in row.tracks
                                    ]
                                ),
                            )
                            for row in rows
                            if not row.scored
                        },
                        102,
                    ),
                ]
            )
        )
    return found


def _arrived(row: JobResult) -> np.ndarray:
    """Frames whose masks arrived in a live run."""
    return np.array([item[0] for item in (row.live or {})['arrivals']])


def _chart(
    panels: Sequence[tuple[str, Mapping[str, tuple[np.ndarray, np.ndarray]], float | None]],
    across: str = 'frame',
) -> str:
    """Draw panels side by side as SVG: title, (x, y) by engine, top of the axis."""
    import matplotlib

    pyplot = _pyplot()
    # A fixed salt keeps the file the same from run to run.
    with matplotlib.rc_context({'svg.hashsalt': 'drift_ros', 'svg.fonttype': 'none'}):
        figure, (axes,) = pyplot.subplots(
            1, len(panels), figsize=(10, 2.6), layout='constrained', squeeze=False
        )
        for axis, (title, lines, top) in zip(axes, panels, strict=True):
            for engine, (frames, values) in lines.items():
                axis.plot(frames, values, label=engine, linewidth=1.5)
            axis.set_title(title, loc='left', fontsize=10)
            axis.set_ylim(-2 if top else 0, top)
            axis.set_xlabel(across, fontsize=9)
            axis.grid(color='0.9')
        axes[-1].legend(fontsize=8)
        text = io.StringIO()
        figure.savefig(text, format='svg', metadata={'Date': None})
        pyplot.close(figure)
    svg = text.getvalue()
    return svg[svg.index('<svg') :]
