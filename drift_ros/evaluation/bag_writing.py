# SPDX-License-Identifier: Apache-2.0
"""Make bags of datasets and videos, to evaluate on and to play."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
import shutil
from typing import Any, NamedTuple

import cv2
import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
from rosbags.typesys.store import Typestore

from drift_ros.evaluation.bag_files import (
    BagError,
    CAMERA_INFO,
    COMPRESSED,
    IMAGE,
    image_message,
    IMAGE_TOPIC,
    INFO_TOPIC,
    make_header,
    TRUTH_TOPIC,
)
from drift_ros.evaluation.datasets import as_truth, DavisSequence
from drift_ros.media.labels import LabelRule
from drift_ros.media.video import VideoDamage, VideoReader

_START = 1_600_000_000 * 10**9
"""Stamp of the first frame of a converted bag: fixed, so that conversion is reproducible."""


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

    Parameters
    ----------
    sequence : DavisSequence
    path : str or Path
    storage : str
        Of :data:`STORAGES`.
    compressed : bool
        Keep JPEG and PNG files as they are (sensor_msgs/CompressedImage); decoded, they equal the
        raw frames bit for bit.
    rate : float
        Hz.
    progress : callable
        Called with the number of frames done since the last call.

    Returns
    -------
    Path
        Of the bag. True masks are mono8.

    """
    if not rate > 0:
        raise BagError(f'the rate is {rate} Hz; it must be above 0')

    def items() -> Iterator[_Item]:
        for number, (frame, file) in enumerate(zip(sequence, sequence.images, strict=True)):
            kind = {'.jpg': 'jpeg', '.jpeg': 'jpeg', '.png': 'png'}.get(file.suffix.lower())
            data = file.read_bytes() if compressed and kind else None
            yield _Item(number / rate, frame.image, data, kind or 'png', frame.truth)

    return _write_bag(path, items(), storage, compressed, progress)


def bag_from_video(
    reader: VideoReader,
    path: str | Path,
    *,
    storage: str = 'mcap',
    compressed: bool = False,
    rate: float | None = None,
    masks: Path | None = None,
    progress: Callable[[int], None] = lambda count: None,
) -> Path:
    """
    Make a bag of a video: images and camera_info.

    Parameters
    ----------
    reader : VideoReader
    path : str or Path
    storage : str
        Of :data:`STORAGES`.
    compressed : bool
        Write PNG, which loses nothing.
    rate : float, optional
        Hz. None: stamps are the video's own times.
    masks : Path, optional
        Folder of label PNG files named by frame number (00000.png), put on the ground-truth
        topic; a single file is the mask of frame 0.
    progress : callable

    Returns
    -------
    Path

    Raises
    ------
    VideoDamage
        The video is damaged; the bag holds what could be decoded.

    """
    rule = LabelRule()
    damage: list[VideoDamage] = []

    def truth_of(number: int) -> np.ndarray | None:
        if masks is None:
            return None
        file = masks / f'{number:05d}.png' if masks.is_dir() else masks
        if (masks.is_file() and number) or not file.is_file():
            return None
        return as_truth(rule.read(file), str(file))

    def items() -> Iterator[_Item]:
        try:
            for number, frame in reader.numbered():
                seconds = number / rate if rate else float(reader.times[number])
                yield _Item(seconds, frame, None, 'png', truth_of(number))
        except VideoDamage as error:  # what there is of the video is kept
            damage.append(error)

    made = _write_bag(path, items(), storage, compressed, progress)
    if damage:
        raise damage[0]
    return made


class _Item(NamedTuple):
    """One frame of a bag to be."""

    seconds: float
    image: np.ndarray
    data: bytes | None
    """The compressed picture, where it is there already."""
    kind: str
    truth: np.ndarray | None


def _write_bag(
    path: str | Path,
    items: Iterable[_Item],
    storage: str,
    compressed: bool,
    progress: Callable[[int], None],
) -> Path:
    path = Path(path)
    if path.exists():
        raise BagError(f'{path} exists already: choose another output or remove it')
    path.parent.mkdir(parents=True, exist_ok=True)
    store = get_typestore(Stores.ROS2_KILTED)
    image_topic = f'{IMAGE_TOPIC}/compressed' if compressed else IMAGE_TOPIC
    try:
        with Writer(path, version=9, storage_plugin=STORAGES[storage]) as writer:
            kinds = {
                image_topic: COMPRESSED if compressed else IMAGE,
                INFO_TOPIC: CAMERA_INFO,
                TRUTH_TOPIC: IMAGE,
            }
            topics: dict[str, Any] = {}

            def write(topic: str, stamp: int, message: Any) -> None:
                if topic not in topics:  # none without a message: it would be taken for the truth
                    topics[topic] = writer.add_connection(topic, kinds[topic], typestore=store)
                writer.write(topics[topic], stamp, store.serialize_cdr(message, kinds[topic]))

            for seconds, image, data, kind, truth in items:
                stamp = _START + round(seconds * 1e9)
                header = make_header(store, stamp)
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
