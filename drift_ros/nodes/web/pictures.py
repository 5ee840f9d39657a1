# SPDX-License-Identifier: Apache-2.0
"""Pictures as they go over the wire: JPEG, outlines of masks, thumbnails. Imports no ROS."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
import json
import struct
from typing import Any

import cv2
import numpy as np

from drift_ros.media.overlay import color
from drift_ros.nodes.web.scene import Shown
from drift_ros.ros import conversions

STATES = {1: 'tracking', 2: 'occluded', 3: 'lost'}
"""Words for the values of drift_ros_msgs/Track.state."""
_SMALLEST = 6.0
"""Pieces of a mask of less pixels are not drawn."""
_THUMBNAIL = 96


@dataclass(frozen=True)
class Level:
    """How well a picture is shown: its longer side in pixels at most, and JPEG's quality."""

    side: int
    quality: int


LEVELS = (Level(1280, 82), Level(960, 72), Level(640, 62), Level(480, 50), Level(320, 40))
"""From the finest to the coarsest."""


def payload(shown: Shown, level: int) -> bytes:
    """
    Make the message of a picture: 4 bytes with the head's length, its JSON, the JPEG.

    Parameters
    ----------
    shown : Shown
    level : int
        Place in :data:`LEVELS`.

    Returns
    -------
    bytes
        The length is an unsigned little-endian integer. The JSON has ``stamp`` (nanoseconds as
        text, they do not fit into a number of JavaScript), ``width`` and ``height`` of the
        camera's frame, ``tracked``, ``objects``, ``masks`` (see :func:`outlines`, by id) and
        ``latency`` in seconds.

    Raises
    ------
    drift_ros.ros.conversions.ConversionError
        The frame is no picture.

    """
    data, (width, height) = jpeg(shown.frame.message, LEVELS[level])
    head: dict[str, Any] = {
        'stamp': str(shown.frame.stamp),
        'width': width,
        'height': height,
        'tracked': shown.result is not None,
        'objects': objects(shown),
        'masks': {},
        'latency': None,
        'level': level,
    }
    if shown.result is not None:
        labels, latency = shown.result.labels, shown.result.tracks.latency
        head['latency'] = latency.sec + latency.nanosec / 1e9
        live = {item['id'] for item in head['objects']}
        head['masks'] = {
            str(number): outlines(labels == number)
            for number in np.unique(labels).tolist()
            if number in live
        }
    text = json.dumps(head, separators=(',', ':')).encode()
    return struct.pack('<I', len(text)) + text + data


def jpeg(message: Any, level: Level) -> tuple[bytes, tuple[int, int]]:
    """
    Make a JPEG of a camera message; a compressed one goes on as it is where it may.

    Returns
    -------
    tuple
        The data, and (width, height) of the frame before it was reduced.

    """
    data = getattr(message, 'data', b'')
    if not hasattr(message, 'encoding') and bytes(data[:2]) == b'\xff\xd8':
        frame = conversions.to_rgb(message)  # says what is wrong with it, and how large it is
        # a browser may turn what says how it was held; here it is as the tracker reads it
        turned = b'Exif' in bytes(data[:4096])
        # nor would it put the colours right that were compressed in another order, or as a mosaic
        turned = turned or 'bayer' in message.format or 'compressed rgb' in message.format
        if level is LEVELS[0] and max(frame.shape[:2]) <= level.side and not turned:
            return bytes(data), (frame.shape[1], frame.shape[0])
    else:
        frame = conversions.to_rgb(message)
    size = (frame.shape[1], frame.shape[0])
    return _encode(_reduced(frame, level.side), level.quality), size


def _reduced(frame: np.ndarray, side: int) -> np.ndarray:
    scale = side / max(frame.shape[:2])
    if scale >= 1:
        return frame
    size = (max(round(frame.shape[1] * scale), 1), max(round(frame.shape[0] * scale), 1))
    return cv2.resize(frame, size, interpolation=cv2.INTER_AREA)


def _encode(frame: np.ndarray, quality: int) -> bytes:
    _, data = cv2.imencode(
        '.jpg', cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    return data.tobytes()


def objects(shown: Shown) -> list[dict[str, Any]]:
    """List all objects that are live, also those that no frame has shown yet."""
    tracks = [] if shown.result is None else shown.result.tracks.tracks
    names = shown.names
    found = [
        {
            'id': int(item.id),
            'name': (names or {}).get(item.id, item.name),
            'color': css(item.id),
            'state': STATES.get(item.state, 'unknown'),
            'confidence': round(float(item.confidence), 3),
            'existence': round(float(item.existence), 3),
            'area': int(item.area),
            'age': int(item.age),
            'box': [
                int(item.box.x_offset),
                int(item.box.y_offset),
                int(item.box.x_offset + item.box.width),
                int(item.box.y_offset + item.box.height),
            ]
            if item.box.width
            else None,
        }
        for item in tracks
        if names is None or item.id in names
    ]
    known = {item['id'] for item in found}
    for number in sorted(set(names or {}) - known):
        found.append({'id': number, 'name': (names or {})[number], 'color': css(number)})
        found[-1] |= {'state': 'waiting', 'confidence': None, 'existence': None}
        found[-1] |= {'area': 0, 'age': 0, 'box': None}
    return found


def css(object_id: int) -> str:
    """Give an object's colour as style sheets write it: #rrggbb."""
    return '#{:02x}{:02x}{:02x}'.format(*color(object_id))


def outlines(mask: np.ndarray) -> list[list[int]]:
    """
    Give the outlines of a mask (H, W) bool, holes included; to be filled by even and odd.

    Returns
    -------
    list
        Of polygons [x, y, x, y, ...], in pixels whose upper left corner is (0, 0).

    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    if not width:
        return []
    part = np.ascontiguousarray(mask[y : y + height, x : x + width]).astype(np.uint8)
    # at twice the size, contours run along the pixels' borders instead of through their centres
    part = cv2.resize(part, None, fx=2, fy=2, interpolation=cv2.INTER_NEAREST)
    found, _ = cv2.findContours(part, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    drawn = []
    for contour in found:
        if len(contour) < 3 or cv2.contourArea(contour) < 4 * _SMALLEST:
            continue
        contour = cv2.approxPolyDP(contour, 1.5, True)
        if len(contour) >= 3:
            points = np.round((contour.reshape(-1, 2) + 0.5) / 2).astype(int) + (x, y)
            drawn.append(points.ravel().tolist())
    return drawn


def thumbnail(frame: np.ndarray, mask: np.ndarray) -> bytes:
    """Make a small JPEG of what a mask (H, W) bool marks in a frame (H, W, 3); b'' of nothing."""
    if mask.shape != frame.shape[:2]:
        return b''
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    if not width:
        return b''
    side = 1.2 * max(width, height) / 2
    middle_x, middle_y = x + width / 2, y + height / 2
    rows = slice(max(round(middle_y - side), 0), round(middle_y + side) + 1)
    columns = slice(max(round(middle_x - side), 0), round(middle_x + side) + 1)
    part, inside = frame[rows, columns], mask[rows, columns]
    dimmed = np.where(inside[..., None], part, (part * 0.4).astype(np.uint8))
    return _encode(_reduced(dimmed, _THUMBNAIL), 80)


def thumbnails(frame: np.ndarray, labels: np.ndarray, wanted: set[int]) -> Mapping[int, bytes]:
    """Make small pictures of those objects of a label image (H, W) that are wanted."""
    made = {number: thumbnail(frame, labels == number) for number in wanted}
    return {number: data for number, data in made.items() if data}
