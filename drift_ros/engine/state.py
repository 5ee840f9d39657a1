# SPDX-License-Identifier: Apache-2.0
"""Everything a tracker knows, as one value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from drift_ros.engine.config import TrackerConfig
from drift_ros.engine.head_weights import HeadWeighting
from drift_ros.engine.memory import ReferenceMemory
from drift_ros.engine.motion import MotionOptions
from drift_ros.engine.prompt import PromptOptions, TargetModel
from drift_ros.engine.protocols import FeatureExtractor
from drift_ros.engine.table import ObjectTable


@dataclass(frozen=True)
class State:
    """
    Everything a tracker knows; a value, of which nothing is ever changed.

    Attributes
    ----------
    features : FeatureExtractor
        With the prompt it is conditioned on.
    table : ObjectTable
    memory : ReferenceMemory
    weighting : HeadWeighting
    target : TargetModel
        The online prompt.
    motion : MotionOptions
        How motion votes.
    looks : mapping of int to object
        What the refiner saw of each object in its seed frame, by id.
    shown : np.ndarray, optional
        (H, W) label image of the last frame, or of a seed since.
    frames : int
        Frames tracked so far.

    """

    features: FeatureExtractor
    table: ObjectTable
    memory: ReferenceMemory
    weighting: HeadWeighting
    target: TargetModel
    motion: MotionOptions
    looks: Mapping[int, Any] = field(default_factory=dict)
    shown: np.ndarray | None = None
    frames: int = 0

    @classmethod
    def blank(
        cls, features: FeatureExtractor, config: TrackerConfig, ids: tuple[int, int]
    ) -> State:
        """Know nothing yet; ids are the first one, and the distance to the next."""
        return cls(
            features,
            ObjectTable(next_id=ids[0], step=ids[1]),
            ReferenceMemory(config),
            HeadWeighting(config),
            TargetModel.empty(PromptOptions(gain=config.target.gain, rate=config.target.rate)),
            MotionOptions(gain=config.motion.gain),
        )
