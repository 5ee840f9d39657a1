# SPDX-License-Identifier: Apache-2.0
"""
Live runs: bags replayed to a tracker node, scored by what was known when.

A robot acts on the newest mask it has. At the instant t_k at which frame k is published, that is
the mask that *arrived* last; it is scored against the truth of frame k (streaming accuracy,
Li, Wang, Ramanan, "Towards Streaming Perception", ECCV 2020). A mask without any delay is then
still one frame old. The second score takes, for frame k, the newest mask that arrived before
frame k + 1 was published: each mask against the frame that is current when it arrives. Until a
first mask is there, the seed is the prediction.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
import functools
from pathlib import Path
import time
from typing import Any, TYPE_CHECKING

import numpy as np

from drift_ros.engine.config import OPTIONS
from drift_ros.evaluation.bags import BagSequence
from drift_ros.evaluation.datasets import BrokenSequence, DatasetError
from drift_ros.evaluation.engines import EngineSpec
from drift_ros.evaluation.protocol import relabel, seed_mask, Track
from drift_ros.evaluation.results import Collector, JobResult
from drift_ros.evaluation.run import outcome, Progress, RunOptions
from drift_ros.media.labels import write_labels

if TYPE_CHECKING:
    from drift_ros.ros.replay import Recording, Seed


def live_label(engine: str, rate: float | None) -> str:
    """Name a live run of an engine: ``tracker@10Hz``, ``tracker@recorded``."""
    return f'{engine}@recorded' if rate is None else f'{engine}@{rate:g}Hz'


def parse_rates(text: str | None) -> list[float | None]:
    """Read ``--rate``: frames a second, separated by commas; without it, the bag's own stamps."""
    if text is None:
        return [None]
    try:
        rates: list[float | None] = [float(part) for part in text.split(',')]
    except ValueError:
        rates = [0.0]
    if any(not rate or not 0 < rate <= 1000 for rate in rates):
        raise ValueError(
            f'--rate {text}: expected frames per second, above 0 and at most 1000, '
            'separated by commas, such as 5,10,30'
        )
    return list(dict.fromkeys(rates))


def newest(arrivals: Sequence[tuple[int, float]], instants: Sequence[float]) -> list[int]:
    """
    Give, for every instant, the newest frame whose mask had arrived; 0, the seed, before any.

    Parameters
    ----------
    arrivals : sequence
        (frame, seconds) in order of time.
    instants : sequence of float
        Seconds, ascending.

    """
    found, known, position = [], 0, 0
    for instant in instants:
        while position < len(arrivals) and arrivals[position][1] <= instant:
            known = max(known, arrivals[position][0])
            position += 1
        found.append(known)
    return found


def find_seeds(sequence: BagSequence, late_objects: bool) -> list[Seed]:
    """Read the frames an engine is seeded in."""
    from drift_ros.ros.replay import Seed

    known: set[int] = set()
    seeds = []
    last = max(sequence.seed_numbers, default=0)
    for index, frame in enumerate(sequence):
        mask = seed_mask(frame, index, known, late_objects)
        if mask is not None:
            seeds.append(Seed(index, mask, frame.image))
            known.update(int(label) for label in np.unique(mask) if label)
        if index >= last and not late_objects:
            break
    return seeds


def run_live_job(
    spec: EngineSpec,
    sequences: Sequence[BagSequence],
    rate: float | None,
    folder: Path,
    options: RunOptions,
    progress: Progress,
) -> list[JobResult]:
    """
    Replay cameras to one tracker node with the options of ``spec``; score, write and return.

    Masks that were the prediction at t_k go to ``masks`` as those of other engines, all masks
    that arrived to ``delivered``.

    Raises
    ------
    ProcessError
        The node failed.

    """
    from drift_ros.ros.replay import replay, Stream

    label = live_label(spec.label, rate)
    parameters = {name: spec.options[name] for name in OPTIONS if spec.options[name] != ''}
    parameters['device'] = spec.device
    if spec.model:
        parameters['model'] = spec.model
    streams = {
        f'camera{number}': Stream(
            sequence.serialized(),
            find_seeds(sequence, options.late_objects),
            sequence.compressed,
            rate,
            functools.partial(progress, label, sequence.name, 1),
        )
        for number, sequence in enumerate(sequences, start=1)
    }
    logs = folder / 'logs' / label / '+'.join(sequence.name for sequence in sequences)
    recordings = replay(streams, parameters, logs, threads=options.threads)
    return [
        _score(label, sequence, stream.seeds[0].labels, recordings[name], rate, folder, options)
        for sequence, (name, stream) in zip(sequences, streams.items(), strict=True)
    ]


