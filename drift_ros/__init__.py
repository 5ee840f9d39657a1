# SPDX-License-Identifier: Apache-2.0
"""
Follow any object a camera sees from one mask, online, with an image diffusion model's attention.

>>> from drift_ros import Tracker
>>> tracker = Tracker()                              # the embedded model
>>> ids = tracker.seed(frame, label_mask, names=('cup', 'box'))
>>> for frame in frames:                             # (H, W, 3) uint8 RGB
...     result = tracker.step(frame)
...     result.labels                                # (H, W), pixel = object id, 0 = background

Nothing here imports ROS but :class:`TrackerClient`, when it is used: it talks to the tracker node,
which is in :mod:`drift_ros.nodes` with the others.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from drift_ros.engine.config import TrackerConfig
    from drift_ros.engine.errors import (
        CheckpointError,
        DriftRosError,
        FrameError,
        PromptError,
        SeedError,
        UnknownObjectError,
    )
    from drift_ros.engine.table import ObjectEstimate, ObjectInfo, ObjectState, SeedRequest
    from drift_ros.engine.tracker import Tracker, TrackResult
    from drift_ros.prompts.segmenter import Prompt, Segmentation
    from drift_ros.ros.client import TrackerClient

_EXPORTS = {
    'CheckpointError': 'engine.errors',
    'DriftRosError': 'engine.errors',
    'FrameError': 'engine.errors',
    'ObjectEstimate': 'engine.table',
    'ObjectInfo': 'engine.table',
    'ObjectState': 'engine.table',
    'Prompt': 'prompts.segmenter',
    'PromptError': 'engine.errors',
    'SeedError': 'engine.errors',
    'SeedRequest': 'engine.table',
    'Segmentation': 'prompts.segmenter',
    'TrackResult': 'engine.tracker',
    'Tracker': 'engine.tracker',
    'TrackerClient': 'ros.client',
    'TrackerConfig': 'engine.config',
    'UnknownObjectError': 'engine.errors',
}
__all__ = [
    'CheckpointError',
    'DriftRosError',
    'FrameError',
    'ObjectEstimate',
    'ObjectInfo',
    'ObjectState',
    'Prompt',
    'PromptError',
    'SeedError',
    'SeedRequest',
    'Segmentation',
    'TrackResult',
    'Tracker',
    'TrackerClient',
    'TrackerConfig',
    'UnknownObjectError',
]
__version__ = '0.1.0'


def __getattr__(name: str) -> object:
    """Import on first use (PEP 562), so that a command's ``--help`` does not wait for torch."""
    if name not in _EXPORTS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_EXPORTS[name]}'), name)
