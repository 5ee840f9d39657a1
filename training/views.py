# SPDX-License-Identifier: Apache-2.0
"""
Views of one photograph with known geometry.

A scene is a background photograph and up to two foreground layers (shapes cut from other
photographs). Every view shows the same layers, each moved by its own smooth map, so occlusions
arise as they do between video frames. View 0 is the reference: its maps are affine, which makes
the true position of every visible point of another view computable in closed form.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
import torch
from torch import Tensor

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png')


@dataclass(frozen=True)
class ViewConfig:
    """Ranges of the scene generator (pixels of the crop unless stated)."""

    size: int = 160  # side of a view in pixels, divisible by 16
    views: int = 3  # views per scene, the first one is the reference
    stride: int = 4  # pixels per token
    zoom: tuple[float, float] = (0.7, 1.25)  # crop side / photo pixels: larger shows less
    motion: float = 1.0  # multiplies every motion range
    objects: tuple[float, ...] = (0.2, 0.5, 0.3)  # probabilities of 0, 1, 2 ... foreground layers
    photometric: float = 1.0  # multiplies every photometric range
    cells: int = 6  # random Voronoi label cells per layer
    label_count: int = 16  # channels of the label maps


@dataclass
class Scene:
    """
    Arrays of one scene, V views, token grid (h, w), K label channels.

    images : (V, S, S, 3) uint8 RGB
    target : (V, h, w, 2) float32, x and y in pixels of view 0 of what each token's centre shows
    visible : (V, h, w) bool, that point is inside view 0 and not covered there
    labels : (V, h, w, K) float32, soft label map (sums to one)
    """

    images: np.ndarray
    target: np.ndarray
    visible: np.ndarray
    labels: np.ndarray
    category: int = 0
    layers: np.ndarray = field(default_factory=lambda: np.zeros(0))


class PhotoFolder:
    """
    Photographs in `<root>/<category>/*.jpg`, decoded on demand.

    Parameters
    ----------
    roots : folders that contain category folders
    every : keep each `every`-th photograph (for small runs)

    Raises
    ------
    FileNotFoundError
        if no photograph was found, naming the folders looked at

    """

    def __init__(self, roots: list[Path], every: int = 1) -> None:
        found: list[tuple[Path, str]] = []
        for root in roots:
            for path in sorted(root.glob('*/*')):
                if path.suffix.lower() in IMAGE_SUFFIXES:
                    found.append((path, category_name(path.parent.name)))
        if not found:
            raise FileNotFoundError(
                f'no photographs found as <root>/<category>/*.jpg under '
                f'{[str(r) for r in roots]}; give --photos a folder laid out like that'
            )
        self.paths = [p for p, _ in found][::every]
        self.categories = sorted({c for _, c in found})
        index = {c: i for i, c in enumerate(self.categories)}
        self.labels = [index[c] for _, c in found][::every]

    def __len__(self) -> int:
        return len(self.paths)

    def read(self, index: int) -> np.ndarray:
        """Return photograph `index` as (H, W, 3) uint8 RGB."""
        image = cv2.imread(str(self.paths[index]), cv2.IMREAD_COLOR)
        if image is None:
            raise ValueError(f'cannot decode {self.paths[index]}; remove or repair the file')
        return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def category_name(folder: str) -> str:
    """Return the words of a category folder's name ('Faces_easy' -> 'faces easy')."""
    words = folder.lower().replace('_', ' ').replace('-', ' ')
    return 'background' if words == 'background google' else words


def smooth_field(rng: Generator, size: int, knots: int, amplitude: float) -> np.ndarray:
    """Return a smooth random displacement, (size, size, 2) float32, std `amplitude` at knots."""
    coarse = rng.normal(0.0, amplitude, (knots, knots, 2)).astype(np.float32)
    return cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC)


def random_shape(rng: Generator, size: int) -> np.ndarray:
    """Return a random smooth blob, (size, size) float32 in [0, 1], roughly half the area."""
    angle = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    radius = np.ones_like(angle)
    for k in range(2, 9):
        radius += rng.normal(0, 0.55 / k) * np.cos(k * angle + rng.uniform(0, 2 * np.pi))
    radius = np.clip(radius, 0.15, None)
    aspect = np.exp(rng.normal(0, 0.35))
    x = radius * np.cos(angle) * aspect
    y = radius * np.sin(angle) / aspect
    scale = 0.48 * size / max(np.abs(x).max(), np.abs(y).max())
    points = np.stack([x * scale + size / 2, y * scale + size / 2], 1)
    mask = np.zeros((size, size), np.uint8)
    cv2.fillPoly(mask, [np.round(points * 8).astype(np.int32)], 255, cv2.LINE_AA, shift=3)
    return mask.astype(np.float32) / 255


