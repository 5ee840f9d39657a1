# SPDX-License-Identifier: Apache-2.0
"""
How processes of this package end before their work is done. Imports no ROS, and little else.

Python turns SIGINT into an exception that comes up wherever it happens to be: in the middle of an
import it becomes a traceback, in a callback of a C library it is printed and forgotten. So a
process that is only starting ends at once and without words (:mod:`drift_ros.starting`), and a
command that works (:func:`interruptible`) remembers that it was interrupted, is asked about it
often (:func:`check`), and tells by its exit code.
"""

from __future__ import annotations

from collections.abc import Iterator
import contextlib
import os
import signal
import threading
from types import FrameType

_SIGNALLED = 128
WATCHED_PARENT = 'DRIFT_ROS_ENDS_WITH_PARENT'
"""Environment variable: this process ends when its standard input does, which its parent holds."""

_received: list[int] = []


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """
    Run a command: SIGINT and SIGTERM raise KeyboardInterrupt, whose end is not left to chance.

    A second one ends the process at once. In whatever way the block ends after a signal, it ends
    with ``SystemExit(128 + signal)``. Does nothing in other threads than the main one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if _received:
            os._exit(_SIGNALLED + number)
        _received.append(number)
        raise KeyboardInterrupt

    _received.clear()
    before = {
        item: signal.signal(item, handle)
        for item in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(item) != signal.SIG_IGN  # as of a shell's background jobs
    }
    try:
        yield
    except BaseException:
        if not _received:
            raise
    finally:
        for item, handler in before.items():
            signal.signal(item, handler)
        received = _received.copy()
        _received.clear()
    if received:
        raise SystemExit(_SIGNALLED + received[0])


def check() -> None:
    """
    Ask whether the command was interrupted; long loops do, between two steps.

    Raises
    ------
    KeyboardInterrupt
        It was, and somebody swallowed that. In the main thread alone: the others end with it.

    """
    if _received and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def on_end_of_parent(end: threading.Event) -> None:
    """Set an event once the parent is gone, however it ended, where it asks for that."""
    if os.environ.pop(WATCHED_PARENT, '') != '1':
        return

    def watch() -> None:
        with contextlib.suppress(OSError):
            while os.read(0, 4096):
                pass
        end.set()

    threading.Thread(target=watch, name='parent', daemon=True).start()
