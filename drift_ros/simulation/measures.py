# SPDX-License-Identifier: Apache-2.0
"""How a run of the simulated robot went: numbers, a plot, pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
import math
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from drift_ros.media.overlay import draw_labels
from drift_ros.simulation.closed_loop import Moment, RATE, Record, TICKS
from drift_ros.simulation.scenario import SETTLED

_SEEN = 1  # Track.TRACKING
_CLEAR, _HIDDEN = 0.5, 0.05  # shares of the front that count as visible, and as hidden
_ASTRAY = 0.5  # metres between object and pose from which the pose is of something else
_STEP = 1 / RATE


@dataclass(frozen=True)
class Loss:
    """
    The object was hidden for more than a second.

    Attributes
    ----------
    hidden, back : float
        Seconds: when nothing of it could be seen any more, and when half of it could again (NaN:
        not in this run).
    told : float
        Seconds from hidden until the tracker said so; negative when it said so before.
    stopped : float
        Seconds from hidden until the last command that was not zero had ended.
    drift : float
        Metres the robot moved after that, until the tracker saw the object again.
    found : float
        Seconds from back until the tracker said so; negative when it needed less than half of it.

    """

    hidden: float
    back: float
    told: float
    stopped: float
    drift: float
    found: float


@dataclass(frozen=True)
class Measures:
    """
    How a run went.

    Attributes
    ----------
    seed : int
    visible : int
        Images in which half of the object's front could be seen, with the robot turned right.
    in_view : float
        Share of them that show it.
    tracked : float
        Share of them in which the tracker sees it.
    distance_error, bearing_error : float
        Means of their amounts over the visible ones after the approach: share of the distance to
        keep, radians.
    place_error : float
        Median distance of poses from the object's front, metres.
    astray : int
        Poses more than half a metre away from the object: of something else.
    losses : tuple of Loss
    speed, turn, acceleration : float
        Largest ones in the commands, SI units.
    limits : bool
        No command, and no change of one, was above the limits.
    unanswered : int
        Images without an answer, and ticks without a command in time.

    """

    seed: int
    visible: int
    in_view: float
    tracked: float
    distance_error: float
    bearing_error: float
    place_error: float
    astray: int
    losses: tuple[Loss, ...]
    speed: float
    turn: float
    acceleration: float
    limits: bool
    unanswered: int


def measure(record: Record) -> Measures:
    """Sum a run up."""
    moments, options = record.moments, record.options
    seen = [item for item in moments if item.clear >= _CLEAR]
    settled = [item for item in seen if item.time >= SETTLED]
    keep = float(options['distance'])
    commands = np.array(record.commands).reshape(-1, 3)
    speeds, turns = commands[:, 1], commands[:, 2]
    faster = np.diff(np.abs(speeds), prepend=0.0) * RATE * TICKS
    highest = float(options.get('acceleration', 0.5))
    poses = [item for item in moments if item.pose is not None]
    off = [_off(item) for item in poses]
    most = float(np.max(np.abs(speeds), initial=0.0))
    fastest_turn = float(np.max(np.abs(turns), initial=0.0))
    hardest = float(np.max(faster, initial=0.0))
    fine = 1 + 1e-6
    return Measures(
        seed=record.seed,
        visible=len(seen),
        in_view=_share(item.inside >= _CLEAR * item.clear for item in seen),
        tracked=_share(item.state == _SEEN for item in seen if item.time > 1.0),
        distance_error=_mean(abs(item.distance - keep) / keep for item in settled),
        bearing_error=_mean(abs(item.bearing) for item in settled),
        place_error=float(np.median(off)) if off else math.nan,
        astray=sum(value > _ASTRAY for value in off),
        losses=tuple(_losses(record)),
        speed=most,
        turn=fastest_turn,
        acceleration=hardest,
        limits=most <= float(options['max_speed']) * fine
        and fastest_turn <= float(options['max_turn']) * fine
        and hardest <= highest * fine,
        unanswered=record.unanswered,
    )


def _share(values: Any) -> float:
    found = list(values)
    return sum(found) / len(found) if found else math.nan


def _mean(values: Any) -> float:
    found = list(values)
    return float(np.mean(found)) if found else math.nan


def _off(moment: Moment) -> float:
    """Give how far a pose is from the object's front, metres."""
    assert moment.pose is not None
    target, robot = np.array(moment.target), np.array(moment.robot[:2])
    way = (robot - target) / max(np.linalg.norm(robot - target), 1e-6)
    from drift_ros.simulation.world import SURFACE

    return float(np.linalg.norm(target + SURFACE * way - np.array(moment.pose)))


def _losses(record: Record) -> list[Loss]:
    """Find the times the object was hidden for more than a second, and what was done then."""
    moments, found, k = record.moments, [], 0
    while k < len(moments):
        if moments[k].clear > _HIDDEN:
            k += 1
            continue
        begin = k
        while k < len(moments) and moments[k].clear < _CLEAR:
            k += 1
        back = moments[k].time if k < len(moments) else math.nan
        if moments[k - 1].time - moments[begin].time >= 1.0:
            found.append(_loss(record, begin, k, back))
    return found


