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
    zoom : float
        Times larger objects come back: the pictures are cropped around where they are then, or
        made smaller and continued by their edges.

    """

    source: SequenceSource
    other: SequenceSource
    before: int = BEFORE
    absent: int = ABSENT
    zoom: float = 1.0

    @property
    def name(self) -> str:
        """Name of its files and in tables."""
        return f'{self.source.name}+absent' + (f'x{self.zoom:g}' if self.zoom != 1.0 else '')

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
        centre = None
        for frame in frames:
            if self.zoom != 1.0:
                if centre is None:
                    centre = _centre(frame)
                frame = _zoomed(frame, self.zoom, centre)
            yield _numbered(frame, next(numbers))

    def digest(self) -> str:
        """Digest both sequences and the way they are put together."""
        return combine(self.source.digest(), self.other.digest(), str((self.bounds, self.zoom)))


def spliced(sequences: Sequence[SequenceSource], zoom: float = 1.0) -> list[SplicedSequence]:
    """
    Put into each sequence frames of the next one (into the last, of the first).

    Parameters
    ----------
    sequences : sequence of SequenceSource
    zoom : float
        As of :class:`SplicedSequence`.

    Raises
    ------
    DatasetError
        There is only one.

    """
    if len(sequences) < 2:
        raise DatasetError('--splice takes the other scene from the next sequence: choose two')
    following = [*sequences[1:], sequences[0]]
    return [
        SplicedSequence(source, other, zoom=zoom)
        for source, other in zip(sequences, following, strict=True)
    ]


def resized(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize a picture (h, w, 3) to (H, W)."""
    if image.shape[:2] == size:
        return image
    smaller = size[0] * size[1] < image.shape[0] * image.shape[1]
    return cv2.resize(
        image, size[::-1], interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
    )


def _centre(frame: SequenceFrame) -> tuple[float, float]:
    """Give (x, y) of the middle of the objects in a frame; of the picture, if there are none."""
    truth = np.ones(frame.image.shape[:2]) if frame.truth is None else frame.truth
    marked = truth != 0
    left, top, width, height = cv2.boundingRect((marked | ~marked.any()).astype(np.uint8))
    return left + width / 2, top + height / 2


def _zoomed(frame: SequenceFrame, zoom: float, centre: tuple[float, float]) -> SequenceFrame:
    """Show a frame ``zoom`` times larger about a place (x, y), no further than its edges."""
    height, width = frame.image.shape[:2]
    shift = []
    for middle, size in zip(centre, (width, height), strict=True):
        least, most = sorted((0.0, size - size * zoom))
        shift.append(min(max(size / 2 - middle * zoom, least), most))
    motion = np.array([[zoom, 0.0, shift[0]], [0.0, zoom, shift[1]]], np.float32)

    def show(values: np.ndarray, how: int, border: int) -> np.ndarray:
        return cv2.warpAffine(values, motion, (width, height), flags=how, borderMode=border)

    image = show(frame.image, cv2.INTER_LINEAR, cv2.BORDER_REPLICATE)
    truth = frame.truth
    if truth is not None:
        truth = show(truth, cv2.INTER_NEAREST, cv2.BORDER_CONSTANT)
    return SequenceFrame(frame.name, image, truth, frame.seed)


def _numbered(frame: SequenceFrame, number: int) -> SequenceFrame:
    return SequenceFrame(f'{number:05d}', frame.image, frame.truth, frame.seed)
