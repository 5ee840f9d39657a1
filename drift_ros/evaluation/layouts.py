# SPDX-License-Identifier: Apache-2.0
"""
The benchmarks that trackers are compared on, recognised by how their archives unpack.

========================  ===========================================================
DAVIS 2016, 2017          ``JPEGImages/480p``, ``Annotations/480p``, lists in ``ImageSets``
YouTube-VOS 2018, 2019    ``valid/`` and ``train/``, each with ``JPEGImages``, ``Annotations``
                          and ``meta.json``; all frames in ``valid_all_frames/JPEGImages``
Long Videos               ``JPEGImages`` and ``Annotations`` of blueboy, dressage and rat
LVOS                      ``valid/`` and others, with ``valid_meta.json``
MOSE                      ``valid/`` and ``train/``, with or without ``meta_valid.json``
========================  ===========================================================

Sequences of all of them are read by :func:`drift_ros.evaluation.datasets.find_sequences`. Where a
split's annotations only start objects, masks are made and packed for the benchmark's server
(:mod:`drift_ros.evaluation.submission`), and no score is claimed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
import json
from pathlib import Path
from typing import Any

from drift_ros.evaluation.datasets import (
    BrokenSequence,
    DatasetError,
    DavisSequence,
    find_sequences,
    frame_names,
    read_list,
)
from drift_ros.media.video import natural_key

_LONG_VIDEOS = {'blueboy', 'dressage', 'rat'}
_YOUTUBE_YEARS = {474: '2018', 507: '2019'}
"""Videos in the validation sets by year; nothing else in the archives tells them apart."""
_PARTS = ('train', 'valid', 'val', 'test')
_ALL_FRAMES = (
    '../{0}_all_frames/JPEGImages',
    '../all_frames/{0}_all_frames/JPEGImages',
    '../../{0}_all_frames/JPEGImages',
    '../../all_frames/{0}_all_frames/JPEGImages',
)


@dataclass(frozen=True)
class Split:
    """
    One set of a benchmark, in a folder.

    Attributes
    ----------
    key : str
        Names it in files and in the table of published numbers: ``davis-2017-val``.
    title : str
    root : Path
        Holds JPEGImages and Annotations.
    late_objects : bool
        Whether the benchmark seeds objects in the frame in which they appear.
    packed : str
        Folder of the masks within a submission; '' where sequences lie at the top.
    subset, year : str, optional
        The list in ImageSets.
    all_frames : Path, optional
        Pictures between those that count; they are tracked through, and not submitted.
    task : str
        See :data:`drift_ros.evaluation.datasets.TASKS`.
    public : bool
        Whether its truth is published: a sequence without one is incomplete.
    complete : tuple of str
        Names of all its sequences, where that is known from elsewhere than its folders.

    """

    key: str
    title: str
    root: Path
    late_objects: bool = False
    packed: str = ''
    subset: str | None = None
    year: str | None = None
    all_frames: Path | None = None
    task: str = 'multi'
    public: bool = False
    complete: tuple[str, ...] = ()

    def sequences(
        self, names: Sequence[str] = (), max_frames: int = 0
    ) -> list[DavisSequence | BrokenSequence]:
        """
        Find its sequences; see :func:`drift_ros.evaluation.datasets.find_sequences`.

        What lacks something the set is known to have is found as broken. Of names only those are
        taken that are in the set, maybe none.

        Raises
        ------
        DatasetError
            No sequence can be evaluated.

        """
        found = find_sequences(
            self.root,
            subset=self.subset,
            year=self.year,
            task=self.task,
            max_frames=max_frames,
            frames=self.all_frames,
        )
        here = {item.name for item in found}
        lacking = [
            BrokenSequence(name, f'the folder of {self.title} lacks its sequence {name}')
            for name in self.complete
            if name not in here
        ]
        checked = [self._checked(item) for item in found]
        return [item for item in (*checked, *lacking) if not names or item.name in names]

    def _checked(self, item: DavisSequence | BrokenSequence) -> DavisSequence | BrokenSequence:
        """Find a sequence broken that is sound by itself, but lacks something in this set."""
        if isinstance(item, BrokenSequence):
            return item
        if self.public and not item.with_truth:
            return BrokenSequence(
                item.name,
                f'the truth of {self.title} is published, but {item.name} has none after its '
                'objects start: the copy is incomplete',
            )
        if self.all_frames is not None:
            first = natural_key(item.images[0].stem)
            there = {path.stem for path in (self.all_frames / item.name).iterdir()}
            for name in frame_names(self.root, item.name):
                if natural_key(name) >= first and name not in there:
                    return BrokenSequence(
                        item.name, f'{self.all_frames / item.name} lacks the frame {name}'
                    )
        return item


def recognise(root: str | Path) -> list[Split]:
    """
    Say which sets of which benchmarks a folder holds.

    Parameters
    ----------
    root : str or Path
        An unpacked archive (its training set is left out where there is another), or the folder
        of one of its sets.

    Returns
    -------
    list of Split
        One or more; a folder of DAVIS's layout that is no known benchmark has the key of its name.

    Raises
    ------
    DatasetError
        It holds no pictures with annotations in any of the layouts.

    """
    root = Path(root)
    if (root / 'JPEGImages').is_dir():
        return list(_splits(root))
    inside = {path.name: path for path in sorted(root.iterdir()) if (path / 'JPEGImages').is_dir()}
    inside = {name: path for name, path in inside.items() if not name.endswith('_all_frames')}
    chosen = [name for name in inside if name != 'train'] or list(inside)
    if not chosen:
        raise DatasetError(
            f'{root} holds no JPEGImages, and none of its folders does: give the folder a '
            'benchmark was unpacked to'
        )
    return [split for name in chosen for split in _splits(inside[name])]


def _splits(root: Path) -> Iterator[Split]:
    """Recognise a folder with JPEGImages by what lies in and around it."""
    part = root.name if root.name in _PARTS else ''
    meta = _meta(root)
    said: set[str] = set()
    for video in meta.values():
        said.update(*(each for each in video['objects'].values()))
    videos = {path.name for path in (root / 'JPEGImages').iterdir() if path.is_dir()}
    if 'frame_range' in said:
        public = part != 'test'
        named = _named('LVOS', part)
        yield Split(*named, root, True, 'Annotations', public=public, complete=tuple(meta))
    elif meta:
        year = _YOUTUBE_YEARS.get(len(meta), '') or next(
            (year for year in _YOUTUBE_YEARS.values() if year in str(root.resolve())), ''
        )
        every = (root / each.format(part) for each in _ALL_FRAMES)
        yield Split(
            *_named('YouTube-VOS', year, part),
            root,
            True,
            'Annotations',
            all_frames=next((path.resolve() for path in every if path.is_dir()), None),
            public=part == 'train',
            complete=tuple(meta),
        )
    elif videos and videos <= _LONG_VIDEOS:
        complete = tuple(sorted(_LONG_VIDEOS))
        yield Split(*_named('Long', 'Videos'), root, public=True, complete=complete)
    elif (root / 'ImageSets').is_dir():
        yield from _davis(root)
    elif _is_mose(root):
        yield Split(*_named('MOSE', part), root, public=part == 'train')
    else:
        yield _unknown(root)


def _unknown(root: Path) -> Split:
    """Take a folder of DAVIS's layout as a set of its own name."""
    whole = root.resolve()
    name = f'{whole.parent.name}-{whole.name}' if whole.name in _PARTS else whole.name
    return Split(name, name, root, task='auto')


