# SPDX-License-Identifier: Apache-2.0
"""
Adaptive head weighting: which attention heads carry this object's mask, from its seed frame.

Source: DRIFT (arXiv 2511.19936), section 3, where the weights are found by gradient descent.
The objective ``sum_x |sum_h w_h P_h(x) - Y(x)|^2`` over ``w >= 0, sum w = 1`` is a small convex
problem, and is solved exactly here. ``P_h`` is the seed mask as head h alone propagates it: within
the seed frame, where a token does not see itself and its neighbours, and from the seed frame to
altered copies of it (mirrored and darker; moved and brighter).

A few dozen unknowns do not need every token x. Tokens out of reach of the object add nothing to
the objective. Of the others cells of 2 x 2 tokens are sampled, the more of them the nearer to the
object's boundary, where heads differ most. Each counts by the inverse of its chance to be chosen,
so that the system estimates that of all tokens.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
import math

import cv2
import numpy as np
from scipy.optimize import nnls
import torch
from torch import Tensor
import torch.nn.functional as F

from drift_ros.engine.config import TrackerConfig
from drift_ros.engine.frame_features import FrameFeatures
from drift_ros.engine.kernel import mix, resize_labels
from drift_ros.engine.protocols import FeatureExtractor

# Tokens this close are hidden from a token that looks at its own frame.
_EXCLUDED = 1
# The moved copy: tokens of the finest grid, down and right.
_SHIFT = (2, 3)
# Side of a cell in tokens: its tokens share one window of keys.
_CELL = 2
# Weight of the equation that weights sum to 1.
_SUM = 1e3
# Cells sampled for all objects of a seed together, and for one of them at least.
_CELLS, _LEAST = 64, 16


@dataclass(frozen=True)
class Look:
    """
    A frame in which the seed mask is to be found again.

    Attributes
    ----------
    queries : tuple of Tensor
        (heads, h, w, d) a layer.
    masks : Tensor
        (h, w, K) float32 in [0, 1]: where the K objects are, on the finest grid.
    exclude : int
        Keys at most this many tokens away are hidden; -1: none.

    """

    queries: tuple[Tensor, ...]
    masks: Tensor
    exclude: int = -1


@dataclass(frozen=True)
class HeadWeighting:
    """
    Weights over all heads of all layers, from the seed frames of the objects there are.

    A value: every change gives a new one. Every object contributes its own least-squares system,
    so that objects can come and go.

    Attributes
    ----------
    config : TrackerConfig
    cells : int
        Sampled in a seed frame.
    systems : mapping
        By object id, ``A' A`` (heads, heads) and ``A' y`` (heads,) float64.
    sizes : tuple of int
        Heads of each layer.

    """

    config: TrackerConfig
    cells: int = _CELLS
    systems: Mapping[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    sizes: tuple[int, ...] = ()

    def add(
        self,
        features: FrameFeatures,
        masks: Tensor,
        object_ids: Sequence[int],
        extractor: FeatureExtractor | None = None,
    ) -> 'HeadWeighting':
        """
        Take in the seed frame of some objects; the same unless heads are weighed adaptively.

        Parameters
        ----------
        features : FrameFeatures
        masks : Tensor
            (h, w, K) float32 in [0, 1] on the finest grid, share of each token covered.
        object_ids : sequence of int
            Ids of the K objects; one known already is replaced.
        extractor : FeatureExtractor, optional
            Gives the features of altered copies of ``features.image``, where it can.

        """
        sizes = tuple(len(layer.query) for layer in features.layers)
        if self.config.experimental.head_weighting != 'adaptive' or sum(sizes) == 1:
            return self  # nothing to choose
        looks = [Look(tuple(layer.query for layer in features.layers), masks, _EXCLUDED)]
        extract = getattr(extractor, 'extract_resized', None)
        if extract is not None and features.image is not None:
            looks += _altered(features.image, masks, extract)
        count = max(self.cells // len(object_ids), _LEAST)
        systems = dict(self.systems)
        for k, object_id in enumerate(object_ids):
            targets = torch.stack([look.masks[..., k] for look in looks]).cpu()  # (looks, h, w)
            places, shares = choose_cells(targets.numpy(), self._reach(features), count)
            found = propagate_by_head(looks, features, masks[..., k : k + 1], places, self.config)
            rows, columns = _tokens(places)
            columns_of = found[..., 0].double().cpu().numpy() * shares  # (heads, looks, n, 2, 2)
            wanted = targets.numpy()[:, rows, columns] * shares
            matrix = columns_of.reshape(len(found), -1)
            systems[object_id] = (matrix @ matrix.T, matrix @ wanted.ravel())
        return HeadWeighting(self.config, self.cells, systems, sizes)

    def remove(self, object_id: int) -> 'HeadWeighting':
        """Leave an object out from now on."""
        systems = {key: system for key, system in self.systems.items() if key != object_id}
        return HeadWeighting(self.config, self.cells, systems, self.sizes)

    @cached_property
    def weights(self) -> tuple[Tensor, ...] | None:
        """The best weights, (heads,) float32 a layer, sum over all 1; None: no choice."""
        if not self.systems:
            return None
        gram = np.sum([system[0] for system in self.systems.values()], axis=0)
        side = np.sum([system[1] for system in self.systems.values()], axis=0)
        weights = torch.from_numpy(least_squares_on_simplex(gram, side)).float()
        return weights.split(self.sizes)

    def _reach(self, features: FrameFeatures) -> int:
        """Tokens of the finest grid from which a label can come to a token; 0: any number."""
        radius = self.config.kernel.radius
        if not radius:
            return 0
        steps = [-(-features.grid[0] // layer.query.shape[1]) for layer in features.layers]
        return radius + 2 * max(steps)  # windows and interpolation are rounded up


def choose_cells(masks: np.ndarray, reach: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """
    Sample cells of 2 x 2 tokens, the more of them the nearer to the boundary of an object.

    Parameters
    ----------
    masks : np.ndarray
        (looks, h, w) float in [0, 1]: the object in each look.
    reach : int
        Tokens further than this from the object are left out; 0: none is.
    count : int
        About how many to choose; all there are if they are fewer.

    Returns
    -------
    tuple
        First rows and columns (n, 2) int64, the same for the same masks; and (n, 2, 2) float64:
        the root of how many tokens each token of a cell stands for.

    """
    size = masks.shape[1:]
    signed = np.full(size, np.inf)  # to the nearest boundary of a look; below 0 inside
    for mask in masks:
        pixels = (mask >= 0.5).astype(np.uint8)
        inside, outside = (
            cv2.distanceTransform(side, cv2.DIST_C, 3) for side in (pixels, 1 - pixels)
        )
        away = np.where(pixels > 0, 1.0 - inside, outside)
        signed = np.where(np.abs(away) < np.abs(signed), away, signed)
    near = np.ones(size, bool)
    if reach:
        covered = (masks > 0).any(axis=0).astype(np.uint8)
        near = cv2.dilate(covered, np.ones((2 * reach + 1, 2 * reach + 1), np.uint8)) > 0
    # Where the side is odd, the last cell overlaps its neighbour.
    starts = [np.minimum(np.arange(0, side, _CELL), side - _CELL) for side in size]
    firsts = np.stack(np.meshgrid(*starts, indexing='ij'), axis=-1).reshape(-1, 2)
    rows, columns = _tokens(firsts)
    once = rows // _CELL == -(-firsts[:, 0] // _CELL)[:, None, None]
    once = once & (columns // _CELL == -(-firsts[:, 1] // _CELL)[:, None, None])
    distance = signed[rows, columns].mean(axis=(1, 2))
    score = near[rows, columns].any(axis=(1, 2)) / (2.0 + np.abs(distance))
    count = min(count, int(np.count_nonzero(score)))
    chance = np.zeros(len(score))
    while (sure := count - np.count_nonzero(chance == 1.0)) > 0:
        rest = np.where(chance == 1.0, 0.0, score)
        chance = np.where(chance == 1.0, 1.0, np.minimum(sure * rest / rest.sum(), 1.0))
        if np.isclose(chance.sum(), count):
            break
    # At even steps along the chances, from the inside out.
    order = np.lexsort((np.arange(len(score)), np.round(distance)))
    steps = np.floor(np.cumsum(chance[order]) + 0.5 - 1e-9)
    chosen = order[np.diff(steps, prepend=0.0) > 0]
    return firsts[chosen], np.sqrt(once[chosen] / chance[chosen, None, None])


def _tokens(places: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Rows (n, 2, 1) and columns (n, 1, 2) of the tokens of cells at (n, 2)."""
    inside = np.arange(_CELL)
    return places[:, 0, None, None] + inside[:, None], places[:, 1, None, None] + inside