def _loss(record: Record, begin: int, end: int, back: float) -> Loss:
    moments, hidden = record.moments, record.moments[begin].time
    first = max(begin - 2 * RATE, 0)
    unseen = [item for item in moments[first:end] if item.state != _SEEN]
    told = unseen[0].time - hidden if unseen else 0.0
    again = [
        item.time
        for item in moments[begin:]
        if item.state == _SEEN and item.time > hidden + told + 1
    ]
    until = min([*again[:1], moments[-1].time])
    driven = [
        when for when, speed, turn in record.commands if hidden <= when < until and (speed or turn)
    ]
    stopped = (driven[-1] + _STEP / TICKS if driven else hidden) - hidden
    still = [item for item in moments[begin:] if hidden + stopped + 0.2 <= item.time < until]
    ways = [
        float(np.linalg.norm(np.subtract(item.robot[:2], still[0].robot[:2]))) for item in still
    ]
    drift = max(ways, default=0.0)
    found = again[0] - back if again and math.isfinite(back) else math.nan
    return Loss(hidden, back, told, stopped, drift, found)


def table(rows: Sequence[Measures]) -> str:
    """Write runs as a table in Markdown, and their summary."""
    lines = [
        '| seed | in view | tracked | distance error | bearing error | pose error | stood after | '
        'seen again after | poses of something else | within limits |',
        '|---|---|---|---|---|---|---|---|---|---|',
    ]
    for row in rows:
        stops = ', '.join(f'{item.stopped:.2f}' for item in row.losses) or '-'
        finds = ', '.join(f'{item.found:.2f}' for item in row.losses) or '-'
        lines.append(
            f'| {row.seed} | {row.in_view:.1%} | {row.tracked:.1%} | {row.distance_error:.1%} | '
            f'{math.degrees(row.bearing_error):.1f} deg | {100 * row.place_error:.1f} cm | '
            f'{stops} s | {finds} s | {row.astray} | {"yes" if row.limits else "NO"} |'
        )
    return '\n'.join(lines)


def as_dict(row: Measures) -> dict[str, Any]:
    """Give numbers by name, for JSON."""
    return asdict(row)


def plot(record: Record, path: Path) -> None:
    """Draw distance, bearing, speeds and the way, over time."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    moments, commands = record.moments, np.array(record.commands).reshape(-1, 3)
    times = [item.time for item in moments]
    figure = Figure(figsize=(11, 6.5), layout='constrained')
    FigureCanvasAgg(figure)
    left = figure.subplot_mosaic(
        [['distance', 'way'], ['bearing', 'way'], ['speed', 'way']], width_ratios=[1.5, 1]
    )
    keep = record.options['distance']
    left['distance'].plot(times, [item.distance for item in moments])
    left['distance'].axhline(keep, color='0.6', linestyle=':')
    left['distance'].set_ylabel('distance (m)')
    left['bearing'].plot(times, [math.degrees(item.bearing) for item in moments])
    left['bearing'].set_ylabel('bearing (deg)')
    left['speed'].plot(commands[:, 0], commands[:, 1], label='speed (m/s)')
    left['speed'].plot(commands[:, 0], commands[:, 2], label='turn (rad/s)')
    left['speed'].legend(loc='upper left', fontsize=8)
    left['speed'].set_xlabel('time (s)')
    for name in ('distance', 'bearing', 'speed'):
        low, high = left[name].get_ylim()
        for what, colour in ((_hidden, '0.85'), (_unseen, 'tab:red')):
            values = [what(item) for item in moments]
            height = high if what is _hidden else low + 0.04 * (high - low)
            left[name].fill_between(
                times, low, height, where=values, color=colour, step='mid', lw=0
            )
        left[name].set_ylim(low, high)
    left['distance'].set_title(
        'grey: the object is hidden; red: the tracker does not see it', size=9
    )
    way = left['way']
    for name, label in (('robot', 'robot'), ('target', 'object'), ('other', 'look-alike')):
        points = np.array([getattr(item, name)[:2] for item in moments])
        way.plot(-points[:, 1], points[:, 0], label=label)
    way.set_aspect('equal')
    way.set_xlabel('metres to the right')
    way.set_ylabel('metres ahead')
    way.legend(fontsize=8)
    figure.savefig(path, dpi=110)


def _hidden(moment: Moment) -> bool:
    return moment.clear < _CLEAR


def _unseen(moment: Moment) -> bool:
    return moment.state != _SEEN


def picture(
    above: np.ndarray, moment: Moment, colour: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """Show the camera's image with the mask beside the room from above: (H, 2 W, 3) uint8 RGB."""
    eye = draw_labels(colour, labels, 0.5)
    states = {0: 'not seeded', 1: 'tracking', 2: 'occluded', 3: 'lost'}
    joined = np.ascontiguousarray(np.hstack([eye, above]))
    text = f'{moment.time:5.1f} s  {states.get(moment.state, "?")}  {moment.distance:.2f} m'
    cv2.rectangle(joined, (0, 0), (200, 26), (0, 0, 0), -1)
    white = (255, 255, 255)
    cv2.putText(joined, text, (8, 18), cv2.FONT_HERSHEY_SIMPLEX, 0.45, white, 1, cv2.LINE_AA)
    return joined
