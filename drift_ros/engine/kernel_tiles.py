# SPDX-License-Identifier: Apache-2.0
"""
The windowed propagation kernel on a CPU, in tiles of queries.

The largest of a query's affinities are looked for twice. A matrix product of rounded values,
several times as fast as one in float32 (:mod:`drift_ros.engine.key_tiles`), gives logits that are
off by no more than rounding can make them. What could be among the largest by these, some dozens
of keys out of thousands, is then computed in float32. So the result is that of float32.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
import math
import os
import threading
from typing import Any

from numba import types
from numba.extending import overload
import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F

from drift_ros.engine.compiled import at_least, compiled, lowest_bit, widened
from drift_ros.engine.key_tiles import Keys, rough_queries, RoughKeys, RoughQueries, SIDE, TILE

# Where the search for the largest starts: so much below what a neighbour ended with.
_LEEWAY = np.float32(2.0)
# Products and sums in float32 are off by less than this share of both norms.
_FLOAT = 2e-5
# Of a run of 64 keys, 8 columns of 8 rows: all, and the first of each row.
_ALL, _EVERY_ROW = np.uint64(2**64 - 1), np.uint64(0x0101010101010101)


@dataclass(frozen=True)
class _Window:
    """What tiles see of all references of one radius; rows and blocks around a frame are empty."""

    reach: int
    members: tuple[int, ...]

    @property
    def aside(self) -> int:
        """Blocks on either side of a tile's own."""
        return -(-self.reach // SIDE)

    @property
    def blocks(self) -> int:
        """Blocks a tile sees."""
        return 2 * self.aside + 1

    @property
    def rows(self) -> int:
        """Rows a tile sees, from ``reach`` above its first on; as many tiles high as needed."""
        return SIDE * (1 + -(-2 * self.reach // SIDE))

    @property
    def seen(self) -> int:
        """Keys a tile sees."""
        return self.blocks * len(self.members) * self.rows * SIDE


def propagate_tiles(
    query: Tensor,
    keys: Sequence[Keys],
    labels: Tensor,
    reaches: Sequence[int],
    top_k: int,
    mix: Tensor,
    wanted: Tensor,
) -> Tensor:
    """
    Propagate labels to the queries that are wanted.

    Parameters
    ----------
    query : Tensor
        (heads, h, w, d) floating point, scaled so that products with keys are logits.
    keys : sequence of Keys
        R times (heads, h, w, d) floating point.
    labels : Tensor
        (R, h, w, C) floating point.
    reaches : sequence of int
        Radius of the window in each of the R references.
    top_k : int
        How many logits of a query count. 0: all.
    mix : Tensor
        (heads,) weight of each. Heads of weight 0 are not computed.
    wanted : Tensor
        (h, w) bool.

    Returns
    -------
    Tensor
        (h, w, C) of ``query``'s type; 0 where not wanted.

    """
    windows = [
        _Window(reach, tuple(i for i, own in enumerate(reaches) if own == reach))
        for reach in sorted(set(reaches))
    ]
    order = np.array([member for window in windows for member in window.members])
    layout = np.array([(w.reach, len(w.members), w.rows, w.blocks) for w in windows])
    values = labels.float().flatten(0, 2).contiguous().numpy()
    out = np.zeros((*wanted.shape, labels.shape[-1]), np.float32)
    half = all(each.key.dtype == torch.float16 for each in keys)
    tiles, threads = list(_tiles_of(wanted)), torch.get_num_threads()
    for head, weight in enumerate(mix.tolist()):
        if not weight:
            continue
        rough = [each.rough(head) for each in keys]
        exact_query = query[head].float().contiguous().numpy()
        asked = rough_queries(exact_query, wanted.numpy())
        # keys of half precision are widened where they are needed
        held = _room('keys', (len(keys), *query.shape[1:]), torch.float16 if half else torch.float)
        for place, each in enumerate(keys):
            held[place] = each.key[head]
        exact_keys = (held.view(torch.int16) if half else held).flatten(0, 2).numpy()
        centres = np.stack([each.centre for each in rough])
        longest = np.array([each.longest for each in rough], np.float32)
        off = np.array([each.error for each in rough], np.float32)
        off += _FLOAT * (longest + np.linalg.norm(centres, axis=1))
        scales = np.array([each.scale for each in rough], np.float32)
        rounding = (asked.scales, asked.errors, scales, centres, longest, off)
        known = (exact_query, exact_keys, values, wanted.numpy())
        rest = (layout, order, rounding, *known, top_k, weight, out)
        one = _Head(windows, asked, rough, rest)
        for _ in (
            map(one.answer, tiles) if threads == 1 else _threads(threads).map(one.answer, tiles)
        ):
            pass
    return torch.from_numpy(out).to(query.dtype)


@dataclass(frozen=True)
class _Head:
    """What is asked of a head, and what is known: queries, the keys of references, and more."""

    windows: Sequence[_Window]
    query: RoughQueries
    keys: Sequence[RoughKeys]
    rest: tuple[Any, ...]

    def answer(self, tiles: tuple[int, list[int]]) -> None:
        """Answer the queries of a row of tiles: its first row, and its blocks."""
        top, blocks = tiles
        bands = [self._band(window, top, blocks) for window in self.windows]
        sizes = [TILE * window.seen for window in self.windows]
        whole = self.query.blocks.dtype == torch.int8
        logits = _room('logits', (sum(sizes),), torch.int32 if whole else torch.bfloat16)
        parts = [part.view(TILE, -1) for part in logits.split(sizes)]
        runs = (logits if whole else logits.view(torch.int16)).view(-1, TILE).numpy()
        for block in blocks:
            asked = self.query.blocks[block, top : top + SIDE].flatten(0, 1)
            for window, band, part in zip(self.windows, bands, parts, strict=True):
                first = block - blocks[0]
                seen = band[first : first + window.blocks].flatten(0, 3)
                if whole:
                    torch._int_mm(asked, seen.t(), out=part)
                elif seen.dtype == part.dtype:
                    torch.mm(asked, seen.t(), out=part)
                else:
                    part.copy_(asked @ seen.t())
            _answer(runs, top, block, *self.rest)

    def _band(self, window: _Window, top: int, blocks: Sequence[int]) -> Tensor:
        """Put together what a row of tiles sees: (blocks, members, rows, SIDE, d)."""
        left, right = blocks[0] - window.aside, blocks[-1] + window.aside + 1
        above, like = top - window.reach, self.query.blocks
        shape = (right - left, len(window.members), window.rows, SIDE, like.shape[-1])
        band = _room(f'band {window.reach}', shape, like.dtype)  # what is beyond a frame is finite
        across, down = slice(max(left, 0), right), slice(max(above, 0), above + window.rows)
        for place, member in enumerate(window.members):
            seen = self.keys[member].blocks[across, down]
            ahead, over = across.start - left, down.start - above
            band[ahead : ahead + seen.shape[0], place, over : over + seen.shape[1]] = seen
        return band


@lru_cache
def _threads(count: int) -> ThreadPoolExecutor:
    """
    Make threads in which torch computes alone.

    torch takes the number set last for all threads that come later, so the caller's is set again.
    """
    pool = ThreadPoolExecutor(count, 'kernel', initializer=torch.set_num_threads, initargs=(1,))
    barrier = threading.Barrier(count + 1)
    for _ in range(count):
        pool.submit(barrier.wait)
    barrier.wait()
    torch.set_num_threads(count)
    return pool


os.register_at_fork(after_in_child=_threads.cache_clear)  # threads do not outlive a fork

_rooms = threading.local()


def _room(name: str, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """
    Give room, of each thread's own, that is kept from call to call.

    To ask the system for memory costs more than to write to it. What is in it is finite.
    """
    size = math.prod(shape)
    room = getattr(_rooms, name, None)
    if room is None or room.numel() < size or room.dtype != dtype:
        with torch.inference_mode(False):  # or it could be written to in that mode only
            room = torch.zeros(size, dtype=dtype)
        setattr(_rooms, name, room)
    return room[:size].view(shape)


def _tiles_of(wanted: Tensor) -> Iterator[tuple[int, list[int]]]:
    """Give first row and blocks of rows of tiles that cover all that is True in (h, w)."""
    padded = F.pad(wanted, (0, -wanted.shape[1] % SIDE)).unflatten(1, (-1, SIDE)).any(dim=2)
    end = 0
    for row in padded.any(dim=1).nonzero()[:, 0].tolist():
        if row >= end:
            end = row + SIDE
            yield row, padded[row:end].any(dim=0).nonzero()[:, 0].tolist()


@compiled('float32(int64)')
def _float(bits):
    """Widen a bfloat16."""
    return np.int32(bits << 16).view(np.float32)


@compiled('int16(float32)')
def _floor_bits(value):
    """Give what all bfloat16 of at least this value are not below, as integers."""
    if value > np.float32(0):
        return np.int16(np.float32(value).view(np.int32) >> 16)
    return np.int16(-32768)


@compiled('int32(float64)')
def _below(value):
    """Give a whole number below a value, as near as there is one."""
    return np.int32(min(max(np.floor(value) - 1.0, -(2.0**31)), 2.0**31 - 1))


def _logit(product, scale, shift):
    """Give a logit, in compiled loops: of a bfloat16 as an integer, or of a whole number."""


@overload(_logit)
def _logit_of(product, scale, shift):
    if product == types.int16:
        return lambda product, scale, shift: _float(product)
    return lambda product, scale, shift: np.float32(product) * scale + shift


def _floor(product, limit, scale, shift):
    """Give what no product, of this one's type, is below whose logit is at least a limit."""


@overload(_floor)
def _floor_of(product, limit, scale, shift):
    if product == types.int16:
        return lambda product, limit, scale, shift: _floor_bits(limit)
    return lambda product, limit, scale, shift: _below(
        (np.float64(limit) - np.float64(shift)) / np.float64(scale)
    )


@compiled('uint64(int64, int64)')
def _bits(low, high):
    """Set bits from one to before another; of those there are."""
    low, high = max(low, 0), min(high, TILE)
    if low >= high:
        return np.uint64(0)
    return (_ALL >> np.uint64(TILE - (high - low))) << np.uint64(low)


@compiled('void(float32[::1], float32)')
def _insert(best, value):
    """Put a value into an ascending list in place of the least."""
    at = 0
    while at + 1 < len(best) and best[at + 1] < value:
        best[at] = best[at + 1]
        at += 1
    best[at] = value


@compiled(
    [
        f'int64({of}[:, ::1], int64, int64, int64, int64, int64[:, ::1], int64[::1], '
        'float32[::1], float32[::1], int64, int64, float32, float32, float32[::1], '
        'float32[::1], int64[::1])'
        for of in ('int16', 'int32')
    ]
)
def _candidates(
    products,
    place,
    y,
    x,
    top,
    layout,
    order,
    scales,
    shifts,
    height,
    width,
    limit,
    margin,
    best,
    rough,
    at,
):
    """Note keys that may be among the largest, and some more while these are not known yet."""
    found, ref, start = 0, 0, 0
    block = x // SIDE
    best[:] = -np.inf
    for reach, members, rows, blocks in layout:
        runs = rows // SIDE
        low, high = max(y - reach, 0), min(y + reach + 1, height)
        run = start + place * blocks * members * runs
        for b in range(block - blocks // 2, block + blocks // 2 + 1):
            left = max(x - reach, b * SIDE, 0)
            right = min(x + reach + 1, (b + 1) * SIDE, width)
            columns = _bits(left - b * SIDE, right - b * SIDE) * _EVERY_ROW
            for m in range(members):
                member = order[ref + m]
                scale, shift = scales[member], shifts[member]
                floor = _floor(products[0, 0], limit, scale, shift)
                for first in range(top - reach, top - reach + rows, SIDE):
                    inside = _bits(SIDE * (low - first), SIDE * (high - first)) & columns
                    hits = at_least(products, run, floor) & inside  # type: ignore[call-arg]
                    while hits:
                        i = lowest_bit(hits)
                        hits &= hits - np.uint64(1)
                        product = products[run, i]
                        value = _logit(product, scale, shift)
                        if product >= floor and value >= limit:
                            v, u = first + i // SIDE, b * SIDE + i % SIDE
                            rough[found] = value
                            at[found] = (member * height + v) * width + u
                            found += 1
                            if value > best[0]:
                                _insert(best, value)
                                limit = max(limit, best[0] - margin)
                                floor = _floor(product, limit, scale, shift)
                    run += 1
        start += TILE * blocks * members * runs
        ref += members
    return found


_ROUNDING = 'float32[:, ::1], float32[:, ::1], float32[::1], float32[:, ::1], float32[::1]'


@compiled(
    [
        f'void({products}[:, ::1], int64, int64, int64[:, ::1], int64[::1], '
        f'Tuple(({_ROUNDING}, float32[::1])), float32[:, :, ::1], {keys}[:, ::1], '
        'float32[:, ::1], boolean[:, :], int64, float64, float32[:, :, ::1])'
        for products in ('int16', 'int32')
        for keys in ('int16', 'float32')
    ]
)
def _answer(
    products, top, block, layout, order, rounding, query, keys, values, wanted, top_k, weight, out
):
    """Add what the queries of a tile find."""
    query_scales, query_errors, key_scales, centres, longest, key_errors = rounding
    height, width, channels = out.shape
    dim, most = query.shape[2], 0
    for reach, members, _, _ in layout:
        most += members * min(2 * reach + 1, height) * min(2 * reach + 1, width)
    best = np.empty(max(min(top_k, most), 1), np.float32)
    rough, exact = np.empty(most, np.float32), np.empty(most, np.float32)
    at = np.empty(most, np.int64)
    mixed = np.empty(channels, np.float32)
    scales, shifts = np.empty_like(key_scales), np.empty_like(key_scales)
    guess = np.float32(-np.inf)
    for place in range(TILE):
        y, x = top + place // SIDE, block * SIDE + place % SIDE
        if y >= height or x >= width or not wanted[y, x]:
            continue
        asked = query[y, x]
        norm = np.float32(0)
        for i in range(dim):
            norm += asked[i] * asked[i]
        norm = np.sqrt(norm)
        margin = np.float32(0.0 if top_k else np.inf)
        for r in range(len(scales)):
            shift = np.float32(0)
            for i in range(dim):
                shift += asked[i] * centres[r, i]
            scales[r], shifts[r] = query_scales[y, x] * key_scales[r], shift
            # |q k - q' k'| <= |q - q'| |k| + |q'| |k - k'|, both ways
            off = query_errors[y, x] * longest[r] + (norm + query_errors[y, x]) * key_errors[r]
            margin = max(margin, np.float32(2) * off)
        while True:
            found = _candidates(
                products,
                place,
                y,
                x,
                top,
                layout,
                order,
                scales,
                shifts,
                height,
                width,
                guess,
                margin,
                best,
                rough,
                at,
            )
            if best[0] - margin >= guess:
                break
            guess = np.float32(-np.inf)  # the neighbour's limit was too high
        limit = best[0] - margin
        guess = limit - _LEEWAY
        kept = 0
        for n in range(found):
            if rough[n] >= limit:
                key, product = keys[at[n]], np.float32(0)
                for i in range(dim):
                    product += asked[i] * widened(key[i])
                exact[kept] = product
                at[kept] = at[n]
                kept += 1
        largest, least, ties = np.float32(-np.inf), np.float32(-np.inf), 0
        for n in range(kept):
            largest = max(largest, exact[n])
        if 0 < top_k < kept:
            best[:] = -np.inf
            for n in range(kept):
                if exact[n] > best[0]:
                    _insert(best, exact[n])
            least = best[0]
            for value in best:
                ties += value == least
        total = np.float32(0)
        mixed[:] = 0
        for n in range(kept):
            if exact[n] < least or (exact[n] == least and ties == 0):
                continue
            ties -= exact[n] == least  # so many of them are among the largest
            share = np.exp(exact[n] - largest)
            total += share
            for c in range(channels):
                mixed[c] += share * values[at[n], c]
        for c in range(channels):
            out[y, x, c] += np.float32(weight) * mixed[c] / total
