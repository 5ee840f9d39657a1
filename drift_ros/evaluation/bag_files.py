# SPDX-License-Identifier: Apache-2.0
"""
Bags (rosbag2: sqlite3 or mcap) as files: open them, read and make their messages.

Needs no ROS: bags are read and written by the ``rosbags`` library.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
import contextlib
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from rosbags.rosbag2 import Reader
from rosbags.typesys import get_typestore, Stores
from rosbags.typesys.store import Typestore

from drift_ros.evaluation.bag_check import fault_of, settle
from drift_ros.evaluation.datasets import DatasetError
from drift_ros.evaluation.digests import combine, digest_of_path
from drift_ros.media.greys import GreyRange
from drift_ros.ros.conversions import compressed_to_rgb, ConversionError, image_to_rgb
from drift_ros.ros.stamp import nanoseconds
from drift_ros.ros.stamp import text as stamp_text

IMAGE = 'sensor_msgs/msg/Image'
COMPRESSED = 'sensor_msgs/msg/CompressedImage'
CAMERA_INFO = 'sensor_msgs/msg/CameraInfo'

IMAGE_TOPIC = '/camera/image_raw'
INFO_TOPIC = '/camera/camera_info'
TRUTH_TOPIC = '/ground_truth/mask'


class BagError(DatasetError):
    """A bag cannot be used; the message names the cause and the remedy."""


def topics_of(path: Path) -> dict[str, str]:
    """Return the type of every topic of a bag that holds messages."""
    with open_bag(path) as reader:
        return {item.topic: item.msgtype for item in reader.connections if item.msgcount}


@contextlib.contextmanager
def open_bag(path: Path) -> Iterator[Reader]:
    """
    Open a bag for reading.

    Raises
    ------
    BagError
        That is not possible.

    """
    source = path
    if path.is_dir() and not (path / 'metadata.yaml').is_file():
        found = [item for item in sorted(path.glob('*')) if item.suffix in ('.mcap', '.db3')]
        source = found[0] if len(found) == 1 else path
    if source == path and (fault := fault_of(path)):
        raise BagError(fault)
    try:
        reader = Reader(source)
        reader.open()
    except Exception as error:  # the library's own, sqlite's, zstandard's, file system's
        if source != path:
            raise BagError(
                f'{path} has no metadata.yaml, and {source.name} has no end: recording was '
                f'interrupted ({error}). "mcap recover" or "ros2 bag reindex" may save what is '
                'in it'
            ) from error
        raise _unreadable(path, error) from error
    try:
        if source == path and (fault := settle(reader)):  # what is alone contradicts nothing
            raise BagError(fault)
        yield reader
    finally:
        reader.close()


def _unreadable(path: Path, error: Exception) -> BagError:
    return BagError(
        f'{path} cannot be read: {str(error) or type(error).__name__}. The bag is '
        'damaged or truncated (recording interrupted, disk full?); "mcap recover" or '
        '"ros2 bag reindex" may save its readable part'
    )


def read_messages(
    path: Path,
    topics: Mapping[str, Callable[[Any], np.ndarray] | None],
) -> Iterator[tuple[str, int, np.ndarray]]:
    """
    Read messages of some topics in recorded order.

    Parameters
    ----------
    path : Path
    topics : mapping
        The function that makes an array of a message, by topic; None: the array is empty.

    Yields
    ------
    topic, stamp, array
        The stamp is the header's, in nanoseconds.

    Raises
    ------
    BagError

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
            stamp = nanoseconds(message.header.stamp)
            convert = topics[connection.topic]
            try:
                array = convert(message) if convert else nothing
            except ConversionError as error:
                raise BagError(
                    f'{path}: message of {connection.topic} with stamp '
                    f'{stamp_text(stamp)}: {error}'
                ) from error
            yield connection.topic, stamp, array
        if count != promised:
            raise BagError(
                f'{path}: {count} messages could be read where its index promises '
                f'{promised}; the bag is truncated. "mcap recover" or "ros2 bag '
                'reindex" make a bag of the readable part'
            )


_DIGESTS: dict[tuple[str, tuple[str, ...]], str] = {}


def digest_of_messages(path: Path, topics: Iterable[str]) -> str:
    """Digest what was recorded on topics, however the bag stores it."""
    key = (digest_of_path(path), tuple(sorted(topics)))
    if key not in _DIGESTS:
        text = hashlib.blake2b(digest_size=16)
        with open_bag(path) as reader:
            connections = [item for item in reader.connections if item.topic in key[1]]
            for connection, _, data in reader.messages(connections=connections):
                text.update(f'{connection.topic} {connection.msgtype} {len(data)} '.encode())
                text.update(data)
        _DIGESTS[key] = combine(text.hexdigest())
    return _DIGESTS[key]


def frame_of(message: Any, greys: GreyRange | None = None) -> np.ndarray:
    """Decode an image message of either kind, of a stream's range: (H, W, 3) uint8 RGB."""
    return (compressed_to_rgb if hasattr(message, 'format') else image_to_rgb)(message, greys)


def make_header(store: Typestore, stamp: int) -> Any:
    """Make a std_msgs/Header of a stamp in nanoseconds."""
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
