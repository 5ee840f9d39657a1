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
from drift_ros.evaluation.datasets import Frame, read_annotation
from drift_ros.evaluation.run import engine_summary, JobResult, SequenceSource
from drift_ros.media.overlay import contact_sheet, draw_labels
from drift_ros.media.video import VideoWriter, write_image

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

    The folder must hold the masks and, where anything is scored, ``scores.png``; frames are read
    from ``sequences`` once. ``live`` and ``stability`` are the rows of those tables.
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
    page = environment.from_string(_PAGE).render(
        run=run,
        summary=summary,
        sections=sections,
        errors=errors,
        scores={(row.engine, row.sequence): row.summary for row in results if row.scored},
        tables=[
            (name, tables.cells(columns, rows), note)
            for name, columns, rows, note in (
                ('live', tables.LIVE, live, _LIVE_NOTE),
                ('stability', tables.STABILITY, stability, _STABILITY_NOTE),
            )
            if rows
        ],
        configuration=json.dumps(run, indent=2, default=list),
    )
    path = folder / 'report.html'
    path.write_text(page, encoding='utf-8')
    return path


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
) -> str:
    """Draw panels side by side as SVG: title, (frames, values) by engine, top of the axis."""
    import matplotlib

    pyplot = _pyplot()
    # A fixed salt keeps the file the same from run to run.
    with matplotlib.rc_context({'svg.hashsalt': 'drift_ros', 'svg.fonttype': 'none'}):
        figure, axes = pyplot.subplots(1, len(panels), figsize=(10, 2.6), layout='constrained')
        for axis, (title, lines, top) in zip(axes, panels, strict=True):
            for engine, (frames, values) in lines.items():
                axis.plot(frames, values, label=engine, linewidth=1.5)
            axis.set_title(title, loc='left', fontsize=10)
            axis.set_ylim(-2 if top else 0, top)
            axis.set_xlabel('frame', fontsize=9)
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
        'codec': writer.codec,
        'pictures': pictures,
    }


def _panels(
    folder: Path,
    sequence: SequenceSource,
    rows: Sequence[JobResult],
) -> Iterator[tuple[int, Frame, list[tuple[np.ndarray, str]]]]:
    """Give index, frame and the overlays (picture, name) of every frame, small."""
    for index, frame in enumerate(sequence):
        height = round(frame.image.shape[0] * _PANEL / frame.image.shape[1])
        small = cv2.resize(frame.image, (_PANEL, height), interpolation=cv2.INTER_AREA)

        def panel(labels: np.ndarray, picture: np.ndarray = small) -> np.ndarray:
            size = (picture.shape[1], picture.shape[0])
            return draw_labels(picture, cv2.resize(labels, size, interpolation=cv2.INTER_NEAREST))

        truth = frame.truth
        shown = [
            (
                panel(np.where(truth == 255, 0, truth)) if truth is not None else small,
                'truth' if truth is not None else 'input',
            )
        ]
        for row in rows:
            path = folder / 'masks' / row.engine / row.sequence / f'{frame.name}.png'
            shown.append((panel(read_annotation(path)), row.engine))
        yield index, frame, shown


_LIVE_NOTE = (
    'Latency: from publication of an image to arrival of its mask. Streaming: at the instant an '
    'image is published, the newest mask that has arrived is scored against its truth. On '
    'arrival: the newest mask that arrived before the next image. CPU in percent of one '
    'processor.'
)
_STABILITY_NOTE = (
    'No ground truth: nothing here is accuracy. IoU of consecutive masks; tracking: share of '
    'frames in that state; agreement: J and F against the masks of another run.'
)

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>drift_ros evaluation</title>
<link rel="icon" href="data:,">
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1320px;
       padding: 1.5em; color: #222; }
h1 { font-size: 1.5em; } h2 { font-size: 1.2em; margin-top: 2em; border-top: 1px solid #ccc;
     padding-top: .8em; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; } tr.total td { font-weight: 600; }
