# SPDX-License-Identifier: Apache-2.0
"""
Where an object is: its mask, a depth image and the camera to a place, an extent and a covariance.

The place is the middle of the object's front, on its surface. Of an object that is partly hidden
it is the middle of what is *seen*, unless the whole front was seen before. Axes are those of the
optical frame: x right, y down, z forward.
"""

from __future__ import annotations

from dataclasses import dataclass
import math
from typing import Any

import cv2
import numpy as np

from drift_ros.space.camera import Camera
from drift_ros.space.front import Fit, fit, Front

UNKNOWN = 1e6
"""Variance, in square metres, along a ray whose length is not known: a kilometre's deviation."""
_GAP = 4.0  # robust deviations from the median beyond which a depth belongs to something else
_LEAST_GAP = 0.03  # of the depth: sensors' noise and quantisation
_BIN = 0.03  # of the depth, in which depths are counted to find gaps
_SPARSE = 0.005  # of the depths in a bin: still a gap
_HEAP = 0.25  # of the depths that make a heap one that could be the object
_SLIVER = 0.03  # of the depths that make a heap one, before a background that goes on around it
_NEARER = 0.05  # of the depth by which what hides an object is nearer
_FLUSH = 0.25  # of the depth: deviation where the mask may show what is behind the object
_WHOLE = 0.1  # of the outline that may border something nearer, or the image's border, when whole
_PART = 0.05  # of the front that is hidden: from here on the place is that of the front
_ASTRAY = 0.2  # of a front that may be missing where it would be seen
_FEW = 0.25  # of what would be seen of an object: less is not it; nor is what is so much more
_OFF = 0.3  # of the distance by which depth and size may differ
_LEAST_PIXELS = 8
_ENOUGH = 3000  # pixels of a mask that are looked at, more or less
_LEAST_SHARE = 0.05  # of the mask that has to have a depth
_ON = 0.25  # of what lies around a mask that makes it go on there
_RING = 8  # pixels around a mask that tell what is around it
_GAP_AT_RIM = 0.06  # of the depth by which a pixel of the mask may differ from those it borders
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
        variance along the bearing is :data:`UNKNOWN`. 'part': the mask shows less than a quarter
        of the object, and nothing hides the rest; so it may be something else. There is no
        distance either.
    share : float
        Of the mask's pixels with a depth, 0 to 1.
    cut : bool
        The mask touches the border of the image: the object goes on outside.
    hidden : float
        Share of the front that something nearer or the border hides, 0 to 1; 0 also where the
        front is not known.
    front : Front, optional
        The object's front, where it is seen whole: for :func:`locate` in later pictures.

    """

    position: np.ndarray
    bearing: np.ndarray
    size: np.ndarray
    covariance: np.ndarray
    kind: str
    share: float
    cut: bool
    hidden: float = 0.0
    front: Front | None = None

    @property
    def known(self) -> bool:
        """Whether the distance is known."""
        return self.kind in ('depth', 'size')


def locate(
    mask: np.ndarray,
    camera: Camera,
    depth: np.ndarray | None = None,
    known_size: float = 0.0,
    front: Front | None = None,
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
    front : Front, optional
        The object as it was last seen whole (:attr:`Place.front`): tells where the middle is when
        a part is hidden, and the size where a depth image does not show the object.

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
    cut = left == 0 or top == 0 or left + width == camera.width or top + height == camera.height
    rows, columns = np.nonzero(mask[top : top + height, left : left + width])
    outline = np.stack([columns + left, rows + top], -1)
    direction, tilt = _bearing(outline, camera)
    share = 0.0
    if depth is not None:
        if not known_size and front is not None:
            known_size = float(front.size[:2].max())
        found, share = _measure(mask, depth, camera, (left, top, width, height), front)
        if found is not None:
            if found.part:
                return _bare(direction, tilt, 'part', share, cut)
            return Place(
                found.position,
                direction,
                found.size,
                found.covariance,
                'depth',
                share,
                cut,
                found.hidden,
                found.front,
            )
    across = _angle(outline, camera)
    # an outline that the border cuts off tells no distance
    distance = 0.0
    if known_size > 0 and across > 0 and not cut:
        distance = known_size / 2 / math.tan(across / 2)
    # nor does one of which something nearer may hide a part
    if distance and (depth is None or not _is_behind(mask, depth, distance)):
        area = np.count_nonzero(mask) * (distance / camera.focal) ** 2
        if front is not None and area < _FEW * front.least_area:
            return _bare(direction, tilt, 'part', share, cut)
        # a pixel more or less on each side, and a view of the object that is not its longest
        along = distance * max(0.1, 2 / max(width, height))
        covariance = _covariance(direction, (distance * tilt) ** 2, along**2)
        size = np.array([distance * width, distance * height, 0.0]) / camera.focal
        return Place(direction * distance, direction, size, covariance, 'size', share, cut)
    return _bare(direction, tilt, 'bearing', share, cut)


def _bare(direction: np.ndarray, tilt: float, kind: str, share: float, cut: bool) -> Place:
    """Make a place without a distance."""
    covariance = _covariance(direction, tilt**2, UNKNOWN)
    return Place(direction, direction, np.zeros(3), covariance, kind, share, cut)


def _is_behind(mask: np.ndarray, depth: np.ndarray, distance: float) -> bool:
    """Whether a quarter of what lies around a mask is nearer than the object."""
    left, top, width, height = cv2.boundingRect(mask.astype(np.uint8))
    window = np.s_[
        max(0, top - _RING) : top + height + _RING, max(0, left - _RING) : left + width + _RING
    ]
    mask, depth = mask[window], depth[window]
    around = depth[_dilated(mask, _RING) & ~mask]
    around = around[np.isfinite(around)]
    return len(around) > 0 and float(np.mean(around < (1 - _OFF) * distance)) > _ON


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


@dataclass(frozen=True)
class _Grid:
    """
    Some of an image's pixels: those of a window, or every second or third of them.

    Attributes
    ----------
    camera : Camera
    corner : tuple of int
        Column and row of the first one.
    step : int
        Pixels from one to the next.

    """

    camera: Camera
    corner: tuple[int, int]
    step: int

    @property
    def focal(self) -> float:
        """Focal length in steps."""
        return self.camera.focal / self.step

    def rays(self, where: np.ndarray) -> np.ndarray:
        """Give the rays (N, 3), z = 1, of columns and rows (N, 2)."""
        return self.camera.rays(where * self.step + np.array(self.corner))

    def project(self, point: np.ndarray) -> np.ndarray:
        """Give column and row of a point (3,)."""
        return (self.camera.project(point[None])[0] - np.array(self.corner)) / self.step

    def points(self, seen: np.ndarray, depth: np.ndarray) -> np.ndarray:
        """Give the points (N, 3), metres, of pixels (H, W) with a depth."""
        rows, columns = np.nonzero(seen)
        return self.rays(np.stack([columns, rows], -1)) * depth[seen].astype(float)[:, None]

    def at_border(self, seen: np.ndarray) -> float:
        """Give the share of an outline (H, W) that lies at the border of the image, 0 to 1."""
        rows, columns = np.nonzero(seen)
        x, y = columns * self.step + self.corner[0], rows * self.step + self.corner[1]
        last = self.camera.width - self.step, self.camera.height - self.step
        sides = (x < self.step, y < self.step, x >= last[0], y >= last[1])
        touching = sum(np.count_nonzero(side) for side in sides)
        return touching * self.step / (2 * (np.ptp(x) + np.ptp(y) + 2 * self.step))


@dataclass(frozen=True)
class _Measured:
    """
    What a mask's depths tell: as in :class:`Place`.

    Attributes
    ----------
    part : bool
        Too little of the object is seen for nothing hiding the rest.

    """

    position: np.ndarray
    size: np.ndarray
    covariance: np.ndarray
    hidden: float
    front: Front | None
    part: bool


def _measure(
    mask: np.ndarray,
    depth: np.ndarray,
    camera: Camera,
    box: tuple[int, int, int, int],
    front: Front | None,
) -> tuple[_Measured | None, float]:
    """Find what the depths of a mask tell; and the share of it that has a depth."""
    mask, depth, grid = _window(mask, depth, camera, box, front)
    measured = np.isfinite(depth)
    share = float(np.count_nonzero(measured & mask) / np.count_nonzero(mask))
    kept, flush = _kept(mask, depth, measured)
    if np.count_nonzero(kept) < _LEAST_PIXELS or share < _LEAST_SHARE:
        return None, share
    filled = _filled(depth, kept)
    seen = _outline(mask, depth, kept, filled)
    points = grid.points(seen, filled)
    position = np.median(points, axis=0)
    low, high = np.percentile(points, _PERCENTILES, axis=0)
    size, spread = high - low, np.cov(points.T)
    if flush and front is not None and _behind_it(front, size):
        return None, share
    everywhere = _filled(depth, measured)
    nearer = ~seen & (everywhere < (1 - _NEARER) * float(position[2]))
    blocked = _blocked(seen, filled, everywhere, measured)
    cut = grid.at_border(seen)
    whole = blocked + cut <= _WHOLE
    area = np.count_nonzero(seen) * (float(position[2]) / grid.focal) ** 2
    hidden, guess, found = 0.0, np.zeros((3, 3)), None
    if not whole:
        found = None if front is None else fit(front, seen, nearer, filled, grid.focal)
        if front is None or found is None or found.missing > _ASTRAY:
            # never seen whole, or another side of it: the middle may be at the end of what is seen
            guess = np.diag((size / 2) ** 2)
        elif found.hidden > _PART:
            hidden, size, spread = found.hidden, front.size.copy(), front.spread
            position = grid.rays(found.middle[None])[0] * found.depth
            guess[:2, :2] = found.covariance * (found.depth / grid.focal) ** 2
    # The spread of what is seen: a face that is seen at an angle goes on behind, so something of
    # it counts all around.
    covariance = spread + guess + (np.trace(spread) / 4 + (0.002 * position[2]) ** 2) * np.eye(3)
    covariance = covariance / max(share, 0.1)
    if flush:
        ray = position / position[2]
        covariance = covariance + np.outer(ray, ray) * (_FLUSH * position[2]) ** 2
    part = front is not None and _is_part(front, area, found)
    made = None
    # what has grown at once shows more than the object
    if whole and not flush and not part and (front is None or _FEW * area < front.area):
        first = area if front is None else front.first_area
        made = _front(seen, filled, grid, position, size, spread, first)
    return _Measured(position, size, covariance, hidden, made, part), share


def _window(
    mask: np.ndarray,
    depth: np.ndarray,
    camera: Camera,
    box: tuple[int, int, int, int],
    front: Front | None,
) -> tuple[np.ndarray, np.ndarray, _Grid]:
    """Cut mask and depth out, with as much around the object as there may be of it."""
    left, top, width, height = box
    around = max(width, height, _RING + 2)
    along = depth[mask]
    along = along[np.isfinite(along)]
    if front is not None and len(along):
        pixels = front.size[:2].max() * camera.focal / np.median(along)
        around = max(around, math.ceil(pixels))
    x, y = max(0, left - around), max(0, top - around)
    # of many pixels some tell as much
    step = max(1, int(math.sqrt(np.count_nonzero(mask) / _ENOUGH)))
    window = np.s_[y : top + height + around : step, x : left + width + around : step]
    return mask[window], depth[window], _Grid(camera, (x, y), step)


def _kept(mask: np.ndarray, depth: np.ndarray, measured: np.ndarray) -> tuple[np.ndarray, bool]:
    """Tell which pixels' depths are the object's: (H, W) bool; and whether these go on around."""
    inner = measured & _eroded(mask)
    if np.count_nonzero(inner) < _LEAST_PIXELS:
        inner = measured & mask
    kept = np.zeros_like(mask)
    if not inner.any():
        return kept, False
    outside = measured & ~_dilated(mask, 2) & _dilated(mask, _RING)
    kept[inner], flush = _one_thing(depth[inner].astype(float), depth[outside].astype(float))
    return kept, flush


def _filled(depth: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Give each pixel the depth of the nearest one that is known: (H, W)."""
    _, nearest = cv2.distanceTransformWithLabels(
        (~known).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    values = np.zeros(nearest.max() + 1, depth.dtype)
    values[nearest[known]] = depth[known]
    return values[nearest]


def _outline(
    mask: np.ndarray, depth: np.ndarray, kept: np.ndarray, filled: np.ndarray
) -> np.ndarray:
    """
    Tell which pixels of a mask show the object: (H, W) bool.

    Those without a depth do. Those at another depth do not, unless it is the background's and
    they lie amid the object: there it is seen through.
    """
    with np.errstate(invalid='ignore'):
        off = depth / filled - 1
    other = np.isfinite(depth) & (np.abs(off) > _GAP_AT_RIM)
    hull = np.zeros(mask.shape, np.uint8)
    rows, columns = np.nonzero(mask & ~other)
    pixels = np.stack([columns, rows], -1).astype(np.int32)
    if len(pixels):
        cv2.fillConvexPoly(hull, cv2.convexHull(pixels), 1)
    through = other & (off > 0) & (hull > 0)
    return mask & (~other | through)


def _blocked(
    seen: np.ndarray, filled: np.ndarray, everywhere: np.ndarray, measured: np.ndarray
) -> float:
    """
    Give the share of an outline beyond which something nearer begins, 0 to 1.

    The floor an object stands on comes nearer as well, but from the object's own depth on: what
    lies outside is followed to the outline, in inverse depth, where planes are straight.
    """
    free = (measured & ~_dilated(seen, 1)).astype(np.float32)
    inverse = (1 / everywhere).astype(np.float32)
    weight = cv2.blur(free, (3, 3), borderType=cv2.BORDER_CONSTANT)
    mean = cv2.blur(inverse * free, (3, 3), borderType=cv2.BORDER_CONSTANT)
    with np.errstate(invalid='ignore', divide='ignore'):
        mean = mean / weight  # NaN where nothing is measured
    border = blocked = 0
    for axis, step in ((0, 1), (0, -1), (1, 1), (1, -1)):
        ends = seen & ~_shifted(seen, axis, step, False)
        near, far = (_shifted(mean, axis, step * far, np.nan) for far in (3, 6))
        with np.errstate(invalid='ignore'):
            straight = np.where(np.isfinite(far), 2 * near - far, near)
            # of a corner between two things the nearer of both estimates is no plane
            there = np.minimum(straight, near) * filled > 1 / (1 - _NEARER)
        border += int(np.count_nonzero(ends))
        blocked += int(np.count_nonzero(ends & there))
    return blocked / max(border, 1)


def _shifted(values: np.ndarray, axis: int, step: int, outside: Any) -> np.ndarray:
    """Give at each pixel the value that lies some steps on along an axis."""
    moved = np.full_like(values, outside)
    size = values.shape[axis]
    if abs(step) < size:
        to = [slice(None), slice(None)]
        of = [slice(None), slice(None)]
        to[axis] = slice(max(0, -step), size - max(0, step))
        of[axis] = slice(max(0, step), size - max(0, -step))
        moved[tuple(to)] = values[tuple(of)]
    return moved


def _behind_it(front: Front, size: np.ndarray) -> bool:
    """
    Whether what is measured is too large, where it is, for the object's outline: it is behind.

    Of what is smaller than the object the mask may show a part; its depth is the object's then.
    """
    return float(size[:2].max()) > (1 + _OFF) * float(front.size[:2].max())


def _is_part(front: Front, area: float, found: Fit | None) -> bool:
    """
    Whether too little of an object is seen, square metres, for nothing hiding the rest.

    It is compared with the smaller one of the first and the last front: objects turn, and a mask
    that was too large for a moment must not make the right one too small.
    """
    if found is not None:
        area = (1 - found.hidden - found.missing) * front.area
        return area < _FEW * (1 - found.hidden) * front.least_area
    return area < _FEW * front.least_area


def _front(
    seen: np.ndarray,
    filled: np.ndarray,
    grid: _Grid,
    position: np.ndarray,
    size: np.ndarray,
    spread: np.ndarray,
    first_area: float,
) -> Front:
    """Cut a front out of a picture."""
    left, top, width, height = cv2.boundingRect(seen.astype(np.uint8))
    part = np.s_[top : top + height, left : left + width]
    column, row = grid.project(position)
    relief = filled[part].astype(float) - position[2]
    middle = (float(column) - left, float(row) - top)
    cell = float(position[2]) / grid.focal
    return Front(cell, seen[part], relief, middle, size, spread, first_area)


def _radius(mask: np.ndarray) -> int:
    """Pixels that the border of a mask is eroded by: a twentieth of its width, 5 at most."""
    return int(np.clip(round(math.sqrt(np.count_nonzero(mask)) / 20), 1, 5))


def _eroded(mask: np.ndarray) -> np.ndarray:
    """Take a mask's border away, where depth and colour mix object and background."""
    side = 2 * _radius(mask) + 1
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT)
    return cv2.erode(padded, kernel)[1:-1, 1:-1] > 0


