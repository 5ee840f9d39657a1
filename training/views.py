# SPDX-License-Identifier: Apache-2.0
"""
Views of one photograph with known geometry.

A scene is a background photograph and up to two foreground layers (shapes cut from other
photographs). Every view shows the same layers, each moved by its own smooth map, so occlusions
arise as they do between video frames. View 0 is the reference: its maps are affine, which makes
the true position of every visible point of another view computable in closed form.
"""

from __future__ import annotations

from collections.abc import Callable
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
    tilt: float = 0.12  # deviation of the angle at which photographs lie, radians
    rescale: float = 0.10  # deviation of the log of the zoom between views
    soft: float = 0.0  # edges of pasted layers are blurred by up to this deviation
    harmony: float = 0.0  # their colours move up to this share of the way to the background's
    alike: float = 0.0  # probability that a layer is cut from the background's own photograph
    cells: int = 6  # random Voronoi label cells per layer
    label_count: int = 16  # channels of the label maps


_Map = np.ndarray  # (h, w, 2) float32, where each point of a grid comes from, x and y


@dataclass
class _Layer:
    """
    A photograph in a scene.

    photo : (H, W, 3) uint8 RGB
    mask : (H, W) float32 in [0, 1], what is cut out; None for the background
    placement : (3, 3) map from points of view 0 to points of the photograph
    centre : (2,) its centre in view 0
    sites : (k, 2) sites of the label cells in the photograph
    """

    photo: np.ndarray
    mask: np.ndarray | None
    placement: np.ndarray
    centre: np.ndarray
    sites: np.ndarray


@dataclass
class Scene:
    """
    Arrays of one scene, V views, token grid (h, w), K label channels.

    images : (V, S, S, 3) uint8 RGB
    target : (V, h, w, 2) float32, x and y in pixels of view 0 of what each token's centre shows
    visible : (V, h, w) bool, that point is inside view 0 and not covered there
    labels : (V, h, w, K) float32, soft label map (sums to one)
    owner : (K, L) float32, one where a label belongs to a layer
    category : of the background's photograph
    layers : (V, S, S) uint8, the layer on top of each pixel
    """

    images: np.ndarray
    target: np.ndarray
    visible: np.ndarray
    labels: np.ndarray
    owner: np.ndarray
    category: int = 0
    layers: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8))


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


def _motion(
    rng: Generator, magnitude: float, size: int, centre: np.ndarray, rescale: float = 0.10
) -> np.ndarray:
    """Return a random 3x3 map, view to reference coordinates, about `centre`."""
    shift = rng.normal(0, 0.055 * size * magnitude, 2)
    angle, zoom = rng.normal(0, (0.10 * magnitude, rescale * magnitude))
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


