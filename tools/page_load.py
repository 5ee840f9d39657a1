# SPDX-License-Identifier: Apache-2.0
"""
Measure what pages cost the tracker: frames tracked a second without pages and with some.

Plays the demo's clip at 1280x720 to a real tracker that follows the cup, and lets pages that draw
at once look at it, by turns with none: ``python tools/page_load.py [--pages 4] [--turns 3]``.
"""

from __future__ import annotations

import argparse
from pathlib import Path
import re
import sys
import tempfile
import threading
import time

import cv2
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'test' / 'unit')]

from web_client import Page  # noqa: E402

from drift_ros.commands.demo import clip_seeds, default_clip  # noqa: E402
from drift_ros.media.video import VideoReader  # noqa: E402
from drift_ros.ros.processes import Children, prepare_environment  # noqa: E402

NAMESPACE = '/drift_ros_load'
SIZE = (1280, 720)


class Looker(threading.Thread):
    """A page that says at once that it has shown what it was sent."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self._page = Page(address)
        self._ended = threading.Event()
        self.shown = self.bytes = 0

    def run(self) -> None:
        """Look until told to end."""
        while not self._ended.is_set():
            try:
                head, data = self._page.next('picture', 1.0)
            except TimeoutError:
                continue
            self.shown, self.bytes = self.shown + 1, self.bytes + len(data)
            self._page.send(do='shown', stamp=head['stamp'])
        self._page.close()

    def end(self) -> None:
        """Close the page."""
        self._ended.set()
        self.join()


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--pages', type=int, default=4)
    parser.add_argument('--turns', type=int, default=3)
    parser.add_argument('--seconds', type=float, default=8.0)
    options = parser.parse_args()
    prepare_environment()
    from drift_ros_msgs.msg import TrackArray

    from drift_ros.ros import qos
    from drift_ros.ros.client import TrackerClient

    clip = default_clip()
    cup = clip_seeds(clip)[0]
    rates: dict[int, list[float]] = {0: [], options.pages: []}
    with tempfile.TemporaryDirectory() as folder:
        frames = Path(folder) / 'frames'
        frames.mkdir()
        for number, frame in enumerate(VideoReader(clip, cup.index, 60)):
            large = cv2.resize(frame, SIZE, interpolation=cv2.INTER_LINEAR)
            cv2.imwrite(str(frames / f'{number:03}.jpg'), large[..., ::-1])
        # there and back, so that nothing jumps
        for number in range(60):
            (frames / f'{60 + number:03}.jpg').hardlink_to(frames / f'{59 - number:03}.jpg')
        children = Children(Path(folder) / 'logs', NAMESPACE)
        try:
            children.start('tracker', {})
            children.start('web', {'port': 0})
            with TrackerClient(namespace=NAMESPACE, timeout=120, watch=children.check) as client:
                client.change_state('configure')
                client.change_state('activate')
                results: list[TrackArray] = []
                client.node.create_subscription(
                    TrackArray, f'{client.tracker}/tracks', results.append, qos.LISTENING
                )
                player = {'source': frames, 'loop': True, 'rate': 30.0, 'stamps': 'now'}
                children.start('player', player)
                while not results:
                    time.sleep(0.05)
                mask = cv2.resize((cup.labels > 0).astype(np.uint8), SIZE, interpolation=0)
                client.seed(mask, names=['cup'])
                address = re.search(r'open (http://\S+)', children.tail('web', 50))
                assert address is not None
                time.sleep(2.0)
                for turn in range(2 * options.turns):
                    count = options.pages if turn % 2 else 0
                    pages = [Looker(address[1]) for _ in range(count)]
                    for page in pages:
                        page.start()
                    time.sleep(2.0 if count else 11.0)  # the node stops to listen 10 s later
                    begun, before = time.monotonic(), len(results)
                    shown = sum(page.shown for page in pages)
                    time.sleep(options.seconds)
                    seconds = time.monotonic() - begun
                    rate = (len(results) - before) / seconds
                    rates[count].append(rate)
                    each = (sum(page.shown for page in pages) - shown) / seconds / max(count, 1)
                    print(
                        f'{count} pages: {rate:.2f} frames tracked a second, '
                        f'{each:.1f} pictures a second and page',
                        flush=True,
                    )
                    for page in pages:
                        page.end()
        finally:
            children.stop_all()
    none, some = (float(np.mean(values)) for values in rates.values())
    print(f'{none:.2f} without, {some:.2f} with {options.pages} pages: {some / none - 1:+.1%}')


if __name__ == '__main__':
    main()
