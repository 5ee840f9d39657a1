# SPDX-License-Identifier: Apache-2.0
"""
Read DAVIS-layout folders and write masks that the official tools can score.

A folder is understood as it is found::

    ROOT/JPEGImages/[RESOLUTION/]SEQUENCE/00000.jpg ...
    ROOT/Annotations/[RESOLUTION/]SEQUENCE/00000.png ...
    ROOT/ImageSets/YEAR/SUBSET.txt                      (optional)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image

from drift_ros.evaluation.metric import VOID_LABEL
from drift_ros.media.overlay import palette
from drift_ros.media.video import IMAGE_SUFFIXES, natural_key, read_image, VideoError

TASKS = ('auto', 'multi', 'single')
"""multi: every id is an object. single (DAVIS 2016): whatever is not background is object 1."""


class DatasetError(ValueError):
    """A folder cannot be evaluated; the message names the cause and the remedy."""


@dataclass(frozen=True)
class Frame:
    """
    One frame of a sequence.

    ``name`` is the file stem of its masks, ``image`` (H, W, 3) uint8 RGB, ``truth`` the label
    image (H, W) uint8 with 255 for void, or None where there is no annotation. ``seed`` is a
    label image of the same kind that starts objects here, where seeds do not come from the truth.
    """

    name: str
    image: np.ndarray
    truth: np.ndarray | None
    seed: np.ndarray | None = None


@dataclass(frozen=True)
class DavisSequence:
    """
    One sequence on disk; iterate it for its frames.

    ``images`` and ``annotations`` have one entry per frame, the latter None where a frame has
    no annotation. The first frame is annotated. ``task`` is 'multi' or 'single'.
    """

    name: str
    images: tuple[Path, ...]
    annotations: tuple[Path | None, ...]
    task: str

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Frame]:
        for image_path, annotation in zip(self.images, self.annotations, strict=True):
            try:
                image = read_image(image_path)
            except VideoError as error:
                raise DatasetError(str(error)) from None
            truth = None
            if annotation is not None:
                truth = read_annotation(annotation, self.task)
                if truth.shape != image.shape[:2]:
                    raise DatasetError(
                        f'{annotation} is {truth.shape[1]}x{truth.shape[0]} but its frame is '
                        f'{image.shape[1]}x{image.shape[0]}; JPEGImages and Annotations must '
                        'be of one resolution (see --resolution)'
                    )
            yield Frame(image_path.stem, image, truth)

    def digest(self) -> str:
        """Return a fingerprint of the files (names, sizes) and the reading of them."""
        text = hashlib.sha256(self.task.encode())
        for path in (*self.images, *self.annotations):
            entry = 'none' if path is None else f'{path.name} {os.path.getsize(path)}'
            text.update(f'{entry}\n'.encode())
        return text.hexdigest()[:16]


def read_annotation(path: Path, task: str = 'multi') -> np.ndarray:
    """
    Read an indexed or grey PNG as labels (H, W) uint8, 255 = void.

    With task 'single', every pixel that is not 0 is object 1 (the DAVIS 2016 release writes
    255 for the object).
    """
    try:
        with Image.open(path) as image:
            if image.mode not in ('P', 'L', '1'):
                raise DatasetError(
                    f'{path} is a picture of mode {image.mode}; annotations are '
                    'indexed or 8-bit grey PNG files, one index per object'
                )
            labels = np.array(image.convert('L') if image.mode == '1' else image)
    except OSError as error:
        raise DatasetError(f'cannot read the annotation {path}: {error}') from None
    return (labels > 0).astype(np.uint8) if task == 'single' else labels


def write_mask(path: Path, labels: np.ndarray) -> None:
    """
    Write labels (H, W), 0..255, as an indexed PNG in the DAVIS palette.

    The file appears in one step, so that an interrupted run leaves no half-written mask.
    """
    if labels.size and int(labels.max()) > VOID_LABEL:
        raise ValueError(f'label {labels.max()} does not fit an indexed PNG (0 to 255)')
    image = Image.fromarray(labels.astype(np.uint8), mode='P')
    image.putpalette(palette().tobytes())
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix('.partial')
    image.save(partial, format='PNG')
    os.replace(partial, path)


def find_sequences(
    root: str | Path,
    *,
    resolution: str | None = None,
    subset: str | None = None,
    year: str | None = None,
    names: Sequence[str] = (),
    task: str = 'auto',
    max_frames: int = 0,
) -> list[DavisSequence]:
    """
    Find the sequences of a DAVIS-layout folder, by name.

    ``resolution``: the folder level between JPEGImages and the sequences, where there is one
    (default: the only one, or 480p). ``subset`` and ``year`` choose a list in ImageSets,
    ``names`` sequences by name; without either, all that have images and annotations.
    ``task``: see :data:`TASKS`; 'auto' is 'single' where the first annotation holds only 0 and
    255. ``max_frames`` cuts sequences short (0: whole).

    Raises DatasetError.
    """
    root = Path(root)
    images, annotations = root / 'JPEGImages', root / 'Annotations'
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
    available = [path.name for path in _folders(images) if (annotations / path.name).is_dir()]
    if subset:
        listed = read_list(_list_file(root, subset, year))
        missing = sorted(set(listed) - set(available))
        if missing:
            raise DatasetError(
                f'the list {subset} names sequences that are not in {images} and '
                f'{annotations}: {", ".join(missing[:5])}'
            )
        available = listed
    if names:
        unknown = sorted(set(names) - set(available))
        if unknown:
            raise DatasetError(
                f'no sequence {", ".join(unknown)} in {images}; there are {", ".join(available)}'
            )
        available = [name for name in available if name in set(names)]
    if not available:
        raise DatasetError(f'no sequence has both a folder in {images} and one in {annotations}')
    return [_sequence(images / name, annotations / name, task, max_frames) for name in available]


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


def _folders(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if path.is_dir()), key=natural_key)


def _resolution(images: Path, wanted: str | None) -> str:
    """Name of the resolution level, '' where there is none."""
    folders = _folders(images)
    levels = [path.name for path in folders if _folders(path)]
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
    frames = sorted(
        (path for path in images.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES),
        key=natural_key,
    )
    masks = {path.stem: path for path in annotations.glob('*.png')}
    orphans = sorted(set(masks) - {path.stem for path in frames})
    if orphans:
        raise DatasetError(f'{annotations / orphans[0]}.png has no frame in {images}')
    pairs = [(path, masks.get(path.stem)) for path in frames]
    while pairs and pairs[0][1] is None:  # the protocol starts at the first annotation
        pairs.pop(0)
    if not pairs:
        raise DatasetError(f'the sequence {images.name} has no annotation')
    pairs = pairs[: max_frames or None]
    if len(pairs) < 3:
        raise DatasetError(
            f'the sequence {images.name} has {len(pairs)} frames from its first '
            'annotation on; 3 or more are needed, since the first and the last '
            'do not count'
        )
    if task == 'auto':
        first = read_annotation(pairs[0][1])  # type: ignore[arg-type]
        task = 'single' if set(np.unique(first).tolist()) == {0, VOID_LABEL} else 'multi'
    return DavisSequence(
        images.name, tuple(path for path, _ in pairs), tuple(mask for _, mask in pairs), task
    )
