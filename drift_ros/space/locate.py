# SPDX-License-Identifier: Apache-2.0
"""
Where an object is: its mask, a depth image and the camera to a place, an extent and a covariance.

The place is the middle of what is *seen* of the object, on its surface: what lies behind is not
measured, and not made up. Axes are those of the optical frame: x right, y down, z forward.
"""

from __future__ import annotations

from dataclasses import dataclass
import math

import cv2
import numpy as np

from drift_ros.space.camera import Camera

UNKNOWN = 1e6
"""Variance, in square metres, along a ray whose length is not known: a kilometre's deviation."""
_GAP = 4.0  # robust deviations from the median beyond which a depth belongs to something else
_LEAST_GAP = 0.03  # of the depth: sensors' noise and quantisation
_BIN = 0.03  # of the depth, in which depths are counted to find gaps
_SPARSE = 0.005  # of the depths in a bin: still a gap
_HEAP = 0.25  # of the depths that make a heap one that could be the object
_LEAST_PIXELS = 12
_LEAST_SHARE = 0.05  # of the mask that has to have a depth
_PERCENTILES = (2.0, 98.0)
_MAD = 1.4826  # to a standard deviation


@dataclass(frozen=True)
class Place:
    """
    Where an object is, in the camera's optical frame.

    Attributes
    ----------
    position : np.ndarray
        (3,) metres. Where the distance is not known, one metre along the bearing.
    bearing : np.ndarray
        (3,) unit vector towards the middle of the mask.
    size : np.ndarray
        (3,) metres along the axes, of what is seen; zero where not known.
    covariance : np.ndarray
        (3, 3) square metres, of the position.
    kind : str
        'depth': measured. 'size': from the known size of the object. 'bearing': no distance; the
        variance along the bearing is :data:`UNKNOWN`.
    share : float
        Of the mask's pixels with a depth, 0 to 1.
    cut : bool
        The mask touches the border of the image: the object goes on outside.

    """

    position: np.ndarray
    bearing: np.ndarray
    size: np.ndarray
    covariance: np.ndarray
    kind: str
    share: float
    cut: bool

    @property
    def known(self) -> bool:
        """Whether the distance is known."""
        return self.kind != 'bearing'


def locate(
    mask: np.ndarray, camera: Camera, depth: np.ndarray | None = None, known_size: float = 0.0
) -> Place | None:
    """
    Say where an object is.

    Parameters
    ----------
    mask : np.ndarray
        (H, W) bool, as large as the camera's images.
    camera : Camera
    depth : np.ndarray, optional
        (H, W) float32 metres along the optical axis, NaN where not measured.
    known_size : float
        Metres, the longer side of the object's outline, used where the depth does not tell. 0:
        not known.

    Returns
    -------
    Place, optional
        None where the mask is empty.

    Raises
    ------
    ValueError
        Mask, depth and camera differ in size.

    """
    _check_sizes(mask, camera, depth)
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    if not width:
        return None
    part = mask[top : top + height, left : left + width]
    cut = left == 0 or top == 0 or left + width == camera.width or top + height == camera.height
    rows, columns = np.nonzero(part)
    outline = np.stack([columns + left, rows + top], -1)
    direction, tilt = _bearing(outline, camera)
    share = 0.0
    if depth is not None:
        found, share = _measure(
            part, depth[top : top + height, left : left + width], camera, left, top
        )
        if found is not None:
            position, size, covariance = found
            return Place(position, direction, size, covariance, 'depth', share, cut)
    across = _angle(outline, camera)
    # an outline that the border cuts off tells no distance
    if known_size > 0 and across > 0 and not cut:
        distance = known_size / 2 / math.tan(across / 2)
        # a pixel more or less on each side, and a view of the object that is not its longest
        along = distance * max(0.1, 2 / max(width, height))
        covariance = _covariance(direction, (distance * tilt) ** 2, along**2)
        size = np.array([distance * width, distance * height, 0.0]) / camera.focal
        return Place(direction * distance, direction, size, covariance, 'size', share, cut)
    covariance = _covariance(direction, tilt**2, UNKNOWN)
    return Place(direction, direction, np.zeros(3), covariance, 'bearing', share, cut)


def _check_sizes(mask: np.ndarray, camera: Camera, depth: np.ndarray | None) -> None:
    size = (camera.height, camera.width)
    if mask.shape != size:
        raise ValueError(
            f'the image has {mask.shape[1]}x{mask.shape[0]} pixels, camera_info '
            f'{camera.width}x{camera.height}: use the camera_info of the image topic'
        )
    if depth is not None and depth.shape != size:
        raise ValueError(
            f'the depth image has {depth.shape[1]}x{depth.shape[0]} pixels, the colour image '
            f'{camera.width}x{camera.height}: publish depth that is aligned with the colour image'
        )


