# SPDX-License-Identifier: Apache-2.0
"""
Which objects there are: identity, state, label channel, reservations.

The table is a value: every change gives a new one, so that who holds it commits a change by one
assignment. It alone knows which label channel is whose.
"""

from collections.abc import Collection, Mapping, Sequence
import dataclasses
from dataclasses import dataclass
from enum import IntEnum
import reprlib
from typing import Any

import numpy as np

from drift_ros.engine.errors import FrameError, listed, SeedError, UnknownObjectError

LAST_ID = 65_535
"""The highest id: masks are published with 16 bits a pixel."""


class ObjectState(IntEnum):
    """Whether an object was found in a frame."""

    TRACKING = 1
    """Seen."""
    OCCLUDED = 2
    """Not found for a moment."""
    LOST = 3
    """Not found for ``states.lost_after`` frames; searched for in the whole frame."""


@dataclass(frozen=True)
class ObjectInfo:
    """
    Identity of a live object: ``id`` from 1 up, never reused; ``name`` as given.

    ``origin`` is made with the reservation and stays, whatever the object is called later: a
    reservation that was given up and a later one that got its id are told apart by it.
    """

    id: int
    name: str
    origin: object = dataclasses.field(default_factory=object, repr=False, compare=False)
    adopted: bool = dataclasses.field(default=False, repr=False, compare=False)
    """Its id was given by another tracker."""

    def same(self, other: 'ObjectInfo') -> bool:
        """Say whether both are this very object, under whatever names."""
        return self.origin is other.origin


@dataclass(frozen=True)
class TrackedObject:
    """
    An object's identity and state over time.

    Attributes
    ----------
    info : ObjectInfo
    state : ObjectState
    age : int
        Frames since its seed.
    missed : int
        Frames in a row in which it was not found.
    seen : int
        The last of those in a row in which it was seen again, but not yet believed.

    """

    info: ObjectInfo
    state: ObjectState = ObjectState.TRACKING
    age: int = 0
    missed: int = 0
    seen: int = 0

    @property
    def believed(self) -> bool:
        """Whether it counts as found once seen: after a longer absence only twice in a row."""
        return self.missed <= 1 or self.seen >= 1

    def observed(self, seen: bool, found: bool, lost_after: int) -> 'TrackedObject':
        """Count a frame in which the object was seen or not, and found or not."""
        missed = 0 if found else self.missed + 1
        if found:
            state = ObjectState.TRACKING
        elif missed >= lost_after or self.state is ObjectState.LOST:
            state = ObjectState.LOST
        else:
            state = ObjectState.OCCLUDED
        again = self.seen + 1 if seen and not found else 0
        return TrackedObject(self.info, state, self.age + 1, missed, again)


