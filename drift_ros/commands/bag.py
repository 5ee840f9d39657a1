# SPDX-License-Identifier: Apache-2.0
"""``drift_ros bag``: make rosbag2 bags from datasets and videos."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import click

from drift_ros.commands.running import user_errors


@click.group()
def bag() -> None:
    """Make rosbag2 bags from datasets and videos."""


def _bag_options(function: Callable) -> Callable:
    for option in reversed(
        [
            click.option(
                '--storage',
                type=click.Choice(['mcap', 'sqlite3']),
                default='mcap',
                show_default=True,
            ),
            click.option(
                '--compressed',
                is_flag=True,
                help='sensor_msgs/CompressedImage instead of sensor_msgs/Image; nothing is lost.',
            ),
            click.option(
                '--rate',
                type=click.FloatRange(0, min_open=True),
                help='Frames per second [default: the times of the video; 24 for folders].',
            ),
            click.option(
                '--max-frames',
                type=click.IntRange(0),
                default=0,
                show_default=True,
                help='Take only the first frames (0: all).',
            ),
        ]
    ):
        function = option(function)
    return function


@bag.command('from-davis')
@click.argument('root', type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument('sequence')
@click.argument('out', type=click.Path(path_type=Path))
@click.option('--resolution', help='Folder level below JPEGImages.')
@click.option(
    '--task',
    type=click.Choice(['auto', 'multi', 'single']),
    default='auto',
    show_default=True,
    help='As in "drift_ros eval davis".',
)
@_bag_options
def from_davis(
    root: Path,
    sequence: str,
    out: Path,
    resolution: str | None,
    task: str,
    storage: str,
    compressed: bool,
    rate: float | None,
    max_frames: int,
) -> None:
    """
    Make the bag OUT of SEQUENCE in the DAVIS-layout folder ROOT.

    Topics: /camera/image_raw[/compressed], /camera/camera_info, /ground_truth/mask.
    """
    from drift_ros.evaluation.bag_writing import bag_from_davis
    from drift_ros.evaluation.datasets import find_sequences, sound

    with user_errors():
        (found,) = sound(
            find_sequences(
                root, resolution=resolution, names=[sequence], task=task, max_frames=max_frames
            )
        )
        with click.progressbar(length=len(found), label=f'{sequence} to {out}') as bar:
            bag_from_davis(
                found,
                out,
                storage=storage,
                compressed=compressed,
                rate=rate or 24.0,
                progress=bar.update,
            )


@bag.command('from-video')
@click.argument('video', type=click.Path(exists=True, path_type=Path))
@click.argument('out', type=click.Path(path_type=Path))
@click.option(
    '--masks',
    type=click.Path(exists=True, path_type=Path),
    help='Folder of label PNG files named by frame number (00000.png), or one file '
    'for the first frame: the ground truth.',
)
@_bag_options
def from_video(
    video: Path,
    out: Path,
    masks: Path | None,
    storage: str,
    compressed: bool,
    rate: float | None,
    max_frames: int,
) -> None:
    """
    Make the bag OUT of a VIDEO file or a folder of images.

    Topics: /camera/image_raw[/compressed], /camera/camera_info, /ground_truth/mask.
    """
    from drift_ros.evaluation.bag_writing import bag_from_video
    from drift_ros.media.video import VideoReader

    with user_errors():
        reader = VideoReader(video, count=max_frames)
        for note in reader.notes:
            click.echo(note, err=True)
        with click.progressbar(length=len(reader), label=f'{video} to {out}') as bar:
            bag_from_video(
                reader,
                out,
                storage=storage,
                compressed=compressed,
                rate=rate,
                masks=masks,
                progress=bar.update,
            )
