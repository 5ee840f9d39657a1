# SPDX-License-Identifier: Apache-2.0
"""The page's server without ROS and without a browser: who gets what, and what may be asked."""

from concurrent.futures import ThreadPoolExecutor
import contextlib
import json
from pathlib import Path
import re
import threading
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from web_client import get, Page
from websockets.exceptions import ConnectionClosed, InvalidStatus

pytest.importorskip('sensor_msgs', reason='ROS 2 is not installed')

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue  # noqa: E402
from sensor_msgs.msg import CompressedImage  # noqa: E402
from std_msgs.msg import Header  # noqa: E402
from std_srvs.srv import SetBool  # noqa: E402

from drift_ros.nodes.tracker.frames import ReceivedImage  # noqa: E402
from drift_ros.nodes.web import pictures  # noqa: E402
from drift_ros.nodes.web.followers import Followers  # noqa: E402
from drift_ros.nodes.web.pace import Pace  # noqa: E402
from drift_ros.nodes.web.scene import Condition, Robot, Scene, Shown  # noqa: E402
from drift_ros.nodes.web.server import FILES, Server  # noqa: E402
from drift_ros.nodes.web.session import AskerError  # noqa: E402
from drift_ros.nodes.web.wishes import LARGEST, read_wish, WishError  # noqa: E402
from drift_ros.ros import conversions, stamp  # noqa: E402
from drift_ros.ros.client_errors import ClientError, NoAnswerError, RefusedError  # noqa: E402

PAGE = Path(pictures.__file__).parent / 'page'
EVIL = '<script>alert(1)</script><img src=x onerror=alert(2)>"\'`${1}'


def frame(number, size=(48, 64), shade=None):
    """Give a received frame of stamp ``number`` seconds."""
    picture = np.full((*size, 3), 40 + number % 200 if shade is None else shade, np.uint8)
    header = Header(stamp=stamp.message(number * 10**9), frame_id='camera')
    message = conversions.rgb_to_image(picture, header)
    return ReceivedImage(number, number * 10**9, message, picture.nbytes, 0.0)


def result(number, labels, **names):
    """Give what a tracker says of the frame of that stamp; ids follow the order of the names."""
    box = SimpleNamespace(x_offset=1, y_offset=2, width=3, height=4)
    tracks = [
        SimpleNamespace(
            id=i, name=name, state=1, confidence=0.9, existence=0.8, area=5, age=1, box=box
        )
        for i, name in enumerate(names.values(), start=1)
    ]
    latency = SimpleNamespace(sec=0, nanosec=5 * 10**7)
    return SimpleNamespace(
        stamp=number * 10**9,
        labels=labels,
        tracks=SimpleNamespace(tracks=tracks, latency=latency),
    )


class Asker:
    """Stands in for the tracker: notes what it is asked."""

    def __init__(self):
        self.asked = []
        self.wait = threading.Event()
        self.wait.set()
        self.refusal = None

    def _say(self, *what):
        self.asked.append(what)
        self.wait.wait(10)
        if self.refusal:
            raise self.refusal

    def segment(self, frame, wish):
        self._say('segment', frame.stamp, wish.box, wish.points)
        mask = np.zeros((48, 64), bool)
        mask[10:20, 10:30] = True
        return SimpleNamespace(mask=mask, score=0.5)

    def follow(self, frame, mask, name, object_id):
        self._say('follow', frame.stamp, int(mask.sum()), name, object_id)
        return SimpleNamespace(id=object_id or 7, note='covers nothing')

    def rename(self, object_id, name):
        self._say('rename', object_id, name)

    def remove(self, object_id):
        self._say('remove', object_id)

    def reset(self):
        self._say('reset')

    def drive(self, object_id):
        self._say('drive', object_id)

    def halt(self):
        self.asked.append(('halt',))  # waits for nothing


class Site:
    def __init__(self, **options):
        self.scene, self.asker = Scene(frames=3), Asker()
        self.server = Server(self.scene, self.asker, **options)
        self.address = self.server.start()
        self.url, _, _ = self.address.partition('?')

    def page(self, **options):
        return Page(self.url, **options)


@pytest.fixture
def site():
    site = Site()
    yield site
    site.server.stop()
    site.asker.wait.set()
    assert site.server.join(5)


@pytest.fixture(scope='module')
def doors():
    """Serve one that is only knocked at."""
    site = Site()
    yield site
    site.server.stop()


@pytest.fixture(scope='module')
def guarded():
    site = Site(token='open-sesame')
    yield site
    site.server.stop()
    assert site.server.join(5)


# -- what is served


