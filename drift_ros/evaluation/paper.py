# SPDX-License-Identifier: Apache-2.0
"""The table of the paper's benchmarks: published numbers, and rows of our own beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
from dataclasses import dataclass
from functools import cache
import json
from pathlib import Path
from typing import Any

import yaml

from drift_ros.evaluation.results import replacing, write_json

_PUBLISHED = Path(__file__).with_name('published.yaml')
ABSENT = 'data not here'
"""Stands where a benchmark was not run."""
EARLIER = 'of an earlier run into this folder'


@cache
def published() -> dict[str, Any]:
    """
    Give the numbers that others published.

    Returns
    -------
    dict
        ``columns``: titles by the key of a :class:`~drift_ros.evaluation.layouts.Split`;
        ``rows``: each with ``method``, ``year``, ``learnt`` (from what), ``source`` and
        ``values``: percent by key, each a mapping with ``j_and_f`` and, where known, ``j``, ``f``.

    """
    return yaml.safe_load(_PUBLISHED.read_text())


@dataclass(frozen=True)
class Outcome:
    """
    What an engine reached on one set.

    Attributes
    ----------
    engine : str
    model : str
        What it saw with.
    key, title : str
        Of the set.
    scores : mapping of str to float
        Percent: ``j_and_f``, ``j``, ``f``. Empty where the set has no public truth.
    sequences : int
        That were scored, or tracked.
    note : str
        What a reader must know: not the whole set, no truth.

    """

    engine: str
    model: str
    key: str
    title: str
    scores: Mapping[str, float]
    sequences: int
    note: str = ''


def table(outcomes: Sequence[Outcome]) -> tuple[list[str], list[list[str]], list[str]]:
    """
    Put published rows and our own together.

    Returns
    -------
    titles : list of str
    rows : list of list of str
        As many cells as titles; J&F in percent.
    notes : list of str
        Footnotes, in the order of their numbers.

    """
    data = published()
    columns = dict(data['columns'])
    columns.update((item.key, item.title) for item in outcomes if item.key not in columns)
    rows = [
        [
            row['method'],
            row['learnt'],
            *(_number(row['values'].get(key)) for key in columns),
            f'{row["source"]} ({row["year"]})',
        ]
        for row in data['rows']
    ]
    notes: list[str] = []
    for engine, model in dict.fromkeys((item.engine, item.model) for item in outcomes):
        own = {item.key: item for item in outcomes if item.engine == engine}
        cells = [_own(own.get(key), notes) for key in columns]
        rows.append([f'drift_ros {engine}', model, *cells, 'this run'])
    return ['method', 'learnt from', *columns.values(), 'source'], rows, notes


def _number(values: Mapping[str, float] | None) -> str:
    return f'{values["j_and_f"]:.1f}' if values else ''


def _own(outcome: Outcome | None, notes: list[str]) -> str:
    if outcome is None:
        return ABSENT
    text = _number(outcome.scores) or 'submit'
    if not outcome.note:
        return text
    if outcome.note not in notes:
        notes.append(outcome.note)
    return f'{text} [{notes.index(outcome.note) + 1}]'


def kept(folder: Path, keys: Iterable[str]) -> list[Outcome]:
    """Give what earlier runs into a folder reached on other sets than those of these keys."""
    try:
        own = json.loads((folder / 'paper.json').read_text())['own']
        found = [Outcome(**item) for item in own if item['key'] not in set(keys)]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [
        item
        if EARLIER in item.note
        else dataclasses.replace(item, note='; '.join(filter(None, (item.note, EARLIER))))
        for item in found
    ]


def write_table(folder: Path, outcomes: Sequence[Outcome]) -> Path:
    """Write ``paper.md`` and ``paper.json`` to a folder; give the path of the first."""
    titles, rows, notes = table(outcomes)
    path = folder / 'paper.md'
    with replacing(path) as file:
        file.write(_line(titles) + _line(['---'] * len(titles)))
        file.writelines(map(_line, rows))
        file.writelines(f'\n{number}. {note}' for number, note in enumerate(notes, start=1))
        file.write('\n')
    write_json(
        folder / 'paper.json',
        {'published': published(), 'own': [vars(item) for item in outcomes]},
    )
    return path


def _line(cells: Iterable[str]) -> str:
    return f'| {" | ".join(cells)} |\n'
