# SPDX-License-Identifier: Apache-2.0
"""The HTML report of an evaluation, with its pictures and videos. It is static: no script."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from drift_ros.evaluation import tables
from drift_ros.evaluation.charts import charts, frame_means, roc_chart
from drift_ros.evaluation.datasets import SequenceFrame, SequenceSource
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
                    'charts': charts(rows, series),
                    **_media(folder, sequence, rows),
                }
            )
        progress(sequence.name)
    names = list(run['data']['sequences'])
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters['percent'] = tables.percent
    page = environment.from_string(PAGE.read_text(encoding='utf-8')).render(
        run=run,
        title=', '.join(names[:3]) + (f' and {len(names) - 3} more' if names[3:] else ''),
        source=_source(run['data']),
        summary=summary,
        engines=tables.cells(
            tables.SUMMARY, [{**row, 'engine': engine} for engine, row in summary.items()]
        ),
        sections=sections,
        errors=errors,
        scores={(row.engine, row.sequence): row.summary for row in results if row.scored},
        tables=[
            (name, tables.cells(columns, rows), note)
            for name, columns, rows, note in (
                (
                    'presence',
                    tables.PRESENCE,
                    tables.presence(results, by_sequence=True, with_intervals=True),
                    _PRESENCE_NOTE,
                ),
                ('live', tables.LIVE, live, _LIVE_NOTE),
                ('stability', tables.STABILITY, stability, _STABILITY_NOTE),
            )
            if rows
        ],
        roc=roc_chart(results),
        configuration=json.dumps(run, indent=2, default=list),
    )
    path = folder / 'report.html'
    path.write_text(page, encoding='utf-8')
    return path


def _source(data: Mapping[str, Any]) -> str:
    """Say where the sequences come from."""
    return ', '.join(data.get('bags', ())) or str(data.get('root') or '')


def _moments(row: JobResult) -> list[tuple[int, str]]:
    """Frames to show of a job: where it fell most, and where it was lowest."""
    values = frame_means(row).mean(axis=0)
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
