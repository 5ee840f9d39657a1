# SPDX-License-Identifier: Apache-2.0
"""How fine a page's pictures may be, by what its link has carried so far. Imports no ROS."""

from __future__ import annotations

_TARGET = 0.15
"""Seconds that a picture may be on its way."""
_RATIOS = (1.0, 0.45, 0.2, 0.1, 0.045)
"""About how large a picture of each level is, against the finest."""
_KEEP = 0.7
"""Share of what was measured before in what is believed next."""


class Pace:
    """
    Measures a link and chooses a level; one picture is on its way at a time.

    Attributes
    ----------
    level : int
        Place in :data:`drift_ros.nodes.web.pictures.LEVELS`.
    round_trip : float
        Seconds that a short message and its answer take.

    """

    def __init__(self, level: int = 1) -> None:
        """Begin in the middle: a first picture shall not take long."""
        self.level = level
        self.round_trip = 0.0
        self._seconds_per_byte = 0.0

    def answered(self, seconds: float) -> None:
        """Take the time from a short message to its answer."""
        known = self.round_trip
        # what lies behind a picture waits for it: the shortest times are the true ones
        self.round_trip = seconds if not known else min(seconds, 0.9 * known + 0.1 * seconds)

    def carried(self, size: int, seconds: float) -> None:
        """
        Take the time in which a picture was carried and shown.

        Parameters
        ----------
        size : int
            Bytes.
        seconds : float

        """
        spent = max(seconds - self.round_trip, 1e-4) / max(size, 1)
        known = self._seconds_per_byte
        self._seconds_per_byte = spent if not known else _KEEP * known + (1 - _KEEP) * spent
        finest = size / _RATIOS[self.level]
        fitting = [
            level
            for level, ratio in enumerate(_RATIOS)
            # a finer level has to fit well, or the choice would go to and fro
            if finest * ratio * self._seconds_per_byte
            <= (_TARGET if level >= self.level else 0.6 * _TARGET)
        ]
        best = min(fitting, default=len(_RATIOS) - 1)
        # finer one step at a time, coarser at once
        self.level = max(best, self.level - 1)
