# SPDX-License-Identifier: Apache-2.0
"""Results as a bag: the evaluated input with what the engines said, for Foxglove and RViz."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
import heapq
from pathlib import Path
import shutil
from typing import Any

import numpy as np
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores
from rosbags.typesys.store import Typestore

from drift_ros.engine.estimates import ObjectEstimate
from drift_ros.engine.table import ObjectState
from drift_ros.evaluation.bag_files import (
    BagError,
    CAMERA_INFO,
    frame_of,
    IMAGE,
    image_message,
    open_bag,
)
from drift_ros.evaluation.bags import BagSequence
from drift_ros.evaluation.protocol import Track
from drift_ros.evaluation.results import JobResult
from drift_ros.media.greys import GreyRange
from drift_ros.media.labels import read_labels
from drift_ros.media.overlay import draw
from drift_ros.ros.messages import register_type
from drift_ros.ros.stamp import nanoseconds

DETECTIONS = 'vision_msgs/msg/Detection2DArray'
TRACKS = 'drift_ros_msgs/msg/TrackArray'
OUTPUTS = {'mask': IMAGE, 'detections': DETECTIONS, 'tracks': TRACKS, 'overlay': IMAGE}
"""Topics of an engine, below its name; as the tracker node's."""


def write_result_bag(
    sequence: BagSequence, results: Sequence[JobResult], folder: Path, path: str | Path
) -> Path:
    """
    Write the evaluated messages of a bag again (mcap), with the results beside them.

    Images, true masks, seeds and camera_info keep their bytes, topics and times. Every engine
    has the topics of :data:`OUTPUTS` below ``/<engine>``; object ids are the labels of the
    seed. Each message carries the header of its image. Its time in the bag is that of the image;
    of a live run, later by what the mask took to arrive, and there are only those that arrived.

    Parameters
    ----------
    sequence : BagSequence
    results : sequence of JobResult
    folder : Path
        Holds the masks.
    path : str or Path
        An existing bag is replaced.

    Raises
    ------
    BagError

    """
    path = Path(path)
    if path.exists():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    store = get_typestore(Stores.ROS2_KILTED)
    try:
        for kind in OUTPUTS.values():
            register_type(store, kind)
    except LookupError as error:
        raise BagError(f'{path} cannot be written: {error}') from error
    topics = [_topic(row.engine) for row in results]
    for topic in topics:
        if topics.count(topic) > 1:
            raise BagError(f'two engines would write to the topic {topic}: name them LABEL=NAME')
    numbers = {stamp: number for number, stamp in enumerate(sequence.stamps)}
    given = (sequence.image_topic, sequence.truth_topic, sequence.seed_topic)
    with (
        open_bag(sequence.path) as reader,
        Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as writer,
    ):
        connections = [
            item
            for item in reader.connections
            if item.topic in given or item.msgtype == CAMERA_INFO
        ]
        copies = {
            item.topic: writer.add_connection(
                item.topic,
                item.msgtype,
                typestore=store,
                offered_qos_profiles=item.ext.offered_qos_profiles,
            )
            for item in connections
        }
        outputs = {
            (row.engine, name): writer.add_connection(f'{topic}/{name}', kind, typestore=store)
            for row, topic in zip(results, topics, strict=True)
            for name, kind in OUTPUTS.items()
        }
        said = [_Said(row, folder) for row in results]
        waiting: list[tuple[int, int, Any, bytes]] = []

        def flush(until: float) -> None:
            while waiting and waiting[0][0] <= until:
                time, _, connection, data = heapq.heappop(waiting)
                writer.write(connection, time, data)

        count, done = 0, set[int]()
        greys = GreyRange()
        for connection, time, data in reader.messages(connections=connections):
            message = store.deserialize_cdr(data, connection.msgtype)
            number = numbers.get(nanoseconds(message.header.stamp))
            if number is None:
                continue
            flush(time)
            writer.write(copies[connection.topic], time, data)
            if connection.topic != sequence.image_topic or number in done:
                continue
            done.add(number)
            image = frame_of(message, greys)
            for item in said:
                for name, delay, output in item.messages(store, message.header, number, image):
                    count += 1
                    data = store.serialize_cdr(output, OUTPUTS[name])
                    heapq.heappush(
                        waiting, (time + delay, count, outputs[item.engine, name], data)
                    )
        flush(float('inf'))
    return path


