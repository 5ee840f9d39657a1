# SPDX-License-Identifier: Apache-2.0
"""
16-bit pictures to 8 bits: which values become black and white.

Cameras fill 16 bits in many ways: 10 or 12 bits of a sensor, not shifted; hundredths of a kelvin
around 30,000; millimetres. Taken over the full range, such pictures are nearly black or one flat
grey. :class:`GreyRange` takes a given range, or finds one from the first picture of a stream and
keeps it, so that a thing keeps its grey from frame to frame.
"""

from __future__ import annotations

import threading

import numpy as np

_WHITES = (255, 1023, 4095, 16383, 65535)
"""What sensors of 8, 10, 12, 14 and 16 bits give at most."""
_SAMPLE = 50_000
"""Pixels looked at."""
_LOW_CONTRAST = 8
"""Values that lie within this part of the sensor's range are stretched."""
_LEAST_SPAN = 16
_OUTSIDE = 0.2
"""Share of values out of a stretched range at which another one is looked for."""


class GreyRange:
    """
    The range of one stream. Thread safe.

    Automatic: white is the most that the fewest of 8, 10, 12, 14 and 16 bits hold in which 99.9 %
    of the values lie. It only grows. Grey pictures (not colour, whose hue would change) whose
    middle 99 % lie within an eighth of that are stretched from half their span below to half
    above; another range is looked for when a fifth of the values leave it. Values of 0 (nothing
    measured) do not count.

    Parameters
    ----------
    fixed : tuple of int, optional
        Values that become black and white. None: automatic.

    """

    def __init__(self, fixed: tuple[int, int] | None = None) -> None:
        self._fixed = fixed is not None
        self._lock = threading.Lock()
        self._white = 0  # of the sensor; 0 until a picture came
        self._stretched = False
        self.black, self.white = fixed or (0, 65535)
        self.changes = 0
        """How often a range was chosen automatically, other than all 16 bits at the start."""
        self._table = _table(self.black, self.white)

    def narrow(self, image: np.ndarray, grey: bool) -> np.ndarray:
        """
        Scale a uint16 picture of any shape to uint8, rounded.

        Parameters
        ----------
        image : np.ndarray
        grey : bool
            Whether it may be stretched.

        """
        with self._lock:
            if not self._fixed:
                self._choose(image, grey)
            table = self._table
        return table[image]

    @property
    def text(self) -> str:
        """The range, for people."""
        how = '' if self._fixed else ' (automatic)'
        return f'{self.black} to {self.white}{how}'

    @property
    def warning(self) -> str:
        """What is to be said of an automatic choice; empty: nothing."""
        if not self.changes:
            return ''
        return (
            f'16-bit images are taken from {self.black} (black) to {self.white} (white), chosen '
            'automatically: set grey_range to what the camera publishes'
        )

    def _choose(self, image: np.ndarray, grey: bool) -> None:
        values = image.reshape(-1)
        values = values[:: max(1, values.size // _SAMPLE)]
        values = values[values > 0]
        if not values.size:
            return
        low, high, most = np.percentile(values, [0.5, 99.5, 99.9])
        fits = next(white for white in _WHITES if white >= most)
        if fits > self._white:
            self._white = fits
            self._stretched = False
            black, white = 0, fits
        elif self._stretched:
            outside = np.count_nonzero((values < self.black) | (values > self.white))
            if outside <= _OUTSIDE * values.size:
                return
            black, white = 0, self._white
        else:
            return
        if grey and high - low < self._white / _LOW_CONTRAST:
            span = max(high - low, _LEAST_SPAN)
            middle = (low + high) / 2
            black = max(0, round(middle - span))
            white = min(65535, round(middle + span))
            self._stretched = True
        else:
            self._stretched = False
        if (black, white) != (self.black, self.white):
            self.black, self.white = black, white
            self._table = _table(black, white)
            self.changes += 1


def _table(black: int, white: int) -> np.ndarray:
    """Make the uint8 of every uint16."""
    span = white - black
    values = np.arange(65536, dtype=np.int64).clip(black, white) - black
    return ((values * 255 + span // 2) // span).astype(np.uint8)
