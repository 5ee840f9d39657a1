# SPDX-License-Identifier: Apache-2.0
"""Where the objects are: what kernel and online prompt say of a frame. A pure function."""

from torch import Tensor

from drift_ros.engine import decide
from drift_ros.engine.frame_features import FrameFeatures
from drift_ros.engine.prompt import Judgement
from drift_ros.engine.state import State


def find(features: FrameFeatures, tokens: Tensor, state: State) -> Judgement:
    """
    Ask kernel and online prompt; for missing objects, in the whole frame as well.

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
    return judged
