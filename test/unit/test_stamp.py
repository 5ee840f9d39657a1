# SPDX-License-Identifier: Apache-2.0
"""Stamps: nanoseconds, messages, text, serialised messages."""

import struct
from types import SimpleNamespace

import pytest

from drift_ros.ros import stamp

WHEN = 1_700_000_012 * 10**9 + 34


def test_text():
    assert stamp.text(12 * 10**9 + 34) == '12.000000034'


def test_anything_with_the_two_fields_is_read():
    assert stamp.nanoseconds(SimpleNamespace(sec=12, nanosec=34)) == 12 * 10**9 + 34


@pytest.mark.parametrize('order', ['<', '>'])
def test_of_serialized_in_both_byte_orders(order):
    encapsulation = bytes([0, order == '<', 0, 0])
    data = encapsulation + struct.pack(f'{order}iI', 5, 6) + b'rest'
    assert stamp.of_serialized(data) == 5 * 10**9 + 6
    changed = stamp.restamp(data, WHEN)
    assert stamp.of_serialized(changed) == WHEN
    assert changed[:4] == encapsulation and changed[12:] == b'rest' and len(changed) == len(data)


def test_messages():
    pytest.importorskip('rclpy')
    from rclpy.serialization import serialize_message
    from std_msgs.msg import Header

    message = stamp.message(WHEN)
    assert stamp.nanoseconds(message) == WHEN
    assert stamp.of_serialized(serialize_message(Header(stamp=message))) == WHEN
