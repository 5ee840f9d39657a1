# SPDX-License-Identifier: Apache-2.0
"""
Whether an object is in a frame at all, by comparison with what it and its surroundings showed.

The kernel always hands its mass to something. Where the object is gone, what it points at
resembles the object less, is smaller, scores lower and is pointed at more diffusely than it was
while the object was there. How much less is much depends on the features and on the object; so
every cue is a ratio to the object's own usual level, and likeness is measured on the scale from
that level to the one of the rest of its seed frame. Where these two do not differ, likeness
tells nothing, and the object counts as there.

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
    doubt : float
        Where the logarithm of the ratio of the rest's distance to the object's own is this,
        unlikeness counts half: below, the features hardly tell the object from the rest.
    constant : float
        Log-odds of an object of which nothing lacks.
    weights : tuple of float
        What lacks by each of the four cues of :func:`lacks` takes of these.

    """

    looks: int = 192
    doubt: float = 0.3
    constant: float = 5.0
    weights: tuple[float, float, float, float] = (6.0, 1.35, 3.0, 6.0)


@dataclass(frozen=True)
class Shown:
    """
    What a frame shows where the kernel points at an object.

    Attributes
    ----------
    distance : float
        [0, 2], mean cosine distance of its core to the object's looks, each to the closest one.
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
    rest : float
        Distance, as in :class:`Shown`, of the rest of its seed frame: of as many tokens as the
        object has, those most like it.
    usual : Shown
        Running means over the frames it was found in; a score or crispness of 0 is not known.
    frames : int
        It was found in since its seed.

    """

    looks: Tensor
    rest: float
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
        outside, inside = 0.0, 0.0
        if bool(rest.any()):
            most = tokens[rest].matmul(own.t()).amax(dim=1)  # (n,)
            count = max(1, min(len(most), int((weight > 0).sum())))
            outside = inside = 1.0 - float(most.topk(count).values.mean())
        if bool(apart.any()):
            inside = 1.0 - float(likeness.amax(dim=1)[apart.any(dim=1)].mean())
        look = look_of(tokens, weight, options)
        usual = Shown(inside, float(weight.sum()), 0.0, 0.0)
        return cls(torch.stack([look, look]), outside, usual)

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
    closest = tokens[rows, columns].matmul(looks.t()).amax(dim=1)
    values = (
        1.0 - closest.mean(),
        (mass * (score > 0)).sum(),
        score[rows, columns].mean(),
        kernel.square().sum() / kernel.sum().clamp_min(1e-6),
    )
    return Shown(*torch.stack(values).tolist())


def lacks(shown: Shown, traits: Traits, options: ExistenceOptions) -> Iterator[float]:
    """
    Say what lacks of what an object usually shows: 0 is nothing, by four cues.

    (1) Unlikeness, [0, 2]: on a logarithmic scale of distances, 0 at the object's own and 1 at
    the one of the rest; less where these hardly differ. (2) Halvings of its area, [0, 4].
    (3) Share of its score, [0, 1.5]; (4) of its crispness, [0, 1].
    """
    usual = traits.usual
    own = max(usual.distance, _LEAST)
    span = max(math.log(max(traits.rest, _LEAST) / own), 0.0)
    further = max(math.log(max(shown.distance, _LEAST) / own), 0.0)
    yield min(further * span / (span * span + options.doubt**2), 2.0)
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


def _core(mass: Tensor, share: float, count: int) -> Tensor:
    """Places (n, 2) of at most ``count`` tokens with more than a share of the maximal mass."""
    places = (mass > share * mass.max()).nonzero()
    return places[evenly(len(places), count, places.device)]


def evenly(length: int, count: int, device: torch.device) -> Tensor:
    """Places of ``count`` of ``length`` things, evenly spaced; of all, if there are fewer."""
    if length <= count:
        return torch.arange(length, device=device)
    return torch.arange(count, device=device) * length // count