img, svg, video { max-width: 100%; height: auto; }
figure { display: inline-block; margin: .4em .8em .4em 0; max-width: 640px; }
figcaption, .note { color: #555; font-size: .9em; }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto; font-size: .85em; }
.error { color: #a00; }
.wide { overflow-x: auto; } .wide table { font-size: .85em; } .wide td { white-space: nowrap; }
.wide th, .wide td { padding: .25em .6em; }
</style>
</head>
<body>
<h1>drift_ros evaluation</h1>
<p class="note">{{ run.data.kind }}: {{ run.data.sequences | length }} sequences,
started {{ run.started }}, drift_ros {{ run.versions.drift_ros }},
commit {{ run.versions.commit or 'unknown' }}.
First and last frame of each sequence are not scored; means are over objects.</p>
{% for key, text in errors.items() %}
<p class="error">Failed: {{ key[0] }} on {{ key[1] }}: {{ text }}</p>
{% endfor %}
<table id="summary">
<thead><tr><th>engine</th><th>J&amp;F</th><th>J mean</th><th>J recall</th><th>J decay</th>
<th>F mean</th><th>F recall</th><th>F decay</th><th>objects</th><th>frames</th>
<th>ms per frame, median</th><th>95 %</th></tr></thead>
<tbody>
{% for engine, row in summary.items() %}
<tr class="total"><td>{{ engine }}</td><td>{{ row.j_and_f | percent }}</td>
{% for name in ('j_mean', 'j_recall', 'j_decay', 'f_mean', 'f_recall', 'f_decay') %}
<td>{{ row[name] | percent }}</td>
{% endfor %}
<td>{{ row.objects }}</td><td>{{ row.frames }}</td>
<td>{{ row.ms_median | number }}</td><td>{{ row.ms_95 | number }}</td></tr>
{% endfor %}
</tbody></table>
{% if scores %}
<p><img src="scores.png" alt="Bar chart of J&amp;F per sequence and engine"></p>
{% endif %}
{% for name, rows, note in tables %}
<div class="wide"><table id="{{ name }}">
<thead><tr>{% for cell in rows[0] %}<th>{{ cell }}</th>{% endfor %}</tr></thead>
<tbody>
{% for row in rows[1:] %}
<tr>{% for cell in row %}<td>{{ cell }}</td>{% endfor %}</tr>
{% endfor %}
</tbody></table></div>
<p class="note">{{ note }}</p>
{% endfor %}
<h2>Sequences</h2>
<table id="sequences">
<thead><tr><th>J / F</th>{% for engine in summary %}<th>{{ engine }}</th>{% endfor %}</tr></thead>
<tbody>
{% for section in sections %}
<tr><td><a href="#{{ section.name }}">{{ section.name }}</a></td>
{% for engine in summary %}
{% set score = scores.get((engine, section.name)) %}
<td>{% if score %}{{ score.j.mean | percent }} / {{ score.f.mean | percent }}{% else %}-{% endif %}
</td>
{% endfor %}
</tr>
{% endfor %}
</tbody></table>
{% for section in sections %}
<section id="{{ section.name }}">
<h2>{{ section.name }}</h2>
{% for chart in section.charts %}
{{ chart | safe }}
{% endfor %}
<p><video controls muted loop playsinline preload="metadata" src="{{ section.video }}"></video></p>
{% if section.codec != 'h264' %}
<p class="note">This video was written without PyAV ({{ section.codec }}); browsers may not play
it.</p>
{% endif %}
{% for picture in section.pictures %}
<figure><img loading="lazy" src="{{ picture.path }}" alt="{{ picture.text }}">
<figcaption>{{ picture.text }}</figcaption></figure>
{% endfor %}
</section>
{% endfor %}
<h2>Configuration</h2>
<pre id="configuration">{{ configuration }}</pre>
</body>
</html>
"""
