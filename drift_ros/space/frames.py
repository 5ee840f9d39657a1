# SPDX-License-Identifier: Apache-2.0
"""
Where frames lie in each other, over time.

What tf2 does for C++ programs and for installed ROS, in the little that is needed here: its Python
library is no wheel. Times are nanoseconds.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
import threading

import numpy as np
from scipy.spatial.transform import Rotation, Slerp


class FrameError(LookupError):
    """Two frames are not connected, or not at that time; the text says which and what to do."""


@dataclass(frozen=True)
class Transform:
    """
    Where a frame lies in another one.

    Attributes
    ----------
    translation : np.ndarray
        (3,) metres.
    rotation : Rotation

    """

    translation: np.ndarray
    rotation: Rotation

    def __call__(self, points: np.ndarray) -> np.ndarray:
        """Carry points (..., 3) from the inner frame to the outer one."""
        return self.rotation.apply(points) + self.translation

    def __matmul__(self, inner: Transform) -> Transform:
        """Put one after another."""
        return Transform(self(inner.translation), self.rotation * inner.rotation)

    @property
    def inverse(self) -> Transform:
        """The way back."""
        back = self.rotation.inv()
        return Transform(-back.apply(self.translation), back)


IDENTITY = Transform(np.zeros(3), Rotation.identity())


class FrameTree:
    """
    Frames that lie in their parents, now and up to ``seconds`` ago. Thread safe.

    Between two stamps a transform is interpolated; after the last one it holds on for
    ``extrapolation`` seconds.
    """

    def __init__(self, seconds: float = 10.0, extrapolation: float = 0.3) -> None:
        """Know no frames."""
        self._lock = threading.Lock()
        self._seconds, self._extrapolation = int(seconds * 1e9), int(extrapolation * 1e9)
        self._parents: dict[str, str] = {}
        self._static: dict[str, Transform] = {}
        self._times: dict[str, list[int]] = {}
        self._moves: dict[str, list[Transform]] = {}

    def add(
        self,
        parent: str,
        child: str,
        when: int,
        translation: tuple[float, float, float],
        quaternion: tuple[float, float, float, float],
        static: bool = False,
    ) -> None:
        """
        Say where a frame lies.

        Parameters
        ----------
        parent, child : str
        when : int
            Nanoseconds; without meaning where ``static``.
        translation : tuple of float
            Metres.
        quaternion : tuple of float
            x, y, z, w.
        static : bool
            It stays there.

        Raises
        ------
        FrameError
            Numbers are not finite, or the quaternion is zero: what is known stays.

        """
        numbers = np.array([*translation, *quaternion], float)
        if not np.isfinite(numbers).all() or not np.linalg.norm(numbers[3:]) > 1e-6:
            raise FrameError(
                f'the transform from {parent!r} to {child!r} is none ({numbers.tolist()}): look '
                'for the node that sends it'
            )
        made = Transform(numbers[:3], Rotation.from_quat(numbers[3:]))
        with self._lock:
            self._parents[child] = parent
            if static:
                self._static[child] = made
                return
            self._static.pop(child, None)
            times, moves = self._times.setdefault(child, []), self._moves.setdefault(child, [])
            if times and when < times[-1] - self._seconds:  # time jumped back
                times.clear()
                moves.clear()
            place = bisect_left(times, when)
            if place < len(times) and times[place] == when:
                moves[place] = made
            else:
                times.insert(place, when)
                moves.insert(place, made)
            first = bisect_left(times, times[-1] - self._seconds)
            del times[:first], moves[:first]

    def lookup(self, target: str, source: str, when: int = 0) -> Transform:
        """
        Give where ``source`` lies in ``target``, so that it carries points from one to the other.

        Parameters
        ----------
        target, source : str
        when : int
            Nanoseconds; 0: each at its latest.

        Raises
        ------
        FrameError

        """
        with self._lock:
            up, down = list(self._chain(source)), list(self._chain(target))
            common = next((name for name in up if name in down), None)
            if common is None:
                raise FrameError(
                    f'there is no transform between {target!r} and {source!r}: '
                    f'{self._known(target)}, {self._known(source)}; publish it on /tf'
                )
            return self._climb(down[: down.index(common)], when).inverse @ self._climb(
                up[: up.index(common)], when
            )

    def _chain(self, name: str) -> Iterator[str]:
        seen = set()
        while name not in seen:
            yield name
            seen.add(name)
            if name not in self._parents:
                return
            name = self._parents[name]

    def _known(self, name: str) -> str:
        if name not in self._parents and name not in self._parents.values():
            return f'{name!r} is unknown'
        return f'{name!r} lies in {list(self._chain(name))[-1]!r}'

    def _climb(self, names: list[str], when: int) -> Transform:
        result = IDENTITY
        for name in names:
            result = self._at(name, when) @ result
        return result

    def _at(self, child: str, when: int) -> Transform:
        if child in self._static:
            return self._static[child]
        times, moves = self._times[child], self._moves[child]
        if not when:
            return moves[-1]
        if when >= times[-1]:
            if when - times[-1] <= self._extrapolation:
                return moves[-1]
            raise FrameError(
                f'the transform from {self._parents[child]!r} to {child!r} is '
                f'{(when - times[-1]) / 1e9:.2f} s old: look for the node that sends it'
            )
        after = bisect_left(times, when)
        if times[after] == when:
            return moves[after]
        if after == 0:
            raise FrameError(
                f'the transform from {self._parents[child]!r} to {child!r} is known since '
                f'{(times[0] - when) / 1e9:.2f} s after the time asked for'
            )
        before, next_ = moves[after - 1], moves[after]
        share = (when - times[after - 1]) / (times[after] - times[after - 1])
        turns = Slerp([0, 1], Rotation.concatenate([before.rotation, next_.rotation]))
        return Transform(
            before.translation + share * (next_.translation - before.translation), turns(share)
        )
