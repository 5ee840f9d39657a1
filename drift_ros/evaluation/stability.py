# SPDX-License-Identifier: Apache-2.0
"""
What can be said of masks without ground truth. None of it is accuracy.

- *Stability*: intersection over union of an object's masks in consecutive frames, as they are
  and after the earlier one was moved along by dense optical flow (so that motion does not count
  against it). A mask that never changes is perfectly stable, and may be wrong.
- *Survival*: share of the frames after the seed in which the object's state is TRACKING, and the
  first frame in which it was LOST.
- *Agreement*: J and F of an engine's masks with another's in place of the truth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from drift_ros.engine.table import ObjectState
from drift_ros.evaluation.baselines import dense_flow, warp_labels
from drift_ros.evaluation.datasets import DatasetError, SequenceSource
from drift_ros.evaluation.metric import score_sequence, summarize
from drift_ros.evaluation.results import check_masks, JobResult, mask_file
from drift_ros.media.labels import read_labels


def stability_rows(
    folder: Path,
    results: Sequence[JobResult],
    sequences: Sequence[SequenceSource],
    *,
    compare: Path | None = None,
    progress: Callable[[str], None] = lambda name: None,
) -> list[dict[str, Any]]:
    """
    Describe the results that have no truth, one row each.

    Parameters
    ----------
    folder : Path
        Of results.
    results : sequence of JobResult
    sequences : sequence of SequenceSource
    compare : Path, optional
        Folder of another run: the reference of the agreement is the same engine there, or the
        only one. Without it, the first engine of this run.
    progress : callable
        Called with the name of every sequence that is done.

    Returns
    -------
    list of dict
        ``engine``, ``sequence``, ``objects``, ``temporal_iou`` and ``warped_iou`` (means over
        frames and objects; None where no object was ever seen), ``survival``, ``first_loss``
        (frame or None), ``reference`` and ``agreement_j``, ``agreement_f`` (None for the
        reference itself), and ``series``: the mean warped IoU of every frame from 1 on (None:
        nothing seen).

    Raises
    ------
    DatasetError
        ``compare`` does not fit.

    """
    rows = []
    for sequence in sequences:
        chosen = [row for row in results if row.sequence == sequence.name and not row.scored]
        if not chosen:
            continue
        values = _consecutive(folder, sequence, chosen)
        for row in chosen:
            reference = _reference(folder, chosen[0], row, compare)
            plain, warped = (np.array(item, dtype=np.float64) for item in values[row.engine])
            rows.append(
                {
                    'engine': row.engine,
                    'sequence': row.sequence,
                    'objects': len({item.label for frame in row.tracks for item in frame}),
                    'temporal_iou': _mean(plain),
                    'warped_iou': _mean(warped),
                    **_survival(row),
                    **_agreement(folder, row, reference),
                    'series': [None if np.isnan(value) else float(value) for value in warped],
                }
            )
        progress(sequence.name)
    return rows


def mask_files(folder: Path, engine: str, sequence: str) -> list[Path]:
    """List the masks a job wrote, in order."""
    return sorted((folder / 'masks' / engine / sequence).glob('*.png'))


def _consecutive(
    folder: Path,
    sequence: SequenceSource,
    rows: Sequence[JobResult],
) -> dict[str, tuple[list[float], list[float]]]:
    """IoU of consecutive masks, plain and warped, per frame from 1 on (NaN: nothing seen)."""
    found: dict[str, tuple[list[float], list[float]]] = {row.engine: ([], []) for row in rows}
    last_grey, last = None, {}
    for frame in sequence:
        grey = cv2.cvtColor(frame.image, cv2.COLOR_RGB2GRAY)
        masks = {
            row.engine: read_labels(
                mask_file(folder, row.engine, row.sequence, frame.name), plain=False
            )
            for row in rows
        }
        if last_grey is not None:
            flow = dense_flow(grey, last_grey)
            for engine, mask in masks.items():
                plain, warped = found[engine]
                plain.append(mean_iou(last[engine], mask))
                warped.append(mean_iou(warp_labels(last[engine], flow), mask))
        last_grey, last = grey, masks
    return found


def mean_iou(first: np.ndarray, second: np.ndarray) -> float:
    """Mean over the labels in either of two label images (H, W); NaN where both are empty."""
    values = []
    for label in np.union1d(np.unique(first), np.unique(second)).tolist():
        if label:
            ours, theirs = first == label, second == label
            values.append(np.count_nonzero(ours & theirs) / np.count_nonzero(ours | theirs))
    return float(np.mean(values)) if values else float('nan')


def _mean(values: np.ndarray) -> float | None:
    return None if np.isnan(values).all() else float(np.nanmean(values))


def _survival(row: JobResult) -> dict[str, Any]:
    """Means over objects; the seed frame of an object, of age 0, does not count."""
    states: dict[int, list[int]] = {}
    first_loss = None
    for index, tracks in enumerate(row.tracks):
        for item in tracks:
            if item.age:
                states.setdefault(item.label, []).append(item.state)
                if item.state == ObjectState.LOST and first_loss is None:
                    first_loss = index
    shares = [
        float(np.mean([state == ObjectState.TRACKING for state in values]))
        for values in states.values()
    ]
    return {'survival': float(np.mean(shares)) if shares else None, 'first_loss': first_loss}


def _reference(
    folder: Path, first: JobResult, row: JobResult, compare: Path | None
) -> tuple[str, Path] | None:
    """Name and folder of the masks a result is compared with."""
    if compare is None:
        return None if row is first else (first.engine, folder / 'masks' / first.engine)
    there = sorted(path.name for path in (compare / 'masks').glob('*') if path.is_dir())
    offline = row.engine.partition('@')[0]
    name = next((item for item in (row.engine, offline) if item in there), None)
    if name is None and len(there) == 1:
        name = there[0]
    if name is None:
        raise DatasetError(
            f'{compare} has no masks of the engine {row.engine}; it has '
            f'{", ".join(there) or "none"}: give the --out folder of an '
            'evaluation with the same engine, or with only one'
        )
    return f'{name} in {compare}', compare / 'masks' / name


def _agreement(folder: Path, row: JobResult, reference: tuple[str, Path] | None) -> dict[str, Any]:
    if reference is None:
        return {'reference': None, 'agreement_j': None, 'agreement_f': None}
    name, masks = reference
    if not masks.is_relative_to(folder):
        check_masks(masks.parents[1], masks.name, row.sequence)
    theirs = sorted((masks / row.sequence).glob('*.png'))
    ours = mask_files(folder, row.engine, row.sequence)
    if [file.name for file in theirs] != [file.name for file in ours]:
        raise DatasetError(
            f'{masks / row.sequence} holds {len(theirs)} masks where this run has '
            f'{len(ours)}: only runs on the same frames can be compared'
        )
    first, second = (
        (read_labels(path, plain=False) for path in paths) for paths in (theirs, ours)
    )
    summary = summarize([score_sequence(first, second)])
    return {'reference': name, 'agreement_j': summary.j.mean, 'agreement_f': summary.f.mean}


def columns(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Leave the series out, for tables."""
    return [{key: value for key, value in row.items() if key != 'series'} for row in rows]
