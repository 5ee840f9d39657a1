# SPDX-License-Identifier: Apache-2.0
"""
Scores on development sequences, by the tracker and the metric of drift_ros.

`python -m training.dev --model DIR DAVIS` compares the attention kernel with the cosine
similarity of the same network's hidden features at the same layer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table
import torch

from drift_ros import Tracker, TrackerConfig
from drift_ros.api import diffusion_features
from drift_ros.diffusion.checkpoint import EMBEDDED
from drift_ros.evaluation.baselines import CosineFeatures
from drift_ros.evaluation.datasets import find_sequences
from drift_ros.evaluation.metric import SequenceScorer, summarize
from drift_ros.evaluation.run import track


def hidden_features(model: Path | None, config: TrackerConfig, sharpness: float) -> CosineFeatures:
    """Make cosine similarity of the tracker's layer's inputs, times `sharpness`."""
    return CosineFeatures(diffusion_features(model, config, 'auto'), 1.0 / sharpness)


def dev_score(
    davis: Path,
    make: Callable[[], Tracker],
    frames: int = 16,
    sequences: Iterable[str] | None = None,
) -> tuple[float, dict[str, float]]:
    """
    Return mean J&F, and J&F per sequence.

    Parameters
    ----------
    davis : DAVIS-layout folder
    make : makes a fresh tracker for each sequence
    frames : frames per sequence, 0 for all
    sequences : names; default: all of the folder

    """
    wanted = None if sequences is None else set(sequences)
    scores = {}
    for sequence in find_sequences(davis, max_frames=frames):
        if wanted is not None and sequence.name not in wanted:
            continue
        scorer = SequenceScorer()
        for frame, labels, *_ in track(make(), sequence):
            scorer.add(frame.truth, labels)
        scores[sequence.name] = scorer.finish()
    return (
        summarize(scores.values()).j_and_f,
        {name: summarize([score]).j_and_f for name, score in scores.items()},
    )


def model_config(model: Path | None) -> TrackerConfig:
    """Return the tracker's defaults with the layer the model was trained for, no refinement."""
    notes = json.loads(((model or EMBEDDED) / 'drift_ros.json').read_text())
    return TrackerConfig.of(
        {'features.layers': (notes['attention_layer'],), 'refinement.method': 'none'}
    )


def model_score(
    davis: Path, model: Path, frames: int = 16, **options: Any
) -> tuple[float, dict[str, float]]:
    """Return `dev_score` of an exported model, with these tracker options."""
    config = replace(model_config(model), **options)
    return dev_score(davis, lambda: Tracker(model, config), frames)


@click.command()
@click.argument('davis', type=click.Path(path_type=Path, exists=True))
@click.option(
    '--model',
    type=click.Path(path_type=Path, exists=True),
    help='Exported folder [default: the embedded model].',
)
@click.option('--frames', default=0, show_default=True, help='Frames per sequence, 0: all.')
@click.option(
    '--sharpness',
    multiple=True,
    type=float,
    default=(32.0, 48.0),
    show_default=True,
    help='Factor of the cosine similarities.',
)
@click.option('--threads', default=2, show_default=True)
def main(
    davis: Path, model: Path | None, frames: int, sharpness: tuple[float, ...], threads: int
) -> None:
    """Compare the attention kernel with hidden features' cosine similarity (J&F)."""
    torch.set_num_threads(threads)
    config = model_config(model)
    rows: list[tuple[str, Callable[[], Tracker]]] = [
        ('attention, Q and K', lambda: Tracker(model, config))
    ]
    for s in sharpness:
        rows.append(
            (
                f'cosine of hidden features, times {s:g}',
                partial(Tracker, config=config, features=hidden_features(model, config, s)),
            )
        )
    table = Table('kernel', 'J&F')
    for name, make in rows:
        score, each = dev_score(davis, make, frames)
        table.add_row(name, f'{score:.4f}')
        Console(stderr=True).print(name, f'{score:.4f}', {k: round(v, 2) for k, v in each.items()})
    Console().print(table)


if __name__ == '__main__':
    main()
