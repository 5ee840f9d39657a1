# SPDX-License-Identifier: Apache-2.0
"""
``drift_ros ablate``: what each part of the method brings, and costs, on sequences with truth.

Five parts, after the figures and tables of DRIFT (arXiv 2511.19936)::

    kernel   the attention kernel against cosine similarity of features (figures 2 and 3)
    noise    DDIM inversion, random noise, ensembles, over noise levels (figure 4)
    heads    uniform and adaptive head weights; null, category and learnt prompts (figure 5)
    paper    the paper's three optimisations together, each left out in turn
    parts    the tracker's own parts, each left out in turn, and candidates for its presets

Every row is one configuration of the tracker, run by the protocol of ``drift_ros eval davis``;
a finished (row, sequence) is kept and taken over when the command is run again. Rows that look at
frames in the same way run in lock-step on a sequence and share each frame's features, whose time
counts for every one of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
import csv
from dataclasses import dataclass, field
import itertools
import json
import os
from pathlib import Path
import time
from typing import Any

import click
import numpy as np
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from drift_ros.commands.evaluate import user_errors
from drift_ros.engine.config import RENAMED, TrackerConfig
from drift_ros.evaluation import run as runner
from drift_ros.evaluation.baselines import EngineSpec, load_params_file, split_settings

PARTS = {
    'kernel': 'No refinement; no object is given up for low confidence.',
    'noise': 'No refinement; no object is given up for low confidence.',
    'heads': 'No refinement; no object is given up for low confidence. "Many layers" are the '
    "tracker's and those of the up blocks, as far as the later layer.",
    'paper': 'Many layers; no object is given up for low confidence, or uniform weights, whose '
    'probabilities are diffuse, would end at 0.',
    'parts': 'The tracker as shipped but for what the row says.',
}
"""Parts by name, with what their rows have in common."""
_TEMPERATURES = (0.02, 0.03, 0.05, 0.1)
_ENSEMBLE = 4
QUALITY: dict[str, Any] = {
    'features.resolution': 320,
    'kernel.radius': 11,
    'kernel.seed_radius': 21,
    'memory.older': 6,
}
"""Options of ``config/quality.yaml``: radii reach as far in the picture as by default."""
# What decides on a frame's features.
_FEATURES = (
    'features.resolution',
    'features.timestep',
    'features.noise',
    'features.inversion_steps',
    'experimental.noise_samples',
    'experimental.noise_seed',
    'features.prompt',
    'features.layers',
    'experimental.colour_share',
)


@dataclass(frozen=True)
class Row:
    """
    One configuration: tracker options besides the run's own, and what is done with them.

    ``prompt`` may hold ``{name}``, the sequence's name; ``learn`` seconds are spent on learning
    prompt tokens after the seed. The option ``align`` says whether the windows on seed frames
    follow the objects (not an option of the tracker: it is never worth it to leave that out).
    """

    part: str
    label: str
    text: str
    options: Mapping[str, Any] = field(default_factory=dict)
    engine: str = 'tracker'
    learn: float = 0.0

    def spec(
        self, sequence: str, base: Mapping[str, Any], model: str | None, device: str
    ) -> AblationSpec:
        """Make the engine for a sequence; raises ValueError where an option is out of range."""
        values = {**TrackerConfig().flat(), **base}
        extra = {key: value for key, value in self.options.items() if key not in values}
        values.update({key: value for key, value in self.options.items() if key in values})
        values['features.prompt'] = values['features.prompt'].format(name=category(sequence))
        TrackerConfig.of(values)
        return AblationSpec(
            f'{self.part}.{self.label}',
            self.engine,
            {**values, **extra, 'learn': self.learn},
            model,
            device,
        )


@dataclass(frozen=True)
class AblationSpec(EngineSpec):
    """An engine that may learn prompt tokens at its seed; keeps the engines it made."""

    made: list[Any] = field(default_factory=list, compare=False)

    @property
    def features_key(self) -> tuple:
        """Equal where frames are looked at in the same way, whatever is done with that."""
        own = self.name != 'tracker' or self.options['learn']
        return tuple(self.options[key] for key in _FEATURES) + (self.label if own else '',)

    def make(self, features: SharedFeatures | None = None) -> Any:
        """Build the engine, on features of its own or shared ones."""
        from drift_ros.api import Tracker

        engine: Any = (
            super().make()
            if features is None
            else Tracker(config=self.config, device=self.device, features=features)
        )
        if not self.options.get('align', True):
            engine._memory = _unaligned(self.config)
        if self.options['learn']:
            engine = LearningTracker(engine, self.options['learn'])
        self.made.append(engine)
        return engine


def _unaligned(config: TrackerConfig) -> Any:
    """Make a memory in which windows on a seed frame stay where its objects were then."""
    from drift_ros.engine.memory import ReferenceMemory
    from drift_ros.engine.reference import Reference

    class Unaligned(ReferenceMemory):
        def _aligned(self, seed: Reference) -> Reference:
            return seed

    return Unaligned(config)


class SharedFeatures:
    """Features for several trackers that get the same frames, one tracker after the other."""

    def __init__(self, features: Any) -> None:
        """Take the extractor (DiffusionFeatures) that does the work."""
        self._features = features
        self._frame: np.ndarray | None = None
        self._found: Any = None
        self._spent = self._owed = 0.0

    def extract(self, frame: np.ndarray) -> Any:
        """Extract features of a frame (H, W, 3) uint8 RGB, once."""
        if frame is self._frame:
            self._owed += self._spent
        else:
            start = time.perf_counter()
            self._found = self._features.extract(frame)
            self._spent = 1e3 * (time.perf_counter() - start)
            self._frame = frame
        return self._found

    def extract_resized(self, image: np.ndarray) -> Any:
        """Look at a frame of the working size, for the one who asks."""
        return self._features.extract_resized(image)

    def owed(self) -> float:
        """Milliseconds the others would have spent since this was asked last."""
        owed, self._owed = self._owed, 0.0
        return owed


class LearningTracker:
    """A tracker that learns prompt tokens for every seed before it goes on."""

    def __init__(self, tracker: Any, budget: float) -> None:
        self._tracker, self._budget = tracker, budget
        self.agreement: dict[int, tuple[float, float]] = {}
        self.seconds = 0.0

    def seed(self, frame: np.ndarray, label_mask: np.ndarray) -> list[int]:
        """Seed and learn."""
        ids = self._tracker.seed(frame, label_mask)
        steps = self._tracker.optimize(ids, self._budget)
        while True:
            try:
                next(steps)
            except StopIteration as end:
                result = end.value
                break
        self.seconds += result.seconds
        self.agreement.update(
            {number: (result.before[number], result.after[number]) for number in result.before}
        )
        return ids

    def step(self, frame: np.ndarray) -> Any:
        """Find the objects in the next frame."""
        return self._tracker.step(frame)

    @property
    def tokens(self) -> dict[int, np.ndarray]:
        """Learnt tokens (n, width) by object id."""
        return {number: value.cpu().numpy() for number, value in self._tracker.tokens.items()}


def category(sequence: str) -> str:
    """Turn the name of a sequence into words: car-shadow, car shadow."""
    return sequence.replace('-', ' ').replace('_', ' ')


def make_rows(
    parts: Sequence[str], late: str, every: Sequence[str], timesteps: Sequence[int], budget: float
) -> list[Row]:
    """
    List the rows of the parts asked for.

    Parameters
    ----------
    parts : of PARTS
    late : a layer behind cross-attention
    every : the layers over which heads are weighed
    timesteps : noise levels of the part 'noise'
    budget : seconds of learning

    """
    rows = []
    # Diffuse kernels are compared too: no object is given up for its low confidence.
    attention: dict[str, Any] = {'refinement.method': 'none', 'states.confidence': 0.0}

    def add(
        part: str,
        label: str,
        text: str,
        engine: str = 'tracker',
        learn: float = 0.0,
        **options: Any,
    ) -> None:
        if part in parts:
            named = {RENAMED.get(key, key): value for key, value in options.items()}
            rows.append(Row(part, label, text, named, engine, learn))

    add('kernel', 'attention', 'attention of Q and K', **attention)
    for value in _TEMPERATURES:
        add(
            'kernel',
            f'cosine-{value:g}',
            f'cosine of hidden features, temperature {value:g}',
            'cosine',
            cosine_temperature=value,
            **attention,
        )

    for tau in timesteps:
        options: dict[str, Any] = {**attention, 'features.timestep': tau}
        add('noise', f'scaled-{tau}', f'tau {tau}, noise-free', **options)
        add(
            'noise',
            f'inversion-{tau}',
            f'tau {tau}, DDIM inversion, 1 step',
            noise='inversion',
            **options,
        )
        add('noise', f'random-{tau}', f'tau {tau}, random noise', noise='random', **options)
        add(
            'noise',
            f'ensemble-{tau}',
            f'tau {tau}, {_ENSEMBLE} noises',
            noise='random',
            noise_samples=_ENSEMBLE,
            **options,
        )

    many: dict[str, Any] = {**attention, 'features.layers': tuple(every)}
    add('heads', 'uniform', 'many layers, all heads alike', **many)
    add(
        'heads',
        'adaptive',
        'many layers, adaptive head weights',
        head_weighting='adaptive',
        **many,
    )
    # Before the tracker's own layer of the embedded model the network reads no prompt; on the
    # way of an inversion it does.
    for name, title, where in (
        ('prompt', 'later layer', {**attention, 'features.layers': (late,)}),
        ('inverted', 'own layer, DDIM inversion', {**attention, 'features.noise': 'inversion'}),
    ):
        add('heads', f'{name}-null', f'{title}, null prompt', **where)
        add(
            'heads',
            f'{name}-category',
            f'{title}, "a photo of <name>"',
            prompt='a photo of {name}',
            **where,
        )
        add('heads', f'{name}-learnt', f'{title}, learnt tokens', learn=budget, **where)

    paper: dict[str, Any] = {
        'features.layers': tuple(every),
        'features.noise': 'inversion',
        'experimental.head_weighting': 'adaptive',
        'states.confidence': 0.0,
    }
    add('paper', 'paper', "the paper's three, many layers", learn=budget, **paper)
    add(
        'paper',
        'no-inversion',
        'the same without DDIM inversion',
        learn=budget,
        **{**paper, 'features.noise': 'none'},
    )
    add(
        'paper',
        'no-weights',
        'the same without head weights',
        learn=budget,
        **{**paper, 'experimental.head_weighting': 'uniform'},
    )
    add('paper', 'no-tokens', 'the same without learnt tokens', **paper)
    add('paper', 'none', 'none of the three, own layer', confidence_threshold=0.0)

    defaults = TrackerConfig()
    # Windows are counted in tokens: as far in the picture as by default.
    finer = {
        key: QUALITY[key] for key in ('features.resolution', 'kernel.radius', 'kernel.seed_radius')
    }
    add('parts', 'shipped', 'the defaults')
    add('parts', 'no-refinement', 'without refinement', refinement='none')
    add('parts', 'sam', 'refined by Segment Anything (the embedded small one)', refinement='sam')
    add('parts', 'joint', 'attention and colour in one kernel', colour_share=0.3)
    add(
        'parts', 'colour', 'colour alone in place of attention', colour_share=1.0, temperature=1.67
    )
    add('parts', 'no-stretch', 'without stretching of probabilities', normalize=False)
    add('parts', 'no-older', 'without older references', older_frames=0)
    add(
        'parts',
        'seed-only',
        'the seed frame as the only reference',
        older_frames=0,
        memory_frames=0,
    )
    add('parts', 'no-align', 'without seed windows that follow the objects', align=False)
    add(
        'parts',
        'narrow',
        "seed windows as wide as the others'",
        seed_radius=defaults.kernel.radius,
    )
    add('parts', 'all-matches', 'all matches in place of the best', top_k=0)
    add('parts', 'no-floor', 'without the floor under remembered labels', label_floor=0.0)
    add('parts', 'older-6', 'six older references', older_frames=6)
    add('parts', 'wide', 'seed windows of radius 24', seed_radius=24)
    add('parts', 'finer', f'resolution {QUALITY["features.resolution"]}', **finer)
    add(
        'parts',
        'quality',
        f'resolution {QUALITY["features.resolution"]}, six older references (config/quality.yaml)',
        **QUALITY,
    )
    add(
        'parts',
        'finer-wide',
        f'resolution {QUALITY["features.resolution"]}, six older references, seed windows of '
        'radius 32',
        **{**QUALITY, 'kernel.seed_radius': 32},
    )
    return rows


@click.command()
@click.argument('root', type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    '--parts',
    default=','.join(PARTS),
    show_default=True,
    help='Comparisons to make, separated by commas.',
)
@click.option('--sequences', help='Names, separated by commas [default: all].')
@click.option(
    '--max-frames',
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help='Use only the first frames of each sequence (0: all).',
)
@click.option(
    '--frames',
    'part_frames',
    multiple=True,
    metavar='PART=N',
    help='The same for one part; may be repeated.',
)
@click.option(
    '--timesteps',
    default='10,51,201,401',
    show_default=True,
    help='Noise levels of the part "noise".',
)
@click.option(
    '--budget',
    default=10.0,
    show_default=True,
    help='Seconds of learning prompt tokens per sequence and row.',
)
@click.option(
    '--layers',
    'every',
    help='Layers over which heads are weighed, separated by commas '
    "[default: the tracker's and those of the up blocks as "
    'far as the later layer].',
)
@click.option(
    '--set',
    'settings',
    multiple=True,
    metavar='OPTION=VALUE',
    help='A tracker option for all rows; may be repeated.',
)
@click.option(
    '--params-file',
    type=click.Path(exists=True, dir_okay=False),
    help='Tracker options from a ROS 2 parameter file.',
)
@click.option(
    '--model', help='Folder or hub id of a diffusers checkpoint [default: the embedded model].'
)
@click.option('--device', default='auto', show_default=True, help='auto, cpu, cuda[:N].')
@click.option(
    '--workers',
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help='Processes. Milliseconds are those of a step with so many side by side.',
)
@click.option(
    '--threads',
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help='Threads of each process; 0: processors shared among them.',
)
@click.option(
    '--out',
    type=click.Path(file_okay=False, path_type=Path),
    default=Path('out', 'ablate'),
    show_default=True,
    help='Folder of results; finished rows of an earlier run are kept.',
)
def ablate(
    root: Path,
    parts: str,
    sequences: str | None,
    max_frames: int,
    part_frames: Sequence[str],
    timesteps: str,
    budget: float,
    every: str | None,
    settings: Sequence[str],
    params_file: str | None,
    model: str | None,
    device: str,
    workers: int,
    threads: int,
    out: Path,
) -> None:
    """
    Compare the parts of the method on the DAVIS-layout folder ROOT.

    Prints a table; writes rows.csv, frames.csv, tables.md, figures (PNG) and report.html.
    Interrupt it when you like: the same command goes on where it stopped.
    """
    from drift_ros.evaluation.datasets import find_sequences

    with user_errors():
        chosen = [part.strip() for part in parts.split(',') if part.strip()]
        unknown = [part for part in chosen if part not in PARTS]
        if unknown or not chosen:
            raise ValueError(f'--parts {parts}: choose from {", ".join(PARTS)}')
        limits = {**dict.fromkeys(chosen, max_frames), **_part_frames(part_frames)}
        names = [name for name in (sequences or '').split(',') if name]
        found = {
            limit: find_sequences(root, names=names, max_frames=limit)
            for limit in {limits[part] for part in chosen}
        }
        base = {
            **(load_params_file(params_file) if params_file else {}),
            **split_settings(settings),
        }
        used, late, default_every = _choose_layers(model, base, device)
        chosen_every = [p.strip() for p in every.split(',')] if every else default_every
        rows = make_rows(
            chosen, late, chosen_every, [int(tau) for tau in timesteps.split(',')], budget
        )
        threads = threads or max((os.cpu_count() or 1) // workers, 1)
        jobs = [
            (row.spec(item.name, base, model, device), item)
            for row in rows
            for item in found[limits[row.part]]
        ]
        results = _run(jobs, out, workers, threads)
        write(
            out,
            rows,
            results,
            {
                'root': str(root),
                'sequences': [item.name for item in found[limits[chosen[0]]]],
                'first frames of each sequence': {part: limits[part] or 'all' for part in chosen},
                'options': base,
                'model': model,
                'layers': list(used),
                'later layer': late,
                'many layers': list(chosen_every),
                'processes': workers,
                'threads of each': threads,
                'versions': runner.versions(),
            },
        )
        console = Console()
        console.print(table(rows, results))
        console.print(f'report: {out / "report.html"}; rows: {out / "rows.csv"}', soft_wrap=True)


def _choose_layers(
    model: str | None, base: Mapping[str, Any], device: str
) -> tuple[tuple[str, ...], str, list[str]]:
    """Choose the tracker's layers, one behind cross-attention, and those of head weighting."""
    from drift_ros.diffusion.attention import select_layers, self_attention_layers
    from drift_ros.diffusion.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(model, device=device)
    used = select_layers(
        checkpoint.unet, tuple(base.get('features.layers', ())) or checkpoint.layers
    )
    (late,) = select_layers(checkpoint.unet, ())
    available = self_attention_layers(checkpoint.unet)
    reached = available[: available.index(late) + 1]
    return (
        used,
        late,
        [
            name
            for name in available
            if name in used or (name in reached and name.startswith('up_'))
        ],
    )


