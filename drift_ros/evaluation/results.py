# SPDX-License-Identifier: Apache-2.0
"""
What is kept of a job, and read back: one engine on one sequence.

A folder of results holds::

    run.json                              configuration, versions, command
    scores/ENGINE/SEQUENCE.json           per frame and object: J, F, boxes, tracks; milliseconds
    masks/ENGINE/SEQUENCE/00000.png       predictions, indexed PNG in the DAVIS palette
    results.json  results.csv  frames.csv scores.png  report.html  media/
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from drift_ros.engine.estimates import box_of
from drift_ros.evaluation.datasets import DatasetError, SequenceFrame
from drift_ros.evaluation.digests import combine, digest_of_file
from drift_ros.evaluation.metric import SequenceScore, SequenceScorer, summarize, Summary
from drift_ros.evaluation.presence import Box, ObjectRecord, records
from drift_ros.evaluation.protocol import Track
from drift_ros.media.labels import write_labels

NO_SCORE = SequenceScore(np.zeros(0, np.int64), (), np.zeros((0, 0)), np.zeros((0, 0)))
"""The score where there is no truth."""


@dataclass(frozen=True)
class JobResult:
    """
    Outcome of one engine on one sequence.

    Attributes
    ----------
    engine, sequence : str
    score : SequenceScore
        Empty without ground truth (see ``scored``).
    milliseconds : np.ndarray
        (n,) float64, of each step; live: from publication to mask.
    size : tuple of int
        (H, W).
    frame_names : tuple of str
    tracks : tuple
        The objects of every frame.
    live : mapping, optional
        What a live run measured besides; None offline.
    truth_boxes : tuple
        The true boxes of the score's frames and objects; None where an object is absent.
    fingerprint : str
        Of all that decided this result; see :mod:`drift_ros.evaluation.provenance`.

    """

    engine: str
    sequence: str
    score: SequenceScore
    milliseconds: np.ndarray
    size: tuple[int, int]
    frame_names: tuple[str, ...]
    tracks: tuple[tuple[Track, ...], ...] = ()
    live: Mapping[str, Any] | None = None
    truth_boxes: tuple[tuple[Box | None, ...], ...] = ()
    fingerprint: str = ''

    @property
    def scored(self) -> bool:
        """Whether there was a truth to score against."""
        return bool(self.score.objects)

    @property
    def summary(self) -> Summary:
        """Means over the sequence's objects."""
        return summarize([self.score])

    def presence(self) -> dict[int, ObjectRecord]:
        """Give boxes and presence, true and claimed, by object."""
        return records(self.score, self.truth_boxes, self.tracks)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; floats keep every digit, NaN becomes null."""

        def plain(values: np.ndarray) -> list[list[float | None]]:
            return [[None if np.isnan(v) else float(v) for v in row] for row in values]

        return {
            'engine': self.engine,
            'sequence': self.sequence,
            'size': list(self.size),
            'objects': list(self.score.objects),
            'frames': self.score.frames.tolist(),
            'frame_names': list(self.frame_names),
            'j': plain(self.score.j),
            'f': plain(self.score.f),
            'milliseconds': self.milliseconds.tolist(),
            'tracks': [[item.as_list() for item in row] for row in self.tracks],
            'live': self.live,
            'truth_boxes': [[box and list(box) for box in row] for row in self.truth_boxes],
            'fingerprint': self.fingerprint,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> JobResult:
        """Read what :meth:`as_dict` gave."""
        shape = (len(data['frames']), len(data['objects']))
        score = SequenceScore(
            np.array(data['frames'], dtype=np.int64),
            tuple(data['objects']),
            *(
                np.array(
                    [[np.nan if v is None else v for v in row] for row in data[key]],
                    dtype=np.float64,
                ).reshape(shape)
                for key in 'jf'
            ),
        )
        return cls(
            data['engine'],
            data['sequence'],
            score,
            np.array(data['milliseconds'], dtype=np.float64),
            (data['size'][0], data['size'][1]),
            tuple(data['frame_names']),
            tuple(tuple(map(Track.from_list, row)) for row in data.get('tracks', ())),
            data.get('live'),
            tuple(tuple(box and tuple(box) for box in row) for row in data.get('truth_boxes', ())),
            data.get('fingerprint', ''),
        )


class Collector:
    """
    Scores and writes a job's masks, frame by frame.

    Parameters
    ----------
    engine, sequence : str
    folder : Path
        Of results.
    late_objects : bool
        Whether objects that appear later are scored, too.
    save_masks : bool

    """

    def __init__(
        self,
        engine: str,
        sequence: str,
        folder: Path,
        *,
        late_objects: bool = False,
        save_masks: bool = True,
    ) -> None:
        self._key, self._folder, self._save = (engine, sequence), folder, save_masks
        self._scorer = SequenceScorer(late_objects)
        self._names: list[str] = []
        self._tracks: list[tuple[Track, ...]] = []
        self._boxes: list[dict[int, Box | None]] = []
        self._size = (0, 0)
        self._with_truth = False

    def add(self, frame: SequenceFrame, labels: np.ndarray, tracks: tuple[Track, ...]) -> None:
        """Take the next frame's predicted labels (H, W) uint8."""
        if self._save:
            write_labels(mask_file(self._folder, *self._key, frame.name), labels)
        self._with_truth = self._with_truth or frame.truth is not None
        # without a truth in the first frame, its seed says which objects there are
        first = frame.seed if frame.truth is None and not self._names else frame.truth
        self._scorer.add(first, labels)
        self._boxes.append(
            {}
            if frame.truth is None
            else {item: box_of(frame.truth == item) for item in self._scorer.objects}
        )
        self._names.append(frame.name)
        self._tracks.append(tracks)
        self._size = (labels.shape[0], labels.shape[1])

    def finish(
        self,
        milliseconds: Sequence[float],
        fingerprint: str,
        live: Mapping[str, Any] | None = None,
    ) -> JobResult:
        """Write and return the result; without any truth its score is empty."""
        score = self._score()
        result = JobResult(
            *self._key,
            score,
            np.array(milliseconds, dtype=np.float64),
            self._size,
            tuple(self._names),
            tuple(self._tracks),
            live,
            tuple(
                tuple(self._boxes[frame].get(item) for item in score.objects)
                for frame in score.frames
            ),
            fingerprint,
        )
        data = result.as_dict()
        seals = {_SCORES: _seal(data), _MASKS: None}
        if self._save:
            seals[_MASKS] = masks_digest(self._folder, *self._key, self._names)
        write_json(score_file(self._folder, *self._key), {**data, **seals})
        return result

    def summary(self) -> float | None:
        """Return J&F so far, from 0 to 1; None without any truth."""
        return summarize([self._score()]).j_and_f if self._with_truth else None

    def _score(self) -> SequenceScore:
        return self._scorer.finish() if self._with_truth else NO_SCORE


