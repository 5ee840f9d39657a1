# SPDX-License-Identifier: Apache-2.0
"""The part of a frame in which objects are looked at, and at what scale."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np


@dataclass(frozen=True)
class Window:
    """
    A rectangle of a frame, and the scale at which it is looked at.

    All conversions between a frame and a reduced (or, for a network, enlarged) part of it are
    here. Positions are (x, y) with pixel centres at integers.

    Attributes
    ----------
    left, top, right, bottom : int
        In pixels of the frame; right and bottom are exclusive.
    frame : tuple of int
        (H, W) of the frame.
    scale : float
        Pixels of the part for each of the frame's.

    """

    left: int
    top: int
    right: int
    bottom: int
    frame: tuple[int, int]
    scale: float = 1.0

    @classmethod
    def clipped(cls, box: Sequence[float], frame: tuple[int, ...]) -> 'Window':
        """
        Give the pixels that a box touches, inside a frame and at least two by two.

        Parameters
        ----------
        box : sequence of float
            x_min, y_min, x_max, y_max in pixels of the frame, maxima exclusive.
        frame : tuple of int
            (H, W).

        """
        height, width = frame[:2]
        left, top = np.clip(np.floor(box[:2]), 0, [max(width - 2, 0), max(height - 2, 0)])
        right, bottom = np.clip(np.ceil(box[2:]), [left + 2, top + 2], [width, height])
        return cls(int(left), int(top), int(right), int(bottom), (height, width))

    @classmethod
    def around(
        cls, mask: np.ndarray, frame: tuple[int, ...], margin: float = 0.3
    ) -> 'Window | None':
        """
        Give the surroundings of the objects of a mask; None where it is empty.

        Parameters
        ----------
        mask : np.ndarray
            (h, w) bool, on any grid over the frame.
        frame : tuple of int
            (H, W).
        margin : float
            Share of the longer side of the mask's box added at each side.

        """
        x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
        if not width:
            return None
        cell = np.array([frame[1] / mask.shape[1], frame[0] / mask.shape[0]] * 2)
        pad = margin * max(width, height) + 2
        return cls.clipped(
            np.array([x - pad, y - pad, x + width + pad, y + height + pad]) * cell, frame
        )

    @classmethod
    def around_all(cls, windows: Sequence['Window']) -> 'Window':
        """Give the smallest window that holds windows of one frame."""
        return cls(
            min(window.left for window in windows),
            min(window.top for window in windows),
            max(window.right for window in windows),
            max(window.bottom for window in windows),
            windows[0].frame,
        )

    @classmethod
    def whole(cls, frame: tuple[int, ...]) -> 'Window':
        """Give all of a frame (H, W)."""
        return cls(0, 0, frame[1], frame[0], (frame[0], frame[1]))

    def reduced_to_pixels(self, count: int) -> 'Window':
        """Look at it with about so many pixels, and never enlarged."""
        area = (self.right - self.left) * (self.bottom - self.top)
        return replace(self, scale=min((count / area) ** 0.5, 1.0))

    def reduced_to_side(self, side: int) -> 'Window':
        """Look at it with a longer side of so many pixels, and never enlarged."""
        return replace(self, scale=min(self.scaled_to_side(side).scale, 1.0))

    def scaled_to_side(self, side: int) -> 'Window':
        """Look at it with a longer side of so many pixels."""
        return replace(self, scale=side / max(self.right - self.left, self.bottom - self.top))

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the part at its scale, at least 8 each."""
        width, height = self.right - self.left, self.bottom - self.top
        return max(round(self.scale * width), 8), max(round(self.scale * height), 8)

    @property
    def box(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom."""
        return self.left, self.top, self.right, self.bottom

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of the frame."""
        return slice(self.top, self.bottom), slice(self.left, self.right)

    def crop(self, values: np.ndarray) -> np.ndarray:
        """Give the part of a (H, W) or (H, W, C) uint8 or float32 array, at the scale."""
        method = cv2.INTER_AREA if self.scale <= 1 else cv2.INTER_LINEAR
        values = values[self.slices]
        if values.ndim == 3 and self.scale <= 0.5:
            # averages over areas of whole pixels take a third of the time of others
            twice = (2 * self.size[0], 2 * self.size[1])
            values = cv2.resize(values, twice, interpolation=cv2.INTER_LINEAR)
        return cv2.resize(values, self.size, interpolation=method)

    def paste(self, part: np.ndarray) -> np.ndarray:
        """Put (height, width) float32 values back into a frame: (H, W), 0 outside."""
        return place(self.enlarge(part), self.slices, self.frame)

    def enlarge(self, part: np.ndarray) -> np.ndarray:
        """Enlarge (height, width) float32 values to the window's own pixels."""
        size = (self.right - self.left, self.bottom - self.top)
        return cv2.resize(part, size, interpolation=cv2.INTER_LINEAR)

    def enlarge_piece(
        self, piece: np.ndarray, pixels: tuple[slice, slice]
    ) -> tuple[tuple[slice, slice], np.ndarray]:
        """
        Enlarge a piece of the part.

        Parameters
        ----------
        piece : np.ndarray
            float32.
        pixels : tuple of slice
            Rows and columns of the part that it is.

        Returns
        -------
        tuple
            Rows and columns of the frame, and the values there.

        """
        if piece.shape == self.size[::-1]:
            return self.slices, self.enlarge(piece)
        rows, columns = pixels
        fx = self.size[0] / (self.right - self.left)
        fy = self.size[1] / (self.bottom - self.top)
        left, right = int(columns.start / fx), int(np.ceil(columns.stop / fx))
        top, bottom = int(rows.start / fy), int(np.ceil(rows.stop / fy))
        target = replace(
            self,
            left=self.left + left,
            top=self.top + top,
            right=min(self.left + right, self.right),
            bottom=min(self.top + bottom, self.bottom),
        )
        matrix = np.array(
            [
                [fx, 0, (left + 0.5) * fx - 0.5 - columns.start],
                [0, fy, (top + 0.5) * fy - 0.5 - rows.start],
            ]
        )
        size = (target.right - target.left, target.bottom - target.top)
        return target.slices, _interpolate(piece, matrix, size)

    def to_part(self, places: np.ndarray) -> np.ndarray:
        """Turn (..., 2) positions in the frame into positions in the part, float32."""
        return ((places + 0.5 - (self.left, self.top)) * self.scale - 0.5).astype(np.float32)

    def corners_to_part(self, box: Sequence[float]) -> tuple[float, ...]:
        """Turn x_min, y_min, x_max, y_max, maxima exclusive, into pixels of the part."""
        origin = (self.left, self.top) * 2
        return tuple((value - start) * self.scale for value, start in zip(box, origin))

    def read(self, values: np.ndarray, pixels: tuple[slice, slice]) -> np.ndarray:
        """
        Interpolate a map of the whole frame at pixels of the part.

        Parameters
        ----------
        values : np.ndarray
            (h, w) float32, on any grid over the frame.
        pixels : tuple of slice
            Rows and columns of the part.

        """
        rows, columns = pixels
        step_x = (self.right - self.left) / self.size[0]
        step_y = (self.bottom - self.top) / self.size[1]
        fx, fy = values.shape[1] / self.frame[1], values.shape[0] / self.frame[0]
        matrix = np.array(
            [
                [step_x * fx, 0, (self.left + (columns.start + 0.5) * step_x) * fx - 0.5],
                [0, step_y * fy, (self.top + (rows.start + 0.5) * step_y) * fy - 0.5],
            ]
        )
        size = (columns.stop - columns.start, rows.stop - rows.start)
        return _interpolate(values.astype(np.float32, copy=False), matrix, size)

    def sample(self, values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """
        Interpolate a map of the whole frame at the pixels of the part.

        Parameters
        ----------
        values : np.ndarray
            (h, w) float32, on any grid over the frame.
        size : tuple of int
            (width, height) of the result. What lies beyond the window at the right and at the
            bottom is 0: networks take square inputs.

        """
        step = 1.0 / self.scale  # the frame's pixels for each of the part's
        fx, fy = values.shape[1] / self.frame[1], values.shape[0] / self.frame[0]
        matrix = np.array(
            [
                [step * fx, 0, (self.left + 0.5 * step) * fx - 0.5],
                [0, step * fy, (self.top + 0.5 * step) * fy - 0.5],
            ]
        )
        sampled = _interpolate(values, matrix, size)
        sampled[int(np.ceil((self.bottom - self.top) / step)) :] = 0
        sampled[:, int(np.ceil((self.right - self.left) / step)) :] = 0
        return sampled

    def enlarge_map(self, values: np.ndarray) -> np.ndarray:
        """Interpolate what :meth:`sample` gives at the window's own pixels, float32."""
        offset = 0.5 * self.scale - 0.5
        matrix = np.array([[self.scale, 0, offset], [0, self.scale, offset]])
        return _interpolate(values, matrix, (self.right - self.left, self.bottom - self.top))


def place(values: np.ndarray, area: tuple[slice, slice], frame: tuple[int, ...]) -> np.ndarray:
    """Put float32 values into rows and columns of a frame: (H, W), 0 outside."""
    full = np.zeros(frame[:2], np.float32)
    full[area] = values
    return full


def _interpolate(values: np.ndarray, matrix: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Read values where an affine matrix (2, 3) maps the pixels of a (width, height) result."""
    return cv2.warpAffine(
        values,
        matrix,
        size,
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
