# SPDX-License-Identifier: Apache-2.0
"""
Read and write video: files, folders of images, DAVIS sequences. No ROS.

Frames are ``(H, W, 3)`` uint8 RGB arrays throughout.
"""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
import re
from types import TracebackType
from typing import Any

import cv2
import numpy as np

from drift_ros.engine.errors import listed
from drift_ros.media.greys import GreyRange
from drift_ros.media.pictures import PictureError, read_picture

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm', '.pgm')
DEFAULT_RATE = 24.0
"""Frames per second of sources that have no rate of their own (folders); DAVIS is 24 Hz."""


class VideoError(ValueError):
    """A source that cannot be read or a file that cannot be written."""


def natural_key(path: str | Path) -> tuple[tuple[int, int | str], ...]:
    """Sort key that puts ``frame2.png`` before ``frame10.png``."""
    parts = re.split(r'(\d+)', Path(path).name.lower())
    return tuple((0, int(part)) if part.isdigit() else (1, part) for part in parts)


def list_images(folder: str | Path) -> list[Path]:
    """
    List the images in a folder (not its subfolders) in natural order.

    Raises
    ------
    VideoError
        The folder does not exist or holds no image.

    """
    folder = Path(folder)
    if not folder.is_dir():
        raise VideoError(f'{folder} is not a folder')
    files = sorted(
        (
            file
            for file in folder.iterdir()
            if file.suffix.lower() in IMAGE_SUFFIXES and file.is_file()
        ),
        key=natural_key,
    )
    if not files:
        raise VideoError(f'{folder} holds no images ({", ".join(IMAGE_SUFFIXES)})')
    return files


def read_image(path: str | Path, greys: GreyRange | None = None) -> np.ndarray:
    """
    Read one picture as (H, W, 3) uint8 RGB; see :mod:`drift_ros.media.pictures`.

    Parameters
    ----------
    path : str or Path
    greys : GreyRange, optional
        That of the sequence, for pictures of 16 bits. None: found from this picture alone.

    Raises
    ------
    VideoError
        Not there, not a picture, damaged, or too large.

    """
    try:
        values = read_picture(path).values
    except PictureError as error:
        raise VideoError(str(error)) from None
    if values.dtype == np.uint16:
        values = (greys or GreyRange()).narrow(values, grey=values.ndim == 2)
    return values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)


def _look(path: Path) -> tuple[str, ...]:
    """Give what is worth knowing of the first picture of a folder."""
    try:
        turned = read_picture(path).orientation
    except PictureError as error:
        raise VideoError(str(error)) from None
    if turned == 1:
        return ()
    return (
        f'{path} is marked as turned (EXIF orientation {turned}): pictures are taken as they are '
        'stored, and masks have to be drawn on them so',
    )


def write_image(path: str | Path, frame: np.ndarray) -> None:
    """
    Write an (H, W, 3) uint8 RGB picture; the suffix chooses the format.

    Raises
    ------
    VideoError
        The folder does not exist or the format is unknown.

    """
    try:
        done = cv2.imwrite(str(path), cv2.cvtColor(frame, cv2.COLOR_RGB2BGR))
    except cv2.error as error:
        raise VideoError(f'cannot write {path}: {error}') from error
    if not done:
        raise VideoError(f'cannot write {path}: does its folder exist?')


class VideoDamage(VideoError):
    """All that could be read of a source was given, and it is less than, or not, what it says."""