def _bearing(outline: np.ndarray, camera: Camera) -> tuple[np.ndarray, float]:
    """Give the direction to the middle of a mask's pixels, and its deviation in radians."""
    ray = camera.rays(np.median(outline, axis=0)[None])[0]
    # as for a place by depth: the spread of what is seen
    spread = float(outline.std(0).max())
    return ray / np.linalg.norm(ray), (1.0 + spread) / camera.focal


def _angle(outline: np.ndarray, camera: Camera) -> float:
    """Give the angle, in radians, that the longer side of a mask's box covers."""
    low, high = outline.min(0) - 0.5, outline.max(0) + 0.5
    middle = (low + high) / 2
    if high[0] - low[0] >= high[1] - low[1]:
        ends = np.array([[low[0], middle[1]], [high[0], middle[1]]])
    else:
        ends = np.array([[middle[0], low[1]], [middle[0], high[1]]])
    first, second = camera.rays(ends)
    cosine = first @ second / (np.linalg.norm(first) * np.linalg.norm(second))
    return math.acos(min(1.0, max(-1.0, float(cosine))))


def _measure(
    mask: np.ndarray, depth: np.ndarray, camera: Camera, left: int, top: int
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray] | None, float]:
    """Find position, size and covariance by the depths of a mask; and the share that has one."""
    valid = np.isfinite(depth) & mask
    share = np.count_nonzero(valid) / np.count_nonzero(mask)
    inner = valid & _eroded(mask)
    if np.count_nonzero(inner) >= _LEAST_PIXELS:
        valid = inner
    if np.count_nonzero(valid) < _LEAST_PIXELS or share < _LEAST_SHARE:
        return None, share
    rows, columns = np.nonzero(valid)
    along = depth[rows, columns].astype(float)
    keep = _one_thing(along)
    along = along[keep]
    points = camera.rays(np.stack([columns + left, rows + top], -1)[keep]) * along[:, None]
    low, high = np.percentile(points, _PERCENTILES, axis=0)
    position = np.median(points, axis=0)
    size = high - low
    size[:2] += 2 * _radius(mask) / camera.focal * position[2]  # eroded away on both sides
    # The spread of what is seen: the middle of an object of which half is hidden lies within. A
    # face that is seen at an angle goes on behind, so something of its spread counts all around.
    spread = np.cov(points.T)
    covariance = spread + (np.trace(spread) / 4 + (0.002 * position[2]) ** 2) * np.eye(3)
    return (position, size, covariance / max(share, 0.1)), share


def _radius(mask: np.ndarray) -> int:
    """Pixels that the border of a mask is eroded by: a twentieth of its width, 5 at most."""
    return int(np.clip(round(math.sqrt(np.count_nonzero(mask)) / 20), 1, 5))


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Take a mask's border away, where depth and colour mix object and background."""
    side = 2 * _radius(mask) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    return cv2.erode(padded, kernel)[1:-1, 1:-1] > 0


def _one_thing(depths: np.ndarray) -> np.ndarray:
    """
    Tell which depths (N,) belong to the object: (N,) bool.

    Depths fall into heaps with gaps between. The nearest heap that is not small is the object:
    behind holes and glass there is the background, however much of it. Within it, what is further
    from the median than a few robust deviations goes as well.
    """
    scale = np.log(np.maximum(depths, 1e-3))
    bins = ((scale - scale.min()) / _BIN).astype(int)
    counts = np.bincount(bins)
    full = np.append(counts > _SPARSE * len(depths), False)
    ends = np.flatnonzero(full[:-1] & ~full[1:])  # of heaps
    starts = np.flatnonzero(full[:-1] & ~np.concatenate([[False], full[:-2]]))
    keep = np.ones(len(depths), bool)
    for start, end in zip(starts, ends):
        heap = (bins >= start) & (bins <= end)
        if np.count_nonzero(heap) >= _HEAP * len(depths):
            keep = heap
            break
    for _ in range(3):
        middle = np.median(depths[keep])
        deviation = _MAD * np.median(np.abs(depths[keep] - middle))
        inside = keep & (np.abs(depths - middle) <= max(_GAP * deviation, _LEAST_GAP * middle))
        if np.array_equal(inside, keep):
            break
        keep = inside
    return keep


def _covariance(direction: np.ndarray, across: float, along: float) -> np.ndarray:
    """Make the covariance (3, 3) of a point: variances across and along a direction."""
    outer = np.outer(direction, direction)
    return across * (np.eye(3) - outer) + along * outer
