# SPDX-License-Identifier: Apache-2.0
"""The online algorithm: seed, step, remove. It imports no ROS."""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
import time
from typing import Protocol

import cv2
import numpy as np
import torch
from torch import Tensor

from drift_ros.diffusion.features import DiffusionFeatures, FrameFeatures
from drift_ros.diffusion.textual_inversion import (
    join_prompt,
    OptimizeResult,
    OptimizeStep,
    prompt_reaches,
    Seed,
    TextualInversion,
)
from drift_ros.engine.config import TrackerConfig
from drift_ros.engine.errors import OptimizeError
from drift_ros.engine.head_weights import HeadWeighting
from drift_ros.engine.memory import ReferenceMemory
from drift_ros.engine.table import (
    box_of,
    ObjectEstimate,
    ObjectInfo,
    ObjectRegistry,
    ObjectState,
    SeedRequest,
    TrackedObject,
)
from drift_ros.prompts.segmenter import (
    label_image,
    make_segmenter,
    Prompt,
    Segmentation,
    Segmenter,
)
from drift_ros.refinement import make_refiner, Refined, SeedLook


class FeatureExtractor(Protocol):
    """Anything that turns a frame into queries and keys."""

    def extract(self, frame: np.ndarray) -> FrameFeatures:
        """Extract features of a (H, W, 3) uint8 RGB frame."""


@dataclass(frozen=True)
class TrackResult:
    """
    What the tracker says of one frame.

    Attributes
    ----------
    labels : np.ndarray
        (H, W) uint8, uint16 once an id exceeds 255; pixel = object id, 0 = background.
    objects : tuple of ObjectEstimate
        Every live object, by ascending id.
    timings : dict of str to float
        Milliseconds spent: 'features', 'propagation', 'refinement', 'total'.

    """

    labels: np.ndarray
    objects: tuple[ObjectEstimate, ...]
    timings: dict[str, float]
    _found: frozenset[int] = field(repr=False)
    _refined: Refined | None = field(repr=False)

    def probability(self, object_id: int) -> np.ndarray:
        """Give the refined probability of an object: (H, W) float32 in [0, 1]; 0 if not found."""
        if self._refined is None or object_id not in self._found:
            return np.zeros(self.labels.shape, np.float32)
        return self._refined.probability(object_id)


