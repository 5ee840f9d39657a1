# SPDX-License-Identifier: Apache-2.0
"""
Worker processes: calls in several processes, which end when this one does, however it ends.

Workers hold the reading end of a pipe nobody writes to. It ends when this process closes it or is
no more (SIGKILL included), and so do they, in the middle of whatever they do. Interrupts are this
process's business alone: workers never see one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import as_completed, Future, ProcessPoolExecutor
import contextlib
import multiprocessing
from multiprocessing.connection import Connection
import os
import queue
import signal
import sys
import threading
from typing import Any

from drift_ros.ros import signals

Progress = Callable[[str, str, int], None]
"""Called with engine, sequence and the number of frames done since the last call."""
WORKER_DIED = (
    'a worker process died (out of memory?); run the same command again to go on, with '
    'fewer --workers'
)
"""What to say of a BrokenProcessPool."""
_POLL = 0.1
_channel: Any = None


def in_processes(
    function: Callable, calls: Mapping[Any, tuple], workers: int, threads: int, progress: Progress
) -> Iterator[tuple[Any, Future]]:
    """
    Call a function in worker processes; give the keys of ``calls`` with futures as they finish.

    ``calls`` holds its arguments but for the last, which is a ``progress``. Where this ends early,
    by an interrupt for instance, the workers do not finish what they do.
    """
    context = multiprocessing.get_context('spawn')
    channel = context.Queue()
    theirs, ours = context.Pipe(duplex=False)
    done = threading.Event()

    def forward() -> None:
        while not done.is_set() or not channel.empty():
            with contextlib.suppress(queue.Empty):
                progress(*channel.get(timeout=_POLL))

    thread = threading.Thread(target=forward, daemon=True)
    thread.start()
    pool = ProcessPoolExecutor(workers, context, _begin, (threads, channel, theirs))
    try:
        with _signals_blocked():  # and so they are in the processes that are started
            futures = {
                pool.submit(_call, function, arguments): key for key, arguments in calls.items()
            }
        waiting = set(futures)
        while waiting:
            signals.check()
            with contextlib.suppress(TimeoutError):
                for future in as_completed(waiting, timeout=_POLL):
                    waiting.remove(future)
                    yield futures[future], future
        pool.shutdown()
    finally:
        ours.close()
        pool.shutdown(cancel_futures=True)
        theirs.close()
        done.set()
        thread.join(1.0)  # a worker that was killed while it wrote would leave it waiting


@contextlib.contextmanager
def _signals_blocked() -> Iterator[None]:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(threads: int, channel: Any, alive: Connection) -> None:
    """Prepare a worker process."""
    global _channel
    _channel = channel
    channel.cancel_join_thread()  # what is not read any more must not hold the process up

    def watch() -> None:
        with contextlib.suppress(EOFError, OSError):
            alive.recv_bytes()
        os._exit(1)

    threading.Thread(target=watch, name='parent', daemon=True).start()
    limit_threads(threads)


def _call(function: Callable, arguments: tuple) -> Any:
    return function(*arguments, lambda engine, name, count: _channel.put((engine, name, count)))


def limit_threads(threads: int) -> None:
    """Bound the threads of this process's libraries."""
    import cv2

    cv2.setNumThreads(threads)
    # Engines without a network need no torch; where it comes later, it reads the environment.
    os.environ['OMP_NUM_THREADS'] = str(threads)
    if 'torch' in sys.modules:
        sys.modules['torch'].set_num_threads(threads)
