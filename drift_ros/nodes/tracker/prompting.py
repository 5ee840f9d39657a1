# SPDX-License-Identifier: Apache-2.0
"""
The tracker node's services for boxes and clicks.

A mask takes a network pass, and only the worker thread uses networks. So the executor thread of a
request checks it, hands a job to the worker and waits. At most :data:`LIMIT` requests may wait,
so that threads remain for all other services; one more is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
import threading
from typing import Any, NamedTuple, Protocol, TYPE_CHECKING

from drift_ros_msgs.msg import Prompt as PromptMessage
from drift_ros_msgs.srv import SeedPrompt, Segment
from geometry_msgs.msg import PointStamped
import numpy as np
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from std_msgs.msg import Header

from drift_ros.engine.errors import CheckpointError, DriftRosError, PromptError, SeedError
from drift_ros.nodes.tracker.stream import Job, Mailbox
from drift_ros.ros import conversions

if TYPE_CHECKING:
    from drift_ros.api import Tracker
    from drift_ros.prompts.segmenter import Prompt, Segmentation

LIMIT = 2
"""Requests that may wait at once."""


class Picture(NamedTuple):
    """An image a request is about."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    header: Header
    after: int
    """As of :class:`drift_ros.nodes.tracker.stream.Job`."""


class Host(Protocol):
    """What the services need of the node."""

    def engine(self) -> tuple[Tracker, Mailbox] | str:
        """Give the engine and its mailbox, or why there is none."""

    def picture(self, image: Any, stamp: Any) -> Picture:
        """Decode a request's image, or the buffered frame of a stamp; else LookupError."""

    def seeded(self, labels: np.ndarray, header: Any) -> None:
        """Tell that there are new objects: label image (H, W), pixel = id, of an image."""


