# SPDX-License-Identifier: Apache-2.0
"""The demo in a browser: a clip over and over, a tracker, and the page to mark objects in it."""

from __future__ import annotations

import contextlib
from pathlib import Path
import re
import signal
import threading

import click

from drift_ros.ros.processes import Children, prepare_environment, ProcessError

NAMESPACE = '/drift_ros_demo'
_PATIENCE = 120.0


def run_page(clip: Path, start: int, logs: Path, parameters: dict[str, object], port: int) -> None:
    """
    Play a clip over and over, and serve the page, until Ctrl-C.

    Parameters
    ----------
    clip : Path
        Video or folder of images.
    start : int
        First frame.
    logs : Path
        Folder for what the processes say.
    parameters : dict of str to object
        Of the tracker node.
    port : int
        Of the page; 0: any that is free.

    Raises
    ------
    ProcessError
        A process ended; with the end of its log.
    ClientError
        The tracker did not answer.

    """
    prepare_environment()
    from drift_ros.ros.client import TrackerClient

    ended = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: ended.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        with contextlib.ExitStack() as stack:
            children = Children(logs, NAMESPACE)
            stack.callback(children.stop_all)
            children.start('tracker', parameters)
            children.start('web', {'port': port})

            def watch() -> None:
                children.check()
                if ended.is_set():
                    raise KeyboardInterrupt

            client = stack.enter_context(
                TrackerClient(namespace=NAMESPACE, name='demo', timeout=_PATIENCE, watch=watch)
            )
            click.echo('loading the model ...')
            if not client.change_state('configure'):
                raise ProcessError(
                    f'the tracker could not be configured:\n{children.tail("tracker")}'
                )
            client.change_state('activate')
            children.start(
                'player', {'source': clip, 'start': start, 'loop': True, 'stamps': 'now'}
            )
            address = None
            while not ended.wait(0.2):
                children.check()
                found = re.search(r'open (http://\S+)', children.tail('web', 50))
                if found and found[1] != address:
                    address = found[1]
                    click.echo(f'\n  Open {address} and mark something. Ctrl-C ends it.\n')
    except KeyboardInterrupt:
        pass
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
