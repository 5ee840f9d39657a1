# SPDX-License-Identifier: Apache-2.0
"""Compiled loops."""

from collections.abc import Callable
from typing import Any

import numba

# Sums may be reordered, so that they use all lanes; NaN and infinity stay what they are.
_FAST = {'reassoc', 'contract', 'arcp', 'nsz'}


def compiled(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """
    Compile a function for one signature, when it is defined.

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
