# SPDX-License-Identifier: Apache-2.0
"""
Fit what counts against an object's existence to a network's features.

`python -m training.existence --model DIR DAVIS` follows the objects of a DAVIS-layout folder
through cuts to other scenes, in which they are not. Of each frame it knows only whether it
belongs to the other scene; of masks it uses the first frame's. The constants it prints go into
:class:`drift_ros.engine.existence.ExistenceOptions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
import itertools
from pathlib import Path
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table
from scipy.optimize import minimize
from scipy.special import expit
import torch

from drift_ros import Tracker
from drift_ros.engine.estimates import TrackResult
from drift_ros.engine.existence import ExistenceOptions, lacks, Shown, Traits
from drift_ros.engine.find import find
from drift_ros.engine.prompt import describe
from drift_ros.evaluation.datasets import find_sequences
from drift_ros.evaluation.presence import roc
from drift_ros.evaluation.protocol import seed_mask
from drift_ros.evaluation.splice import SplicedSequence
from training.dev import model_config

UNLIKE = (0.15, 0.2, 0.25, 0.3, 0.35)
"""Values of :attr:`ExistenceOptions.unlike` that are tried."""
LEAST = 1e-3
"""Regulariser: pulls the weights, over the published ones, towards 1."""
TOLD = 36.0
"""Log-odds above which existence is 1 in double precision."""


@dataclass(frozen=True)
class Sample:
    """What one frame shows of an object, and whether it is there."""

    sequence: str
    present: bool
    shown: Shown
    traits: Traits


class InformedTracker(Tracker):
    """A tracker that is told whether its objects are in a frame, and keeps what it would say."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.present = True
        self.seen: list[tuple[Shown, Traits]] = []

    def step(self, frame: np.ndarray, *args: Any) -> TrackResult:
        """Note what the frame shows, then follow as told."""
        state = self._state
        features = state.features.extract(frame)
        judged = find(features, describe(features), state)
        traits = dict(zip(state.target.object_ids, state.target.traits, strict=True))
        self.seen = [
            (shown, traits[number]) for number, shown in judged.shown.items() if shown is not None
        ]
        self._state = replace(state, target=replace(state.target, options=self._told()))
        try:
            return super().step(frame, *args)
        finally:
            target = replace(self._state.target, options=state.target.options)
            self._state = replace(self._state, target=target)

    def _told(self) -> Any:
        """Options by which everything, or nothing, is there; the better find still wins."""
        options = self._state.target.options
        own = options.existence
        most = (1.0, 4.0, 1.5, 1.0)  # of each cue
        scale = 0.5 * TOLD / sum(w * m for w, m in zip(own.weights, most, strict=True))
        told = replace(
            own,
            constant=0.75 * TOLD if self.present else -TOLD,
            weights=_four(scale * weight for weight in own.weights),
        )
        return replace(options, existence=told)


def _four(values: Iterable[float]) -> tuple[float, float, float, float]:
    one, two, three, four = values
    return one, two, three, four


def follow(tracker: InformedTracker, sequence: SplicedSequence, frames: int) -> list[Sample]:
    """Collect samples of a sequence of which so many frames after the cut are wanted."""
    first, last = sequence.bounds
    samples: list[Sample] = []
    for index, frame in enumerate(itertools.islice(sequence, last + frames)):
        if index == 0:
            mask = seed_mask(frame, 0, ())
            assert mask is not None
            tracker.seed(frame.image, mask)
            continue
        tracker.present = not first <= index < last
        tracker.step(frame.image)
        samples += [Sample(sequence.source.name, tracker.present, *each) for each in tracker.seen]
    return samples


def cues(samples: Sequence[Sample], options: ExistenceOptions) -> np.ndarray:
    """Give what lacks in samples: (n, 4)."""
    return np.array([list(lacks(one.shown, one.traits, options)) for one in samples])


def existence(samples: Sequence[Sample], options: ExistenceOptions) -> np.ndarray:
    """Give the probability (n,) that the objects of samples are there."""
    return np.asarray(expit(options.constant - cues(samples, options) @ np.array(options.weights)))


