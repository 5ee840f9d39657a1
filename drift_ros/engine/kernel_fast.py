# SPDX-License-Identifier: Apache-2.0
"""
The propagation kernel, fast: what :mod:`drift_ros.engine.kernel` says, near objects only.

The labels take the place of the attention's values, so the N x RN affinity is never stored; where
all references agree, nothing is computed.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
import torch.nn.functional as F

from drift_ros.engine.kernel import attend
from drift_ros.engine.kernel_tiles import propagate_tiles

# Rows of the affinity held at once without the compiled loops.
_CHUNK = 1024


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
    """
    Propagate the labels of reference frames to the current frame by attention.

    Parameters
    ----------
    query : Tensor
        (heads, h, w, d) floating point, queries of the current frame.
    keys : Tensor or sequence of Tensor
        (R, heads, h, w, d), or R times (heads, h, w, d): keys of the R references, same device as
        ``query``; half precision is widened to the query's.
    labels : Tensor
        (R, h, w, C) in [0, 1], one distribution over background and objects per position.
    radius : int or sequence of int, optional
        A query sees only the keys of the square window of ``2 radius + 1`` positions around its
        own place; one radius for all references, or one for each. None: every position.
    top_k : int
        Keep only the ``top_k`` largest affinities of each query, over all references jointly, and
        renormalise. 0: keep all.
    temperature : float
        Divides the logits; below 1 the kernel is sharper than the network's own attention.
    head_weights : Tensor, optional
        (heads,) non-negative, sum 1. None: uniform. Heads of weight 0 are not computed.

    Returns
    -------
    Tensor
        (h, w, C) in [0, 1], float of ``query``'s type; sums to 1 over C where the labels do.

    Raises
    ------
    ValueError
        When shapes do not fit, or ``temperature`` is not positive.

    """
    _, height, width, dim = query.shape
    if labels.shape[:3] != (len(keys), height, width) or any(
        key.shape != query.shape for key in keys
    ):
        raise ValueError(
            f'shapes do not fit: query {tuple(query.shape)}, '
            f'keys {[tuple(key.shape) for key in keys]}, labels {tuple(labels.shape)}'
        )
    if temperature <= 0:
        raise ValueError(f'temperature is {temperature}; it must be above 0')
    labels = labels.to(query.dtype)
    radii = [radius] * len(keys) if radius is None or isinstance(radius, int) else list(radius)
    if len(radii) != len(keys):
        raise ValueError(f'{len(radii)} radii are given for {len(keys)} references')
    whole = max(height, width)
    reaches = [whole if reach is None else min(reach, whole) for reach in radii]
    if head_weights is None:
        head_weights = query.new_full((len(query),), 1.0 / len(query))
    used = head_weights.nonzero()[:, 0]
    if 0 < len(used) < len(query):
        query, head_weights = query[used], head_weights[used]
        keys = [key[used] for key in keys]
    mix = head_weights.to(query.dtype)
    query = query * (dim**-0.5 / temperature)
    if min(reaches) == whole:
        return _propagate_everywhere(query, keys, labels, top_k, mix)
    # Where all references hold one label vector only, that is the answer whatever the affinities
    # are: queries far from every object cost nothing. The smallest window decides; what only a
    # wider one holds has not come near yet.
    settled = _uniform(labels, min(reaches))
    out = labels[0].clone()
    rows, columns = (_span(~settled.all(dim=axis)) for axis in (1, 0))
    if rows.stop > rows.start:
        # nothing beyond what these see is looked at
        far = max(reaches)
        seen = tuple(slice(max(part.start - far, 0), part.stop + far) for part in (rows, columns))
        near = propagate_tiles if query.device.type == 'cpu' else propagate_rows
        cut = (slice(None), *seen)
        found = near(
            query[cut],
            [key[cut] for key in keys],
            labels[cut],
            reaches,
            top_k,
            mix,
            ~settled[seen],
        )
        out[seen] = torch.where(settled[seen][..., None], out[seen], found)
    return out


def _uniform(labels: Tensor, reach: int) -> Tensor:
    """Whether all references hold one label vector around a place: (R, h, w, C) to (h, w)."""
    first = labels[0]
    differ = (labels[1:] != first).any(dim=-1).any(dim=0).float()  # (h, w)
    broken = _dilated(differ, (2 * reach + 1, 2 * reach + 1), (reach, reach))
    if reach:  # from one place to the next there is an edge; a window holds one edge fewer
        for axis, size in enumerate(((2 * reach, 2 * reach + 1), (2 * reach + 1, 2 * reach))):
            count = first.shape[axis] - 1
            edges = first.narrow(axis, 1, count) != first.narrow(axis, 0, count)
            broken = torch.maximum(
                broken, _dilated(edges.any(dim=-1).float(), size, (reach, reach))
            )
    return broken == 0.0


def _dilated(values: Tensor, size: tuple[int, int], around: tuple[int, int]) -> Tensor:
    """Give the largest of (h, w) in rectangles of a size; there are 0s so far around."""
    padded = F.pad(values, (around[1], around[1], around[0], around[0]))[None]
    down = F.max_pool2d(padded, (size[0], 1), 1)
    return F.max_pool2d(down, (1, size[1]), 1)[0]


def _span(wanted: Tensor) -> slice:
    """From the first to the last that is True in (n,)."""
    places = wanted.nonzero()[:, 0].tolist()
    return slice(places[0], places[-1] + 1) if places else slice(0, 0)


def propagate_rows(
    query: Tensor,
    keys: Sequence[Tensor],
    labels: Tensor,
    reaches: Sequence[int],
    top_k: int,
    mix: Tensor,
    wanted: Tensor,
) -> Tensor:
    """Propagate by batched products of some rows of queries and all that they may see."""
    height, width = query.shape[1:3]
    place = torch.arange(width, device=query.device)
    aside = (place[:, None] - place).abs()  # (queries, keys) of a row
    step = max(_CHUNK // width, 1)
    parts = []
    for top in range(0, height, step):
        bottom = min(top + step, height)
        seen, hidden, values = [], [], []
        for key, label, reach in zip(keys, labels, reaches, strict=True):
            band = slice(max(top - reach, 0), bottom + reach)
            seen.append(key[:, band].to(query.dtype).flatten(1, 2))
            values.append(label[band].flatten(0, 1))
            down = torch.arange(height, device=query.device)
            far = (down[top:bottom, None] - down[band]).abs() > reach
            hidden.append((far[:, None, :, None] | (aside > reach)[None, :, None]).flatten(2))
        logits = query[:, top:bottom].flatten(1, 2) @ torch.cat(seen, dim=1).transpose(1, 2)
        logits = logits.masked_fill_(torch.cat(hidden, dim=2).flatten(0, 1), float('-inf'))
        found = attend(logits, torch.cat(values), top_k)
        parts.append(torch.einsum('hnc,h->nc', found, mix))
    return torch.cat(parts).view(height, width, -1)


def _propagate_everywhere(
    query: Tensor, keys: Sequence[Tensor] | Tensor, labels: Tensor, top_k: int, mix: Tensor
) -> Tensor:
    height, width = query.shape[1:3]
    flat_query = query.flatten(1, 2)  # (heads, N, d)
    flat_keys = torch.cat([key.flatten(1, 2).to(query.dtype) for key in keys], dim=1)
    values = labels.flatten(0, 2)  # (R * N, C)
    rows = []
    for chunk in flat_query.split(_CHUNK, dim=1):
        if 0 < top_k < len(values):
            found = attend(chunk @ flat_keys.transpose(1, 2), values, top_k)
        else:
            found = _attend_fused(chunk, flat_keys, values)
        rows.append(torch.einsum('hnc,h->nc', found, mix))
    return torch.cat(rows).view(height, width, -1)


def _attend_fused(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attend from (heads, n, d) to (heads, m, d) with values (m, C): (heads, n, C)."""
    # The fused kernels want values as wide as the keys: pad, or take the channels in groups.
    dim = query.shape[-1]
    parts = []
    for group in value.split(dim, dim=-1):
        padded = F.pad(group, (0, dim - group.shape[-1])).expand(key.shape[0], -1, -1)
        attended = F.scaled_dot_product_attention(query[None], key[None], padded[None], scale=1.0)
        parts.append(attended[0, ..., : group.shape[-1]])
    return torch.cat(parts, dim=-1)