def _part_frames(pairs: Sequence[str]) -> dict[str, int]:
    """Read ``--frames part=number`` arguments."""
    limits = {}
    for pair in pairs:
        part, _, number = pair.partition('=')
        if part not in PARTS or not number.isdigit():
            raise ValueError(f'--frames {pair}: expected PART=N, PART one of {", ".join(PARTS)}')
        limits[part] = int(number)
    return limits


Results = Mapping[tuple[str, str], Sequence[runner.JobResult]]
"""Results by part and label of the row, one for each sequence."""


def _run(
    jobs: Sequence[tuple[AblationSpec, runner.SequenceSource]],
    out: Path,
    workers: int,
    threads: int,
) -> Results:
    """Run what is not finished yet."""
    done: dict[tuple[str, str], runner.JobResult] = {}
    groups: dict[tuple, tuple[list[AblationSpec], runner.SequenceSource]] = {}
    with Progress(
        TextColumn('{task.description:40.40}'),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn('frames'),
        TimeElapsedColumn(),
        TextColumn('left'),
        TimeRemainingColumn(),
        speed_estimate_period=900,
    ) as bar:
        task = bar.add_task('', total=sum(len(sequence) for _, sequence in jobs))

        def progress(engine: str, name: str, count: int) -> None:
            bar.update(task, advance=count, description=f'{engine} {name}')

        for spec, sequence in jobs:
            kept = runner.finished(spec, sequence, out, _OPTIONS)
            if kept is not None:
                done[spec.label, sequence.name] = kept
                progress(spec.label, sequence.name, len(sequence))
                continue
            key = (sequence.name, len(sequence), spec.features_key)
            groups.setdefault(key, ([], sequence))[0].append(spec)
        # Sequence by sequence, so that the time left can be told from the time spent; what takes
        # long first, so that no process is left alone with it at the end.
        longest: dict[str, int] = {}
        for name, length, _ in groups:
            longest[name] = max(length, longest.get(name, 0))
        order = sorted(
            groups, key=lambda key: (-longest[key[0]], key[0], -len(groups[key][0]) * key[1])
        )
        calls = {key: (*groups[key], out) for key in order}
        if workers == 1:
            runner.limit_threads(threads)
            found = (run_group(*arguments, progress) for arguments in calls.values())
        else:
            found = (
                future.result()
                for _, future in runner.in_processes(run_group, calls, workers, threads, progress)
            )
        try:
            for result in itertools.chain.from_iterable(found):
                done[result.engine, result.sequence] = result
        except BrokenProcessPool:
            raise ValueError(runner.WORKER_DIED) from None
        bar.update(task, description='done')
    results: dict[tuple[str, str], list[runner.JobResult]] = {}
    for spec, sequence in jobs:
        part, _, label = spec.label.partition('.')
        results.setdefault((part, label), []).append(done[spec.label, sequence.name])
    return results


