# SPDX-License-Identifier: Apache-2.0
"""
Run a node as a process that ends in time.

SIGINT and SIGTERM are handled here and not by rclpy: they only set an event the main thread
waits for, so no KeyboardInterrupt can come up in the middle of anything, and the node is taken
down in order. A thread that is inside a network pass cannot be interrupted; if it has not
returned after :data:`GRACE` seconds the process ends without waiting for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import contextlib
import ctypes
from functools import partial
import gc
import os
import signal
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

from drift_ros.ros.processes import shared_file
from drift_ros.ros.signals import on_end_of_parent

GRACE = 0.7
"""Seconds work in progress may take to end after a signal. Shutdown as a whole stays below 2 s."""

_ARENAS = -8
"""glibc's M_ARENA_MAX."""
_TRIM = 30.0
"""Seconds between two times that free memory is given back."""
_PAUSE = 0.1
"""Seconds to wait after a callback failed: what fails always must not take all the time."""
_MOMENT = 2e-4
"""Seconds between two looks at whether a thread has begun with what it was given."""
_BEGIN = 0.1
"""Seconds that is waited for: all threads may have work that takes long."""


def run(
    factory: Callable[[], Any], args: Sequence[str] | None = None, threads: int = 4
) -> NoReturn:
    """
    Spin a node until SIGINT, SIGTERM or until it sets its ``finished`` event; then exit.

    Exit codes: 0 after a signal, whenever it comes, or when done; 1 when the node could not be
    made (the reason is printed). A callback that raises is reported, to the node's own
    ``endure`` where it has one, else in its log, and ends nothing. A process that a command
    started ends with that command, however the command ended.

    Parameters
    ----------
    factory : callable
        Makes the node. It may have ``finished`` (threading.Event), ``exit_code`` (int), and
        ``stop()``, called first at the end: it makes the node's own threads return and blocking
        callbacks give way, without waiting for them; ``join(timeout) -> bool`` waits for them and
        releases what they used; ``endure(error)``: told what a callback raised, after which the
        node goes on; without it, its log is told; ``threads`` (int), of the executor.
    args : sequence of str, optional
        Command line, with ROS arguments; default ``sys.argv``.
    threads : int
        Of the executor, where the node does not say.

    """
    stop = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    _share_memory()
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    on_end_of_parent(stop)
    try:
        rclpy.init(
            args=list(sys.argv if args is None else args),
            signal_handler_options=SignalHandlerOptions.NO,
        )
    except RuntimeError as error:  # a parameter file that is none, unknown ROS arguments
        _complain(f'cannot use the ROS arguments: {str(error).partition(", at /")[0]}')
        _exit(1)
    code = _live(factory, stop, threads)
    # What is left of the node (the state machine of a lifecycle, actions) holds its handle, and
    # with it the middleware's shared memory. Nothing here refers to the node any more, but parts
    # of it refer to each other.
    gc.collect()
    rclpy.try_shutdown()
    _exit(code)


def _share_memory() -> None:
    """
    Let all threads take memory from two heaps, where the system's library would make eight a core.

    What a thread frees in a heap of its own is not there for others. A node has some thirty
    threads, and each storm of requests left another 40 MB in such heaps.
    """
    if 'MALLOC_ARENA_MAX' in os.environ:
        return
    with contextlib.suppress(OSError, AttributeError):  # another library than glibc
        ctypes.CDLL(None).mallopt(_ARENAS, 2)


