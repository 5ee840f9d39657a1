# SPDX-License-Identifier: Apache-2.0
"""
What commands that run nodes have in common: the processes, and a client of the tracker.

ROS is imported on use, so that a command's help needs none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
import contextlib
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time
from typing import Any

import numpy as np


class ProcessError(RuntimeError):
    """The nodes did not do what a command needs; the text says why."""


def shared_file(relative: str) -> Path | None:
    """Find a file of this repository or, once installed, below share/drift_ros."""
    for root in (
        Path(__file__).resolve().parents[2],
        Path.cwd(),
        Path(sys.prefix) / 'share' / 'drift_ros',
        *(
            Path(prefix) / 'share' / 'drift_ros'
            for prefix in os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
            if prefix
        ),
    ):
        if (root / relative).exists():
            return root / relative
    return None


class Children:
    """Processes that always end: SIGINT first, then SIGTERM, then SIGKILL, each by its id."""

    def __init__(self, logs: Path, namespace: str) -> None:
        self._logs, self._namespace = logs, namespace
        self._logs.mkdir(parents=True, exist_ok=True)
        self._running: dict[str, subprocess.Popen[bytes]] = {}

    def start(
        self,
        name: str,
        parameters: Mapping[str, object],
        remap: Sequence[str] = (),
        threads: int = 0,
    ) -> int:
        """
        Start a node of this package; its output goes to a log. Returns the process's id.

        ``threads`` bounds those of its numeric libraries (0: theirs to choose).
        """
        command = [
            sys.executable,
            '-m',
            f'drift_ros.nodes.{name}',
            '--ros-args',
            '-r',
            f'__ns:={self._namespace}',
        ]
        for rule in remap:
            command += ['-r', rule]
        for key, value in parameters.items():
            if isinstance(value, tuple):
                if not value:
                    continue  # an empty list has no type in ROS; it is the default of all lists
                value = list(value)
            text = str(value).lower() if isinstance(value, bool) else str(value)
            command += ['-p', f'{key}:={text}']
        environment = dict(os.environ)
        if threads:
            environment['OMP_NUM_THREADS'] = str(threads)
        root = str(Path(__file__).resolve().parents[2])
        environment['PYTHONPATH'] = os.pathsep.join(
            filter(None, [root, environment.get('PYTHONPATH', '')])
        )
        with open(self._logs / f'{name}.log', 'wb') as log:
            self._running[name] = subprocess.Popen(
                command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        return self._running[name].pid

    def tail(self, name: str, lines: int = 8) -> str:
        """Give the end of a process's log."""
        text = (self._logs / f'{name}.log').read_text(errors='replace').strip()
        return '\n'.join(text.splitlines()[-lines:])

    def ended(self, name: str) -> int | None:
        """Give a process's exit code, None while it runs."""
        return self._running[name].poll()

    def check(self) -> None:
        """
        Look whether a process has failed.

        :raises ProcessError: with the end of its log
        """
        for name, process in self._running.items():
            if process.poll() not in (None, 0):
                raise ProcessError(
                    f'the {name} process ended with code {process.returncode}:\n{self.tail(name)}'
                )

    def stop(self, name: str) -> float:
        """End a process; return the seconds it took."""
        process = self._running.pop(name)
        start = time.monotonic()
        for number, patience in (
            (signal.SIGINT, 5.0),
            (signal.SIGTERM, 2.0),
            (signal.SIGKILL, 2.0),
        ):
            if process.poll() is not None:
                break
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)
        return time.monotonic() - start

    def stop_all(self) -> None:
        """End them all, the youngest first."""
        for name in list(self._running)[::-1]:
            self.stop(name)


def prepare_environment() -> None:
    """Stay on this machine, in a domain of our own, with room for large images."""
    os.environ.setdefault('ROS_AUTOMATIC_DISCOVERY_RANGE', 'LOCALHOST')
    os.environ.setdefault('ROS_DOMAIN_ID', str(1 + os.getpid() % 100))
    profile = shared_file('config/fastdds_large_images.xml')
    if profile is not None:
        os.environ.setdefault('FASTDDS_DEFAULT_PROFILES_FILE', str(profile))


