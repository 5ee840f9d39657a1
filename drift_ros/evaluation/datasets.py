# SPDX-License-Identifier: Apache-2.0
"""
Sequences with truth, and the DAVIS-layout folders they are read from.

A folder is understood as it is found::

    ROOT/JPEGImages/[RESOLUTION/]SEQUENCE/00000.jpg ...
    ROOT/Annotations/[RESOLUTION/]SEQUENCE/00000.png ...
    ROOT/ImageSets/YEAR/SUBSET.txt                      (optional)
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast, Protocol

import numpy as np

from drift_ros.evaluation.digests import combine, digest_of_file
from drift_ros.media.greys import GreyRange
from drift_ros.media.labels import LabelError, LabelRule, read_labels
from drift_ros.media.video import IMAGE_SUFFIXES, natural_key, read_image, VideoError

TASKS = ('auto', 'multi', 'single')
"""multi: every id is an object. single (DAVIS 2016): whatever is not background is object 1."""


class DatasetError(ValueError):
    """A folder cannot be evaluated; the message names the cause and the remedy."""


@dataclass(frozen=True)
class SequenceFrame:
    """
    One frame of a sequence.

    Attributes
    ----------
    name : str
        File stem of its masks.
    image : np.ndarray
        (H, W, 3) uint8 RGB.
    truth : np.ndarray, optional
        Labels (H, W) uint8, 0 = background; None where there is no annotation.
    seed : np.ndarray, optional
        Labels that start objects here, where seeds do not come from the truth.

    """

    name: str
    image: np.ndarray
    truth: np.ndarray | None
    seed: np.ndarray | None = None


class SequenceSource(Protocol):
    """What a run reads: a DAVIS sequence, a bag, one made of others. It travels to workers."""

    @property
    def name(self) -> str:
        """Name of its files and in tables."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[SequenceFrame]: ...

    def digest(self) -> str:
        """Fingerprint of the content of images, truth and seeds."""


@dataclass(frozen=True)
class BrokenSequence:
    """
    What stands in a run for a sequence that cannot be read: its jobs fail, with the reason.

    Attributes
    ----------
    name : str
    reason : str
        Cause and remedy.

    """

    name: str
    reason: str

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[SequenceFrame]:
        raise DatasetError(self.reason)

    def digest(self) -> str:
        """Raise the reason."""
        raise DatasetError(self.reason)


@dataclass(frozen=True)
class DavisSequence:
    """
    One sequence on disk; iterate it for its frames.

    Attributes
    ----------
    name : str
    images : tuple of Path
        One for each frame.
    annotations : tuple of Path
        The same, None where a frame has no annotation. The first frame is annotated.
    task : str
        'multi' or 'single'.
    with_truth : bool
        Whether annotations are a truth to score against. Of the public halves of test sets they
        only start objects: each of them shows one that none before it has shown.

    """

    name: str
    images: tuple[Path, ...]
    annotations: tuple[Path | None, ...]
    task: str
    with_truth: bool = True

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[SequenceFrame]:
        greys = GreyRange()
        for image_path, annotation in zip(self.images, self.annotations, strict=True):
            try:
                image = read_image(image_path, greys)
            except VideoError as error:
                raise DatasetError(str(error)) from None
            truth = None
            if annotation is not None:
                truth = read_truth(annotation, self.task == 'single')
                if truth.shape != image.shape[:2]:
                    raise DatasetError(
                        f'{annotation} is {truth.shape[1]}x{truth.shape[0]} but its frame '
                        f'{image_path} is {image.shape[1]}x{image.shape[0]}; images and '
                        'annotations must be of one resolution'
                    )
            if self.with_truth:
                yield SequenceFrame(image_path.stem, image, truth)
            else:
                yield SequenceFrame(image_path.stem, image, None, seed=truth)

    def digest(self) -> str:
        """Digest the files' names and content, and the reading of them."""
        return combine(
            self.task if self.with_truth else f'{self.task} seeds',
            *(
                'none' if path is None else f'{path.name} {digest_of_file(path)}'
                for path in (*self.images, *self.annotations)
            ),
        )


def read_truth(path: Path, plain: bool) -> np.ndarray:
    """
    Read the annotation of a frame.

    Parameters
    ----------
    path : Path
    plain : bool
        Whether whatever is not 0 is object 1; see :mod:`drift_ros.media.labels`.

    Returns
    -------
    np.ndarray
        Labels (H, W) uint8, void = background.

    Raises
    ------
    DatasetError

    """
    try:
        labels = read_labels(path, plain)
    except LabelError as error:
        raise DatasetError(str(error)) from None
    return as_truth(labels, str(path))


