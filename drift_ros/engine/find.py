# SPDX-License-Identifier: Apache-2.0
"""Where the objects are: what kernel, online prompt and motion say of a frame. Pure functions."""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses

import numpy as np
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
# Sizes, besides its own, in which a frame of another camera is looked at, all of them at once.
_ELSEWHERE = (0.5, 0.7, 1.4, 2.0)


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


def seek(
    frame: np.ndarray, state: State, object_id: int, stretch: bool
) -> tuple[float, np.ndarray]:
    """
    Look for an object in a frame of another camera: anywhere, and in other sizes.

    Parameters
    ----------
    frame : np.ndarray
        (H, W, 3) uint8 RGB.
    state : State
        Of the tracker that follows the object.
    object_id : int
    stretch : bool
        As of :func:`~drift_ros.engine.decide.compete`.

    Returns
    -------
    float
        Probability that it is there.
    np.ndarray
        (h, w) float32 in [0, 1], where.

    """
    features = state.features.extract(frame)
    features.check()
    wanted = state.table.select([object_id])
    existence, best = 0.0, torch.zeros(*features.grid, 1 + len(state.table.channels))
    for view, seen in _views(features, describe(features), state, _ELSEWHERE):
        for _, _, found in _searched(view, seen, state, _blank(view, state), wanted):
            if found.existence[object_id] > existence:
                existence = found.existence[object_id]
                best = resize_labels(found.soft[None], features.grid, 'bilinear')[0]
    alone = decide.leave_out(best, decide.others(state.table.channels, [object_id]))
    return existence, decide.compete(alone, wanted, stretch)[object_id]


def _sought(judged: Judgement, features: FrameFeatures, tokens: Tensor, state: State) -> Judgement:
    """Look for missing objects in the whole frame, for lost ones at another scale as well."""
    ids, kernel, sure = list(state.table.channels), judged.kernel, dict[int, Judgement]()
    scale = _scale(state)
    for view, seen in _views(features, tokens, state, [scale] if scale else []):
        before = judged.kernel if view is features else _blank(view, state)
        searched = _searched(view, seen, state, before, state.table.missing)
        for number, search, found in searched:
            if found.existence[number] > sure.get(number, judged).existence[number]:
                sure[number] = found
                mass = resize_labels(search[None], features.grid, 'bilinear')[0]
                kernel = decide.recall(kernel, mass, state.table.missing[number])
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


def _views(
    features: FrameFeatures, tokens: Tensor, state: State, scales: Sequence[float]
) -> Iterator[tuple[FrameFeatures, Tensor]]:
    """Give a frame and its tokens, then the same so many times as large, where that is known."""
    yield features, tokens
    if features.image is not None and isinstance(state.features, Extractor):
        for scale in scales:
            scaled = state.features.extract_scaled(features.image, scale)
            yield scaled, describe(scaled)


def _blank(view: FrameFeatures, state: State) -> Tensor:
    """Say "background" everywhere: (h, w, 1 + objects)."""
    labels = view.layers[0].query.new_zeros(*view.grid, 1 + len(state.table.channels)).float()
    labels[..., 0] = 1.0
    return labels


def _searched(
    view: FrameFeatures,
    tokens: Tensor,
    state: State,
    before: Tensor,
    wanted: Mapping[int, int],
) -> Iterator[tuple[int, Tensor, Judgement]]:
    """
    Search a whole view for objects, given by id and channel.

    Gives each one's id, the kernel's search for all, and what is judged of it where the search
    takes the place of what the kernel said ``before``.
    """
    ids = list(state.table.channels)
    search = state.memory.search(view, state.weighting.weights, wanted.values())
    scores = state.target.scores(tokens, ids)
    for number, channel in wanted.items():
        wide = decide.recall(before, search, channel)
        yield number, search, state.target.judge(tokens, wide, ids, (number,), scores)


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
