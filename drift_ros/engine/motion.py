# SPDX-License-Identifier: Apache-2.0
"""
Motion: what moves with an object, and what stays with the background.

What leaked into a look-alike stays where that is while the object moves on, and what turns into
view moves with the object: neither looks can tell. So for every token that is not settled two
hypotheses are compared by what they predict of the picture: it came along with the object, or
with the background. Each one's motion is an affine map, fitted robustly to dense optical flow
(DIS, Kroeger et al., "Fast Optical Flow using Dense Inverse Search", ECCV 2016). Where both
predict the same, because nothing moves, or nothing is to be seen, neither gains.

Pure functions; images are small, and all is done on the CPU.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from drift_ros.engine.reference import Reference

# Pixels of a side that flow can be told of.
_SMALLEST = 16
# Tokens that are needed to tell a motion; rounds of fitting it.
_FEWEST, _ROUNDS = 6.0, 4
# Pixels by which a flow that is exact is off; weight of the prior that things do not deform.
_EXACT, _STIFF = 0.4, 30.0
# Weight of the affine motion against what tokens nearby say.
_ALONE = 0.05
# Tokens of which a quarter is enough to fit an affine map.
_MANY = 2000.0


@dataclass(frozen=True)
class MotionOptions:
    """
    How motion votes; the defaults were chosen on videos.

    Attributes
    ----------
    gain : float
        Factor of both of the next. 0: motion has no vote.
    joining, leaving : float
        Log-odds at most that something moves with the object, or with the background.
    noise : float
        Difference of two pixels, summed over three channels of 256 levels, that means nothing.
    slip : float
        Pixels by which a motion that is right may be off: what differs so means nothing, too.
    reach : int
        Pixels are compared by squares of so many.
    bend, bend_rest : float
        Tokens within which an object, or the background, bends.
    floor : float
        Where an object is less probable than this, motion has no vote.

    """

    gain: float = 1.0
    joining: float = 2.0
    leaving: float = 2.0
    noise: float = 6.0
    slip: float = 0.25
    reach: int = 5
    bend: float = 4.0
    bend_rest: float = 0.0
    floor: float = 0.005


def motion_votes(
    image: np.ndarray,
    before: Reference,
    soft: Tensor,
    channels: Sequence[int],
    options: MotionOptions,
) -> Tensor:
    """
    Tell what moved with each object since an earlier frame.

    Parameters
    ----------
    image : np.ndarray
        (H, W, 3) uint8 RGB, the frame as the network saw it.
    before : Reference
        An earlier frame with its image, and what was where in it.
    soft : Tensor
        (h, w, 1 + objects) in [0, 1], what is where now, as far as is known without motion.
    channels : sequence of int
        Of the objects to look at.
    options : MotionOptions

    Returns
    -------
    Tensor
        (h, w, 1 + objects) float32, log-odds to add; 0 for the background, for objects that are
        not looked at, and for those too small to have a motion of their own.

    """
    votes = torch.zeros_like(soft)
    earlier = before.features.image
    if not options.gain or earlier is None or earlier.shape != image.shape:
        return votes
    if min(image.shape[:2]) < _SMALLEST:
        return votes
    maps = soft.permute(2, 0, 1).cpu().numpy()
    held = before.labels.permute(2, 0, 1).cpu().numpy()
    pictures = [cv2.cvtColor(each, cv2.COLOR_RGB2LAB) for each in (image, earlier)]
    places = _places(pictures[0], maps[0].shape)
    flow = _flow(pictures, maps[0].shape)
    rest = _motion(places, flow, np.clip(4.0 * maps[0] - 3.0, 0.0, 1.0), options.bend_rest)
    if rest is None:
        return votes
    near_any = maps[list(channels)].max(axis=0) >= options.floor
    if not near_any.any():
        return votes
    origin, inside = _origin(places + rest, pictures[1])
    whole = _extent(near_any)
    away, noise = np.zeros_like(maps[0]), np.zeros_like(maps[0])
    away[whole] = _difference(pictures, rest, whole, options.reach)
    aside = np.full_like(places, options.slip)
    noise[whole] = _difference([pictures[0]] * 2, aside, whole, options.reach)
    for channel in channels:
        near = maps[channel] >= options.floor
        weight = np.clip(2.0 * maps[channel] - 1.0, 0.0, 1.0)
        own = _motion(places, flow, weight, options.bend)
        if own is None or not near.any():
            continue
        area = _extent(near)
        along = _difference(pictures, own, area, options.reach)
        contrast = away[area] - along
        contrast /= away[area] + along + noise[area] + options.noise
        contrast[~(near & inside & _origin(places + own, pictures[1])[1])[area]] = 0.0
        # what the object has just uncovered is not to be found in the background of before
        free = 1.0 - np.clip(2.0 * held[channel][origin][area], 0.0, 1.0)
        contrast *= np.where(contrast > 0.0, options.joining * free, options.leaving)
        # what is sure stays
        unsettled = 4.0 * options.gain * maps[channel][area] * (1.0 - maps[channel][area])
        votes[(*area, channel)] = torch.from_numpy(contrast * unsettled).to(votes)
    return votes


def _flow(pictures: Sequence[np.ndarray], grid: tuple[int, ...]) -> np.ndarray:
    """Where each token of the grid came from: (h, w, 2) float32, in pixels from where it is."""
    now, old = (np.ascontiguousarray(picture[..., 0]) for picture in pictures)
    method = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    flow = method.calc(now, old, np.zeros((*now.shape, 2), np.float32))
    return cv2.resize(flow, grid[::-1], interpolation=cv2.INTER_AREA)


def _places(picture: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Pixel (x, y) of the centre of each token: (h, w, 2) float32."""
    rows, columns = (
        (np.arange(count, dtype=np.float32) + 0.5) * (size / count) - 0.5
        for size, count in zip(picture.shape, grid, strict=False)
    )
    return np.stack(np.meshgrid(columns, rows), axis=-1)


