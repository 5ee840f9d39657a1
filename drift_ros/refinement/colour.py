# SPDX-License-Identifier: Apache-2.0
"""Refinement by what the objects look like: colour models on top of the bilateral solver."""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from drift_ros.refinement.bilateral import BilateralGrid
from drift_ros.refinement.refiner import Interpolated, SeedLook
from drift_ros.refinement.window import Window

# Bins of luma and of the two chroma channels; chroma beyond 64..192 goes to the outer bins.
_BINS = (16, 24, 24)
_COLOURS = int(np.prod(_BINS))
# Pixels from which a histogram says something.
_LEAST = 16.0


@dataclass(frozen=True)
class Surroundings:
    """
    The surroundings of objects in one frame, reduced, as the solver needs them.

    Attributes
    ----------
    window : Window
    grid : BilateralGrid
    bins : np.ndarray
        (h, w) int, number of each pixel's colour.

    """

    window: Window
    grid: BilateralGrid
    bins: np.ndarray

    @classmethod
    def of(cls, frame: np.ndarray, window: Window) -> 'Surroundings':
        """Look at a window of a frame (H, W, 3) uint8 RGB."""
        part = window.crop(frame)
        return cls(window, BilateralGrid(part), colour_bins(part))


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
        pixels: int = 40_000,
        weight: float = 0.5,
        limit: float = 4.0,
        seed_share: float = 0.5,
        rounds: int = 2,
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

        """
        self.pixels = pixels
        self._weight, self._limit = weight, limit
        self._seed_share = seed_share
        self._rounds = rounds

    def remember(self, frame: np.ndarray, masks: Mapping[int, np.ndarray]) -> dict[int, SeedLook]:
        """Look at new objects in their seed frame; see :class:`drift_ros.refinement.Refiner`."""
        looks = {}
        for object_id, mask in masks.items():
            window = self.window(mask, frame.shape)
            if window is None:
                continue
            bins, inside = colour_bins(window.crop(frame)), window.crop(mask.astype(np.float32))
            stats = cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2]
            areas = np.sort(stats[1:, cv2.CC_STAT_AREA])
            looks[object_id] = SeedLook(
                _histogram(bins, inside),
                _histogram(bins, 1.0 - inside),
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
        """Build the grid of the objects' surroundings once for all of them."""
        window = self.window(np.maximum.reduce(list(coarse.values())) > 0.2, frame.shape)
        if window is None:
            return Interpolated(frame.shape, coarse)
        return Coloured(coarse, Surroundings.of(frame, window), looks, self)

    def window(self, mask: np.ndarray, frame: tuple[int, ...]) -> Window | None:
        """Give the surroundings of a mask (h, w) bool on any grid over a frame (H, W)."""
        window = Window.around(mask, frame)
        return None if window is None else window.reduced_to_pixels(self.pixels)

    def solve(
        self, seen: Surroundings, prior: np.ndarray, look: SeedLook | None = None
    ) -> np.ndarray:
        """
        Find an object's mask.

        Parameters
        ----------
        seen : Surroundings
        prior : np.ndarray
            (h, w) float32 in [0, 1], probability of the object from elsewhere.
        look : SeedLook, optional
            The seed to take into account.

        Returns
        -------
        np.ndarray
            (h, w) float32 in [0, 1].

        """
        clear = np.clip(prior, 0.02, 0.98)
        odds = np.log(clear / (1.0 - clear))
        solved = prior
        for _ in range(self._rounds):
            evidence = self.evidence(solved, seen.bins, look)
            solved = seen.grid.smooth(1.0 / (1.0 + np.exp(-odds - evidence)))
        return solved

    def evidence(
        self, probability: np.ndarray, bins: np.ndarray, look: SeedLook | None
    ) -> np.ndarray:
        """
        Say how much each pixel's colour speaks for an object.

        Parameters
        ----------
        probability : np.ndarray
            (h, w) float32 in [0, 1], the mask as far as it is known.
        bins : np.ndarray
            (h, w) int, as :func:`colour_bins` gives them.
        look : SeedLook or None

        Returns
        -------
        np.ndarray
            (h, w) float32, to be added to log-odds.

        """
        # from 0 at one half to 1 where the tracker is sure
        sure = np.clip((probability - 0.5) / 0.3, 0.0, 1.0)
        sure_not = np.clip((0.5 - probability) / 0.4, 0.0, 1.0)
        if min(float(sure.sum()), float(sure_not.sum())) < _LEAST:
            return np.zeros_like(probability)
        inside, around = _histogram(bins, sure), _histogram(bins, sure_not)
        if look is not None:
            inside += self._seed_share * (look.inside - inside)
            around += self._seed_share * (look.around - around)
        apart = 0.5 * float(np.abs(inside - around).sum())
        # a colour as rare as a third of an even share says nothing
        rare = 0.3 / _COLOURS
        ratio = apart * np.log((inside + rare) / (around + rare))
        return self._weight * np.clip(ratio, -self._limit, self._limit)[bins]


