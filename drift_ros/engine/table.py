# SPDX-License-Identifier: Apache-2.0
"""Objects: identity, the checking of seed masks, and state over time."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
import threading

import cv2
import numpy as np

from drift_ros.engine.config import TrackerConfig
from drift_ros.engine.errors import FrameError, SeedError, UnknownObjectError


class ObjectState(IntEnum):
    """Whether an object was found in a frame."""

    TRACKING = 1
    """Seen."""
    OCCLUDED = 2
    """Not found for a moment."""
    LOST = 3
    """Not found for ``lost_after`` frames; searched for in the whole frame."""


@dataclass(frozen=True)
class ObjectInfo:
    """Identity of a live object: ``id`` from 1 up, never reused; ``name`` as given."""

    id: int
    name: str


@dataclass(frozen=True)
class ObjectEstimate:
    """
    One object in one frame.

    Attributes
    ----------
    id, name
        As in :class:`ObjectInfo`.
    state : ObjectState
    confidence : float
        [0, 1], probability the object's own tokens give it, weighted by that probability.
    box : tuple of int, optional
        (x_min, y_min, x_max, y_max) in pixels, maxima exclusive; None unless pixels are assigned.
    area : int
        Pixels.
    age : int
        Frames since the object was seeded.

    """

    id: int
    name: str
    state: ObjectState
    confidence: float
    box: tuple[int, int, int, int] | None
    area: int
    age: int


@dataclass(frozen=True)
class SeedRequest:
    """A checked seed whose ids are reserved; see :meth:`drift_ros.Tracker.prepare_seed`."""

    frame: np.ndarray
    mask: np.ndarray
    labels: tuple[int, ...]
    """Distinct non-zero labels of the mask, ascending."""
    object_ids: tuple[int, ...]
    """The id of each label's object."""
    names: tuple[str, ...]


@dataclass
class TrackedObject:
    """An object's slot in the tracker: identity and state over time."""

    info: ObjectInfo
    state: ObjectState = ObjectState.TRACKING
    age: int = 0
    missed: int = field(default=0)

    def update(self, found: bool, lost_after: int) -> None:
        """Count a frame in which the object was or was not found."""
        self.age += 1
        self.missed = 0 if found else self.missed + 1
        if found:
            self.state = ObjectState.TRACKING
        else:
            lost = self.missed >= lost_after or self.state is ObjectState.LOST
            self.state = ObjectState.LOST if lost else ObjectState.OCCLUDED


