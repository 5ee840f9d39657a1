# SPDX-License-Identifier: Apache-2.0
"""
The tracker node's action ``~/optimize``: learn prompt tokens while tracking goes on.

The worker thread, which owns the engine, takes single steps of learning between two frames; the
executor's thread that runs the goal only waits for what they give, publishes it and looks for a
cancellation. One goal runs at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
import contextlib
import math
import queue
import threading
import time
from typing import Any, TYPE_CHECKING

from drift_ros_msgs.action import Optimize
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import ReentrantCallbackGroup

from drift_ros.engine.errors import DriftRosError
from drift_ros.nodes.tracker.stream import Job, Mailbox

if TYPE_CHECKING:
    from drift_ros.api import Tracker
    from drift_ros.diffusion.textual_inversion import OptimizeResult, OptimizeStep

_POLL = 0.05
"""Seconds between two looks for a cancellation."""


class OptimizeAction:
    """Serves ``~/optimize`` for a node."""

    def __init__(
        self,
        node: Any,
        engine: Callable[[], tuple[Tracker, Mailbox] | str],
        is_active: Callable[[], bool],
        group: ReentrantCallbackGroup,
    ) -> None:
        """
        Create the action server.

        :param engine: gives the engine and its mailbox, or why there is none
        :param is_active: whether images are received
        """
        self._node, self._engine, self._is_active = node, engine, is_active
        self._running = threading.Lock()
        # goals are accepted always: only a result can carry the reason of a refusal
        self._server = ActionServer(
            node,
            Optimize,
            '~/optimize',
            self._execute,
            callback_group=group,
            goal_callback=lambda goal: GoalResponse.ACCEPT,
            cancel_callback=lambda handle: CancelResponse.ACCEPT,
        )

    def destroy(self) -> None:
        """Take the server down."""
        self._server.destroy()

    def _execute(self, handle: Any) -> Optimize.Result:
        if not self._running.acquire(blocking=False):
            return self._refuse(handle, 'another goal is running: wait for it or cancel it')
        try:
            engine = self._engine()
            if isinstance(engine, str):
                return self._refuse(handle, engine)
            if not self._is_active():
                return self._refuse(
                    handle, 'the node is not active: call its activate transition first'
                )
            tracker, mailbox = engine
            request = handle.request
            try:
                budget = float(request.budget)
                steps = tracker.optimize(
                    list(request.object_ids), budget if math.isfinite(budget) else -1.0
                )
            except DriftRosError as error:
                return self._refuse(handle, str(error))
            return self._follow(handle, Learning(steps, mailbox), mailbox)
        finally:
            self._running.release()

    def _follow(self, handle: Any, learning: Learning, mailbox: Mailbox) -> Optimize.Result:
        """Publish what the steps say until they end, one way or another."""
        learning.start()
        while True:
            if handle.is_cancel_requested or not self._is_active() or mailbox.closed:
                learning.cancel()
            with contextlib.suppress(queue.Empty):
                self._publish(handle, learning.progress.get(timeout=_POLL))
            if learning.ended(mailbox.closed):
                break
        result = Optimize.Result(steps=learning.steps, seconds=float(learning.seconds))
        if learning.result is not None:
            ids = sorted(learning.result.before)
            result.object_ids = ids
            result.agreement_before = [learning.result.before[number] for number in ids]
            result.agreement_after = [learning.result.after[number] for number in ids]
            result.success = True
            handle.succeed()
            self._node.get_logger().info(
                f'learnt prompt tokens of {len(ids)} objects in {learning.seconds:.1f} s'
            )
            return result
        if handle.is_cancel_requested:
            result.message = 'cancelled: the tracker goes on without learnt tokens'
            handle.canceled()
            return result
        result.message = learning.error or (
            'the node was deactivated: activate it and send the goal again'
        )
        self._node.get_logger().warning(f'optimize: {result.message}')
        if not mailbox.closed:
            handle.abort()
        return result

    def _publish(self, handle: Any, progress: OptimizeStep) -> None:
        for number, loss in progress.loss.items():
            handle.publish_feedback(
                Optimize.Feedback(
                    object_id=number,
                    step=progress.step,
                    steps=progress.steps,
                    loss=loss,
                    agreement=progress.agreement[number],
                )
            )

    def _refuse(self, handle: Any, reason: str) -> Optimize.Result:
        self._node.get_logger().warning(f'optimize refused: {reason}')
        handle.abort()
        return Optimize.Result(message=reason)


class Learning:
    """Steps of learning, as jobs of the worker; started and watched from another thread."""

    def __init__(
        self, steps: Generator[OptimizeStep, None, OptimizeResult], mailbox: Mailbox
    ) -> None:
        self._generator, self._mailbox = steps, mailbox
        self._cancelled = threading.Event()
        self._done = threading.Event()
        self.progress: queue.Queue[OptimizeStep] = queue.Queue()
        self.result: OptimizeResult | None = None
        self.error = ''
        self.steps = 0
        self.seconds = 0.0

    def start(self) -> None:
        """Queue the first step."""
        self._mailbox.submit(Job(self._step, background=True))

    def cancel(self) -> None:
        """Let the next step be the end, without effect on the tracker."""
        self._cancelled.set()

    def ended(self, closed: bool) -> bool:
        """Whether everything was said: the steps ended, or nobody does them any more."""
        return (self._done.is_set() or closed) and self.progress.empty()

    def _step(self) -> None:
        """Do one step on the worker thread, and queue the next."""
        start = time.perf_counter()
        try:
            if self._cancelled.is_set():
                self._generator.close()
                self._done.set()
                return
            said = next(self._generator)
        except StopIteration as end:
            self.result = end.value
            self.steps, self.seconds = end.value.steps, end.value.seconds
            self._done.set()
        except DriftRosError as error:
            self.error = str(error)
            self._done.set()
        except Exception as error:
            self.error = f'{type(error).__name__}: {error}'
            self._done.set()
            raise
        else:
            self.steps = said.step
            self.progress.put(said)
            self._mailbox.submit(Job(self._step, background=True))
        finally:
            if self.result is None:
                self.seconds += time.perf_counter() - start
