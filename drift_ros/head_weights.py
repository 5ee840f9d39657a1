# SPDX-License-Identifier: Apache-2.0
"""
Adaptive head weighting: which attention heads carry this object's mask, from its seed frame.

Source: DRIFT (arXiv 2511.19936), section 3, where the weights are found by gradient descent.
The objective ``|sum_h w_h P_h - Y|^2`` over ``w >= 0, sum w = 1`` is a small convex problem, and
is solved exactly here. ``P_h`` is the seed mask as head h alone propagates it: within the seed
frame, where a token does not see itself and its neighbours, and from the seed frame to altered
copies of it (mirrored and darker; moved and brighter).
"""

from collections.abc import Callable, Sequence
import math

import cv2
import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F

from drift_ros.config import TrackerConfig
from drift_ros.diffusion.features import FrameFeatures, LayerFeatures
from drift_ros.propagation import propagate_heads, resize_labels

# Tokens this close are hidden from a token that looks at its own frame.
_EXCLUDED = 1
# The moved copy: tokens of the finest grid, down and right.
_SHIFT = (2, 3)
# Every third token of each axis says enough for a few dozen unknowns.
_EVERY = 3


class HeadWeighting:
    """
    Weights over all heads of all layers, from the seed frames of the objects there are.

    Every object contributes its own least-squares system, so that objects can come and go.
    """

    def __init__(self, config: TrackerConfig) -> None:
        """Start without objects."""
        self._config = config
        self._systems: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self._sizes: tuple[int, ...] = ()

    def add(
        self,
        features: FrameFeatures,
        masks: Tensor,
        object_ids: Sequence[int],
        extract: Callable[[np.ndarray], FrameFeatures] | None = None,
    ) -> None:
        """
        Take in the seed frame of new objects.

        Parameters
        ----------
        features : FrameFeatures
        masks : Tensor
            (h, w, K) float32 in [0, 1] on the finest grid, share of each token covered.
        object_ids : sequence of int
            Ids of the K objects; one known already is replaced.
        extract : callable, optional
            Gives the features of an image like ``features.image``; used for the altered copies.

        """
        self._sizes = tuple(len(layer.query) for layer in features.layers)
        if sum(self._sizes) == 1:
            return  # nothing to choose
        looks = [(features, masks, _EXCLUDED)]
        if extract is not None and features.image is not None:
            looks += [(*copy, -1) for copy in _altered(features.image, masks, extract)]
        count = sum(self._sizes)
        grams = np.zeros((len(object_ids), count, count))
        sides = np.zeros((len(object_ids), count))
        for current, target, exclude in looks:
            heads = propagate_by_head(current, features, masks, self._config, exclude)
            columns = heads.flatten(1, 2).double()  # (heads, tokens, K)
            wanted = target[::_EVERY, ::_EVERY].flatten(0, 1).double().to(columns.device)
            for k in range(len(object_ids)):
                grams[k] += (columns[..., k] @ columns[..., k].T).cpu().numpy()
                sides[k] += (columns[..., k] @ wanted[:, k]).cpu().numpy()
        for k, object_id in enumerate(object_ids):
            self._systems[object_id] = (grams[k], sides[k])

    def remove(self, object_id: int) -> None:
        """Leave an object out from now on."""
        self._systems.pop(object_id, None)

    def clear(self) -> None:
        """Forget all objects."""
        self._systems.clear()

    def solve(self) -> tuple[Tensor, ...] | None:
        """Give the best weights, (heads,) float32 a layer, sum over all 1; None: no choice."""
        if not self._systems:
            return None
        gram = np.sum([system[0] for system in self._systems.values()], axis=0)
        side = np.sum([system[1] for system in self._systems.values()], axis=0)
        weights = torch.from_numpy(least_squares_on_simplex(gram, side)).float()
        return weights.split(self._sizes)


