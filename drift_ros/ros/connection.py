# SPDX-License-Identifier: Apache-2.0
"""A node that calls services of other nodes, and gets an answer or an error by a deadline."""

from __future__ import annotations

import atexit
from collections.abc import Callable
import contextlib
import threading
import time
import traceback
from typing import Any, TypeVar
import weakref

import rclpy
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from drift_ros.ros.client_errors import ClientError, NoAnswerError

_SETTLE = 0.3
"""
Seconds between a service's appearance and its first call. Discovery is one-sided for a moment, and
the middleware drops an answer whose receiver the server has not seen yet.
"""

_Self = TypeVar('_Self', bound='Connection')


class Connection:
    """
    Calls services.

    By itself it makes a node and spins it in a thread of its own, so that it works in a plain
    script; leave it with :meth:`close` or a ``with`` block, at the latest at the end of the
    program. Given a node it uses that one, which somebody else has to spin: in another thread than
    the one that calls, or no answer can come.

    Attributes
    ----------
    node : rclpy.node.Node
    watch : callable
        Called often while a call waits; what it raises ends the call.
    answer_time : float
        Seconds the last answer took.

    """

    def __init__(
        self,
        node: Node | None = None,
        *,
        namespace: str = '',
        name: str = 'drift_ros_client',
        domain_id: int | None = None,
        timeout: float = 30.0,
        watch: Callable[[], None] = lambda: None,
    ) -> None:
        """
        Join the graph.

        Parameters
        ----------
        node : Node, optional
            Use this node, which is spun elsewhere, instead of one of our own.
        namespace, name : str
            Of our own node.
        domain_id : int, optional
            ROS domain of our own node; default: that of the environment.
        timeout : float
            Seconds a call may take before it raises, unless it says otherwise.
        watch : callable
            See the attribute.

        """
        self._context: Any = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        if node is None:
            self._context = rclpy.Context()
            rclpy.init(
                args=[],
                context=self._context,
                domain_id=domain_id,
                signal_handler_options=SignalHandlerOptions.NO,
            )
            node = rclpy.create_node(name, namespace=namespace, context=self._context)
            self._thread = threading.Thread(target=self._spin, name=name, daemon=True)
        self.node: Node = node
        self.callback_group = ReentrantCallbackGroup()
        self.timeout, self.watch = timeout, watch
        self.answer_time = 0.0
        self._lock = threading.Lock()
        self._clients: dict[str, Any] = {}
        self._appeared: dict[str, float] = {}
        if self._thread is not None:
            self._thread.start()
            # a program that ends without close(), interrupted perhaps: the middleware aborts when
            # the interpreter ends under its threads, and its shared memory stays behind
            atexit.register(_close, weakref.ref(self))

    def _spin(self) -> None:
        executor = SingleThreadedExecutor(context=self._context)
        executor.add_node(self.node)
        with contextlib.suppress(ExternalShutdownException):
            while not self._stop.is_set():
                try:
                    executor.spin_once(timeout_sec=0.1)
                except ExternalShutdownException:
                    raise
                except Exception:  # of a callback; who waits for an answer still gets it
                    self.node.get_logger().error(traceback.format_exc())
        executor.remove_node(self.node)

    @property
    def closed(self) -> bool:
        """Whether :meth:`close` was called."""
        return self._stop.is_set()

    def close(self) -> None:
        """Leave the graph. A node that was given stays; only what was made on it goes."""
        if self.closed:
            return
        self._stop.set()
        if self._thread is not None:
            self._thread.join(2.0)
            self.node.destroy_node()
            self._context.try_shutdown()
            return
        for client in self._clients.values():
            self.node.destroy_client(client)
        self._clients.clear()

    def __enter__(self: _Self) -> _Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def prepare(self, kind: Any, service: str) -> Any:
        """
        Get ready to call a service later: by then its node has discovered us.

        Parameters
        ----------
        kind : type
            The service's type.
        service : str
            Its name, absolute or relative to the namespace.

        """
        service = self.node.resolve_service_name(service)
        with self._lock:
            if service not in self._clients:
                self._clients[service] = self.node.create_client(
                    kind, service, callback_group=self.callback_group
                )
            client = self._clients[service]
            if client.service_is_ready():
                self._appeared.setdefault(service, time.monotonic())
            else:  # gone, or not there yet: it is discovered anew when it comes
                self._appeared.pop(service, None)
            return client

    def call(
        self,
        kind: Any,
        service: str,
        request: Any,
        *,
        timeout: float | None = None,
        resend: float = 0.0,
        unless: Callable[[], bool] = lambda: False,
    ) -> Any:
        """
        Call any service and wait for its answer.

        Parameters
        ----------
        kind : type
            The service's type.
        service : str
            Its name, absolute or relative to the namespace.
        request : Any
        timeout : float, optional
            Seconds for all of it; default: the client's.
        resend : float
            Send the request again after so many seconds without an answer; only what may be
            done twice. 0: never.
        unless : callable
            Give up waiting, and return None, once this is true.

        Returns
        -------
        Any
            The response.

        Raises
        ------
        NoAnswerError
            The service did not appear, or did not answer, in time.
        ClientError
            This client was closed.

        """
        if self.closed:
            raise ClientError(f'cannot call {service}: this client was closed; make another one')
        service = self.node.resolve_service_name(service)
        client = self.prepare(kind, service)
        seconds = self.timeout if timeout is None else timeout
        end = time.monotonic() + seconds

        def wait(condition: Callable[[], bool], until: float = end) -> bool:
            while not condition():
                self.watch()
                if time.monotonic() > until:
                    return False
                time.sleep(0.002)
            return True

        if not wait(client.service_is_ready):
            raise NoAnswerError(
                f'no service {service} appeared within {seconds:g} s: is the node running, and '
                'is that its full name?'
            )
        with self._lock:
            appeared = self._appeared.setdefault(service, time.monotonic())
        wait(lambda: False, min(end, appeared + _SETTLE))
        begun = time.monotonic()
        while not unless():
            future, sent = client.call_async(request), time.monotonic()
            again = min(end, sent + resend) if resend else end

            def answered(future: Any = future) -> bool:
                return future.done() or unless()

            wait(answered, again)
            if future.done():
                self.answer_time = time.monotonic() - begun
                return future.result()
            client.remove_pending_request(future)
            if time.monotonic() >= end:
                raise NoAnswerError(
                    f'{service} did not answer within {seconds:g} s'
                    + ('' if self._thread else ': is this node spun, and in another thread?')
                )
        return None


def _close(reference: weakref.ref[Connection]) -> None:
    """Close a connection that is still there."""
    connection = reference()
    if connection is not None:
        connection.close()
