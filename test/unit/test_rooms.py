# SPDX-License-Identifier: Apache-2.0
"""Arrows between rooms point downward, no modules import in a circle, docs name what there is."""

import ast
from pathlib import Path
import re

import pytest

import drift_ros

ROOT = Path(__file__).resolve().parents[2]
# Each room may import from those before it; several in one line do not know each other.
ORDER = [
    {'starting'},
    {'engine'},
    {'weights'},
    {'diffusion', 'refinement', 'space'},
    {'prompts', 'media'},
    {'api'},
    {'ros'},
    {'nodes', 'evaluation', 'simulation'},
    {'experiments'},
    {'commands'},
]
MODULES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
    for path in sorted((ROOT / 'drift_ros').rglob('*.py'))
}


def imported(path, at_start_only=False):
    """Modules of this package that a file imports; those of type checkers alone are left out."""
    tree = ast.parse(path.read_text())
    found = set()

    def visit(node):
        if isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.dump(node.test):
            return
        if at_start_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            return
        if isinstance(node, ast.ImportFrom) and (node.module or '').startswith('drift_ros'):
            for alias in node.names:
                inner = f'{node.module}.{alias.name}'
                found.add(inner if inner in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names if alias.name in MODULES)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(tree)
    return found - {'drift_ros', 'drift_ros_msgs'}


def room(module):
    return module.split('.')[1] if '.' in module else ''


@pytest.mark.parametrize('module', [name for name in MODULES if room(name)])
def test_arrows_point_downward(module):
    level = {name: height for height, names in enumerate(ORDER) for name in names}
    for other in imported(MODULES[module]):
        if other not in MODULES or room(other) == room(module):
            continue
        assert level[room(other)] < level[room(module)], f'{module} imports {other}'


def test_no_module_imports_itself_by_others():
    graph = {name: imported(path) & set(MODULES) for name, path in MODULES.items()}
    done, way = set(), []

    def walk(name):
        assert name not in way, ' -> '.join([*way[way.index(name) :], name])
        if name in done:
            return
        way.append(name)
        for other in sorted(graph[name] - {name}):
            walk(other)
        done.add(way.pop())

    for name in graph:
        walk(name)


def test_the_engine_needs_neither_ros_nor_files():
    for name, path in MODULES.items():
        if room(name) in (
            'engine',
            'weights',
            'diffusion',
            'refinement',
            'prompts',
            'space',
            'api',
        ):
            names = {
                alias.name if isinstance(node, ast.Import) else node.module
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, (ast.Import, ast.ImportFrom))
                for alias in node.names
            }
            ros = {item for item in names if item and re.search(r'rclpy|_msgs|rosbags', item)}
            assert not ros, f'{name} imports {ros}'


@pytest.mark.parametrize(
    'page',
    [*sorted(ROOT.glob('*.md')), *sorted((ROOT / 'docs').glob('*.md'))],
    ids=lambda p: p.name,
)
def test_every_module_that_the_pages_name_exists(page):
    text = page.read_text()
    for name in re.findall(r'`(drift_ros(?:[./]\w+)+(?:\.py)?)/?`', text):
        path = ROOT / (name if '/' in name else name.replace('.', '/'))
        candidates = [path, path.with_suffix('.py'), path.parent.with_suffix('.py')]
        public = name.removeprefix('drift_ros.') in drift_ros.__all__
        assert public or any(item.exists() for item in candidates), f'{page.name} names {name}'
    for name in re.findall(r'python -m (drift_ros[\w.]*|training[\w.]*)', text):
        path = ROOT / name.replace('.', '/')
        assert path.with_suffix('.py').exists() or (path / '__main__.py').exists(), name


def test_one_dialect_of_docstrings():
    for path in (
        path for top in ('drift_ros', 'training', 'tools') for path in (ROOT / top).rglob('*.py')
    ):
        marks = re.findall(r'^\s*:(param|raises?|returns?|type)\b', path.read_text(), re.M)
        assert not marks, f'{path.relative_to(ROOT)} has {marks[0]}: docstrings are numpydoc'
