# SPDX-License-Identifier: Apache-2.0
"""
Masks from clicks, by the frame's own attention.

DRIFT's first figure makes a mask of one point: what a token attends to within its own frame is,
coarsely, the thing it belongs to. Here that is a random walk over the tokens: from a clicked one
along the self-attention of neighbours, restarted now and then (personalised PageRank, solved as
one sparse system). How far the thing goes the walk does not say, so that maps of several sizes
are taken, each is refined at the picture's edges by the colour solver, and the best one is chosen:
its outline lies on strong edges, its colours are not those around it, the walk drops sharply where
it ends. That sum, fitted to true overlaps, is the score.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import sparse
from scipy.sparse import linalg

from drift_ros.engine.frame_features import FrameFeatures, LayerFeatures
from drift_ros.refinement.colour import ColourSolver, Surroundings
from drift_ros.refinement.histogram import colour_bins, COLOURS, shares_of
from drift_ros.refinement.window import Window

Point = tuple[float, float, bool]

_RADIUS = 4
"""Tokens attend to others so far away."""
_TEMPERATURE = 2.3
"""Divides the network's own logits: by themselves they tie a token to few others."""
_RESTART = 0.01
_SIZES = (0.005, 0.01, 0.02, 0.035, 0.055, 0.08, 0.12, 0.18, 0.26)
"""Shares of the frame that are tried."""
_SIDE = 240
"""Candidates are judged on the frame with so many pixels on its longer side."""
_USUAL, _SPREAD = 0.06, 1.0
"""What people point at takes about this share of a picture, and its logarithm's deviation."""
_WRONG_POINT = 10.0
_LEVEL, _SLOPE = 8.9, 0.4
"""Of the logistic function that makes an expected overlap of a candidate's merit."""


@dataclass(frozen=True)
class Candidate:
    """
    A mask that clicks may mean.

    Attributes
    ----------
    mask : np.ndarray
        (H, W) bool.
    merit : float
        How good it looks; compares candidates of one prompt.

    """

    mask: np.ndarray
    merit: float

    @property
    def score(self) -> float:
        """Intersection over union with the truth that is to be expected, 0 to 1."""
        return float(1.0 / (1.0 + np.exp(-_SLOPE * (self.merit - _LEVEL))))


def mark(
    frame: np.ndarray,
    points: Sequence[Point],
    extract: Callable[[np.ndarray], FrameFeatures],
) -> Candidate:
    """
    Give the mask that clicks most probably mean.

    Parameters
    ----------
    frame : np.ndarray
        (H, W, 3) uint8 RGB.
    points : sequence of (x, y, positive)
        Pixels in the frame, at least one of them positive.
    extract : callable
        Gives the features of a frame.

    Raises
    ------
    FrameError
        The features are not finite.

    """
    features = extract(frame)
    features.check()
    walk = spread(features, frame.shape[:2], points)
    eye = _Eye(frame, walk, points)
    tried = [eye.look(coarse) for coarse in coarse_masks(walk, frame.shape[:2], points)]
    return max(tried, key=lambda candidate: candidate.merit)


def spread(features: FrameFeatures, size: tuple[int, int], points: Sequence[Point]) -> np.ndarray:
    """
    Walk from each clicked token along the frame's own attention.

    Parameters
    ----------
    features : FrameFeatures
    size : tuple of int
        (H, W) of the frame.
    points : sequence of (x, y, positive)

    Returns
    -------
    np.ndarray
        (h, w) float64 in (0, 1], on the finest token grid: how often a walk is at each token.

    """
    rows, columns = features.grid
    weights = attention_graph(finest(features))
    leak = np.full((rows, columns), _RESTART)
    starts = []
    for (row, column), positive in _tokens(points, size, (rows, columns)):
        if positive:
            starts.append((row, column))
        else:
            near = slice(max(row - 1, 0), row + 2), slice(max(column - 1, 0), column + 2)
            leak[near] += 4.0 * _RADIUS**2
    diagonal = np.asarray(weights.sum(axis=1)).ravel() + leak.ravel()
    system, inverse = sparse.diags(diagonal) - weights, sparse.diags(1.0 / diagonal)
    reached = np.zeros((rows, columns))
    for token in dict.fromkeys(starts):
        start = np.zeros((rows, columns))
        start[token] = 1.0
        found, _ = linalg.cg(system, start.ravel(), rtol=1e-4, maxiter=300, M=inverse)
        # each point has its own: one in a small part must not hide what another one says
        reached = np.maximum(reached, (found / found.max()).reshape(rows, columns))
    return np.maximum(reached, 1e-12)


def finest(features: FrameFeatures) -> LayerFeatures:
    """Give the first layer on the finest token grid."""
    return next(item for item in features.layers if tuple(item.query.shape[1:3]) == features.grid)


def attention_graph(layer: LayerFeatures) -> sparse.csr_matrix:
    """
    Give a layer's self-attention between near tokens as a symmetric graph (n, n).

    A weight is 1 between tokens that attend to each other as to themselves; heads are averaged.
    """
    query, key = layer.query.float().cpu().numpy(), layer.key.float().cpu().numpy()
    heads, height, width, dim = query.shape
    scale = 1.0 / (np.sqrt(dim) * _TEMPERATURE)
    own = np.einsum('hyxd,hyxd->hyx', query, key)
    index = np.arange(height * width).reshape(height, width)
    one, other, values = [], [], []
    for down in range(_RADIUS + 1):
        for right in range(-_RADIUS, _RADIUS + 1):
            if (down == 0 and right <= 0) or down >= height or abs(right) >= width:
                continue
            here = slice(0, height - down), slice(max(0, -right), width - max(0, right))
            there = slice(down, height), slice(max(0, right), width - max(0, -right))
            a, b = (slice(None), *here), (slice(None), *there)
            logits = 0.5 * (
                np.einsum('hyxd,hyxd->hyx', query[a], key[b])
                + np.einsum('hyxd,hyxd->hyx', query[b], key[a])
                - own[a]
                - own[b]
            )
            one.append(index[here].ravel())
            other.append(index[there].ravel())
            values.append(np.exp(np.minimum(scale * logits, 0.0)).mean(axis=0).ravel())
    if not values:
        return sparse.csr_matrix((height * width, height * width))
    i, j, v = map(np.concatenate, (one, other, values))
    graph = sparse.coo_matrix((v, (i, j)), shape=(index.size, index.size))
    return (graph + graph.T).tocsr()