class Coloured(Interpolated):
    """The surroundings of the objects, solved; nothing lies outside."""

    def __init__(
        self,
        coarse: Mapping[int, np.ndarray],
        seen: Surroundings,
        looks: Mapping[int, SeedLook],
        solver: ColourSolver,
    ) -> None:
        super().__init__(seen.window.frame, coarse)
        self._seen, self._looks, self._solver = seen, looks, solver

    def probability(self, object_id: int) -> np.ndarray:
        """Render an object: (H, W) float32 in [0, 1]."""
        window, look = self._seen.window, self._looks.get(object_id)
        coarse = window.crop(super().probability(object_id))
        solved = self._solver.solve(self._seen, coarse, look)
        if look is not None and look.whole:
            solved = _without_strays(solved)
        return window.paste(_without_pinholes(solved))

    def smooth(self, probability: np.ndarray) -> np.ndarray:
        """Smooth any (H, W) float32 in [0, 1] along the frame's edges."""
        window = self._seen.window
        return window.paste(self._seen.grid.smooth(window.crop(probability)))


def colour_bins(image: np.ndarray) -> np.ndarray:
    """Number the colours of (h, w, 3) uint8 RGB: (h, w) int, below the number of bins."""
    colours = cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb).astype(np.int32)
    luma, red, blue = _BINS
    place = colours[..., 0] * luma // 256
    for channel, count in ((1, red), (2, blue)):
        chroma = np.clip((colours[..., channel] - 64) * count // 128, 0, count - 1)
        place = place * count + chroma
    return place


def _histogram(bins: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Share of each colour among weighted pixels, somewhat smoothed: flat float32, sum 1."""
    counts = np.bincount(bins.ravel(), weight.ravel(), _COLOURS).astype(np.float32)
    smooth = ndimage.gaussian_filter(counts.reshape(_BINS), 0.7, mode='nearest', truncate=2.0)
    return (smooth / max(float(smooth.sum()), 1e-6)).ravel()


def _without_strays(probability: np.ndarray) -> np.ndarray:
    """
    Drop pieces of a mask that are small for how far they are from the largest one.

    A piece stays if its share of the largest one's area is at least its distance in terms of
    that one's size; at least half as large is always enough, and very near always, too.
    """
    mask = (probability > 0.5).astype(np.uint8)
    count, pieces, stats, _ = cv2.connectedComponentsWithStats(mask)
    if count <= 2:
        return probability
    area = stats[:, cv2.CC_STAT_AREA].astype(np.float64)
    area[0] = 0.0
    largest = int(area.argmax())
    size = float(np.sqrt(area[largest]))
    away = cv2.distanceTransform((pieces != largest).astype(np.uint8), cv2.DIST_L2, 3)
    gap = np.full(count, np.inf)
    np.minimum.at(gap, pieces.ravel(), away.ravel())
    least = np.clip((gap - 1.0 - 0.2 * size) / (gap + size), 0.0, 0.5)
    stray = area < least * area[largest]
    stray[[0, largest]] = False
    return np.where(stray[pieces], np.float32(0.0), probability) if stray.any() else probability


def _without_pinholes(probability: np.ndarray, most: float = 0.01) -> np.ndarray:
    """Fill holes of a mask that are smaller than a share of its area."""
    outside = (probability <= 0.5).astype(np.uint8)
    _, holes, stats, _ = cv2.connectedComponentsWithStats(outside, connectivity=4)
    area = stats[:, cv2.CC_STAT_AREA]
    small = area < most * area[0]  # number 0 is the mask
    small[0] = False
    return np.where(small[holes], np.float32(1.0), probability) if small.any() else probability
