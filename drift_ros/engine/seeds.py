# SPDX-License-Identifier: Apache-2.0
"""Seeds: masks that say what to follow, checked before anything is changed by them."""

from collections.abc import Mapping
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from drift_ros.engine.errors import FrameError, SeedError
from drift_ros.engine.table import ObjectInfo

# Share of what was last seen of an object from which a new seed is said to cover it.
_COVERED = 0.5


@dataclass(frozen=True)
class SeedRequest:
    """
    A checked seed whose ids are reserved; see :meth:`drift_ros.Tracker.prepare_seed`.

    Attributes
    ----------
    frame : np.ndarray
        (H, W, 3) uint8 RGB.
    mask : np.ndarray
        (H, W) integer.
    labels : tuple of int
        Distinct non-zero labels of the mask, ascending.
    object_ids : tuple of int
        The id of each label's object.
    names : tuple of str
        Its name.
    corrected : frozenset of int
        Ids of objects that were there before, and are corrected by this seed.
    notes : tuple of str
        What to tell who seeds, for each label; '' where there is nothing to say.

    """

    frame: np.ndarray
    mask: np.ndarray
    labels: tuple[int, ...]
    object_ids: tuple[int, ...]
    names: tuple[str, ...]
    corrected: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()


def check_frame(frame: np.ndarray) -> None:
    """
    Check that a frame is (H, W, 3) uint8.

    Raises
    ------
    FrameError

    """
    if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3:
        shape = getattr(frame, 'shape', type(frame).__name__)
        raise FrameError(f'the frame has shape {shape}; it must be (height, width, 3) RGB')
    if frame.dtype != np.uint8:
        raise FrameError(f'the frame has type {frame.dtype}; it must be uint8 RGB')
    if min(frame.shape[:2]) < 16:
        size = f'{frame.shape[1]}x{frame.shape[0]}'
        raise FrameError(f'the frame is {size}; it must be at least 16x16')


def distinct_labels(label_mask: np.ndarray, size: tuple[int, ...], resolution: int) -> list[int]:
    """
    Give the labels of a mask, ascending, after checking that each can be followed.

    Parameters
    ----------
    label_mask : np.ndarray
        (H, W) integer; 0 = background.
    size : tuple of int
        (H, W) of the frame.
    resolution : int
        Pixels of the frame's shorter side as the model sees it.

    Raises
    ------
    SeedError
        With a reason for each label that is too small.

    """
    if label_mask.ndim != 2 or not np.issubdtype(label_mask.dtype, np.integer):
        raise SeedError(
            f'the mask has shape {label_mask.shape} and type {label_mask.dtype}; it must be one '
            'channel of integer labels, 0 = background'
        )
    if label_mask.shape != tuple(size):
        raise SeedError(
            f'the mask is {label_mask.shape[1]}x{label_mask.shape[0]} and the image '
            f"{size[1]}x{size[0]}; give the mask at the image's size (resize it with "
            'nearest-neighbour interpolation)'
        )
    labels, areas = np.unique(label_mask, return_counts=True)
    areas = areas[labels != 0]
    labels = labels[labels != 0]
    if not labels.size:
        raise SeedError('the mask is empty; mark each object with its own label from 1 up')
    if labels[0] < 0:
        raise SeedError(f'the mask has the negative label {labels[0]}; use labels from 1 up')
    # A token of a stride-4 grid covers this many pixels of the frame.
    least = max(round((4 * min(label_mask.shape) / resolution) ** 2), 1)
    reasons = {
        int(label): f'{area} pixels; at resolution {resolution} an object needs {least}: mark '
        'more of it, or raise the resolution'
        for label, area in zip(labels, areas, strict=True)
        if area < least
    }
    if reasons:
        listed = '; '.join(f'label {label}: {why}' for label, why in reasons.items())
        raise SeedError(f'too small to follow: {listed}', reasons)
    return labels.tolist()


def covered(mask: np.ndarray, shown: np.ndarray | None, infos: tuple[ObjectInfo, ...]) -> str:
    """
    Say which live object a new mask (H, W) bool lies on, by the last label image; '' if none.

    A second seed of the same thing makes a second object, and the first is soon lost.
    """
    if shown is None or shown.shape != mask.shape:
        return ''
    areas = np.bincount(shown.ravel())
    under = np.bincount(shown[mask], minlength=len(areas))
    notes = [
        f'covers {100 * under[info.id] / areas[info.id]:.0f} % of object {info.id} '
        f'({info.name}), which is followed already: to correct it, seed with its id'
        for info in infos
        if info.id < len(areas) and under[info.id] > _COVERED * areas[info.id]
    ]
    return '; '.join(notes)


def token_shares(masks: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Share of each token covered: (H, W, K) in [0, 1] to (h, w, K) float32 in [0, 1]."""
    height, width = grid
    shares = [
        cv2.resize(channel, (width, height), interpolation=cv2.INTER_AREA)
        for channel in np.moveaxis(masks.astype(np.float32), -1, 0)
    ]
    return torch.from_numpy(np.stack(shares, axis=-1))


def corrections(
    object_ids: Mapping[int, int] | None, labels: list[int], infos: tuple[ObjectInfo, ...]
) -> dict[int, ObjectInfo]:
    """
    Give, by label, the live objects that a seed corrects.

    Raises
    ------
    SeedError
        With a reason for each label whose object does not live, or that is not in the mask; or
        when two labels are to correct one object.

    """
    wanted = {label: number for label, number in (object_ids or {}).items() if number}
    known = {info.id: info for info in infos}
    reasons = {
        label: f'there is no label {label} in the mask'
        if label not in labels
        else f'there is no object {number} to correct; live objects: '
        f'{", ".join(map(str, known)) or "none"}'
        for label, number in wanted.items()
        if label not in labels or number not in known
    }
    twice = [number for number in wanted.values() if list(wanted.values()).count(number) > 1]
    if twice:
        raise SeedError(f'two labels of the mask are to correct object {twice[0]}')
    if reasons:
        raise SeedError('; '.join(reasons.values()), reasons)
    return {label: known[number] for label, number in wanted.items()}
