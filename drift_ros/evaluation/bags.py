# SPDX-License-Identifier: Apache-2.0
"""
Bags (rosbag2: sqlite3 or mcap) as evaluation data: make them, and read them back as sequences.

Needs no ROS: bags are read and written by the ``rosbags`` library. A bag's frames go through the
same runner as a dataset's, so the same frames give the same numbers, digit for digit.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
import contextlib
from dataclasses import dataclass
import hashlib
from pathlib import Path
import shutil
from typing import Any

import cv2
import numpy as np
from rosbags.rosbag2 import Reader, StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
from rosbags.typesys.store import Typestore

from drift_ros.evaluation.davis import DavisSequence, Frame, read_annotation
from drift_ros.nodes.conversions import (
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
    One camera of a bag with its ground truth; iterate it for its frames.

    Frames and true masks belong together when their header stamps are equal. The sequence
    starts at the first frame with a true mask. Frames are named by their number, 00000 onwards.
    """

    name: str
    path: Path
    image_topic: str
    truth_topic: str
    stamps: tuple[int, ...]
    truth_stamps: frozenset[int]

    def __len__(self) -> int:
        return len(self.stamps)

    def __iter__(self) -> Iterator[Frame]:
        # Images wait until the true mask of their stamp has come by; masks for their image.
        images: dict[int, np.ndarray] = {}
        truths: dict[int, np.ndarray] = {}
        wanted = {stamp: number for number, stamp in enumerate(self.stamps)}
        following = iter(self.stamps)
        current = next(following, None)
        for topic, stamp, array in _messages(
                self.path, {self.image_topic: _frame_of, self.truth_topic: _labels_of}):
            if stamp not in wanted:
                continue
            (images if topic == self.image_topic else truths)[stamp] = array
            while current in images and (current in truths or current not in self.truth_stamps):
                image, truth = images.pop(current), truths.pop(current, None)
                if truth is not None and truth.shape != image.shape[:2]:
                    raise BagError(
                        f'{self.path}: the true mask of stamp {_seconds(current)} is '
                        f'{truth.shape[1]}x{truth.shape[0]}, its image '
                        f'{image.shape[1]}x{image.shape[0]}; both must be of one size')
                yield Frame(f'{wanted[current]:05d}', image, truth)
                current = next(following, None)
        if current is not None:
            raise BagError(f'{self.path}: the bag ends before the message of stamp '
                           f'{_seconds(current)} on {self.image_topic} or {self.truth_topic}')

    def digest(self) -> str:
        """Return a fingerprint of the messages' stamps and topics, and the files' sizes."""
        sizes = sorted((path.suffix, path.stat().st_size) for path in self.path.iterdir()
                       if path.is_file() and path.suffix != '.yaml')
        text = repr((self.image_topic, self.truth_topic, self.stamps,
                     sorted(self.truth_stamps), sizes))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_sequence(path: str | Path, *, image_topic: str | None = None,
                  truth_topic: str | None = None, name: str | None = None,
                  max_frames: int = 0) -> BagSequence:
    """
    Find a camera and its ground truth in a bag, and check that they can be evaluated.

    Topics may be left out where the bag has one candidate only. ``max_frames`` cuts the
    sequence short (0: whole).

    Raises BagError: the bag cannot be read or is truncated, a topic is missing or of another
    type, stamps are not strictly increasing, too few frames.
    """
    path = Path(path)
    topics = _topics(path)
    truth_topic = _choose(path, topics, truth_topic, (IMAGE,), 'ground truth',
                          lambda topic: topic == TRUTH_TOPIC)
    image_topic = _choose(path, topics, image_topic, (IMAGE, COMPRESSED), 'image',
                          lambda topic: topic != truth_topic)
    stamps: dict[str, list[int]] = {image_topic: [], truth_topic: []}
    for topic, stamp, _ in _messages(path, {image_topic: None, truth_topic: None}):
        stamps[topic].append(stamp)
    for topic, values in stamps.items():
        _check_stamps(path, topic, values)
    truth_stamps = frozenset(stamps[truth_topic])
    images = stamps[image_topic]
    while images and images[0] not in truth_stamps:
        images.pop(0)
    if not images:
        raise BagError(f'{path}: no message of {truth_topic} has the stamp of one of '
                       f'{image_topic}; ground truth must carry the stamps of its images')
    images = images[:max_frames or None]
    if len(images) < 3:
        raise BagError(f'{path}: {image_topic} has {len(images)} frames from its first true mask '
                       'on; 3 or more are needed, since the first and the last do not count')
    return BagSequence(name or path.name, path, image_topic, truth_topic, tuple(images),
                       truth_stamps & frozenset(images))


