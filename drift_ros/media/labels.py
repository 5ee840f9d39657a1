# SPDX-License-Identifier: Apache-2.0
"""
Label images: the one place where pixels become labels.

People's masks come from many tools. One rule reads them all, for files (:func:`read_labels`) and
for arrays that came another way, such as topics (:class:`LabelRule`):

1. A pixel's *value* is its sample as it is stored, whatever the depth (15 is white in 4 bits, and
   stays 15). Of an indexed picture it is the index; if index 0 is not black (tools that sort
   palettes), the colour says it, as in an RGB picture: grey is its level, a colour of the
   VOC/DAVIS palette its index there, others are refused. Labels are 0 to 65535.
2. A *sequence* is **plain** when the first of its pictures that is not all 0 holds 0 and full
   white only (255, in 16 bits 65535). Every pixel that is not 0 is then object 1, in all of its
   pictures.
3. In any other sequence a value is a label. 255 is DAVIS's "void" and becomes background in
   pictures of 8 bits.

A single mask is a sequence of one picture. Masks whose edges are blurred (antialiased, resized
with interpolation, saved as JPEG) are refused: their edges would be hundreds of objects.
"""

from __future__ import annotations

from dataclasses import dataclass
import io
import os
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from drift_ros.media.pictures import check_size, stored

VOID_LABEL = 255
"""Label of void pixels in 8-bit label images."""
_WHITE = (255, 65535)


class LabelError(ValueError):
    """A picture that is no label image; the message names the cause and the remedy."""


class LabelRule:
    """
    How the pictures of one sequence are read, decided by the first one that holds anything.

    Parameters
    ----------
    plain : bool, optional
        Whether whatever is not 0 is object 1. None: decided by the first picture.

    """

    def __init__(self, plain: bool | None = None) -> None:
        self.plain = plain
        """None until it is decided."""

    def labels(self, values: np.ndarray, what: str) -> np.ndarray:
        """
        Turn values into labels.

        Parameters
        ----------
        values : np.ndarray
            (H, W) of any integer type.
        what : str
            Names the picture in messages.

        Returns
        -------
        np.ndarray
            (H, W) uint8 or uint16, 0 = background.

        Raises
        ------
        LabelError
            Negative or too large values, or blurred edges.

        """
        if values.ndim != 2 or values.dtype.kind not in 'uib':
            raise LabelError(
                f'{what} has the shape {values.shape} and type {values.dtype}; a label image is '
                'one channel of whole numbers, 0 for background'
            )
        if values.size and (int(values.min()) < 0 or int(values.max()) > 65535):
            raise LabelError(
                f'{what} holds values from {values.min()} to {values.max()}; labels are 0 '
                '(background) to 65535'
            )
        narrow = values.dtype.itemsize == 1
        values = values.astype(np.uint8 if narrow else np.uint16, copy=False)
        if self.plain is None and values.any():
            check_edges(values, what)
            self.plain = _holds_white_only(values)
        if self.plain:
            return (values > 0).astype(np.uint8)
        return np.where(values == VOID_LABEL, 0, values).astype(np.uint8) if narrow else values

    def read(self, path: str | Path) -> np.ndarray:
        """
        Read the next picture of the sequence; see :meth:`labels`.

        Raises
        ------
        LabelError
            Not there, no picture, or no label image.

        """
        return self.labels(read_values(path), str(path))


def read_labels(path: str | Path, plain: bool | None = None) -> np.ndarray:
    """
    Read one label image, by itself or as one of a sequence whose rule is known.

    Parameters
    ----------
    path : str or Path
    plain : bool, optional
        Whether whatever is not 0 is object 1. None: decided by this picture.

    Returns
    -------
    np.ndarray
        (H, W) uint8 or uint16, 0 = background.

    Raises
    ------
    LabelError
        Not there, no picture, or no label image.

    """
    return LabelRule(plain).read(path)