class GraphClient:
    """
    A node of this process that uses a tracker: transitions and seeds.

    The tracker is ``tracker`` in the same namespace. Callbacks run in a thread of their own.
    """

    def __init__(self, name: str, namespace: str, services: Mapping[str, type] = {}) -> None:
        from drift_ros_msgs.srv import SeedMask
        from lifecycle_msgs.srv import ChangeState, GetState
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        self._context = rclpy.Context()
        rclpy.init(args=[], context=self._context, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node(name, namespace=namespace, context=self._context)
        self._clients = {
            name: self.node.create_client(kind, name)
            for name, kind in (
                ('tracker/get_state', GetState),
                ('tracker/change_state', ChangeState),
                ('tracker/seed_mask', SeedMask),
                *services.items(),
            )
        }
        self._called: set[str] = set()
        self.answer_time = 0.0  # seconds the last answer took
        self._executor = SingleThreadedExecutor(context=self._context)
        self._executor.add_node(self.node)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        while not self._stop.is_set():
            self._executor.spin_once(timeout_sec=0.1)

    def call(
        self,
        name: str,
        request: Any,
        watch: Callable[[], None],
        timeout: float = 120.0,
        resend: float = 0.0,
        unless: Callable[[], bool] = lambda: False,
    ) -> Any:
        """
        Call a service, watching the processes meanwhile.

        The middleware drops an answer whose receiver the server has not discovered yet. So all
        clients exist from the start, the first call of each waits a little, and requests that
        may be repeated are, every ``resend`` seconds, ``unless`` their effect shows anyway
        (then None is returned).

        :raises ProcessError: no answer in time
        """
        client = self._clients[name]
        end = time.monotonic() + timeout
        while not client.service_is_ready():
            watch()
            if time.monotonic() > end:
                raise ProcessError(f'the service {name} did not appear within {timeout:.0f} s')
            time.sleep(0.02)
        if name not in self._called:
            self._called.add(name)
            time.sleep(0.3)
        begun = time.monotonic()
        future, sent = client.call_async(request), begun
        while not future.done():
            watch()
            if unless():
                return None
            if resend and time.monotonic() - sent > resend:
                future, sent = client.call_async(request), time.monotonic()
            if time.monotonic() > end:
                raise ProcessError(f'the service {name} did not answer within {timeout:.0f} s')
            time.sleep(0.002)
        self.answer_time = time.monotonic() - begun
        return future.result()

    def change_state(self, transition: int, watch: Callable[[], None]) -> bool:
        """Ask the tracker for a lifecycle transition."""
        from lifecycle_msgs.srv import ChangeState, GetState

        self.call('tracker/get_state', GetState.Request(), watch, resend=2.0)
        request = ChangeState.Request()
        request.transition.id = transition
        # a cold disk and a large model take their time
        return bool(self.call('tracker/change_state', request, watch, timeout=600.0).success)

    def seed(
        self,
        labels: np.ndarray,
        header: Any,
        watch: Callable[[], None],
        names: Sequence[str] = (),
        image: np.ndarray | None = None,
    ) -> dict[int, int]:
        """
        Give the tracker a mask; return the object id of each label.

        :param labels: (H, W) uint8 or uint16 label image, 0 = background
        :param header: that of the frame the mask belongs to
        :param image: the frame (H, W, 3) uint8 RGB, where the tracker may no longer have it
        :raises ProcessError: it was refused
        """
        from drift_ros_msgs.srv import SeedMask

        from drift_ros.ros import conversions

        request = SeedMask.Request(
            mask=conversions.labels_to_image(labels, header), names=list(names)
        )
        if image is not None:
            request.image = conversions.rgb_to_image(image, header)
        answer = self.call('tracker/seed_mask', request, watch)
        if not answer.success:
            details = [
                f'label {label}: {text}'
                for label, text in zip(answer.labels, answer.errors)
                if text
            ]
            raise ProcessError(
                'the tracker refused the mask: ' + '; '.join([answer.message, *details])
            )
        return dict(zip(answer.labels, answer.object_ids))

    def close(self) -> None:
        """Leave the graph."""
        self._stop.set()
        self._thread.join(2.0)
        self._context.try_shutdown()