class _Said:
    """What an engine said, by frame."""

    def __init__(self, row: JobResult, folder: Path) -> None:
        self.engine = row.engine
        live = row.live
        kind = 'masks' if live is None else 'delivered'
        self._folder = folder / kind / row.engine / row.sequence
        # frame -> seconds it took, and objects
        self._found: dict[int, tuple[float, tuple[Track, ...]]] = {}
        self._live = live is not None
        if live is None:
            times = [0.0] * (len(row.tracks) - len(row.milliseconds)) + (
                row.milliseconds / 1e3
            ).tolist()
            self._found = dict(enumerate(zip(times, row.tracks, strict=True)))
        else:
            for index, at, tracks in live['arrivals']:
                self._found[index] = (
                    at - live['published'][index],
                    tuple(map(Track.from_list, tracks)),
                )

    def messages(
        self, store: Typestore, header: Any, number: int, image: np.ndarray
    ) -> Iterator[tuple[str, int, Any]]:
        """Give topic, delay in nanoseconds and message of a frame."""
        if number not in self._found:
            return
        seconds, tracks = self._found[number]
        labels = read_labels(self._folder / f'{number:05d}.png', plain=False)
        objects = [
            ObjectEstimate(
                id=item.label,
                name='',
                state=ObjectState(item.state),
                confidence=item.confidence,
                # baselines know no more of that than of their pixels
                existence=item.confidence if np.isnan(item.existence) else item.existence,
                box=item.box,
                area=item.area,
                age=item.age,
            )
            for item in tracks
        ]
        delay = round(seconds * 1e9) if self._live else 0
        for name, message in (
            ('mask', image_message(store, header, labels)),
            ('detections', detections(store, header, objects)),
            ('tracks', track_array(store, header, objects, seconds)),
            ('overlay', image_message(store, header, draw(image, labels, objects))),
        ):
            yield name, delay, message


def detections(store: Typestore, header: Any, objects: Sequence[ObjectEstimate]) -> Any:
    """Make a vision_msgs/Detection2DArray as :func:`drift_ros.ros.messages.detections`."""

    def make(name: str, *fields: Any) -> Any:
        return store.types[name](*fields)

    unknown = float('nan')
    point = make('geometry_msgs/msg/Point', *[unknown] * 3)
    pose = make(
        'geometry_msgs/msg/Pose', point, make('geometry_msgs/msg/Quaternion', *[unknown] * 4)
    )
    pose = make('geometry_msgs/msg/PoseWithCovariance', pose, np.full(36, unknown))
    found = []
    for item in objects:
        if item.box is None:
            continue
        x_min, y_min, x_max, y_max = item.box
        hypothesis = make('vision_msgs/msg/ObjectHypothesis', str(item.id), float(item.existence))
        center = make(
            'vision_msgs/msg/Pose2D',
            make('vision_msgs/msg/Point2D', (x_min + x_max) / 2.0, (y_min + y_max) / 2.0),
            0.0,
        )
        box = make(
            'vision_msgs/msg/BoundingBox2D', center, float(x_max - x_min), float(y_max - y_min)
        )
        found.append(
            make(
                'vision_msgs/msg/Detection2D',
                header,
                [make('vision_msgs/msg/ObjectHypothesisWithPose', hypothesis, pose)],
                box,
                str(item.id),
            )
        )
    return make(DETECTIONS, header, found)


def track_array(
    store: Typestore, header: Any, objects: Sequence[ObjectEstimate], seconds: float
) -> Any:
    """Make a drift_ros_msgs/TrackArray; ``seconds`` is the latency, or the time of the step."""
    whole, rest = divmod(round(seconds * 1e9), 10**9)
    found = []
    for item in objects:
        x_min, y_min, x_max, y_max = item.box or (0, 0, 0, 0)
        box = store.types['sensor_msgs/msg/RegionOfInterest'](
            x_min, y_min, y_max - y_min, x_max - x_min, False
        )
        found.append(
            store.types['drift_ros_msgs/msg/Track'](
                item.id,
                item.name,
                int(item.state),
                float(item.confidence),
                float(item.existence),
                item.area,
                item.age,
                box,
            )
        )
    return store.types[TRACKS](
        header,
        found,
        store.types['builtin_interfaces/msg/Duration'](whole, rest),
        ['total'],
        np.array([seconds], np.float32),
    )


def _topic(engine: str) -> str:
    """Turn an engine's label into a valid topic."""
    name = ''.join(char if char.isalnum() and char.isascii() else '_' for char in engine)
    return f'/{"e" if name[0].isdigit() else ""}{name}'
