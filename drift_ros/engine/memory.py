# SPDX-License-Identifier: Apache-2.0
"""Reference memory: what the tracker remembers of earlier frames, bounded in size."""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
import math

import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F

from drift_ros.diffusion.features import FrameFeatures, LayerFeatures
from drift_ros.engine.config import TrackerConfig
from drift_ros.engine.kernel_fast import propagate, resize_labels

# Global matches look at every second token in both frames: a sixteenth of the work.
_COARSE = 2
# A seed frame's objects are shown at most this much larger or smaller than they were.
_ZOOM = 2.0


@dataclass
class Reference:
    """
    A remembered frame.

    Attributes
    ----------
    features : FrameFeatures
        Half precision.
    labels : Tensor
        (h, w, 1 + objects) float32, distribution over background and objects on the finest grid.
    owners : set of int
        Ids of the objects a person marked here; empty for frames the tracker labelled itself.

    """

    features: FrameFeatures
    labels: Tensor
    owners: set[int]


class ReferenceMemory:
    """
    Seed frames, pinned, and earlier frames, rolling; and the reading of labels out of them.

    Of earlier frames the last few are kept, as what follows resembles them most, and before
    them one in every few, so that errors of single frames do not take over. ``object_ids`` gives
    the objects of label channels 1, 2, ...; channel 0 is background.
    """

    def __init__(self, config: TrackerConfig) -> None:
        """Start empty."""
        self._config = config
        self.object_ids: list[int] = []
        self.pinned: list[Reference] = []
        self.recent: deque[Reference] = deque()
        self.older: deque[Reference] = deque(maxlen=config.memory.older)
        self._pushed = 0
        self.head_weights: tuple[Tensor, ...] | None = None
        """Weight of each head, (heads,) a layer, sum over all of them 1. None: uniform."""

    @property
    def references(self) -> list[Reference]:
        """All remembered frames, seed frames first, the newest last."""
        return [*self.pinned, *self.older, *self.recent]

    def read(self, features: FrameFeatures) -> Tensor:
        """
        Propagate the labels of all references to a frame, each within the window.

        Returns
        -------
        Tensor
            (h, w, 1 + objects) float32, sums to 1.

        """
        seeds = [self._aligned(seed) for seed in self.pinned]
        earlier = [*self.older, *self.recent]
        radii = [self._config.kernel.seed_radius or None] * len(seeds)
        radii += [self._config.kernel.radius or None] * len(earlier)
        return self._attend(features, [*seeds, *earlier], radii)

    def search(self, features: FrameFeatures) -> Tensor:
        """Propagate the labels of the seed frames from wherever they match: as :meth:`read`."""
        return self._match_anywhere(features, self.pinned)

    def push(self, features: FrameFeatures, labels: Tensor) -> None:
        """Remember a frame with labels (h, w, 1 + objects); others make room."""
        objects = labels[..., 1:]
        objects = objects.masked_fill(objects < self._config.experimental.label_floor, 0.0)
        background = 1.0 - objects.sum(dim=-1, keepdim=True)
        kept = torch.cat([background, objects], dim=-1)
        self.recent.append(Reference(_half(features), kept, set()))
        self._pushed += 1
        if len(self.recent) > self._config.memory.recent:
            leaving = self.recent.popleft()
            if self._pushed % self._config.memory.older_interval == 0:
                self.older.append(leaving)

    def pin(self, features: FrameFeatures, masks: Tensor, object_ids: Sequence[int]) -> None:
        """
        Remember a seed frame for good and add its objects.

        Parameters
        ----------
        features : FrameFeatures
        masks : Tensor
            (h, w, K) float32 in [0, 1], share of each token that each new object covers.
        object_ids : sequence of int
            Ids of the K objects.

        """
        rest = 1.0 - masks.sum(dim=-1, keepdim=True)
        before = self.read(features) if self.references else torch.ones_like(rest)
        seed = Reference(_half(features), torch.cat([before * rest, masks], -1), set(object_ids))
        # To older references the new objects are background so far. The same kernel, run
        # backwards, tells where they were, so that old frames do not vote against them.
        new = slice(-len(object_ids), None)
        for reference in self.pinned:
            _add_objects(reference, self._match_anywhere(reference.features, [seed])[..., new])
        for reference in (*self.older, *self.recent):
            found = self._attend(
                reference.features, [seed], [self._config.kernel.seed_radius or None]
            )
            _add_objects(reference, found[..., new])
        self.pinned.append(seed)
        self.object_ids.extend(object_ids)

    def remove(self, object_id: int) -> None:
        """Give an object's labels to the background; seed frames of no other object go."""
        channel = 1 + self.object_ids.index(object_id)
        self.object_ids.remove(object_id)
        for reference in self.references:
            kept = [c for c in range(reference.labels.shape[-1]) if c != channel]
            background = reference.labels[..., channel]
            reference.labels = reference.labels[..., kept].clone()
            reference.labels[..., 0] += background
            reference.owners.discard(object_id)
        self.pinned = [reference for reference in self.pinned if reference.owners]
        if not self.pinned:
            self.clear()

    def marked(self) -> list[tuple[Reference, Tensor, list[int]]]:
        """Give each seed frame with the masks (h, w, K) and ids of the K objects marked in it."""
        found = []
        for reference in self.pinned:
            ids = [number for number in self.object_ids if number in reference.owners]
            channels = [1 + self.object_ids.index(number) for number in ids]
            found.append((reference, reference.labels[..., channels], ids))
        return found

    def refresh(self, extract: Callable[[np.ndarray], FrameFeatures]) -> None:
        """Look at all remembered frames again, after the network's conditions changed."""
        for reference in self.references:
            if reference.features.image is not None:
                reference.features = _half(extract(reference.features.image))

    def clear(self) -> None:
        """Forget everything."""
        self.head_weights = None
        self.object_ids.clear()
        self.pinned.clear()
        self.older.clear()
        self.recent.clear()
        self._pushed = 0

    @property
    def nbytes(self) -> int:
        """Bytes held by features, labels and the frames in the network's size."""
        held = [reference.labels for reference in self.references]
        for reference in self.references:
            for layer in reference.features.layers:
                held += [layer.key] if layer.key is layer.query else [layer.query, layer.key]
        images = [r.features.image for r in self.references if r.features.image is not None]
        return sum(tensor.nbytes for tensor in held) + sum(image.nbytes for image in images)

    def _attend(
        self,
        features: FrameFeatures,
        references: Sequence[Reference],
        radii: Sequence[int | None],
    ) -> Tensor:
        """Average the kernels of all layers and heads on the finest grid: (h, w, C)."""
        grid = features.grid
        labels = torch.stack([reference.labels for reference in references])  # (R, h, w, C)
        total = torch.zeros_like(labels[0])
        heads = sum(len(layer.query) for layer in features.layers)
        for index, layer in enumerate(features.layers):
            weights = (
                torch.full((len(layer.query),), 1.0 / heads, device=labels.device)
                if self.head_weights is None
                else self.head_weights[index]
            )
            share = float(weights.sum())
            if share == 0.0:
                continue
            size = layer.query.shape[1:3]
            scale = size[0] / grid[0]
            propagated = propagate(
                layer.query.float(),
                [reference.features.layers[index].key for reference in references],
                resize_labels(labels, size, 'area'),
                radius=[radius and math.ceil(radius * scale) for radius in radii],
                top_k=self._config.kernel.top_k,
                temperature=self._config.kernel.temperature,
                head_weights=weights / share,
            )
            total += share * resize_labels(propagated[None], grid, 'bilinear')[0]
        return total

    def _aligned(self, seed: Reference) -> Reference:
        """
        Move a seed frame's objects to where, and as large as, they were last seen.

        A seed frame may lie long ago: its windows follow the objects.
        """
        if not self.recent:
            return seed
        now, then = self.recent[-1].labels[..., 1:], seed.labels[..., 1:]  # (h, w, objects)
        height, width, _ = now.shape
        rows, columns = torch.meshgrid(
            torch.arange(height, device=now.device),
            torch.arange(width, device=now.device),
            indexing='ij',
        )
        place = torch.stack([rows, columns], dim=-1).float()  # (h, w, 2)
        mass_now, centre_now = _moments(now, place)
        mass_then, centre_then = _moments(then, place)
        known = (mass_now > 1.0) & (mass_then > 1.0)
        if not known.any():
            return seed
        zoom = (mass_then / mass_now.clamp_min(1.0)).sqrt().clamp(1 / _ZOOM, _ZOOM)  # (objects,)
        # each place moves with the object nearest to it
        reach = self._config.kernel.radius or max(height, width)
        around = now.permute(2, 0, 1) * known[:, None, None]
        around = F.avg_pool2d(around, (2 * reach + 1, 1), 1, (reach, 0))
        around = F.avg_pool2d(around, (1, 2 * reach + 1), 1, (0, reach))
        weight, nearest = around.max(dim=0)  # (h, w)
        target = centre_then[nearest] + (place - centre_now[nearest]) * zoom[nearest][..., None]
        target = torch.where(weight[..., None] > 0, target, place)
        return _warp(seed, target)

    def _match_anywhere(self, features: FrameFeatures, references: Sequence[Reference]) -> Tensor:
        coarse = [_thin(reference) for reference in references]
        found = self._attend(_thin_features(features), coarse, [None] * len(coarse))
        return resize_labels(found[None], features.grid, 'bilinear')[0]


