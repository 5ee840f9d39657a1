# SPDX-License-Identifier: Apache-2.0
"""``drift_ros seed``: ask a running tracker node to follow what a box or a point marks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np

from drift_ros.ros.errors import ClientError

Point = tuple[float, float]


@click.command()
@click.option(
    '--box',
    type=float,
    nargs=4,
    metavar='X0 Y0 X1 Y1',
    help='Corners in pixels, maxima exclusive.',
)
@click.option(
    '--point',
    'positive',
    type=float,
    nargs=2,
    multiple=True,
    metavar='X Y',
    help='A pixel on the object; may be given more than once.',
)
@click.option(
    '--negative',
    type=float,
    nargs=2,
    multiple=True,
    metavar='X Y',
    help='A pixel that is not on the object.',
)
@click.option('--name', default='', help='Name of the object.')
@click.option(
    '--id',
    'object_id',
    type=click.IntRange(1),
    default=None,
    help='Correct this object, which keeps id and name, instead of following a new one.',
)
@click.option(
    '--image',
    'image_file',
    type=click.Path(path_type=Path, exists=True),
    help='Image to point at.  [default: the newest one the node has received]',
)
@click.option(
    '--node',
    default='tracker',
    show_default=True,
    help='Name of the tracker node, with its namespace.',
)
@click.option('--dry-run', is_flag=True, help='Only make the mask; follow nothing.')
@click.option(
    '--save',
    type=click.Path(path_type=Path, dir_okay=False),
    help='Write the mask as a PNG label image.',
)
@click.option('--timeout', default=30.0, show_default=True, help='Seconds to wait.')
def seed(
    box: tuple[float, float, float, float] | None,
    positive: tuple[Point, ...],
    negative: tuple[Point, ...],
    name: str,
    object_id: int | None,
    image_file: Path | None,
    node: str,
    dry_run: bool,
    save: Path | None,
    timeout: float,
) -> None:
    """
    Follow what a box, points, or a box with points mark in the newest frame.

    Prints the object's id, or why there is none.
    """
    if box is None and not positive:
        raise click.UsageError('point at the object: give --box X0 Y0 X1 Y1 or --point X Y')
    if dry_run and object_id is not None:
        raise click.UsageError('--dry-run follows nothing: leave --id out')
    from drift_ros.media.video import read_image
    from drift_ros.ros.client import TrackerClient

    marks: dict[str, Any] = {
        'box': box,
        'points': positive,
        'negative': negative,
        'frame': None if image_file is None else read_image(image_file),
    }
    try:
        with TrackerClient(node, name='drift_ros_seed', timeout=timeout) as tracker:
            if dry_run:
                found = tracker.segment(**marks)
            else:
                found = tracker.seed_prompt(name=name, object_id=object_id or 0, **marks)
    except ClientError as error:
        raise click.ClickException(str(error)) from error
    said = f'{np.count_nonzero(found.mask)} pixels, score {found.score:.2f}'
    click.echo(said if dry_run else f'object {found.id}: {said}')
    if found.note:
        click.echo(f'note: {found.note}')
    if save is not None:
        import cv2

        save.parent.mkdir(parents=True, exist_ok=True)
        labels = found.mask * (np.uint16 if found.id > 255 else np.uint8)(found.id or 1)
        if not cv2.imwrite(str(save.with_suffix('.png')), labels):
            raise click.ClickException(f'cannot write {save}')
