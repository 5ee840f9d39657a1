# SPDX-License-Identifier: Apache-2.0
"""Whether a network's weights are numbers."""

import torch


def first_not_finite(model: torch.nn.Module) -> str:
    """Name the first weight or buffer of a model that holds a NaN or infinity; '': none does."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        # the sum is finite only if all values are; of halves, in a type that holds it
        if value.is_floating_point() and not value.sum(dtype=torch.float32).isfinite():
            if not value.isfinite().all():
                return name
    return ''
