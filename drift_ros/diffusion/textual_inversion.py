# SPDX-License-Identifier: Apache-2.0
"""
Mask-specific textual inversion: prompt tokens that attend to one object each.

Source: DRIFT (arXiv 2511.19936), section 3, after textual inversion (Gal et al., arXiv
2208.01618). A few tokens per object are learnt such that the U-Net's own cross-attention, summed
over an object's tokens, reproduces the object's seed mask; later passes are conditioned on them.

Differences from the paper's offline procedure, for bounded time and many objects:

- Tokens live where cross-attention reads them, behind the text encoder. Objects can then be put
  together in one prompt without changing each other's tokens, and no text encoder is needed.
- The objective is the cross-entropy of each token's share of attention with the mask, plus the
  Dice loss of the whole map; layers in the middle of the U-Net count, where cross-attention is
  known to follow objects (a half and a quarter of the latents' resolution).
- Within a step the U-Net's queries stay as they are and only the keys follow the tokens: a step
  is a few matrix products, without a pass of the U-Net and without its gradients. Every
  ``_ROUND`` steps the queries are taken anew from a pass under the present tokens. Only such
  moments, at which the map is the network's own, decide which tokens are the best.
- There is a budget in seconds. The learning rate falls along a cosine to 0 at the last step or
  at the end of the budget, whichever comes first.
"""

from collections.abc import Generator, Mapping, Sequence
import contextlib
from dataclasses import dataclass
from functools import partial
import math
import time

import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F

from drift_ros.diffusion.attention import (
    attention_layers,
    AttentionReader,
    capturing,
    PassEnded,
    split_heads,
    token_grid,
)
from drift_ros.diffusion.features import DiffusionFeatures

# Steps between two passes of the network.
_ROUND = 50
# Steps without an improvement of the loss by this share end the learning.
_PATIENCE = 100
_LEAST_GAIN = 0.005
# The latents' resolution over that of the cross-attention layers that are looked at.
_STRIDES = (2, 4)


@dataclass(frozen=True)
class MarkedImage:
    """One seed frame: image (h, w, 3) uint8 of the working size, masks (h', w', K), ids (K)."""

    image: np.ndarray
    masks: Tensor
    object_ids: tuple[int, ...]


@dataclass(frozen=True)
class OptimizeStep:
    """
    What one step of learning says of the objects.

    Attributes
    ----------
    step, steps : int
        Steps taken, and steps at most.
    loss : dict of int to float
        Value of the objective by object id; empty while seed frames are looked at.
    agreement : dict of int to float
        Intersection over union of the attention map, cut at half its maximum, with the mask.

    """

    step: int
    steps: int
    loss: dict[int, float]
    agreement: dict[int, float]


@dataclass(frozen=True)
class OptimizeResult:
    """Agreement with the masks before and after, by object id; steps taken; seconds spent."""

    before: dict[int, float]
    after: dict[int, float]
    steps: int
    seconds: float


