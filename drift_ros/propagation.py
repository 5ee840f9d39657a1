# SPDX-License-Identifier: Apache-2.0
"""
Temporal propagation kernel: self-attention across frames whose values are labels.

Source: DRIFT (arXiv 2511.19936), section 3. For the current frame t, references r and one
attention head, ``A = softmax(Q^t [K^1 .. K^R]^T / sqrt(d))``, the softmax taken jointly over the
positions of all references, and the labels of the current frame are ``A [Y^1 .. Y^R]``. The
labels take the place of the attention's values, so the N x RN affinity is never stored.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
import math

import torch
from torch import Tensor
import torch.nn.functional as F

# Queries are handled in square tiles: the smaller a tile, the fewer keys outside the window are
# computed in vain; the larger, the better the matrix products.
_TILE = 12
# Values whose maximum is looked at first when the largest are sought.
_GROUP = 16
# Rows of the affinity held at once when there is no window.
_CHUNK = 1024


def propagate(
    query: Tensor,
    keys: Tensor,
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
    keys : Tensor
        (R, heads, h, w, d), keys of the R references, same device as ``query``; half precision is
        widened to the query's.
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
    if head_weights is None:
        head_weights = query.new_full((len(query),), 1.0 / len(query))
    used = head_weights.nonzero()[:, 0]
    if 0 < len(used) < len(query):
        query, keys, head_weights = query[used], keys[:, used], head_weights[used]
    mix = head_weights[None].to(query.dtype)
    return _propagate(query, keys, labels, radius, top_k, temperature, mix)[0]


def propagate_heads(
    query: Tensor,
    keys: Tensor,
    labels: Tensor,
    *,
    radius: int | None = None,
    top_k: int = 0,
    temperature: float = 1.0,
    exclude: int = -1,
    every: int = 1,
) -> Tensor:
    """
    Propagate labels by each head alone: as :func:`propagate`, but (heads, h, w, C).

    A query does not see the keys at most ``exclude`` positions away from its own place (-1: it
    sees all): what a frame says of itself then does not come from identical tokens. Only each
    ``every``-th query of each axis is computed and returned, from position 0 on. Raises
    ValueError when ``exclude`` leaves nothing of the window, or ``every`` does not divide 12.
    """
    if every < 1 or _TILE % every:
        raise ValueError(f'every is {every}; it must divide {_TILE}')
    if exclude >= 0:
        radius = max(query.shape[1:3]) - 1 if radius is None else radius
        if exclude >= min(radius, *(side - 1 for side in query.shape[1:3])):
            raise ValueError(
                f'exclude is {exclude}; it must be below the window radius {radius} '
                f'and the grid {tuple(query.shape[1:3])}'
            )
    mix = torch.eye(len(query), dtype=query.dtype, device=query.device)
    return _propagate(query, keys, labels, radius, top_k, temperature, mix, exclude, every)


def resize_labels(labels: Tensor, size: Sequence[int], mode: str) -> Tensor:
    """Put labels on another token grid: (R, h, w, C) to (R, *size, C); 'area' or 'bilinear'."""
    if labels.shape[1:3] == tuple(size):
        return labels
    options = {} if mode == 'area' else {'align_corners': False}
    resized = F.interpolate(labels.permute(0, 3, 1, 2), tuple(size), mode=mode, **options)
    return resized.permute(0, 2, 3, 1)


def _propagate(
    query: Tensor,
    keys: Tensor,
    labels: Tensor,
    radius: int | Sequence[int | None] | None,
    top_k: int,
    temperature: float,
    mix: Tensor,
    exclude: int = -1,
    every: int = 1,
) -> Tensor:
    """Give (outputs, h, w, C); ``mix`` (outputs, heads) weighs the heads of each output."""
    _, height, width, dim = query.shape
    if keys.shape[1:] != query.shape or labels.shape[:3] != (keys.shape[0], height, width):
        raise ValueError(
            f'shapes do not fit: query {tuple(query.shape)}, keys {tuple(keys.shape)}, '
            f'labels {tuple(labels.shape)}'
        )
    if temperature <= 0:
        raise ValueError(f'temperature is {temperature}; it must be above 0')
    labels = labels.to(query.dtype)
    scale = dim**-0.5 / temperature
    radii = [radius] * len(keys) if radius is None or isinstance(radius, int) else list(radius)
    if len(radii) != len(keys):
        raise ValueError(f'{len(radii)} radii are given for {len(keys)} references')
    whole = max(height, width)
    reaches = [whole if reach is None else min(reach, whole) for reach in radii]
    if exclude < 0 and min(reaches) == whole:
        return _propagate_everywhere(query[:, ::every, ::every], keys, labels, scale, top_k, mix)
    # neighbours in the row of references that share a radius share their windows
    groups = [
        (reach, [index for index, _ in run])
        for reach, run in groupby(enumerate(reaches), key=lambda item: item[1])
    ]
    # Room for the largest tile, so that none of them has to ask the system for memory.
    most = sum(
        len(run) * min(_TILE + 2 * reach, height) * min(_TILE + 2 * reach, width)
        for reach, run in groups
    )
    key_room = query.new_empty(len(query) * most * dim)
    bias_room = query.new_empty(len(query) * (_TILE // every) ** 2 * most)
    out = labels[0].expand(len(mix), -1, -1, -1).clone()
    for y0 in range(0, height, _TILE):
        for x0 in range(0, width, _TILE):
            tile = (slice(y0, min(y0 + _TILE, height)), slice(x0, min(x0 + _TILE, width)))
            # Where all references hold one label vector only, that is the answer whatever the
            # affinities are: tiles far from every object cost nothing. The smallest window
            # decides; what only a wider one holds has not come near yet.
            near = labels[(slice(None), *_window(tile, min(reaches)))]
            if bool((near == near[0, 0, 0]).all()):
                out[(slice(None), *tile)] = near[0, 0, 0]
                continue
            part = (slice(None), *(slice(span.start, span.stop, every) for span in tile))
            tile_query = query[part].flatten(1, 2)  # (heads, tile, d)
            windows = [_window(tile, reach) for reach, _ in groups]
            views, values = [], []
            for (_, run), (rows, columns) in zip(groups, windows, strict=True):
                used = slice(run[0], run[-1] + 1)
                views.append(keys[used, :, rows, columns].transpose(0, 1))
                values.append(labels[used, rows, columns].flatten(0, 2))
            value = torch.cat(values)  # (m, C), of the keys of all windows
            key = key_room[: len(query) * len(value) * dim].view(len(query), -1, dim)
            shape = (len(query), len(value), tile_query.shape[1])
            bias = bias_room[: math.prod(shape)].view(shape)  # (heads, m, tile)
            start = 0
            for (reach, run), (rows, columns), seen in zip(groups, windows, views, strict=True):
                end = start + math.prod(seen.shape[1:4])
                key[:, start:end].view(seen.shape).copy_(seen)
                inside = _window_bias(
                    (tile[0].stop - y0, tile[1].stop - x0),
                    tuple(seen.shape[2:4]),
                    (y0 - rows.start, x0 - columns.start),
                    reach,
                    query.device,
                    exclude,
                    every,
                )
                bias[:, start:end].unflatten(1, (len(run), -1)).copy_(inside)
                start = end
            propagated = _attend(tile_query, key, value, scale, top_k, bias)  # (heads, tile, C)
            mixed = torch.einsum('hnc,oh->onc', propagated, mix)
            out[part] = mixed.view(out[part].shape)
    return out[:, ::every, ::every]


def _propagate_everywhere(
    query: Tensor, keys: Tensor, labels: Tensor, scale: float, top_k: int, mix: Tensor
) -> Tensor:
    height, width = query.shape[1:3]
    flat_query = query.flatten(1, 2)  # (heads, N, d)
    flat_keys = keys.transpose(0, 1).flatten(1, 3)  # (heads, R * N, d)
    values = labels.flatten(0, 2)  # (R * N, C)
    rows = [
        torch.einsum('hnc,oh->onc', _attend(chunk, flat_keys, values, scale, top_k, None), mix)
        for chunk in flat_query.split(_CHUNK, dim=1)
    ]
    return torch.cat(rows, dim=1).view(len(mix), height, width, -1)


def _attend(
    query: Tensor, key: Tensor, value: Tensor, scale: float, top_k: int, bias: Tensor | None
) -> Tensor:
    """
    Attend from (heads, n, d) to (heads, m, d) with values (m, C): (heads, n, C).

    ``bias``, (heads, m, n), is overwritten.
    """
    key = key.to(query.dtype)
    if not 0 < top_k < key.shape[1]:
        # The fused kernels want values as wide as the keys: pad, or take the channels in groups.
        dim = query.shape[-1]
        parts = []
        for group in value.split(dim, dim=-1):
            padded = F.pad(group, (0, dim - group.shape[-1])).expand(key.shape[0], -1, -1)
            attended = F.scaled_dot_product_attention(
                query[None], key[None], padded[None],
                attn_mask=None if bias is None else bias.transpose(1, 2)[None], scale=scale,
            )[0]
            parts.append(attended[..., : group.shape[-1]])
        return torch.cat(parts, dim=-1)
    # Keys along rows: this way round the product is faster, and so are maxima over groups.
    scaled = (query * scale).transpose(1, 2)
    logits = torch.matmul(key, scaled) if bias is None else bias.baddbmm_(key, scaled)
    best, index = _largest(logits, top_k)
    return torch.einsum('hnk,hnkc->hnc', best.softmax(dim=-1), value[index])


def _window(tile: Sequence[slice], reach: int) -> tuple[slice, ...]:
    """Rows and columns of the keys that a tile's queries see."""
    return tuple(slice(max(span.start - reach, 0), span.stop + reach) for span in tile)


