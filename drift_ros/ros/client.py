# SPDX-License-Identifier: Apache-2.0
"""
The way a Python program talks to a tracker node.

>>> from drift_ros import TrackerClient
>>> with TrackerClient('/tracker') as tracker:       # waits for the node when it is first needed
...     (cup,) = tracker.seed(mask, names=['cup'])   # a mask of the newest frame
...     for result in tracker.results():             # every frame from now on
...         result.labels == cup.id                  # (H, W) bool

Every call returns an answer, or raises a :class:`ClientError` by its deadline. Nothing here needs
torch, so a program starts at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
import numbers
import time
from typing import Any

from builtin_interfaces.msg import Time
from drift_ros_msgs.msg import Prompt, PromptPoint
from drift_ros_msgs.srv import (
    FindObject,
    RemoveObject,
    RenameObject,
    SeedMask,
    SeedPrompt,
    Segment,
)
import numpy as np
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from drift_ros.ros import conversions, lifecycle
from drift_ros.ros.client_errors import (
    ArgumentError,
    ClientError,
    NoAnswerError,
    RefusedError,
)
from drift_ros.ros.connection import Connection
from drift_ros.ros.received import Result, Results

__all__ = [
    'ArgumentError',
    'ClientError',
    'Marked',
    'NoAnswerError',
    'RefusedError',
    'Result',
    'Results',
    'Seeded',
    'TrackerClient',
]

Point = tuple[float, float]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Seeded:
    """
    An object that is followed from now on, or was corrected.

    Attributes
    ----------
    id : int
        Its pixel value in every result.
    label : int
        Its value in the mask that was given; with a prompt, 1.
    note : str
        What is worth knowing, for people; mostly empty.

    """

    id: int
    label: int
    note: str


@dataclass(frozen=True)
class Marked:
    """
    What a box or points mark.

    Attributes
    ----------
    id : int
        Of the object that follows it; 0 from :meth:`TrackerClient.segment`, which follows nothing.
    mask : np.ndarray
        (H, W) bool.
    score : float
        How sure the segmentation is of its mask, 0 to 1.
    note : str
        What is worth knowing, for people; mostly empty.
    header : std_msgs/Header
        Of the image the mask belongs to.

    """

    id: int
    mask: np.ndarray
    score: float
    note: str
    header: Header


class TrackerClient(Connection):
    """
    Talks to one tracker node; see :class:`Connection` for what spins it.

    Attributes
    ----------
    tracker : str
        Full name of the tracker node.

    """

    def __init__(
        self, tracker: str = 'tracker', *, node: Node | None = None, **options: Any
    ) -> None:
        """
        Join the graph; this does not wait for the tracker, the calls do.

        Parameters
        ----------
        tracker : str
            Name of the tracker node, absolute or relative to the namespace.
        node : Node, optional
            Use this node, which is spun elsewhere, instead of one of our own.
        **options
            ``timeout``, ``watch``, ``namespace``, ``name`` and ``domain_id``, as of
            :class:`Connection`.

        """
        super().__init__(node, **options)
        self.tracker = self.node.resolve_service_name(tracker)
        lifecycle.prepare(self, self.tracker)
        for kind, service in (
            (SeedMask, 'seed_mask'),
            (SeedPrompt, 'seed_prompt'),
            (Segment, 'segment'),
            (RemoveObject, 'remove_object'),
            (RenameObject, 'rename_object'),
            (Trigger, 'reset'),
        ):
            self.prepare(kind, f'{self.tracker}/{service}')

    def _ask(self, kind: Any, service: str, request: Any, **more: Any) -> Any:
        return self.call(kind, f'{self.tracker}/{service}', request, **more)

    @property
    def present(self) -> bool:
        """Whether the tracker's services are there right now; tells at once."""
        return bool(self.prepare(Segment, f'{self.tracker}/segment').service_is_ready())

    def state(self) -> str:
        """Tell the lifecycle state: unconfigured, inactive, active, configuring..."""
        return lifecycle.state(self, self.tracker).label

    def change_state(self, transition: str, timeout: float = 600.0) -> bool:
        """Ask for a lifecycle transition; see :func:`drift_ros.ros.lifecycle.change_state`."""
        return lifecycle.change_state(self, self.tracker, transition, timeout)

    # -- objects

    def seed(
        self,
        labels: np.ndarray,
        *,
        names: Sequence[str] = (),
        object_ids: Sequence[int] = (),
        frame: np.ndarray | None = None,
        header: Header | None = None,
    ) -> tuple[Seeded, ...]:
        """
        Follow the objects of a mask, or correct some.

        Parameters
        ----------
        labels : np.ndarray
            (H, W) integer, as large as the camera's frames; 0 = background, every other value is
            one object.
        names : sequence of str
            One for each object, in ascending order of the values; none: no names.
        object_ids : sequence of int
            Likewise the ids of live objects that are corrected, 0 for new ones; none: all new.
        frame : np.ndarray, optional
            (H, W, 3) uint8 RGB, the frame the mask belongs to, where the node may no longer have
            it.
        header : Header, optional
            That of the frame the mask belongs to; default: the newest the node has received.

        Returns
        -------
        tuple of Seeded
            In ascending order of the values.

        Raises
        ------
        RefusedError, NoAnswerError, ArgumentError
            Nothing has changed.

        """
        header = header or Header()
        request = SeedMask.Request(
            mask=_image(conversions.labels_to_image, labels, header),
            names=[_name(name) for name in _each(names, 'names')],
            object_ids=[_id(number) for number in _each(object_ids, 'object_ids')],
        )
        if frame is not None:
            request.image = _image(conversions.rgb_to_image, frame, header)
        answer = self._ask(SeedMask, 'seed_mask', request)
        _check(answer, dict(zip(answer.labels, answer.errors)), 'label')
        return tuple(
            Seeded(number, label, note)
            for number, label, note in zip(answer.object_ids, answer.labels, answer.notes)
        )

    def correct(
        self,
        object_id: int,
        mask: np.ndarray,
        *,
        frame: np.ndarray | None = None,
        header: Header | None = None,
    ) -> Seeded:
        """
        Say where a live object is: (H, W) bool; its id and its name stay. Else as :meth:`seed`.

        To correct by a box or points, give ``object_id`` to :meth:`seed_prompt`.
        """
        (done,) = self.seed(
            np.asarray(mask, bool), object_ids=[object_id], frame=frame, header=header
        )
        return done

    def seed_prompt(
        self,
        *,
        box: Box | Sequence[float] | None = None,
        points: Sequence[Point] = (),
        negative: Sequence[Point] = (),
        name: str = '',
        object_id: int = 0,
        frame: np.ndarray | None = None,
        stamp: Time | None = None,
    ) -> Marked:
        """
        Follow what a box, points, or both mark, or correct an object by them.

        Parameters
        ----------
        box : sequence of float, optional
            (x_min, y_min, x_max, y_max) in pixels, maxima exclusive.
        points, negative : sequence of (x, y)
            Pixels on the object, and such as are not on it.
        name : str
            Of the object.
        object_id : int
            Correct this live object. 0: a new object.
        frame : np.ndarray, optional
            (H, W, 3) uint8 RGB, the frame that is pointed at.
        stamp : Time, optional
            Of the frame that is pointed at; default: the newest the node has received.

        Returns
        -------
        Marked

        Raises
        ------
        RefusedError, NoAnswerError, ArgumentError
            Nothing has changed.

        """
        prompt = _prompt(box, points, negative, name, object_id)
        return self._mark(SeedPrompt, 'seed_prompt', prompt, frame, stamp)

    def segment(
        self,
        *,
        box: Box | Sequence[float] | None = None,
        points: Sequence[Point] = (),
        negative: Sequence[Point] = (),
        frame: np.ndarray | None = None,
        stamp: Time | None = None,
    ) -> Marked:
        """Make the mask :meth:`seed_prompt` would start from, and follow nothing."""
        prompt = _prompt(box, points, negative)
        return self._mark(Segment, 'segment', prompt, frame, stamp)

    def _mark(
        self, kind: Any, service: str, prompt: Prompt, frame: np.ndarray | None, stamp: Time | None
    ) -> Marked:
        request = kind.Request(prompts=[prompt], stamp=stamp or Time())
        if frame is not None:
            request.image = _image(conversions.rgb_to_image, frame, Header(stamp=request.stamp))
        answer = self._ask(kind, service, request)
        _check(answer, dict(enumerate(answer.errors)), 'prompt')
        return Marked(
            id=answer.object_ids[0] if kind is SeedPrompt else 0,
            mask=conversions.image_to_labels(answer.mask) > 0,
            score=float(answer.scores[0]),
            note=answer.notes[0] if kind is SeedPrompt else '',
            header=answer.mask.header,
        )

    def find(
        self,
        object_id: int,
        *,
        threshold: float = 0.0,
        frame: np.ndarray | None = None,
        stamp: Time | None = None,
    ) -> Marked:
        """
        Look for an object that another camera of the node follows, and follow it here as well.

        Parameters
        ----------
        object_id : int
        threshold : float
            Probability from which what resembles it most counts as it; 0: states.recovery.
        frame : np.ndarray, optional
            (H, W, 3) uint8 RGB, the frame to look in.
        stamp : Time, optional
            Of the frame to look in; default: the newest the node has received.

        Returns
        -------
        Marked
            Where it was found; the score is the probability that it is the object.

        Raises
        ------
        RefusedError
            It is not to be seen there, no other camera follows it, or this one does already.
        NoAnswerError, ArgumentError
            Nothing has changed; there is no such service on a node with one camera.

        """
        request = FindObject.Request(
            object_id=_id(object_id), threshold=float(threshold), stamp=stamp or Time()
        )
        if frame is not None:
            request.image = _image(conversions.rgb_to_image, frame, Header(stamp=request.stamp))
        answer = self._ask(FindObject, 'find', request)
        _check(answer)
        return Marked(
            id=request.object_id,
            mask=conversions.image_to_labels(answer.mask) > 0,
            score=float(answer.existence),
            note=answer.note,
            header=answer.mask.header,
        )

    def remove(self, object_id: int) -> None:
        """
        Stop following an object.

        Raises
        ------
        RefusedError
            There is no such object.
        NoAnswerError, ArgumentError

        """
        request = RemoveObject.Request(object_id=_id(object_id))
        _check(self._ask(RemoveObject, 'remove_object', request))

    def rename(self, object_id: int, name: str) -> None:
        """
        Call an object otherwise; without a name, after its id.

        Raises
        ------
        RefusedError
            There is no such object.
        NoAnswerError, ArgumentError

        """
        request = RenameObject.Request(object_id=_id(object_id), name=_name(name))
        _check(self._ask(RenameObject, 'rename_object', request))

    def reset(self) -> None:
        """
        Forget all objects; images of another size may follow.

        Raises
        ------
        RefusedError, NoAnswerError

        """
        _check(self._ask(Trigger, 'reset', Trigger.Request()))

    def set_target(self, wish: int | str) -> None:
        """
        Choose the object whose pose and bearing are published: the parameter ``space.target``.

        Parameters
        ----------
        wish : int or str
            Id or name, of an object that may come later; '': the first one.

        Raises
        ------
        RefusedError, NoAnswerError, ArgumentError
            The target is as it was.

        """
        text = _name(wish) if isinstance(wish, str) else str(_id(wish))
        request = SetParameters.Request(
            parameters=[Parameter('space.target', value=text).to_parameter_msg()]
        )
        service = f'{self._parameter_node()}/set_parameters'
        (done,) = self.call(SetParameters, service, request).results
        if not done.successful:
            raise RefusedError(done.reason)

    def _parameter_node(self) -> str:
        """Give the node that has the parameters: one of several cameras has none of its own."""
        above = self.tracker.rpartition('/')[0]
        end = time.monotonic() + self.timeout
        while above and time.monotonic() < end:
            nodes = {
                f'{namespace.rstrip("/")}/{name}'
                for name, namespace in self.node.get_node_names_and_namespaces()
            }
            if found := [name for name in (self.tracker, above) if name in nodes]:
                return found[0]
            self.watch()
            time.sleep(0.05)
        return self.tracker

    def results(
        self,
        *,
        timeout: float | None = None,
        depth: int = 10,
        callback: Callable[[Result], None] | None = None,
    ) -> Results:
        """
        Subscribe to the results of frames.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait for a result before :class:`NoAnswerError`; default: the client's.
        depth : int
            Results kept for who is slow; the oldest go first.
        callback : callable, optional
            Called with each result, on the thread that spins the node, instead of keeping them.

        """
        seconds = self.timeout if timeout is None else timeout
        return Results(self, self.tracker, seconds, depth, callback)


