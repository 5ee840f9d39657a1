# SPDX-License-Identifier: Apache-2.0
"""Scenes of known geometry, ray by ray, and how well objects are located in them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
import itertools
import math

import cv2
import numpy as np

from drift_ros.space.camera import Camera
from drift_ros.space.locate import locate, Place


@dataclass(frozen=True)
class Solid:
    """
    A ball, or a box that is turned about its vertical axis.

    Attributes
    ----------
    centre : tuple of float
        Metres, in the optical frame.
    size : tuple of float
        Metres: radius of a ball, or width, height and length of a box.
    yaw : float
        Radians.

    """

    centre: tuple[float, float, float]
    size: tuple[float, ...]
    yaw: float = 0.0

    def cast(self, rays: np.ndarray) -> np.ndarray:
        """Give the depth at which rays (N, 3), z = 1, meet it: (N,), infinite where not."""
        centre = np.array(self.centre)
        with np.errstate(divide='ignore', invalid='ignore'):
            if len(self.size) == 1:
                a, b = (rays**2).sum(1), rays @ centre
                root = b**2 - a * (centre @ centre - self.size[0] ** 2)
                near = (b - np.sqrt(root)) / a
                return np.where((root >= 0) & (near > 0), near, np.inf)
            cosine, sine = np.cos(self.yaw), np.sin(self.yaw)
            turn = np.array([[cosine, 0, -sine], [0, 1, 0], [sine, 0, cosine]])
            origin, ways, half = -turn @ centre, rays @ turn.T, np.array(self.size) / 2
            low, high = (-half - origin) / ways, (half - origin) / ways
            enter = np.minimum(low, high).max(1)
            leave = np.maximum(low, high).min(1)
            return np.where((enter <= leave) & (enter > 0), enter, np.inf)


@dataclass(frozen=True)
class Fault:
    """
    What is wrong with a picture of the scene.

    Attributes
    ----------
    noise : float
        Deviation of a depth at one metre, in metres; it grows with the square of the depth.
    holes : float
        Share of the image without a measurement, in blobs.
    glass : float
        Share of the image through which the background is measured, in blobs.
    occlusion : float
        Share of the object's width that something nearer hides.
    leak : int
        Pixels by which the mask is too large all around.

    """

    noise: float = 0.0
    holes: float = 0.0
    glass: float = 0.0
    occlusion: float = 0.0
    leak: int = 0


@dataclass(frozen=True)
class Picture:
    """What a depth camera and a tracker give of a scene, and the truth."""

    depth: np.ndarray
    """(H, W) float32 metres, NaN where not measured."""
    mask: np.ndarray
    """(H, W) bool."""
    truth: np.ndarray
    """(3,) metres: the median of the object's whole front, were nothing before it."""
    extent: np.ndarray
    """(3,) metres: what of it can be seen from here, along the axes."""


def take_picture(
    solid: Solid,
    camera: Camera,
    fault: Fault | None = None,
    seed: int = 0,
    wall: float = 8.0,
) -> Picture:
    """
    Look at a solid before a wall.

    Parameters
    ----------
    solid : Solid
    camera : Camera
    fault : Fault, optional
    seed : int
        Of noise and holes.
    wall : float
        Depth of the background in metres.

    """
    fault = fault or Fault()
    random = np.random.default_rng(seed)
    shape = (camera.height, camera.width)
    pixels = np.stack(np.meshgrid(np.arange(shape[1]), np.arange(shape[0])), -1).reshape(-1, 2)
    rays = camera.rays(pixels)
    alone = solid.cast(rays)
    front = _front(solid, camera, rays, alone)
    truth = np.median(front, axis=0)
    mask = np.isfinite(alone).reshape(shape)
    depth = np.minimum(alone, wall).reshape(shape).astype(np.float32)
    if fault.occlusion:
        columns = np.nonzero(mask.any(0))[0]
        edge = columns[0] + round(fault.occlusion * len(columns))
        depth[:, max(0, columns[0] - 20) : edge] = 0.6 * truth[2]
        mask[:, :edge] = False
    if fault.leak:
        side = 2 * fault.leak + 1
        mask = cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)) > 0
    if fault.glass:
        depth[_blobs(shape, fault.glass, random)] = wall
    if fault.noise:
        depth += random.normal(0, 1, shape).astype(np.float32) * fault.noise * depth**2
        depth = np.round(depth, 3)  # millimetres
    if fault.holes:
        depth[_blobs(shape, fault.holes, random)] = np.nan
    return Picture(depth, mask, truth, front.max(0) - front.min(0))


