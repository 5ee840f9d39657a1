# SPDX-License-Identifier: Apache-2.0
"""A remembered frame, and what can be done to one: mark, move, put together. Pure functions."""

from collections.abc import Mapping, Sequence
import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F

from drift_ros.engine.frame_features import FrameFeatures, LayerFeatures
from drift_ros.engine.kernel import resize_labels

# Tokens around an object that go with it when two seed frames are put together.
_RIM = 2


@dataclass(frozen=True)
class Reference:
    """
    A remembered frame.

    Attributes
    ----------
    features : FrameFeatures
        Half precision.
    labels : Tensor
        (h, w, 1 + objects) float32, distribution over background and objects on the finest grid.
    owners : frozenset of int
        Ids of the objects a person marked here; empty for frames the tracker labelled itself.
    first : frozenset of int
        Those of them that had not been marked before: this is their first seed.

    """

    features: FrameFeatures
    labels: Tensor
    owners: frozenset[int] = frozenset()
    first: frozenset[int] = frozenset()

    def beside(self, masks: Tensor) -> Tensor:
        """Share (h, w) of each token that objects besides those of masks (h, w, K) cover."""
        return (1.0 - self.labels[..., 0] - masks.sum(dim=-1)).clamp_min(0.0)


def without_channels(labels: Tensor, channels: Sequence[int]) -> Tensor:
    """Give channels, as far as there are such, to the background."""
    present = [channel for channel in channels if channel < labels.shape[-1]]
    if not present:
        return labels
    labels = labels.clone()
    labels[..., 0] += labels[..., present].sum(dim=-1)
    labels[..., present] = 0.0
    return labels


def with_channels(labels: Tensor, masks: Tensor, channels: Sequence[int]) -> Tensor:
    """Put objects (h, w, K) into channels; what was there before keeps the rest."""
    if not channels:
        return labels
    missing = max(channels) + 1 - labels.shape[-1]
    rest = 1.0 - masks.sum(dim=-1, keepdim=True)
    labels = F.pad(labels * rest, (0, max(missing, 0)))
    labels[..., channels] = masks
    return labels


def moments(labels: Tensor, place: Tensor) -> tuple[Tensor, Tensor]:
    """Mass (objects,) and centre (objects, 2) of labels (h, w, objects) at places (h, w, 2)."""
    mass = labels.sum(dim=(0, 1))
    centre = torch.einsum('hwk,hwc->kc', labels, place) / mass.clamp_min(1e-6)[:, None]
    return mass, centre


def places_of(labels: Tensor) -> Tensor:
    """Row and column of every token of (h, w, C): (h, w, 2) float32."""
    height, width, _ = labels.shape
    rows, columns = torch.meshgrid(
        torch.arange(height, device=labels.device),
        torch.arange(width, device=labels.device),
        indexing='ij',
    )
    return torch.stack([rows, columns], dim=-1).float()


