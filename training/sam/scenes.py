# SPDX-License-Identifier: Apache-2.0
"""Pictures with known objects, and the coarse masks a tracker would make of them."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.random import Generator

from drift_ros.refinement.mask_prompts import MaskPrompt, read_prompt
from training.sam.cutouts import Cutouts
from training.views import PhotoFolder, photometric, random_shape, smooth_field


@dataclass
class Picture:
    """
    One composed picture.

    image : (S, S, 3) uint8 RGB, zero outside `extent`
    extent : height and width of the part in use
    masks : (K, S, S) float32 in [0, 1], the visible part of every object
    """

    image: np.ndarray
    extent: tuple[int, int]
    masks: np.ndarray


def _background(photos: PhotoFolder, rng: Generator, size: int) -> np.ndarray:
    photo = photos.read(int(rng.integers(len(photos))))
    height, width = photo.shape[:2]
    side = int(min(height, width) * rng.uniform(0.6, 1.0))
    y, x = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    crop = photo[y : y + side, x : x + side]
    crop = cv2.resize(crop, (size, size), interpolation=cv2.INTER_CUBIC)
    return crop[:, ::-1] if rng.random() < 0.5 else crop


def _strokes(rng: Generator, size: int) -> np.ndarray:
    """Thin connected parts: a few bent strokes from a common centre."""
    mask = np.zeros((size, size), np.uint8)
    start = rng.uniform(0.35, 0.65, 2) * size
    for _ in range(int(rng.integers(2, 7))):
        bend = np.cumsum(rng.normal(0, 0.5, 6)) + rng.uniform(0, 2 * np.pi)
        steps = np.stack([np.cos(bend), np.sin(bend)], 1) * size * rng.uniform(0.05, 0.14)
        points = np.concatenate([start[None], start + np.cumsum(steps, 0)])
        cv2.polylines(
            mask,
            [np.round(points * 8).astype(np.int32)],
            False,
            255,
            int(rng.integers(4, 18)),
            cv2.LINE_AA,
            shift=3,
        )
    return mask.astype(np.float32) / 255


def _textured(photos: PhotoFolder, rng: Generator, size: int = 192) -> np.ndarray:
    """Return a random shape filled with a photograph, a gradient or stripes: (s, s, 4) uint8."""
    kind = rng.random()
    shape = _strokes(rng, size) if kind < 0.3 else random_shape(rng, size)
    if kind > 0.8:  # holes
        for _ in range(int(rng.integers(1, 4))):
            centre = (rng.uniform(0.25, 0.75, 2) * size).astype(int)
            axes = (rng.uniform(0.04, 0.16, 2) * size).astype(int)
            cv2.ellipse(
                shape,
                (int(centre[0]), int(centre[1])),
                (int(axes[0]), int(axes[1])),
                float(rng.uniform(0, 180)),
                0,
                360,
                0.0,
                -1,
                cv2.LINE_AA,
            )
    if kind < 0.6:  # joined parts of unlike shape
        np.maximum(shape, np.roll(_strokes(rng, size), int(rng.integers(-30, 30)), 1), out=shape)
    if rng.random() < 0.5:
        colour = _background(photos, rng, size).astype(np.float32)
    else:
        ends = rng.uniform(0, 255, (2, 3))
        ramp = np.linspace(0, 1, size)[:, None, None]
        if rng.random() < 0.4:
            ramp = 0.5 + 0.5 * np.sin(ramp * rng.uniform(10, 80))
        colour = np.broadcast_to(ends[0] + (ends[1] - ends[0]) * ramp, (size, size, 3))
        if rng.random() < 0.5:
            colour = colour.transpose(1, 0, 2)
        colour = colour + cv2.resize(
            rng.normal(0, rng.uniform(0, 25), (size // 4, size // 4, 3)).astype(np.float32),
            (size, size),
        )
    return np.dstack([np.clip(colour, 0, 255), 255 * shape]).astype(np.uint8)


def _place(
    item: np.ndarray, rng: Generator, size: int, extent: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Turn, scale and move an item: colour (S, S, 3) and opacity (S, S), float32."""
    height, width = item.shape[:2]
    longest = np.exp(rng.uniform(np.log(0.2), np.log(1.15))) * min(extent)
    scale = longest / max(height, width)
    angle = rng.normal(0, 0.35)
    aspect = np.exp(rng.normal(0, 0.12))
    c, s = np.cos(angle) * scale, np.sin(angle) * scale
    linear = np.array([[c * aspect, -s], [s * aspect, c]])
    if rng.random() < 0.5:
        linear[:, 0] *= -1
    centre = rng.uniform(0.12, 0.88, 2) * np.array([extent[1], extent[0]])
    matrix = np.column_stack([linear, centre - linear @ (np.array([width, height]) / 2)])
    if scale < 0.7:
        item = cv2.GaussianBlur(item, (0, 0), 0.45 / scale)
    # opaque colours spread outwards, so that the edge does not mix with black
    warped = cv2.warpAffine(
        item[..., :3],
        matrix,
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REPLICATE,
    ).astype(np.float32)
    alpha = cv2.warpAffine(item[..., 3], matrix, (size, size), flags=cv2.INTER_LINEAR)
    return warped, alpha.astype(np.float32) / 255


