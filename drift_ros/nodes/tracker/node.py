# SPDX-License-Identifier: Apache-2.0
"""
The tracker node: a managed node around :class:`drift_ros.Tracker`.

Three kinds of thread work here. Executor threads receive images and answer services; they only
move messages and check arguments, so an answer never waits for the network. One worker thread,
alive from configure to cleanup, owns the engine. The main thread waits for signals. The model is
loaded inside the configure transition, which occupies one executor thread; the others go on
answering (get_state says "configuring" meanwhile).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
import time
import traceback
from typing import Any, TYPE_CHECKING

import numpy as np
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from sensor_msgs.msg import CompressedImage, Image

from drift_ros.engine.config import TrackerConfig
from drift_ros.engine.errors import DriftRosError, out_of_memory
from drift_ros.nodes.tracker import source
from drift_ros.nodes.tracker.diagnostics import Condition, Diagnostics
from drift_ros.nodes.tracker.frames import ReceivedImage
from drift_ros.nodes.tracker.images import Images
from drift_ros.nodes.tracker.optimize import OptimizeAction
from drift_ros.nodes.tracker.outputs import Outputs
from drift_ros.nodes.tracker.services import NotReadyError, Services
from drift_ros.nodes.tracker.space import Space
from drift_ros.nodes.tracker.stream import LOST, StreamCheck
from drift_ros.nodes.tracker.worker import Worker
from drift_ros.ros import conversions, parameters, qos, runtime, stamp
from drift_ros.ros.parameters import NodeConfig
from drift_ros.space.options import SpaceConfig

if TYPE_CHECKING:
    from drift_ros.api import Tracker
    from drift_ros.engine.estimates import TrackResult


class TrackerNode(LifecycleNodeMixin, Node):
    """
    Lifecycle node ``tracker``; topics, services and parameters are described in docs/nodes.md.

    ``configure`` loads the model and starts the worker, ``activate`` subscribes and publishes,
    ``deactivate`` stops both and keeps the objects, ``cleanup`` forgets everything.
    """

    def __init__(self, **kwargs: Any) -> None:
        """
        Declare parameters, create services.

        Raises
        ------
        ValueError, rclpy.exceptions.ParameterException
            A parameter given at start is refused.

        """
        group = ReentrantCallbackGroup()
        # LifecycleNode's own __init__ would put the lifecycle services into a group in which
        # get_state waits for a configure that loads a model
        Node.__init__(
            self, 'tracker', automatically_declare_parameters_from_overrides=True, **kwargs
        )
        LifecycleNodeMixin.__init__(self, callback_group=group)
        self._images_group = MutuallyExclusiveCallbackGroup()
        self._worker: Worker | None = None
        self._subscription: Any = None
        self._failure = ''
        self._device = ''
        self._sequence = 0
        self._unheard: Callable[[Sequence[Any]], tuple[str, bool]] = lambda _: ('', False)

        parameters.declare(self, *parameters.NODES['tracker'])
        self._parameters_table = {
            item.name: item for item in parameters.parameters(*parameters.NODES['tracker'])
        }
        self._settings = parameters.read(self, NodeConfig)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._parameters_changed)
        self._images = Images(self._warn, self._sources)
        self._outputs = Outputs(self)
        self._requests = Services(
            self, self._running, self._images, self._outputs, self._refuse, group
        )
        self._optimize = OptimizeAction(self, self._running, lambda: self._outputs.active, group)
        self._space = Space(self, self._outputs.publish)
        period, more = self._settings.diagnostics_period, [self._space.diagnose]
        self._diagnostics = Diagnostics(self, self._condition, period, group, more)
        self._stream = StreamCheck(self._warn)
        self._remedy = runtime.loss_remedy()

    def load_tracker(self, settings: NodeConfig, config: TrackerConfig) -> Tracker:
        """
        Make the engine; a subclass may bring its own.

        Raises
        ------
        CheckpointError, ValueError, OSError, ImportError
            It cannot be made; the node stays unconfigured and says why.

        """
        from drift_ros.api import Tracker  # imports torch

        return Tracker(settings.model or None, config, device=settings.device)

    def _running(self) -> Worker:
        """
        Give the worker.

        Raises
        ------
        NotReadyError
            There is none.

        """
        worker = self._worker
        if worker is None:
            raise NotReadyError(
                'the node is not configured: call its configure transition first'
                + (f' (the last attempt failed: {self._failure})' if self._failure else '')
            )
        return worker

    def _condition(self) -> Condition:
        worker, settings, subscription = self._worker, self._settings, self._subscription
        return Condition(
            configured=worker is not None,
            active=self._outputs.active,
            failure=self._failure,
            model=settings.model or 'embedded',
            device=self._device,
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
        )

    def _endpoints(self) -> Sequence[Any]:
        """Give what is known of the publishers of the images."""
        topic = '' if self._subscription is None else self._subscription.topic_name
        return self.get_publishers_info_by_topic(topic) if topic else ()

    def _sources(self) -> tuple[str, ...]:
        """Name the nodes that publish the images."""
        return tuple(
            f'{item.node_namespace.rstrip("/")}/{item.node_name}' for item in self._endpoints()
        )

    # -- parameters ---------------------------------------------------------------------------

    def _check_parameters(self, changes: Sequence[Any]) -> SetParametersResult:
        """Refuse what contradicts, and what would have no effect until a later transition."""
        for change in changes:
            item = self._parameters_table.get(change.name)
            if item is None:
                continue
            reason = item.check(change.value)  # what is wrong in any state comes first
            if reason:
                pass
            elif item.applies == 'configure' and self._worker is not None:
                reason = (
                    f'{item.name} takes effect when the node is configured: call cleanup, '
                    'set it, then configure'
                )
            elif item.applies == 'activate' and self._outputs.active:
                reason = (
                    f'{item.name} takes effect when the node is activated: call '
                    'deactivate, set it, then activate'
                )
            else:
                continue
            return SetParametersResult(successful=False, reason=reason)
        try:
            parameters.read(self, SpaceConfig, changes)
        except ValueError as error:
            return SetParametersResult(successful=False, reason=str(error))
        try:
            parameters.read(self, NodeConfig, changes)
            parameters.read(self, TrackerConfig, changes)
        except ValueError as error:
            return SetParametersResult(
                successful=False, reason=f'{error}; set both at once (atomically), or in turn'
            )
        return SetParametersResult(successful=True)

    def _parameters_changed(self, changes: Sequence[Any]) -> None:
        if any(change.name == 'diagnostics_period' for change in changes):
            self._diagnostics.set_period(self.get_parameter('diagnostics_period').value)
        if self._outputs.active:
            self._apply_settings()

    def _apply_settings(self) -> NodeConfig:
        self._settings = parameters.read(self, NodeConfig)
        self._outputs.opacity = self._settings.overlay_opacity
        self._space.options = parameters.read(self, SpaceConfig).space
        return self._settings

    # -- transitions --------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and start the worker; stay unconfigured, with the reason, on failure."""
        self._failure = ''
        start = time.monotonic()
        try:
            settings = self._apply_settings()
            config = parameters.read(self, TrackerConfig)
            # In a thread that ends: torch keeps threads for each thread that ever used it, and
            # once there are more than processors, those that wait for work fall asleep at once.
            with ThreadPoolExecutor(1) as loader:
                tracker = loader.submit(self.load_tracker, settings, config).result()
            from drift_ros.engine.device import resolve_device

            self._device = str(resolve_device(settings.device))
        except Exception as error:
            if not isinstance(error, (ValueError, OSError, ImportError)):
                self.get_logger().error(traceback.format_exc())
            self._failure = f'cannot configure: {error}'
            self.get_logger().error(self._failure)
            return TransitionCallbackReturn.FAILURE
        self._outputs.create()
        self._worker = Worker(tracker, self._track, self._refuse)
        self.get_logger().info(
            f'configured in {time.monotonic() - start:.1f} s: model '
            f'{settings.model or "embedded"}, device {self._device}'
        )
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the images and publish."""
        worker, settings = self._running(), self._apply_settings()
        self._images.configure(settings.buffer_frames, settings.buffer_mb << 20, settings.greys)
        worker.mailbox.configure(settings.replay, settings.replay_queue_mb << 20)
        statistics = self._diagnostics.statistics
        statistics.reset()
        if self._space.options.publish_tf:
            self._outputs.create_tf()
        self._stream.reset()
        result = super().on_activate(state)
        self._outputs.active = True
        self._space.activate(self._space.options, settings.replay)
        self._outputs.names(worker.tracker)
        topic, kind = source.choose(self.resolve_topic_name('image'), settings.image_transport)
        profile = qos.ALL_IMAGES if settings.replay else qos.LIVE_IMAGES
        self._unheard = partial(source.unheard, topic=topic, kind=kind, profile=profile)
        self._subscription = self.create_subscription(
            kind,
            topic,
            self._receive,
            profile,
            callback_group=self._images_group,
            event_callbacks=SubscriptionEventCallbacks(
                message_lost=lambda info: self._lose(info.total_count_change)
            ),
        )
        self.get_logger().info(f'tracking on {topic}')
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and fall silent; objects and memory stay."""
        self._stop_receiving()
        return super().on_deactivate(state)

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Forget everything; the node can be configured again."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Stop working, from any state."""
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Come back to unconfigured after a transition went wrong."""
        self._failure = f'an error occurred in state {state.label}: configure again'
        self.get_logger().error(self._failure)
        self._release()
        return TransitionCallbackReturn.SUCCESS

    def _stop_receiving(self) -> None:
        self._outputs.active = False
        if self._worker is not None:
            # before the subscription goes: its callback may be waiting here
            self._worker.mailbox.clear()
        if self._subscription is not None:
            self.destroy_subscription(self._subscription)
            self._subscription = None
        self._space.deactivate()
        self._images.buffer.clear()

    def _release(self) -> None:
        self._stop_receiving()
        worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()
            worker.join()  # at most one frame's work
        self._outputs.destroy()
        self._diagnostics.objects = ()

    def stop(self) -> None:
        """Make the worker return after what it is doing; see :func:`runtime.run`."""
        self._outputs.active = False
        if self._worker is not None:
            self._worker.close()

    def join(self, timeout: float) -> bool:
        """Wait for the worker; False when it is still busy after ``timeout`` seconds."""
        return self._worker is None or self._worker.join(timeout)

    # -- images -------------------------------------------------------------------------------

    def _receive(self, message: Image | CompressedImage) -> None:
        """Take an image from the middleware; decoding is the worker's."""
        worker = self._worker
        if worker is None:
            return
        frame = ReceivedImage(
            self._sequence,
            stamp.nanoseconds(message.header.stamp),
            message,
            len(message.data),
            time.monotonic(),
        )
        self._sequence += 1
        statistics = self._diagnostics.statistics
        statistics.receive()
        self._space.receive(frame)
        self._stream.header(frame.stamp, message.header.frame_id)
        self._images.buffer.add(frame)
        dropped = worker.mailbox.put(frame)
        if dropped is not None and dropped is not frame:
            statistics.drop()

    def _warn(self, flaw: str, text: str, number: int = 1) -> None:
        """Say what is wrong with the stream, in diagnostics and in the log."""
        self._diagnostics.statistics.warn(flaw, text, number)
        self.get_logger().warning(text, throttle_duration_sec=5.0)

    def _lose(self, number: int) -> None:
        """Say that images were lost before they arrived; called by the middleware."""
        self._warn(LOST, f'images are lost before they arrive here: {self._remedy}', number)

    def _track(self, tracker: Tracker, frame: ReceivedImage) -> None:
        """Find the objects in an image and publish them, on the worker's thread."""
        image = self._images.decode(frame.message)
        self._stream.size(*image.shape[:2])
        if not tracker.objects:
            tracker.prepare(image)  # while nothing waits for it
        tracker.step(image, partial(self._publish, frame, image))

    def _publish(self, frame: ReceivedImage, image: np.ndarray, result: TrackResult) -> None:
        """Tell what was found in an image, before the tracker remembers it."""
        self._diagnostics.size = f'{image.shape[1]}x{image.shape[0]}'
        look = self._space.look(frame, image, result)
        if self._outputs.result(frame, image, result, look.places):
            self._diagnostics.objects = result.objects
            self._diagnostics.statistics.track(time.monotonic() - frame.received)
        self._space.tell(look)

    def _refuse(self, error: BaseException) -> None:
        """Say that an image or a request could not be used; tracking goes on with the next."""
        reason = str(error)
        if out_of_memory(error):
            reason = (
                f'out of memory ({type(error).__name__}: {error}): free some, or lower '
                'features.resolution, buffer_mb or states.max_objects'
            )
        elif not isinstance(error, (conversions.ConversionError, DriftRosError)):
            reason = f'{type(error).__name__}: {error}'
            self.get_logger().error(
                ''.join(traceback.format_exception(error)), throttle_duration_sec=5.0
            )
        self._diagnostics.statistics.refuse(reason)
        self.get_logger().warning(f'dropped: {reason}', throttle_duration_sec=5.0)

    def endure(self, error: BaseException) -> None:
        """Report what a callback raised; see :func:`runtime.run`."""
        self._refuse(error)


def main(args: Sequence[str] | None = None) -> None:
    """Run the node as a process: ``ros2 run drift_ros tracker``."""
    # waiting requests hold threads: two for masks, one that optimises, and in replay the images
    runtime.run(TrackerNode, args, threads=6)


if __name__ == '__main__':
    main()
