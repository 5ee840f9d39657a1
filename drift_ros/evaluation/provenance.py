# SPDX-License-Identifier: Apache-2.0
"""
Where a result comes from, and whether a kept one is what a new run would give.

What decides a result is found by rule: the content of the sequence's files; the engine's options
and the content of every file and folder they name; the code of the engine, the sequence, the
protocol and the metric with all that it imports, and the versions of the other packages in it.
Nothing else counts: an edited report or plot invalidates nothing. (Not covered: the device that
'auto' means and the number of threads, on which a network's last digits can depend.)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import functools
from importlib import metadata
import json
import os
from pathlib import Path
import platform
import subprocess
import sys
import time
from typing import Any

import drift_ros
from drift_ros.engine.config import OPTIONS
from drift_ros.evaluation.datasets import SequenceSource
from drift_ros.evaluation.digests import combine, digest_of_code, digest_of_path
from drift_ros.evaluation.engines import EngineSpec, MODELLESS
from drift_ros.evaluation.protocol import track
from drift_ros.evaluation.results import Collector

EMBEDDED = Path(drift_ros.__file__).parent / 'checkpoints'
"""The models that come with the package."""


def fingerprint(spec: EngineSpec, sequence: SequenceSource, late_objects: bool) -> str:
    """Digest what decides the result of a job; equal where it would be the same."""
    return combine(
        json.dumps(spec.as_dict(), sort_keys=True, default=list),
        str(late_objects),
        sequence.digest(),
        code_digest(spec, sequence),
        model_digest(spec) or '',
    )


def code_digest(*parts: Any) -> str:
    """Digest the code that computes: protocol, scoring, and that of engines and sequences."""
    modules = {track.__module__, Collector.__module__}
    for part in parts:
        modules.update(_modules(part))
    return _code_digest(frozenset(modules))


@functools.cache
def _code_digest(modules: frozenset[str]) -> str:
    # once a process: what is edited later is not what this process runs
    return digest_of_code(modules)


def _modules(value: Any) -> Iterator[str]:
    """Name the modules of an object's class, and of the sequences it is made of."""
    for kind in type(value).__mro__:
        if kind.__module__.partition('.')[0] not in sys.stdlib_module_names:
            yield kind.__module__
    if dataclasses.is_dataclass(value):
        for item in dataclasses.fields(value):
            inner = getattr(value, item.name)
            if hasattr(inner, 'digest'):
                yield from _modules(inner)


def model_digest(spec: EngineSpec) -> str | None:
    """
    Digest the content of all models an engine may load.

    Those are the embedded ones, and every file and folder that ``--model`` or an option names.

    Returns
    -------
    str, optional
        None for an engine without any. A model on a hub counts by its name only.

    """
    if spec.name in MODELLESS:
        return None
    named = [
        value
        for key, value in spec.options.items()
        if isinstance(value, str) and not (key in OPTIONS and OPTIONS[key].choices)
    ]
    paths = [Path(text) for text in (spec.model, *named) if text]
    return combine(*(digest_of_path(path) for path in (EMBEDDED, *paths) if path.exists()))


def describe_run(
    specs: Sequence[EngineSpec], late_objects: bool, data: Mapping[str, Any]
) -> dict[str, Any]:
    """Collect all that is needed to reproduce a run: configuration, versions, commit, machine."""
    return {
        'command': ['drift_ros', *sys.argv[1:]],
        'started': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
        'data': dict(data),
        'engines': [{**spec.as_dict(), 'model_digest': model_digest(spec)} for spec in specs],
        'late_objects': late_objects,
        'versions': {**versions(), 'source': code_digest(*specs)},
    }


def versions() -> dict[str, Any]:
    """Return versions of the package, Python, libraries and machine."""
    found: dict[str, Any] = {
        'drift_ros': drift_ros.__version__,
        'commit': commit(),
        'python': platform.python_version(),
        'platform': platform.platform(),
        'processors': os.cpu_count(),
    }
    for name in (
        'torch',
        'diffusers',
        'numpy',
        'opencv-contrib-python-headless',
        'opencv-python-headless',
        'opencv-python',
        'pillow',
        'rosbags',
    ):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def commit() -> str | None:
    """Return the commit of the checkout this package is in ('-dirty' if changed), or None."""
    folder = Path(drift_ros.__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ['git', '-C', str(folder), *arguments],
            check=True,
            timeout=20,
            capture_output=True,
            text=True,
        ).stdout.strip()

    try:
        if not git('ls-files', '__init__.py'):
            return None  # an installed package inside somebody else's checkout
        return git('rev-parse', 'HEAD') + ('-dirty' if git('status', '--porcelain', '.') else '')
    except (OSError, subprocess.SubprocessError):
        return None