def _largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """
    Find the ``count`` largest of each column of (heads, m, n), in no order.

    Values and rows, (heads, n, count) each. The largest lie in the groups with the largest
    maxima, of which at most ``count`` can hold one: so few groups, not whole columns, are sorted.
    """
    heads, length, columns = values.shape
    groups = length // _GROUP
    if groups <= count:
        return values.transpose(1, 2).topk(count, dim=-1, sorted=False)
    filled = groups * _GROUP  # what does not fill a group stands for itself
    maxima = values[:, :filled].unflatten(1, (_GROUP, groups)).amax(dim=1)
    chosen = maxima.transpose(1, 2).contiguous().topk(count, dim=-1, sorted=False).indices
    first = torch.arange(0, filled, groups, device=values.device)  # of each row of groups
    members = chosen.transpose(1, 2)[:, None] + first[:, None, None]  # (heads, _GROUP, count, n)
    rest = torch.arange(filled, length, device=values.device)[:, None].expand(heads, -1, columns)
    index = torch.cat([members.flatten(1, 2), rest], dim=1)
    candidates = values.gather(1, index).transpose(1, 2).contiguous()
    best, place = candidates.topk(count, dim=-1, sorted=False)
    return best, index.transpose(1, 2).gather(-1, place)


@lru_cache(maxsize=64)
def _window_bias(
    tile: tuple[int, int],
    region: tuple[int, int],
    offset: tuple[int, int],
    radius: int,
    device: torch.device,
    exclude: int = -1,
    every: int = 1,
) -> Tensor:
    """Give 0 inside the window and -inf outside: (region rows * columns, tile rows * columns)."""
    away = []
    for axis in range(2):
        queries = torch.arange(0, tile[axis], every, device=device) + offset[axis]
        keys = torch.arange(region[axis], device=device)
        away.append((queries[None] - keys[:, None]).abs())  # (region, tile)
    distance = torch.maximum(away[0][:, None, :, None], away[1][None, :, None, :])
    both = (distance <= radius) & (distance > exclude)
    bias = torch.zeros(both.shape, device=device).masked_fill_(~both, float('-inf'))
    return bias.view(region[0] * region[1], -1)
