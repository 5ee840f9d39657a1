# SPDX-License-Identifier: Apache-2.0
"""
What the tracker is measured against, and the choice of engines for a run.

Three floors: repeating the first mask, warping it by optical flow, and the tracker's own
propagation on raw colour patches in place of a diffusion model's queries and keys.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
import time
from typing import Any, Protocol

import cv2
import numpy as np

from drift_ros.engine.config import find_option, OPTIONS, RENAMED, TrackerConfig


class Result(Protocol):
    """What an engine says of a frame; :class:`drift_ros.TrackResult` has it all."""

    @property
    def labels(self) -> np.ndarray:
        """Label image (H, W), pixel = object id."""

    @property
    def timings(self) -> dict[str, float]:
        """Milliseconds, 'total' among them."""


class Engine(Protocol):
    """Anything that follows masks through frames, as :class:`drift_ros.Tracker` does."""

    def seed(self, frame: np.ndarray, label_mask: np.ndarray) -> list[int]:
        """Take the objects of a label image (H, W); return one id per label, ascending."""

    def step(self, frame: np.ndarray) -> Result:
        """Find the objects in the next frame (H, W, 3) uint8 RGB."""


@dataclass(frozen=True)
class BaselineResult:
    """Label image (H, W) uint8 or uint16, pixel = object id; milliseconds spent ('total')."""

    labels: np.ndarray
    timings: dict[str, float] = field(default_factory=dict)


class FirstMask:
    """Every object stays where its seed was. The floor for any tracker."""

    def __init__(self) -> None:
        self._labels: np.ndarray | None = None
        self._count = 0

    def seed(self, frame: np.ndarray, label_mask: np.ndarray) -> list[int]:
        """Remember the masks; ids count up from 1, in ascending order of labels."""
        if self._labels is None:
            self._labels = np.zeros(label_mask.shape, np.uint16)
        ids = []
        for label in np.unique(label_mask[label_mask != 0]):
            self._count += 1
            self._labels[label_mask == label] = self._count
            ids.append(self._count)
        return ids

    def step(self, frame: np.ndarray) -> BaselineResult:
        """Return the seeds again."""
        start = time.perf_counter()
        labels = self._advance(frame)
        return BaselineResult(labels, {'total': 1e3 * (time.perf_counter() - start)})

    def _advance(self, frame: np.ndarray) -> np.ndarray:
        if self._labels is None:
            return np.zeros(frame.shape[:2], np.uint16)
        return self._labels.copy()


def dense_flow(frame: np.ndarray, last: np.ndarray) -> np.ndarray:
    """Return where each pixel of ``frame`` was in ``last``: (H, W) uint8 each to (H, W, 2)."""
    return cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM).calc(frame, last, None)


def warp_labels(labels: np.ndarray, flow: np.ndarray) -> np.ndarray:
    """Move the last frame's label image (H, W) along :func:`dense_flow`, nearest neighbour."""
    rows, columns = np.indices(labels.shape, dtype=np.float32)
    return cv2.remap(
        labels,
        columns + flow[..., 0],
        rows + flow[..., 1],
        cv2.INTER_NEAREST,
        borderMode=cv2.BORDER_REPLICATE,
    )


class OpticalFlow(FirstMask):
    """
    Masks warped from frame to frame by dense optical flow (DIS, Kroeger et al., ECCV 2016).

    The flow runs from the new frame to the last one, so that each new pixel takes the label of
    the place it came from (nearest neighbour; labels never mix).
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: np.ndarray | None = None

    def seed(self, frame: np.ndarray, label_mask: np.ndarray) -> list[int]:
        """Remember masks and frame."""
        self._last = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        return super().seed(frame, label_mask)

    def _advance(self, frame: np.ndarray) -> np.ndarray:
        if self._labels is None or self._last is None:
            return np.zeros(frame.shape[:2], np.uint16)
        grey = cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY)
        self._labels = warp_labels(self._labels, dense_flow(grey, self._last))
        self._last = grey
        return self._labels.copy()


class ColourPatches:
    """
    Raw colour as a feature extractor for :class:`drift_ros.Tracker`: no learning at all.

    The frame is resized as for the diffusion model and averaged over cells of
    ``stride`` x ``stride`` pixels in CIE Lab. A token is the block of ``cells`` x ``cells`` cells
    around it, scaled to unit length: query times key is the cosine of two patches, divided by
    ``temperature``.
    """

    def __init__(
        self, stride: int = 4, cells: int = 5, temperature: float = 0.07, resolution: int = 240
    ) -> None:
        if stride < 1 or cells < 1 or cells % 2 == 0 or temperature <= 0:
            raise ValueError(
                f'stride is {stride}, cells {cells}, temperature {temperature}; '
                'needed are a stride of 1 or more, an odd number of cells, and a '
                'temperature above 0'
            )
        self._stride, self._cells, self._temperature = stride, cells, temperature
        self._resolution = resolution

    def extract(self, frame: np.ndarray) -> Any:
        """Turn a frame (H, W, 3) uint8 RGB into FrameFeatures: one layer, one head."""
        import torch

        from drift_ros.engine.features import FrameFeatures, LayerFeatures

        patches = torch.from_numpy(self.patches(frame))[None]
        scale = patches.shape[-1] ** 0.5 / self._temperature
        return FrameFeatures((LayerFeatures(patches * scale, patches),))

    def patches(self, frame: np.ndarray) -> np.ndarray:
        """Return unit-length colour patches (h, w, 3 * cells^2) float32 of a frame."""
        from drift_ros.diffusion.colour_patches import colour_patches

        ratio = self._resolution / min(frame.shape[:2])
        height, width = (
            max(round(side * ratio / self._stride), 1) * self._stride for side in frame.shape[:2]
        )
        shrink = height * width < frame.shape[0] * frame.shape[1]
        resized = cv2.resize(
            frame, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        )
        grid = (height // self._stride, width // self._stride)
        return colour_patches(resized, grid, self._cells)


class BoxSeeded:
    """The tracker, told of the box of each object's seed mask instead of the mask itself."""

    def __init__(self, tracker: Any) -> None:
        self._tracker = tracker

    def seed(self, frame: np.ndarray, label_mask: np.ndarray) -> list[int]:
        """Seed from boxes; ids in ascending order of labels."""
        from drift_ros.engine.results import box_of
        from drift_ros.prompts.segmenter import Prompt

        boxes = [box_of(label_mask == label) for label in np.unique(label_mask[label_mask != 0])]
        ids, _ = self._tracker.seed_prompts(frame, [Prompt(box=box) for box in boxes])
        return list(ids)

    def step(self, frame: np.ndarray) -> Any:
        """Track."""
        return self._tracker.step(frame)