def _named(*words: str) -> tuple[str, str]:
    """Make key and title of words, without those that are empty."""
    title = ' '.join(filter(None, words))
    return title.lower().replace(' ', '-'), title


def _davis(root: Path) -> Iterator[Split]:
    """Give the lists of a DAVIS archive that are evaluated and are of its own masks."""
    # in the archive of 2017 a list of 2016 stands beside masks that are not those of 2016
    years = ('2017', '2016', '480p')
    year = next((name for name in years if (root / 'ImageSets' / name).is_dir()), '')
    subsets = [name for name in ('test-dev', 'val') if _has_sequences(root, year, name)]
    shown = '2017' if year == '2017' else '2016'
    for subset in subsets:
        yield Split(
            *_named('DAVIS', shown, subset),
            root,
            subset=subset,
            year=year,
            task='multi' if shown == '2017' else 'single',
            public=subset == 'val',
        )
    if not subsets:
        yield _unknown(root)


def _has_sequences(root: Path, year: str, subset: str) -> bool:
    path = root / 'ImageSets' / year / f'{subset}.txt'
    names = read_list(path) if path.is_file() else []
    folders = [root / 'Annotations', *(root / 'Annotations').glob('*')]
    return any((folder / name).is_dir() for name in names for folder in folders)


def _is_mose(root: Path) -> bool:
    around = (root, root.parent)
    marked = any(
        (folder / f'meta_{part}.json').is_file()
        for folder in around
        for part in ('valid', 'train')
    )
    return marked or any('mose' in folder.resolve().name.lower() for folder in around)


def _meta(root: Path) -> dict[str, Any]:
    """
    Read what a set says of its videos, by name, each with its 'objects'; empty without a file.

    Raises
    ------
    DatasetError
        The file is damaged, or says nothing of objects.

    """
    for path in (root / 'meta.json', root / f'{root.name}_meta.json'):
        if not path.exists():
            continue
        try:
            videos = json.loads(path.read_text())['videos']
            if not all(_describes(video['objects']) for video in videos.values()) or not videos:
                raise ValueError('objects are not described')
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DatasetError(
                f'{path} does not name videos and their objects ({type(error).__name__}: {error}):'
                ' it is cut short, or of another data set'
            ) from None
        return videos
    return {}


def _describes(objects: Any) -> bool:
    """Whether these are descriptions by object, of one of the benchmarks that have such."""
    return all(
        isinstance(each, dict) and {'frame_range', 'frames', 'category'} & each.keys()
        for each in objects.values()
    )
