# SPDX-License-Identifier: Apache-2.0
"""
Queries and keys as the tiles of the kernel multiply them: roughly, in blocks of columns.

A block is a few columns of a frame, the rows of it one below the other: what a tile sees of a
block is then one matrix, without a copy of its own. The values are whole numbers of 8 bits where
the processor multiplies these exactly and faster than floating point, else bfloat16 or float32. By
how much products can be off then is known, so that what could be among the largest is looked at
again exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
import math
import time

import numpy as np
import torch
from torch import Tensor

from drift_ros.engine.compiled import compiled
from drift_ros.engine.device import has_bfloat16

SIDE = 8
"""Columns of a block, and rows of a tile."""
TILE = SIDE * SIDE
# How far a product of what is rounded to 8 bits is off at most, as a share of both norms: queries,
# keys and the sum are, which makes 1.5; sums in float32 add next to nothing.
_ROUNDING = 1.6 * 2.0**-8
# Largest whole number; every fourth row and column tells the middle of a frame's keys.
_MOST, _SOME = 127.0, 4
# Whole numbers leave more to be looked at again: what else there is has to take so much longer.
_GAIN = 1.3
# Of a trial: keys, as a tile sees of four references, their length, and rounds.
_KEYS, _LENGTH, _ROUNDS = 2304, 96, 5


@dataclass(frozen=True)
class Rough:
    """
    A head's queries or keys, (h, w, d), for rough products.

    Attributes
    ----------
    blocks : Tensor
        (ceil(w / SIDE), h, SIDE, d) int8, bfloat16 or float32; finite where a block is wider than
        what is left of the frame.

    """

    blocks: Tensor


@dataclass(frozen=True)
class RoughKeys(Rough):
    """
    Keys: ``centre + scale * blocks``, and how far that is off.

    Attributes
    ----------
    centre : np.ndarray
        (d,) float32.
    scale : float
    longest, error : float
        Largest norms: of keys from the centre, and of what they are off.

    """

    centre: np.ndarray
    scale: float
    longest: float
    error: float


@dataclass(frozen=True)
class RoughQueries(Rough):
    """
    Queries: ``scale * blocks``, each with a scale of its own, and how far that is off.

    Attributes
    ----------
    scales, errors : np.ndarray
        (h, w) float32; norms of what queries are off, rounding of the product included.

    """

    scales: np.ndarray
    errors: np.ndarray


class Keys:
    """
    A frame's keys, and what the kernel's tiles make of them, which is kept.

    Attributes
    ----------
    key : Tensor
        (heads, h, w, d) floating point. Not to be changed.

    """

    def __init__(self, key: Tensor) -> None:
        """Make nothing yet."""
        self.key = key
        self._rough: dict[tuple[int, torch.dtype], RoughKeys] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept besides the keys."""
        return sum(each.blocks.nbytes for each in list(self._rough.values()))

    def rough(self, head: int) -> RoughKeys:
        """Give a head's keys for rough products."""
        dtype = rough_type()
        made = self._rough.get((head, dtype))
        if made is None:
            made = self._rough[head, dtype] = _rough_keys(self.key[head], dtype)
        return made


@lru_cache(maxsize=1)
def rough_type() -> torch.dtype:
    """Give the type in which this processor multiplies fastest, found by a trial."""
    other = torch.bfloat16 if has_bfloat16() else torch.float32
    if not multiplies_whole_numbers():
        return other
    numbers, values = torch.ones(_KEYS, _LENGTH, dtype=torch.int8), torch.ones(_KEYS, _LENGTH)
    values = values.to(other)
    spent = {torch.int8: math.inf, other: math.inf}
    for _ in range(_ROUNDS):
        for dtype in spent:
            start = time.perf_counter()
            if dtype == torch.int8:
                torch._int_mm(numbers[:TILE], numbers.t())
            else:
                values[:TILE] @ values.t()
            spent[dtype] = min(spent[dtype], time.perf_counter() - start)
    return torch.int8 if _GAIN * spent[torch.int8] < spent[other] else other


def multiplies_whole_numbers() -> bool:
    """
    Tell whether products of 8 bits are exact here.

    Processors without an instruction for it cut sums of two products off at 16 bits.
    """
    numbers = torch.tensor([127, -127, 1, -128, 127, 64], dtype=torch.int8).repeat(TILE, 16)
    numbers[::2] = 127
    try:
        product = torch._int_mm(numbers, numbers.t())
    except (AttributeError, RuntimeError):
        return False
    return torch.equal(product, numbers.int() @ numbers.int().t())