def harmonise(
    colour: np.ndarray, alpha: np.ndarray, canvas: np.ndarray, rng: Generator
) -> np.ndarray:
    """Move an item's colours some way towards those around it."""
    inside = alpha > 0.5
    around = cv2.dilate(inside.astype(np.uint8), np.ones((25, 25), np.uint8)) > 0
    around &= ~inside
    if not inside.any() or not around.any():
        return colour
    share = rng.beta(1.0, 1.6)
    mean, std = colour[inside].mean(0), colour[inside].std(0) + 5
    other, spread = canvas[around].mean(0), canvas[around].std(0) + 5
    gain = 1 + share * (np.clip(spread / std, 0.5, 2.0) - 1)
    return (colour - mean) * gain + mean + share * 0.8 * (other - mean)


def compose(cutouts: Cutouts, photos: PhotoFolder, rng: Generator, size: int) -> Picture:
    """Draw one random picture; the generator decides everything."""
    extent = [size, size]
    if rng.random() < 0.5:
        extent[int(rng.random() < 0.25)] = int(rng.integers(round(0.5 * size), size + 1))
    canvas = _background(photos, rng, size).astype(np.float32)
    masks: list[np.ndarray] = []
    for _ in range(int(rng.integers(1, 4))):
        item = (
            cutouts.read(int(rng.integers(len(cutouts))))
            if rng.random() < 0.7
            else _textured(photos, rng)
        )
        colour, alpha = _place(item, rng, size, (extent[0], extent[1]))
        if rng.random() < 0.7:
            colour = harmonise(colour, alpha, canvas, rng)
        colour = (colour - 127.5) * np.exp(rng.normal(0, 0.15)) + 127.5 + rng.normal(0, 15)
        if rng.random() < 0.4:  # the object's shadow, or a glow
            shadow = cv2.GaussianBlur(alpha, (0, 0), rng.uniform(3, 15))
            shift = np.array([[1, 0, rng.normal(0, 10)], [0, 1, rng.uniform(0, 18)]])
            shadow = cv2.warpAffine(shadow, shift, (size, size))
            canvas *= 1 - shadow[..., None] * rng.uniform(0.1, 0.6)
        canvas += (np.clip(colour, 0, 255) - canvas) * alpha[..., None]
        masks = [mask * (1 - alpha) for mask in masks] + [alpha]
    image = photometric(rng, np.clip(canvas, 0, 255).astype(np.uint8), 1.5)
    if rng.random() < 0.3:  # uneven light
        light = 1 + smooth_field(rng, size, 3, 0.2)[..., :1]
        image = np.clip(image * light, 0, 255).astype(np.uint8)
    image[extent[0] :] = 0
    image[:, extent[1] :] = 0
    kept = []
    for mask in masks:
        mask[extent[0] :] = 0
        mask[:, extent[1] :] = 0
        if (mask > 0.5).sum() > 0.004 * extent[0] * extent[1]:
            kept.append(mask)
    if not kept:
        return compose(cutouts, photos, rng, size)
    return Picture(image, (extent[0], extent[1]), np.stack(kept).astype(np.float32))


