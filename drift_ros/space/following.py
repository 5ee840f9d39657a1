# SPDX-License-Identifier: Apache-2.0
"""
How to drive after an object: its place, or its bearing alone, to a forward and a turning speed.

It keeps a distance and the object in the middle. It knows nothing of obstacles. What it does
without news is the point of it: after ``timeout`` seconds it brakes, as hard as it may, so it
stands within :meth:`FollowOptions.stop_time`.
"""

from __future__ import annotations

from dataclasses import dataclass
import enum
import math

from drift_ros.engine.options import option

_SMOOTH = 0.6  # seconds over which the object's speed is smoothed
_AT_ONCE = 0.15  # seconds: what it may have come in a jump
_BELIEF = 0.5  # seconds after which a place is believed that the object has jumped to
_STANDS = 0.05  # metres a second: what is slower stands


@dataclass(frozen=True)
class FollowOptions:
    """Parameters of the follower node; SI units."""

    base_frame: str = option(
        'base_link', 'Frame of the robot: x forward, z up.', applies='activate'
    )
    fixed_frame: str = option(
        'odom',
        'Frame in which the world stands still: it makes up for the time the tracker takes while '
        'the robot moves. Empty: there is none, places are taken as of now.',
        applies='activate',
    )
    twist: str = option(
        'stamped',
        'Type of cmd_vel. stamped: geometry_msgs/TwistStamped; plain: geometry_msgs/Twist.',
        applies='configure',
        choices=('stamped', 'plain'),
    )
    rate: float = option(20.0, 'Commands a second.', applies='activate', low=1.0, high=200.0)
    distance: float = option(
        1.0, 'Metres to keep from the object, on the ground.', applies='now', low=0.1, high=20.0
    )
    distance_tolerance: float = option(
        0.05,
        'Metres of distance within which the robot does not drive.',
        applies='now',
        low=0.0,
        high=5.0,
    )
    max_speed: float = option(
        0.5, 'Metres a second, forward at most.', applies='now', low=0.0, high=5.0
    )
    max_reverse: float = option(
        0.2, 'Metres a second, backward at most. 0: never.', applies='now', low=0.0, high=5.0
    )
    max_turn: float = option(
        1.0, 'Radians a second, turning at most.', applies='now', low=0.0, high=6.0
    )
    acceleration: float = option(
        0.5, 'Metres a second squared, speeding up.', applies='now', low=0.05, high=20.0
    )
    deceleration: float = option(
        2.5, 'Metres a second squared, slowing down.', applies='now', low=0.05, high=50.0
    )
    turn_acceleration: float = option(
        3.0, 'Radians a second squared, speeding up a turn.', applies='now', low=0.05, high=50.0
    )
    turn_deceleration: float = option(
        6.0, 'Radians a second squared, slowing a turn down.', applies='now', low=0.05, high=100.0
    )
    gain: float = option(
        1.0,
        'Speed for each metre of distance too much, 1/s.',
        applies='now',
        low=0.0,
        high=10.0,
    )
    lead: float = option(
        1.0,
        "Share of the object's own speed, as it is estimated, that is driven along with it: 0 "
        'lags behind what moves.',
        applies='now',
        low=0.0,
        high=1.0,
    )
    jump: float = option(
        3.0,
        'Metres a second: a distance that changes faster is not believed, and the robot brakes, '
        'until it has been so for half a second.',
        applies='now',
        low=0.5,
        high=100.0,
    )
    turn_gain: float = option(
        1.5,
        'Turning speed for each radian off the middle, 1/s.',
        applies='now',
        low=0.0,
        high=10.0,
    )
    timeout: float = option(
        0.3,
        'Seconds without a new pose or bearing after which the robot brakes.',
        applies='now',
        low=0.05,
        high=5.0,
    )
    max_age: float = option(
        1.0,
        'Seconds from the stamp of a pose to its use at most; older ones are not used.',
        applies='now',
        low=0.05,
        high=10.0,
    )
    search_speed: float = option(
        0.0,
        'Radians a second at which to turn, towards where the object was last, when it is lost. '
        '0: no search.',
        applies='now',
        low=0.0,
        high=2.0,
    )
    search_after: float = option(
        1.0, 'Seconds of standing before the search begins.', applies='now', low=0.0, high=60.0
    )
    search_time: float = option(
        15.0, 'Seconds of search at most.', applies='now', low=0.0, high=600.0
    )
    give_up: float = option(
        60.0,
        'Seconds without the object after which following is switched off. 0: never.',
        applies='now',
        low=0.0,
        high=86400.0,
    )

    @property
    def stop_time(self) -> float:
        """Seconds from the last news of the object until the robot is told to stand, at most."""
        fastest = max(self.max_speed, self.max_reverse) / self.deceleration
        return self.timeout + max(fastest, self.max_turn / self.turn_deceleration) + 2 / self.rate


