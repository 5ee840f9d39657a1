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
from functools import partial
import gc
import time
import traceback
from typing import Any, TYPE_CHECKING

from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node

from drift_ros.engine.config import TrackerConfig
from drift_ros.engine.errors import UnknownObjectError
from drift_ros.engine.table import listed_ids
from drift_ros.nodes.tracker.diagnostics import Diagnostics
from drift_ros.nodes.tracker.view import NodeState, View
from drift_ros.nodes.tracker.worker import TrackingThread
from drift_ros.ros import parameters, runtime
from drift_ros.ros.parameters import NodeConfig
from drift_ros.space.options import SpaceConfig

if TYPE_CHECKING:
    from drift_ros.api import Tracker


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
        self._failure, self._device = '', ''
        self._thread: TrackingThread | None = None

        parameters.declare(self, *parameters.NODES['tracker'])
        self._parameters_table = {
            item.name: item for item in parameters.parameters(*parameters.NODES['tracker'])
        }
        self._settings = parameters.read(self, NodeConfig)
        self.add_on_set_parameters_callback(self._check_parameters)
        self.add_post_set_parameters_callback(self._parameters_changed)
        names = self._settings.cameras
        self._views = [
            View(self, name, self._common, group, partial(self._elsewhere, name) if name else None)
            for name in names or ('',)
        ]
        statuses = [
            status
            for view in self._views
            for status in (view.status.diagnose, view.space.diagnose)
        ]
        self._diagnostics = Diagnostics(self, statuses, self._settings.diagnostics_period, group)

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

    def _common(self) -> NodeState:
        return NodeState(self._settings, self._device, self._failure)

    def _elsewhere(self, camera: str, object_id: int) -> Tracker:
        """
        Give the tracker of another camera that follows an object.

        Raises
        ------
        UnknownObjectError

        """
        known: set[int] = set()
        for view in self._views:
            tracker = view.tracker
            if view.name != camera and tracker is not None:
                live = {info.id for info in tracker.objects}
                if object_id in live:
                    return tracker
                known |= live
        raise UnknownObjectError(
            f'no other camera follows object {object_id}; objects of theirs: '
            f'{listed_ids(sorted(known))}'
        )

    @property
    def threads(self) -> int:
        """Of the executor: requests and, in replay, images may wait in threads."""
        # of each camera two for masks, one that optimises, and the images
        return 2 + 4 * len(self._views)

    @property
    def _active(self) -> bool:
        return any(view.outputs.active for view in self._views)

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
            elif item.applies == 'configure' and self._thread is not None:
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
        if self._active:
            self._apply_settings()

    def _apply_settings(self) -> NodeConfig:
        self._settings = parameters.read(self, NodeConfig)
        space = parameters.read(self, SpaceConfig).space
        for view in self._views:
            view.outputs.opacity = self._settings.overlay_opacity
            view.space.options = space
        return self._settings

    # -- transitions --------------------------------------------------------------------------

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Load the model and start the worker; stay unconfigured, with the reason, on failure."""
        self._failure, count = '', len(self._views)
        start = time.monotonic()
        try:
            settings = self._apply_settings()
            config = parameters.read(self, TrackerConfig)
            # In a thread that ends: torch keeps threads for each thread that ever used it, and
            # once there are more than processors, those that wait for work fall asleep at once.
            with ThreadPoolExecutor(1) as loader:
                tracker = loader.submit(self.load_tracker, settings, config).result()
            from drift_ros.api import look_ahead
            from drift_ros.engine.device import resolve_device

            device = resolve_device(settings.device)
            self._device = str(device)
            # a CPU is busy with one picture, which it takes through a compiled pass
            batches = count > 1 and device.type != 'cpu'
        except Exception as error:
            if not isinstance(error, (ValueError, OSError, ImportError)):
                self.get_logger().error(traceback.format_exc())
            self._failure = f'cannot configure: {error}'
            self.get_logger().error(self._failure)
            return TransitionCallbackReturn.FAILURE
        self._thread = TrackingThread(look_ahead if batches else None)
        for number, view in enumerate(self._views, start=1):  # no id is given twice
            view.configure(tracker if count == 1 else tracker.beside(number, count), self._thread)
        self.get_logger().info(
            f'configured in {time.monotonic() - start:.1f} s: model '
            f'{settings.model or "embedded"}, device {self._device}'
        )
        return super().on_configure(state)

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Subscribe to the images and publish."""
        settings, space = self._apply_settings(), parameters.read(self, SpaceConfig).space
        for view in self._views:
            view.prepare(settings, space)
        result = super().on_activate(state)  # of the publishers
        for view in self._views:
            self.get_logger().info(f'tracking on {view.activate(settings, space)}')
        return result

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Unsubscribe and fall silent; objects and memory stay."""
        for view in self._views:
            view.deactivate()
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

    def _release(self) -> None:
        for view in self._views:
            view.release()
        thread, self._thread = self._thread, None
        if thread is not None:
            thread.join()  # at most one frame's work
        for view in self._views:
            view.destroy()
        # a model and its compiled passes, with their threads, refer to each other
        gc.collect()

    def stop(self) -> None:
        """Make the workers return after what they are doing; see :func:`runtime.run`."""
        for view in self._views:
            view.stop()

    def join(self, timeout: float) -> bool:
        """Wait for the thread that tracks; False when it is busy after ``timeout`` seconds."""
        return self._thread is None or self._thread.join(timeout)

    def endure(self, error: BaseException) -> None:
        """Report what a callback raised; see :func:`runtime.run`."""
        self._views[0].refuse(error)


def main(args: Sequence[str] | None = None) -> None:
    """Run the node as a process: ``ros2 run drift_ros tracker``."""
    runtime.run(TrackerNode, args)


if __name__ == '__main__':
    main()
