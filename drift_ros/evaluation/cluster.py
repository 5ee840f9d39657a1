# SPDX-License-Identifier: Apache-2.0
"""
The jobs of a run on a Ray cluster: one task, and one result, per engine and sequence.

Nothing but the data must be visible to the machines: a task works in a folder of its own and
sends scores and masks back, and this process writes them. A task whose worker dies is started
anew by Ray. ``drift_ros`` must be installed on the machines, in the same version.
"""

from __future__ import annotations

import os
from pathlib import Path
import socket
import tempfile
from typing import Any, TYPE_CHECKING

import drift_ros

if TYPE_CHECKING:
    from drift_ros.evaluation.baselines import EngineSpec
    from drift_ros.evaluation.run import JobResult, Progress, RunOptions, SequenceSource

RETRIES = 3
"""How often a task is started anew after its worker died."""


def run_on_ray(
    waiting: list[tuple[EngineSpec, SequenceSource]],
    folder: Path,
    options: RunOptions,
    address: str,
    workers: int,
    threads: int,
    progress: Progress,
    results: dict,
    errors: dict,
) -> None:
    """
    Run jobs on the cluster at ``address``; 'local' starts one of ``workers`` processes here.

    Fills ``results`` and ``errors`` by (engine, sequence). Raises ValueError when Ray is not
    installed or the cluster cannot be reached.
    """
    ray = _connect(address, workers)
    try:
        task = ray.remote(num_cpus=1, max_retries=RETRIES)(_work)
        pending = {}
        for spec, sequence in waiting:
            reference = task.options(name=f'{spec.label} {sequence.name}').remote(
                spec, sequence, options, threads
            )
            pending[reference] = (spec.label, sequence.name, len(sequence))
        while pending:
            done, _ = ray.wait(list(pending), num_returns=1)
            engine, name, length = pending.pop(done[0])
            try:
                result, files = ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                errors[engine, name] = f'{type(error.cause).__name__}: {error.cause}'
            except ray.exceptions.RayError as error:
                errors[engine, name] = (
                    f'the worker died {RETRIES + 1} times (out of memory?); '
                    f'run the same command again to go on: {error}'
                )
            else:
                _write(folder, files)
                results[engine, name] = result
                progress(engine, name, length)
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


def _work(
    spec: EngineSpec, sequence: SequenceSource, options: RunOptions, threads: int
) -> tuple[JobResult, dict[str, bytes]]:
    """Do one job, on whichever machine; return its result and the files it wrote."""
    from drift_ros.evaluation.run import limit_threads, run_job

    limit_threads(threads)
    with tempfile.TemporaryDirectory(prefix='drift_ros_') as name:
        folder = Path(name)
        result = run_job(spec, sequence, folder, options)
        return result, {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob('*')
            if path.is_file()
        }


def _write(folder: Path, files: dict[str, bytes]) -> None:
    # the scores come last: they tell that a job is finished
    for name in sorted(files, key=lambda name: name.startswith('scores/')):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f'{path.name}.partial')
        partial.write_bytes(files[name])
        os.replace(partial, path)
