# SPDX-License-Identifier: Apache-2.0
"""
Whether an object is in a frame at all, by comparison with what it and its surroundings showed.

The kernel always hands its mass to something. Where the object is gone, what it points at
resembles the object less, is smaller, scores lower and is pointed at more diffusely than it was
while the object was there. How much less is much depends on the features and on the object; so
likeness is measured on the scale of the seed frame's own differences, and the other cues are
ratios to what is usual of the object. An object that its features do not tell from the rest
counts as there.

Values are never changed in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
import math

import torch
from torch import Tensor
import torch.nn.functional as F

# How fast what is usual follows what is seen.
_RATE = 0.1
# Tokens not further apart than this see parts of the same.
_NEAR = 3
# Cosine distances below this are noise of half precision.
_LEAST = 1e-3


@dataclass(frozen=True)
class ExistenceOptions:
    """
    How what lacks of an object counts against its existence; fitted on videos.

    Attributes
    ----------
    looks : int
        Tokens of an object's seed, and as many of its last frame, to compare a find with.
    unlike : float
        Distance, on the scale of :attr:`Traits.spread`, of which an object usually is from itself
        at most where features tell it from others.
    constant : float
        Log-odds of an object of which nothing lacks.
    weights : tuple of float
        What each of the four cues of :func:`lacks` takes of these, where it is 1.

    """

    looks: int = 192
    unlike: float = 0.25
    constant: float = 7.6
    weights: tuple[float, float, float, float] = (30.0, 1.1, 0.4, 4.0)


@dataclass(frozen=True)
class Shown:
    """
    What a frame shows where the kernel points at an object.

    Attributes
    ----------
    distance : float
        [0, 2], cosine distance of its core to the object's looks, each token to the closest one;
        mean over the closer half, as the other one may lie on its edge.
    area : float
        Tokens whose score is the object's, by their probability.
    score : float
        Mean score of the core.
    crisp : float
        [0, 1], mean of the kernel's probability, weighted by itself.

    """

    distance: float
    area: float
    score: float
    crisp: float


@dataclass(frozen=True)
class Traits:
    """
    How an object looks, and what it usually shows.

    Attributes
    ----------
    looks : Tensor
        (2, n, c) half precision, single tokens' fine queries of unit length: from its seed
        frame, and from the last frame learnt from. Unused rows are 0.
    spread : float
        [0, 1], mean cosine distance of any two tokens of its seed frame, half of which are the
        object's: the scale of all distances.
    usual : Shown
        Running means over the frames it was found in; a score or crispness of 0 is not known.
    frames : int
        It was found in since its seed.

    """

    looks: Tensor
    spread: float
    usual: Shown
    frames: int = 0

    @classmethod
    def of(cls, tokens: Tensor, weight: Tensor, rest: Tensor, options: ExistenceOptions) -> Traits:
        """
        Look at an object's seed frame.

        Its own distance is that of each of its tokens to others further away than the network
        sees at once: neighbours resemble each other whatever they show.

        Parameters
        ----------
        tokens : Tensor
            (h, w, c) float32 of unit length, the frame's fine queries.
        weight : Tensor
            (h, w) in [0, 1], how much each of them is the object's.
        rest : Tensor
            (h, w) bool, tokens that show nothing of it.
        options : ExistenceOptions

        """
        places = _core(weight, 0.4, options.looks)  # (m, 2)
        own = tokens[places[:, 0], places[:, 1]]  # (m, c)
        apart = (places[:, None] - places).abs().amax(dim=-1) > _NEAR  # (m, m)
        likeness = own.matmul(own.t()).masked_fill(~apart, -1.0)
        others = tokens[rest] if bool(rest.any()) else tokens.flatten(0, 1)  # (n, c)
        spread = 1.0 - float((own.mean(dim=0) + others.mean(dim=0)).square().sum()) / 4.0
        inside = spread  # one that is so small that nothing is known
        if bool(apart.any()):
            inside = float(_closer(1.0 - likeness.amax(dim=1)[apart.any(dim=1)]))
        look = look_of(tokens, weight, options)
        usual = Shown(inside, float(weight.sum()), 0.0, 0.0)
        return cls(torch.stack([look, look]), spread, usual)

    def after(
        self, tokens: Tensor, weight: Tensor, shown: Shown, options: ExistenceOptions
    ) -> Traits:
        """Go on from a frame it was found in, as :meth:`of`, and what it showed there."""
        look = look_of(tokens, weight, options)
        return replace(
            self,
            looks=torch.stack([self.looks[0], look]),
            usual=self._mean(shown),
            frames=self.frames + 1,
        )

    def _mean(self, shown: Shown) -> Shown:
        """Running mean; of the first frames it is the plain mean. A seed counts as one."""
        seeded, found = (max(_RATE, 1.0 / (self.frames + n)) for n in (2, 1))
        usual = self.usual
        return Shown(
            distance=usual.distance + seeded * (shown.distance - usual.distance),
            area=usual.area + seeded * (shown.area - usual.area),
            score=usual.score + found * (shown.score - usual.score),
            crisp=usual.crisp + found * (shown.crisp - usual.crisp),
        )


def look_of(tokens: Tensor, weight: Tensor, options: ExistenceOptions) -> Tensor:
    """Single tokens (looks, c), half precision, of those with the larger weights (h, w)."""
    rows, columns = _core(weight, 0.4, options.looks).unbind(-1)
    fine = tokens[rows, columns].half()
    return F.pad(fine, (0, 0, 0, options.looks - len(fine)))


def show(
    tokens: Tensor,
    kernel: Tensor,
    mass: Tensor,
    score: Tensor,
    traits: Traits,
    options: ExistenceOptions,
) -> Shown:
    """
    Measure what a frame shows of an object.

    Parameters
    ----------
    tokens : Tensor
        (h, w, c) float32 of unit length, the frame's fine queries.
    kernel, mass : Tensor
        (h, w) in [0, 1], the object's probability before and after scores voted.
    score : Tensor
        (h, w), how much each token scores as the object's.
    traits : Traits
    options : ExistenceOptions

    """
    rows, columns = _core(mass, 0.5, options.looks).unbind(-1)
    looks = traits.looks.flatten(0, 1).to(tokens)  # (2 * looks, c)
    values = (
        _closer(1.0 - tokens[rows, columns].matmul(looks.t()).amax(dim=1)),
        (mass * (score > 0)).sum(),
        score[rows, columns].mean(),
        kernel.square().sum() / kernel.sum().clamp_min(1e-6),
    )
    return Shown(*torch.stack(values).tolist())


def lacks(shown: Shown, traits: Traits, options: ExistenceOptions) -> Iterator[float]:
    """
    Say what lacks of what an object usually shows: 0 is nothing, by four cues.

    (1) Unlikeness, [0, 1], on the scale of the spread. What usually differs from itself by more
    than :attr:`ExistenceOptions.unlike` is allowed for; what differs by the whole spread, whose
    features do not tell it from the rest, wholly. (2) Halvings of its area, [0, 4]. (3) Share of
    its score, [0, 1.5]; (4) of its crispness, [0, 1]; nothing of these two while they are not
    known.
    """
    usual, spread = traits.usual, max(traits.spread, _LEAST)
    excess = max((usual.distance / spread - options.unlike) / (1.0 - options.unlike), 0.0)
    yield min(max(shown.distance / spread - excess, 0.0), 1.0)
    left = shown.area / max(usual.area, 1e-6) + 0.01
    yield min(max(-math.log2(max(left, 1e-6)), 0.0), 4.0)
    yield min(max(usual.score - shown.score, 0.0) / max(usual.score, 0.1), 1.5)
    yield min(max(usual.crisp - shown.crisp, 0.0) / max(usual.crisp, 0.1), 1.0)


def probability(shown: Shown | None, traits: Traits, options: ExistenceOptions) -> float:
    """Give the probability that what is shown is the object; 0 where nothing is."""
    if shown is None:
        return 0.0
    cues = zip(options.weights, lacks(shown, traits, options), strict=True)
    odds = options.constant - sum(weight * lack for weight, lack in cues)
    return 1.0 / (1.0 + math.exp(-odds))


def _closer(distances: Tensor) -> Tensor:
    """Mean of the smaller half of some distances (n,), n > 0."""
    return distances.topk(len(distances) // 2 + 1, largest=False).values.mean()


def _core(mass: Tensor, share: float, count: int) -> Tensor:
    """Places (n, 2) of at most ``count`` tokens with more than a share of the maximal mass."""
    places = (mass > share * mass.max()).nonzero()
    return places[evenly(len(places), count, places.device)]


def evenly(length: int, count: int, device: torch.device) -> Tensor:
    """Places of ``count`` of ``length`` things, evenly spaced; of all, if there are fewer."""
    if length <= count:
        return torch.arange(length, device=device)
    return torch.arange(count, device=device) * length // count