def score_file(folder: Path, engine: str, sequence: str) -> Path:
    """Say where a job's scores are kept."""
    return folder / 'scores' / engine / f'{sequence}.json'


def mask_file(folder: Path, engine: str, sequence: str, frame: str) -> Path:
    """Say where a frame's mask is kept."""
    return folder / 'masks' / engine / sequence / f'{frame}.png'


def read_result(
    folder: Path, engine: str, sequence: str, fingerprint: str, *, with_masks: bool
) -> JobResult | None:
    """
    Read the kept result of a job.

    Returns
    -------
    JobResult, optional
        None where there is none, it is of another state, what it says was edited, or masks are
        asked for and are missing or no longer those that were scored.

    """
    try:
        data = json.loads(score_file(folder, engine, sequence).read_text())
        masks = data.pop(_MASKS)
        if data.pop(_SCORES) != _seal(data) or data['fingerprint'] != fingerprint:
            return None
        result = JobResult.from_dict(data)
        if with_masks and masks != masks_digest(folder, engine, sequence, result.frame_names):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    return result


def masks_digest(folder: Path, engine: str, sequence: str, names: Iterable[str]) -> str:
    """
    Digest the masks of a job.

    Raises
    ------
    OSError
        One is missing.

    """
    files = (mask_file(folder, engine, sequence, name) for name in names)
    return combine(*(f'{file.name} {digest_of_file(file)}' for file in files))


def check_masks(folder: Path, engine: str, sequence: str) -> None:
    """
    Check that the masks in a folder of results are those that its scores are of.

    Raises
    ------
    DatasetError
        They were edited or removed, or another run has begun to replace them.

    """
    try:
        data = json.loads(score_file(folder, engine, sequence).read_text())
        same = data[_MASKS] == masks_digest(folder, engine, sequence, data['frame_names'])
    except (OSError, ValueError, KeyError, TypeError):
        same = False
    if not same:
        raise DatasetError(
            f'the masks of {engine} on {sequence} in {folder} are not those of its results '
            '(edited, removed, or a later run was interrupted): run that evaluation again'
        )


_SCORES, _MASKS = 'digest', 'digest_of_masks'


def _seal(data: Mapping[str, Any]) -> str:
    """Digest what a file of scores says."""
    return combine(json.dumps(data, sort_keys=True, default=list))


def write_json(path: Path, data: Any) -> None:
    """Write JSON in one step."""
    with replacing(path) as file:
        json.dump(data, file, indent=1, default=list)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Any]:
    """Open a text file that appears in one step, once it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
    with partial.open('w', newline='') as file:
        yield file
    os.replace(partial, path)
