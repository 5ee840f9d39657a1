# SPDX-License-Identifier: Apache-2.0
"""
Make the pictures of the page for the documentation: ``docs/images/ui.jpg`` and ``ui.webp``.

Needs Chromium with its driver. Plays the demo's clip to real nodes, marks the cup and the hand in
a real browser where the clip's own masks are, and takes pictures meanwhile:
``python tools/page_pictures.py [--dark]``.
"""

from __future__ import annotations

import argparse
import io
from pathlib import Path
import re
import sys
import tempfile
import time

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / 'test' / 'ros')]

from page_browser import KEYS, PageBrowser, wait  # noqa: E402

from drift_ros.commands.demo import clip_seeds, default_clip  # noqa: E402
from drift_ros.ros.processes import Children, prepare_environment  # noqa: E402

NAMESPACE = '/drift_ros_pictures'
SIZE = (1180, 800)
LARGEST = 300_000


class Film:
    """Pictures of a browser's window."""

    def __init__(self, browser: PageBrowser) -> None:
        self._browser = browser
        self.frames: list[Image.Image] = []
        self.times: list[int] = []

    def take(self, milliseconds: int = 200) -> Image.Image:
        """Take a picture that is shown for so long."""
        picture = Image.open(io.BytesIO(self._browser.driver.get_screenshot_as_png()))
        self.frames.append(picture.convert('RGB'))
        self.times.append(milliseconds)
        return self.frames[-1]

    def save(self, path: Path) -> None:
        """Write an animation of at most :data:`LARGEST` bytes."""
        for width, quality in ((720, 50), (640, 45), (560, 40), (480, 35), (420, 30)):
            height = round(width * self.frames[0].height / self.frames[0].width)
            small = [
                frame.resize((width, height), Image.Resampling.LANCZOS) for frame in self.frames
            ]
            small[0].save(
                path,
                save_all=True,
                append_images=small[1:],
                duration=self.times,
                loop=0,
                quality=quality,
                method=6,
            )
            if path.stat().st_size <= LARGEST:
                return


def mark(browser: PageBrowser, film: Film, labels: np.ndarray, name: str) -> Image.Image:
    """Draw a box around a mask and follow what is proposed; the picture of the proposal."""
    rows, columns = np.nonzero(labels)
    box = (columns.min() - 6, rows.min() - 6, columns.max() + 7, rows.max() + 7)
    box = tuple(np.clip(box, 1, (*labels.shape[::-1],) * 2 - np.array(2)).tolist())
    browser.press(box[0], box[1], labels.shape)
    film.take(500)
    browser.move((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, labels.shape)
    film.take(300)
    browser.move(box[2], box[3], labels.shape)
    film.take(300)
    browser.release()
    browser.proposal()
    browser.find('name').send_keys(name)
    picture = film.take(1600)
    browser.keys(KEYS.ENTER)
    wait(lambda: not browser.stopped, 'the object to be followed')
    film.take(400)
    return picture


def main() -> None:
    """Make the pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--out', type=Path, default=ROOT / 'docs' / 'images')
    parser.add_argument('--dark', action='store_true')
    options = parser.parse_args()
    prepare_environment()
    from std_srvs.srv import Trigger

    from drift_ros.ros.client import TrackerClient

    clip = default_clip()
    cup, hand = clip_seeds(clip)[:2]
    with tempfile.TemporaryDirectory() as folder:
        children = Children(Path(folder) / 'logs', NAMESPACE)
        browser = None
        try:
            children.start('tracker', {})
            children.start('web', {'port': 0})
            with TrackerClient(namespace=NAMESPACE, timeout=120, watch=children.check) as client:
                client.change_state('configure')
                client.change_state('activate')
                address = wait(
                    lambda: re.search(r'open (http://\S+)', children.tail('web', 50)), 'the page'
                )[1]
                browser = PageBrowser(Path(folder) / 'profile', SIZE, options.dark)
                browser.driver.get(address)
                time.sleep(2.0)  # the node listens to the camera now
                holds = [0, hand.index - cup.index]
                player = {
                    'source': clip,
                    'start': cup.index,
                    'hold_at': holds,
                    'rate': 6.0,
                    'count': 90,
                }
                children.start('player', {**player, 'stamps': 'now', 'wait_for_subscribers': 2})

                def resume() -> None:
                    client.call(Trigger, f'{NAMESPACE}/player/resume', Trigger.Request())

                browser.open(address)
                time.sleep(1.0)
                film = Film(browser)
                film.take(800)
                mark(browser, film, cup.labels == cup.labels.max(), cup.names[0])
                resume()
                for _ in range(14):
                    time.sleep(0.2)
                    film.take()
                time.sleep(2.5)  # the next frame that is held
                picture = mark(browser, film, hand.labels == hand.labels.max(), hand.names[0])
                resume()
                for _ in range(20):
                    time.sleep(0.2)
                    film.take()
                options.out.mkdir(parents=True, exist_ok=True)
                picture.save(options.out / 'ui.jpg', quality=84, optimize=True)
                film.save(options.out / 'ui.webp')
        finally:
            if browser is not None:
                browser.close()
            children.stop_all()
    for name in ('ui.jpg', 'ui.webp'):
        print(options.out / name, (options.out / name).stat().st_size, 'bytes')


if __name__ == '__main__':
    main()
