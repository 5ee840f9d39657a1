# SPDX-License-Identifier: Apache-2.0
"""Masks from what a person points at: a box, points, or both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
import numbers
from typing import Protocol

import cv2
import numpy as np
import torch

from drift_ros.engine.config import TrackerConfig
from drift_ros.engine.errors import PromptError
from drift_ros.engine.frame_features import FrameFeatures
from drift_ros.engine.seeds import check_frame
from drift_ros.prompts.boxes import in_boxes, likely
from drift_ros.prompts.clicks import mark
from drift_ros.prompts.grabcut import foreground, grab_cut
from drift_ros.refinement.colour import ColourSolver, Surroundings
from drift_ros.refinement.mask_prompts import stack_points
from drift_ros.refinement.sam import SamCoder, shared_sam, stability
from drift_ros.refinement.window import Window

_FARTHEST = 1e6
_BELIEVED = 0.72
"""Overlap with the truth for each share of a box's outline that lies on edges, on average."""


@dataclass(frozen=True)
class Prompt:
    """
    What names one object.

    Attributes
    ----------
    box : tuple of float, optional
        (x_min, y_min, x_max, y_max) in pixels, maxima exclusive.
    points : tuple of (x, y, positive)
        Pixels; positive ones are on the object, the others are not. Without a box at least one
        is positive.
    name : str
    object_id : int
        Of a live object that is corrected. 0: a new object.

    """

    box: tuple[float, float, float, float] | None = None
    points: tuple[tuple[float, float, bool], ...] = ()
    name: str = ''
    object_id: int = 0


@dataclass(frozen=True)
class Segmentation:
    """
    The answer to one prompt.

    Attributes
    ----------
    mask : np.ndarray
        (H, W) bool.
    score : float
        How sure the segmentation is of its mask, 0 to 1.

    """

    mask: np.ndarray
    score: float


class Segmenter:
    """Makes masks of prompts, after a check."""

    def __init__(self, method: 'Method') -> None:
        """Use a method."""
        self._method = method

    def segment(self, frame: np.ndarray, prompts: Sequence[Prompt]) -> list[Segmentation]:
        """
        Make a mask of each prompt.

        Parameters
        ----------
        frame : np.ndarray
            (H, W, 3) uint8 RGB.
        prompts : sequence of Prompt

        Raises
        ------
        FrameError, PromptError
            With the reason of each prompt that cannot be used or gave no mask.

        """
        check_prompts(frame, prompts)
        found = self._method.segment(frame, prompts)
        reasons = {
            index: 'no object was found there; drag a box around it, or add points'
            for index, segmentation in enumerate(found)
            if not segmentation.mask.any()
        }
        if reasons:
            listed = ', '.join(str(index + 1) for index in reasons)
            raise PromptError(f'nothing was found for prompt {listed}', reasons)
        return found


def make_segmenter(
    config: TrackerConfig,
    device: str | torch.device = 'auto',
    extract: Callable[[np.ndarray], FrameFeatures] | None = None,
) -> Segmenter:
    """
    Make the segmenter that the options ask for.

    Parameters
    ----------
    config : TrackerConfig
    device : str or torch.device
        Of Segment Anything.
    extract : callable, optional
        Gives the features of a frame: clicks then go through the frame's own attention.

    Raises
    ------
    CheckpointError
        ``sam_checkpoint`` cannot be used; the message says what to do.

    """
    if config.refinement.prompts == 'grabcut':
        return Segmenter(GrabCutSegmenter(extract=extract))
    return Segmenter(SamSegmenter(shared_sam(config.refinement.sam_checkpoint, device)))


def label_image(found: Sequence[Segmentation]) -> np.ndarray:
    """Give (H, W) int32: pixel = 1 + index of its mask, 0 = none; smaller masks lie on top."""
    labels = np.zeros(found[0].mask.shape, np.int32)
    for index in sorted(range(len(found)), key=lambda i: -int(found[i].mask.sum())):
        labels[found[index].mask] = index + 1
    return labels