def test_the_pages_own_files_and_nothing_else(doors):
    for path, (name, kind) in FILES.items():
        status, headers, body = get(doors.url, path)
        assert status == 200 and body == (PAGE / name).read_bytes()
        assert headers['content-type'] == kind
        assert headers['x-content-type-options'] == 'nosniff'
        policy = headers['content-security-policy']
        assert "default-src 'none'" in policy and "script-src 'self';" in policy
        assert 'unsafe' not in policy and "frame-ancestors 'none'" in policy
    assert {name for name, _ in FILES.values()} == {path.name for path in PAGE.iterdir()}


@pytest.mark.parametrize(
    'path',
    [
        '/../node.py',
        '/page/../../node.py',
        '/%2e%2e/node.py',
        '/..%2fnode.py',
        '/..%5cnode.py',
        '/page.js/../../node.py',
        '/page.js%00.css',
        '//etc/passwd',
        '/etc/passwd',
        '/index.html',
        '/page/index.html',
        '/.git/config',
        '/socket',
        '/docs',
        '/page.js/',
    ],
)
def test_no_path_leads_anywhere_else(doors, path):
    status, _, body = get(doors.url, path)
    assert status in (400, 404, 405, 307), path
    assert b'root:' not in body and b'import' not in body and b'drift_ros' not in body


def test_only_reading(doors):
    for method in ('POST', 'PUT', 'DELETE', 'OPTIONS', 'PATCH'):
        assert get(doors.url, '/', method)[0] == 405


def test_the_page_loads_nothing_from_elsewhere_and_runs_no_text():
    for path in PAGE.iterdir():
        text = path.read_text()
        foreign = re.findall(r'(?:https?:)?//(?!www\.w3\.org/2000/svg)[\w.-]+\.\w+', text)
        assert not foreign, f'{path.name} names {foreign}'
        for way in ('innerHTML', 'outerHTML', 'insertAdjacent', 'document.write', 'eval('):
            assert way not in text, f'{path.name} has {way}'
    assert not re.search(
        r'<script(?![^>]*src=)|\son\w+=|style=', (PAGE / 'index.html').read_text()
    )


def contrast(one, other):
    """Give the contrast of two colours #rgb or #rrggbb, as WCAG defines it."""

    def light(colour):
        text = colour.lstrip('#')
        text = ''.join(2 * c for c in text) if len(text) == 3 else text
        levels = np.array([int(text[i : i + 2], 16) / 255 for i in (0, 2, 4)])
        linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)
        return linear @ (0.2126, 0.7152, 0.0722)

    low, high = sorted((light(one), light(other)))
    return (high + 0.05) / (low + 0.05)


def test_texts_are_readable_by_day_and_by_night():
    text = (PAGE / 'page.css').read_text()
    themes = re.findall(r':root \{(.*?)\}', text, re.S)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r'--([\w-]+): (#\w+)', theme))
        for ink in ('ink', 'soft', 'danger', 'good', 'warn'):
            for ground in ('card', 'back'):
                assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        assert contrast(colours['on-strong'], colours['strong']) >= 4.5
        assert contrast(colours['card'], colours['danger']) >= 4.5
        assert contrast(colours['ink'], colours['bad-back']) >= 4.5
        assert contrast(colours['ink'], colours['track']) >= 4.5


# -- who


@pytest.mark.parametrize(
    'origin',
    [
        'http://example.org',
        'null',
        'http://127.0.0.1',
        'http://127.0.0.1:1',
        'https://127.0.0.1.example.org',
        'file://',
        'http://[',
        '',
    ],
)
def test_a_page_of_another_origin_gets_no_socket(doors, origin):
    with pytest.raises(InvalidStatus) as caught:
        doors.page(headers={'Origin': origin})
    assert caught.value.response.status_code == 403


def test_our_own_page_gets_one(doors):
    with doors.page(headers={'Origin': doors.url.rstrip('/')}) as page:
        assert page.next('status')['viewers'] == 1


@pytest.mark.parametrize('host', ['evil.example', 'evil.example:8686', '192.168.0.7', '', '['])
def test_a_foreign_name_that_leads_here_gets_nothing(doors, host):
    assert get(doors.url, '/', Host=host)[0] in (400, 421)


def test_names_of_this_machine_are_known(doors):
    for host in ('localhost:9000', '127.0.0.1', '[::1]:80'):
        assert get(doors.url, '/', Host=host)[0] == 200


