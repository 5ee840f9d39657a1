# SPDX-License-Identifier: Apache-2.0
"""Pictures, videos and the HTML report of an evaluation. The report is static: no script."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import io
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from drift_ros.evaluation import tables
from drift_ros.evaluation.datasets import SequenceFrame, SequenceSource
from drift_ros.evaluation.presence import ObjectRecord, pooled, roc
from drift_ros.evaluation.results import JobResult, mask_file
from drift_ros.evaluation.summaries import engine_summary
from drift_ros.media.labels import read_labels
from drift_ros.media.overlay import contact_sheet, draw_labels
from drift_ros.media.video import VideoWriter, write_image

PAGE = Path(__file__).with_suffix('.html.j2')
_PANEL = 427
"""Width of a panel in videos and overlays, in pixels."""
_VIDEO_FRAMES = 600
"""Longer sequences are shown at a stride."""
_FALL = 5
"""Frames over which the steepest fall is measured."""


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


def write_report(
    folder: Path,
    run: Mapping[str, Any],
    results: Sequence[JobResult],
    errors: Mapping[tuple[str, str], str],
    sequences: Sequence[SequenceSource],
    progress: Callable[[str], None] = lambda name: None,
    *,
    live: Sequence[Mapping[str, Any]] = (),
    stability: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """
    Write ``report.html`` and its ``media`` into a folder of results; return the page's path.

    Parameters
    ----------
    folder : Path
        Holds the masks and, where anything is scored, ``scores.png``.
    run : mapping
        See :func:`drift_ros.evaluation.provenance.describe_run`.
    results : sequence of JobResult
    errors : mapping
        By (engine, sequence).
    sequences : sequence of SequenceSource
        Their frames are read once.
    progress : callable
        Called with the name of every sequence that is done.
    live, stability : sequence
        Rows of those tables.

    """
    import jinja2

    summary = engine_summary(results)
    sections = []
    for sequence in sequences:
        rows = [row for row in results if row.sequence == sequence.name]
        if rows:
            series = {
                row['engine']: row['series']
                for row in stability
                if row['sequence'] == sequence.name
            }
            sections.append(
                {
                    'name': sequence.name,
                    'rows': rows,
                    'charts': _charts(rows, series),
                    **_media(folder, sequence, rows),
                }
            )
        progress(sequence.name)
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters['percent'] = tables.percent
    environment.filters['number'] = tables.number
    page = environment.from_string(PAGE.read_text(encoding='utf-8')).render(
        run=run,
        summary=summary,
        sections=sections,
        errors=errors,
        scores={(row.engine, row.sequence): row.summary for row in results if row.scored},
        tables=[
            (name, tables.cells(columns, rows), note)
            for name, columns, rows, note in (
                (
                    'presence',
                    tables.PRESENCE,
                    tables.presence(results, detailed=True),
                    _PRESENCE_NOTE,
                ),
                ('live', tables.LIVE, live, _LIVE_NOTE),
                ('stability', tables.STABILITY, stability, _STABILITY_NOTE),
            )
            if rows
        ],
        roc=_roc_chart(results),
        configuration=json.dumps(run, indent=2, default=list),
    )
    path = folder / 'report.html'
    path.write_text(page, encoding='utf-8')
    return path


def _roc_chart(results: Sequence[JobResult]) -> str:
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


def _frame_means(row: JobResult) -> np.ndarray:
    """J and F of each counted frame (2, n), means over the objects scored there."""
    return np.stack([np.nanmean(row.score.j, axis=1), np.nanmean(row.score.f, axis=1)])


def _charts(
    rows: Sequence[JobResult],
    stability: Mapping[str, Sequence[float | None]],
) -> list[str]:
    """Draw what there is over time as SVG: J and F, latency of live runs, stability."""
    charts = []
    scored = {row.engine: row for row in rows if row.scored}
    if scored:
        means = {engine: _frame_means(row) for engine, row in scored.items()}
        charts.append(
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
        charts.append(
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
        charts.append(
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
    return charts


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


def _moments(row: JobResult) -> list[tuple[int, str]]:
    """Frames to show of a job: where it fell most, and where it was lowest."""
    values = _frame_means(row).mean(axis=0)
    frames = row.score.frames
    found = []
    if len(values) > _FALL:
        drop = values[:-_FALL] - values[_FALL:]
        worst = int(drop.argmax())
        if drop[worst] > 0:
            found.append(
                (
                    int(frames[worst + _FALL]),
                    f'steepest fall: {100 * values[worst]:.0f} to '
                    f'{100 * values[worst + _FALL]:.0f} in {_FALL} frames',
                )
            )
    lowest = int(values.argmin())
    found.append((int(frames[lowest]), f'lowest J&F: {100 * values[lowest]:.0f}'))
    return found


def _media(folder: Path, sequence: SequenceSource, rows: Sequence[JobResult]) -> dict[str, Any]:
    """Write a sequence's video and overlays; return their paths relative to the folder."""
    media = folder / 'media' / sequence.name
    media.mkdir(parents=True, exist_ok=True)
    moments = {row.engine: _moments(row) for row in rows if row.scored}
    stride = -(-len(sequence) // _VIDEO_FRAMES)
    pictures = []
    with VideoWriter(media / 'overlay.mp4', 24.0 / stride) as writer:
        for index, frame, panels in _panels(folder, sequence, rows):
            if index % stride == 0:
                writer.write(
                    contact_sheet(
                        [panel for panel, _ in panels],
                        columns=min(len(panels), 3),
                        width=_PANEL,
                        captions=[f'{name} {index}' for _, name in panels],
                    )
                )
            for engine, wanted in moments.items():
                for moment, text in wanted:
                    if moment != index:
                        continue
                    chosen = [item for item in panels if item[1] in ('truth', engine)]
                    path = media / f'{engine}-{frame.name}.jpg'
                    write_image(
                        path,
                        contact_sheet(
                            [panel for panel, _ in chosen],
                            columns=2,
                            width=_PANEL,
                            captions=[name for _, name in chosen],
                        ),
                    )
                    pictures.append(
                        {
                            'path': path.relative_to(folder).as_posix(),
                            'text': f'{engine}, frame {index}, {text}',
                        }
                    )
    return {
        'video': (media / 'overlay.mp4').relative_to(folder).as_posix(),
        'pictures': pictures,
    }


def _panels(
    folder: Path,
    sequence: SequenceSource,
    rows: Sequence[JobResult],
) -> Iterator[tuple[int, SequenceFrame, list[tuple[np.ndarray, str]]]]:
    """Give index, frame and the overlays (picture, name) of every frame, small."""
    for index, frame in enumerate(sequence):
        height = round(frame.image.shape[0] * _PANEL / frame.image.shape[1])
        small = cv2.resize(frame.image, (_PANEL, height), interpolation=cv2.INTER_AREA)

        def panel(labels: np.ndarray, picture: np.ndarray = small) -> np.ndarray:
            size = (picture.shape[1], picture.shape[0])
            return draw_labels(picture, cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST))

        shown = [(small, 'input') if frame.truth is None else (panel(frame.truth), 'truth')]
        for row in rows:
            path = mask_file(folder, row.engine, row.sequence, frame.name)
            shown.append((panel(read_labels(path, plain=False)), row.engine))
        yield index, frame, shown


_LIVE_NOTE = (
    'Latency: from publication of an image to arrival of its mask. Streaming: at the instant an '
    'image is published, the newest mask that has arrived is scored against its truth. On '
    'arrival: the newest mask that arrived before the next image. CPU in percent of one '
    'processor.'
)
_PRESENCE_NOTE = (
    'Means over objects, in percent but for delays, with 95 % bootstrap intervals. Boxes are the '
    'published ones; one that is missing has IoU 0. False losses: share of the frames with the '
    'object in which it is not reported; false finds: of those without it in which it is. AUC: '
    'area under the curve of existence, over all frames. A return is the first frame with the '
    'object after some without; found means J above .5.'
)
_STABILITY_NOTE = (
    'No ground truth: nothing here is accuracy. IoU of consecutive masks; tracking: share of '
    'frames in that state; agreement: J and F against the masks of another run.'
)
