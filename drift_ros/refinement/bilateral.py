# SPDX-License-Identifier: Apache-2.0
"""
The bilateral grid: smoothing along edges, fast, for many objects on one grid.

The loops are compiled by Numba. As NumPy, SciPy and their sparse matrices the same took four
times as long, most of it in building matrices and in calls on short arrays.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from drift_ros.refinement.compiled import compiled


@dataclass(frozen=True)
class Cells:
    """A rectangle of a grid's cells; maxima exclusive."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def slices(self) -> tuple[slice, slice]:
        """Rows and columns of cells."""
        return slice(self.top, self.bottom), slice(self.left, self.right)


class BilateralGrid:
    """
    Vertices stand for pixels near each other in place and colour; smooths over a frame.

    A cell in place holds the vertices of all its colours one after the other, and cells follow
    each other row by row: the vertices of a rectangle of cells are one span a row, and memory is
    read in order.
    """

    def __init__(
        self,
        frame: np.ndarray,
        active: np.ndarray | None = None,
    ) -> None:
        """
        Build the grid of a frame.

        Parameters
        ----------
        frame : np.ndarray
            (h, w, 3) uint8 RGB.
        active : np.ndarray, optional
            (rows, columns) bool, the cells that are looked at, as :meth:`cells_of` counts them.

        """
        self.size = (frame.shape[1], frame.shape[0])
        self.all = self.cells_of((0, 0, *self.size))
        rows, columns = self.all.bottom, self.all.right
        if active is None:
            active = np.ones((rows, columns), bool)
        self.vertex = np.full(frame.shape[:2], -1, np.int32)
        """(h, w) int32, number of each pixel's vertex; -1 in cells that are not looked at."""
        pixels = self.vertex.size
        keys, mass = np.empty(pixels, np.int32), np.zeros(pixels, np.float32)
        found = np.empty((5, 2, pixels), np.int32)
        # per row of cells, the number of the first vertex or link of each cell
        self._first = np.zeros((rows, columns + 1), np.int32)
        self._first_link = np.zeros((5, rows, columns + 1), np.int32)
        self.count = _make_grid(
            cv2.cvtColor(frame, cv2.COLOR_RGB2YCrCb),
            _COLOURS,
            active,
            self.vertex,
            keys,
            mass,
            found,
            self._first,
            self._first_link,
        )
        self.mass = mass[: self.count]
        """(count,) float32, pixels of each vertex."""
        counts = self._first_link[:, -1, -1].tolist()
        self._links = np.concatenate([found[i, :, :n] for i, n in enumerate(counts)], axis=1)
        self._first_link += np.array([0, *np.cumsum(counts[:-1])], np.int32)[:, None, None]
        self._weights = np.empty(self._links.shape[1], np.float32)
        self._diagonal = np.zeros(self.count, np.float32)
        _weigh_links(self.mass, self._links, _SMOOTHNESS, self._weights, self._diagonal)

    @staticmethod
    def cells_of(box: Sequence[float]) -> Cells:
        """Give the cells that a box touches: x_min, y_min, x_max, y_max, maxima exclusive."""
        low, high = np.array(box[:2]) // _PLACE, -(-np.array(box[2:]) // _PLACE)
        return Cells(int(low[0]), int(low[1]), int(high[0]), int(high[1]))

    def pixels(self, cells: Cells) -> tuple[slice, slice]:
        """Give rows and columns of the pixels of cells."""
        width, height = self.size
        return (
            slice(cells.top * _PLACE, min(cells.bottom * _PLACE, height)),
            slice(cells.left * _PLACE, min(cells.right * _PLACE, width)),
        )

    def splat(self, values: np.ndarray, cells: Cells) -> np.ndarray:
        """Sum float32 values of the pixels of cells over their vertices: (count,) float32."""
        sums = np.zeros(self.count, np.float32)
        _splat(self.vertex[self.pixels(cells)], values, sums)
        return sums

    def slice(self, solution: np.ndarray, cells: Cells) -> np.ndarray:
        """Give the pixels of cells what their vertices have, within [0, 1]: float32."""
        vertex = self.vertex[self.pixels(cells)]
        values = np.empty(vertex.shape, np.float32)
        _slice(vertex, solution, values)
        return values

    def relax(
        self,
        certainty: np.ndarray,
        value: np.ndarray,
        solution: np.ndarray,
        cells: Cells,
        iterations: int = 20,
    ) -> None:
        """
        Smooth what vertices have, where cells are; 0 is beyond them.

        Parameters
        ----------
        certainty : np.ndarray
            (count,) float32, weight of closeness.
        value : np.ndarray
            (count,) float32, certainty times what to be close to.
        solution : np.ndarray
            (count,) float32, where to start; changed.
        cells : Cells
        iterations : int
            At most so many; fewer once the error is a thousandth.

        """
        rows, ends = slice(cells.top, cells.bottom), [cells.left, cells.right]
        _conjugate_gradients(
            self._first[rows, ends],
            self._first_link[:, rows, ends].reshape(-1, 2),
            self._links,
            self._weights,
            self._diagonal,
            certainty,
            value,
            solution,
            iterations,
        )

    def smooth(self, probability: np.ndarray) -> np.ndarray:
        """Smooth (h, w) float32 probabilities; what is near 0 or 1 is kept to."""
        certainty = np.abs(2.0 * probability - 1.0) ** 3
        solution = self.splat(probability, self.all) / np.maximum(self.mass, 1.0)
        value = self.splat(certainty * probability, self.all)
        self.relax(self.splat(certainty, self.all), value, solution, self.all)
        return self.slice(solution, self.all)