def test_without_the_token_nothing_is_given(guarded):
    for path in FILES:
        status, _, body = get(guarded.url, path)
        assert status == 403 and b'open the whole address' in body and b'sesame' not in body
    assert get(guarded.url, '/?token=open-sesam')[0] == 403
    assert get(guarded.url, '/page.js?token=open-sesame')[0] == 403
    for cookie in ('', 'drift_ros_token=open-sesame', 'drift_ros_token_1=open-sesame'):
        with pytest.raises(InvalidStatus) as caught:
            guarded.page(headers={'Cookie': cookie})
        assert caught.value.response.status_code == 403


def test_the_printed_address_opens_the_page(guarded):
    assert guarded.address.endswith('/?token=open-sesame')
    status, headers, _ = get(guarded.url, '/?token=open-sesame')
    assert status == 303 and headers['location'] == '/'
    cookie = headers['set-cookie']
    assert 'HttpOnly' in cookie and 'samesite=lax' in cookie.lower()
    own = cookie.partition(';')[0]
    assert get(guarded.url, '/', Cookie=own)[0] == 200
    with guarded.page(headers={'Cookie': own}) as page:
        assert page.next('status')
    with pytest.raises(InvalidStatus):
        guarded.page(headers={'Cookie': own, 'Origin': 'http://example.org'})


def test_the_network_needs_a_token_and_this_machine_none():
    one, two = (Server(Scene(), Asker(), host='0.0.0.0') for _ in range(2))
    assert len(one.token) > 20 and one.token != two.token
    assert Server(Scene(), Asker()).token == ''
    for bad in ('short', 'eight chars', 'a' * 20 + ';', 'a' * 20 + '\n'):
        with pytest.raises(ValueError, match='at least 8 letters'):
            Server(Scene(), Asker(), token=bad)


def test_a_port_that_is_taken_is_named(doors):
    port = int(doors.url.rstrip('/').rpartition(':')[2])
    with pytest.raises(ValueError, match=f'127.0.0.1:{port}.*port:=0'):
        Server(Scene(), Asker(), port=port).start()
    with pytest.raises(ValueError, match='address of this machine'):
        Server(Scene(), Asker(), host='203.0.113.9').start()


def test_so_many_pages_and_no_more():
    site = Site(clients=2)
    try:
        with site.page() as one, site.page() as two:
            one.next('status')
            two.next('status')
            assert site.scene.viewers == 2
            with site.page() as three, pytest.raises(ConnectionClosed) as caught:
                three.next('status')
            assert (
                caught.value.rcvd.code == 1013 and '2 pages are open' in caught.value.rcvd.reason
            )
        with site.page() as four:  # a place is free again
            assert four.next('status')
    finally:
        site.server.stop()


# -- what is asked


MALFORMED = [
    '',
    'x',
    '[]',
    '"reset"',
    'null',
    '{}',
    '{"do": "reset"}',
    '{"do": "open", "id": 1}',
    '{"do": ["reset"], "id": 1}',
    '{"do": "reset", "id": -1}',
    '{"do": "reset", "id": true}',
    '{"do": "reset", "id": 1.5}',
    '{"do": "reset", "id": 1, "more": 1}',
    '{"do": "drive", "id": 1}',
    '{"do": "drive", "id": 1, "object": null}',
    '{"do": "drive", "id": 1, "object": "1"}',
    '{"do": "drive", "id": 1, "object": -1}',
    '{"do": "drive", "id": 1, "object": 1, "follower": "/other"}',
    '{"do": "halt"}',
    '{"do": "halt", "id": 1, "object": 1}',
    '{"do": "remove", "id": 1, "object": "1"}',
    '{"do": "remove", "id": 1, "object": 4294967296}',
    '{"do": "rename", "id": 1, "object": 1, "name": 5}',
    '{"do": "rename", "id": 1, "object": 1, "name": "a\\u0000b"}',
    '{"do": "rename", "id": 1, "object": 1, "name": "a\\ud800"}',
    '{"do": "rename", "id": 1, "object": 1, "name": "' + 'n' * 121 + '"}',
    '{"do": "hold", "stamp": 5}',
    '{"do": "hold", "stamp": "-5"}',
    '{"do": "hold", "stamp": "٣"}',
    '{"do": "hold", "stamp": "' + '9' * 20 + '"}',
    '{"do": "segment", "id": 1, "stamp": "1", "box": [1, 2, 3], "points": []}',
    '{"do": "segment", "id": 1, "stamp": "1", "box": [1, 2, 3, NaN], "points": []}',
    '{"do": "segment", "id": 1, "stamp": "1", "box": [1, 2, 3, 1e999], "points": []}',
    '{"do": "segment", "id": 1, "stamp": "1", "box": [1, 2, 3, "4"], "points": []}',
    '{"do": "segment", "id": 1, "stamp": "1", "box": [1, 2, 3, 1' + '0' * 400 + '], "points": []}',
    '{"do": "segment", "id": 1, "stamp": "1", "box": null, "points": [[1, 2]]}',
    '{"do": "segment", "id": 1, "stamp": "1", "box": null, "points": [[1, 2, 1]]}',
    '{"do": "segment", "id": 1, "stamp": "1", "box": null, "points": {"0": 1}}',
    '{"do": "segment", "id": 1, "stamp": "1", "box": null, "points": '
    + json.dumps([[1, 1, True]] * 65)
    + '}',
    '[' * 60_000,
    '{"do": "reset", "id": ' + '1' * 5000 + '}',
]


