# SPDX-License-Identifier: Apache-2.0
"""
One camera of the tracker node: what comes in, the tracker that looks at it, what goes out.

The node has one view, or one a camera. Views share the model and the worker thread, and nothing
else: what goes wrong in one is told in its own diagnostics and does not reach the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
import time
import traceback
from typing import Any, TYPE_CHECKING

import numpy as np
from rclpy.callback_groups import CallbackGroup, MutuallyExclusiveCallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from drift_ros.engine.errors import DriftRosError, out_of_memory
from drift_ros.nodes.tracker import source
from drift_ros.nodes.tracker.diagnostics import Condition, Status
from drift_ros.nodes.tracker.frames import ReceivedImage
from drift_ros.nodes.tracker.images import Images
from drift_ros.nodes.tracker.optimize import OptimizeAction
from drift_ros.nodes.tracker.outputs import Outputs
from drift_ros.nodes.tracker.services import NotReadyError, Services
from drift_ros.nodes.tracker.space import Space
from drift_ros.nodes.tracker.stream import LOST, StreamCheck
from drift_ros.nodes.tracker.worker import TrackingThread, Worker
from drift_ros.ros import conversions, qos, runtime
from drift_ros.ros.parameters import NodeConfig
from drift_ros.space.options import SpaceOptions

if TYPE_CHECKING:
    from drift_ros.api import Tracker
    from drift_ros.engine.estimates import TrackResult


@dataclass(frozen=True)
class NodeState:
    """What all cameras of a node have in common."""

    settings: NodeConfig
    device: str
    failure: str
    """Why the last transition failed; empty where it did not."""


class View:
    """
    Subscribes to one camera, tracks, publishes and answers below ``~/`` and its name.

    Attributes
    ----------
    name : str
        Of the camera; empty where the node has but one.
    outputs : Outputs
    space : Space
    status : Status

    """

    def __init__(
        self,
        node: Node,
        name: str,
        state: Callable[[], NodeState],
        group: CallbackGroup,
        elsewhere: Callable[[int], Tracker] | None = None,
    ) -> None:
        """
        Create the services.

        Parameters
        ----------
        node : Node
        name : str
            Prefix of all its topics, services and actions; empty: none.
        state : callable
            Gives the node's state.
        group : CallbackGroup
            Reentrant: requests wait.
        elsewhere : callable, optional
            As of :class:`Services`.

        """
        self.name = name
        self._node, self._state = node, state
        self._prefix = prefix = f'{name}/' if name else ''
        self._group = MutuallyExclusiveCallbackGroup()  # images keep their order
        self._worker: Worker | None = None
        self._subscription: Any = None
        self._sequence = 0
        self._unheard: Callable[[Sequence[Any]], tuple[str, bool]] = lambda _: ('', False)
        self._images = Images(self._warn, self._sources)
        self.outputs = Outputs(node, prefix)
        self.space = Space(node, self.outputs.publish, prefix)
        self._services = Services(
            node,
            self._running,
            self._images,
            self.outputs,
            self.refuse,
            group,
            prefix,
            elsewhere,
            self.space.forget,
        )
        self._optimize = OptimizeAction(
            node, self._running, lambda: self.outputs.active, group, prefix
        )
        self.status = Status(node, self._condition, prefix)
        self._stream = StreamCheck(self._warn)
        self._remedy = runtime.loss_remedy()

    @property
    def tracker(self) -> Tracker | None:
        """From configure to cleanup."""
        worker = self._worker
        return None if worker is None else worker.tracker

    def _running(self) -> Worker:
        """
        Give the worker.

        Raises
        ------
        NotReadyError
            There is none.

        """
        worker, failure = self._worker, self._state().failure
        if worker is None:
            raise NotReadyError(
                'the node is not configured: call its configure transition first'
                + (f' (the last attempt failed: {failure})' if failure else '')
            )
        return worker

    def _condition(self) -> Condition:
        worker, node, subscription = self._worker, self._state(), self._subscription
        settings = node.settings
        return Condition(
            configured=worker is not None,
            active=self.outputs.active,
            failure=node.failure,
            model=settings.model or 'embedded',
            device=node.device,
            replay=settings.replay,
            input_timeout=settings.input_timeout,
            topic='' if subscription is None else subscription.topic_name,
            publishers=self._sources(),
            unheard=self._unheard(self._endpoints()),
            grey_range=self._images.greys.text,
            remedy=self._remedy,
            waiting=0 if worker is None else worker.mailbox.waiting,
            buffered=len(self._images.buffer),
            reference_memory=0 if worker is None else worker.tracker.memory_bytes,
            live=() if worker is None else tuple(item.id for item in worker.tracker.objects),
            used=0.0 if worker is None else worker.used,
        )

    def _endpoints(self) -> Sequence[Any]:
        """Give what is known of the publishers of the images."""
        topic = '' if self._subscription is None else self._subscription.topic_name
        return self._node.get_publishers_info_by_topic(topic) if topic else ()

    def _sources(self) -> tuple[str, ...]:
        """Name the nodes that publish the images."""
        return tuple(
            f'{item.node_namespace.rstrip("/")}/{item.node_name}' for item in self._endpoints()
        )

    # -- from configure to cleanup ------------------------------------------------------------

    def configure(self, tracker: Tracker, thread: TrackingThread) -> None:
        """Track with a tracker, on a thread, from now on."""
        self.outputs.create()
        self._worker = Worker(tracker, self._decode, self._track, self.refuse, thread)

    def prepare(self, settings: NodeConfig, options: SpaceOptions) -> None:
        """Forget the images of before, and create what is published only on request."""
        self._images.configure(settings.buffer_frames, settings.buffer_mb << 20, settings.greys)
        self.status.statistics.reset()
        self._stream.reset()
        if options.publish_tf:
            self.outputs.create_tf()

    def activate(self, settings: NodeConfig, options: SpaceOptions) -> str:
        """Subscribe to the images and publish; give the topic."""
        worker = self._running()
        worker.mailbox.configure(settings.replay, settings.replay_queue_mb << 20)
        self.outputs.active = True
        self.space.activate(options, settings.replay)
        self.outputs.names(worker.tracker)
        node = self._node
        topic, kind = source.choose(
            node.resolve_topic_name(f'{self._prefix}image'), settings.image_transport
        )
        profile = qos.ALL_IMAGES if settings.replay else qos.LIVE_IMAGES
        self._unheard = partial(source.unheard, topic=topic, kind=kind, profile=profile)
        self._subscription = node.create_subscription(
            kind,
            topic,
            self._receive,
            profile,
            callback_group=self._group,
            event_callbacks=SubscriptionEventCallbacks(
                message_lost=lambda info: self._lose(info.total_count_change)
            ),
        )
        return topic

    def deactivate(self) -> None:
        """Unsubscribe and fall silent; objects and memory stay."""
        self.outputs.active = False
        if self._worker is not None:
            # before the subscription goes: its callback may be waiting here
            self._worker.mailbox.clear()
        if self._subscription is not None:
            self._node.destroy_subscription(self._subscription)
            self._subscription = None
        self.space.deactivate()
        self._images.buffer.clear()

    def release(self) -> None:
        """Forget everything; the worker ends after what it is doing."""
        self.deactivate()
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    def destroy(self) -> None:
        """Take down what only the worker used, once that has ended."""
        self.outputs.destroy()
        self.status.objects = ()

    def stop(self) -> None:
        """Make the worker return after what it is doing."""
        self.outputs.active = False
        if self._worker is not None:
            self._worker.close()

    # -- images -------------------------------------------------------------------------------

    def _receive(self, message: Image | CompressedImage) -> None:
        """Take an image from the middleware; decoding is the worker's."""
        worker = self._worker
        if worker is None:
            return
        frame = ReceivedImage.now(self._sequence, message)
        self._sequence += 1
        statistics = self.status.statistics
        statistics.receive()
        self.space.receive(frame)
        self._stream.header(frame.stamp, message.header.frame_id)
        self._images.buffer.add(frame)
        dropped = worker.mailbox.put(frame)
        if dropped is not None and dropped is not frame:
            statistics.drop()

    def _warn(self, flaw: str, text: str, number: int = 1) -> None:
        """Say what is wrong with the stream, in diagnostics and in the log."""
        self.status.statistics.warn(flaw, text, number)
        self._log(text)

    def _log(self, text: str) -> None:
        """Write a warning that may come with each frame."""
        named = f'{self.name}: {text}' if self.name else text
        self._node.get_logger().warning(named, throttle_duration_sec=5.0)

    def _lose(self, number: int) -> None:
        """Say that images were lost before they arrived; called by the middleware."""
        self._warn(LOST, f'images are lost before they arrive here: {self._remedy}', number)

    def _decode(self, frame: ReceivedImage) -> np.ndarray:
        """Read an image, on the worker's thread."""
        image = self._images.decode(frame.message)
        self._stream.size(*image.shape[:2])
        return image

    def _track(self, tracker: Tracker, frame: ReceivedImage, image: np.ndarray) -> None:
        """Find the objects in an image and publish them, on the worker's thread."""
        if not tracker.objects:
            tracker.prepare(image)  # while nothing waits for it
        tracker.step(image, partial(self._publish, frame, image))

    def _publish(self, frame: ReceivedImage, image: np.ndarray, result: TrackResult) -> None:
        """Tell what was found in an image, before the tracker remembers it."""
        self.status.size = f'{image.shape[1]}x{image.shape[0]}'
        look = self.space.look(frame, image, result)
        if self.outputs.result(frame, image, result, look.places):
            self.status.objects = result.objects
            self.status.statistics.track(time.monotonic() - frame.received)
        self.space.tell(look)

    def refuse(self, error: BaseException) -> None:
        """Say that an image or a request could not be used; tracking goes on with the next."""
        reason = str(error)
        if out_of_memory(error):
            reason = (
                f'out of memory ({type(error).__name__}: {error}): free some, or lower '
                'features.resolution, buffer_mb or states.max_objects'
            )
        elif not isinstance(error, (conversions.ConversionError, DriftRosError)):
            reason = f'{type(error).__name__}: {error}'
            self._node.get_logger().error(
                ''.join(traceback.format_exception(error)), throttle_duration_sec=5.0
            )
        self.status.statistics.refuse(reason)
        self._log(f'dropped: {reason}')
