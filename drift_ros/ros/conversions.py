# SPDX-License-Identifier: Apache-2.0
"""
ROS messages to arrays and back, without cv_bridge.

Why not cv_bridge: it does not exist outside a distribution's packages, and what is published in
its name elsewhere ignores row padding or reads 16-bit images as 8-bit ones. The functions here
honour ``step``, ``is_bigendian`` and every encoding they claim, and refuse the others by name.

Arrays handed to the engine are ``(H, W, 3)`` uint8 RGB frames and ``(H, W)`` integer label images
(0 = background). Everything a message can get wrong raises :class:`ConversionError`, whose text
names the cause and the remedy.
"""

from __future__ import annotations

import array
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:  # message packages are imported where messages are made: reading needs none
    from diagnostic_msgs.msg import DiagnosticStatus
    from drift_ros_msgs.msg import TrackArray
    from sensor_msgs.msg import CompressedImage, Image
    from std_msgs.msg import Header
    from vision_msgs.msg import Detection2DArray, LabelInfo


class ConversionError(ValueError):
    """A message that cannot become an array, or an array that cannot become a message."""


_Decoder = Callable[[np.ndarray], np.ndarray]


def _narrow(image: np.ndarray) -> np.ndarray:
    """Scale a 16-bit image of any shape to uint8, full range onto full range, rounded."""
    return ((image.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)


def _color(code: int) -> _Decoder:
    """Decoder that applies an OpenCV colour conversion to an 8-bit or 16-bit image."""

    def decode(image: np.ndarray) -> np.ndarray:
        if image.dtype == np.uint16:
            image = _narrow(image)
        return cv2.cvtColor(np.ascontiguousarray(image), code)

    return decode


def _identity(image: np.ndarray) -> np.ndarray:
    """Return RGB as it is (8 bits) or narrowed (16 bits); contiguous rows are not copied."""
    return np.ascontiguousarray(_narrow(image) if image.dtype == np.uint16 else image)


# encoding -> (numpy dtype, channels, decoder to RGB). OpenCV names a Bayer pattern by the second
# row's second and third pixel, so ROS's "rggb" is OpenCV's "BG".
_FRAME: dict[str, tuple[type, int, _Decoder]] = {
    'rgb8': (np.uint8, 3, _identity),
    'rgb16': (np.uint16, 3, _identity),
    'bgr8': (np.uint8, 3, _color(cv2.COLOR_BGR2RGB)),
    'bgr16': (np.uint16, 3, _color(cv2.COLOR_BGR2RGB)),
    '8UC3': (np.uint8, 3, _color(cv2.COLOR_BGR2RGB)),
    'rgba8': (np.uint8, 4, _color(cv2.COLOR_RGBA2RGB)),
    'rgba16': (np.uint16, 4, _color(cv2.COLOR_RGBA2RGB)),
    'bgra8': (np.uint8, 4, _color(cv2.COLOR_BGRA2RGB)),
    'bgra16': (np.uint16, 4, _color(cv2.COLOR_BGRA2RGB)),
    '8UC4': (np.uint8, 4, _color(cv2.COLOR_BGRA2RGB)),
    'mono8': (np.uint8, 1, _color(cv2.COLOR_GRAY2RGB)),
    'mono16': (np.uint16, 1, _color(cv2.COLOR_GRAY2RGB)),
    '8UC1': (np.uint8, 1, _color(cv2.COLOR_GRAY2RGB)),
    'yuv422': (np.uint8, 2, _color(cv2.COLOR_YUV2RGB_UYVY)),
    'uyvy': (np.uint8, 2, _color(cv2.COLOR_YUV2RGB_UYVY)),
    'yuv422_yuy2': (np.uint8, 2, _color(cv2.COLOR_YUV2RGB_YUYV)),
    'yuyv': (np.uint8, 2, _color(cv2.COLOR_YUV2RGB_YUYV)),
}
for _pattern, _code in (
    ('rggb', cv2.COLOR_BayerBG2RGB),
    ('bggr', cv2.COLOR_BayerRG2RGB),
    ('gbrg', cv2.COLOR_BayerGR2RGB),
    ('grbg', cv2.COLOR_BayerGB2RGB),
):
    _FRAME[f'bayer_{_pattern}8'] = (np.uint8, 1, _color(_code))
    _FRAME[f'bayer_{_pattern}16'] = (np.uint16, 1, _color(_code))

_LABELS: dict[str, type] = {
    'mono8': np.uint8,
    '8UC1': np.uint8,
    'mono16': np.uint16,
    '16UC1': np.uint16,
    '32SC1': np.int32,
}

FRAME_ENCODINGS: tuple[str, ...] = tuple(_FRAME)
"""Encodings :func:`image_to_rgb` reads."""
LABEL_ENCODINGS: tuple[str, ...] = tuple(_LABELS)
"""Encodings :func:`image_to_labels` reads."""


def _pixels(msg: Image, dtype: type, channels: int, what: str) -> np.ndarray:
    """
    View a message's pixels as ``(H, W)`` or ``(H, W, channels)`` in native byte order.

    No copy is made unless the bytes have to be swapped. Rows may be padded (``step``).
    """
    height, width, step = int(msg.height), int(msg.width), int(msg.step)
    if height == 0 or width == 0:
        raise ConversionError(
            f'the {what} is empty ({width}x{height}): publish an image with '
            'its width and height set'
        )
    item = np.dtype(dtype).itemsize
    row = width * channels * item
    if step < row:
        raise ConversionError(
            f'the {what} declares step {step}, but {width} pixels of encoding {msg.encoding!r} '
            f'need {row} bytes a row: correct step (or width) in the publisher'
        )
    size = len(msg.data)
    if size != step * height:
        kind = 'truncated' if size < step * height else 'too long'
        raise ConversionError(
            f'the {what} is {kind}: {size} bytes of data, step {step} x height {height} need '
            f'{step * height}; look for a publisher that writes a wrong step or a link that '
            'loses parts of messages'
        )
    # frombuffer keeps the message's own buffer alive; the rows' padding is sliced away
    rows = np.frombuffer(msg.data, dtype=np.uint8).reshape(height, step)[:, :row]
    if item > 1:
        if step % item:  # an odd padding cannot be viewed as wider items
            rows = np.ascontiguousarray(rows)
        wire: np.dtype = np.dtype(dtype).newbyteorder('>' if msg.is_bigendian else '<')
        rows = rows.view(wire)
        if not rows.dtype.isnative:
            rows = rows.astype(dtype)
    if channels == 1:
        return rows
    return np.lib.stride_tricks.as_strided(
        rows, (height, width, channels), (rows.strides[0], channels * item, item)
    )


def image_to_rgb(msg: Image) -> np.ndarray:
    """
    Read a camera frame.

    :param msg: sensor_msgs/Image in one of :data:`FRAME_ENCODINGS`. 16-bit images are scaled to
        8 bits over their full range; ``8UC3``/``8UC4`` are taken in OpenCV's order, blue first;
        YUV is ITU-R BT.601, limited range; Bayer is demosaiced bilinearly.
    :returns: ``(H, W, 3)`` uint8 RGB, C-contiguous; shares the message's memory for unpadded rgb8
    :raises ConversionError: unknown encoding, truncated or oversized data, impossible step, no
        pixels, odd width of a 4:2:2 image
    """
    try:
        dtype, channels, decode = _FRAME[msg.encoding]
    except KeyError:
        raise ConversionError(
            f'encoding {msg.encoding!r} is not supported for camera frames: convert to one of '
            f'{", ".join(FRAME_ENCODINGS)}'
        ) from None
    if channels == 2 and msg.width % 2:
        raise ConversionError(
            f'encoding {msg.encoding!r} stores pixels in pairs, but the width '
            f'is {msg.width}: publish an even width'
        )
    if msg.encoding.startswith('bayer') and (msg.width < 3 or msg.height < 3):
        raise ConversionError(
            f'a {msg.width}x{msg.height} Bayer image cannot be demosaiced: '
            '3x3 pixels at least are needed'
        )
    return decode(_pixels(msg, dtype, channels, 'image'))


def image_to_labels(msg: Image) -> np.ndarray:
    """
    Read a label image: 0 is background, every other value one object.

    :param msg: sensor_msgs/Image in one of :data:`LABEL_ENCODINGS`
    :returns: ``(H, W)`` uint8, uint16 or int32, values >= 0, C-contiguous
    :raises ConversionError: unknown encoding, negative labels, or anything wrong with the data
    """
    try:
        dtype = _LABELS[msg.encoding]
    except KeyError:
        raise ConversionError(
            f'encoding {msg.encoding!r} is not supported for label masks: use one channel of '
            f'whole numbers, one of {", ".join(LABEL_ENCODINGS)}'
        ) from None
    labels = np.ascontiguousarray(_pixels(msg, dtype, 1, 'mask'))
    if dtype is np.int32 and int(labels.min()) < 0:
        raise ConversionError(
            f'the mask holds the negative label {int(labels.min())}: use 0 for '
            'background and positive numbers for objects'
        )
    return labels


def compressed_to_rgb(msg: CompressedImage) -> np.ndarray:
    """
    Decode a JPEG or PNG frame.

    :param msg: sensor_msgs/CompressedImage; ``format`` is only used in messages to people, the
        data say themselves what they are
    :returns: ``(H, W, 3)`` uint8 RGB, C-contiguous
    :raises ConversionError: no data, or data OpenCV cannot decode (truncated, another codec)
    """
    data = np.frombuffer(msg.data, dtype=np.uint8)
    if not data.size:
        raise ConversionError('the compressed image holds no data: check the publisher')
    # a truncated JPEG decodes into a picture with a grey end: its end marker tells
    if data[:2].tobytes() == b'\xff\xd8' and b'\xff\xd9' not in data[-1024:].tobytes():
        raise ConversionError(
            f'the JPEG image is truncated ({data.size} bytes, no end marker): '
            'look for a link that loses parts of messages'
        )
    if data[:4].tobytes() == b'\x89PNG' and b'IEND' not in data[-64:].tobytes():
        raise ConversionError(
            f'the PNG image is truncated ({data.size} bytes, no end chunk): '
            'look for a link that loses parts of messages'
        )
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
    except cv2.error:
        image = None
    if image is None:
        raise ConversionError(
            f'the compressed image (format {msg.format!r}, {data.size} bytes) cannot be decoded: '
            'it is damaged or neither JPEG nor PNG; set the publisher to jpeg or png'
        )
    return image


def _fill(msg: Image, pixels: np.ndarray, encoding: str, header: Header) -> Image:
    msg.header = header
    msg.height, msg.width = pixels.shape[:2]
    msg.encoding = encoding
    msg.is_bigendian = 0
    pixels = np.ascontiguousarray(pixels)
    if pixels.dtype.itemsize > 1:  # on a big-endian machine too
        pixels = pixels.astype(pixels.dtype.newbyteorder('<'), copy=False)
    msg.step = int(pixels.strides[0])
    data = array.array('B')  # the one type rclpy takes over without looking at each byte
    data.frombytes(pixels.reshape(-1).view(np.uint8).data)
    msg.data = data
    return msg


def rgb_to_image(frame: np.ndarray, header: Header) -> Image:
    """
    Make a sensor_msgs/Image (rgb8) of an ``(H, W, 3)`` uint8 RGB frame.

    :raises ConversionError: another shape or dtype
    """
    from sensor_msgs.msg import Image

    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ConversionError(
            f'expected an (H, W, 3) uint8 frame, got {frame.shape} {frame.dtype}'
        )
    return _fill(Image(), frame, 'rgb8', header)


def rgb_to_compressed(frame: np.ndarray, header: Header, quality: int = 90) -> CompressedImage:
    """
    Make a JPEG sensor_msgs/CompressedImage of an ``(H, W, 3)`` uint8 RGB frame.

    :param quality: JPEG quality, 1 to 100
    """
    from sensor_msgs.msg import CompressedImage

    _, data = cv2.imencode(
        '.jpg', cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, int(quality)]
    )
    payload = array.array('B')
    payload.frombytes(data.reshape(-1).data)
    return CompressedImage(header=header, format='rgb8; jpeg compressed bgr8', data=payload)


