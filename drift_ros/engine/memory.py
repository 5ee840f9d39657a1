# SPDX-License-Identifier: Apache-2.0
"""
Reference memory: what the tracker remembers of earlier frames, bounded in size.

A memory is a value: every change gives a new one and leaves the old one, tensors included, as it
was. Label channels are the table's (:mod:`drift_ros.engine.table`); the memory only indexes them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
import dataclasses
from dataclasses import dataclass
from itertools import combinations
import math

import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F

from drift_ros.engine.config import TrackerConfig
from drift_ros.engine.frame_features import FrameFeatures
from drift_ros.engine.kernel import resize_labels
from drift_ros.engine.kernel_fast import propagate
from drift_ros.engine.key_tiles import Keys
from drift_ros.engine.reference import (
    marked_area,
    moments,
    padded,
    places_of,
    Reference,
    thinned,
    together,
    warp,
    with_channels,
    without_channels,
)

Weights = tuple[Tensor, ...]
"""Weight of each head, (heads,) a layer, sum over all of them 1."""

# Global matches look at every second token in both frames: a sixteenth of the work.
_COARSE = 2
# A seed frame's objects are shown at most this much larger or smaller than they were.
_ZOOM = 2.0


@dataclass(frozen=True)
class ReferenceMemory:
    """
    Seed frames, pinned, and earlier frames, rolling; and the reading of labels out of them.

    Of earlier frames the last few are kept, as what follows resembles them most, and before
    them one in every few, so that errors of single frames do not take over.

    Attributes
    ----------
    pinned, older, recent : tuple of Reference
        Each in the order of time.
    pushed : int
        Frames remembered so far, those that left included.

    """

    config: TrackerConfig
    pinned: tuple[Reference, ...] = ()
    older: tuple[Reference, ...] = ()
    recent: tuple[Reference, ...] = ()
    pushed: int = 0

    @property
    def references(self) -> tuple[Reference, ...]:
        """All remembered frames, seed frames first, the newest last."""
        return (*self.pinned, *self.older, *self.recent)

    @property
    def latest(self) -> Reference | None:
        """The last frame that was remembered; a seed frame if there is no other."""
        return (self.recent or self.pinned or (None,))[-1]

    def read(self, features: FrameFeatures, weights: Weights | None = None) -> Tensor:
        """
        Propagate the labels of all references to a frame, each within the window.

        Parameters
        ----------
        features : FrameFeatures
        weights : Weights, optional
            Of the attention heads. None: uniform.

        Returns
        -------
        Tensor
            (h, w, 1 + objects) float32, sums to 1.

        """
        kernel = self.config.kernel
        seeds = [self.aligned(seed) for seed in self.pinned]
        earlier = [*self.older, *self.recent]
        radii = [kernel.seed_radius or None] * len(seeds) + [kernel.radius or None] * len(earlier)
        return self._attend(features, [*seeds, *earlier], radii, weights)

    def search(
        self,
        features: FrameFeatures,
        weights: Weights | None = None,
        channels: Iterable[int] = (),
    ) -> Tensor:
        """
        Propagate labels from wherever they match: as :meth:`read`, without windows.

        Asked are the seed frames, and of each object sought, by its channel, the last remembered
        frame it was found in: how it looked of late.
        """
        earlier = (*self.older, *self.recent)
        last = set()
        for channel in channels:
            holding = [
                n for n, held in enumerate(earlier) if held.labels[..., channel].max() > 0.5
            ]
            last.update(holding[-1:])
        asked = (*self.pinned, *(earlier[index] for index in sorted(last)))
        return self._match_anywhere(features, asked, weights)

    def push(self, features: FrameFeatures, labels: Tensor) -> 'ReferenceMemory':
        """
        Remember a frame with labels (h, w, 1 + objects); others make room.

        Where labels sum to less than 1, that much is not known, and the frame has so much less to
        say.
        """
        options = self.config.memory
        objects = labels[..., 1:]
        floor = self.config.experimental.label_floor
        objects = objects.masked_fill(objects < floor, 0.0)
        unknown = 1.0 - labels.sum(dim=-1, keepdim=True)
        unknown = unknown.masked_fill(unknown < max(floor, 1e-3), 0.0)
        background = 1.0 - unknown - objects.sum(dim=-1, keepdim=True)
        kept = Reference(features.half(), torch.cat([background, objects], dim=-1))
        recent, older, pushed = (*self.recent, kept), self.older, self.pushed + 1
        if len(recent) > options.recent:
            leaving, *rest = recent
            recent = tuple(rest)
            if pushed % options.older_interval == 0 and options.older:
                older = (*older, leaving)[-options.older :]
        return dataclasses.replace(self, older=older, recent=recent, pushed=pushed)

    def pin(
        self,
        features: FrameFeatures,
        masks: Tensor,
        object_ids: Sequence[int],
        channels: Mapping[int, int],
        weights: Weights | None = None,
    ) -> 'ReferenceMemory':
        """
        Remember a seed frame for good.

        It adds new objects, or corrects known ones: what earlier frames say of these is found
        anew from this frame. Of what a person marked before, looks stay that fit this one.

        Parameters
        ----------
        features : FrameFeatures
        masks : Tensor
            (h, w, K) float32 in [0, 1], share of each token that each marked object covers.
        object_ids : sequence of int
            Ids of the K objects.
        channels : mapping of int to int
            Label channels of all objects, by id; those of new ones follow the others.
        weights : Weights, optional
            Of the attention heads.

        """
        marked = [channels[number] for number in object_ids]
        fitting = tuple(
            self._fitting(seed, features, masks, object_ids, channels, weights)
            for seed in self.pinned
        )
        known = frozenset(owner for seed in fitting for owner in seed.owners)
        rest = 1.0 - masks.sum(dim=-1, keepdim=True)
        if self.references:
            before = without_channels(self.read(features, weights), marked)
        else:
            before = torch.ones_like(rest)
        owners = frozenset(object_ids)
        labels = with_channels(before, masks, marked)
        seed = Reference(features.half(), labels, owners, owners - known)

        # To older references the new objects are background so far. The same kernel, run
        # backwards, tells where they were, so that old frames do not vote against them.
        def again(reference: Reference, found: Tensor) -> Reference:
            own = [channels[number] for number in reference.owners & owners]
            new = [channel for channel in marked if channel not in own]
            kept = without_channels(reference.labels, new)
            return dataclasses.replace(reference, labels=with_channels(kept, found[..., new], new))

        reach = [self.config.kernel.seed_radius or None]
        pinned = tuple(
            again(old, self._match_anywhere(old.features, [seed], weights))
            for old in fitting
            if old.owners
        )
        older, recent = (
            tuple(again(old, self._attend(old.features, [seed], reach, weights)) for old in frames)
            for frames in (self.older, self.recent)
        )
        changed = dataclasses.replace(self, pinned=(*pinned, seed), older=older, recent=recent)
        return changed._bounded(channels)

    def _fitting(
        self,
        seed: Reference,
        features: FrameFeatures,
        masks: Tensor,
        object_ids: Sequence[int],
        channels: Mapping[int, int],
        weights: Weights | None,
    ) -> Reference:
        """Take corrected objects out of a seed frame that finds them elsewhere than marked."""
        wrong = set()
        if seed.owners & set(object_ids):
            found = self._match_anywhere(features, [seed], weights)
            for place, number in enumerate(object_ids):
                if number in seed.owners:
                    mass = found[..., channels[number]]
                    inside = torch.minimum(mass, masks[..., place]).sum()
                    if 2.0 * inside < mass.sum():
                        wrong.add(number)
        return dataclasses.replace(seed, owners=seed.owners - wrong, first=seed.first - wrong)

    def remove(self, object_id: int, channel: int) -> 'ReferenceMemory':
        """Give an object's labels to the background; seed frames of no other object go."""

        def without(reference: Reference) -> Reference:
            kept = [c for c in range(reference.labels.shape[-1]) if c != channel]
            labels = reference.labels[..., kept]
            labels[..., 0] += reference.labels[..., channel]
            gone = {object_id}
            return Reference(
                reference.features, labels, reference.owners - gone, reference.first - gone
            )

        pinned, older, recent = (
            tuple(without(reference) for reference in frames)
            for frames in (self.pinned, self.older, self.recent)
        )
        pinned = tuple(reference for reference in pinned if reference.owners)
        if not pinned:
            return ReferenceMemory(self.config)
        return dataclasses.replace(self, pinned=pinned, older=older, recent=recent)

    def marked(self, channels: Mapping[int, int]) -> Iterator[tuple[Reference, Tensor, list[int]]]:
        """Give each seed frame with the masks (h, w, K) and ids of the K objects marked in it."""
        for reference in self.pinned:
            ids = [number for number in channels if number in reference.owners]
            yield reference, reference.labels[..., [channels[number] for number in ids]], ids

    def refresh(self, extract: Callable[[np.ndarray], FrameFeatures]) -> 'ReferenceMemory':
        """Look at all remembered frames again, after the network's conditions changed."""

        def again(reference: Reference) -> Reference:
            image = reference.features.image
            if image is None:
                return reference
            return dataclasses.replace(reference, features=extract(image).half())

        pinned, older, recent = (
            tuple(again(reference) for reference in frames)
            for frames in (self.pinned, self.older, self.recent)
        )
        return dataclasses.replace(self, pinned=pinned, older=older, recent=recent)

    @property
    def nbytes(self) -> int:
        """Bytes held by features, what is made of them, labels and the frames' pictures."""
        held: list[Tensor | Keys] = [reference.labels for reference in self.references]
        for reference in self.references:
            for layer in reference.features.layers:
                held += [layer.key] if layer.key is layer.query else [layer.query, layer.key]
                held.append(layer.keys)
        images = [r.features.image for r in self.references if r.features.image is not None]
        return sum(tensor.nbytes for tensor in held) + sum(image.nbytes for image in images)

    def aligned(self, seed: Reference) -> Reference:
        """
        Move a seed frame's objects to where, and as large as, they were last seen.

        A seed frame may lie long ago: its windows follow the objects.
        """
        target = self._target(seed)
        return seed if target is None else warp(seed, target)

    def _target(self, seed: Reference) -> Tensor | None:
        """
        Say which token of a seed frame belongs at each place now.

        (h, w, 2) float32, rows and columns on the finest grid; None where nothing moves.
        """
        if not self.recent:
            return None
        now, then = self.recent[-1].labels[..., 1:], seed.labels[..., 1:]  # (h, w, objects)
        place = places_of(now)
        mass_now, centre_now = moments(now, place)
        mass_then, centre_then = moments(then, place)
        known = (mass_now > 1.0) & (mass_then > 1.0)
        if not known.any():
            return None
        zoom = (mass_then / mass_now.clamp_min(1.0)).sqrt().clamp(1 / _ZOOM, _ZOOM)  # (objects,)
        # each place moves with the object nearest to it
        reach = self.config.kernel.radius or max(now.shape[:2])
        around = now.permute(2, 0, 1) * known[:, None, None]
        around = F.avg_pool2d(around, (2 * reach + 1, 1), 1, (reach, 0))
        around = F.avg_pool2d(around, (1, 2 * reach + 1), 1, (0, reach))
        weight, nearest = around.max(dim=0)  # (h, w)
        target = centre_then[nearest] + (place - centre_now[nearest]) * zoom[nearest][..., None]
        return torch.where(weight[..., None] > 0, target, place)

    def _bounded(self, channels: Mapping[int, int]) -> 'ReferenceMemory':
        """
        Keep the number of seed frames within bounds, and a look at every object.

        The oldest look that only corrects goes first. Where there is none, the two frames are
        put together whose objects, where they were last seen, are least in each other's way.
        """
        pinned = list(self.pinned)
        while len(pinned) > self.config.memory.seed_frames:
            spare = [seed for seed in pinned[:-1] if not seed.first]
            if spare:
                pinned = [seed for seed in pinned if seed is not spare[0]]
                continue
            # the newest stays as it was marked, if there is a choice
            older = pinned[: max(len(pinned) - 1, 2)]
            moved = [warp(seed, self._target(seed), whole=True) for seed in older]
            areas = [marked_area(seed, channels) for seed in moved]
            one, two = min(
                combinations(range(len(moved)), 2),
                key=lambda pair: float(torch.minimum(areas[pair[0]], areas[pair[1]]).sum()),
            )
            pinned[one] = together(moved[one], moved[two], channels)
            del pinned[two]
        return dataclasses.replace(self, pinned=tuple(pinned))

    def _attend(
        self,
        features: FrameFeatures,
        references: Sequence[Reference],
        radii: Sequence[int | None],
        head_weights: Weights | None,
    ) -> Tensor:
        """Average the kernels of all layers and heads on the finest grid: (h, w, C)."""
        kernel, grid = self.config.kernel, features.grid
        labels = torch.stack([reference.labels for reference in references])  # (R, h, w, C)
        total = torch.zeros_like(labels[0])
        heads = sum(len(layer.query) for layer in features.layers)
        for index, layer in enumerate(features.layers):
            weights = (
                torch.full((len(layer.query),), 1.0 / heads, device=labels.device)
                if head_weights is None
                else head_weights[index]
            )
            share = float(weights.sum())
            if share == 0.0:
                continue
            size = layer.query.shape[1:3]
            scale = size[0] / grid[0]
            propagated = propagate(
                layer.query.float(),
                [reference.features.layers[index].keys for reference in references],
                resize_labels(labels, size, 'area'),
                radius=[radius and math.ceil(radius * scale) for radius in radii],
                top_k=kernel.top_k,
                temperature=kernel.temperature,
                head_weights=weights / share,
            )
            total += share * resize_labels(propagated[None], grid, 'bilinear')[0]
        known = total.sum(dim=-1, keepdim=True)  # less than 1 where labels were not known
        total[..., :1] += known < 1e-3
        return total / total.sum(dim=-1, keepdim=True)

    def _match_anywhere(
        self, features: FrameFeatures, references: Sequence[Reference], weights: Weights | None
    ) -> Tensor:
        coarse = [thinned(reference, _COARSE) for reference in references]
        thin = features.thinned(_COARSE)
        rows, columns = thin.grid
        if any(reference.features.grid != thin.grid for reference in coarse):
            # the frame is seen at another scale than they were
            grids = [thin.grid, *(reference.features.grid for reference in coarse)]
            grid = (max(grid[0] for grid in grids), max(grid[1] for grid in grids))
            thin, coarse = thin.padded(grid), [padded(reference, grid) for reference in coarse]
        found = self._attend(thin, coarse, [None] * len(coarse), weights)[:rows, :columns]
        return resize_labels(found[None], features.grid, 'bilinear')[0]
