# SPDX-License-Identifier: Apache-2.0
"""TrackerClient with a tracker process, and the README's program as it is printed."""

from pathlib import Path
import re
import subprocess
import sys
import threading
import time

import cv2
from harness import Client, environment, TIMEOUT, tracker_process, wait_for
from lifecycle_msgs.srv import GetState
import numpy as np
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from scenes import GREEN, overlap, RED, scene, square_mask

from drift_ros import TrackerClient
from drift_ros.ros.client_errors import (
    ArgumentError,
    ClientError,
    NoAnswerError,
    RefusedError,
)

ROOT = Path(__file__).resolve().parents[2]
DOMAIN = 73
SIZE = (320, 320)
FRAME = scene((40, 200, 70, RED), (130, 90, 110, GREEN), size=SIZE)
CUP, HAND = square_mask((40, 200, 70), size=SIZE), square_mask((130, 90, 110), size=SIZE)
BOX = (120, 80, 250, 210)
PROGRAM = Path(__file__).with_name('weightless_tracker.py')


@pytest.fixture(scope='module')
def camera(tmp_path_factory):
    """Run a tracker, and publish frames to it all the time."""
    log = tmp_path_factory.mktemp('client') / 'log'
    with tracker_process(DOMAIN, log, program=PROGRAM):
        camera = Client(DOMAIN)
        camera.start()
        camera.publish(FRAME)
        stop = threading.Event()

        def publish():
            while not stop.wait(0.1):
                camera.publish(FRAME)

        thread = threading.Thread(target=publish, daemon=True)
        thread.start()
        yield camera
        stop.set()
        thread.join()
        camera.close()


@pytest.fixture
def client(camera):
    with TrackerClient('/tracker', domain_id=DOMAIN, timeout=60) as client:
        client.reset()
        with client.results() as results:
            wait_for(lambda: not results.get().tracks.tracks, 'no objects')
        yield client


def test_the_program_of_the_readme(client, tmp_path):
    """Exactly as printed: it waits, answers, and ends."""
    blocks = re.findall(r'```python\n(.*?)```', (ROOT / 'README.md').read_text(), re.DOTALL)
    (program,) = (block for block in blocks if 'TrackerClient' in block)
    cv2.imwrite(str(tmp_path / 'cup.png'), CUP)
    (tmp_path / 'program.py').write_text(program)
    done = subprocess.run(
        [sys.executable, 'program.py'],
        cwd=tmp_path,
        env=environment(DOMAIN),
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) > 10 and all('cup' in line for line in lines)


def test_seeds_results_and_removal(client):
    with client.results() as results:
        cup, hand = client.seed(CUP * 3 + HAND * 7, names=['cup', 'hand'])
        assert (cup.label, hand.label) == (3, 7) and hand.id > cup.id and cup.note == ''
        result = _until(results, 2)
        assert result.labels.shape == SIZE and result.labels.dtype == np.uint8
        assert result.header == result.tracks.header == result.detections.header
        assert result.header.frame_id == 'test_camera'
        assert result.stamp == (result.header.stamp.sec * 10**9 + result.header.stamp.nanosec)
        assert [item.name for item in result.tracks.tracks] == ['cup', 'hand']
        client.rename(hand.id, 'my <hand>')
        for result in results:
            if result.tracks.tracks[1].name == 'my <hand>':
                break
        client.remove(cup.id)
        result = _until(results, 1)
        assert {item.id for item in result.tracks.tracks} == {hand.id}
    with pytest.raises(RefusedError, match=f'no object {cup.id}'):
        client.remove(cup.id)
    with pytest.raises(RefusedError, match=f'no object {cup.id}'):
        client.rename(cup.id, 'cup')


def _until(results, count):
    """Give the first result with so many objects."""
    for result in results:
        if len(result.tracks.tracks) == count:
            return result
    return None


def test_boxes_and_points(client):
    found = client.segment(box=BOX)
    assert overlap(found.mask, HAND == 1) > 0.85 and found.id == 0 and 0 <= found.score <= 1
    hand = client.seed_prompt(box=BOX, points=[(180, 140)], negative=[(75, 235)], name='hand')
    assert overlap(hand.mask, HAND == 1) > 0.85 and hand.id > 0
    with client.results() as results:
        assert _until(results, 1).tracks.tracks[0].name == 'hand'
    pointed = client.seed_prompt(points=[(75, 235)], frame=FRAME)
    assert pointed.id > hand.id and pointed.mask[235, 75]


def test_refusals_say_which_and_why(client):
    dot = CUP * 3
    dot[0, 0] = 9
    with pytest.raises(RefusedError, match='pixels') as caught:
        client.seed(dot)
    assert set(caught.value.reasons) == {9}
    with pytest.raises(RefusedError, match='outside the image') as caught:
        client.seed_prompt(box=(900, 900, 950, 950))
    assert set(caught.value.reasons) == {0}
    with pytest.raises(RefusedError, match='2 object ids for the 1 objects'):
        client.seed(CUP, object_ids=[1, 2])
    with pytest.raises(RefusedError, match='no object 99'):
        client.correct(99, CUP)


