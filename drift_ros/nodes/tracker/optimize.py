# SPDX-License-Identifier: Apache-2.0
"""
The tracker node's action ``~/optimize``: learn prompt tokens while tracking goes on.

The worker takes single steps of learning between two frames; the executor's thread that runs the
goal waits for their futures, publishes what they give and looks for a cancellation. One goal runs
at a time.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError, Future, wait
from dataclasses import dataclass, field
import math
import threading
import time
import traceback
from typing import Any, TYPE_CHECKING

from drift_ros_msgs.action import Optimize
from rclpy.action import ActionServer, CancelResponse, GoalResponse
from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node

from drift_ros.engine.errors import DriftRosError
from drift_ros.nodes.tracker.services import NotReadyError
from drift_ros.nodes.tracker.worker import Worker

if TYPE_CHECKING:
    from drift_ros.api import Tracker
    from drift_ros.diffusion.textual_inversion import OptimizeResult, OptimizeStep

_POLL = 0.05
"""Seconds between two looks for a cancellation."""
_AHEAD = 2
"""Steps in the worker's queue, so that it never waits for what is published of the last one."""


@dataclass
class _Learning:
    """What came of a goal so far."""

    steps: int = 0
    seconds: float = 0.0
    """Spent in steps."""
    result: OptimizeResult | None = None
    error: str = ''
    queued: deque[Future[Any]] = field(default_factory=deque)


class OptimizeAction:
    """Serves ``~/optimize`` for a node."""

    def __init__(
        self,
        node: Node,
        worker: Callable[[], Worker],
        is_active: Callable[[], bool],
        group: CallbackGroup,
        prefix: str = '',
    ) -> None:
        """
        Create the action server.

        Parameters
        ----------
        node : Node
        worker : callable
            Gives the worker; raises NotReadyError where there is none.
        is_active : callable
            Whether images are received.
        group : CallbackGroup
            Reentrant: a goal occupies a thread.
        prefix : str
            Of the name below ``~/``.

        """
        self._worker, self._is_active, self._log = worker, is_active, node.get_logger()
        self._running = threading.Lock()
        # goals are accepted always: only a result can carry the reason of a refusal
        self._server = ActionServer(
            node,
            Optimize,
            f'~/{prefix}optimize',
            self._execute,
            callback_group=group,
            goal_callback=lambda goal: GoalResponse.ACCEPT,
            cancel_callback=lambda handle: CancelResponse.ACCEPT,
        )

    def _execute(self, handle: Any) -> Optimize.Result:
        if not self._running.acquire(blocking=False):
            return self._refuse(handle, 'another goal is running: wait for it or cancel it')
        try:
            worker, budget = self._worker(), float(handle.request.budget)
            if not self._is_active():
                raise NotReadyError('the node is not active: call its activate transition first')
            steps = worker.tracker.optimize(
                list(handle.request.object_ids), budget if math.isfinite(budget) else -1.0
            )
            return self._conclude(handle, worker, self._learn(handle, worker, steps))
        except (DriftRosError, LookupError) as error:
            return self._refuse(handle, str(error))
        except Exception as error:  # whoever waits for the result is told
            self._log.error(traceback.format_exc())
            return self._refuse(handle, f'{type(error).__name__}: {error}')
        finally:
            self._running.release()

    def _learn(
        self, handle: Any, worker: Worker, steps: Generator[OptimizeStep, None, OptimizeResult]
    ) -> _Learning:
        """Have the steps done and publish what they say, until they end one way or another."""

        def step(
            tracker: Tracker,
        ) -> tuple[OptimizeStep | None, OptimizeResult | None, float]:
            start = time.perf_counter()
            try:
                said, result = next(steps), None
            except StopIteration as end:  # its value once, then nothing
                said, result = None, end.value
            return said, result, time.perf_counter() - start

        learning = _Learning()
        queued = learning.queued
        for _ in range(_AHEAD):
            queued.append(worker.submit(step, background=True))
        while queued:
            if self._is_over(handle, worker):
                for future in queued:
                    future.cancel()
            if not wait([queued[0]], _POLL).done:
                continue
            try:
                said, result, seconds = queued.popleft().result()
            except CancelledError:
                continue
            except BaseException as error:
                learning.error = (
                    str(error)
                    if isinstance(error, DriftRosError)
                    else f'{type(error).__name__}: {error}'
                )
                continue
            learning.seconds += seconds
            learning.result = learning.result or result
            if said is not None:
                learning.steps = said.step
                self._publish(handle, said)
                if not self._is_over(handle, worker):
                    queued.append(worker.submit(step, background=True))
        # the worker's generator: closed there, without effect where it has ended
        worker.submit(lambda tracker: steps.close())
        return learning

    def _is_over(self, handle: Any, worker: Worker) -> bool:
        return handle.is_cancel_requested or not self._is_active() or worker.mailbox.closed

    def _conclude(self, handle: Any, worker: Worker, learning: _Learning) -> Optimize.Result:
        """Make the goal's result, and end it."""
        found = learning.result
        if found is not None:
            ids = sorted(found.before)
            handle.succeed()
            self._log.info(f'learnt prompt tokens of {len(ids)} objects in {found.seconds:.1f} s')
            return Optimize.Result(
                success=True,
                object_ids=ids,
                agreement_before=[found.before[number] for number in ids],
                agreement_after=[found.after[number] for number in ids],
                steps=found.steps,
                seconds=float(found.seconds),
            )
        result = Optimize.Result(steps=learning.steps, seconds=learning.seconds)
        if handle.is_cancel_requested:
            result.message = 'cancelled: the tracker goes on without learnt tokens'
            handle.canceled()
            return result
        result.message = learning.error or (
            'the node was deactivated: activate it and send the goal again'
        )
        self._log.warning(f'optimize: {result.message}')
        if not worker.mailbox.closed:
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
        self._log.warning(f'optimize refused: {reason}')
        handle.abort()
        return Optimize.Result(message=reason)
