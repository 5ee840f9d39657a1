# SPDX-License-Identifier: Apache-2.0
"""
Temporal propagation kernel: self-attention across frames whose values are labels.

Source: DRIFT (arXiv 2511.19936), section 3. For the current frame t, references r and one
attention head, ``A = softmax(Q^t [K^1 .. K^R]^T / sqrt(d))``, the softmax taken jointly over the
positions of all references, and the labels of the current frame are ``A [Y^1 .. Y^R]``.

This is the kernel as one reads it. What runs is :mod:`drift_ros.engine.kernel_fast`, which gives
the same without ever holding the affinity of all positions; tests compare the two.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
import torch.nn.functional as F


def propagate(
    query: Tensor,
    keys: Sequence[Tensor] | Tensor,
    labels: Tensor,
    *,
    radius: int | Sequence[int | None] | None = None,
    top_k: int = 0,
    temperature: float = 1.0,
    head_weights: Tensor | None = None,
) -> Tensor:
    """Propagate labels; for the arguments see :mod:`drift_ros.engine.kernel_fast`."""
    heads, height, width, dim = query.shape
    radii = list(radius) if isinstance(radius, Sequence) else [radius] * len(keys)
    flat_keys = torch.cat([key.to(query).flatten(1, 2) for key in keys], dim=1)  # (heads, R N, d)
    logits = query.flatten(1, 2) @ flat_keys.transpose(1, 2) * (dim**-0.5 / temperature)
    grid = torch.cartesian_prod(torch.arange(height), torch.arange(width)).to(query.device)
    away = (grid[:, None] - grid).abs().amax(dim=-1)  # (N, N)
    whole = max(height, width)
    hidden = torch.cat([away > (whole if reach is None else reach) for reach in radii], dim=1)
    logits = logits.masked_fill(hidden, float('-inf'))  # (heads, N, R N)
    found = attend(logits, labels.to(query).flatten(0, 2), top_k)  # (heads, N, C)
    if head_weights is None:
        head_weights = query.new_full((heads,), 1.0 / heads)
    return torch.einsum('hnc,h->nc', found, head_weights.to(query)).view(height, width, -1)


def attend(logits: Tensor, values: Tensor, top_k: int) -> Tensor:
    """
    Average values by the softmax of logits, over the largest of these only.

    Parameters
    ----------
    logits : Tensor
        (..., n, m) floating point; -inf hides a key.
    values : Tensor
        (m, C).
    top_k : int
        How many of a query's m logits count. 0: all.

    Returns
    -------
    Tensor
        (..., n, C).

    """
    if not 0 < top_k < logits.shape[-1]:
        return logits.softmax(dim=-1) @ values
    best, place = logits.topk(top_k, dim=-1, sorted=False)
    return mix(best, place, values)


def mix(logits: Tensor, rows: Tensor, values: Tensor) -> Tensor:
    """Average ``values[rows]`` by the softmax of logits, (..., n, k) both: (..., n, C)."""
    return torch.einsum('...nk,...nkc->...nc', logits.softmax(dim=-1), values[rows])


def resize_labels(labels: Tensor, size: Sequence[int], mode: str) -> Tensor:
    """Put labels on another token grid: (R, h, w, C) to (R, *size, C); 'area' or 'bilinear'."""
    if labels.shape[1:3] == tuple(size):
        return labels
    options = {} if mode == 'area' else {'align_corners': False}
    resized = F.interpolate(labels.permute(0, 3, 1, 2), tuple(size), mode=mode, **options)
    return resized.permute(0, 2, 3, 1)
