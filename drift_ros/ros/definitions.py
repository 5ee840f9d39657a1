# SPDX-License-Identifier: Apache-2.0
"""Message definitions for bags, from the installed packages or this checkout. No ROS."""

from __future__ import annotations

import os
from pathlib import Path
import sys
from typing import Any

from rosbags.typesys import get_types_from_msg
from rosbags.typesys.store import Typestore


def register_type(store: Typestore, name: str) -> None:
    """
    Add a message type and all it is made of to a type store, from the installed definitions.

    :param name: such as ``vision_msgs/msg/Detection2DArray``
    :raises LookupError: the package or the definition is not installed
    """
    if name in store.fielddefs:
        return
    package, _, kind = name.split('/')
    found = get_types_from_msg(_definition(package, kind).read_text(encoding='utf-8'), name)
    for _, fields in found.values():
        for _, field in fields:
            _register_field(store, field)
    store.register(found)


def _definition(package: str, kind: str) -> Path:
    """Find a .msg file; ROS wheels in a virtual environment need no AMENT_PREFIX_PATH."""
    prefixes = [
        *filter(None, os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)),
        sys.prefix,
    ]
    checkout = Path(__file__).resolve().parents[2]
    for folder in (
        *(Path(prefix) / 'share' / package for prefix in prefixes),
        checkout / package,
        checkout / 'tools' / package,
    ):
        path = folder / 'msg' / f'{kind}.msg'
        if path.is_file():
            return path
    raise LookupError(
        f'{package}/msg/{kind} is not installed below {" or ".join(prefixes)}: '
        'source the workspace it is in'
    )


def _register_field(store: Typestore, field: Any) -> None:
    """Register what a field is made of: a name, or an array or sequence of one."""
    kind, what = field
    if kind.name == 'NAME':
        register_type(store, what)
    elif kind.name in ('ARRAY', 'SEQUENCE'):
        _register_field(store, what[0])