def _front(solid: Solid, camera: Camera, rays: np.ndarray, alone: np.ndarray) -> np.ndarray:
    """Give the points (N, 3) of a solid's front, also of what the border of the image cuts off."""
    height, width = camera.height, camera.width
    there = np.isfinite(alone).reshape(height, width)
    if there[[0, -1]].any() or there[:, [0, -1]].any():
        columns = np.arange(-width // 2, width * 3 // 2)
        rows = np.arange(-height // 2, height * 3 // 2)
        rays = camera.rays(np.stack(np.meshgrid(columns, rows), -1).reshape(-1, 2))
        alone = solid.cast(rays)
    met = np.isfinite(alone)
    return rays[met] * alone[met, None]


def _blobs(shape: tuple[int, int], share: float, random: np.random.Generator) -> np.ndarray:
    """Mark a share of an image in blobs of some ten pixels: (H, W) bool."""
    field = cv2.GaussianBlur(random.normal(0, 1, shape), (0, 0), 4.0)
    return field < np.quantile(field, share)


CAMERA = Camera(320, 240, np.array([[280.0, 0, 159.5], [0, 280.0, 119.5], [0, 0, 1]]), np.zeros(0))
"""A depth camera of 59 degrees at a quarter of VGA."""
FAULTS: Mapping[str, Fault] = {
    'clean': Fault(),
    'noise 2 mm at 1 m': Fault(noise=0.002),
    'noise 6 mm at 1 m': Fault(noise=0.006),
    'holes 30 %': Fault(noise=0.002, holes=0.3),
    'holes 60 %': Fault(noise=0.002, holes=0.6),
    'see-through 30 %': Fault(noise=0.002, glass=0.3),
    'mask 3 pixels too large': Fault(noise=0.002, leak=3),
    'hidden 25 %': Fault(noise=0.002, occlusion=0.25),
    'hidden 50 %': Fault(noise=0.002, occlusion=0.5),
    'noise, 30 % holes, 15 % see-through, 25 % hidden, mask 2 pixels too large': Fault(
        noise=0.002, holes=0.3, glass=0.15, occlusion=0.25, leak=2
    ),
}
"""Faults by name."""
DISTANCES = (0.7, 1.5, 3.0, 5.0)
"""Metres."""


def solids(distance: float, count: int = 6, seed: int = 1) -> Iterator[Solid]:
    """Give balls and boxes, 10 to 35 cm large, about a distance and anywhere in the image."""
    random = np.random.default_rng(seed)
    for number in range(count):
        x, y = random.uniform(-0.35, 0.35) * distance, random.uniform(-0.2, 0.2) * distance
        centre = (float(x), float(y), distance)
        if number % 2:
            yield Solid(centre, (float(random.uniform(0.05, 0.15)),))
        else:
            sides = random.uniform(0.1, 0.35, 3)
            yield Solid(centre, (*map(float, sides),), float(random.uniform(-0.8, 0.8)))


@dataclass(frozen=True)
class Row:
    """Errors of places, in shares of the distance, for one kind of fault and one distance."""

    fault: str
    distance: float
    """Metres; 0: all of them."""
    median: float
    high: float
    """The 95th percentile."""
    missing: int
    """Objects whose distance was not told."""
    number: int
    honest: float
    """Share of errors within three deviations of the covariance."""


def measure(
    faults: Mapping[str, Fault] = FAULTS,
    distances: Iterable[float] = DISTANCES,
    repeats: int = 4,
    seen: bool = False,
    first: int = 0,
) -> list[Row]:
    """
    Locate solids in all scenes; rows by fault and distance, and one of each fault's all.

    Parameters
    ----------
    faults : Mapping
    distances : iterable of float
        Metres.
    repeats : int
        Pictures of each solid, with other noise, holes and glass.
    seen : bool
        The solid was seen whole a moment ago: see :func:`a_moment_ago`.
    first : int
        Seed of the first pictures; with another one than 0 the solids are others, too.

    """
    rows: list[Row] = []
    for name, fault in faults.items():
        every: list[tuple[float, float] | None] = []
        for distance in distances:
            found = [
                _error(solid, fault, seed, seen)
                for seed, solid in itertools.product(
                    range(first, first + repeats), solids(distance, seed=1 + first)
                )
            ]
            rows.append(_row(name, distance, found))
            every += found
        rows.append(_row(name, 0.0, every))
    return rows


def _error(solid: Solid, fault: Fault, seed: int, seen: bool) -> tuple[float, float] | None:
    front = _earlier(solid, seed).front if seen else None
    picture = take_picture(solid, CAMERA, fault, seed)
    place = locate(picture.mask, CAMERA, picture.depth, front=front)
    if place is None or not place.known:
        return None
    off = place.position - picture.truth
    deviations = float(np.sqrt(off @ np.linalg.solve(place.covariance, off)))
    return float(np.linalg.norm(off) / np.linalg.norm(picture.truth)), deviations


def a_moment_ago(solid: Solid) -> Solid:
    """Give a solid as it was before: further away and beside by a twentieth, turned 3 degrees."""
    x, y, z = solid.centre
    return Solid((x - math.copysign(0.05 * z, x), y, 1.05 * z), solid.size, solid.yaw + 0.05)


def _earlier(solid: Solid, seed: int) -> Place:
    """Locate a solid where it was before, seen whole."""
    picture = take_picture(a_moment_ago(solid), CAMERA, Fault(noise=0.002), 1000 + seed)
    place = locate(picture.mask, CAMERA, picture.depth)
    assert place is not None
    return place


def _row(name: str, distance: float, found: list[tuple[float, float] | None]) -> Row:
    good = np.array([item for item in found if item is not None]).reshape(-1, 2)
    errors = good[:, 0] if len(good) else np.array([np.nan])
    return Row(
        name,
        distance,
        float(np.median(errors)),
        float(np.percentile(errors, 95)),
        len(found) - len(good),
        len(found),
        float((good[:, 1] <= 3).mean()) if len(good) else 0.0,
    )