def _similarity(
    angle: float,
    scale: float,
    source: np.ndarray,
    destination: np.ndarray,
    shear: float = 0.0,
    flip: bool = False,
) -> np.ndarray:
    """Return the 3x3 map that takes `destination` (view) to `source` (layer) points."""
    c, s = np.cos(angle), np.sin(angle)
    linear = np.array([[c, -s + shear], [s, c]]) / scale
    if flip:
        linear = linear @ np.diag([-1.0, 1.0])
    m = np.eye(3)
    m[:2, :2] = linear
    m[:2, 2] = source - linear @ destination
    return m


def _motion(rng: Generator, magnitude: float, size: int, centre: np.ndarray) -> np.ndarray:
    """Return a random 3x3 map, view to reference coordinates, about `centre`."""
    shift = rng.normal(0, 0.055 * size * magnitude, 2)
    angle, zoom = rng.normal(0, 0.10 * magnitude, 2)
    m = _similarity(
        angle, float(np.exp(zoom)), centre + shift, centre, rng.normal(0, 0.05 * magnitude)
    )
    perspective = np.eye(3)
    perspective[2, :2] = rng.normal(0, 0.0003 * magnitude, 2)
    to, back = np.eye(3), np.eye(3)
    to[:2, 2], back[:2, 2] = -centre, centre
    return m @ back @ perspective @ to


