# SPDX-License-Identifier: Apache-2.0
"""An object that one camera follows is found by another one, and stays the same object."""

import numpy as np
import pytest
from scenes import BLUE, ColourFeatures, configure, GREEN, overlap, RED, scene, square_mask

from drift_ros import FrameError, SeedError, Tracker, UnknownObjectError
from drift_ros.engine.errors import NotFoundError

FRONT = [scene((16 + 2 * i, 16, 24, RED), (80, 50, 28, GREEN)) for i in range(4)]
REAR = [scene((80 - 2 * i, 40, 28, RED), (8, 8, 20, BLUE)) for i in range(4)]
THERE = square_mask((80, 40, 28)) > 0


@pytest.fixture
def cameras():
    """Two trackers of one model; the first follows red (1) and green (3)."""
    options = {'resolution': 96, 'radius': 6}
    base = Tracker(config=configure(**options), features=ColourFeatures())
    front, rear = base.beside(1, 2), base.beside(2, 2)
    front.seed(FRONT[0], square_mask((16, 16, 24), (80, 50, 28)), ('red', 'green'))
    for frame in FRONT[1:]:
        front.step(frame)
    return front, rear


def test_it_keeps_its_id_and_its_name_and_is_followed_from_there(cameras):
    front, rear = cameras
    before = front.state
    assert rear.find(REAR[0], front, 1) > 0.8
    assert front.state is before
    assert [(item.id, item.name) for item in rear.objects] == [(1, 'red')]
    assert overlap(rear.state.shown == 1, THERE) > 0.9
    for number, frame in enumerate(REAR[1:], start=1):
        labels = rear.step(frame).labels
        assert overlap(labels == 1, square_mask((80 - 2 * number, 40, 28)) > 0) > 0.9
    assert rear.seed(REAR[3], square_mask((8, 8, 20)), ['blue']) == [2]  # its own ids go on
    assert front.seed(FRONT[3], square_mask((4, 60, 20))) == [5]


def test_the_rest_of_what_is_followed_here_stays(cameras):
    front, rear = cameras
    rear.seed(REAR[0], square_mask((8, 8, 20)), ['blue'])
    rear.find(REAR[0], front, 1)
    labels = rear.step(REAR[1]).labels
    assert overlap(labels == 2, square_mask((8, 8, 20)) > 0) > 0.9
    assert overlap(labels == 1, square_mask((78, 40, 28)) > 0) > 0.9


def test_what_is_not_there_is_not_found(cameras):
    front, rear = cameras
    before = rear.state
    with pytest.raises(NotFoundError, match=r'object 3 \(green\) is not to be seen') as refused:
        rear.find(REAR[0], front, 3)
    assert 0.0 <= refused.value.existence < 0.3
    assert rear.state is before


def test_the_threshold_is_the_callers(cameras):
    front, rear = cameras
    dim = scene((80, 40, 28, (150, 100, 100)))
    with pytest.raises(NotFoundError, match='asked for: 0.8') as refused:
        rear.find(dim, front, 1)
    least = refused.value.existence
    assert 0.0 < least < 0.8
    assert rear.find(dim, front, 1, threshold=least) == least
    with pytest.raises(SeedError, match='from 0 to 1'):
        rear.find(dim, front, 3, threshold=1.5)


def test_requests_that_cannot_be_met_change_nothing(cameras):
    front, rear = cameras
    rear.find(REAR[0], front, 1)
    before = rear.state
    with pytest.raises(SeedError, match='object 1 is followed here already'):
        rear.find(REAR[1], front, 1)
    with pytest.raises(UnknownObjectError, match='no object 7; live objects: 1, 3'):
        rear.find(REAR[1], front, 7)
    with pytest.raises(FrameError, match='64x48'):
        rear.find(np.zeros((48, 64, 3), np.uint8), front, 3)
    with pytest.raises(FrameError, match='uint8'):
        rear.find(REAR[1].astype(float), front, 3)
    assert rear.state is before
    request = front.prepare_seed(FRONT[3], square_mask((4, 60, 20)))
    with pytest.raises(SeedError, match='about to be seeded'):
        rear.find(REAR[1], front, request.object_ids[0])
    assert rear.state is before


def test_there_has_to_be_room(cameras):
    front, _ = cameras
    full = Tracker(
        config=configure(resolution=96, radius=6, max_objects=1), features=ColourFeatures()
    ).beside(2, 2)
    full.seed(REAR[0], square_mask((8, 8, 20)))
    with pytest.raises(SeedError, match='room for 0'):
        full.find(REAR[0], front, 1)


def test_an_object_comes_back_to_its_own_camera_and_its_id_is_not_given_again(
    cameras, monkeypatch
):
    front, rear = cameras
    (blue,) = rear.seed(REAR[0], square_mask((8, 8, 20)), ['blue'])
    front.find(scene((16, 16, 20, BLUE), (60, 50, 28, GREEN)), rear, blue)
    rear.remove(blue)

    def fail(*_):
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(type(rear.state.memory), 'pin', fail)
        with pytest.raises(MemoryError):
            rear.find(REAR[1], front, blue)
    assert not rear.objects
    # the id that nobody was told of here is an object of the other camera's
    assert rear.seed(REAR[1], square_mask((8, 8, 20))) == [4]
    rear.reset()
    assert rear.find(REAR[1], front, blue) > 0.8
    assert [(item.id, item.name) for item in rear.objects] == [(blue, 'blue')]
