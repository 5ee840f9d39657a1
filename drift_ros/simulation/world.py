# SPDX-License-Identifier: Apache-2.0
"""
A robot of two wheels with an RGB-D camera, in a room with an object, its look-alike and a screen.

MuJoCo simulates and renders, without a display (EGL on the CPU). No ROS.
"""

from __future__ import annotations

from dataclasses import dataclass
import math
import os
from typing import Any

import cv2
import numpy as np

from drift_ros.space.camera import Camera

WIDTH, HEIGHT, FOVY = 320, 240, 46.0
RADIUS, TALL = 0.16, 0.5
"""Metres, of the object and of its look-alike."""
SURFACE = 0.87 * RADIUS
"""Metres from the object's middle to the median of its front."""
CAMERA_AT = (0.12, 0.0, 0.45)
"""Metres, in the robot's frame."""
BASE_HEIGHT = 0.08
_WHEEL, _TRACK = 0.08, 0.36
_STEP = 0.005
_FARTHEST = 8.0
"""Metres that the camera measures."""


class RenderError(RuntimeError):
    """There is no MuJoCo, or nothing to render with; the text says what to do."""


@dataclass(frozen=True)
class Picture:
    """What the camera gives."""

    colour: np.ndarray
    """(H, W, 3) uint8 RGB."""
    depth: np.ndarray
    """(H, W) uint16 millimetres, 0 where not measured."""