def _score(
    label: str,
    sequence: BagSequence,
    seed: np.ndarray,
    recording: Recording,
    rate: float | None,
    folder: Path,
    options: RunOptions,
) -> JobResult:
    arrivals = [(index, at) for index, at, _ in recording.arrivals]
    table = relabel(np.zeros(1, np.uint8), recording.table)
    number = {index: position for position, (index, _) in enumerate(arrivals)}
    delivered = folder / 'delivered' / label / sequence.name

    def mask(index: int) -> np.ndarray:
        if index == 0:
            return seed
        ids = recording.mask(number[index])
        # an id whose seed was refused, or not answered for, has no label
        return table[np.where(ids < len(table), ids, 0)]

    tracks = {0: tuple(Track.of_mask(int(item), seed, 0) for item in np.unique(seed) if item)}
    for index, _ in arrivals:
        labels = mask(index)
        write_labels(delivered / f'{index:05d}.png', labels)
        tracks[index] = _tracks(recording.tracks.get(index), recording.table)
    instants = recording.published
    shown = newest(arrivals, instants)
    current = newest(arrivals, [*instants[1:], float('inf')])
    streaming, on_arrival = (
        Collector(
            label,
            sequence.name,
            folder,
            late_objects=options.late_objects,
            save_masks=save and options.save_masks,
        )
        for save in (True, False)
    )
    for frame, first, second in zip(sequence, shown, current, strict=True):
        streaming.add(frame, mask(first), tracks[first])
        on_arrival.add(frame, mask(second), tracks[second])
    latencies = [1e3 * (at - instants[index]) for index, at in arrivals]
    live = {
        'rate': rate,
        'published': instants,
        'shown': shown,
        'arrivals': [
            [index, at, [item.as_list() for item in tracks[index]]] for index, at in arrivals
        ],
        'cpu': recording.cpu,
        'memory': recording.memory,
        'on_arrival': on_arrival.summary(),
    }
    return streaming.finish(latencies, f'live {time.time_ns()}', live)


def _tracks(message: Any, table: Mapping[int, int]) -> tuple[Track, ...]:
    """Read a TrackArray (None: it never came)."""
    found = []
    for item in message.tracks if message else ():
        if item.id in table:
            box = item.box
            corners = (
                box.x_offset,
                box.y_offset,
                box.x_offset + box.width,
                box.y_offset + box.height,
            )
            found.append(
                Track(
                    table[item.id],
                    item.state,
                    item.confidence,
                    item.area,
                    item.age,
                    corners if box.width else None,
                    item.existence,
                )
            )
    return tuple(found)


def live_rows(results: Sequence[JobResult]) -> list[dict[str, Any]]:
    """
    Sum the live runs up, with the offline accuracy of the same engine beside.

    Returns
    -------
    list of dict
        A row each: rates in Hz, latencies in ms from publication to arrival, ``cpu`` in percent
        of one processor, memory in MB (resident), J&F from 0 to 1 (None without truth).

    """
    offline = {(row.engine, row.sequence): row for row in results if row.live is None}
    rows = []
    for result in results:
        live = result.live
        if live is None:
            continue
        engine = result.engine.rpartition('@')[0]
        beside = offline.get((engine, result.sequence))
        published = live['published']
        times = [item[1] for item in live['arrivals']]
        frames = len(published) - 1
        latency = result.milliseconds
        rows.append(
            {
                'engine': result.engine,
                'sequence': result.sequence,
                'rate_in': frames / published[-1],
                'rate_out': (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else None,
                'frames': frames,
                'dropped': frames - len(times),
                'latency_median': float(np.median(latency)),
                'latency_95': float(np.percentile(latency, 95)),
                'latency_max': float(latency.max()),
                'cpu': 100 * live['cpu'],
                'memory_mean': float(np.mean(live['memory'])) / 1e6,
                'memory_max': max(live['memory']) / 1e6,
                'streaming': result.summary.j_and_f if result.scored else None,
                'on_arrival': live['on_arrival'],
                'offline': beside.summary.j_and_f if beside and beside.scored else None,
            }
        )
    return rows


def run_live(
    specs: Sequence[EngineSpec],
    sequences: Sequence[BagSequence | BrokenSequence],
    rates: Sequence[float | None],
    folder: Path,
    options: RunOptions,
    progress: Progress,
    together: bool = False,
) -> tuple[list[JobResult], dict[tuple[str, str], str]]:
    """
    Replay every bag at every rate to a node with every engine's options, one after another.

    Nothing is taken over from earlier runs: what is measured is this machine, now. With
    ``together``, all cameras of a bag are shown to one node at once.

    Returns
    -------
    results, errors
        As of :func:`drift_ros.evaluation.run.run`.

    """
    from drift_ros.ros.processes import ProcessError

    sound = [sequence for sequence in sequences if isinstance(sequence, BagSequence)]
    groups = [[sequence] for sequence in sound]
    if together:
        bags = dict.fromkeys(sequence.path for sequence in sound)
        groups = [[sequence for sequence in sound if sequence.path == path] for path in bags]
    results, errors = list[JobResult](), dict[tuple[str, str], str]()
    for spec in specs:
        for rate in rates:
            label = live_label(spec.label, rate)
            for broken in sequences:
                if isinstance(broken, BrokenSequence):
                    errors[label, broken.name] = f'{DatasetError.__name__}: {broken.reason}'
            for group in groups:
                keys = [(label, sequence.name) for sequence in group]
                job = functools.partial(run_live_job, spec, group, rate, folder, options, progress)
                try:
                    done = outcome(job, keys[0], folder)
                except ProcessError as error:
                    done = str(error)
                if isinstance(done, str):
                    errors.update(dict.fromkeys(keys, done))
                else:
                    results += done
    return results, errors
