# SPDX-License-Identifier: Apache-2.0
"""Training of a small Segment Anything model: losses, moving average, saving, scores."""

from __future__ import annotations

import copy
from dataclasses import dataclass
import json
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from segment_anything.modeling import Sam
import torch
from torch import Tensor
import torch.nn.functional as F

from drift_ros.refinement.mask_prompts import stack_points
from drift_ros.refinement.sam import mask_logits
from drift_ros.refinement.sam_weights import build_sam
from training.run_folder import draw_curves, Run
from training.sam.cutouts import Cutouts
from training.sam.scenes import compose, person_prompt, tracker_prompt
from training.views import PhotoFolder

DEFAULT_CONFIG = Path(__file__).with_name('config.yaml')
KINDS = ('tracker', 'box', 'click')


@dataclass
class Example:
    """
    One picture and the prompts of its objects, all of one kind; model pixels.

    image : (3, S, S) float32, normalised, zero outside the picture
    target : (K, s, s) float32 in [0, 1], side of the model's masks
    coarse : (K, s, s) float32 in [0, 1], the mask input; None for prompts of a person
    boxes : (K, 4) float32, None for clicks
    points, labels : (K, N, 2) and (K, N) float32, padded with label -1
    """

    image: Tensor
    target: Tensor
    coarse: Tensor | None
    boxes: Tensor | None
    points: Tensor
    labels: Tensor


def make_example(
    cutouts: Cutouts, photos: PhotoFolder, rng: Generator, model: Sam, kind: str
) -> Example:
    """Draw a picture and prompts of a kind (one of KINDS)."""
    size, side = model.image_encoder.img_size, model.prompt_encoder.mask_input_size[0]
    while True:
        picture = compose(cutouts, photos, rng, size)
        kept, prompts, coarse = [], [], []
        for index, mask in enumerate(picture.masks):
            others = np.delete(picture.masks, index, axis=0)
            rest = others.max(0) if len(others) else np.zeros_like(mask)
            if kind == 'tracker':
                made = tracker_prompt(mask, rest, rng, side)
                if made is None:
                    continue
                coarse.append(made[0])
                prompts.append(made[1])
            else:
                prompts.append(person_prompt(mask, rest, rng, kind == 'box'))
            kept.append(mask)
        if kept:
            break
    pixels = torch.from_numpy(picture.image).permute(2, 0, 1).float()
    image = (pixels - model.pixel_mean) / model.pixel_std
    image[:, picture.extent[0] :] = 0
    image[:, :, picture.extent[1] :] = 0
    scale = size / side if kind == 'tracker' else 1.0
    points, labels = stack_points([((p.points + 0.5) * scale - 0.5, p.labels) for p in prompts])
    boxes = torch.from_numpy(np.stack([(p.box + 0.5) * scale - 0.5 for p in prompts]))
    target = np.stack(
        [cv2.resize(mask, (side, side), interpolation=cv2.INTER_AREA) for mask in kept]
    )
    return Example(
        image,
        torch.from_numpy(target),
        torch.from_numpy(np.stack(coarse)) if coarse else None,
        None if kind == 'click' else boxes.float(),
        torch.from_numpy(points),
        torch.from_numpy(labels),
    )


def predict(model: Sam, embedding: Tensor, example: Example) -> tuple[Tensor, Tensor]:
    """Decode an example: logits (K, 4, s, s) and predicted IoU (K, 4)."""
    masks = None if example.coarse is None else mask_logits(example.coarse)[:, None]
    sparse, dense = model.prompt_encoder(
        points=(example.points, example.labels), boxes=example.boxes, masks=masks
    )
    logits, quality = model.mask_decoder.predict_masks(
        image_embeddings=embedding[None],
        image_pe=model.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
    )
    return logits, quality