_OPTIONS = runner.RunOptions(save_masks=False)


def run_group(
    specs: Sequence[AblationSpec],
    sequence: runner.SequenceSource,
    out: Path,
    progress: runner.Progress,
) -> list[runner.JobResult]:
    """Run rows of one :attr:`AblationSpec.features_key` on a sequence, in lock-step."""
    from drift_ros.api import diffusion_features

    first = specs[0]
    shared = None
    if len(specs) > 1:
        shared = SharedFeatures(diffusion_features(first.model, first.config, first.device))
    engines = [(spec, spec.make(shared)) for spec in specs]
    results = runner.run_together(
        engines, sequence, out, _OPTIONS, progress, shared.owed if shared else lambda: 0.0
    )
    for spec in specs:
        _keep_tokens(out, spec, sequence.name)
        spec.made.clear()
    return results


def _keep_tokens(out: Path, spec: AblationSpec, sequence: str) -> None:
    """Write learnt tokens and how well they agree with the mask, for figure 5."""
    for engine in spec.made:
        if not isinstance(engine, LearningTracker):
            continue
        path = out / 'tokens' / spec.label / f'{sequence}.json'
        runner.write_json(
            path,
            {
                'tokens': {number: value.tolist() for number, value in engine.tokens.items()},
                'agreement': engine.agreement,
                'seconds': engine.seconds,
            },
        )