@pytest.mark.parametrize(
    ('call', 'message'),
    [
        (lambda c: c.seed(CUP * 1.0), 'label image of whole numbers'),
        (lambda c: c.seed(None), 'label image of whole numbers'),
        (lambda c: c.seed(CUP, frame=FRAME / 255.0), r'\(H, W, 3\) uint8 frame'),
        (lambda c: c.seed(CUP, names='c'), "names is 'c'; give a sequence"),
        (lambda c: c.seed(CUP, names=[1]), 'the name 1 is no text'),
        (lambda c: c.seed(CUP, names=['\ud800']), 'is no text'),
        (lambda c: c.seed(CUP, object_ids={1: 2}), 'object_ids is {1: 2}; give a sequence'),
        (lambda c: c.seed(CUP, object_ids=3), 'object_ids is 3; give a sequence'),
        (lambda c: c.seed(CUP, object_ids=[-1]), '-1 is no object id'),
        (lambda c: c.correct('1', CUP), "'1' is no object id"),
        (lambda c: c.remove(-1), '-1 is no object id'),
        (lambda c: c.remove(2**40), 'is no object id'),
        (lambda c: c.seed_prompt(box='abcd'), 'a box is .x_min'),
        (lambda c: c.seed_prompt(points=(20, 20)), 'lists of .x, y.'),
        (lambda c: c.seed_prompt(box=BOX, object_id=-1), '-1 is no object id'),
        (lambda c: c.change_state('start'), "no transition 'start'; choose from configure"),
    ],
)
def test_what_cannot_be_sent_is_refused_with_the_reason(call, message):
    with TrackerClient('/nowhere', domain_id=DOMAIN, timeout=1) as client:
        with pytest.raises(ArgumentError, match=message):
            call(client)


def test_an_empty_correction_is_told_to_be_empty(client):
    (cup,) = client.seed(CUP)
    with pytest.raises(RefusedError, match='the mask is empty'):
        client.correct(cup.id, np.zeros_like(CUP))


def test_a_closed_client_says_so():
    client = TrackerClient('/nowhere', domain_id=DOMAIN, timeout=30)
    results = client.results()
    client.close()
    client.close()
    with pytest.raises(ClientError, match='this client was closed'):
        client.remove(1)
    with pytest.raises(ClientError, match='closed'):
        results.get()


def test_a_callback_that_raises_leaves_the_client_alive(client):
    called = threading.Event()

    def fail(result):
        called.set()
        raise ZeroDivisionError('of the callback')

    with client.results(callback=fail):
        assert called.wait(60)
        assert client.state() == 'active'
    client.reset()


def test_corrections_keep_the_id(client):
    (cup,) = client.seed(CUP, names=['cup'])
    done = client.correct(cup.id, HAND)
    assert done.id == cup.id
    again = client.seed_prompt(box=BOX, object_id=cup.id)
    assert again.id == cup.id
    with client.results() as results:
        (track,) = _until(results, 1).tracks.tracks
    assert (track.id, track.name) == (cup.id, 'cup')
    (item,) = client.seed(HAND)
    assert item.id > cup.id
    assert f'object {cup.id} (cup), which is followed already' in item.note
    assert f'object {item.id} (' in client.seed_prompt(box=BOX).note


def test_a_callback_instead_of_a_queue(client):
    got = []
    with client.results(callback=got.append):
        wait_for(lambda: len(got) > 2, 'results')
    assert [item.stamp for item in got] == sorted({item.stamp for item in got})


def test_a_node_that_somebody_else_spins(camera):
    context = rclpy.Context()
    rclpy.init(args=[], context=context, domain_id=DOMAIN)
    node = rclpy.create_node('mine', context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    stop = threading.Event()

    def spin():
        while not stop.is_set():
            executor.spin_once(timeout_sec=0.05)

    thread = threading.Thread(target=spin, daemon=True)
    try:
        with TrackerClient(node=node, timeout=0.7) as client:
            assert client.tracker == '/tracker'
            state = client.prepare(GetState, '/tracker/get_state')
            wait_for(state.service_is_ready, 'discovery, which needs nobody to spin')
            with pytest.raises(NoAnswerError, match='is this node spun'):
                client.state()
        thread.start()
        with TrackerClient(node=node, timeout=60) as client, client.results() as results:
            assert client.state() == 'active'
            assert results.get().labels.shape == SIZE
        own = {client.srv_name for client in node.clients}
        assert not own and not [s for s in node.subscriptions if '/tracker/' in s.topic_name]
    finally:
        stop.set()
        if thread.is_alive():
            thread.join()
        node.destroy_node()
        context.try_shutdown()


def test_nobody_is_there():
    begun = time.monotonic()
    with TrackerClient('/nobody', domain_id=DOMAIN + 1, timeout=0.5) as client:
        with pytest.raises(NoAnswerError, match='no service /nobody/reset appeared'):
            client.reset()
        with client.results() as results, pytest.raises(TimeoutError, match='/nobody'):
            results.get()
    assert time.monotonic() - begun < 30


def test_what_watches_may_end_a_call():
    class Gone(Exception):
        pass

    def watch():
        raise Gone

    with TrackerClient('/nobody', domain_id=DOMAIN + 1, watch=watch) as client:
        with pytest.raises(Gone):
            client.reset()
        with client.results() as results, pytest.raises(Gone):
            results.get()
        results.close()
        with pytest.raises(ClientError):
            results.get()
