# SPDX-License-Identifier: Apache-2.0
"""
What refiners have in common: they turn blurred token-grid probabilities into crisp masks.

Refiners hold no state. What a seed frame shows of its objects is handed out as
:class:`SeedLook` and handed in again with every frame, so that whoever follows the objects
commits it together with everything else, and many can share one refiner.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np

from drift_ros.engine.protocols import Refined, Refiner


@dataclass(frozen=True, eq=False)
class SeedLook:
    """
    An object as its seed frame showed it.

    Attributes
    ----------
    inside, around : np.ndarray
        Shares of the colours in and around it, flat float32 of sum 1.
    whole : bool
        Whether it was in one piece.

    """

    inside: np.ndarray
    around: np.ndarray
    whole: bool

    def __post_init__(self) -> None:
        self.inside.flags.writeable = self.around.flags.writeable = False


class Interpolated:
    """Objects as they are on the token grid, interpolated."""

    def __init__(self, size: tuple[int, ...], coarse: Mapping[int, np.ndarray]) -> None:
        self.size, self._coarse = size[:2], coarse

    def probability(self, object_id: int) -> np.ndarray:
        """Render an object: (H, W) float32 in [0, 1]."""
        height, width = self.size
        return cv2.resize(self._coarse[object_id], (width, height), interpolation=cv2.INTER_LINEAR)

    def piece(self, object_id: int) -> tuple[tuple[slice, slice], np.ndarray]:
        """Render an object where it is only, which is everywhere."""
        height, width = self.size
        return (slice(0, height), slice(0, width)), self.probability(object_id)

    def smooth(self, probability: np.ndarray) -> np.ndarray:
        """Smooth any (H, W) float32 in [0, 1] along the frame's edges; here: leave it as it is."""
        return probability


class Upsampling:
    """No refinement: bilinear interpolation from the token grid."""

    def remember(self, frame: np.ndarray, masks: Mapping[int, np.ndarray]) -> dict[int, SeedLook]:
        """Remember nothing."""
        return {}

    def refine(
        self,
        frame: np.ndarray,
        coarse: Mapping[int, np.ndarray],
        looks: Mapping[int, SeedLook],
        number: int,
    ) -> Interpolated:
        """Keep the probabilities as they are."""
        return Interpolated(frame.shape, coarse)


class Every:
    """Refines every ``period``-th frame; a cheaper refiner does those between."""

    def __init__(self, refiner: Refiner, between: Refiner, period: int) -> None:
        """Use two refiners that remember the same of seeds."""
        self._refiner, self._between, self._period = refiner, between, period

    def remember(self, frame: np.ndarray, masks: Mapping[int, np.ndarray]) -> dict[int, SeedLook]:
        """Look at new objects in their seed frame."""
        return self._refiner.remember(frame, masks)

    def refine(
        self,
        frame: np.ndarray,
        coarse: Mapping[int, np.ndarray],
        looks: Mapping[int, SeedLook],
        number: int,
    ) -> Refined:
        """Refine as one of the two does."""
        chosen = self._between if number % self._period else self._refiner
        return chosen.refine(frame, coarse, looks, number)
