# SPDX-License-Identifier: Apache-2.0
"""Edge-aware smoothing without weights."""

import cv2
import numpy as np
from scipy import sparse


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
        solution = conjugate_gradients(matrix, value, value / np.maximum(weight, 1e-6))
        return solution[self.vertex].reshape(target.shape).astype(np.float32)


def conjugate_gradients(
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
