# SPDX-License-Identifier: Apache-2.0
"""
Images to arrays and back.

A distribution's cv_bridge reads what it reads alike, where it is installed and works (see
:mod:`drift_ros.ros.bridge`). It does not exist outside a distribution's packages, and what is
published in its name elsewhere ignores row padding or reads 16-bit images as 8-bit ones. So the
functions here need none, honour ``step``, ``is_bigendian`` and every encoding they claim, and
refuse the others by name.

Arrays handed to the engine are ``(H, W, 3)`` uint8 RGB frames and ``(H, W)`` integer label images
(0 = background). Everything a message can get wrong raises :class:`ConversionError`, whose text
names the cause and the remedy.
"""

from __future__ import annotations

import array
from typing import TYPE_CHECKING

import cv2
import numpy as np

from drift_ros.media import pictures
from drift_ros.media.greys import GreyRange
from drift_ros.ros import bridge, encodings

if TYPE_CHECKING:  # message packages are imported where messages are made: reading needs none
    from sensor_msgs.msg import CompressedImage, Image
    from std_msgs.msg import Header


class ConversionError(ValueError):
    """A message that cannot become an array, or an array that cannot become a message."""


_LABELS: dict[str, type] = {
    'mono8': np.uint8,
    '8UC1': np.uint8,
    'mono16': np.uint16,
    '16UC1': np.uint16,
    '32SC1': np.int32,
}

FRAME_ENCODINGS: tuple[str, ...] = (*encodings.PACKED, *encodings.PLANAR)
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


def image_to_rgb(msg: Image, greys: GreyRange | None = None) -> np.ndarray:
    """
    Read a camera frame.

    Parameters
    ----------
    msg : sensor_msgs/Image
        In one of :data:`FRAME_ENCODINGS`; see :mod:`drift_ros.ros.encodings`.
    greys : GreyRange, optional
        That of the stream, for 16-bit images. None: found from this image alone.

    Returns
    -------
    np.ndarray
        (H, W, 3) uint8 RGB, C-contiguous; shares the message's memory for unpadded rgb8.

    Raises
    ------
    ConversionError
        Unknown encoding, truncated or oversized data, impossible step, no pixels, odd size of an
        image whose pixels share their colour.

    """
    if msg.encoding in encodings.PLANAR:
        return _planar_to_rgb(msg)
    layout = encodings.PACKED.get(msg.encoding)
    if layout is None:
        raise ConversionError(
            f'encoding {msg.encoding!r} is not supported for camera frames: convert to one of '
            f'{", ".join(FRAME_ENCODINGS)}'
        )
    if layout.channels == 2 and msg.width % 2:
        raise ConversionError(
            f'encoding {msg.encoding!r} stores pixels in pairs, but the width '
            f'is {msg.width}: publish an even width'
        )
    pixels = _pixels(msg, layout.dtype, layout.channels, 'image')
    if (frame := bridge.to_rgb(msg)) is not None:
        return frame
    try:
        return encodings.packed_to_rgb(pixels, msg.encoding, greys or GreyRange())
    except ValueError as error:
        raise ConversionError(str(error)) from None


def _planar_to_rgb(msg: Image) -> np.ndarray:
    """Read an image of two planes: luma, then chroma in rows of the same step (nv24: of two)."""
    height, width, step = int(msg.height), int(msg.width), int(msg.step)
    whole = msg.encoding == 'nv24'
    if height == 0 or width == 0:
        raise ConversionError(
            f'the image is empty ({width}x{height}): publish an image with its width and height '
            'set'
        )
    if not whole and (width % 2 or height % 2):
        raise ConversionError(
            f'encoding {msg.encoding!r} gives four pixels one colour, but the image is '
            f'{width}x{height}: publish an even width and height'
        )
    needed = step * height * 3 if whole else step * height * 3 // 2
    if step < width or len(msg.data) != needed:
        raise ConversionError(
            f'encoding {msg.encoding!r} needs rows of {width} bytes at least and, with step '
            f'{step}, {needed} bytes of data for {height} rows and their colours; the image has '
            f'{len(msg.data)}: step is that of the luma, height that of the picture'
        )
    data = np.frombuffer(msg.data, dtype=np.uint8)
    luma = data[: step * height].reshape(height, step)[:, :width]
    rows = height if whole else height // 2
    chroma = data[step * height :].reshape(rows, -1)[:, : 2 * width if whole else width]
    return encodings.planar_to_rgb(luma, chroma, msg.encoding)


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


def compressed_to_rgb(msg: CompressedImage, greys: GreyRange | None = None) -> np.ndarray:
    """
    Decode a compressed frame.

    ``format`` is read as image_transport writes it, ``ENCODING; CODEC compressed TARGET``: a
    mosaic that was compressed as it is (ENCODING is bayer_*, the picture is grey) is demosaiced,
    and the colours of a picture that was compressed red first (TARGET is rgb*, rgba*) are put
    right. Which codec it is the data say themselves.

    Parameters
    ----------
    msg : sensor_msgs/CompressedImage
        Its data in one of the formats of :data:`drift_ros.media.pictures.FORMATS`.
    greys : GreyRange, optional
        That of the stream, for 16-bit images. None: found from this image alone.

    Returns
    -------
    np.ndarray
        (H, W, 3) uint8 RGB, C-contiguous, pixels as they are stored.

    Raises
    ------
    ConversionError
        No data, not an image, damaged, truncated, or too large.

    """
    source, _, rest = (part.strip() for part in msg.format.partition(';'))
    if 'compressedDepth' in msg.format:
        raise ConversionError(
            f'format {msg.format!r} is a depth image with a header of its own: subscribe to the '
            "camera's images, raw or compressed"
        )
    try:
        picture = pictures.decode(
            memoryview(msg.data), f'the compressed image (format {msg.format!r})'
        )
        values = picture.values
        if values.ndim == 2:
            bits = 8 * values.dtype.itemsize
            bayer = f'{source.rstrip("0123456789")}{bits}'
            known = source.startswith('bayer_') and bayer in encodings.PACKED
            encoding = bayer if known else f'mono{bits}'
        else:
            order = 'bgr' if 'compressed rgb' in rest else 'rgb'
            encoding = f'{order}{8 * values.dtype.itemsize}'
        return encodings.packed_to_rgb(values, encoding, greys or GreyRange())
    except ValueError as error:
        raise ConversionError(str(error)) from None


def to_rgb(msg: Image | CompressedImage, greys: GreyRange | None = None) -> np.ndarray:
    """
    Read a camera frame, raw or compressed: (H, W, 3) uint8 RGB.

    Raises
    ------
    ConversionError
        As :func:`image_to_rgb` and :func:`compressed_to_rgb`.

    """
    if hasattr(msg, 'encoding'):
        return image_to_rgb(msg, greys)
    return compressed_to_rgb(msg, greys)


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
    one that holds them: mono8 up to 254, as 255 means white or void in 8 bits.

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
        labels = labels.astype(np.uint16 if high > 254 else np.uint8)
    return _fill(Image(), labels, 'mono8' if labels.dtype == np.uint8 else 'mono16', header)
