# SPDX-License-Identifier: Apache-2.0
"""
Quality of service of everything this package publishes and subscribes to, in one place.

A subscription gets a publisher's messages only if it asks for no more than is offered: a reliable
publisher serves best-effort subscriptions, not the other way round.
"""

from __future__ import annotations

from collections.abc import Iterable

from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy

LIVE_IMAGES = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
"""The tracker's images: any camera is heard, and the newest frame wins."""

ALL_IMAGES = QoSProfile(history=HistoryPolicy.KEEP_ALL, reliability=ReliabilityPolicy.RELIABLE)
"""The tracker's images in replay: none is dropped, a reliable publisher is held back."""

CAMERA = QoSProfile(depth=2, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Images published as drivers do: what nobody took in time is gone."""

PLAYED_IMAGES = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
"""Images of the player, and the answers it waits for: nothing may be lost."""

RESULTS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
"""Masks, detections, tracks and seeds. Serves best-effort subscriptions as well."""

PICTURES = QoSProfile(depth=2, reliability=ReliabilityPolicy.RELIABLE)
"""The overlay: large, for people, and of no use once a newer one is there."""

POSES = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
"""Pose and bearing of what is followed, the newest alone; as nav2's following server asks."""

COMMANDS = QoSProfile(depth=1, reliability=ReliabilityPolicy.RELIABLE)
"""Velocities: an old one must not follow a new one."""

CAMERA_INFO = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Calibrations: any camera is heard."""

LIVE_DEPTH = QoSProfile(depth=5, reliability=ReliabilityPolicy.BEST_EFFORT)
"""Depth images: some that were taken about the image's time are there to choose from."""

ALL_DEPTH = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
"""Depth images in replay."""

TRANSFORMS = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
"""/tf, as tf2 has it."""

STATIC_TRANSFORMS = QoSProfile(
    depth=100,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
"""/tf_static, as tf2 has it."""

LATCHED = QoSProfile(
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
"""The names of the objects: who subscribes late gets the last message too."""

DIAGNOSTICS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
"""/diagnostics, as its aggregators expect."""

CLICKS = QoSProfile(depth=10, reliability=ReliabilityPolicy.RELIABLE)
"""Points a person clicked on."""

LISTENING = QoSProfile(depth=100, reliability=ReliabilityPolicy.RELIABLE)
"""Results in a client: it may be busy for a while and still gets all of them."""


def recording(offered: Iterable[QoSProfile]) -> QoSProfile:
    """
    Give the profile that gets everything from all publishers of a topic.

    Parameters
    ----------
    offered : iterable of QoSProfile
        What the publishers offer.

    Returns
    -------
    QoSProfile
        Reliable, and transient local, where all of them are. The history the publishers may need
        is their own business; this one is deep, as a recording must not lose anything.

    """
    profiles = list(offered)
    reliable = all(item.reliability == ReliabilityPolicy.RELIABLE for item in profiles)
    latched = all(item.durability == DurabilityPolicy.TRANSIENT_LOCAL for item in profiles)
    return QoSProfile(
        depth=100,
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )
