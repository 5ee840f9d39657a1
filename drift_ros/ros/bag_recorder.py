# SPDX-License-Identifier: Apache-2.0
"""
Write a rosbag2 (mcap) of serialised messages; leave a whole bag behind when the disk is full.

Messages are collected into chunks of a megabyte, each of which is written at once. When that
fails, the file is cut back to the last whole chunk, a reserve that was kept makes room, and the
bag is closed there; where not even the index fits, chunks before it are given up, too. Imports no
ROS.
"""

from __future__ import annotations

from collections import Counter, defaultdict, deque
import contextlib
from dataclasses import dataclass
from io import BytesIO
import os
from pathlib import Path
import shutil
import threading
from typing import Any

from rosbags.interfaces import (
    Qos,
    QosDurability,
    QosHistory,
    QosLiveliness,
    QosReliability,
    QosTime,
)
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_typestore, Stores

from drift_ros.ros.messages import register_type

_RESERVE = 1 << 18
"""Bytes kept for the index of a bag whose disk is full."""
_CUTS = 32
"""Chunks that may be given up to make room for it."""


class _File:
    """A file that takes all it is given or raises, and can be cut back."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY)
        self._end = os.lseek(self._descriptor, 0, os.SEEK_END)

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast('B')
        size = len(rest)
        while rest:
            done = os.write(self._descriptor, rest)
            self._end += done
            rest = rest[done:]
        return size

    def tell(self) -> int:
        return self._end

    def close(self) -> None:
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def cut(self, end: int) -> None:
        self.close()
        self.__init__(self._path)  # type: ignore[misc]
        os.ftruncate(self._descriptor, end)
        self._end = os.lseek(self._descriptor, end, os.SEEK_SET)


@dataclass(frozen=True)
class _State:
    """What is in the file up to the end of a chunk."""

    end: int
    chunks: int
    counts: dict[int, int]
    times: tuple[int, int]


class BagRecorder:
    """
    A bag that is being written; from any thread.

    Attributes
    ----------
    failure : str
        Why it ended before it was closed, and what became of it; '' if all went well.

    """

    def __init__(self, path: str | Path) -> None:
        """
        Create the bag.

        Parameters
        ----------
        path : str or Path
            Folder of the new bag.

        Raises
        ------
        ValueError
            It exists already, or cannot be made.

        """
        path = Path(path)
        if path.exists():
            raise ValueError(f'{path} exists already: choose another output or remove it')
        self.failure = ''
        self._path, self._reserve = path, path / '.reserve'
        self._store = get_typestore(Stores.EMPTY)
        self._lock = threading.Lock()
        self._connections: dict[str, Any] = {}
        self._received: Counter[str] = Counter()
        self._counts: dict[str, int] = {}
        self._writer: Writer | None = None
        writer = Writer(path, version=9, storage_plugin=StoragePlugin.MCAP)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            writer.open()
            self._storage: Any = writer.storage
            self._storage.bio.close()
            self._storage.bio = self._file = _File(self._storage.path)
            self._reserve.write_bytes(b'\0' * _RESERVE)
        except OSError as error:
            with contextlib.suppress(Exception):
                writer.abort()
            shutil.rmtree(path, ignore_errors=True)  # nothing is in it
            raise ValueError(f'the bag {path} cannot be made: {error}') from error
        self._writer = writer
        self._states: deque[_State] = deque([self._state()], maxlen=_CUTS)

    def add_topic(self, topic: str, kind: str, latched: bool = False) -> None:
        """Add a topic of a message type; ``latched`` makes players offer it transient local."""
        register_type(self._store, kind)
        zero = QosTime(0, 0)
        qos = Qos(
            QosHistory.KEEP_LAST,
            10,
            QosReliability.RELIABLE,
            QosDurability.TRANSIENT_LOCAL if latched else QosDurability.VOLATILE,
            zero,
            zero,
            QosLiveliness.AUTOMATIC,
            zero,
            False,
        )
        with self._lock:
            if self._writer is not None:
                self._connections[topic] = self._writer.add_connection(
                    topic, kind, typestore=self._store, offered_qos_profiles=[qos]
                )

    def write(self, topic: str, stamp: int, data: bytes) -> bool:
        """
        Write one serialised message (CDR) with its time of reception in nanoseconds.

        Returns
        -------
        bool
            False once the bag takes nothing any more: it was closed, or see :attr:`failure`.

        """
        with self._lock:
            self._received[topic] += 1
            if self._writer is None:
                return False
            try:
                self._writer.write(self._connections[topic], stamp, data)
            except Exception as error:  # the disk is full, in whatever way that is told
                self._save_what_can_be(error)
                return False
            if len(self._storage.chunks) > self._states[-1].chunks:
                self._states.append(self._state())
            return True

    def close(self) -> None:
        """Finish the bag."""
        with self._lock:
            if self._writer is None:
                return
            try:
                self._end()
            except Exception as error:
                self._save_what_can_be(error)
            self._writer = None

    def _end(self) -> None:
        assert self._writer is not None
        self._reserve.unlink(missing_ok=True)
        self._writer.close()

    def _state(self) -> _State:
        storage = self._storage
        counts = dict(self._writer.counts) if self._writer else {}
        times = storage.message_start_time, storage.message_end_time
        return _State(self._file.tell(), len(storage.chunks), counts, times)

    def _return_to(self, state: _State) -> None:
        """Forget everything since a state, in the file and in the writer."""
        assert self._writer is not None
        storage = self._storage
        self._file.cut(state.end)
        storage.chunk = type(storage.chunk)(2**63 - 1, 0, BytesIO(), defaultdict(list))
        del storage.chunks[state.chunks :]
        storage.message_start_time, storage.message_end_time = state.times
        writer = self._writer
        writer.storage = storage
        for counts in (writer.counts, storage.channel_stats):
            counts.update({key: state.counts.get(key, 0) for key in counts})
        writer.min_timestamp, writer.max_timestamp = state.times

    def _save_what_can_be(self, error: BaseException) -> None:
        """Close the bag at the last chunk after which there is room for its index."""
        assert self._writer is not None
        saved = False
        with contextlib.suppress(OSError):
            self._reserve.unlink(missing_ok=True)
        while self._states and not saved:
            try:
                self._return_to(self._states.pop())
                self._end()
                saved = True
            except OSError:  # no room for the index
                with contextlib.suppress(OSError):
                    (self._path / 'metadata.yaml.tmp').unlink(missing_ok=True)
        counts = {topic: self._writer.counts[c.id] for topic, c in self._connections.items()}
        self._counts = counts if saved else dict.fromkeys(counts, 0)
        if not saved:
            with contextlib.suppress(Exception):
                self._file.close()
        self._writer = None
        why = getattr(error, 'strerror', None) or str(error) or type(error).__name__
        outcome = (
            'is closed and whole up to there'
            if saved
            else 'could not be closed: make room, then "mcap recover" or "ros2 bag reindex" may '
            'save what is in it'
        )
        self.failure = f'recording ended: {why}. {self._path} {outcome}'

    def losses(self) -> str:
        """Say how many messages are in a bag that failed, and how many were lost until now."""
        with self._lock:
            lines = [
                f'{topic}: {self._counts.get(topic, 0)} recorded, {lost} lost'
                for topic, received in sorted(self._received.items())
                if (lost := received - self._counts.get(topic, 0))
            ]
        return '; '.join(lines) or 'nothing was lost'
