# SPDX-License-Identifier: Apache-2.0
"""Compiled loops."""

from collections.abc import Callable
import platform
from typing import Any

from llvmlite import binding, ir
import numba
from numba import types
from numba.extending import intrinsic, overload
import numpy as np

# Sums may be reordered, so that they use all lanes; NaN and infinity stay what they are.
_FAST = {'reassoc', 'contract', 'arcp', 'nsz'}
# Whether the processor has an instruction that widens float16.
_EXTENDS = platform.machine() == 'aarch64' or bool(binding.get_host_cpu_features().get('f16c'))


def compiled(signature: str | list[str]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """
    Compile a function for one signature, or several, when it is defined.

    The result is kept on disk. Nothing is compiled later, while frames wait: types that differ
    raise TypeError.
    """

    def compile_it(function: Callable[..., Any]) -> Any:
        options: dict[str, Any] = {'nogil': True, 'fastmath': _FAST}
        try:
            return numba.njit(signature, cache=True, **options)(function)
        except RuntimeError:  # nowhere to keep it: a read-only file system without a home
            return numba.njit(signature, **options)(function)

    return compile_it


@intrinsic
def at_least(typing, values, row, floor):
    """
    Compare a row of 64 values with one: bits of an uint64, of those that are not below it.

    Compiled functions alone can call it, with a C-contiguous (n, 64) int16 or int32, an int64 and
    a number of that type. A row is some registers of a processor, which no loop over it comes
    near.
    """
    result = types.uint64(values, types.int64, values.dtype)
    bits = values.dtype.bitwidth

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        vector = ir.VectorType(ir.IntType(bits), 64)
        data = context.make_array(signature.args[0])(context, builder, given[0]).data
        start = builder.mul(given[1], ir.Constant(ir.IntType(64), 64))
        place = builder.bitcast(builder.gep(data, [start]), vector.as_pointer())
        held = builder.load(place, align=bits // 8)
        one = builder.insert_element(
            ir.Constant(vector, ir.Undefined), given[2], ir.Constant(ir.IntType(32), 0)
        )
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), 64), [0] * 64)
        floors = builder.shuffle_vector(one, ir.Constant(vector, ir.Undefined), lanes)
        return builder.bitcast(builder.icmp_signed('>=', held, floors), ir.IntType(64))

    return result, generate


@intrinsic
def lowest_bit(typing, bits):
    """Give the number of the lowest bit that is set, int64 of an uint64 that is not 0."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.cttz(given[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), generate


def widened(value):
    """Widen a float16, given as an integer, in compiled functions; a float32 stays as it is."""


@overload(widened)
def _widened(value):
    if isinstance(value, types.Float):
        return lambda value: value
    if _EXTENDS:
        return lambda value: _extended(value)  # type: ignore[call-arg]
    return _widen


@intrinsic
def _extended(typing, value):
    """Widen a float16 by the processor's instruction."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.fpext(builder.bitcast(given[0], ir.HalfType()), ir.FloatType())

    return types.float32(types.int16), generate


def _widen(value):
    """Widen a finite float16 without an instruction for it."""
    magnitude = np.int32((np.int32(value) & np.int32(0x7FFF)) << np.int32(13))
    # exponents differ by 112; the product is exact, and right for subnormal numbers as well
    wide = np.int32(magnitude).view(np.float32) * np.float32(2.0**112)
    return -wide if value < 0 else wide
