# SPDX-License-Identifier: Apache-2.0
"""
Measure what pages cost the tracker: results a second with no page, and with some.

A camera (the player node) sends the demo's clip at 1280x720 to a real tracker that follows the
cup; the web node serves pages that show what they are sent at once. Turns without and with pages
follow each other, each pair the other way round than the one before, so that a machine that slows
down slows both. How much less a pair's turn with pages tracked is one ratio; their mean and spread
are printed. On a machine that does something else meanwhile they mean nothing.

``python tools/page_load.py [--pages 4] [--turns 5] [--seconds 20] [--out load.json]``
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
import contextlib
import json
import os
from pathlib import Path
import platform
import re
import sys
import tempfile
import threading
import time
from typing import Any

import cv2
import numpy as np
from websockets.exceptions import ConnectionClosed

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'test' / 'unit')]

from web_client import Page, read_picture  # noqa: E402

from drift_ros.commands.demo import clip_seeds, default_clip  # noqa: E402
from drift_ros.media.video import VideoReader  # noqa: E402
from drift_ros.ros.client_errors import ClientError  # noqa: E402
from drift_ros.ros.processes import Children, prepare_environment, ProcessError  # noqa: E402

NAMESPACE = '/drift_ros_load'
SIZE = (1280, 720)
FRAMES = 60
LIMIT = 0.05
"""Share of the results that four pages may cost."""
_ALONE = 11.0
"""Seconds after which the node has stopped to listen to the camera, when the last page went."""
_BEGIN = 3.0
"""Seconds for pages to open, and for quality to settle."""


class Looker(threading.Thread):
    """A page as a browser is one: it says what it has shown, and answers pings."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._page = Page(address)
        self._ended = threading.Event()
        self.shown = self.bytes = 0

    def run(self) -> None:
        """Look until told to end."""
        with self._page, contextlib.suppress(ConnectionClosed):
            while not self._ended.is_set():
                with contextlib.suppress(TimeoutError):
                    self._take(self._page.socket.recv(0.5))

    def _take(self, data: str | bytes) -> None:
        if isinstance(data, bytes):
            head, _ = read_picture(data)
            self.shown, self.bytes = self.shown + 1, self.bytes + len(data)
            self._page.send(do='shown', stamp=head['stamp'])
            return
        message = json.loads(data)
        if message['type'] == 'status':
            self._page.send(do='pong', ping=message['ping'])

    def end(self) -> None:
        """Close the page."""
        self._ended.set()
        self.join()


def write_frames(folder: Path, start: int) -> None:
    """Write the clip's frames, enlarged, there and back so that nothing jumps."""
    folder.mkdir()
    count = 0
    for number, frame in enumerate(VideoReader(default_clip(), start, FRAMES)):
        large = cv2.resize(frame, SIZE, interpolation=cv2.INTER_LINEAR)
        cv2.imwrite(str(folder / f'{number:03}.jpg'), large[..., ::-1])
        count += 1
    for number in range(count):
        (folder / f'{count + number:03}.jpg').hardlink_to(folder / f'{count - 1 - number:03}.jpg')


def measure(
    address: str, pages: int, seconds: float, count: Callable[[], int], check: Callable[[], None]
) -> dict[str, Any]:
    """
    Count results for a while.

    Parameters
    ----------
    address : str
        Of the page.
    pages : int
        That look meanwhile.
    seconds : float
    count : callable
        Gives the results so far.
    check : callable
        Raises where something has ended.

    Returns
    -------
    dict
        ``pages``, ``results`` a second, and for each page ``pictures`` and ``megabits`` a second.

    """
    lookers = [Looker(address) for _ in range(pages)]
    for looker in lookers:
        looker.start()
    try:
        time.sleep(_BEGIN if pages else _ALONE)
        begun, before = time.monotonic(), count()
        shown = sum(looker.shown for looker in lookers)
        sent = sum(looker.bytes for looker in lookers)
        while time.monotonic() - begun < seconds:
            time.sleep(min(1.0, seconds))
            check()
        took = time.monotonic() - begun
        results = (count() - before) / took
        if not results:
            raise RuntimeError('the tracker said nothing for a whole turn: see its log')
        if not all(looker.is_alive() for looker in lookers):
            raise RuntimeError('a page was closed: is the node still there?')
        each = took * max(pages, 1)
        return {
            'pages': pages,
            'results': results,
            'pictures': (sum(looker.shown for looker in lookers) - shown) / each,
            'megabits': (sum(looker.bytes for looker in lookers) - sent) * 8e-6 / each,
        }
    finally:
        for looker in lookers:
            looker.end()


def summarize(turns: list[dict[str, Any]]) -> dict[str, Any]:
    """Sum up turns, of which each two that follow each other are a pair."""
    rates = {
        with_pages: np.array([t['results'] for t in turns if bool(t['pages']) is with_pages])
        for with_pages in (False, True)
    }
    ratios = []
    for pair in zip(turns[::2], turns[1::2]):
        some, none = sorted(pair, key=lambda turn: turn['pages'], reverse=True)
        ratios.append(some['results'] / none['results'])
    deviation = float(np.std(ratios, ddof=1)) if len(ratios) > 1 else None
    return {
        'without': float(rates[False].mean()),
        'with': float(rates[True].mean()),
        'ratio': float(np.mean(ratios)),
        'ratio_deviation': deviation,
        'ratio_error': None if deviation is None else deviation / len(ratios) ** 0.5,
        'ratios': ratios,
        'limit': 1 - LIMIT,
    }


