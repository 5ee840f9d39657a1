# SPDX-License-Identifier: Apache-2.0
"""Edge-aware smoothing without weights."""

from collections.abc import Iterable, Mapping
from typing import Protocol

import cv2
import numpy as np
from scipy import sparse


class Smoother(Protocol):
    """A refiner without a network; see :class:`drift_ros.refinement.Refiner`."""

    def refine(self, frame: np.ndarray, coarse: Mapping[int, np.ndarray]) -> 'Smoothed':
        """Look at a frame."""

    def remember(self, frame: np.ndarray, masks: Mapping[int, np.ndarray]) -> None:
        """Look at new objects in their seed frame."""

    def forget(self, object_ids: Iterable[int]) -> None:
        """Let go of what was remembered of objects."""


class Stateless:
    """A refiner that looks at each frame alone."""

    def remember(self, frame: np.ndarray, masks: Mapping[int, np.ndarray]) -> None:
        """Remember nothing."""

    def forget(self, object_ids: Iterable[int]) -> None:
        """Forget nothing."""


class OnTop:
    """A refiner on top of a smoother, which renders what it leaves and does the remembering."""

    _smooth: Smoother

    def remember(self, frame: np.ndarray, masks: Mapping[int, np.ndarray]) -> None:
        """Let the smoother look at new objects in their seed frame."""
        self._smooth.remember(frame, masks)

    def forget(self, object_ids: Iterable[int]) -> None:
        """Let the smoother forget objects."""
        self._smooth.forget(object_ids)


class Upsampling(Stateless):
    """No refinement: bilinear interpolation from the token grid."""

    def refine(self, frame: np.ndarray, coarse: Mapping[int, np.ndarray]) -> 'Smoothed':
        """Keep the probabilities as they are."""
        return Smoothed(frame.shape[:2], coarse)


class GuidedFilter(Stateless):
    """Guided image filter (He, Sun, Tang 2010), OpenCV's, with the frame as its guide."""

    def __init__(self, radius: float = 1 / 60, smoothness: float = 5.0) -> None:
        """
        Set the filter.

        Parameters
        ----------
        radius : float
            Half width of the filter's window, in shares of the frame's shorter side.
        smoothness : float
            Grey levels (of 255) below which a difference does not count as an edge.

        """
        self._radius = radius
        self._epsilon = smoothness**2

    def refine(self, frame: np.ndarray, coarse: Mapping[int, np.ndarray]) -> 'Smoothed':
        """Compute the guide's statistics once for all objects."""
        radius = max(round(self._radius * min(frame.shape[:2])), 1)
        return _Guided(
            frame.shape[:2], coarse, cv2.ximgproc.createGuidedFilter(frame, radius, self._epsilon)
        )


class BilateralSolver(Stateless):
    """
    Fast bilateral solver (Barron and Poole 2016).

    The result is smooth where the frame is and close to the coarse probability where that is
    certain. It is found on a bilateral grid of the frame, reduced to ``side`` pixels at its
    shorter side.
    """

    def __init__(self, side: int = 200) -> None:
        """
        Set the solver.

        Parameters
        ----------
        side : int
            Shorter side of the reduced frame in pixels.

        """
        self._side = side

    def refine(self, frame: np.ndarray, coarse: Mapping[int, np.ndarray]) -> 'Smoothed':
        """Build the grid once for all objects."""
        height, width = frame.shape[:2]
        scale = min(self._side / min(height, width), 1.0)
        size = (round(scale * width), round(scale * height))
        small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA)
        return _Solved((height, width), coarse, BilateralGrid(small))


