# SPDX-License-Identifier: Apache-2.0
"""
The page's server: a handful of files, one socket, and who may have them. Imports no ROS.

Only the page's own files are served, from a table: no path is ever looked up on the disk. A page
of another origin gets no socket, a name that leads here by a foreign DNS gets nothing at all, and
where a token is asked for, nothing is given without it.
"""

from __future__ import annotations

import asyncio
import hmac
from importlib import resources
import logging
import secrets
import socket
import threading
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
import uvicorn

from drift_ros.nodes.web.scene import Scene
from drift_ros.nodes.web.session import Asker, Encoder, Session, Stops
from drift_ros.nodes.web.wishes import LARGEST

_LOG = logging.getLogger(__name__)
FILES = {
    '/': ('index.html', 'text/html; charset=utf-8'),
    '/page.css': ('page.css', 'text/css; charset=utf-8'),
    '/page.js': ('page.js', 'text/javascript; charset=utf-8'),
    '/picture.js': ('picture.js', 'text/javascript; charset=utf-8'),
    '/icon.svg': ('icon.svg', 'image/svg+xml'),
}
"""All there is to get: path, file in the package, type."""
_LOOPBACK = ('127.0.0.1', 'localhost', '::1')
_COOKIE = 'drift_ros_token'


class Server:
    """
    Serves pages of one scene.

    Attributes
    ----------
    token : str
        What a page has to know; '' where everybody on this machine may come.
    app : Starlette
        The application, for tests.

    """

    def __init__(
        self,
        scene: Scene,
        asker: Asker,
        *,
        host: str = '127.0.0.1',
        port: int = 0,
        token: str = '',
        clients: int = 8,
        rate: float = 20.0,
    ) -> None:
        """
        Get ready; :meth:`start` serves.

        Parameters
        ----------
        scene : Scene
        asker : Asker
        host : str
            Address to listen at. One that others can reach needs a token: one is made up where
            none is given.
        port : int
            0: any that is free.
        token : str
            Of letters, digits, ``-`` and ``_``.
        clients : int
            Pages at once, at most.
        rate : float
            Pictures a second at most, for each.

        Raises
        ------
        ValueError
            The token holds other characters, or is short.

        """
        if token and (len(token) < 8 or not token.replace('-', '').replace('_', '').isalnum()):
            raise ValueError(
                'token: give at least 8 letters, digits, "-" or "_"; empty: one is made up where '
                'it is needed'
            )
        self.open = host not in _LOOPBACK
        self.token = token or (secrets.token_urlsafe(16) if self.open else '')
        self._scene, self._asker = scene, asker
        self._host, self._port = host, port
        self._clients, self._rate = clients, rate
        self._sessions: set[Session] = set()
        self._encoder = Encoder()
        self._stops = Stops(clients)
        self._uvicorn: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        folder = resources.files('drift_ros.nodes.web') / 'page'
        self._files = {
            path: ((folder / name).read_bytes(), kind) for path, (name, kind) in FILES.items()
        }
        self.app = Starlette(
            routes=[
                *(Route(path, self._file, methods=['GET']) for path in FILES),
                WebSocketRoute('/socket', self._socket),
            ]
        )

    # -- life

    def start(self) -> str:
        """
        Serve, in a thread.

        Returns
        -------
        str
            The address to open, token included.

        Raises
        ------
        ValueError
            The address cannot be used; the text says why and what to do.

        """
        family = socket.AF_INET6 if ':' in self._host else socket.AF_INET
        listening = socket.socket(family, socket.SOCK_STREAM)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((self._host, self._port))
            listening.listen(64)  # who comes before the thread runs waits
        except OSError as error:
            listening.close()
            raise ValueError(
                f'cannot serve at {self._host}:{self._port}: {error.strerror or error}. Choose '
                'another port (port:=0: any that is free) or an address of this machine'
            ) from None
        self._port = listening.getsockname()[1]
        self._uvicorn = uvicorn.Server(
            uvicorn.Config(
                self.app,
                log_config=None,
                log_level='warning',
                access_log=False,
                server_header=False,
                lifespan='off',
                ws='websockets-sansio',
                ws_max_size=LARGEST,
                ws_ping_interval=20.0,
                ws_ping_timeout=60.0,
                timeout_graceful_shutdown=1,
                backlog=64,
                limit_concurrency=8 * self._clients,
            )
        )
        self._thread = threading.Thread(
            target=self._serve, args=(listening,), name='server', daemon=True
        )
        self._thread.start()
        return self.address

    @property
    def address(self) -> str:
        """Where the page is, token included."""
        host = self._host
        if host in ('0.0.0.0', '::'):
            host = socket.gethostname()
        name = f'[{host}]' if ':' in host else host
        return f'http://{name}:{self._port}/' + (f'?token={self.token}' if self.token else '')

    def _serve(self, listening: socket.socket) -> None:
        assert self._uvicorn is not None
        asyncio.run(self._uvicorn.serve(sockets=[listening]))

    def stop(self) -> None:
        """End all connections, without waiting for that."""
        if self._uvicorn is not None:
            self._uvicorn.should_exit = True

    def join(self, timeout: float) -> bool:
        """Wait for the end; False where it has not come after so many seconds."""
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # -- who may

    def _known_host(self, connection: HTTPConnection) -> bool:
        """
        Say whether the page was asked for by a name that is ours.

        Where no token is needed, a foreign name that somebody let point to this machine would
        make their page one of ours.
        """
        if self.token:
            return True
        try:
            return urlsplit('//' + connection.headers.get('host', '')).hostname in _LOOPBACK
        except ValueError:
            return False

    def _allowed(self, connection: HTTPConnection) -> bool:
        given = connection.cookies.get(self._cookie, '')
        return not self.token or hmac.compare_digest(given.encode(), self.token.encode())

    @property
    def _cookie(self) -> str:
        return f'{_COOKIE}_{self._port}'

    def _own_origin(self, connection: HTTPConnection) -> bool:
        """Say whether a page of ours asks; programs that are no browsers send no origin."""
        origin = connection.headers.get('origin')
        if origin is None:
            return True
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        own = connection.headers.get('host', '')
        return parts.scheme in ('http', 'https') and bool(own) and parts.netloc == own

    # -- what

    async def _file(self, request: Request) -> Response:
        if not self._known_host(request):
            return _plain('This server is not known by that name.', 421)
        if request.url.path == '/' and self.token and 'token' in request.query_params:
            if not hmac.compare_digest(
                request.query_params['token'].encode(), self.token.encode()
            ):
                return _plain(_NO_TOKEN, 403)
            answer: Response = RedirectResponse('/', 303, headers=_HEADERS)
            answer.set_cookie(self._cookie, self.token, httponly=True, samesite='lax', path='/')
            return answer
        if not self._allowed(request):
            return _plain(_NO_TOKEN, 403)
        data, kind = self._files[request.url.path]
        host = request.headers.get('host', '')
        policy = f"{_POLICY}; connect-src 'self' ws://{host} wss://{host}"
        # a name with odd characters has no business in a header
        if not all(letter.isalnum() or letter in '.-:[]' for letter in host):
            policy = f"{_POLICY}; connect-src 'self'"
        return Response(
            data, media_type=kind, headers={**_HEADERS, 'Content-Security-Policy': policy}
        )

    async def _socket(self, websocket: WebSocket) -> None:
        if not (
            self._known_host(websocket)
            and self._own_origin(websocket)
            and self._allowed(websocket)
        ):
            await websocket.close(1008)  # before it is accepted: the answer is 403
            return
        await websocket.accept()
        if len(self._sessions) >= self._clients:
            await websocket.close(
                1013, f'{self._clients} pages are open already, which is the most'
            )
            return
        session = Session(
            websocket,
            self._scene,
            self._asker,
            self._encoder,
            self._stops,
            self._rate,
            lambda: len(self._sessions),
        )
        self._sessions.add(session)
        self._scene.viewers = len(self._sessions)
        loop = asyncio.get_running_loop()
        self._scene.on_change(lambda: self._wake(loop))
        try:
            await session.run()
        finally:
            self._sessions.discard(session)
            self._scene.viewers = len(self._sessions)

    def _wake(self, loop: asyncio.AbstractEventLoop) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._changed)

    def _changed(self) -> None:
        for session in self._sessions:
            session.wake()


def _plain(text: str, status: int) -> Response:
    return PlainTextResponse(text + '\n', status, headers=_HEADERS)


_NO_TOKEN = (
    'This page is for those who have its token: open the whole address that the node printed '
    'when it started.'
)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    'X-Content-Type-Options': 'nosniff',
    'X-Frame-Options': 'DENY',
    'Referrer-Policy': 'no-referrer',
    'Cross-Origin-Resource-Policy': 'same-origin',
    'Cross-Origin-Opener-Policy': 'same-origin',
    'Cache-Control': 'no-store',
}