def propagate_by_head(
    looks: Sequence[Look],
    reference: FrameFeatures,
    labels: Tensor,
    places: np.ndarray,
    config: TrackerConfig,
) -> Tensor:
    """
    Propagate a frame's labels (h, w, C) to some cells of others by every head alone.

    ``places`` (n, 2) are first rows and columns on the finest grid. Returns (heads of all layers,
    looks, n, 2, 2, C) float32, what :func:`drift_ros.engine.kernel_fast.propagate` gives with the
    weight of one head.
    """
    at = torch.from_numpy(places).to(labels.device)
    grid = reference.grid
    found = []
    for index, layer in enumerate(reference.layers):
        size = (layer.key.shape[1], layer.key.shape[2])
        (rows, of_rows), (columns, of_columns) = (
            _block(at[:, axis], grid[axis], size[axis]) for axis in range(2)
        )
        alone = _attend_alone(
            [look.queries[index] for look in looks],
            layer.key,
            resize_labels(labels[None], size, 'area')[0],
            (rows, columns),
            math.ceil(config.kernel.radius * size[0] / grid[0]) or max(size),
            [look.exclude for look in looks],
            config,
        )
        found.append(torch.einsum('hlnabc,nya,nxb->hlnyxc', alone, of_rows, of_columns))
    return torch.cat(found)


