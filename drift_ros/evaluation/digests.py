# SPDX-License-Identifier: Apache-2.0
"""Digests of content: of files, folders and modules with all they import."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
import functools
import hashlib
from importlib import metadata, util
import os
from pathlib import Path
import sys

_CHUNK = 1 << 22
_FILES: dict[tuple[str, int, int, int, int], str] = {}


def combine(*parts: str) -> str:
    """Make one digest of several texts, in their order."""
    text = hashlib.blake2b(digest_size=16)
    for part in parts:
        text.update(f'{len(part)} {part}'.encode())
    return text.hexdigest()


def digest_of_file(path: Path) -> str:
    """
    Digest a file's content.

    Remembered within this process by path, times of change, size and inode: a file that was
    edited is read again, also where a tool put its date back (the system's own it cannot).
    """
    state = path.stat()
    key = (str(path), state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino)
    if key not in _FILES:
        text = hashlib.blake2b(digest_size=16)
        with path.open('rb') as file:
            while chunk := file.read(_CHUNK):
                text.update(chunk)
        _FILES[key] = text.hexdigest()
    return _FILES[key]


def digest_of_path(path: Path) -> str:
    """Digest a file, or the names and content of all files in a folder, wherever links lead."""
    if path.is_file():
        return digest_of_file(path)
    files, seen = list[Path](), set[str]()
    for root, folders, names in os.walk(path, followlinks=True):
        seen.add(os.path.realpath(root))
        folders[:] = [item for item in folders if os.path.realpath(Path(root, item)) not in seen]
        files += [item for item in (Path(root, name) for name in names) if item.is_file()]
    return combine(*(f'{item.relative_to(path)} {digest_of_file(item)}' for item in sorted(files)))


def digest_of_code(modules: Iterable[str]) -> str:
    """
    Digest modules, all they import from their own package, and the versions of other packages.

    Imports are found in the source, wherever they stand, so those within functions count; those
    for type checkers only do not.
    """
    files, foreign = import_closure(frozenset(modules))
    return combine(
        *(f'{name} {digest_of_file(path)}' for name, path in sorted(files.items())),
        *(f'{name} {version}' for name, version in _versions(foreign)),
    )


@functools.cache
def import_closure(modules: frozenset[str]) -> tuple[dict[str, Path], frozenset[str]]:
    """
    Follow imports from modules of one package.

    Returns
    -------
    files : dict from str to Path
        Source of every module of the package that is imported, those given included.
    foreign : frozenset of str
        Top-level names of the other packages imported, without the standard library's.

    """
    packages = {name.partition('.')[0] for name in modules}
    files: dict[str, Path] = {}
    foreign: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        path = _source(name)
        if name in files or path is None:
            continue
        files[name] = path
        is_package = path.name == '__init__.py'
        for found in _imports(ast.parse(path.read_bytes()), name, is_package):
            if found.partition('.')[0] in packages:
                parts = found.split('.')
                # importing a module runs the packages above it, too
                waiting += ['.'.join(parts[: count + 1]) for count in range(len(parts))]
            elif found.partition('.')[0] not in sys.stdlib_module_names:
                foreign.add(found.partition('.')[0])
    return files, frozenset(foreign)


def _source(name: str) -> Path | None:
    """Find a module's source without importing anything; None for what is no module."""
    top, *parts = name.split('.')
    spec = util.find_spec(top)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        path = Path(folder, *parts)
        for file in (path / '__init__.py', path.with_suffix('.py')):
            if file.is_file():
                return file
    return None


def _imports(tree: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    """Give the dotted names that are imported; of ``from x import y`` both x and x.y."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (item.name for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ''
            if node.level:
                parts = module.split('.')
                above = parts[: len(parts) - node.level + is_package]
                base = '.'.join([*above, base] if base else above)
            yield base
            yield from (f'{base}.{item.name}' for item in node.names)
        elif isinstance(node, ast.If) and _for_type_checkers(node.test):
            for item in node.orelse:
                yield from _imports(item, module, is_package)
        else:
            yield from _imports(node, module, is_package)


def _for_type_checkers(test: ast.expr) -> bool:
    return getattr(test, 'id', getattr(test, 'attr', '')) == 'TYPE_CHECKING'


@functools.cache
def _versions(names: frozenset[str]) -> tuple[tuple[str, str], ...]:
    """Versions of the distributions that provide packages of these names."""
    providers = metadata.packages_distributions()
    found = {item for name in names for item in providers.get(name, ())}
    return tuple(sorted((item, metadata.version(item)) for item in found))
