# SPDX-License-Identifier: Apache-2.0
"""Images as received, and the buffer in which masks that come later find theirs. No ROS."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
import threading
import time
from typing import Any

from drift_ros.ros import stamp

_REMEMBERED = 100_000
"""Stamps of which it is known how many images had them."""


@dataclass(frozen=True)
class ReceivedImage:
    """One image from the camera, not decoded yet."""

    sequence: int
    """0, 1, 2...: order of reception."""
    stamp: int
    """The header's stamp in nanoseconds."""
    message: Any
    """sensor_msgs/Image or CompressedImage."""
    size: int
    """Bytes of pixel data."""
    received: float
    """time.monotonic() at reception."""
    doubt: str = ''
    """Where it was found by its stamp: why that may be another image than was meant."""

    @classmethod
    def now(cls, sequence: int, message: Any) -> ReceivedImage:
        """Note a message that has just arrived."""
        when = stamp.nanoseconds(message.header.stamp)
        return cls(sequence, when, message, len(message.data), time.monotonic())


class FrameBuffer:
    """Recent images by stamp, bounded in number and bytes; stamps always ascend. Thread safe."""

    def __init__(self, frames: int = 1, size: int = 0) -> None:
        self._lock = threading.Lock()
        self._frames: OrderedDict[int, ReceivedImage] = OrderedDict()
        self._limit, self._size_limit, self._size = frames, size, 0
        self._named: OrderedDict[int, int] = OrderedDict()  # how many images had a stamp

    def configure(self, frames: int, size: int) -> None:
        """Forget all images, and keep at most so many, of so many bytes together, from now on."""
        with self._lock:
            self._frames.clear()
            self._named.clear()
            self._limit, self._size_limit, self._size = frames, size, 0

    def add(self, frame: ReceivedImage) -> bool:
        """
        Keep an image; the oldest go when a bound is reached, the newest always stays.

        Returns
        -------
        bool
            True when time jumped back (a bag that loops, a camera that restarted): the images
            that are now in the future were forgotten, as their stamps would name two images.

        """
        with self._lock:
            jump = False
            while self._frames and next(reversed(self._frames)) >= frame.stamp:
                key, old = self._frames.popitem()
                self._size -= old.size
                jump = jump or key > frame.stamp
            self._frames[frame.stamp] = frame
            self._size += frame.size
            self._named[frame.stamp] = self._named.pop(frame.stamp, 0) + 1
            while len(self._named) > _REMEMBERED:
                self._named.popitem(last=False)
            while len(self._frames) > 1 and (
                len(self._frames) > self._limit or self._size > self._size_limit
            ):
                self._size -= self._frames.popitem(last=False)[1].size
            return jump

    def find(self, when: int) -> ReceivedImage:
        """
        Find an image by its stamp in nanoseconds; 0 means the newest.

        Returns
        -------
        ReceivedImage
            Its ``doubt`` says why it may be another one than was meant: stamps that are zero, or
            that more than one image had.

        Raises
        ------
        LookupError
            It is not there; the text tells what is, and what to do.

        """
        with self._lock:
            if not self._frames:
                raise LookupError(
                    'no frames have been received yet: check the image topic and '
                    'that the node is active, or send the image along'
                )
            if when == 0 or when in self._frames:
                newest = next(reversed(self._frames.values()))
                frame = self._frames[when] if when else newest
                return replace(frame, doubt=self._doubt(frame, when))
            first, last = next(iter(self._frames)), next(reversed(self._frames))
            raise LookupError(
                f'no frame with stamp {stamp.text(when)} is buffered; the {len(self._frames)} '
                f'buffered ones have stamps {stamp.text(first)} to {stamp.text(last)}: use one of '
                'them, send the image along, or raise buffer_frames and buffer_mb'
            )

    def _doubt(self, frame: ReceivedImage, when: int) -> str:
        again = 'if it was meant for another one, send that image along'
        if frame.stamp == 0:
            age = time.monotonic() - frame.received
            return (
                'images arrive without stamps, so this was taken for the newest one, received '
                f'{age:.2f} s before: {again}'
            )
        count = self._named.get(when, 0)
        if count > 1:
            return (
                f'{count} images came with the stamp {stamp.text(when)}; this was taken for the '
                f'last of them: {again}'
            )
        return ''

    def clear(self) -> None:
        """Forget all images."""
        with self._lock:
            self._frames.clear()
            self._named.clear()
            self._size = 0

    def __len__(self) -> int:
        with self._lock:
            return len(self._frames)