class CosineFeatures:
    """
    Cosine similarity of hidden features in place of attention, for the same layers.

    The features are the input of an attention layer: what its queries and keys are projected
    from. Query times key is the cosine, divided by ``temperature``; one head a layer.
    """

    def __init__(self, features: Any, temperature: float = 0.03) -> None:
        """Take the attention features (DiffusionFeatures) to stand in for."""
        if temperature <= 0:
            raise ValueError(f'cosine_temperature is {temperature}; it must be above 0')
        self._features, self._temperature = features, temperature
        self._hidden: dict[str, Any] = {}

        for name in features.layers:

            def keep(
                _module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name
            ) -> None:
                self._hidden[name] = args[0] if args else kwargs['hidden_states']

            features.checkpoint.unet.get_submodule(name).register_forward_pre_hook(
                keep, with_kwargs=True
            )

    def extract(self, frame: np.ndarray) -> Any:
        """Turn a frame (H, W, 3) uint8 RGB into FrameFeatures."""
        import torch.nn.functional as functional

        from drift_ros.engine.features import FrameFeatures, LayerFeatures

        captured = self._features.extract(frame)
        layers = []
        for name, layer in zip(self._features.layers, captured.layers, strict=True):
            hidden = self._hidden.pop(name).float().mean(dim=0)
            unit = functional.normalize(hidden, dim=-1).unflatten(0, layer.query.shape[1:3])[None]
            scale = unit.shape[-1] ** 0.5 / self._temperature
            layers.append(LayerFeatures(unit * scale, unit))
        return FrameFeatures(tuple(layers), captured.image)


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

# Window and temperature are the best ones found on the dev sequences (docs/evaluation.md).
_COLOUR: dict[str, dict[str, Any]] = {
    'colour4': {
        'stride': 4,
        'cells': 5,
        'colour_temperature': 0.015,
        'kernel.radius': 9,
    },
    'colour8': {
        'stride': 8,
        'cells': 3,
        'colour_temperature': 0.015,
        'kernel.radius': 5,
    },
}
_COLOUR_OPTIONS = {'stride': int, 'cells': int, 'colour_temperature': float}
_EXTRA: dict[str, dict[str, type]] = {
    'cosine': {'cosine_temperature': float},
    **dict.fromkeys(_COLOUR, _COLOUR_OPTIONS),
}
"""Options of engines that are not the tracker's."""


@dataclass(frozen=True)
class EngineSpec:
    """
    An engine and its options, as plain data: it travels to worker processes and into reports.

    ``label`` names it in folders and tables. ``options`` holds *all* options in force, defaults
    included, so that a report tells the whole configuration.
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

    ``settings`` are tracker options for all engines of the run; those in ``text`` come on top.
    For colour patches, window and temperature are their own and only changed in ``text``.

    >>> parse_engine('wide=colour4:kernel.radius=16').options['kernel.radius']
    16

    Raises ValueError that names the unknown engine or option, or the value out of range.
    """
    head, _, tail = text.partition(':')
    label, _, name = head.rpartition('=')
    if name not in ENGINES:
        raise ValueError(f'there is no engine {name!r}; choose from {", ".join(ENGINES)}')
    label = label or (name if not tail else text)
    label = label.replace('/', '_').replace(':', '_').replace(' ', '')
    own = _split_options(tail)
    if name in ('first-mask', 'flow'):
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
