# SPDX-License-Identifier: Apache-2.0
"""
Pixels as cameras encode them, to RGB. Imports no ROS.

16-bit values become 8-bit ones by a :class:`~drift_ros.media.greys.GreyRange`; YUV is ITU-R
BT.601, limited range; ``8UC3`` and ``8UC4`` are in OpenCV's order, blue first; Bayer is demosaiced
bilinearly.
"""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np

from drift_ros.media.greys import GreyRange


class Layout(NamedTuple):
    """How the pixels of an encoding lie."""

    dtype: type
    channels: int
    code: int | None
    """OpenCV's colour conversion to RGB; None: they are RGB."""


# OpenCV names a Bayer pattern by the second row's second and third pixel, so ROS's "rggb" is
# OpenCV's "BG".
_BAYER = {
    'rggb': cv2.COLOR_BayerBG2RGB,
    'bggr': cv2.COLOR_BayerRG2RGB,
    'gbrg': cv2.COLOR_BayerGR2RGB,
    'grbg': cv2.COLOR_BayerGB2RGB,
}
PACKED: dict[str, Layout] = {
    'rgb8': Layout(np.uint8, 3, None),
    'rgb16': Layout(np.uint16, 3, None),
    'bgr8': Layout(np.uint8, 3, cv2.COLOR_BGR2RGB),
    'bgr16': Layout(np.uint16, 3, cv2.COLOR_BGR2RGB),
    '8UC3': Layout(np.uint8, 3, cv2.COLOR_BGR2RGB),
    'rgba8': Layout(np.uint8, 4, cv2.COLOR_RGBA2RGB),
    'rgba16': Layout(np.uint16, 4, cv2.COLOR_RGBA2RGB),
    'bgra8': Layout(np.uint8, 4, cv2.COLOR_BGRA2RGB),
    'bgra16': Layout(np.uint16, 4, cv2.COLOR_BGRA2RGB),
    '8UC4': Layout(np.uint8, 4, cv2.COLOR_BGRA2RGB),
    'mono8': Layout(np.uint8, 1, cv2.COLOR_GRAY2RGB),
    'mono16': Layout(np.uint16, 1, cv2.COLOR_GRAY2RGB),
    '8UC1': Layout(np.uint8, 1, cv2.COLOR_GRAY2RGB),
    '16UC1': Layout(np.uint16, 1, cv2.COLOR_GRAY2RGB),
    'yuv422': Layout(np.uint8, 2, cv2.COLOR_YUV2RGB_UYVY),
    'uyvy': Layout(np.uint8, 2, cv2.COLOR_YUV2RGB_UYVY),
    'yuv422_yuy2': Layout(np.uint8, 2, cv2.COLOR_YUV2RGB_YUYV),
    'yuyv': Layout(np.uint8, 2, cv2.COLOR_YUV2RGB_YUYV),
    **{
        f'bayer_{pattern}{bits}': Layout(dtype, 1, code)
        for pattern, code in _BAYER.items()
        for bits, dtype in ((8, np.uint8), (16, np.uint16))
    },
}
"""Encodings whose pixels lie one after the other."""
PLANAR = ('nv12', 'nv21', 'nv24')
"""Encodings with all luma first, then the chroma: at half the size (nv12, nv21), at the same."""
_FROM_YUV = np.array(
    [
        [1.164383, 0.0, 1.596027, -222.9216],
        [1.164383, -0.391762, -0.812968, 135.5753],
        [1.164383, 2.017232, 0.0, -276.8358],
    ]
)


def packed_to_rgb(pixels: np.ndarray, encoding: str, greys: GreyRange) -> np.ndarray:
    """
    Convert pixels of one of :data:`PACKED`.

    Parameters
    ----------
    pixels : np.ndarray
        (H, W) or (H, W, channels), as the encoding's layout says.
    encoding : str
    greys : GreyRange
        Of the stream; used for 16 bits.

    Returns
    -------
    np.ndarray
        (H, W, 3) uint8 RGB, C-contiguous; rgb8 that is so already is not copied.

    Raises
    ------
    ValueError
        Too small to be demosaiced; says so.

    """
    code = PACKED[encoding].code
    bayer = encoding.startswith('bayer')
    if bayer and min(pixels.shape) < 3:
        raise ValueError(
            f'a {pixels.shape[1]}x{pixels.shape[0]} Bayer image cannot be demosaiced: 3x3 pixels '
            'at least are needed'
        )
    if pixels.dtype == np.uint16:
        pixels = greys.narrow(pixels, grey=pixels.ndim == 2 and not bayer)
    pixels = np.ascontiguousarray(pixels)
    return pixels if code is None else cv2.cvtColor(pixels, code)


def planar_to_rgb(luma: np.ndarray, chroma: np.ndarray, encoding: str) -> np.ndarray:
    """
    Convert the planes of one of :data:`PLANAR`.

    Parameters
    ----------
    luma : np.ndarray
        (H, W) uint8.
    chroma : np.ndarray
        (H / 2, W) uint8, of nv24 (H, 2 W): Cb and Cr in turn, in nv21 Cr first.
    encoding : str

    """
    if encoding != 'nv24':
        code = cv2.COLOR_YUV2RGB_NV12 if encoding == 'nv12' else cv2.COLOR_YUV2RGB_NV21
        return cv2.cvtColor(np.concatenate([luma, chroma]), code)
    colours = chroma.reshape(*luma.shape, 2)
    return cv2.transform(np.dstack([luma, colours]), _FROM_YUV)