def rough_queries(query: np.ndarray, wanted: np.ndarray) -> RoughQueries:
    """Prepare those of a head's queries (h, w, d) float32 that are wanted, (h, w) bool."""
    height, width, dim = query.shape
    # a tile may reach beyond the last row
    blocks = _blank(height + SIDE - 1, width, dim, rough_type())
    scales, errors = np.ones((height, width), np.float32), np.empty((height, width), np.float32)
    if blocks.dtype == torch.int8:
        _round_queries(query, wanted, blocks.numpy(), scales, errors)
    else:
        _fill(blocks, torch.from_numpy(query))
        np.multiply(np.linalg.norm(query, axis=-1), np.float32(_ROUNDING), out=errors)
    return RoughQueries(blocks, scales, errors)


def _rough_keys(key: Tensor, dtype: torch.dtype) -> RoughKeys:
    height, width, dim = key.shape
    blocks, values = _blank(height, width, dim, dtype), key.float().contiguous().numpy()
    centre = np.zeros(dim, np.float32)
    if dtype != torch.int8:
        _fill(blocks, key)
        longest, _ = _extent(values, centre)
        return RoughKeys(blocks, centre, 1.0, longest, 0.0)
    # what all keys have in common adds the same to all logits of a query
    _middle(values, centre)
    longest, most = _extent(values, centre)
    scale = max(most / _MOST, 1e-30)
    error = _round_keys(values, centre, scale, blocks.numpy())
    return RoughKeys(blocks, centre, scale, longest, error)


def _blank(height: int, width: int, dim: int, dtype: torch.dtype) -> Tensor:
    return torch.zeros((-(-width // SIDE), height, SIDE, dim), dtype=dtype)


def _fill(blocks: Tensor, values: Tensor) -> None:
    """Put (h, w, d) into blocks of at least as many rows."""
    height, width, _ = values.shape
    whole, rest = divmod(width, SIDE)
    full = values[:, : whole * SIDE].unflatten(1, (whole, SIDE)).transpose(0, 1)
    blocks[:whole, :height] = full
    if rest:
        blocks[whole, :height, :rest] = values[:, whole * SIDE :]


@compiled('int32(float32)')
def _rank(value):
    """Give the amount of a value as bits, ordered as amounts are: many are compared at once."""
    return np.float32(abs(value)).view(np.int32)


@compiled('float32(int32)')
def _amount(rank):
    return np.int32(rank).view(np.float32)


@compiled('void(float32[:, :, ::1], float32[::1])')
def _middle(values, centre):
    """Give the mean of some vectors of (h, w, d)."""
    height, width, dim = values.shape
    count = np.float32(0)
    for y in range(0, height, _SOME):
        for x in range(0, width, _SOME):
            for i in range(dim):
                centre[i] += values[y, x, i]
            count += np.float32(1)
    for i in range(dim):
        centre[i] /= count


@compiled('UniTuple(float64, 2)(float32[:, :, ::1], float32[::1])')
def _extent(values, centre):
    """Give the largest norm, and the largest amount of a number, of (h, w, d) from a centre."""
    height, width, dim = values.shape
    longest, most = np.float32(0), np.int32(0)
    for y in range(height):
        for x in range(width):
            square = np.float32(0)
            for i in range(dim):
                value = values[y, x, i] - centre[i]
                square += value * value
                most = max(most, _rank(value))
            longest = max(longest, square)
    return np.sqrt(longest), _amount(most)


@compiled('float64(float32[:, :, ::1], float32[::1], float64, int8[:, :, :, ::1])')
def _round_keys(values, centre, scale, blocks):
    """Fill blocks with multiples of a scale from a centre; give the largest norm of an error."""
    height, width, dim = values.shape
    step, share, worst = np.float32(scale), np.float32(1 / scale), np.float32(0)
    for y in range(height):
        for x in range(width):
            block = blocks[x // SIDE, y, x % SIDE]
            square = np.float32(0)
            for i in range(dim):
                value = values[y, x, i] - centre[i]
                number = np.rint(value * share)
                block[i] = np.int8(number)
                off = value - number * step
                square += off * off
            worst = max(worst, square)
    return np.sqrt(worst)


@compiled(
    'void(float32[:, :, ::1], boolean[:, :], int8[:, :, :, ::1], float32[:, ::1], float32[:, ::1])'
)
def _round_queries(query, wanted, blocks, scales, errors):
    """Fill blocks with multiples of scales, one for each; note norms of errors."""
    height, width, dim = query.shape
    for y in range(height):
        for x in range(width):
            if not wanted[y, x]:
                continue
            rank = _rank(np.float32(1e-30))
            for i in range(dim):
                rank = max(rank, _rank(query[y, x, i]))
            most = _amount(rank)
            step, share = most / np.float32(_MOST), np.float32(_MOST) / most
            block = blocks[x // SIDE, y, x % SIDE]
            square = np.float32(0)
            for i in range(dim):
                number = np.rint(query[y, x, i] * share)
                block[i] = np.int8(number)
                off = query[y, x, i] - number * step
                square += off * off
            scales[y, x] = step
            errors[y, x] = np.sqrt(square)