def _token_map(to_source: Callable[[np.ndarray], np.ndarray], size: int, stride: int) -> _Map:
    """
    Evaluate a map of view points at token centres, one row and column beyond the view included.

    Between them it is linear, which `dense` makes use of.
    """
    at = (np.arange(-1, size // stride + 1, dtype=np.float32) + 0.5) * stride - 0.5
    return to_source(np.stack(np.meshgrid(at, at), -1))


def _dense(knots: _Map, stride: int) -> _Map:
    """Interpolate a map from token centres to all pixels, (size, size, 2) float32."""
    side = len(knots) * stride
    whole = cv2.resize(knots, (side, side), interpolation=cv2.INTER_LINEAR)
    return whole[stride:-stride, stride:-stride]


def _layer(
    photos: PhotoFolder, index: int, rng: Generator, config: ViewConfig, pasted: bool
) -> _Layer:
    """Draw a photograph, the shape that is cut from it, and where view 0 has it."""
    s = config.size
    photo = photos.read(index)
    height, width = photo.shape[:2]
    side = min(height, width)
    flip = bool(rng.random() < 0.5)
    mask = None
    if pasted:
        mask = np.zeros((height, width), np.float32)
        y0, x0 = (height - side) // 2, (width - side) // 2
        mask[y0 : y0 + side, x0 : x0 + side] = random_shape(rng, side)
        scale = float(np.exp(rng.uniform(np.log(0.2), np.log(0.75)))) * s / side
        source = np.array([width, height]) / 2
        centre = rng.uniform(0.15 * s, 0.85 * s, 2)
    else:
        scale = s / side * max(float(np.exp(rng.uniform(*np.log(config.zoom)))), 1.0)
        slack = np.maximum(np.array([width, height]) - s / scale, 0) / 2
        source = np.array([width, height]) / 2 + rng.uniform(-1, 1, 2) * slack
        centre = np.array([s / 2, s / 2])
    if scale < 0.7:  # avoid aliasing
        photo = cv2.GaussianBlur(photo, (0, 0), 0.45 / scale)
    if mask is not None:
        # as wide in the view as a lens makes edges
        mask = cv2.GaussianBlur(mask, (0, 0), max(rng.uniform(0, config.soft), 0.2) / scale)
    return _Layer(
        photo,
        mask,
        _similarity(rng.normal(0, config.tilt), scale, source, centre, flip=flip),
        centre,
        rng.uniform([0, 0], [width, height], (config.cells if mask is None else 2, 2)),
    )


def _harmonise(layer: _Layer, onto: np.ndarray, share: float) -> None:
    """Move a layer's colours towards the mean and spread of what it is pasted onto."""
    assert layer.mask is not None
    inside = (layer.mask > 0.5).astype(np.uint8)
    if inside.sum() < 16:
        return
    mean, spread = (x[:, 0] for x in cv2.meanStdDev(layer.photo, mask=inside))
    mean_around, spread_around = (x[:, 0] for x in cv2.meanStdDev(onto))
    gain = np.clip(1 + share * (spread_around / np.maximum(spread, 8) - 1), 0.4, 1.6)
    shift = mean * (1 - gain) + share * (mean_around - mean)
    table = np.clip(np.arange(256)[:, None] * gain + shift, 0, 255).astype(np.uint8)
    layer.photo = cv2.LUT(layer.photo, table[None])


def make_scene(photos: PhotoFolder, rng: Generator, config: ViewConfig) -> Scene:
    """
    Draw one random scene.

    The generator decides everything: the same state gives the same scene.
    """
    s, v, stride = config.size, config.views, config.stride
    n = s // stride
    index = int(rng.integers(len(photos)))
    count = int(rng.choice(len(config.objects), p=config.objects))
    layers = []
    for k in range(count + 1):
        alike = k > 0 and rng.random() < config.alike
        number = index if k == 0 or alike else int(rng.integers(len(photos)))
        layers.append(_layer(photos, number, rng, config, pasted=k > 0))
        if k > 0:
            _harmonise(layers[k], layers[0].photo, rng.uniform(0, config.harmony))
    offsets = np.concatenate([[0], np.cumsum([len(layer.sites) for layer in layers])])
    assert offsets[-1] <= config.label_count, 'more label cells than channels'

    images = np.zeros((v, s, s, 3), np.uint8)
    target = np.zeros((v, n, n, 2), np.float32)
    visible = np.zeros((v, n, n), bool)
    labels = np.zeros((v, n, n, config.label_count), np.float32)
    tops = np.zeros((v, s, s), np.uint8)
    magnitude = config.motion * float(np.exp(rng.normal(-0.35, 0.6)))
    rigid = rng.random() < 0.2
    # labels are averaged over these places of a token
    fine = slice(stride // 4, None, stride // 2)
    for view in range(v):
        canvas = np.zeros((s, s, 3), np.uint8)
        where = np.zeros((n, n, 2), np.float32)
        label = np.zeros((2 * n, 2 * n), np.int64)
        for k, layer in enumerate(layers):
            motion = np.eye(3)
            if view > 0:
                motion = _motion(
                    rng,
                    magnitude * (1.0 if k == 0 else 1.5),
                    s,
                    layer.centre,
                    config.rescale if k == 0 else 0.5 * config.rescale,
                )
            bend = None
            if view > 0 and not rigid:
                knots = int(rng.integers(3, 7))
                bend = smooth_field(rng, n + 2, knots, (1.2 if k == 0 else 2.5) * magnitude)

            def to_reference(
                points: np.ndarray, motion: np.ndarray = motion, bend: np.ndarray | None = bend
            ) -> np.ndarray:
                moved = _apply(motion, points)
                return moved if bend is None else moved + bend

            points = _token_map(to_reference, s, stride)
            grid = _dense(_apply(layer.placement, points), stride)
            colour = cv2.remap(
                layer.photo, grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
            )
            cells = _nearest(grid[fine, fine], layer.sites) + offsets[k]
            if layer.mask is None:
                canvas, where, label = colour, points[1:-1, 1:-1], cells
                continue
            alpha = cv2.remap(
                layer.mask, grid, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT
            )
            canvas = cv2.blendLinear(colour, canvas, alpha, 1 - alpha)
            over = alpha > 0.5
            tops[view][over] = k
            here = over[stride // 2 :: stride, stride // 2 :: stride]
            where = np.where(here[..., None], points[1:-1, 1:-1], where)
            label = np.where(over[fine, fine], cells, label)
        images[view] = photometric(rng, canvas, config.photometric)
        target[view] = where
        top_token = tops[view][stride // 2 :: stride, stride // 2 :: stride]
        at = np.round(where).astype(int)
        inside = ((at >= 0) & (at < s)).all(-1)
        at = np.clip(at, 0, s - 1)
        visible[view] = inside & (tops[0][at[..., 1], at[..., 0]] == top_token)
        onehot = np.eye(config.label_count, dtype=np.float32)[label]
        labels[view] = onehot.reshape(n, 2, n, 2, -1).mean((1, 3))
    owner = np.zeros((config.label_count, len(config.objects)), np.float32)
    for k in range(count + 1):
        owner[offsets[k] : offsets[k + 1], k] = 1
    return Scene(images, target, visible, labels, owner, photos.labels[index], tops)


def _nearest(points: np.ndarray, sites: np.ndarray) -> np.ndarray:
    """Return the index of the nearest of the sites (k, 2) to each of the points (..., 2)."""
    x, y = points[..., 0, None], points[..., 1, None]
    return ((x - sites[:, 0]) ** 2 + (y - sites[:, 1]) ** 2).argmin(-1)


def collate(scenes: list[Scene]) -> dict[str, Tensor]:
    """
    Stack scenes into tensors.

    Returns
    -------
    dict with images (B, V, 3, S, S) float32 in [-1, 1], target (B, V, N, 2) float32 pixels,
    visible (B, V, N) bool, labels (B, V, N, K) float32, owner (B, K, L) float32,
        category (B,) int64

    """
    images = torch.from_numpy(np.stack([s.images for s in scenes])).permute(0, 1, 4, 2, 3)
    return {
        'images': images.float().div(127.5).sub(1),
        'target': torch.from_numpy(np.stack([s.target for s in scenes])).flatten(2, 3),
        'visible': torch.from_numpy(np.stack([s.visible for s in scenes])).flatten(2, 3),
        'labels': torch.from_numpy(np.stack([s.labels for s in scenes])).flatten(2, 3),
        'owner': torch.from_numpy(np.stack([s.owner for s in scenes])),
        'category': torch.tensor([s.category for s in scenes]),
    }
