# SPDX-License-Identifier: Apache-2.0
"""Refinement by Segment Anything (Kirillov et al. 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import cv2
import numpy as np
from segment_anything.modeling import Sam
import torch
from torch import Tensor

from drift_ros.refinement.bilateral import OnTop, Smoothed, Smoother
from drift_ros.refinement.mask_prompts import read_prompt, stack_points
from drift_ros.refinement.sam_weights import EMBEDDED, load_sam
from drift_ros.refinement.window import object_window

# Segment Anything's mask input is the logits of an earlier prediction. Ours come from
# probabilities, whose logits have no bound.
_LOGIT_LIMIT = 8.0
# Objects decoded at once.
_BATCH = 16


def mask_logits(probability: Tensor) -> Tensor:
    """Turn probabilities in [0, 1] into the logits a mask input consists of, same shape."""
    return torch.logit(probability, eps=1e-6).clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT)


@dataclass(frozen=True)
class View:
    """
    A part of a frame as a model sees it: scaled to its input size and padded at right and bottom.

    Attributes
    ----------
    window : tuple of int
        (x_min, y_min, x_max, y_max) in pixels of the frame, maxima exclusive.
    scale : float
        Model pixels for each of the frame's.
    embedding : Tensor
        (1, C, g, g) of the image encoder.

    """

    window: tuple[int, int, int, int]
    scale: float
    embedding: Tensor

    def to_model(self, places: np.ndarray) -> np.ndarray:
        """Turn (..., 2) positions in the frame, pixel centres at integers, into the model's."""
        return ((places + 0.5 - self.window[:2]) * self.scale - 0.5).astype(np.float32)


