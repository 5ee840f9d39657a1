# SPDX-License-Identifier: Apache-2.0
"""
What the tracker is measured against.

Three floors: repeating the first mask, warping it by optical flow, and the tracker's own
propagation on raw colour patches in place of a diffusion model's queries and keys. Besides, the
tracker told of boxes only, and on cosine similarity in place of attention.
"""

from __future__ import annotations

from dataclasses import dataclass, field
import time
from typing import Any

import cv2
import numpy as np


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

        from drift_ros.engine.frame_features import FrameFeatures, LayerFeatures

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
        from drift_ros.engine.estimates import box_of
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
        # what is compiled runs past the hooks below
        self._features, self._temperature = features.plain(), temperature
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

        from drift_ros.engine.frame_features import FrameFeatures, LayerFeatures

        captured = self._features.extract(frame)
        layers = []
        for name, layer in zip(self._features.layers, captured.layers, strict=True):
            hidden = self._hidden.pop(name).float().mean(dim=0)
            unit = functional.normalize(hidden, dim=-1).unflatten(0, layer.query.shape[1:3])[None]
            scale = unit.shape[-1] ** 0.5 / self._temperature
            layers.append(LayerFeatures(unit * scale, unit))
        return FrameFeatures(tuple(layers), captured.image)
