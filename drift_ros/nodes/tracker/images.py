# SPDX-License-Identifier: Apache-2.0
"""The images a tracker node has received and those that requests bring, as arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TYPE_CHECKING

import numpy as np

from drift_ros.media.greys import GreyRange
from drift_ros.nodes.tracker.frames import FrameBuffer
from drift_ros.nodes.tracker.stream import GREYS, several
from drift_ros.ros import conversions, stamp

if TYPE_CHECKING:
    from builtin_interfaces.msg import Time
    from sensor_msgs.msg import CompressedImage, Image
    from std_msgs.msg import Header


class RequestImage(NamedTuple):
    """The image a request is about."""

    image: np.ndarray
    """(H, W, 3) uint8 RGB."""
    header: Header
    after: int
    """As of :class:`drift_ros.nodes.tracker.worker.Job`."""
    doubt: str = ''
    """Why it may be another one than was meant."""

    def notes(self, notes: Sequence[str], named: Header | None = None) -> list[str]:
        """Add the doubts about the image, and about a mask's own header, to an answer's notes."""
        doubts = [self.doubt] if self.doubt else []
        if named is not None and named.frame_id not in ('', self.header.frame_id):
            doubts.append(
                f'the mask is of frame_id {named.frame_id!r}, its image of '
                f'{self.header.frame_id!r}: was it made from another camera?'
            )
        here, there = (
            0 if header is None else stamp.nanoseconds(header.stamp)
            for header in (self.header, named)
        )
        if here and there and here != there:
            doubts.append(
                f'the mask has the stamp {stamp.text(there)}, the image that came with it '
                f'{stamp.text(here)}: that image was used'
            )
        return ['; '.join(filter(None, [note, *doubts])) for note in notes]


class Images:
    """
    Decodes images, and finds the one a request is about; from any thread.

    Attributes
    ----------
    buffer : FrameBuffer
        What was received.
    greys : GreyRange
        Of the stream.

    """

    def __init__(
        self, warn: Callable[[str, str], Any], publishers: Callable[[], Sequence[str]]
    ) -> None:
        """
        Begin with nothing.

        Parameters
        ----------
        warn : callable
            Told a flaw, one of those of :mod:`.stream`, and a sentence.
        publishers : callable
            Gives the names of the nodes that publish the images.

        """
        self.buffer, self.greys = FrameBuffer(), GreyRange()
        self._warn, self._publishers = warn, publishers

    def configure(self, frames: int, size: int, greys: tuple[int, int] | None) -> None:
        """Forget all images; see FrameBuffer and GreyRange for the parameters."""
        self.buffer.configure(frames, size)
        self.greys = GreyRange(greys)

    def decode(self, message: Image | CompressedImage) -> np.ndarray:
        """
        Read an image: (H, W, 3) uint8 RGB. Warns when the range of 16 bits is chosen anew.

        Raises
        ------
        ConversionError

        """
        greys = self.greys
        changes = greys.changes
        image = conversions.to_rgb(message, greys)
        if greys.changes != changes:
            self._warn(GREYS, greys.warning)
        return image

    def find(self, image: Image | None, when: Time) -> RequestImage:
        """
        Decode the image a request brought, or the buffered one of its stamp.

        Raises
        ------
        ConversionError, LookupError

        """
        if image is not None and image.data:
            return RequestImage(self.decode(image), image.header, -1)
        asked = stamp.nanoseconds(when)
        frame = self.buffer.find(asked)
        doubt = frame.doubt
        if not doubt and not asked:  # the newest one, of whom?
            doubt = several(self._publishers(), 'the image topic')
        header = frame.message.header
        return RequestImage(self.decode(frame.message), header, frame.sequence, doubt)
