# SPDX-License-Identifier: Apache-2.0
"""Depth images (REP 118) as arrays: metres along the optical axis, NaN where not measured."""

from __future__ import annotations

import struct

import cv2
import numpy as np

UNITS = {'16UC1': 0.001, 'mono16': 0.001, '32FC1': 1.0}
"""Metres that 1 stands for, by encoding."""
FARTHEST = 200.0
"""Metres; a median depth beyond is a sign of other units than were claimed."""
NEAREST = 0.02
"""Metres; likewise a median below."""


class DepthError(ValueError):
    """A depth image that cannot be used; the text says what is wrong and what to do."""


def metres(values: np.ndarray, encoding: str, scale: float = 0.0) -> np.ndarray:
    """
    Read a depth image.

    Parameters
    ----------
    values : np.ndarray
        (H, W) uint16 or float32.
    encoding : str
        One of :data:`UNITS`.
    scale : float
        Metres that 1 stands for; 0: as the encoding says.

    Returns
    -------
    np.ndarray
        (H, W) float32 metres; NaN where there is no measurement (0, NaN, infinite, negative).

    Raises
    ------
    DepthError
        The encoding is no depth's, or what is measured cannot be metres.

    """
    if encoding not in UNITS:
        raise DepthError(
            f'encoding {encoding!r} is not supported for depth: publish one of {", ".join(UNITS)}'
        )
    depth = values.astype(np.float32) * np.float32(scale or UNITS[encoding])
    depth[~(np.isfinite(depth) & (depth > 0))] = np.nan
    sample = depth[::4, ::4]
    known = sample[np.isfinite(sample)]
    if known.size >= 16 and not NEAREST <= (middle := float(np.median(known))) <= FARTHEST:
        raise DepthError(
            f'the median depth is {middle:g} m, which cannot be: 1 in {encoding} is taken as '
            f'{scale or UNITS[encoding]:g} m, set space.depth_scale to the metres it stands for'
        )
    return depth


def decode_compressed(data: bytes | memoryview, declared: str) -> tuple[np.ndarray, str]:
    """
    Decode what compressed_depth_image_transport sends: a header of 12 bytes, then a PNG.

    Parameters
    ----------
    data : bytes
    declared : str
        The message's format, such as '16UC1; compressedDepth png'.

    Returns
    -------
    tuple
        (H, W) array and its encoding, for :func:`metres`.

    Raises
    ------
    DepthError
        Another compression (RVL), damaged data, an encoding that is no depth's.

    """
    encoding, _, how = declared.partition(';')
    encoding = encoding.strip()
    if encoding not in UNITS:
        raise DepthError(
            f'the format {declared!r} names no depth encoding ({", ".join(UNITS)}): subscribe to '
            'a topic of compressedDepth'
        )
    if 'rvl' in how.lower():
        raise DepthError(
            f'the format {declared!r} is not supported: set the publisher to png, or use raw depth'
        )
    raw = np.frombuffer(data, np.uint8)
    if raw.size <= 12:
        raise DepthError('the compressed depth image holds no data: check the publisher')
    try:
        image = cv2.imdecode(raw[12:], cv2.IMREAD_UNCHANGED)
    except cv2.error:
        image = None
    if image is None or image.ndim != 2 or image.dtype != np.uint16:
        raise DepthError(
            f'the compressed depth image (format {declared!r}, {raw.size} bytes) cannot be '
            'decoded: it is damaged or no PNG of 16 bits'
        )
    if encoding != '32FC1':
        return image, encoding
    _, near, offset = struct.unpack('<iff', raw[:12].tobytes())
    with np.errstate(divide='ignore'):
        depth = near / (image.astype(np.float32) - np.float32(offset))
    depth[image == 0] = np.nan
    return depth.astype(np.float32), encoding