def coarse_masks(
    walk: np.ndarray, size: tuple[int, int], points: Sequence[Point]
) -> list[np.ndarray]:
    """Give, for each size that is tried, what the walk (h, w) reaches from the points: uint8."""
    ordered = np.sort(walk.ravel())[::-1]
    starts = [token for token, positive in _tokens(points, size, walk.shape) if positive]
    masks = []
    for share in _SIZES:
        least = ordered[min(max(round(share * walk.size), 1), walk.size - 1)]
        _, pieces = cv2.connectedComponents((walk > least).astype(np.uint8), connectivity=8)
        wanted = {int(pieces[token]) for token in starts} - {0}
        mask = np.isin(pieces, list(wanted)).astype(np.uint8)
        for token in starts:
            mask[token] = 1
        masks.append(mask)
    return masks


def _tokens(
    points: Sequence[Point], size: tuple[int, int], grid: tuple[int, ...]
) -> list[tuple[tuple[int, int], bool]]:
    return [
        ((int(y * grid[0] / size[0]), int(x * grid[1] / size[1])), positive)
        for x, y, positive in points
    ]


class _Eye:
    """Refines candidates in one frame and judges them."""

    def __init__(self, frame: np.ndarray, walk: np.ndarray, points: Sequence[Point]) -> None:
        self._frame, self._points = frame, points
        self._walk = np.log(walk)
        self._small = Window.whole(frame.shape).reduced_to_side(_SIDE)
        part = self._small.crop(frame)
        self._bins = colour_bins(part)
        lab = cv2.cvtColor(part, cv2.COLOR_RGB2LAB).astype(np.float32)
        slopes = sum((cv2.Sobel(lab, cv2.CV_32F, *way) ** 2).sum(-1) for way in ((1, 0), (0, 1)))
        ranks = np.empty(slopes.size, np.float32)
        ranks[np.argsort(slopes, axis=None)] = np.linspace(0, 1, slopes.size, dtype=np.float32)
        self._edges = ranks.reshape(slopes.shape)

    def look(self, coarse: np.ndarray) -> Candidate:
        """Take a coarse mask (h, w) uint8 to the edges of the frame, and judge the result."""
        mask = self._refined(coarse)
        return Candidate(mask, self._merit(mask))

    def _refined(self, coarse: np.ndarray) -> np.ndarray:
        height, width = self._frame.shape[:2]
        soft = cv2.resize(
            coarse.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR
        )
        around = Window.around(soft > 0.5, self._frame.shape)
        if around is None:
            return soft > 0.5
        seen = Surroundings.of(self._frame, [around])
        pixels = seen.grid.pixels(seen.parts[0])
        blurred = cv2.GaussianBlur(
            (soft > 0.5).astype(np.float32), (0, 0), 0.007 * max(width, height)
        )
        prior = seen.window.read(0.8 * blurred + 0.1, pixels)
        solved = ColourSolver(weight=1.0, rounds=3).solve(seen, [prior], [None])[0]
        area, values = seen.window.enlarge_piece(solved, pixels)
        mask = np.zeros((height, width), bool)
        mask[area] = values > 0.5
        return mask

    def _merit(self, mask: np.ndarray) -> float:
        share = float(mask.mean())
        small = (self._small.crop(mask.astype(np.float32)) > 0.5).astype(np.uint8)
        if small.sum() < 12 or share > 0.95:
            return -1e3
        inside = small > 0
        outline = cv2.morphologyEx(small, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
        seen = np.zeros_like(outline)
        seen[2:-2, 2:-2] = outline[2:-2, 2:-2]
        edge = float(self._edges[seen].mean()) if seen.any() else 0.0
        cut_off = 1.0 - seen.sum() / max(outline.sum(), 1)
        ring = _ring(small, 4)
        colours = [
            shares_of(np.bincount(self._bins[area], minlength=COLOURS).astype(np.float32))
            for area in (inside, ring)
        ]
        apart = 0.5 * float(np.abs(colours[0] - colours[1]).sum())
        rows, columns = self._walk.shape
        tokens = cv2.resize(mask.astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA)
        within = tokens > 0.5
        beyond = _ring(within.astype(np.uint8), 2)
        drop = 0.0
        if within.any() and beyond.any():
            drop = float(self._walk[within].mean() - self._walk[beyond].mean())
        usual = -0.5 * (np.log(max(share, 1e-6) / _USUAL) / _SPREAD) ** 2
        wrong = sum(bool(mask[int(y), int(x)]) != positive for x, y, positive in self._points)
        merit = 8.0 * edge + 4.0 * apart + drop - 2.0 * cut_off + usual - _WRONG_POINT * wrong
        return float(merit)


def _ring(mask: np.ndarray, least: int) -> np.ndarray:
    """Give what lies around a mask (h, w) uint8, half its radius wide: bool."""
    reach = max(int(0.5 * np.sqrt(mask.sum() / np.pi)), least)
    square = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach + 1, 2 * reach + 1))
    return (cv2.dilate(mask, square) > 0) & (mask == 0)
