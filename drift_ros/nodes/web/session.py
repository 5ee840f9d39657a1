# SPDX-License-Identifier: Apache-2.0
"""
One page that is open: what it is sent, and what it asks. Imports no ROS.

Pictures go one at a time: the next, then the newest, is sent once the page says that it has shown
the one before. So a slow link sees fewer pictures, and never old ones.
"""

from __future__ import annotations

import asyncio
import base64
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import contextlib
import dataclasses
import logging
import time
from typing import Any, Protocol

from starlette.websockets import WebSocket, WebSocketDisconnect, WebSocketState

from drift_ros.nodes.tracker.frames import ReceivedImage
from drift_ros.nodes.web import pictures
from drift_ros.nodes.web.pace import Pace
from drift_ros.nodes.web.scene import Robot, Scene, Shown
from drift_ros.nodes.web.wishes import ASKED, LARGEST, read_wish, Wish, WishError

_CONNECTED = WebSocketState.CONNECTED
_LOG = logging.getLogger(__name__)
_AT_ONCE = 3
"""Things a page may be asking at a time; and so often may it be stopping the robot."""
_PROPOSALS = 4
"""Proposed masks kept for a page."""
_MALFORMED = 20
"""Messages that ask for nothing, after which a page is shown the door."""
_STATUS = 1.0
"""Seconds between two messages about the tracker."""


class Asker(Protocol):
    """Who asks the nodes; every call blocks, and raises an exception whose text says why not."""

    def segment(self, frame: ReceivedImage, wish: Wish) -> Any:
        """Give what a box and points mark: ``mask`` (H, W) bool, ``score``."""

    def follow(self, frame: ReceivedImage, mask: Any, name: str, object_id: int) -> Any:
        """Follow a mask (H, W) bool, or correct an object by it: ``id``, ``note``."""

    def rename(self, object_id: int, name: str) -> None:
        """Call an object otherwise."""

    def remove(self, object_id: int) -> None:
        """Stop following an object."""

    def reset(self) -> None:
        """Forget all objects."""

    def drive(self, object_id: int) -> None:
        """Let the robot follow an object."""

    def halt(self) -> None:
        """Stop the robot; whatever else is being asked, this does not wait for it."""


class AskerError(RuntimeError):
    """A node did not do what it was asked; the text is its own."""


class Stops:
    """Threads in which robots are stopped: never all taken by requests that wait for answers."""

    def __init__(self, pages: int) -> None:
        """Have enough for all that so many pages may ask at once."""
        self.threads = ThreadPoolExecutor(_AT_ONCE * pages, thread_name_prefix='stops')