class TextualInversion:
    """Learns the tokens of some objects, one step at a time."""

    def __init__(
        self,
        features: DiffusionFeatures,
        seeds: Sequence[MarkedImage],
        others: Mapping[int, Tensor],
        *,
        tokens: int,
        steps: int,
        budget: float,
        rate: float,
    ) -> None:
        """
        Prepare.

        Parameters
        ----------
        features : DiffusionFeatures
            The model, with its noise level; nothing of it is changed.
        seeds : sequence of MarkedImage
            Frames in which the objects are marked.
        others : mapping of int to Tensor
            Tokens (n, width) of objects learnt before; they stay in the prompt.
        tokens, steps, budget, rate
            Tokens per object, steps at most, seconds, and the learning rate at the start in
            units of the prompt's standard deviation.

        """
        self._features = features
        self._seeds = list(seeds)
        self._steps, self._budget = steps, budget
        self._base = features.checkpoint.prompt.clone().float()
        self._rate = rate * float(self._base.std())
        self._size = tokens
        generator = torch.Generator().manual_seed(0)
        ids = sorted({number for seed in seeds for number in seed.object_ids})
        # What follows the start token of the prompt, a little apart from each other.
        content = self._base[0, 1 : 2 + tokens].repeat(tokens, 1)[:tokens]
        self._learnt = {
            number: (
                content
                + 0.1
                * self._base.std().cpu()
                * torch.randn(content.shape, generator=generator).to(content)
            ).requires_grad_()
            for number in ids
        }
        self._others = {key: value for key, value in others.items() if key not in self._learnt}
        self._best = self.tokens

    @property
    def tokens(self) -> dict[int, Tensor]:
        """Tokens (n, width) float32 of all objects, as they are now."""
        return {
            **self._others,
            **{key: value.detach().clone() for key, value in self._learnt.items()},
        }

    def run(self) -> Generator[OptimizeStep, None, OptimizeResult]:
        """
        Learn; gives control back after every step, at most one pass of the network each.

        After it ended, :attr:`best` are the tokens of the lowest loss.
        """
        # The time between steps, when others work, is not spent.
        spent, tick = 0.0, time.perf_counter()
        optimizer = torch.optim.Adam(list(self._learnt.values()), lr=self._rate)
        scale = 1024.0 if self._features.checkpoint.dtype == torch.float16 else 1.0
        views: list[_View] = []
        for seed in self._seeds:
            views.append(self._look(seed))
            spent += time.perf_counter() - tick
            yield OptimizeStep(0, self._steps, {}, {})
            tick = time.perf_counter()
        before: dict[int, float] = {}
        after: dict[int, float] = {}
        lowest, reference, patience, step = math.inf, math.inf, 0, 0
        while True:
            turn = step % _ROUND
            if step and turn < len(views):
                views[turn] = self._look(self._seeds[turn], views[turn])
            with torch.enable_grad():
                losses, agreement = self._evaluate(views)
                total = torch.stack(list(losses.values())).mean()
            value = float(total.detach())
            if turn == len(views) - 1 or not step:  # every map is the network's own
                before = before or agreement
                if value < lowest:
                    lowest, self._best, after = value, self.tokens, agreement
            patience += 1
            if value < reference * (1.0 - _LEAST_GAIN):
                reference, patience = value, 0
            finished = step >= self._steps or spent >= self._budget or patience >= _PATIENCE
            if not finished:
                progress = max(step / self._steps, spent / self._budget)
                for group in optimizer.param_groups:
                    group['lr'] = self._rate * 0.5 * (1.0 + math.cos(math.pi * progress))
                optimizer.zero_grad()
                (scale * total).backward()
                optimizer.step()
                step += 1
            spent += time.perf_counter() - tick
            yield OptimizeStep(
                step,
                self._steps,
                {number: float(loss.detach()) for number, loss in losses.items()},
                agreement,
            )
            tick = time.perf_counter()
            if finished:
                break
        for index, seed in enumerate(self._seeds):
            views[index] = self._look(seed, views[index])
            spent += time.perf_counter() - tick
            yield OptimizeStep(step, self._steps, {}, {})
            tick = time.perf_counter()
        with torch.no_grad():
            losses, agreement = self._evaluate(views)
        if float(torch.stack(list(losses.values())).mean()) < lowest:
            self._best, after = self.tokens, agreement
        return OptimizeResult(before, after, step, spent + time.perf_counter() - tick)

    @property
    def best(self) -> dict[int, Tensor]:
        """Tokens (n, width) of all objects at the lowest loss so far."""
        return self._best

    def _look(self, seed: MarkedImage, earlier: '_View | None' = None) -> '_View':
        """Take the queries of a seed frame from a pass under the present tokens."""
        features = self._features
        unet = features.checkpoint.unet
        names = attention_layers(unet, '.attn2') if earlier is None else list(earlier.queries)
        queries: dict[str, Tensor] = {}

        def read(name: str, attn: torch.nn.Module, states: Tensor) -> None:
            queries[name] = split_heads(attn, attn.to_q(states), attn.norm_q)[0].float()

        processors = {
            name: partial(
                AttentionReader,
                read=partial(read, name),
                last=earlier is not None and name == names[-1],
            )
            for name in names
        }
        prompt = join_prompt(self._base, self.tokens).to(features.checkpoint.dtype)
        latents = features.noisy(features.encode(seed.image))[:1]
        with features.checkpoint.lock, torch.no_grad():
            with capturing(unet, processors), contextlib.suppress(PassEnded):
                features.run_unet(latents, prompt=prompt)
        if earlier is not None:
            return _View(seed, queries, earlier.grids)
        size = (latents.shape[-2], latents.shape[-1])
        grids = {name: token_grid(queries[name].shape[1], size) for name in names}
        chosen = [name for name in names if round(size[0] / grids[name][0]) in _STRIDES] or names
        return _View(
            seed,
            {name: queries[name] for name in chosen},
            {name: grids[name] for name in chosen},
        )

    def _evaluate(self, views: Sequence['_View']) -> tuple[dict[int, Tensor], dict[int, float]]:
        """Objective and agreement of each object, differentiable in the tokens."""
        checkpoint = self._features.checkpoint
        tokens = {**self._others, **self._learnt}
        prompt = join_prompt(self._base, tokens).to(checkpoint.dtype)
        order = sorted(tokens)
        places = {}
        first = 1
        for number in order:
            places[number] = slice(first, first + len(tokens[number]))
            first += len(tokens[number])
        keys = {
            name: _key(checkpoint.unet.get_submodule(name), prompt)
            for name in {name for view in views for name in view.queries}
        }
        losses, found = {}, {}
        for view in views:
            finest = max(view.grids.values())
            maps = []
            for name, query in view.queries.items():
                logits = query @ keys[name].transpose(1, 2) * query.shape[-1] ** -0.5
                shares = logits.softmax(dim=-1).mean(dim=0)  # (tokens, tokens of the prompt)
                shares = shares.T.unflatten(-1, view.grids[name])[None]
                maps.append(F.interpolate(shares, finest, mode='bilinear', align_corners=False))
            shares = torch.stack(maps).mean(dim=0)[0]
            for column, number in enumerate(view.seed.object_ids):
                share = shares[places[number]].sum(dim=0).clamp(1e-6, 1 - 1e-6)
                mask = view.seed.masks[..., column][None, None]
                target = F.adaptive_avg_pool2d(mask, finest)[0, 0].to(share)
                overlap = 2.0 * (share * target).sum() / (share.sum() + target.sum())
                losses[number] = F.binary_cross_entropy(share, target) + 1.0 - overlap
                found[number] = _agreement(share.detach(), target)
        return losses, found