def as_truth(labels: np.ndarray, what: str) -> np.ndarray:
    """
    Make labels uint8.

    Raises
    ------
    DatasetError
        One does not fit; ``what`` names the picture in the message.

    """
    if labels.size and int(labels.max()) > 254:
        raise DatasetError(
            f'{what} holds the label {int(labels.max())}; an evaluation takes labels up to 254'
        )
    return labels.astype(np.uint8, copy=False)


def find_sequences(
    root: str | Path,
    *,
    resolution: str | None = None,
    subset: str | None = None,
    year: str | None = None,
    names: Sequence[str] = (),
    task: str = 'auto',
    max_frames: int = 0,
    frames: Path | None = None,
) -> list[DavisSequence | BrokenSequence]:
    """
    Find the sequences of a DAVIS-layout folder, by name.

    A sequence that cannot be evaluated does not keep the others from it: it is found as a
    :class:`BrokenSequence`. Hidden files and folders are not looked at.

    Parameters
    ----------
    root : str or Path
    resolution : str, optional
        The folder level between JPEGImages and the sequences, where there is one (default: the
        only one, or 480p).
    subset, year : str, optional
        Choose a list in ImageSets.
    names : sequence of str
        Choose sequences by name; without, and without a list, all that have images and
        annotations.
    task : str
        See :data:`TASKS`; 'auto' is the rule of :mod:`drift_ros.media.labels`, decided by each
        sequence's first annotation that is not all background.
    max_frames : int
        Cuts sequences short (0: whole).
    frames : Path, optional
        The folder of images where it is not ROOT/JPEGImages, such as one with more frames.

    Raises
    ------
    DatasetError
        This is no such folder, what was asked for is not in it, or no sequence can be evaluated.

    """
    root = Path(root)
    images, annotations = frames or root / 'JPEGImages', root / 'Annotations'
    for folder in (images, annotations):
        if not folder.is_dir():
            raise DatasetError(
                f'{root} has no folder {folder.name}; a DAVIS-layout folder '
                'holds JPEGImages and Annotations'
            )
    level = _resolution(images, resolution)
    images, annotations = images / level, annotations / level
    if not annotations.is_dir():
        raise DatasetError(f'{annotations} does not exist, although {images} does')
    both = {path.name for path in (*_folders(images), *_folders(annotations))}
    available = sorted(both, key=natural_key)
    if subset:
        available = read_list(_list_file(root, subset, year))
    if names:
        unknown = sorted(set(names) - set(available))
        if unknown:
            raise DatasetError(
                f'no sequence {", ".join(unknown)} in {images}; there are {", ".join(available)}'
            )
        available = [name for name in available if name in set(names)]
    if not available:
        raise DatasetError(f'there is no sequence, a folder in both {images} and {annotations}')
    found: list[DavisSequence | BrokenSequence] = []
    for name in available:
        try:
            found.append(_sequence(images / name, annotations / name, task, max_frames))
        except (DatasetError, OSError) as error:
            found.append(BrokenSequence(name, str(error)))
    broken = [item.reason for item in found if isinstance(item, BrokenSequence)]
    if len(broken) == len(found):
        raise DatasetError(broken[0] + (f' (and {len(broken) - 1} more)' if broken[1:] else ''))
    return found


def sound(found: Iterable[DavisSequence | BrokenSequence]) -> list[DavisSequence]:
    """
    Give sequences that are all needed.

    Raises
    ------
    DatasetError
        One of them is broken.

    """
    items = list(found)
    for item in items:
        if isinstance(item, BrokenSequence):
            raise DatasetError(item.reason)
    return cast(list[DavisSequence], items)


def read_list(path: Path) -> list[str]:
    """
    Read the sequence names of a list.

    The 2017 lists hold a name per line, the 2016 lists a pair of paths per *frame*
    (``/JPEGImages/480p/bear/00000.jpg /Annotations/480p/bear/00000.png``).
    """
    names: dict[str, None] = {}
    for line in path.read_text().split('\n'):
        first = (line.split() or [''])[0]
        if first:
            is_path = Path(first).suffix.lower() in IMAGE_SUFFIXES
            names[Path(first).parent.name if is_path else first] = None
    return list(names)


def frame_names(root: Path, sequence: str) -> list[str]:
    """Give the names (file stems) of all frames in ROOT/JPEGImages of a sequence, in order."""
    images = root / 'JPEGImages'
    folder = images / _resolution(images, None) / sequence
    return [path.stem for path in _pictures(folder)]


