# SPDX-License-Identifier: Apache-2.0
"""Whether a soak was passed, and by how much: growth with its confidence, losses, faults."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

GROWTH = {'memory': 20.0, 'shared': 1.0, 'descriptors': 2.0, 'threads': 1.0, 'effort': 10.0}
"""What each may grow by in an hour: MB, MB, number, number, ms of processor time a frame."""
UNITS = {
    'memory': 'MB',
    'shared': 'MB',
    'descriptors': '',
    'threads': '',
    'effort': 'ms',
    'step': 'ms',
    'rate': 'Hz',
}
WARM_UP = 2
"""Rounds that do not count: caches fill."""


@dataclass(frozen=True)
class Slope:
    """
    Growth in an hour.

    ``value`` is the least-squares slope, ``low`` and ``high`` bound it with 95 % confidence.
    """

    value: float
    low: float
    high: float

    def exceeds(self, limit: float) -> bool:
        """Whether it certainly grows faster than a limit."""
        return self.low > limit

    def below(self, limit: float) -> bool:
        """Whether it certainly grows no faster than a limit."""
        return self.high <= limit


def slope(seconds: Sequence[float], values: Sequence[float]) -> Slope:
    """
    Fit a line.

    Parameters
    ----------
    seconds, values : sequence of float
        Independent of each other: one for each round of attacks, always of the same place in it.

    Returns
    -------
    Slope
        For an hour; all NaN for fewer than 4 values.

    """
    if len(values) < 4:
        return Slope(*[float('nan')] * 3)
    if np.ptp(values) == 0.0:  # never changed; the fit says nan
        return Slope(0.0, 0.0, 0.0)
    fit = stats.linregress(np.asarray(seconds) / 3600, values)
    reach = float(stats.t.ppf(0.975, len(values) - 2)) * fit.stderr
    return Slope(float(fit.slope), float(fit.slope - reach), float(fit.slope + reach))


def tracebacks(folder: Path) -> list[str]:
    """Give what was raised in any log of a folder: file and exception."""
    found = []
    for path in sorted(folder.rglob('*.log')):
        text = path.read_text(errors='replace')
        for part in text.split('Traceback (most recent call last)')[1:]:
            lines = [line for line in part.splitlines()[1:] if line and not line.startswith(' ')]
            found.append(f'{path.relative_to(folder)}: {(lines or ["?"])[0]}')
        if 'Segmentation fault' in text or 'terminate called' in text:
            found.append(f'{path.relative_to(folder)}: died')
    return found


def judge(
    samples: Sequence[Mapping[str, Any]],
    faults: Sequence[str],
    lost: Sequence[str],
    raised: Sequence[str],
) -> tuple[bool, list[str], dict[str, Slope]]:
    """
    Say whether a soak was passed.

    Parameters
    ----------
    samples : sequence of mapping
        With ``time`` in seconds, ``where`` ('round' at the end of each round of attacks) and a
        number for each key of GROWTH.
    faults, lost, raised : sequence of str
        What went wrong, objects that were not found though visible, tracebacks.

    Returns
    -------
    passed : bool
    reasons : list of str
        Lines for people, those of failures begin with FAILED.
    slopes : dict of str to Slope

    """
    reasons = []
    for what, items in (('faults', faults), ('lost objects', lost), ('tracebacks', raised)):
        reasons.append(f'{"FAILED" if items else "passed"}: {len(items)} {what}')
        reasons += [f'    {item}' for item in items[:20]]
    rounds = [item for item in samples if item['where'] == 'round'][WARM_UP:]
    slopes = {}
    failed = bool(faults or lost or raised)
    for name, limit in GROWTH.items():
        pairs = [(s['time'], s[name]) for s in rounds if np.isfinite(s[name])]
        found = slopes[name] = slope([t for t, _ in pairs], [v for _, v in pairs])
        grows = found.exceeds(limit)
        word = 'FAILED' if grows else 'passed' if found.below(limit) else 'open  '
        failed |= grows
        reasons.append(
            f'{word}: {name} grows by {found.value:+.2f} {UNITS[name]} an hour, 95 % between '
            f'{found.low:+.2f} and {found.high:+.2f}; allowed {limit:g}'
            + (' (too short to tell)' if word == 'open  ' else '')
        )
    return not failed, reasons, slopes


def draw(path: Path, samples: Sequence[Mapping[str, Any]], slopes: Mapping[str, Slope]) -> None:
    """Write the curves as a picture."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = {
        name: unit
        for name, unit in UNITS.items()
        if np.isfinite([item[name] for item in samples]).any()
    }
    figure = Figure(figsize=(11, 1 + 1.5 * len(known)), layout='constrained')
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(known), 1, sharex=True)
    minutes = np.array([item['time'] for item in samples]) / 60
    rounds = [i for i, item in enumerate(samples) if item['where'] == 'round']
    for axis, (name, unit) in zip(axes, known.items()):
        values = np.array([item[name] for item in samples], float)
        if name != 'effort':
            axis.plot(minutes, values, lw=0.8, color='0.6')
        axis.plot(minutes[rounds], values[rounds], 'o', ms=3, color='C0')
        if name in slopes and np.isfinite(slopes[name].value):
            found = slopes[name]
            axis.set_title(
                f'{name}: {found.value:+.2f} {unit}/h ({found.low:+.2f} to {found.high:+.2f})',
                fontsize=9,
                loc='left',
            )
        axis.set_ylabel(f'{name}{f" ({unit})" if unit else ""}', fontsize=9)
    axes[-1].set_xlabel('minutes; dots: the end of each round of attacks')
    figure.savefig(path, dpi=110)
