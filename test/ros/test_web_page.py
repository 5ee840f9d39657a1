# SPDX-License-Identifier: Apache-2.0
"""The page in real browsers, against real nodes that follow real motion."""

import contextlib
from pathlib import Path
import re
import signal
import subprocess
import sys
import threading
import time

import cv2
from harness import Client, environment, NodeProcess, tracker_process, wait_for
import numpy as np
from page_browser import CHROMIUM, DRIVER, KEYS, PageBrowser, wait
import pytest
from scenes import overlap, scene, square_mask
from sensor_msgs.msg import CameraInfo
from web_client import get

from drift_ros.ros import conversions, lifecycle, stamp

WEIGHTLESS = Path(__file__).parent / 'weightless_tracker.py'
DOMAIN = 79
if not (CHROMIUM and DRIVER):
    pytest.skip(
        'no Chromium with its driver: apt install chromium chromium-driver',
        allow_module_level=True,
    )

SIZE = (240, 320)
SIDE = 56
EVIL = '<script>document.title="owned"</script><img src=x onerror="document.title=1">'
PARAMETERS = {
    'features.resolution': 120,
    'states.confidence': 0.0,
    'states.existence': 0.0,
    'states.lost_after': 1000,
    'diagnostics_period': 0.2,
}
RED, GREEN = (200, 40, 40), (40, 170, 60)


def red_at(number):
    """Where the red square is in frame ``number``: it moves 4 pixels a frame."""
    return 20 + abs((4 * number) % 320 - 160), 60


def picture(number):
    x, y = red_at(number)
    return scene((x, y, SIDE, RED), (230, 160, SIDE, GREEN), size=SIZE)


class Camera:
    """Publishes a moving scene ten times a second, and knows where everything was."""

    def __init__(self, client):
        self._client = client
        self._number = 0
        self.truth = {}  # red square by stamp in nanoseconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self):
        while not self._stop.wait(0.1):
            if not self._client.node.count_subscribers('/image'):
                continue  # the tracker starts anew
            header = self._client.header()
            x, y = red_at(self._number)
            self.truth[stamp.nanoseconds(header.stamp)] = (x, y, SIDE)
            self._client.send(conversions.rgb_to_image(picture(self._number), header))
            self._number += 1

    def close(self):
        self._stop.set()
        self._thread.join(5)


class Stage:
    """Everything that runs: a tracker, a camera, the page's node."""

    def __init__(self, folder):
        self.folder = folder
        self.trackers = 0
        self.start_tracker()
        self.webs = 0
        self.start_web(0)
        self.client = Client(DOMAIN)
        self.client.start()
        self.client.listen('seeds', 'tracks')
        self.camera = Camera(self.client)
        found = wait_for(
            lambda: re.search(r'open (http://127\.0\.0\.1:\d+/)', self.web.output), 'the address'
        )
        self.address = found[1]

    def start_web(self, port):
        self.webs += 1
        log = self.folder / f'web{self.webs}.log'
        self.web = NodeProcess('web', DOMAIN, log, parameters={'port': port})

    def start_tracker(self):
        self.trackers += 1
        self._running = tracker_process(
            DOMAIN, self.folder / f'tracker{self.trackers}.log', WEIGHTLESS, **PARAMETERS
        )
        self.tracker = self._running.__enter__()

    def stop_tracker(self):
        self._running.__exit__(None, None, None)

    def seed_of(self, number, after=0):
        """Wait for the mask with which an object was marked: (mask, stamp)."""

        def find():
            for message in self.client.messages['seeds'][after:]:
                labels = conversions.image_to_labels(message)
                if (labels == number).any():
                    return labels == number, stamp.nanoseconds(message.header.stamp)
            return None

        return wait_for(find, f'the seed of object {number}')

    def close(self):
        self.camera.close()
        self.client.close()
        self.web.close()
        self.stop_tracker()
        assert 'Traceback' not in self.web.output, self.web.output


@pytest.fixture(scope='module')
def stage(tmp_path_factory):
    stage = Stage(tmp_path_factory.mktemp('web'))
    yield stage
    stage.close()


@pytest.fixture(scope='module')
def shared(tmp_path_factory):
    browser = PageBrowser(tmp_path_factory.mktemp('profile'))
    yield browser
    browser.close()


@pytest.fixture
def page(stage, shared):
    assert stage.client.ask_reset().success
    shared.open(stage.address)
    wait(lambda: not shared.objects, 'an empty list')
    yield shared
    assert shared.problems() == []


