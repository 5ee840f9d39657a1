# SPDX-License-Identifier: Apache-2.0
"""GrabCut (Rother, Kolmogorov, Blake 2004): masks by colour statistics, without weights."""

from collections.abc import Mapping

import cv2
import numpy as np

from drift_ros.refinement.bilateral import OnTop, Smoothed, Smoother


class GrabCut(OnTop):
    """
    Cuts every object out of the frame, starting from its coarse mask.

    A cut whose overlap with the coarse probability (see :func:`agreement`) is below the gate is
    not taken: the coarse mask, smoothed, stays.
    """

    def __init__(
        self, smooth: Smoother, *, gate: float, side: int = 160, iterations: int = 1
    ) -> None:
        """
        Set the refiner.

        Parameters
        ----------
        smooth : Smoother
            Renders the objects whose cuts are not taken.
        gate : float
            Least agreement in [0, 1].
        side : int
            The longer side of the part of the frame that is cut is reduced to so many pixels.
        iterations : int
            Of GrabCut.

        """
        self._smooth, self._gate = smooth, gate
        self._side, self._iterations = side, iterations

    def refine(self, frame: np.ndarray, coarse: Mapping[int, np.ndarray]) -> '_Cut':
        """Cut all objects out."""
        smooth = self._smooth.refine(frame, coarse)
        cuts = {}
        for object_id, own in coarse.items():
            rivals = sum((c for key, c in coarse.items() if key != object_id), np.zeros_like(own))
            cut = self._cut(frame, own, rivals)
            if cut is not None:
                cuts[object_id] = cut
        return _Cut(smooth, cuts)

    def _cut(self, frame: np.ndarray, own: np.ndarray, rivals: np.ndarray) -> np.ndarray | None:
        height, width = frame.shape[:2]
        window = object_window(own > 0.3, frame.shape[:2])
        if window is None:
            return None
        x0, y0, x1, y1 = window
        part, _ = reduced_part(frame, window, self._side)
        size = part.shape[1::-1]
        probability, other = (
            cv2.resize(
                cv2.resize(m, (width, height), interpolation=cv2.INTER_LINEAR)[y0:y1, x0:x1],
                size,
                interpolation=cv2.INTER_AREA,
            )
            for m in (own, rivals)
        )
        mask = np.where(probability > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
        mask[probability > 0.9] = cv2.GC_FGD
        mask[(probability < 0.05) | (other > 0.5)] = cv2.GC_BGD
        inside = foreground(mask)
        if min(inside.sum(), (~inside).sum()) < 16 or not grab_cut(part, mask, self._iterations):
            return None
        cut = foreground(mask).astype(np.float32)
        if agreement(cut, probability) < self._gate:
            return None
        # half as much of what was expected keeps soft edges soft, and competition fair
        cut = 0.75 * cut + 0.25 * probability
        full = np.zeros((height, width), np.float32)
        full[y0:y1, x0:x1] = cv2.resize(cut, (x1 - x0, y1 - y0), interpolation=cv2.INTER_LINEAR)
        return full


class _Cut:
    def __init__(self, smooth: Smoothed, cuts: dict[int, np.ndarray]) -> None:
        self._smooth, self._cuts = smooth, cuts
        self.accepted = frozenset(cuts)

    def probability(self, object_id: int) -> np.ndarray:
        cut = self._cuts.get(object_id)
        return self._smooth.probability(object_id) if cut is None else cut


def reduced_part(
    frame: np.ndarray, window: tuple[int, int, int, int], side: int
) -> tuple[np.ndarray, float]:
    """Give a window of a frame with its longer side reduced to ``side``, and the scale."""
    x0, y0, x1, y1 = window
    scale = min(side / max(x1 - x0, y1 - y0), 1.0)
    size = (max(round(scale * (x1 - x0)), 8), max(round(scale * (y1 - y0)), 8))
    return cv2.resize(frame[y0:y1, x0:x1], size, interpolation=cv2.INTER_AREA), scale


def grab_cut(image: np.ndarray, mask: np.ndarray, iterations: int) -> bool:
    """
    Run GrabCut from a mask of its four labels, which it changes; the same on every run.

    Returns whether it could: an image may have fewer colours than its models have components.
    """
    models = np.zeros((1, 65)), np.zeros((1, 65))
    cv2.setRNGSeed(0)
    try:
        cv2.grabCut(image, mask, None, *models, iterations, cv2.GC_INIT_WITH_MASK)
    except cv2.error:
        return False
    return True


def foreground(mask: np.ndarray) -> np.ndarray:
    """Where a mask of GrabCut's labels says foreground, for sure or probably: bool."""
    return np.isin(mask, (cv2.GC_FGD, cv2.GC_PR_FGD))


def agreement(mask: np.ndarray, probability: np.ndarray) -> float:
    """Intersection over union of a mask in [0, 1] with a soft one, of equal shape."""
    union = float(np.maximum(mask, probability).sum())
    return float(np.minimum(mask, probability).sum()) / union if union else 0.0


def object_window(
    mask: np.ndarray, size: tuple[int, ...], margin: float = 0.3
) -> tuple[int, int, int, int] | None:
    """
    Find the part of a frame in which to look at the objects of a coarse mask.

    Parameters
    ----------
    mask : np.ndarray
        (h, w) bool, on any grid.
    size : tuple of int
        (H, W) of the frame.
    margin : float
        Share of the longer side of the mask's box added at each side.

    Returns
    -------
    tuple of int or None
        (x_min, y_min, x_max, y_max) in pixels, maxima exclusive; None for an empty mask.

    """
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    if not width:
        return None
    scale = np.array([size[1] / mask.shape[1], size[0] / mask.shape[0]] * 2)
    pad = margin * max(width, height) + 2
    box = np.array([x - pad, y - pad, x + width + pad, y + height + pad]) * scale
    x0, y0 = np.maximum(np.floor(box[:2]), 0).astype(int)
    x1, y1 = np.minimum(np.ceil(box[2:]), [size[1], size[0]]).astype(int)
    return int(x0), int(y0), int(x1), int(y1)
