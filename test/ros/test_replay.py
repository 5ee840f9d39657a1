# SPDX-License-Identifier: Apache-2.0
"""``drift_ros eval bag --live``: a bag through a real tracker process, and what it measures."""

import csv
import functools
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

from harness import wait_for
import numpy as np
import pytest
from rosbags.rosbag2 import Writer
from rosbags.typesys import get_typestore, Stores
from scenes import ColourFeatures, configure, overlap, RED, scene, square_mask

from drift_ros import Tracker
from drift_ros.evaluation import bag_files, bags, live
from drift_ros.evaluation.bag_writing import STORAGES
from drift_ros.media.labels import read_labels
from drift_ros.ros import processes, replay

ROOT = Path(__file__).resolve().parents[2]
DOMAIN = 61
FRAMES = 6


@pytest.fixture(scope='module', autouse=True)
def domain():
    old = os.environ.get('ROS_DOMAIN_ID')
    os.environ['ROS_DOMAIN_ID'] = str(DOMAIN)
    yield
    os.environ.pop('ROS_DOMAIN_ID') if old is None else os.environ.update(ROS_DOMAIN_ID=old)


CAMERAS = {
    (bag_files.IMAGE_TOPIC, bag_files.TRUTH_TOPIC): lambda index: (8 + 4 * index, 30, 24),
    ('/rear/image', '/rear/truth'): lambda index: (80 - 4 * index, 50, 32),
}
"""Topics of images and true masks, and where the square is in a frame."""


def write_bag(path, cameras):
    """Write a bag in which a red square moves through what cameras see, with its true masks."""
    store = get_typestore(Stores.ROS2_KILTED)
    with Writer(path, version=9, storage_plugin=STORAGES['mcap']) as writer:
        topics = {
            topic: writer.add_connection(topic, bag_files.IMAGE, typestore=store)
            for pair in cameras
            for topic in pair
        }
        for index in range(FRAMES):
            header = bag_files.make_header(store, 10**9 + index * 10**8)
            for pair, place in cameras.items():
                pictures = scene((*place(index), RED)), square_mask(place(index))
                for topic, picture in zip(pair, pictures):
                    message = bag_files.image_message(store, header, picture)
                    data = store.serialize_cdr(message, bag_files.IMAGE)
                    writer.write(topics[topic], index, data)
    return path


@pytest.fixture(scope='module')
def bag(tmp_path_factory):
    """Make a bag of one camera."""
    path = tmp_path_factory.mktemp('bags') / 'square'
    return write_bag(path, dict(list(CAMERAS.items())[:1]))


def command(bag, out, checkpoint, *more):
    return [
        sys.executable,
        '-m',
        'drift_ros.commands.main',
        'eval',
        'bag',
        str(bag),
        '--live',
        '--model',
        str(checkpoint),
        '--set',
        'features.resolution=96',
        '--set',
        'kernel.radius=6',
        '--set',
        'states.confidence=0',
        '--set',
        'states.existence=0',
        '--out',
        str(out),
        '--threads',
        '1',
        *more,
    ]


def environment():
    return {
        **os.environ,
        'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]).rstrip(
            os.pathsep
        ),
    }


def test_live_run(bag, checkpoint, tmp_path):
    """One command: offline and two rates, a row each; what arrived is what the engine says."""
    done = subprocess.run(
        command(bag, tmp_path, checkpoint, '--rate', '1,50', '--write-bags'),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    data = json.loads((tmp_path / 'results.json').read_text())
    slow, fast = data['live']
    assert [row['engine'] for row in data['live']] == ['tracker@1Hz', 'tracker@50Hz']
    assert slow['rate_in'] == pytest.approx(1, rel=0.2) and slow['frames'] == FRAMES - 1
    for row in (slow, fast):
        assert 0 < row['latency_median'] <= row['latency_95'] <= row['latency_max']
        assert row['cpu'] > 0 and 50 < row['memory_mean'] <= row['memory_max']
        assert 0 <= row['streaming'] <= 1 and 0 <= row['on_arrival'] <= 1
        assert row['offline'] == data['engines']['tracker']['j_and_f']
    rows = list(csv.DictReader((tmp_path / 'live.csv').read_text().splitlines()))
    assert [row['engine'] for row in rows] == ['tracker@1Hz', 'tracker@50Hz']
    page = (tmp_path / 'report.html').read_text()
    assert 'id="live"' in page and 'latency of the masks that arrived' in page
    if not slow['dropped']:  # then the node was shown every frame the offline engine was
        for index in range(1, FRAMES):
            name = f'{index:05d}.png'
            np.testing.assert_array_equal(
                read_labels(tmp_path / 'delivered' / 'tracker@1Hz' / 'square' / name),
                read_labels(tmp_path / 'masks' / 'tracker' / 'square' / name),
            )
    topics = bag_files.topics_of(tmp_path / 'bags' / 'square')
    assert {'/tracker/mask', '/tracker_1Hz/tracks', '/tracker_50Hz/detections'} <= set(topics)
    # predictions are the newest masks there were, never those of frames to come
    scores = json.loads((tmp_path / 'scores' / 'tracker@50Hz' / 'square.json').read_text())
    assert all(shown < index for index, shown in enumerate(scores['live']['shown']) if index)


def test_several_cameras_through_one_node(checkpoint, tmp_path):
    """Each is scored for itself; its masks are those it gets alone."""
    both = write_bag(tmp_path / 'both', CAMERAS)
    topics = [part for pair in CAMERAS for part in zip(('--image', '--truth'), pair)]
    done = subprocess.run(
        command(
            both,
            tmp_path / 'out',
            checkpoint,
            *(word for part in topics for word in part),
            *('--together', '--rate', '1', '--no-report'),
        ),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / 'out' / 'results.json').read_text())['live']
    names = [f'both{image.replace("/", "-")}' for image, _ in CAMERAS]
    assert [row['sequence'] for row in rows] == names
    assert [path.name for path in (tmp_path / 'out' / 'logs' / 'tracker@1Hz').iterdir()] == [
        '+'.join(names)
    ]  # one process
    for row in rows:
        assert row['frames'] == FRAMES - 1 and row['rate_in'] == pytest.approx(1, rel=0.2)
        delivered = sorted(
            (tmp_path / 'out' / 'delivered' / 'tracker@1Hz' / row['sequence']).iterdir()
        )
        assert delivered
        if not row['dropped']:
            for file in delivered:
                alone = tmp_path / 'out' / 'masks' / 'tracker' / row['sequence'] / file.name
                np.testing.assert_array_equal(read_labels(file), read_labels(alone))