def stopped_at(page):
    """Read off the stopped picture where the red square is: (x, y, side)."""
    found = page.run(
        "const shown = document.getElementById('picture');"
        ' const copy = new OffscreenCanvas(shown.width, shown.height).getContext("2d");'
        ' copy.drawImage(shown, 0, 0);'
        ' return [shown.width, ...copy.getImageData(0, 0, shown.width, shown.height).data]'
    )
    pixels = np.array(found[1:], np.uint8).reshape(-1, found[0], 4)
    red = (pixels[..., 0] > 120) & (pixels[..., 1] < 110) & (pixels[..., 2] < 110)
    x, y, width, _ = cv2.boundingRect(red.astype(np.uint8))
    return x, y, width


def stop(page):
    """Stop the picture with the keyboard; where the red square is in it."""
    page.find('stage').send_keys(KEYS.ARROW_LEFT)
    wait(lambda: page.stopped, 'the picture to stop')
    return stopped_at(page)


def check_seed(stage, number):
    """Check a seed against the truth of the frame it was given in."""
    mask, when = stage.seed_of(number)
    truth = square_mask(stage.camera.truth[when], size=SIZE) == 1
    assert overlap(mask, truth) > 0.5


def test_holding_the_mouse_stops_the_picture_and_a_box_is_followed(stage, page):
    page.press(5, 5, SIZE)
    wait(lambda: page.stopped, 'the picture to stop')
    x, y, side = stopped_at(page)
    time.sleep(0.5)  # the square is elsewhere by now, in what the camera sends
    assert stopped_at(page) == (x, y, side)
    page.release()
    page.keys(KEYS.ESCAPE)
    wait(lambda: not page.stopped, 'the picture to go on')
    wait(lambda: stopped_at(page) != (x, y, side), 'another picture')
    x, y, side = stop(page)
    page.drag((x - 6, y - 6, x + side + 6, y + side + 6), SIZE)
    assert 0.5 < page.proposal() / SIDE**2 < 1.5
    number = page.follow('cup')
    check_seed(stage, number)
    wait(lambda: page.objects[number] == ('cup', 'tracking'), 'the object to be tracked')
    assert not page.stopped and 'cup' in page.text('toast')
    wait(lambda: page.row(number).find_element('tag name', 'img').is_displayed(), 'its thumbnail')
    wait(lambda: re.fullmatch(r'[\d.]+ / [\d.]+ Hz', page.text('rate')), 'the rate')


def test_clicks_make_a_mask_and_a_wrong_one_is_taken_back(stage, page):
    x, y, side = stop(page)
    page.click(x + side / 2, y + side / 2, SIZE)
    first = page.proposal()
    page.click(x + side / 2, y + side + 30, SIZE, button=2)  # not on it
    page.proposal()
    page.keys(KEYS.BACKSPACE)
    assert page.proposal() == first
    page.keys(KEYS.ENTER)
    number = wait(lambda: list(page.objects), 'the object')[0]
    check_seed(stage, number)
    assert page.objects[number][0] == f'object {number}'


def test_a_frame_that_the_tracker_forgot_can_still_be_marked(stage, page):
    x, y, side = stop(page)
    begun = len(stage.camera.truth)
    wait(lambda: len(stage.camera.truth) > begun + 32, 'more frames than the tracker keeps')
    page.drag((x - 6, y - 6, x + side + 6, y + side + 6), SIZE)
    page.proposal()
    check_seed(stage, page.follow())


def test_names_that_are_programs_are_shown_as_text(stage, page):
    x, y, side = stop(page)
    page.drag((x - 6, y - 6, x + side + 6, y + side + 6), SIZE)
    page.proposal()
    number = page.follow(EVIL)
    wait(lambda: page.objects[number] == (EVIL, 'tracking'), 'the name as it is')
    called = page.row(number).find_element('class name', 'called')
    called.send_keys(KEYS.CONTROL + 'a')
    called.send_keys('mug', KEYS.ENTER)
    wait(
        lambda: [item.name for item in stage.client.messages['tracks'][-1].tracks] == ['mug'], 'it'
    )
    assert page.run('return document.title') == 'drift_ros'
    assert page.run("return document.querySelectorAll('img[src=x], main script').length") == 0


