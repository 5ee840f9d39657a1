# SPDX-License-Identifier: Apache-2.0
"""The tracker as programs use it: the engine put together with a model, a refiner and prompts."""

from collections.abc import Generator, Mapping, Sequence
import copy
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from drift_ros.diffusion.budget import check_room
from drift_ros.diffusion.checkpoint import Checkpoint, load_checkpoint
from drift_ros.diffusion.features import DiffusionFeatures
from drift_ros.diffusion.soundness import check_features
from drift_ros.diffusion.textual_inversion import (
    join_prompt,
    MarkedImage,
    OptimizeResult,
    OptimizeStep,
    prompt_reaches,
    TextualInversion,
)
from drift_ros.engine import decide
from drift_ros.engine.config import TrackerConfig
from drift_ros.engine.errors import NotFoundError, OptimizeError, PromptError, SeedError
from drift_ros.engine.find import seek
from drift_ros.engine.protocols import FeatureExtractor
from drift_ros.engine.seeds import check_frame, SeedRequest
from drift_ros.engine.table import ObjectInfo
from drift_ros.engine.tracker import OnlineTracker
from drift_ros.media.labels import check_edges, LabelError
from drift_ros.prompts.segmenter import (
    label_image,
    make_segmenter,
    Prompt,
    Segmentation,
    Segmenter,
)
from drift_ros.refinement import make_refiner