def test_an_object_is_handed_over_in_a_bag_of_two_views(tmp_path):
    both = write_bag(tmp_path / 'both', CAMERAS)
    front, rear = (
        list(bags.open_sequence(both, image_topic=image, truth_topic=truth))
        for image, truth in CAMERAS
    )
    base = Tracker(config=configure(resolution=96, radius=6), features=ColourFeatures())
    here, there = base.beside(1, 2), base.beside(2, 2)
    (number,) = here.seed(front[0].image, front[0].truth, ['square'])
    for frame in front[1:3]:
        here.step(frame.image)
    assert there.find(rear[2].image, here, number) > 0.8
    for frame in rear[3:]:
        result = there.step(frame.image)
        assert [(item.id, item.name) for item in result.objects] == [(number, 'square')]
        assert overlap(result.labels == number, frame.truth > 0) > 0.9


def test_node_that_cannot_start(bag, tmp_path):
    """The node's own words are in the error, and no process stays."""
    with pytest.raises(processes.ProcessError, match='could not be configured(.|\n)*no-model'):
        sequence = bags.open_sequence(bag)
        stream = replay.Stream(sequence.serialized(), live.find_seeds(sequence, False))
        replay.replay({'camera': stream}, {'model': str(tmp_path / 'no-model')}, tmp_path / 'logs')


def test_node_that_dies(bag, checkpoint, tmp_path, monkeypatch):
    """Its end and the end of its log are told."""
    pids = []
    start = processes.Children.start

    def watched(children, *arguments, **named):
        pids.append(start(children, *arguments, **named))
        return pids[-1]

    monkeypatch.setattr(processes.Children, 'start', watched)
    sequence = bags.open_sequence(bag)
    stream = replay.Stream(
        sequence.serialized(),
        live.find_seeds(sequence, False),
        rate=2.0,
        progress=lambda: os.kill(pids[0], signal.SIGKILL),
    )
    with pytest.raises(processes.ProcessError, match='ended with code -9(.|\n)*seeded'):
        replay.replay(
            {'camera': stream},
            {'model': str(checkpoint), 'features.resolution': 96},
            tmp_path / 'logs',
        )


def test_interrupt_ends_everything(bag, checkpoint, tmp_path):
    """SIGINT in the middle: the node goes down with the command, without a traceback."""
    process = subprocess.Popen(
        command(bag, tmp_path / 'out', checkpoint, '--rate', '0.2', '--no-report'),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        # a shell's background jobs, and what they start, ignore SIGINT
        preexec_fn=functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    log = tmp_path / 'out' / 'logs' / 'tracker@0.2Hz' / 'square' / 'tracker.log'
    timer = threading.Timer(600, process.kill)
    timer.start()
    while process.poll() is None and not (log.exists() and 'seeded' in log.read_text()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate()
    timer.cancel()
    assert process.returncode == 130, output
    assert 'Traceback' not in output and 'Traceback' not in log.read_text()
    import psutil

    def left():
        return [
            item
            for item in psutil.process_iter(['cmdline', 'environ'])
            if 'drift_ros.nodes.tracker' in (item.info['cmdline'] or [])
            and (item.info['environ'] or {}).get('ROS_DOMAIN_ID') == str(DOMAIN)
        ]

    wait_for(lambda: not left(), 'the end of the node', 60)
