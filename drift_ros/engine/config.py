# SPDX-License-Identifier: Apache-2.0
"""Options of the tracker, declared once: node parameters and command line are made from them."""

import dataclasses
from dataclasses import dataclass
from typing import Any


def _option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    metadata = {'help': help, 'min': low, 'max': high, 'choices': choices}
    return dataclasses.field(default=default, metadata=metadata)


@dataclass(frozen=True)
class TrackerConfig:
    """
    Options of :class:`drift_ros.Tracker`.

    Each field's metadata holds ``help``, ``min``, ``max`` (inclusive, None where open) and
    ``choices``. The defaults are those of the embedded model.
    """

    resolution: int = _option(
        240, "Pixels of the frame's shorter side as the model sees it.", low=32, high=2048
    )
    timestep: int = _option(
        -1,
        "Noise level tau the U-Net is told (0: clean, 999: pure noise). -1: the checkpoint's own, "
        'else 51.',
        low=-1,
        high=999,
    )
    noise: str = _option(
        'inversion',
        'How the latents get to the noise level. inversion: deterministically, in inversion_steps '
        'steps. random: noise of a fixed seed is added, the same on every frame.',
        choices=('inversion', 'random'),
    )
    inversion_steps: int = _option(
        0,
        'Steps of DDIM inversion, each a whole pass of the U-Net. 0: the latents are only scaled '
        'as at the noise level, without noise.',
        low=0,
        high=1000,
    )
    noise_samples: int = _option(
        1, 'Random noise: queries and keys are averaged over this many samples.', low=1, high=64
    )
    noise_seed: int = _option(0, 'Random noise: seed of the generator.', low=0, high=2**31 - 1)
    prompt: str = _option(
        '', 'Text the U-Net is conditioned on, for instance the name of a category.'
    )
    layers: tuple[str, ...] = _option(
        (),
        'Self-attention layers to use, by name or part of it (up_blocks.2.attentions.0). Empty: '
        "the checkpoint's own, else the first one of the last up block.",
    )
    radius: int = _option(
        8,
        'A token looks for matches at most this many tokens away in earlier frames, on the '
        'finest grid used. 0: everywhere.',
        low=0,
        high=512,
    )
    seed_radius: int = _option(
        16,
        'The same for seed frames, which may lie long ago. 0: everywhere.',
        low=0,
        high=512,
    )
    top_k: int = _option(15, 'Keep only this many matches per token. 0: all.', low=0, high=100_000)
    temperature: float = _option(
        1.0,
        "Divides the attention logits; below 1 is sharper than the network's own.",
        low=0.01,
        high=100.0,
    )
    colour_share: float = _option(
        0.0,
        "Share of raw colour in the kernel: its logits are (1 - share) times the attention's plus "
        'share times the similarity of colour patches. 0: attention alone; 0.3 helps where things '
        'keep their colours.',
        low=0.0,
        high=1.0,
    )
    head_weighting: str = _option(
        'uniform',
        'How attention heads are weighed. uniform: all alike. adaptive: as best reproduces the '
        'seed masks; costs two more passes per seed, and heads of no use are left out.',
        choices=('uniform', 'adaptive'),
    )
    prompt_tokens: int = _option(4, 'Prompt tokens learnt per object by optimize.', low=1, high=64)
    optimize_steps: int = _option(
        400, 'Steps of optimize at most; it ends early once nothing is gained.', low=1, high=10_000
    )
    optimize_budget: float = _option(
        20.0, 'Seconds of work optimize may take.', low=0.1, high=3600.0
    )
    optimize_rate: float = _option(
        0.5,
        "Learning rate of optimize at its start, in units of the prompt's standard deviation.",
        low=0.0001,
        high=10.0,
    )
    label_floor: float = _option(
        0.01,
        'Object probabilities below this are not remembered: where no object is near, a frame '
        'then costs nothing.',
        low=0.0,
        high=0.5,
    )
    memory_frames: int = _option(
        2, 'Last frames kept as references, besides the seed frames.', low=0, high=64
    )
    older_frames: int = _option(
        3, 'Frames from before those kept as references as well.', low=0, high=64
    )
    older_interval: int = _option(
        5, 'Every so many frames one becomes an older reference.', low=1, high=10_000
    )
    max_seed_frames: int = _option(
        8, 'Seed frames kept at once; a seed beyond is refused.', low=1, high=64
    )
    max_objects: int = _option(
        64, 'Objects followed at once; a seed beyond is refused.', low=1, high=1024
    )
    normalize: bool = _option(
        True,
        "Stretch each object's probability over the frame to [0, 1] before objects compete "
        '(helps small objects).',
    )
    refinement: str = _option(
        'colour',
        "Sharpen masks at the image's edges: sam (Segment Anything), grabcut, colour (bilateral "
        'solver with colour models of the objects), bilateral (solver alone), guided (filter) or '
        'none.',
        choices=('sam', 'grabcut', 'colour', 'bilateral', 'guided', 'none'),
    )
    sam_checkpoint: str = _option(
        '',
        'Segment Anything weights: an official .pth file (vit_b, vit_l, vit_h), a MobileSAM file, '
        'or a folder with model.safetensors and config.json. Empty: the embedded small model.',
    )
    refine_every: int = _option(
        1,
        'With sam and grabcut, refine every so many frames; the colour solver does the others.',
        low=1,
        high=1000,
    )
    refinement_gate: float = _option(
        0.7,
        'A mask of sam or grabcut is taken only if it scores this much; the score is made of its '
        'overlap with the coarse mask, and with sam of its expected quality and stability.',
        low=0.0,
        high=1.0,
    )
    segmenter: str = _option(
        'grabcut',
        'Makes masks of boxes and clicks: sam (Segment Anything) or grabcut.',
        choices=('sam', 'grabcut'),
    )
    memory_labels: str = _option(
        'coarse',
        'What is remembered of a frame: the coarse masks, or the refined ones of sam and grabcut '
        'where gate and confidence allow.',
        choices=('coarse', 'refined'),
    )
    memory_confidence: float = _option(
        0.5,
        'Confidence of an object from which its refined mask may be remembered.',
        low=0.0,
        high=1.0,
    )
    confidence_threshold: float = _option(
        0.3, 'An object less confident than this counts as occluded.', low=0.0, high=1.0
    )
    recovery_threshold: float = _option(
        0.5,
        'Confidence at which an occluded or lost object counts as found again.',
        low=0.0,
        high=1.0,
    )
    lost_after: int = _option(
        10, 'Frames in a row an object may be occluded before it is lost.', low=1, high=100_000
    )

    def validate(self) -> None:
        """
        Check every field.

        Raises
        ------
        ValueError
            Naming the field, its value and what is allowed.

        """
        for field in dataclasses.fields(self):
            value, meta = getattr(self, field.name), field.metadata
            kind = type(field.default)
            if kind is float and type(value) is int:
                value = float(value)
            if type(value) is not kind:
                raise ValueError(f'{field.name} is {value!r}; it must be of type {kind.__name__}')
            low, high, choices = meta['min'], meta['max'], meta['choices']
            if low is not None and not low <= value <= high:
                raise ValueError(f'{field.name} is {value}; it must lie in [{low}, {high}]')
            if choices and value not in choices:
                raise ValueError(f'{field.name} is {value!r}; choose from {", ".join(choices)}')
