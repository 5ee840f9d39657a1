# SPDX-License-Identifier: Apache-2.0
"""What a tracker node publishes of one frame, put together again."""

from __future__ import annotations

from collections import deque, OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
import threading
import time
from typing import Any

from drift_ros_msgs.msg import TrackArray
import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray

from drift_ros.ros import conversions, qos, stamp
from drift_ros.ros.connection import Connection
from drift_ros.ros.errors import ClientError, NoAnswerError

_POLL = 0.02
"""Seconds between two looks at what else has to be watched while waiting."""
_PENDING = 32
"""Frames of which some outputs came and others not (yet), kept at most."""


@dataclass(frozen=True)
class Result:
    """
    What the tracker says of one frame.

    Attributes
    ----------
    header : std_msgs/Header
        The image's own.
    labels : np.ndarray
        (H, W) uint8, uint16 once an id exceeds 255; pixel = object id, 0 = background.
    detections : vision_msgs/Detection2DArray
        Objects that are seen.
    tracks : drift_ros_msgs/TrackArray
        All objects.

    """

    header: Header
    labels: np.ndarray
    detections: Detection2DArray
    tracks: TrackArray

    @property
    def stamp(self) -> int:
        """The image's stamp in nanoseconds."""
        return stamp.nanoseconds(self.header.stamp)


class Results:
    """
    The results of frames, in the order they come; a subscription until it is closed.

    Iterate over it, or :meth:`get` one at a time. Who is slower than the camera gets the newest
    ``depth`` ones.
    """

    def __init__(
        self,
        client: Connection,
        tracker: str,
        timeout: float,
        depth: int,
        callback: Callable[[Result], None] | None,
    ) -> None:
        """Subscribe; see :meth:`drift_ros.TrackerClient.results`."""
        self._client, self._tracker = client, tracker
        self._timeout, self._callback = timeout, callback
        self._condition = threading.Condition()
        self._parts: OrderedDict[int, dict[str, Any]] = OrderedDict()
        self._ready: deque[Result] = deque(maxlen=depth)
        self._closed = False
        self._subscriptions = [
            client.node.create_subscription(
                kind,
                f'{tracker}/{name}',
                lambda message, name=name: self._take(name, message),
                qos.LISTENING,
                callback_group=client.callback_group,
            )
            for name, kind in (
                ('mask', Image),
                ('detections', Detection2DArray),
                ('tracks', TrackArray),
            )
        ]

    def _take(self, name: str, message: Any) -> None:
        """Put the outputs of one frame together."""
        key = stamp.nanoseconds(message.header.stamp)
        with self._condition:
            parts = self._parts.setdefault(key, {})
            parts[name] = message
            if len(parts) < 3:
                while len(self._parts) > _PENDING:
                    self._parts.popitem(last=False)
                return
            del self._parts[key]
        result = Result(
            parts['mask'].header,
            conversions.image_to_labels(parts['mask']),
            parts['detections'],
            parts['tracks'],
        )
        if self._callback is not None:
            self._callback(result)
            return
        with self._condition:
            self._ready.append(result)
            self._condition.notify_all()

    def get(self, timeout: float | None = None) -> Result:
        """
        Give the next result.

        Parameters
        ----------
        timeout : float, optional
            Seconds to wait; default: as given to :meth:`drift_ros.TrackerClient.results`.

        Raises
        ------
        NoAnswerError
            None came in time.

        """
        seconds = self._timeout if timeout is None else timeout
        end = time.monotonic() + seconds
        while True:
            with self._condition:
                if not self._ready and not self._closed:
                    self._condition.wait(min(_POLL, max(0.0, end - time.monotonic())))
                if self._ready:
                    return self._ready.popleft()
                if self._closed:
                    raise ClientError('the results were closed')
            self._client.watch()
            if time.monotonic() >= end:
                raise NoAnswerError(
                    f'no result came from {self._tracker} within {seconds:g} s: is the '
                    'node active, and are images published?'
                )

    def __iter__(self) -> Iterator[Result]:
        while not self._closed:
            yield self.get()

    def close(self) -> None:
        """Unsubscribe."""
        with self._condition:
            self._closed = True
            self._condition.notify_all()
        subscriptions, self._subscriptions = self._subscriptions, []
        for subscription in subscriptions:
            self._client.node.destroy_subscription(subscription)

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
