# SPDX-License-Identifier: Apache-2.0
"""
The online algorithm: seed, correct, step, remove. It imports no ROS and reads no files.

Compute, then commit: everything known is one immutable
:class:`~drift_ros.engine.state.State`. An operation computes a
new one from the present one, and the last thing it does is one assignment. Whatever is raised
before, and by whom, the tracker is as it was.
"""

from collections.abc import Callable, Mapping, Sequence
import dataclasses
import threading
from typing import Any

import numpy as np

from drift_ros.engine import decide
from drift_ros.engine.config import TrackerConfig
from drift_ros.engine.errors import SeedError
from drift_ros.engine.estimates import estimates, Stopwatch, TrackResult
from drift_ros.engine.find import find
from drift_ros.engine.prompt import describe
from drift_ros.engine.protocols import Extractor, FeatureExtractor, Refiner
from drift_ros.engine.seeds import (
    check_frame,
    corrections,
    covered,
    distinct_labels,
    label_array,
    SeedRequest,
    token_shares,
)
from drift_ros.engine.state import State
from drift_ros.engine.table import names_of, ObjectInfo, ObjectTable


class OnlineTracker:
    """
    Follow objects through frames, one frame at a time, in bounded time and memory.

    One thread may call :meth:`seed`, :meth:`correct`, :meth:`step`, :meth:`remove` and
    :meth:`reset`; :meth:`prepare_seed`, :meth:`cancel_seed`, :meth:`rename`, :meth:`check_object`
    and :attr:`objects` may be used from others. Trackers may share a checkpoint and a refiner.
    """

    def __init__(
        self,
        features: FeatureExtractor,
        refiner: Refiner,
        config: TrackerConfig | None = None,
        ids: tuple[int, int] = (1, 1),
    ) -> None:
        """
        Start without objects.

        Parameters
        ----------
        features : FeatureExtractor
        refiner : Refiner
        config : TrackerConfig, optional
        ids : tuple of int
            The first object's id, and how much larger each next one is.

        Raises
        ------
        ValueError
            An option is out of range.

        """
        self.config = config or TrackerConfig()
        self.config.validate()
        self._refiner = refiner
        self._lock = threading.Lock()  # of the table, which seeds may be prepared in meanwhile
        self._blank = State.blank(features, self.config, ids)
        self._state = self._blank

    @property
    def state(self) -> State:
        """All that is known now; it does not change when tracking goes on."""
        return self._state

    @property
    def objects(self) -> tuple[ObjectInfo, ...]:
        """Live objects, those of prepared seeds included, by ascending id."""
        return self._state.table.infos

    @property
    def memory_bytes(self) -> int:
        """Bytes the reference memory holds."""
        return self._state.memory.nbytes

    def check_object(self, object_id: int) -> None:
        """Raise UnknownObjectError unless the object is live; from any thread."""
        self._state.table.check(object_id)

    def seed(
        self,
        frame: np.ndarray,
        label_mask: np.ndarray,
        names: Sequence[str] | Mapping[int, str] | None = None,
        object_ids: Mapping[int, int] | None = None,
    ) -> list[int]:
        """
        Start to follow the objects of a mask; at any time, in any frame of the same size.

        Parameters
        ----------
        frame : np.ndarray
            (H, W, 3) uint8 RGB.
        label_mask : np.ndarray
            (H, W) integer; 0 = background, every other label is one object.
        names : sequence or mapping, optional
            One name a label, in ascending order of labels, or a mapping from label to name.
        object_ids : mapping of int to int, optional
            By label, the id of a live object that the label corrects, see :meth:`correct`. Every
            other label is a new object.

        Returns
        -------
        list of int
            The objects' ids, in ascending order of labels. Ids are never reused.

        Raises
        ------
        FrameError, SeedError
            Nothing was seeded, and tracking is as it was.

        """
        return self._seed(self.prepare_seed(frame, label_mask, names, object_ids))

    def _seed(self, request: SeedRequest) -> list[int]:
        """Carry out a seed of whose ids nobody knows yet; as if it had never been, on failure."""
        try:
            self._follow(request)
        except BaseException:
            self.cancel_seed(request)
            raise
        return list(request.object_ids)

    def correct(self, frame: np.ndarray, mask: np.ndarray, object_id: int) -> None:
        """
        Replace what is known of a live object, from this frame on; it keeps its id.

        What earlier frames say of it is found anew from this mask; other masks a person gave of
        it stay known.

        Parameters
        ----------
        frame : np.ndarray
            (H, W, 3) uint8 RGB.
        mask : np.ndarray
            (H, W) bool or integer; not 0 = the object.
        object_id : int

        Raises
        ------
        UnknownObjectError, FrameError, SeedError
            Nothing was changed.

        """
        self.check_object(object_id)
        self.seed(frame, (np.asarray(mask) != 0).astype(np.uint8), object_ids={1: object_id})

    def prepare_seed(
        self,
        frame: np.ndarray,
        label_mask: np.ndarray,
        names: Sequence[str] | Mapping[int, str] | None = None,
        object_ids: Mapping[int, int] | None = None,
        adopted: Mapping[int, ObjectInfo] | None = None,
    ) -> SeedRequest:
        """
        Check a seed and reserve its ids, without the network; from any thread. As seed().

        Objects of another tracker may be ``adopted``, by label: they keep their ids.
        """
        check_frame(frame)
        size = (frame.shape[0], frame.shape[1])
        self._state.table.check_size(size)
        label_mask = label_array(label_mask)
        labels = distinct_labels(label_mask, size, self.config.features.resolution)
        named = names_of(labels, names)
        known = self._state
        corrected = corrections(object_ids, labels, known.table.infos)
        guests = dict(adopted or {})
        new = [label for label in labels if label not in {**corrected, **guests}]
        wanted = [named[label] for label in new]
        reserving = (wanted, size, self.config.states.max_objects, tuple(guests.values()))
        known.table.reserve(*reserving)  # too many are refused before they are looked at
        others = tuple(info for info in known.table.infos if info not in corrected.values())
        notes = tuple(covered(label_mask == label, known.shown, others) for label in labels)
        with self._lock:
            state = self._state
            state.table.check_size(size)
            table, infos = state.table.reserve(*reserving)
            chosen = {**corrected, **dict(zip((*new, *guests), infos, strict=True))}
            request = SeedRequest(
                frame=np.array(frame),
                mask=label_mask,
                labels=tuple(labels),
                infos=tuple(chosen[label] for label in labels),
                corrected=frozenset(info.id for info in corrected.values()),
                notes=notes,
            )
            self._state = dataclasses.replace(state, table=table)
        return request

    def cancel_seed(self, request: SeedRequest) -> None:
        """Give up a prepared seed of whose ids nobody has been told; from any thread."""
        self._commit(lambda table: table.cancel(request.reserved, reuse=True))

    def apply_seed(self, request: SeedRequest) -> None:
        """
        Carry out a prepared seed; objects removed or reset since are left out.

        Whatever is raised, nothing is followed, and the reserved ids are not given again.
        """
        try:
            self._follow(request)
        except BaseException:
            self._commit(lambda table: table.cancel(request.reserved, reuse=False))
            raise

    def _follow(self, request: SeedRequest) -> None:
        state = self._state
        pairs = zip(request.labels, request.infos, strict=True)
        live = {info: label for label, info in pairs if state.table.holds(info)}
        if not live:
            return
        chosen = {info.id: label for info, label in live.items()}
        features = state.features.extract(request.frame)
        features.check()
        masks = {number: request.mask == label for number, label in chosen.items()}
        shares = token_shares(masks.values(), features.grid)
        shares = shares.to(features.layers[0].key.device)
        ids = list(chosen)
        memory = state.memory.pin(
            features, shares, ids, state.table.follow(ids).channels, state.weighting.weights
        )
        weighting = state.weighting.add(features, shares, ids, state.features)
        others = memory.pinned[-1].beside(shares)
        tokens = describe(features)
        target = state.target.seeded(tokens, shares, ids, others)
        looks = {**state.looks, **self._refiner.remember(request.frame, masks)}
        shown = np.zeros(request.mask.shape, np.uint16) if state.shown is None else state.shown
        shown = shown.astype(np.uint16)
        for number, mask in masks.items():
            shown[mask] = number

        def follow(table: ObjectTable) -> ObjectTable:
            gone = [info.id for info in live if not table.holds(info)]
            if gone:
                raise SeedError(
                    f'the seed of object {gone[0]} was given up while this one was carried out; '
                    'seed again'
                )
            return table.follow(ids).recover(ids)

        self._commit(
            follow,
            memory=memory,
            weighting=weighting,
            target=target,
            looks=looks,
            shown=shown,
        )

    def remove(self, object_id: int) -> None:
        """
        Stop following an object.

        Raises
        ------
        UnknownObjectError

        """
        state = self._state
        state.table.check(object_id)
        channel = state.table.channels.get(object_id)
        memory = state.memory if channel is None else state.memory.remove(object_id, channel)
        self._commit(
            lambda table: table.remove(object_id),
            memory=memory,
            weighting=state.weighting.remove(object_id),
            target=state.target.without(object_id),
            looks={key: look for key, look in state.looks.items() if key != object_id},
        )

    def rename(self, object_id: int, name: str) -> None:
        """
        Call a live object otherwise; without a name, after its id. From any thread.

        Raises
        ------
        UnknownObjectError
        SeedError
            The name is no text.

        """
        (chosen,) = names_of([object_id], {object_id: name}).values()
        self._commit(lambda table: table.rename(object_id, chosen))

    def reset(self) -> None:
        """Forget all objects and frames; a new frame size may follow."""
        fields = {item.name: getattr(self._blank, item.name) for item in dataclasses.fields(State)}
        del fields['table']
        self._commit(ObjectTable.clear, **fields)

    def step(
        self, frame: np.ndarray, ready: Callable[[TrackResult], object] = lambda result: None
    ) -> TrackResult:
        """
        Find the objects in the next frame.

        Parameters
        ----------
        frame : np.ndarray
            (H, W, 3) uint8 RGB, of the size the objects were seeded in.
        ready : callable
            Called with the result as soon as it is known, before the frame is remembered and
            learnt from; its timings end there. What it raises is raised here, and tracking is as
            it was.

        Returns
        -------
        TrackResult

        Raises
        ------
        FrameError
            The frame is not usable; tracking is as it was.

        """
        check_frame(frame)
        state, states = self._state, self.config.states
        size = (frame.shape[0], frame.shape[1])
        state.table.check_size(size)
        clock = Stopwatch()
        channels = state.table.channels
        if not channels:
            result = TrackResult(decide.nothing(size), (), clock.stop())
            ready(result)
            return result
        features = state.features.extract(frame)
        features.check()
        clock.lap('features')

        tokens = describe(features)  # (h, w, c)
        judged = find(features, tokens, state)
        confidences = {
            number: decide.confidence_of(judged.soft[..., channel])
            for number, channel in channels.items()
        }
        seen = decide.seen(confidences, judged.existence, state.table.missing, states)
        sure = [number for number in seen if number in state.table.believed]
        soft = decide.leave_out(judged.soft, decide.others(channels, sure))
        clock.lap('propagation')

        stretch = self.config.experimental.normalize
        coarse = decide.compete(soft, state.table.select(sure), stretch)
        refined, labels = None, decide.nothing(size, max(channels))
        if coarse:
            refined = self._refiner.refine(frame, coarse, state.looks, state.frames)
            pieces = ((number, refined.piece(number)) for number in coarse)
            labels = decide.assign(pieces, labels)
        # an object of which no pixel is left was not found, whatever its tokens say
        found = decide.visible(labels, sure)

        def observe(table: ObjectTable) -> ObjectTable:
            return table.observe(seen, found, states.lost_after)

        entries = observe(state.table).tracked
        objects = estimates(entries, confidences, judged.existence, labels, states.box)
        shown = labels.copy()  # the caller may draw on the result
        clock.lap('refinement')
        ready(TrackResult(labels, objects, clock.stop(), refined))

        memory, target = state.memory, state.target
        # only what is surely there is remembered and learnt of: errors would feed back
        certain = {number for number in found if judged.existence[number] >= 0.5}
        if certain:
            absent = decide.others(channels, certain)
            memory = memory.push(features, decide.forget(judged.soft, absent))
            sure_of = [number in certain for number in channels]
            target = target.learnt(tokens, judged, list(channels), sure_of)
        clock.lap('memory')
        self._commit(observe, memory=memory, target=target, shown=shown, frames=state.frames + 1)
        return TrackResult(labels, objects, clock.stop(), refined)

    def look_again(self, features: Extractor) -> None:
        """Go on with another extractor, and look at all remembered frames again with it."""
        state = self._state
        memory = state.memory.refresh(features.extract_resized)
        weighting = state.weighting
        for reference, masks, ids in memory.marked(state.table.channels):
            weighting = weighting.add(reference.features, masks, ids, features)
        target = state.target.again(memory.marked(state.table.channels))
        self._commit(
            lambda table: table,
            features=features,
            memory=memory,
            weighting=weighting,
            target=target,
        )

    def _commit(self, change: Callable[[ObjectTable], ObjectTable], **fields: Any) -> None:
        """Let a new state take the place of the present one, in one assignment."""
        with self._lock:
            state = self._state
            self._state = dataclasses.replace(state, table=change(state.table), **fields)
