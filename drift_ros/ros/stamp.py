# SPDX-License-Identifier: Apache-2.0
"""
Stamps: nanoseconds in this package, builtin_interfaces/Time in messages.

Everything that has ``sec`` and ``nanosec`` is read, also what bags give. Imports no ROS.
"""

from __future__ import annotations

import struct
from typing import Any, TYPE_CHECKING

if TYPE_CHECKING:
    from builtin_interfaces.msg import Time

_SECOND = 10**9
_CDR_STAMP = 4  # where a serialised message that begins with a header has its stamp


def nanoseconds(stamp: Any) -> int:
    """
    Read a stamp.

    Parameters
    ----------
    stamp : builtin_interfaces/Time, or anything with ``sec`` and ``nanosec``

    Returns
    -------
    int
        Nanoseconds.

    """
    return int(stamp.sec) * _SECOND + int(stamp.nanosec)


def message(stamp: int) -> Time:
    """Make a builtin_interfaces/Time of nanoseconds."""
    from builtin_interfaces.msg import Time

    seconds, rest = divmod(stamp, _SECOND)
    return Time(sec=seconds, nanosec=rest)


def text(stamp: int) -> str:
    """Write nanoseconds as seconds with nine decimals, for people."""
    return f'{stamp // _SECOND}.{stamp % _SECOND:09d}'


def of_serialized(data: bytes) -> int:
    """Read the stamp, in nanoseconds, of a serialised message (CDR) that begins with a header."""
    seconds, rest = struct.unpack_from(f'{_byte_order(data)}iI', data, _CDR_STAMP)
    return seconds * _SECOND + rest


def restamp(data: bytes, stamp: int) -> bytes:
    """Set the stamp, in nanoseconds, of a serialised message (CDR) that begins with a header."""
    head, tail = bytes(data[:_CDR_STAMP]), bytes(data[_CDR_STAMP + 8 :])
    return head + struct.pack(f'{_byte_order(data)}iI', *divmod(stamp, _SECOND)) + tail


def _byte_order(data: bytes) -> str:
    """Tell the byte order from the encapsulation, CDR's first four bytes."""
    return '<' if data[1] & 1 else '>'