def _block(first: Tensor, fine: int, side: int) -> tuple[Tensor, Tensor]:
    """
    Give the tokens of a layer, along one axis, of which those of cells are interpolated.

    Positions (n, k) int64 and shares (n, 2, k) float32, as bilinear interpolation from ``side``
    to ``fine`` tokens takes them, for cells whose first tokens are (n,).
    """
    inside = torch.arange(_CELL, device=first.device)
    at = (first[:, None] + inside + 0.5) * (side / fine) - 0.5
    at = at.clamp(0, side - 1)  # (n, 2)
    length = _CELL if side == fine else min(_CELL + 1, side)
    start = at[:, 0].floor().long().clamp_max(side - length)
    tokens = start[:, None] + torch.arange(length, device=first.device)
    return tokens, (1.0 - (at[..., None] - tokens[:, None]).abs()).clamp_min(0.0)


def _attend_alone(
    queries: Sequence[Tensor],
    key: Tensor,
    labels: Tensor,
    blocks: tuple[Tensor, Tensor],
    radius: int,
    excludes: Sequence[int],
    config: TrackerConfig,
) -> Tensor:
    """
    Give (heads, looks, n, a, b, C): labels as each head alone brings them to n blocks of tokens.

    ``blocks`` are rows (n, a) and columns (n, b). A block's queries, of all looks, share one
    window of keys, so that all there is to do for a layer is one batched product.
    """
    size = labels.shape[:2]
    spans, away = [], []
    for block, side in zip(blocks, size, strict=True):
        length = min(block.shape[1] + 2 * radius, side)
        start = (block[:, 0] - radius).clamp(0, side - length)
        spans.append(start[:, None] + torch.arange(length, device=block.device))
        away.append((block[:, :, None] - spans[-1][:, None]).abs())  # (n, a, window)
    tokens = (blocks[0][:, :, None] * size[1] + blocks[1][:, None]).flatten(1)  # (n, a * b)
    window = (spans[0][:, :, None] * size[1] + spans[1][:, None]).flatten(1)  # (n, m)
    distance = torch.maximum(away[0][:, :, None, :, None], away[1][:, None, :, None])
    distance = distance.flatten(3).flatten(1, 2)  # (n, a * b, m)
    hidden = torch.cat(
        [
            (distance > radius) | (distance <= min(exclude, radius - 1, min(size) - 2))
            for exclude in excludes
        ],
        dim=1,
    )
    scale = key.shape[-1] ** -0.5 / config.kernel.temperature
    query = torch.cat([each.flatten(1, 2)[:, tokens] for each in queries], dim=2) * scale
    keys = key.flatten(1, 2).index_select(1, window.flatten()).unflatten(1, window.shape)
    logits = query.float() @ keys.float().transpose(2, 3)
    logits.masked_fill_(hidden, float('-inf'))  # (heads, n, looks * a * b, m)
    kept = min(config.kernel.top_k or logits.shape[-1], logits.shape[-1])
    best, place = logits.topk(kept, dim=-1, sorted=False)
    seen = window[None, :, None].expand(*logits.shape[:3], -1).gather(-1, place)
    attended = mix(best, seen, labels.flatten(0, 1))
    shape = (len(queries), blocks[0].shape[1], blocks[1].shape[1])
    return attended.unflatten(2, shape).movedim(2, 1)


