# SPDX-License-Identifier: Apache-2.0
"""The declarative parameter table, and what is made from it."""

import dataclasses
from pathlib import Path

import pytest
import yaml

from drift_ros import TrackerConfig
from drift_ros.ros import parameters

ROOT = Path(__file__).resolve().parents[2]
ALL = [
    (name, item)
    for name, configs in parameters.NODES.items()
    for item in parameters.parameters(*configs)
]


def test_every_engine_option_is_a_parameter():
    names = {item.name for item in parameters.parameters(*parameters.NODES['tracker'])}
    assert {field.name for field in dataclasses.fields(TrackerConfig)} <= names


@pytest.mark.parametrize(('node', 'item'), ALL, ids=[f'{n}.{i.name}' for n, i in ALL])
def test_every_parameter_is_described_and_its_default_allowed(node, item):
    assert item.help.endswith('.') and len(item.help) > 15
    assert item.check(item.default) == ''
    assert item.kind in ('bool', 'int', 'float', 'str', 'list[int]', 'list[str]')


def test_checks_name_parameter_value_and_range():
    table = {item.name: item for item in parameters.parameters(*parameters.NODES['tracker'])}
    for name, value in (
        ('radius', -1),
        ('temperature', 1000.0),
        ('temperature', float('nan')),
        ('refinement', 'magic'),
        ('image_transport', 'theora'),
        ('layers', 3),
        ('layers', [1, 2]),
    ):
        reason = table[name].check(value)
        assert name in reason and str(value) in reason
    for name, value in (('radius', 0), ('layers', []), ('layers', ['up_blocks.1'])):
        assert table[name].check(value) == ''


def test_parameter_file_is_up_to_date():
    text = (ROOT / 'config' / 'tracker.yaml').read_text(encoding='utf-8')
    assert text == parameters.tracker_yaml(), 'run: python -m drift_ros.ros.parameters'
    values = yaml.safe_load(text)['/**']['tracker']['ros__parameters']
    for item in parameters.parameters(*parameters.NODES['tracker']):
        if item.default == ():
            assert item.name not in values
        else:
            assert values[item.name] == item.default
            assert type(values[item.name]) is type(item.default)


def test_page_is_up_to_date():
    text = (ROOT / 'docs' / 'nodes.md').read_text(encoding='utf-8')
    assert text == parameters.fill_tables(text), 'run: python -m drift_ros.ros.parameters'
    for _, item in ALL:
        assert f'| `{item.name}` |' in text


def test_a_stale_table_is_noticed():
    page = 'a\n<!-- parameters: player -->\nstale row\n<!-- end parameters -->\nb\n'
    filled = parameters.fill_tables(page)
    assert filled != page and '`source`' in filled and 'stale row' not in filled
    assert filled.startswith('a\n') and filled.endswith('\nb\n')
    assert parameters.fill_tables(filled) == filled
