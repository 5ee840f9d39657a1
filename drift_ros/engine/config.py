# SPDX-License-Identifier: Apache-2.0
"""
Options of the tracker, declared once, in groups.

Node parameters, command-line options, parameter files and the tables of the documentation are
made from them. Outside Python an option is called by its group and name: ``kernel.radius``.
"""

from collections.abc import Mapping
import dataclasses
from dataclasses import dataclass, field
from typing import Any

from drift_ros.engine.options import Option, option, options_of


@dataclass(frozen=True)
class FeatureOptions:
    """What is looked at, and how."""

    resolution: int = option(
        240, "Pixels of the frame's shorter side as the model sees it.", low=32, high=2048
    )
    layers: tuple[str, ...] = option(
        (),
        'Self-attention layers to use, by name or part of it (up_blocks.2.attentions.0). Empty: '
        "the checkpoint's own, else the first one of the last up block.",
    )
    timestep: int = option(
        -1,
        "Noise level tau the U-Net is told (0: clean, 999: pure noise). -1: the checkpoint's own, "
        'else 51.',
        low=-1,
        high=999,
    )
    noise: str = option(
        'none',
        'How the latents get to the noise level. none: they are only scaled as at that level. '
        'inversion: deterministically, in inversion_steps steps. random: noise of a fixed seed '
        'is added, the same on every frame.',
        choices=('none', 'inversion', 'random'),
    )
    inversion_steps: int = option(
        1, 'Steps of DDIM inversion, each a whole pass of the U-Net.', low=1, high=1000
    )
    precision: str = option(
        'auto',
        'Arithmetic of the network on a CPU; a GPU has float16. auto: compiled, in bfloat16 where '
        'the processor multiplies in it, with features off by 1 %, else in float32; what is '
        'compiled is used only if it gives what torch gives, for models of up to 1 GB. float32: '
        'as torch computes, the same on all machines. bfloat16: even where that is slower.',
        choices=('auto', 'float32', 'bfloat16'),
    )
    prompt: str = option(
        '', 'Text the U-Net is conditioned on, for instance the name of a category.'
    )


@dataclass(frozen=True)
class KernelOptions:
    """The temporal propagation kernel."""

    radius: int = option(
        8,
        'A token looks for matches at most this many tokens away in earlier frames, on the '
        'finest grid used. 0: everywhere.',
        low=0,
        high=512,
    )
    seed_radius: int = option(
        16,
        'The same for seed frames, which may lie long ago. 0: everywhere.',
        low=0,
        high=512,
    )
    top_k: int = option(15, 'Keep only this many matches per token. 0: all.', low=0, high=100_000)
    temperature: float = option(
        1.0,
        "Divides the attention logits; below 1 is sharper than the network's own.",
        low=0.01,
        high=100.0,
    )


@dataclass(frozen=True)
class TargetOptions:
    """The online prompt: what an object looks like against everything else."""

    gain: float = option(
        1.0,
        'Log-odds that the online prompt adds where it is sure of an object. 0: it has no vote on '
        'masks.',
        low=0.0,
        high=20.0,
    )
    rate: float = option(
        0.2,
        'Weight with which each later frame is learnt from, against the seed frame. 0: the seed '
        'frame alone.',
        low=0.0,
        high=10.0,
    )


@dataclass(frozen=True)
class MotionVoteOptions:
    """What moves with an object, and what stays with the background."""

    gain: float = option(
        1.0,
        'Weight of the evidence that something moves with an object rather than with the '
        'background, or the other way round. 0: motion has no vote on masks.',
        low=0.0,
        high=20.0,
    )


@dataclass(frozen=True)
class MemoryOptions:
    """Which frames are remembered."""

    recent: int = option(
        2, 'Last frames kept as references, besides the seed frames.', low=0, high=64
    )
    older: int = option(3, 'Frames from before those kept as references as well.', low=0, high=64)
    older_interval: int = option(
        5, 'Every so many frames one becomes an older reference.', low=1, high=10_000
    )
    seed_frames: int = option(
        8,
        'Seed frames kept apart; looks at objects from further ones are put together into these.',
        low=1,
        high=64,
    )


