# SPDX-License-Identifier: Apache-2.0
"""
Run engines over sequences, score them, keep the results.

A job is one engine on one sequence. Jobs run in this process or in several, in any order; each
writes its own masks and scores, so that an interrupted run goes on where it stopped. A folder of
results holds::

    run.json                              configuration, versions, command
    scores/ENGINE/SEQUENCE.json           per frame and object: J, F, milliseconds
    masks/ENGINE/SEQUENCE/00000.png       predictions, indexed PNG in the DAVIS palette
    results.json  results.csv  frames.csv scores.png  report.html  media/
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
import contextlib
import csv
from dataclasses import dataclass
import hashlib
from importlib import metadata
import itertools
import json
import multiprocessing
import os
from pathlib import Path
import platform
import queue
import subprocess
import sys
import threading
import time
from typing import Any, Protocol

import numpy as np

import drift_ros
from drift_ros.engine.errors import DriftRosError
from drift_ros.evaluation.baselines import Engine, EngineSpec, NETWORKS
from drift_ros.evaluation.datasets import DatasetError, Frame, write_mask
from drift_ros.evaluation.metric import (
    MetricError,
    SequenceScore,
    SequenceScorer,
    Statistics,
    summarize,
    Summary,
)
from drift_ros.evaluation.protocol import Step, Track, track

Progress = Callable[[str, str, int], None]
"""Called with engine, sequence and the number of frames done since the last call."""


class SequenceSource(Protocol):
    """What a run reads: a DAVIS sequence, a bag. It travels to worker processes."""

    @property
    def name(self) -> str:
        """Name of its files and in tables."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...

    def digest(self) -> str:
        """Fingerprint of the data."""


@dataclass(frozen=True)
class RunOptions:
    """
    How sequences are run, besides the engines.

    ``late_objects`` seeds and scores objects that appear later, too (the official protocol does
    not). ``threads`` is the number of threads of each job's libraries (0: processors shared
    among the workers); the last digits of a network's output can depend on it.
    """

    late_objects: bool = False
    threads: int = 0
    save_masks: bool = True


NO_SCORE = SequenceScore(np.zeros(0, np.int64), (), np.zeros((0, 0)), np.zeros((0, 0)))
"""The score where there is no truth."""


