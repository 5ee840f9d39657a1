# SPDX-License-Identifier: Apache-2.0
"""Seeds: masks that say what to follow, checked before anything is changed by them."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
import numbers
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from drift_ros.engine.errors import FrameError, listed, SeedError
from drift_ros.engine.frame_features import working_scale
from drift_ros.engine.table import listed_ids, ObjectInfo

# Share of what was last seen of an object from which a new seed is said to cover it.
_COVERED = 0.5
# A frame's longer side is at most so many times the shorter: the model sees the shorter one at a
# fixed size, so that a strip of 4000x16 would be 60000x240 to it.
_LONGEST = 64


@dataclass(frozen=True)
class SeedRequest:
    """
    A checked seed whose ids are reserved; see :meth:`drift_ros.Tracker.prepare_seed`.

    Attributes
    ----------
    frame : np.ndarray
        (H, W, 3) uint8 RGB; a copy, the seed may be applied later.
    mask : np.ndarray
        (H, W) integer; likewise.
    labels : tuple of int
        Distinct non-zero labels of the mask, ascending.
    infos : tuple of ObjectInfo
        Each label's object.
    corrected : frozenset of int
        Ids of objects that were there before, and are corrected by this seed.
    notes : tuple of str
        What to tell who seeds, for each label; '' where there is nothing to say.

    """

    frame: np.ndarray
    mask: np.ndarray
    labels: tuple[int, ...]
    infos: tuple[ObjectInfo, ...]
    corrected: frozenset[int] = frozenset()
    notes: tuple[str, ...] = ()

    @property
    def object_ids(self) -> tuple[int, ...]:
        """The id of each label's object."""
        return tuple(info.id for info in self.infos)

    @property
    def names(self) -> tuple[str, ...]:
        """Its name."""
        return tuple(info.name for info in self.infos)

    @property
    def reserved(self) -> tuple[ObjectInfo, ...]:
        """Objects that this seed brings."""
        return tuple(info for info in self.infos if info.id not in self.corrected)


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
    if max(frame.shape[:2]) > _LONGEST * min(frame.shape[:2]):
        raise FrameError(
            f'the frame is {frame.shape[1]}x{frame.shape[0]}; one side may be at most {_LONGEST} '
            'times the other: crop it'
        )


def label_array(label_mask: Any) -> np.ndarray:
    """
    Copy a mask into an array; what is hidden of a masked array is background.

    Raises
    ------
    SeedError
        It is none.

    """
    try:
        masked = isinstance(label_mask, np.ma.MaskedArray)
        return np.array(label_mask.filled(0) if masked else label_mask)
    except (TypeError, ValueError, RuntimeError) as error:
        raise SeedError(
            f'the mask is a {type(label_mask).__name__} that is no array ({error}); give an '
            '(H, W) array of integer labels, 0 = background'
        ) from None


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
    if label_mask.ndim != 2 or label_mask.dtype.kind not in 'iu':
        raise SeedError(
            f'the mask has shape {label_mask.shape} and type {label_mask.dtype}; it must be one '
            'channel of integer labels, 0 = background (of a bool mask, mask.astype(numpy.uint8))'
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
    height, width = label_mask.shape
    least = max(round((4 / working_scale(height, width, resolution)) ** 2), 1)
    reasons = {
        int(label): f'{area} pixels; at resolution {resolution} an object needs {least}: mark '
        'more of it, or raise the resolution'
        for label, area in zip(labels, areas, strict=True)
        if area < least
    }
    if reasons:
        texts = [f'label {label}: {why}' for label, why in reasons.items()]
        raise SeedError(f'too small to follow: {listed(texts)}', reasons)
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


def token_shares(masks: Iterable[np.ndarray], grid: tuple[int, int]) -> Tensor:
    """Share of each token covered: K masks (H, W) bool to (h, w, K) float32 in [0, 1]."""
    height, width = grid
    shares = [  # one after the other: together they may be large
        cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_AREA)
        for mask in masks
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
        when two labels are to correct one object, or this is no mapping of integers.

    """
    given = {} if object_ids is None else object_ids
    if not isinstance(given, Mapping) or not all(_whole(number) for number in given.values()):
        raise SeedError(
            f'object_ids is {given!r}; it must map labels of the mask to the integer ids of the '
            'objects they correct'
        )
    wanted = {label: int(number) for label, number in given.items() if number}
    known = {info.id: info for info in infos}
    reasons = {
        label: f'there is no label {label} in the mask'
        if label not in labels
        else f'there is no object {number} to correct; live objects: {listed_ids(known)}'
        for label, number in wanted.items()
        if label not in labels or number not in known
    }
    twice = [number for number in wanted.values() if list(wanted.values()).count(number) > 1]
    if twice:
        raise SeedError(f'two labels of the mask are to correct object {twice[0]}')
    if reasons:
        raise SeedError(listed(list(reasons.values())), reasons)
    return {label: known[number] for label, number in wanted.items()}


def _whole(number: Any) -> bool:
    """Say whether something can be an id; 0 and None stand for a new object."""
    return number is None or (isinstance(number, numbers.Integral) and type(number) is not bool)