@dataclass(frozen=True)
class StateOptions:
    """Which objects there are, and when one counts as found."""

    max_objects: int = option(
        64, 'Objects followed at once; a seed beyond is refused.', low=1, high=1024
    )
    confidence: float = option(
        0.15, 'An object less confident than this counts as occluded.', low=0.0, high=1.0
    )
    existence: float = option(
        0.3,
        'An object counts as occluded when its probability to be in the frame at all is below '
        'this. 0: it never is for that reason.',
        low=0.0,
        high=1.0,
    )
    recovery: float = option(
        0.8,
        'That probability at which an occluded or lost object counts as found again; not below '
        'states.existence.',
        low=0.0,
        high=1.0,
    )
    lost_after: int = option(
        10, 'Frames in a row an object may be occluded before it is lost.', low=1, high=100_000
    )
    box: str = option(
        'robust',
        "Extent of an object's box. robust: its largest piece and others that are not small (2 % "
        'of the area) nor far (half its width), so that stray pixels do not blow it up; all: '
        'every pixel of its mask.',
        choices=('robust', 'all'),
    )


@dataclass(frozen=True)
class RefinementOptions:
    """From the token grid to the edges of the image, and from boxes and points to masks."""

    method: str = option(
        'colour',
        "Sharpen masks at the image's edges: colour (bilateral solver with colour models of the "
        'objects), sam (Segment Anything, on top of it) or none.',
        choices=('colour', 'sam', 'none'),
    )
    every: int = option(
        1,
        'With sam, refine every so many frames; the colour solver does the others.',
        low=1,
        high=1000,
    )
    gate: float = option(
        0.7,
        'A mask of sam is taken only if it scores this much; the score is made of its overlap '
        'with the coarse mask, its expected quality and its stability.',
        low=0.0,
        high=1.0,
    )
    prompts: str = option(
        'grabcut',
        'Makes masks of boxes and points: grabcut or sam (Segment Anything).',
        choices=('grabcut', 'sam'),
    )
    sam_checkpoint: str = option(
        '',
        'Segment Anything weights: an official .pth file (vit_b, vit_l, vit_h), a MobileSAM file, '
        'or a folder with model.safetensors and config.json. Empty: the embedded small model.',
    )


@dataclass(frozen=True)
class ExperimentalOptions:
    """What is there to be measured; of no use with the embedded model, or better left alone."""

    head_weighting: str = option(
        'uniform',
        'How attention heads are weighed. uniform: all alike. adaptive: as best reproduces the '
        'seed masks; costs two more passes per seed, and heads of no use are left out.',
        choices=('uniform', 'adaptive'),
    )
    colour_share: float = option(
        0.0,
        "Share of raw colour in the kernel: its logits are (1 - share) times the attention's plus "
        'share times the similarity of colour patches. 0: attention alone; 0.3 helps where things '
        'keep their colours.',
        low=0.0,
        high=1.0,
    )
    noise_samples: int = option(
        1, 'Random noise: queries and keys are averaged over this many samples.', low=1, high=64
    )
    noise_seed: int = option(0, 'Random noise: seed of the generator.', low=0, high=2**31 - 1)
    normalize: bool = option(
        True,
        "Stretch each object's probability over the frame to [0, 1] before objects compete "
        '(helps small objects).',
    )
    label_floor: float = option(
        0.01,
        'Object probabilities below this are not remembered: where no object is near, a frame '
        'then costs nothing.',
        low=0.0,
        high=0.5,
    )
    prompt_tokens: int = option(4, 'Prompt tokens learnt per object by optimize.', low=1, high=64)
    optimize_steps: int = option(
        400, 'Steps of optimize at most; it ends early once nothing is gained.', low=1, high=10_000
    )
    optimize_budget: float = option(
        20.0, 'Seconds of work optimize may take.', low=0.1, high=3600.0
    )
    optimize_rate: float = option(
        0.5,
        "Learning rate of optimize at its start, in units of the prompt's standard deviation.",
        low=0.0001,
        high=10.0,
    )