class PromptServices:
    """``~/segment``, ``~/seed_prompt`` and ``~/seed_point``."""

    def __init__(self, node: Node, host: Host, group: CallbackGroup) -> None:
        """Create them on a node."""
        self._node, self._host = node, host
        self._places = threading.BoundedSemaphore(LIMIT)
        node.create_service(Segment, '~/segment', self._segment, callback_group=group)
        node.create_service(SeedPrompt, '~/seed_prompt', self._seed_prompt, callback_group=group)
        node.create_subscription(
            PointStamped, '~/seed_point', self._seed_point, 10, callback_group=group
        )

    def _segment(self, request: Segment.Request, response: Segment.Response) -> Segment.Response:
        def work(tracker: Tracker, picture: Picture, prompts: list[Prompt]) -> None:
            from drift_ros.prompts.segmenter import label_image

            found = tracker.segment(picture.image, prompts)
            self._describe(response, found, label_image(found), picture)

        return self._serve(request, response, work)

    def _seed_prompt(
        self, request: SeedPrompt.Request, response: SeedPrompt.Response
    ) -> SeedPrompt.Response:
        def work(tracker: Tracker, picture: Picture, prompts: list[Prompt]) -> None:
            from drift_ros.prompts.segmenter import label_image

            ids, found = tracker.seed_prompts(picture.image, prompts)
            response.object_ids = ids
            labels = np.array([0, *ids])[label_image(found)]
            self._describe(response, found, labels, picture)
            self._host.seeded(labels, picture.header)

        response.object_ids = [0] * len(request.prompts)
        return self._serve(request, response, work)

    def _describe(
        self, response: Any, found: list[Segmentation], labels: np.ndarray, picture: Picture
    ) -> None:
        kind = np.uint16 if labels.max() > 255 else np.uint8
        response.mask = conversions.labels_to_image(labels.astype(kind), picture.header)
        response.scores = [segmentation.score for segmentation in found]
        response.success = True

    def _serve(
        self, request: Any, response: Any, work: Callable[[Tracker, Picture, list[Prompt]], None]
    ) -> Any:
        """Check a request, let the worker do it, and wait."""
        count = len(request.prompts)
        response.scores, response.errors = [0.0] * count, [''] * count
        engine = self._host.engine()
        if isinstance(engine, str):
            response.message = engine
            return response
        if not self._places.acquire(blocking=False):
            response.message = (
                f'{LIMIT} requests for masks are being worked on: wait for their '
                'answers, or put several prompts into one request'
            )
            return response
        try:
            from drift_ros.prompts.segmenter import check_prompts

            picture = self._host.picture(request.image, request.stamp)
            prompts = read_prompts(request.prompts)
            check_prompts(picture.image, prompts)
            self._wait(engine, lambda tracker: work(tracker, picture, prompts), picture.after)
        except (conversions.ConversionError, DriftRosError, LookupError) as error:
            response.message = str(error)
            for index, reason in _reasons(error).items():
                response.errors[index] = reason
            self._node.get_logger().warning(f'prompt refused: {error}')
        finally:
            self._places.release()
        return response

    @staticmethod
    def _wait(
        engine: tuple[Tracker, Mailbox], work: Callable[[Tracker], None], after: int
    ) -> None:
        """Have the worker do something, and raise here what it raises."""
        tracker, mailbox = engine
        done = threading.Event()
        failed: list[Exception] = []

        def run() -> None:
            try:
                work(tracker)
            except DriftRosError as error:
                failed.append(error)
            except Exception as error:
                failed.append(CheckpointError(f'{type(error).__name__}: {error}'))
                raise
            finally:
                done.set()

        mailbox.submit(Job(run, after))
        while not done.wait(0.05):
            if mailbox.closed and not done.wait(0.5):
                raise LookupError('the node was cleaned up before this was done')
        if failed:
            raise failed[0]

    def _seed_point(self, message: PointStamped) -> None:
        """Follow what is at a pixel; nobody waits for an answer, so the log tells."""
        engine = self._host.engine()
        log = self._node.get_logger()
        if isinstance(engine, str):
            log.warning(f'seed_point refused: {engine}')
            return
        tracker, mailbox = engine
        try:
            from drift_ros.prompts.segmenter import check_prompts, Prompt

            picture = self._host.picture(None, message.header.stamp)
            prompt = Prompt(points=((message.point.x, message.point.y, True),))
            check_prompts(picture.image, [prompt])
        except (conversions.ConversionError, DriftRosError, LookupError) as error:
            log.warning(f'seed_point refused: {error}')
            return

        def seed() -> None:
            try:
                ids, found = tracker.seed_prompts(picture.image, [prompt])
            except DriftRosError as error:
                log.warning(f'seed_point refused: {error}')
                return
            log.info(f'seeded {ids[0]} at a click: {int(found[0].mask.sum())} pixels')
            self._host.seeded(ids[0] * found[0].mask.astype(np.int32), picture.header)

        mailbox.submit(Job(seed, picture.after))


def read_prompts(messages: Iterable[PromptMessage]) -> list[Prompt]:
    """
    Convert messages.

    :raises PromptError: a box does not have four numbers
    """
    from drift_ros.prompts.segmenter import Prompt

    prompts, reasons = [], {}
    for index, message in enumerate(messages):
        if len(message.box) not in (0, 4):
            reasons[index] = (
                f'the box has {len(message.box)} numbers; it needs x_min, y_min, '
                'x_max, y_max, or none'
            )
            continue
        box = (*map(float, message.box),)
        prompts.append(
            Prompt(
                (box[0], box[1], box[2], box[3]) if box else None,
                tuple((point.x, point.y, point.positive) for point in message.points),
                message.name,
            )
        )
    if reasons:
        raise PromptError.of(reasons)
    return prompts


def _reasons(error: Exception) -> dict[int, str]:
    """Give reasons by index of the prompt."""
    if isinstance(error, PromptError):
        return error.reasons
    if isinstance(error, SeedError):  # by label, which is one more
        return {label - 1: why for label, why in error.reasons.items()}
    return {}
