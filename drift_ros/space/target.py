# SPDX-License-Identifier: Apache-2.0
"""Which object a robot follows, of those there are."""

from __future__ import annotations

from collections.abc import Sequence


class Target:
    """
    Remembers which object was meant.

    One that was named by its id or name is that one alone: when it is removed nothing takes its
    place, until an object of that name is seeded anew. Without a wish it is the first object
    there is, and it stays so: a robot must not turn to something else because its object is gone.
    """

    def __init__(self) -> None:
        """Have no target yet."""
        self._first: int | None = None

    def choose(self, wish: str, objects: Sequence[tuple[int, str]]) -> tuple[int | None, str]:
        """
        Choose among the objects there are.

        Parameters
        ----------
        wish : str
            Id or name; empty: none.
        objects : sequence of tuple
            Id and name of each live object.

        Returns
        -------
        tuple
            Id of the target, None where there is none, and why.

        """
        ids = [number for number, _ in objects]
        if not wish:
            if not ids:
                self._first = None
                return None, 'there are no objects: seed one'
            if self._first is None:
                self._first = min(ids)
            if self._first not in ids:
                return None, (
                    f'object {self._first}, the first one, has been removed: set space.target to '
                    'another one'
                )
            return self._first, ''
        self._first = None
        named = [number for number, name in objects if name == wish]
        if len(named) > 1:
            return None, (
                f'{len(named)} objects are called {wish!r}: set space.target to the id of one of '
                f'{", ".join(map(str, named))}'
            )
        if named:
            return named[0], ''
        if wish.isdecimal() and int(wish) in ids:
            return int(wish), ''
        known = ', '.join(
            f'{number} {name!r}' if name else str(number) for number, name in objects
        )
        return None, (
            f'there is no object {wish!r} (space.target), there are {known or "none"}: seed it '
            'or choose another one'
        )
