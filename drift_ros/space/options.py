# SPDX-License-Identifier: Apache-2.0
"""Options of places in space, declared once; node parameters are made from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
import math
from typing import Any

from drift_ros.engine.options import option


@dataclass(frozen=True)
class SpaceOptions:
    """How the tracker tells where objects are."""

    depth_transport: str = option(
        'raw',
        'raw: sensor_msgs/Image on depth; compressedDepth: PNG on depth/compressedDepth; none: no '
        'depth is subscribed to.',
        applies='activate',
        choices=('raw', 'compressedDepth', 'none'),
    )
    depth_scale: float = option(
        0.0,
        'Metres that 1 in a depth image stands for. 0: as its encoding says, 0.001 for 16UC1 and '
        '1 for 32FC1.',
        applies='activate',
        low=0.0,
        high=1000.0,
    )
    depth_tolerance: float = option(
        0.0,
        'Seconds by which the stamps of an image and its depth may differ. 0: half a period of '
        'the images.',
        applies='activate',
        low=0.0,
        high=10.0,
    )
    rectified: bool = option(
        False,
        'The images are rectified: P of camera_info holds. false: K and the distortion D.',
        applies='activate',
    )
    target: str = option(
        '',
        'Object whose pose and bearing are published, by id or name. Empty: the one that was '
        'seeded first, until it is removed and others are left.',
        applies='now',
    )
    sizes: tuple[str, ...] = option(
        (),
        'Known sizes for distances without depth, NAME=METRES or ID=METRES: the longer side of '
        "the object's outline.",
        applies='now',
    )
    publish_tf: bool = option(
        False, 'Publish the place of every object that is seen on /tf.', applies='activate'
    )
    tf_prefix: str = option(
        'object_', 'Frames on /tf are called by this and the id.', applies='activate'
    )
    stamp_tolerance: float = option(
        0.5,
        "Seconds by which an image's stamp may lie in the future; beyond, no pose is published.",
        applies='now',
        low=0.0,
        high=3600.0,
    )


@dataclass(frozen=True)
class SpaceConfig:
    """The options of places, as a group of the tracker's parameters."""

    space: SpaceOptions = field(default_factory=SpaceOptions)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> SpaceConfig:
        """
        Make it of values by dotted name.

        Raises
        ------
        ValueError
            ``space.sizes`` is not as it should be.

        """
        made = cls(SpaceOptions(**{key.partition('.')[2]: item for key, item in values.items()}))
        read_sizes(made.space.sizes)
        return made


def read_sizes(entries: tuple[str, ...]) -> dict[str, float]:
    """
    Read known sizes: name or id -> metres.

    Raises
    ------
    ValueError
        An entry is not NAME=METRES.

    """
    sizes = {}
    for entry in entries:
        name, mark, text = entry.rpartition('=')
        try:
            size = float(text)
        except ValueError:
            size = math.nan
        if not (mark and name and 0 < size < math.inf):
            raise ValueError(
                f'space.sizes has {entry!r}; entries are NAME=METRES or ID=METRES, such as cup=0.1'
            )
        sizes[name] = size
    return sizes