def _motion(
    places: np.ndarray, flow: np.ndarray, weight: np.ndarray, bend: float
) -> np.ndarray | None:
    """
    Say where each token came from, if it moves with those of some weights (h, w).

    That is an affine map, fitted robustly, and how far tokens nearby are off it on average:
    things bend. Places, flow and the result are (h, w, 2), (x, y) in pixels; flow and result from
    where a token is. None: too few weigh anything.
    """
    if weight.sum() < _FEWEST:
        return None
    # of many tokens every second of each axis tells the affine map as well
    every = slice(None, None, 2 if weight.sum() > _MANY else 1)
    some = weight[every, every]
    used = some > 0.0
    count, place, shift = some[used], places[every, every][used], flow[every, every][used]
    centre = np.average(place, axis=0, weights=count)
    spread = 2.0 * np.sqrt(np.average(((place - centre) ** 2).sum(axis=1), weights=count)) + 1.0
    basis = np.concatenate([np.ones((len(place), 1)), (place - centre) / spread], axis=1)
    for _ in range(_ROUNDS):
        moments = (basis * count[:, None]).T @ basis + np.diag([1e-3, _STIFF, _STIFF])
        solution = np.linalg.solve(moments, (basis * count[:, None]).T @ shift)
        off = np.linalg.norm(shift - basis @ solution, axis=1)
        count = some[used] / (1.0 + (off / max(_EXACT, 1.5 * float(np.median(off)))) ** 2)
    turn, shift = (part.astype(np.float32) for part in (solution[1:] / spread, solution[0]))
    affine = (places - centre.astype(np.float32)) @ turn + shift
    if not bend:
        return affine
    weight = weight.astype(np.float32)[..., None]
    nearby = cv2.GaussianBlur(np.concatenate([weight * (flow - affine), weight], 2), (0, 0), bend)
    return affine + nearby[..., :2] / (nearby[..., 2:] + _ALONE)


def _origin(
    came: np.ndarray, picture: np.ndarray
) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Row and column of the token at pixels (h, w, 2), (x, y), and if these are in view."""
    size, count = np.array(picture.shape[1::-1]), np.array(came.shape[1::-1])
    inside = np.all((came >= 0) & (came <= size - 1), axis=-1)
    token = np.clip((came + 0.5) * count / size, 0, count - 1).astype(int)
    return (token[..., 1], token[..., 0]), inside


def _extent(near: np.ndarray) -> tuple[slice, slice]:
    """Rows and columns that hold all True tokens of (h, w)."""
    left, top, width, height = cv2.boundingRect(near.astype(np.uint8))
    return slice(top, top + height), slice(left, left + width)


def _difference(
    pictures: Sequence[np.ndarray],
    motion: np.ndarray,
    area: tuple[slice, slice],
    reach: int,
) -> np.ndarray:
    """Difference of what is seen in an area of tokens and what a motion predicts: float32."""
    now, old = pictures
    rows, columns = (
        slice(part.start * size // count, part.stop * size // count)
        for part, size, count in zip(area, now.shape, motion.shape, strict=False)
    )
    seen = now[rows, columns]
    source = cv2.resize(motion[area], seen.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    source[..., 0] += np.arange(columns.start, columns.stop, dtype=np.float32)
    source[..., 1] += np.arange(rows.start, rows.stop, dtype=np.float32)[:, None]
    predicted = cv2.remap(old, source, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    difference = cv2.transform(cv2.absdiff(seen, predicted), np.ones((1, 3), np.float32))
    blurred = cv2.blur(difference.astype(np.float32), (reach, reach))
    return cv2.resize(blurred, motion[area].shape[1::-1], interpolation=cv2.INTER_AREA)
