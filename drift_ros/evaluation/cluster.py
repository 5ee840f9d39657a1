# SPDX-License-Identifier: Apache-2.0
"""
The jobs of a run on a Ray cluster: one task, and one result, per engine and sequence.

Nothing but the data must be visible to the machines: a task works in a folder of its own and
sends scores and masks back, and this process writes them. A task whose worker dies is started
anew by Ray. ``drift_ros`` must be installed on the machines, in the same version.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
import os
from pathlib import Path
import socket
from typing import Any

import drift_ros

RETRIES = 3
"""How often a task is started anew after its worker died."""


def run_on_ray(
    work: Callable[..., Any],
    calls: Mapping[tuple[str, str], tuple[Any, ...]],
    address: str,
    workers: int,
) -> Iterator[tuple[tuple[str, str], Any]]:
    """
    Call a function on the machines of a cluster.

    Parameters
    ----------
    work : callable
        Importable there.
    calls : mapping
        Its arguments, by engine and sequence.
    address : str
        Of the cluster; 'local' starts one of ``workers`` processes here.
    workers : int

    Yields
    ------
    key, outcome
        In the order in which they end: what ``work`` returned, or a text that says why it
        returned nothing.

    Raises
    ------
    ValueError
        Ray is not installed or the cluster cannot be reached.

    """
    ray = _connect(address, workers)
    try:
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(work)
        pending = {
            task.options(name=' '.join(key)).remote(*arguments): key
            for key, arguments in calls.items()
        }
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1)
            key = pending.pop(done[0])
            try:
                yield key, ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                yield key, f'{type(error.cause).__name__}: {error.cause}'
            except ray.exceptions.RayError as error:
                yield (
                    key,
                    f'the worker died {RETRIES + 1} times (out of memory?); '
                    f'run the same command again to go on: {error}',
                )
    finally:
        ray.shutdown()


def _connect(address: str, workers: int) -> Any:
    try:
        import ray
    except ImportError as error:
        raise ValueError(
            '--ray needs Ray, which is not installed: pip install "drift_ros[ray]"'
        ) from error
    # a checkout is not installed where its workers start
    root = str(Path(drift_ros.__file__).resolve().parents[1])
    variables = {
        'PYTHONPATH': os.pathsep.join(filter(None, [root, os.environ.get('PYTHONPATH', '')]))
    }
    common: dict[str, Any] = {'log_to_driver': False, 'logging_level': 'error'}
    try:
        if address == 'local':
            ray.init(
                'local',
                num_cpus=workers,
                include_dashboard=False,
                runtime_env={'env_vars': variables},
                **common,
            )
        else:
            host, _, port = address.rpartition('://')[2].rpartition(':')
            if port.isdigit():  # Ray itself tries for minutes
                socket.create_connection((host, int(port)), timeout=10).close()
            ray.init(address, **common)
    except (OSError, RuntimeError, ValueError, ray.exceptions.RayError) as error:
        raise ValueError(f'cannot reach a Ray cluster at {address}: {error}') from error
    return ray


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write what a task sent back, by relative path; each file appears in one step."""
    # the scores come last: they tell that a job is finished
    for name in sorted(files, key=lambda name: name.startswith('scores/')):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f'{path.name}.partial')
        partial.write_bytes(files[name])
        os.replace(partial, path)
