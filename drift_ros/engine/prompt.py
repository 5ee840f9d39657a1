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

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import torch
from torch import Tensor
import torch.nn.functional as F

from drift_ros.engine.frame_features import FrameFeatures

# What lies so many tokens around an object in its seed frame is learnt with more weight.
_RIM = 4
# How fast the usual area follows an object's.
_AREA_RATE = 0.1


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
    context : tuple of int
        Queries averaged over squares of ``2 r + 1`` tokens are further inputs, for each r here.
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
    around : int
        A token's score has a vote as far as the mean score of what the kernel takes for the
        object agrees, in a square of ``2 around + 1`` tokens. So it moves no edges, which the
        kernel knows better, and takes out what leaked.
    floor : float
        Where an object is less probable than this, its score has no vote.
    looks : int
        Tokens of an object's seed, and as many of its last frame, to compare a find with.
    exist : tuple of float
        Log-odds that an object is there: a constant, and the weights of the four cues of
        :meth:`TargetModel.existence`.

    """

    fourier: int = 384
    width: float = 1.0
    amplitude: float = 3.0
    context: tuple[int, ...] = ()
    ridge: float = 1.0
    mass: float = 500.0
    every: int = 2
    rate: float = 0.2
    samples: int = 512
    hard: float = 0.5
    forgetting: float = 0.02
    clip: float = 1.5
    gain: float = 1.0
    around: int = 0
    floor: float = 0.005
    looks: int = 192
    exist: tuple[float, float, float, float, float] = (-45.0, 50.0, 1.35, 1.0, 8.0)


def describe(features: FrameFeatures, options: PromptOptions) -> Tensor:
    """
    Join what all layers and heads, near and around, say of each token.

    Parameters
    ----------
    features : FrameFeatures
    options : PromptOptions

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
    fine = torch.cat(layers, dim=-1) if len(layers) > 1 else layers[0]
    parts = [fine]
    for radius in options.context:
        rows, columns = (_averages(size, radius, fine.device) for size in grid)
        blurred = rows.matmul(fine.flatten(1)).unflatten(1, fine.shape[1:])
        parts.append(F.normalize(columns.matmul(blurred), dim=-1))
    return torch.cat(parts, dim=-1).mul_(len(parts) ** -0.5)


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
    looks : Tensor
        (K, 2, n, c) half precision, of each object single tokens' fine queries, of unit length:
        from its seed frame, and from the last frame learnt from. Unused rows are 0.
    area : Tensor
        (K,) float32, tokens each object has covered of late.
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
    looks: Tensor
    area: Tensor
    weights: Tensor
    frames: int = 0

    @classmethod
    def empty(cls, options: PromptOptions | None = None) -> TargetModel:
        """Know nothing."""
        none = torch.zeros(0, 0, 0)
        return cls(options or PromptOptions(), (), *(none for _ in range(7)))

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(value.nbytes for value in vars(self).values() if isinstance(value, Tensor))

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
            look = self._look(inputs, weight)
            known[number] = _Known(
                seed=moments,
                rest=around,
                seen=torch.zeros_like(moments),
                looks=torch.stack([look, look]),
                area=shares[:, k].sum(),
            )
        seen_rest = self.seen_rest if self.object_ids else torch.zeros_like(rest_moments)
        return self._solved(known, seen_rest)

    def learnt(
        self,
        tokens: Tensor,
        soft: Tensor,
        object_ids: Sequence[int],
        sure: Sequence[bool],
        near: Tensor | None = None,
    ) -> TargetModel:
        """
        Learn from a frame the objects were found in.

        Parameters
        ----------
        tokens : Tensor
            (h, w, c), see :func:`describe`.
        soft : Tensor
            (h, w, 1 + K) in [0, 1], probability of the rest and of each object.
        object_ids : sequence of int
            Ids of the K objects.
        sure : sequence of bool
            Whether each of them is known to be where ``soft`` has it. Nothing is learnt of the
            others, nor of the tokens that may be theirs: leave their probabilities in ``soft``.
        near : Tensor, optional
            (h, w) bool, tokens the kernel took for objects.

        """
        if not any(sure):
            return self
        options, count = self.options, self.options.samples
        inputs, soft = tokens.flatten(0, 1), soft.flatten(0, 1)
        weights = (2.0 * soft - 1.0).clamp_min(0.0)
        due = self.frames % options.every == 0
        kept, rate = (1.0 - options.forgetting) ** options.every, options.rate * options.every
        known = self._known()
        for number, before in known.items():
            channel = object_ids.index(number)
            weight = weights[:, 1 + channel]
            if not sure[channel] or not bool((weight > 0).any()):
                continue
            area = soft[:, 1 + channel].sum()
            known[number] = replace(
                before,
                looks=torch.stack([before.looks[0], self._look(inputs, weight)]),
                area=before.area + _AREA_RATE * (area - before.area),
            )
            if due:
                moments = self._moments(inputs, weight, count)
                known[number] = replace(known[number], seen=kept * before.seen + rate * moments)
        if not due:
            return replace(
                self,
                looks=torch.stack([one.looks for one in known.values()]),
                area=torch.stack([one.area for one in known.values()]),
                frames=self.frames + 1,
            )
        rest = self._rest_moments(inputs, weights[:, 0], count, near)
        model = self._solved(known, kept * self.seen_rest + rate * rest)
        return replace(model, frames=self.frames + 1)

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
        if where is None:
            return self._lift(tokens.flatten(0, 1)).matmul(weights).unflatten(0, tokens.shape[:2])
        scores = tokens.new_zeros(*tokens.shape[:2], len(columns))
        scores[where] = self._lift(tokens[where]).matmul(weights)
        return scores

    def existence(
        self,
        tokens: Tensor,
        kernel: Tensor,
        soft: Tensor,
        scores: Tensor,
        object_ids: Sequence[int],
    ) -> Tensor:
        """
        Tell how probable it is that each object is in the frame at all.

        The kernel always hands its mass to something. Where the object is gone, what it points
        at (1) resembles no token of the object as closely, by the mean best cosine; (2) is
        smaller than the object was, by the logarithm to base 2 of the ratio; (3) scores low;
        (4) is pointed at diffusely.

        Parameters
        ----------
        tokens : Tensor
            (h, w, c), see :func:`describe`.
        kernel, soft : Tensor
            (h, w, 1 + K) in [0, 1], the kernel's probabilities before and after :func:`combine`.
        scores : Tensor
            (h, w, K), see :meth:`scores`.
        object_ids : sequence of int

        Returns
        -------
        Tensor
            (K,) in [0, 1].

        """
        odds = []
        constant, *weights = self.options.exist
        for channel, number in enumerate(object_ids):
            k = self.object_ids.index(number)
            mass, score = soft[..., 1 + channel], scores[..., channel]
            core = (mass > 0.5 * mass.max()).nonzero()  # (n, 2)
            if not len(core) or float(mass.max()) < self.options.floor:
                odds.append(mass.new_tensor(float('-inf')))
                continue
            core = core[_evenly(len(core), self.options.looks, core.device)]
            found = self._fine(tokens[core[:, 0], core[:, 1]])
            best = found.matmul(self.looks[k].flatten(0, 1).t().to(found)).amax(dim=1)
            held = (mass * (score > 0)).sum() / self.area[k].clamp_min(1e-6)
            raw = kernel[..., 1 + channel]
            cues = (
                best.mean(),
                (held + 0.01).log2().clamp(-4.0, 0.0),
                score[core[:, 0], core[:, 1]].mean(),
                raw.square().sum() / raw.sum().clamp_min(1e-6),
            )
            odds.append(constant + sum(w * cue for w, cue in zip(weights, cues, strict=True)))
        return torch.stack(odds).sigmoid() if odds else soft.new_zeros(0)

    def judge(self, tokens: Tensor, kernel: Tensor, object_ids: Sequence[int]) -> Judgement:
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

        """
        near = (kernel[..., 1:] > self.options.floor).any(dim=-1)
        scores = self.scores(tokens, object_ids, near)
        soft = combine(kernel, scores, self.options)
        existence = self.existence(tokens, kernel, soft, scores, object_ids)
        return Judgement(
            kernel, soft, near, dict(zip(object_ids, existence.tolist(), strict=True))
        )

    def _known(self) -> dict[int, _Known]:
        """What is known of each object, by id."""
        parts = (self.seed_objects, self.seed_rest, self.seen_objects, self.looks, self.area)
        return {
            number: _Known(*(part[k] for part in parts))
            for k, number in enumerate(self.object_ids)
        }

    def _fine(self, inputs: Tensor) -> Tensor:
        """(n, c) to the part that is not averaged, of unit length."""
        return F.normalize(inputs[:, : inputs.shape[1] // (1 + len(self.options.context))], dim=1)

    def _look(self, inputs: Tensor, weight: Tensor) -> Tensor:
        """Single tokens of those with the larger weights: (looks, c / parts) half precision."""
        used = (weight > 0.4 * weight.max()).nonzero()[:, 0]
        used = used[_evenly(len(used), self.options.looks, used.device)]
        fine = self._fine(inputs[used]).half()
        return F.pad(fine, (0, 0, 0, self.options.looks - len(fine)))

    def _lift(self, inputs: Tensor) -> Tensor:
        """(n, c) to features (n, D)."""
        options = self.options
        frequencies, phases = _frequencies(inputs.shape[1], options.fourier, inputs.device)
        waves = torch.addmm(phases, inputs, frequencies * options.width).cos_()
        waves *= options.amplitude * (2.0 / options.fourier) ** 0.5
        one = inputs.new_ones(len(inputs), 1)
        return torch.cat([waves, one], dim=1)

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
            used = used[_evenly(len(used), count, used.device)]
        weight = weight[used]
        weight = weight * (self.options.mass / weight.sum().clamp_min(1e-6))
        lifted = self._lift(inputs[used])
        return (lifted * weight[:, None]).t().matmul(lifted)

    def _solved(self, known: dict[int, _Known], seen_rest: Tensor) -> TargetModel:
        """Solve for the weights."""
        seeds = torch.stack([one.seed for one in known.values()])
        rests = torch.stack([one.rest for one in known.values()])
        seen = torch.stack([one.seen for one in known.values()])
        rest = rests.mean(dim=0) + seen_rest
        classes = torch.cat([rest[None], seeds + seen])  # (1 + K, D, D)
        mass = classes[:, -1, -1]
        classes = classes * (mass.max() / mass.clamp_min(1e-6))[:, None, None]
        gram = classes.sum(dim=0)
        gram.diagonal().add_(self.options.ridge)
        sums = classes[:, :, -1]  # (1 + K, D)
        wanted = (2.0 * sums[1:] - sums.sum(dim=0)).t()  # +1 in the object, -1 elsewhere
        weights = torch.cholesky_solve(wanted, torch.linalg.cholesky(gram))
        return replace(
            self,
            object_ids=tuple(known),
            seed_objects=seeds,
            seed_rest=rests,
            seen_objects=seen,
            seen_rest=seen_rest,
            looks=torch.stack([one.looks for one in known.values()]),
            area=torch.stack([one.area for one in known.values()]),
            weights=weights,
            frames=0,
        )


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
        Probability that an object is in the frame, by id.

    """

    kernel: Tensor
    soft: Tensor
    near: Tensor
    existence: dict[int, float]