def test_correct_remove_reload_and_two_browsers(stage, page, tmp_path):
    x, y, side = stop(page)
    page.drag((x - 6, y - 6, x + side + 6, y + side + 6), SIZE)
    page.proposal()
    number = page.follow('cup')
    other = PageBrowser(tmp_path / 'other', (900, 700), dark=True)
    with contextlib.closing(other):
        other.open(stage.address)
        wait(lambda: other.objects.get(number) == ('cup', 'tracking'), 'it in the other browser')
        # the other one says that the green square is meant
        other.row(number).find_element('class name', 'correct').click()
        wait(lambda: other.stopped, 'its picture to stop')
        seeds = len(stage.client.messages['seeds'])
        other.drag((224, 154, 292, 222), SIZE)
        other.proposal()
        other.keys(KEYS.ENTER)
        mask, _ = stage.seed_of(number, seeds)
        assert overlap(mask, square_mask((230, 160, SIDE), size=SIZE) == 1) > 0.5
        wait(lambda: not other.stopped, 'the picture to go on')
        assert page.objects[number][0] == 'cup'
        page.open(stage.address)  # again
        wait(lambda: page.objects.get(number) == ('cup', 'tracking'), 'it after a reload')
        wait(
            lambda: page.row(number).find_element('tag name', 'img').is_displayed(), 'its picture'
        )
        other.row(number).find_element('class name', 'remove').click()
        wait(lambda: other.find('sure').is_displayed(), 'the question')
        other.find('sure-yes').click()
        wait(lambda: not page.objects and not other.objects, 'both lists to be empty')
        assert other.problems() == []


def test_everything_that_can_be_used_has_a_name(stage, page):
    stage.client.seed(square_mask((230, 160, SIDE), size=SIZE), names=['can'])
    number = wait(lambda: list(page.objects), 'the object')[0]
    page.run("document.getElementById('help').showModal()")
    assert page.find('help').accessible_name == 'How to mark'
    page.keys(KEYS.ESCAPE)
    stop(page)
    for item in page.driver.find_elements('css selector', 'button, input, #stage, summary'):
        if item.is_displayed():
            assert item.accessible_name.strip(), item.get_attribute('outerHTML')
    assert page.row(number).find_element('class name', 'remove').accessible_name == 'Remove can'
    assert page.find('stage').aria_role == 'application'


def test_the_keyboard_alone_does(stage, page):
    page.find('stage').send_keys(KEYS.ARROW_LEFT)
    wait(lambda: page.stopped, 'the picture to stop')
    # to the green square: its middle is at (258, 188), the cross begins at (160, 120)
    page.keys(*[KEYS.ARROW_RIGHT] * 20, *[KEYS.ARROW_DOWN] * 11)
    page.keys('b', *[KEYS.ARROW_RIGHT] * 22, *[KEYS.ARROW_DOWN] * 21, 'b')
    page.proposal()
    page.keys(KEYS.ENTER)
    number = wait(lambda: list(page.objects), 'the object')[0]
    mask, _ = stage.seed_of(number)
    assert overlap(mask, square_mask((230, 160, SIDE), size=SIZE) == 1) > 0.5


def test_a_finger_does(stage, page, tmp_path):
    phone = PageBrowser(tmp_path / 'phone', (390, 844), phone=True)
    with contextlib.closing(phone):
        phone.open(stage.address)
        assert phone.run('return document.documentElement.scrollWidth <= innerWidth')
        phone.tap(258, 188, SIZE)
        wait(lambda: phone.stopped, 'the picture to stop')
        phone.proposal()
        phone.tap(40, 200, SIZE, seconds=0.8)
        wait(
            lambda: phone.run(
                "return document.querySelector('#hint').textContent !== 'Looking …'"
            ),
            'it',
        )
        phone.proposal()
        number = phone.follow()
        mask, _ = stage.seed_of(number)
        assert overlap(mask, square_mask((230, 160, SIDE), size=SIZE) == 1) > 0.5
        assert phone.problems() == []


def test_refusals_are_shown_in_the_trackers_words(stage, page):
    stop(page)
    page.click(10, 10, SIZE, button=2)
    wait(lambda: 'neither a box nor a positive point' in page.text('refusal'), 'the refusal')
    assert page.stopped and not page.find('follow').is_enabled()
    page.keys(KEYS.ESCAPE)
    wait(lambda: not page.stopped and not page.find('refusal').is_displayed(), 'it to go')
    assert 'neither a box' in page.run("return document.getElementById('log').textContent")


@contextlib.contextmanager
def follower(stage, log, *transitions):
    """Run a follower of the tracker's poses; none is published here, so it stands."""
    arguments = ('--ros-args', '-r', 'pose:=/tracker/pose')
    node = NodeProcess('follower', DOMAIN, log, arguments)
    try:
        for transition in transitions:
            assert lifecycle.change_state(stage.client, '/follower', transition)
        yield node
    finally:
        node.close()
        assert 'Traceback' not in node.output, node.output