_PLACE = 6  # side of a cell in pixels
_SMOOTHNESS = 16.0  # its weight against closeness
# A vertex's colour as one number: neighbours in luma, red or blue chroma differ by one of these.
_LUMA, _RED, _BLUE = 1 << 12, 1 << 6, 1
# What each value of the three adds to it. A cell is 9 levels of luma and 5 of chroma wide, so
# that chroma has fewer than 64 steps, and no sum is another colour's neighbour by accident.
_COLOURS = np.stack(
    [np.arange(256) // 9 * _LUMA, np.arange(256) // 5 * _RED, np.arange(256) // 5 * _BLUE]
).astype(np.int32)
_SLOTS = 128  # of a hash table for the colours of a cell, 36 at most


@compiled('int64(int32, int32[::1], int32[::1])')
def _find(key, table, keys):
    """Slot of a colour in a cell's hash table, or the free slot where it belongs."""
    slot = (key * 40503 >> 7) & (_SLOTS - 1)
    while table[slot] >= 0 and keys[table[slot]] != key:
        slot = (slot + 1) & (_SLOTS - 1)
    return slot


@compiled(
    'int64(uint8[:, :, :], int32[:, :], boolean[:, :], int32[:, :], int32[::1], float32[::1], '
    'int32[:, :, ::1], int32[:, ::1], int32[:, :, ::1])'
)
def _make_grid(image, colours, active, vertex, keys, mass, links, first, first_link):
    (height, width), (rows, columns) = vertex.shape, active.shape
    table = np.empty(_SLOTS, np.int32)
    count = 0
    ends = np.zeros(5, np.int32)
    steps = (_LUMA, _RED, _BLUE)
    for row in range(rows):
        for column in range(columns):
            table[:] = -1
            start = count
            first[row, column] = start
            if active[row, column]:
                for y in range(row * _PLACE, min((row + 1) * _PLACE, height)):
                    for x in range(column * _PLACE, min((column + 1) * _PLACE, width)):
                        key = colours[0, image[y, x, 0]]
                        key += colours[1, image[y, x, 1]] + colours[2, image[y, x, 2]]
                        slot = _find(key, table, keys)
                        if table[slot] < 0:
                            table[slot] = count
                            keys[count] = key
                            count += 1
                        vertex[y, x] = table[slot]
                        mass[table[slot]] += 1
            # links to neighbours in colour, then those to this cell from the one before it in
            # the row and from the one above: in each list they are in the order of what they
            # come from, and that is at most once there
            for axis in range(5):
                low, high = start, count
                if axis < 3:
                    first_link[axis, row, column] = ends[axis]
                elif axis == 3:
                    if column == 0:
                        continue
                    first_link[axis, row, column - 1] = ends[axis]
                    low, high = first[row, column - 1], start
                else:
                    if row == 0:
                        continue
                    first_link[axis, row - 1, column] = ends[axis]
                    low, high = first[row - 1, column], first[row - 1, column + 1]
                for number in range(low, high):
                    key = keys[number]
                    if axis < 3:
                        key += steps[axis]
                    slot = _find(key, table, keys)
                    if table[slot] >= 0:
                        links[axis, 0, ends[axis]] = number
                        links[axis, 1, ends[axis]] = table[slot]
                        ends[axis] += 1
        first[row, columns] = count
        for axis in range(3):
            first_link[axis, row, columns] = ends[axis]
        first_link[3, row, columns - 1] = first_link[3, row, columns] = ends[3]
        if row:
            first_link[4, row - 1, columns] = ends[4]
    first_link[4, rows - 1] = ends[4]
    return count


@compiled('void(float32[::1], int32[:, ::1], float32, float32[::1], float32[::1])')
def _weigh_links(mass, links, smoothness, weights, diagonal):
    # scale the blur so that it keeps constants (bistochastisation); a vertex counts for itself
    # twice in each of five dimensions
    scale, total = np.ones(len(mass), np.float32), np.empty(len(mass), np.float32)
    for _ in range(8):
        for v in range(len(mass)):
            total[v] = np.float32(10) * scale[v]
        for link in range(links.shape[1]):
            left, right = links[0, link], links[1, link]
            total[left] += scale[right]
            total[right] += scale[left]
        for v in range(len(mass)):
            scale[v] = np.sqrt(scale[v] * mass[v] / total[v])
    for link in range(links.shape[1]):
        left, right = links[0, link], links[1, link]
        weight = smoothness * scale[left] * scale[right]
        weights[link] = weight
        diagonal[left] += weight
        diagonal[right] += weight


@compiled('void(int32[:, :], float32[:, :], float32[::1])')
def _splat(vertex, values, sums):
    for y in range(vertex.shape[0]):
        for x in range(vertex.shape[1]):
            if vertex[y, x] >= 0:
                sums[vertex[y, x]] += values[y, x]


@compiled('void(int32[:, :], float32[::1], float32[:, :])')
def _slice(vertex, solution, values):
    for y in range(vertex.shape[0]):
        for x in range(vertex.shape[1]):
            number = vertex[y, x]
            value = solution[number] if number >= 0 else np.float32(0)
            values[y, x] = min(max(value, np.float32(0)), np.float32(1))


@compiled('void(int32[:, :], int32[:, ::1], float32[::1], float32[::1], float32[::1])')
def _subtract_links(spans, links, weights, values, image):
    for row in range(len(spans)):
        for link in range(spans[row, 0], spans[row, 1]):
            left, right, weight = links[0, link], links[1, link], weights[link]
            image[left] -= weight * values[right]
            image[right] -= weight * values[left]


@compiled(
    'void(int32[:, :], int32[:, :], int32[:, ::1], '
    'float32[::1], float32[::1], float32[::1], float32[::1], float32[::1], int64)'
)
def _conjugate_gradients(
    spans, link_spans, links, weights, diagonal, certainty, value, solution, iterations
):
    # preconditioned by the diagonal; what lies outside of the spans stays 0
    count = len(value)
    residual, inverse = np.empty(count, np.float32), np.empty(count, np.float32)
    direction, image = np.zeros(count, np.float32), np.zeros(count, np.float32)
    enough, error, energy = 0.0, 0.0, 0.0
    _subtract_links(link_spans, links, weights, solution, image)
    for row in range(len(spans)):
        for v in range(spans[row, 0], spans[row, 1]):
            own = diagonal[v] + certainty[v] + np.float32(1e-6)
            rest = value[v] - own * solution[v] - image[v]
            residual[v] = rest
            inverse[v] = np.float32(1) / own
            direction[v] = inverse[v] * rest
            error += rest * rest
            energy += direction[v] * rest
            enough += value[v] * value[v]
    enough *= 1e-6
    for _ in range(iterations):
        if error <= enough:
            break
        for row in range(len(spans)):
            for v in range(spans[row, 0], spans[row, 1]):
                image[v] = direction[v] / inverse[v]
        _subtract_links(link_spans, links, weights, direction, image)
        along = 0.0
        for row in range(len(spans)):
            for v in range(spans[row, 0], spans[row, 1]):
                along += image[v] * direction[v]
        length = np.float32(energy / along)
        previous, energy, error = energy, 0.0, 0.0
        for row in range(len(spans)):
            for v in range(spans[row, 0], spans[row, 1]):
                solution[v] += length * direction[v]
                rest = residual[v] - length * image[v]
                residual[v] = rest
                error += rest * rest
                energy += inverse[v] * rest * rest
        share = np.float32(energy / previous)
        for row in range(len(spans)):
            for v in range(spans[row, 0], spans[row, 1]):
                direction[v] = inverse[v] * residual[v] + share * direction[v]
