# SPDX-License-Identifier: Apache-2.0
"""
Online prompt: what each object looks like against everything else, solved in closed form.

DRIFT (arXiv 2511.19936) learns, offline, prompt tokens whose cross-attention marks the object.
What a token does in a layer is offer a key to that layer's queries, and "object or not" by a key
is a linear decision. Here that decision is a ridge regression on features of the queries, learnt
from the seed mask and from every later frame that is sure: a discriminative target model as in
FRTM (Robinson et al., "Learning Fast and Robust Target Models for Video Object Segmentation",
CVPR 2020) and LWL (Bhat et al., "Learning What to Learn for Video Object Segmentation", ECCV
2020), whose few parameters are solved for exactly rather than by steps of an optimiser.

All objects share one system. Each class (one for every object, one for the rest) is known by its
second moments alone, weighs as much as any other, and an object is told from the rest and from
all other objects. So memory is bounded, an object's statistics go with it, and a further object
costs one more right-hand side.

Values are never changed in place: every method gives a new model.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import torch
from torch import Tensor
import torch.nn.functional as F

from drift_ros.engine import decide
from drift_ros.engine.existence import (
    evenly,
    ExistenceOptions,
    probability,
    show,
    Shown,
    Traits,
)
from drift_ros.engine.frame_features import FrameFeatures
from drift_ros.engine.reference import Reference

# What lies so many tokens around an object in its seed frame is learnt with more weight.
_RIM = 4


@dataclass(frozen=True)
class PromptOptions:
    """
    How the online prompt looks, learns and votes; the defaults were chosen on videos.

    Attributes
    ----------
    fourier : int
        Random Fourier features of the inputs; a constant is the last feature.
    width : float
        Deviation of their frequencies: the larger, the finer the distinctions.
    amplitude : float
        Of the Fourier features together, where the inputs have unit length.
    ridge : float
        Regulariser.
    mass : float
        Weight of each class in a frame.
    every : int
        Only every so many frames weights are solved anew; that frame stands for the others.
    rate : float
        Weight of a later frame against the seed frame.
    samples : int
        Tokens of a class that are learnt from in a later frame, evenly chosen.
    hard : float
        Share of the mass, and of the samples, of what is not an object that goes to tokens the
        kernel took for one.
    forgetting : float
        Share of what later frames taught that is forgotten with each of them; what the seed
        frame taught is not.
    clip : float
        Scores vote by this much at most, in units of log-odds.
    gain : float
        Log-odds of a score of 1.
    floor : float
        Where an object is less probable than this, its score has no vote.
    existence : ExistenceOptions
        How it is told whether an object is there.

    """

    fourier: int = 384
    width: float = 1.0
    amplitude: float = 3.0
    ridge: float = 1.0
    mass: float = 500.0
    every: int = 2
    rate: float = 0.2
    samples: int = 512
    hard: float = 0.5
    forgetting: float = 0.02
    clip: float = 1.5
    gain: float = 1.0
    floor: float = 0.005
    existence: ExistenceOptions = field(default_factory=ExistenceOptions)


def describe(features: FrameFeatures) -> Tensor:
    """
    Join what all layers and heads say of each token.

    Parameters
    ----------
    features : FrameFeatures

    Returns
    -------
    Tensor
        (h, w, c) float32 on the finest grid, of unit length.

    """
    grid = features.grid
    layers = []
    for layer in features.layers:
        joint = layer.query.float().permute(1, 2, 0, 3).flatten(2)  # (h, w, heads * d)
        if joint.shape[:2] != grid:
            wide = joint.permute(2, 0, 1)[None]
            wide = F.interpolate(wide, grid, mode='bilinear', align_corners=False)
            joint = wide[0].permute(1, 2, 0)
        layers.append(F.normalize(joint, dim=-1) * len(features.layers) ** -0.5)
    return torch.cat(layers, dim=-1) if len(layers) > 1 else layers[0]


def waves(inputs: Tensor, options: PromptOptions) -> Tensor:
    """
    Give random Fourier features of tokens: inner products of them fall with distance.

    (n, c) to (n, ``options.fourier``) float32; Rahimi and Recht, "Random features for large-scale
    kernel machines", NIPS 2007.
    """
    frequencies, phases = _frequencies(inputs.shape[1], options.fourier, inputs.device)
    made = torch.addmm(phases, inputs, frequencies * options.width).cos_()
    return made.mul_(options.amplitude * (2.0 / options.fourier) ** 0.5)


@dataclass(frozen=True)
class TargetModel:
    """
    What is known of all objects: statistics, and the weights solved from them.

    Attributes
    ----------
    options : PromptOptions
    object_ids : tuple of int
        The K objects, in the order of everything below.
    seed_objects, seed_rest : Tensor
        (K, D, D) float32, second moments of the features of each object, and of what was neither
        it nor another object, in its seed frame. The last feature is 1: the last column holds the
        features' sum, the last element the weight of all samples.
    seen_objects : Tensor
        (K, D, D) float32, of each object in later frames.
    seen_rest : Tensor
        (D, D) float32, of what was no object in later frames.
    traits : tuple of Traits
        K, how each object looks, and what it usually shows.
    weights : Tensor
        (D, K) float32.
    frames : int
        Learnt from, or passed over, since the last seed.

    """

    options: PromptOptions
    object_ids: tuple[int, ...]
    seed_objects: Tensor
    seed_rest: Tensor
    seen_objects: Tensor
    seen_rest: Tensor
    traits: tuple[Traits, ...]
    weights: Tensor
    frames: int = 0

    @classmethod
    def empty(cls, options: PromptOptions | None = None) -> TargetModel:
        """Know nothing."""
        none = torch.zeros(0, 0, 0)
        return cls(options or PromptOptions(), (), none, none, none, none, (), none)

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        held = [value for value in vars(self).values() if isinstance(value, Tensor)]
        return sum(tensor.nbytes for tensor in (*held, *(one.looks for one in self.traits)))

    def seeded(
        self,
        tokens: Tensor,
        shares: Tensor,
        object_ids: Sequence[int],
        others: Tensor | None = None,
    ) -> TargetModel:
        """
        Learn objects from masks: new ones, or known ones anew.

        Of a known object what later frames taught is forgotten, and its seeds count half as much
        as the new one.

        Parameters
        ----------
        tokens : Tensor
            (h, w, c), see :func:`describe`.
        shares : Tensor
            (h, w, K) in [0, 1], share of each token that each object covers.
        object_ids : sequence of int
            Ids of the K objects.
        others : Tensor, optional
            (h, w) in [0, 1], share of each token that belongs to objects not among these.

        """
        inputs = tokens.flatten(0, 1)
        shares = shares.flatten(0, 1).to(inputs)
        rest = 1.0 - shares.sum(dim=-1)
        if others is not None:
            rest = rest - others.flatten().to(inputs)
        taken = (1.0 - rest).unflatten(0, tokens.shape[:2])[None]
        near = F.max_pool2d(taken, 2 * _RIM + 1, 1, _RIM)[0] > 0.0
        free = (rest > 0.99).unflatten(0, tokens.shape[:2])
        rest = (2.0 * rest - 1.0).clamp(0.0, 1.0)
        rest_moments = self._rest_moments(inputs, rest, 0, near)
        known = self._known()
        for k, number in enumerate(object_ids):
            weight = (2.0 * shares[:, k] - 1.0).clamp(0.0, 1.0)
            if not bool((weight > 0).any()):  # smaller than any token
                weight = shares[:, k]
            moments, around = self._moments(inputs, weight, 0), rest_moments
            if number in known:
                moments = (known[number].seed + 2.0 * moments) / 3.0
                around = (known[number].rest + 2.0 * around) / 3.0
            known[number] = _Known(
                seed=moments,
                rest=around,
                seen=torch.zeros_like(moments),
                traits=Traits.of(
                    tokens, weight.unflatten(0, tokens.shape[:2]), free, self.options.existence
                ),
            )
        seen_rest = self.seen_rest if self.object_ids else torch.zeros_like(rest_moments)
        return self._solved(known, seen_rest)

    def learnt(
        self,
        tokens: Tensor,
        judged: Judgement,
        object_ids: Sequence[int],
        sure: Sequence[bool],
    ) -> TargetModel:
        """
        Learn from a frame the objects were found in.

        Parameters
        ----------
        tokens : Tensor
            (h, w, c), see :func:`describe`.
        judged : Judgement
            Of the same frame, see :meth:`judge`.
        object_ids : sequence of int
            Ids of the K objects, in the order of the judgement's channels.
        sure : sequence of bool
            Whether each of them is known to be where it was judged to be. Nothing is learnt of
            the others, nor of the tokens that may be theirs.

        """
        if not any(sure):
            return self
        options, count = self.options, self.options.samples
        inputs = tokens.flatten(0, 1)
        # maps one after the other: what follows goes through one at a time
        weights = (2.0 * judged.soft - 1.0).clamp_min_(0.0).permute(2, 0, 1).contiguous()
        held = weights.flatten(1).amax(dim=1).tolist()
        due = self.frames % options.every == 0
        kept, rate = (1.0 - options.forgetting) ** options.every, options.rate * options.every
        traits, seen = list(self.traits), self.seen_objects
        if due:
            seen = seen.clone()
        for k, number in enumerate(self.object_ids):
            channel = object_ids.index(number)
            weight, shown = weights[1 + channel], judged.shown.get(number)
            if not sure[channel] or shown is None or not held[1 + channel]:
                continue
            traits[k] = traits[k].after(tokens, weight, shown, options.existence)
            if due:
                moments = self._moments(inputs, weight.flatten(), count)
                torch.add(moments.mul_(rate), seen[k], alpha=kept, out=seen[k])
        model = replace(self, traits=tuple(traits), frames=self.frames + 1)
        if not due:
            return model
        rest = self._rest_moments(inputs, weights[0].flatten(), count, judged.near)
        rest = kept * self.seen_rest + rate * rest
        solved = self._weights(self.seed_objects, self.seed_rest, seen, rest)
        return replace(model, seen_objects=seen, seen_rest=rest, weights=solved)

    def again(self, marked: Iterable[tuple[Reference, Tensor, list[int]]]) -> TargetModel:
        """Learn only what is marked: seed frames, masks (h, w, K) and ids of the K objects."""
        model = TargetModel.empty(self.options)
        for seed, masks, ids in marked:
            if ids:
                tokens = describe(seed.features)
                model = model.seeded(tokens, masks, ids, seed.beside(masks))
        return model

    def without(self, object_id: int) -> TargetModel:
        """Forget an object."""
        if object_id not in self.object_ids:
            return self
        known = self._known()
        del known[object_id]
        return self._solved(known, self.seen_rest) if known else TargetModel.empty(self.options)

    def scores(
        self, tokens: Tensor, object_ids: Sequence[int], where: Tensor | None = None
    ) -> Tensor:
        """
        Tell how much each token looks like each object: 1 as in it, -1 as outside.

        Parameters
        ----------
        tokens : Tensor
            (h, w, c), see :func:`describe`.
        object_ids : sequence of int
        where : Tensor, optional
            (h, w) bool, the tokens to look at; the others score 0.

        Returns
        -------
        Tensor
            (h, w, K) float32.

        """
        if not object_ids:
            return tokens.new_zeros(*tokens.shape[:2], 0)
        columns = [self.object_ids.index(number) for number in object_ids]
        weights = self.weights[:, columns]
        looked = tokens.flatten(0, 1) if where is None else tokens[where]
        found = torch.addmm(
            weights[-1], waves(looked, self.options), weights[:-1]
        )  # the last feature is 1
        if where is None:
            return found.unflatten(0, tokens.shape[:2])
        scores = tokens.new_zeros(*tokens.shape[:2], len(columns))
        scores[where] = found
        return scores

    def judge(
        self,
        tokens: Tensor,
        kernel: Tensor,
        object_ids: Sequence[int],
        asked: Collection[int] | None = None,
        scores: Tensor | None = None,
    ) -> Judgement:
        """
        Vote on what the kernel says of a frame, and tell which objects are there.

        Parameters
        ----------
        tokens : Tensor
            (h, w, c), see :func:`describe`.
        kernel : Tensor
            (h, w, 1 + K) in [0, 1], the kernel's probabilities.
        object_ids : sequence of int
            Ids of the K objects, in the order of channels.
        asked : collection of int, optional
            Ids of the objects of which it is told whether they are there. None: all.
        scores : Tensor, optional
            :meth:`scores` of all tokens, where they are known.

        """
        near = (kernel[..., 1:] > self.options.floor).any(dim=-1)
        if scores is None:
            scores = self.scores(tokens, object_ids, near)
        else:
            scores = scores * near[..., None]
        soft = combine(kernel, scores, self.options)
        options, traits = self.options.existence, dict(zip(self.object_ids, self.traits))
        # maps one after the other: what follows goes through one at a time
        maps = [each.permute(2, 0, 1).contiguous() for each in (kernel, soft, scores)]
        seen = (maps[1][1:].flatten(1).amax(dim=1) > self.options.floor).tolist()
        shown: dict[int, Shown | None] = {}
        existence: dict[int, float] = {}
        for k, number in enumerate(object_ids):
            if asked is not None and number not in asked:
                continue
            own = traits[number]
            parts = (maps[0][1 + k], maps[1][1 + k], maps[2][k])
            one = show(tokens, *parts, own, options) if seen[k] else None
            shown[number], existence[number] = one, probability(one, own, options)
        return Judgement(kernel, soft, near, existence, shown)

    def _known(self) -> dict[int, _Known]:
        """What is known of each object, by id."""
        parts = (self.seed_objects, self.seed_rest, self.seen_objects, self.traits)
        return {
            number: _Known(*(part[k] for part in parts))
            for k, number in enumerate(self.object_ids)
        }

    def _lift(self, inputs: Tensor) -> Tensor:
        """(n, c) to features (n, D)."""
        return F.pad(waves(inputs, self.options), (0, 1), value=1.0)

    def _rest_moments(
        self, inputs: Tensor, weight: Tensor, count: int, near: Tensor | None
    ) -> Tensor:
        """As :meth:`_moments`, with a share of the mass for what is ``near`` (h, w)."""
        hard = self.options.hard
        if near is None or not hard:
            return self._moments(inputs, weight, count)
        close = weight * near.flatten()
        if not bool((close > 0).any()):
            return self._moments(inputs, weight, count)
        easy = self._moments(inputs, weight, round((1.0 - hard) * count))
        return (1.0 - hard) * easy + hard * self._moments(inputs, close, round(hard * count))

    def _moments(self, inputs: Tensor, weight: Tensor, count: int) -> Tensor:
        """
        Second moments (D, D) of inputs (n, c) with weights (n,), in all the class's mass.

        Of more than ``count`` inputs, evenly spaced ones are taken; 0: all.
        """
        used = weight.nonzero()[:, 0]
        if count:
            used = used[evenly(len(used), count, used.device)]
        weight = weight[used]
        weight = weight * (self.options.mass / weight.sum().clamp_min(1e-6))
        lifted = self._lift(inputs[used])
        return (lifted * weight[:, None]).t().matmul(lifted)

    def _solved(self, known: dict[int, _Known], seen_rest: Tensor) -> TargetModel:
        """Solve for the weights."""
        seeds = torch.stack([one.seed for one in known.values()])
        rests = torch.stack([one.rest for one in known.values()])
        seen = torch.stack([one.seen for one in known.values()])
        return replace(
            self,
            object_ids=tuple(known),
            seed_objects=seeds,
            seed_rest=rests,
            seen_objects=seen,
            seen_rest=seen_rest,
            traits=tuple(one.traits for one in known.values()),
            weights=self._weights(seeds, rests, seen, seen_rest),
            frames=0,
        )

    def _weights(self, seeds: Tensor, rests: Tensor, seen: Tensor, seen_rest: Tensor) -> Tensor:
        """Solve for the weights (D, K); all classes weigh the same."""
        rest = rests.mean(dim=0) + seen_rest
        mass = torch.cat([rest[-1:, -1], seeds[:, -1, -1] + seen[:, -1, -1]])  # (1 + K,)
        scale = mass.max() / mass.clamp_min(1e-6)
        gram = scale[0] * rest
        for each in (seeds, seen):  # no sum of both, which are large
            gram += torch.tensordot(scale[1:], each, dims=1)
        gram.diagonal().add_(self.options.ridge)
        sums = torch.cat([rest[None, :, -1], seeds[:, :, -1] + seen[:, :, -1]]) * scale[:, None]
        wanted = (2.0 * sums[1:] - sums.sum(dim=0)).t()  # +1 in the object, -1 elsewhere
        return torch.cholesky_solve(wanted, torch.linalg.cholesky(gram))


@dataclass(frozen=True)
class Judgement:
    """
    What the kernel and the online prompt say of a frame.

    Attributes
    ----------
    kernel, soft : Tensor
        (h, w, 1 + K) in [0, 1], probabilities before and after the vote.
    near : Tensor
        (h, w) bool, tokens the kernel takes for objects.
    existence : dict of int to float
        Probability that an object is in the frame, by id, of those that were asked for.
    shown : dict of int to Shown
        What the frame shows of each object, by id; None: nothing.

    """

    kernel: Tensor
    soft: Tensor
    near: Tensor
    existence: dict[int, float]
    shown: dict[int, Shown | None]


@dataclass(frozen=True)
class _Known:
    """What is known of one object; see :class:`TargetModel`."""

    seed: Tensor
    rest: Tensor
    seen: Tensor
    traits: Traits


def combine(soft: Tensor, scores: Tensor, options: PromptOptions) -> Tensor:
    """
    Let scores vote on the kernel's probabilities, all objects at once.

    For one object this adds the score to the log-odds. Of two look-alikes each gains where its
    own score is the higher one.

    Parameters
    ----------
    soft : Tensor
        (h, w, 1 + K) in [0, 1], sums to 1; channel 0 is the rest.
    scores : Tensor
        (h, w, K), see :meth:`TargetModel.scores`.
    options : PromptOptions

    Returns
    -------
    Tensor
        (h, w, 1 + K) in [0, 1], sums to 1.

    """
    if not scores.shape[-1]:
        return soft
    votes = (options.gain * scores).clamp(-options.clip, options.clip)
    return decide.vote(soft, votes.masked_fill(soft[..., 1:] < options.floor, 0.0))


@lru_cache(maxsize=8)
def _frequencies(inputs: int, count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """
    Give frequencies (inputs, count) of unit deviation and phases (count,), always the same.

    Frequencies are orthogonal to each other as far as there are dimensions (Yu et al.,
    "Orthogonal Random Features", NIPS 2016): fewer of them do.
    """
    generator = torch.Generator().manual_seed(0)  # on the CPU: every device gets the same
    blocks = []
    for _ in range(0, count, inputs):
        square = torch.randn(inputs, inputs, generator=generator)
        length = torch.randn(inputs, inputs, generator=generator).norm(dim=0)
        blocks.append(torch.linalg.qr(square)[0] * length)
    phases = 2.0 * torch.pi * torch.rand(count, generator=generator)
    return torch.cat(blocks, dim=1)[:, :count].contiguous().to(device), phases.to(device)
