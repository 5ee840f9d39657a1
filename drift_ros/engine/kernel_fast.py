# SPDX-License-Identifier: Apache-2.0
"""
The propagation kernel, fast: what :mod:`drift_ros.engine.kernel` says, in tiles.

The labels take the place of the attention's values, so the N x RN affinity is never stored; where
all references agree, nothing is computed.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby
import math

import torch
from torch import Tensor
import torch.nn.functional as F

from drift_ros.engine.kernel import mix

# Queries are handled in square tiles: the smaller a tile, the fewer keys outside the window are
# computed in vain; the larger, the better the matrix products.
_TILE = 8
# Values whose maximum is looked at first when the largest are sought.
_GROUP = 8
# Logits held at once, of as many tiles as fit.
_ROOM = 2**22
# Rows of the affinity held at once when there is no window.
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
    heads, mix = len(query), head_weights.to(query.dtype)
    query = query * (dim**-0.5 / temperature)
    if min(reaches) == whole:
        return _propagate_everywhere(query, keys, labels, top_k, mix)
    # Where all references hold one label vector only, that is the answer whatever the affinities
    # are: queries far from every object cost nothing. The smallest window decides; what only a
    # wider one holds has not come near yet.
    settled = _uniform(labels, min(reaches))
    out = torch.empty_like(labels[0])
    tile = (min(_TILE, query.shape[1]), min(_TILE, query.shape[2]))
    strips = [
        (left, _starts(~settled[:, left : left + tile[1]].all(dim=1), tile[0]))
        for left in _starts(~settled.all(dim=0), tile[1])
    ]
    # neighbours in the row of references that share a radius share their windows
    windows = [
        _Windows(reach, [index for index, _ in run], tile, query, labels)
        for reach, run in groupby(enumerate(reaches), key=lambda item: item[1])
    ]
    most = sum(window.most for window in windows)
    room = max(_ROOM // (heads * most * tile[0] * tile[1]), 1)
    room = min(room, sum(len(tops) for _, tops in strips))
    logits = query.new_empty(room, heads, most, tile[0] * tile[1])
    values = labels.new_zeros(room, most, labels.shape[-1])
    tiles: list[tuple[slice, ...]] = []  # those whose logits are in the room

    def finish() -> None:
        found = _attend(logits[: len(tiles)], values[: len(tiles)], top_k)
        for part, mixed in zip(tiles, torch.einsum('bhnc,h->bnc', found, mix), strict=True):
            out[part] = mixed.unflatten(0, tile)
        tiles.clear()

    for left, tops in strips:
        for window in windows:
            window.load(keys, labels, tops, left)
        for top in tops:
            part = (slice(top, top + tile[0]), slice(left, left + tile[1]))
            seen = query[(slice(None), *part)].flatten(1, 2).transpose(1, 2)  # (heads, d, n)
            score, value = logits[len(tiles)], values[len(tiles)]
            end = 0
            for window in windows:
                end = window.score(seen, top, score, value, end)
            if end < most:  # the frame's border cuts the windows
                score[:, end:] = float('-inf')
            tiles.append(part)
            if len(tiles) == room:
                finish()
    if tiles:
        finish()
    return torch.where(settled[..., None], labels[0], out)


class _Windows:
    """
    Windows of one radius around tiles of queries, in references that are neighbours.

    Keys and labels of all rows of tiles that start at one column are laid out in the order row,
    reference, column: those in a tile's window are then one matrix, without a copy of their own.
    """

    def __init__(
        self,
        reach: int,
        members: Sequence[int],
        tile: tuple[int, int],
        query: Tensor,
        labels: Tensor,
    ) -> None:
        self._reach, self._members = reach, members
        self._grid = labels.shape[1:3]
        self._span = [side + 2 * reach for side in tile]
        height, width = (min(a, b) for a, b in zip(self._span, self._grid, strict=True))
        self.most = len(members) * height * width
        """Keys in a window at most."""
        # Room is made once: to ask the system for memory costs more than to copy into it.
        rows = len(members) * self._grid[0] * width
        self._key_room = query.new_empty(len(query) * rows * query.shape[-1])
        self._value_room = labels.new_empty(rows, labels.shape[-1])
        everything = reach >= max(self._grid)
        self._bias = None if everything else _window_bias(tile, reach, query.device)

    def load(
        self, keys: Sequence[Tensor] | Tensor, labels: Tensor, tops: Sequence[int], left: int
    ) -> None:
        """Lay out what tiles of queries see whose first rows and first column are these."""
        rows, _ = self._cut(0, tops[0])
        self._first = rows.start
        rows = slice(rows.start, self._cut(0, tops[-1])[0].stop)
        columns, self._seen = self._cut(1, left)
        heads, _, _, dim = keys[0].shape
        shape = (rows.stop - rows.start, len(self._members), columns.stop - columns.start)
        key = self._key_room[: heads * math.prod(shape) * dim].view(heads, *shape, dim)
        value = self._value_room[: math.prod(shape)].view(*shape, -1)
        for place, member in enumerate(self._members):
            key[:, :, place].copy_(keys[member][:, rows, columns])
            value[:, place].copy_(labels[member, rows, columns])
        self._shape = shape[1:]
        self._key, self._value = key.flatten(1, 3), value.flatten(0, 2)

    def score(self, query: Tensor, top: int, logits: Tensor, values: Tensor, start: int) -> int:
        """
        Write a tile's logits (heads, m, n) and the keys' labels (m, C) from row ``start`` on.

        ``query`` is (heads, d, n). Returns the row after the last one written.
        """
        rows, seen = self._cut(0, top)
        row = math.prod(self._shape)
        used = slice((rows.start - self._first) * row, (rows.stop - self._first) * row)
        end = start + used.stop - used.start
        torch.bmm(self._key[:, used], query, out=logits[:, start:end])
        if self._bias is not None:
            part = logits[:, start:end].view(len(logits), -1, *self._shape, logits.shape[-1])
            part += self._bias[seen, None, self._seen]
        values[start:end] = self._value[used]
        return end

    def _cut(self, axis: int, start: int) -> tuple[slice, slice]:
        """Give a window's keys on an axis, and which of an uncut window's they are."""
        begin = start - self._reach
        stop = min(begin + self._span[axis], self._grid[axis])
        return slice(max(begin, 0), stop), slice(max(-begin, 0), stop - begin)


def _uniform(labels: Tensor, reach: int) -> Tensor:
    """Whether all references hold one label vector around a place: (R, h, w, C) to (h, w)."""
    extremes = torch.cat([labels.amax(dim=0), -labels.amin(dim=0)], dim=-1).permute(2, 0, 1)[None]
    for axis in range(2):
        kernel, padding = [1, 1], [0, 0]
        kernel[axis], padding[axis] = 2 * reach + 1, reach
        extremes = F.max_pool2d(extremes, kernel, 1, padding)
    most, least = extremes[0].chunk(2)
    return (most == -least).all(dim=0)


def _starts(wanted: Tensor, size: int) -> list[int]:
    """Where to begin tiles of this size so that few cover all that is True in (n,)."""
    starts: list[int] = []
    for place in wanted.nonzero()[:, 0].tolist():
        if not starts or place >= starts[-1] + size:
            starts.append(min(place, len(wanted) - size))
    return starts


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
            logits = torch.matmul(flat_keys, chunk.transpose(1, 2))
            found = _attend(logits[None], values[None], top_k)[0]
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


def _attend(logits: Tensor, values: Tensor, top_k: int) -> Tensor:
    """Average values (b, m, C) by the softmax of logits (b, heads, m, n): (b, heads, n, C)."""
    batch, heads, count, _ = logits.shape
    if not 0 < top_k < count:
        return torch.matmul(logits.softmax(dim=2).transpose(2, 3), values[:, None])
    best, index = _largest(logits.flatten(0, 1), top_k)
    # rows of values.flatten(0, 1)
    index = index.unflatten(0, (batch, heads))
    index += torch.arange(0, batch * count, count, device=index.device).view(-1, 1, 1, 1)
    return mix(best.unflatten(0, (batch, heads)), index, values.flatten(0, 1))


def _largest(values: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """
    Find the ``count`` largest of each column of (b, m, n), in no order.

    Values and rows, (b, n, count) each. The largest lie in the groups with the largest maxima, of
    which at most ``count`` can hold one: so few groups, not whole columns, are sorted; and the
    largest maxima are found in the same way.
    """
    length = values.shape[1]
    groups = length // _GROUP
    if groups <= count:
        return values.transpose(1, 2).topk(count, dim=-1, sorted=False)
    filled = groups * _GROUP
    maxima = values[:, :filled].unflatten(1, (_GROUP, groups)).amax(dim=1)
    _, chosen = _largest(maxima, count)  # (b, n, count)
    first = torch.arange(0, filled, groups, device=values.device)  # of each row of groups
    index = (chosen[..., None] + first).flatten(2)
    if filled < length:  # what does not fill a group stands for itself
        rest = torch.arange(filled, length, device=values.device).expand(*chosen.shape[:2], -1)
        index = torch.cat([index, rest], dim=-1)
    best, place = values.transpose(1, 2).gather(-1, index).topk(count, dim=-1, sorted=False)
    return best, index.gather(-1, place)


@lru_cache(maxsize=16)
def _window_bias(tile: tuple[int, int], radius: int, device: torch.device) -> Tensor:
    """
    Give 0 inside the window and -inf outside: (rows, columns, tile rows * tile columns).

    Rows and columns are those of the keys around a tile, from the first that its first query
    sees to the last that its last query sees.
    """
    away = []
    for side in tile:
        queries = torch.arange(side, device=device) + radius
        keys = torch.arange(side + 2 * radius, device=device)
        away.append((queries - keys[:, None]).abs())  # (keys, queries)
    distance = torch.maximum(away[0][:, None, :, None], away[1][None, :, None, :])
    bias = torch.zeros(distance.shape, device=device)
    bias.masked_fill_(distance > radius, float('-inf'))
    return bias.flatten(2)