class Method(Protocol):
    """A way to make masks of prompts that have been checked."""

    def segment(self, frame: np.ndarray, prompts: Sequence[Prompt]) -> list[Segmentation]:
        """
        Make a mask of each prompt.

        Parameters
        ----------
        frame : np.ndarray
            (H, W, 3) uint8 RGB.
        prompts : sequence of Prompt

        """


def check_prompts(frame: np.ndarray, prompts: Sequence[Prompt]) -> None:
    """
    Check prompts against the frame they belong to.

    Raises
    ------
    FrameError
        The frame is no picture.
    PromptError
        With the reason of each prompt that cannot be used.

    """
    check_frame(frame)
    if isinstance(prompts, Prompt) or any(not isinstance(item, Prompt) for item in prompts or ()):
        raise PromptError('these are no prompts; give a sequence of drift_ros Prompt objects')
    if not prompts:
        raise PromptError('there are no prompts; give a box or a point for each object')
    height, width = frame.shape[:2]
    reasons = {}
    for index, prompt in enumerate(prompts):
        reason = _fault(prompt, width, height)
        if reason:
            reasons[index] = reason
    if reasons:
        raise PromptError.of(reasons)


def _fault(prompt: Prompt, width: int, height: int) -> str:
    if prompt.box is not None and len(prompt.box) != 4:
        return f'the box has {len(prompt.box)} numbers; it needs x_min, y_min, x_max, y_max'
    if any(len(point) != 3 for point in prompt.points):
        return 'a point is not x, y and whether it is on the object'
    box = () if prompt.box is None else prompt.box
    for value in (*box, *(value for point in prompt.points for value in point[:2])):
        # far less than what overflows further on, and far more than any image has
        if not isinstance(value, numbers.Real) or not abs(float(value)) <= _FARTHEST:
            return (
                f'a coordinate is {value!r}, not a number of pixels from '
                f'-{_FARTHEST:g} to {_FARTHEST:g}'
            )
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        if x1 <= x0 or y1 <= y0:
            return (
                f'the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) is empty; its order is x_min, y_min, '
                'x_max, y_max'
            )
        if x1 <= 0 or y1 <= 0 or x0 >= width or y0 >= height:
            return (
                f'the box ({x0:g}, {y0:g}, {x1:g}, {y1:g}) is outside the image, which is '
                f'{width}x{height}'
            )
        if min(x1, width) - max(x0, 0) < 2 or min(y1, height) - max(y0, 0) < 2:
            return 'the box covers less than 2 pixels of the image; drag it around the object'
    elif not any(positive for _, _, positive in prompt.points):
        return 'there is neither a box nor a positive point; point at the object'
    for x, y, _ in prompt.points:
        if not (0 <= x < width and 0 <= y < height):
            return f'the point ({x:g}, {y:g}) is outside the image, which is {width}x{height}'
    return ''


