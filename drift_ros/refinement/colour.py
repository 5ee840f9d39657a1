# SPDX-License-Identifier: Apache-2.0
"""Refinement by what the objects look like: colour models on top of the bilateral solver."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from drift_ros.refinement.bilateral import BilateralGrid, Cells
from drift_ros.refinement.histogram import (
    colour_bins,
    COLOURS,
    count_colours,
    count_sure,
    shares_of,
)
from drift_ros.refinement.refiner import Interpolated, SeedLook
from drift_ros.refinement.tidy import without_pinholes, without_strays
from drift_ros.refinement.window import place, Window

# The surroundings of all objects are reduced to so many pixels together.
_PIXELS = 40_000
# With what lies between them they are at most so many times as many pixels.
_BETWEEN = 4
# Pixels from which a histogram says something.
_LEAST = 16.0


@dataclass(frozen=True, eq=False)
class Surroundings:
    """
    The surroundings of objects in one frame, reduced, as the solver needs them.

    Attributes
    ----------
    window : Window
        Around all of them.
    grid : BilateralGrid
        Of the window; only where the surroundings of an object are.
    bins : np.ndarray
        (h, w) uint16, number of each pixel's colour.
    parts : tuple of Cells
        The surroundings of each object.

    """

    window: Window
    grid: BilateralGrid
    bins: np.ndarray
    parts: tuple[Cells, ...]

    @classmethod
    def of(
        cls, frame: np.ndarray, windows: Sequence[Window], pixels: int = _PIXELS
    ) -> 'Surroundings':
        """
        Look at windows of a frame.

        Parameters
        ----------
        frame : np.ndarray
            (H, W, 3) uint8 RGB.
        windows : sequence of Window
            Around each object; their scales do not matter.
        pixels : int
            They are reduced to so many pixels together, what lies between them not counted.

        """
        covered = np.zeros(frame.shape[:2], np.uint8)
        for window in windows:
            covered[window.slices] = 1
        everything = Window.around_all(windows)
        scale = min((pixels / cv2.countNonZero(covered)) ** 0.5, 1.0)
        # what lies between costs a little, after all
        most = everything.reduced_to_pixels(_BETWEEN * pixels).scale
        everything = replace(everything, scale=min(scale, most))
        part = everything.crop(frame)
        limit = part.shape[1::-1] * 2
        parts = tuple(
            BilateralGrid.cells_of(
                [
                    min(place, most)
                    for place, most in zip(everything.corners_to_part(window.box), limit)
                ]
            )
            for window in windows
        )
        whole = BilateralGrid.cells_of((0, 0, *limit[:2]))
        active = np.zeros((whole.bottom, whole.right), bool)
        for cells in parts:
            active[cells.slices] = True
        return cls(everything, BilateralGrid(part, active), colour_bins(part), parts)


class ColourSolver:
    """
    Bilateral solver that is told how likely each colour is inside an object and around it.

    Both histograms come from where the coarse probability is certain in this frame and, mixed
    evenly, from the exact mask in the seed frame. The log-likelihood ratio of a pixel's colour is
    added to the coarse log-odds, with less weight the less the histograms differ: where an object
    looks like its surroundings, colour says nothing. Only the surroundings of the objects are
    solved. At the end pinholes are filled, and of an object that was seeded in one piece, small
    pieces far from the largest one are dropped.
    """

    def __init__(
        self,
        *,
        pixels: int = _PIXELS,
        weight: float = 0.5,
        limit: float = 4.0,
        seed_share: float = 0.5,
        rounds: int = 2,
        iterations: int = 20,
    ) -> None:
        """
        Set the solver.

        Parameters
        ----------
        pixels : int
            The surroundings of the objects are reduced to so many pixels.
        weight : float
            Of a colour's log-likelihood ratio against the coarse log-odds. Below 1 since the
            pixels of a surface are no independent witnesses.
        limit : float
            Of that ratio, before it is weighted.
        seed_share : float
            Share of the seed frame's histograms in [0, 1].
        rounds : int
            After the first one the histograms are those of the mask found so far.
        iterations : int
            Of the solver in each round, at most.

        """
        self._pixels = pixels
        self._weight, self._limit = weight, limit
        self._seed_share = seed_share
        self._rounds = rounds
        self._iterations = iterations

    def remember(self, frame: np.ndarray, masks: Mapping[int, np.ndarray]) -> dict[int, SeedLook]:
        """Look at new objects in their seed frame; see :class:`drift_ros.refinement.Refiner`."""
        looks = {}
        for object_id, mask in masks.items():
            window = Window.around(mask, frame.shape)
            if window is None:
                continue
            window = window.reduced_to_pixels(self._pixels)
            bins, inside = colour_bins(window.crop(frame)), window.crop(mask.astype(np.float32))
            stats = cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2]
            areas = np.sort(stats[1:, cv2.CC_STAT_AREA])
            counts = count_colours(bins, inside)
            looks[object_id] = SeedLook(
                shares_of(counts[0]),
                shares_of(counts[1]),
                whole=len(areas) == 1 or bool(areas[-2] < 0.01 * areas[-1]),
            )
        return looks

    def refine(
        self,
        frame: np.ndarray,
        coarse: Mapping[int, np.ndarray],
        looks: Mapping[int, SeedLook],
        number: int,
    ) -> Interpolated:
        """Solve for all objects in one go, each in its own surroundings."""
        around = {key: Window.around(map_ > 0.2, frame.shape) for key, map_ in coarse.items()}
        windows = {key: window for key, window in around.items() if window is not None}
        if not windows:
            return Interpolated(frame.shape, coarse)
        seen = Surroundings.of(frame, list(windows.values()), self._pixels)
        priors = [
            seen.window.read(coarse[key], seen.grid.pixels(cells))
            for key, cells in zip(windows, seen.parts)
        ]
        solved = self.solve(seen, priors, [looks.get(key) for key in windows])
        for index, key in enumerate(windows):
            if key in looks and looks[key].whole:
                solved[index] = without_strays(solved[index])
            solved[index] = without_pinholes(solved[index])
        return Coloured(coarse, seen, dict(zip(windows, zip(seen.parts, solved))))

    def solve(
        self,
        seen: Surroundings,
        priors: Sequence[np.ndarray],
        looks: Sequence[SeedLook | None],
    ) -> list[np.ndarray]:
        """
        Find objects' masks; the objects and the background compete for each pixel.

        Parameters
        ----------
        seen : Surroundings
        priors : sequence of np.ndarray
            For each of its parts (h, w) float32 in [0, 1], probability of the object from
            elsewhere.
        looks : sequence of SeedLook or None
            The seeds to take into account.

        Returns
        -------
        list of np.ndarray
            Like the priors.

        """
        grid = seen.grid
        pixels = [grid.pixels(cells) for cells in seen.parts]
        background = np.ones(seen.bins.shape, np.float32)
        for area, prior in zip(pixels, priors):
            background[area] -= prior
        np.clip(background, 0.02, 0.98, out=background)
        odds = [np.clip(prior, 0.02, 0.98) for prior in priors]
        bins = [np.ascontiguousarray(seen.bins[area]) for area in pixels]
        solved, vertices = list(priors), []
        for turn in range(self._rounds):
            total = background.copy()
            shares = []
            for index, area in enumerate(pixels):
                evidence = self.evidence(solved[index], bins[index], looks[index])
                shares.append(odds[index] * evidence[bins[index]])
                total[area] += shares[index]
            best, second = background / total, np.zeros_like(total)
            for area, share in zip(pixels, shares):
                share /= total[area]
                # the two largest of all so far
                second[area] = np.maximum(second[area], np.minimum(best[area], share))
                best[area] = np.maximum(best[area], share)
            certainty = best - second
            certainty *= certainty * certainty
            weight = grid.splat(certainty, grid.all)
            for index, (area, cells) in enumerate(zip(pixels, seen.parts)):
                if not turn:
                    vertices.append(grid.splat(shares[index], cells) / grid.mass)
                value = grid.splat(certainty[area] * shares[index], cells)
                grid.relax(weight, value, vertices[index], cells, self._iterations)
                solved[index] = grid.slice(vertices[index], cells)
        return solved

    def evidence(
        self, probability: np.ndarray, bins: np.ndarray, look: SeedLook | None
    ) -> np.ndarray:
        """
        Say how much each colour speaks for an object.

        Parameters
        ----------
        probability : np.ndarray
            (h, w) float32 in [0, 1], the mask as far as it is known.
        bins : np.ndarray
            (h, w) uint16, as :func:`colour_bins` gives them.
        look : SeedLook or None

        Returns
        -------
        np.ndarray
            (colours,) float32, by which odds are to be multiplied.

        """
        counts = count_sure(bins, probability)
        if counts.sum(axis=1).min() < _LEAST:
            return np.ones(COLOURS, np.float32)
        inside, around = shares_of(counts[0]), shares_of(counts[1])
        if look is not None:
            inside += self._seed_share * (look.inside - inside)
            around += self._seed_share * (look.around - around)
        apart = 0.5 * float(np.abs(inside - around).sum())
        # a colour as rare as a third of an even share says nothing
        rare = 0.3 / COLOURS
        ratio = apart * np.log((inside + rare) / (around + rare))
        return np.exp(self._weight * np.clip(ratio, -self._limit, self._limit))


class Coloured(Interpolated):
    """The surroundings of the objects, solved; nothing lies outside."""

    def __init__(
        self,
        coarse: Mapping[int, np.ndarray],
        seen: Surroundings,
        solved: Mapping[int, tuple[Cells, np.ndarray]],
    ) -> None:
        super().__init__(seen.window.frame, coarse)
        self._seen, self._solved = seen, solved

    def probability(self, object_id: int) -> np.ndarray:
        """Render an object: (H, W) float32 in [0, 1]."""
        if object_id not in self._solved:  # too faint anywhere
            return super().probability(object_id)
        area, values = self.piece(object_id)
        return place(values, area, self.size)

    def piece(self, object_id: int) -> tuple[tuple[slice, slice], np.ndarray]:
        """Render an object in its surroundings."""
        if object_id not in self._solved:
            return super().piece(object_id)
        cells, solved = self._solved[object_id]
        return self._seen.window.enlarge_piece(solved, self._seen.grid.pixels(cells))

    def smooth(self, probability: np.ndarray) -> np.ndarray:
        """Smooth any (H, W) float32 in [0, 1] along the frame's edges."""
        window = self._seen.window
        return window.paste(self._seen.grid.smooth(window.crop(probability)))
