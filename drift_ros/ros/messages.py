# SPDX-License-Identifier: Apache-2.0
"""
Results to messages, prompts from messages, and the definitions of message types.

Message packages are imported where messages are made: what a bag needs to know of a type,
:func:`register_type`, works without ROS.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import os
from pathlib import Path
import sys
from typing import Any, TYPE_CHECKING

from drift_ros.engine.errors import PromptError

if TYPE_CHECKING:
    from diagnostic_msgs.msg import DiagnosticStatus
    from drift_ros_msgs.msg import Prompt as PromptMessage
    from drift_ros_msgs.msg import TrackArray
    from rosbags.typesys.store import Typestore
    from std_msgs.msg import Header
    from vision_msgs.msg import Detection2DArray, LabelInfo

    from drift_ros.prompts.segmenter import Prompt
    from drift_ros.space.locate import Place


def label_info(names: Mapping[int, str], header: Header) -> LabelInfo:
    """
    Make the vision_msgs/LabelInfo that maps pixel values of the mask to names.

    Parameters
    ----------
    names : mapping of int to str
        Object id (1 to 65535) -> name.
    header : std_msgs/Header

    """
    from vision_msgs.msg import LabelInfo, VisionClass

    return LabelInfo(
        header=header,
        class_map=[VisionClass(class_id=int(key), class_name=names[key]) for key in sorted(names)],
    )


def detections(
    objects: Iterable[Any], header: Header, places: Mapping[int, Place] | None = None
) -> Detection2DArray:
    """
    Make a vision_msgs/Detection2DArray of the objects that are being tracked.

    ``id`` is the track id; the one hypothesis has the same id as ``class_id`` (look its name up
    in label_info) and the probability that it is there as ``score``. The box covers whole pixels:
    an object on columns 10 to 19 has ``size_x`` 10 and its centre at 15.0. Where it is in space,
    ``pose``, is all NaN unless known.

    Parameters
    ----------
    objects : iterable of ObjectEstimate
        Those without a box (occluded, lost) are left out.
    header : std_msgs/Header
        The input image's own.
    places : mapping of int to Place, optional
        Where objects are, by id.

    """
    from vision_msgs.msg import (
        BoundingBox2D,
        Detection2D,
        Detection2DArray,
        ObjectHypothesisWithPose,
    )

    from drift_ros.ros.space_messages import fill_pose

    result = Detection2DArray(header=header)
    for item in objects:
        if item.box is None:
            continue
        hypothesis = ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id = str(item.id)
        hypothesis.hypothesis.score = float(item.existence)
        fill_pose(hypothesis.pose, (places or {}).get(item.id))
        result.detections.append(
            Detection2D(
                header=header,
                id=str(item.id),
                results=[hypothesis],
                bbox=_set_box(BoundingBox2D(), item.box),
            )
        )
    return result


def tracks(
    objects: Iterable[Any], timings: Mapping[str, float], latency: int, header: Header
) -> TrackArray:
    """
    Make a drift_ros_msgs/TrackArray of all objects, those that are not seen included.

    Parameters
    ----------
    objects : iterable of ObjectEstimate
    timings : mapping of str to float
        Stage -> milliseconds.
    latency : int
        Nanoseconds from the image's stamp to now; may be negative.
    header : std_msgs/Header
        The input image's own.

    """
    from builtin_interfaces.msg import Duration
    from drift_ros_msgs.msg import Track, TrackArray
    from sensor_msgs.msg import RegionOfInterest

    whole = max(-(2**31), min(2**31 - 1, latency // 10**9))
    result = TrackArray(
        header=header,
        latency=Duration(sec=whole, nanosec=latency % 10**9),
        stages=list(timings),
        stage_times=[value / 1e3 for value in timings.values()],
    )
    for item in objects:
        x_min, y_min, x_max, y_max = item.box or (0, 0, 0, 0)
        result.tracks.append(
            Track(
                id=item.id,
                name=item.name,
                state=int(item.state),
                confidence=float(item.confidence),
                existence=float(item.existence),
                area=item.area,
                age=item.age,
                box=RegionOfInterest(
                    x_offset=x_min, y_offset=y_min, width=x_max - x_min, height=y_max - y_min
                ),
            )
        )
    return result


def _set_box(box: Any, corners: tuple[int, int, int, int]) -> Any:
    """Fill a vision_msgs/BoundingBox2D from x_min, y_min, x_max, y_max (maxima exclusive)."""
    x_min, y_min, x_max, y_max = corners
    box.center.position.x = (x_min + x_max) / 2.0
    box.center.position.y = (y_min + y_max) / 2.0
    box.size_x = float(x_max - x_min)
    box.size_y = float(y_max - y_min)
    return box


def read_prompts(prompts: Iterable[PromptMessage]) -> list[Prompt]:
    """
    Read what a person points at from drift_ros_msgs/Prompt.

    Raises
    ------
    PromptError
        A box does not have four numbers.

    """
    from drift_ros.prompts.segmenter import Prompt

    read, reasons = [], {}
    for index, item in enumerate(prompts):
        box = (*map(float, item.box),)
        if len(box) not in (0, 4):
            reasons[index] = (
                f'the box has {len(box)} numbers; it needs x_min, y_min, x_max, y_max, or none'
            )
            continue
        read.append(
            Prompt(
                (box[0], box[1], box[2], box[3]) if box else None,
                tuple((point.x, point.y, point.positive) for point in item.points),
                item.name,
                item.object_id,
            )
        )
    if reasons:
        raise PromptError.of(reasons)
    return read


def status_name(node: Any, prefix: str, part: str) -> str:
    """Name the status of a part of a node, of the camera whose topics have a prefix."""
    place = node.get_fully_qualified_name().lstrip('/')
    return f'{place}/{prefix}'.rstrip('/') + f': {part}'


def diagnostic(
    name: str, hardware_id: str, level: int, message: str, values: Mapping[str, object]
) -> DiagnosticStatus:
    """
    Make one diagnostic_msgs/DiagnosticStatus.

    Parameters
    ----------
    name, hardware_id, message : str
    level : int
        0 OK, 1 WARN, 2 ERROR, 3 STALE.
    values : mapping of str to object
        Shown as key and text, in this order; floats with three digits.

    """
    from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

    return DiagnosticStatus(
        level=bytes([level]),
        name=name,
        message=message,
        hardware_id=hardware_id,
        values=[
            KeyValue(key=key, value=f'{value:.3f}' if isinstance(value, float) else str(value))
            for key, value in values.items()
        ],
    )


def register_type(store: Typestore, name: str) -> None:
    """
    Add a message type and all it is made of to a type store, from the installed definitions.

    Parameters
    ----------
    store : rosbags.typesys.store.Typestore
    name : str
        Such as ``vision_msgs/msg/Detection2DArray``.

    Raises
    ------
    LookupError
        The package or the definition is not installed.

    """
    from rosbags.typesys import get_types_from_msg

    if name in store.fielddefs:
        return
    package, _, kind = name.split('/')
    found = get_types_from_msg(_definition(package, kind).read_text(encoding='utf-8'), name)
    for _, fields in found.values():
        for _, field in fields:
            _register_field(store, field)
    store.register(found)


def _definition(package: str, kind: str) -> Path:
    """Find a .msg file; ROS wheels in a virtual environment need no AMENT_PREFIX_PATH."""
    prefixes = [
        *filter(None, os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)),
        sys.prefix,
    ]
    checkout = Path(__file__).resolve().parents[2]
    for folder in (
        *(Path(prefix) / 'share' / package for prefix in prefixes),
        checkout / package,
        checkout / 'tools' / package,
    ):
        path = folder / 'msg' / f'{kind}.msg'
        if path.is_file():
            return path
    raise LookupError(
        f'{package}/msg/{kind} is not installed below {" or ".join(prefixes)}: '
        'source the workspace it is in'
    )


def _register_field(store: Typestore, field: Any) -> None:
    """Register what a field is made of: a name, or an array or sequence of one."""
    kind, what = field
    if kind.name == 'NAME':
        register_type(store, what)
    elif kind.name in ('ARRAY', 'SEQUENCE'):
        _register_field(store, what[0])
