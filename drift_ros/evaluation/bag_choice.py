# SPDX-License-Identifier: Apache-2.0
"""Which topics and stamps of a bag belong to a sequence, and what is said of flaws in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
import re

from drift_ros.evaluation.bag_files import BagError, COMPRESSED, IMAGE, TRUTH_TOPIC
from drift_ros.ros.stamp import text as stamp_text

TRACKS = 'drift_ros_msgs/msg/TrackArray'
_LATE = 2
"""Messages of later stamps that may come before one; with more, the clock was reset."""
_OUTPUTS = ('mask', 'overlay', 'seeds')
"""Topics of a tracker that hold images, beside its ``tracks``."""


def parse_stamp(text: str) -> int:
    """
    Read a stamp: nanoseconds (digits only), or seconds, a point and nine digits of nanoseconds.

    >>> parse_stamp('1600000000.041666667') == parse_stamp('1600000000041666667')
    True

    Raises
    ------
    BagError

    """
    found = re.fullmatch(r'(?:(\d+)[._])?(\d+)', text)
    if not found or (found[1] is not None and len(found[2]) != 9):
        raise BagError(
            f'{text!r} is not a stamp: expected nanoseconds (1600000000041666667) or '
            'seconds and nine digits of nanoseconds (1600000000.041666667)'
        )
    return int(found[1] or 0) * 10**9 + int(found[2])


def files_by_stamp(folder: Path) -> dict[int, Path]:
    """
    List the PNG files of a folder by the stamp they are named by; hidden ones are none.

    Raises
    ------
    BagError

    """
    files = sorted(file for file in folder.glob('*.png') if not file.name.startswith('.'))
    if not files:
        raise BagError(
            f'{folder} holds no PNG files; ground truth files are label images named '
            'by the stamp of their image, such as 1600000000.041666667.png'
        )
    found: dict[int, Path] = {}
    for file in files:
        try:
            stamp = parse_stamp(file.stem)
        except BagError as error:
            raise BagError(f'{file}: {error}') from None
        if stamp in found:
            raise BagError(f'{file} and {found[stamp].name} are of one stamp; remove one')
        found[stamp] = file
    return found


def listing(topics: Mapping[str, str]) -> str:
    """List topics with their types, for messages."""
    return ', '.join(f'{topic} ({kind})' for topic, kind in sorted(topics.items())) or 'none'


def outputs_of_trackers(topics: Mapping[str, str]) -> frozenset[str]:
    """Name the image topics that a tracker published: what is beside its ``tracks``."""
    trackers = [
        topic.removesuffix('tracks')
        for topic, kind in topics.items()
        if kind == TRACKS and topic.endswith('/tracks')
    ]
    return frozenset(f'{tracker}{name}' for tracker in trackers for name in _OUTPUTS)


def choose_images(
    path: Path, topics: Mapping[str, str], wanted: str | None, others: Sequence[str | None]
) -> str:
    """
    Choose the camera's topic: the one named, or the only one that can be it.

    Raises
    ------
    BagError

    """
    results = outputs_of_trackers(topics)
    masks = {TRUTH_TOPIC, *(topic for topic in topics if topic.endswith('/seeds')), *others}
    try:
        return choose(
            path,
            topics,
            wanted,
            (IMAGE, COMPRESSED),
            'image',
            lambda topic: topic not in masks and topic not in results,
        )
    except BagError as error:
        if wanted is None and results & set(topics) and 'no image topic' in str(error):
            raise BagError(
                f'{path} holds what a tracker said, but not the images: record their topic as '
                f'well (drift_ros demo --record-images); there are {listing(topics)}'
            ) from None
        raise


def choose(
    path: Path,
    topics: Mapping[str, str],
    wanted: str | None,
    types: Sequence[str],
    what: str,
    candidate: Callable[[str], bool],
) -> str:
    """
    Choose a topic: the one named, or the only candidate of these types.

    Raises
    ------
    BagError
        It is not there, of another type, or one of several.

    """
    if wanted is not None:
        if wanted not in topics:
            raise BagError(
                f'{path} has no topic {wanted} ({what}) with messages; there are {listing(topics)}'
            )
        if topics[wanted] not in types:
            raise BagError(
                f'{path}: the {what} topic {wanted} is of type {topics[wanted]}; '
                f'{" or ".join(types)} is needed'
            )
        return wanted
    found = [topic for topic, kind in topics.items() if kind in types and candidate(topic)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise BagError(
            f'{path} has no {what} topic ({" or ".join(types)}); there are {listing(topics)}. '
            'Name it if it is one of them'
        )
    raise BagError(
        f'{path} has several topics that could be the {what}: {", ".join(sorted(found))}; name one'
    )


def in_order(path: Path, topic: str, stamps: Sequence[int]) -> tuple[list[int], list[str]]:
    """
    Sort stamps; leave out those that repeat a neighbour's.

    Returns
    -------
    stamps : list of int
        Ascending.
    notes : list of str
        What was done, with counts, for people.

    Raises
    ------
    BagError
        There are none, or they go back so far that the clock was reset.

    """
    if not stamps:
        raise BagError(f'{path}: the topic {topic} holds no message')
    newest: list[int] = []  # the largest so far, as many as a late one may come after
    seen: set[int] = set()
    late, repeated = [], []
    for number, stamp in enumerate(stamps):
        newer = sum(other > stamp for other in newest)
        if newer > _LATE:
            raise BagError(
                f'{path}: message {number} of {topic} is {(newest[-1] - stamp) / 1e9:.3f} s older '
                f'than one before (stamp {stamp_text(stamp)} after {stamp_text(newest[-1])}). '
                'Its clock was reset: cut the bag there (ros2 bag convert), or record it again '
                'with one time source'
            )
        if stamp in seen:
            repeated.append(number)
            continue
        if newer:
            late.append(number)
        seen.add(stamp)
        newest = sorted([*newest, stamp])[-_LATE - 1 :]
    notes = []
    if late:
        notes.append(
            f'{path}: {len(late)} messages of {topic} came after one of a later stamp (the first '
            f'is message {late[0]}); they are sorted by stamp'
        )
    if repeated:
        notes.append(
            f'{path}: {len(repeated)} messages of {topic} repeat a stamp (the first is message '
            f'{repeated[0]}); the first of each stamp counts'
        )
    return sorted(seen), notes
