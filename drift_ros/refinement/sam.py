# SPDX-License-Identifier: Apache-2.0
"""Refinement by Segment Anything (Kirillov et al. 2023)."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
from segment_anything.modeling import Sam
import torch
from torch import Tensor

from drift_ros.refinement.colour import ColourSolver
from drift_ros.refinement.mask_prompts import read_prompt, stack_points
from drift_ros.refinement.refiner import Interpolated, Refined, SeedLook
from drift_ros.refinement.sam_weights import EMBEDDED, load_sam
from drift_ros.refinement.window import place, Window

# Segment Anything's mask input is the logits of an earlier prediction. Ours come from
# probabilities, whose logits have no bound.
_LOGIT_LIMIT = 8.0
# Objects decoded at once.
_BATCH = 16


def mask_logits(probability: Tensor) -> Tensor:
    """Turn probabilities in [0, 1] into the logits a mask input consists of, same shape."""
    return torch.logit(probability, eps=1e-6).clamp(-_LOGIT_LIMIT, _LOGIT_LIMIT)


@dataclass(frozen=True, eq=False)
class EncodedWindow:
    """
    A window of a frame as the model has encoded it, padded at right and bottom to a square.

    Attributes
    ----------
    window : Window
        At the scale of the model's input.
    maps : Window
        The same at the scale of mask inputs and of the masks that come out.
    embedding : Tensor
        (1, C, g, g) of the image encoder.

    """

    window: Window
    maps: Window
    embedding: Tensor


class SamCoder:
    """
    A Segment Anything model that encodes a window once and decodes any number of prompts in it.

    The ``SamPredictor`` of segment_anything takes whole frames and one prompt after the other,
    and holds the frame it looks at; this holds nothing.
    """

    def __init__(self, model: Sam) -> None:
        """Use a model as :func:`drift_ros.refinement.sam_weights.load_sam` gives it."""
        self.model = model
        self.size = int(model.image_encoder.img_size)
        self.side = int(model.prompt_encoder.mask_input_size[0])
        """Side of mask inputs and of the masks that come out."""

    @torch.inference_mode()
    def encode(self, frame: np.ndarray, window: Window) -> EncodedWindow:
        """Encode a window, of any scale, of a frame (H, W, 3) uint8 RGB."""
        window = window.scaled_to_side(self.size)
        pixels = torch.from_numpy(window.crop(frame))
        image = pixels.to(self.model.device).permute(2, 0, 1).float()
        embedding = self.model.image_encoder(self.model.preprocess(image)[None])
        return EncodedWindow(window, window.scaled_to_side(self.side), embedding)

    @torch.inference_mode()
    def decode(
        self,
        encoded: EncodedWindow,
        points: np.ndarray,
        labels: np.ndarray,
        boxes: np.ndarray | None,
        masks: np.ndarray | None,
    ) -> tuple[Tensor, Tensor]:
        """
        Decode prompts in pixels of the model.

        Parameters
        ----------
        encoded : EncodedWindow
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
                    image_embeddings=encoded.embedding,
                    image_pe=position,
                    sparse_prompt_embeddings=sparse,
                    dense_prompt_embeddings=dense,
                )
            )
        return (
            torch.cat([logits for logits, _ in results]).float().cpu(),
            torch.cat([quality for _, quality in results]).float().cpu(),
        )

    def render(self, encoded: EncodedWindow, logits: np.ndarray) -> np.ndarray:
        """Turn a mask's logits (side, side) into the frame's probability: (H, W) float32."""
        maps = encoded.maps
        probability = 1.0 / (1.0 + np.exp(-np.clip(maps.enlarge_map(logits), -30, 30)))
        return place(probability, maps.slices, maps.frame)

    def to_map(self, encoded: EncodedWindow, values: np.ndarray) -> np.ndarray:
        """Sample a (h, w) map of the whole frame on the model's mask input: (side, side)."""
        return encoded.maps.sample(values, (self.side, self.side))


_coders: WeakValueDictionary[tuple[str, float, str], SamCoder] = WeakValueDictionary()


def shared_sam(checkpoint: str = '', device: str | torch.device = 'auto') -> SamCoder:
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
    coder = _coders.get(key)
    if coder is None:
        coder = _coders[key] = SamCoder(load_sam(path, device))
    return coder


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


class SamRefiner:
    """Asks Segment Anything for every object's mask; see docs/refinement.md."""

    def __init__(self, coder: SamCoder, colour: ColourSolver, *, gate: float) -> None:
        """
        Set the refiner.

        Parameters
        ----------
        coder : SamCoder
        colour : ColourSolver
            Renders the objects whose masks are not taken, and smooths those that are.
        gate : float
            Least score (see :func:`score_candidates`) in [0, 1] of a mask that is taken.

        """
        self._coder = coder
        self._colour = colour
        self._gate = gate

    def remember(self, frame: np.ndarray, masks: Mapping[int, np.ndarray]) -> dict[int, SeedLook]:
        """Look at new objects in their seed frame, for the colour solver."""
        return self._colour.remember(frame, masks)

    def refine(
        self,
        frame: np.ndarray,
        coarse: Mapping[int, np.ndarray],
        looks: Mapping[int, SeedLook],
        number: int,
    ) -> Refined:
        """Encode the part of the frame with all objects once and decode them together."""
        coloured = self._colour.refine(frame, coarse, looks, number)
        if not coarse:
            return coloured
        window = Window.around(np.maximum.reduce(list(coarse.values())) > 0.3, frame.shape)
        if window is None:
            return coloured
        coder = self._coder
        encoded = coder.encode(frame, window)
        maps = {key: coder.to_map(encoded, value) for key, value in coarse.items()}
        total = np.sum(list(maps.values()), axis=0)
        prompts = {key: read_prompt(own, total - own) for key, own in maps.items()}
        seen = {key: prompt for key, prompt in prompts.items() if prompt is not None}
        if not seen:
            return coloured
        factor = coder.size / coder.side
        points, labels = stack_points(
            [((p.points + 0.5) * factor - 0.5, p.labels) for p in seen.values()]
        )
        boxes = np.stack([(p.box + 0.5) * factor - 0.5 for p in seen.values()]).astype(np.float32)
        masks = np.stack([maps[key] for key in seen])
        logits, quality = coder.decode(encoded, points, labels, boxes, masks)
        best, chosen = score_candidates(logits, quality, torch.from_numpy(masks)).max(dim=1)
        taken = {
            key: logits[row, chosen[row]].numpy()
            for row, key in enumerate(seen)
            if float(best[row]) >= self._gate
        }
        return _Segmented(coloured, coder, encoded, taken)


class _Segmented:
    """Masks of Segment Anything where they were taken, of the colour solver elsewhere."""

    def __init__(
        self,
        coloured: Interpolated,
        coder: SamCoder,
        encoded: EncodedWindow,
        logits: dict[int, np.ndarray],
    ) -> None:
        self._coloured, self._coder, self._encoded = coloured, coder, encoded
        self._logits = logits

    def probability(self, object_id: int) -> np.ndarray:
        """Render an object: (H, W) float32 in [0, 1]."""
        if object_id not in self._logits:
            return self._coloured.probability(object_id)
        mask = self._coder.render(self._encoded, self._logits[object_id])
        return self._coloured.smooth(mask)

    def piece(self, object_id: int) -> tuple[tuple[slice, slice], np.ndarray]:
        """Render an object where it is only."""
        if object_id not in self._logits:
            return self._coloured.piece(object_id)
        area = self._encoded.window.slices
        return area, self.probability(object_id)[area]