def _iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU of boolean masks over the last two axes."""
    return ((a & b).sum((-2, -1)).float() / (a | b).sum((-2, -1)).clamp_min(1)).float()


def losses(
    logits: Tensor, quality: Tensor, target: Tensor, edge_weight: float
) -> dict[str, Tensor]:
    """
    Return the losses of one example.

    Focal and dice loss of the first mask, those of the best of the three further ones
    (`candidates`), and the squared error of all predicted IoUs. `logits` is (K, 4, s, s),
    `quality` (K, 4), `target` (K, s, s) in [0, 1].
    """
    t = target[:, None].expand_as(logits)
    p = logits.sigmoid()
    spread = F.max_pool2d(target[:, None], 5, 1, 2) + F.max_pool2d(-target[:, None], 5, 1, 2)
    weight = 1 + edge_weight * spread
    entropy = F.binary_cross_entropy_with_logits(logits, t, reduction='none')
    focal = ((t - p).abs().square() * entropy * weight).mean((-2, -1))
    dice = 1 - (2 * (p * t).sum((-2, -1)) + 1) / (p.sum((-2, -1)) + t.sum((-2, -1)) + 1)
    with torch.no_grad():
        truth = _iou(logits > 0, t > 0.5)
    best = (20 * focal + dice)[:, 1:].min(1).values
    return {
        'focal': focal[:, 0].mean(),
        'dice': dice[:, 0].mean(),
        'candidates': best.mean(),
        'iou': (quality - truth).square().mean(),
    }


def initialise(model: Sam) -> None:
    """Start from a cosine transform as patch embedding and from sinusoidal positions."""
    encoder = model.image_encoder
    weight = encoder.patch_embed.proj.weight  # (width, 3, p, p)
    side = weight.shape[-1]
    k = torch.arange(side)
    basis = torch.cos(math.pi * (k[None] + 0.5) * k[:, None] / side)
    basis = basis / basis.norm(dim=1, keepdim=True)
    order = sorted((i + j, c, i, j) for c in range(3) for i in range(side) for j in range(side))
    mix = torch.tensor([[0.6, 0.6, 0.6], [0.7, 0.0, -0.7], [-0.4, 0.8, -0.4]])
    with torch.no_grad():
        for row, (frequency, c, i, j) in zip(weight, order):
            row.copy_(
                mix[c][:, None, None]
                * basis[i][:, None]
                * basis[j]
                / (4.0 if frequency == 0 else 1.0)
            )
        encoder.patch_embed.proj.bias.zero_()
        pos = encoder.pos_embed  # (1, g, g, width)
        grid, width = pos.shape[1], pos.shape[3]
        rates = torch.exp(torch.linspace(0, math.log(grid / 2), width // 4)) * 2 * math.pi / grid
        angle = torch.arange(grid)[:, None] * rates / 2
        wave = torch.cat([angle.sin(), angle.cos()], 1)  # (g, width / 2)
        pos[0, :, :, : width // 2] = 0.5 * wave[:, None]
        pos[0, :, :, width // 2 :] = 0.5 * wave[None]


class SamTrainer(Run[list[Example]]):
    """
    A run that can be saved and resumed.

    Every step draws its pictures from a generator seeded by (seed, step).

    Parameters
    ----------
    config : as `training.trainer.load_config` returns of DEFAULT_CONFIG
    photos : backgrounds and textures
    cutouts : objects to learn from
    held_back : objects for the scores
    out : run folder: state.pt, history.json, curves.png

    """

    def __init__(
        self,
        config: dict[str, Any],
        photos: PhotoFolder,
        cutouts: Cutouts,
        held_back: Cutouts,
        out: Path,
    ) -> None:
        super().__init__(config, out)
        self.photos, self.cutouts, self.held_back = photos, cutouts, held_back
        torch.manual_seed(config['seed'])
        self.model = build_sam(config['model'])
        initialise(self.model)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=config['learning_rate'],
            betas=(0.9, 0.98),
            weight_decay=config['weight_decay'],
        )

    def batch(self, step: int) -> list[Example]:
        """Return the examples of a step (deterministic)."""
        rng = np.random.default_rng([self.config['seed'], step])
        draw, box = rng.random(), self.config['tracker_share'] + self.config['box_share']
        kind = KINDS[int(draw >= self.config['tracker_share']) + int(draw >= box)]
        return [
            make_example(self.cutouts, self.photos, rng, self.average, kind)
            for _ in range(self.config['batch'])
        ]

    def _rate(self) -> float:
        c = self.config
        warm = min(1.0, (self.step + 1) / c['warmup'])
        return (
            c['learning_rate']
            * warm
            * 0.5
            * (1.02 + 0.98 * math.cos(math.pi * min(1.0, self.step / c['steps'])))
        )

    def train_step(self, batch: list[Example]) -> dict[str, float]:
        """Take one optimiser step and return the scalars of it."""
        c = self.config
        embeddings = self.model.image_encoder(torch.stack([e.image for e in batch]))
        parts = []
        for embedding, example in zip(embeddings, batch):
            logits, quality = predict(self.model, embedding, example)
            parts.append(losses(logits, quality, example.target, c['edge_weight']))
        means = {name: torch.stack([p[name] for p in parts]).mean() for name in parts[0]}
        total = torch.stack([c['weights'][name] * value for name, value in means.items()]).sum()
        for group in self.optimizer.param_groups:
            group['lr'] = self._rate()
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), c['gradient_clip'])
        self.optimizer.step()
        # a young average forgets faster, so that it is usable early
        decay = min(c['ema'], (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()),
                [p.detach() for p in self.model.parameters()],
                1 - decay,
            )
        self.step += 1
        row = {
            'step': float(self.step),
            'loss': float(total.detach()),
            **{name: float(value.detach()) for name, value in means.items()},
        }
        self.history.append(row)
        return row

    @torch.no_grad()
    def check(self) -> dict[str, float]:
        """Return the averaged model's mean IoU on held-back cut-outs, by kind of prompt."""
        scores: dict[str, list[float]] = {'coarse': [], **{kind: [] for kind in KINDS}}
        for index in range(self.config['check_pictures']):
            rng = np.random.default_rng([self.config['seed'], 7, index])
            for kind in KINDS:
                example = make_example(self.held_back, self.photos, rng, self.average, kind)
                embedding = self.average.image_encoder(example.image[None])[0]
                logits, _ = predict(self.average, embedding, example)
                truth = example.target > 0.5
                scores[kind] += _iou(logits[:, 0] > 0, truth).tolist()
                if example.coarse is not None:
                    scores['coarse'] += _iou(example.coarse > 0.5, truth).tolist()
        return {f'iou_{name}': float(np.mean(values)) for name, values in scores.items()}

    def scores(self, last: bool) -> dict[str, float]:
        """Return those of `check` every `check_every` steps and after the last one."""
        return self.check() if self.step % self.config['check_every'] == 0 or last else {}

    def state(self) -> dict[str, Any]:
        """Return weights, their average and the optimiser."""
        return {
            'model': self.model.state_dict(),
            'average': self.average.state_dict(),
            'optimizer': self.optimizer.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over the state of a run of the same configuration."""
        self.model.load_state_dict(state['model'])
        self.average.load_state_dict(state['average'])
        self.optimizer.load_state_dict(state['optimizer'])

    def export(self, folder: Path) -> None:
        """Write the averaged weights in half precision and the configuration beside them."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        weights = {
            name: value.half().contiguous() for name, value in self.average.state_dict().items()
        }
        save_file(weights, folder / 'model.safetensors')
        notes = {
            'model': self.config['model'],
            'training_steps': self.step,
            'batch': self.config['batch'],
        }
        (folder / 'config.json').write_text(json.dumps(notes, indent=2) + '\n')


def plot_curves(history: list[dict[str, float]], path: Path) -> None:
    """Draw the losses and the scores over the steps."""
    panels = [
        ('focal loss', ['focal']),
        ('dice loss', ['dice']),
        ('IoU prediction', ['iou']),
        ('IoU, held-back cut-outs', ['iou_coarse', 'iou_tracker', 'iou_box', 'iou_click']),
    ]

    def draw(axis: Any, name: str, x: np.ndarray, y: np.ndarray) -> None:
        if name.startswith('iou_'):
            axis.plot(x, y, '.-', label=name.removeprefix('iou_'))
            return
        window = max(1, min(100, len(y) // 8))
        axis.plot(x, y, alpha=0.15, color='tab:grey')
        axis.plot(x[window - 1 :], np.convolve(y, np.ones(window) / window, 'valid'))
        axis.set_yscale('log')

    draw_curves(history, panels, draw, path)
