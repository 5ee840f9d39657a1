# SPDX-License-Identifier: Apache-2.0
"""Frames over time, and how the follower drives."""

import math

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from drift_ros.space.following import Command, Follower, FollowOptions, Mode, Sighting
from drift_ros.space.frames import FrameError, FrameTree

SECOND = 10**9
NONE = (0.0, 0.0, 0.0, 1.0)


def turned(degrees):
    return tuple(Rotation.from_euler('z', degrees, degrees=True).as_quat())


class TestFrames:
    @pytest.fixture
    def tree(self):
        tree = FrameTree()
        tree.add('base', 'camera', 0, (0.1, 0, 0.5), turned(90), static=True)
        for second, x in ((10, 0.0), (11, 1.0), (12, 3.0)):
            tree.add('odom', 'base', second * SECOND, (x, 0, 0), turned(90 * (second - 10)))
        return tree

    def test_up_down_and_between_stamps(self, tree):
        way = tree.lookup('odom', 'base', 10 * SECOND + SECOND // 2)
        np.testing.assert_allclose(way.translation, (0.5, 0, 0))
        assert way.rotation.as_euler('zyx', degrees=True)[0] == pytest.approx(45)
        # one metre ahead of the camera looks left, at 11 s, when the base looks left
        point = tree.lookup('odom', 'camera', 11 * SECOND)(np.array([1.0, 0, 0]))
        np.testing.assert_allclose(point, (1.0 - 1.0, 0.1, 0.5), atol=1e-9)
        back = tree.lookup('camera', 'odom', 11 * SECOND)(point)
        np.testing.assert_allclose(back, (1.0, 0, 0), atol=1e-9)
        np.testing.assert_allclose(tree.lookup('odom', 'base').translation, (3, 0, 0))
        np.testing.assert_allclose(tree.lookup('base', 'base').translation, 0)
        np.testing.assert_allclose(
            tree.lookup('odom', 'base', 12 * SECOND + SECOND // 10).translation, (3, 0, 0)
        )

    @pytest.mark.parametrize(
        ('target', 'source', 'when', 'words'),
        [
            ('map', 'camera', 0, "'map' is unknown"),
            ('odom', 'lidar', 0, "'lidar' is unknown"),
            ('odom', 'base', 13 * SECOND, '1.00 s old'),
            ('odom', 'camera', 9 * SECOND, 'known since'),
        ],
    )
    def test_what_is_not_known_is_named(self, tree, target, source, when, words):
        with pytest.raises(FrameError, match=words):
            tree.lookup(target, source, when)

    def test_bad_transforms_change_nothing(self, tree):
        for translation, quaternion in (((math.nan, 0, 0), NONE), ((0, 0, 0), (0, 0, 0, 0))):
            with pytest.raises(FrameError, match='is none'):
                tree.add('odom', 'base', 13 * SECOND, translation, quaternion)
        np.testing.assert_allclose(tree.lookup('odom', 'base').translation, (3, 0, 0))

    def test_old_ones_go_and_time_may_jump_back(self, tree):
        tree.add('odom', 'base', 25 * SECOND, (9, 0, 0), NONE)
        with pytest.raises(FrameError, match='known since'):
            tree.lookup('odom', 'base', 11 * SECOND)
        tree.add('odom', 'base', 2 * SECOND, (5, 0, 0), NONE)
        np.testing.assert_allclose(tree.lookup('odom', 'base', 2 * SECOND).translation, (5, 0, 0))

    def test_a_circle_ends(self):
        tree = FrameTree()
        tree.add('a', 'b', 0, (0, 0, 0), NONE, static=True)
        tree.add('b', 'a', 0, (0, 0, 0), NONE, static=True)
        with pytest.raises(FrameError):
            tree.lookup('c', 'a')


class World:
    """A robot on a plane and an object; the follower sees it at each step unless told not to."""

    def __init__(self, options, x=3.0, y=1.0):
        self.options, self.follower = options, Follower(options)
        self.object = np.array([x, y])
        self.at, self.heading, self.now = np.zeros(2), 0.0, 100.0
        self.seen_at, self.sighting = -math.inf, None
        self.commands = []
        self.follower.enable()

    @property
    def distance(self):
        return float(np.linalg.norm(self.object - self.at))

    @property
    def bearing(self):
        dx, dy = self.object - self.at
        return (math.atan2(dy, dx) - self.heading + math.pi) % (2 * math.pi) - math.pi

    def run(self, seconds, sees=True, bearing_only=False):
        period = 1 / self.options.rate
        for _ in range(round(seconds / period)):
            if sees:
                distance = None if bearing_only else self.distance
                self.sighting, self.seen_at = Sighting(self.bearing, distance), self.now
            command = self.follower.step(self.now, self.sighting, self.now - self.seen_at)
            self.commands.append(command)
            self.heading += command.turn * period
            way = np.array([math.cos(self.heading), math.sin(self.heading)])
            self.at = self.at + way * command.speed * period
            self.now += period
        return self.follower.mode


class TestFollower:
    def check_limits(self, world):
        options, period = world.options, 1 / world.options.rate
        speeds = np.array([item.speed for item in world.commands])
        turns = np.array([item.turn for item in world.commands])
        assert speeds.max() <= options.max_speed and speeds.min() >= -options.max_reverse
        assert abs(turns).max() <= options.max_turn
        for values, up, down in (
            (speeds, options.acceleration, options.deceleration),
            (turns, options.turn_acceleration, options.turn_deceleration),
        ):
            faster = np.diff(abs(values), prepend=0)
            assert faster.max() <= up * period + 1e-9 and faster.min() >= -down * period - 1e-9
            assert (np.sign(values[1:]) * np.sign(values[:-1]) >= 0).all()  # stands in between

    @pytest.mark.parametrize(('x', 'y'), [(3, 1), (0.4, 0), (2, -2), (-2, 0.5), (1, 0)])
    def test_it_comes_to_its_distance_and_looks_at_the_object(self, x, y):
        world = World(FollowOptions(), x, y)
        assert world.run(20) is Mode.FOLLOWING
        assert abs(world.distance - 1) <= 0.1 and abs(world.bearing) < 0.05
        self.check_limits(world)

    def test_it_stands_within_its_stop_time_whatever_it_did(self):
        for options in (FollowOptions(), FollowOptions(timeout=1.0, deceleration=0.5, rate=50.0)):
            world = World(options, 30, 20)
            world.run(3)
            assert not world.commands[-1].zero
            lost = world.now
            assert world.run(options.stop_time, sees=False) is Mode.WAITING
            assert world.commands[-1].zero
            stood = [item.zero for item in world.commands].index(True, 30)
            assert world.now - lost <= options.stop_time + 1 / options.rate and stood
            world.run(2, sees=False)
            assert all(item.zero for item in world.commands[-20:])
            self.check_limits(world)

    def test_a_bearing_alone_turns_and_does_not_drive(self):
        world = World(FollowOptions())
        assert world.run(5, bearing_only=True) is Mode.TURNING
        assert abs(world.bearing) < 0.05 and np.linalg.norm(world.at) == 0

    def test_it_searches_where_the_object_went_and_gives_up(self):
        options = FollowOptions(search_speed=0.5, search_time=3.0, give_up=8.0)
        world = World(options, 2, -1.0)
        world.run(1)
        assert world.run(options.stop_time + 0.5, sees=False) is Mode.WAITING
        assert world.commands[-1].zero
        assert world.run(2, sees=False) is Mode.SEARCHING
        assert world.commands[-1] == Command(0.0, -0.5)  # it was on the right
        assert world.run(3, sees=False) is Mode.WAITING and world.commands[-1].zero
        assert world.run(5, sees=False) is Mode.OFF and not world.follower.enabled
        assert world.run(2) is Mode.OFF and world.commands[-1].zero  # only a person enables it

    def test_it_never_searches_what_it_never_saw(self):
        world = World(FollowOptions(search_speed=0.5))
        assert world.run(10, sees=False) is Mode.WAITING
        assert all(item.zero for item in world.commands)

    @pytest.mark.parametrize(
        'sighting',
        [Sighting(math.nan, 1.0), Sighting(0.0, math.nan), Sighting(0.1, math.inf)],
    )
    def test_numbers_that_are_none_are_no_sightings(self, sighting):
        follower = Follower(FollowOptions())
        follower.enable()
        assert follower.step(0.1, sighting, 0.0).zero and follower.mode is Mode.WAITING

    def test_off_at_first_and_at_once_when_disabled(self):
        follower = Follower(FollowOptions())
        assert follower.step(0.0, Sighting(0.5, 3.0), 0.0).zero and not follower.enabled
        follower.enable()
        assert not follower.step(0.1, Sighting(0.5, 3.0), 0.0).zero
        follower.disable()
        assert follower.command.zero and follower.step(0.2, Sighting(0.5, 3.0), 0.0).zero

    def test_what_jumps_is_something_else_until_it_stays(self):
        world = World(FollowOptions(), 1.2, 0.0)
        world.run(6)
        stood, place = len(world.commands), world.at.copy()
        world.object = world.object - (0.6, 0.0)  # something passes before it
        world.run(0.3)
        world.object = world.object + (0.6, 0.0)
        world.run(1.0)
        assert all(item.speed == 0 for item in world.commands[stood:])
        assert (world.at == place).all()
        world.object = world.object - (0.6, 0.0)
        world.run(1.5)
        assert world.commands[-1].speed < 0  # it stays there: it is too near
        self.check_limits(world)

    def test_time_may_jump(self):
        follower = Follower(FollowOptions(give_up=5.0))
        follower.enable()  # before the first /clock
        assert follower.step(1000.0, Sighting(0.0, 3.0), 0.0).speed > 0
        assert follower.step(3.0, Sighting(0.0, 3.0), 0.0).speed > 0  # a bag begins again
        assert follower.step(4.0, None, math.inf).speed >= 0 and follower.enabled

    def test_it_does_not_back_up_when_it_must_not(self):
        world = World(FollowOptions(max_reverse=0.0), 0.3, 0.0)
        world.run(5)
        assert world.distance == pytest.approx(0.3)
