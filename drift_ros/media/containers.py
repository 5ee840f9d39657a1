# SPDX-License-Identifier: Apache-2.0
"""
Video files, read through FFmpeg (PyAV): what is in them, not what their headers say.

A :class:`Container` looks at every packet of the file once, without decoding, when it is opened:
how many frames there are and when they are shown is then known, and whether that is what the
header promises. Decoding tells the rest. Frames are as they are stored: a rotation in the
container is not applied, as that of a picture is not.
"""

from __future__ import annotations

from collections.abc import Generator
from pathlib import Path
from typing import Any

import av
import numpy as np

from drift_ros.media.pictures import check_size, decode, PictureError

_OPTIONS = {'protocol_whitelist': 'file'}  # playlists and references lead nowhere else
_EDITED = ('mov', 'mp4')  # formats whose edit lists may leave frames out, rightly
_TOLD_BY_LOG = ('ffv1',)
"""Codecs with checksums whose decoder does nothing but log that one is wrong."""
_RATES = (0.1, 1000.0)
"""Frames per second that are believed where nothing else tells."""
_GAP = 10.0
"""Seconds without a frame that are worth a word."""
_NOTHING = -(1 << 62)


class ContainerError(ValueError):
    """A file that is no video, or one of which no frame can be decoded."""


class Container:
    """
    One video file.

    Attributes
    ----------
    times : np.ndarray
        (n,) float64, ascending: seconds at which the frames are shown, the first at 0.
    rate : float
        Mean frames per second; 0 where the file does not tell (a single frame).
    missing : str
        In what way there is less than the header promises; empty: it is not.
    notes : tuple of str
        What is worth knowing and no fault.

    """

    def __init__(self, path: str | Path) -> None:
        """
        Look at the file.

        Raises
        ------
        ContainerError
            Not a video, no codec for it, no frame that can be decoded, or frames too large.

        """
        self.path = Path(path)
        self._stamps: np.ndarray | None = None
        av.logging.set_level(av.logging.ERROR)  # what FFmpeg logs becomes part of our words
        try:
            with av.logging.Capture(local=True), self._open() as container:
                stream = _video(container, self.path)
                self._codec = str(stream.codec_context.name)
                shown, discarded, end = self._scan(container, stream)
                promised, seconds = stream.frames, self._promised_seconds(container, stream)
                edited = any(name in container.format.name for name in _EDITED)
                rate = float(stream.average_rate or stream.guessed_rate or 0)
        except (av.FFmpegError, IndexError) as error:  # PyAV's own, of streams without a codec
            raise ContainerError(
                f'{self.path} is not a video that can be read ({_reason(error)}): it is damaged, '
                'cut off before its index, or of another kind'
            ) from None
        if not len(shown):
            raise ContainerError(f'{self.path} holds no video frames')
        self.times, pace = _ascending(shown - shown[0], rate)
        span = float(self.times[-1])
        self.rate = (len(shown) - 1) / span if span > 0 else rate
        self.missing = self._compare(promised, seconds, len(shown) + discarded, end, edited)
        said = (self._look(), f'{self.path}: {pace}' if pace else '')
        self.notes = tuple(filter(None, said))

    def _open(self) -> Any:
        return av.open(f'file:{self.path}', options=_OPTIONS)

    def _scan(self, container: Any, stream: Any) -> tuple[np.ndarray, int, float]:
        """Give the frames' times in ascending order, how many are discarded, and the end."""
        base, stamps, discarded, last = float(stream.time_base), [], 0, _NOTHING
        for packet in container.demux(stream):
            if not packet.size:  # the end, or a frame that AVI says is the one before
                discarded += packet.pts is not None
                continue
            stamp = packet.pts if packet.pts is not None else packet.dts
            if packet.is_discard:
                discarded += 1
            else:
                stamps.append(stamp)
            if stamp is not None:
                last = max(last, stamp + (packet.duration or 0))
        if None in stamps:  # raw streams have no times
            self._stamps = None
            rate = float(stream.average_rate or stream.guessed_rate or 25)
            return np.arange(len(stamps)) / rate, discarded, len(stamps) / rate
        self._stamps = np.sort(np.array(stamps, np.int64))
        return self._stamps * base, discarded, (last - (stream.start_time or 0)) * base

    @staticmethod
    def _promised_seconds(container: Any, stream: Any) -> float:
        """Give the length the header promises in seconds; 0: none."""
        if stream.duration:
            return float(stream.duration * stream.time_base)
        hours, _, rest = stream.metadata.get('DURATION', '').partition(':')
        minutes, _, seconds = rest.partition(':')
        try:
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        except ValueError:
            alone = len(container.streams) == 1 and container.duration
            return container.duration / av.time_base if alone else 0.0

    def _compare(self, promised: int, seconds: float, count: int, end: float, edited: bool) -> str:
        """Say in what way the header promises more than there is."""
        period = 1 / self.rate if self.rate else 0.0
        short = bool(seconds) and end < seconds - 1.5 * max(period, 1e-3)
        if promised > count and (short or not edited):
            return f'its header promises {promised} frames, it holds {count}: it was cut off'
        if not promised and short:
            return (
                f'its header promises {seconds:.2f} s, it holds {end:.2f} s ({count} frames): it '
                'was cut off'
            )
        return ''

    def _look(self) -> str:
        """Decode the first frame: whether that can be done, and what it is like."""
        for _, frame, _ in self.decode():
            if frame is None:
                continue
            if not frame.rotation:
                return ''
            return (
                f'{self.path} is marked as rotated by {frame.rotation} degrees: frames are taken '
                'as they are stored, and masks have to be drawn on them so'
            )
        raise ContainerError(
            f'no frame of {self.path} can be decoded ({self._codec}): its data are damaged, or '
            'this FFmpeg lacks the codec; convert it, to H.264 for instance'
        )

    def decode(self) -> Generator[tuple[int, Any, str], None, None]:
        """
        Decode all frames.

        Yields
        ------
        number, frame, problem
            Either an ``av.VideoFrame``, in ascending order of its number, counted from 0; or None
            and what is wrong with that number, which may come some frames before or after it.

        Raises
        ------
        ContainerError
            The file cannot be read any further, or a frame is too large.

        """
        try:
            with self._open() as container:
                stream = _video(container, self.path)
                # one thread: errors are told to the thread that decodes
                stream.thread_type = 'NONE'
                packets = container.demux(stream)
                last = -1
                while True:
                    with av.logging.Capture(local=True):
                        packet = next(packets, None)
                    if packet is None:
                        break
                    frames, problem = _decode(packet, stream.codec_context)
                    if packet.size and packet.is_corrupt:
                        problem = problem or 'it ends within the file'
                    if problem:
                        yield self._number(packet.pts, last + 1), None, problem
                    for frame in frames:
                        last = max(self._number(frame.pts, last + 1), last + 1)
                        yield last, frame, ''
                        if frame.is_corrupt:
                            yield last, None, 'the decoder had to conceal damage'
        except av.FFmpegError as error:
            raise ContainerError(f'{self.path} cannot be read on: {_reason(error)}') from None

    def _number(self, pts: int | None, otherwise: int) -> int:
        """Give the number of the frame that is shown at a time, in the stream's units."""
        if pts is None or self._stamps is None:
            return otherwise
        return int(np.searchsorted(self._stamps, pts))