class SamSegmenter:
    """Segment Anything; the frame is encoded once for all prompts."""

    def __init__(self, coder: SamCoder) -> None:
        """Use a model as :func:`drift_ros.refinement.sam_weights.load_sam` gives it."""
        self._coder = coder

    def segment(self, frame: np.ndarray, prompts: Sequence[Prompt]) -> list[Segmentation]:
        """Make a mask of each prompt."""
        encoded = self._coder.encode(frame, _window(frame.shape[:2], prompts))
        found: dict[int, Segmentation] = {}
        for boxed in (True, False):
            # the model takes prompts with and without a box in separate batches
            chosen = [i for i, prompt in enumerate(prompts) if (prompt.box is not None) == boxed]
            if not chosen:
                continue
            points, labels = stack_points(
                [
                    (
                        encoded.window.to_part(
                            np.array([p[:2] for p in prompts[i].points]).reshape(-1, 2)
                        ),
                        np.array([p[2] for p in prompts[i].points], np.float32),
                    )
                    for i in chosen
                ]
            )
            boxes = None
            if boxed:
                corners = np.array([prompts[i].box for i in chosen], np.float64).reshape(-1, 2, 2)
                corners[:, 1] -= 1.0  # maxima are exclusive
                boxes = encoded.window.to_part(corners).reshape(-1, 4)
            logits, quality = self._coder.decode(encoded, points, labels, boxes, None)
            # what it says again, given its own answer, is better
            first = logits[torch.arange(len(chosen)), _rank(logits, quality).argmax(1)]
            again, sure = self._coder.decode(
                encoded, points, labels, boxes, first.sigmoid().numpy()
            )
            logits, quality = torch.cat([logits, again], 1), torch.cat([quality, sure], 1)
            scores = _rank(logits, quality)
            for row, index in enumerate(chosen):
                best = int(scores[row].argmax())
                mask = self._coder.render(encoded, logits[row, best].numpy()) > 0.5
                found[index] = Segmentation(
                    _inside(mask, prompts[index]), float(scores[row, best])
                )
        return [found[index] for index in range(len(prompts))]


def _rank(logits: torch.Tensor, quality: torch.Tensor) -> torch.Tensor:
    return quality.clamp(0.0, 1.0) * stability(logits)


class GrabCutSegmenter:
    """GrabCut (Rother, Kolmogorov, Blake 2004), without weights."""

    def __init__(
        self,
        side: int = 240,
        iterations: int = 5,
        extract: Callable[[np.ndarray], FrameFeatures] | None = None,
    ) -> None:
        """
        Set the segmenter.

        Parameters
        ----------
        side : int
            The longer side of the part of the frame that is cut is reduced to so many pixels.
        iterations : int
            Of GrabCut.
        extract : callable, optional
            As of :func:`make_segmenter`; without it, clicks go through GrabCut as well.

        """
        self._side, self._iterations, self._extract = side, iterations, extract

    def segment(self, frame: np.ndarray, prompts: Sequence[Prompt]) -> list[Segmentation]:
        """Make a mask of each prompt; the score is the overlap that is to be expected."""
        return [
            self._walk(frame, prompt)
            if self._extract is not None and prompt.box is None
            else self._cut(frame, prompt)
            for prompt in prompts
        ]

    def _walk(self, frame: np.ndarray, prompt: Prompt) -> Segmentation:
        assert self._extract is not None
        found = mark(frame, prompt.points, self._extract)
        return Segmentation(_inside(found.mask, prompt), found.score)

    def _cut(self, frame: np.ndarray, prompt: Prompt) -> Segmentation:
        window = _window(frame.shape, [prompt]).reduced_to_side(self._side)
        part = window.crop(frame)
        longest = max(part.shape[:2])
        mask = np.full(part.shape[:2], cv2.GC_BGD, np.uint8)
        reach = 0.15 * longest
        if prompt.box is not None:
            box = window.corners_to_part(prompt.box)
            mask[Window.clipped(box, mask.shape).slices] = cv2.GC_PR_FGD
            reach = 0.08 * max(box[2] - box[0], box[3] - box[1])
        else:
            mask[:] = cv2.GC_PR_BGD
        marks = [
            (*(int(value) for value in window.corners_to_part((x, y))), positive)
            for x, y, positive in prompt.points
        ]
        dot = max(round(0.012 * longest), 1)
        if prompt.box is None:
            for x, y, positive in marks:
                if positive:
                    cv2.circle(mask, (x, y), round(reach), cv2.GC_PR_FGD, -1)
        for x, y, positive in marks:
            cv2.circle(mask, (x, y), dot, cv2.GC_FGD if positive else cv2.GC_BGD, -1)
        grab_cut(part, mask, self._iterations)  # where it can not, the marks are taken
        full = window.paste(foreground(mask).astype(np.float32))
        if prompt.box is not None:
            full = self._told_apart(frame, window, prompt, full)
        cut = window.crop(full) > 0.5
        score = _BELIEVED * _edge_share(part, cut.astype(np.uint8))
        return Segmentation(_inside(full > 0.5, prompt), score)

    def _told_apart(
        self, frame: np.ndarray, window: Window, prompt: Prompt, cut: np.ndarray
    ) -> np.ndarray:
        """Go on from a cut (H, W) with the network's queries, where there are such."""
        assert prompt.box is not None
        found = None
        if self._extract is not None:
            features = self._extract(frame)
            features.check()
            found = likely(features, prompt.box, cut > 0.5)
        if found is None and prompt.points:
            return cut
        size = (frame.shape[0], frame.shape[1])
        if found is None:
            guess = 0.5 * (cut + in_boxes(prompt.box, size, size))
        else:
            guess = cv2.resize(found, size[::-1], interpolation=cv2.INTER_LINEAR)
            if prompt.points:  # they are known to the cut only
                guess = 0.5 * (cut + guess)
        full = complete_cut(frame, window, prompt.box, guess)
        for x, y, positive in prompt.points:
            dot = max(round(0.012 * max(size)), 1)
            cv2.circle(full, (int(x), int(y)), dot, 1.0 if positive else 0.0, -1)
        return full