@dataclass(frozen=True)
class ObjectTable:
    """
    All objects there are.

    Attributes
    ----------
    tracked : tuple of TrackedObject
        Those that are followed, in the order of their label channels 1, 2, ...; channel 0 is
        background.
    reserved : tuple of ObjectInfo
        Those of seeds that are prepared and not applied yet.
    next_id : int
        Every id below has been given, of those that are given here.
    step : int
        Ids are so far apart: trackers that share a range of ids give different ones.
    frame_size : tuple of int, optional
        (H, W) of the frames the objects live in; None while there are none.

    """

    tracked: tuple[TrackedObject, ...] = ()
    reserved: tuple[ObjectInfo, ...] = ()
    next_id: int = 1
    step: int = 1
    frame_size: tuple[int, int] | None = None

    @property
    def infos(self) -> tuple[ObjectInfo, ...]:
        """Objects that are followed or reserved, by ascending id."""
        followed = (entry.info for entry in self.tracked)
        return tuple(sorted((*followed, *self.reserved), key=lambda info: info.id))

    @property
    def channels(self) -> dict[int, int]:
        """Label channel of every object that is followed, by id, in the order of channels."""
        return {entry.info.id: channel for channel, entry in enumerate(self.tracked, start=1)}

    @property
    def missing(self) -> dict[int, int]:
        """The same for those that were not found in the last frame."""
        states = {entry.info.id: entry.state for entry in self.tracked}
        tracking = ObjectState.TRACKING
        return {key: channel for key, channel in self.channels.items() if states[key] != tracking}

    def check(self, object_id: int) -> None:
        """Raise UnknownObjectError unless the object is followed or reserved."""
        known = [info.id for info in self.infos]
        if object_id not in known:
            raise UnknownObjectError(f'no object {object_id!r}; live objects: {listed_ids(known)}')

    def check_size(self, size: tuple[int, ...]) -> None:
        """Raise FrameError when a frame of (H, W) is not of the size the objects live in."""
        if self.frame_size is not None and tuple(size) != self.frame_size:
            raise FrameError(
                f'the frame is {size[1]}x{size[0]}, the objects were seeded in '
                f'{self.frame_size[1]}x{self.frame_size[0]}; reset the tracker and seed again, or '
                'resize the frames'
            )

    def reserve(
        self,
        names: Sequence[str],
        size: tuple[int, int],
        most: int,
        adopted: Sequence[ObjectInfo] = (),
    ) -> tuple['ObjectTable', tuple[ObjectInfo, ...]]:
        """
        Give ids to new objects, one a name, in frames of (H, W).

        ``most`` objects may be there at once. An object without a name is called after its id.
        Those ``adopted`` from another tracker come after them, with the ids they have.

        Raises
        ------
        SeedError
            There is no room for so many, the ids are used up, or an id is taken here.

        """
        room, count = most - len(self.infos), len(names) + len(adopted)
        if count > room:
            raise SeedError(
                f'{count} objects in the mask and room for {room} (states.max_objects is '
                f'{most}); remove objects, mark fewer, or raise it'
            )
        taken = {info.id for info in self.infos} & {info.id for info in adopted}
        if taken:
            raise SeedError(f'object {min(taken)} is followed here already')
        end = self.next_id + len(names) * self.step
        if end - self.step > LAST_ID:
            raise SeedError(
                f'ids are never reused, and the last one, {LAST_ID}, has been given; start the '
                'tracker anew (of the node: cleanup, then configure)'
            )
        infos = tuple(
            ObjectInfo(number, name or f'object {number}')
            for number, name in zip(range(self.next_id, end, self.step), names, strict=True)
        ) + tuple(ObjectInfo(info.id, info.name, adopted=True) for info in adopted)
        table = dataclasses.replace(
            self, reserved=(*self.reserved, *infos), next_id=end, frame_size=size
        )
        return table, infos

    def holds(self, info: ObjectInfo) -> bool:
        """Say whether this very object, not another that has its id, is followed or reserved."""
        return any(info.same(known) for known in self.infos)

    def cancel(self, infos: Collection[ObjectInfo], *, reuse: bool) -> 'ObjectTable':
        """
        Give reservations up, those that are still there.

        With ``reuse``, their ids are given again if they are the last ones: nobody has been told
        of them.
        """
        gone = [info for info in self.reserved if any(info.same(own) for own in infos)]
        own_ids = {info.id for info in gone if not info.adopted}
        next_id = self.next_id
        while reuse and next_id - self.step in own_ids:
            next_id -= self.step
        kept = tuple(info for info in self.reserved if info not in gone)
        return dataclasses.replace(self, reserved=kept, next_id=next_id)._settled()

    def follow(self, object_ids: Collection[int]) -> 'ObjectTable':
        """Turn reservations into objects that are followed; they take the next channels."""
        new = tuple(TrackedObject(info) for info in self.reserved if info.id in object_ids)
        kept = tuple(info for info in self.reserved if info.id not in object_ids)
        return dataclasses.replace(self, tracked=(*self.tracked, *new), reserved=kept)

    def recover(self, object_ids: Collection[int]) -> 'ObjectTable':
        """Let objects that were just marked again be found, whatever they were before."""
        tracked = tuple(
            dataclasses.replace(entry, state=ObjectState.TRACKING, missed=0, seen=0)
            if entry.info.id in object_ids
            else entry
            for entry in self.tracked
        )
        return dataclasses.replace(self, tracked=tracked)

    @property
    def believed(self) -> frozenset[int]:
        """Objects that count as found once they are seen."""
        return frozenset(entry.info.id for entry in self.tracked if entry.believed)

    def observe(
        self, seen: Collection[int], found: Collection[int], lost_after: int
    ) -> 'ObjectTable':
        """Count a frame in which these objects were seen, and these of them found."""
        tracked = tuple(
            entry.observed(entry.info.id in seen, entry.info.id in found, lost_after)
            for entry in self.tracked
        )
        return dataclasses.replace(self, tracked=tracked)

    def remove(self, object_id: int) -> 'ObjectTable':
        """Forget an object; the channels behind its own move up."""
        tracked = tuple(entry for entry in self.tracked if entry.info.id != object_id)
        reserved = tuple(info for info in self.reserved if info.id != object_id)
        return dataclasses.replace(self, tracked=tracked, reserved=reserved)._settled()

    def rename(self, object_id: int, name: str) -> 'ObjectTable':
        """
        Call an object otherwise; without a name, after its id.

        Raises
        ------
        UnknownObjectError

        """
        self.check(object_id)
        chosen = name or f'object {object_id}'

        def named(info: ObjectInfo) -> ObjectInfo:
            return dataclasses.replace(info, name=chosen) if info.id == object_id else info

        return dataclasses.replace(
            self,
            tracked=tuple(
                dataclasses.replace(entry, info=named(entry.info)) for entry in self.tracked
            ),
            reserved=tuple(named(info) for info in self.reserved),
        )

    def clear(self) -> 'ObjectTable':
        """Forget all objects; their ids are not given again."""
        return ObjectTable(next_id=self.next_id, step=self.step)

    def select(self, object_ids: Collection[int]) -> dict[int, int]:
        """Label channels of some objects, by id, in the order of channels."""
        return {key: channel for key, channel in self.channels.items() if key in object_ids}

    def _settled(self) -> 'ObjectTable':
        """Without objects, frames may be of any size."""
        if self.tracked or self.reserved:
            return self
        return dataclasses.replace(self, frame_size=None)


