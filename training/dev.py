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
import numpy as np
from rich.console import Console
from rich.table import Table
import torch
import torch.nn.functional as F

from drift_ros import Tracker, TrackerConfig
from drift_ros.diffusion.checkpoint import EMBEDDED, load_checkpoint
from drift_ros.diffusion.features import DiffusionFeatures, FrameFeatures, LayerFeatures
from drift_ros.evaluation.davis import find_sequences
from drift_ros.evaluation.metric import SequenceScorer, summarize
from drift_ros.evaluation.runner import track


class HiddenFeatures:
    """
    Cosine similarity of hidden features in place of attention.

    The features are the input of the attention layer: what its queries and keys are projected
    from. Query times key is the cosine, times `sharpness`.
    """

    def __init__(self, model: Path | None, config: TrackerConfig, sharpness: float) -> None:
        checkpoint = load_checkpoint(model)
        self._features = DiffusionFeatures(checkpoint, layers=config.layers,
                                           timestep=config.timestep, resolution=config.resolution)
        if len(self._features.layers) != 1:
            raise ValueError(f'one layer is compared at a time, not {self._features.layers}')
        self._sharpness = sharpness
        self._hidden: torch.Tensor | None = None

        def keep(_module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self._hidden = args[0] if args else kwargs['hidden_states']

        checkpoint.unet.get_submodule(self._features.layers[0]).register_forward_pre_hook(
            keep, with_kwargs=True)

    def extract(self, frame: np.ndarray) -> FrameFeatures:
        """Turn a frame (H, W, 3) uint8 RGB into one layer of one head."""
        height, width = self._features.extract(frame).grid
        assert self._hidden is not None
        unit = F.normalize(self._hidden[0].float(), dim=-1).unflatten(0, (height, width))[None]
        scale = self._sharpness * unit.shape[-1] ** 0.5
        return FrameFeatures((LayerFeatures(unit * scale, unit),))


def dev_score(davis: Path, make: Callable[[], Tracker], frames: int = 16,
              sequences: Iterable[str] | None = None) -> tuple[float, dict[str, float]]:
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
    return (summarize(scores.values()).j_and_f,
            {name: summarize([score]).j_and_f for name, score in scores.items()})


def model_config(model: Path | None) -> TrackerConfig:
    """Return the tracker's defaults with the layer the model was trained for, no refinement."""
    notes = json.loads(((model or EMBEDDED) / 'drift_ros.json').read_text())
    return TrackerConfig(layers=(notes['attention_layer'],), refinement='none')


def model_score(davis: Path, model: Path, frames: int = 16, **options: Any
                ) -> tuple[float, dict[str, float]]:
    """Return `dev_score` of an exported model, with these tracker options."""
    config = replace(model_config(model), **options)
    return dev_score(davis, lambda: Tracker(model, config), frames)


@click.command()
@click.argument('davis', type=click.Path(path_type=Path, exists=True))
@click.option('--model', type=click.Path(path_type=Path, exists=True),
              help='Exported folder [default: the embedded model].')
@click.option('--frames', default=0, show_default=True, help='Frames per sequence, 0: all.')
@click.option('--sharpness', multiple=True, type=float, default=(32.0, 48.0), show_default=True,
              help='Factor of the cosine similarities.')
@click.option('--threads', default=2, show_default=True)
def main(davis: Path, model: Path | None, frames: int, sharpness: tuple[float, ...],
         threads: int) -> None:
    """Compare the attention kernel with hidden features' cosine similarity (J&F)."""
    torch.set_num_threads(threads)
    config = model_config(model)
    rows: list[tuple[str, Callable[[], Tracker]]] = [
        ('attention, Q and K', lambda: Tracker(model, config))]
    for s in sharpness:
        rows.append((f'cosine of hidden features, times {s:g}', partial(
            Tracker, config=config, features=HiddenFeatures(model, config, s))))
    table = Table('kernel', 'J&F')
    for name, make in rows:
        score, each = dev_score(davis, make, frames)
        table.add_row(name, f'{score:.4f}')
        Console(stderr=True).print(name, f'{score:.4f}', {k: round(v, 2) for k, v in each.items()})
    Console().print(table)


if __name__ == '__main__':
    main()