@dataclass(frozen=True)
class JobResult:
    """
    Outcome of one engine on one sequence.

    ``score`` is empty without ground truth (see ``scored``), ``milliseconds`` (n,) float64 are
    those of each step, live: from publication to mask. ``tracks`` holds the objects of every
    frame, ``live`` what a live run measured besides, None offline.
    """

    engine: str
    sequence: str
    score: SequenceScore
    milliseconds: np.ndarray
    size: tuple[int, int]
    frame_names: tuple[str, ...]
    tracks: tuple[tuple[Track, ...], ...] = ()
    live: Mapping[str, Any] | None = None

    @property
    def scored(self) -> bool:
        """Whether there was a truth to score against."""
        return bool(self.score.objects)

    @property
    def summary(self) -> Summary:
        """Means over the sequence's objects."""
        return summarize([self.score])

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON; floats keep every digit, NaN becomes null."""

        def plain(values: np.ndarray) -> list[list[float | None]]:
            return [[None if np.isnan(v) else float(v) for v in row] for row in values]

        return {
            'engine': self.engine,
            'sequence': self.sequence,
            'size': list(self.size),
            'objects': list(self.score.objects),
            'frames': self.score.frames.tolist(),
            'frame_names': list(self.frame_names),
            'j': plain(self.score.j),
            'f': plain(self.score.f),
            'milliseconds': self.milliseconds.tolist(),
            'tracks': [[item.as_list() for item in row] for row in self.tracks],
            'live': self.live,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> JobResult:
        """Read what :meth:`as_dict` gave."""
        shape = (len(data['frames']), len(data['objects']))
        score = SequenceScore(
            np.array(data['frames'], dtype=np.int64),
            tuple(data['objects']),
            *(
                np.array(
                    [[np.nan if v is None else v for v in row] for row in data[key]],
                    dtype=np.float64,
                ).reshape(shape)
                for key in 'jf'
            ),
        )
        return cls(
            data['engine'],
            data['sequence'],
            score,
            np.array(data['milliseconds'], dtype=np.float64),
            (data['size'][0], data['size'][1]),
            tuple(data['frame_names']),
            tuple(tuple(map(Track.from_list, row)) for row in data.get('tracks', ())),
            data.get('live'),
        )


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
    frames = itertools.tee(sequence, len(engines))
    runs: list[tuple[EngineSpec, Iterator[Step], Collector, list[float]]] = [
        (
            spec,
            track(engine, each, options.late_objects),
            Collector(spec.label, sequence.name, folder, options),
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
    return [
        collector.finish(milliseconds, fingerprint(spec, sequence, options))
        for spec, _, collector, milliseconds in runs
    ]


class Collector:
    """Scores and writes a job's masks, frame by frame."""

    def __init__(self, engine: str, sequence: str, folder: Path, options: RunOptions) -> None:
        self._key, self._folder, self._options = (engine, sequence), folder, options
        self._scorer = SequenceScorer(options.late_objects)
        self._names: list[str] = []
        self._tracks: list[tuple[Track, ...]] = []
        self._size = (0, 0)
        self._has_truth = False

    def add(self, frame: Frame, labels: np.ndarray, tracks: tuple[Track, ...]) -> None:
        """Take the next frame's predicted labels (H, W) uint8."""
        if self._options.save_masks:
            write_mask(self._folder.joinpath('masks', *self._key, f'{frame.name}.png'), labels)
        self._has_truth = self._has_truth or frame.truth is not None
        # without a truth in the first frame, its seed says which objects there are
        first = frame.seed if frame.truth is None and not self._names else frame.truth
        self._scorer.add(first, labels)
        self._names.append(frame.name)
        self._tracks.append(tracks)
        self._size = (labels.shape[0], labels.shape[1])

    def finish(
        self,
        milliseconds: Sequence[float],
        fingerprint: str,
        live: Mapping[str, Any] | None = None,
    ) -> JobResult:
        """Write and return the result; without any truth its score is empty."""
        result = JobResult(
            *self._key,
            self._score(),
            np.array(milliseconds, dtype=np.float64),
            self._size,
            tuple(self._names),
            tuple(self._tracks),
            live,
        )
        write_json(
            score_file(self._folder, *self._key), {**result.as_dict(), 'fingerprint': fingerprint}
        )
        return result

    def summary(self) -> float | None:
        """Return J&F so far, from 0 to 1; None without any truth."""
        return summarize([self._score()]).j_and_f if self._has_truth else None

    def _score(self) -> SequenceScore:
        return self._scorer.finish() if self._has_truth else NO_SCORE


def score_file(folder: Path, engine: str, sequence: str) -> Path:
    """Where a job's scores are kept."""
    return folder / 'scores' / engine / f'{sequence}.json'


def fingerprint(spec: EngineSpec, sequence: SequenceSource, options: RunOptions) -> str:
    """
    Tell whether a kept result is what a new run would give.

    It covers the data, the engine and all its options, the model's files, the protocol and the
    source of this package, so that results of different states never mix in one report.
    """
    parts = [
        spec.as_dict(),
        sequence.digest(),
        options.late_objects,
        source_digest(),
        model_digest(spec),
    ]
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=list).encode()).hexdigest()


def finished(
    spec: EngineSpec, sequence: SequenceSource, folder: Path, options: RunOptions
) -> JobResult | None:
    """Return the kept result of a job, or None if there is none or it is of another state."""
    try:
        data = json.loads(score_file(folder, spec.label, sequence.name).read_text())
        if data['fingerprint'] == fingerprint(spec, sequence, options):
            return JobResult.from_dict(data)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return None