def _give_back_memory() -> None:
    """Give what requests and peers that are gone took, and freed, back to the system."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def loss_remedy() -> str:
    """Say what helps against large messages that the middleware loses."""
    from rclpy.utilities import get_rmw_implementation_identifier

    if 'fastrtps' not in get_rmw_implementation_identifier():
        return (
            "raise the system's socket buffers (net.core.rmem_max), the middleware's limits for "
            'large messages, where the camera runs and here, or use compressed images'
        )
    profile = shared_file('config/fastdds_large_images.xml') or 'config/fastdds_large_images.xml'
    return (
        "start the *camera's* process (not this node) with the environment variable "
        'FASTDDS_DEFAULT_PROFILES_FILE (on Jazzy FASTRTPS_DEFAULT_PROFILES_FILE) set to '
        f'{profile}, or use compressed images'
    )


def _live(factory: Callable[[], Any], stop: threading.Event, threads: int) -> int:
    """Make a node, spin it until the end, take it down; return the exit code."""
    from rclpy.exceptions import InvalidHandle, ParameterException
    from rclpy.executors import ExternalShutdownException

    try:
        node = factory()
    except (ParameterException, ValueError, OSError) as error:
        _complain(str(error))
        return 1
    endure = getattr(node, 'endure', None) or partial(_log, node)
    executor = _make_executor(getattr(node, 'threads', threads), endure)
    executor.add_node(node)
    finished = getattr(node, 'finished', threading.Event())

    def spin() -> None:
        while not stop.is_set():
            try:
                executor.spin_once(timeout_sec=0.2)
            except ExternalShutdownException:
                stop.set()
            except InvalidHandle:  # something was destroyed just when it was looked at
                pass
            except Exception as error:  # of a callback: others must go on
                if not stop.is_set():
                    _report(endure, error)

    spinner = threading.Thread(target=spin, name='executor', daemon=True)
    spinner.start()
    trimmed = time.monotonic()
    while not stop.is_set() and not finished.is_set():
        stop.wait(0.05)
        if time.monotonic() - trimmed > _TRIM:
            trimmed = time.monotonic()
            _give_back_memory()
    deadline = time.monotonic() + GRACE
    stop.set()
    getattr(node, 'stop', lambda: None)()
    executor.wake()
    spinner.join(max(0.0, deadline - time.monotonic()))
    idle = not spinner.is_alive()
    idle = (
        getattr(node, 'join', lambda timeout: True)(max(0.1, deadline - time.monotonic())) and idle
    )
    code = getattr(node, 'exit_code', 0)
    if idle:
        # The executor's own timeout is none: it either waits for its threads for ever or not at
        # all, and callbacks may still be running (a model is being loaded).
        _within(max(0.05, deadline - time.monotonic()), executor.shutdown)
    _within(GRACE, lambda: _destroy(node))
    return code


def _destroy(node: Any) -> None:
    """
    Take a node out of the graph, and its shared memory out of the machine.

    A callback that is still running holds the node, and the node its parts, each of which holds
    the middleware's participant. They are taken from it one by one; such a callback finds that
    out when it ends, if the process lives so long.
    """
    for waitable in list(node.waitables):  # actions: destroy_node leaves them
        getattr(waitable, 'destroy', lambda: None)()
    node.destroy_node()
    if hasattr(node, '_state_machine'):  # of a lifecycle node
        node._state_machine = None


def _within(seconds: float, work: Callable[[], Any]) -> None:
    """Do something that may hang; wait for it only so long."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)


def _make_executor(threads: int, endure: Callable[[Exception], None], context: Any = None) -> Any:
    """
    Make the executor; its threads are started at once: later there may be no memory for them.

    A message that cannot be taken is reported like a callback's error: without memory it cannot be
    taken from the middleware, after which rclpy's executor would never look at that one again.

    rclpy's executor hands a callback to a thread again and again until the thread has begun with
    it. It is not asked for more before that: the loop would take the interpreter from that very
    thread, and from tracking, for up to a second.
    """
    from rclpy.executors import MultiThreadedExecutor

    class Executor(MultiThreadedExecutor):
        def _spin_once_impl(self, *args: Any) -> None:
            super()._spin_once_impl(*args)
            end = time.monotonic() + _BEGIN
            for task in self._futures[-1:]:  # the newest, unless it is done
                while not (task.executing() or task.done()) and time.monotonic() < end:
                    time.sleep(_MOMENT)

        def _make_handler(self, entity: Any, node: Any, take: Callable, *more: Any) -> Any:
            def take_or_report(entity: Any) -> Any:
                try:
                    return take(entity)
                except Exception as error:
                    _report(endure, error)
                    return _nothing

            return super()._make_handler(entity, node, take_or_report, *more)

    executor = Executor(threads, context=context)
    barrier = threading.Barrier(threads)
    for _ in range(threads):
        executor._executor.submit(barrier.wait)
    return executor


async def _nothing(*_: object) -> None:
    """Stand in for the callback of what could not be taken."""


def _log(node: Any, error: Exception) -> None:
    """Say in a node's log what failed."""
    text = ''.join(traceback.format_exception(error))
    node.get_logger().error(f'a callback failed:\n{text}')


def _report(endure: Callable[[Exception], None], error: Exception) -> None:
    """Have an error reported, and wait a moment; to report takes memory, too."""
    with contextlib.suppress(Exception):
        endure(error)
    time.sleep(_PAUSE)


def _complain(reason: str) -> None:
    print(f'{os.path.basename(sys.argv[0])}: {reason}', file=sys.stderr)


def _exit(code: int) -> NoReturn:
    """
    Leave without the interpreter's own shutdown.

    It would wait for threads inside a network pass, and torch's threads do not always survive
    an interpreter that is being taken down under them.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
