# SPDX-License-Identifier: Apache-2.0
"""Refinement by what the objects look like: colour models on top of the bilateral solver."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import cv2
import numpy as np
from scipy import ndimage

from drift_ros.refinement.bilateral import BilateralGrid, Smoothed
from drift_ros.refinement.window import object_window

# Bins of luma and of the two chroma channels; chroma beyond 64..192 goes to the outer bins.
_BINS = (16, 24, 24)
_COLOURS = int(np.prod(_BINS))
# Pixels from which a histogram says something.
_LEAST = 16.0


@dataclass(frozen=True)
class _Seen:
    """An object as its seed showed it: colours in and around it, and whether in one piece."""

    inside: np.ndarray
    around: np.ndarray
    whole: bool


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
        self._pixels = pixels
        self._weight, self._limit = weight, limit
        self._seed_share = seed_share
        self._rounds = rounds
        self._seen: dict[int, _Seen] = {}

    def remember(self, frame: np.ndarray, masks: Mapping[int, np.ndarray]) -> None:
        """Look at new objects in their seed frame; see :class:`drift_ros.refinement.Refiner`."""
        for object_id, mask in masks.items():
            window = object_window(mask, mask.shape)
            if window is None:
                continue
            small = self._reduce(frame, window)
            inside = crop(mask.astype(np.float32), window, small.shape[1::-1])
            bins = _colour_bins(small)
            stats = cv2.connectedComponentsWithStats(mask.astype(np.uint8))[2]
            areas = np.sort(stats[1:, cv2.CC_STAT_AREA])
            self._seen[object_id] = _Seen(
                _histogram(bins, inside),
                _histogram(bins, 1.0 - inside),
                whole=len(areas) == 1 or bool(areas[-2] < 0.01 * areas[-1]),
            )

    def forget(self, object_ids: Iterable[int]) -> None:
        """Forget what the seeds of these objects showed; unknown ids are passed over."""
        for object_id in list(object_ids):
            self._seen.pop(object_id, None)

    def refine(self, frame: np.ndarray, coarse: Mapping[int, np.ndarray]) -> Smoothed:
        """Build the grid of the objects' surroundings once for all of them."""
        size = frame.shape[:2]
        window = object_window(np.maximum.reduce(list(coarse.values())) > 0.2, size)
        if window is None:
            return Smoothed(size, coarse)
        return _Coloured(size, coarse, window, self.look(frame, window), self)

    def look(
        self, frame: np.ndarray, window: tuple[int, int, int, int]
    ) -> tuple[BilateralGrid, np.ndarray]:
        """Give the grid of a window of a frame, reduced, and its colours' numbers (h, w)."""
        small = self._reduce(frame, window)
        return BilateralGrid(small), _colour_bins(small)

    def solve(
        self, grid: BilateralGrid, bins: np.ndarray, prior: np.ndarray, object_id: int = 0
    ) -> np.ndarray:
        """
        Find an object's mask in what :meth:`look` gave.

        Parameters
        ----------
        grid : BilateralGrid
        bins : np.ndarray
        prior : np.ndarray
            (h, w) float32 in [0, 1], probability of the object from elsewhere.
        object_id : int
            Whose seed to take into account. 0: none.

        Returns
        -------
        np.ndarray
            (h, w) float32 in [0, 1].

        """
        clear = np.clip(prior, 0.02, 0.98)
        odds = np.log(clear / (1.0 - clear))
        solved = prior
        for _ in range(self._rounds):
            evidence = self.evidence(object_id, solved, bins)
            solved = grid.smooth(1.0 / (1.0 + np.exp(-odds - evidence)))
        return solved

    def _reduce(self, frame: np.ndarray, window: tuple[int, int, int, int]) -> np.ndarray:
        x0, y0, x1, y1 = window
        scale = min((self._pixels / ((x1 - x0) * (y1 - y0))) ** 0.5, 1.0)
        size = (max(round(scale * (x1 - x0)), 8), max(round(scale * (y1 - y0)), 8))
        return cv2.resize(frame[y0:y1, x0:x1], size, interpolation=cv2.INTER_AREA)

    def evidence(self, object_id: int, probability: np.ndarray, bins: np.ndarray) -> np.ndarray:
        """
        Say how much each pixel's colour speaks for an object.

        Parameters
        ----------
        object_id : int
        probability : np.ndarray
            (h, w) float32 in [0, 1], the mask as far as it is known.
        bins : np.ndarray
            (h, w) int, as :func:`_colour_bins` gives them.

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
        seen = self._seen.get(object_id)
        if seen is not None:
            inside += self._seed_share * (seen.inside - inside)
            around += self._seed_share * (seen.around - around)
        apart = 0.5 * float(np.abs(inside - around).sum())
        # a colour as rare as a third of an even share says nothing
        rare = 0.3 / _COLOURS
        ratio = apart * np.log((inside + rare) / (around + rare))
        return self._weight * np.clip(ratio, -self._limit, self._limit)[bins]

    def whole(self, object_id: int) -> bool:
        """Whether an object's seed was in one piece."""
        return object_id in self._seen and self._seen[object_id].whole


class _Coloured(Smoothed):
    """The surroundings of the objects, solved; nothing lies outside."""

    def __init__(
        self,
        size: tuple[int, ...],
        coarse: Mapping[int, np.ndarray],
        window: tuple[int, int, int, int],
        seen: tuple[BilateralGrid, np.ndarray],
        models: ColourSolver,
    ) -> None:
        super().__init__(size, coarse)
        self._window, self._models = window, models
        self._grid, self._bins = seen

    def probability(self, object_id: int) -> np.ndarray:
        coarse = crop(self.enlarged(object_id), self._window, self._grid.size)
        solved = self._models.solve(self._grid, self._bins, coarse, object_id)
        if self._models.whole(object_id):
            solved = _without_strays(solved)
        return paste(_without_pinholes(solved), self._window, self.size)

    def smooth(self, probability: np.ndarray) -> np.ndarray:
        solved = self._grid.smooth(crop(probability, self._window, self._grid.size))
        return paste(solved, self._window, self.size)


def crop(
    values: np.ndarray, window: tuple[int, int, int, int], size: tuple[int, ...]
) -> np.ndarray:
    """Reduce a window of (H, W) float32 values to a (width, height)."""
    x0, y0, x1, y1 = window
    return cv2.resize(values[y0:y1, x0:x1], (size[0], size[1]), interpolation=cv2.INTER_AREA)


def paste(
    values: np.ndarray, window: tuple[int, int, int, int], size: tuple[int, ...]
) -> np.ndarray:
    """Enlarge (h, w) float32 values to a window of a frame of a size (H, W); 0 outside it."""
    x0, y0, x1, y1 = window
    full = np.zeros(size[:2], np.float32)
    full[y0:y1, x0:x1] = cv2.resize(values, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
    return full


def _colour_bins(image: np.ndarray) -> np.ndarray:
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
