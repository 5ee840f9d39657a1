# SPDX-License-Identifier: Apache-2.0
"""
The windowed propagation kernel on a CPU, in tiles of queries.

The largest of a query's affinities are looked for twice. A matrix product in bfloat16, several
times as fast as one in float32 where the processor has instructions for it, gives logits that are
off by no more than rounding can make them. What could be among the largest by these, some twenty
keys of thousands, is then computed in float32. So the result is that of float32.

For the product, queries and keys lie in blocks of a few columns, the rows of a block one below the
other: what a tile sees of a block is then one matrix, without a copy of its own.
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

from drift_ros.engine.compiled import at_least, compiled, lowest_bit
from drift_ros.engine.device import has_bfloat16

# Columns of a block, and rows of a tile: the smaller a tile, the fewer keys outside the window are
# computed in vain; the larger, the better the matrix products.
_SIDE = 8
_TILE = _SIDE * _SIDE
# How far a product is off at most, as a share of both norms: queries, keys and the sum are rounded
# to 8 bits each, which makes 1.5; sums in float32 add next to nothing.
_ROUNDING = 1.6 * 2.0**-8
# Where the search for the largest starts: so much below what a neighbour ended with.
_LEEWAY = np.float32(2.0)
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
        return -(-self.reach // _SIDE)

    @property
    def blocks(self) -> int:
        """Blocks a tile sees."""
        return 2 * self.aside + 1

    @property
    def rows(self) -> int:
        """Rows a tile sees, from ``reach`` above its first on; as many tiles high as needed."""
        return _SIDE * (1 + -(-2 * self.reach // _SIDE))

    @property
    def seen(self) -> int:
        """Keys a tile sees."""
        return self.blocks * len(self.members) * self.rows * _SIDE


def propagate_tiles(
    query: Tensor,
    keys: Sequence[Tensor],
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
    keys : sequence of Tensor
        R times (heads, h, w, d) floating point.
    labels : Tensor
        (R, h, w, C) floating point.
    reaches : sequence of int
        Radius of the window in each of the R references.
    top_k : int
        How many logits of a query count. 0: all.
    mix : Tensor
        (heads,) weight of each.
    wanted : Tensor
        (h, w) bool.

    Returns
    -------
    Tensor
        (h, w, C) of ``query``'s type; 0 where not wanted.

    """
    height, width = wanted.shape
    dim = query.shape[-1]
    windows = [
        _Window(reach, tuple(i for i, own in enumerate(reaches) if own == reach))
        for reach in sorted(set(reaches))
    ]
    order = [i for window in windows for i in window.members]
    layout = np.array([(w.reach, len(w.members), w.rows, w.blocks) for w in windows])
    values = labels[order].float().flatten(0, 2).contiguous().numpy()
    out = np.zeros((height, width, labels.shape[-1]), np.float32)
    dtype = torch.bfloat16 if has_bfloat16() else torch.float32
    count = -(-width // _SIDE)
    rough_query = _room('query', (count, height + _SIDE - 1, _SIDE, dim), dtype)
    rough_keys = [
        _room(
            f'keys {place}',
            (count + 2 * w.aside, len(w.members), height + w.rows - 1, _SIDE, dim),
            dtype,
        )
        for place, w in enumerate(windows)
    ]
    # keys of half precision are widened where they are needed
    half = all(key.dtype == torch.float16 for key in keys)
    exact_keys = _room(
        'exact keys', (len(keys), height, width, dim), torch.float16 if half else torch.float32
    )
    tiles, threads = list(_tiles_of(wanted)), torch.get_num_threads()
    for head, weight in enumerate(mix.tolist()):
        _fill(rough_query, query[head], 0, 0)
        for place, member in enumerate(order):
            exact_keys[place] = keys[member][head]
        widened = iter(exact_keys)
        for window, blocks in zip(windows, rough_keys, strict=True):
            for place in range(len(window.members)):
                _fill(blocks[:, place], next(widened), window.reach, window.aside)
        exact_query = query[head].float().contiguous().numpy()
        exact = exact_keys.flatten(0, 2)
        exact = (exact.view(torch.int16) if half else exact).numpy()
        slack = 2.0 * _ROUNDING * _longest(exact) if top_k else math.inf
        rest = (layout, exact_query, exact, values, wanted.numpy(), top_k, slack, weight, out)
        one = _Head(windows, rough_query, rough_keys, rest)
        for _ in (
            map(one.answer, tiles) if threads == 1 else _threads(threads).map(one.answer, tiles)
        ):
            pass
    return torch.from_numpy(out).to(query.dtype)


@dataclass(frozen=True)
class _Head:
    """What is asked of a head, and what is known: blocks of queries, blocks of keys, and more."""

    windows: Sequence[_Window]
    query: Tensor
    keys: Sequence[Tensor]
    rest: tuple[Any, ...]

    def answer(self, tiles: tuple[int, list[int]]) -> None:
        """Answer the queries of a row of tiles: its first row, and its blocks."""
        top, blocks = tiles
        bands = []
        for place, (window, known) in enumerate(zip(self.windows, self.keys, strict=True)):
            band = known[:, :, top : top + window.rows]
            bands.append(_room(f'band {place}', band.shape, band.dtype).copy_(band))
        sizes = [_TILE * window.seen for window in self.windows]
        logits = _room('logits', (sum(sizes),), torch.bfloat16)
        parts = [part.view(_TILE, -1) for part in logits.split(sizes)]
        runs = logits.view(torch.int16).view(-1, _TILE).numpy()
        for block in blocks:
            asked = self.query[block, top : top + _SIDE].flatten(0, 1)
            for window, band, part in zip(self.windows, bands, parts, strict=True):
                seen = band[block : block + window.blocks].flatten(0, 3)
                if seen.dtype == part.dtype:
                    torch.mm(asked, seen.t(), out=part)
                else:
                    part.copy_(asked @ seen.t())
            _answer(runs, top, block, *self.rest)


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


def _fill(blocks: Tensor, values: Tensor, above: int, aside: int) -> None:
    """Put (h, w, d) into (blocks, rows, side, d), so many rows and blocks from the first."""
    height, width, _ = values.shape
    whole, rest = divmod(width, _SIDE)
    rows = slice(above, above + height)
    full = values[:, : whole * _SIDE].unflatten(1, (whole, _SIDE)).transpose(0, 1)
    blocks[aside : aside + whole, rows] = full
    if rest:
        blocks[aside + whole, rows, :rest] = values[:, whole * _SIDE :]


def _tiles_of(wanted: Tensor) -> Iterator[tuple[int, list[int]]]:
    """Give first row and blocks of rows of tiles that cover all that is True in (h, w)."""
    padded = F.pad(wanted, (0, -wanted.shape[1] % _SIDE)).unflatten(1, (-1, _SIDE)).any(dim=2)
    end = 0
    for row in padded.any(dim=1).nonzero()[:, 0].tolist():
        if row >= end:
            end = row + _SIDE
            yield row, padded[row:end].any(dim=0).nonzero()[:, 0].tolist()


def _widened(value):
    """Widen a float16, given as an integer, in compiled loops; what is float32 stays as it is."""


@overload(_widened)
def _widen(value):
    if isinstance(value, types.Float):
        return lambda value: value

    def widen(value):  # a finite one
        magnitude = np.int32((np.int32(value) & np.int32(0x7FFF)) << np.int32(13))
        # exponents differ by 112; the product is exact, and right for subnormal numbers as well
        widened = np.int32(magnitude).view(np.float32) * np.float32(2.0**112)
        return -widened if value < 0 else widened

    return widen


@compiled(['float64(int16[:, ::1])', 'float64(float32[:, ::1])'])
def _longest(vectors):
    """Give the largest norm of (n, d)."""
    most = np.float32(0)
    for n in range(len(vectors)):
        square = np.float32(0)
        for i in range(vectors.shape[1]):
            value = _widened(vectors[n, i])
            square += value * value
        most = max(most, square)
    return np.sqrt(most)


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


@compiled('uint64(int64, int64)')
def _bits(low, high):
    """Set bits from one to before another; of those there are."""
    low, high = max(low, 0), min(high, _TILE)
    if low >= high:
        return np.uint64(0)
    return (_ALL >> np.uint64(_TILE - (high - low))) << np.uint64(low)


@compiled('void(float32[::1], float32)')
def _insert(best, value):
    """Put a value into an ascending list in place of the least."""
    at = 0
    while at + 1 < len(best) and best[at + 1] < value:
        best[at] = best[at + 1]
        at += 1
    best[at] = value


@compiled(
    'int64(int16[:, ::1], int64, int64, int64, int64, int64[:, ::1], int64, int64, '
    'float32, float32, float32[::1], float32[::1], int64[::1])'
)
def _candidates(logits, place, y, x, top, layout, height, width, limit, margin, best, rough, at):
    """Note keys that may be among the largest, and some more while these are not known yet."""
    found, ref, start = 0, 0, 0
    block, floor = x // _SIDE, _floor_bits(limit)
    best[:] = -np.inf
    for reach, members, rows, blocks in layout:
        runs = rows // _SIDE
        low, high = max(y - reach, 0), min(y + reach + 1, height)
        run = start + place * blocks * members * runs
        for b in range(block - blocks // 2, block + blocks // 2 + 1):
            left = max(x - reach, b * _SIDE, 0)
            right = min(x + reach + 1, (b + 1) * _SIDE, width)
            columns = _bits(left - b * _SIDE, right - b * _SIDE) * _EVERY_ROW
            for m in range(members):
                for first in range(top - reach, top - reach + rows, _SIDE):
                    inside = _bits(_SIDE * (low - first), _SIDE * (high - first)) & columns
                    hits = at_least(logits, run, floor) & inside  # type: ignore[call-arg]
                    while hits:
                        i = lowest_bit(hits)
                        hits &= hits - np.uint64(1)
                        bits = logits[run, i]
                        value = _float(bits)
                        if bits >= floor and value >= limit:
                            v, u = first + i // _SIDE, b * _SIDE + i % _SIDE
                            rough[found] = value
                            at[found] = ((ref + m) * height + v) * width + u
                            found += 1
                            if value > best[0]:
                                _insert(best, value)
                                limit = max(limit, best[0] - margin)
                                floor = _floor_bits(limit)
                    run += 1
        start += _TILE * blocks * members * runs
        ref += members
    return found


@compiled(
    [
        'void(int16[:, ::1], int64, int64, int64[:, ::1], float32[:, :, ::1], '
        f'{keys}[:, ::1], float32[:, ::1], boolean[:, :], int64, float64, float64, '
        'float32[:, :, ::1])'
        for keys in ('int16', 'float32')
    ]
)
def _answer(logits, top, block, layout, query, keys, values, wanted, top_k, slack, weight, out):
    """Add what the queries of a tile find."""
    height, width, channels = out.shape
    dim, most = query.shape[2], 0
    for reach, members, _, _ in layout:
        most += members * min(2 * reach + 1, height) * min(2 * reach + 1, width)
    best = np.empty(max(min(top_k, most), 1), np.float32)
    rough, exact = np.empty(most, np.float32), np.empty(most, np.float32)
    at = np.empty(most, np.int64)
    mixed = np.empty(channels, np.float32)
    guess = np.float32(-np.inf)
    for place in range(_TILE):
        y, x = top + place // _SIDE, block * _SIDE + place % _SIDE
        if y >= height or x >= width or not wanted[y, x]:
            continue
        asked = query[y, x]
        norm = np.float32(0)
        for i in range(dim):
            norm += asked[i] * asked[i]
        margin = np.float32(slack * np.sqrt(norm + np.float32(1e-30)))
        found = _candidates(
            logits, place, y, x, top, layout, height, width, guess, margin, best, rough, at
        )
        if best[0] - margin < guess:  # the neighbour's limit was too high
            guess = np.float32(-np.inf)
            found = _candidates(
                logits, place, y, x, top, layout, height, width, guess, margin, best, rough, at
            )
        limit = best[0] - margin
        guess = limit - _LEEWAY
        kept = 0
        for n in range(found):
            if rough[n] >= limit:
                key, product = keys[at[n]], np.float32(0)
                for i in range(dim):
                    product += asked[i] * _widened(key[i])
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
