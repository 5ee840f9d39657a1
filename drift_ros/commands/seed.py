# SPDX-License-Identifier: Apache-2.0
"""``drift_ros seed``: ask a running tracker node to follow what a box or a point marks."""

from __future__ import annotations

from pathlib import Path
import threading
from typing import Any

import click
import numpy as np

Point = tuple[float, float]


def _await(future: Any, seconds: float) -> Any:
    done = threading.Event()
    future.add_done_callback(lambda _: done.set())
    return future.result() if done.wait(seconds) else None


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
    image_file: Path | None,
    node: str,
    dry_run: bool,
    save: Path | None,
    timeout: float,
) -> None:
    """
    Follow what a box, points, or a box with points mark in the newest frame.

    Prints the new object's id, or why there is none.
    """
    if box is None and not positive:
        raise click.UsageError('point at the object: give --box X0 Y0 X1 Y1 or --point X Y')
    from drift_ros_msgs.msg import Prompt, PromptPoint
    from drift_ros_msgs.srv import SeedPrompt, Segment
    import rclpy
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
    from std_msgs.msg import Header

    from drift_ros.media.video import read_image
    from drift_ros.ros import conversions

    kind: Any = Segment if dry_run else SeedPrompt
    request = kind.Request(
        prompts=[
            Prompt(
                box=list(box or ()),
                name=name,
                points=[
                    PromptPoint(x=x, y=y, positive=on)
                    for points, on in ((positive, True), (negative, False))
                    for x, y in points
                ],
            )
        ]
    )
    if image_file is not None:
        request.image = conversions.rgb_to_image(read_image(image_file), Header())
    context = rclpy.Context()
    rclpy.init(context=context)
    client_node = rclpy.create_node('drift_ros_seed', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(client_node)

    def spin() -> None:
        try:
            executor.spin()
        except ExternalShutdownException:
            pass

    spinner = threading.Thread(target=spin, daemon=True)
    spinner.start()
    try:
        service = f'{node.rstrip("/")}/{"segment" if dry_run else "seed_prompt"}'
        client = client_node.create_client(kind, service)
        if not client.wait_for_service(timeout):
            raise click.ClickException(
                f'no service {client.srv_name} appeared within {timeout:g} s: is the tracker '
                'running, and is --node its full name?'
            )
        # an answer to a client the node has not discovered yet would be lost
        threading.Event().wait(0.3)
        answer = _await(client.call_async(request), timeout)
    finally:
        context.try_shutdown()
        spinner.join(2)
    if answer is None:
        raise click.ClickException(f'{node} did not answer within {timeout:g} s')
    if not answer.success:
        raise click.ClickException(answer.message)
    labels = conversions.image_to_labels(answer.mask)
    area = int(np.count_nonzero(labels))
    if dry_run:
        click.echo(f'{area} pixels, score {answer.scores[0]:.2f}')
    else:
        click.echo(f'object {answer.object_ids[0]}: {area} pixels, score {answer.scores[0]:.2f}')
    if save is not None:
        import cv2

        save.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(save.with_suffix('.png')), labels):
            raise click.ClickException(f'cannot write {save}')