class Tracker:
    """
    Follow objects through frames, one frame at a time, in bounded time and memory.

    >>> tracker = Tracker()
    >>> (cup,) = tracker.seed(first_frame, mask, names=['cup'])
    >>> result = tracker.step(next_frame)
    >>> result.labels == cup, result.objects[0].box

    One thread may call :meth:`seed`, :meth:`step`, :meth:`remove` and :meth:`reset`;
    :meth:`prepare_seed`, :meth:`check_object` and :attr:`objects` may be used from others.
    """

    def __init__(
        self,
        checkpoint: str | Path | None = None,
        config: TrackerConfig | None = None,
        *,
        device: str | torch.device = 'auto',
        features: FeatureExtractor | None = None,
    ) -> None:
        """
        Load the model.

        Parameters
        ----------
        checkpoint : str or Path, optional
            See :func:`drift_ros.diffusion.checkpoint.load_checkpoint`. None: embedded model.
        config : TrackerConfig, optional
        device : str or torch.device
            'auto', 'cpu' or 'cuda[:n]'.
        features : FeatureExtractor, optional
            Used in place of a diffusion model.

        Raises
        ------
        CheckpointError
            When the checkpoint cannot be used.
        ValueError
            When an option is out of range.

        """
        self.config = config or TrackerConfig()
        self.config.validate()
        self._features = features or diffusion_features(checkpoint, self.config, device)
        self._refiner = make_refiner(self.config, device)
        self._device = device
        self._segmenter: Segmenter | None = None  # made when it is first needed
        self._memory = ReferenceMemory(self.config)
        self._weighting = HeadWeighting(self.config)
        self._registry = ObjectRegistry(self.config)
        self._tracked: dict[int, TrackedObject] = {}
        self._tokens: dict[int, Tensor] = {}
        self._looks: dict[int, SeedLook] = {}
        self._number = 0

    @property
    def objects(self) -> tuple[ObjectInfo, ...]:
        """Live objects, those of prepared seeds included, by ascending id."""
        return self._registry.objects

    @property
    def tokens(self) -> dict[int, Tensor]:
        """Prompt tokens (n, width) that :meth:`optimize` learnt, by object id."""
        return dict(self._tokens)

    @property
    def memory_bytes(self) -> int:
        """Bytes the reference memory holds."""
        return self._memory.nbytes

    def seed(
        self,
        frame: np.ndarray,
        label_mask: np.ndarray,
        names: Sequence[str] | Mapping[int, str] | None = None,
    ) -> list[int]:
        """
        Start to follow the objects of a mask; at any time, in any frame of the same size.

        Parameters
        ----------
        frame : np.ndarray
            (H, W, 3) uint8 RGB.
        label_mask : np.ndarray
            (H, W) integer; 0 = background, every other label is one new object.
        names : sequence or mapping, optional
            One name a label, in ascending order of labels, or a mapping from label to name.

        Returns
        -------
        list of int
            The new objects' ids, in ascending order of labels. Ids are never reused.

        Raises
        ------
        FrameError, SeedError
            Nothing was seeded, and tracking is as it was.

        """
        request = self.prepare_seed(frame, label_mask, names)
        self.apply_seed(request)
        return list(request.object_ids)

    def segment(self, frame: np.ndarray, prompts: Sequence[Prompt]) -> list[Segmentation]:
        """
        Make a mask of each prompt (boxes, points) and follow nothing; from any thread.

        Raises
        ------
        FrameError, PromptError
            With the reason of each prompt that cannot be used or gave no mask.
        CheckpointError
            The option ``sam_checkpoint`` cannot be used.

        """
        if self._segmenter is None:
            self._segmenter = make_segmenter(self.config, self._device)
        return self._segmenter.segment(frame, prompts)

    def seed_prompts(
        self, frame: np.ndarray, prompts: Sequence[Prompt]
    ) -> tuple[list[int], list[Segmentation]]:
        """
        Start to follow what boxes and points mark: :meth:`segment`, then :meth:`seed`.

        Returns
        -------
        tuple
            The new objects' ids and their masks, in the order of the prompts.

        Raises
        ------
        FrameError, PromptError, SeedError
            Nothing was seeded, and tracking is as it was.

        """
        found = self.segment(frame, prompts)
        names = {index: prompt.name for index, prompt in enumerate(prompts, start=1)}
        request = self.prepare_seed(frame, label_image(found), names)
        self.apply_seed(request)
        return list(request.object_ids), found

    def prepare_seed(
        self,
        frame: np.ndarray,
        label_mask: np.ndarray,
        names: Sequence[str] | Mapping[int, str] | None = None,
    ) -> SeedRequest:
        """Check a seed and reserve its ids, without the network; from any thread."""
        return self._registry.reserve(frame, label_mask, names)

    def cancel_seed(self, request: SeedRequest) -> None:
        """Give up a prepared seed."""
        for object_id in request.object_ids:
            self._registry.drop(object_id)
        self._registry.set_seed_frames(len(self._memory.pinned))

    def apply_seed(self, request: SeedRequest) -> None:
        """Carry out a prepared seed; objects removed or reset since are left out."""
        live = {info.id for info in self._registry.objects}
        chosen = [
            (label, ObjectInfo(object_id, name))
            for label, object_id, name in zip(
                request.labels, request.object_ids, request.names, strict=True
            )
            if object_id in live
        ]
        if not chosen:
            return
        try:
            features = self._features.extract(request.frame)
            masks = np.stack([(request.mask == label) for label, _ in chosen], axis=-1)
            shares = _token_shares(masks, features.grid).to(features.layers[0].key.device)
            ids = [info.id for _, info in chosen]
            self._memory.pin(features, shares, ids)
            self._weigh_heads(features, shares, ids)
        except Exception:
            self.cancel_seed(request)
            raise
        self._tracked.update({info.id: TrackedObject(info) for _, info in chosen})
        self._looks |= self._refiner.remember(
            request.frame, dict(zip(ids, np.moveaxis(masks, -1, 0), strict=True))
        )

    def _weigh_heads(self, features: FrameFeatures, shares: Tensor, ids: Sequence[int]) -> None:
        """Choose head weights anew, now that the objects of a seed frame joined."""
        if self.config.experimental.head_weighting == 'adaptive':
            again = getattr(self._features, 'extract_resized', None)
            self._weighting.add(features, shares, ids, again)
            self._memory.head_weights = self._weighting.solve()

    def optimize(
        self, object_ids: Sequence[int] = (), budget: float = 0.0
    ) -> Generator[OptimizeStep, None, OptimizeResult]:
        """
        Learn prompt tokens for objects, one step each time the generator is advanced.

        Tracking may go on between two steps. When the generator ends, later frames are
        conditioned on the tokens, and the remembered frames are looked at again under the new
        prompt (one pass each). Closing it earlier leaves everything as it was.

        >>> for progress in tracker.optimize():
        ...     tracker.step(next_frame)

        Parameters
        ----------
        object_ids : sequence of int
            Objects to learn tokens for; none: all.
        budget : float
            Seconds of work, not counting what happens between the steps. 0: as configured.

        Raises
        ------
        UnknownObjectError, OptimizeError
            At once: when an object does not exist, or tokens would have no effect. While it
            runs: when an object has been removed.

        """
        self.check_optimize(object_ids, budget)
        return self._optimize(
            tuple(object_ids), budget or self.config.experimental.optimize_budget
        )

    def check_optimize(self, object_ids: Sequence[int] = (), budget: float = 0.0) -> None:
        """Raise what :meth:`optimize` would raise at once; from any thread."""
        for object_id in object_ids:
            self._registry.check(object_id)
        if not self._registry.objects:
            raise OptimizeError('there are no objects to learn tokens for; seed one first')
        if not 0.0 <= budget < float('inf'):
            raise OptimizeError(f'the budget is {budget} seconds; give 0 (as configured) or more')
        if not isinstance(self._features, DiffusionFeatures) or not prompt_reaches(self._features):
            raise OptimizeError(
                'tokens would have no effect: the network reads no prompt before the last '
                'attention layer the tracker looks at. Choose later layers (option layers, for '
                'instance up_blocks), features.noise: inversion, or another model'
            )

    def _optimize(
        self, object_ids: tuple[int, ...], budget: float
    ) -> Generator[OptimizeStep, None, OptimizeResult]:
        features = self._features
        assert isinstance(features, DiffusionFeatures)
        seeds = []
        wanted = object_ids or tuple(self._memory.object_ids)
        if not wanted:  # a reset came between the request and this
            raise OptimizeError('there are no objects to learn tokens for; seed one first')
        for reference, masks, ids in self._memory.marked():
            chosen = [k for k, number in enumerate(ids) if number in wanted]
            if chosen and reference.features.image is not None:
                numbers = tuple(ids[k] for k in chosen)
                seeds.append(Seed(reference.features.image, masks[..., chosen], numbers))
        config = self.config
        learning = TextualInversion(
            features,
            seeds,
            self._tokens,
            tokens=config.experimental.prompt_tokens,
            steps=config.experimental.optimize_steps,
            budget=budget,
            rate=config.experimental.optimize_rate,
        )
        steps = learning.run()
        while True:
            gone = [number for number in wanted if number not in self._tracked]
            if gone:
                raise OptimizeError(f'object {gone[0]} has been removed; tokens are not used')
            try:
                progress = next(steps)
            except StopIteration as end:
                self._condition(
                    {key: value for key, value in learning.best.items() if key in self._tracked}
                )
                return end.value
            yield progress

    def _condition(self, tokens: dict[int, Tensor]) -> None:
        """Condition the network on the tokens of objects, and look at all references again."""
        features = self._features
        assert isinstance(features, DiffusionFeatures)
        self._tokens = tokens
        prompt = join_prompt(features.checkpoint.prompt, tokens)
        features.prompt = prompt.to(features.checkpoint.dtype)
        self._memory.refresh(features.extract_resized)
        for reference, masks, ids in self._memory.marked():
            self._weigh_heads(reference.features, masks, ids)

    def check_object(self, object_id: int) -> None:
        """Raise UnknownObjectError unless the object is live; from any thread."""
        self._registry.check(object_id)

    def remove(self, object_id: int) -> None:
        """
        Stop following an object.

        Raises
        ------
        UnknownObjectError

        """
        self._registry.check(object_id)
        self._registry.drop(object_id)
        if self._tracked.pop(object_id, None):
            self._looks.pop(object_id, None)
            self._memory.remove(object_id)
            self._weighting.remove(object_id)
            self._memory.head_weights = self._weighting.solve()
        self._registry.set_seed_frames(len(self._memory.pinned))

    def reset(self) -> None:
        """Forget all objects and frames; a new frame size may follow."""
        self._memory.clear()
        self._weighting.clear()
        if self._tokens:
            self._condition({})
        self._looks.clear()
        self._tracked.clear()
        self._registry.clear()

    def step(self, frame: np.ndarray) -> TrackResult:
        """
        Find the objects in the next frame.

        Parameters
        ----------
        frame : np.ndarray
            (H, W, 3) uint8 RGB, of the size the objects were seeded in.

        Returns
        -------
        TrackResult

        Raises
        ------
        FrameError
            The frame is not usable; tracking is as it was.

        """
        self._registry.check_size(frame)
        clock = _Stopwatch()
        if not self._tracked:
            empty = np.zeros(frame.shape[:2], np.uint8)
            return TrackResult(empty, (), clock.stop(), frozenset(), None)
        features = self._features.extract(frame)
        clock.lap('features')

        soft = self._memory.read(features)  # (h, w, 1 + objects), sums to 1
        if any(entry.state is not ObjectState.TRACKING for entry in self._tracked.values()):
            soft = self._recover(features, soft)
        confidences = self._update_states(soft)
        clock.lap('propagation')

        coarse = self._compete(soft)
        refined = None
        if coarse:
            refined = self._refiner.refine(frame, coarse, self._looks, self._number)
        self._number += 1
        labels = self._assign(refined, tuple(coarse), frame.shape[:2])
        self._memory.push(features, soft)
        objects = tuple(
            _estimate(entry, confidences[object_id], labels)
            for object_id, entry in sorted(self._tracked.items())
        )
        clock.lap('refinement')
        return TrackResult(labels, objects, clock.stop(), frozenset(coarse), refined)

    def _recover(self, features: FrameFeatures, soft: Tensor) -> Tensor:
        """Take missing objects from a search of the whole frame, where it finds them."""
        found = self._memory.search(features)
        for channel, object_id in enumerate(self._memory.object_ids, start=1):
            if self._tracked[object_id].state is ObjectState.TRACKING:
                continue
            # what is sure, and most of it: a window may hold a crisp part only
            mass = max(
                (
                    candidate
                    for candidate in (soft[..., channel], found[..., channel])
                    if _confidence(candidate) >= self.config.states.recovery
                ),
                key=lambda candidate: float(candidate.square().sum()),
                default=torch.zeros_like(soft[..., channel]),
            )
            others = soft.clone()
            others[..., channel] = 0.0
            others /= others.sum(dim=-1, keepdim=True).clamp_min(1e-6)
            soft = others * (1.0 - mass[..., None])
            soft[..., channel] = mass
        return soft

    def _update_states(self, soft: Tensor) -> dict[int, float]:
        """Decide which objects were found; those that were not leave no trace in ``soft``."""
        confidences = {}
        for channel, object_id in enumerate(self._memory.object_ids, start=1):
            confidence = _confidence(soft[..., channel])
            found = confidence >= self.config.states.confidence
            if not found:
                soft[..., 0] += soft[..., channel]
                soft[..., channel] = 0.0
            self._tracked[object_id].update(found, self.config.states.lost_after)
            confidences[object_id] = confidence
        return confidences

    def _compete(self, soft: Tensor) -> dict[int, np.ndarray]:
        """Scale the found objects' probabilities, (h, w) each, so that they can compete."""
        channels = soft.permute(2, 0, 1).cpu().numpy()
        ids = [0, *self._memory.object_ids]
        shown = {
            number: channel
            for number, channel in zip(ids, channels, strict=True)
            if number == 0 or self._tracked[number].state is ObjectState.TRACKING
        }
        if len(shown) == 1:
            return {}
        if self.config.experimental.normalize:
            shown = {number: _stretch(channel) for number, channel in shown.items()}
        total = np.maximum(sum(shown.values()), 1e-6)
        return {number: channel / total for number, channel in shown.items() if number}

    def _assign(
        self, refined: Refined | None, ids: tuple[int, ...], size: tuple[int, int]
    ) -> np.ndarray:
        """Give each pixel to the most probable object, or to the background."""
        wide = max(self._tracked, default=0) > 255
        labels = np.zeros(size, np.uint16 if wide else np.uint8)
        if refined is None:
            return labels
        best = np.zeros(size, np.float32)
        background = np.ones(size, np.float32)
        for number in ids:
            area, probability = refined.piece(number)
            background[area] -= probability
            np.copyto(labels[area], number, where=probability > best[area])
            np.maximum(best[area], probability, out=best[area])
        labels[best <= background] = 0
        return labels