@pytest.mark.parametrize('text', MALFORMED, ids=lambda text: text[:60])
def test_what_asks_for_nothing_is_no_wish(text):
    with pytest.raises(WishError):
        read_wish(text)


def test_wishes_are_read():
    wish = read_wish(
        '{"do": "segment", "id": 3, "stamp": "1700000000123456789", "box": [1, 2.5, 3, 4],'
        ' "points": [[5, 6, true]]}'
    )
    assert wish.stamp == 1700000000123456789 and wish.box == (1.0, 2.5, 3.0, 4.0)
    assert wish.points == ((5.0, 6.0, True),) and wish.id == 3
    assert read_wish('{"do":"rename","id":1,"object":2,"name":" Tasse ☕ "}').name == 'Tasse ☕'


def test_pages_that_leave_at_any_moment_leave_no_trace(site, caplog):
    site.asker.wait.clear()
    for number in range(1, 12):
        page = site.page()
        page.send(do='reset', id=1)
        site.scene.frame(frame(number))
        if number % 3:
            page.close()
        else:
            page.socket.socket.close()  # as a cable that is pulled
    site.asker.wait.set()
    with site.page() as page:
        assert 'error' not in page.ask(do='reset', id=1)
    site.server.stop()
    assert site.server.join(5)
    assert not caplog.records, caplog.text


def test_malformed_messages_are_told_and_survived(site):
    with site.page() as page:
        for text in MALFORMED[:10]:
            page.socket.send(text)
            assert page.next('refusal')['text']
        page.socket.send(b'\x00\x01')
        assert 'JSON texts' in page.next('refusal')['text']
        assert 'error' not in page.ask(do='reset', id=1)
        with pytest.raises(ConnectionClosed) as caught:
            for _ in range(30):
                page.socket.send('{')
                page.next('refusal')
        assert caught.value.rcvd.code == 1008
    assert site.asker.asked == [('reset',)]


def test_messages_have_a_size(site):
    for data in ('"' + 'x' * LARGEST + '"', b'x' * (LARGEST + 1), '"' + 'é' * LARGEST + '"'):
        with site.page() as page, pytest.raises(ConnectionClosed) as caught:
            page.socket.send(data)
            page.next('answer')
        assert caught.value.rcvd.code == 1009
    assert not site.asker.asked


def test_so_much_at_once_and_no_more(site):
    site.asker.wait.clear()
    with site.page() as page:
        for number in range(1, 5):
            page.send(do='reset', id=number)
        answer = page.next('answer')
        assert answer['id'] == 4 and 'are being worked on' in answer['error']
        site.asker.wait.set()
        assert sorted(page.next('answer')['id'] for _ in range(3)) == [1, 2, 3]


def test_refusals_come_in_the_trackers_words_and_faults_do_not_end_the_page(site):
    with site.page() as page:
        site.asker.refusal = AskerError(EVIL)
        assert page.ask(do='remove', id=1, object=9)['error'] == EVIL
        site.asker.refusal = RuntimeError('broken')
        assert page.ask(do='remove', id=2, object=9)['error'] == 'RuntimeError: broken'
        site.asker.refusal = None
        assert 'error' not in page.ask(do='rename', id=3, object=9, name=EVIL)
    assert site.asker.asked[-1] == ('rename', 9, EVIL)


# -- the robot


def test_a_page_is_told_how_the_robot_is_at_once(site):
    with site.page() as page:
        assert page.next('robot')['follower'] == ''
        page.next('status')
        begun = time.monotonic()
        site.scene.drive(Robot('/follower', True, 1, EVIL, 4))
        told = page.next('robot')
        assert time.monotonic() - begun < 0.5  # it does not wait for the next status
        assert told == {
            'type': 'robot',
            'follower': '/follower',
            'on': True,
            'level': 1,
            'text': EVIL,
            'target': 4,
        }
        site.scene.drive(Robot('/follower', True, 1, EVIL, 4))  # as it was: told once
        site.scene.drive(Robot())
        assert page.next('robot')['follower'] == ''
    with site.page() as page:  # who comes later is told, too
        assert page.next('robot')['on'] is False


