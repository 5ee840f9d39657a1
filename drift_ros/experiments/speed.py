# SPDX-License-Identifier: Apache-2.0
"""How long a step takes: by stage, objects and resolution, over time, and in the live node."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, cycle, islice
import os
from pathlib import Path
import platform
import tempfile
import threading
import time
from typing import Any, TYPE_CHECKING

import numpy as np
import psutil

from drift_ros.experiments.benchmarks import STAGES

if TYPE_CHECKING:
    from drift_ros.evaluation.datasets import SequenceSource
    from drift_ros.evaluation.engines import EngineSpec
    from drift_ros.ros.replay import Seed

Row = dict[str, Any]
"""What was measured: 'name', and lists of samples or single figures, as JSON has them."""


def machine() -> dict[str, Any]:
    """Describe the machine, and how busy it is."""
    import torch

    return {
        'processor': platform.processor() or platform.machine(),
        'processors': os.cpu_count(),
        'threads': torch.get_num_threads(),
        'load': os.getloadavg()[0],
        'bfloat16': torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported(),
        'torch': torch.__version__,
    }


def steps(engine: EngineSpec, sequence: SequenceSource, name: str = '') -> Row:
    """
    Follow a sequence and time every step of its second half.

    Returns
    -------
    dict
        'name'; milliseconds of each frame by stage, and of processor time as 'processor';
        'share', the median share of the network; 'found' and 'objects' in the last frame.

    Raises
    ------
    ValueError
        The engine is not a tracker and knows no stages.

    """
    from drift_ros.api import Tracker
    from drift_ros.evaluation.protocol import seed_mask

    tracker = engine.make()
    if not isinstance(tracker, Tracker):
        raise ValueError(f'{engine.name} has no stages to time; choose tracker or colour4')
    frames = iter(sequence)
    first = next(frames)
    mask = seed_mask(first, 0, ())
    assert mask is not None  # find_sequences asks for a true mask in the first frame
    tracker.seed(first.image, mask)
    taken: list[dict[str, float]] = []
    for frame in frames:
        before = time.process_time()
        result = tracker.step(frame.image)
        taken.append({**result.timings, 'processor': 1e3 * (time.process_time() - before)})
    taken = taken[len(taken) // 2 :]
    row: Row = {'name': name or f'{engine.label} {sequence.name}'}
    for stage in (*STAGES, 'processor'):
        row[stage] = [round(each[stage], 3) for each in taken]
    row['share'] = float(np.median([each['features'] / each['total'] for each in taken]))
    row['objects'] = len(result.objects)
    row['found'] = sum(item.area > 0 for item in result.objects)
    return row


def dense(engine: EngineSpec, sequence: SequenceSource) -> Row:
    """
    Propagate one frame's labels as tracked, and by the plain protocol that holds all affinities.

    Returns
    -------
    dict
        'name'; milliseconds 'ours' and 'dense'; megabytes more at the peak, 'ours MB' and
        'dense MB'; the largest 'difference' of probabilities where ours computes anything.

    """
    from drift_ros.api import Tracker
    from drift_ros.engine import kernel, kernel_fast
    from drift_ros.evaluation.protocol import seed_mask

    tracker = engine.make()
    assert isinstance(tracker, Tracker)
    frames = iter(sequence)
    first = next(frames)
    mask = seed_mask(first, 0, ())
    assert mask is not None
    tracker.seed(first.image, mask)
    last = first
    for last in islice(frames, 20):
        tracker.step(last.image)
    features, memory = tracker.state.features.extract(last.image), tracker.state.memory
    options = tracker.config.kernel
    held = [*(memory.aligned(seed) for seed in memory.pinned), *memory.older, *memory.recent]
    radii = [options.seed_radius or None] * len(memory.pinned)
    radii += [options.radius or None] * (len(held) - len(radii))
    import torch

    given = (
        features.layers[0].query.float(),
        [each.features.layers[0].key for each in held],
        torch.stack([each.labels for each in held]),
    )
    row: Row = {'name': f'kernel {sequence.name}'}
    found = {}
    for label, ways, times in (('ours', kernel_fast, 7), ('dense', kernel, 2)):
        spent = []
        with Peak() as peak:
            for _ in range(times):
                start = time.perf_counter()
                found[label] = ways.propagate(
                    *given, radius=radii, top_k=options.top_k, temperature=options.temperature
                )
                spent.append(1e3 * (time.perf_counter() - start))
        row[label], row[f'{label} MB'] = float(min(spent)), round(peak.more / 1e6, 1)
    # where all references agree within the smallest window, ours has not looked
    asked = ~kernel_fast._uniform(given[2], min(radius or 10**6 for radius in radii))
    row['difference'] = float((found['ours'] - found['dense'])[asked].abs().max())
    return row


class Peak:
    """
    Resident memory at its peak, looked at every millisecond: ``more`` bytes than before.

    Parameters
    ----------
    private : bool
        Leave out pages of files, which the system may drop, as those of weights that are mapped.

    """

    def __init__(self, private: bool = False) -> None:
        self._private = private

    def _now(self) -> int:
        found = self._process.memory_info()
        return found.rss - found.shared if self._private else found.rss

    def __enter__(self) -> Peak:
        self._process, self._done = psutil.Process(), threading.Event()
        self._before = self._most = self._now()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.wait(0.001):
            self._most = max(self._most, self._now())

    def __exit__(self, *raised: object) -> None:
        self._done.set()
        self._thread.join()

    @property
    def more(self) -> int:
        """Bytes."""
        return self._most - self._before


@dataclass(frozen=True)
class Trend:
    """A slope for each 1,000 frames, and half of its confidence interval of 95 %."""

    slope: float
    interval: float

    @classmethod
    def of(cls, values: Sequence[float], block: int = 50) -> Trend:
        """Fit to medians of blocks, which are nearly independent; needs three of them."""
        from scipy.stats import linregress, t

        block = max(min(block, len(values) // 8), 1)
        count = len(values) // block
        blocks = np.median(np.reshape(values[: count * block], (count, block)), axis=1)
        fit = linregress((np.arange(count) + 0.5) * block, blocks)
        return cls(1e3 * fit.slope, 1e3 * fit.stderr * float(t.ppf(0.975, max(count - 2, 1))))


def back_and_forth(frames: Sequence[Any]) -> Iterator[Any]:
    """Go through frames for ever, without a jump."""
    return cycle(chain(frames, frames[-2:0:-1]))


def soak(engine: EngineSpec, sequence: SequenceSource, count: int, picture: Path | None) -> Row:
    """
    Follow a sequence back and forth for many frames; draw time and memory over them.

    Returns
    -------
    dict
        'name'; 'milliseconds' and 'megabytes' of each frame; of both the slope and its
        interval for each 1,000 frames, and of time the last tenth over the first.

    """
    from drift_ros.api import Tracker
    from drift_ros.evaluation.protocol import seed_mask

    tracker = engine.make()
    assert isinstance(tracker, Tracker)
    frames = list(sequence)
    mask = seed_mask(frames[0], 0, ())
    assert mask is not None
    tracker.seed(frames[0].image, mask)
    process, spent, held = psutil.Process(), [], []
    for frame in islice(back_and_forth(frames), 1, count + 1):
        spent.append(tracker.step(frame.image).timings['total'])
        held.append(process.memory_info().rss / 1e6)
    row: Row = {'name': f'soak {sequence.name}', 'milliseconds': spent, 'megabytes': held}
    tenth = max(count // 10, 1)
    row['last over first'] = float(np.median(spent[-tenth:]) / np.median(spent[:tenth]))
    row['MB gained'] = float(np.median(held[-tenth:]) - np.median(held[:tenth]))
    for name in ('milliseconds', 'megabytes'):
        trend = Trend.of(row[name])
        row[f'{name} slope'], row[f'{name} interval'] = trend.slope, trend.interval
    if picture is not None:
        _draw(row, picture)
    return row


def _draw(row: Row, picture: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout='constrained')
    for axes, name in zip(figure.subplots(2, 1, sharex=True), ('milliseconds', 'megabytes')):
        axes.plot(row[name], linewidth=0.6)
        axes.set_ylabel(name)
        axes.set_title(
            f'{row[f"{name} slope"]:+.2f} ± {row[f"{name} interval"]:.2f} in 1,000 frames',
            fontsize=9,
        )
    axes.set_xlabel('frame')
    figure.savefig(picture)


def live(
    engine: EngineSpec, sequence: SequenceSource, rate: float, size: tuple[int, int] = (640, 480)
) -> Row:
    """
    Show the live node a sequence at a rate, for its length or 10 seconds; needs ROS.

    Returns
    -------
    dict
        'name'; 'results a second'; 'latency' in milliseconds of each result; 'dropped', the
        share of frames without a result; 'processor', the share of one processor that is used.

    Raises
    ------
    ProcessError
        The node did not come up, or died.

    """
    from drift_ros.engine.config import OPTIONS
    from drift_ros.ros.replay import replay, Stream

    shown, seed = as_seen(sequence, size)
    messages = islice(serialized(back_and_forth(shown), rate), int(10 * rate))
    given = {name: engine.options[name] for name in OPTIONS if engine.options[name] != ''}
    with tempfile.TemporaryDirectory() as logs:
        stream = Stream(messages, [seed], rate=rate)
        recording = replay({'camera': stream}, given, Path(logs))['camera']
    published, arrivals = recording.published, recording.arrivals
    latency = [1e3 * (when - published[index]) for index, when, _ in arrivals]
    span = max(when for _, when, _ in arrivals) - published[0]
    return {
        'name': f'node {sequence.name} at {rate:g} Hz',
        'results a second': len(arrivals) / span,
        'latency': [round(each, 2) for each in latency],
        'dropped': 1.0 - len(arrivals) / len(published),
        'processor': recording.cpu,
    }


def as_seen(sequence: SequenceSource, size: tuple[int, int]) -> tuple[list[np.ndarray], Seed]:
    """Give a sequence's frames as a camera of (width, height) shows them, and the first's seed."""
    import cv2

    from drift_ros.evaluation.protocol import seed_mask
    from drift_ros.ros.replay import Seed

    frames = list(sequence)
    mask = seed_mask(frames[0], 0, ())
    assert mask is not None
    labels = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    shown = [cv2.resize(frame.image, size, interpolation=cv2.INTER_AREA) for frame in frames]
    return shown, Seed(0, labels, shown[0])


def serialized(images: Iterable[np.ndarray], rate: float) -> Iterator[tuple[int, bytes]]:
    """Give stamps in nanoseconds at a rate, and serialised Images; needs ROS."""
    from rclpy.serialization import serialize_message
    from std_msgs.msg import Header

    from drift_ros.ros import conversions, stamp

    for index, image in enumerate(images):
        when = round(1e9 * (1.0 + index / rate))
        header = Header(stamp=stamp.message(when), frame_id='camera')
        yield when, serialize_message(conversions.rgb_to_image(image, header))


def ratios(now: Sequence[Row], before: Sequence[Row]) -> list[tuple[str, float, float, float]]:
    """
    Compare two runs frame by frame.

    Returns
    -------
    list of tuple
        Name and measure; the median of this run's over the other's, and the interval of 95 %
        by resampling frames. Rows of other names or lengths are left out.

    """
    earlier: Mapping[str, Row] = {row['name']: row for row in before}
    generator, found = np.random.default_rng(0), []
    for row in now:
        other = earlier.get(row['name'], {})
        for measure in ('total', 'processor', 'milliseconds', 'latency'):
            ours, theirs = row.get(measure), other.get(measure)
            if not isinstance(ours, list) or not isinstance(theirs, list):
                continue
            if measure == 'latency':  # other frames were answered
                ours, theirs = [float(np.median(ours))], [float(np.median(theirs))]
            if len(ours) != len(theirs):
                continue
            each = np.divide(ours, theirs)
            drawn = np.median(each[generator.integers(0, len(each), (2000, len(each)))], axis=1)
            low, high = np.quantile(drawn, (0.025, 0.975))
            name = f'{row["name"]}: {measure}'
            found.append((name, float(np.median(each)), float(low), float(high)))
    return found