def diffusion_features(
    checkpoint: str | Path | None, config: TrackerConfig, device: str | torch.device
) -> DiffusionFeatures:
    """Load a checkpoint and make the features a configuration asks for."""
    from drift_ros.diffusion.checkpoint import load_checkpoint

    return DiffusionFeatures(
        load_checkpoint(checkpoint, device=device, prompt=config.features.prompt),
        layers=config.features.layers,
        timestep=config.features.timestep,
        resolution=config.features.resolution,
        noise=config.features.noise,
        inversion_steps=config.features.inversion_steps,
        noise_samples=config.experimental.noise_samples,
        noise_seed=config.experimental.noise_seed,
        colour_share=config.experimental.colour_share,
    )


def _token_shares(masks: np.ndarray, grid: tuple[int, int]) -> Tensor:
    """Share of each token covered: (H, W, K) in [0, 1] to (h, w, K) float32 in [0, 1]."""
    height, width = grid
    shares = [
        cv2.resize(channel, (width, height), interpolation=cv2.INTER_AREA)
        for channel in np.moveaxis(masks.astype(np.float32), -1, 0)
    ]
    return torch.from_numpy(np.stack(shares, axis=-1))


def _confidence(mass: Tensor) -> float:
    """Mean of an object's probability (h, w), weighted by itself: 1 crisp, near 0 diffuse."""
    total = float(mass.sum())
    return float(mass.square().sum()) / total if total > 0 else 0.0


def _stretch(channel: np.ndarray) -> np.ndarray:
    """Min-max normalise (h, w), as DINO's video segmentation evaluation does."""
    low, high = float(channel.min()), float(channel.max())
    return (channel - low) / (high - low) if high > low else channel


def _estimate(entry: TrackedObject, confidence: float, labels: np.ndarray) -> ObjectEstimate:
    mask = labels == entry.info.id
    return ObjectEstimate(
        id=entry.info.id,
        name=entry.info.name,
        state=entry.state,
        confidence=confidence,
        box=box_of(mask),
        area=int(np.count_nonzero(mask)),
        age=entry.age,
    )


class _Stopwatch:
    """Milliseconds between laps."""

    def __init__(self) -> None:
        self._start = self._last = time.perf_counter()
        self._laps: dict[str, float] = {}

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._laps[name] = 1e3 * (now - self._last)
        self._last = now

    def stop(self) -> dict[str, float]:
        return {**self._laps, 'total': 1e3 * (time.perf_counter() - self._start)}
