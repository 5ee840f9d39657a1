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
from drift_ros.engine.key_tiles import Keys

# Rows of the affinity held at once without the compiled loops.
_CHUNK = 1024


def propagate(
    query: Tensor,
    keys: Sequence[Tensor] | Sequence[Keys] | Tensor,
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
    keys : Tensor, or sequence of Tensor or Keys
        (R, heads, h, w, d), or R times (heads, h, w, d): keys of the R references, same device as
        ``query``; half precision is widened to the query's. What is made of :class:`Keys` is kept
        for the next call.
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
    held = [key if isinstance(key, Keys) else Keys(key) for key in keys]
    if labels.shape[:3] != (len(held), height, width) or any(
        each.key.shape != query.shape for each in held
    ):
        raise ValueError(
            f'shapes do not fit: query {tuple(query.shape)}, '
            f'keys {[tuple(each.key.shape) for each in held]}, labels {tuple(labels.shape)}'
        )
    if temperature <= 0:
        raise ValueError(f'temperature is {temperature}; it must be above 0')
    labels = labels.to(query.dtype)
    radii = [radius] * len(held) if radius is None or isinstance(radius, int) else list(radius)
    if len(radii) != len(held):
        raise ValueError(f'{len(radii)} radii are given for {len(held)} references')
    whole = max(height, width)
    reaches = [whole if reach is None else min(reach, whole) for reach in radii]
    if head_weights is None:
        head_weights = query.new_full((len(query),), 1.0 / len(query))
    mix = head_weights.to(query.dtype)
    query = query * (dim**-0.5 / temperature)
    if min(reaches) == whole:
        return _propagate_everywhere(query, held, labels, top_k, mix)
    # Where all references hold one label vector only, that is the answer whatever the affinities
    # are: queries far from every object cost nothing. The smallest window decides; what only a
    # wider one holds has not come near yet.
    wanted = ~_uniform(labels, min(reaches))
    if not wanted.any():
        return labels[0].clone()
    near = propagate_tiles if query.device.type == 'cpu' else propagate_rows
    found = near(query, held, labels, reaches, top_k, mix, wanted)
    return torch.where(wanted[..., None], found, labels[0])


def _uniform(labels: Tensor, reach: int) -> Tensor:
    """Whether all references hold one label vector around a place: (R, h, w, C) to (h, w)."""
    first = labels[0]
    broken = _near((labels[1:] != first).any(dim=-1).any(dim=0), reach, (0, 0))
    if reach:
        for axis in (0, 1):
            count = first.shape[axis] - 1
            edges = first.narrow(axis, 1, count) != first.narrow(axis, 0, count)
            broken |= _near(edges.any(dim=-1), reach, (int(axis == 0), int(axis == 1)))
    return ~broken


def _near(marked: Tensor, reach: int, fewer: tuple[int, int]) -> Tensor:
    """
    Tell whether anything is marked, (h, w) bool, within windows around places.

    From one place to the next there is an edge: of edges there are fewer, and a window holds
    fewer.
    """
    padded = F.pad(marked.int(), (reach + 1, reach, reach + 1, reach))
    count = padded.cumsum(dim=0).cumsum(dim=1)
    high, wide = (2 * reach + 1 - less for less in fewer)
    return (
        count[high:, wide:] - count[:-high, wide:] - count[high:, :-wide] + count[:-high, :-wide]
    ) > 0


def propagate_rows(
    query: Tensor,
    keys: Sequence[Keys],
    labels: Tensor,
    reaches: Sequence[int],
    top_k: int,
    mix: Tensor,
    wanted: Tensor,
) -> Tensor:
    """
    Propagate by batched products of some rows of queries and all that they may see.

    As :func:`~drift_ros.engine.kernel_tiles.propagate_tiles`; not computed is what lies further
    than any radius from all that is wanted.
    """
    query, known, mix = _used(query, keys, mix)
    whole = labels.new_zeros(labels.shape[1:])
    # nothing beyond what those that are wanted see is looked at
    cut = tuple(_span(wanted.any(dim=axis), max(reaches)) for axis in (1, 0))
    near = (slice(None), *cut)
    query, known, labels = query[near], [key[near] for key in known], labels[near]
    height, width = query.shape[1:3]
    place = torch.arange(width, device=query.device)
    aside = (place[:, None] - place).abs()  # (queries, keys) of a row
    step = max(_CHUNK // width, 1)
    parts = []
    for top in range(0, height, step):
        bottom = min(top + step, height)
        seen, hidden, values = [], [], []
        for key, label, reach in zip(known, labels, reaches, strict=True):
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
    whole[cut] = torch.cat(parts).view(height, width, -1)
    return whole


def _used(query: Tensor, keys: Sequence[Keys], mix: Tensor) -> tuple[Tensor, list[Tensor], Tensor]:
    """Leave out heads of weight 0, if any has another."""
    used = mix.nonzero()[:, 0]
    if len(used) in (0, len(mix)):
        return query, [each.key for each in keys], mix
    return query[used], [each.key[used] for each in keys], mix[used]


def _span(wanted: Tensor, reach: int) -> slice:
    """From the first to the last that is True in (n,), and so many more on either side."""
    places = wanted.nonzero()[:, 0].tolist()
    return slice(max(places[0] - reach, 0), places[-1] + 1 + reach)


def _propagate_everywhere(
    query: Tensor, keys: Sequence[Keys], labels: Tensor, top_k: int, mix: Tensor
) -> Tensor:
    query, known, mix = _used(query, keys, mix)
    height, width = query.shape[1:3]
    flat_query = query.flatten(1, 2)  # (heads, N, d)
    flat_keys = torch.cat([key.flatten(1, 2).to(query.dtype) for key in known], dim=1)
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
