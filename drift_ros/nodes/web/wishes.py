# SPDX-License-Identifier: Apache-2.0
"""
What a page may ask, read from its JSON and checked. Imports no ROS.

>>> read_wish('{"do": "remove", "id": 7, "object": 2}')
Wish(do='remove', id=7, object=2, ...)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
import json
import math
from typing import Any
import unicodedata

LARGEST = 64 << 10
"""Bytes of a page's message at most."""
MOST_POINTS = 64
LONGEST_NAME = 120
_FIELDS = {
    'shown': ('stamp',),
    'hold': ('stamp',),
    'go': (),
    'pong': ('ping',),
    'segment': ('id', 'stamp', 'box', 'points'),
    'follow': ('id', 'proposal', 'name', 'object'),
    'rename': ('id', 'object', 'name'),
    'remove': ('id', 'object'),
    'reset': ('id',),
    'drive': ('id', 'object'),
    'halt': ('id',),
}
"""What can be asked, and with which fields."""
ASKED = ('segment', 'follow', 'rename', 'remove', 'reset', 'drive')
"""What nodes are asked in turn, and a page gets an answer to. ``halt`` waits for no turn."""


class WishError(ValueError):
    """A message that asks for nothing there is; the text says what is wrong with it."""


@dataclass(frozen=True)
class Wish:
    """
    What a page asks.

    Attributes
    ----------
    do : str
        One of the keys of the table of fields.
    id : int
        Number the answer carries.
    stamp : int
        Nanoseconds: the frame that is meant.
    box : tuple of float, optional
        (x_min, y_min, x_max, y_max) in pixels.
    points : tuple of (x, y, positive)
    proposal : int
        Number of the mask that was proposed.
    object : int
        Id of a live object; with ``follow``, 0: a new one; with ``drive``, the one that the robot
        is to follow.
    name : str
    ping : int

    """

    do: str
    id: int = 0
    stamp: int = 0
    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float, bool], ...] = ()
    proposal: int = 0
    object: int = 0
    name: str = ''
    ping: int = 0


def read_wish(text: Any) -> Wish:
    """
    Read a page's message.

    Raises
    ------
    WishError
        It is too large, no JSON, asks for nothing there is, or in the wrong way.

    """
    if not isinstance(text, str):
        raise WishError('messages are JSON texts')
    if len(text.encode(errors='replace')) > LARGEST:
        raise WishError(f'the message is longer than {LARGEST} bytes')
    try:
        given = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise WishError(f'the message is no JSON: {error}') from None
    if not isinstance(given, dict):
        raise WishError('the message is no JSON object')
    do = given.pop('do', None)
    if not isinstance(do, str) or do not in _FIELDS:
        raise WishError(f'"do" is none of {", ".join(_FIELDS)}')
    if set(given) != set(_FIELDS[do]):
        listed = ', '.join(_FIELDS[do]) or 'none'
        raise WishError(f'the fields of "{do}" are: {listed}')
    return Wish(do, **{key: _READ[key](key, value) for key, value in given.items()})


def _refuse(constant: str) -> Any:
    raise ValueError(f'{constant} is no number')


def _whole(key: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**32:
        raise WishError(f'"{key}" is no whole number from 0 to {2**32 - 1}')
    return value


def _stamp(key: str, value: Any) -> int:
    if not (isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 20):
        raise WishError(f'"{key}" is no stamp: nanoseconds as a text of digits')
    return int(value)


def _number(value: Any) -> float:
    if type(value) not in (int, float):
        raise WishError('a coordinate is no number')
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not abs(number) <= 1e6:
        raise WishError('a coordinate is no number of pixels from -1e6 to 1e6')
    return number


def _box(key: str, value: Any) -> tuple[float, float, float, float] | None:
    if value is None:
        return None
    if not isinstance(value, list) or len(value) != 4:
        raise WishError(f'"{key}" is neither null nor [x_min, y_min, x_max, y_max]')
    x_min, y_min, x_max, y_max = map(_number, value)
    return x_min, y_min, x_max, y_max


def _points(key: str, value: Any) -> tuple[tuple[float, float, bool], ...]:
    if not isinstance(value, list) or len(value) > MOST_POINTS:
        raise WishError(f'"{key}" is no list of at most {MOST_POINTS} points')
    for point in value:
        if not isinstance(point, list) or len(point) != 3 or type(point[2]) is not bool:
            raise WishError('a point is not [x, y, true or false]')
    return tuple((_number(x), _number(y), positive) for x, y, positive in value)


def _name(key: str, value: Any) -> str:
    if not isinstance(value, str) or len(value) > LONGEST_NAME:
        raise WishError(f'"{key}" is no text of at most {LONGEST_NAME} characters')
    # controls would end or garble texts further on; half a surrogate pair cannot be sent at all
    if any(unicodedata.category(letter) in ('Cc', 'Cs') for letter in value):
        raise WishError(f'"{key}" holds control characters')
    return value.strip()


_READ: dict[str, Callable[[str, Any], Any]] = {
    'id': _whole,
    'stamp': _stamp,
    'box': _box,
    'points': _points,
    'proposal': _whole,
    'object': _whole,
    'name': _name,
    'ping': _whole,
}