class Encoder:
    """Makes each picture once for all who want it so, in threads of its own."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(2, thread_name_prefix='pictures')
        self._made: OrderedDict[tuple[int, int], asyncio.Future[bytes]] = OrderedDict()

    async def payload(self, shown: Shown, level: int) -> bytes:
        """Give :func:`drift_ros.nodes.web.pictures.payload`; raises what that raises."""
        key = (shown.number, level)
        if key not in self._made:
            loop = asyncio.get_running_loop()
            self._made[key] = loop.run_in_executor(self._threads, pictures.payload, shown, level)
            while len(self._made) > 2 * len(pictures.LEVELS):
                self._made.popitem(last=False)
        return await asyncio.shield(self._made[key])


class Session:
    """A page's connection, from its acceptance to its end."""

    def __init__(
        self,
        socket: WebSocket,
        scene: Scene,
        asker: Asker,
        encoder: Encoder,
        stops: Stops,
        rate: float,
        count: Callable[[], int],
    ) -> None:
        """
        Serve a page.

        Parameters
        ----------
        socket : WebSocket
            Accepted.
        scene : Scene
        asker : Asker
        encoder : Encoder
        stops : Stops
        rate : float
            Pictures a second at most.
        count : callable
            Gives how many pages are open.

        """
        self._socket, self._scene, self._asker = socket, scene, asker
        self._encoder, self._period, self._count = encoder, 1.0 / rate, count
        self._stops = stops
        self._changed = asyncio.Event()
        self._news = asyncio.Event()
        self._robot: Robot | None = None
        self._free = asyncio.Event()
        self._free.set()
        self._held: ReceivedImage | None = None
        self._holding = False
        self._sent: OrderedDict[int, ReceivedImage] = OrderedDict()
        self._on_its_way: tuple[int, float, int] | None = None
        self._pace = Pace()
        self._proposals: OrderedDict[int, tuple[ReceivedImage, Any]] = OrderedDict()
        self._numbered = 0
        self._asking: set[asyncio.Task[None]] = set()
        self._stopping: set[asyncio.Task[None]] = set()
        self._malformed = 0
        self._pings: dict[int, float] = {}
        self._told: dict[int, bytes] = {}

    def wake(self) -> None:
        """Something changed in the scene."""
        self._changed.set()
        if self._scene.robot is not self._robot:
            self._news.set()

    async def run(self) -> None:
        """Talk to the page until it leaves."""
        tasks = [
            asyncio.create_task(work())
            for work in (self._receive, self._send_pictures, self._send_status)
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                error = task.exception()
                if error is not None and not isinstance(error, WebSocketDisconnect):
                    _LOG.error('a page had to be left: %s', error, exc_info=error)
        finally:
            # a robot that was told to stop is told so, though the page has left: threads go on
            all_tasks = (*tasks, *self._asking, *self._stopping)
            for task in all_tasks:
                task.cancel()
            await asyncio.gather(*all_tasks, return_exceptions=True)

    # -- to the page

    async def _tell(self, message: dict[str, Any] | bytes) -> None:
        """Send something; a page that has gone is told nothing."""
        try:
            if isinstance(message, bytes):
                await self._socket.send_bytes(message)
            else:
                await self._socket.send_json(message)
        except (RuntimeError, OSError):  # of Starlette, where the other side closed meanwhile
            if self._socket.client_state is self._socket.application_state is _CONNECTED:
                raise
            raise WebSocketDisconnect(1006) from None

    async def _send_pictures(self) -> None:
        last, number = float('-inf'), 0
        while True:
            await self._free.wait()
            await asyncio.sleep(max(0.0, last + self._period - time.monotonic()))
            shown = self._scene.shown
            if shown is None or shown.number == number or self._holding:
                self._changed.clear()
                shown = self._scene.shown
                if shown is None or shown.number == number or self._holding:
                    await self._changed.wait()
                continue
            number = shown.number
            try:
                data = await self._encoder.payload(shown, self._pace.level)
            except ValueError as error:  # the tracker cannot read it either, and says so, too
                await self._tell({'type': 'notice', 'text': str(error)})
                continue
            if self._holding:  # meanwhile the page stopped at the one before
                number = 0
                continue
            self._sent[shown.frame.stamp] = shown.frame
            while len(self._sent) > 3:
                self._sent.popitem(last=False)
            self._free.clear()
            last = time.monotonic()
            self._on_its_way = (shown.frame.stamp, last, len(data))
            await self._tell(data)

    async def _send_status(self) -> None:
        noticed = 0
        while True:
            now = self._scene.condition
            await self._tell_robot()
            noticed = await self._tell_notices(noticed)
            await self._tell_thumbnails()
            ping = (max(self._pings, default=0) + 1) % 2**31
            self._pings = {ping: time.monotonic()}
            await self._tell(
                {
                    'type': 'status',
                    'tracker': now.tracker,
                    'present': now.present,
                    'camera': now.camera,
                    'level': now.level,
                    'text': now.text,
                    'values': dict(now.values),
                    'viewers': self._count(),
                    'ping': ping,
                }
            )
            end = time.monotonic() + _STATUS
            while (left := end - time.monotonic()) > 0:
                with contextlib.suppress(asyncio.TimeoutError):
                    await asyncio.wait_for(self._news.wait(), left)
                await self._tell_robot()

    async def _tell_robot(self) -> None:
        """Tell how the robot is, where the page does not know yet."""
        self._news.clear()
        robot = self._scene.robot
        if robot is not self._robot:
            self._robot = robot
            await self._tell({'type': 'robot', **dataclasses.asdict(robot)})

    async def _tell_notices(self, after: int) -> int:
        for number, text in self._scene.notices(after):
            await self._tell({'type': 'notice', 'text': text})
            after = number
        return after

    async def _tell_thumbnails(self) -> None:
        made = self._scene.thumbnails
        for number, data in made.items():
            if self._told.get(number) is not data:
                url = 'data:image/jpeg;base64,' + base64.b64encode(data).decode()
                await self._tell({'type': 'thumbnail', 'object': number, 'url': url})
        self._told = dict(made)

    # -- from the page

    async def _receive(self) -> None:
        while True:
            message = await self._socket.receive()
            if message['type'] == 'websocket.disconnect':
                return
            text = message.get('text')
            if text is not None and len(text) > LARGEST:
                await self._socket.close(1009, f'messages have at most {LARGEST} bytes')
                return
            try:
                wish = read_wish(text)
            except WishError as error:
                self._malformed += 1
                if self._malformed > _MALFORMED:
                    await self._socket.close(1008, 'too many messages that ask for nothing')
                    return
                await self._tell({'type': 'refusal', 'text': str(error)})
                continue
            await self._take(wish)

    async def _take(self, wish: Wish) -> None:
        if wish.do == 'shown':
            if self._on_its_way and self._on_its_way[0] == wish.stamp:
                _, begun, size = self._on_its_way
                self._pace.carried(size, time.monotonic() - begun)
                self._on_its_way = None
                self._free.set()
        elif wish.do == 'pong':
            sent = self._pings.pop(wish.ping, None)
            if sent is not None:
                self._pace.answered(time.monotonic() - sent)
        elif wish.do == 'hold':
            self._holding, self._held = True, self._sent.get(wish.stamp)
        elif wish.do == 'go':
            self._holding, self._held = False, None
            self._changed.set()
        elif wish.do == 'halt':
            await self._start(wish, self._stopping)
        elif wish.do in ASKED:
            await self._start(wish, self._asking)

    async def _start(self, wish: Wish, others: set[asyncio.Task[None]]) -> None:
        """Ask, unless so much is being asked already."""
        if len(others) >= _AT_ONCE:
            await self._answer(
                wish, {'error': f'{_AT_ONCE} requests are being worked on: wait for them'}
            )
            return
        task = asyncio.create_task(self._ask(wish))
        others.add(task)
        task.add_done_callback(others.discard)

    async def _answer(self, wish: Wish, given: dict[str, Any]) -> None:
        await self._tell({'type': 'answer', 'id': wish.id, 'do': wish.do, **given})

    async def _ask(self, wish: Wish) -> None:
        """Ask the nodes, in a thread, and tell the page what they say."""
        threads = self._stops.threads if wish.do == 'halt' else None
        try:
            loop = asyncio.get_running_loop()
            given = await loop.run_in_executor(threads, self._work, wish)
        except (AskerError, LookupError) as error:
            given = {'error': str(error)}
        except Exception as error:  # a wish must not end the page
            _LOG.exception('a request failed')
            given = {'error': f'{type(error).__name__}: {error}'}
        with contextlib.suppress(WebSocketDisconnect):
            await self._answer(wish, given)

    def _work(self, wish: Wish) -> dict[str, Any]:
        asker = self._asker
        if wish.do == 'segment':
            frame = self._frame(wish.stamp)
            found = asker.segment(frame, wish)
            self._numbered += 1
            self._proposals[self._numbered] = (frame, found.mask)
            while len(self._proposals) > _PROPOSALS:
                self._proposals.popitem(last=False)
            return {
                'proposal': self._numbered,
                'score': round(float(found.score), 3),
                'area': int(found.mask.sum()),
                'outlines': pictures.outlines(found.mask),
            }
        if wish.do == 'follow':
            if wish.proposal not in self._proposals:
                raise LookupError('that mask is no longer known here: mark the object again')
            frame, mask = self._proposals[wish.proposal]
            made = asker.follow(frame, mask, wish.name, wish.object)
            self._proposals.clear()
            return {'object': made.id, 'note': made.note}
        if wish.do == 'rename':
            asker.rename(wish.object, wish.name)
        elif wish.do == 'remove':
            asker.remove(wish.object)
        elif wish.do == 'reset':
            asker.reset()
        elif wish.do == 'drive':
            asker.drive(wish.object)
        elif wish.do == 'halt':
            asker.halt()
        return {}

    def _frame(self, stamp: int) -> ReceivedImage:
        """
        Give the frame that a page shows.

        Raises
        ------
        LookupError
            It was never shown there, or it is forgotten.

        """
        held = self._held
        if held is not None and held.stamp == stamp:
            return held
        if stamp in self._sent:
            return self._sent[stamp]
        try:
            return self._scene.find(stamp)
        except LookupError:
            raise LookupError(
                'this frame is no longer known here: let the picture go on and mark the object '
                'in a newer one'
            ) from None
