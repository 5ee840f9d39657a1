# SPDX-License-Identifier: Apache-2.0
"""The figures of an ablation. Each function draws one and says whether there was anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
import json
from pathlib import Path
from typing import Any

import numpy as np

from drift_ros.evaluation.results import JobResult
from drift_ros.evaluation.summaries import engine_summary
from drift_ros.experiments.rows import category, Row

Results = Mapping[tuple[str, str], Sequence[JobResult]]
"""Results by part and label of the row, one for each sequence."""


def summaries(rows: Sequence[Row], results: Results) -> Iterator[tuple[Row, dict[str, Any]]]:
    """Sum each row up over its sequences."""
    for row in rows:
        (found,) = engine_summary(results[row.part, row.label]).values()
        yield row, found


def per_frame(result: JobResult) -> np.ndarray:
    """Give J&F (n,) of the counted frames, means over objects."""
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


def draw_kernel(
    path: Path, rows: Sequence[Row], results: Results, description: Mapping[str, Any]
) -> bool:
    """Draw figures 2 and 3: attention and cosine, per frame and on average."""
    chosen = [item for item in summaries(rows, results) if item[0].part == 'kernel']
    if not chosen:
        return False
    figure, (left, right) = _pyplot().subplots(1, 2, figsize=(11, 4), layout='constrained')
    names = {
        row.label: row.text.replace('cosine of hidden features', 'cosine') for row, _ in chosen
    }
    for row, _ in chosen:
        curves = [per_frame(result) for result in results[row.part, row.label]]
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


def draw_noise(
    path: Path, rows: Sequence[Row], results: Results, description: Mapping[str, Any]
) -> bool:
    """Draw figure 4: a curve over tau for each way to the noise level."""
    curves: dict[str, list[tuple[int, float]]] = {}
    for row, found in summaries(rows, results):
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
        'ensemble': 'ensemble of 4',
    }
    figure, axes = _pyplot().subplots(figsize=(6.5, 4), layout='constrained')
    for name, points in curves.items():
        axes.plot(*zip(*sorted(points)), marker='o', label=names[name])
    axes.set(xlabel='noise level tau', ylabel='J&F in percent')
    axes.set_xticks(sorted({tau for points in curves.values() for tau, _ in points}))
    axes.grid(color='0.9')
    axes.legend(frameon=False)
    return _save(figure, path)


def draw_parts(
    path: Path, rows: Sequence[Row], results: Results, description: Mapping[str, Any]
) -> bool:
    """Draw accuracy and time with each part left out in turn."""
    chosen = [item for item in summaries(rows, results) if item[0].part == 'parts']
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


def draw_prompts(
    path: Path, rows: Sequence[Row], results: Results, description: Mapping[str, Any]
) -> bool:
    """Draw figure 5: where learnt tokens lie, and the prompts they stand beside (t-SNE)."""
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


def tsne(points: np.ndarray, perplexity: float = 8.0) -> np.ndarray:
    """Lay points (n, d) out in the plane, (n, 2); the same for the same input."""
    from sklearn.manifold import TSNE

    perplexity = min(perplexity, (len(points) - 1) / 3)
    return TSNE(perplexity=perplexity, init='pca', random_state=0).fit_transform(points)


FIGURES = (
    (
        'kernel',
        'Attention and cosine similarity, frame by frame (mean over sequences) and on average',
        draw_kernel,
    ),
    ('noise', 'J&F over the noise level tau', draw_noise),
    ('prompts', 'Null prompt, category names and learnt tokens (t-SNE)', draw_prompts),
    ('parts', 'Each part left out in turn', draw_parts),
)
"""File, title and function of every figure."""