def _pictures(folder: Path) -> list[Path]:
    return sorted(filter(_is_picture, _visible(folder)), key=natural_key)


def _visible(folder: Path) -> Iterator[Path]:
    """List a folder without what tools hide in it: .DS_Store, ._00000.jpg, .ipynb_checkpoints."""
    return (path for path in folder.iterdir() if not path.name.startswith('.'))


def _folders(folder: Path) -> list[Path]:
    return sorted((path for path in _visible(folder) if path.is_dir()), key=natural_key)


def _is_level(folder: Path) -> bool:
    """Say whether a folder holds sequences, and no pictures of its own."""
    return bool(_folders(folder)) and not any(map(_is_picture, _visible(folder)))


def _is_picture(path: Path) -> bool:
    """Say whether a path is named as a picture; a link to nothing is one that cannot be read."""
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()


def _resolution(images: Path, wanted: str | None) -> str:
    """Name of the resolution level, '' where there is none."""
    folders = _folders(images)
    levels = [path.name for path in folders if _is_level(path)]
    if wanted is not None:
        if not (images / wanted).is_dir():
            raise DatasetError(
                f'{images} has no resolution {wanted!r}; there are '
                f'{", ".join(levels) or "none (sequences lie directly in it)"}'
            )
        return wanted
    if not levels:
        return ''
    if len(levels) == 1:
        return levels[0]
    if '480p' in levels:
        return '480p'
    raise DatasetError(
        f'{images} has the resolutions {", ".join(levels)}: choose one with --resolution'
    )


def _list_file(root: Path, subset: str, year: str | None) -> Path:
    sets = root / 'ImageSets'
    found = sorted(sets.glob(f'{year or "*"}/{subset}.txt'))
    if not found:
        there = sorted(str(path.relative_to(sets)) for path in sets.glob('*/*.txt'))
        raise DatasetError(
            f'no list {year or "*"}/{subset}.txt in {sets}; there are {", ".join(there) or "none"}'
        )
    if len(found) > 1:
        years = ', '.join(path.parent.name for path in found)
        raise DatasetError(f'the list {subset} exists for {years}: choose one with --year')
    return found[0]


def _sequence(images: Path, annotations: Path, task: str, max_frames: int) -> DavisSequence:
    for folder, what in ((images, 'images'), (annotations, 'annotations')):
        if not folder.is_dir():
            raise DatasetError(f'the sequence {images.name} has no {what}: there is no {folder}')
    frames = _pictures(images)
    stems = [path.stem for path in frames]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise DatasetError(f'{images} holds two frames named {twice}: remove one')
    masks = {path.stem: path for path in _visible(annotations) if path.suffix.lower() == '.png'}
    orphans = sorted(set(masks) - {path.stem for path in frames})
    if orphans:
        raise DatasetError(f'{annotations / orphans[0]}.png has no frame in {images}')
    pairs = [(path, masks.get(path.stem)) for path in frames]
    while pairs and pairs[0][1] is None:  # the protocol starts at the first annotation
        pairs.pop(0)
    if not pairs:
        raise DatasetError(f'the sequence {images.name} has no annotation')
    annotated = [mask for _, mask in pairs if mask]
    if task == 'auto':
        task = 'single' if _is_plain(annotated) else 'multi'
    with_truth = _has_truth(annotated, task == 'single')
    pairs = pairs[: max_frames or None]
    if len(pairs) < 3 and with_truth:
        raise DatasetError(
            f'the sequence {images.name} has {len(pairs)} frames from its first '
            'annotation on; 3 or more are needed, since the first and the last '
            'do not count'
        )
    return DavisSequence(
        images.name,
        tuple(path for path, _ in pairs),
        tuple(mask for _, mask in pairs),
        task,
        with_truth,
    )


def _has_truth(annotations: Sequence[Path], plain: bool) -> bool:
    """Whether annotations tell where objects are later on, and not only where they start."""
    known: set[int] = set()
    for path in annotations:
        shown = {int(label) for label in np.unique(read_truth(path, plain)) if label}
        if shown <= known:
            return True
        known |= shown
    return False


def _is_plain(annotations: Iterable[Path]) -> bool:
    rule = LabelRule()
    try:
        for path in annotations:
            rule.read(path)
            if rule.plain is not None:
                break
    except LabelError as error:
        raise DatasetError(str(error)) from None
    return bool(rule.plain)