class BilateralGrid:
    """Vertices stand for pixels near each other in place and colour; smooths over a frame."""

    def __init__(
        self,
        frame: np.ndarray,
        *,
        place: float = 6.0,
        luma: float = 9.0,
        chroma: float = 5.0,
        smoothness: float = 16.0,
    ) -> None:
        """
        Build the grid of a frame.

        Parameters
        ----------
        frame : np.ndarray
            (h, w, 3) uint8 RGB.
        place, luma, chroma : float
            Size of a grid cell in pixels and in grey levels (of 255).
        smoothness : float
            Weight of smoothness against closeness.

        """
        cell = (place, place, luma, chroma, chroma)
        self.size = (frame.shape[1], frame.shape[0])
        colours = cv2.cvtColor(frame, cv2.COLOR_RGB2YCrCb).astype(np.float32)
        rows, columns = np.mgrid[: frame.shape[0], : frame.shape[1]].astype(np.float32)
        places = np.stack([columns, rows, *np.moveaxis(colours, -1, 0)], -1).reshape(-1, 5)
        cells = (places / np.array(cell, np.float32)).astype(np.int64)
        # one number a cell, with room for neighbours on both sides
        extent = cells.max(0) + 3
        steps = np.concatenate([[1], np.cumprod(extent[:-1])])
        keys, self.vertex = np.unique((cells + 1) @ steps, return_inverse=True)
        count = len(keys)
        total = 2.0 * 5 * sparse.identity(count, format='csr')
        for step in steps:
            right = np.searchsorted(keys, keys + step)
            right[right == count] = 0
            left = np.flatnonzero(keys[right] == keys + step)
            link = sparse.csr_matrix(
                (np.ones(len(left)), (left, right[left])), shape=(count, count)
            )
            total = total + link + link.T
        self._count = count
        mass = np.bincount(self.vertex, minlength=count).astype(np.float64)
        # scale the blur so that it keeps constants (bistochastisation)
        scale = np.ones(count)
        for _ in range(8):
            scale = np.sqrt(scale * mass / (total @ scale))
        diagonal = sparse.diags(scale)
        self._laplacian = smoothness * (
            sparse.diags(scale * (total @ scale)) - diagonal @ total @ diagonal
        )

    def smooth(self, probability: np.ndarray) -> np.ndarray:
        """Smooth (h, w) float32 probabilities; what is near 0 or 1 is kept to."""
        certainty = np.abs(2.0 * probability - 1.0) ** 3
        return self.solve(probability, certainty).clip(0.0, 1.0)

    def solve(self, target: np.ndarray, certainty: np.ndarray) -> np.ndarray:
        """Smooth (h, w) values in [0, 1] whose weights are in [0, 1]."""
        weight = np.bincount(self.vertex, certainty.ravel(), self._count)
        value = np.bincount(self.vertex, (certainty * target).ravel(), self._count)
        matrix = self._laplacian + sparse.diags(weight + 1e-6)
        solution = _conjugate_gradients(matrix, value, value / np.maximum(weight, 1e-6))
        return solution[self.vertex].reshape(target.shape).astype(np.float32)


def _conjugate_gradients(
    matrix: sparse.csr_matrix, value: np.ndarray, start: np.ndarray
) -> np.ndarray:
    """
    Solve ``matrix @ x = value`` to a thousandth or in 20 steps; preconditioned by the diagonal.

    Without BLAS, which SciPy's solver uses: its idle threads go on spinning, and take the
    processor from the network's next pass (a quarter of the time of a step on two cores).
    """
    inverse = 1.0 / matrix.diagonal()
    solution = start
    residual = value - matrix @ solution
    direction = conditioned = inverse * residual
    energy = float((residual * conditioned).sum())
    enough = 1e-6 * float((value * value).sum())
    for _ in range(20):
        if float((residual * residual).sum()) <= enough:
            break
        image = matrix @ direction
        length = energy / float((direction * image).sum())
        solution = solution + length * direction
        residual = residual - length * image
        conditioned = inverse * residual
        previous, energy = energy, float((residual * conditioned).sum())
        direction = conditioned + (energy / previous) * direction
    return solution


class Smoothed:
    """Renders objects by interpolation; subclasses smooth what comes out."""

    accepted: frozenset[int] = frozenset()

    def __init__(self, size: tuple[int, ...], coarse: Mapping[int, np.ndarray]) -> None:
        self.size, self._coarse = size, coarse

    def probability(self, object_id: int) -> np.ndarray:
        """Render an object: (H, W) float32 in [0, 1]."""
        return self.smooth(self.enlarged(object_id))

    def enlarged(self, object_id: int) -> np.ndarray:
        """Interpolate an object's coarse probability: (H, W) float32 in [0, 1]."""
        height, width = self.size
        return cv2.resize(self._coarse[object_id], (width, height), interpolation=cv2.INTER_LINEAR)

    def smooth(self, probability: np.ndarray) -> np.ndarray:
        """Smooth (H, W) float32 in [0, 1]."""
        return probability


class _Guided(Smoothed):
    def __init__(
        self,
        size: tuple[int, ...],
        coarse: Mapping[int, np.ndarray],
        guided: 'cv2.ximgproc.GuidedFilter',
    ) -> None:
        super().__init__(size, coarse)
        self._guided = guided

    def smooth(self, probability: np.ndarray) -> np.ndarray:
        return np.clip(self._guided.filter(probability), 0.0, 1.0)


class _Solved(Smoothed):
    def __init__(
        self, size: tuple[int, ...], coarse: Mapping[int, np.ndarray], grid: BilateralGrid
    ) -> None:
        super().__init__(size, coarse)
        self._grid = grid

    def smooth(self, probability: np.ndarray) -> np.ndarray:
        height, width = self.size
        target = cv2.resize(probability, self._grid.size, interpolation=cv2.INTER_AREA)
        solved = self._grid.smooth(target)
        return cv2.resize(solved, (width, height), interpolation=cv2.INTER_LINEAR)