def test_stopping_waits_for_nothing_that_is_asked(site):
    site.asker.wait.clear()  # as when the tracker does not answer
    with contextlib.ExitStack() as stack:
        pages = [stack.enter_context(site.page()) for _ in range(8)]
        for page in pages:
            for number in range(1, 4):
                page.send(do='drive', id=number, object=1)
        for page in pages:
            begun = time.monotonic()
            assert 'error' not in page.ask(do='halt', id=9)
            assert time.monotonic() - begun < 1.0
        site.asker.wait.set()
        assert pages[0].next('answer')['do'] == 'drive'
    assert site.asker.asked.count(('halt',)) == 8


class Nodes:
    """Stands in for a client of a tracker and of followers: notes what they are asked."""

    def __init__(self):
        self.tracker, self.present = '/tracker', True
        self.services = {'/follower/enable'}
        self.asked = []
        self.refusal = ''
        self.silent = False
        self.meanwhile = lambda request: None

    def prepare(self, kind, service):
        return SimpleNamespace(service_is_ready=lambda: service in self.services)

    def set_target(self, number):
        self.asked.append(('target', number))
        if self.refusal:
            raise RefusedError(self.refusal)

    def call(self, kind, service, request, **options):
        self.asked.append((service, request.data))
        self.meanwhile(request)
        if self.silent:
            raise NoAnswerError(f'{service} did not answer.')
        return SetBool.Response(success=not self.refusal, message=self.refusal)


def says(name='follower', pose='/tracker/pose', mode='off', text='off', level=0):
    """Give what a follower says of itself."""
    status = DiagnosticStatus(
        name=f'{name}: following', hardware_id=pose, message=text, level=bytes([level])
    )
    status.values = [KeyValue(key='mode', value=mode)]
    return DiagnosticArray(status=[status])


def aims(target, tracker='tracker'):
    """Give what a tracker says of its target."""
    values = [KeyValue(key='target', value=target)]
    return DiagnosticArray(status=[DiagnosticStatus(name=f'{tracker}: space', values=values)])


@pytest.fixture
def crew():
    """Give nodes with a follower, who drives them, and what there is to see."""
    nodes, scene = Nodes(), Scene()
    scene.name({1: 'cup', 2: EVIL})
    followers = Followers(nodes, scene)
    followers.hear(says())
    return nodes, followers, scene


def test_only_followers_of_this_tracker_are_found(crew):
    nodes, followers, scene = crew
    assert scene.robot == Robot('/follower', text='off')
    nodes.services |= {'/other/enable', '/arm/enable'}
    followers.hear(says('other', '/other_tracker/pose', 'following'))
    followers.hear(says('arm', '/tracker/pose2', 'following'))
    followers.hear(aims('2', 'other_tracker'))
    assert scene.robot == Robot('/follower', text='off')
    followers.hear(says(mode='following', text='following: ' + EVIL, level=1))
    followers.hear(aims('2'))
    assert scene.robot == Robot('/follower', True, 1, 'following: ' + EVIL, 2)
    followers.hear(aims('none'))
    assert scene.robot.target == 0
    nodes.services.clear()
    followers.look()
    assert scene.robot == Robot()
    assert 'is gone while the robot was following' in scene.notices()[-1][1]
    with pytest.raises(ClientError, match='no follower takes its pose from /tracker/pose'):
        followers.drive(1)
    nodes.services.add('/follower/enable')
    followers.look()
    assert scene.robot == Robot()  # what the one before said last is not said of this one
    followers.hear(says(text='not active'))
    assert scene.robot == Robot('/follower', text='not active')


def test_an_object_is_chosen_before_the_robot_is_set_off(crew):
    nodes, followers, scene = crew
    followers.drive(2)
    assert nodes.asked == [('target', 2), ('/follower/enable', True)]
    assert scene.robot.target == 2
    followers.halt()
    assert nodes.asked[-1] == ('/follower/enable', False)


def test_robots_are_not_set_off_after_what_was_not_meant(crew):
    nodes, followers, scene = crew
    with pytest.raises(ClientError, match='there is no object 3'):
        followers.drive(3)
    scene.name({1: 'cup', 2: '1'})
    with pytest.raises(ClientError, match='another object is called 1'):
        followers.drive(1)
    nodes.services.add('/second/enable')
    followers.hear(says('second'))
    assert scene.robot.follower == '/follower, /second'
    with pytest.raises(ClientError, match='/follower, /second would all be set off'):
        followers.drive(2)
    assert nodes.asked == []
    followers.halt()  # all of them
    assert sorted(nodes.asked) == [('/follower/enable', False), ('/second/enable', False)]


