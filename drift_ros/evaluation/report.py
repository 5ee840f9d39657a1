# SPDX-License-Identifier: Apache-2.0
"""Pictures and the HTML report of an evaluation."""
from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def write_chart(path: Path, results: Sequence[Any]) -> None:
    """Write a bar chart of J&F per sequence and engine as PNG."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    import numpy as np

    from drift_ros.evaluation.runner import engine_summary

    summary = engine_summary(results)
    names = list(dict.fromkeys(row.sequence for row in results))
    scores = {(row.engine, row.sequence): 100 * row.summary.j_and_f for row in results}
    figure, axes = pyplot.subplots(figsize=(max(6, 0.35 * (len(names) + 1) * (len(summary) + 1)),
                                            4.2), layout='constrained')
    width = 0.8 / len(summary)
    for index, (engine, row) in enumerate(summary.items()):
        values = [scores.get((engine, name), 0) for name in names] + [100 * row['j_and_f']]
        places = np.arange(len(values)) + (index - (len(summary) - 1) / 2) * width
        axes.bar(places, values, width, label=f'{engine} ({100 * row["j_and_f"]:.1f})')
    axes.set_xticks(range(len(names) + 1), [*names, 'mean'], rotation=35, ha='right')
    axes.axvline(len(names) - 0.5, color='0.7', linewidth=1)
    axes.set_ylabel('J&F in percent')
    axes.set_ylim(0, 100)
    axes.grid(axis='y', color='0.9')
    axes.set_axisbelow(True)
    figure.legend(loc='outside upper center', ncols=min(len(summary), 5), frameon=False)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