class ObjectRegistry:
    """
    Which objects there are, by id; thread safe.

    Seeds are checked here in milliseconds, apart from the network, so that a service can answer
    while a frame is being worked on.
    """

    def __init__(self, config: TrackerConfig) -> None:
        """Start empty."""
        self._config = config
        self._lock = threading.RLock()
        self._next_id = 1
        self._objects: dict[int, ObjectInfo] = {}
        self._seed_frames = 0
        self._frame_size: tuple[int, int] | None = None

    @property
    def objects(self) -> tuple[ObjectInfo, ...]:
        """Objects that are live or reserved, by ascending id."""
        with self._lock:
            return tuple(self._objects.values())

    def reserve(
        self,
        frame: np.ndarray,
        label_mask: np.ndarray,
        names: Sequence[str] | Mapping[int, str] | None,
    ) -> SeedRequest:
        """
        Check a seed and reserve ids; see :meth:`drift_ros.Tracker.prepare_seed`.

        Raises
        ------
        FrameError, SeedError

        """
        with self._lock:
            self.check_size(frame)
            labels, areas = _distinct_labels(label_mask, frame.shape[:2])
            named = _names(labels.tolist(), names)
            self._check_room(len(labels))
            # A token of a stride-4 grid covers this many pixels of the frame.
            least = max(
                round((4 * min(label_mask.shape) / self._config.features.resolution) ** 2), 1
            )
            reasons = {
                int(
                    label
                ): f'{area} pixels; at resolution {self._config.features.resolution} an object '
                f'needs {least}: mark more of it, or raise the resolution'
                for label, area in zip(labels, areas, strict=True)
                if area < least
            }
            if reasons:
                listed = '; '.join(f'label {label}: {why}' for label, why in reasons.items())
                raise SeedError(f'too small to follow: {listed}', reasons)
            ids = tuple(range(self._next_id, self._next_id + len(labels)))
            self._next_id += len(labels)
            infos = [
                ObjectInfo(number, name or f'object {number}')
                for number, name in zip(ids, named, strict=True)
            ]
            self._objects.update({info.id: info for info in infos})
            self._seed_frames += 1
            self._frame_size = frame.shape[:2]
        return SeedRequest(
            frame=frame,
            mask=label_mask,
            labels=tuple(labels.tolist()),
            object_ids=ids,
            names=tuple(info.name for info in infos),
        )

    def check(self, object_id: int) -> None:
        """Raise UnknownObjectError unless the id is live."""
        with self._lock:
            if object_id not in self._objects:
                known = ', '.join(map(str, self._objects)) or 'none'
                raise UnknownObjectError(f'no object {object_id}; live objects: {known}')

    def check_size(self, frame: np.ndarray) -> None:
        """Raise FrameError when the frame differs in size from those the objects live in."""
        check_frame(frame)
        with self._lock:
            if self._objects and frame.shape[:2] != self._frame_size:
                raise FrameError(
                    f'the frame is {_size(frame.shape)}, the objects were seeded in '
                    f'{_size(self._frame_size)}; reset the tracker and seed again, or resize the '
                    'frames'
                )

    def drop(self, object_id: int) -> None:
        """Forget an object; its id is not given again."""
        with self._lock:
            self._objects.pop(object_id, None)

    def set_seed_frames(self, count: int) -> None:
        """Say how many seed frames the memory holds."""
        with self._lock:
            self._seed_frames = count

    def clear(self) -> None:
        """Forget all objects."""
        with self._lock:
            self._objects.clear()
            self._seed_frames = 0

    def _check_room(self, count: int) -> None:
        config = self._config
        room = config.states.max_objects - len(self._objects)
        if count > room:
            raise SeedError(
                f'{count} objects in the mask and room for {room} (states.max_objects is '
                f'{config.states.max_objects}); remove objects, mark fewer, or raise it'
            )
        if self._objects and self._seed_frames >= config.memory.seed_frames:
            raise SeedError(
                f'{self._seed_frames} seed frames are kept (memory.seed_frames is '
                f'{config.memory.seed_frames}); seed several objects in one mask, remove '
                'objects, or raise memory.seed_frames'
            )


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
        raise FrameError(f'the frame is {_size(frame.shape)}; it must be at least 16x16')


def box_of(mask: np.ndarray) -> tuple[int, int, int, int] | None:
    """Bounding box (x_min, y_min, x_max, y_max) of a (H, W) mask, maxima exclusive."""
    x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
    return (x, y, x + width, y + height) if width else None


def _distinct_labels(
    label_mask: np.ndarray, size: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """Non-zero labels of a mask, ascending, and their pixel counts; SeedError when unusable."""
    if label_mask.ndim != 2 or not np.issubdtype(label_mask.dtype, np.integer):
        raise SeedError(
            f'the mask has shape {label_mask.shape} and type {label_mask.dtype}; it must be one '
            'channel of integer labels, 0 = background'
        )
    if label_mask.shape != size:
        raise SeedError(
            f'the mask is {_size(label_mask.shape)} and the image {_size(size)}; give the mask at '
            "the image's size (resize it with nearest-neighbour interpolation)"
        )
    labels, areas = np.unique(label_mask, return_counts=True)
    areas = areas[labels != 0]
    labels = labels[labels != 0]
    if not labels.size:
        raise SeedError('the mask is empty; mark each object with its own label from 1 up')
    if labels[0] < 0:
        raise SeedError(f'the mask has the negative label {labels[0]}; use labels from 1 up')
    return labels, areas


def _size(shape: tuple[int, ...] | None) -> str:
    return f'{shape[1]}x{shape[0]}' if shape else 'nothing'


def _names(labels: list[int], names: Sequence[str] | Mapping[int, str] | None) -> list[str]:
    if names is None or len(names) == 0:
        return [''] * len(labels)
    if isinstance(names, Mapping):
        return [names.get(label, '') for label in labels]
    if isinstance(names, str) or len(names) != len(labels):
        raise SeedError(
            f'{names!r} does not name the {len(labels)} objects of the mask (labels '
            f'{", ".join(map(str, labels))}); give one name a label, in ascending order, or none'
        )
    return list(names)