def run(
    specs: Sequence[EngineSpec],
    sequences: Sequence[SequenceSource],
    folder: Path,
    *,
    options: RunOptions = RunOptions(),
    workers: int = 1,  # noqa: B008  (frozen)
    ray: str | None = None,
    progress: Progress = lambda engine, name, count: None,
) -> tuple[list[JobResult], dict[tuple[str, str], str]]:
    """
    Run every engine on every sequence; finished jobs of an earlier run are taken over.

    ``workers`` is the number of processes (1: this one), ``ray`` the address of a Ray cluster to
    run on instead, or 'local'. Returns the results, in the order of
    engines and sequences, and the errors by (engine, sequence): one failing job does not end
    the others.
    """
    jobs = [(spec, sequence) for sequence in sequences for spec in specs]
    results: dict[tuple[str, str], JobResult] = {}
    errors: dict[tuple[str, str], str] = {}
    waiting = []
    for spec, sequence in jobs:
        kept = finished(spec, sequence, folder, options)
        if kept is None:
            waiting.append((spec, sequence))
            continue
        results[spec.label, sequence.name] = kept
        progress(spec.label, sequence.name, len(sequence))
    threads = options.threads or max((os.cpu_count() or 1) // max(workers, 1), 1)
    if ray and waiting:
        from drift_ros.evaluation.cluster import run_on_ray

        run_on_ray(waiting, folder, options, ray, workers, threads, progress, results, errors)
    elif workers <= 1 or len(waiting) <= 1:
        limit_threads(threads)
        for spec, sequence in waiting:
            key = (spec.label, sequence.name)
            try:
                results[key] = run_job(spec, sequence, folder, options, progress)
            except (DriftRosError, DatasetError, MetricError, OSError) as error:
                errors[key] = f'{type(error).__name__}: {error}'
    else:
        _run_in_processes(
            waiting,
            folder,
            options,
            min(workers, len(waiting)),
            threads,
            progress,
            results,
            errors,
        )
    ordered = [
        results[spec.label, sequence.name]
        for spec in specs
        for sequence in sequences
        if (spec.label, sequence.name) in results
    ]
    return ordered, errors


def _run_in_processes(
    waiting: list,
    folder: Path,
    options: RunOptions,
    workers: int,
    threads: int,
    progress: Progress,
    results: dict,
    errors: dict,
) -> None:
    calls = {
        (spec.label, sequence.name): (spec, sequence, folder, options)
        for spec, sequence in waiting
    }
    for key, future in in_processes(run_job, calls, workers, threads, progress):
        try:
            results[key] = future.result()
        except BrokenProcessPool:
            errors[key] = WORKER_DIED
        except (DriftRosError, DatasetError, MetricError, OSError) as error:
            errors[key] = f'{type(error).__name__}: {error}'


WORKER_DIED = (
    'a worker process died (out of memory?); run the same command again to go on, with '
    'fewer --workers'
)
"""What to say of a BrokenProcessPool."""


def in_processes(
    function: Callable, calls: Mapping[Any, tuple], workers: int, threads: int, progress: Progress
) -> Iterator[tuple[Any, Future]]:
    """
    Call a function in worker processes; give the keys of ``calls`` with futures as they finish.

    ``calls`` holds its arguments but for the last, which is a ``progress``.
    """
    context = multiprocessing.get_context('spawn')
    with context.Manager() as manager:
        channel = manager.Queue()
        done = threading.Event()

        def forward() -> None:
            while not done.is_set() or not channel.empty():
                with contextlib.suppress(queue.Empty):
                    progress(*channel.get(timeout=0.1))

        thread = threading.Thread(target=forward, daemon=True)
        thread.start()
        try:
            with ProcessPoolExecutor(workers, context, limit_threads, (threads,)) as pool:
                futures = {
                    pool.submit(_call, function, arguments, channel): key
                    for key, arguments in calls.items()
                }
                for future in _completed(pool, futures):
                    yield futures[future], future
        finally:
            done.set()
            thread.join()


def _completed(pool: ProcessPoolExecutor, futures: Mapping[Future, Any]) -> Iterator[Future]:
    """Give futures as they finish; on an interrupt, start none of those that still wait."""
    try:
        yield from as_completed(futures)
    except KeyboardInterrupt:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _call(function: Callable, arguments: tuple, channel: Any) -> Any:
    return function(*arguments, lambda engine, name, count: channel.put((engine, name, count)))


def limit_threads(threads: int) -> None:
    """Bound the threads of this process's libraries."""
    import cv2

    cv2.setNumThreads(threads)
    # Engines without a network need no torch; where it comes later, it reads the environment.
    os.environ['OMP_NUM_THREADS'] = str(threads)
    if 'torch' in sys.modules:
        sys.modules['torch'].set_num_threads(threads)


# -- what is kept of a run ---------------------------------------------------------------------


def describe_run(
    specs: Sequence[EngineSpec], options: RunOptions, data: Mapping[str, Any]
) -> dict[str, Any]:
    """Collect all that is needed to reproduce a run: configuration, versions, commit, machine."""
    return {
        'command': ['drift_ros', *sys.argv[1:]],
        'started': time.strftime('%Y-%m-%dT%H:%M:%S%z'),
        'data': dict(data),
        'engines': [{**spec.as_dict(), 'model_digest': model_digest(spec)} for spec in specs],
        'late_objects': options.late_objects,
        'versions': versions(),
    }


def versions() -> dict[str, Any]:
    """Return versions of the package, its source, Python, libraries and machine."""
    found: dict[str, Any] = {
        'drift_ros': drift_ros.__version__,
        'commit': commit(),
        'source': source_digest(),
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


_DIGESTS: dict[str, str] = {}


def source_digest() -> str:
    """Return a digest of the source that decides on masks and scores."""
    if 'source' not in _DIGESTS:
        folder = Path(drift_ros.__file__).parent
        text = hashlib.sha256()
        for path in sorted(folder.rglob('*.py')):
            part = path.relative_to(folder)
            # Nodes, pictures and reports change no number.
            if str(part) != 'ros/conversions.py' and (
                part.parts[0] in ('nodes', 'ros', 'commands')
                or part.name
                in (
                    'overlay.py',
                    'report.py',
                    'compare.py',
                    'live.py',
                    'stability.py',
                    'result_bag.py',
                    'cluster.py',
                )
            ):
                continue
            text.update(str(part).encode() + b'\0' + path.read_bytes())
        _DIGESTS['source'] = text.hexdigest()[:16]
    return _DIGESTS['source']


def model_digest(spec: EngineSpec) -> str | None:
    """
    Return a digest of the model's files; None for an engine without, or a model on a hub.

    Files above 64 MB count by name, size and time of change.
    """
    if spec.name not in NETWORKS:
        return None
    folder = Path(spec.model) if spec.model else Path(drift_ros.__file__).parent / 'checkpoints'
    if not folder.is_dir():
        return None
    if str(folder) not in _DIGESTS:
        text = hashlib.sha256()
        for path in sorted(path for path in folder.rglob('*') if path.is_file()):
            state = path.stat()
            text.update(str(path.relative_to(folder)).encode())
            text.update(
                path.read_bytes()
                if state.st_size < 2**26
                else f'{state.st_size} {state.st_mtime_ns}'.encode()
            )
        _DIGESTS[str(folder)] = text.hexdigest()[:16]
    return _DIGESTS[str(folder)]


def engine_summary(results: Iterable[JobResult]) -> dict[str, dict[str, Any]]:
    """
    Return per engine: J&F, statistics of J and F over objects, and milliseconds per step.

    Scores are None where no sequence has a truth.
    """
    grouped: dict[str, list[JobResult]] = {}
    for result in results:
        grouped.setdefault(result.engine, []).append(result)
    return {engine: _summary_row(rows) for engine, rows in grouped.items()}


def _summary_row(rows: Sequence[JobResult]) -> dict[str, Any]:
    scored = [row.score for row in rows if row.scored]
    summary = summarize(scored) if scored else None
    times = np.concatenate([row.milliseconds for row in rows])

    def statistics_of(name: str, values: Statistics | None) -> dict[str, float | None]:
        return {
            f'{name}_{part}': getattr(values, part) if values else None
            for part in ('mean', 'recall', 'decay')
        }

    return {
        'j_and_f': summary.j_and_f if summary else None,
        **statistics_of('j', summary.j if summary else None),
        **statistics_of('f', summary.f if summary else None),
        'objects': summary.objects if summary else 0,
        'sequences': len(rows),
        'frames': int(sum(len(row.frame_names) for row in rows)),
        'ms_median': float(np.median(times)) if times.size else None,
        'ms_95': float(np.percentile(times, 95)) if times.size else None,
    }


def write_results(
    folder: Path,
    description: Mapping[str, Any],
    results: Sequence[JobResult],
    errors: Mapping[tuple[str, str], str],
    tables: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> None:
    """
    Write run.json, results.json, results.csv (per object) and frames.csv (per frame).

    ``tables`` are more parts of results.json, each a CSV file of its own, too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / 'run.json', description)
    write_json(
        folder / 'results.json',
        {
            'run': dict(description),
            'engines': engine_summary(results),
            'sequences': [
                {'engine': row.engine, 'sequence': row.sequence, **_summary_row([row])}
                for row in results
            ],
            'errors': [
                {'engine': engine, 'sequence': sequence, 'error': text}
                for (engine, sequence), text in errors.items()
            ],
            **(tables or {}),
        },
    )
    for name, rows in (tables or {}).items():
        if rows:
            with _replacing(folder / f'{name}.csv') as file:
                table = csv.DictWriter(file, list(rows[0]))
                table.writeheader()
                table.writerows(rows)
    with _replacing(folder / 'results.csv') as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                'engine',
                'sequence',
                'object',
                'frames',
                'j_mean',
                'j_recall',
                'j_decay',
                'f_mean',
                'f_recall',
                'f_decay',
                'j_and_f',
                'ms_median',
            ]
        )
        for row in results:
            for item in row.score.objects:
                j, f = row.score.statistics(item)
                writer.writerow(
                    [
                        row.engine,
                        row.sequence,
                        item,
                        len(row.score.frames),
                        j.mean,
                        j.recall,
                        j.decay,
                        f.mean,
                        f.recall,
                        f.decay,
                        (j.mean + f.mean) / 2,
                        float(np.median(row.milliseconds)),
                    ]
                )
    with _replacing(folder / 'frames.csv') as file:
        writer = csv.writer(file)
        writer.writerow(['engine', 'sequence', 'object', 'frame', 'name', 'j', 'f'])
        for row in results:
            for line, frame in enumerate(row.score.frames):
                for column, item in enumerate(row.score.objects):
                    if not np.isnan(row.score.j[line, column]):
                        writer.writerow(
                            [
                                row.engine,
                                row.sequence,
                                item,
                                int(frame),
                                row.frame_names[frame],
                                row.score.j[line, column],
                                row.score.f[line, column],
                            ]
                        )


def load_results(folder: Path) -> tuple[dict[str, Any], list[JobResult]]:
    """
    Read a folder of results: the run's description and its jobs.

    Raises DatasetError when the folder holds none.
    """
    try:
        data = json.loads((folder / 'results.json').read_text())
        results = [
            JobResult.from_dict(
                json.loads(score_file(folder, row['engine'], row['sequence']).read_text())
            )
            for row in data['sequences']
        ]
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(
            f'{folder} holds no complete results of an evaluation ({error}); '
            'give the --out folder of "drift_ros eval"'
        ) from None
    return data['run'], results


def write_json(path: Path, data: Any) -> None:
    """Write JSON in one step."""
    with _replacing(path) as file:
        json.dump(data, file, indent=1, default=list)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'{path.name}.{os.getpid()}.partial')
    with partial.open('w', newline='') as file:
        yield file
    os.replace(partial, path)
