# SPDX-License-Identifier: Apache-2.0
"""
Run engines over sequences: jobs, in this process, in several, or on a cluster.

A job is one engine on one sequence. Jobs run in any order; each writes its own masks and scores,
so that an interrupted run goes on where it stopped (:mod:`drift_ros.evaluation.results`).
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
import contextlib
from dataclasses import dataclass
import fcntl
import functools
import itertools
import os
from pathlib import Path
import tempfile
import traceback
from typing import TypeVar

from drift_ros.engine.errors import DriftRosError
from drift_ros.evaluation import cluster
from drift_ros.evaluation.datasets import DatasetError, SequenceSource
from drift_ros.evaluation.engines import EngineSpec
from drift_ros.evaluation.metric import MetricError
from drift_ros.evaluation.protocol import Engine, Step, track
from drift_ros.evaluation.provenance import fingerprint
from drift_ros.evaluation.results import Collector, JobResult, read_result
from drift_ros.evaluation.workers import in_processes, limit_threads, Progress, WORKER_DIED
from drift_ros.ros import signals

Done = TypeVar('Done')

Key = tuple[str, str]
"""Engine and sequence of a job."""
_EXPECTED = (DriftRosError, DatasetError, MetricError, OSError)
"""Errors of a job that say themselves what is wrong."""


@dataclass(frozen=True)
class RunOptions:
    """
    How sequences are run, besides the engines.

    Attributes
    ----------
    late_objects : bool
        Seed and score objects that appear later, too (the official protocol does not).
    threads : int
        Threads of each job's libraries (0: processors shared among the workers); the last digits
        of a network's output can depend on it.
    save_masks : bool

    """

    late_objects: bool = False
    threads: int = 0
    save_masks: bool = True


class FolderInUse(DatasetError):
    """Another run is writing to the folder of results."""


_HELD: set[Path] = set()


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """
    Keep a folder of results to this process; may be nested.

    The lock goes with the process, however it ends.

    Raises
    ------
    FolderInUse

    """
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    if folder in _HELD:
        yield
        return
    with (folder / '.lock').open('a+') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise FolderInUse(
                f'another run (process {file.read().strip() or "unknown"}) is writing to '
                f'{folder}: wait for it, or choose another --out'
            ) from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        _HELD.add(folder)
        try:
            yield
        finally:
            _HELD.remove(folder)


def run_job(
    spec: EngineSpec,
    sequence: SequenceSource,
    folder: Path,
    options: RunOptions,
    progress: Progress = lambda engine, name, count: None,
) -> JobResult:
    """Run one engine on one sequence; write masks and scores into the folder of results."""
    (result,) = run_together([(spec, spec.make())], sequence, folder, options, progress)
    return result


def run_together(
    engines: Sequence[tuple[EngineSpec, Engine]],
    sequence: SequenceSource,
    folder: Path,
    options: RunOptions,
    progress: Progress = lambda engine, name, count: None,
    shared: Callable[[], float] = lambda: 0.0,
) -> list[JobResult]:
    """
    Run engines on one sequence in lock-step, and write their masks and scores.

    Every frame is read once and given to one engine after the other. ``shared`` is asked after
    each step for the milliseconds that an engine before this one has spent in its place.
    """
    # what is edited while this runs must not count as what it was made from
    prints = [fingerprint(spec, sequence, options.late_objects) for spec, _ in engines]
    frames = itertools.tee(sequence, len(engines))
    runs: list[tuple[EngineSpec, Iterator[Step], Collector, list[float]]] = [
        (
            spec,
            track(engine, each, options.late_objects),
            Collector(
                spec.label,
                sequence.name,
                folder,
                late_objects=options.late_objects,
                save_masks=options.save_masks,
            ),
            [],
        )
        for (spec, engine), each in zip(engines, frames, strict=True)
    ]
    running = True
    while running:
        for spec, steps, collector, milliseconds in runs:
            step = next(steps, None)
            if step is None:
                running = False
                continue
            elsewhere = shared()
            collector.add(step.frame, step.labels, step.tracks)
            if step.milliseconds is not None:
                milliseconds.append(step.milliseconds + elsewhere)
            progress(spec.label, sequence.name, 1)
            signals.check()
    return [
        collector.finish(milliseconds, print_)
        for (_, _, collector, milliseconds), print_ in zip(runs, prints, strict=True)
    ]


def finished(
    spec: EngineSpec, sequence: SequenceSource, folder: Path, options: RunOptions
) -> JobResult | None:
    """Return the kept result of a job, or None if there is none or it is of another state."""
    try:
        state = fingerprint(spec, sequence, options.late_objects)
    except Exception:  # a file is gone or damaged: the job will say so
        return None
    return read_result(folder, spec.label, sequence.name, state, with_masks=options.save_masks)


def run(
    specs: Sequence[EngineSpec],
    sequences: Sequence[SequenceSource],
    folder: Path,
    *,
    options: RunOptions = RunOptions(),  # noqa: B008  (frozen)
    workers: int = 1,
    ray: str | None = None,
    progress: Progress = lambda engine, name, count: None,
) -> tuple[list[JobResult], dict[Key, str]]:
    """
    Run every engine on every sequence; finished jobs of an earlier run are taken over.

    Parameters
    ----------
    specs : sequence of EngineSpec
    sequences : sequence of SequenceSource
    folder : Path
        Of results.
    options : RunOptions
    workers : int
        Processes (1: this one).
    ray : str, optional
        Address of a Ray cluster to run on instead, or 'local'.
    progress : callable

    Returns
    -------
    results : list of JobResult
        In the order of engines and sequences.
    errors : dict
        By (engine, sequence): one failing job does not end the others.

    Raises
    ------
    FolderInUse

    """
    with exclusive(folder):
        results: dict[Key, JobResult] = {}
        errors: dict[Key, str] = {}
        waiting = {}
        for sequence, spec in itertools.product(sequences, specs):
            kept = finished(spec, sequence, folder, options)
            if kept is None:
                waiting[spec.label, sequence.name] = (spec, sequence)
                continue
            results[spec.label, sequence.name] = kept
            progress(spec.label, sequence.name, len(sequence))
        threads = options.threads or max((os.cpu_count() or 1) // max(workers, 1), 1)
        if ray and waiting:
            found = _on_ray(waiting, folder, options, ray, workers, threads, progress)
        elif workers <= 1 or len(waiting) <= 1:
            found = _here(waiting, folder, options, threads, progress)
        else:
            found = _in_processes(waiting, folder, options, workers, threads, progress)
        with contextlib.closing(found):  # at once, when interrupted: it may hold processes
            for key, what in found:
                if isinstance(what, str):
                    errors[key] = what
                else:
                    results[key] = what
        keys = ((spec.label, sequence.name) for spec in specs for sequence in sequences)
        return [results[key] for key in keys if key in results], errors


Waiting = Mapping[Key, tuple[EngineSpec, SequenceSource]]
Outcomes = Generator[tuple[Key, JobResult | str], None, None]
"""Keys of jobs with their results, or what went wrong."""


def outcome(call: Callable[[], Done], key: Key, folder: Path) -> Done | str:
    """Do a job, or say what went wrong; whatever it is does not end the others."""
    try:
        return call()
    except BrokenProcessPool:
        return WORKER_DIED
    except _EXPECTED as error:
        return f'{type(error).__name__}: {error}'
    except Exception as error:
        log = folder / 'logs' / key[0] / f'{key[1]}.txt'
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(''.join(traceback.format_exception(error)))
        return f'{type(error).__name__}: {error} (unforeseen; {log} has a traceback)'


def _here(
    waiting: Waiting, folder: Path, options: RunOptions, threads: int, progress: Progress
) -> Outcomes:
    limit_threads(threads)
    for key, job in waiting.items():
        call = functools.partial(run_job, *job, folder, options, progress)
        yield key, outcome(call, key, folder)


def _in_processes(
    waiting: Waiting,
    folder: Path,
    options: RunOptions,
    workers: int,
    threads: int,
    progress: Progress,
) -> Outcomes:
    calls = {key: (*job, folder, options) for key, job in waiting.items()}
    for key, future in in_processes(run_job, calls, min(workers, len(calls)), threads, progress):
        yield key, outcome(future.result, key, folder)


def _on_ray(
    waiting: Waiting,
    folder: Path,
    options: RunOptions,
    address: str,
    workers: int,
    threads: int,
    progress: Progress,
) -> Outcomes:
    calls = {key: (*job, options, threads) for key, job in waiting.items()}
    for key, found in cluster.run_on_ray(run_away, calls, address, workers):
        if isinstance(found, str):
            yield key, found
            continue
        result, files = found
        cluster.write_files(folder, files)
        progress(*key, len(waiting[key][1]))
        yield key, result


def run_away(
    spec: EngineSpec, sequence: SequenceSource, options: RunOptions, threads: int
) -> tuple[JobResult, dict[str, bytes]]:
    """Do one job, on whichever machine; return its result and the files it wrote."""
    limit_threads(threads)
    with tempfile.TemporaryDirectory(prefix='drift_ros_') as name:
        folder = Path(name)
        result = run_job(spec, sequence, folder, options)
        return result, {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in folder.rglob('*')
            if path.is_file()
        }