def _dilated(mask: np.ndarray, pixels: int) -> np.ndarray:
    """Let a mask grow by some pixels all around."""
    side = 2 * pixels + 1
    return cv2.dilate(mask.astype(np.uint8), np.ones((side, side), np.uint8)) > 0


def _one_thing(depths: np.ndarray, around: np.ndarray) -> tuple[np.ndarray, bool]:
    """
    Tell which depths belong to the object.

    Depths fall into heaps with gaps between; :func:`_choice` says which is the object. Within it,
    what is further from the median than a few robust deviations goes.

    Parameters
    ----------
    depths : np.ndarray
        (N,) metres, of the mask.
    around : np.ndarray
        (M,) metres, of what lies around it.

    Returns
    -------
    tuple
        (N,) bool, and whether the same depth goes on around the mask: the object is flat on it,
        or none of it was measured.

    """
    scale = np.log(np.maximum(depths, 1e-3))
    bins = ((scale - scale.min()) / _BIN).astype(int)
    counts = np.bincount(bins)
    full = np.append(counts > _SPARSE * len(depths), False)
    ends = np.flatnonzero(full[:-1] & ~full[1:])  # of heaps
    starts = np.flatnonzero(full[:-1] & ~np.concatenate([[False], full[:-2]]))
    heaps = [(bins >= start) & (bins <= end) for start, end in zip(starts, ends)]
    keep = _choice(depths, heaps, around)
    for _ in range(3):
        middle = np.median(depths[keep])
        deviation = _MAD * np.median(np.abs(depths[keep] - middle))
        inside = keep & (np.abs(depths - middle) <= max(_GAP * deviation, _LEAST_GAP * middle))
        if np.array_equal(inside, keep):
            break
        keep = inside
    return keep, _goes_on(depths[keep], around)


