# SPDX-License-Identifier: Apache-2.0
"""Where the objects are: what kernel, online prompt and motion say of a frame. Pure functions."""

import dataclasses

from torch import Tensor

from drift_ros.engine import decide
from drift_ros.engine.frame_features import FrameFeatures
from drift_ros.engine.motion import motion_votes
from drift_ros.engine.prompt import Judgement
from drift_ros.engine.state import State


def find(features: FrameFeatures, tokens: Tensor, state: State) -> Judgement:
    """
    Ask kernel, online prompt and motion; for missing objects, in the whole frame as well.

    Parameters
    ----------
    features : FrameFeatures
    tokens : Tensor
        (h, w, c), :func:`~drift_ros.engine.prompt.describe` of them.
    state : State
        Of which the memory, the online prompt and the head weights are asked.

    Returns
    -------
    Judgement
        Channels in the order of the table's.

    """
    weights, ids = state.weighting.weights, list(state.table.channels)
    judged = state.target.judge(tokens, state.memory.read(features, weights), ids)
    missing = state.table.missing
    if missing:
        search = state.memory.search(features, weights, missing.values())
        kernel = judged.kernel
        for number, channel in missing.items():
            wide = decide.recall(kernel, search, channel)
            other = state.target.judge(tokens, wide, ids, asked=(number,))
            if other.existence[number] > judged.existence[number]:
                kernel = wide
        if kernel is not judged.kernel:
            judged = state.target.judge(tokens, kernel, ids)
    return _moved(judged, features, state)


def _moved(judged: Judgement, features: FrameFeatures, state: State) -> Judgement:
    """Let motion vote on the objects that were there in the last frame, too."""
    table, before = state.table, state.memory.latest
    followed = [
        channel for number, channel in table.channels.items() if number not in table.missing
    ]
    if features.image is None or before is None or not followed:
        return judged
    votes = motion_votes(features.image, before, judged.soft, followed, state.motion)
    return dataclasses.replace(judged, soft=decide.vote(judged.soft, votes[..., 1:]))
