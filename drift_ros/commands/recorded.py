# SPDX-License-Identifier: Apache-2.0
"""A recorded run as people look at it: an annotated video and a contact sheet."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np

from drift_ros.media import overlay
from drift_ros.media.video import VideoReader, VideoWriter, write_image
from drift_ros.ros import stamp
from drift_ros.ros.processes import ProcessError

_STATES = {1: 'TRACKING', 2: 'OCCLUDED', 3: 'LOST'}


def read_results(bag: Path) -> Iterator[tuple[np.ndarray, list[SimpleNamespace]]]:
    """
    Read label images and objects back from a recorded bag, in order of their stamps.

    Yields ``(H, W)`` labels and objects as :func:`drift_ros.media.overlay.draw` takes them.
    """
    from rosbags.highlevel import AnyReader

    from drift_ros.ros import conversions

    masks: dict[int, Any] = {}
    tracks: dict[int, Any] = {}
    with AnyReader([bag]) as reader:
        for connection, _, data in reader.messages():
            target = (
                masks
                if connection.topic.endswith('/mask')
                else tracks
                if connection.topic.endswith('/tracks')
                else None
            )
            if target is not None:
                message = reader.deserialize(data, connection.msgtype)
                target[stamp.nanoseconds(message.header.stamp)] = message
    for when in sorted(masks):
        objects = []
        for item in tracks[when].tracks if when in tracks else ():
            box = item.box
            objects.append(
                SimpleNamespace(
                    id=item.id,
                    name=item.name,
                    state=_STATES.get(item.state, 'unknown'),
                    confidence=item.confidence,
                    box=(
                        box.x_offset,
                        box.y_offset,
                        box.x_offset + box.width,
                        box.y_offset + box.height,
                    )
                    if box.width
                    else None,
                )
            )
        yield conversions.image_to_labels(masks[when]), objects


def draw_results(
    reader: VideoReader,
    bag: Path,
    out: Path,
    advance: Callable[[], None],
    seeded: Sequence[int],
    pictures: int = 12,
) -> tuple[Path, Path, str]:
    """
    Draw a recorded run: an annotated MP4 and a contact sheet.

    Parameters
    ----------
    reader : VideoReader
        The frames that were played.
    bag : Path
        What was recorded.
    out : Path
        Folder for the two files.
    advance : callable
        Called after each frame.
    seeded : sequence of int
        Frames of the run in which objects were seeded; they are on the sheet.
    pictures : int
        On the sheet.

    Returns
    -------
    tuple
        The two files and the video's codec.

    """
    length = max(len(reader), 1)
    chosen = set(np.linspace(0, length - 1, pictures).round().astype(int).tolist())
    for index in seeded:  # the frame after a seed is the first that shows the object
        nearest = min(chosen, key=lambda other: abs(other - index - 1))
        chosen.discard(nearest)
        chosen.add(min(index + 1, length - 1))
    shown, captions = [], []
    video, sheet = out / 'annotated.mp4', out / 'contact_sheet.png'
    with VideoWriter(video, reader.rate) as writer:
        # results first: once they end, the reader is not asked for what it may lack
        for index, ((labels, objects), frame) in enumerate(zip(read_results(bag), reader)):
            picture = overlay.draw(frame, labels, objects)
            writer.write(picture)
            if index in chosen:
                shown.append(picture)
                captions.append(f'frame {index}')
            advance()
        codec = writer.codec
    if not shown:
        raise ProcessError(f'{bag} holds no masks')
    write_image(sheet, overlay.contact_sheet(shown, captions=captions))
    return video, sheet, codec