def test_refusals_of_a_follower_are_in_its_words(crew):
    nodes, followers, _ = crew
    nodes.refusal = EVIL
    for ask in (lambda: followers.drive(1), followers.halt):
        with pytest.raises(ClientError) as caught:
            ask()
        assert str(caught.value) == EVIL
    assert ('/follower/enable', True) not in nodes.asked  # the target was refused


def test_who_stops_has_the_last_word(crew):
    nodes, followers, _ = crew
    # while the target is chosen
    choose, nodes.set_target = nodes.set_target, lambda number: followers.halt()
    with pytest.raises(ClientError, match='stopped meanwhile'):
        followers.drive(1)
    assert ('/follower/enable', True) not in nodes.asked
    nodes.set_target = choose
    # while the follower is set off

    def stop(request):
        if request.data:
            followers.halt()

    nodes.meanwhile = stop
    with pytest.raises(ClientError, match='stopped meanwhile'):
        followers.drive(1)
    assert nodes.asked[-1] == ('/follower/enable', False)


def test_a_follower_that_does_not_answer_is_told_to_stop(crew):
    nodes, followers, _ = crew
    nodes.silent = True
    with pytest.raises(ClientError, match='Stop the robot with its switch'):
        followers.drive(1)
    assert nodes.asked[-1] == ('/follower/enable', False)


def test_a_follower_that_says_nothing_is_no_good_news(crew, monkeypatch):
    _, followers, scene = crew
    followers.hear(says(mode='following', text='following'))
    late = time.monotonic() + 5
    monkeypatch.setattr(time, 'monotonic', lambda: late)
    followers.look()
    assert scene.robot.on and scene.robot.level == 2
    assert scene.robot.text == 'following; it has said nothing for more than 2 s'


def test_without_its_tracker_the_robot_does_not_wait_for_the_next_first_object(crew):
    nodes, followers, scene = crew
    followers.drive(1)
    followers.hear(says(mode='following', text='following'))
    nodes.present = False
    followers.look()
    end = time.monotonic() + 5
    while nodes.asked[-1] != ('/follower/enable', False) and time.monotonic() < end:
        time.sleep(0.01)
    assert nodes.asked[-1] == ('/follower/enable', False)
    assert 'told to stop' in scene.notices()[-1][1]
    count = len(nodes.asked)
    followers.look()  # once
    assert len(nodes.asked) == count


# -- pictures


def test_one_picture_is_on_its_way_and_the_newest_comes_next(site):
    with site.page() as page:
        site.scene.frame(frame(1))
        head, data = page.next('picture')
        assert head['stamp'] == str(10**9) and (head['width'], head['height']) == (64, 48)
        assert cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape == (48, 64, 3)
        for number in range(2, 9):
            site.scene.frame(frame(number))
        assert page.pictures(0.4) == []
        page.send(do='shown', stamp='5')  # not what is on its way
        assert page.pictures(0.3) == []
        page.send(do='shown', stamp=head['stamp'])
        assert page.next('picture')[0]['stamp'] == str(8 * 10**9)


def test_a_held_picture_stays_and_can_be_marked_when_all_have_forgotten_it(site):
    with site.page() as page:
        site.scene.frame(frame(1))
        when = page.next('picture')[0]['stamp']
        page.send(do='hold', stamp=when)
        page.send(do='shown', stamp=when)
        for number in range(2, 12):
            site.scene.frame(frame(number))
        assert page.pictures(0.3) == []
        with pytest.raises(LookupError):
            site.scene.find(int(when))
        marks = {'box': [1, 2, 30, 40], 'points': [[5, 6, True]]}
        got = page.ask(do='segment', id=1, stamp=when, **marks)
        assert got['area'] == 200 and got['score'] == 0.5
        assert got['outlines'] == [[10, 10, 10, 20, 30, 20, 30, 10]]
        made = page.ask(do='follow', id=2, proposal=got['proposal'], name=EVIL, object=0)
        assert made['object'] == 7 and made['note'] == 'covers nothing'
        again = page.ask(do='follow', id=3, proposal=got['proposal'], name='', object=0)
        assert 'mark the object again' in again['error']
        page.send(do='go')
        assert page.next('picture')[0]['stamp'] == str(11 * 10**9)
        lost = page.ask(do='segment', id=4, stamp=str(2 * 10**9), **marks)
        assert 'no longer known' in lost['error']
    assert site.asker.asked == [
        ('segment', 10**9, (1.0, 2.0, 30.0, 40.0), ((5.0, 6.0, True),)),
        ('follow', 10**9, 200, EVIL, 0),
    ]


