# SPDX-License-Identifier: Apache-2.0
"""``drift_ros demo-follow``: a simulated robot follows an object, through the real nodes."""

from __future__ import annotations

import json
from pathlib import Path

import click
import numpy as np

from drift_ros.ros.client_errors import ClientError
from drift_ros.ros.processes import ProcessError


@click.command()
@click.option('--seed', default=0, show_default=True, help='Of textures, noise and paths.')
@click.option(
    '--runs', default=1, show_default=True, type=click.IntRange(1), help='With the seeds after it.'
)
@click.option('--seconds', default=0.0, show_default=True, help='Of simulated time; 0: all of it.')
@click.option(
    '--out', type=click.Path(path_type=Path), default=Path('out/follow'), show_default=True
)
def demo_follow(seed: int, runs: int, seconds: float, out: Path) -> None:
    """
    Let a robot in a simulator follow an object: tracker and follower are the real nodes.

    The object goes, is crossed by its look-alike, hides behind a screen and comes back. Leaves a
    video, a plot and the numbers of each run in OUT. Needs MuJoCo (pip install mujoco) and EGL.
    """
    from drift_ros.media.video import VideoWriter
    from drift_ros.simulation import closed_loop, measures
    from drift_ros.simulation.scenario import Scenario
    from drift_ros.simulation.world import RenderError, World

    rows = []
    for number in range(seed, seed + runs):
        folder = out / f'seed_{number}'
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with VideoWriter(folder / 'follow.mp4', closed_loop.RATE) as video:

                def watch(
                    world: World,
                    moment: closed_loop.Moment,
                    colour: np.ndarray,
                    labels: np.ndarray,
                    video: VideoWriter = video,
                ) -> None:
                    above = world.from_above()
                    video.write(measures.picture(above, moment, colour, labels))

                record = closed_loop.run(folder, number, Scenario.of(number, seconds), watch=watch)
        except (RenderError, ProcessError, ClientError) as error:
            raise click.ClickException(str(error)) from None
        record.write(folder / 'record.json')
        measures.plot(record, folder / 'follow.png')
        rows.append(measures.measure(record))
        click.echo(
            measures.table(rows[-1:]) if number == seed else measures.table(rows).splitlines()[-1]
        )
        text = json.dumps([measures.as_dict(row) for row in rows], indent=1)
        (out / 'measures.json').write_text(text + '\n', encoding='utf-8')
    (out / 'measures.md').write_text(measures.table(rows) + '\n', encoding='utf-8')
    click.echo(f'video, plot and numbers: {out}')
