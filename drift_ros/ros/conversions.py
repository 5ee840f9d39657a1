# SPDX-License-Identifier: Apache-2.0
"""
Images to arrays and back, without cv_bridge.

Why not cv_bridge: it does not exist outside a distribution's packages, and what is published in
its name elsewhere ignores row padding or reads 16-bit images as 8-bit ones. The functions here
honour ``step``, ``is_bigendian`` and every encoding they claim, and refuse the others by name.

Arrays handed to the engine are ``(H, W, 3)`` uint8 RGB frames and ``(H, W)`` integer label images
(0 = background). Everything a message can get wrong raises :class:`ConversionError`, whose text
names the cause and the remedy.
"""

from __future__ import annotations

import array
from collections.abc import Callable
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:  # message packages are imported where messages are made: reading needs none
    from sensor_msgs.msg import CompressedImage, Image
    from std_msgs.msg import Header


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


def pixels(msg: Image, dtype: type, channels: int, what: str) -> np.ndarray:
    """
    Read an image's numbers as they are: ``(H, W)`` or ``(H, W, channels)``, native byte order.

    Parameters
    ----------
    msg : sensor_msgs/Image
    dtype : type
        Of a number.
    channels : int
    what : str
        What the image is called in errors.

    Raises
    ------
    ConversionError
        Truncated or oversized data, impossible step, no pixels.

    """
    return _pixels(msg, dtype, channels, what)


def image_to_rgb(msg: Image) -> np.ndarray:
    """
    Read a camera frame.

    Parameters
    ----------
    msg : sensor_msgs/Image
        In one of :data:`FRAME_ENCODINGS`. 16-bit images are scaled to 8 bits over their full
        range; ``8UC3``/``8UC4`` are taken in OpenCV's order, blue first; YUV is ITU-R BT.601,
        limited range; Bayer is demosaiced bilinearly.

    Returns
    -------
    np.ndarray
        (H, W, 3) uint8 RGB, C-contiguous; shares the message's memory for unpadded rgb8.

    Raises
    ------
    ConversionError
        Unknown encoding, truncated or oversized data, impossible step, no pixels, odd width of a
        4:2:2 image.

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

    Parameters
    ----------
    msg : sensor_msgs/Image
        In one of :data:`LABEL_ENCODINGS`.

    Returns
    -------
    np.ndarray
        (H, W) uint8, uint16 or int32, values >= 0, C-contiguous.

    Raises
    ------
    ConversionError
        Unknown encoding, negative labels, or anything wrong with the data.

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

    Parameters
    ----------
    msg : sensor_msgs/CompressedImage
        ``format`` is only used in messages to people, the data say themselves what they are.

    Returns
    -------
    np.ndarray
        (H, W, 3) uint8 RGB, C-contiguous.

    Raises
    ------
    ConversionError
        No data, or data OpenCV cannot decode (truncated, another codec).

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


def to_rgb(msg: Image | CompressedImage) -> np.ndarray:
    """
    Read a camera frame, raw or compressed: (H, W, 3) uint8 RGB.

    Raises
    ------
    ConversionError
        As :func:`image_to_rgb` and :func:`compressed_to_rgb`.

    """
    read: Callable = image_to_rgb if hasattr(msg, 'encoding') else compressed_to_rgb
    return read(msg)


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

    Raises
    ------
    ConversionError
        Another shape or dtype.

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

    Parameters
    ----------
    frame : np.ndarray
    header : std_msgs/Header
    quality : int
        JPEG quality, 1 to 100.

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

    uint8 becomes mono8, uint16 becomes mono16 (little-endian), other integers and booleans the
    narrower of the two that holds them.

    Raises
    ------
    ConversionError
        Another shape or dtype, or labels outside 0 to 65535.

    """
    from sensor_msgs.msg import Image

    if labels.ndim != 2 or labels.dtype.kind not in 'bui':
        raise ConversionError(
            f'expected an (H, W) label image of whole numbers, got {labels.shape} {labels.dtype}'
        )
    if labels.dtype not in (np.uint8, np.uint16):
        low, high = (int(labels.min()), int(labels.max())) if labels.size else (0, 0)
        if low < 0 or high > 65535:
            raise ConversionError(f'labels from {low} to {high} do not fit into 0 to 65535')
        labels = labels.astype(np.uint16 if high > 255 else np.uint8)
    return _fill(Image(), labels, 'mono8' if labels.dtype == np.uint8 else 'mono16', header)
