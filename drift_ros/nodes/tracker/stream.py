# SPDX-License-Identifier: Apache-2.0
"""
Whether the images that arrive are one sound stream. No ROS.

Masks name their frame by its stamp, and objects are followed from frame to frame; both need one
camera, stamps that ascend, and one size. What is wrong is counted and said, in diagnostics and,
where a mask may have landed on another frame than asked (:class:`.frames.FrameBuffer`), in the
answer; tracking goes on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
import threading

from drift_ros.ros import stamp

LOST, ZERO, REPEATED, JUMPS = 'lost', 'zero', 'repeated', 'jumps'
FRAME_IDS, SIZES, GREYS = 'frame ids', 'sizes', 'greys'
FLAWS = {
    LOST: 'frames lost by the middleware',
    ZERO: 'frames without a stamp',
    REPEATED: 'repeated stamps',
    JUMPS: 'time jumps',
    FRAME_IDS: 'changes of frame_id',
    SIZES: 'changes of size',
    GREYS: 'changes of the grey range',
}
"""What is counted, and its name in diagnostics."""


class StreamCheck:
    """
    Looks at each image. Thread safe.

    Parameters
    ----------
    warn : callable
        Told the flaw, one of :data:`FLAWS`, and a sentence with the remedy.

    """

    def __init__(self, warn: Callable[[str, str], None]) -> None:
        self._warn = warn
        self._lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        """Start again: another stream may begin."""
        with self._lock:
            self._stamp: int | None = None
            self._frame_id: str | None = None
            self._size: tuple[int, int] | None = None

    def header(self, when: int, frame_id: str) -> None:
        """Look at a header, in order of reception: stamp in nanoseconds, and frame_id."""
        with self._lock:
            before, self._stamp = self._stamp, when
            other, self._frame_id = self._frame_id, frame_id
        if when == 0:
            self._warn(
                ZERO,
                'images arrive without stamps, so masks cannot say which one they belong to and '
                'are taken for the newest: have the driver stamp them, or send the image along '
                'with the mask',
            )
        elif before == when:
            self._warn(
                REPEATED,
                f'images arrive with one stamp ({stamp.text(when)}): masks for it are taken for '
                'the last of them. Does the driver stamp each image, and do several publish?',
            )
        elif before is not None and when < before:
            self._warn(
                JUMPS,
                f'time jumped back by {(before - when) / 1e9:.3f} s: buffered frames of later '
                'stamps are forgotten, tracking goes on. Does a bag loop, or do several publish?',
            )
        if other is not None and other != frame_id:
            self._warn(
                FRAME_IDS,
                f'frame_id changed from {other!r} to {frame_id!r}: do two cameras publish here? '
                'One tracker follows one camera',
            )

    def size(self, height: int, width: int) -> None:
        """Look at the size of a decoded image."""
        with self._lock:
            before, self._size = self._size, (height, width)
        if before is not None and before != (height, width):
            self._warn(
                SIZES,
                f'the image size changed from {before[1]}x{before[0]} to {width}x{height}: '
                'objects are followed in images of one size only (call ~/reset after a change). '
                'Do two cameras publish here?',
            )


def several(publishers: Sequence[str], topic: str) -> str:
    """Say that more than one node publishes on a topic; empty where that is not so."""
    if len(publishers) < 2:
        return ''
    return (
        f'{len(publishers)} publishers on {topic} ({", ".join(sorted(publishers))}): their images '
        'mix. One tracker follows one camera; stop the others or remap'
    )
