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

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
import resource
import threading
import time
import traceback
from typing import Any, TYPE_CHECKING

from builtin_interfaces.msg import Time
from diagnostic_msgs.msg import DiagnosticArray
from drift_ros_msgs.msg import TrackArray
from drift_ros_msgs.srv import RemoveObject, SeedMask
import numpy as np
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from vision_msgs.msg import Detection2DArray, LabelInfo

from drift_ros.engine.config import TrackerConfig
from drift_ros.engine.errors import DriftRosError, SeedError, UnknownObjectError
from drift_ros.media import overlay
from drift_ros.nodes.tracker.optimize import OptimizeAction
from drift_ros.nodes.tracker.prompting import Picture, PromptServices
from drift_ros.nodes.tracker.stream import Frame, FrameBuffer, Job, Mailbox, Statistics
from drift_ros.ros import conversions, parameters, runtime
from drift_ros.ros.parameters import NodeConfig

if TYPE_CHECKING:
    from drift_ros.api import Tracker
    from drift_ros.engine.results import TrackResult

_OK, _WARN, _ERROR = 0, 1, 2


def stamp_of(header: Header) -> int:
    """Give a header's stamp in nanoseconds."""
    return header.stamp.sec * 10**9 + header.stamp.nanosec


def memory_in_use() -> int:
    """Give this process's resident memory in bytes; its peak where the system does not tell."""
    try:
        with open('/proc/self/statm', encoding='ascii') as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class TrackerNode(LifecycleNodeMixin, Node):
    """
    Lifecycle node ``tracker``; topics, services and parameters are described in docs/nodes.md.

    ``configure`` loads the model and starts the worker, ``activate`` subscribes and publishes,
    ``deactivate`` stops both and keeps the objects, ``cleanup`` forgets everything.
    """

    def __init__(self, **kwargs: Any) -> None:
        self._services_group = ReentrantCallbackGroup()
        # LifecycleNode's own __init__ would put the lifecycle services into a group in which
        # get_state waits for a configure that loads a model
        Node.__init__(self, 'tracker', **kwargs)
        LifecycleNodeMixin.__init__(self, callback_group=self._services_group)
        self._images_group = MutuallyExclusiveCallbackGroup()
        self._tracker: Tracker | None = None
        self._worker: threading.Thread | None = None
        self._mailbox = Mailbox()
        self._buffer = FrameBuffer(1, 0)
        self._statistics = Statistics()
        self._settings = NodeConfig()
        self._subscription: Any = None
        self._outputs: dict[str, Any] = {}
        # held while something is published or the set of publishers changes
        self._publish_lock = threading.Lock()
        self._active = False
        self._failure = ''
        self._device = ''
        self._size = ''
        self._sequence = 0
        self._removing: set[int] = set()
        self._latest: tuple[Any, ...] = ()

        parameters.declare(self, *parameters.NODES['tracker'])
        self._table = {
            item.name: item for item in parameters.parameters(*parameters.NODES['tracker'])
        }
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._parameters_changed)
        for kind, name, callback in (
            (SeedMask, 'seed_mask', self._seed_mask),
            (RemoveObject, 'remove_object', self._remove_object),
            (Trigger, 'reset', self._reset),
        ):
            self.create_service(kind, f'~/{name}', callback, callback_group=self._services_group)
        self._optimize = OptimizeAction(
            self,
            lambda: (
                (self._tracker, self._mailbox)
                if self._tracker is not None
                else self._not_configured()
            ),
            lambda: self._active,
            self._services_group,
        )
        self._prompts = PromptServices(self, self, self._services_group)
        self._diagnostics = self.create_publisher(DiagnosticArray, '/diagnostics', 10)
        # steady: diagnostics go on when simulated time stands still
        self._timer = self.create_timer(
            self.get_parameter('diagnostics_period').value,
            self._publish_diagnostics,
            callback_group=self._services_group,
            clock=Clock(clock_type=ClockType.STEADY_TIME),
        )

    # -- parameters ---------------------------------------------------------------------------

    def _check_parameters(self, changes: Sequence[Any]) -> SetParametersResult:
        """Refuse what would silently have no effect until a later transition."""
        for change in changes:
            item = self._table.get(change.name)
            if item is None:
                continue
            reason = item.check(change.value)  # what is wrong in any state comes first
            if reason:
                pass
            elif item.applies == 'configure' and self._tracker is not None:
                reason = (
                    f'{item.name} takes effect when the node is configured: call cleanup, '
                    'set it, then configure'
                )
            elif item.applies == 'activate' and self._active:
                reason = (
                    f'{item.name} takes effect when the node is activated: call '
                    'deactivate, set it, then activate'
                )
            else:
                continue
            return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _parameters_changed(self, changes: Sequence[Any]) -> None:
        if any(change.name == 'diagnostics_period' for change in changes):
            self._timer.timer_period_ns = int(self.get_parameter('diagnostics_period').value * 1e9)
        if self._active:
            self._settings = parameters.read(self, NodeConfig)

    # -- transitions --------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and start the worker; stay unconfigured, with the reason, on failure."""
        self._failure = ''
        try:
            self._settings = parameters.read(self, NodeConfig)
            config = parameters.read(self, TrackerConfig)
            start = time.monotonic()
            from drift_ros.api import Tracker  # imports torch

            # In a thread that ends: torch keeps threads for each thread that ever used it, and
            # once there are more than processors, those that wait for work fall asleep at once.
            with ThreadPoolExecutor(1) as loader:
                self._tracker = loader.submit(
                    Tracker, self._settings.model or None, config, device=self._settings.device
                ).result()
            from drift_ros.engine.device import resolve_device

            self._device = str(resolve_device(self._settings.device))
        except Exception as error:
            if not isinstance(error, (ValueError, OSError, ImportError)):
                self.get_logger().error(traceback.format_exc())
            self._failure = f'cannot configure: {error}'
            self.get_logger().error(self._failure)
            return TransitionCallbackReturn.FAILURE
        self._mailbox = Mailbox()
        self._removing = set()
        self._latest = ()
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        with self._publish_lock:
            self._outputs = {
                name: self.create_lifecycle_publisher(kind, f'~/{name}', qos)
                for name, kind, qos in (
                    ('mask', Image, 10),
                    ('detections', Detection2DArray, 10),
                    ('tracks', TrackArray, 10),
                    ('overlay', Image, 2),
                    ('label_info', LabelInfo, latched),
                    ('seeds', Image, 10),
                )
            }
        self._worker = threading.Thread(
            target=self._work, args=(self._tracker, self._mailbox), name='tracking', daemon=True
        )
        self._worker.start()
        self.get_logger().info(
            f'configured in {time.monotonic() - start:.1f} s: model '
            f'{self._model_name()}, device {self._device}'
        )
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the images and publish."""
        settings = self._settings = parameters.read(self, NodeConfig)
        self._buffer = FrameBuffer(settings.buffer_frames, settings.buffer_mb << 20)
        self._mailbox.configure(settings.replay, settings.replay_queue_mb << 20)
        self._statistics.reset()
        result = super().on_activate(state)
        with self._publish_lock:
            self._active = True
        self._publish_names()
        if settings.replay:
            qos = QoSProfile(
                history=HistoryPolicy.KEEP_ALL, reliability=ReliabilityPolicy.RELIABLE
            )
        else:
            qos = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
        compressed = settings.image_transport == 'compressed'
        # as image_transport does: the base topic is remapped, the transport's name follows it
        topic = self.resolve_topic_name('image') + ('/compressed' if compressed else '')
        self._subscription = self.create_subscription(
            CompressedImage if compressed else Image,
            topic,
            self._receive,
            qos,
            callback_group=self._images_group,
            event_callbacks=SubscriptionEventCallbacks(
                message_lost=lambda info: self._statistics.count('lost', info.total_count_change)
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
        with self._publish_lock:
            self._active = False
        self._mailbox.clear()  # before the subscription goes: its callback may be waiting here
        if self._subscription is not None:
            self.destroy_subscription(self._subscription)
            self._subscription = None
        self._buffer.clear()

    def _release(self) -> None:
        self._stop_receiving()
        self._mailbox.close()
        if self._worker is not None:
            self._worker.join()  # at most one frame's work
            self._worker = None
        with self._publish_lock:
            for publisher in self._outputs.values():
                self.destroy_lifecycle_publisher(publisher)
            self._outputs = {}
        self._tracker = None
        self._latest = ()

    def stop(self) -> None:
        """Make the worker return after what it is doing; see :func:`runtime.run`."""
        with self._publish_lock:
            self._active = False
        self._mailbox.close()

    def join(self, timeout: float) -> bool:
        """Wait for the worker; False when it is still busy after ``timeout`` seconds."""
        if self._worker is not None:
            self._worker.join(timeout)
            return not self._worker.is_alive()
        return True

    # -- images -------------------------------------------------------------------------------

    def _receive(self, message: Image | CompressedImage) -> None:
        """Take a frame from the middleware; decoding is the worker's."""
        frame = Frame(
            self._sequence, stamp_of(message.header), message, len(message.data), time.monotonic()
        )
        self._sequence += 1
        self._statistics.receive()
        if self._buffer.add(frame):
            self._statistics.count('jumps')
            self.get_logger().warning(
                'time jumped back: buffered frames of later stamps are '
                'forgotten, tracking goes on',
                throttle_duration_sec=5.0,
            )
        dropped = self._mailbox.put(frame)
        if dropped is not None and dropped is not frame:
            self._statistics.count('dropped')

    def _decode(self, message: Image | CompressedImage) -> np.ndarray:
        return (
            conversions.compressed_to_rgb(message)
            if isinstance(message, CompressedImage)
            else conversions.image_to_rgb(message)
        )

    def _work(self, tracker: Tracker, mailbox: Mailbox) -> None:
        """Worker thread: the only one that uses the engine's network and memory."""
        while (item := mailbox.get()) is not None:
            try:
                if isinstance(item, Job):
                    item.run()
                else:
                    self._track(tracker, item)
            except (conversions.ConversionError, DriftRosError) as error:
                self._refuse(str(error))
            except Exception as error:  # one bad frame must not end tracking
                self.get_logger().error(traceback.format_exc(), throttle_duration_sec=5.0)
                self._refuse(f'{type(error).__name__}: {error}')

    def _refuse(self, reason: str) -> None:
        self._statistics.refuse(reason)
        self.get_logger().warning(f'dropped: {reason}', throttle_duration_sec=5.0)

    def _track(self, tracker: Tracker, frame: Frame) -> None:
        image = self._decode(frame.message)
        result = tracker.step(image)
        self._size = f'{image.shape[1]}x{image.shape[0]}'
        self._publish(frame, image, result)

    def _publish(self, frame: Frame, image: np.ndarray, result: TrackResult) -> None:
        header = frame.message.header
        messages = {
            'mask': conversions.labels_to_image(result.labels, header),
            'detections': conversions.detections(result.objects, header),
        }
        with self._publish_lock:
            wanted = self._active and self._outputs['overlay'].get_subscription_count() > 0
        if wanted:
            messages['overlay'] = conversions.rgb_to_image(
                overlay.draw(
                    image, result.labels, result.objects, opacity=self._settings.overlay_opacity
                ),
                header,
            )
        latency = self.get_clock().now().nanoseconds - frame.stamp
        messages['tracks'] = conversions.tracks(result.objects, result.timings, latency, header)
        with self._publish_lock:
            if not self._active:
                return
            for name, message in messages.items():
                self._outputs[name].publish(message)
            self._latest = result.objects
            self._statistics.track(time.monotonic() - frame.received)

    def _publish_names(self) -> None:
        tracker = self._tracker
        with self._publish_lock:
            if tracker is None or not self._active:
                return
            header = Header(stamp=self.get_clock().now().to_msg())
            self._outputs['label_info'].publish(
                conversions.label_info({item.id: item.name for item in tracker.objects}, header)
            )

    # -- services -----------------------------------------------------------------------------

    def _not_configured(self) -> str:
        return 'the node is not configured: call its configure transition first' + (
            f' (the last attempt failed: {self._failure})' if self._failure else ''
        )

    def engine(self) -> tuple[Tracker, Mailbox] | str:
        """Give the engine and the worker's mailbox, or why there is none."""
        tracker, mailbox = self._tracker, self._mailbox
        return self._not_configured() if tracker is None else (tracker, mailbox)

    def picture(self, image: Image | None, stamp: Time) -> Picture:
        """
        Decode the image a request brought, or the buffered frame of its stamp.

        :raises ConversionError: the image cannot be decoded
        :raises LookupError: no frame of this stamp is buffered
        """
        if image is not None and image.data:
            return Picture(conversions.image_to_rgb(image), image.header, -1)
        frame = self._buffer.find(stamp.sec * 10**9 + stamp.nanosec)
        return Picture(self._decode(frame.message), frame.message.header, frame.sequence)

    def seeded(self, labels: np.ndarray, header: Header) -> None:
        """Tell the names of the objects, and the mask of the new ones, (H, W) pixel = id."""
        self._publish_names()
        kind = np.uint16 if labels.max() > 255 else np.uint8
        with self._publish_lock:
            if self._active:
                self._outputs['seeds'].publish(
                    conversions.labels_to_image(labels.astype(kind), header)
                )

    def _seed_mask(
        self, request: SeedMask.Request, response: SeedMask.Response
    ) -> SeedMask.Response:
        """Check a seed and answer; the worker carries it out before the next frame."""
        tracker, mailbox = self._tracker, self._mailbox
        if tracker is None:
            response.message = self._not_configured()
            return response
        labels: list[int] = []
        reasons: dict[int, str] = {}
        try:
            mask = conversions.image_to_labels(request.mask)
            labels = [value for value in np.unique(mask).tolist() if value]
            picture = self.picture(request.image, request.mask.header.stamp)
            seed = tracker.prepare_seed(picture.image, mask, list(request.names))
        except (conversions.ConversionError, DriftRosError, LookupError) as error:
            if isinstance(error, SeedError):
                reasons = error.reasons
            response.message = str(error)
            response.labels = labels
            response.object_ids = [0] * len(labels)
            response.errors = [reasons.get(label, '') for label in labels]
            self.get_logger().warning(f'seed refused: {error}')
            return response

        def apply() -> None:
            tracker.apply_seed(seed)
            ids = np.zeros(max(seed.labels) + 1, np.int32)
            ids[list(seed.labels)] = seed.object_ids
            self.seeded(
                ids[np.where(np.isin(seed.mask, seed.labels), seed.mask, 0)], picture.header
            )

        mailbox.submit(Job(apply, picture.after))
        response.success = True
        response.labels = list(seed.labels)
        response.object_ids = list(seed.object_ids)
        response.errors = [''] * len(seed.labels)
        self.get_logger().info(
            'seeded '
            + ', '.join(f'{number} ({name})' for number, name in zip(seed.object_ids, seed.names))
        )
        return response

    def _remove_object(
        self, request: RemoveObject.Request, response: RemoveObject.Response
    ) -> RemoveObject.Response:
        tracker, number = self._tracker, request.object_id
        if tracker is None:
            response.message = self._not_configured()
            return response
        try:
            if number in self._removing:
                raise UnknownObjectError(f'object {number} has just been removed')
            tracker.check_object(number)
        except UnknownObjectError as error:
            response.message = str(error)
            return response
        self._removing.add(number)

        def remove() -> None:
            try:
                tracker.remove(number)
            except UnknownObjectError:
                pass  # a reset came first
            self._removing.discard(number)
            self._publish_names()

        self._mailbox.submit(Job(remove))
        response.success = True
        return response

    def _reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        tracker = self._tracker
        if tracker is None:
            response.message = self._not_configured()
            return response
        known = {item.id for item in tracker.objects}

        def reset() -> None:
            # objects seeded since the request was answered are not its business
            if {item.id for item in tracker.objects} <= known:
                tracker.reset()
            else:
                for number in known & {item.id for item in tracker.objects}:
                    tracker.remove(number)
            self._latest = ()
            self._publish_names()

        self._mailbox.submit(Job(reset))
        response.success = True
        response.message = f'{len(known)} objects forgotten'
        return response

    # -- diagnostics --------------------------------------------------------------------------

    def _model_name(self) -> str:
        return self._settings.model or 'embedded'

    def _health(self, numbers: dict[str, Any]) -> tuple[int, str]:
        """Sum the node's condition up: level and sentence."""
        if self._tracker is None:
            return (_ERROR, self._failure) if self._failure else (_OK, 'not configured')
        if not self._active:
            return _OK, 'configured, not active'
        if numbers['refused_recently']:
            return _ERROR, (
                f'{numbers["refused_recently"]} frames or requests failed lately: '
                f'{self._statistics.last_error}'
            )
        if numbers['silence'] > self._settings.input_timeout:
            topic = self._subscription.topic_name if self._subscription is not None else ''
            return _WARN, (
                f'no frames for {numbers["silence"]:.0f} s on {topic}: check the '
                'topic, its publisher and its QoS'
            )
        if self._settings.replay and numbers['lost']:
            return _ERROR, f'{numbers["lost"]} frames were lost before they arrived'
        lost = [item.name or str(item.id) for item in self._latest if item.state.name == 'LOST']
        if lost:
            return _WARN, f'lost: {", ".join(lost)}'
        return _OK, f'following {len(self._latest)} objects'

    def _publish_diagnostics(self) -> None:
        numbers = self._statistics.snapshot()
        level, message = self._health(numbers)
        tracker = self._tracker
        values: dict[str, object] = {
            'model': self._model_name(),
            'device': self._device,
            'mode': 'replay' if self._settings.replay else 'live',
            'frames received': numbers['received'],
            'frames tracked': numbers['tracked'],
            'frames dropped': numbers['dropped'],
            'frames refused': numbers['refused'],
            'frames lost by the middleware': numbers['lost'],
            'frames waiting': self._mailbox.waiting,
            'frames buffered': len(self._buffer),
            'frame size': self._size,
            'rate in (Hz)': numbers['rate_in'],
            'rate out (Hz)': numbers['rate_out'],
            'latency median (ms)': numbers['latency_median'],
            'latency 95th percentile (ms)': numbers['latency_95'],
            'time jumps': numbers['jumps'],
            'memory (MB)': memory_in_use() / 1e6,
            'reference memory (MB)': 0.0 if tracker is None else tracker.memory_bytes / 1e6,
            'objects': len(self._latest),
        }
        for item in self._latest:
            values[f'object {item.id}'] = (
                f'{item.name}: {item.state.name}, confidence {item.confidence:.2f}'
            )
        values['last error'] = self._statistics.last_error or self._failure
        array = DiagnosticArray()
        array.header.stamp = self.get_clock().now().to_msg()
        array.status = [
            conversions.diagnostic(
                f'{self.get_fully_qualified_name().lstrip("/")}: tracking',
                self.resolve_topic_name('image'),
                level,
                message,
                values,
            )
        ]
        self._diagnostics.publish(array)


def main(args: Sequence[str] | None = None) -> None:
    """Run the node as a process: ``ros2 run drift_ros tracker``."""
    # waiting requests hold threads: two for masks, one that optimises, and in replay the images
    runtime.run(TrackerNode, args, threads=6)


if __name__ == '__main__':
    main()
