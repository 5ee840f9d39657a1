# SPDX-License-Identifier: Apache-2.0
"""What is made of a run's results: means by engine, and the tables in files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np

from drift_ros.evaluation.datasets import DatasetError
from drift_ros.evaluation.metric import MeasureStatistics, summarize
from drift_ros.evaluation.presence import measure
from drift_ros.evaluation.results import JobResult, replacing, score_file, write_json


def engine_summary(results: Iterable[JobResult]) -> dict[str, dict[str, Any]]:
    """
    Sum results up by engine.

    Returns
    -------
    dict from str to dict
        J&F, statistics of J and F over objects, the measures of
        :data:`drift_ros.evaluation.presence.MEASURES`, milliseconds: per step (``ms_...``), of
        live runs from publication to arrival (``latency_...``). None where nothing can be said,
        as without a truth. ``objects`` are those that are scored, without a truth those followed.

    """
    grouped: dict[str, list[JobResult]] = {}
    for result in results:
        grouped.setdefault(result.engine, []).append(result)
    return {engine: _summary_row(rows) for engine, rows in grouped.items()}


def _summary_row(rows: Sequence[JobResult]) -> dict[str, Any]:
    scored = [row.score for row in rows if row.scored]
    summary = summarize(scored) if scored else None
    times = {
        name: np.concatenate([np.zeros(0), *(row.milliseconds for row in rows if is_of(row))])
        for name, is_of in (
            ('ms', lambda row: row.live is None),
            ('latency', lambda row: row.live is not None),
        )
    }

    def statistics_of(name: str, values: MeasureStatistics | None) -> dict[str, float | None]:
        return {
            f'{name}_{part}': getattr(values, part) if values else None
            for part in ('mean', 'recall', 'decay')
        }

    return {
        'j_and_f': summary.j_and_f if summary else None,
        **statistics_of('j', summary.j if summary else None),
        **statistics_of('f', summary.f if summary else None),
        **measure(record for row in rows for record in row.presence().values()),
        'objects': summary.objects if summary else sum(map(_followed, rows)),
        'sequences': len(rows),
        'frames': int(sum(len(row.frame_names) for row in rows)),
        **{
            f'{name}_{part}': float(np.percentile(values, share)) if values.size else None
            for name, values in times.items()
            for part, share in (('median', 50), ('95', 95))
        },
    }


def _followed(row: JobResult) -> int:
    """Count the objects an engine was given."""
    return len({item.label for frame in row.tracks for item in frame})


def object_rows(results: Iterable[JobResult]) -> list[dict[str, Any]]:
    """Describe every object of every job in a row of its own."""
    rows = []
    for row in results:
        presence = row.presence()
        for column, item in enumerate(row.score.objects):
            j, f = row.score.statistics(item)
            rows.append(
                {
                    'engine': row.engine,
                    'sequence': row.sequence,
                    'object': item,
                    'frames': int(np.count_nonzero(~np.isnan(row.score.j[:, column]))),
                    'j_mean': j.mean,
                    'j_recall': j.recall,
                    'j_decay': j.decay,
                    'f_mean': f.mean,
                    'f_recall': f.recall,
                    'f_decay': f.decay,
                    'j_and_f': (j.mean + f.mean) / 2,
                    'ms_median' if row.live is None else 'latency_median': float(
                        np.median(row.milliseconds)
                    ),
                    **measure([presence[item]] if item in presence else []),
                }
            )
    return rows


def frame_rows(results: Iterable[JobResult]) -> list[dict[str, Any]]:
    """Describe every counted frame of every object in a row of its own."""
    rows = []
    for row in results:
        presence = row.presence()
        for column, item in enumerate(row.score.objects):
            record = presence.get(item)
            counted = np.flatnonzero(~np.isnan(row.score.j[:, column]))
            for number, line in enumerate(counted):
                frame = row.score.frames[line]
                rows.append(
                    {
                        'engine': row.engine,
                        'sequence': row.sequence,
                        'object': item,
                        'frame': int(frame),
                        'name': row.frame_names[frame],
                        'j': row.score.j[line, column],
                        'f': row.score.f[line, column],
                        **{
                            key: _cell(getattr(record, key)[number]) if record else None
                            for key in _FRAME_KEYS
                        },
                    }
                )
    return rows


_FRAME_KEYS = ('present', 'reported', 'box_iou', 'centre_error', 'existence')


def _cell(value: Any) -> Any:
    """Write booleans as 0 and 1, NaN as nothing."""
    if isinstance(value, np.bool_):
        return int(value)
    return None if np.isnan(value) else float(value)


def write_results(
    folder: Path,
    description: Mapping[str, Any],
    results: Sequence[JobResult],
    errors: Mapping[tuple[str, str], str],
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """
    Write run.json, results.json, results.csv (per object) and frames.csv (per frame).

    Parameters
    ----------
    folder : Path
    description : mapping
        See :func:`drift_ros.evaluation.provenance.describe_run`.
    results : sequence of JobResult
    errors : mapping
        By (engine, sequence).
    tables : mapping, optional
        More parts of results.json, each a CSV file of its own, too.

    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / 'run.json', description)
    write_json(
        folder / 'results.json',
        {
            'run': dict(description),
            'engines': engine_summary(results),
            'sequences': [
                {
                    'engine': row.engine,
                    'sequence': row.sequence,
                    'fingerprint': row.fingerprint,
                    **_summary_row([row]),
                }
                for row in results
            ],
            'errors': [
                {'engine': engine, 'sequence': sequence, 'error': text}
                for (engine, sequence), text in errors.items()
            ],
            **(tables or {}),
        },
    )
    for name, rows in (tables or {}).items():
        if rows:
            write_table(folder / f'{name}.csv', rows)
    write_table(folder / 'results.csv', object_rows(results))
    write_table(folder / 'frames.csv', frame_rows(results))


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as CSV, with a column for every key; without any the file is empty."""
    with replacing(path) as file:
        table = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        table.writeheader()
        table.writerows(rows)


def load_results(folder: Path) -> tuple[dict[str, Any], list[JobResult]]:
    """
    Read a folder of results: the run's description and its jobs.

    Raises
    ------
    DatasetError
        The folder holds none, or some are of another run than the others.

    """
    try:
        data = json.loads((folder / 'results.json').read_text())
        results = [
            JobResult.from_dict(
                json.loads(score_file(folder, row['engine'], row['sequence']).read_text())
            )
            for row in data['sequences']
        ]
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(
            f'{folder} holds no complete results of an evaluation ({error}); '
            'give the --out folder of "drift_ros eval"'
        ) from None
    for row, result in zip(data['sequences'], results, strict=True):
        if row.get('fingerprint', result.fingerprint) != result.fingerprint:
            raise DatasetError(
                f'the scores of {result.engine} on {result.sequence} in {folder} are of another '
                'run than results.json (a later one was interrupted?): run the evaluation again'
            )
    return data['run'], results
