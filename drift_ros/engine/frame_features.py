# SPDX-License-Identifier: Apache-2.0
"""What the engine needs to know of a frame: queries and keys on token grids."""

from dataclasses import dataclass
from functools import cached_property
import math

import numpy as np
from torch import Tensor
import torch.nn.functional as F

from drift_ros.engine.errors import FrameError
from drift_ros.engine.key_tiles import Keys

# Of pictures longer than this times their height, the number of pixels is bounded.
_LONG = 2.4


def working_scale(height: int, width: int, resolution: int) -> float:
    """
    Give the factor by which a frame is resized for the network.

    Its shorter side gets ``resolution`` pixels; that of a long picture gets fewer, as time and
    memory go with the number of pixels.
    """
    return min(resolution / min(height, width), resolution * math.sqrt(_LONG / (height * width)))


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

    @cached_property
    def keys(self) -> Keys:
        """The key, with what the kernel makes of it: that is made once."""
        return Keys(self.key)


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

    def padded(self, grid: tuple[int, int]) -> 'FrameFeatures':
        """
        Add rows and columns of tokens that look like nothing, up to a grid.

        A coarser layer is added to in proportion.
        """
        rows, columns = (new / old for new, old in zip(grid, self.grid, strict=True))

        def add(values: Tensor) -> Tensor:
            height, width = values.shape[1:3]
            more = (round(width * columns) - width, round(height * rows) - height)
            return F.pad(values, (0, 0, 0, more[0], 0, more[1]))

        return FrameFeatures(
            tuple(LayerFeatures(add(layer.query), add(layer.key)) for layer in self.layers)
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
