# SPDX-License-Identifier: Apache-2.0
"""What the engine asks of others: of a frame its features, of token grids the image's edges."""

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from drift_ros.engine.frame_features import FrameFeatures

Piece = tuple[tuple[slice, slice], np.ndarray]
"""Rows and columns of a frame, and a probability there, float32 in [0, 1]; it is 0 elsewhere."""


class Refined(Protocol):
    """The refined objects of one frame."""

    def probability(self, object_id: int) -> np.ndarray:
        """Render an object: (H, W) float32 in [0, 1]."""

    def piece(self, object_id: int) -> Piece:
        """Render an object where it is only: many small ones cost no more than one large one."""


class Refiner(Protocol):
    """Makes a :class:`Refined` of each frame; it keeps nothing, so that trackers can share one."""

    def remember(self, frame: np.ndarray, masks: Mapping[int, np.ndarray]) -> dict[int, Any]:
        """
        Look at new objects in their seed frame.

        Parameters
        ----------
        frame : np.ndarray
            (H, W, 3) uint8 RGB.
        masks : mapping of int to np.ndarray
            By object id, (H, W) bool.

        Returns
        -------
        dict
            What was seen of each object, by id; given back to :meth:`refine`.

        """

    def refine(
        self,
        frame: np.ndarray,
        coarse: Mapping[int, np.ndarray],
        looks: Mapping[int, Any],
        number: int,
    ) -> Refined:
        """
        Refine all objects of a frame.

        Parameters
        ----------
        frame : np.ndarray
            (H, W, 3) uint8 RGB.
        coarse : mapping of int to np.ndarray
            By object id, (h, w) float32 in [0, 1], probabilities on the token grid; their sum is
            at most 1.
        looks : mapping
            What :meth:`remember` saw of objects, by id; there may be others among them.
        number : int
            Frames tracked before this one.

        """


class FeatureExtractor(Protocol):
    """Anything that turns a frame into queries and keys."""

    def extract(self, frame: np.ndarray) -> FrameFeatures:
        """Extract features of a (H, W, 3) uint8 RGB frame."""


@runtime_checkable
class Extractor(FeatureExtractor, Protocol):
    """One that can look at :attr:`FrameFeatures.image` again."""

    def extract_resized(self, image: np.ndarray) -> FrameFeatures:
        """Extract features of a frame in the network's own size."""

    def extract_scaled(self, image: np.ndarray, scale: float) -> FrameFeatures:
        """Extract features of such a frame, about ``scale`` times as large."""
