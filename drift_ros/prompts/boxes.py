# SPDX-License-Identifier: Apache-2.0
"""
What in a box is the object, by the network's queries.

GrabCut knows colours only. Here its cut is a first guess: a regression on the queries of the
frame's tokens, as the online prompt makes one, tells what is like the cut from what lies around
the box, and a random walk along the frame's self-attention lets neighbours agree: outside the box
there is none of the object. Both again, from what came out, a few times.
"""

import cv2
import numpy as np
from scipy import sparse
from scipy.sparse import linalg
import torch

from drift_ros.engine.frame_features import FrameFeatures
from drift_ros.engine.prompt import describe, PromptOptions, waves
from drift_ros.prompts.clicks import attention_graph, finest

Box = tuple[float, float, float, float]

_ROUNDS = 3
_RIDGE = 0.01
_STEEP = 4.0
"""Log-odds of a token for each unit of the regression, which is 1 for the object, -1 else."""
_AROUND = 1.0
"""Of the box's longer side: what lies so far around it is background."""
_MIDDLE = 0.75
"""Weight of where in boxes objects are, against the cut."""
_OWN = 0.1
"""Weight of what a token says itself, against each of its neighbours."""
_SURE = 1e3
"""The same where it is known."""
_FEWEST = 16
"""Tokens in a box, and around it."""


def in_boxes(box: Box, size: tuple[int, int], grid: tuple[int, ...]) -> np.ndarray:
    """
    Say where in boxes objects are: likely in the middle, unlikely in the corners, not outside.

    Parameters
    ----------
    box : tuple of float
        (x_min, y_min, x_max, y_max) in pixels of a frame.
    size : tuple of int
        (H, W) of the frame.
    grid : tuple of int
        (h, w): so many places across it.

    Returns
    -------
    np.ndarray
        (h, w) float32 in [0, 1].

    """
    y, x = ((np.arange(n) + 0.5) * (side / n) for n, side in zip(grid, size, strict=True))
    # from -1 to 1 across the box
    across = ((2 * x - box[0] - box[2]) / (box[2] - box[0]))[None]
    down = ((2 * y - box[1] - box[3]) / (box[3] - box[1]))[:, None]
    likely = np.clip(0.85 - 0.45 * (across**2 + down**2), 0.05, 0.95)
    likely[(np.abs(across) > 1) | (np.abs(down) > 1)] = 0.0
    return likely.astype(np.float32)


def likely(features: FrameFeatures, box: Box, cut: np.ndarray) -> np.ndarray | None:
    """
    Say which tokens of a frame are the object in a box.

    Parameters
    ----------
    features : FrameFeatures
    box : tuple of float
        (x_min, y_min, x_max, y_max) in pixels.
    cut : np.ndarray
        (H, W) bool, a first guess.

    Returns
    -------
    np.ndarray, optional
        (h, w) float32 in [0, 1] on the finest token grid. None where there are too few tokens in
        the box, or around it, to tell.

    """
    grid, size = features.grid, (cut.shape[0], cut.shape[1])
    guess = cv2.resize(cut.astype(np.float32), grid[::-1], interpolation=cv2.INTER_AREA)
    middle = in_boxes(box, size, grid)
    inside = middle > 0.0
    reach = _AROUND * max(box[2] - box[0], box[3] - box[1])
    wide = (box[0] - reach, box[1] - reach, box[2] + reach, box[3] + reach)
    outside = (in_boxes(wide, size, grid) > 0.0) & ~inside
    if min(np.count_nonzero(inside), np.count_nonzero(outside)) < _FEWEST:
        return None
    prior = np.clip(_MIDDLE * middle + (1.0 - _MIDDLE) * guess, 1e-3, 1.0 - 1e-3)
    found = np.where(inside, 0.5 * (guess + middle), 0.0)
    tokens = waves(describe(features).flatten(0, 1).cpu(), PromptOptions())  # (n, D)
    graph = attention_graph(finest(features))
    for _ in range(_ROUNDS):
        odds = np.exp(_STEEP * _regressed(tokens, found, inside | outside)).reshape(grid)
        odds *= prior / (1.0 - prior)
        own = np.where(inside, odds / (1.0 + odds), 0.0)
        found = _agreed(graph, own, np.where(inside, _OWN, _SURE))
        # where nearly all neighbours lie outside, little of it is left everywhere
        found = np.where(inside, np.clip(found / max(found[inside].max(), 1e-6), 0.0, 1.0), 0.0)
    return found.astype(np.float32)


def _regressed(tokens: torch.Tensor, share: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """Tell tokens (n, D) that are the object by shares (h, w) from the others asked: (n,)."""
    weights = []
    for side in (share, 1.0 - share):
        weight = torch.from_numpy(np.where(asked, side, 0.0).ravel()).float()
        weights.append(weight / weight.sum().clamp_min(1e-6))
    tokens = torch.nn.functional.pad(tokens, (0, 1), value=1.0)
    moments = tokens.T @ (tokens * (weights[0] + weights[1])[:, None])
    moments += _RIDGE * torch.eye(len(moments))
    right = tokens.T @ (weights[0] - weights[1])
    return (tokens @ torch.linalg.solve(moments, right)).double().numpy()


def _agreed(graph: sparse.csr_matrix, own: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Let neighbours in a graph (n, n) agree on values (h, w) with weights of their own."""
    diagonal = np.asarray(graph.sum(axis=1)).ravel() + weight.ravel()
    found, _ = linalg.cg(
        sparse.diags(diagonal) - graph,
        (weight * own).ravel(),
        rtol=1e-4,
        maxiter=300,
        M=sparse.diags(1.0 / diagonal),
    )
    return np.asarray(found).reshape(own.shape)