def test_pictures_carry_the_masks_of_their_own_stamp(site):
    labels = np.zeros((48, 64), np.uint8)
    labels[5:15, 5:25] = 1
    with site.page() as page:
        for number in (1, 2, 3):
            site.scene.frame(frame(number))
            site.scene.result(result(number, labels, a='cup', b=EVIL))
        page.next('picture')
        page.send(do='shown', stamp=str(10**9))
        page.pictures(0.1)
        page.send(do='shown', stamp=str(3 * 10**9))
        site.scene.frame(frame(4))  # a frame that the tracker says nothing of yet
        site.scene.result(result(4, labels, a='cup', b=EVIL))
        head = page.next('picture')[0]
        assert head['tracked'] and head['latency'] == 0.05
        assert [item['name'] for item in head['objects']] == ['cup', EVIL]
        assert head['objects'][0]['color'] == '#800000' and head['objects'][0]['box'] == [
            1,
            2,
            4,
            6,
        ]
        assert head['masks'] == {'1': [[5, 5, 5, 15, 25, 15, 25, 5]]}


def test_frames_go_on_without_a_tracker_and_objects_go_with_it():
    now = [0.0]
    scene = Scene(clock=lambda: now[0])
    scene.assess(Condition('/tracker', True))
    scene.frame(frame(1))
    scene.result(result(1, np.ones((48, 64), np.uint8), a='cup'))
    scene.name({1: 'mug', 2: 'new'})
    scene.thumbnail(1, b'x')
    listed = pictures.objects(scene.shown)
    assert [(item['name'], item['state']) for item in listed] == [
        ('mug', 'tracking'),
        ('new', 'waiting'),
    ]
    scene.frame(frame(2))
    assert scene.shown.result is not None  # the result of this one may be on its way
    scene.assess(Condition('/tracker', False))
    assert pictures.objects(scene.shown) == [] and scene.thumbnails == {}
    scene.frame(frame(3))
    assert scene.shown.frame.stamp == 3 * 10**9 and scene.shown.result is None
    scene.result(result(3, np.ones((48, 64), np.uint8), a='cup'))
    scene.name({2: 'new'})  # removed, though the last tracks still have it
    assert [item['id'] for item in pictures.objects(scene.shown)] == [2]
    now[0] = 30.0
    scene.frame(frame(4))
    assert scene.shown.frame.stamp == 4 * 10**9


def test_errors_of_the_tracker_are_told_once(site):
    with site.page() as page:
        for _ in range(2):
            site.scene.assess(Condition('/tracker', True, values={'last error': EVIL}))
        assert page.next('notice')['text'] == EVIL
        site.scene.say('later')
        assert page.next('notice')['text'] == 'later'
    with site.page() as page:  # who comes later is told, too
        assert page.next('notice')['text'] == EVIL


def test_a_damaged_picture_is_told_and_the_next_one_shown(site):
    broken = CompressedImage(format='jpeg', data=b'\xff\xd8 nothing')
    with site.page() as page:
        site.scene.frame(ReceivedImage(0, 10**9, broken, 10, 0.0))
        assert 'truncated' in page.next('notice')['text']
        site.scene.frame(frame(2))
        assert page.next('picture')[0]['stamp'] == str(2 * 10**9)


@pytest.mark.parametrize('seed', range(6))
def test_outlines_show_the_mask(seed):
    random = np.random.default_rng(seed)
    noise = cv2.GaussianBlur(random.random((120, 160)).astype(np.float32), (0, 0), 2 + 3 * seed)
    mask = noise > np.median(noise)
    drawn = np.zeros((480, 640), np.uint8)
    polygons = [4 * np.array(item).reshape(-1, 2) for item in pictures.outlines(mask)]
    cv2.fillPoly(drawn, polygons, 1)  # by even and odd, as the page does
    shown = drawn[2::4, 2::4] > 0
    assert (shown & mask).sum() / (shown | mask).sum() > 0.9
    assert max(len(item) for item in polygons) < 2000


def test_holes_are_holes():
    mask = np.zeros((60, 60), bool)
    mask[10:50, 10:50] = True
    mask[20:40, 20:40] = False
    outlines = sorted(pictures.outlines(mask), key=lambda item: item[0])
    assert len(outlines) == 2
    assert sorted(set(outlines[0])) == [10, 50] and sorted(set(outlines[1])) == [20, 40]
    assert pictures.outlines(np.zeros((5, 5), bool)) == []