def degrade(mask: np.ndarray, others: np.ndarray, rng: Generator, side: int) -> np.ndarray:
    """
    Make the probability a tracker on a token grid would give of an object.

    Parameters
    ----------
    mask : (S, S) float32, the object
    others : (S, S) float32, the other objects
    side : side of the result

    Returns
    -------
    (side, side) float32 in [0, 1]

    """
    size = mask.shape[0]
    pitch = float(np.exp(rng.uniform(np.log(2.2), np.log(9.0))))  # pixels of a token
    soft = np.ascontiguousarray(mask)
    radius = np.sqrt(float(mask.sum()) / np.pi)
    strength = float(rng.uniform(0, 1)) ** 0.7
    ys, xs = np.nonzero(mask > 0.5)

    def blob(at: tuple[np.ndarray, ...], value: float, high: float) -> None:
        index = int(rng.integers(len(at[0])))
        axes = np.maximum(rng.uniform(0.1, high, 2) * radius, pitch)
        cv2.ellipse(
            soft,
            (int(at[1][index]), int(at[0][index])),
            (int(axes[0]), int(axes[1])),
            float(rng.uniform(0, 180)),
            0,
            360,
            value,
            -1,
        )

    grow = int(abs(rng.normal(0, 0.8 * strength)) * pitch)
    if grow:
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * grow + 1,) * 2)
        changed = (cv2.erode if rng.random() < 0.5 else cv2.dilate)(soft, kernel)
        if (changed > 0.5).sum() > 0.3 * len(ys):
            soft = changed
    band = np.nonzero(
        cv2.morphologyEx(
            (mask > 0.5).astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)
        )
    )
    for _ in range(int(rng.poisson(1.0 * strength))):
        blob((ys, xs), 0.0, 0.6)
    for _ in range(int(rng.poisson(1.0 * strength))):
        blob(band, float(rng.uniform(0.6, 1.0)), 0.6)
    if others.any() and rng.random() < 0.2 * strength:
        blob(np.nonzero(others > 0.5) if (others > 0.5).any() else band, 0.8, 0.6)
    if rng.random() < 0.7:
        grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1).astype(np.float32)
        grid += smooth_field(rng, size, int(rng.integers(4, 12)), 0.9 * strength * pitch)
        soft = cv2.remap(soft, grid, None, cv2.INTER_LINEAR)
    tokens = max(round(size / pitch), 8)
    coarse = cv2.resize(soft, (tokens, tokens), interpolation=cv2.INTER_AREA)
    coarse = cv2.GaussianBlur(coarse, (0, 0), rng.uniform(0.3, 0.3 + 1.2 * strength))
    noise = cv2.resize(
        rng.normal(0, 0.25 * strength, (9, 9)).astype(np.float32),
        (tokens, tokens),
        interpolation=cv2.INTER_CUBIC,
    )
    coarse = np.clip(coarse + noise * 4 * coarse * (1 - coarse), 0, 1)
    coarse **= np.exp(rng.normal(0, 0.35))
    return cv2.resize(coarse, (side, side), interpolation=cv2.INTER_LINEAR)


def tracker_prompt(
    mask: np.ndarray, others: np.ndarray, rng: Generator, side: int
) -> tuple[np.ndarray, MaskPrompt] | None:
    """Degrade a mask and read the prompt off it; pixels of the (side, side) map."""
    coarse = degrade(mask, others, rng, side)
    rivals = degrade(others, mask, rng, side) if (others > 0.5).any() else np.zeros_like(coarse)
    total = np.maximum(coarse + rivals, 1.0)
    coarse, rivals = coarse / total, rivals / total
    prompt = read_prompt(
        coarse,
        rivals,
        positives=int(rng.integers(0, 4)),
        negatives=int(rng.integers(0, 4)),
        margin=float(rng.uniform(0, 0.12)),
    )
    return None if prompt is None else (coarse, prompt)


def person_prompt(mask: np.ndarray, others: np.ndarray, rng: Generator, box: bool) -> MaskPrompt:
    """Draw a box a person would drag around a mask, or points they would click; its pixels."""
    inside = (mask > 0.5).astype(np.uint8)
    x, y, w, h = cv2.boundingRect(inside)
    corners = np.array([x, y, x + w - 1, y + h - 1], np.float32)
    corners += rng.normal(0, 0.05, 4) * np.array([w, h, w, h]) if rng.random() < 0.8 else 0
    positives = int(rng.choice(3, p=[0.75, 0.15, 0.1])) if box else int(rng.integers(1, 4))
    negatives = int(rng.integers(0, 3)) if positives and rng.random() < 0.4 else 0
    distance = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
    points: list[tuple[float, float]] = []
    central = np.argwhere(distance >= distance.max() * rng.uniform(0.05, 0.9))
    for _ in range(positives):
        py, px = central[int(rng.integers(len(central)))]
        points.append((float(px), float(py)))
    away = np.argwhere((cv2.dilate(inside, np.ones((31, 31), np.uint8)) > 0) & (inside == 0))
    if (others > 0.5).any() and rng.random() < 0.5:
        away = np.argwhere((others > 0.5) & (inside == 0))
    for _ in range(negatives if len(away) else 0):
        py, px = away[int(rng.integers(len(away)))]
        points.append((float(px), float(py)))
    labels = [1.0] * positives + [0.0] * (len(points) - positives)
    return MaskPrompt(
        corners.astype(np.float32),
        np.array(points, np.float32).reshape(-1, 2),
        np.array(labels, np.float32),
    )
