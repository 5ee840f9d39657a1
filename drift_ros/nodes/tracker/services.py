# SPDX-License-Identifier: Apache-2.0
"""
The tracker node's services: masks, boxes and clicks, finding, names, removal and reset.

Executor threads check a request and hand a job to the worker. Seeds by mask, removal and reset are
answered then and there; the mask of boxes or points, or of what is sought, has to be made first,
so those requests wait for the job's future. At most :data:`LIMIT` of them may, so that threads
remain for all other services; one more is refused. What is refused is answered with its reason in
one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
import contextlib
from functools import partial
import threading
from typing import Any, TYPE_CHECKING, TypeVar

from drift_ros_msgs.srv import (
    FindObject,
    RemoveObject,
    RenameObject,
    SeedMask,
    SeedPrompt,
    Segment,
)
from geometry_msgs.msg import PointStamped
import numpy as np
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger

from drift_ros.engine.errors import (
    DriftRosError,
    NotFoundError,
    PromptError,
    SeedError,
    UnknownObjectError,
)
from drift_ros.media.labels import LabelError, LabelRule
from drift_ros.nodes.tracker.images import Images, RequestImage
from drift_ros.nodes.tracker.outputs import Outputs
from drift_ros.nodes.tracker.worker import Worker
from drift_ros.ros import conversions, messages, qos

if TYPE_CHECKING:
    from drift_ros.api import Tracker
    from drift_ros.engine.seeds import SeedRequest
    from drift_ros.prompts.segmenter import Prompt, Segmentation

LIMIT = 2
"""Requests that may wait for a mask at once."""

Result = TypeVar('Result')


class NotReadyError(LookupError):
    """The node is not in a state to do what is asked; the text says which, and the way out."""


class WorkError(RuntimeError):
    """The worker failed at a request in a way that nobody foresaw; it has reported that itself."""


_REFUSALS = (DriftRosError, conversions.ConversionError, LabelError, LookupError, WorkError)
"""What says itself, to whoever asked, what is wrong and what to do about it."""


class Services:
    """Serves masks, boxes, points and clicks, finding, names, removal and reset."""

    def __init__(
        self,
        node: Node,
        worker: Callable[[], Worker],
        images: Images,
        outputs: Outputs,
        on_error: Callable[[BaseException], None],
        group: CallbackGroup,
        prefix: str = '',
        elsewhere: Callable[[int], Tracker] | None = None,
        on_seeds: Callable[[Sequence[int]], None] = lambda numbers: None,
    ) -> None:
        """
        Create them on a node.

        Parameters
        ----------
        node : Node
        worker : callable
            Gives the worker; raises NotReadyError where there is none.
        images : Images
        outputs : Outputs
        on_error : callable
            Told what failed after its request was answered, and what should never fail.
        group : CallbackGroup
            Reentrant: requests wait.
        prefix : str
            Of the names below ``~/``.
        elsewhere : callable, optional
            Gives the tracker of another camera that follows an object, by id; raises
            UnknownObjectError. None: there is no other camera.
        on_seeds : callable
            Told the ids of objects that were marked, on the worker's thread.

        """
        self._on_seeds = on_seeds
        self._elsewhere = elsewhere
        self._worker, self._image, self._outputs = worker, images.find, outputs
        self._on_error, self._log = on_error, node.get_logger()
        self._places = threading.BoundedSemaphore(LIMIT)
        self._removing: set[tuple[Worker, int]] = set()
        self._lock = threading.Lock()
        for kind, name, handler in (
            (SeedMask, 'seed_mask', self._seed_mask),
            (SeedPrompt, 'seed_prompt', self._seed_prompt),
            (Segment, 'segment', self._segment),
            (RemoveObject, 'remove_object', self._remove_object),
            (RenameObject, 'rename_object', self._rename_object),
            (Trigger, 'reset', self._reset),
            *([] if elsewhere is None else [(FindObject, 'find', self._find)]),
        ):
            node.create_service(
                kind,
                f'~/{prefix}{name}',
                partial(self._answer, f'{prefix}{name}', handler),
                callback_group=group,
            )
        node.create_subscription(
            PointStamped,
            f'~/{prefix}seed_point',
            self._seed_point,
            qos.CLICKS,
            callback_group=group,
        )

    # -- what all have in common

    def _answer(
        self, name: str, handler: Callable[[Worker, Any, Any], None], request: Any, response: Any
    ) -> Any:
        """Serve a request: success, or the reason of the refusal."""
        try:
            handler(self._worker(), request, response)
            response.success = True
        except _REFUSALS as error:
            response.message = str(error)
            self._log.warning(f'{name} refused: {error}')
        except Exception as error:  # a request must not end the node
            response.message = f'{type(error).__name__}: {error}'
            self._on_error(error)
        return response

    def _wait(self, future: Future[Result]) -> Result:
        """Wait for the worker; what it raised is raised here, as something to answer with."""
        try:
            return future.result()
        except CancelledError:
            raise NotReadyError('the node was cleaned up before this was done') from None
        except DriftRosError:
            raise
        except BaseException as error:
            raise WorkError(f'{type(error).__name__}: {error}') from error

    def _tell(self, future: Future[Any]) -> None:
        """Report what a job that nobody waits for was refused."""
        if not future.cancelled() and isinstance(future.exception(), DriftRosError):
            self._on_error(future.exception())  # type: ignore[arg-type]

    def _follow(self, tracker: Tracker, seed: SeedRequest, header: Header) -> None:
        """Carry a prepared seed out, on the worker's thread, and tell those who listen."""
        tracker.apply_seed(seed)
        try:
            self._on_seeds(seed.object_ids)
            listed = (f'{number} ({name})' for number, name in zip(seed.object_ids, seed.names))
            self._log.info(f'seeded {", ".join(listed)}')
            self._outputs.names(tracker)
            self._outputs.seeds(_numbered(seed), header)
        except BaseException as error:  # it is followed, whether that could be told or not
            self._on_error(error)

    # -- masks

    def _seed_mask(
        self, worker: Worker, request: SeedMask.Request, response: SeedMask.Response
    ) -> None:
        mask = _seed_labels(request.mask)
        labels = [value for value in np.unique(mask).tolist() if value]
        response.labels, response.object_ids = labels, [0] * len(labels)
        response.errors, response.notes = [''] * len(labels), [''] * len(labels)
        if labels and len(request.object_ids) not in (0, len(labels)):
            raise SeedError(
                f'{len(request.object_ids)} object ids for the {len(labels)} objects of the mask; '
                'give one for each, in ascending order of the labels, 0 for new ones, or none'
            )
        picture = self._image(request.image, request.mask.header.stamp)
        corrected = {label: int(n) for label, n in zip(labels, request.object_ids) if n}
        try:
            seed = worker.tracker.prepare_seed(
                picture.image, mask, list(request.names), object_ids=corrected
            )
        except SeedError as error:
            response.errors = [error.reasons.get(label, '') for label in labels]
            raise
        future = worker.submit(
            lambda tracker: self._follow(tracker, seed, picture.header), after=picture.after
        )
        future.add_done_callback(self._tell)
        if future.cancelled():
            raise NotReadyError('the node is being cleaned up')
        response.object_ids = list(seed.object_ids)
        response.notes = picture.notes(seed.notes, request.mask.header)

    # -- boxes and points

    def _seed_prompt(
        self, worker: Worker, request: SeedPrompt.Request, response: SeedPrompt.Response
    ) -> None:
        response.object_ids = [0] * len(request.prompts)
        response.notes = [''] * len(request.prompts)
        picture, (made, found) = self._masks(worker, request, response, self._seed)
        response.object_ids = list(made.object_ids)
        response.notes = picture.notes(made.notes)
        response.scores = [item.score for item in found]
        response.mask = conversions.labels_to_image(_numbered(made), picture.header)

    def _segment(
        self, worker: Worker, request: Segment.Request, response: Segment.Response
    ) -> None:
        def segment(
            tracker: Tracker, picture: RequestImage, prompts: list[Prompt]
        ) -> tuple[np.ndarray, list[Segmentation]]:
            from drift_ros.prompts.segmenter import label_image

            found = tracker.segment(picture.image, prompts)
            return label_image(found), found

        picture, (labels, found) = self._masks(worker, request, response, segment)
        response.scores = [item.score for item in found]
        response.mask = conversions.labels_to_image(labels, picture.header)
        if picture.doubt:  # its answer has no notes
            self._log.warning(f'segment: {picture.doubt}')

    def _masks(
        self,
        worker: Worker,
        request: Any,
        response: Any,
        work: Callable[[Tracker, RequestImage, list[Prompt]], Result],
    ) -> tuple[RequestImage, Result]:
        """Check prompts, let the worker do something with them, and wait."""
        count = len(request.prompts)
        response.scores, response.errors = [0.0] * count, [''] * count
        with self._place():
            from drift_ros.prompts.segmenter import check_prompts

            try:
                prompts = messages.read_prompts(request.prompts)
                picture = self._image(request.image, request.stamp)
                check_prompts(picture.image, prompts)
                future = worker.submit(
                    lambda tracker: work(tracker, picture, prompts), after=picture.after
                )
                return picture, self._wait(future)
            except (PromptError, SeedError) as error:
                first = 0 if isinstance(error, PromptError) else 1  # labels count from 1
                for number, reason in error.reasons.items():
                    response.errors[number - first] = reason
                raise

    @contextlib.contextmanager
    def _place(self) -> Iterator[None]:
        """Let a request wait for a mask, if not too many do."""
        if not self._places.acquire(blocking=False):
            raise NotReadyError(
                f'{LIMIT} requests for masks are being worked on: wait for their '
                'answers, or put several prompts into one request'
            )
        try:
            yield
        finally:
            self._places.release()

    def _seed(
        self, tracker: Tracker, picture: RequestImage, prompts: list[Prompt]
    ) -> tuple[SeedRequest, list[Segmentation]]:
        """Follow what prompts mark, on the worker's thread."""
        seed, found = tracker.prepare_prompts(picture.image, prompts)
        self._follow(tracker, seed, picture.header)
        return seed, found

    def _seed_point(self, message: PointStamped) -> None:
        """Follow what is at a pixel; nobody waits for an answer, so the log tells."""
        try:
            worker = self._worker()
            from drift_ros.prompts.segmenter import check_prompts, Prompt

            picture = self._image(None, message.header.stamp)
            prompt = Prompt(points=((message.point.x, message.point.y, True),))
            check_prompts(picture.image, [prompt])
            if picture.doubt:
                self._log.warning(f'seed_point: {picture.doubt}')
        except _REFUSALS as error:
            self._log.warning(f'seed_point refused: {error}')
            return
        except Exception as error:  # a click must not end the node
            self._on_error(error)
            return

        def seed(tracker: Tracker) -> None:
            try:
                made, found = self._seed(tracker, picture, [prompt])
            except DriftRosError as error:
                self._log.warning(f'seed_point refused: {error}')
                return
            area = int(np.count_nonzero(found[0].mask))
            self._log.info(f'seeded {made.object_ids[0]} at a click: {area} pixels')

        worker.submit(seed, after=picture.after)

    # -- other cameras

    def _find(
        self, worker: Worker, request: FindObject.Request, response: FindObject.Response
    ) -> None:
        assert self._elsewhere is not None
        other = self._elsewhere(request.object_id)

        def find(tracker: Tracker) -> tuple[SeedRequest, float]:
            seed, existence = tracker.prepare_find(
                picture.image, other, request.object_id, request.threshold
            )
            self._follow(tracker, seed, picture.header)
            return seed, existence

        with self._place():
            picture = self._image(request.image, request.stamp)
            try:
                seed, response.existence = self._wait(worker.submit(find, after=picture.after))
            except NotFoundError as error:
                response.existence = error.existence
                raise
        (response.note,) = picture.notes(seed.notes)
        response.mask = conversions.labels_to_image(_numbered(seed), picture.header)

    # -- removal

    def _remove_object(
        self, worker: Worker, request: RemoveObject.Request, response: RemoveObject.Response
    ) -> None:
        number = request.object_id
        with self._lock:
            if (worker, number) in self._removing:
                raise UnknownObjectError(f'object {number} has just been removed')
            worker.tracker.check_object(number)
            self._removing.add((worker, number))

        def remove(tracker: Tracker) -> None:
            if number in {item.id for item in tracker.objects}:  # no reset came first
                tracker.remove(number)
            self._outputs.names(tracker)

        future = worker.submit(remove)
        future.add_done_callback(lambda _: self._removing.discard((worker, number)))
        future.add_done_callback(self._tell)

    def _rename_object(
        self, worker: Worker, request: RenameObject.Request, response: RenameObject.Response
    ) -> None:
        number = request.object_id
        with self._lock:
            if (worker, number) in self._removing:
                raise UnknownObjectError(f'object {number} has just been removed')
        worker.tracker.rename(number, request.name)
        self._outputs.names(worker.tracker)

    def _reset(self, worker: Worker, request: Trigger.Request, response: Trigger.Response) -> None:
        known = {item.id for item in worker.tracker.objects}

        def reset(tracker: Tracker) -> None:
            # objects seeded since the request was answered are not its business
            live = {item.id for item in tracker.objects}
            if live <= known:
                tracker.reset()
            else:
                for number in known & live:
                    tracker.remove(number)
            self._outputs.names(tracker)

        worker.submit(reset).add_done_callback(self._tell)
        response.message = f'{len(known)} objects forgotten'


def _seed_labels(message: Image) -> np.ndarray:
    """
    Read a seed's mask: (H, W) integer, by the rule for all label images.

    What an object is called in the answer is its pixel value, so a white one stays 255.

    Raises
    ------
    ConversionError, LabelError

    """
    values, rule = conversions.image_to_labels(message), LabelRule()
    labels = rule.labels(values, 'the mask')
    return values if rule.plain else labels


def _numbered(seed: SeedRequest) -> np.ndarray:
    """Give a seed's mask with object ids in place of labels: (H, W) integer."""
    places = np.searchsorted((0, *seed.labels), seed.mask)
    return np.array((0, *seed.object_ids))[places]
