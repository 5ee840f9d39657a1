# SPDX-License-Identifier: Apache-2.0
"""The rows of an ablation, read from ``rows.yaml``, and the engines they are run with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
import functools
from pathlib import Path
from string import Template
import time
from typing import Any

import numpy as np
import yaml

from drift_ros.engine.config import TrackerConfig
from drift_ros.evaluation.engines import EngineSpec

FILE = Path(__file__).with_name('rows.yaml')


@functools.cache
def _parts() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(FILE.read_text(encoding='utf-8'))


PARTS: dict[str, str] = {name: part['note'] for name, part in _parts().items()}
"""Parts by name, with what their rows have in common."""


@dataclass(frozen=True)
class Row:
    """
    One configuration and what is done with it.

    Attributes
    ----------
    part, label, text : str
        Where it stands, what it is called in files and in tables.
    options : mapping
        Besides the run's own. A prompt may hold ``$name``, the sequence's name.
    engine : str
    learn : float
        Seconds spent on learning prompt tokens after the seed.

    """

    part: str
    label: str
    text: str
    options: Mapping[str, Any] = field(default_factory=dict)
    engine: str = 'tracker'
    learn: float = 0.0

    def spec(
        self, sequence: str, base: Mapping[str, Any], model: str | None, device: str
    ) -> RowSpec:
        """Make the engine for a sequence; raises ValueError where an option is out of range."""
        values = {**TrackerConfig().flat(), **base}
        extra = {key: value for key, value in self.options.items() if key not in values}
        values.update({key: value for key, value in self.options.items() if key in values})
        prompt = Template(values['features.prompt'])
        values['features.prompt'] = prompt.safe_substitute(name=category(sequence))
        TrackerConfig.of(values)
        return RowSpec(
            f'{self.part}.{self.label}',
            self.engine,
            {**values, **extra, 'learn': self.learn},
            model,
            device,
        )


def category(sequence: str) -> str:
    """Turn the name of a sequence into words: car-shadow, car shadow."""
    return sequence.replace('-', ' ').replace('_', ' ')


def make_rows(
    parts: Sequence[str], late: str, every: Sequence[str], timesteps: Sequence[int], budget: float
) -> list[Row]:
    """
    List the rows of the parts asked for.

    Parameters
    ----------
    parts : sequence of str
        Of :data:`PARTS`.
    late : str
        A layer behind cross-attention.
    every : sequence of str
        The layers over which heads are weighed.
    timesteps : sequence of int
        Noise levels of the parts that are repeated for each.
    budget : float
        Seconds of learning.

    """
    words = {'late': late, 'many': tuple(every), 'budget': budget}
    found = []
    for name, part in _parts().items():
        if name not in parts:
            continue
        for tau in timesteps if part.get('repeat') == 'timesteps' else (None,):
            found += list(_rows(name, part, {**words, 'tau': tau}))
    return found


def _rows(name: str, part: Mapping[str, Any], words: Mapping[str, Any]) -> Iterator[Row]:
    for label, row in part['rows'].items():
        options = {**part.get('options', {}), **row.get('options', {})}
        yield Row(
            name,
            _filled(label, words),
            _filled(row['text'], words),
            {key: _filled(value, words) for key, value in options.items()},
            row.get('engine', 'tracker'),
            _filled(row.get('learn', 0.0), words),
        )


def _filled(value: Any, words: Mapping[str, Any]) -> Any:
    """Put words in: a text that is one ``$word`` becomes its value."""
    if isinstance(value, list):
        return tuple(_filled(item, words) for item in value)
    if not isinstance(value, str):
        return value
    if value[:1] == '$' and value[1:] in words:
        return words[value[1:]]
    return Template(value).safe_substitute(words)


@dataclass(frozen=True)
class RowSpec(EngineSpec):
    """The engine of a row: it may learn prompt tokens at its seed, and share features."""

    @property
    def features_key(self) -> tuple:
        """Equal where frames are looked at in the same way, whatever is done with that."""
        own = self.name != 'tracker' or self.options['learn']
        looks = tuple(
            value
            for key, value in sorted(self.options.items())
            if key.startswith(('features.', 'experimental.noise', 'experimental.colour'))
        )
        return (*looks, self.label if own else '')

    def make(self, features: Any = None) -> Any:
        """Build the engine, on features of its own or shared ones."""
        from drift_ros.api import Tracker

        engine: Any = (
            super().make()
            if features is None
            else Tracker(config=self.config, device=self.device, features=features)
        )
        learn = self.options['learn']
        return LearningTracker(engine, learn) if learn else engine


class SharedFeatures:
    """
    Features for several trackers that get the same frames, one tracker after the other.

    Parameters
    ----------
    features : DiffusionFeatures
        Does the work.

    """

    def __init__(self, features: Any) -> None:
        self._features = features
        self._frame: np.ndarray | None = None
        self._found: Any = None
        self._spent = self._owed = 0.0

    def extract(self, frame: np.ndarray) -> Any:
        """Extract features of a frame (H, W, 3) uint8 RGB, once."""
        if frame is self._frame:
            self._owed += self._spent
        else:
            start = time.perf_counter()
            self._found = self._features.extract(frame)
            self._spent = 1e3 * (time.perf_counter() - start)
            self._frame = frame
        return self._found

    def extract_resized(self, image: np.ndarray) -> Any:
        """Look at a frame of the working size, for the one who asks."""
        return self._features.extract_resized(image)

    def owed(self) -> float:
        """Milliseconds the others would have spent since this was asked last."""
        owed, self._owed = self._owed, 0.0
        return owed


class LearningTracker:
    """
    A tracker that learns prompt tokens for every seed before it goes on.

    Parameters
    ----------
    tracker : Tracker
    budget : float
        Seconds.

    """

    def __init__(self, tracker: Any, budget: float) -> None:
        self._tracker, self._budget = tracker, budget
        self.agreement: dict[int, tuple[float, float]] = {}
        self.seconds = 0.0

    def seed(self, frame: np.ndarray, label_mask: np.ndarray) -> list[int]:
        """Seed and learn."""
        ids = self._tracker.seed(frame, label_mask)
        steps = self._tracker.optimize(ids, self._budget)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result = end.value
                break
        self.seconds += result.seconds
        self.agreement.update(
            {number: (result.before[number], result.after[number]) for number in result.before}
        )
        return ids

    def step(self, frame: np.ndarray) -> Any:
        """Find the objects in the next frame."""
        return self._tracker.step(frame)

    @property
    def tokens(self) -> dict[int, np.ndarray]:
        """Learnt tokens (n, width) by object id."""
        return {number: value.cpu().numpy() for number, value in self._tracker.tokens.items()}
