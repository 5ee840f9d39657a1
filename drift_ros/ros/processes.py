# SPDX-License-Identifier: Apache-2.0
"""The processes of commands that run nodes, and their environment. Imports no ROS."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
import contextlib
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from drift_ros.ros import signals


class ProcessError(RuntimeError):
    """The nodes did not do what a command needs; the text says why."""


def shared_file(relative: str, *, working_folder: bool = True) -> Path | None:
    """
    Find a file of this repository or, once installed, below share/drift_ros.

    Parameters
    ----------
    relative : str
    working_folder : bool
        Whether one in the working folder will do, which may be somebody else's.

    """
    for root in (
        Path(__file__).resolve().parents[2],
        *([Path.cwd()] if working_folder else []),
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


def parameter_text(value: object) -> str:
    """
    Write the value of a parameter for the command line, where it is read as YAML.

    Texts are quoted: ``0001``, ``on`` and ``take #2`` would else be a number, a truth value and
    ``take``.

    >>> parameter_text('0001'), parameter_text(True), parameter_text(['a', 'b'])
    ('"0001"', 'true', '["a", "b"]')
    """
    if isinstance(value, float):
        return repr(value)  # never shortened to a whole number, which is another type
    if isinstance(value, (bool, int)):
        return json.dumps(value)
    if isinstance(value, (tuple, list)):
        return f'[{", ".join(map(parameter_text, value))}]'
    return json.dumps(str(value), ensure_ascii=False)


class Children:
    """
    Processes that always end: SIGINT first, then SIGTERM, then SIGKILL, each by its id.

    When this process ends before it stopped them, by SIGKILL for instance, they end by themselves.
    """

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
        Start a node of this package; its output goes to a log.

        Parameters
        ----------
        name : str
            Of the node, and of its module below drift_ros.nodes.
        parameters : mapping of str to object
        remap : sequence of str
            Rules such as ``answer:=tracker/mask``.
        threads : int
            Of its numeric libraries; 0: theirs to choose.

        Returns
        -------
        int
            The process's id.

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
            if isinstance(value, (tuple, list)) and not value:
                continue  # an empty list has no type in ROS; it is the default of all lists
            command += ['-p', f'{key}:={parameter_text(value)}']
        environment = {**os.environ, signals.WATCHED_PARENT: '1'}
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
                stdin=subprocess.PIPE,  # nothing is written: its end is that of this process
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

    def check(self, tolerated: Collection[str] = ()) -> None:
        """
        Look whether a process has failed.

        Parameters
        ----------
        tolerated : collection of str
            Processes that may.

        Raises
        ------
        ProcessError
            With the end of its log.
        KeyboardInterrupt
            This process was interrupted.

        """
        signals.check()
        for name, process in self._running.items():
            if name not in tolerated and process.poll() not in (None, 0):
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
        # Fast DDS 3 reads the old name as well, with a warning
        name = 'FASTRTPS' if os.environ.get('ROS_DISTRO') == 'jazzy' else 'FASTDDS'
        os.environ.setdefault(f'{name}_DEFAULT_PROFILES_FILE', str(profile))