def warp(reference: Reference, target: Tensor | None, whole: bool = False) -> Reference:
    """
    Give each place what ``target``, (h, w, 2) rows and columns on the finest grid, holds.

    Queries and the image, which references are not asked for when they are read, move as well
    if ``whole``.
    """
    if target is None:
        return reference
    grid = target.new_tensor(target.shape[:2])
    layers = []
    for layer in reference.features.layers:
        size = target.new_tensor(layer.key.shape[1:3])
        coarse = resize_labels(target[None], layer.key.shape[1:3], 'area')[0]
        scaled = (coarse + 0.5) * (size / grid) - 0.5
        rows, columns = torch.minimum(scaled.round().clamp_min(0), size - 1).long().unbind(-1)
        places = (rows * layer.key.shape[2] + columns).flatten()

        def move(values: Tensor, places: Tensor = places) -> Tensor:
            return values.flatten(1, 2).index_select(1, places).view(values.shape)

        key = move(layer.key)
        query = layer.query
        if whole:
            query = key if layer.query is layer.key else move(layer.query)
        layers.append(LayerFeatures(query, key))
    image = reference.features.image
    if whole and image is not None:
        scale = np.array([image.shape[0], image.shape[1]]) / target.shape[:2]
        pixels = ((target.cpu().numpy() + 0.5) * scale - 0.5).astype(np.float32)
        pixels = cv2.resize(pixels, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
        image = cv2.remap(
            image,
            pixels[..., 1],
            pixels[..., 0],
            cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REPLICATE,
        )
    rows, columns = torch.minimum(target.round().clamp_min(0), grid - 1).long().unbind(-1)
    return dataclasses.replace(
        reference,
        features=FrameFeatures(tuple(layers), image if whole else None),
        labels=reference.labels[rows, columns],
    )


def marked_area(seed: Reference, channels: Mapping[int, int]) -> Tensor:
    """Where the objects marked in a seed frame, and a rim around them, are: (h, w) in [0, 1]."""
    mass = seed.labels[..., [channels[number] for number in seed.owners]].sum(dim=-1)
    return F.max_pool2d(mass[None], 2 * _RIM + 1, 1, _RIM)[0]


def together(one: Reference, two: Reference, channels: Mapping[int, int]) -> Reference:
    """Put the objects marked in a seed frame into another one, where they lie or where is room."""
    here, there = marked_area(one, channels), marked_area(two, channels)
    if 2 * torch.minimum(here, there).sum() > min(here.sum(), there.sum()):
        two = _shifted(two, here, there)
        there = marked_area(two, channels)
    taken = there > here

    def mix(first: Tensor, second: Tensor) -> Tensor:
        """Mix (heads, h', w', d) on a layer's grid."""
        mask = resize_labels(taken[None, ..., None].float(), first.shape[1:3], 'area')[0] > 0.5
        return torch.where(mask[None], second, first)

    layers = []
    for first, second in zip(one.features.layers, two.features.layers, strict=True):
        key = mix(first.key, second.key)
        tied = first.query is first.key
        layers.append(LayerFeatures(key if tied else mix(first.query, second.query), key))
    image = one.features.image
    if image is not None and two.features.image is not None:
        mask = cv2.resize(
            taken.cpu().numpy().astype(np.uint8),
            image.shape[1::-1],
            interpolation=cv2.INTER_NEAREST,
        )
        image = np.where(mask[..., None] > 0, two.features.image, image)
    return Reference(
        FrameFeatures(tuple(layers), image),
        torch.where(taken[..., None], two.labels, one.labels),
        one.owners | two.owners,
        one.first | two.first,
    )


def _shifted(seed: Reference, occupied: Tensor, area: Tensor) -> Reference:
    """Move a seed frame so that its objects' area (h, w) lies where least is occupied (h, w)."""
    rows, columns = (area > 0).nonzero().unbind(-1)
    top, left = int(rows.min()), int(columns.min())
    height, width = int(rows.max()) - top + 1, int(columns.max()) - left + 1
    room = F.avg_pool2d(occupied[None], (height, width), 1)[0]  # by first row and column
    row, column = divmod(int(room.argmin()), room.shape[1])
    shift = torch.tensor([top - row, left - column], device=area.device)
    return warp(seed, places_of(seed.labels) + shift, whole=True)


def thinned(reference: Reference, step: int) -> Reference:
    """Keep every ``step``-th token of each axis; labels are averaged."""
    features = reference.features.thinned(step)
    labels = resize_labels(reference.labels[None], features.grid, 'area')[0]
    return Reference(features, labels, reference.owners)


def padded(reference: Reference, grid: tuple[int, int]) -> Reference:
    """Add rows and columns of background that look like nothing, up to a grid."""
    height, width, _ = reference.labels.shape
    labels = F.pad(reference.labels, (0, 0, 0, grid[1] - width, 0, grid[0] - height))
    labels[height:, :, 0] = 1.0
    labels[:, width:, 0] = 1.0
    features = reference.features.padded(grid)
    return dataclasses.replace(reference, features=features, labels=labels)