@dataclass(frozen=True)
class _View:
    """A seed frame's queries (heads, tokens, d) float32 and token grids, by layer."""

    seed: MarkedImage
    queries: dict[str, Tensor]
    grids: dict[str, tuple[int, int]]


def join_prompt(base: Tensor, tokens: Mapping[int, Tensor]) -> Tensor:
    """
    Put the tokens of all objects behind the start token of a prompt.

    Parameters
    ----------
    base : Tensor
        (1, length, width), states of a padded prompt.
    tokens : mapping of int to Tensor
        (n, width) by object id; they are put in order of the ids.

    Returns
    -------
    Tensor
        (1, length, width): start token, learnt tokens, then the prompt as it was, as long as the
        text encoder pads it; longer only when the learnt tokens alone are.

    """
    learnt = [tokens[key].to(base) for key in sorted(tokens)]
    joined = torch.cat([base[0, :1], *learnt, base[0, 1:]])
    length = max(base.shape[1], 2 + sum(len(part) for part in learnt))
    return joined[None, :length]


def prompt_reaches(features: DiffusionFeatures) -> bool:
    """Whether the prompt can change what is captured: whether cross-attention comes before."""
    unet = features.checkpoint.unet
    if features.inverts and attention_layers(unet, '.attn2'):
        return True
    order = attention_layers(unet, '.attn1', '.attn2')
    return any(name.endswith('.attn2') for name in order[: order.index(features.layers[-1])])


def _agreement(share: Tensor, target: Tensor) -> float:
    inside = share >= 0.5 * share.max()
    wanted = target >= 0.5 * target.max()
    return float((inside & wanted).sum() / (inside | wanted).sum())


def _key(attn: torch.nn.Module, prompt: Tensor) -> Tensor:
    """Keys (heads, tokens, d) float32 of a prompt, as the stock processors make them."""
    if attn.norm_cross:
        prompt = attn.norm_encoder_hidden_states(prompt)
    return split_heads(attn, attn.to_k(prompt), attn.norm_k)[0].float()