# -- what is made of the results ---------------------------------------------------------------


def table(rows: Sequence[Row], results: Results) -> Table:
    """Make the table of all rows."""
    shown = Table(title='J&F in percent', title_justify='left')
    for title in ('part', 'row', 'J&F', 'J', 'F', 'ms per frame', 'frames'):
        shown.add_column(title, justify='left' if title in ('part', 'row') else 'right')
    part = ''
    for row, found in _summaries(rows, results):
        if part and part != row.part:
            shown.add_section()
        shown.add_row(
            '' if part == row.part else row.part,
            row.text,
            *(f'{100 * found[key]:.1f}' for key in ('j_and_f', 'j_mean', 'f_mean')),
            f'{found["ms_median"]:.0f}',
            str(found['frames']),
        )
        part = row.part
    return shown


def _summaries(rows: Sequence[Row], results: Results) -> Iterator[tuple[Row, dict[str, Any]]]:
    for row in rows:
        (found,) = runner.engine_summary(results[row.part, row.label]).values()
        yield row, found


def write(
    out: Path, rows: Sequence[Row], results: Results, description: Mapping[str, Any]
) -> Path:
    """Write CSV, figures and the report into a folder; returns the report's path."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / 'rows.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(
            [
                'part',
                'row',
                'text',
                'j_and_f',
                'j_mean',
                'f_mean',
                'ms_median',
                'sequences',
                'frames',
                'options',
            ]
        )
        for row, found in _summaries(rows, results):
            writer.writerow(
                [
                    row.part,
                    row.label,
                    row.text,
                    found['j_and_f'],
                    found['j_mean'],
                    found['f_mean'],
                    found['ms_median'],
                    found['sequences'],
                    found['frames'],
                    json.dumps({**row.options, 'learn': row.learn}, default=list),
                ]
            )
    (out / 'tables.md').write_text(_markdown(rows, results), encoding='utf-8')
    with (out / 'frames.csv').open('w', newline='') as file:
        writer = csv.writer(file)
        writer.writerow(['part', 'row', 'sequence', 'frame', 'j_and_f'])
        for row in rows:
            for result in results[row.part, row.label]:
                for frame, value in zip(result.score.frames, _per_frame(result), strict=True):
                    writer.writerow([row.part, row.label, result.sequence, int(frame), value])
    figures = [
        (name, text)
        for name, text, draw in (
            (
                'kernel',
                'Attention and cosine similarity, frame by frame (mean over sequences) and on '
                'average',
                _draw_kernel,
            ),
            ('noise', 'J&F over the noise level tau', _draw_noise),
            ('prompts', 'Null prompt, category names and learnt tokens (t-SNE)', _draw_prompts),
            ('parts', 'Each part left out in turn', _draw_parts),
        )
        if draw(out / f'{name}.png', rows, results, description)
    ]
    return _write_report(out, rows, results, figures, description)


def _markdown(rows: Sequence[Row], results: Results) -> str:
    """Make a Markdown table of each part."""
    lines, part = [], ''
    for row, found in _summaries(rows, results):
        if row.part != part:
            part = row.part
            lines += [
                '',
                f'### {part}',
                '',
                f'{found["frames"]} frames. {PARTS[part]}',
                '',
                '| row | J&F | J | F | ms |',
                '|---|---|---|---|---|',
            ]
        scores = (f'{100 * found[key]:.1f}' for key in ('j_and_f', 'j_mean', 'f_mean'))
        text = row.text.replace('<', '&lt;').replace('>', '&gt;')
        lines.append(f'| {text} | {" | ".join(scores)} | {found["ms_median"]:.0f} |')
    return '\n'.join(lines[1:]) + '\n'


def _per_frame(result: runner.JobResult) -> np.ndarray:
    return (np.nanmean(result.score.j, axis=1) + np.nanmean(result.score.f, axis=1)) / 2


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> bool:
    figure.savefig(path, dpi=110)
    _pyplot().close(figure)
    return True


def _draw_kernel(
    path: Path, rows: Sequence[Row], results: Results, description: Mapping[str, Any]
) -> bool:
    """Figures 2 and 3: per frame, and on average."""
    chosen = [item for item in _summaries(rows, results) if item[0].part == 'kernel']
    if not chosen:
        return False
    figure, (left, right) = _pyplot().subplots(1, 2, figsize=(11, 4), layout='constrained')
    names = {
        row.label: row.text.replace('cosine of hidden features', 'cosine') for row, _ in chosen
    }
    for row, _ in chosen:
        curves = [_per_frame(result) for result in results[row.part, row.label]]
        length = max(map(len, curves))
        # Sequences end at different frames: a mean is over those that still run.
        padded = np.array(
            [np.pad(c, (0, length - len(c)), constant_values=np.nan) for c in curves]
        )
        left.plot(
            np.arange(1, length + 1),
            100 * np.nanmean(padded, axis=0),
            label=names[row.label],
            linewidth=2.5 if row.engine == 'tracker' else 1.2,
        )
    left.set(xlabel='frame', ylabel='J&F in percent, mean over sequences')
    left.xaxis.get_major_locator().set_params(integer=True)
    left.grid(color='0.9')
    left.legend(frameon=False, fontsize=8)
    _dots(
        right,
        [names[row.label] for row, _ in chosen],
        [100 * found['j_and_f'] for _, found in chosen],
    )
    right.set(xlabel='J&F in percent, mean')
    return _save(figure, path)


def _dots(axes: Any, names: Sequence[str], values: Sequence[float]) -> None:
    """Draw labelled values, the first at the top; a line marks it, the one to compare with."""
    places = np.arange(len(names))[::-1]
    axes.axvline(values[0], color='0.8')
    axes.scatter(values, places, zorder=3)
    for value, place in zip(values, places, strict=True):
        axes.annotate(
            f'{value:.1f}',
            (value, place),
            (6, 0),
            textcoords='offset points',
            va='center',
            fontsize=8,
        )
    span = max(max(values) - min(values), 1.0)
    axes.set(
        xlim=(min(values) - 0.08 * span, max(values) + 0.2 * span), ylim=(-0.7, len(names) - 0.3)
    )
    axes.set_yticks(places, names)
    axes.grid(axis='y', color='0.93')


def _draw_noise(
    path: Path, rows: Sequence[Row], results: Results, description: Mapping[str, Any]
) -> bool:
    """Figure 4: a curve over tau for each way to the noise level."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row, found in _summaries(rows, results):
        if row.part == 'noise':
            curves.setdefault(row.label.rpartition('-')[0], []).append(
                (row.options['features.timestep'], 100 * found['j_and_f'])
            )
    if not curves:
        return False
    names = {
        'scaled': 'noise-free',
        'inversion': 'DDIM inversion, 1 step',
        'random': 'random noise',
        'ensemble': f'ensemble of {_ENSEMBLE}',
    }
    figure, axes = _pyplot().subplots(figsize=(6.5, 4), layout='constrained')
    for name, points in curves.items():
        axes.plot(*zip(*sorted(points)), marker='o', label=names[name])
    axes.set(xlabel='noise level tau', ylabel='J&F in percent')
    axes.set_xticks(sorted({tau for points in curves.values() for tau, _ in points}))
    axes.grid(color='0.9')
    axes.legend(frameon=False)
    return _save(figure, path)