def _topics(path: Path) -> dict[str, str]:
    """Return the type of every topic of a bag."""
    with _reader(path) as reader:
        return {connection.topic: connection.msgtype for connection in reader.connections}


def _choose(path: Path, topics: dict[str, str], wanted: str | None, types: Sequence[str],
            what: str, candidate: Callable[[str], bool]) -> str:
    listing = ', '.join(f'{topic} ({kind})' for topic, kind in sorted(topics.items())) or 'none'
    if wanted is not None:
        if wanted not in topics:
            raise BagError(f'{path} has no topic {wanted} ({what}); there are {listing}')
        if topics[wanted] not in types:
            raise BagError(f'{path}: the {what} topic {wanted} is of type {topics[wanted]}; '
                           f'{" or ".join(types)} is needed')
        return wanted
    found = [topic for topic, kind in topics.items() if kind in types and candidate(topic)]
    if len(found) == 1:
        return found[0]
    if not found:
        raise BagError(f'{path} has no {what} topic ({" or ".join(types)}); there are {listing}. '
                       'Name it if it is one of them')
    raise BagError(f'{path} has several topics that could be the {what}: '
                   f'{", ".join(sorted(found))}; name one')


def _check_stamps(path: Path, topic: str, stamps: Sequence[int]) -> None:
    if not stamps:
        raise BagError(f'{path}: the topic {topic} holds no message')
    for number, (before, after) in enumerate(zip(stamps, stamps[1:], strict=False), start=1):
        if after <= before:
            what = ('repeats the stamp of the one before' if after == before else
                    f'is {(before - after) / 1e9:.3f} s older than the one before')
            raise BagError(
                f'{path}: message {number} of {topic} {what} (stamp {_seconds(after)} after '
                f'{_seconds(before)}). Stamps must increase: cut the bag where its clock was '
                'reset (ros2 bag convert), or record it again with one time source')


@contextlib.contextmanager
def _reader(path: Path) -> Iterator[Reader]:
    if not path.exists():
        raise BagError(f'{path} does not exist')
    if not (path / 'metadata.yaml').is_file():
        raise BagError(f'{path} is not a rosbag2 folder: it has no metadata.yaml. If recording '
                       'was interrupted, "ros2 bag reindex" writes it')
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
    return BagError(f'{path} cannot be read: {str(error) or type(error).__name__}. The bag is '
                    'damaged or truncated (recording interrupted, disk full?); "mcap recover" or '
                    '"ros2 bag reindex" may save its readable part')


def _messages(path: Path, topics: dict[str, Callable[[Any], np.ndarray] | None],
              ) -> Iterator[tuple[str, int, np.ndarray]]:
    """
    Read messages of some topics in recorded order: topic, header stamp, array.

    A topic whose function is None is not converted (the array is empty).
    """
    store = get_typestore(Stores.ROS2_KILTED)
    nothing = np.empty(0)
    with _reader(path) as reader:
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
                raise BagError(f'{path}: message of {connection.topic} with stamp '
                               f'{_seconds(stamp)}: {error}') from error
            yield connection.topic, stamp, array
        if count != promised:
            raise BagError(f'{path}: {count} messages could be read where its index promises '
                           f'{promised}; the bag is truncated. "mcap recover" or "ros2 bag '
                           'reindex" make a bag of the readable part')


def _frame_of(message: Any) -> np.ndarray:
    return (compressed_to_rgb if hasattr(message, 'format') else image_to_rgb)(message)


def _labels_of(message: Any) -> np.ndarray:
    labels = image_to_labels(message)
    if labels.size and int(labels.max()) > 255:
        raise ConversionError(f'the true mask holds the label {int(labels.max())}; labels are 0 '
                              'to 254, and 255 for void')
    return labels.astype(np.uint8)


def _seconds(stamp: int) -> str:
    return f'{stamp // 10**9}.{stamp % 10**9:09d}'


# -- making bags -------------------------------------------------------------------------------

STORAGES = {'mcap': StoragePlugin.MCAP, 'sqlite3': StoragePlugin.SQLITE3}


def bag_from_davis(sequence: DavisSequence, path: str | Path, *, storage: str = 'mcap',
                   compressed: bool = False, rate: float = 24.0,
                   progress: Callable[[int], None] = lambda count: None) -> Path:
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


