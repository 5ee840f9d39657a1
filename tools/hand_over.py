# SPDX-License-Identifier: Apache-2.0
"""
Measure on a DAVIS-layout folder whether an object is found in another camera's picture.

The other camera is made of a later frame of the same sequence, as it is, darker, seen from further
away, and mirrored; in a picture of another sequence the object must not be found.
"""

from __future__ import annotations

from itertools import islice
from pathlib import Path

import click
import cv2
import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from drift_ros import NotFoundError, Tracker
from drift_ros.evaluation.datasets import find_sequences
from drift_ros.evaluation.protocol import seed_mask

FOLLOWED, LATER = 9, 15
"""Frames in which the first camera follows the object, and the frame the second one shows."""


def as_it_is(image: np.ndarray) -> np.ndarray:
    """Give (H, W, ...) as it is."""
    return image


def darker(image: np.ndarray) -> np.ndarray:
    """Three quarters as bright; a mask stays."""
    return image if image.ndim == 2 else (image * 0.75).astype(np.uint8)


def further(image: np.ndarray) -> np.ndarray:
    """Sixty percent as large, in the middle; the picture's edges are mirrored, a mask's empty."""
    height, width = image.shape[:2]
    flat = image.ndim == 2
    small = cv2.resize(
        image,
        (int(0.6 * width), int(0.6 * height)),
        interpolation=cv2.INTER_NEAREST if flat else cv2.INTER_AREA,
    )
    top, left = (height - small.shape[0]) // 2, (width - small.shape[1]) // 2
    bottom, right = height - small.shape[0] - top, width - small.shape[1] - left
    border = cv2.BORDER_CONSTANT if flat else cv2.BORDER_REFLECT
    return cv2.copyMakeBorder(small, top, bottom, left, right, border, value=0)


def mirrored(image: np.ndarray) -> np.ndarray:
    """Left is right."""
    return np.ascontiguousarray(image[:, ::-1])


VIEWS = {'as it is': as_it_is, 'darker': darker, '.6 as large': further, 'mirrored': mirrored}


@click.command(help=__doc__)
@click.argument('davis', type=click.Path(path_type=Path, exists=True))
@click.option('--threshold', default=0.0, help='As of Tracker.find; 0: states.recovery.')
def main(davis: Path, threshold: float) -> None:
    """Follow, hand over, compare."""
    base = Tracker()
    table = Table('sequence', *VIEWS, 'another scene')
    found = list(find_sequences(davis))
    names = [each.name for each in found]
    sequences = [list(islice(each, LATER + 1)) for each in found]
    for number, frames in enumerate(track(sequences, console=Console(stderr=True))):
        mask = seed_mask(frames[0], 0, ())
        assert mask is not None
        front = base.beside(1, 2)
        (target,) = front.seed(frames[0].image, (mask == mask.max()).astype(np.uint8))
        for frame in frames[1:FOLLOWED]:
            front.step(frame.image)
        truth = frames[LATER].truth == mask.max()
        other = sequences[(number + 3) % len(sequences)][0]
        cells = []
        for view in (*VIEWS.values(), None):
            rear = base.beside(2, 2)
            image = other.image if view is None else view(frames[LATER].image)
            try:
                existence = rear.find(image, front, target, threshold)
            except NotFoundError as error:
                cells.append(f'none ({error.existence:.2f})')
                continue
            shown = rear.state.shown == target
            cell = f'found ({existence:.2f})'
            if view is not None:
                there = view(truth.astype(np.uint8)) > 0
                cell += f', IoU {(shown & there).sum() / (shown | there).sum():.2f}'
            cells.append(cell)
        table.add_row(names[number], *cells)
    Console(width=140).print(table)


if __name__ == '__main__':
    main()