class VideoReader:
    """
    Frames of a video file, a folder of images or one DAVIS sequence, in order.

    Every ``for`` loop starts again at the first frame::

        for frame in VideoReader('cup.mp4'):
            tracker.step(frame)

    A loop that comes upon damage gives all that can be decoded, and raises :class:`VideoDamage`
    at its end. Frames are as they are stored, without a rotation that their metadata ask for.

    Parameters
    ----------
    source : str or Path
        A video file, or a folder of images.
    start : int
        Frames to leave out at the beginning.
    count : int
        Frames to give at most; 0 = all.

    Attributes
    ----------
    rate : float
        Mean frames per second.
    length : int
        Frames a loop gives, if all can be decoded; counted, not what a header says.
    times : np.ndarray
        (length,) float64: seconds at which they are shown, the first at 0.
    notes : tuple of str
        What is worth knowing of the source and no fault.

    Raises
    ------
    VideoError
        Nothing readable at ``source``.

    """

    def __init__(self, source: str | Path, start: int = 0, count: int = 0) -> None:
        self.source = Path(source)
        self._start = start
        self._stop = start + count if count else None
        self._files: list[Path] = []
        self._container: Any = None  # PyAV is imported where a video is read
        self.notes: tuple[str, ...] = ()
        self.rate = DEFAULT_RATE
        if self.source.is_dir():
            self._files = list_images(self.source)
            times = np.arange(len(self._files)) / DEFAULT_RATE
            self.notes = _look(self._files[0])
        elif self.source.is_file():
            from drift_ros.media.containers import Container, ContainerError

            try:
                self._container = Container(self.source)
            except ContainerError as error:
                raise VideoError(str(error)) from None
            times, self.notes = self._container.times, self._container.notes
            self.rate = self._container.rate or DEFAULT_RATE
        else:
            raise VideoError(
                f'{self.source} does not exist: give a video file or a folder of images'
            )
        self._whole = len(times)
        times = times[start : self._stop]
        self.times = times - times[0] if len(times) else times
        self.length = len(times)

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[np.ndarray]:
        for _, frame in self.numbered():
            yield frame

    def numbered(self) -> Iterator[tuple[int, np.ndarray]]:
        """
        Give each frame with its number, 0 for the first: one that cannot be decoded leaves a gap.

        Raises
        ------
        VideoDamage
            After the last frame: something was wrong with them, or there were too few.
        VideoError
            The source cannot be read on.

        """
        problems: dict[int, str] = {}
        size: tuple[int, ...] = ()
        given = 0
        for number, frame, problem in self._decoded():
            if frame is not None:
                if size and frame.shape[:2] != size:
                    problem = (
                        f'the size changes from {size[1]}x{size[0]} to '
                        f'{frame.shape[1]}x{frame.shape[0]}'
                    )
                size = frame.shape[:2]
                given += 1
                yield number, frame
            if problem and 0 <= number < self.length:
                problems.setdefault(number, problem)
        said = [f'frame {self._start + n}: {problems[n]}' for n in sorted(problems)]
        if given < self.length:
            said.append(f'{given} of {self.length} frames can be decoded')
        missing = '' if self._container is None else self._container.missing
        if missing and (self._stop is None or self._stop > self._whole):
            said.append(missing)
        if said:
            raise VideoDamage(f'{self.source} is damaged: {listed(said)}')

    def survey(self) -> tuple[list[int], str]:
        """
        Decode all frames once, to know of damage before any work is done.

        Returns
        -------
        tuple
            The numbers of the frames that can be decoded, and what is wrong; '': nothing.

        Raises
        ------
        VideoError
            The source cannot be read on.

        """
        numbers: list[int] = []
        try:
            numbers.extend(number for number, _ in self.numbered())
        except VideoDamage as damage:
            return numbers, str(damage)
        return numbers, ''

    def _decoded(self) -> Iterator[tuple[int, np.ndarray | None, str]]:
        """Give the frames that are wanted, and what is wrong with any."""
        if self._container is None:
            greys = GreyRange()
            for number, path in enumerate(self._files[self._start : self._stop]):
                yield number, read_image(path, greys), ''
            return
        from drift_ros.media.containers import ContainerError

        source = self._container.decode()
        try:
            for number, frame, problem in source:
                number -= self._start
                if frame is None:
                    yield number, None, problem
                elif number >= self.length:
                    break
                elif number >= 0:
                    yield number, frame.to_ndarray(format='rgb24'), ''
        except ContainerError as error:
            raise VideoError(str(error)) from None
        finally:
            source.close()


class VideoWriter:
    """
    Write an MP4 that browsers and players show: H.264, yuv420p, index at the front.

    Odd sizes lose their last row or column, as 4:2:0 needs even ones.

    Parameters
    ----------
    path : str or Path
        File to write; its folder is created.
    rate : float
        Frames per second.

    """

    codec = 'h264'

    def __init__(self, path: str | Path, rate: float = DEFAULT_RATE) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._rate = rate
        self._shape: tuple[int, ...] | None = None
        self._container: Any = None
        self._stream: Any = None

    def _open(self, height: int, width: int) -> None:
        import av

        av.logging.set_level(av.logging.ERROR)
        self._container = av.open(str(self.path), 'w', options={'movflags': 'faststart'})
        self._stream = self._container.add_stream(
            'libx264',
            rate=Fraction(self._rate).limit_denominator(1001),
            options={'preset': 'veryfast', 'crf': '20'},
        )
        self._stream.width, self._stream.height = width, height
        self._stream.pix_fmt = 'yuv420p'
        self._stream.thread_count = 1

    def write(self, frame: np.ndarray) -> None:
        """
        Append one (H, W, 3) uint8 RGB frame; all frames have the first one's size.

        Raises
        ------
        VideoError
            The frame size changed.

        """
        if self._shape is None:
            self._open(frame.shape[0] // 2 * 2, frame.shape[1] // 2 * 2)
            self._shape = frame.shape
        if frame.shape != self._shape:
            raise VideoError(
                f'the frame size changed from {self._shape} to {frame.shape} while '
                f'writing {self.path}'
            )
        import av

        even = np.ascontiguousarray(frame[: frame.shape[0] // 2 * 2, : frame.shape[1] // 2 * 2])
        self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format='rgb24')))

    def close(self) -> None:
        """Finish the file. Closing twice does nothing; no frame written leaves no file."""
        if self._container is not None:
            self._container.mux(self._stream.encode(None))
            self._container.close()
            self._container = None

    def __enter__(self) -> VideoWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
