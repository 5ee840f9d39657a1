# SPDX-License-Identifier: Apache-2.0
"""
What happens in the room while the robot follows.

The object stands, goes, stands while its look-alike crosses before it, goes on, dashes behind a
screen, stays there, comes back and goes away. The look-alike then stands where the robot looks for
the object.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_OBJECT = (
    (0.0, 1.8, 0.0),
    (3.0, 1.8, 0.0),
    (9.0, 3.3, -0.5),
    (14.0, 3.3, -0.5),
    (21.0, 5.6, 0.0),
    (22.0, 5.6, 0.0),
    (22.7, 5.6, 0.8),
    (23.5, 5.0, 1.6),
    (27.0, 5.0, 1.6),
    (30.0, 5.6, 0.9),
    (32.5, 5.6, 0.0),
    (36.0, 5.3, -1.2),
    (37.5, 5.3, -1.2),
)
_OTHER = (
    (0.0, 2.9, -2.6),
    (9.0, 2.9, -2.6),
    (13.5, 2.8, 1.2),
    (15.0, 3.0, 2.4),
    (18.5, 6.2, 2.2),
    (21.0, 6.3, 0.7),
    (37.5, 6.3, 0.7),
)
_SCREEN = (4.4, 0.45)
SETTLED = 4.0
"""Seconds after which the robot should have come to its distance."""


@dataclass(frozen=True)
class Scenario:
    """
    Where things are, over time.

    Attributes
    ----------
    seconds : float
        It lasts.
    screen : tuple of float
        Where the screen's middle stands, metres.
    path, other_path : np.ndarray
        (N, 3), of the object and of its look-alike: seconds, and x and y in metres.

    """

    seconds: float
    screen: tuple[float, float]
    path: np.ndarray
    other_path: np.ndarray

    @classmethod
    def of(cls, seed: int, seconds: float = 0.0) -> Scenario:
        """
        Vary it.

        Parameters
        ----------
        seed : int
            Of the side, the speeds and the places.
        seconds : float
            It ends then; 0: when all has happened.

        """
        random = np.random.default_rng(seed)
        side = 1.0 if seed % 2 == 0 else -1.0
        slower = random.uniform(0.95, 1.15)
        made = []
        for points in (_OBJECT, _OTHER):
            path = np.array(points)
            path[:, 0] *= slower
            # what stands still in a path stands still in this one as well
            shift = random.uniform(-0.1, 0.1, (len(path), 2))
            for k in range(1, len(path)):
                if (path[k, 1:] == path[k - 1, 1:]).all():
                    shift[k] = shift[k - 1]
            path[1:, 1:] += shift[1:] - (shift[0] if points is _OTHER else 0)
            path[:2, 1:] = points[0][1:]
            path[:, 2] *= side
            made.append(path)
        return cls(
            seconds or float(made[0][-1, 0]), (_SCREEN[0], side * _SCREEN[1]), made[0], made[1]
        )

    def at(self, time: float) -> tuple[tuple[float, float], tuple[float, float]]:
        """Give where the object and its look-alike are: x and y in metres."""
        return _on(self.path, time), _on(self.other_path, time)


def _on(path: np.ndarray, time: float) -> tuple[float, float]:
    x, y = (float(np.interp(time, path[:, 0], path[:, k])) for k in (1, 2))
    return x, y
