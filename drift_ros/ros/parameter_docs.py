# SPDX-License-Identifier: Apache-2.0
"""
The parameter file of the tracker and the parameter tables of docs/nodes.md, from the declarations.

After a change of :mod:`drift_ros.ros.parameters` or of the engine's options, in a checkout::

    python -m drift_ros.ros.parameter_docs
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
import sys
import textwrap
from typing import Any

from drift_ros.ros.parameters import NODES, Parameter, parameters

_MODES = {
    'configure': 'configure',
    'activate': 'activate',
    'now': 'at once',
    'start': 'start',
}
_EXPERIMENTAL = 'experimental.'


def _yaml_value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (tuple, list)):
        return '[' + ', '.join(_yaml_value(item) for item in value) + ']'
    return f"'{value}'" if isinstance(value, str) else str(value)


def tracker_yaml() -> str:
    """Write the parameter file of the tracker node, every value at its default."""
    lines = [
        '# SPDX-License-Identifier: Apache-2.0',
        '# Parameters of the tracker node, all at their defaults.',
        '# Written by: python -m drift_ros.ros.parameter_docs',
        '/**:',
        '  tracker:',
        '    ros__parameters:',
    ]
    group = ''
    for item in _split(NODES['tracker'])[0]:
        here, _, name = item.name.rpartition('.')
        if here != group:
            group = here
            lines.append(f'      {group}:')
        indent = ' ' * (8 if group else 6)
        allowed = item.range_text()
        text = item.help + (f' Allowed: {allowed}.' if allowed else '')
        lines += [f'{indent}# {line}' for line in textwrap.wrap(text, 94 - len(indent))]
        value = _yaml_value(item.default)
        if item.default == ():  # an empty list has no type in a parameter file
            sample = '[0, 1]' if item.kind == 'list[int]' else "['...']"
            lines.append(f'{indent}# {name}: {sample}')
        else:
            lines.append(f'{indent}{name}: {value}')
    return '\n'.join(lines) + '\n'


def _split(configs: tuple[type, ...]) -> tuple[list[Parameter], list[Parameter]]:
    """Give the parameters to work with, and the experimental ones."""
    found: tuple[list[Parameter], list[Parameter]] = ([], [])
    for item in parameters(*configs):
        found[item.name.startswith(_EXPERIMENTAL)].append(item)
    return found


def markdown_table(items: Iterable[Parameter]) -> str:
    """Write a parameter table."""
    lines = [
        '| parameter | type | default | allowed | takes effect | meaning |',
        '|---|---|---|---|---|---|',
    ]
    for item in items:
        default = _yaml_value(item.default)
        help_text = item.help.replace('|', '\\|')
        lines.append(
            f'| `{item.name}` | {item.kind} | `{default}` | {item.range_text()} | '
            f'{_MODES[item.applies]} | {help_text} |'
        )
    return '\n'.join(lines)


def fill_tables(text: str) -> str:
    """
    Put the parameter tables into a page.

    Each goes between the lines ``<!-- parameters: NODE -->`` and ``<!-- end parameters -->``; the
    experimental ones of a node are a table of their own, ``NODE experimental``.
    """
    tables = {}
    for name, configs in NODES.items():
        tables[name], tables[f'{name} experimental'] = _split(configs)
    for name, items in tables.items():
        begin, end = f'<!-- parameters: {name} -->', '<!-- end parameters -->'
        head, _, rest = text.partition(begin)
        if not rest:
            continue
        _, _, tail = rest.partition(end)
        text = f'{head}{begin}\n{markdown_table(items)}\n{end}{tail}'
    return text


def main() -> int:
    """Write config/tracker.yaml and the tables of docs/nodes.md of a checkout again."""
    root = Path(__file__).resolve().parents[2]
    page = root / 'docs' / 'nodes.md'
    (root / 'config' / 'tracker.yaml').write_text(tracker_yaml(), encoding='utf-8')
    page.write_text(fill_tables(page.read_text(encoding='utf-8')), encoding='utf-8')
    return 0


if __name__ == '__main__':
    sys.exit(main())
