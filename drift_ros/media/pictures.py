# SPDX-License-Identifier: Apache-2.0
"""
Encoded pictures: the one place where the bytes of a file or a message become pixels.

Formats are those of :data:`FORMATS`; the bytes say themselves which one they are. Three promises:

- *Pixels are as they are stored.* An orientation in EXIF is not applied: ``camera_info`` and masks
  describe the picture as the sensor stored it.
- *Damage is an error.* JPEG is decoded by libjpeg-turbo with every warning an error, the checksums
  of PNG are compared, and no format may end early. What follows the end of a picture, as the zeros
  some cameras pad with, is none of its business. JPEG has no checksum: see docs/robustness.md for
  how much of its damage a decoder can notice.
- *What a picture unpacks to is bounded* (:data:`MAX_PIXELS`), before anything is unpacked.
"""

from __future__ import annotations

from dataclasses import dataclass
import io
from pathlib import Path
import re

import cv2
import numpy as np
from PIL import Image
import simplejpeg

FORMATS = ('JPEG', 'PNG', 'TIFF', 'WEBP', 'BMP', 'PPM')
"""Formats that are read, by Pillow's names; PPM stands for PGM and PBM too."""
MAX_PIXELS = 1 << 26
"""Pixels a picture, or a frame of a video, may have: 8192 x 8192, 200 MB as RGB."""
_ORIENTATION = 0x0112  # the EXIF tag
_UNTURNED = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
"""What takes an orientation back."""
_PADDING = re.compile(r'(\d+) extraneous bytes before marker 0xd9')
_MOST_PADDING = 16
"""Bytes before a JPEG's end marker that are not damage: some webcams pad each frame there."""

_MOST_SCANS = 256
"""Passes over a progressive JPEG; encoders write ten or so."""


class PictureError(ValueError):
    """Bytes that are no picture, or a damaged or too large one; says the cause and the remedy."""


@dataclass(frozen=True)
class Picture:
    """
    A decoded picture.

    Attributes
    ----------
    values : np.ndarray
        (H, W) grey or (H, W, 3) RGB; uint8 or uint16.
    format : str
        One of :data:`FORMATS`.
    orientation : int
        Of EXIF, 1 to 8; not applied. 1: none.

    """

    values: np.ndarray
    format: str
    orientation: int = 1


def check_size(width: int, height: int, what: str) -> None:
    """
    Bound the size a picture declares.

    Raises
    ------
    PictureError
        It is larger than :data:`MAX_PIXELS`, or empty.

    """
    if width < 1 or height < 1:
        raise PictureError(f'{what} is empty ({width}x{height})')
    if width * height > MAX_PIXELS:
        raise PictureError(
            f'{what} declares {width}x{height} pixels; {MAX_PIXELS} at most are unpacked: '
            'make it smaller'
        )


def decode(data: bytes | memoryview | np.ndarray, what: str) -> Picture:
    """
    Decode a picture.

    Parameters
    ----------
    data : bytes, memoryview or np.ndarray
        The whole picture; more may follow it.
    what : str
        Names it in messages.

    Returns
    -------
    Picture
        Alpha is left out; palettes and other colour spaces become RGB.

    Raises
    ------
    PictureError
        Not one of :data:`FORMATS`, damaged, cut short, or too large.

    """
    data = bytes(data)
    if not data:
        raise PictureError(f'{what} holds no data')
    try:
        with _opened(data) as image:
            check_size(*image.size, what)
            kind = 'JPEG' if image.format == 'MPO' else str(image.format)
            orientation = _orientation(image)
            if kind == 'JPEG' and image.mode in ('L', 'RGB'):
                values = _decode_jpeg(data, 'GRAY' if image.mode == 'L' else 'RGB', what)
            elif kind == 'JPEG':  # CMYK: Pillow knows whether it is inverted
                _decode_jpeg(data, 'CMYK', what)
                values = _values(image)
            elif kind == 'PNG':
                values = _decode_png(data, image.mode == 'P', what)
            else:
                values = _values(image)
    except PictureError:
        raise
    except Image.UnidentifiedImageError:
        raise PictureError(
            f'{what} ({len(data)} bytes) is none of {", ".join(FORMATS)}, or truncated or damaged '
            'at its beginning: convert it, or look at what wrote it'
        ) from None
    except Exception as error:  # decoders raise many kinds, cv2.error and struct.error among them
        raise _damaged(what, error) from error
    return Picture(np.ascontiguousarray(values), kind, orientation)


def read_picture(path: str | Path) -> Picture:
    """
    Read a picture file; see :func:`decode`.

    Raises
    ------
    PictureError
        Not there, or as :func:`decode`.

    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise PictureError(f'cannot read {path}: {error.strerror or error}') from None
    return decode(data, str(path))


def _damaged(what: str, error: object) -> PictureError:
    return PictureError(
        f'{what} is damaged or truncated ({error}): look for a link or a disk that loses parts'
    )


def _opened(data: bytes) -> Image.Image:
    """Read the header alone; its claims are checked by us, before anything is unpacked."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise PictureError(
            f'the picture is too large: {error}; {MAX_PIXELS} pixels at most are unpacked'
        ) from None


def _decode_jpeg(data: bytes, space: str, what: str) -> np.ndarray:
    if data.count(b'\xff\xda') > _MOST_SCANS:
        raise PictureError(f'{what} has more than {_MOST_SCANS} scans: it was made to take long')
    try:
        values = simplejpeg.decode_jpeg(data, space, strict=True)
    except ValueError as error:
        padding = _PADDING.search(str(error))
        if padding is None or int(padding[1]) > _MOST_PADDING:
            raise _damaged(what, error) from None
        values = simplejpeg.decode_jpeg(data, space, strict=False)
    return values[..., 0] if space == 'GRAY' else values


def _decode_png(data: bytes, indexed: bool, what: str) -> np.ndarray:
    # Pillow compares the checksums without unpacking; OpenCV keeps 16 bits of colour
    with _opened(data) as image:
        image.verify()
    if indexed:
        with _opened(data) as image:
            return _values(image)
    flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
    values = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    if values is None:
        raise _damaged(what, 'its pixels cannot be unpacked')
    if values.ndim == 2:
        return values
    code = cv2.COLOR_BGR2RGB if values.shape[2] == 3 else cv2.COLOR_BGRA2RGB
    return cv2.cvtColor(values, code)


def _orientation(image: Image.Image) -> int:
    try:
        if image.format != 'PNG':
            return int(image.getexif().get(_ORIENTATION, 1))
        exif = Image.Exif()  # Pillow would unpack the picture to look behind it
        exif.load(image.info.get('exif') or b'')
        return int(exif.get(_ORIENTATION, 1))
    except Exception:  # notes about a picture that are broken are no reason not to show it
        return 1


def stored(image: Image.Image) -> Image.Image:
    """Load a picture, and give its pixels as they are stored: of TIFF alone Pillow turns them."""
    back = _UNTURNED.get(_orientation(image)) if image.format == 'TIFF' else None
    image.load()
    return image if back is None else image.transpose(back)


def _values(image: Image.Image) -> np.ndarray:
    """Give the pixels as :class:`Picture` has them."""
    image = stored(image)
    if image.mode.startswith('I'):
        values = np.array(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ValueError('grey values outside 0 to 65535')
        return values.astype(np.uint16)
    if image.mode == 'F':
        raise ValueError('it holds fractions, no picture')
    if image.mode in ('1', 'L', 'LA'):
        return np.array(image.convert('L'))
    return np.array(image.convert('RGB'))
