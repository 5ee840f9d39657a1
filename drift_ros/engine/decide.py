# SPDX-License-Identifier: Apache-2.0
"""
What is made of probabilities: who is found, who wins a pixel. Pure functions.

``soft`` is (h, w, 1 + objects) float32, a distribution over background (channel 0) and objects
at each token; ``channels`` gives the label channel of objects by id.
"""

from collections.abc import Collection, Iterable, Mapping

import numpy as np
import torch
from torch import Tensor

from drift_ros.engine.config import StateOptions
from drift_ros.engine.protocols import Piece


def confidence_of(mass: Tensor) -> float:
    """Mean of an object's probability (h, w), weighted by itself: 1 crisp, near 0 diffuse."""
    total = float(mass.sum())
    return float(mass.square().sum()) / total if total > 0 else 0.0


def seen(
    confidence: Mapping[int, float],
    existence: Mapping[int, float],
    missing: Collection[int],
    options: StateOptions,
) -> list[int]:
    """
    Say which objects are in the frame; of missing ones one has to be surer.

    Parameters
    ----------
    confidence, existence : mapping of int to float
        By object id.
    missing : collection of int
        Ids of those that were not found in the last frame.
    options : StateOptions

    """
    return [
        number
        for number in existence
        if confidence[number] >= options.confidence
        and existence[number] >= (options.recovery if number in missing else options.existence)
    ]


def recall(soft: Tensor, search: Tensor, channel: int) -> Tensor:
    """
    Take one object from a search of the whole frame.

    Parameters
    ----------
    soft, search : Tensor
        What the windows and the search say.
    channel : int
        Of the object.

    """
    mass = search[..., channel]
    rest = soft.clone()
    rest[..., channel] = 0.0
    rest /= rest.sum(dim=-1, keepdim=True).clamp_min(1e-6)
    soft = rest * (1.0 - mass[..., None])
    soft[..., channel] = mass
    return soft


def others(channels: Mapping[int, int], object_ids: Collection[int]) -> list[int]:
    """Channels of all objects but these."""
    return [channel for number, channel in channels.items() if number not in object_ids]


def vote(soft: Tensor, votes: Tensor) -> Tensor:
    """Add votes (h, w, objects) to the log-odds of each object against everything else."""
    moved = torch.cat([soft[..., :1], soft[..., 1:] * votes.exp()], dim=-1)
    return moved / moved.sum(dim=-1, keepdim=True).clamp_min(1e-12)


def leave_out(soft: Tensor, absent: Collection[int]) -> Tensor:
    """Give the channels of objects that were not found to the background."""
    if not absent:
        return soft
    soft = soft.clone()
    for channel in absent:
        soft[..., 0] += soft[..., channel]
        soft[..., channel] = 0.0
    return soft


def forget(soft: Tensor, absent: Collection[int]) -> Tensor:
    """
    Take the channels of objects that were not found away; what they held belongs to nobody.

    A frame remembered so says nothing, rather than "background", where they may have been.
    """
    if not absent:
        return soft
    soft = soft.clone()
    soft[..., list(absent)] = 0.0
    return soft


def compete(
    soft: Tensor, channels: Mapping[int, int], stretch: bool = True
) -> dict[int, np.ndarray]:
    """
    Scale the probabilities of found objects so that they can compete for tokens.

    Parameters
    ----------
    soft : Tensor
    channels : mapping of int to int
        Of the objects that were found.
    stretch : bool
        Stretch each to [0, 1] over the frame first.

    Returns
    -------
    dict of int to np.ndarray
        By object id, (h, w) float32 in [0, 1]; with the background's they sum to 1.

    """
    if not channels:
        return {}
    maps = soft.permute(2, 0, 1).cpu().numpy()
    shown = {number: maps[channel] for number, channel in {0: 0, **channels}.items()}
    if stretch:
        shown = {number: _stretch(values) for number, values in shown.items()}
    total = np.maximum(sum(shown.values()), 1e-6)
    return {number: values / total for number, values in shown.items() if number}


def nothing(size: tuple[int, int], last_id: int = 0) -> np.ndarray:
    """Label image (H, W) without objects: uint8, or uint16 if ids go up to more than 255."""
    return np.zeros(size, np.uint16 if last_id > 255 else np.uint8)


def assign(pieces: Iterable[tuple[int, Piece]], empty: np.ndarray) -> np.ndarray:
    """
    Give each pixel to the most probable object, or to the background.

    Parameters
    ----------
    pieces : iterable of tuple
        Object ids and where they are with what probability; one at a time is held.
    empty : np.ndarray
        As :func:`nothing` gives it.

    Returns
    -------
    np.ndarray
        Like ``empty``; pixel = object id, 0 = background.

    """
    labels = empty.copy()
    best = np.zeros(labels.shape, np.float32)
    background = np.ones(labels.shape, np.float32)
    for number, (area, probability) in pieces:
        background[area] -= probability
        np.copyto(labels[area], number, where=probability > best[area])
        np.maximum(best[area], probability, out=best[area])
    labels[best <= background] = 0
    return labels


def visible(labels: np.ndarray, ids: Iterable[int]) -> set[int]:
    """Give those of some objects that have a pixel in a label image (H, W)."""
    wanted = set(ids)
    found = wanted & set(np.unique(labels[::4, ::4]).tolist())
    return found | {number for number in wanted - found if (labels == number).any()}


def _stretch(channel: np.ndarray) -> np.ndarray:
    """Min-max normalise (h, w), as DINO's video segmentation evaluation does."""
    low, high = float(channel.min()), float(channel.max())
    return (channel - low) / (high - low) if high > low else channel