@dataclass(frozen=True)
class _Known:
    """What is known of one object; see :class:`TargetModel`."""

    seed: Tensor
    rest: Tensor
    seen: Tensor
    looks: Tensor
    area: Tensor


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
    agreed = _agreed(scores, soft[..., 1:], options.around) if options.around else scores
    votes = (options.gain * agreed).clamp(-options.clip, options.clip)
    votes = votes.masked_fill(soft[..., 1:] < options.floor, 0.0).exp()
    moved = torch.cat([soft[..., :1], soft[..., 1:] * votes], dim=-1)
    return moved / moved.sum(dim=-1, keepdim=True).clamp_min(1e-12)


def _agreed(scores: Tensor, mass: Tensor, radius: int) -> Tensor:
    """Keep of scores what the mean around each token, by the mass (h, w, K), agrees with."""
    mass = mass.clamp_min(1e-3)
    sums = torch.cat([scores * mass, mass], dim=-1).permute(2, 0, 1)[None]
    for axis in range(2):
        kernel, padding = [1, 1], [0, 0]
        kernel[axis], padding[axis] = 2 * radius + 1, radius
        sums = F.avg_pool2d(sums, kernel, 1, padding)
    weighted, weight = sums[0].permute(1, 2, 0).chunk(2, dim=-1)
    mean = weighted / weight
    least = torch.minimum(scores.abs(), mean.abs()) * scores.sign()
    return torch.where(scores * mean > 0, least, torch.zeros_like(scores))


@lru_cache(maxsize=16)
def _averages(size: int, radius: int, device: torch.device) -> Tensor:
    """Matrix (size, size) that averages over ``radius`` neighbours on either side."""
    places = torch.arange(size, device=device)
    band = ((places[:, None] - places).abs() <= radius).float()
    return band / band.sum(dim=1, keepdim=True)


def _evenly(length: int, count: int, device: torch.device) -> Tensor:
    """Places of ``count`` of ``length`` things, evenly spaced; of all, if there are fewer."""
    if length <= count:
        return torch.arange(length, device=device)
    return torch.arange(count, device=device) * length // count


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
