# SPDX-License-Identifier: Apache-2.0
"""Depth images as received, and which one belongs to an image. No ROS."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import Any
import zlib

import numpy as np

_KEPT, _BYTES = 60, 96 << 20  # depth images, and what they may take
_FROZEN = 5  # depth images in a row with the same content
_CHANGE, _CHANGED = 40, 0.03  # of a colour, and share of pixels: a picture that is another one
_UNKNOWN = 20_000_000  # nanoseconds: half a period of images where that is not known


class Depths:
    """
    Recent depth images by stamp.

    Attributes
    ----------
    count : int
        Images that came.
    frozen : bool
        They stay the same to the bit while the pictures change.

    """

    def __init__(self) -> None:
        """Have none."""
        self._stamps: list[int] = []
        self._messages: list[Any] = []
        self.count = 0
        self.frozen = False
        self._checksum, self._repeats = 0, 0
        self._before: np.ndarray | None = None  # the picture when one depth had come often

    def add(self, stamp: int, message: Any) -> bool:
        """Keep an image of a stamp in nanoseconds; True when time jumped back."""
        self.count += 1
        checksum = zlib.crc32(memoryview(message.data))
        same = checksum == self._checksum
        self._checksum, self._repeats = checksum, self._repeats + 1 if same else 0
        self.frozen = self.frozen and same
        place = bisect_left(self._stamps, stamp)
        jumped = place < len(self._stamps) and self._stamps[place] != stamp
        del self._stamps[place:], self._messages[place:]
        self._stamps.append(stamp)
        self._messages.append(message)
        while len(self._stamps) > 1 and (
            len(self._stamps) > _KEPT or sum(len(item.data) for item in self._messages) > _BYTES
        ):
            del self._stamps[0], self._messages[0]
        return jumped

    @property
    def newest(self) -> int:
        """The latest stamp; 0 without images."""
        return self._stamps[-1] if self._stamps else 0

    def nearest(self, stamp: int) -> tuple[int, Any] | None:
        """Give stamp and message of the image nearest to a stamp."""
        if not self._stamps:
            return None
        k = min(range(len(self._stamps)), key=lambda k: abs(self._stamps[k] - stamp))
        return self._stamps[k], self._messages[k]

    def compare(self, image: np.ndarray) -> None:
        """
        Look at a picture, (H, W, 3) uint8, to tell whether depth is frozen.

        Noise is no change: simulators have cameras whose depth is exact and whose colours are not.
        """
        if self._repeats < _FROZEN:
            self._before = None
            return
        now = image[::8, ::8].astype(np.int16)
        if self._before is None or self._before.shape != now.shape:
            self._before = now
        changed = (np.abs(now - self._before).max(-1) > _CHANGE).mean()
        self.frozen = self.frozen or bool(changed > _CHANGED)


def half_period(stamps: Sequence[int]) -> float:
    """Give half the median time between images, nanoseconds."""
    return float(np.median(np.diff(stamps))) / 2 if len(stamps) > 1 else _UNKNOWN
