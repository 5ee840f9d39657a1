# SPDX-License-Identifier: Apache-2.0
"""The engines of a run: chosen by name, configured by data, read from the command line."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TYPE_CHECKING

from drift_ros.engine.config import find_option, OPTIONS, RENAMED, TrackerConfig
from drift_ros.evaluation.baselines import (
    BoxSeeded,
    ColourPatches,
    CosineFeatures,
    FirstMask,
    OpticalFlow,
)

if TYPE_CHECKING:
    from drift_ros.evaluation.protocol import Engine

ENGINES: dict[str, str] = {
    'tracker': 'the tracker with a diffusion model (the embedded one unless --model is given)',
    'boxes': "the tracker seeded from the boxes of the first masks' objects, not from the masks",
    'cosine': 'the tracker on cosine similarity of the features its attention is made of '
    '(option cosine_temperature)',
    'first-mask': 'the first mask repeated on every frame',
    'flow': 'the mask warped from frame to frame by DIS optical flow',
    'colour4': 'the tracker on raw colour patches of stride 4, without a network',
    'colour8': 'the tracker on raw colour patches of stride 8, without a network',
}
"""Engines by name, with a line of help."""
NETWORKS = ('tracker', 'boxes', 'cosine')
"""Engines that run a diffusion model."""
MODELLESS = ('first-mask', 'flow')
"""Engines that are no tracker: without options, without any model."""

# Window and temperature are the best ones found on the dev sequences (docs/evaluation.md).
# Without the online prompt, which is no part of a baseline.
_PLAIN: dict[str, Any] = {'target.gain': 0.0, 'motion.gain': 0.0, 'states.existence': 0.0}
_COLOUR: dict[str, dict[str, Any]] = {
    'colour4': {
        'stride': 4,
        'cells': 5,
        'colour_temperature': 0.015,
        'kernel.radius': 9,
        **_PLAIN,
    },
    'colour8': {
        'stride': 8,
        'cells': 3,
        'colour_temperature': 0.015,
        'kernel.radius': 5,
        **_PLAIN,
    },
}
_COLOUR_OPTIONS = {'stride': int, 'cells': int, 'colour_temperature': float}
_LONGEST = 200
_EXTRA: dict[str, dict[str, type]] = {
    'cosine': {'cosine_temperature': float},
    **dict.fromkeys(_COLOUR, _COLOUR_OPTIONS),
}
"""Options of engines that are not the tracker's."""


@dataclass(frozen=True)
class EngineSpec:
    """
    An engine and its options, as plain data: it travels to worker processes and into reports.

    Attributes
    ----------
    label : str
        Names it in folders and tables.
    name : str
        Of :data:`ENGINES`.
    options : mapping
        *All* options in force, defaults included, so that a report tells the whole
        configuration.
    model, device : str

    """

    label: str
    name: str
    options: Mapping[str, Any]
    model: str | None = None
    device: str = 'auto'

    @property
    def config(self) -> TrackerConfig:
        """The tracker's options."""
        return TrackerConfig.of({k: v for k, v in self.options.items() if k in OPTIONS})

    def make(self) -> Engine:
        """Build the engine; loads the model where one is needed."""
        if self.name == 'first-mask':
            return FirstMask()
        if self.name == 'flow':
            return OpticalFlow()
        from drift_ros.api import Tracker

        config = self.config
        if self.name in ('tracker', 'boxes'):
            tracker = Tracker(self.model, config, device=self.device)
            return BoxSeeded(tracker) if self.name == 'boxes' else tracker
        if self.name == 'cosine':
            from drift_ros.api import diffusion_features

            cosine = CosineFeatures(
                diffusion_features(self.model, config, self.device),
                self.options.get('cosine_temperature', 0.03),
            )
            return Tracker(config=config, device=self.device, features=cosine)
        extractor = ColourPatches(
            self.options['stride'],
            self.options['cells'],
            self.options['colour_temperature'],
            config.features.resolution,
        )
        return Tracker(config=config, device=self.device, features=extractor)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {
            'label': self.label,
            'name': self.name,
            'model': self.model,
            'device': self.device,
            'options': dict(self.options),
        }