def _moments(labels: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Mass (objects,) and centre (objects, 2) of labels (h, w, objects) at places (h, w, 2)."""
    mass = labels.sum(dim=(0, 1))
    centre = torch.einsum('hwk,hwc->kc', labels, place) / mass.clamp_min(1e-6)[:, None]
    return mass, centre


def _warp(reference: Reference, target: Tensor) -> Reference:
    """Give each place what ``target``, (h, w, 2) rows and columns on the finest grid, holds."""
    grid = target.new_tensor(target.shape[:2])
    layers = []
    for layer in reference.features.layers:
        size = target.new_tensor(layer.key.shape[1:3])
        coarse = resize_labels(target[None], layer.key.shape[1:3], 'area')[0]
        scaled = (coarse + 0.5) * (size / grid) - 0.5
        rows, columns = torch.minimum(scaled.round().clamp_min(0), size - 1).long().unbind(-1)
        places = (rows * layer.key.shape[2] + columns).flatten()
        key = layer.key.flatten(1, 2).index_select(1, places).view(layer.key.shape)
        layers.append(LayerFeatures(layer.query, key))
    rows, columns = torch.minimum(target.round().clamp_min(0), grid - 1).long().unbind(-1)
    return Reference(
        FrameFeatures(tuple(layers)), reference.labels[rows, columns], reference.owners
    )


def _add_objects(reference: Reference, found: Tensor) -> None:
    rest = 1.0 - found.sum(dim=-1, keepdim=True)
    reference.labels = torch.cat([reference.labels * rest, found], dim=-1)


def _half(features: FrameFeatures) -> FrameFeatures:
    layers = []
    for layer in features.layers:
        query = layer.query.half()
        key = query if layer.key is layer.query else layer.key.half()
        layers.append(LayerFeatures(query, key))
    return FrameFeatures(tuple(layers), features.image)


def _thin(reference: Reference) -> Reference:
    features = _thin_features(reference.features)
    labels = resize_labels(reference.labels[None], features.grid, 'area')[0]
    return Reference(features, labels, reference.owners)


def _thin_features(features: FrameFeatures) -> FrameFeatures:
    """Keep every second token of each axis."""
    step = slice(None, None, _COARSE)
    return FrameFeatures(
        tuple(
            LayerFeatures(la.query[:, step, step], la.key[:, step, step]) for la in features.layers
        )
    )
