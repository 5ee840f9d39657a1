# SPDX-License-Identifier: Apache-2.0
"""What the engine needs to know of a frame: queries and keys on token grids."""

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from drift_ros.engine.errors import FrameError


@dataclass(frozen=True)
class LayerFeatures:
    """
    One self-attention layer's view of a frame.

    Attributes
    ----------
    query, key : Tensor
        (heads, h, w, d) floating point on the token grid h x w. ``query @ key^T / sqrt(d)`` are
        the network's own attention logits, unless colour has been added.

    """

    query: Tensor
    key: Tensor


@dataclass(frozen=True)
class FrameFeatures:
    """
    What is known of one frame.

    Attributes
    ----------
    layers : tuple of LayerFeatures
        The captured layers, in the order of the U-Net's forward pass.
    image : np.ndarray, optional
        (h, w, 3) uint8 RGB, the frame as the network saw it; lets the same frame be looked at
        again, see :class:`drift_ros.engine.protocols.Extractor`.

    """

    layers: tuple[LayerFeatures, ...]
    image: np.ndarray | None = None

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the finest layer."""
        return max((layer.query.shape[1], layer.query.shape[2]) for layer in self.layers)

    def half(self) -> 'FrameFeatures':
        """Give the same in half precision; queries that are the keys stay so."""
        layers = []
        for layer in self.layers:
            query = layer.query.half()
            key = query if layer.key is layer.query else layer.key.half()
            layers.append(LayerFeatures(query, key))
        return FrameFeatures(tuple(layers), self.image)

    def thinned(self, step: int) -> 'FrameFeatures':
        """Keep every ``step``-th token of each axis."""
        every = slice(None, None, step)
        return FrameFeatures(
            tuple(
                LayerFeatures(layer.query[:, every, every], layer.key[:, every, every])
                for layer in self.layers
            )
        )

    def check(self) -> None:
        """
        Check that all values are finite: one that is not would stay in the memory for good.

        Raises
        ------
        FrameError

        """
        for layer in self.layers:
            # the sum is finite only if all values are; half as much to read as comparing each
            if not (layer.query.sum().isfinite() and layer.key.sum().isfinite()):
                raise FrameError(
                    'the network gave values that are not finite numbers for this frame; it is '
                    'left out. If this goes on, the weights are damaged or overflow in half '
                    'precision: check the model'
                )
