# SPDX-License-Identifier: Apache-2.0
"""
Follow any object a camera sees from one mask, online, with an image diffusion model's attention.

>>> from drift_ros import Tracker
>>> tracker = Tracker()                                   # the embedded model
>>> cup, box = tracker.seed(frame, label_mask, names=('cup', 'box'))
>>> for frame in frames:                                  # (H, W, 3) uint8 RGB
...     result = tracker.step(frame)
...     result.labels                                     # (H, W), pixel = object id, 0 = background

Nothing here imports ROS; the nodes are in :mod:`drift_ros.nodes`.
"""

import importlib

_EXPORTS = {
    'CheckpointError': 'errors',
    'DriftRosError': 'errors',
    'FrameError': 'errors',
    'ObjectEstimate': 'objects',
    'ObjectInfo': 'objects',
    'ObjectState': 'objects',
    'SeedError': 'errors',
    'SeedRequest': 'objects',
    'TrackResult': 'tracker',
    'Tracker': 'tracker',
    'TrackerConfig': 'config',
    'UnknownObjectError': 'errors',
}
__all__ = [*_EXPORTS]  # noqa: PLE0604
__version__ = '0.1.0'


def __getattr__(name: str) -> object:
    """Import on first use (PEP 562), so that a command's ``--help`` does not wait for torch."""
    if name not in _EXPORTS:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_EXPORTS[name]}'), name)
