# SPDX-License-Identifier: Apache-2.0
"""Compiled loops."""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
import numba
from numba import types
from numba.extending import intrinsic

# Sums may be reordered, so that they use all lanes; NaN and infinity stay what they are.
_FAST = {'reassoc', 'contract', 'arcp', 'nsz'}


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