def read_values(path: str | Path) -> np.ndarray:
    """
    Read the values of a picture's pixels, before any of them means a label.

    Parameters
    ----------
    path : str or Path
        Any format Pillow reads without loss: indexed, grey of 1 to 32 bits, or grey and palette
        colours saved as RGB.

    Returns
    -------
    np.ndarray
        (H, W) uint8, or int32 of pictures deeper than 8 bits.

    Raises
    ------
    LabelError
        Not there, no picture, or with colours that stand for no label.

    """
    try:
        # not by its path: Pillow maps some TIFF files into memory and then turns them wrongly
        with Image.open(io.BytesIO(Path(path).read_bytes())) as opened:
            if opened.format in ('JPEG', 'MPO'):
                raise LabelError(
                    f'{path} is a JPEG, whose edges are not crisp: save the mask as PNG'
                )
            check_size(*opened.size, 'it')
            samples = _Stored.of(opened)
            image = stored(opened)
            if image.mode == 'P' and _begins_with_black(image):
                return np.array(image)
            if image.mode in ('1', 'L'):
                return samples.undo(np.array(image.convert('L')))
            if image.mode in ('I', 'F') or image.mode.startswith('I;16'):
                return samples.undo(_whole(np.array(image), path))
            if image.mode in ('P', 'RGB', 'RGBA', 'LA', 'PA'):
                if samples.deep:
                    return _deep_grey(path)
                return _values_of_colours(np.array(image.convert('RGBA')), path)
            raise LabelError(f'{path} is a picture of mode {image.mode}, no label image')
    except FileNotFoundError:
        raise LabelError(f'cannot read the mask {path}: there is no such file') from None
    except LabelError:
        raise
    except Exception as error:  # Pillow's own, of its plugins, of the file system
        why = str(error) or type(error).__name__
        raise LabelError(f'cannot read the mask {path}: {why}') from None


def write_labels(path: Path, labels: np.ndarray) -> None:
    """
    Write labels (H, W), 0 to 255, as an indexed PNG in the DAVIS palette.

    The file appears in one step, so that an interrupted run leaves no half-written mask. Raises
    as :func:`encode_labels`.
    """
    encoded = encode_labels(labels)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix('.partial')
    partial.write_bytes(encoded)
    os.replace(partial, path)


def encode_labels(labels: np.ndarray) -> bytes:
    """
    Encode labels (H, W), 0 to 255, as an indexed PNG in the DAVIS palette.

    Raises
    ------
    ValueError
        A label does not fit.

    """
    if labels.size and int(labels.max()) > 255:
        raise ValueError(f'label {labels.max()} does not fit an indexed PNG (0 to 255)')
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette(palette().tobytes())
    encoded = io.BytesIO()
    image.save(encoded, format='PNG')
    return encoded.getvalue()


def palette(count: int = 256) -> np.ndarray:
    """
    Make the VOC/DAVIS palette.

    The bits of the index are dealt out to the channels, three at a time, highest bits first.

    Parameters
    ----------
    count : int
        Colours wanted; beyond 256 the colours repeat, without black.

    Returns
    -------
    np.ndarray
        (count, 3) uint8 RGB; row 0 is black, the background.

    """
    index = np.arange(256)
    colours = np.zeros((256, 3), np.uint8)
    for shift in range(7, -1, -1):
        for channel in range(3):
            colours[:, channel] |= (((index >> channel) & 1) << shift).astype(np.uint8)
        index = index >> 3
    if count <= 256:
        return colours[:count]
    repeat = 1 + (np.arange(256, count) - 1) % 255
    return np.concatenate([colours, colours[repeat]])