def least_squares_on_simplex(gram: np.ndarray, side: np.ndarray) -> np.ndarray:
    """
    Minimise ``w' gram w / 2 - side' w`` over ``w >= 0, sum w = 1``.

    Parameters
    ----------
    gram : np.ndarray
        (n, n) symmetric, positive semidefinite: ``A' A`` of the least-squares problem.
    side : np.ndarray
        (n,): ``A' y``.

    Returns
    -------
    np.ndarray
        (n,) float64; weights that do not help are exactly 0.

    Notes
    -----
    With ``gram = A' A``, from its eigenvectors, this is the non-negative least-squares problem of
    ``A w``, whose sum is one more equation, of so much weight that what is left of it goes in the
    last digits. Dependent heads make it singular: directions below 1e-10 of the largest are left
    out, and no more heads are used than there are others.

    """
    values, vectors = np.linalg.eigh(gram)
    kept = values > 1e-10 * max(values[-1], 1e-300)
    root = np.sqrt(values[kept]) / np.sqrt(values[-1] or 1.0)
    matrix = root[:, None] * vectors[:, kept].T
    wanted = vectors[:, kept].T @ side / (values[-1] or 1.0) / root
    sums = np.full(len(side), _SUM)
    weights, _ = nnls(np.vstack([matrix, sums]), np.append(wanted, _SUM), maxiter=50 * len(side))
    return weights / weights.sum()


def _altered(
    image: np.ndarray, masks: Tensor, extract: Callable[[np.ndarray], FrameFeatures]
) -> list[Look]:
    """Look at altered copies of a frame."""
    # A mirrored frame's queries, mirrored back, lie on the frame's own grid.
    mirrored = extract(np.ascontiguousarray(cv2.convertScaleAbs(image[:, ::-1], alpha=0.8)))
    back = Look(tuple(layer.query.flip(2) for layer in mirrored.layers), masks)
    rows, columns = _SHIFT
    height, width = masks.shape[:2]
    down, right = rows * image.shape[0] // height, columns * image.shape[1] // width
    moved = cv2.copyMakeBorder(image, down, 0, right, 0, cv2.BORDER_REPLICATE)
    moved = moved[: image.shape[0], : image.shape[1]]
    bright = extract(np.ascontiguousarray(cv2.convertScaleAbs(moved, alpha=1.1, beta=10)))
    padded = F.pad(masks.permute(2, 0, 1)[None], (columns, 0, rows, 0), mode='replicate')
    moved_masks = padded[0, :, :height, :width].permute(1, 2, 0)
    return [back, Look(tuple(layer.query for layer in bright.layers), moved_masks)]