def _draw_parts(
    path: Path, rows: Sequence[Row], results: Results, description: Mapping[str, Any]
) -> bool:
    chosen = [item for item in _summaries(rows, results) if item[0].part == 'parts']
    if not chosen:
        return False
    figure, (left, right) = _pyplot().subplots(
        1,
        2,
        figsize=(11, 0.8 + 0.32 * len(chosen)),
        layout='constrained',
        sharey=True,
        width_ratios=(3, 2),
    )
    _dots(left, [row.text for row, _ in chosen], [100 * found['j_and_f'] for _, found in chosen])
    left.set(xlabel='J&F in percent')
    times = [found['ms_median'] for _, found in chosen]
    bars = right.barh(np.arange(len(chosen))[::-1], times, height=0.5, color='0.7')
    right.bar_label(bars, [f'{value:.0f}' for value in times], padding=3, fontsize=8)
    right.set(xlabel='milliseconds per frame, median', xlim=(0, 1.12 * max(times)))
    return _save(figure, path)


def _draw_prompts(
    path: Path, rows: Sequence[Row], results: Results, description: Mapping[str, Any]
) -> bool:
    """Figure 5: where learnt tokens lie, and the prompts they stand beside."""
    files = sorted((path.parent / 'tokens' / 'heads.prompt-learnt').glob('*.json'))
    learnt = [row for row in rows if row.part == 'heads' and row.learn]
    if not learnt or not files:
        return False
    points, groups, names = [], [], []
    for number, file in enumerate(files):
        for tokens in json.loads(file.read_text())['tokens'].values():
            points += tokens
            groups += [number] * len(tokens)
        names.append(file.stem)
    extra = _prompt_states(results, learnt[0], description['model'])
    for label, states in extra.items():
        points += states.tolist()
        groups += [-1 if label == '' else -2] * len(states)
    places = tsne(np.array(points, np.float64))
    figure, axes = _pyplot().subplots(figsize=(7.5, 5), layout='constrained')
    kinds = np.array(groups)
    for number, name in enumerate(names):
        axes.scatter(*places[kinds == number].T, s=28, label=name)
    axes.scatter(*places[kinds == -2].T, s=40, marker='x', color='0.4', label='category names')
    axes.scatter(*places[kinds == -1].T, s=70, marker='*', color='black', label='null prompt')
    axes.set(xticks=[], yticks=[])
    axes.legend(frameon=False, fontsize=8, loc='center left', bbox_to_anchor=(1, 0.5))
    return _save(figure, path)


