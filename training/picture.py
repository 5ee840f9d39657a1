# SPDX-License-Identifier: Apache-2.0
"""
Draw what the model's attention matches: `python -m training.picture VIDEO --out PNG`.

Like figure 2 of DRIFT (arXiv 2511.19936): a query point in one frame; in another frame the cosine
similarity of hidden features, the attention, and single heads.
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import torch
from torch import Tensor

from drift_ros.diffusion.attention import self_attention_layers
from drift_ros.diffusion.checkpoint import load_checkpoint
from drift_ros.diffusion.features import DiffusionFeatures
from drift_ros.engine.frame_features import LayerFeatures
from drift_ros.media.video import VideoReader

from .dev import hidden_features, model_config


def query_row(
    now: LayerFeatures, reference: LayerFeatures, point: tuple[float, float], softmax: bool
) -> Tensor:
    """
    Return each head's map of one query over the reference: (heads, h, w) float.

    `point` is (x, y) in [0, 1]; without `softmax` the plain logits are given.
    """
    heads, h, w, d = now.query.shape
    y, x = int(point[1] * h), int(point[0] * w)
    logits = torch.einsum('kd,khwd->khw', now.query[:, y, x], reference.key) * d**-0.5
    return logits.flatten(1).softmax(-1).view(heads, h, w) if softmax else logits


@click.command()
@click.argument('video', type=click.Path(path_type=Path, exists=True))
@click.option('--out', type=click.Path(path_type=Path), required=True)
@click.option(
    '--model',
    type=click.Path(path_type=Path, exists=True),
    help='Exported folder [default: the embedded model].',
)
@click.option(
    '--frames',
    nargs=2,
    type=int,
    default=(0, 30),
    show_default=True,
    help='Frame of the query, frame it is looked up in.',
)
@click.option(
    '--point',
    nargs=2,
    type=float,
    multiple=True,
    default=((0.5, 0.5),),
    show_default=True,
    help='Query point x y in [0, 1]; may be repeated.',
)
def main(
    video: Path,
    out: Path,
    model: Path | None,
    frames: tuple[int, int],
    point: tuple[tuple[float, float], ...],
) -> None:
    """Draw the matches of query points of one frame in another frame of a video."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    wanted: dict[int, np.ndarray] = {}
    for index, frame in enumerate(VideoReader(video)):
        if index in frames:
            wanted[index] = frame
        if len(wanted) == len(set(frames)):
            break
    if len(wanted) < len(set(frames)):
        raise click.ClickException(f'{video} ends before frame {max(frames)}')
    images = [wanted[i] for i in frames]
    checkpoint = load_checkpoint(model)
    config = model_config(model)
    last = DiffusionFeatures(
        checkpoint,
        layers=config.features.layers,
        timestep=config.features.timestep,
        resolution=config.features.resolution,
    )
    captured = last.layers[0]
    many = max(
        (name for name in self_attention_layers(checkpoint.unet) if name != captured),
        key=lambda name: checkpoint.unet.get_submodule(name).heads,
    )
    coarse = DiffusionFeatures(
        checkpoint,
        layers=(many,),
        timestep=config.features.timestep,
        resolution=config.features.resolution,
    )
    hidden = hidden_features(model, config, 1.0)
    pairs = [
        (e.extract(images[0]).layers[0], e.extract(images[1]).layers[0])
        for e in (hidden, last, coarse)
    ]
    columns = 4 + pairs[2][0].query.shape[0]
    figure, axes = plt.subplots(
        len(point), columns, squeeze=False, figsize=(2.6 * columns, 2.2 * len(point))
    )
    for row, p in zip(axes, point):
        height, width = images[0].shape[:2]
        row[0].imshow(images[0])
        row[0].plot(p[0] * width, p[1] * height, 'o', mfc='none', mec='red', mew=2, ms=9)
        row[0].set_title(f'query, frame {frames[0]}', fontsize=8)
        row[1].imshow(images[1])
        row[1].set_title(f'frame {frames[1]}', fontsize=8)
        maps = [
            ('cosine of hidden features', query_row(*pairs[0], p, False)[0]),
            (
                f'attention, {captured.split(".attentions")[0]}',
                query_row(*pairs[1], p, True).mean(0),
            ),
        ]
        maps += [
            (f'{many.split(".attentions")[0]}, head {i + 1}', m)
            for i, m in enumerate(query_row(*pairs[2], p, True))
        ]
        for axis, (title, values) in zip(row[2:], maps):
            axis.imshow(values.numpy(), cmap='inferno', interpolation='nearest')
            axis.set_title(title, fontsize=8)
        best = maps[1][1]
        y, x = divmod(int(best.argmax()), best.shape[1])
        row[1].plot(
            (x + 0.5) / best.shape[1] * width,
            (y + 0.5) / best.shape[0] * height,
            'x',
            color='red',
            mew=2,
            ms=9,
        )
        for axis in row:
            axis.set_axis_off()
    figure.tight_layout()
    figure.savefig(out, dpi=100)
    click.echo(f'wrote {out}')


if __name__ == '__main__':
    main()