def names_of(
    labels: Sequence[int], names: Sequence[str] | Mapping[int, str] | None
) -> dict[int, str]:
    """
    Give each label of a mask its name, '' where none was given.

    Raises
    ------
    SeedError
        A sequence does not have one name a label, or a name is no text.

    """
    if names is None:
        return dict.fromkeys(labels, '')
    if isinstance(names, Mapping):
        chosen: dict[int, Any] = {label: names.get(label) for label in labels}
    else:
        ordered = not isinstance(names, (str, bytes)) and isinstance(names, (Sequence, np.ndarray))
        given: list[Any] = list(names) if ordered else [names]
        if not ordered or len(given) not in (0, len(labels)):
            raise SeedError(
                f'{reprlib.repr(names)} does not name the {len(labels)} objects of the mask '
                f'(labels {listed_ids(labels)}); give one name a label, in ascending order, or '
                'none'
            )
        chosen = dict(zip(labels, given or [''] * len(labels), strict=True))
    wrong = [name for name in chosen.values() if not isinstance(name, (str, type(None)))]
    if wrong:
        raise SeedError(f'the name {wrong[0]!r} is no text; give a str for each label, or none')
    return {label: str(name or '') for label, name in chosen.items()}


def listed_ids(numbers: Collection[int]) -> str:
    """Name ids or labels in a message."""
    return listed([str(number) for number in numbers], ', ') or 'none'