@dataclass(frozen=True)
class GoalConfig:
    """Parameters of the follow_goal node."""

    server: str = option(
        'nav2',
        'Who drives. nav2: the action follow_object; follower: the follower node, by its enable.',
        applies='start',
        choices=('nav2', 'follower'),
    )
    max_duration: float = option(
        0.0,
        'nav2: seconds after which following ends. 0: never.',
        applies='start',
        low=0.0,
        high=86400.0,
    )


class Mode(enum.Enum):
    """What the follower does."""

    OFF = 'off'
    FOLLOWING = 'following'
    TURNING = 'turning to a bearing'
    WAITING = 'waiting for the object'
    SEARCHING = 'searching'


@dataclass(frozen=True)
class Sighting:
    """
    Where the object is, in the robot's frame.

    Attributes
    ----------
    bearing : float
        Radians, to the left.
    distance : float, optional
        Metres on the ground; None where not known.

    """

    bearing: float
    distance: float | None


@dataclass(frozen=True)
class Command:
    """A forward speed, metres a second, and a turning speed, radians a second to the left."""

    speed: float = 0.0
    turn: float = 0.0

    @property
    def zero(self) -> bool:
        """Whether the robot is to stand."""
        return self.speed == 0.0 and self.turn == 0.0


class Follower:
    """
    Decides how to drive, step by step.

    Attributes
    ----------
    options : FollowOptions
        May be replaced at any time.
    mode : Mode
    command : Command
        The last one.

    """

    def __init__(self, options: FollowOptions) -> None:
        """Be off."""
        self.options = options
        self.mode = Mode.OFF
        self.command = Command()
        self._seen = -math.inf  # when the object was seen last, by the clock of step
        self._began: float | None = None  # when it was first asked, after it was enabled
        self._side = 1.0
        self._forget()

    def _forget(self) -> None:
        """Know nothing of the object's speed."""
        self._last: tuple[float, float] | None = None  # when and how far it was seen
        self._driven = 0.0  # towards it since then
        self._away = 0.0  # its speed away from the robot

    @property
    def enabled(self) -> bool:
        """Whether it drives."""
        return self.mode is not Mode.OFF

    def enable(self) -> None:
        """Begin to follow."""
        if not self.enabled:
            self.mode, self._seen, self._began = Mode.WAITING, -math.inf, None

    def disable(self) -> None:
        """Stop at once."""
        self.mode, self.command = Mode.OFF, Command()

    def step(self, now: float, sighting: Sighting | None, fresh: float) -> Command:
        """
        Give the command for now.

        Parameters
        ----------
        now : float
            Seconds.
        sighting : Sighting, optional
            Where the object is by the newest news that can be used.
        fresh : float
            Seconds since that came.

        """
        if not self.enabled:
            return self.command
        options, wanted = self.options, Command()
        if self._began is None or now < self._began:  # or time jumped back
            self._began, self._seen = now, -math.inf
            self._forget()
        if sighting is not None and not (
            math.isfinite(sighting.bearing) and math.isfinite(sighting.distance or 0.0)
        ):
            sighting = None
        news = sighting is not None and fresh <= options.timeout
        jumps = news and self._jumps(sighting, now - fresh)
        if sighting is not None and news and not jumps:
            self._seen = now - fresh
            if abs(sighting.bearing) > 0.02:
                self._side = math.copysign(1.0, sighting.bearing)
            self._watch(sighting, self._seen)
            wanted = self._approach(sighting)
            self.mode = Mode.FOLLOWING if sighting.distance is not None else Mode.TURNING
        else:
            if not jumps:
                self._forget()
            wanted = self._miss(now)
        if self.enabled:
            self.command = self._limit(wanted, 1 / options.rate)
            self._driven += self.command.speed / options.rate
        return self.command

    def _jumps(self, sighting: Sighting | None, seen: float) -> bool:
        """Tell whether the object cannot have come to where it is seen: it is something else."""
        if sighting is None or sighting.distance is None or self._last is None:
            return False
        span = seen - self._last[0]
        way = abs(sighting.distance - self._last[1] + self._driven)
        return span < _BELIEF and way > 0.1 + self.options.jump * min(span, _AT_ONCE)

    def _watch(self, sighting: Sighting, seen: float) -> None:
        """Estimate how fast the object moves away, from distances and what was driven between."""
        if sighting.distance is None:
            self._forget()
            return
        if self._last is not None:
            span = seen - self._last[0]
            if span < 1e-3:  # nothing new
                return
            speed = (sighting.distance - self._last[1] + self._driven) / span
            speed = _clip(speed, self.options.max_speed)
            self._away += (speed - self._away) * span / (span + _SMOOTH)
        self._last, self._driven = (seen, sighting.distance), 0.0

    def _approach(self, sighting: Sighting) -> Command:
        options = self.options
        turn = _clip(options.turn_gain * sighting.bearing, options.max_turn)
        if sighting.distance is None:
            return Command(0.0, turn)
        off = sighting.distance - options.distance
        lead = options.lead * self._away
        if abs(off) <= options.distance_tolerance and abs(lead) < _STANDS:
            return Command(0.0, turn)
        # forward only as far as the object is ahead
        speed = (options.gain * off + lead) * max(0.0, math.cos(sighting.bearing)) ** 3
        return Command(min(options.max_speed, max(-options.max_reverse, speed)), turn)

    def _miss(self, now: float) -> Command:
        """Stand; after a while turn towards where the object was, or give up."""
        options = self.options
        assert self._began is not None
        since = now - max(self._seen, self._began)
        if options.give_up and since > options.give_up:
            self.disable()
            return Command()
        began = options.stop_time + options.search_after
        never = self._seen == -math.inf
        if options.search_speed and not never and began <= since <= began + options.search_time:
            self.mode = Mode.SEARCHING
            return Command(0.0, self._side * min(options.search_speed, options.max_turn))
        self.mode = Mode.WAITING
        return Command()

    def _limit(self, wanted: Command, period: float) -> Command:
        """Come as near to what is wanted as the accelerations allow within a period."""
        options = self.options
        return Command(
            _ramp(
                self.command.speed,
                wanted.speed,
                options.acceleration,
                options.deceleration,
                period,
            ),
            _ramp(
                self.command.turn,
                wanted.turn,
                options.turn_acceleration,
                options.turn_deceleration,
                period,
            ),
        )


def _clip(value: float, limit: float) -> float:
    return min(limit, max(-limit, value))


def _ramp(present: float, wanted: float, up: float, down: float, period: float) -> float:
    """Change a speed by no more than it may in a period; it does not change sign in one."""
    if present * wanted < 0:
        wanted = 0.0
    if abs(wanted) <= abs(present):
        return math.copysign(max(abs(wanted), abs(present) - down * period), present) + 0.0
    return math.copysign(min(abs(wanted), abs(present) + up * period), wanted)
