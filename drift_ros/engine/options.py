# SPDX-License-Identifier: Apache-2.0
"""How an option is declared, checked and read; :mod:`drift_ros.engine.config` declares them."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Option:
    """
    One option: its dotted name, default, help and what is allowed.

    ``low`` and ``high`` are inclusive, None where open; ``choices`` is empty where anything of
    the default's type goes.
    """

    name: str
    default: Any
    help: str
    low: float | None = None
    high: float | None = None
    choices: tuple[str, ...] = ()

    def check(self, value: Any) -> str:
        """Say why a value is refused; empty when it is fine."""
        kind = type(self.default)
        if kind is float and type(value) is int:
            value = float(value)
        if type(value) is not kind:
            return f'{self.name} is {value!r}; it must be of type {kind.__name__}'
        if self.low is not None and not value >= self.low:
            return f'{self.name} is {value}; it must lie in [{self.low}, {self.high}]'
        if self.high is not None and not value <= self.high:
            return f'{self.name} is {value}; it must lie in [{self.low}, {self.high}]'
        if self.choices and value not in self.choices:
            return f'{self.name} is {value!r}; choose from {", ".join(self.choices)}'
        return ''

    def parse(self, text: str) -> Any:
        """
        Turn a text into a value, by the type of the default.

        Raises
        ------
        ValueError
            Naming the option, the text and what is expected.

        """
        kind = type(self.default)
        if kind is bool:
            words = {'true': True, 'yes': True, '1': True, 'false': False, 'no': False, '0': False}
            if text.lower() not in words:
                raise ValueError(f'{self.name} is {text!r}; it must be true or false')
            return words[text.lower()]
        if kind is tuple:
            return tuple(part.strip() for part in text.split(',') if part.strip())
        try:
            return kind(text)
        except ValueError:
            raise ValueError(
                f'{self.name} is {text!r}; it must be of type {kind.__name__}'
            ) from None


def option(
    default: Any,
    help: str,  # noqa: A002
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
    **more: Any,
) -> Any:
    """Declare a field of an option group; ``more`` is kept in its metadata."""
    metadata = {'help': help, 'low': low, 'high': high, 'choices': choices, **more}
    return field(default=default, metadata=metadata)


def options_of(group: type, prefix: str = '') -> dict[str, Option]:
    """List the options that a dataclass declares by :func:`option`, groups in it included."""
    found: dict[str, Option] = {}
    for item in dataclasses.fields(group):
        name, meta = prefix + item.name, item.metadata
        if 'help' in meta:
            found[name] = Option(
                name, item.default, meta['help'], meta['low'], meta['high'], meta['choices']
            )
        else:
            found.update(options_of(item.default_factory, f'{name}.'))  # type: ignore[arg-type]
    return found