class SamPredictor:
    """Looks at a part of a frame once and decodes any number of prompts in it, batched."""

    def __init__(self, model: Sam) -> None:
        """Use a model as :func:`drift_ros.refinement.sam_weights.load_sam` gives it."""
        self.model = model
        self.size = int(model.image_encoder.img_size)
        self.side = int(model.prompt_encoder.mask_input_size[0])
        """Side of mask inputs and of the masks that come out."""

    @torch.inference_mode()
    def look(self, frame: np.ndarray, window: tuple[int, int, int, int]) -> View:
        """Encode a window of a frame (H, W, 3) uint8 RGB."""
        x0, y0, x1, y1 = window
        scale = self.size / max(x1 - x0, y1 - y0)
        size = (max(round(scale * (x1 - x0)), 1), max(round(scale * (y1 - y0)), 1))
        method = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
        pixels = cv2.resize(frame[y0:y1, x0:x1], size, interpolation=method)
        image = torch.from_numpy(pixels).to(self.model.device).permute(2, 0, 1).float()
        return View(window, scale, self.model.image_encoder(self.model.preprocess(image)[None]))

    @torch.inference_mode()
    def decode(
        self,
        view: View,
        points: np.ndarray,
        labels: np.ndarray,
        boxes: np.ndarray | None,
        masks: np.ndarray | None,
    ) -> tuple[Tensor, Tensor]:
        """
        Decode prompts in pixels of the model.

        Parameters
        ----------
        view : View
        points, labels : np.ndarray
            As :func:`stack_points` gives them: (K, M, 2) and (K, M).
        boxes : np.ndarray, optional
            (K, 4).
        masks : np.ndarray, optional
            (K, side, side), probabilities.

        Returns
        -------
        tuple of Tensor
            Logits (K, 4, side, side), the mask for unambiguous prompts first, and predicted IoU
            (K, 4); on the CPU.

        """
        device = self.model.device
        encoder, decoder = self.model.prompt_encoder, self.model.mask_decoder
        position = encoder.get_dense_pe()
        results = []
        for start in range(0, len(labels), _BATCH):
            part = slice(start, start + _BATCH)
            sparse, dense = encoder(
                points=(
                    torch.from_numpy(points[part]).to(device),
                    torch.from_numpy(labels[part]).to(device),
                ),
                boxes=None if boxes is None else torch.from_numpy(boxes[part]).to(device),
                masks=None
                if masks is None
                else mask_logits(torch.from_numpy(masks[part]).to(device))[:, None],
            )
            results.append(
                decoder.predict_masks(
                    image_embeddings=view.embedding,
                    image_pe=position,
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                )
            )
        return (
            torch.cat([logits for logits, _ in results]).float().cpu(),
            torch.cat([quality for _, quality in results]).float().cpu(),
        )

    def render(self, view: View, logits: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        """Turn a mask's logits (side, side) into the frame's probability: (H, W) float32."""
        x0, y0, x1, y1 = view.window
        step = self.side / self.size * view.scale  # map pixels for each of the frame's
        matrix = np.array([[step, 0, 0.5 * step - 0.5], [0, step, 0.5 * step - 0.5]])
        enlarged = cv2.warpAffine(
            logits,
            matrix,
            (x1 - x0, y1 - y0),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        probability = np.zeros(size[:2], np.float32)
        probability[y0:y1, x0:x1] = 1.0 / (1.0 + np.exp(-np.clip(enlarged, -30, 30)))
        return probability

    def to_map(self, view: View, coarse: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
        """Sample a (h, w) map of a whole (H, W) frame on the model's mask input: (side, side)."""
        (x0, y0, x1, y1), (height, width) = view.window, size[:2]
        step = self.size / self.side / view.scale  # the frame's pixels for each map pixel
        fx, fy = coarse.shape[1] / width, coarse.shape[0] / height
        matrix = np.array(
            [
                [step * fx, 0, (x0 + 0.5 * step) * fx - 0.5],
                [0, step * fy, (y0 + 0.5 * step) * fy - 0.5],
            ]
        )
        sampled = cv2.warpAffine(
            coarse,
            matrix,
            (self.side, self.side),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_REPLICATE,
        )
        sampled[int(np.ceil((y1 - y0) / step)) :] = 0
        sampled[:, int(np.ceil((x1 - x0) / step)) :] = 0
        return sampled


_predictors: WeakValueDictionary[tuple[str, float, str], SamPredictor] = WeakValueDictionary()


def sam_predictor(checkpoint: str = '', device: str | torch.device = 'auto') -> SamPredictor:
    """
    Load a model, or share it with those who use the same file already.

    Parameters
    ----------
    checkpoint : str
        See :func:`drift_ros.refinement.sam_weights.load_sam`. Empty: the embedded model.
    device : str or torch.device
        'auto', 'cpu' or 'cuda[:n]'.

    Raises
    ------
    CheckpointError

    """
    path = Path(checkpoint).expanduser() if checkpoint else EMBEDDED
    changed = path.stat().st_mtime if path.exists() else 0.0
    key = (str(path), changed, str(device))
    predictor = _predictors.get(key)
    if predictor is None:
        predictor = _predictors[key] = SamPredictor(load_sam(path, device))
    return predictor


def stability(logits: Tensor, offset: float = 1.0) -> Tensor:
    """IoU of masks (..., h, w) of logits thresholded at ``offset`` above and below zero."""
    inner = (logits > offset).sum((-2, -1)).float()
    return inner / (logits > -offset).sum((-2, -1)).clamp_min(1)


def score_candidates(logits: Tensor, quality: Tensor, coarse: Tensor) -> Tensor:
    """
    Score Segment Anything's candidates for an object.

    ``IoU x (2 + predicted IoU + stability) / 4``, where IoU is that of the candidate's
    probability with the coarse one: what disagrees with the tracker scores low however sure the
    model is of it.

    Parameters
    ----------
    logits : Tensor
        (K, N, h, w).
    quality : Tensor
        (K, N), predicted IoU.
    coarse : Tensor
        (K, h, w) in [0, 1].

    Returns
    -------
    Tensor
        (K, N) in [0, 1].

    """
    mask, soft = logits.sigmoid(), coarse[:, None]
    overlap = torch.minimum(mask, soft).sum((-2, -1))
    overlap = overlap / torch.maximum(mask, soft).sum((-2, -1)).clamp_min(1e-6)
    return overlap * (2.0 + quality.clamp(0.0, 1.0) + stability(logits)) / 4.0


class SamRefiner(OnTop):
    """Asks Segment Anything for every object's mask; see docs/refinement.md."""

    def __init__(self, predictor: SamPredictor, smooth: Smoother, *, gate: float) -> None:
        """
        Set the refiner.

        Parameters
        ----------
        predictor : SamPredictor
        smooth : Smoother
            Renders the objects whose masks are not taken.
        gate : float
            Least score (see :func:`score_candidates`) in [0, 1] of a mask that is taken.

        """
        self._predictor = predictor
        self._smooth = smooth
        self._gate = gate

    def refine(self, frame: np.ndarray, coarse: Mapping[int, np.ndarray]) -> '_Segmented':
        """Encode the part of the frame with all objects once and decode them together."""
        smooth = self._smooth.refine(frame, coarse)
        size = frame.shape[:2]
        everything = np.maximum.reduce(list(coarse.values()))
        window = object_window(everything > 0.3, size)
        if window is None:
            return _Segmented(smooth, self._predictor, None, {})
        view = self._predictor.look(frame, window)
        maps = {key: self._predictor.to_map(view, value, size) for key, value in coarse.items()}
        total = np.sum(list(maps.values()), axis=0)
        prompts = {key: read_prompt(own, total - own) for key, own in maps.items()}
        seen = {key: prompt for key, prompt in prompts.items() if prompt is not None}
        if not seen:
            return _Segmented(smooth, self._predictor, None, {})
        factor = self._predictor.size / self._predictor.side
        points, labels = stack_points(
            [((p.points + 0.5) * factor - 0.5, p.labels) for p in seen.values()]
        )
        boxes = np.stack([(p.box + 0.5) * factor - 0.5 for p in seen.values()]).astype(np.float32)
        masks = np.stack([maps[key] for key in seen])
        logits, quality = self._predictor.decode(view, points, labels, boxes, masks)
        best, chosen = score_candidates(logits, quality, torch.from_numpy(masks)).max(dim=1)
        taken = {
            key: logits[row, chosen[row]].numpy()
            for row, key in enumerate(seen)
            if float(best[row]) >= self._gate
        }
        return _Segmented(smooth, self._predictor, view, taken)


class _Segmented:
    def __init__(
        self,
        smooth: Smoothed,
        predictor: SamPredictor,
        view: View | None,
        logits: dict[int, np.ndarray],
    ) -> None:
        self._smooth, self._predictor, self._view = smooth, predictor, view
        self._logits = logits
        self.accepted = frozenset(logits)

    def probability(self, object_id: int) -> np.ndarray:
        if self._view is None or object_id not in self._logits:
            return self._smooth.probability(object_id)
        mask = self._predictor.render(self._view, self._logits[object_id], self._smooth.size)
        return self._smooth.smooth(mask)