@dataclass(frozen=True)
class _Stored:
    """What Pillow does to samples when it reads them, to be undone."""

    white: int = 0
    """It stretches samples from 0 .. white to 8 or 16 bits; 0: it does not."""
    deep: bool = False
    """It drops the lower half of 16 bits."""

    @classmethod
    def of(cls, image: Image.Image) -> _Stored:
        """Look at a picture that is not yet loaded."""
        tiles = getattr(image, 'tile', ())
        words = tiles[0][-1] if tiles else ()
        words = words if isinstance(words, tuple) else (words,)
        if image.format == 'PPM':
            white = words[-1] if isinstance(words[-1], int) else 0
            return cls(white if white not in (255, 65535) else 0)
        modes = [word for word in words if isinstance(word, str)]
        shallow = {'L;2': 3, 'L;4': 15}
        return cls(
            next((shallow[word] for word in modes if word in shallow), 0),
            any(';16' in word for word in modes),
        )

    def undo(self, values: np.ndarray) -> np.ndarray:
        if not self.white:
            return values
        full = 255 if values.dtype == np.uint8 else 65535
        return ((values.astype(np.int64) * self.white + full // 2) // full).astype(values.dtype)


def _deep_grey(path: str | Path) -> np.ndarray:
    """Read a grey picture of 16 bits that was saved as RGB: (H, W) int32."""
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    if image is None or image.dtype != np.uint16:
        raise LabelError(f'{path} has colours of 16 bits: save the mask with one channel')
    colours = image.reshape(*image.shape[:2], -1)
    if colours.shape[2] == 4 and (colours[..., 3] < 65535).any():
        raise LabelError(f'{path} is partly transparent: flatten it onto black (background)')
    if (colours[..., :3] != colours[..., :1]).any():
        raise LabelError(f'{path} has colours of 16 bits: save the mask with one channel')
    return colours[..., 0].astype(np.int32)


def _begins_with_black(image: Image.Image) -> bool:
    return not any((image.getpalette('RGB') or [0, 0, 0])[:3])


def _whole(values: np.ndarray, path: str | Path) -> np.ndarray:
    if values.dtype.kind == 'f':
        if not np.isfinite(values).all() or (values % 1 != 0).any():
            raise LabelError(f'{path} holds fractions; labels are whole numbers')
        values = values.clip(-1, 2**24)  # beyond, which no type of whole numbers holds, is refused
    return values.astype(np.int32)


def _values_of_colours(colours: np.ndarray, path: str | Path) -> np.ndarray:
    """Give the values (H, W) uint8 that colours (H, W, 4) stand for."""
    red, green, blue, opaque = np.moveaxis(colours, -1, 0)
    if (opaque < 255).any():
        raise LabelError(
            f'{path} is partly transparent: flatten it onto black (background), without alpha'
        )
    if (red == green).all() and (green == blue).all():
        return red.copy()
    codes = red.astype(np.int32) << 16 | green.astype(np.int32) << 8 | blue
    known = palette().astype(np.int32)
    known_codes = known[:, 0] << 16 | known[:, 1] << 8 | known[:, 2]
    order = np.argsort(known_codes)
    found = order[np.searchsorted(known_codes[order], codes).clip(max=255)]
    if (known_codes[found] != codes).any():
        raise LabelError(
            f'{path} is a colour picture whose colours are not those of the VOC/DAVIS palette: a '
            'label mask is an indexed or one-channel PNG, 0 for background'
        )
    return found.astype(np.uint8)


def _holds_white_only(values: np.ndarray) -> bool:
    found = values[values > 0]
    return int(found[0]) in _WHITE and bool((found == found[0]).all())


def check_edges(values: np.ndarray, what: str) -> None:
    """
    Refuse a mask whose edges are blurred: most of its values only lie on slopes between others.

    Parameters
    ----------
    values : np.ndarray
        (H, W) integer, not negative.
    what : str
        Names the picture in messages.

    Raises
    ------
    LabelError

    """
    if values.dtype.itemsize <= 2:  # sorting the pixels takes ten times as long
        found = np.flatnonzero(np.bincount(values.ravel()))
    else:
        found = np.unique(values)
    objects = len(found) - int(found[0] == 0)
    if objects < 3:
        return
    index = np.searchsorted(found, values).astype(np.uint16)
    square = np.ones((3, 3), np.uint8)
    low, high = cv2.erode(index, square), cv2.dilate(index, square)
    count = np.bincount(index.ravel())
    inside = np.bincount(index[low == high], minlength=len(found))
    between = np.bincount(index[(low < index) & (index < high)], minlength=len(found))
    slopes = np.count_nonzero((inside == 0) & (between >= 0.7 * count))
    ragged = np.count_nonzero(inside < 0.1 * count)
    if (slopes >= 2 and 2 * slopes >= objects) or (ragged >= 4 and 2 * ragged >= objects):
        raise LabelError(
            f'the edges of {what} are not crisp: it holds {objects} values besides 0, and '
            f'{max(slopes, ragged)} of them occur only where others meet, as in masks that were '
            'blurred, resized with interpolation or saved as JPEG. Save the mask as PNG without '
            'antialiasing, resize with nearest neighbour'
        )