def table(turns: list[dict[str, Any]], total: dict[str, Any]) -> str:
    """Write turns and their sum as a table."""
    lines = ['turn  pages  results/s  pictures/s and page  Mbit/s and page']
    for number, turn in enumerate(turns, 1):
        looked = f'{turn["pictures"]:19.1f}  {turn["megabits"]:15.1f}' if turn['pages'] else ''
        line = f'{number:4}  {turn["pages"]:5}  {turn["results"]:9.2f}  {looked}'
        lines.append(line.rstrip())
    spread = f'pairs {min(total["ratios"]):.3f} to {max(total["ratios"]):.3f}'
    if total['ratio_deviation'] is not None:
        spread += f', deviation {total["ratio_deviation"]:.3f}, of the mean '
        spread += f'{total["ratio_error"]:.3f}'
    lines += [
        '',
        f'mean: {total["without"]:.2f} results/s without pages, {total["with"]:.2f} with',
        f'ratio: {total["ratio"]:.3f} ({spread}); to be at least {total["limit"]:.2f}',
    ]
    return '\n'.join(lines)


def run(options: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    """Start everything, and measure turn by turn."""
    from drift_ros_msgs.msg import TrackArray

    from drift_ros.ros import qos
    from drift_ros.ros.client import TrackerClient

    def tell(text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    cup = clip_seeds(default_clip())[0]
    tell(f'making frames of {SIZE[0]}x{SIZE[1]} ...')
    write_frames(folder / 'frames', cup.index)
    children = Children(folder / 'logs', NAMESPACE)
    turns: list[dict[str, Any]] = []
    try:
        children.start('tracker', {})
        children.start('web', {'port': 0})
        with TrackerClient(namespace=NAMESPACE, timeout=120, watch=children.check) as client:
            tell('loading the model ...')
            if not client.change_state('configure') or not client.change_state('activate'):
                raise RuntimeError(f'the tracker does not start:\n{children.tail("tracker")}')
            results = 0

            def receive(_: TrackArray) -> None:
                nonlocal results
                results += 1

            client.node.create_subscription(
                TrackArray, f'{client.tracker}/tracks', receive, qos.LISTENING
            )
            children.start(
                'player',
                {
                    'source': folder / 'frames',
                    'loop': True,
                    'rate': options.rate,
                    'stamps': 'now',
                },
            )
            while not results:
                children.check()
                time.sleep(0.05)
            mask = cv2.resize(
                (cup.labels > 0).astype(np.uint8), SIZE, interpolation=cv2.INTER_NEAREST
            )
            client.seed(mask, names=['cup'])
            address = re.search(r'open (http://\S+)', children.tail('web', 50))
            assert address is not None
            tell(f'warming up for {options.warm_up:g} s ...')
            time.sleep(options.warm_up)
            for pair in range(options.turns):
                for pages in (0, options.pages) if pair % 2 == 0 else (options.pages, 0):
                    turn = measure(
                        address[1], pages, options.seconds, lambda: results, children.check
                    )
                    turns.append(turn)
                    tell(
                        f'turn {len(turns)} of {2 * options.turns}: {pages} pages, '
                        f'{turn["results"]:.2f} results/s'
                    )
    finally:
        children.stop_all()
    return turns


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('--pages', type=int, default=4, help='pages that look at once (4)')
    parser.add_argument('--turns', type=int, default=5, help='pairs of turns (5)')
    parser.add_argument('--seconds', type=float, default=20.0, help='of each turn (20)')
    parser.add_argument('--rate', type=float, default=30.0, help='frames a second sent (30)')
    parser.add_argument('--warm-up', type=float, default=10.0, help='seconds before it (10)')
    parser.add_argument('--out', type=Path, help='write all numbers there, as JSON')
    options = parser.parse_args()
    if options.pages < 1 or options.turns < 1 or options.seconds <= 0:
        parser.error('there have to be pages, turns and seconds')
    prepare_environment()
    with tempfile.TemporaryDirectory() as folder:
        load = os.getloadavg()[0]
        try:
            turns = run(options, Path(folder))
        except (ProcessError, ClientError, RuntimeError) as error:
            sys.exit(f'page_load: {error}')
    total = summarize(turns)
    print(table(turns, total))
    if total['without'] > 0.97 * options.rate:
        print('the tracker keeps up with the camera: give a higher --rate, or nothing is measured')
    if load > 0.5:
        print(f'the machine was not idle (load {load:.1f} before the start): measure again')
    if options.out:
        settings = {key: value for key, value in vars(options).items() if key != 'out'}
        machine = {'cpus': os.cpu_count(), 'machine': platform.machine(), 'load_before': load}
        found = {'settings': settings, 'on': machine, 'size': SIZE, 'turns': turns, **total}
        options.out.write_text(json.dumps(found, indent=1) + '\n', encoding='utf-8')


if __name__ == '__main__':
    main()
