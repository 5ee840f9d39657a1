# SPDX-License-Identifier: Apache-2.0
"""Where networks run."""

import torch

from drift_ros.engine.errors import CheckpointError


def resolve_device(device: str | torch.device) -> torch.device:
    """
    Turn 'auto', 'cpu' or 'cuda[:n]' into a device.

    Raises
    ------
    CheckpointError
        When the device is unknown or torch sees no such device.

    """
    if str(device) == 'auto':
        return torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    try:
        target = torch.device(device)
    except RuntimeError as error:
        raise CheckpointError(f'device {device!r} is unknown; use auto, cpu or cuda') from error
    if target.type == 'cuda' and not torch.cuda.is_available():
        raise CheckpointError(f'device {device!r}: torch sees no CUDA GPU; use auto or cpu')
    return target