def parse_engine(
    text: str,
    settings: Mapping[str, Any] | None = None,
    model: str | None = None,
    device: str = 'auto',
) -> EngineSpec:
    """
    Read an engine from the command line: ``[label=]name[:option=value,...]``.

    >>> parse_engine('wide=colour4:kernel.radius=16').options['kernel.radius']
    16

    Parameters
    ----------
    text : str
    settings : mapping, optional
        Tracker options for all engines of the run; those in ``text`` come on top. For colour
        patches, window and temperature are their own and only changed in ``text``.
    model, device : str
        Of engines that run a network.

    Raises
    ------
    ValueError
        Naming the unknown engine or option, or the value out of range.

    """
    head, _, tail = text.partition(':')
    label, _, name = head.rpartition('=')
    if name not in ENGINES:
        raise ValueError(f'there is no engine {name!r}; choose from {", ".join(ENGINES)}')
    label = label or (name if not tail else text)
    label = label.replace('/', '_').replace(':', '_').replace(' ', '')
    if label.startswith('.') or not label.isprintable() or len(label.encode()) > _LONGEST:
        raise ValueError(
            f'the engine label {label!r} cannot be the name of a folder: give another one, '
            f'LABEL={name}, that begins with no point and has at most {_LONGEST} bytes'
        )
    own = _split_options(tail)
    if name in MODELLESS:
        if own:
            raise ValueError(f'the engine {name} has no options, got {", ".join(own)}')
        return EngineSpec(label, name, {})
    values = {**TrackerConfig().flat(), **(settings or {})}
    values.update(_COLOUR.get(name, {}))
    extra = _EXTRA.get(name, {})
    for key, value in own.items():
        values[key] = extra[key](value) if key in extra else find_option(key).parse(value)
    checked = {key: value for key, value in values.items() if key not in extra}
    TrackerConfig.of(checked)
    return EngineSpec(label, name, values, model if name in NETWORKS else None, device)


def load_params_file(path: str) -> dict[str, Any]:
    """
    Read tracker options from a ROS 2 parameter file, such as ``config/tracker.yaml``.

    Parameters that are not options of the engine (topics, rates) are left out, those of every
    node in the file are taken.
    """
    from pathlib import Path

    import yaml

    try:
        data = yaml.safe_load(Path(path).read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ValueError(f'cannot read the parameter file {path}: {error}') from None
    found: dict[str, Any] = {}
    for key, value in _ros_parameters(data):
        if key in RENAMED:
            find_option(key)  # says the present name
        if key in OPTIONS:
            wanted: type = type(OPTIONS[key].default)
            if wanted is tuple:  # ROS has no empty list without a type: [''] stands for it
                value = tuple(item for item in value if item)
            found[key] = float(value) if wanted is float else value
    if not found:
        raise ValueError(
            f'{path} holds no option of the tracker; expected a ROS 2 parameter '
            'file (node name, then ros__parameters)'
        )
    return found


def _ros_parameters(data: Any) -> Iterator[tuple[str, Any]]:
    """Give all parameters below any ``ros__parameters``, however deep the nodes are nested."""
    for key, value in data.items() if isinstance(data, dict) else ():
        if key == 'ros__parameters' and isinstance(value, dict):
            yield from _dotted(value)
        else:
            yield from _ros_parameters(value)


def _dotted(values: Mapping[str, Any], prefix: str = '') -> Iterator[tuple[str, Any]]:
    """Give parameters, which may be nested in groups, by dotted name."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _dotted(value, f'{prefix}{key}.')
        else:
            yield prefix + key, value


def split_settings(pairs: Sequence[str]) -> dict[str, Any]:
    """Read ``--set option=value`` arguments."""
    values = {}
    for pair in pairs:
        key, equals, text = pair.partition('=')
        if not equals:
            raise ValueError(f'--set {pair}: expected option=value')
        values[key.strip()] = find_option(key.strip()).parse(text.strip())
    return values


def _split_options(text: str) -> dict[str, str]:
    """Split ``a=1,layers=x,y`` at the commas that start a new ``key=``."""
    found: dict[str, str] = {}
    last = ''
    for piece in filter(None, text.split(',')):
        key, equals, value = piece.partition('=')
        if equals:
            last = key.strip()
            found[last] = value.strip()
        elif last:
            found[last] += f',{piece.strip()}'
        else:
            raise ValueError(f'engine options {text!r}: expected option=value')
    return found
