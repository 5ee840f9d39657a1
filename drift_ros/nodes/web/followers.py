# SPDX-License-Identifier: Apache-2.0
"""
The nodes that drive after the tracker's target: found by what they say, set off, and stopped.

A follower says on ``/diagnostics`` which topic it takes poses from. One that takes them from this
tracker is meant, whatever it is called; no other is ever set off from this page.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
import threading
import time

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from std_srvs.srv import SetBool

from drift_ros.nodes.web.scene import Robot, Scene
from drift_ros.ros.client import TrackerClient
from drift_ros.ros.client_errors import ClientError, NoAnswerError, RefusedError

_KIND = ': following'
"""End of the name under which a follower says how it is."""
_SILENT = 2.0
"""Seconds without a word after which a follower is called silent; it speaks twice a second."""
_FORGOTTEN = 10.0
"""Seconds without a word after which one without a service is forgotten."""
_STOP = 3.0
"""Seconds to wait until a follower says that it stopped: a person has to reach for the switch."""
_AGAIN = 0.3
"""Seconds after which it is told again to stop."""


@dataclass
class _Heard:
    """What a follower said last, and when."""

    status: DiagnosticStatus
    when: float
    gone: bool = False
    """Its service went since: what comes next under its name has to speak for itself."""

    @property
    def on(self) -> bool:
        return any(item.key == 'mode' and item.value != 'off' for item in self.status.values)


class Followers:
    """Those that take poses from one tracker. Thread safe."""

    def __init__(self, client: TrackerClient, scene: Scene) -> None:
        """Tell a scene how the robot is."""
        self._client, self._scene = client, scene
        self._lock = threading.Lock()
        self._looking = threading.Lock()
        self._driving = threading.Lock()
        self._heard: dict[str, _Heard] = {}
        self._target = 0
        self._stops = 0
        self._chosen = False

    # -- what there is

    def hear(self, message: DiagnosticArray) -> None:
        """Take what nodes say of themselves."""
        tracker = self._client.tracker
        found = False
        for status in message.status:
            if status.name == f'{tracker.lstrip("/")}: space':
                told = next((item.value for item in status.values if item.key == 'target'), '')
                self._target = int(told) if told.isdecimal() else 0
                found = True
            elif status.name.endswith(_KIND) and status.hardware_id == f'{tracker}/pose':
                with self._lock:
                    name = '/' + status.name.removesuffix(_KIND)
                    self._heard[name] = _Heard(status, time.monotonic())
                found = True
        if found:
            self.look()

    def look(self) -> None:
        """Tell the scene how the robot is now; to be called now and then."""
        with self._looking:
            self._look()

    def _look(self) -> None:
        before, now = self._scene.robot, time.monotonic()
        with self._lock:
            here = self._here()
            for name in set(self._heard) - set(here):
                self._heard[name].gone = True
                if now - self._heard[name].when > _FORGOTTEN:
                    del self._heard[name]
        if not here:
            if before.on:
                self._scene.say(
                    f'{before.follower} is gone while the robot was following: its base has to '
                    'stop by itself, or somebody has to stop it'
                )
            self._scene.drive(Robot())
            return
        on = any(heard.on for heard in here.values())
        levels = [int.from_bytes(heard.status.level, 'little') for heard in here.values()]
        texts = [heard.status.message for heard in here.values()]
        for number, heard in enumerate(here.values()):
            if now - heard.when > _SILENT:
                levels[number] = 2
                texts[number] += f'; it has said nothing for more than {_SILENT:g} s'
        said = '; '.join(texts)
        self._scene.drive(Robot(', '.join(here), on, max(levels), said, self._target))
        if on and self._chosen and not self._client.present:
            # the next tracker counts objects anew, and would have the robot follow its first one
            self._chosen = False
            self._scene.say('the tracker is gone: the robot is told to stop')
            threading.Thread(target=self._halt_quietly, name='stop', daemon=True).start()

    def _here(self) -> dict[str, _Heard]:
        """Give those whose service is there; being asked often, it is ready when it is needed."""
        return {
            name: heard
            for name, heard in sorted(self._heard.items())
            if self._client.prepare(SetBool, f'{name}/enable').service_is_ready()
            and not heard.gone
        }

    def _names(self) -> list[str]:
        with self._lock:
            return list(self._here())

    # -- what it does

    def drive(self, object_id: int) -> None:
        """
        Let the robot follow an object.

        Parameters
        ----------
        object_id : int
            Of a live one.

        Raises
        ------
        ClientError
            It does not, with the reason in the words of the node that refused. Whoever stops the
            robot meanwhile has the last word.

        """
        names = self._scene.names
        if object_id not in names:
            raise ClientError(f'there is no object {object_id}')
        if any(name == str(object_id) for other, name in names.items() if other != object_id):
            # space.target takes a name before it takes an id
            raise ClientError(
                f'another object is called {object_id}, and would be followed instead: rename it'
            )
        with self._driving:
            stops = self._stops
            followers = self._names()
            if len(followers) != 1:
                raise ClientError(
                    f'{", ".join(followers)} would all be set off: let one of them run'
                    if followers
                    else f'no follower takes its pose from {self._client.tracker}/pose'
                )
            self._client.set_target(object_id)
            self._target = object_id
            if self._stops == stops:
                self._set_off(followers[0])
            if self._stops != stops:
                # the stop may have overtaken what set the robot off
                self.halt()
                raise ClientError('the robot was stopped meanwhile')
            self._chosen = True
        self.look()

    def _set_off(self, name: str) -> None:
        try:
            answer = self._client.call(SetBool, f'{name}/enable', SetBool.Request(data=True))
        except NoAnswerError:
            self.halt()  # it may still come
            raise
        if not answer.success:
            raise RefusedError(answer.message)

    def halt(self) -> None:
        """
        Stop the robot.

        Raises
        ------
        ClientError
            A follower did not say that it stopped.

        """
        with self._lock:
            self._stops += 1
            self._chosen = False
            # the one whose service is not seen just now may be there all the same
            names = list(self._here()) or list(self._heard)
        if not names:
            raise ClientError(f'no follower takes its pose from {self._client.tracker}/pose')
        with ThreadPoolExecutor(len(names)) as threads:  # none waits for another one
            problems = list(filter(None, threads.map(self._switch_off, names)))
        if problems:
            raise ClientError('; '.join(problems))

    def _switch_off(self, name: str) -> str:
        """Say why a follower may still be on; empty when it is off."""
        request = SetBool.Request(data=False)
        try:
            # asked again without harm where the answer is lost
            answer = self._client.call(
                SetBool, f'{name}/enable', request, timeout=_STOP, resend=_AGAIN
            )
        except ClientError as error:
            return f'{error} Stop the robot with its switch!'
        return '' if answer.success else str(answer.message)

    def _halt_quietly(self) -> None:
        try:
            self.halt()
        except ClientError as error:
            self._scene.say(str(error))
