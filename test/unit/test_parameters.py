# SPDX-License-Identifier: Apache-2.0
"""The declarative parameter table, and what is made from it."""

from pathlib import Path

import pytest
import yaml

from drift_ros.engine.config import OPTIONS
from drift_ros.ros import parameters, reference

ROOT = Path(__file__).resolve().parents[2]
ALL = [
    (name, item)
    for name, configs in parameters.NODES.items()
    for item in parameters.parameters(*configs)
]


def test_every_engine_option_is_a_parameter():
    names = {item.name for item in parameters.parameters(*parameters.NODES['tracker'])}
    assert set(OPTIONS) <= names


@pytest.mark.parametrize(('node', 'item'), ALL, ids=[f'{n}.{i.name}' for n, i in ALL])
def test_every_parameter_is_described_and_its_default_allowed(node, item):
    assert item.help.endswith('.') and len(item.help) > 15
    assert item.check(item.default) == ''
    assert item.kind in ('bool', 'int', 'float', 'str', 'list[int]', 'list[str]')


def test_checks_name_parameter_value_and_range():
    table = {item.name: item for item in parameters.parameters(*parameters.NODES['tracker'])}
    for name, value in (
        ('kernel.radius', -1),
        ('kernel.temperature', 1000.0),
        ('kernel.temperature', float('nan')),
        ('refinement.method', 'magic'),
        ('image_transport', 'theora'),
        ('features.layers', 3),
        ('features.layers', [1, 2]),
    ):
        reason = table[name].check(value)
        assert name in reason and str(value) in reason
    for name, value in (
        ('kernel.radius', 0),
        ('features.layers', []),
        ('features.layers', ['up_blocks.1']),
    ):
        assert table[name].check(value) == ''


def test_parameter_file_is_up_to_date():
    text = (ROOT / 'config' / 'tracker.yaml').read_text(encoding='utf-8')
    assert text == reference.tracker_yaml(), 'run: python -m drift_ros.ros.reference'
    values = yaml.safe_load(text)['/**']['tracker']['ros__parameters']
    for item in parameters.parameters(*parameters.NODES['tracker']):
        if item.name.startswith('experimental.'):
            continue
        group, _, name = item.name.rpartition('.')
        found = values[group] if group else values
        if item.default == ():
            assert name not in found
        else:
            assert found[name] == item.default
            assert type(found[name]) is type(item.default)
    assert 'experimental' not in values


def test_page_is_up_to_date():
    text = (ROOT / 'docs' / 'nodes.md').read_text(encoding='utf-8')
    assert text == reference.fill_tables(text), 'run: python -m drift_ros.ros.reference'
    for _, item in ALL:
        assert f'| `{item.name}` |' in text


def test_a_stale_table_is_noticed():
    page = 'a\n<!-- parameters: player -->\nstale row\n<!-- end parameters -->\nb\n'
    filled = reference.fill_tables(page)
    assert filled != page and '`source`' in filled and 'stale row' not in filled
    assert filled.startswith('a\n') and filled.endswith('\nb\n')
    assert reference.fill_tables(filled) == filled