def bag_from_video(frames: Iterable[np.ndarray], path: str | Path, *, storage: str = 'mcap',
                   compressed: bool = False, rate: float = 24.0,
                   masks: Path | None = None,
                   progress: Callable[[int], None] = lambda count: None) -> Path:
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
        labels = read_annotation(file)
        # As everywhere: a picture of 0 and 255 only is a plain mask.
        return (labels > 0).astype(np.uint8) if set(np.unique(labels)) <= {0, 255} else labels

    def items() -> Iterator[tuple[np.ndarray, bytes | None, str, np.ndarray | None]]:
        for number, frame in enumerate(frames):
            yield frame, None, 'png', truth_of(number)

    return _write_bag(path, items(), storage, compressed, rate, progress)


def write_result_bag(sequence: BagSequence, masks: dict[str, Path], path: str | Path) -> Path:
    """
    Write the evaluated messages of a bag again, with the predicted masks beside them.

    Images and true masks keep their bytes, topics and times. ``masks`` gives, per engine, the
    folder of its predictions (00000.png ...); each becomes a topic ``/<engine>/mask`` (mono8,
    pixel = label) whose messages carry the header of their image.
    """
    path = Path(path)
    if path.exists():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    store = get_typestore(Stores.ROS2_KILTED)
    numbers = {stamp: number for number, stamp in enumerate(sequence.stamps)}
    with _reader(sequence.path) as reader, Writer(
            path, version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connections = [item for item in reader.connections
                       if item.topic in (sequence.image_topic, sequence.truth_topic)]
        copies = {item.topic: writer.add_connection(
            item.topic, item.msgtype, typestore=store,
            offered_qos_profiles=item.ext.offered_qos_profiles) for item in connections}
        outputs = {engine: writer.add_connection(_topic_name(engine), IMAGE, typestore=store)
                   for engine in masks}
        for connection, time, data in reader.messages(connections=connections):
            header = store.deserialize_cdr(data, connection.msgtype).header
            number = numbers.get(header.stamp.sec * 10**9 + header.stamp.nanosec)
            if number is None:
                continue
            writer.write(copies[connection.topic], time, data)
            if connection.topic == sequence.image_topic:
                for engine, folder in masks.items():
                    labels = read_annotation(folder / f'{number:05d}.png')
                    message = image_message(store, header, labels)
                    writer.write(outputs[engine], time, store.serialize_cdr(message, IMAGE))
    return path


def _topic_name(engine: str) -> str:
    """Turn an engine's label into a valid topic."""
    name = ''.join(char if char.isalnum() and char.isascii() else '_' for char in engine)
    return f'/{"e" if name[0].isdigit() else ""}{name}/mask'


def _write_bag(path: str | Path,
               items: Iterable[tuple[np.ndarray, bytes | None, str, np.ndarray | None]],
               storage: str, compressed: bool, rate: float,
               progress: Callable[[int], None]) -> Path:
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
                for topic, kind in ((image_topic, COMPRESSED if compressed else IMAGE),
                                    (INFO_TOPIC, CAMERA_INFO), (TRUTH_TOPIC, IMAGE))}

            def write(topic: str, stamp: int, message: Any) -> None:
                connection, kind = topics[topic]
                writer.write(connection, stamp, store.serialize_cdr(message, kind))

            for number, (image, data, kind, truth) in enumerate(items):
                stamp = _START + round(number * 1e9 / rate)
                header = _header(store, stamp)
                if compressed:
                    if data is None:
                        data = cv2.imencode('.png', cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
                                            )[1].tobytes()
                    message = store.types[COMPRESSED](
                        header, f'rgb8; {kind} compressed bgr8', np.frombuffer(data, np.uint8))
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
    return store.types[IMAGE](header, image.shape[0], image.shape[1], encoding, 0,
                              image.shape[1] * channels,
                              np.ascontiguousarray(image).reshape(-1))


def _camera_info(store: Typestore, header: Any, image: np.ndarray) -> Any:
    """Make a CameraInfo of an uncalibrated camera: the size, and a zero matrix K."""
    region = store.types['sensor_msgs/msg/RegionOfInterest'](0, 0, 0, 0, False)
    return store.types[CAMERA_INFO](
        header, image.shape[0], image.shape[1], '', np.zeros(0), np.zeros(9), np.zeros(9),
        np.zeros(12), 0, 0, region)