def balanced_loss(present: np.ndarray, told: np.ndarray) -> float:
    """Log loss of probabilities (n,), present and absent samples weighing the same."""
    right = np.clip(np.where(present, told, 1.0 - told), 1e-12, None)
    return -float(np.log(right[present]).mean() + np.log(right[~present]).mean()) / 2.0


def fit(samples: Sequence[Sample], options: ExistenceOptions) -> ExistenceOptions:
    """Balanced logistic regression of presence on what lacks; no lack speaks for an object."""
    present = np.array([one.present for one in samples])
    lack, start = cues(samples, options), np.array([options.constant, *options.weights])
    share = np.where(present, present.mean(), 1.0 - present.mean())
    sides = np.where(present, 1.0, -1.0)

    def loss(values: np.ndarray) -> float:
        own = np.logaddexp(0.0, -sides * (values[0] - lack @ values[1:])) / (2.0 * share)
        return float(own.mean() + LEAST * np.square(values / start - 1.0).sum())

    found = minimize(loss, start, bounds=[(0.0, None)] * len(start), method='L-BFGS-B')
    constant, *weights = map(float, found.x)
    return replace(options, constant=constant, weights=_four(weights))


def left_out(samples: Sequence[Sample], options: ExistenceOptions) -> np.ndarray:
    """Give the existence (n,) of each sequence's samples by a fit to all others."""
    told = np.zeros(len(samples))
    for name in {one.sequence for one in samples}:
        places = [k for k, one in enumerate(samples) if one.sequence == name]
        others = fit([one for one in samples if one.sequence != name], options)
        told[places] = existence([samples[k] for k in places], others)
    return told


def row(name: str, present: np.ndarray, told: np.ndarray, threshold: float) -> list[str]:
    """Give the cells of one way to tell existence."""
    return [
        name,
        f'{roc(present, told)[2]:.4f}',
        f'{100 * (told[present] < threshold).mean():.1f}',
        f'{100 * (told[~present] >= threshold).mean():.1f}',
        f'{balanced_loss(present, told):.3f}',
    ]


@click.command(help=__doc__)
@click.argument('davis', type=click.Path(path_type=Path, exists=True))
@click.option(
    '--model',
    type=click.Path(path_type=Path, exists=True),
    help='Exported folder [default: the embedded model].',
)
@click.option('--cuts', default=3, show_default=True, help='Other scenes for each sequence.')
@click.option('--frames', default=15, show_default=True, help='Frames after a cut.')
@click.option('--threads', default=2, show_default=True, help='CPU threads.')
def main(davis: Path, model: Path | None, cuts: int, frames: int, threads: int) -> None:
    """Collect, fit, and compare with the constants in use."""
    torch.set_num_threads(threads)
    config = model_config(model)
    sequences = list(find_sequences(davis))
    if cuts >= len(sequences):
        raise click.UsageError(
            f'{cuts} cuts need {cuts + 1} sequences, there are {len(sequences)}'
        )
    pairs = [
        SplicedSequence(source, other)
        for cut in range(1, cuts + 1)
        for source, other in zip(sequences, sequences[cut:] + sequences[:cut], strict=True)
    ]
    tracker, samples = InformedTracker(model, config), list[Sample]()
    for sequence in track(pairs, 'following', console=Console(stderr=True)):
        tracker.reset()
        samples += follow(tracker, sequence, frames)
    present = np.array([one.present for one in samples])
    in_use = ExistenceOptions()
    fits = [fit(samples, replace(in_use, unlike=unlike)) for unlike in UNLIKE]
    best = min(fits, key=lambda one: balanced_loss(present, existence(samples, one)))
    threshold = config.states.existence
    table = Table('constants', 'AUC', f'missed below {threshold:g}, %', 'kept, %', 'log loss')
    for name, told in {
        'in use': existence(samples, in_use),
        'fitted': existence(samples, best),
        'fitted, one sequence left out': left_out(samples, best),
    }.items():
        table.add_row(*row(name, present, told, threshold))
    Console().print(table)
    Console().print(
        f'{present.sum()} present, {(~present).sum()} absent; unlike {best.unlike:g}, constant '
        f'{best.constant:.2f}, weights {tuple(round(weight, 2) for weight in best.weights)}'
    )


if __name__ == '__main__':
    main()
