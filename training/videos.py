# SPDX-License-Identifier: Apache-2.0
"""
Synthetic videos with exact masks, in DAVIS layout, made from photographs.

``python -m training.videos`` composes what real videos are hard in: an object that moves, turns,
changes its size and shape and is blurred by its motion, a camera that moves over a photograph,
objects that look alike, and objects that pass in front. Options of the tracker are chosen on
them, so that no true mask of a real video beyond the first is needed for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click
import cv2
import numpy as np
from numpy.random import Generator
from rich.console import Console
from scipy.interpolate import CubicSpline

from training.__main__ import show_progress
from training.sam.cutouts import Cutouts, fill_cache
from training.sam.scenes import harmonise
from training.views import IMAGE_SUFFIXES, photometric

# Moments of the open shutter whose mean a frame is.
_MOMENTS = 3
_SHUTTER = 0.5
# Pixels of an object that show in the first frame at least.
_LEAST = 200


@dataclass
class _Layer:
    """
    A cut-out and its motion.

    colour (h, w, 3) float32, alpha (h, w) float32 in [0, 1]; motion(t) gives x, y (pixels of the
    world), log scale and angle; shape(t) gives displacements (4, 4, 2) in pixels of the cut-out.
    """

    colour: np.ndarray
    alpha: np.ndarray
    motion: CubicSpline
    shape: CubicSpline


def _path(
    rng: Generator, frames: int, start: np.ndarray, spread: np.ndarray, every: int = 12
) -> CubicSpline:
    """Smooth random path from `start`; `spread` is the deviation of a change in `every` frames."""
    knots = np.arange(0, frames + 2 * every, every)
    steps = rng.normal(0, 1, (len(knots), *start.shape)) * spread
    steps[0] = 0
    return CubicSpline(knots, start + np.cumsum(steps, axis=0))


def _layer(
    item: np.ndarray,
    rng: Generator,
    frames: int,
    size: tuple[int, int],
    centre: np.ndarray,
    pace: float,
) -> _Layer:
    height, width = size
    share = float(np.exp(rng.uniform(np.log(0.18), np.log(0.75))))
    scale = share * height / max(item.shape[:2])
    spread = np.array([0.16 * height, 0.07 * height, 0.10, 0.12]) * pace
    if rng.random() < 0.5:
        item = item[:, ::-1]
    alpha = item[..., 3].astype(np.float32) / 255
    side = max(item.shape[:2])
    bend = _path(
        rng,
        frames,
        rng.normal(0, 0.02 * side, (4, 4, 2)),
        np.full((4, 4, 2), 0.02 * side * pace),
        every=8,
    )
    motion = _path(rng, frames, np.array([*centre, np.log(scale), rng.normal(0, 0.2)]), spread)
    return _Layer(item[..., :3].astype(np.float32), alpha, motion, bend)


def _render(
    layer: _Layer, t: float, camera: np.ndarray, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Show a layer at a time: colour (H, W, 3) and opacity (H, W), float32."""
    x, y, log_scale, angle = layer.motion(t)
    height, width = layer.alpha.shape
    c, s = np.cos(angle) * np.exp(log_scale), np.sin(angle) * np.exp(log_scale)
    place = np.array([[c, -s, x], [s, c, y], [0, 0, 1]])
    centre = np.array([[1, 0, -width / 2], [0, 1, -height / 2], [0, 0, 1]])
    back = np.linalg.inv(camera @ place @ centre)
    ys, xs = np.mgrid[: size[0], : size[1]].astype(np.float32)
    grid = np.stack(
        [
            back[0, 0] * xs + back[0, 1] * ys + back[0, 2],
            back[1, 0] * xs + back[1, 1] * ys + back[1, 2],
        ],
        -1,
    ).astype(np.float32)
    bend = cv2.resize(layer.shape(t).astype(np.float32), (64, 64), interpolation=cv2.INTER_CUBIC)
    grid += cv2.remap(
        bend,
        grid[..., 0] * (63 / width),
        grid[..., 1] * (63 / height),
        cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    )
    colour = cv2.remap(layer.colour, grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return colour, cv2.remap(
        layer.alpha, grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
    )


def make_video(
    cutouts: Cutouts, background: np.ndarray, rng: Generator, frames: int, size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """
    Compose one video; the generator decides everything.

    Parameters
    ----------
    cutouts : objects
    background : (h, w, 3) uint8 photograph
    rng : generator
    frames : number of frames
    size : height and width in pixels

    Returns
    -------
    (images, masks) : (frames, H, W, 3) uint8 RGB and (frames, H, W) uint8 labels; one or two
        objects, ids from 1

    """
    height, width = size
    pace = float(np.exp(rng.normal(-0.2, 0.5)))
    zoom = max(height / background.shape[0], width / background.shape[1]) * 1.25
    middle = np.array([width / 2, height / 2])
    camera_path = _path(
        rng, frames, np.zeros(4), np.array([0.05 * height, 0.03 * height, 0.03, 0.02]) * pace
    )
    count = 1 + int(rng.random() < 0.35)
    items = [cutouts.read(int(rng.integers(len(cutouts)))) for _ in range(count)]
    others = [
        cutouts.read(int(rng.integers(len(cutouts)))) for _ in range(int(rng.integers(0, 3)))
    ]
    if rng.random() < 0.35:
        others.append(items[0])  # one that looks alike
    tracked = [
        _layer(
            item, rng, frames, size, middle + rng.uniform(-0.25, 0.25, 2) * (width, height), pace
        )
        for item in items
    ]
    around = [
        _layer(item, rng, frames, size, rng.uniform(0, 1, 2) * (width, height), pace)
        for item in others
    ]
    # from behind to the front; now and then something passes before the object
    layers = [(layer, 0) for layer in around] + [(la, k) for k, la in enumerate(tracked, 1)]
    if around and rng.random() < 0.5:
        layers.append(layers.pop(0))
    first = cv2.resize(background, (width, height), interpolation=cv2.INTER_AREA)
    for layer, _ in layers:
        colour, alpha = _render(layer, 0.0, np.eye(3), size)
        if (alpha > 0.5).any() and rng.random() < 0.7:
            changed = harmonise(colour, alpha, first.astype(np.float32), rng)
            inside = alpha > 0.5
            gain = changed[inside].std(0) / (colour[inside].std(0) + 1e-3)
            layer.colour = np.clip(
                (layer.colour - colour[inside].mean(0)) * gain + changed[inside].mean(0), 0, 255
            ).astype(np.float32)
    images = np.zeros((frames, height, width, 3), np.uint8)
    masks = np.zeros((frames, height, width), np.uint8)
    light = _path(rng, frames, np.array([1.0, 0.0]), np.array([0.03, 2.0]))
    for t in range(frames):
        total = np.zeros((height, width, 3), np.float32)
        for moment in np.linspace(-_SHUTTER / 2, _SHUTTER / 2, _MOMENTS):
            x, y, log_zoom, angle = camera_path(t + moment)
            c, s = np.cos(angle) * np.exp(log_zoom), np.sin(angle) * np.exp(log_zoom)
            camera = np.array([[c, -s, x], [s, c, y], [0, 0, 1]])
            camera[:2, 2] += middle - camera[:2, :2] @ middle
            onto = np.diag([zoom, zoom, 1.0])
            onto[:2, 2] = middle - zoom * np.array(background.shape[1::-1]) / 2
            canvas = cv2.warpAffine(
                background,
                (camera @ onto)[:2],
                (width, height),
                flags=cv2.INTER_AREA,
                borderMode=cv2.BORDER_REFLECT_101,
            ).astype(np.float32)
            for layer, label in layers:
                colour, alpha = _render(layer, t + moment, camera, size)
                canvas += (colour - canvas) * alpha[..., None]
                if moment == 0.0:
                    masks[t][alpha > 0.5] = label
            total += canvas
        gain, offset = light(t)
        image = np.clip(gain * total / _MOMENTS + offset, 0, 255).astype(np.uint8)
        images[t] = photometric(rng, image, 0.25)
    return images, masks


@click.command()
@click.option(
    '--photos',
    'folders',
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    multiple=True,
    required=True,
    help='Folder with <category>/*.jpg, for objects.',
)
@click.option(
    '--backgrounds',
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    required=True,
    help='Folder with large photographs, searched at any depth.',
)
@click.option(
    '--out',
    type=click.Path(path_type=Path),
    required=True,
    help='DAVIS-layout folder to write; cut-outs are kept in OUT/cutouts.',
)
@click.option('--count', default=12, show_default=True, type=click.IntRange(1), help='Videos.')
@click.option('--frames', default=40, show_default=True, type=click.IntRange(3))
@click.option('--height', default=480, show_default=True, type=click.IntRange(64))
@click.option('--width', default=854, show_default=True, type=click.IntRange(64))
@click.option(
    '--cutouts',
    default=400,
    show_default=True,
    type=click.IntRange(1),
    help='Objects to choose from.',
)
@click.option('--seed', default=0, show_default=True)
def main(
    folders: tuple[Path, ...],
    backgrounds: Path,
    out: Path,
    count: int,
    frames: int,
    height: int,
    width: int,
    cutouts: int,
    seed: int,
) -> None:
    """Make videos with exact masks from photographs, in DAVIS layout."""
    files = sorted(
        path for path in backgrounds.rglob('*') if path.suffix.lower() in IMAGE_SUFFIXES
    )
    if not files:
        raise click.ClickException(f'no photographs below {backgrounds}')
    paths = sorted(
        path
        for folder in folders
        for path in folder.glob('*/*')
        if path.suffix.lower() in IMAGE_SUFFIXES
    )
    paths = [paths[i] for i in np.random.default_rng(0).permutation(len(paths))]
    with show_progress(Console()) as progress:
        task = progress.add_task('cut-outs', total=cutouts, note='')
        for made in fill_cache(paths, out / 'cutouts', cutouts):
            progress.update(task, completed=made)
        objects = Cutouts(out / 'cutouts')
        task = progress.add_task('videos', total=count, note='')
        for index in range(count):
            name = f'synthetic-{seed}-{index:03d}'
            rng = np.random.default_rng([seed, index])
            path = files[int(rng.integers(len(files)))]
            photo = cv2.imread(str(path))
            if photo is None:
                raise click.ClickException(f'cannot decode {path}; remove or repair the file')
            photo = cv2.cvtColor(photo, cv2.COLOR_BGR2RGB)
            while True:
                images, masks = make_video(objects, photo, rng, frames, (height, width))
                last = max(int(masks.max()), 1)
                if all((masks[0] == label).sum() > _LEAST for label in range(1, last + 1)):
                    break
            for kind in ('JPEGImages', 'Annotations'):
                (out / kind / name).mkdir(parents=True, exist_ok=True)
            for t, (image, mask) in enumerate(zip(images, masks, strict=True)):
                cv2.imwrite(
                    str(out / 'JPEGImages' / name / f'{t:05d}.jpg'),
                    image[..., ::-1],
                    [cv2.IMWRITE_JPEG_QUALITY, 95],
                )
                cv2.imwrite(str(out / 'Annotations' / name / f'{t:05d}.png'), mask)
            progress.advance(task)


if __name__ == '__main__':
    main()
