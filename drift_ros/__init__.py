# SPDX-License-Identifier: Apache-2.0
"""
Follow any object a camera sees from one mask, online, with an image diffusion model's attention.

>>> from drift_ros import Tracker
>>> tracker = Tracker()                              # the embedded model
>>> ids = tracker.seed(frame, label_mask, names=('cup', 'box'))
>>> for frame in frames:                             # (H, W, 3) uint8 RGB
...     result = tracker.step(frame)
...     result.labels                                # (H, W), pixel = object id, 0 = background

Nothing here imports ROS; the nodes are in :mod:`drift_ros.nodes`.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # the same names, for type checkers and editors
    from drift_ros.config import TrackerConfig
    from drift_ros.errors import (
        CheckpointError,
        DriftRosError,
        FrameError,
        PromptError,
        SeedError,
        UnknownObjectError,
    )
    from drift_ros.objects import ObjectEstimate, ObjectInfo, ObjectState, SeedRequest
    from drift_ros.refinement.segmenter import Prompt, Segmentation
    from drift_ros.tracker import Tracker, TrackResult

_EXPORTS = {
    'CheckpointError': 'errors',
    'DriftRosError': 'errors',
    'FrameError': 'errors',
    'ObjectEstimate': 'objects',
    'ObjectInfo': 'objects',
    'ObjectState': 'objects',
    'Prompt': 'refinement.segmenter',
    'PromptError': 'errors',
    'SeedError': 'errors',
    'SeedRequest': 'objects',
    'Segmentation': 'refinement.segmenter',
    'TrackResult': 'tracker',
    'Tracker': 'tracker',
    'TrackerConfig': 'config',
    'UnknownObjectError': 'errors',
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
    'TrackerConfig',
    'UnknownObjectError',
]
__version__ = '0.1.0'


def __getattr__(name: str) -> object:
    """Import on first use (PEP 562), so that a command's ``--help`` does not wait for torch."""
    if name not in _EXPORTS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_EXPORTS[name]}'), name)
