# SPDX-License-Identifier: Apache-2.0
"""Cameras and depth from messages, places to messages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import math
from typing import Any, TYPE_CHECKING

import numpy as np

from drift_ros.media.overlay import color
from drift_ros.ros import conversions
from drift_ros.space.camera import Camera
from drift_ros.space.depth import decode_compressed, metres, UNITS
from drift_ros.space.locate import Place, UNKNOWN

if TYPE_CHECKING:
    from geometry_msgs.msg import PoseStamped, PoseWithCovariance, Vector3Stamped
    from sensor_msgs.msg import CameraInfo, CompressedImage, Image
    from std_msgs.msg import Header
    from tf2_msgs.msg import TFMessage
    from vision_msgs.msg import Detection3DArray
    from visualization_msgs.msg import MarkerArray

SEEN = 1
"""Value of ObjectState.TRACKING and of Track.TRACKING."""


def read_camera(info: CameraInfo, rectified: bool) -> Camera:
    """
    Read a sensor_msgs/CameraInfo; binning and the region of interest count.

    Raises
    ------
    CameraError

    """
    size, matrix, projection = (info.width, info.height), list(info.k), list(info.p)
    roi, bins = info.roi, (max(1, info.binning_x), max(1, info.binning_y))
    if roi.width and roi.height:
        size = (roi.width, roi.height)
        for values, width in ((matrix, 3), (projection, 4)):
            values[2] -= roi.x_offset * bool(values[0])
            values[width + 2] -= roi.y_offset * bool(values[width + 1])
    if bins != (1, 1):
        size = (size[0] // bins[0], size[1] // bins[1])
        for values, width in ((matrix, 3), (projection, 4)):
            for row, factor in enumerate(bins):
                # pixel (0, 0) is a middle: half a pixel is binned as well
                values[row * width + row] /= factor
                if values[row * width + row]:
                    values[row * width + 2] = (values[row * width + 2] + 0.5) / factor - 0.5
    return Camera.of(
        size, matrix, list(info.d), projection, str(info.distortion_model), rectified=rectified
    )


def read_depth(message: Image | CompressedImage, scale: float = 0.0) -> np.ndarray:
    """
    Read a depth image, raw or of compressedDepth: (H, W) float32 metres, NaN where not measured.

    Raises
    ------
    ConversionError, DepthError

    """
    if hasattr(message, 'encoding'):
        if message.encoding not in UNITS:
            raise conversions.ConversionError(
                f'encoding {message.encoding!r} is not supported for depth: publish one of '
                f'{", ".join(UNITS)}'
            )
        kind = np.float32 if message.encoding == '32FC1' else np.uint16
        return metres(conversions.pixels(message, kind, 1, 'depth'), message.encoding, scale)
    return metres(*decode_compressed(message.data, message.format), scale)


def fill_pose(pose: PoseWithCovariance, place: Place | None) -> PoseWithCovariance:
    """
    Say where an object is.

    What is not known is NaN. An orientation is not measured: it is that of the camera, with
    variances of :data:`UNKNOWN`.
    """
    if place is None:
        where, pose.covariance = pose.pose, np.full(36, math.nan)
        for part in ('x', 'y', 'z'):
            setattr(where.position, part, math.nan)
        for part in ('x', 'y', 'z', 'w'):
            setattr(where.orientation, part, math.nan)
        return pose
    _set(pose.pose.position, place.position)
    pose.pose.orientation.w = 1.0
    covariance = np.eye(6) * UNKNOWN
    covariance[:3, :3] = place.covariance
    pose.covariance = covariance.ravel()
    return pose


def _set(point: Any, values: np.ndarray) -> Any:
    point.x, point.y, point.z = map(float, values)
    return point


def detections_3d(
    objects: Iterable[Any], places: Mapping[int, Place], header: Header
) -> Detection3DArray:
    """
    Make a vision_msgs/Detection3DArray; ids as in the Detection2DArray.

    Parameters
    ----------
    objects : iterable of ObjectEstimate
    places : mapping of int to Place
        By id; objects without are left out.
    header : std_msgs/Header
        The image's own.

    """
    from vision_msgs.msg import Detection3D, Detection3DArray, ObjectHypothesisWithPose

    result = Detection3DArray(header=header)
    for item in objects:
        place = places.get(item.id)
        if place is None:
            continue
        hypothesis = ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id = str(item.id)
        hypothesis.hypothesis.score = float(item.existence)
        fill_pose(hypothesis.pose, place)
        found = Detection3D(header=header, id=str(item.id), results=[hypothesis])
        found.bbox.center = hypothesis.pose.pose
        _set(found.bbox.size, place.size)
        result.detections.append(found)
    return result


def pose(place: Place, header: Header) -> PoseStamped:
    """Make a geometry_msgs/PoseStamped of a place; its orientation is that of the camera."""
    from geometry_msgs.msg import PoseStamped

    result = PoseStamped(header=header)
    _set(result.pose.position, place.position)
    result.pose.orientation.w = 1.0
    return result


def bearing(place: Place, header: Header) -> Vector3Stamped:
    """Make a geometry_msgs/Vector3Stamped, a unit vector, of the way to a place."""
    from geometry_msgs.msg import Vector3Stamped

    result = Vector3Stamped(header=header)
    _set(result.vector, place.bearing)
    return result


def transforms(places: Mapping[int, Place], prefix: str, header: Header) -> TFMessage:
    """Make a tf2_msgs/TFMessage of the places whose distance is known."""
    from geometry_msgs.msg import TransformStamped
    from tf2_msgs.msg import TFMessage

    result = TFMessage()
    for number, place in places.items():
        if place.known:
            item = TransformStamped(header=header, child_frame_id=f'{prefix}{number}')
            _set(item.transform.translation, place.position)
            item.transform.rotation.w = 1.0
            result.transforms.append(item)
    return result


def markers(objects: Iterable[Any], places: Mapping[int, Place], header: Header) -> MarkerArray:
    """
    Make a visualization_msgs/MarkerArray: a box and a name for each place, an arrow for a bearing.

    It begins by deleting what was there before.
    """
    from visualization_msgs.msg import Marker, MarkerArray

    result = MarkerArray(markers=[Marker(header=header, action=Marker.DELETEALL)])
    for item in objects:
        place = places.get(item.id)
        if place is None:
            continue
        red, green, blue = (value / 255 for value in color(item.id))
        body = Marker(header=header, ns='objects', id=item.id, action=Marker.ADD)
        body.color.r, body.color.g, body.color.b, body.color.a = red, green, blue, 0.5
        body.pose.orientation.w = 1.0
        if place.known:
            body.type = Marker.CUBE
            _set(body.pose.position, place.position)
            _set(body.scale, np.maximum(place.size, 0.01))
        else:
            from geometry_msgs.msg import Point

            body.type = Marker.ARROW
            body.points = [Point(), _set(Point(), place.position)]
            _set(body.scale, np.array([0.02, 0.04, 0.08]))
        text = Marker(header=header, ns='names', id=item.id, action=Marker.ADD)
        text.type, text.scale.z = Marker.TEXT_VIEW_FACING, 0.1
        text.color.r = text.color.g = text.color.b = text.color.a = 1.0
        text.pose.orientation.w = 1.0
        above = place.position - np.array([0.0, place.size[1] / 2 + 0.1, 0.0])
        _set(text.pose.position, above)
        distance = f'{np.linalg.norm(place.position):.2f} m' if place.known else 'distance unknown'
        text.text = f'{item.name or item.id}: {distance}'
        result.markers += [body, text]
    return result