def _prompt_states(results: Results, row: Row, model: str | None) -> dict[str, np.ndarray]:
    """States of the null prompt and of the category names: the tokens behind the start token."""
    from drift_ros.diffusion.checkpoint import load_checkpoint

    states = {}
    names = [category(result.sequence) for result in results[row.part, row.label]]
    for text in ['', *dict.fromkeys(names)]:
        prompt = load_checkpoint(
            model, device='cpu', prompt=f'a photo of {text}' if text else ''
        ).prompt
        states[text] = prompt[0, 1 : 2 if not text else 5].float().numpy()
    return states


def tsne(
    points: np.ndarray, perplexity: float = 8.0, steps: int = 600, seed: int = 0
) -> np.ndarray:
    """
    Lay points (n, d) out in the plane: exact t-SNE (van der Maaten and Hinton, 2008).

    Small sets only: all pairs are held. Returns (n, 2), the same for the same input.
    """
    count = len(points)
    perplexity = min(perplexity, (count - 1) / 3)
    squares = (points**2).sum(1)
    distance = np.maximum(squares[:, None] + squares - 2 * points @ points.T, 0)
    joint = np.zeros((count, count))
    for i in range(count):
        others = np.delete(distance[i], i)
        low, high, beta = 0.0, np.inf, 1.0 / max(others.mean(), 1e-12)
        for _ in range(60):  # the width that gives the perplexity
            weights = np.exp(-beta * (others - others.min()))
            share = weights / weights.sum()
            entropy = -(share * np.log(np.maximum(share, 1e-300))).sum()
            if entropy > np.log(perplexity):
                low, beta = beta, beta * 2 if np.isinf(high) else (beta + high) / 2
            else:
                high, beta = beta, (low + beta) / 2
        joint[i] = np.insert(share, i, 0.0)
    joint = np.maximum((joint + joint.T) / (2 * count), 1e-12)
    places = 1e-4 * np.random.default_rng(seed).standard_normal((count, 2))
    velocity, gains = np.zeros_like(places), np.ones_like(places)
    for step in range(steps):
        closeness = 1 / (1 + ((places[:, None] - places[None]) ** 2).sum(-1))
        np.fill_diagonal(closeness, 0)
        shares = np.maximum(closeness / closeness.sum(), 1e-12)
        pull = (joint * (4 if step < 100 else 1) - shares) * closeness
        gradient = 4 * (pull.sum(1)[:, None] * places - pull @ places)
        same = np.sign(gradient) == np.sign(velocity)
        gains = np.maximum(np.where(same, gains * 0.8, gains + 0.2), 0.01)
        velocity = (0.5 if step < 100 else 0.8) * velocity - 10.0 * gains * gradient
        places = places + velocity
        places -= places.mean(0)
    return places


