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

import lazy_loader

__version__ = '0.2.0'

# What __init__.pyi names is imported on first use: a command's --help does not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
