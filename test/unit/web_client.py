# SPDX-License-Identifier: Apache-2.0
"""A page without a browser: it talks to the server over real sockets."""

import contextlib
import http.client
import json
import struct
import time

from websockets.sync.client import connect


class Page:
    """One connection to a server's socket."""

    def __init__(self, address, **options):
        host = address.removeprefix('http://').partition('/')[0]
        headers = options.pop('headers', {})
        self.told = []  # every text that came, whatever was waited for
        self._stack = contextlib.ExitStack()
        self.socket = self._stack.enter_context(
            connect(f'ws://{host}/socket', additional_headers=headers, max_size=2**24, **options)
        )

    def send(self, **wish):
        self.socket.send(json.dumps(wish))

    def next(self, kind, timeout=10.0):
        """Wait for a message of a kind; 'picture' gives (head, JPEG)."""
        end = time.monotonic() + timeout
        while True:
            data = self.socket.recv(max(end - time.monotonic(), 0.01))
            if isinstance(data, bytes):
                if kind == 'picture':
                    return read_picture(data)
                continue
            message = json.loads(data)
            self.told.append(message)
            if message['type'] == kind:
                return message

    def pictures(self, seconds):
        """Give the heads of all pictures that come within so many seconds."""
        found = []
        with contextlib.suppress(TimeoutError):
            end = time.monotonic() + seconds
            while True:
                found.append(self.next('picture', max(end - time.monotonic(), 0.01))[0])
        return found

    def ask(self, **wish):
        """Ask for something, and give the answer."""
        self.send(**wish)
        answer = self.next('answer')
        assert answer['id'] == wish['id'] and answer['do'] == wish['do']
        return answer

    def close(self):
        self._stack.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def read_picture(data):
    """Take a picture's message apart: its head and its JPEG."""
    (length,) = struct.unpack_from('<I', data)
    return json.loads(data[4 : 4 + length]), data[4 + length :]


def get(address, path, method='GET', **headers):
    """Send a path as it stands; (status, headers, body)."""
    host = address.removeprefix('http://').partition('/')[0]
    connection = http.client.HTTPConnection(host, timeout=10)
    connection.putrequest(method, path, skip_host='Host' in headers)
    for name, value in headers.items():
        connection.putheader(name.replace('_', '-'), value)
    connection.endheaders()
    answer = connection.getresponse()
    found = answer.status, dict(answer.getheaders()), answer.read()
    connection.close()
    return found