def offered(page, number):
    """Give the button of an object that lets the robot follow it; None while it is hidden."""
    button = page.row(number).find_element('class name', 'drive')
    return button if button.is_displayed() else None


def confirm(page):
    wait(lambda: page.find('sure').is_displayed(), 'the question')
    assert 'avoids no obstacles' in page.text('sure-text')
    page.find('sure-yes').click()


def test_a_robot_is_set_off_and_stopped(stage, page, tmp_path):
    squares = square_mask((20, 30, SIDE), (230, 160, SIDE), size=SIZE)
    stage.client.seed(squares, names=[EVIL, 'can'])
    evil, can = wait(lambda: len(page.objects) == 2 and sorted(page.objects), 'the objects')
    assert not page.find('robot').is_displayed() and not offered(page, can)
    before = page.run("return document.getElementById('stage').getBoundingClientRect().top")
    fx, middle = 300.0, (160.0, 120.0)
    calibration = CameraInfo(
        header=stage.client.header(),
        width=SIZE[1],
        height=SIZE[0],
        k=[fx, 0.0, middle[0], 0.0, fx, middle[1], 0.0, 0.0, 1.0],
        p=[fx, 0.0, middle[0], 0.0, 0.0, fx, middle[1], 0.0, 0.0, 0.0, 1.0, 0.0],
    )
    stage.client.send(calibration, '/camera_info')  # else the tracker has no target
    with follower(stage, tmp_path / 'log', 'configure'):  # configured: it refuses
        wait(lambda: page.find('robot').is_displayed(), 'the follower to be shown')
        header = "return document.querySelector('header').getBoundingClientRect().height"
        wide, size = page.run(header), page.driver.get_window_size()
        for width in (790, 1000, 1160):
            page.driver.set_window_size(width, size['height'])
            assert page.run(header) == wide, width  # one line
        page.driver.set_window_size(size['width'], size['height'])
        # nothing moves under the pointer of who marks
        top = page.run("return document.getElementById('stage').getBoundingClientRect().top")
        assert top == before
        button = wait(lambda: offered(page, can), 'the offer')
        assert button.accessible_name == 'Follow can with the robot'
        assert EVIL in offered(page, evil).accessible_name
        assert 'not active' in page.text('robot-text')
        button.click()
        confirm(page)
        wait(lambda: 'the node is not active' in page.text('toast'), 'the refusal')
        assert 'not active' in page.run("return document.getElementById('log').textContent")
        assert lifecycle.change_state(stage.client, '/follower', 'activate')
        button.click()
        wait(lambda: page.find('sure').is_displayed(), 'the question')
        page.keys(KEYS.ESCAPE)  # no
        assert stage.client.get('space.target') == str(can)  # of the first time
        offered(page, evil).click()
        confirm(page)
        wait(lambda: stage.client.get('space.target') == str(evil), 'the target')
        wait(lambda: 'waiting for the object' in page.text('robot-text'), 'it to be on')
        stop_robot(page, lambda: page.find('robot').find_element('class name', 'halt').click())
        # with a key, in a question as well, but not in a name
        set_off(page, can)
        page.row(can).find_element('class name', 'called').send_keys('s', KEYS.ESCAPE)
        time.sleep(0.5)
        assert 'waiting' in page.text('robot-text')
        page.row(can).find_element('class name', 'remove').click()
        wait(lambda: page.find('sure').is_displayed(), 'the question')
        stop_robot(page, lambda: page.keys('s'))
        page.keys(KEYS.ESCAPE)
        set_off(page, can)
        told = page.row(can).find_element('class name', 'driven')
        wait(told.is_displayed, 'the row to say it')
        assert not page.row(evil).find_element('class name', 'driven').is_displayed()
        assert button.accessible_name == 'Stop the robot, which follows can'
        stop_robot(page, button.click)
        wait(lambda: not told.is_displayed(), 'the row to say no more')
        set_off(page, can)
        page.run("document.getElementById('help').showModal()")
        stop_robot(page, lambda: page.find('help').find_element('class name', 'halt').click())
        page.keys(KEYS.ESCAPE)
        set_off(page, can)
        phone = PageBrowser(tmp_path / 'phone', (390, 844), phone=True)
        with contextlib.closing(phone):
            phone.open(stage.address)
            wait(lambda: 'waiting' in phone.text('robot-text'), 'it on the phone')
            phone.run('window.scrollTo(0, document.body.scrollHeight)')
            assert phone.run('return document.documentElement.scrollWidth <= innerWidth')
            where = phone.run(
                "const r = document.querySelector('#robot .halt').getBoundingClientRect();"
                ' return [r.left + r.width / 2, r.top + r.height / 2, r.height]'
            )
            assert where[2] >= 44  # for a thumb
            stop_robot(phone, lambda: phone.touch(*where[:2]))
            assert phone.problems() == []
        wait(lambda: ': off' in page.text('robot-text'), 'it to be off here, too')
    wait(lambda: not page.find('robot').is_displayed() and not offered(page, can), 'it to go')
    assert page.run('return document.title') == 'drift_ros'