def _choice(depths: np.ndarray, heaps: list[np.ndarray], around: np.ndarray) -> np.ndarray:
    """
    Choose the heap that is the object: (N,) bool.

    It is the nearest one that is not small: behind holes and glass there is the background,
    however much of it. One that goes on around the mask may be no part of the object. Is it what
    hides the object, a larger heap behind it is the object; is it the background, a small one
    before it will do.
    """
    sizes = [int(np.count_nonzero(heap)) for heap in heaps]
    large = [k for k, size in enumerate(sizes) if size >= _HEAP * len(depths)]
    if not large:
        return np.ones(len(depths), bool)
    first = large[0]
    goes_on = [_goes_on(depths[heap], around) for heap in heaps]
    if goes_on[first]:
        behind = [k for k in large[1:] if not goes_on[k] and sizes[k] >= sizes[first]]
        least = max(_LEAST_PIXELS, _SLIVER * len(depths))
        before = [k for k in range(first) if not goes_on[k] and sizes[k] >= least]
        first = [*behind, *before[::-1], first][0]
    return heaps[first]


def _goes_on(depths: np.ndarray, around: np.ndarray) -> bool:
    """Whether a part of what lies around a mask is as far away as these depths."""
    if not len(around):
        return False
    middle = np.median(depths)
    return float(np.mean(np.abs(around - middle) <= _LEAST_GAP * middle)) > _ON


def _covariance(direction: np.ndarray, across: float, along: float) -> np.ndarray:
    """Make the covariance (3, 3) of a point: variances across and along a direction."""
    outer = np.outer(direction, direction)
    return across * (np.eye(3) - outer) + along * outer