def _prompt(
    box: Sequence[float] | None,
    points: Sequence[Point],
    negative: Sequence[Point],
    name: str = '',
    object_id: int = 0,
) -> Prompt:
    try:
        marks = [
            PromptPoint(x=float(x), y=float(y), positive=positive)
            for given, positive in ((points, True), (negative, False))
            for x, y in given
        ]
        corners = [float(value) for value in box] if box is not None else []
    except (TypeError, ValueError) as error:
        raise ArgumentError(
            f'a box is (x_min, y_min, x_max, y_max), points and negative are lists of (x, y), all '
            f'in pixels: {error}'
        ) from None
    return Prompt(box=corners, points=marks, name=_name(name), object_id=_id(object_id))


def _each(values: Any, what: str) -> Iterable[Any]:
    """Refuse what could be iterated over, but gives something else than one entry an object."""
    if isinstance(values, (str, bytes, Mapping)) or not isinstance(values, Iterable):
        raise ArgumentError(
            f'{what} is {values!r}; give a sequence with one entry an object, in ascending order '
            "of the mask's values"
        )
    return values


def _name(name: Any) -> str:
    try:
        str.encode(name)
    except (TypeError, UnicodeEncodeError) as error:
        raise ArgumentError(f'the name {name!r} is no text: {error}') from None
    return str(name)


def _id(number: Any) -> int:
    whole = isinstance(number, numbers.Integral) and type(number) is not bool
    if not whole or not 0 <= number < 2**32:
        raise ArgumentError(f'{number!r} is no object id; ids are integers from 1 up')
    return int(number)


def _image(convert: Callable[[np.ndarray, Header], Any], array: Any, header: Header) -> Any:
    try:
        return convert(np.asarray(array), header)
    except (TypeError, ValueError) as error:  # ConversionErrors as well
        raise ArgumentError(str(error)) from None


def _check(answer: Any, reasons: dict[int, str] | None = None, what: str = '') -> None:
    """Raise RefusedError unless an answer tells of success."""
    if answer.success:
        return
    found = {key: reason for key, reason in (reasons or {}).items() if reason}
    listed = [f'{what} {key}: {reason}' for key, reason in found.items()] if found else []
    known = [text for text in listed if text.partition(': ')[2] not in answer.message]
    raise RefusedError('; '.join([answer.message, *known]), found)
