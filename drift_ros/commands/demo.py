# SPDX-License-Identifier: Apache-2.0
"""
The demo: the main job on real video through real ROS, in four processes.

A player publishes the frames, the tracker follows two objects (the second is given while the
first is being followed), a recorder writes a bag, and this process plays the user: it brings the
tracker up through its lifecycle, gives it the masks, watches, and draws what was recorded.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
import shutil
import time
from typing import Any, TYPE_CHECKING

import click
import numpy as np
import yaml

from drift_ros.commands.recorded import draw_results
from drift_ros.evaluation.run import exclusive
from drift_ros.media.labels import read_labels
from drift_ros.media.video import VideoReader
from drift_ros.ros.client_errors import ClientError
from drift_ros.ros.processes import Children, prepare_environment, ProcessError, shared_file
from drift_ros.ros.signals import interruptible

if TYPE_CHECKING:
    from drift_ros.ros.client import TrackerClient

NAMESPACE = '/drift_ros_demo'
RECORDED = (
    'tracker/mask',
    'tracker/detections',
    'tracker/tracks',
    'tracker/label_info',
    'tracker/seeds',
)
_PATIENCE = 120.0


@dataclass(frozen=True)
class ClipMask:
    """A mask for one frame of the clip."""

    index: int
    """Frame of the clip, from 0."""
    names: tuple[str, ...]
    labels: np.ndarray
    """(H, W) integer, 0 = background."""


def default_clip() -> Path:
    """
    Find the clip that set-up fetched.

    Raises
    ------
    ProcessError
        It is not there.

    """
    for name in ('cup.mp4', 'carphone_pristine.mp4'):
        path = shared_file(f'data/clips/{name}')
        if path is not None:
            return path
    checkout = Path(__file__).resolve().parents[2] / 'Makefile'
    fetch = 'run "make setup", or ' if checkout.is_file() else ''
    raise ProcessError(
        f'the demo clip is missing: {fetch}give a video of your own with --video and a mask of '
        'its first frame with --mask'
    )


def clip_seeds(clip: Path) -> list[ClipMask]:
    """
    Read the hand-made masks that come with a clip, ``config/demo/CLIP/NAME_FRAME.png``.

    Raises
    ------
    ProcessError
        There are none.

    """
    folder = shared_file(f'config/demo/{clip.stem}')
    files = sorted(folder.glob('*_*.png')) if folder else []
    if not files:
        raise ProcessError(f'no masks come with {clip}: give one with --mask')
    seeds = []
    for file in files:
        name, _, index = file.stem.rpartition('_')
        seeds.append(ClipMask(int(index), (name,), read_labels(file)))
    return sorted(seeds, key=lambda seed: seed.index)


class Watch:
    """What a user of the tracker looks at: the tracks of every frame, and its diagnostics."""

    def __init__(self, client: TrackerClient) -> None:
        """Subscribe."""
        from diagnostic_msgs.msg import DiagnosticArray
        from drift_ros_msgs.msg import TrackArray
        from std_srvs.srv import Trigger

        from drift_ros.ros import qos

        self._client, self._trigger = client, Trigger
        client.prepare(Trigger, 'player/resume')
        self.tracks: list[TrackArray] = []
        self.diagnostics: dict[str, str] = {}
        node = client.node
        node.create_subscription(
            TrackArray, f'{client.tracker}/tracks', self.tracks.append, qos.LISTENING
        )
        node.create_subscription(DiagnosticArray, '/diagnostics', self._diagnose, qos.DIAGNOSTICS)

    def _diagnose(self, message: Any) -> None:
        for status in message.status:
            if status.name.endswith('tracker: tracking'):
                self.diagnostics = {item.key: item.value for item in status.values}

    def resume(self, index: int) -> None:
        """Let the player go on after frame ``index``."""
        self._client.call(
            self._trigger,
            'player/resume',
            self._trigger.Request(),
            resend=3.0,
            unless=lambda: len(self.tracks) > index + 1,
        )


def _run(
    video: Path,
    seeds: list[ClipMask],
    start: int,
    frames: int,
    out: Path,
    tracker_parameters: dict[str, object],
    record_images: bool,
) -> None:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
    )
    from rich.table import Table

    console = Console()
    reader = VideoReader(video, start, frames)
    for note in reader.notes:
        console.print(note, soft_wrap=True)
    holds = [seed.index - start for seed in seeds]
    readable, damage = reader.survey()
    total = len(readable)
    if damage:
        console.print(f'{damage}. What can be decoded is tracked: {total} frames', soft_wrap=True)
    if readable[: max(holds, default=0) + 1] != list(range(max(holds, default=0) + 1)) and damage:
        raise ProcessError(
            f'{damage}; so the masks, for frames {[seed.index for seed in seeds]}, cannot be '
            'matched with frames: give a sound copy of the video'
        )
    if not total or any(not 0 <= hold < total for hold in holds):
        raise ProcessError(
            f'{video} has {total} frames from frame {start} on; the masks belong '
            f'to frames {[seed.index for seed in seeds]}'
        )
    bag = out / 'bag'
    if (bag / 'metadata.yaml').exists() or list(bag.glob('*.mcap')):
        shutil.rmtree(bag)
    prepare_environment()
    from drift_ros.ros.client import TrackerClient

    began = time.monotonic()
    progress = Progress(
        TextColumn('{task.description:<28}'),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
    )
    answers, latencies, inference = [], [], []
    with contextlib.ExitStack() as stack:
        children = Children(out / 'logs', NAMESPACE)
        stack.callback(children.stop_all)
        children.start('tracker', {'replay': True, **tracker_parameters})
        topics = [*RECORDED, *(['image'] if record_images else [])]
        children.start('recorder', {'output': bag, 'topics': list(topics)})
        client = stack.enter_context(
            TrackerClient(namespace=NAMESPACE, name='demo', timeout=_PATIENCE)
        )
        user = Watch(client)
        stack.enter_context(progress)

        setup = progress.add_task('loading the model', total=4)

        def watch() -> None:
            children.check(tolerated=('player',) if damage else ())
            progress.refresh()

        client.watch = watch
        if not client.change_state('configure'):
            raise ProcessError(f'the tracker could not be configured:\n{children.tail("tracker")}')
        progress.advance(setup)
        client.change_state('activate')
        progress.advance(setup)
        wanted = {f'{NAMESPACE}/{topic}': 1 for topic in RECORDED}
        while any(client.node.count_subscribers(topic) < count for topic, count in wanted.items()):
            watch()
            time.sleep(0.05)
        progress.advance(setup)
        children.start(
            'player',
            {
                'source': video,
                'start': start,
                'count': len(reader),
                'lockstep': True,
                'stamps': 'now',
                'hold_at': sorted(set(holds)),
                'lockstep_timeout': _PATIENCE,
                'wait_for_subscribers': 2 if record_images else 1,
            },
            ['answer:=tracker/mask'],
        )
        progress.update(setup, completed=4)

        tracking = progress.add_task('tracking', total=total)
        done, last = 0, time.monotonic()
        while done < total:
            if done == len(user.tracks):
                watch()
                if time.monotonic() - last > _PATIENCE:
                    raise ProcessError(
                        f'no frame was tracked for {_PATIENCE:.0f} s; see {out / "logs"}'
                    )
                if children.ended('player') is not None and done == len(user.tracks):
                    time.sleep(0.5)  # the last results may be on their way
                    if done == len(user.tracks):
                        break
                time.sleep(0.005)
                continue
            message = user.tracks[done]
            if message.tracks:
                latencies.append(message.latency.sec * 1e3 + message.latency.nanosec / 1e6)
                inference.append(1e3 * message.stage_times[list(message.stages).index('total')])
            for seed in seeds:
                if seed.index - start == done:
                    found = client.seed(seed.labels, header=message.header, names=seed.names)
                    seconds = client.answer_time
                    answers.append(seconds)
                    named = ', '.join(
                        f'{name} (id {item.id})' for name, item in zip(seed.names, found)
                    )
                    progress.console.print(
                        f'frame {done}: seeded {named}, answered after {1e3 * seconds:.0f} ms'
                    )
            if done in holds:
                user.resume(done)
            done, last = done + 1, time.monotonic()
            progress.update(tracking, completed=done)
        before = user.diagnostics
        end = time.monotonic() + 3.0
        while user.diagnostics is before and time.monotonic() < end:
            time.sleep(0.02)
        dropped = sum(
            int(user.diagnostics.get(f'frames {what}', 0))
            for what in ('dropped', 'refused', 'lost by the middleware')
        )
        time.sleep(0.2)  # what was published last may still be on its way to the recorder
        children.stop('recorder')
        tracker_end = children.stop('tracker')

        drawing = progress.add_task('drawing', total=done)
        annotated, sheet, codec = draw_results(
            reader, bag, out, lambda: progress.advance(drawing), holds
        )

    table = Table(
        title=f'{video.name}: {len(answers)} masks, real ROS 2, '
        f'{time.monotonic() - began:.0f} s in all',
        show_header=False,
    )
    rows = [
        ('frames in', str(total)),
        ('frames tracked', str(done)),
        ('frames dropped', str(dropped)),
        ('latency, median', f'{np.median(latencies):.0f} ms' if latencies else '-'),
        (
            'latency, 95th percentile',
            f'{np.percentile(latencies, 95):.0f} ms' if latencies else '-',
        ),
        ('of which inference, median', f'{np.median(inference):.0f} ms' if inference else '-'),
        ('seed answered after', ', '.join(f'{1e3 * seconds:.0f} ms' for seconds in answers)),
        ('tracker ended after', f'{tracker_end:.2f} s'),
        ('bag (mcap)', str(bag)),
        (f'annotated video ({codec})', str(annotated)),
        ('contact sheet', str(sheet)),
        ('logs', str(out / 'logs')),
    ]
    for row in rows:
        table.add_row(*row)
    console.print(table)
    if done < total:
        raise ProcessError(f'only {done} of {total} frames were tracked; see {out / "logs"}')
    if damage:
        raise ProcessError(f'{damage}. The results are of the {total} frames that were decoded')


@click.command()
@click.option(
    '--video',
    type=click.Path(exists=True, path_type=Path),
    help='Video file or folder of images. Default: the clip set-up fetched.',
)
@click.option(
    '--mask',
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help='PNG for the first frame played; each of its labels is one object.',
)
@click.option(
    '--out',
    type=click.Path(file_okay=False, path_type=Path),
    default=Path('out/demo'),
    show_default=True,
    help='Folder for the results.',
)
@click.option(
    '--start',
    type=click.IntRange(0),
    default=None,
    help='Frame of the video to start with. Default: that of the first mask, or 0.',
)
@click.option(
    '--frames',
    type=click.IntRange(2),
    default=120,
    show_default=True,
    help='Frames to track at most.',
)
@click.option('--model', default='', help='Checkpoint folder or hub id. Default: embedded.')
@click.option('--device', default='auto', show_default=True)
@click.option(
    '-p',
    '--parameter',
    'extra',
    multiple=True,
    metavar='NAME:=VALUE',
    help='Any parameter of the tracker node.',
)
@click.option('--record-images', is_flag=True, help='Record the frames in the bag too.')
@click.option(
    '--ui',
    is_flag=True,
    help='Play the video over and over, without masks: mark objects in a browser. Ends at Ctrl-C.',
)
@click.option(
    '--port',
    type=click.IntRange(0, 65535),
    default=8686,
    show_default=True,
    help='With --ui, where the page is; 0: any that is free.',
)
def demo(
    video: Path | None,
    mask: Path | None,
    out: Path,
    start: int | None,
    frames: int,
    model: str,
    device: str,
    extra: tuple[str, ...],
    record_images: bool,
    ui: bool,
    port: int,
) -> None:
    """Follow objects through a video, with player, tracker and recorder as ROS 2 processes."""
    try:
        clip = video or default_clip()
        parameters: dict[str, object] = {'model': model, 'device': device}
        for item in extra:
            name, separator, value = item.partition(':=')
            if not separator:
                raise ProcessError(f'{item!r} is not of the form NAME:=VALUE')
            parameters[name] = yaml.safe_load(value) if value else value  # as ROS reads it
        parameters = {key: value for key, value in parameters.items() if value != ''}
        if ui:
            from drift_ros.commands.demo_ui import run_page

            run_page(clip, start or 0, out / 'logs', parameters, port)
            return
        if mask is not None:
            labels = read_labels(mask)
            count = len(np.unique(labels[labels > 0]))
            seeds = [ClipMask(start or 0, tuple(f'object {i + 1}' for i in range(count)), labels)]
        else:
            seeds = clip_seeds(clip)
        first = seeds[0].index if start is None else start
        with exclusive(out):
            _run(clip, seeds, first, frames, out, parameters, record_images)
    except (ClientError, ProcessError, ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == '__main__':
    with interruptible():
        demo()
