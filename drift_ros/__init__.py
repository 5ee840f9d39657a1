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

import os

from drift_ros import starting

starting.end_quietly_as_program()

import lazy_loader  # noqa: E402

# torch's threads wait awake for some 50 microseconds, from one operation to the next, and then
# leave the processor to others; their own default of 300,000 turns spins for over 10 ms, during
# which the thread that is waited for may get no processor. OpenMP reads this when torch is loaded.
if not os.environ.get('OMP_WAIT_POLICY'):
    os.environ.setdefault('GOMP_SPINCOUNT', '1000')

__version__ = '0.2.0'

# What __init__.pyi names is imported on first use: a command's --help does not wait for torch.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