def test_a_stop_without_a_connection_is_made_up_for(stage, page, tmp_path):
    """The page's node dies while the robot follows; its successor knows of no robot at first."""
    stage.client.seed(square_mask((230, 160, SIDE), size=SIZE), names=['can'])
    (can,) = wait(lambda: len(page.objects) == 1 and sorted(page.objects), 'the object')
    with follower(stage, tmp_path / 'log', 'configure', 'activate') as node:
        wait(lambda: page.find('robot').is_displayed() and offered(page, can), 'the offer')
        set_off(page, can)
        node.process.send_signal(signal.SIGSTOP)  # it is heard late
        stage.web.process.kill()
        stage.web.process.wait()
        wait(lambda: 'connection' in page.text('status-text'), 'the page to notice')
        page.find('robot').find_element('class name', 'halt').click()
        wait(lambda: 'may still drive' in page.text('toast'), 'the page to say so')
        page.run("document.getElementById('toast').textContent = ''")
        stage.start_web(int(stage.address.rpartition(':')[2].strip('/')))
        wait(lambda: 'no follower takes its pose' in page.text('toast'), 'the stop to be refused')
        node.process.send_signal(signal.SIGCONT)
        # well before the follower gives up by itself
        wait(lambda: ': off' in page.text('robot-text'), 'the robot to stop', 30.0)
        wait(lambda: can in page.objects, 'the list')
        set_off(page, can)  # what was to stop is not to stop for ever
        time.sleep(1.0)
        assert 'waiting' in page.text('robot-text')
        stop_robot(page, lambda: page.keys('s'))
    page.problems()  # refused connections, as long as there was nothing to connect to


def set_off(page, number):
    wait(lambda: ': off' in page.text('robot-text'), 'the robot to be off')
    offered(page, number).click()
    confirm(page)
    wait(lambda: 'waiting' in page.text('robot-text'), 'it to be on')


def stop_robot(page, way):
    """Stop the robot in some way; the page has to say so soon."""
    page.run("document.getElementById('toast').textContent = ''")
    begun = time.monotonic()
    way()
    said = "return document.getElementById('toast').textContent"
    wait(lambda: page.run(said) == 'The robot is stopped.', 'the robot to stop')
    assert time.monotonic() - begun < 3.0


def test_the_tracker_starts_anew(stage, page):
    x, y, side = stop(page)
    page.drag((x - 6, y - 6, x + side + 6, y + side + 6), SIZE)
    page.proposal()
    page.follow('cup')
    stage.stop_tracker()
    wait(lambda: 'is not running' in page.text('status-text'), 'the page to say so')
    wait(lambda: not page.objects, 'the list to be empty')
    stage.start_tracker()
    stage.client.start()
    wait(lambda: 'following 0 objects' in page.text('status-text'), 'the page to say so')
    x, y, side = stop(page)
    page.drag((x - 6, y - 6, x + side + 6, y + side + 6), SIZE)
    page.proposal()
    number = page.follow('again')
    assert number == 1
    wait(lambda: page.objects[1] == ('again', 'tracking'), 'the object to be tracked')


def test_the_command_serves_a_page_until_it_is_interrupted(stage, tmp_path):
    log = tmp_path / 'log'
    with open(log, 'w') as file:
        process = subprocess.Popen(
            [sys.executable, '-m', 'drift_ros.commands.main', 'ui', '--node', '/tracker']
            + ['--port', '0', '--host', '0.0.0.0', '--token', '12345678'],
            env=environment(DOMAIN),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        said = wait_for(
            lambda: re.search(r'open http://[^:]+:(\d+)/\?token=12345678\n', log.read_text()),
            'the address',
        )
        assert get(f'http://127.0.0.1:{said[1]}', '/')[0] == 403
        assert get(f'http://127.0.0.1:{said[1]}', '/?token=12345678')[0] == 303
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
    assert 'not encrypted' in log.read_text()
