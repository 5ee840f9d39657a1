# SPDX-License-Identifier: Apache-2.0
"""
Draw tracking results for people: masks, contours, boxes, names; contact sheets. No ROS.

Colours are those of the PASCAL VOC and DAVIS palette, so that an object has the same colour in
an overlay, in an indexed PNG and in other tools.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import cv2
import numpy as np

from drift_ros.media.labels import palette

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_PALETTE = palette(65536)


def color(object_id: int) -> tuple[int, int, int]:
    """Give an object's RGB colour, 0 to 255."""
    red, green, blue = _PALETTE[object_id].tolist()
    return red, green, blue


def draw_labels(frame: np.ndarray, labels: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """
    Blend a label image over a frame and outline every object.

    Parameters
    ----------
    frame : np.ndarray
        (H, W, 3) uint8 RGB; not modified.
    labels : np.ndarray
        (H, W) unsigned integer, 0 = background.
    opacity : float
        0 (outlines only) to 1 (flat colour).

    Returns
    -------
    np.ndarray
        (H, W, 3) uint8 RGB.

    Raises
    ------
    ValueError
        Sizes differ.

    """
    if frame.shape[:2] != labels.shape:
        raise ValueError(f'the frame is {frame.shape[:2]}, the label image {labels.shape}')
    result = frame.copy()
    present = np.unique(labels)
    present = present[present > 0]
    if not present.size:
        return result
    inside = labels > 0
    if opacity > 0:
        tint = _PALETTE[labels[inside]].astype(np.float32)
        result[inside] = (frame[inside] * (1.0 - opacity) + tint * opacity + 0.5).astype(np.uint8)
    thickness = max(1, round(min(labels.shape) / 300))
    for label in present.tolist():
        contours, _ = cv2.findContours(
            (labels == label).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE
        )
        cv2.drawContours(result, contours, -1, (255, 255, 255), thickness + 1, cv2.LINE_AA)
        cv2.drawContours(result, contours, -1, color(label), thickness, cv2.LINE_AA)
    return result


def _text(image: np.ndarray, text: str, x: int, y: int, background: tuple[int, int, int]) -> None:
    """Write text on a filled box whose lower left corner is near (x, y), kept in the picture."""
    scale = max(0.4, min(image.shape[:2]) / 900)
    (width, height), base = cv2.getTextSize(text, _FONT, scale, 1)
    x = int(np.clip(x, 0, max(0, image.shape[1] - width - 4)))
    y = int(np.clip(y, height + base + 2, image.shape[0]))
    cv2.rectangle(
        image, (x, y - height - base - 2), (x + width + 4, y - 1), background, cv2.FILLED
    )
    luma = 0.299 * background[0] + 0.587 * background[1] + 0.114 * background[2]
    ink = (0, 0, 0) if luma > 128 else (255, 255, 255)
    cv2.putText(image, text, (x + 2, y - base), _FONT, scale, ink, 1, cv2.LINE_AA)


def draw(
    frame: np.ndarray,
    labels: np.ndarray,
    objects: Iterable[Any] = (),
    caption: str = '',
    opacity: float = 0.5,
) -> np.ndarray:
    """
    Draw one tracking result.

    Parameters
    ----------
    frame : np.ndarray
        (H, W, 3) uint8 RGB; not modified.
    labels : np.ndarray
        (H, W) unsigned integer label image.
    objects : iterable
        Things with ``id``, ``name``, ``state`` (an enum or text), ``confidence`` and ``box``
        (x_min, y_min, x_max, y_max or None), such as the engine's ``ObjectEstimate``. Objects
        without a box (occluded, lost) are listed in the lower left corner.
    caption : str
        Text for the upper left corner.
    opacity : float
        See :func:`draw_labels`.

    Returns
    -------
    np.ndarray
        (H, W, 3) uint8 RGB.

    """
    result = draw_labels(frame, labels, opacity)
    bottom = result.shape[0]
    for item in objects:
        state = getattr(item.state, 'name', str(item.state)).lower()
        text = f'{item.name or item.id} {state} {item.confidence:.2f}'
        shade = color(item.id)
        if item.box is None:
            _text(result, text, 0, bottom, shade)
            bottom -= cv2.getTextSize(text, _FONT, 0.5, 1)[0][1] + 12
            continue
        x_min, y_min, x_max, y_max = item.box
        cv2.rectangle(result, (x_min, y_min), (x_max - 1, y_max - 1), shade, 1)
        _text(result, text, x_min, y_min, shade)
    if caption:
        _text(result, caption, 0, 0, (0, 0, 0))
    return result


def contact_sheet(
    frames: Sequence[np.ndarray],
    columns: int = 4,
    width: int = 400,
    captions: Sequence[str] = (),
    margin: int = 4,
) -> np.ndarray:
    """
    Lay frames out in rows, left to right, top to bottom.

    Parameters
    ----------
    frames : sequence of np.ndarray
        At least one (H, W, 3) uint8 RGB frame; each is scaled to ``width``.
    columns : int
        Pictures in a row.
    width : int
        Pixels of one picture's width.
    captions : sequence of str
        One text a picture, or none.
    margin : int
        White pixels around each picture.

    Returns
    -------
    np.ndarray
        One (H, W, 3) uint8 RGB picture.

    Raises
    ------
    ValueError
        No frames.

    """
    if not frames:
        raise ValueError('a contact sheet needs at least one frame')
    cells = []
    for index, frame in enumerate(frames):
        height = max(1, round(frame.shape[0] * width / frame.shape[1]))
        cell = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        if index < len(captions) and captions[index]:
            _text(cell, captions[index], 0, 0, (0, 0, 0))
        cells.append(cell)
    tallest = max(cell.shape[0] for cell in cells)
    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    sheet = np.full(
        (rows * (tallest + margin) + margin, columns * (width + margin) + margin, 3), 255, np.uint8
    )
    for index, cell in enumerate(cells):
        top = margin + index // columns * (tallest + margin)
        left = margin + index % columns * (width + margin)
        sheet[top : top + cell.shape[0], left : left + width] = cell
    return sheet