def propagate_by_head(
    features: FrameFeatures,
    reference: FrameFeatures,
    labels: Tensor,
    config: TrackerConfig,
    exclude: int = -1,
) -> Tensor:
    """
    Propagate labels (h, w, K) from one frame to another by every head of every layer alone.

    Returns (heads of all layers, h / 3, w / 3, K): each third token of the finest grid's axes.
    """
    grid = features.grid
    found = []
    for layer, key in zip(features.layers, (la.key for la in reference.layers), strict=True):
        size = tuple(layer.query.shape[1:3])
        radius = math.ceil(config.radius * size[0] / grid[0]) or None
        alone = propagate_heads(
            layer.query.float(),
            key[None],
            resize_labels(labels.to(layer.query.device)[None], size, 'area'),
            radius=radius,
            top_k=config.top_k,
            temperature=config.temperature,
            exclude=min(exclude, (radius or min(size)) - 1, min(size) - 2),
            every=_EVERY if size == grid else 1,
        )
        if size != grid:
            alone = resize_labels(alone, grid, 'bilinear')[:, ::_EVERY, ::_EVERY]
        found.append(alone)
    return torch.cat(found)


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
    A primal active set method (Lawson and Hanson's idea for non-negative least squares, with the
    sum as an equality): on the weights that are free, solve the equality-constrained problem; a
    weight that would turn negative is fixed at 0, the fixed weight whose release helps most is
    released, until none does. Equal heads make the problem singular; a ridge of 1e-10 of the mean
    diagonal picks one solution.

    """
    count = len(side)
    scale = float(np.trace(gram)) / count or 1.0
    gram = np.asarray(gram, np.float64) / scale + 1e-10 * np.eye(count)
    side = np.asarray(side, np.float64) / scale
    weights = np.zeros(count)
    weights[np.argmin(np.diag(gram) / 2 - side)] = 1.0
    free = weights > 0
    for _ in range(20 * count):
        wanted, multiplier = _on_free(gram, side, free)
        if wanted[free].min() >= 0:
            weights = wanted
            slack = gram @ weights - side + multiplier  # >= 0 on the fixed ones at the optimum
            slack[free] = 0.0
            if slack.min() >= -1e-10:
                break
            free[np.argmin(slack)] = True
            continue
        falling = free & (wanted < 0)
        ratio = np.full(count, np.inf)
        ratio[falling] = weights[falling] / (weights[falling] - wanted[falling])
        first = int(np.argmin(ratio))
        weights = weights + ratio[first] * (wanted - weights)
        weights[first] = 0.0
        free[first] = False
    weights = np.maximum(weights, 0.0)
    return weights / weights.sum()


def _on_free(gram: np.ndarray, side: np.ndarray, free: np.ndarray) -> tuple[np.ndarray, float]:
    """Solve for the free weights and the multiplier of their sum, the others being 0."""
    index = np.flatnonzero(free)
    size = len(index)
    system = np.ones((size + 1, size + 1))
    system[:size, :size] = gram[np.ix_(index, index)]
    system[size, size] = 0.0
    solution = np.linalg.solve(system, np.append(side[index], 1.0))
    weights = np.zeros(len(side))
    weights[index] = solution[:size]
    return weights, float(solution[size])


def _altered(
    image: np.ndarray, masks: Tensor, extract: Callable[[np.ndarray], FrameFeatures]
) -> list[tuple[FrameFeatures, Tensor]]:
    """Give altered copies of a frame: their features, and where the objects are in them."""
    # A mirrored frame's features, mirrored back, lie on the frame's own grid.
    mirrored = extract(np.ascontiguousarray(cv2.convertScaleAbs(image[:, ::-1], alpha=0.8)))
    back = FrameFeatures(
        tuple(LayerFeatures(la.query.flip(2), la.key.flip(2)) for la in mirrored.layers)
    )
    rows, columns = _SHIFT
    height, width = masks.shape[:2]
    down, right = rows * image.shape[0] // height, columns * image.shape[1] // width
    moved = cv2.copyMakeBorder(image, down, 0, right, 0, cv2.BORDER_REPLICATE)
    moved = moved[: image.shape[0], : image.shape[1]]
    bright = np.ascontiguousarray(cv2.convertScaleAbs(moved, alpha=1.1, beta=10))
    padded = F.pad(masks.permute(2, 0, 1)[None], (columns, 0, rows, 0), mode='replicate')
    moved_masks = padded[0, :, :height, :width].permute(1, 2, 0)
    return [(back, masks), (extract(bright), moved_masks)]
