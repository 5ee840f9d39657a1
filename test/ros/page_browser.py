# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium that does with the page what a person does."""

import contextlib
import json
import os
import shutil
import time

import pytest

os.environ.setdefault('SE_OFFLINE', 'true')  # the driver that is installed, never a download
webdriver = pytest.importorskip('selenium.webdriver', reason='selenium is not installed')
from selenium.webdriver.common.action_chains import ActionChains  # noqa: E402
from selenium.webdriver.common.actions.action_builder import ActionBuilder  # noqa: E402
from selenium.webdriver.common.actions.interaction import POINTER_TOUCH  # noqa: E402
from selenium.webdriver.common.actions.pointer_input import PointerInput  # noqa: E402
from selenium.webdriver.common.by import By  # noqa: E402
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM = next(
    filter(None, map(shutil.which, ('chromium', 'chromium-browser', 'google-chrome'))), None
)
DRIVER = shutil.which('chromedriver')
OPTIONS = (
    '--headless',
    '--no-sandbox',
    '--disable-gpu',
    '--disable-quic',
    '--no-first-run',
    '--disable-background-networking',
    '--disable-component-update',
    '--disable-sync',
    '--disable-dev-shm-usage',
    '--mute-audio',
)


def wait(condition, what, timeout=180.0):
    """Wait for a condition of the page."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.03)
    raise AssertionError(f'{what} did not come about within {timeout} s')


class PageBrowser:
    """One browser with one page in it."""

    def __init__(self, profile, size=(1280, 860), dark=False, phone=False):
        options = webdriver.ChromeOptions()
        options.binary_location = CHROMIUM
        for argument in (
            *OPTIONS,
            f'--user-data-dir={profile}',
            f'--window-size={size[0]},{size[1]}',
        ):
            options.add_argument(argument)
        options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
        if phone:
            metrics = {'width': size[0], 'height': size[1], 'pixelRatio': 2, 'touch': True}
            options.add_experimental_option('mobileEmulation', {'deviceMetrics': metrics})
        self.driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        if dark:
            wanted = [{'name': 'prefers-color-scheme', 'value': 'dark'}]
            self.driver.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': wanted})

    def open(self, address):
        self.driver.get(address)
        wait(lambda: not self.find('empty').is_displayed(), 'the first picture')

    def find(self, name):
        return self.driver.find_element(By.ID, name)

    def run(self, script, *arguments):
        return self.driver.execute_script(script, *arguments)

    def text(self, name):
        return self.find(name).text

    @property
    def stopped(self):
        return self.find('frozen').is_displayed()

    @property
    def objects(self):
        """What the panel says, by id: (name, state)."""
        listed = self.run(
            "return [...document.querySelectorAll('.object')].map(row => [+row.dataset.id,"
            " row.querySelector('.called').value, row.querySelector('.state').textContent])"
        )
        return {number: (name, state) for number, name, state in listed}

    def row(self, number):
        return self.driver.find_element(By.CSS_SELECTOR, f'.object[data-id="{number}"]')

    def place(self, x, y, size):
        """Give where a pixel of a frame (H, W) is in the window."""
        area = self.run(
            "const r = document.getElementById('marks').getBoundingClientRect();"
            ' return [r.left, r.top, r.width, r.height]'
        )
        left, top, width, height = area  # in CSS pixels of the window
        return left + x / size[1] * width, top + y / size[0] * height

    def press(self, x, y, size):
        """Press the mouse on a pixel and hold it."""
        moves = ActionBuilder(self.driver, duration=0)
        place = map(round, self.place(x, y, size))
        moves.pointer_action.move_to_location(*place).pointer_down()
        moves.perform()

    def move(self, x, y, size):
        moves = ActionBuilder(self.driver, duration=0)
        moves.pointer_action.move_to_location(*map(round, self.place(x, y, size)))
        moves.perform()

    def release(self):
        moves = ActionBuilder(self.driver, duration=0)
        moves.pointer_action.pointer_up()
        moves.perform()

    def click(self, x, y, size, button=0):
        moves = ActionBuilder(self.driver, duration=0)
        pointer = moves.pointer_action.move_to_location(*map(round, self.place(x, y, size)))
        pointer.pointer_down(button=button).pointer_up(button=button)
        moves.perform()

    def drag(self, box, size):
        """Draw a box (x_min, y_min, x_max, y_max)."""
        self.press(box[0], box[1], size)
        self.move((box[0] + box[2]) / 2, (box[1] + box[3]) / 2, size)
        self.move(box[2], box[3], size)
        self.release()

    def tap(self, x, y, size, seconds=0.0):
        """Touch a pixel with a finger."""
        self.touch(*self.place(x, y, size), seconds)

    def touch(self, left, top, seconds=0.0):
        """Touch a place of the window with a finger."""
        finger = PointerInput(POINTER_TOUCH, 'finger')
        touch = ActionBuilder(self.driver, mouse=finger, duration=0)
        left, top = round(left), round(top)
        touch.pointer_action.move_to_location(left, top).pointer_down().pause(seconds).pointer_up()
        touch.perform()

    def keys(self, *keys):
        """Press keys where the focus is."""
        chain = ActionChains(self.driver, duration=0)
        for key in keys:
            chain.send_keys(key)
        chain.perform()

    def proposal(self):
        """Wait until a mask is proposed; how many pixels it has."""
        wait(lambda: self.find('follow').is_enabled(), f'a proposal; {self.text("refusal")!r}')
        return int(self.text('hint').partition(' ')[0].replace(',', '').replace('.', ''))

    def follow(self, name=''):
        """Follow what is proposed, and wait for the object: its id."""
        before = set(self.objects)
        if name:
            self.find('name').send_keys(name)
        self.find('follow').click()
        return wait(lambda: set(self.objects) - before, 'a new object').pop()

    def problems(self):
        """Give what the console says that is no mere information."""
        found = [item for item in self.driver.get_log('browser') if item['level'] != 'INFO']
        return [json.dumps(item) for item in found]

    def close(self):
        with contextlib.suppress(Exception):
            self.driver.quit()


KEYS = Keys
