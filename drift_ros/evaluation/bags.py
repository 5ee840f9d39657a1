# SPDX-License-Identifier: Apache-2.0
"""
Cameras of bags as sequences to evaluate on.

Their frames go through the same runner as a dataset's, so the same frames give the same numbers,
digit for digit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.typesys import get_typestore, Stores

from drift_ros.evaluation.bag_choice import (
    choose,
    choose_images,
    files_by_stamp,
    in_order,
    listing,
    outputs_of_trackers,
    parse_stamp,
)
from drift_ros.evaluation.bag_files import (
    BagError,
    COMPRESSED,
    digest_of_messages,
    frame_of,
    IMAGE,
    open_bag,
    read_messages,
    topics_of,
    TRUTH_TOPIC,
)
from drift_ros.evaluation.datasets import as_truth, DatasetError, SequenceFrame
from drift_ros.evaluation.digests import combine, digest_of_file
from drift_ros.media.greys import GreyRange
from drift_ros.media.labels import LabelError, LabelRule, read_values
from drift_ros.ros.conversions import image_to_labels
from drift_ros.ros.stamp import nanoseconds
from drift_ros.ros.stamp import text as stamp_text


@dataclass(frozen=True)
class BagSequence:
    """
    One camera of a bag, with its ground truth and seeds; iterate it for its frames.

    Frames, true masks and seeds belong together when their stamps are equal. The truth comes
    from ``truth_topic`` or from ``truth_files`` (by stamp), or there is none. Seeds come from
    ``seed_topic`` or ``seed_files``; without either, the first true mask is the seed. The
    sequence starts at its first seed. Frames are named by their number, 00000 onwards. Truth and
    seeds are read by the rule of :mod:`drift_ros.media.labels`. ``notes`` say for people what
    about the bag is not as it should be, and what was done about it.
    """

    name: str
    path: Path
    image_topic: str
    truth_topic: str | None
    stamps: tuple[int, ...]
    truth_stamps: frozenset[int]
    truth_files: Mapping[int, Path] = field(default_factory=dict)
    seed_topic: str | None = None
    seed_files: Mapping[int, Path] = field(default_factory=dict)
    seed_stamps: frozenset[int] = frozenset()
    compressed: bool = False
    numbered_seeds: bool = False
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.stamps)

    def __iter__(self) -> Iterator[SequenceFrame]:
        seeds = self._seeds()
        rule = LabelRule()
        for number, (stamp, image, values) in enumerate(self._pairs()):
            truth = None if values is None else self._labels(rule, values, 'true mask', stamp)
            seed = seeds.get(stamp)
            for what, mask in (('true mask', truth), ('seed', seed)):
                if mask is not None and mask.shape != image.shape[:2]:
                    raise BagError(
                        f'{self.path}: the {what} of stamp {stamp_text(stamp)} is '
                        f'{mask.shape[1]}x{mask.shape[0]}, its image '
                        f'{image.shape[1]}x{image.shape[0]}; both must be of one size'
                    )
            yield SequenceFrame(f'{number:05d}', image, truth, seed)

    def _seeds(self) -> dict[int, np.ndarray]:
        # what a tracker published are ids of objects: 255 is none of white and void
        rule = LabelRule(False if self.numbered_seeds else None)
        found = {
            stamp: self._labels(rule, _values_of_file(file), 'seed', stamp)
            for stamp, file in self.seed_files.items()
        }
        topics = {self.seed_topic: image_to_labels} if self.seed_topic else {}
        for _, stamp, values in read_messages(self.path, topics) if topics else ():
            if stamp not in self.seed_stamps:
                continue
            labels = self._labels(rule, values, 'seed', stamp)
            # one frame may have been seeded twice, with different objects
            found[stamp] = np.where(labels > 0, labels, found[stamp]) if stamp in found else labels
        return found

    def _labels(self, rule: LabelRule, values: np.ndarray, what: str, stamp: int) -> np.ndarray:
        name = f'the {what} of stamp {stamp_text(stamp)}'
        try:
            return as_truth(rule.labels(values, name), name)
        except (LabelError, DatasetError) as error:
            raise BagError(f'{self.path}: {error}') from None

    def _pairs(self) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """Give stamp, image and values of the true mask, whatever their order in the bag."""
        # Images wait until the true mask of their stamp has come by; masks for their image.
        images: dict[int, np.ndarray] = {}
        truths: dict[int, np.ndarray] = {}
        wanted = {(self.image_topic, stamp) for stamp in self.stamps}
        wanted |= {(self.truth_topic or '', stamp) for stamp in self.stamps}
        expected = self.truth_stamps if self.truth_topic else frozenset()
        following = iter(self.stamps)
        current = next(following, None)
        topics: dict[str, Any] = {self.image_topic: partial(frame_of, greys=GreyRange())}
        if self.truth_topic:
            topics[self.truth_topic] = image_to_labels
        for topic, stamp, array in read_messages(self.path, topics):
            if (topic, stamp) not in wanted:
                continue
            wanted.remove((topic, stamp))  # the first of a stamp counts
            (images if topic == self.image_topic else truths)[stamp] = array
            while current in images and (current in truths or current not in expected):
                file = self.truth_files.get(current)
                truth = truths.pop(current, None) if file is None else _values_of_file(file)
                yield current, images.pop(current), truth
                current = next(following, None)
        if current is not None:
            raise BagError(
                f'{self.path}: the bag ends before the message of stamp '
                f'{stamp_text(current)} on {" or ".join(topics)}'
            )

    @property
    def seed_numbers(self) -> list[int]:
        """Numbers of the frames that have seeds of their own."""
        return [number for number, stamp in enumerate(self.stamps) if stamp in self.seed_stamps]

    def serialized(self) -> Iterator[tuple[int, bytes]]:
        """Give stamp in nanoseconds and serialised message (CDR) of every image, in order."""
        following = iter(self.stamps)
        current = next(following, None)
        wanted, waiting = set(self.stamps), dict[int, bytes]()
        store = get_typestore(Stores.ROS2_KILTED)
        with open_bag(self.path) as reader:
            connections = [item for item in reader.connections if item.topic == self.image_topic]
            for connection, _, data in reader.messages(connections=connections):
                header = store.deserialize_cdr(data, connection.msgtype).header
                stamp = nanoseconds(header.stamp)
                if stamp in wanted:
                    wanted.remove(stamp)
                    waiting[stamp] = bytes(data)
                while current in waiting:
                    yield current, waiting.pop(current)
                    current = next(following, None)

    def digest(self) -> str:
        """Digest the messages and files that are read, and the choice of topics and stamps."""
        topics = filter(None, (self.image_topic, self.truth_topic, self.seed_topic))
        masks = sorted({**self.truth_files, **self.seed_files}.items())
        choice = (
            self.image_topic,
            self.truth_topic,
            self.seed_topic,
            self.stamps,
            sorted(self.truth_stamps),
            sorted(self.seed_stamps),
            sorted(self.seed_files),
            self.numbered_seeds,
        )
        return combine(
            repr(choice),
            digest_of_messages(self.path, topics),
            *(f'{stamp} {digest_of_file(path)}' for stamp, path in masks),
        )


def _values_of_file(path: Path) -> np.ndarray:
    try:
        return read_values(path)
    except LabelError as error:
        raise BagError(str(error)) from None


def open_sequence(
    path: str | Path,
    *,
    image_topic: str | None = None,
    truth_topic: str | None = None,
    truth_folder: Path | None = None,
    seed_topic: str | None = None,
    seed_mask: Path | None = None,
    seed_stamp: str | None = None,
    name: str | None = None,
    max_frames: int = 0,
) -> BagSequence:
    """
    Find a camera, its ground truth and its seeds in a bag, and check that they can be evaluated.

    Parameters
    ----------
    path : str or Path
    image_topic : str, optional
        May be left out where the bag has one candidate only.
    truth_topic : str, optional
        Topic of true label images [/ground_truth/mask if the bag has it]; 'none': do not use it.
    truth_folder : Path, optional
        Label PNG files named by stamp (see :func:`parse_stamp`), in place of a topic.
    seed_topic : str, optional
        Label images recorded from a tracker's ``~/seeds`` [without truth: the one topic of such a
        name]. Without seeds the first true mask is the seed.
    seed_mask : Path, optional
        Label PNG to seed with, in place of a topic.
    seed_stamp : str, optional
        Stamp of its image [the first].
    name : str, optional
        In results [that of the folder].
    max_frames : int
        Cuts the sequence short (0: whole).

    Raises
    ------
    BagError
        The bag cannot be read or is truncated, a topic is missing or of another type, stamps go
        back further than neighbours that were swapped, too few frames, nothing to seed with.

    """
    path = Path(path)
    topics = topics_of(path)
    if truth_folder is not None and truth_topic is not None:
        raise BagError(
            f'ground truth is either the topic {truth_topic} or the folder '
            f'{truth_folder}, not both'
        )
    if seed_mask is not None and seed_topic is not None:
        raise BagError(
            f'seeds are either the topic {seed_topic} or the file {seed_mask}, not both'
        )
    if truth_topic == 'none' or truth_folder is not None:
        truth_topic = None
    elif truth_topic is not None or TRUTH_TOPIC in topics:
        truth_topic = choose(
            path, topics, truth_topic, (IMAGE,), 'ground truth', lambda topic: topic == TRUTH_TOPIC
        )
    if seed_topic is not None or (
        truth_topic is None and seed_mask is None and truth_folder is None
    ):
        if seed_topic is None and not any(topic.endswith('/seeds') for topic in topics):
            raise BagError(
                f'{path} has no ground truth topic {TRUTH_TOPIC} and no seeds to '
                f'start from; there are {listing(topics)}. Name a topic of label images with '
                '--truth or --seeds, or give files with --truth-folder or --seed-mask'
            )
        seed_topic = choose(
            path, topics, seed_topic, (IMAGE,), 'seeds', lambda topic: topic.endswith('/seeds')
        )
    image_topic = choose_images(path, topics, image_topic, (truth_topic, seed_topic))
    stamps: dict[str, list[int]] = {
        topic: [] for topic in (image_topic, truth_topic, seed_topic) if topic is not None
    }
    for topic, stamp, _ in read_messages(path, dict.fromkeys(stamps)):
        stamps[topic].append(stamp)
    notes = []
    if not (path / 'metadata.yaml').is_file():
        notes.append(f'{path} has no metadata.yaml: what its file of messages holds is used')
    for topic in stamps:
        if topic != seed_topic:  # a seed may be of an older frame than the seed before it
            stamps[topic], said = in_order(path, topic, stamps[topic])
            notes += said
    images = stamps[image_topic]
    truth_files = files_by_stamp(truth_folder) if truth_folder else {}
    truths = frozenset(stamps.get(truth_topic or '', truth_files))
    seed_files = {}
    if seed_mask is not None:
        stamp = images[0] if seed_stamp is None else parse_stamp(seed_stamp)
        seed_files = {stamp: seed_mask}
    seeds = frozenset(stamps.get(seed_topic or '', seed_files))
    for stamp in sorted(seeds - set(images)):
        raise BagError(
            f'{path}: the seed of stamp {stamp_text(stamp)} belongs to no message of '
            f'{image_topic}, whose stamps go from {stamp_text(images[0])} to '
            f'{stamp_text(images[-1])}'
        )
    what = truth_topic or truth_folder or seed_topic
    if (truths or not seeds) and not truths & set(images):
        raise BagError(
            f'{path}: no message of {what} has the stamp of one of {image_topic}; '
            'ground truth must carry the stamps of its images'
        )
    while images and images[0] not in (seeds or truths):
        images.pop(0)
    images = images[: max_frames or None]
    if len(images) < 3:
        raise BagError(
            f'{path}: {image_topic} has {len(images)} frames from its first '
            f'{"seed" if seeds else "true mask"} on; 3 or more are needed, since the '
            'first and the last do not count'
        )
    truth_files = {stamp: file for stamp, file in truth_files.items() if stamp in set(images)}
    if truths and not truths & set(images[1:-1]):
        # the first frame and the last are not scored: such a truth can only be a seed
        notes.append(
            f'{path}: {what} has no mask between the first frame and the last: nothing can be '
            'scored, and its first mask is only the seed'
        )
        if not seeds:
            seeds, seed_topic = frozenset(images[:1]), truth_topic
            seed_files = {stamp: file for stamp, file in truth_files.items() if stamp in seeds}
        truth_topic, truth_files, truths = None, {}, frozenset()
    return BagSequence(
        name or path.resolve().name,
        path,
        image_topic,
        truth_topic,
        tuple(images),
        truths & frozenset(images),
        truth_files,
        seed_topic,
        seed_files,
        seeds & frozenset(images),
        topics[image_topic] == COMPRESSED,
        seed_topic in outputs_of_trackers(topics),
        tuple(notes),
    )
