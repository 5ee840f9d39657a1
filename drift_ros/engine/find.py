# SPDX-License-Identifier: Apache-2.0
"""Where the objects are: what kernel, online prompt and motion say of a frame. Pure functions."""

import dataclasses

import torch
from torch import Tensor

from drift_ros.engine import decide
from drift_ros.engine.frame_features import FrameFeatures
from drift_ros.engine.kernel import resize_labels
from drift_ros.engine.motion import motion_votes
from drift_ros.engine.prompt import describe, Judgement
from drift_ros.engine.protocols import Extractor
from drift_ros.engine.state import State
from drift_ros.engine.table import ObjectState

# Of what is lost, larger pictures are looked at for what has become smaller, smaller ones for
# what has become larger; 0: only the frame as it is.
_SCALES = (0.5, 0.0, 1.6, 0.0)


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
    if state.table.missing:
        judged = _sought(judged, features, tokens, state)
    return _moved(judged, features, state)


def _sought(judged: Judgement, features: FrameFeatures, tokens: Tensor, state: State) -> Judgement:
    """Look for missing objects in the whole frame, for lost ones at another scale as well."""
    weights, missing = state.weighting.weights, state.table.missing
    ids, kernel, sure = list(state.table.channels), judged.kernel, dict[int, Judgement]()
    views = [(features, tokens)]
    scale = _scale(state)
    if scale and features.image is not None and isinstance(state.features, Extractor):
        scaled = state.features.extract_scaled(features.image, scale)
        views.append((scaled, describe(scaled)))
    for view, seen in views:
        search = state.memory.search(view, weights, missing.values())
        before = judged.kernel
        if view is not features:
            before = torch.zeros_like(search)
            before[..., 0] = 1.0
        scores = state.target.scores(seen, ids)
        mass = resize_labels(search[None], features.grid, 'bilinear')[0]
        for number, channel in missing.items():
            wide = decide.recall(before, search, channel)
            found = state.target.judge(seen, wide, ids, (number,), scores)
            if found.existence[number] > sure.get(number, judged).existence[number]:
                sure[number] = found
                kernel = decide.recall(kernel, mass, channel)
    if not sure:
        return judged
    judged = state.target.judge(tokens, kernel, ids)
    # a find is judged as large as it was sought
    existence = {number: found.existence[number] for number, found in sure.items()}
    shown = {number: found.shown[number] for number, found in sure.items()}
    return dataclasses.replace(
        judged,
        existence={**judged.existence, **existence},
        shown={**judged.shown, **shown},
    )


def _scale(state: State) -> float:
    """
    Give the scale at which lost objects are sought besides the frame's own; 0: none.

    Two frames each, as what is found has to be seen twice, and no more than half of them: a
    larger picture takes longer.
    """
    if ObjectState.LOST not in {entry.state for entry in state.table.tracked}:
        return 0.0
    return _SCALES[state.frames // 2 % len(_SCALES)]


def _moved(judged: Judgement, features: FrameFeatures, state: State) -> Judgement:
    """Let motion vote on the objects that were there in the last frame, too."""
    before = state.memory.latest
    followed = decide.others(state.table.channels, state.table.missing)
    if features.image is None or before is None or not followed:
        return judged
    votes = motion_votes(features.image, before, judged.soft, followed, state.motion)
    return dataclasses.replace(judged, soft=decide.vote(judged.soft, votes[..., 1:]))
