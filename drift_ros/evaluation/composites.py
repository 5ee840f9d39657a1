# SPDX-License-Identifier: Apache-2.0
"""
Sequences of two and more objects, made of sequences of one.

Several objects compete, meet and look alike; that cannot be measured where every sequence has
one. Three ways to make it of sequences whose every frame is annotated:

- ``beside``: two sequences side by side in one picture; the objects never meet.
- ``pasted``: the objects of another sequence, cut out along their truth, in front of a scene.
- ``mirrored``: a sequence's objects and their mirror images, which move the other way and pass
  in front of them: two that look alike cross.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from drift_ros.evaluation.datasets import DatasetError, SequenceFrame, SequenceSource
from drift_ros.evaluation.digests import combine
from drift_ros.evaluation.splice import resized

KINDS = ('beside', 'pasted', 'mirrored')


@dataclass(frozen=True)
class CompositeSequence:
    """
    Two sequences in one, as long as the shorter.

    Objects of ``second`` get the labels after those of ``first``'s first frame.

    Attributes
    ----------
    first, second : SequenceSource
        The same one to be mirrored.
    kind : str
        Of :data:`KINDS`.

    """

    first: SequenceSource
    second: SequenceSource
    kind: str

    @property
    def name(self) -> str:
        """Name of its files and in tables."""
        if self.kind == 'mirrored':
            return f'{self.first.name}+mirrored'
        return f'{self.first.name}+{self.second.name}'

    def __len__(self) -> int:
        return min(len(self.first), len(self.second))

    def __iter__(self) -> Iterator[SequenceFrame]:
        offset = 0
        for number, (ours, theirs) in enumerate(zip(self.first, self.second, strict=False)):
            if ours.truth is None or theirs.truth is None:
                raise DatasetError(
                    f'{self.name}: frame {number} has no annotation; sequences that are put '
                    'together need one in every frame'
                )
            offset = offset or int(ours.truth.max())
            image, truth, others = theirs.image, ours.truth, theirs.truth
            if self.kind == 'mirrored':
                image, others = image[:, ::-1], others[:, ::-1]
            others = np.where(others > 0, others + np.uint8(offset), 0).astype(np.uint8)
            if self.kind == 'beside':
                image, truth = _beside(ours.image, truth, image, others)
            else:
                image, truth = _in_front(ours.image, truth, image, others)
            yield SequenceFrame(f'{number:05d}', image, truth)

    def digest(self) -> str:
        """Digest both sequences and the way they are put together."""
        return combine(self.kind, self.first.digest(), self.second.digest())


def _beside(
    image: np.ndarray, truth: np.ndarray, other: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Put a picture and its labels to the right of another, at its height."""
    size = (image.shape[0], round(other.shape[1] * image.shape[0] / other.shape[0]))
    return (
        np.concatenate([image, resized(other, size)], axis=1),
        np.concatenate([truth, _resized_labels(labels, size)], axis=1),
    )


def _in_front(
    image: np.ndarray, truth: np.ndarray, other: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Put what is labelled in a picture in front of another, resized to it."""
    size = truth.shape
    labels = _resized_labels(labels, size)
    front = labels > 0
    return (
        np.where(front[..., None], resized(other, size), image),
        np.where(front, labels, truth),
    )


def _resized_labels(labels: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    return cv2.resize(labels, (size[1], size[0]), interpolation=cv2.INTER_NEAREST)


def composed(sequences: Sequence[SequenceSource], kind: str) -> list[CompositeSequence]:
    """
    Put each sequence together with the next one (the last with the first), or mirror it.

    Raises
    ------
    DatasetError
        There is no next one.

    """
    if kind == 'mirrored':
        return [CompositeSequence(item, item, kind) for item in sequences]
    if len(sequences) < 2:
        raise DatasetError(f'--compose {kind} takes the next sequence, too: choose two')
    following = [*sequences[1:], sequences[0]]
    return [
        CompositeSequence(first, second, kind)
        for first, second in zip(sequences, following, strict=True)
    ]


@dataclass(frozen=True)
class Crowd:
    """
    A sequence's objects many times over, each in a part of its own of the first picture.

    They are as large as fits, so many small ones cover about as much as a few large ones, and
    move as they do in the sequence. One is the sequence itself.

    Attributes
    ----------
    source : SequenceSource
    count : int
        Of objects, 1 to 255.

    """

    source: SequenceSource
    count: int

    @property
    def name(self) -> str:
        """Name in tables."""
        return f'{self.source.name} x {self.count}'

    def __len__(self) -> int:
        return len(self.source)

    def __iter__(self) -> Iterator[SequenceFrame]:
        if self.count == 1:
            yield from self.source
            return
        ground, maps = None, []
        for number, frame in enumerate(self.source):
            if frame.truth is None:
                raise DatasetError(f'{self.source.name}: frame {number} has no annotation')
            if ground is None:
                ground, maps = frame.image, self._maps(frame.truth)
            size = ground.shape[1::-1]
            image, truth = ground.copy(), np.zeros(ground.shape[:2], np.uint8)
            mask = (frame.truth > 0).astype(np.uint8)
            for label, (matrix, cell) in enumerate(maps, start=1):
                inside = cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_NEAREST)[cell] > 0
                image[cell][inside] = cv2.warpAffine(frame.image, matrix, size)[cell][inside]
                truth[cell][inside] = label
            yield SequenceFrame(f'{number:05d}', image, truth)

    def digest(self) -> str:
        """Digest the sequence and the number."""
        return combine(f'crowd {self.count}', self.source.digest())

    def _maps(self, truth: np.ndarray) -> list[tuple[np.ndarray, tuple[slice, slice]]]:
        """Give for each object where pixels go, (2, 3), and rows and columns of its part."""
        height, width = truth.shape
        x, y, across, down = cv2.boundingRect((truth > 0).astype(np.uint8))
        columns = int(np.ceil(np.sqrt(self.count * width / height)))
        rows = -(-self.count // columns)
        scale = 0.8 * min(width / columns / across, height / rows / down)
        maps = []
        for index in range(self.count):
            row, column = divmod(index, columns)
            top, bottom = row * height // rows, (row + 1) * height // rows
            left, right = column * width // columns, (column + 1) * width // columns
            shift = (
                (left + right) / 2 - scale * (x + across / 2),
                (top + bottom) / 2 - scale * (y + down / 2),
            )
            matrix = np.array([[scale, 0.0, shift[0]], [0.0, scale, shift[1]]])
            maps.append((matrix, (slice(top, bottom), slice(left, right))))
        return maps