@dataclass(frozen=True)
class TrackerConfig:
    """
    Options of :class:`drift_ros.Tracker`, in groups. The defaults are those of the embedded model.

    >>> TrackerConfig.of({'kernel.radius': 12, 'refinement.method': 'none'}).kernel.radius
    12
    """

    features: FeatureOptions = field(default_factory=FeatureOptions)
    kernel: KernelOptions = field(default_factory=KernelOptions)
    target: TargetOptions = field(default_factory=TargetOptions)
    motion: MotionVoteOptions = field(default_factory=MotionVoteOptions)
    memory: MemoryOptions = field(default_factory=MemoryOptions)
    states: StateOptions = field(default_factory=StateOptions)
    refinement: RefinementOptions = field(default_factory=RefinementOptions)
    experimental: ExperimentalOptions = field(default_factory=ExperimentalOptions)

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> 'TrackerConfig':
        """
        Make a valid configuration of values by dotted name; the others are at their defaults.

        Raises
        ------
        ValueError
            Naming the option that does not exist, and its present name where it was renamed; or
            the value that is refused, and what is allowed.

        """
        groups: dict[str, dict[str, Any]] = {}
        for name, value in values.items():
            find_option(name)
            group, _, key = name.partition('.')
            groups.setdefault(group, {})[key] = value
        factories: dict[str, Any] = {f.name: f.default_factory for f in dataclasses.fields(cls)}
        made = {name: factory(**groups.get(name, {})) for name, factory in factories.items()}
        config = cls(**made)
        config.validate()
        return config

    def flat(self) -> dict[str, Any]:
        """Give all values by dotted name; :meth:`of` makes the same configuration of them."""
        return {
            f'{group.name}.{item.name}': getattr(getattr(self, group.name), item.name)
            for group in dataclasses.fields(self)
            for item in dataclasses.fields(getattr(self, group.name))
        }

    def validate(self) -> None:
        """
        Check every value, and that none contradicts another.

        Raises
        ------
        ValueError
            Naming the option, its value and what is allowed.

        """
        for name, value in self.flat().items():
            if reason := OPTIONS[name].check(value):
                raise ValueError(reason)
        if reason := self.contradiction():
            raise ValueError(reason)

    def contradiction(self) -> str:
        """Say which values, each allowed by itself, contradict each other; empty when none do."""
        features, more = self.features, self.experimental
        if self.states.recovery < self.states.existence:
            return (
                f'states.recovery is {self.states.recovery}, below states.existence '
                f'({self.states.existence}): an object would be found again and lost at once'
            )
        if features.inversion_steps > 1 and features.noise != 'inversion':
            return (
                f'features.inversion_steps is {features.inversion_steps}, which has no effect '
                f'unless features.noise is inversion (it is {features.noise})'
            )
        if more.noise_samples > 1 and features.noise != 'random':
            return (
                f'experimental.noise_samples is {more.noise_samples}, which has no effect unless '
                f'features.noise is random (it is {features.noise})'
            )
        if self.refinement.every > 1 and self.refinement.method != 'sam':
            return (
                f'refinement.every is {self.refinement.every}, which has no effect unless '
                f'refinement.method is sam (it is {self.refinement.method})'
            )
        return ''


OPTIONS = options_of(TrackerConfig)
"""Every option by its dotted name."""

RENAMED = {
    'confidence_threshold': 'states.confidence',
    'inversion_steps': 'features.inversion_steps',
    'lost_after': 'states.lost_after',
    'max_objects': 'states.max_objects',
    'max_seed_frames': 'memory.seed_frames',
    'memory_frames': 'memory.recent',
    'older_frames': 'memory.older',
    'older_interval': 'memory.older_interval',
    'recovery_threshold': 'states.recovery',
    'refine_every': 'refinement.every',
    'refinement': 'refinement.method',
    'refinement_gate': 'refinement.gate',
    'sam_checkpoint': 'refinement.sam_checkpoint',
    'segmenter': 'refinement.prompts',
    **{
        name: f'features.{name}'
        for name in ('resolution', 'layers', 'timestep', 'noise', 'prompt')
    },
    **{name: f'kernel.{name}' for name in ('radius', 'seed_radius', 'top_k', 'temperature')},
    **{
        name: f'experimental.{name}'
        for name in (
            'head_weighting',
            'colour_share',
            'noise_samples',
            'noise_seed',
            'normalize',
            'label_floor',
            'prompt_tokens',
            'optimize_steps',
            'optimize_budget',
            'optimize_rate',
        )
    },
}
"""Present names of options that were called otherwise before version 0.2."""
DROPPED = {
    'memory_labels': 'remembered refined masks were worse in every comparison',
    'memory_confidence': 'remembered refined masks were worse in every comparison',
}
"""Why options that were there before version 0.2 are no more."""


def find_option(name: str) -> Option:
    """
    Find an option by its dotted name.

    Raises
    ------
    ValueError
        There is none; the message gives the present name of one that was renamed.

    """
    if name in OPTIONS:
        return OPTIONS[name]
    if name in RENAMED:
        raise ValueError(f'the option {name} is now called {RENAMED[name]}')
    if name in DROPPED:
        raise ValueError(f'there is no option {name} any more: {DROPPED[name]}')
    raise ValueError(f'there is no tracker option {name!r}; there are {", ".join(OPTIONS)}')
