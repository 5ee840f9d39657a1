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


def read_image(path: str | Path) -> np.ndarray:
    """
    Read one picture as (H, W, 3) uint8 RGB.

    Raises
    ------
    VideoError
        Not there, or not a picture.

    """
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        raise VideoError(f'{path} is missing or is not a picture OpenCV can read')
    return image


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


class VideoReader:
    """
    Frames of a video file, a folder of images or one DAVIS sequence, in order.

    Every ``for`` loop starts again at the first frame::

        for frame in VideoReader('cup.mp4'):
            tracker.step(frame)

    Parameters
    ----------
    source : str or Path
        A video file, or a folder of images.
    start : int
        Frames to leave out at the beginning.
    count : int
        Frames to give at most; 0 = all.

    Raises
    ------
    VideoError
        Nothing readable at ``source``.

    """

    def __init__(self, source: str | Path, start: int = 0, count: int = 0) -> None:
        self.source = Path(source)
        self._start = start
        self._count = count
        self._files: list[Path] | None = None
        self.rate = DEFAULT_RATE
        """Frames per second."""
        if self.source.is_dir():
            self._files = list_images(self.source)
            length = len(self._files)
        elif self.source.is_file():
            capture = self._open()
            rate = capture.get(cv2.CAP_PROP_FPS)
            length = int(capture.get(cv2.CAP_PROP_FRAME_COUNT))
            capture.release()
            if 0.1 <= rate <= 1000.0:
                self.rate = float(rate)
        else:
            raise VideoError(
                f'{self.source} does not exist: give a video file or a folder of images'
            )
        length = max(0, length - start)
        self.length = min(length, count) if count else length
        """Frames to expect; containers do not always tell the truth."""

    def _open(self) -> cv2.VideoCapture:
        capture = cv2.VideoCapture(str(self.source), cv2.CAP_FFMPEG)
        if not capture.isOpened():
            raise VideoError(f'{self.source} is not a video this OpenCV build can read')
        return capture

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[np.ndarray]:
        stop = self._start + self._count if self._count else None
        if self._files is not None:
            for path in self._files[self._start : stop]:
                yield read_image(path)
            return
        capture = self._open()
        try:
            for index in range(stop if stop is not None else 2**62):
                if not capture.grab():
                    break
                if index >= self._start:
                    done, image = capture.retrieve()
                    if not done:
                        break
                    yield cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()


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
