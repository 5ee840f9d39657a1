# SPDX-License-Identifier: Apache-2.0
"""The absence test: an object, then a wholly different scene, then the object again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import itertools

import cv2
import numpy as np

from drift_ros.evaluation.datasets import DatasetError, SequenceFrame, SequenceSource
from drift_ros.evaluation.digests import combine

BEFORE, ABSENT = 25, 20
"""Frames with the object before the other scene, and frames of that."""


@dataclass(frozen=True)
class SplicedSequence:
    """
    A sequence with another one's first frames put into it, in which its objects are not.

    Attributes
    ----------
    source : SequenceSource
        The one with the objects.
    other : SequenceSource
        Its frames are resized to those of ``source``; their truth is empty.
    before : int
        Frames of ``source`` in front; half of a shorter one.
    absent : int
        Frames of ``other``, or all it has.

    """

    source: SequenceSource
    other: SequenceSource
    before: int = BEFORE
    absent: int = ABSENT

    @property
    def name(self) -> str:
        """Name of its files and in tables."""
        return f'{self.source.name}+absent'

    @property
    def bounds(self) -> tuple[int, int]:
        """First frame of the other scene, and the first after it."""
        before = min(self.before, len(self.source) // 2)
        return before, before + min(self.absent, len(self.other))

    def __len__(self) -> int:
        first, last = self.bounds
        return len(self.source) + last - first

    def __iter__(self) -> Iterator[SequenceFrame]:
        numbers = itertools.count()
        first, last = self.bounds
        frames = iter(self.source)
        size = (0, 0)
        for frame in itertools.islice(frames, first):
            size = frame.image.shape[:2]
            yield _numbered(frame, next(numbers))
        for frame in itertools.islice(self.other, last - first):
            image = resized(frame.image, size)
            empty = np.zeros(size, np.uint8)
            yield SequenceFrame(f'{next(numbers):05d}', image, empty)
        for frame in frames:
            yield _numbered(frame, next(numbers))

    def digest(self) -> str:
        """Digest both sequences and the way they are put together."""
        return combine(self.source.digest(), self.other.digest(), str(self.bounds))


def spliced(sequences: Sequence[SequenceSource]) -> list[SplicedSequence]:
    """
    Put into each sequence frames of the next one (into the last, of the first).

    Raises
    ------
    DatasetError
        There is only one.

    """
    if len(sequences) < 2:
        raise DatasetError('--splice takes the other scene from the next sequence: choose two')
    following = [*sequences[1:], sequences[0]]
    return [
        SplicedSequence(source, other) for source, other in zip(sequences, following, strict=True)
    ]


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a picture (h, w, 3) to (H, W)."""
    if image.shape[:2] == size:
        return image
    smaller = size[0] * size[1] < image.shape[0] * image.shape[1]
    return cv2.resize(
        image, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )


def _numbered(frame: SequenceFrame, number: int) -> SequenceFrame:
    return SequenceFrame(f'{number:05d}', frame.image, frame.truth, frame.seed)
