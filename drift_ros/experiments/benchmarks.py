# SPDX-License-Identifier: Apache-2.0
"""What stages of a step and choices of heads cost, measured here."""

from __future__ import annotations

from collections.abc import Sequence
import time
from typing import Any

import numpy as np

STAGES = ('features', 'propagation', 'refinement', 'memory', 'total')
"""
Stages of a step: U-Net and autoencoder; kernel, prompt and motion; masks at the frame's size; what
comes after the result is given out, remembering and learning.
"""


HEADS_BUDGET = 50.0
"""Milliseconds the choice of 3 x 8 heads at stride 8 may take on two cores."""


class RandomHeads:
    """
    The same random queries and keys for every frame; half of the heads see an object.

    Parameters
    ----------
    layers, heads, rows, columns, dim : int
        Layers, heads of each, token grid, size of a head.

    """

    def __init__(self, layers: int, heads: int, rows: int, columns: int, dim: int) -> None:
        import torch

        from drift_ros.engine.frame_features import FrameFeatures, LayerFeatures

        generator = torch.Generator().manual_seed(0)
        self.mask = np.zeros((8 * rows, 8 * columns), np.uint8)
        top, left = 8 * (rows // 4), 8 * (columns // 4)
        self.mask[top : top + 8 * (rows // 3), left : left + 8 * (columns // 3)] = 1
        seen = torch.from_numpy(self.mask[::8, ::8].astype(np.float32))[None, ..., None]
        found = []
        for _ in range(layers):
            key = torch.randn(heads, rows, columns, dim, generator=generator)
            mark = torch.randn((heads - heads // 2, 1, 1, dim), generator=generator)
            key[heads // 2 :] += 3.0 * seen * mark
            found.append(LayerFeatures(key, key))
        self.image = np.zeros((*self.mask.shape, 3), np.uint8)
        self._found = FrameFeatures(tuple(found), self.image)

    def extract(self, frame: np.ndarray) -> Any:
        """Give the features, whatever the frame."""
        return self._found

    extract_resized = extract


def time_heads(
    layers: int, heads: int, rows: int, columns: int, dim: int, radius: int, repeats: int
) -> dict[str, float]:
    """
    Time seeds and steps on random features, half of the heads useless: medians in milliseconds.

    The passes of the network over altered copies, which the choice of weights needs besides,
    take no time here.
    """
    from drift_ros.api import Tracker
    from drift_ros.engine.config import TrackerConfig

    features = RandomHeads(layers, heads, rows, columns, dim)
    found: dict[str, float] = {}
    for name, weighting in (('all heads', 'uniform'), ('heads in use', 'adaptive')):
        config = TrackerConfig.of(
            {
                'kernel.radius': radius,
                'refinement.method': 'none',
                'experimental.head_weighting': weighting,
            }
        )
        tracker = Tracker(config=config, features=features)
        seeds, steps = [], []
        for _ in range(1 + repeats):  # the first is slower and left out
            tracker.reset()
            start = time.perf_counter()
            tracker.seed(features.image, features.mask)
            seeds.append(1e3 * (time.perf_counter() - start))
            steps.append(tracker.step(features.image).timings['propagation'])
        found[f'seed, {name}'] = float(np.median(seeds[1:]))
        found[f'propagation of a frame, {name}'] = float(np.median(steps[1:]))
    whole, used = (
        [found[f'{what}, {which}'] for which in ('all heads', 'heads in use')]
        for what in ('seed', 'propagation of a frame')
    )
    return {
        **found,
        f'choice of weights (3 x 8 heads: {HEADS_BUDGET:.0f} at most)': whole[1] - whole[0],
        'saved by heads of weight zero, per frame': used[0] - used[1],
    }


def draw_refiners(
    frames: Sequence[np.ndarray], mask: np.ndarray, names: Sequence[str], after: Sequence[int]
) -> np.ndarray:
    """
    Draw the masks of refiners beside each other.

    Parameters
    ----------
    frames : sequence of np.ndarray
        (H, W, 3) uint8 RGB.
    mask : np.ndarray
        (H, W) labels in the first frame.
    names : sequence of str
        Of refiners, a column each.
    after : sequence of int
        Tracked frames to show, a row each.

    Returns
    -------
    np.ndarray
        (h, w, 3) uint8 RGB.

    """
    from drift_ros import Tracker, TrackerConfig
    from drift_ros.media.overlay import contact_sheet, draw_labels

    cells = {}
    for name in names:
        tracker = Tracker(config=TrackerConfig.of({'refinement.method': name}))
        tracker.seed(frames[0], mask)
        for index, frame in enumerate(frames[1:], start=1):
            labels = tracker.step(frame).labels
            if index in after:
                cells[index, name] = draw_labels(frame, labels, 0.4)
    order = [(index, name) for index in after for name in names]
    return contact_sheet(
        [cells[key] for key in order], 3, captions=[f'{name}, +{index}' for index, name in order]
    )
