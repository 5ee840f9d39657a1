# SPDX-License-Identifier: Apache-2.0
"""Objects cut out of photographs, without any labels: by clean backgrounds or by GrabCut."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
import zlib

import cv2
import numpy as np

_LEAST, _MOST = 0.06, 0.75  # accepted share of the photograph


def cut_out(image: np.ndarray, method: str) -> np.ndarray | None:
    """
    Cut the object out of a photograph that shows one.

    Parameters
    ----------
    image : (H, W, 3) uint8
    method : 'clean', for backgrounds of one colour (fast), or 'grabcut'

    Returns
    -------
    (h, w, 4) uint8, the photograph cropped to the object and its opacity; None where the object
    and the background cannot be told apart reliably

    """
    mask = _from_clean_background(image) if method == 'clean' else _from_grabcut(image)
    if mask is None:
        return None
    # move the edge inwards by half a pixel: its pixels are mixed with the old background
    alpha = cv2.GaussianBlur(mask.astype(np.float32), (0, 0), 0.8)
    alpha = np.clip((alpha - 0.5) * 2.2, 0, 1)
    x, y, w, h = cv2.boundingRect((alpha > 0).astype(np.uint8))
    if min(w, h) < 24:
        return None
    part = (slice(y, y + h), slice(x, x + w))
    return np.dstack([image[part], (255 * alpha[part]).astype(np.uint8)])


def _border(image: np.ndarray) -> np.ndarray:
    return np.concatenate(
        [
            image[:3].reshape(-1, 3),
            image[-3:].reshape(-1, 3),
            image[:, :3].reshape(-1, 3),
            image[:, -3:].reshape(-1, 3),
        ]
    )


def _largest(mask: np.ndarray) -> np.ndarray | None:
    """Keep the largest connected part, closed; None when it is no plausible object."""
    mask = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, np.ones((3, 3), np.uint8))
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask)
    if count < 2:
        return None
    best = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    area = stats[best, cv2.CC_STAT_AREA]
    if not _LEAST < area / mask.size < _MOST or area < 0.7 * stats[1:, cv2.CC_STAT_AREA].sum():
        return None
    kept = parts == best
    touching = np.concatenate([kept[0], kept[-1], kept[:, 0], kept[:, -1]]).mean()
    return None if touching > 0.25 else kept


def _from_clean_background(image: np.ndarray) -> np.ndarray | None:
    border = _border(image).astype(np.float32)
    colour = np.median(border, 0)
    if (np.abs(border - colour).max(1) < 14).mean() < 0.93:
        return None
    differs = np.abs(image.astype(np.float32) - colour).max(2) > 18
    # background is what is like the border and connected to it; enclosed holes are kept
    outside = cv2.copyMakeBorder(
        (~differs).astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=1
    )
    _, parts = cv2.connectedComponents(outside, connectivity=4)
    return _largest(parts[1:-1, 1:-1] != parts[0, 0])


def _from_grabcut(image: np.ndarray) -> np.ndarray | None:
    """GrabCut from two rectangles; the object is certain where both agree."""
    height, width = image.shape[:2]
    found = []
    for inset in (0.04, 0.12):
        mask = np.full((height, width), cv2.GC_PR_FGD, np.uint8)
        dy, dx = round(inset * height), round(inset * width)
        mask[:dy] = mask[-dy:] = cv2.GC_BGD
        mask[:, :dx] = mask[:, -dx:] = cv2.GC_BGD
        cv2.setRNGSeed(0)
        cv2.grabCut(
            image, mask, None, np.zeros((1, 65)), np.zeros((1, 65)), 3, cv2.GC_INIT_WITH_MASK
        )
        kept = _largest((mask == cv2.GC_FGD) | (mask == cv2.GC_PR_FGD))
        if kept is None:
            return None
        found.append(kept)
    both = (found[0] & found[1]).sum() / max((found[0] | found[1]).sum(), 1)
    return found[0] if both > 0.9 else None


def fill_cache(paths: list[Path], cache: Path, limit: int) -> Iterator[int]:
    """
    Cut out photographs until `limit` cut-outs are in the cache.

    All photographs with clean backgrounds come first, then GrabCut, in the given order.
    Photographs that were tried before are passed over. Yields the number of cut-outs so far.
    """
    cache.mkdir(parents=True, exist_ok=True)
    tried = cache / 'tried.txt'
    known = set(tried.read_text().splitlines()) if tried.exists() else set()
    made = {path.stem for path in cache.glob('*.png')}
    with tried.open('a') as log:
        for method, path in ((m, p) for m in ('clean', 'grabcut') for p in paths):
            if len(made) >= limit:
                return
            name = f'{path.parent.name}_{path.stem}'
            if name in made or f'{method} {name}' in known:
                continue
            image = cv2.imread(str(path), cv2.IMREAD_COLOR)
            result = None if image is None else cut_out(image, method)
            if result is not None:
                cv2.imwrite(str(cache / f'{name}.png'), result)
                made.add(name)
            log.write(f'{method} {name}\n')
            log.flush()
            yield len(made)


class Cutouts:
    """
    Cut-outs of a cache folder, decoded on demand and kept compressed in memory.

    Parameters
    ----------
    cache : folder that `fill_cache` has written to
    held_back : take those that training leaves out (one in twenty) instead of the others

    Raises
    ------
    FileNotFoundError
        where there are none

    """

    def __init__(self, cache: Path, held_back: bool = False) -> None:
        # by name, so that a cache that grows does not move any from one side to the other
        self._files = [
            path.read_bytes()
            for path in sorted(cache.glob('*.png'))
            if (zlib.crc32(path.name.encode()) % 20 == 0) == held_back
        ]
        if not self._files:
            raise FileNotFoundError(
                f'no cut-outs in {cache}; give more photographs, or raise --cutouts'
            )

    def __len__(self) -> int:
        return len(self._files)

    def read(self, index: int) -> np.ndarray:
        """Return a cut-out as (h, w, 4) uint8, RGB and opacity."""
        data = np.frombuffer(self._files[index], np.uint8)
        return cv2.cvtColor(cv2.imdecode(data, cv2.IMREAD_UNCHANGED), cv2.COLOR_BGRA2RGBA)