def compressed(frame, quality=90, exif=False):
    _, data = cv2.imencode('.jpg', frame, [cv2.IMWRITE_JPEG_QUALITY, quality])
    data = data.tobytes()
    if exif:
        data = data[:2] + b'\xff\xe1\x00\x08Exif\x00\x00' + data[2:]
    return CompressedImage(format='jpeg', data=data)


def test_compressed_pictures_go_on_as_they_are_where_they_may():
    small = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    message = compressed(small)
    data, size = pictures.jpeg(message, pictures.LEVELS[0])
    assert data == bytes(message.data) and size == (64, 48)
    coarse, size = pictures.jpeg(message, pictures.LEVELS[-1])
    assert len(coarse) < len(data) and size == (64, 48)
    turned = compressed(small, exif=True)
    assert pictures.jpeg(turned, pictures.LEVELS[0])[0] != bytes(turned.data)
    for form in ('bayer_rggb8; jpeg compressed ', 'rgb8; jpeg compressed rgb8'):
        strange = compressed(small[..., 0] if 'bayer' in form else small)
        strange.format = form
        assert pictures.jpeg(strange, pictures.LEVELS[0])[0] != bytes(strange.data)
    large = compressed(np.zeros((1000, 2000, 3), np.uint8))
    data, size = pictures.jpeg(large, pictures.LEVELS[0])
    assert size == (2000, 1000)
    assert cv2.imdecode(np.frombuffer(data, np.uint8), 1).shape == (640, 1280, 3)


def test_each_picture_is_made_once_for_all(site, monkeypatch):
    made = []
    original = pictures.payload
    monkeypatch.setattr(
        pictures, 'payload', lambda shown, level: made.append(shown) or original(shown, level)
    )
    pages = [site.page() for _ in range(4)]
    for page in pages:
        page.next('status')
    site.scene.frame(frame(1))
    for page in pages:
        page.next('picture')
        page.close()
    assert len(made) == 1


def test_a_page_that_takes_nothing_does_not_hold_the_others_up(site):
    with site.page() as lazy, site.page() as other:
        lazy.next('status')
        for number in range(1, 20):
            site.scene.frame(frame(number))
            head = other.next('picture')[0]
            assert head['stamp'] == str(number * 10**9)
            other.send(do='shown', stamp=head['stamp'])


# -- slow links


def carry(pace, bytes_per_second, round_trip=0.0, pictures_=40, finest=200_000):
    sizes = [round(finest * ratio) for ratio in (1, 0.45, 0.2, 0.1, 0.045)]
    chosen = []
    pace.answered(round_trip)
    for _ in range(pictures_):
        size = sizes[pace.level]
        pace.carried(size, round_trip + size / bytes_per_second)
        chosen.append(pace.level)
    return chosen


def test_quality_follows_the_link():
    assert carry(Pace(), 20e6)[-1] == 0
    assert carry(Pace(), 1e6)[-1] == 1
    assert carry(Pace(), 20e3)[-1] == 4
    # a long way is no narrow one
    assert carry(Pace(), 20e6, round_trip=0.4)[-1] == 0
    for speed in (2e4, 1e5, 4e5, 6e5, 1e6, 1.3e6, 2e6):
        assert len(set(carry(Pace(), speed)[-15:])) == 1, 'it goes to and fro'
    pace = Pace()
    carry(pace, 20e6)
    assert carry(pace, 5e4)[-1] >= 3 and carry(pace, 20e6)[-1] == 0


def test_thumbnails_show_what_was_marked():
    picture = np.full((60, 80, 3), 200, np.uint8)
    mask = np.zeros((60, 80), bool)
    mask[:30, 60:] = True  # at the frame's corner
    small = cv2.imdecode(np.frombuffer(pictures.thumbnail(picture, mask), np.uint8), 1)
    assert max(small.shape) <= 96 and small.max() > 180 and small.min() < 100
    assert pictures.thumbnail(picture, ~mask & mask) == b''
    assert pictures.thumbnail(picture, mask[:10]) == b''


def test_many_threads_write_the_scene_at_once(site):
    with site.page() as page, ThreadPoolExecutor(4) as threads:
        jobs = [threads.submit(site.scene.frame, frame(n)) for n in range(1, 60)]
        jobs += [threads.submit(site.scene.name, {n: str(n)}) for n in range(1, 60)]
        for job in jobs:
            job.result()
        numbers = set()
        head = page.next('picture')[0]
        while head['stamp'] not in numbers:
            numbers.add(head['stamp'])
            page.send(do='shown', stamp=head['stamp'])
            found = page.pictures(0.4)
            head = found[-1] if found else head
    assert isinstance(site.scene.shown, Shown)