class Tracker(OnlineTracker):
    """
    Follow objects through frames, one frame at a time, in bounded time and memory.

    >>> tracker = Tracker()
    >>> (cup,) = tracker.seed(first_frame, mask, names=['cup'])
    >>> result = tracker.step(next_frame)
    >>> result.labels == cup, result.objects[0].box

    See :class:`drift_ros.engine.tracker.OnlineTracker` for what may be called from where.
    """

    def __init__(
        self,
        checkpoint: str | Path | Checkpoint | None = None,
        config: TrackerConfig | None = None,
        *,
        device: str | torch.device = 'auto',
        features: FeatureExtractor | None = None,
    ) -> None:
        """
        Load the model.

        Parameters
        ----------
        checkpoint : str, Path or Checkpoint, optional
            See :func:`drift_ros.diffusion.checkpoint.load_checkpoint`; one that is loaded may
            serve several trackers. None: embedded model.
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
        config = config or TrackerConfig()
        config.validate()
        features = features or diffusion_features(checkpoint, config, device)
        super().__init__(features, make_refiner(config, device), config)
        self._device = device
        self._segmenter: Segmenter | None = None  # made when it is first needed

    def beside(self, first_id: int, step: int) -> 'Tracker':
        """
        Give a tracker without objects that shares this one's model and options.

        Parameters
        ----------
        first_id : int
            Of its first object.
        step : int
            How much larger each next id is, so that several trackers can give different ones.

        >>> front, rear = (tracker.beside(number, 2) for number in (1, 2))

        """
        other = copy.copy(self)
        OnlineTracker.__init__(
            other, self._blank.features, self._refiner, self.config, (first_id, step)
        )
        other._segmenter = None  # clicks go through the frames of its own
        return other

    @property
    def tokens(self) -> dict[int, Tensor]:
        """Prompt tokens (n, width) that :meth:`optimize` learnt, by object id."""
        return dict(getattr(self.state.features, 'tokens', {}))

    def prepare(self, frame: np.ndarray) -> None:
        """
        Make ready for frames of this size, so that the first one costs no more than later ones.

        Worth it while nothing is followed yet; without it, the first frame takes that time.

        Parameters
        ----------
        frame : np.ndarray
            (H, W, 3) uint8 RGB.

        """
        if isinstance(self.state.features, DiffusionFeatures):
            self.state.features.prepare(frame)

    def prepare_seed(
        self,
        frame: np.ndarray,
        label_mask: np.ndarray,
        names: Sequence[str] | Mapping[int, str] | None = None,
        object_ids: Mapping[int, int] | None = None,
        adopted: Mapping[int, ObjectInfo] | None = None,
    ) -> SeedRequest:
        """As of :class:`~drift_ros.engine.tracker.OnlineTracker`."""
        try:
            return super().prepare_seed(frame, label_mask, names, object_ids, adopted)
        except SeedError as error:
            # blurred edges are hundreds of objects, most of them too small: say that instead
            known = isinstance(label_mask, np.ndarray) and label_mask.dtype.kind in 'iu'
            if known and label_mask.ndim == 2 and (label_mask > 0).any():
                try:
                    check_edges(label_mask.clip(0), 'the mask')
                except LabelError as cause:
                    raise SeedError(str(cause), error.reasons) from error
            raise

    def segment(self, frame: np.ndarray, prompts: Sequence[Prompt]) -> list[Segmentation]:
        """
        Make a mask of each prompt (boxes, points) and follow nothing; from any thread.

        Raises
        ------
        FrameError, PromptError
            With the reason of each prompt that cannot be used or gave no mask.
        CheckpointError
            The option ``refinement.sam_checkpoint`` cannot be used.

        """
        if self._segmenter is None:
            self._segmenter = make_segmenter(
                self.config, self._device, lambda image: self.state.features.extract(image)
            )
        return self._segmenter.segment(frame, prompts)

    def seed_prompts(
        self, frame: np.ndarray, prompts: Sequence[Prompt]
    ) -> tuple[list[int], list[Segmentation]]:
        """
        Start to follow what boxes and points mark: :meth:`segment`, then :meth:`seed`.

        Returns
        -------
        tuple
            One object's id and one mask for each prompt, in their order.

        Raises
        ------
        FrameError, PromptError, SeedError
            Nothing was seeded, and tracking is as it was. Two prompts whose masks are one, or of
            which one covers the other wholly, are refused: each object needs pixels of its own.

        """
        request, found = self.prepare_prompts(frame, prompts)
        return self._seed(request), found

    def prepare_prompts(
        self, frame: np.ndarray, prompts: Sequence[Prompt]
    ) -> tuple[SeedRequest, list[Segmentation]]:
        """
        Make the masks of prompts and reserve their objects' ids; :meth:`apply_seed` follows them.

        Labels of the seed are places of the prompts, counted from 1. Raises as
        :meth:`seed_prompts`.
        """
        found = self.segment(frame, prompts)
        labels = label_image(found)
        own = np.bincount(labels.ravel(), minlength=len(found) + 1)[1:]
        hidden = {
            index: 'its mask lies wholly under that of another prompt; give each object a prompt '
            'of its own'
            for index, pixels in enumerate(own)
            if not pixels
        }
        if hidden:
            raise PromptError.of(hidden)
        numbered = dict(enumerate(prompts, start=1))
        request = self.prepare_seed(
            frame,
            labels,
            {label: prompt.name for label, prompt in numbered.items()},
            {label: prompt.object_id for label, prompt in numbered.items()},
        )
        return request, found

    def find(
        self, frame: np.ndarray, other: OnlineTracker, object_id: int, threshold: float = 0.0
    ) -> float:
        """
        Look for an object that another camera's tracker follows, and follow it here as well.

        It keeps its id and its name; of its own seed frames nothing is taken over, so that from
        here on it is what this camera shows of it.

        Parameters
        ----------
        frame : np.ndarray
            (H, W, 3) uint8 RGB, of this tracker's camera.
        other : OnlineTracker
            Follows the object, with the same model.
        object_id : int
        threshold : float
            Probability from which what resembles it most counts as it; 0: ``states.recovery``.

        Returns
        -------
        float
            [0, 1], probability that what was found is the object.

        Raises
        ------
        NotFoundError
            It is not to be seen in the frame.
        UnknownObjectError, FrameError, SeedError
            Nothing was changed.

        """
        request, existence = self.prepare_find(frame, other, object_id, threshold)
        self._seed(request)
        return existence

    def prepare_find(
        self, frame: np.ndarray, other: OnlineTracker, object_id: int, threshold: float = 0.0
    ) -> tuple[SeedRequest, float]:
        """
        Look for an object, and make the seed that follows it here; :meth:`apply_seed` does.

        Its label in the seed is 1. Raises as :meth:`find`.
        """
        check_frame(frame)
        own, known, options = self.state.table, other.state, self.config.states
        size = (frame.shape[0], frame.shape[1])
        own.check_size(size)
        known.table.check(object_id)
        (info,) = (info for info in known.table.infos if info.id == object_id)
        own.reserve((), size, options.max_objects, [info])  # refused before anything is looked at
        if object_id not in known.table.channels:
            raise SeedError(f'object {object_id} is about to be seeded; ask once it is followed')
        if not 0.0 <= threshold <= 1.0:
            raise SeedError(f'the threshold is {threshold:g}; it is a probability, from 0 to 1')
        threshold = threshold or options.recovery
        existence, coarse = seek(frame, known, object_id, self.config.experimental.normalize)
        labels = decide.nothing(size)
        if existence >= threshold:
            refined = self._refiner.refine(frame, {object_id: coarse}, known.looks, 0)
            labels = decide.assign([(1, refined.piece(object_id))], labels)
        if not labels.any():
            raise NotFoundError(
                f'object {object_id} ({info.name}) is not to be seen here: what resembles it most '
                f'is it with a probability of {existence:.2f} (asked for: {threshold:g})',
                existence,
            )
        return self.prepare_seed(frame, labels, adopted={1: info}), existence

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
        seconds = budget or self.config.experimental.optimize_budget
        return self._optimize(tuple(object_ids), seconds)

    def check_optimize(self, object_ids: Sequence[int] = (), budget: float = 0.0) -> None:
        """Raise what :meth:`optimize` would raise at once; from any thread."""
        for object_id in object_ids:
            self.check_object(object_id)
        if not self.objects:
            raise OptimizeError('there are no objects to learn tokens for; seed one first')
        if not 0.0 <= budget < float('inf'):
            raise OptimizeError(f'the budget is {budget} seconds; give 0 (as configured) or more')
        features = self.state.features
        if not isinstance(features, DiffusionFeatures) or not prompt_reaches(features):
            raise OptimizeError(
                'tokens would have no effect: the network reads no prompt before the last '
                'attention layer the tracker looks at. Choose later layers (features.layers, for '
                'instance up_blocks), features.noise: inversion, or another model'
            )

    def _optimize(
        self, object_ids: tuple[int, ...], budget: float
    ) -> Generator[OptimizeStep, None, OptimizeResult]:
        state, options = self.state, self.config.experimental
        features = state.features
        assert isinstance(features, DiffusionFeatures)
        wanted = object_ids or tuple(state.table.channels)
        if not wanted:  # a reset came between the request and this
            raise OptimizeError('there are no objects to learn tokens for; seed one first')
        images = []
        for reference, masks, ids in state.memory.marked(state.table.channels):
            chosen = [k for k, number in enumerate(ids) if number in wanted]
            if chosen and reference.features.image is not None:
                numbers = tuple(ids[k] for k in chosen)
                images.append(MarkedImage(reference.features.image, masks[..., chosen], numbers))
        learning = TextualInversion(
            features,
            images,
            features.tokens,
            tokens=options.prompt_tokens,
            steps=options.optimize_steps,
            budget=budget,
            rate=options.optimize_rate,
        )
        steps = learning.run()
        while True:
            live = self.state.table.channels
            gone = [number for number in wanted if number not in live]
            if gone:
                raise OptimizeError(f'object {gone[0]} has been removed; tokens are not used')
            try:
                progress = next(steps)
            except StopIteration as end:
                tokens = {key: value for key, value in learning.best.items() if key in live}
                prompt = join_prompt(features.checkpoint.prompt, tokens)
                self.look_again(features.conditioned(prompt, tokens))
                return end.value
            yield progress


def look_ahead(pairs: Sequence[tuple[Tracker, np.ndarray]]) -> None:
    """
    Take the next frames of several trackers through the network at once.

    Their next steps take what was found, if they get these very arrays.

    Parameters
    ----------
    pairs : sequence
        Trackers that share a model, and (H, W, 3) uint8 RGB frames. Those that follow nothing, or
        have learnt prompts of their own, look for themselves.

    """
    shared: dict[int, tuple[DiffusionFeatures, list[np.ndarray]]] = {}
    for tracker, frame in pairs:
        features = tracker.state.features
        if isinstance(features, DiffusionFeatures) and tracker.state.table.channels:
            shared.setdefault(id(features), (features, []))[1].append(frame)
    for features, frames in shared.values():
        if len(frames) > 1:
            features.extract_ahead(frames)


def diffusion_features(
    checkpoint: str | Path | Checkpoint | None,
    config: TrackerConfig,
    device: str | torch.device,
) -> DiffusionFeatures:
    """
    Load a checkpoint, unless it is loaded, and make the features a configuration asks for.

    Raises
    ------
    CheckpointError
        It cannot be loaded, there is no room for it, or a small picture taken through it tells
        that it cannot be used.

    """
    if not isinstance(checkpoint, Checkpoint):
        check_room(checkpoint, config, device)
        checkpoint = load_checkpoint(checkpoint, device=device, prompt=config.features.prompt)
    features = DiffusionFeatures.configured(checkpoint, config)
    check_features(features)
    return features