class World:
    """
    The room; time goes on with :meth:`advance`.

    Attributes
    ----------
    camera : Camera
    time : float
        Seconds.

    """

    def __init__(self, seed: int = 0, screen: tuple[float, float] = (4.4, 0.45)) -> None:
        """
        Build it.

        Parameters
        ----------
        seed : int
            Of textures, noise and holes.
        screen : tuple of float
            Where the screen's middle stands, metres.

        Raises
        ------
        RenderError

        """
        os.environ.setdefault('MUJOCO_GL', 'egl')
        try:
            import mujoco
        except (ImportError, AttributeError, OSError) as error:
            raise RenderError(
                f'MuJoCo cannot be used ({error}): pip install mujoco, and to render without a '
                'display apt install libegl1 libgl1'
            ) from None
        _check_back_end(mujoco)
        self._mujoco: Any = mujoco
        random = np.random.default_rng(seed)
        self._random = np.random.default_rng(seed + 1)
        model = mujoco.MjModel.from_xml_string(_scene(screen), _textures(random))
        self._model, self._data = model, mujoco.MjData(model)
        self._object = model.body('object').mocapid[0]
        self._other = model.body('look-alike').mocapid[0]
        try:
            self._colour = mujoco.Renderer(model, HEIGHT, WIDTH)
            self._depth = mujoco.Renderer(model, HEIGHT, WIDTH)
        except Exception as error:  # what a missing driver raises differs by back end
            raise RenderError(
                f'MuJoCo cannot render here ({error}): apt install libegl1 libgl1, or set '
                'MUJOCO_GL to a back end that works'
            ) from None
        self._depth.enable_depth_rendering()
        focal = HEIGHT / 2 / math.tan(math.radians(FOVY) / 2)
        middle = ((WIDTH - 1) / 2, (HEIGHT - 1) / 2)
        matrix = np.array([[focal, 0, middle[0]], [0, focal, middle[1]], [0, 0, 1]])
        self.camera = Camera(WIDTH, HEIGHT, matrix, np.zeros(0))
        mujoco.mj_forward(model, self._data)

    def close(self) -> None:
        """Release what rendering holds."""
        self._colour.close()
        self._depth.close()

    @property
    def time(self) -> float:
        """Seconds."""
        return float(self._data.time)

    def advance(self, until: float, speed: float, turn: float) -> None:
        """Let time pass while the robot is told to drive, metres and radians a second."""
        sides = np.array([speed - turn * _TRACK / 2, speed + turn * _TRACK / 2]) / _WHEEL
        while self.time < until - _STEP / 2:
            self._data.ctrl[:2] = sides
            self._mujoco.mj_step(self._model, self._data)

    def place(self, target: tuple[float, float], other: tuple[float, float]) -> None:
        """Put the object and its look-alike somewhere, metres."""
        self._data.mocap_pos[self._object] = (*target, TALL / 2)
        self._data.mocap_pos[self._other] = (*other, TALL / 2)
        self._mujoco.mj_forward(self._model, self._data)

    @property
    def robot(self) -> tuple[float, float, float]:
        """Where the robot is: x, y, and its heading in radians."""
        matrix = self._data.body('robot').xmat.reshape(3, 3)
        x, y, _ = self._data.body('robot').xpos
        return float(x), float(y), math.atan2(matrix[1, 0], matrix[0, 0])

    @property
    def robot_pose(self) -> tuple[np.ndarray, np.ndarray]:
        """(3,) metres and (4,) quaternion x, y, z, w of the robot's body."""
        w, x, y, z = self._data.body('robot').xquat
        return self._data.body('robot').xpos.copy(), np.array([x, y, z, w])

    def position(self, name: str) -> np.ndarray:
        """Give where a body is: (3,) metres."""
        return self._data.body(name).xpos.copy()

    def look(self) -> Picture:
        """Take a picture; depth has noise, holes and an end."""
        self._colour.update_scene(self._data, 'eye')
        colour = self._colour.render()
        self._depth.update_scene(self._data, 'eye')
        depth = self._depth.render().astype(np.float32)
        random = self._random
        measured = depth + random.normal(0, 1, depth.shape).astype(np.float32) * 0.002 * depth**2
        field = cv2.resize(random.normal(0, 1, (HEIGHT // 8, WIDTH // 8)), (WIDTH, HEIGHT))
        edges = cv2.dilate(np.abs(cv2.Laplacian(depth, cv2.CV_32F)), np.ones((3, 3))) > 0.3
        bad = (field > 1.3) | edges | (depth > _FARTHEST)
        return Picture(colour, np.where(bad, 0, np.round(1000 * measured)).astype(np.uint16))

    def mask(self, name: str) -> np.ndarray:
        """Give which pixels show a body: (H, W) bool."""
        self._colour.enable_segmentation_rendering()
        self._colour.update_scene(self._data, 'eye')
        found = self._colour.render()[..., 0]
        self._colour.disable_segmentation_rendering()
        geoms = np.flatnonzero(self._model.geom_bodyid == self._model.body(name).id)
        return np.isin(found, geoms)

    def visible(self, name: str = 'object') -> tuple[float, float]:
        """
        Tell how much of a body could be seen, and how much is in the picture.

        Returns
        -------
        tuple of float
            Shares of points on its front with nothing between them and the camera, and of those
            that are in the picture as well.

        """
        camera = self._data.camera('eye')
        eye, axes = camera.xpos, camera.xmat.reshape(3, 3)
        middle, body = self.position(name), self._model.body(name).id
        way = math.atan2(*(eye - middle)[1::-1])
        points = np.array(
            [
                middle + (RADIUS * math.cos(way + turn), RADIUS * math.sin(way + turn), height)
                for turn in np.linspace(-1.1, 1.1, 5)
                for height in np.linspace(-0.4, 0.4, 5) * TALL
            ]
        )
        clear, inside, hit = 0, 0, np.zeros(1, np.int32)
        robot = self._model.body('robot').id
        for point in points:
            ray = point - eye
            self._mujoco.mj_ray(self._model, self._data, eye, ray, None, 1, robot, hit, None)
            if hit[0] < 0 or self._model.geom_bodyid[hit[0]] != body:
                continue
            clear += 1
            x, y, z = axes.T @ ray
            if z < 0:
                u, v = self.camera.project(np.array([[x, -y, -z]]))[0]
                inside += bool(0 <= u < WIDTH and 0 <= v < HEIGHT)
        return clear / len(points), inside / len(points)

    def from_above(self) -> np.ndarray:
        """Show the room from above, as large as the camera's pictures: (H, W, 3) uint8 RGB."""
        self._colour.update_scene(self._data, 'above')
        return self._colour.render()


def _check_back_end(mujoco: Any) -> None:
    """
    Refuse the back end that ends the process where there is no display.

    MuJoCo chooses one when it is first imported: MUJOCO_GL that is set later has no effect.
    """
    chosen = getattr(getattr(mujoco, 'GLContext', None), '__module__', '')
    windows = chosen.endswith('glfw')
    if windows and not (os.environ.get('DISPLAY') or os.environ.get('WAYLAND_DISPLAY')):
        raise RenderError(
            'MuJoCo was told to render to a window (GLFW), and there is no display: set '
            'MUJOCO_GL=egl before anything imports mujoco'
        )


def _textures(random: np.random.Generator) -> dict[str, bytes]:
    """Draw the textures: blobs of colours, PNG."""

    def blobs(colours: list[tuple[int, int, int]], grain: int, size: int = 256) -> bytes:
        field = random.uniform(0, 1, (grain, grain, len(colours))).astype(np.float32)
        field = cv2.resize(field, (size, size), interpolation=cv2.INTER_CUBIC)
        picture = np.array(colours, np.uint8)[field.argmax(-1)]
        noise = random.normal(0, 8, picture.shape)
        return cv2.imencode('.png', np.clip(picture + noise, 0, 255).astype(np.uint8)[..., ::-1])[
            1
        ].tobytes()

    return {
        'object.png': blobs([(200, 50, 40), (240, 200, 60), (150, 30, 60)], 9),
        'other.png': blobs([(200, 90, 40), (60, 120, 190), (230, 220, 200)], 9),
        'floor.png': blobs([(120, 118, 110), (135, 132, 125), (108, 106, 100)], 24),
        'wall.png': blobs([(170, 180, 185), (150, 165, 175), (185, 190, 190)], 12),
        'screen.png': blobs([(90, 110, 90), (110, 130, 105), (75, 95, 80)], 10),
    }


def _scene(screen: tuple[float, float]) -> str:
    """Write the room as MJCF."""
    textures = ''.join(
        f'<texture name="{name}" type="2d" file="{name}.png"/>'
        f'<material name="{name}" texture="{name}" specular="0.1" texrepeat="{times} {times}"/>'
        for name, times in (('object', 1), ('other', 1), ('floor', 6), ('wall', 3), ('screen', 2))
    )
    walls = ''.join(
        f'<geom type="box" pos="{where} 1" size="{half} 1" material="wall"/>'
        for where, half in (
            ('7 0', '.05 5'),
            ('-2 0', '.05 5'),
            ('2.5 5', '4.5 .05'),
            ('2.5 -5', '4.5 .05'),
        )
    )
    boxes = ''.join(
        f'<geom type="box" pos="{where} .3" size=".2 .25 .3" rgba="{colour} 1"/>'
        for where, colour in (
            ('6.4 -3.5', '.35 .4 .5'),
            ('6.3 2.9', '.5 .45 .35'),
            ('5.2 4.4', '.3 .4 .3'),
        )
    )
    thing = f'type="cylinder" size="{RADIUS} {TALL / 2}"'
    wheel = (
        f'type="cylinder" size="{_WHEEL} .02" euler="1.5708 0 0" mass=".5" friction="1.5 .01 .001"'
    )
    # it slides: its friction counts, not the floor's
    caster = 'type="sphere" size=".03" mass=".2" friction="0 0 0" priority="1" condim="1"'
    return f"""
<mujoco>
  <compiler angle="radian"/>
  <option timestep="{_STEP}" integrator="implicitfast"/>
  <visual><headlight ambient=".45 .45 .45" diffuse=".3 .3 .3"/><quality shadowsize="1024"/>
    <map znear="0.002" zfar="3"/></visual>
  <asset>{textures}</asset>
  <worldbody>
    <light pos="2 0 4" dir="0 0 -1" diffuse=".4 .4 .4" castshadow="false"/>
    <geom type="plane" size="8 8 .1" material="floor"/>{walls}{boxes}
    <geom type="box" pos="{screen[0]} {screen[1]} .5" size=".8 .04 .5" material="screen"/>
    <camera name="above" pos="2.3 0 7.5" xyaxes="0 -1 0 1 0 0" fovy="62"/>
    <body name="object" mocap="true" pos="1.6 0 .25"><geom {thing} material="object"/></body>
    <body name="look-alike" mocap="true" pos="5 -4 .25"><geom {thing} material="other"/></body>
    <body name="robot" pos="0 0 {BASE_HEIGHT}">
      <freejoint/>
      <geom type="cylinder" size=".17 .05" pos="0 0 .03" mass="8" rgba=".2 .2 .25 1"/>
      <geom type="box" size=".03 .03 .17" pos="0 0 .22" mass=".5" rgba=".2 .2 .25 1"/>
      <geom {caster} pos=".13 0 -.05"/><geom {caster} pos="-.13 0 -.05"/>
      <camera name="eye" pos="{CAMERA_AT[0]} 0 {CAMERA_AT[2] - BASE_HEIGHT}"
        xyaxes="0 -1 0 0 0 1" fovy="{FOVY}"/>
      <body pos="0 {_TRACK / 2} 0"><joint name="left" axis="0 1 0" damping=".01"/>
        <geom {wheel}/></body>
      <body pos="0 {-_TRACK / 2} 0"><joint name="right" axis="0 1 0" damping=".01"/>
        <geom {wheel}/></body>
    </body>
  </worldbody>
  <actuator><velocity joint="left" kv="3"/><velocity joint="right" kv="3"/></actuator>
</mujoco>"""