def _ascending(times: np.ndarray, rate: float) -> tuple[np.ndarray, str]:
    """Give times that ascend, evenly spaced where a file's own do not; and what is to be said."""
    steps = np.diff(times)
    if not len(steps):
        return times, ''
    if steps.min() <= 0:
        even = rate if _RATES[0] <= rate <= _RATES[1] else 25.0
        return np.arange(len(times)) / even, (
            f'several frames have one time; they are taken to be evenly spaced at {even:g} Hz'
        )
    where = int(steps.argmax())
    if steps[where] > _GAP and steps[where] > 100 * np.median(steps):
        return times, f'there is a gap of {steps[where]:.1f} s after frame {where}'
    return times, ''


def _video(container: Any, path: Path) -> Any:
    """Give the video stream; its pictures' size is bounded."""
    if not container.streams.video:
        raise ContainerError(f'{path} holds no video')
    stream = container.streams.video[0]
    if stream.codec_context is None:
        raise ContainerError(f'{path} needs a codec that this FFmpeg lacks: convert it to H.264')
    size = stream.codec_context.width, stream.codec_context.height
    if any(size):
        try:
            check_size(*size, f'a frame of {path}')
        except PictureError as error:
            raise ContainerError(str(error)) from None
    return stream


def _reason(error: Exception) -> str:
    """Give what FFmpeg said of an error, without its number and the file's name."""
    log = getattr(error, 'log', None)
    return log[2].strip() if log else str(getattr(error, 'strerror', None) or error)


def _decode(packet: Any, codec: Any) -> tuple[list[Any], str]:
    """Decode a packet: the frames that are ready now, and what was wrong with it."""
    with av.logging.Capture(local=True) as logs:
        try:
            frames = codec.decode(packet if packet.size else None)
        except av.FFmpegError as error:
            return [], str(error.strerror)
    if logs and codec.name in _TOLD_BY_LOG:
        return frames, logs[0][2].strip()
    if packet.size and codec.name == 'mjpeg':  # FFmpeg conceals; a JPEG decoder tells
        try:
            decode(bytes(packet), 'its picture')
        except PictureError as error:
            return frames, str(error)
    return frames, ''
