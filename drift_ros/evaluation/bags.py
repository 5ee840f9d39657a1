# SPDX-License-Identifier: Apache-2.0
"""
Bags (rosbag2: sqlite3 or mcap) as evaluation data: make them, and read them back as sequences.

Needs no ROS: bags are read and written by the ``rosbags`` library. A bag's frames go through the
same runner as a dataset's, so the same frames give the same numbers, digit for digit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass, field
import hashlib
from pathlib import Path
import re
import shutil
from typing import Any

import cv2
import numpy as np
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
from rosbags.typesys.store import Typestore

from drift_ros.evaluation.datasets import DavisSequence, Frame, read_annotation
from drift_ros.ros.conversions import (
    compressed_to_rgb,
    ConversionError,
    image_to_labels,
    image_to_rgb,
)

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'

IMAGE_TOPIC = '/camera/image_raw'
INFO_TOPIC = '/camera/camera_info'
TRUTH_TOPIC = '/ground_truth/mask'

_START = 1_600_000_000 * 10**9
"""Stamp of the first frame of a converted bag: fixed, so that conversion is reproducible."""


class BagError(ValueError):
    """A bag cannot be used; the message names the cause and the remedy."""


@dataclass(frozen=True)
class BagSequence:
    """
    One camera of a bag, with its ground truth and seeds; iterate it for its frames.

    Frames, true masks and seeds belong together when their stamps are equal. The truth comes
    from ``truth_topic`` or from ``truth_files`` (by stamp), or there is none. Seeds come from
    ``seed_topic`` or ``seed_files``; without either, the first true mask is the seed. The
    sequence starts at its first seed. Frames are named by their number, 00000 onwards.
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

    def __len__(self) -> int:
        return len(self.stamps)

    def __iter__(self) -> Iterator[Frame]:
        seeds = {stamp: read_labels(file) for stamp, file in self.seed_files.items()}
        if self.seed_topic:
            for _, stamp, labels in _messages(self.path, {self.seed_topic: _labels_of}):
                # one frame may have been seeded twice, with different objects
                seeds[stamp] = (
                    np.where(labels > 0, labels, seeds[stamp]) if stamp in seeds else labels
                )
        for number, (stamp, image, given) in enumerate(self._pairs()):
            file = self.truth_files.get(stamp)
            truth = given if file is None else read_labels(file)
            seed = seeds.get(stamp)
            for what, mask in (('true mask', truth), ('seed', seed)):
                if mask is not None and mask.shape != image.shape[:2]:
                    raise BagError(
                        f'{self.path}: the {what} of stamp {_seconds(stamp)} is '
                        f'{mask.shape[1]}x{mask.shape[0]}, its image '
                        f'{image.shape[1]}x{image.shape[0]}; both must be of one size'
                    )
            yield Frame(f'{number:05d}', image, truth, seed)

    def _pairs(self) -> Iterator[tuple[int, np.ndarray, np.ndarray | None]]:
        """Give stamp, image and true mask of the topics, whatever their order in the bag."""
        # Images wait until the true mask of their stamp has come by; masks for their image.
        images: dict[int, np.ndarray] = {}
        truths: dict[int, np.ndarray] = {}
        wanted = set(self.stamps)
        expected = self.truth_stamps if self.truth_topic else frozenset()
        following = iter(self.stamps)
        current = next(following, None)
        topics: dict[str, Any] = {self.image_topic: frame_of}
        if self.truth_topic:
            topics[self.truth_topic] = _labels_of
        for topic, stamp, array in _messages(self.path, topics):
            if stamp not in wanted:
                continue
            (images if topic == self.image_topic else truths)[stamp] = array
            while current in images and (current in truths or current not in expected):
                yield current, images.pop(current), truths.pop(current, None)
                current = next(following, None)
        if current is not None:
            raise BagError(
                f'{self.path}: the bag ends before the message of stamp '
                f'{_seconds(current)} on {" or ".join(topics)}'
            )

    @property
    def has_truth(self) -> bool:
        """Whether any frame has a true mask."""
        return bool(self.truth_stamps)

    @property
    def seed_numbers(self) -> list[int]:
        """Numbers of the frames that have seeds of their own."""
        return [number for number, stamp in enumerate(self.stamps) if stamp in self.seed_stamps]

    def serialized(self) -> Iterator[tuple[int, bytes]]:
        """Give stamp in nanoseconds and serialised message (CDR) of every image."""
        wanted = set(self.stamps)
        store = get_typestore(Stores.ROS2_KILTED)
        with open_bag(self.path) as reader:
            connections = [item for item in reader.connections if item.topic == self.image_topic]
            for connection, _, data in reader.messages(connections=connections):
                header = store.deserialize_cdr(data, connection.msgtype).header
                stamp = header.stamp.sec * 10**9 + header.stamp.nanosec
                if stamp in wanted:
                    yield stamp, bytes(data)

    def digest(self) -> str:
        """Return a fingerprint of the messages' stamps and topics, and the files' sizes."""
        sizes = sorted(
            (path.suffix, path.stat().st_size)
            for path in self.path.iterdir()
            if path.is_file() and path.suffix != '.yaml'
        )
        masks = [
            sorted(
                (stamp, hashlib.sha256(file.read_bytes()).hexdigest())
                for stamp, file in files.items()
            )
            for files in (self.truth_files, self.seed_files)
        ]
        text = repr(
            (
                self.image_topic,
                self.truth_topic,
                self.stamps,
                self.seed_topic,
                masks,
                sorted(self.truth_stamps),
                sorted(self.seed_stamps),
                sizes,
            )
        )
        return hashlib.sha256(text.encode()).hexdigest()[:16]


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

    Topics may be left out where the bag has one candidate only. Ground truth is
    ``truth_topic``, or label PNG files named by stamp in ``truth_folder`` (see
    :func:`parse_stamp`), or the topic /ground_truth/mask if the bag has it and ``truth_topic``
    is not 'none'. Seeds are a label PNG ``seed_mask`` for the image of ``seed_stamp`` (default:
    the first), or the label images on ``seed_topic`` (recorded from a tracker's ``~/seeds``; the
    default where there is no truth, if the bag has one topic of such a name), or else the first
    true mask. ``max_frames`` cuts the sequence short (0: whole).

    Raises BagError: the bag cannot be read or is truncated, a topic is missing or of another
    type, stamps are not strictly increasing, too few frames, nothing to seed with.
    """
    path = Path(path)
    topics = _topics(path)
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
        truth_topic = _choose(
            path, topics, truth_topic, (IMAGE,), 'ground truth', lambda topic: topic == TRUTH_TOPIC
        )
    if seed_topic is not None or (
        truth_topic is None and seed_mask is None and truth_folder is None
    ):
        if seed_topic is None and not any(topic.endswith('/seeds') for topic in topics):
            listing = ', '.join(f'{topic} ({kind})' for topic, kind in sorted(topics.items()))
            raise BagError(
                f'{path} has no ground truth topic {TRUTH_TOPIC} and no seeds to '
                f'start from; there are {listing}. Name a topic of label images with '
                '--truth or --seeds, or give files with --truth-folder or --seed-mask'
            )
        seed_topic = _choose(
            path, topics, seed_topic, (IMAGE,), 'seeds', lambda topic: topic.endswith('/seeds')
        )
    image_topic = _choose(
        path,
        topics,
        image_topic,
        (IMAGE, COMPRESSED),
        'image',
        lambda topic: topic not in (truth_topic, seed_topic),
    )
    stamps: dict[str, list[int]] = {
        topic: [] for topic in (image_topic, truth_topic, seed_topic) if topic is not None
    }
    for topic, stamp, _ in _messages(path, dict.fromkeys(stamps)):
        stamps[topic].append(stamp)
    for topic, values in stamps.items():
        if topic != seed_topic:  # a seed may be of an older frame than the seed before it
            _check_stamps(path, topic, values)
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
            f'{path}: the seed of stamp {_seconds(stamp)} belongs to no message of '
            f'{image_topic}, whose stamps go from {_seconds(images[0])} to '
            f'{_seconds(images[-1])}'
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
    return BagSequence(
        name or path.resolve().name,
        path,
        image_topic,
        truth_topic,
        tuple(images),
        truths & frozenset(images),
        {stamp: file for stamp, file in truth_files.items() if stamp in set(images)},
        seed_topic,
        seed_files,
        seeds & frozenset(images),
        topics[image_topic] == COMPRESSED,
    )


def parse_stamp(text: str) -> int:
    """
    Read a stamp: nanoseconds (digits only), or seconds, a point and nine digits of nanoseconds.

    >>> parse_stamp('1600000000.041666667') == parse_stamp('1600000000041666667')
    True

    Raises BagError.
    """
    found = re.fullmatch(r'(?:(\d+)[._])?(\d+)', text)
    if not found or (found[1] is not None and len(found[2]) != 9):
        raise BagError(
            f'{text!r} is not a stamp: expected nanoseconds (1600000000041666667) or '
            'seconds and nine digits of nanoseconds (1600000000.041666667)'
        )
    return int(found[1] or 0) * 10**9 + int(found[2])


def files_by_stamp(folder: Path) -> dict[int, Path]:
    """Return the PNG files of a folder by the stamp they are named by; raises BagError."""
    files = sorted(folder.glob('*.png'))
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


def read_labels(path: Path) -> np.ndarray:
    """Read a label PNG (H, W) uint8; one of 0 and 255 only is a plain mask, of object 1."""
    labels = read_annotation(path)
    return (labels > 0).astype(np.uint8) if set(np.unique(labels)) <= {0, 255} else labels


def _topics(path: Path) -> dict[str, str]:
    """Return the type of every topic of a bag."""
    with open_bag(path) as reader:
        return {connection.topic: connection.msgtype for connection in reader.connections}


def _choose(
    path: Path,
    topics: dict[str, str],
    wanted: str | None,
    types: Sequence[str],
    what: str,
    candidate: Callable[[str], bool],
) -> str:
    listing = ', '.join(f'{topic} ({kind})' for topic, kind in sorted(topics.items())) or 'none'
    if wanted is not None:
        if wanted not in topics:
            raise BagError(f'{path} has no topic {wanted} ({what}); there are {listing}')
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
            f'{path} has no {what} topic ({" or ".join(types)}); there are {listing}. '
            'Name it if it is one of them'
        )
    raise BagError(
        f'{path} has several topics that could be the {what}: {", ".join(sorted(found))}; name one'
    )


def _check_stamps(path: Path, topic: str, stamps: Sequence[int]) -> None:
    if not stamps:
        raise BagError(f'{path}: the topic {topic} holds no message')
    for number, (before, after) in enumerate(zip(stamps, stamps[1:], strict=False), start=1):
        if after <= before:
            what = (
                'repeats the stamp of the one before'
                if after == before
                else f'is {(before - after) / 1e9:.3f} s older than the one before'
            )
            raise BagError(
                f'{path}: message {number} of {topic} {what} (stamp {_seconds(after)} after '
                f'{_seconds(before)}). Stamps must increase: cut the bag where its clock was '
                'reset (ros2 bag convert), or record it again with one time source'
            )


@contextlib.contextmanager
def open_bag(path: Path) -> Iterator[Reader]:
    """Open a bag for reading; raises BagError when that is not possible."""
    if not path.exists():
        raise BagError(f'{path} does not exist')
    if not (path / 'metadata.yaml').is_file():
        raise BagError(
            f'{path} is not a rosbag2 folder: it has no metadata.yaml. If recording '
            'was interrupted, "ros2 bag reindex" writes it'
        )
    reader = Reader(path)
    try:
        reader.open()
    except Exception as error:  # the library's own, sqlite's, zstandard's, file system's
        raise _unreadable(path, error) from error
    try:
        yield reader
    finally:
        reader.close()


def _unreadable(path: Path, error: Exception) -> BagError:
    return BagError(
        f'{path} cannot be read: {str(error) or type(error).__name__}. The bag is '
        'damaged or truncated (recording interrupted, disk full?); "mcap recover" or '
        '"ros2 bag reindex" may save its readable part'
    )


def _messages(
    path: Path,
    topics: dict[str, Callable[[Any], np.ndarray] | None],
) -> Iterator[tuple[str, int, np.ndarray]]:
    """
    Read messages of some topics in recorded order: topic, header stamp, array.

    A topic whose function is None is not converted (the array is empty).
    """
    store = get_typestore(Stores.ROS2_KILTED)
    nothing = np.empty(0)
    with open_bag(path) as reader:
        connections = [item for item in reader.connections if item.topic in topics]
        promised = sum(item.msgcount for item in connections)
        source = reader.messages(connections=connections)
        count = 0
        while True:
            try:
                connection, _, data = next(source)
                message: Any = store.deserialize_cdr(data, connection.msgtype)
            except StopIteration:
                break
            except Exception as error:
                raise _unreadable(path, error) from error
            count += 1
            stamp = message.header.stamp.sec * 10**9 + message.header.stamp.nanosec
            convert = topics[connection.topic]
            try:
                array = convert(message) if convert else nothing
            except ConversionError as error:
                raise BagError(
                    f'{path}: message of {connection.topic} with stamp {_seconds(stamp)}: {error}'
                ) from error
            yield connection.topic, stamp, array
        if count != promised:
            raise BagError(
                f'{path}: {count} messages could be read where its index promises '
                f'{promised}; the bag is truncated. "mcap recover" or "ros2 bag '
                'reindex" make a bag of the readable part'
            )


def frame_of(message: Any) -> np.ndarray:
    """Decode an image message of either kind: (H, W, 3) uint8 RGB."""
    return (compressed_to_rgb if hasattr(message, 'format') else image_to_rgb)(message)


def _labels_of(message: Any) -> np.ndarray:
    labels = image_to_labels(message)
    if labels.size and int(labels.max()) > 255:
        raise ConversionError(
            f'the true mask holds the label {int(labels.max())}; labels are 0 '
            'to 254, and 255 for void'
        )
    return labels.astype(np.uint8)


def _seconds(stamp: int) -> str:
    return f'{stamp // 10**9}.{stamp % 10**9:09d}'


# -- making bags -------------------------------------------------------------------------------

STORAGES = {'mcap': StoragePlugin.MCAP, 'sqlite3': StoragePlugin.SQLITE3}


def bag_from_davis(
    sequence: DavisSequence,
    path: str | Path,
    *,
    storage: str = 'mcap',
    compressed: bool = False,
    rate: float = 24.0,
    progress: Callable[[int], None] = lambda count: None,
) -> Path:
    """
    Make a bag of a DAVIS sequence: images, camera_info, true masks, all with equal stamps.

    ``compressed`` keeps JPEG and PNG files as they are (sensor_msgs/CompressedImage); decoded,
    they equal the raw frames bit for bit. ``rate`` is in Hz. True masks are mono8, 255 = void.
    """

    def items() -> Iterator[tuple[np.ndarray, bytes | None, str, np.ndarray | None]]:
        for frame, file in zip(sequence, sequence.images, strict=True):
            kind = {'.jpg': 'jpeg', '.jpeg': 'jpeg', '.png': 'png'}.get(file.suffix.lower())
            data = file.read_bytes() if compressed and kind else None
            yield frame.image, data, kind or 'png', frame.truth

    return _write_bag(path, items(), storage, compressed, rate, progress)


def bag_from_video(
    frames: Iterable[np.ndarray],
    path: str | Path,
    *,
    storage: str = 'mcap',
    compressed: bool = False,
    rate: float = 24.0,
    masks: Path | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Path:
    """
    Make a bag of video frames (H, W, 3) uint8 RGB: images and camera_info.

    ``compressed`` writes PNG, which loses nothing. ``masks`` is a folder of label PNG files
    named by frame number (00000.png), put on the ground-truth topic; a single file is the mask
    of frame 0.
    """

    def truth_of(number: int) -> np.ndarray | None:
        if masks is None:
            return None
        file = masks / f'{number:05d}.png' if masks.is_dir() else masks
        if (masks.is_file() and number) or not file.is_file():
            return None
        return read_labels(file)

    def items() -> Iterator[tuple[np.ndarray, bytes | None, str, np.ndarray | None]]:
        for number, frame in enumerate(frames):
            yield frame, None, 'png', truth_of(number)

    return _write_bag(path, items(), storage, compressed, rate, progress)


def _write_bag(
    path: str | Path,
    items: Iterable[tuple[np.ndarray, bytes | None, str, np.ndarray | None]],
    storage: str,
    compressed: bool,
    rate: float,
    progress: Callable[[int], None],
) -> Path:
    path = Path(path)
    if path.exists():
        raise BagError(f'{path} exists already: choose another output or remove it')
    if not rate > 0:
        raise BagError(f'the rate is {rate} Hz; it must be above 0')
    path.parent.mkdir(parents=True, exist_ok=True)
    store = get_typestore(Stores.ROS2_KILTED)
    image_topic = f'{IMAGE_TOPIC}/compressed' if compressed else IMAGE_TOPIC
    try:
        with Writer(path, version=9, storage_plugin=STORAGES[storage]) as writer:
            topics = {
                topic: (writer.add_connection(topic, kind, typestore=store), kind)
                for topic, kind in (
                    (image_topic, COMPRESSED if compressed else IMAGE),
                    (INFO_TOPIC, CAMERA_INFO),
                    (TRUTH_TOPIC, IMAGE),
                )
            }

            def write(topic: str, stamp: int, message: Any) -> None:
                connection, kind = topics[topic]
                writer.write(connection, stamp, store.serialize_cdr(message, kind))

            for number, (image, data, kind, truth) in enumerate(items):
                stamp = _START + round(number * 1e9 / rate)
                header = _header(store, stamp)
                if compressed:
                    if data is None:
                        data = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR))[
                            1
                        ].tobytes()
                    message = store.types[COMPRESSED](
                        header, f'rgb8; {kind} compressed bgr8', np.frombuffer(data, np.uint8)
                    )
                else:
                    message = image_message(store, header, image)
                write(image_topic, stamp, message)
                write(INFO_TOPIC, stamp, _camera_info(store, header, image))
                if truth is not None:
                    write(TRUTH_TOPIC, stamp, image_message(store, header, truth))
                progress(1)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)  # half a bag would only be found out later
        raise
    return path


def _header(store: Typestore, stamp: int) -> Any:
    time = store.types['builtin_interfaces/msg/Time'](stamp // 10**9, stamp % 10**9)
    return store.types['std_msgs/msg/Header'](time, 'camera_optical_frame')


def image_message(store: Typestore, header: Any, image: np.ndarray) -> Any:
    """Make a sensor_msgs/Image: rgb8 of (H, W, 3), mono8 of (H, W), both uint8."""
    encoding, channels = ('rgb8', 3) if image.ndim == 3 else ('mono8', 1)
    return store.types[IMAGE](
        header,
        image.shape[0],
        image.shape[1],
        encoding,
        0,
        image.shape[1] * channels,
        np.ascontiguousarray(image).reshape(-1),
    )


def _camera_info(store: Typestore, header: Any, image: np.ndarray) -> Any:
    """Make a CameraInfo of an uncalibrated camera: the size, and a zero matrix K."""
    region = store.types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
    return store.types[CAMERA_INFO](
        header,
        image.shape[0],
        image.shape[1],
        '',
        np.zeros(0),
        np.zeros(9),
        np.zeros(9),
        np.zeros(12),
        0,
        0,
        region,
    )
