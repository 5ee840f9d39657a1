# SPDX-License-Identifier: Apache-2.0
"""A simulated robot with the real nodes follows an object, loses it behind a screen, finds it."""

from importlib.util import find_spec
import math
import os
import subprocess
import sys

import numpy as np
import pytest

if 'DRIFT_ROS_SIMULATION' not in os.environ:  # it takes minutes where there are few cores
    pytest.skip('DRIFT_ROS_SIMULATION=1 runs the simulator', allow_module_level=True)
# not imported here: MuJoCo chooses how to render when it is first imported, and World says how
if find_spec('mujoco') is None:
    pytest.skip('MuJoCo is not installed', allow_module_level=True)

from drift_ros.simulation import closed_loop, measures  # noqa: E402
from drift_ros.simulation.scenario import Scenario  # noqa: E402
from drift_ros.simulation.world import RenderError, World  # noqa: E402

# the object stands until the robot, whose speed is limited, can have come to its distance
PATH = (
    (0.0, 1.9, 0.0),
    (2.2, 1.9, 0.0),
    (4.7, 2.9, 0.0),
    (5.4, 2.9, 0.9),
    (5.9, 2.4, 1.5),
    (7.4, 2.4, 1.5),
    (8.4, 2.9, 0.8),
    (9.4, 2.9, 0.0),
)
SHORT = Scenario(9.8, (1.9, 0.45), np.array(PATH), np.array([(0.0, 3.9, 0.6), (9.8, 3.9, 0.6)]))


@pytest.fixture
def world():
    try:
        made = World(3, SHORT.screen)
    except RenderError as error:
        pytest.skip(str(error))
    yield made
    made.close()


def test_the_world(world):
    """Wheels turn it, the camera measures what is there, and what is hidden is known as such."""
    world.place((1.9, 0.0), (3.9, 0.6))
    world.advance(0.4, 0.0, 0.0)
    picture, mask = world.look(), world.mask('object')
    middle = picture.depth[mask & (picture.depth > 0)]
    assert np.median(middle) / 1000 == pytest.approx(1.9 - 0.12 - 0.139, abs=0.02)
    assert picture.colour.shape == (240, 320, 3) and 0.01 < (picture.depth == 0).mean() < 0.4
    assert world.visible() == (1.0, 1.0)
    world.place((2.9, 1.2), (3.9, 0.6))
    assert world.visible()[0] < 0.2  # behind the screen
    world.place((1.0, -2.0), (3.9, 0.6))
    assert world.visible() == (1.0, 0.0)  # beside the picture
    world.advance(2.4, 0.3, 0.0)
    x, y, heading = world.robot
    assert x == pytest.approx(0.6, abs=0.05) and abs(y) < 0.02 and abs(heading) < 0.02
    world.advance(4.4, 0.0, 0.5)
    assert world.robot[2] == pytest.approx(1.0, abs=0.2)


def test_mujoco_imported_too_early_is_an_error_not_the_end_of_the_process():
    """Without a display it would render to a window, which ends Python."""
    names = ('MUJOCO_GL', 'DISPLAY', 'WAYLAND_DISPLAY')
    program = 'import mujoco\nfrom drift_ros.simulation.world import World\nWorld()'
    done = subprocess.run(
        [sys.executable, '-c', program],
        env={key: value for key, value in os.environ.items() if key not in names},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 1 and 'RenderError' in done.stderr and 'MUJOCO_GL=egl' in done.stderr


def test_the_robot_follows_stops_and_finds_again(world, tmp_path, monkeypatch):
    monkeypatch.setenv('ROS_DOMAIN_ID', '89')
    world.close()
    record = closed_loop.run(tmp_path, 3, SHORT, tracker={'features.resolution': 192})
    found = measures.measure(record)
    assert found.unanswered == 0, 'every image and every tick was answered'
    assert found.in_view > 0.95 and found.tracked > 0.8
    near = [item for item in record.moments if item.time > 2.5 and item.clear > 0.5]
    error = np.mean([abs(item.distance - 1.0) for item in near])
    assert error < 0.3 and found.place_error < 0.05
    assert found.limits and 0.1 < found.speed <= 0.5
    (loss,) = found.losses
    assert loss.stopped <= 0.6 and loss.drift < 0.05
    assert not found.astray  # the look-alike stood in the picture all the time
    assert math.isfinite(loss.found)
    record.write(tmp_path / 'record.json')
    assert measures.measure(closed_loop.Record.read(tmp_path / 'record.json')) == found
    measures.plot(record, tmp_path / 'plot.png')
    assert os.path.getsize(tmp_path / 'plot.png') > 10_000
