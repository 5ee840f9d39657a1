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
    from drift_ros.api import Tracker
    from drift_ros.engine.config import TrackerConfig
    from drift_ros.engine.errors import (
        CheckpointError,
        DriftRosError,
        FrameError,
        PromptError,
        SeedError,
        UnknownObjectError,
    )
    from drift_ros.engine.results import ObjectEstimate, TrackResult
    from drift_ros.engine.seeds import SeedRequest
    from drift_ros.engine.table import ObjectInfo, ObjectState
    from drift_ros.prompts.segmenter import Prompt, Segmentation

_EXPORTS = {
    'CheckpointError': 'engine.errors',
    'DriftRosError': 'engine.errors',
    'FrameError': 'engine.errors',
    'ObjectEstimate': 'engine.results',
    'ObjectInfo': 'engine.table',
    'ObjectState': 'engine.table',
    'Prompt': 'prompts.segmenter',
    'PromptError': 'engine.errors',
    'SeedError': 'engine.errors',
    'SeedRequest': 'engine.seeds',
    'Segmentation': 'prompts.segmenter',
    'TrackResult': 'engine.results',
    'Tracker': 'api',
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
    'TrackerConfig',
    'UnknownObjectError',
]
__version__ = '0.1.0'


def __getattr__(name: str) -> object:
    """Import on first use (PEP 562), so that a command's ``--help`` does not wait for torch."""
    if name not in _EXPORTS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_EXPORTS[name]}'), name)