def _write_report(
    out: Path,
    rows: Sequence[Row],
    results: Results,
    figures: Sequence[tuple[str, str]],
    description: Mapping[str, Any],
) -> Path:
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.filters['percent'] = lambda value: f'{100 * value:.1f}'
    learnt = []
    for path in sorted((out / 'tokens').rglob('*.json')):
        data = json.loads(path.read_text())
        for number, (before, after) in data['agreement'].items():
            learnt.append((path.parent.name, path.stem, number, before, after, data['seconds']))
    page = environment.from_string(_PAGE).render(
        rows=list(_summaries(rows, results)),
        figures=figures,
        learnt=learnt,
        sequences=len(description['sequences']),
        notes=[(part, PARTS[part]) for part in dict.fromkeys(row.part for row in rows)],
        description=json.dumps(description, indent=2, default=list),
    )
    path = out / 'report.html'
    path.write_text(page, encoding='utf-8')
    return path


_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>drift_ros ablation</title>
<link rel="icon" href="data:,">
<style>
body { font: 15px/1.45 system-ui, sans-serif; margin: 0 auto; max-width: 1100px;
       padding: 1.5em; color: #222; }
table { border-collapse: collapse; margin: 1em 0; }
th, td { padding: .25em .8em; text-align: right; border-bottom: 1px solid #e4e4e4; }
th:first-child, td:first-child, td:nth-child(2) { text-align: left; }
thead th { border-bottom: 2px solid #888; }
img { max-width: 100%; height: auto; }
pre { background: #f5f5f5; padding: 1em; overflow-x: auto; font-size: .85em; }
</style>
</head>
<body>
<h1>drift_ros ablation</h1>
<p>{{ sequences }} sequences. First and last frame of each are not scored; means are over objects.
Parts with fewer frames than others ran on the first frames of each sequence only. Rows that look
at frames in the same way share the features; their time is in each row's milliseconds, as if it
ran alone. Prompt tokens are learnt once, at the seed: that time is not in the milliseconds.</p>
<table id="rows">
<thead><tr><th>part</th><th>row</th><th>J&amp;F</th><th>J</th><th>F</th><th>ms per frame</th>
<th>frames</th></tr>
</thead>
<tbody>
{% for row, found in rows %}
<tr><td>{{ row.part }}</td><td>{{ row.text }}</td><td>{{ found.j_and_f | percent }}</td>
<td>{{ found.j_mean | percent }}</td><td>{{ found.f_mean | percent }}</td>
<td>{{ '%.0f' % found.ms_median }}</td><td>{{ found.frames }}</td></tr>
{% endfor %}
</tbody></table>
<dl>{% for part, text in notes %}<dt>{{ part }}</dt><dd>{{ text }}</dd>{% endfor %}</dl>
{% for name, text in figures %}
<figure><img src="{{ name }}.png" alt="{{ text }}"><figcaption>{{ text }}</figcaption></figure>
{% endfor %}
{% if learnt %}
<h2>Learnt tokens</h2>
<table id="learnt">
<thead><tr><th>row</th><th>sequence</th><th>object</th><th>agreement before</th><th>after</th>
<th>seconds</th></tr></thead>
<tbody>
{% for row, sequence, number, before, after, seconds in learnt %}
<tr><td>{{ row }}</td><td>{{ sequence }}</td><td>{{ number }}</td><td>{{ before | percent }}</td>
<td>{{ after | percent }}</td><td>{{ '%.1f' % seconds }}</td></tr>
{% endfor %}
</tbody></table>
{% endif %}
<h2>Configuration</h2>
<pre>{{ description }}</pre>
</body>
</html>
"""