def _apply(m: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Apply a 3x3 map to (..., 2) points."""
    p = points @ m[:2, :2].T + m[:2, 2]
    w = points @ m[2, :2] + m[2, 2]
    return (p / w[..., None]).astype(np.float32)


def photometric(rng: Generator, image: np.ndarray, strength: float) -> np.ndarray:
    """Return the image with weak random exposure, blur, noise and compression, uint8."""
    if rng.random() < 0.15:
        strength *= 3.0
    x = image.astype(np.float32)
    gain = 1 + rng.normal(0, 0.04 * strength) + rng.normal(0, 0.015 * strength, 3)
    x = (x - 127.5) * gain.astype(np.float32) + 127.5 + rng.normal(0, 5.0 * strength)
    if rng.random() < 0.3:
        x = cv2.GaussianBlur(x, (0, 0), rng.uniform(0.3, 1.1))
    elif rng.random() < 0.15:
        n = int(rng.integers(3, 8))
        kernel = np.zeros((n, n), np.float32)
        a = rng.uniform(0, np.pi)
        d = np.array([np.cos(a), np.sin(a)]) * (n - 1) / 2
        c = (n - 1) / 2
        cv2.line(
            kernel,
            tuple(np.round(c - d).astype(int).tolist()),
            tuple(np.round(c + d).astype(int).tolist()),
            1.0,
        )
        x = cv2.filter2D(x, -1, kernel / kernel.sum())
    if rng.random() < 0.5:
        x = x + rng.normal(0, rng.uniform(0.5, 4.0), x.shape).astype(np.float32)
    out = np.clip(x, 0, 255).astype(np.uint8)
    if rng.random() < 0.4:
        _, data = cv2.imencode('.jpg', out, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(50, 96))])
        out = cv2.imdecode(data, cv2.IMREAD_COLOR)
    return out


def make_scene(photos: PhotoFolder, rng: Generator, config: ViewConfig) -> Scene:
    """
    Draw one random scene.

    The generator decides everything: the same state gives the same scene.
    """
    s, v, n = config.size, config.views, config.size // config.stride
    index = int(rng.integers(len(photos)))
    count = int(rng.choice(len(config.objects), p=config.objects))
    ys, xs = np.mgrid[0:s, 0:s].astype(np.float32)
    pixels = np.stack([xs, ys], -1)
    sources, maps = [], []
    masks: list[np.ndarray | None] = []
    centres = []
    for layer in range(count + 1):
        photo = photos.read(index if layer == 0 else int(rng.integers(len(photos))))
        height, width = photo.shape[:2]
        flip = rng.random() < 0.5
        if layer == 0:
            scale = s / min(height, width) * float(np.exp(rng.uniform(*np.log(config.zoom))))
            scale = max(scale, s / min(height, width))
            slack = np.maximum(np.array([width, height]) - s / scale, 0) / 2
            source = np.array([width, height]) / 2 + rng.uniform(-1, 1, 2) * slack
            centre = np.array([s / 2, s / 2])
            masks.append(None)
        else:
            side = min(height, width)
            mask = np.zeros((height, width), np.float32)
            y0, x0 = (height - side) // 2, (width - side) // 2
            mask[y0 : y0 + side, x0 : x0 + side] = random_shape(rng, side)
            scale = float(np.exp(rng.uniform(np.log(0.2), np.log(0.75)))) * s / side
            source = np.array([width, height]) / 2
            centre = rng.uniform(0.15 * s, 0.85 * s, 2)
            masks.append(mask)
        if scale < 0.7:  # avoid aliasing
            photo = cv2.GaussianBlur(photo, (0, 0), 0.45 / scale)
        sources.append(photo)
        centres.append(centre)
        maps.append(_similarity(rng.normal(0, 0.12), scale, source, centre, flip=flip))
    # label cells: random sites on each layer
    per_layer = [config.cells] + [2] * count
    sites = [
        rng.uniform([0, 0], [p.shape[1], p.shape[0]], (c, 2)).astype(np.float32)
        for p, c in zip(sources, per_layer)
    ]
    offsets = np.concatenate([[0], np.cumsum(per_layer)])

    images = np.zeros((v, s, s, 3), np.uint8)
    target = np.zeros((v, n, n, 2), np.float32)
    visible = np.zeros((v, n, n), bool)
    labels = np.zeros((v, n, n, config.label_count), np.float32)
    token = pixels[config.stride // 2 :: config.stride, config.stride // 2 :: config.stride] - 0.5
    pick = slice(config.stride // 2, None, config.stride)
    layer0: np.ndarray | None = None
    tops = np.zeros((v, s, s), np.int64)
    magnitude = config.motion * float(np.exp(rng.normal(-0.35, 0.6)))
    smooth = rng.random() < 0.2
    for view in range(v):
        canvas = np.zeros((s, s, 3), np.float32)
        top = np.zeros((s, s), np.int64)
        grids = []
        for layer in range(count + 1):
            if view == 0:
                to_reference = np.eye(3)
            else:
                to_reference = _motion(
                    rng, magnitude * (1.0 if layer == 0 else 1.5), s, centres[layer]
                )
            points = _apply(to_reference, pixels)
            if view > 0 and not smooth:
                points = points + smooth_field(
                    rng, s, int(rng.integers(3, 7)), (1.2 if layer == 0 else 2.5) * magnitude
                )
            grid = _apply(maps[layer], points)
            grids.append((points, grid))
            colour = cv2.remap(
                sources[layer], grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
            ).astype(np.float32)
            if layer == 0:
                canvas = colour
            else:
                alpha = cv2.remap(
                    masks[layer], grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
                )
                canvas += (colour - canvas) * alpha[..., None]
                top[alpha > 0.5] = layer
        images[view] = photometric(
            rng, np.clip(canvas, 0, 255).astype(np.uint8), config.photometric
        )
        tops[view] = top
        # token centres lie between pixels: average the two neighbours' positions
        points = np.choose(top[..., None], [p for p, _ in grids])
        centre_points = 0.25 * (
            points[1::4, 1::4] + points[2::4, 1::4] + points[1::4, 2::4] + points[2::4, 2::4]
        )
        target[view] = centre_points if config.stride == 4 else points[pick, pick]
        top_token = top[pick, pick]
        if view == 0:
            layer0 = top
            target[0] = token
        assert layer0 is not None
        at = np.round(target[view]).astype(int)
        inside = ((at >= 0) & (at < s)).all(-1)
        at = np.clip(at, 0, s - 1)
        visible[view] = inside & (layer0[at[..., 1], at[..., 0]] == top_token)
        canonical = np.choose(top[..., None], [g for _, g in grids])
        label = np.zeros((s, s), np.int64)
        for layer in range(count + 1):
            where = top == layer
            if where.any():
                distance = ((canonical[where][:, None] - sites[layer][None]) ** 2).sum(-1)
                label[where] = offsets[layer] + distance.argmin(1)
        onehot = np.eye(config.label_count, dtype=np.float32)[label]
        labels[view] = onehot.reshape(n, config.stride, n, config.stride, -1).mean((1, 3))
    return Scene(images, target, visible, labels, photos.labels[index], tops)


def collate(scenes: list[Scene]) -> dict[str, Tensor]:
    """
    Stack scenes into tensors.

    Returns
    -------
    dict with images (B, V, 3, S, S) float32 in [-1, 1], target (B, V, N, 2) float32 pixels,
    visible (B, V, N) bool, labels (B, V, N, K) float32, category (B,) int64

    """
    images = torch.from_numpy(np.stack([s.images for s in scenes])).permute(0, 1, 4, 2, 3)
    return {
        'images': images.float().div(127.5).sub(1),
        'target': torch.from_numpy(np.stack([s.target for s in scenes])).flatten(2, 3),
        'visible': torch.from_numpy(np.stack([s.visible for s in scenes])).flatten(2, 3),
        'labels': torch.from_numpy(np.stack([s.labels for s in scenes])).flatten(2, 3),
        'category': torch.tensor([s.category for s in scenes]),
    }