def labels_to_image(labels: np.ndarray, header: Header) -> Image:
    """
    Make a sensor_msgs/Image of an ``(H, W)`` label image.

    uint8 becomes mono8, uint16 becomes mono16 (little-endian).

    :raises ConversionError: another shape or dtype
    """
    from sensor_msgs.msg import Image

    encodings = {np.dtype(np.uint8): 'mono8', np.dtype(np.uint16): 'mono16'}
    if labels.ndim != 2 or labels.dtype not in encodings:
        raise ConversionError(
            f'expected an (H, W) uint8 or uint16 label image, got {labels.shape} {labels.dtype}'
        )
    return _fill(Image(), labels, encodings[labels.dtype], header)


def label_info(names: Mapping[int, str], header: Header) -> LabelInfo:
    """
    Make the vision_msgs/LabelInfo that maps pixel values of the mask to names.

    :param names: object id (1 to 65535) -> name
    """
    from vision_msgs.msg import LabelInfo, VisionClass

    return LabelInfo(
        header=header,
        class_map=[VisionClass(class_id=int(key), class_name=names[key]) for key in sorted(names)],
    )


def detections(objects: Iterable[Any], header: Header) -> Detection2DArray:
    """
    Make a vision_msgs/Detection2DArray of the objects that are being tracked.

    :param objects: engine ``ObjectEstimate``; those without a box (occluded, lost) are left out
    :param header: the input image's own header

    ``id`` is the track id; the one hypothesis has the same id as ``class_id`` (look its name up
    in label_info) and the confidence as ``score``. The box covers whole pixels: an object on
    columns 10 to 19 has ``size_x`` 10 and its centre at 15.0.
    """
    from vision_msgs.msg import (
        BoundingBox2D,
        Detection2D,
        Detection2DArray,
        ObjectHypothesisWithPose,
    )

    result = Detection2DArray(header=header)
    for item in objects:
        if item.box is None:
            continue
        hypothesis = ObjectHypothesisWithPose()
        hypothesis.hypothesis.class_id = str(item.id)
        hypothesis.hypothesis.score = float(item.confidence)
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

    :param objects: engine ``ObjectEstimate``
    :param timings: stage -> milliseconds
    :param latency: nanoseconds from the image's stamp to now; may be negative
    :param header: the input image's own header
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
                area=item.area,
                age=item.age,
                box=RegionOfInterest(
                    x_offset=x_min, y_offset=y_min, width=x_max - x_min, height=y_max - y_min
                ),
            )
        )
    return result


def _set_box(box: Any, corners: tuple[int, int, int, int]) -> Any:
    """Fill a vision_msgs/BoundingBox2D from x_min, y_min, x_max, y_max (max exclusive)."""
    x_min, y_min, x_max, y_max = corners
    box.center.position.x = (x_min + x_max) / 2.0
    box.center.position.y = (y_min + y_max) / 2.0
    box.size_x = float(x_max - x_min)
    box.size_y = float(y_max - y_min)
    return box


def diagnostic(
    name: str, hardware_id: str, level: int, message: str, values: Mapping[str, object]
) -> DiagnosticStatus:
    """
    Make one diagnostic_msgs/DiagnosticStatus.

    :param level: 0 OK, 1 WARN, 2 ERROR, 3 STALE
    :param values: shown as key and text, in this order; floats with three digits
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