def complete_cut(
    frame: np.ndarray,
    window: Window,
    box: tuple[float, float, float, float],
    guess: np.ndarray,
) -> np.ndarray:
    """
    Take a guess (H, W) in [0, 1] of what is the object to the edges of the frame.

    The result is (H, W) in [0, 1], and 0 outside the box.
    """
    size = (frame.shape[0], frame.shape[1])
    seen = Surroundings.of(frame, [window])
    inside = seen.window.crop((in_boxes(box, size, size) > 0.0).astype(np.float32))
    prior = np.where(inside > 0.5, np.clip(seen.window.crop(guess), 0.02, 0.98), 0.0)
    solver = ColourSolver(weight=1.0, rounds=3)
    return seen.window.paste(solver.solve(seen, [prior.astype(np.float32)], [None])[0])


def _edge_share(image: np.ndarray, mask: np.ndarray) -> float:
    """Share of a mask's outline where the picture has an edge, too."""
    outline = cv2.morphologyEx(mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    edges = cv2.dilate(cv2.Canny(image, 60, 120), np.ones((3, 3), np.uint8)) > 0
    return float(edges[outline].mean()) if outline.any() else 0.0


def _window(size: tuple[int, ...], prompts: Sequence[Prompt]) -> Window:
    """Part of a frame to look at: around the boxes; all of it where one prompt has none."""
    boxes = np.array([prompt.box for prompt in prompts if prompt.box is not None])
    if len(boxes) < len(prompts):
        return Window.whole(size)
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    points = [point[:2] for prompt in prompts for point in prompt.points]
    if points:
        low, high = np.minimum(low, np.min(points, 0)), np.maximum(high, np.max(points, 0) + 1)
    pad = 0.3 * float((high - low).max()) + 2
    return Window.clipped((*(low - pad), *(high + pad)), size)


def _inside(mask: np.ndarray, prompt: Prompt) -> np.ndarray:
    """Keep of a mask (H, W) bool what is in the box, somewhat enlarged, and joined to points."""
    kept = mask.copy()
    if prompt.box is not None:
        x0, y0, x1, y1 = prompt.box
        pad_x, pad_y = 0.1 * (x1 - x0), 0.1 * (y1 - y0)
        box = (x0 - pad_x, y0 - pad_y, x1 + pad_x, y1 + pad_y)
        inside = Window.clipped(box, mask.shape).slices
        kept = np.zeros_like(mask)
        kept[inside] = mask[inside]
    positive = [(int(x), int(y)) for x, y, on in prompt.points if on]
    if prompt.box is None and positive:
        _, parts = cv2.connectedComponents(kept.astype(np.uint8))
        marked = {int(parts[y, x]) for x, y in positive} - {0}
        if marked:
            kept = np.isin(parts, list(marked))
    return kept
