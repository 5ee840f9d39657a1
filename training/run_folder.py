# SPDX-License-Identifier: Apache-2.0
"""What all trainings share: the loop, saving and resuming, the frame of the curves."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
import json
import os
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2
import numpy as np
import torch

Batch = TypeVar('Batch')


class Run(Generic[Batch]):
    """
    A run that can be saved and resumed exactly.

    A subclass draws the batch of a step from generators seeded by (seed, step), so a resumed run
    continues as an uninterrupted one would.

    Parameters
    ----------
    config : with `steps`, `save_every` and `workers` (threads that prepare batches; 0: none)
    out : run folder: state.pt, history.json, curves.png

    """

    def __init__(self, config: dict[str, Any], out: Path) -> None:
        self.config, self.out = config, out
        out.mkdir(parents=True, exist_ok=True)
        self.step = 0
        self.history: list[dict[str, float]] = []

    def batch(self, step: int) -> Batch:
        """Return the batch of a step (deterministic)."""
        raise NotImplementedError

    def train_step(self, batch: Batch) -> dict[str, float]:
        """Take one optimiser step and return the scalars of it, kept in the history."""
        raise NotImplementedError

    def scores(self, last: bool) -> dict[str, float]:
        """Return further scalars after a step, the last one or not; none by default."""
        return {}

    def state(self) -> dict[str, Any]:
        """Return what is to be saved besides the step."""
        raise NotImplementedError

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over what `state` gave."""
        raise NotImplementedError

    def _batches(self, stop: int) -> Iterator[Batch]:
        workers = self.config['workers']
        if workers == 0:
            for step in range(self.step, stop):
                yield self.batch(step)
            return
        with ThreadPoolExecutor(workers) as pool:
            pending: list[Future[Batch]] = []
            for step in range(self.step, stop):
                while len(pending) < 2 * workers and step + len(pending) < stop:
                    pending.append(pool.submit(self.batch, step + len(pending)))
                yield pending.pop(0).result()

    def run(
        self,
        stop: int | None = None,
        on_step: Callable[[dict[str, float]], bool | None] | None = None,
    ) -> None:
        """
        Train up to step `stop` (default: the whole schedule), saving now and then.

        `on_step` gets each step's scalars; returning True ends the run early (state is saved).
        """
        stop = self.config['steps'] if stop is None else stop
        cv2.setNumThreads(1)
        for batch in self._batches(stop):
            row = self.train_step(batch)
            last = self.step == stop
            row.update(self.scores(last))
            end = bool(on_step(row)) if on_step is not None else False
            if self.step % self.config['save_every'] == 0 or end or last:
                self.save()
            if end:
                break

    def save(self) -> None:
        """Write the whole state (atomically) and the history."""
        partial = self.out / 'state.pt.partial'
        torch.save({'step': self.step, **self.state()}, partial)
        os.replace(partial, self.out / 'state.pt')
        (self.out / 'history.json').write_text(json.dumps(self.history))

    def resume(self) -> bool:
        """Load the run folder's state if there is one; return whether there was."""
        path = self.out / 'state.pt'
        if not path.exists():
            return False
        state = torch.load(path, map_location='cpu', weights_only=True)
        self.load_state(state)
        self.step = state['step']
        history = self.out / 'history.json'
        if history.exists():
            self.history = [r for r in json.loads(history.read_text()) if r['step'] <= self.step]
        return True


def draw_curves(
    history: Sequence[dict[str, float]],
    panels: Sequence[tuple[str, Sequence[str]]],
    draw: Callable[[Any, str, np.ndarray, np.ndarray], None],
    path: Path,
) -> None:
    """
    Draw a panel (title, names of scalars) each over the steps.

    `draw` gets the axes, a name, and its steps and values.
    """
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3.2))
    for axis, (title, names) in zip(axes, panels):
        for name in names:
            points = [(r['step'], r[name]) for r in history if name in r]
            if points:
                draw(axis, name, *np.array(points).T)
        axis.set_title(title)
        axis.set_xlabel('step')
        axis.grid(alpha=0.3)
        if axis.get_legend_handles_labels()[0]:
            axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
