# SPDX-License-Identifier: Apache-2.0
"""Where a tracker's images come from: which topic, and whether its publishers can be heard."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rclpy.qos import qos_check_compatible, QoSCompatibility, QoSProfile
from sensor_msgs.msg import CompressedImage, Image

COMPRESSED = '/compressed'
_TYPES = {True: 'sensor_msgs/msg/CompressedImage', False: 'sensor_msgs/msg/Image'}


def choose(base: str, transport: str) -> tuple[str, type]:
    """
    Tell which topic to subscribe to, and as what.

    As image_transport does, the base topic is remapped and the transport's name follows it. A base
    topic that already ends in that name is meant as it stands, whatever the parameter says.

    Parameters
    ----------
    base : str
        What ``image`` resolves to.
    transport : str
        The parameter ``image_transport``: raw or compressed.

    >>> choose('/cam', 'compressed')[0], choose('/cam/compressed', 'compressed')[0]
    ('/cam/compressed', '/cam/compressed')

    """
    if base.endswith(COMPRESSED):
        return base, CompressedImage
    return (base + COMPRESSED, CompressedImage) if transport == 'compressed' else (base, Image)


def unheard(
    publishers: Iterable[Any], topic: str, kind: type, profile: QoSProfile
) -> tuple[str, bool]:
    """
    Say which publishers of a topic the middleware does not connect, and why.

    Parameters
    ----------
    publishers : iterable of rclpy.topic_endpoint_info.TopicEndpointInfo
    topic : str
    kind : type
        Message type of the subscription.
    profile : QoSProfile
        Of the subscription.

    Returns
    -------
    text : str
        Cause and remedy; empty where all are heard.
    all : bool
        Whether there are publishers, and none is heard.

    """
    compressed = kind is CompressedImage
    expected = _TYPES[compressed]
    reasons, heard = [], 0
    for item in publishers:
        name = f'{item.node_namespace.rstrip("/")}/{item.node_name}'
        verdict, reason = qos_check_compatible(item.qos_profile, profile)
        if item.topic_type != expected:
            reasons.append(
                f'{name} publishes {item.topic_type} on {topic}, and this node reads {expected}: '
                + _other_type(item.topic_type, compressed)
            )
        elif verdict == QoSCompatibility.ERROR:
            text = reason.replace('ERROR: ', '').strip().rstrip(';').lower()
            reasons.append(
                f'{name} offers less on {topic} than this node asks for ({text}): let it publish '
                'reliably, or set replay to false'
            )
        else:
            heard += 1
    return '; '.join(reasons), bool(reasons) and not heard


def _other_type(actual: str, compressed: bool) -> str:
    if actual != _TYPES[not compressed]:
        return 'remap image to a topic of that type ("ros2 topic list -t" lists them)'
    if compressed:
        return 'set image_transport to raw, or remap image to a camera that compresses'
    return (
        'remap image to a topic of raw images. Compressed ones are read with image_transport '
        f'compressed, from the topic that image is remapped to and {COMPRESSED}'
    )
