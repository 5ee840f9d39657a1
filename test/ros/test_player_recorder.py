# SPDX-License-Identifier: Apache-2.0
"""Player, recorder and demo as processes."""

import os
import subprocess
import sys
import textwrap

import av
import cv2
from harness import Client, environment, NodeProcess, ROOT, TIMEOUT, wait_for
import numpy as np
import pytest
from rclpy.qos import QoSProfile
from scenes import RED, scene, square_mask
from sensor_msgs.msg import CompressedImage, Image
from std_srvs.srv import Trigger

from drift_ros.media.video import VideoReader, write_image
from drift_ros.ros import conversions, messages, stamp

DOMAIN = 51


@pytest.fixture(scope='module')
def clip(tmp_path_factory):
    """Folder of 12 frames in which a red square moves by 4 pixels a frame."""
    folder = tmp_path_factory.mktemp('clip') / 'frames'
    folder.mkdir()
    for index in range(12):
        write_image(folder / f'{index}.png', scene((8 + 4 * index, 30, 24, RED)))
    return folder


@pytest.fixture
def client():
    client = Client(DOMAIN, tracker='player')
    yield client
    client.close()


def images(client, kind=Image, topic='/image'):
    received = []
    client.node.create_subscription(kind, topic, received.append, QoSProfile(depth=100))
    return received


def nanoseconds(message):
    return stamp.nanoseconds(message.header.stamp)


def position(frame):
    return int(np.argmax((frame[..., 0] > 200).sum(axis=0) > 10))


def test_player_publishes_every_frame_with_regular_stamps(client, clip, tmp_path):
    received = images(client)
    node = NodeProcess(
        'player',
        DOMAIN,
        tmp_path / 'log',
        parameters={'source': clip, 'rate': 40.0, 'start': 2, 'count': 8, 'frame_id': 'eye'},
    )
    try:
        assert node.process.wait(TIMEOUT) == 0, node.output
    finally:
        node.close()
    wait_for(lambda: len(received) == 8, '8 frames')
    assert [position(conversions.image_to_rgb(m)) for m in received] == [
        8 + 4 * index for index in range(2, 10)
    ]
    steps = np.diff([nanoseconds(message) for message in received])
    assert set(steps.tolist()) == {25_000_000}
    assert {message.header.frame_id for message in received} == {'eye'}


def test_player_loops_with_ascending_stamps_and_compresses(client, clip, tmp_path):
    received = images(client, CompressedImage, '/image/compressed')
    node = NodeProcess(
        'player',
        DOMAIN,
        tmp_path / 'log',
        parameters={'source': clip, 'rate': 100.0, 'loop': True, 'image_transport': 'compressed'},
    )
    try:
        wait_for(lambda: len(received) > 30, 'more than two rounds')
        code, _ = node.interrupt()
        assert code == 0 and 'Traceback' not in node.output, node.output
    finally:
        node.close()
    positions = [position(conversions.compressed_to_rgb(message)) for message in received[:24]]
    assert np.abs(np.subtract(positions[:12], positions[12:])).max() <= 1
    assert (np.diff([nanoseconds(message) for message in received]) > 0).all()


def test_lockstep_waits_for_the_answer_and_holds(client, clip, tmp_path):
    received = images(client)
    answer = client.node.create_publisher(Image, '/answer', 10)
    node = NodeProcess(
        'player',
        DOMAIN,
        tmp_path / 'log',
        parameters={
            'source': clip,
            'rate': 1000.0,
            'lockstep': True,
            'hold_at': '[3]',
            'stamps': 'now',
        },
    )

    def reply(message):
        answer.publish(conversions.labels_to_image(np.zeros((2, 2), np.uint8), message.header))

    try:
        for index in range(12):
            wait_for(lambda index=index: len(received) == index + 1, f'frame {index}')
            with pytest.raises(AssertionError):  # not before the answer
                wait_for(lambda index=index: len(received) > index + 1, 'another', timeout=0.1)
            reply(received[-1])
            if index == 3:
                with pytest.raises(AssertionError):  # on hold in spite of the answer
                    wait_for(lambda: len(received) > 4, 'another', timeout=0.3)
                assert client.ask(Trigger, 'resume', Trigger.Request()).success
        assert node.process.wait(TIMEOUT) == 0, node.output
    finally:
        node.close()
    assert len(received) == 12


@pytest.fixture(scope='module')
def cut_clip(tmp_path_factory):
    """AVI of 12 frames that was cut off in the 8th; its header still promises 12."""
    path = tmp_path_factory.mktemp('cut') / 'clip.avi'
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('mjpeg', rate=25)
        stream.width, stream.height, stream.pix_fmt = 128, 96, 'yuvj420p'
        for index in range(12):
            frame = av.VideoFrame.from_ndarray(scene((8 + 4 * index, 30, 24, RED)), 'rgb24')
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0)]
    path.write_bytes(path.read_bytes()[: places[7][0] + places[7][1] // 2])
    return path


def test_player_publishes_what_a_cut_video_has_and_says_what_it_lacks(client, cut_clip, tmp_path):
    received = images(client)
    node = NodeProcess('player', DOMAIN, tmp_path / 'log', parameters={'source': cut_clip})
    try:
        assert node.process.wait(TIMEOUT) == 1, node.output
    finally:
        node.close()
    wait_for(lambda: len(received) >= 7, '7 frames')
    assert [position(conversions.image_to_rgb(m)) // 4 for m in received[:7]] == [
        (8 + 4 * index) // 4 for index in range(7)
    ]
    assert 'its header promises 12 frames' in node.output and 'Traceback' not in node.output


@pytest.mark.parametrize(
    ('module', 'parameters', 'words'),
    [
        ('player', {}, 'source'),
        ('player', {'source': '/nowhere.mp4'}, '/nowhere.mp4'),
        ('recorder', {}, 'output'),
        ('recorder', {'output': ROOT, 'topics': "['image']"}, 'exists'),
    ],
)
def test_wrong_parameters_end_with_the_reason(tmp_path, module, parameters, words):
    node = NodeProcess(module, DOMAIN, tmp_path / 'log', parameters=parameters)
    try:
        assert node.process.wait(TIMEOUT) == 1
        assert words in node.output and 'Traceback' not in node.output, node.output
    finally:
        node.close()


def test_recorder_writes_what_was_published(client, tmp_path):
    from drift_ros_msgs.msg import Track, TrackArray
    from vision_msgs.msg import LabelInfo

    bag = tmp_path / 'bag'
    tracks = client.node.create_publisher(TrackArray, '/tracks', 10)
    info = client.node.create_publisher(
        LabelInfo, '/label_info', QoSProfile(depth=1, durability=1)
    )  # transient local
    info.publish(messages.label_info({4: 'cup'}, client.header()))
    node = NodeProcess(
        'recorder',
        DOMAIN,
        tmp_path / 'log',
        parameters={'output': bag, 'topics': "['tracks', 'label_info', 'image']"},
    )
    try:
        wait_for(tracks.get_subscription_count, 'the recorder')
        frames = [
            np.random.default_rng(index).integers(0, 256, (48, 64, 3), np.uint8)
            for index in range(20)
        ]
        for index, frame in enumerate(frames):
            header = client.publish(frame)
            tracks.publish(TrackArray(header=header, tracks=[Track(id=4, name='cup', age=index)]))
        wait_for(lambda: node.output.count('recording') == 3, 'all topics')
        tracks.wait_for_all_acked()
        client.publishers['/image'].wait_for_all_acked()
        code, _ = node.interrupt()
        assert code == 0 and 'Traceback' not in node.output, node.output
    finally:
        node.close()
    # a reader that knows neither ROS nor drift_ros: all it needs is in the bag
    script = textwrap.dedent("""
        import hashlib, sys
        from pathlib import Path
        from rosbags.highlevel import AnyReader
        with AnyReader([Path(sys.argv[1])]) as reader:
            for connection, stamp, data in reader.messages():
                message = reader.deserialize(data, connection.msgtype)
                if connection.topic == '/tracks':
                    print('track', message.tracks[0].age, message.tracks[0].name)
                elif connection.topic == '/image':
                    print('image', hashlib.sha256(message.data.tobytes()).hexdigest())
                else:
                    print('info', message.class_map[0].class_id, message.class_map[0].class_name)
        assert not [name for name in sys.modules if name.startswith(('rclpy', 'drift_ros'))]
    """)
    bare = {key: value for key, value in os.environ.items() if key != 'PYTHONPATH'}
    result = subprocess.run(
        [sys.executable, '-c', script, str(bag)],
        env=bare,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    import hashlib

    assert [line for line in lines if line.startswith('image')] == [
        f'image {hashlib.sha256(frame.tobytes()).hexdigest()}' for frame in frames
    ]
    assert [line for line in lines if line.startswith('track')] == [
        f'track {index} cup' for index in range(20)
    ]
    assert lines.count('info 4 cup') == 1


def run_demo(checkpoint, clip, mask, out, *options):
    return subprocess.run(
        [
            sys.executable,
            '-m',
            'drift_ros.commands.demo',
            '--video',
            str(clip),
            '--mask',
            str(mask),
            '--out',
            str(out),
            '--model',
            str(checkpoint),
            '-p',
            'features.resolution:=96',
            '-p',
            'states.confidence:=0.0',
            '-p',
            'states.existence:=0.0',
            *options,
        ],
        env={**environment(DOMAIN + 1), 'COLUMNS': '160'},
        capture_output=True,
        text=True,
        check=False,
        timeout=2 * TIMEOUT,
    )


def test_demo_on_a_video_of_ones_own(checkpoint, clip, tmp_path):
    mask = tmp_path / 'mask.png'
    cv2.imwrite(str(mask), square_mask((8, 30, 24), (90, 60, 20)))
    out = tmp_path / 'out'
    result = run_demo(checkpoint, clip, mask, out, '--frames', '10', '--record-images')
    assert result.returncode == 0, result.stdout + result.stderr
    for words in (
        'frames tracked',
        'latency, median',
        'contact_sheet.png',
        'object 1 (id 1)',
        'object 2 (id 2)',
    ):
        assert words in result.stdout
    assert len(list(VideoReader(out / 'annotated.mp4'))) == 10
    assert cv2.imread(str(out / 'contact_sheet.png')) is not None
    from rosbags.highlevel import AnyReader

    with AnyReader([out / 'bag']) as reader:
        counts = {item.topic.rsplit('/', 1)[1]: item.msgcount for item in reader.connections}
    assert {name: counts[name] for name in ('mask', 'tracks', 'detections', 'image')} == {
        'mask': 10,
        'tracks': 10,
        'detections': 10,
        'image': 10,
    }
    assert counts['label_info'] >= 1
    for log in (out / 'logs').iterdir():
        assert 'Traceback' not in log.read_text(), log.read_text()


def test_demo_tracks_what_a_cut_video_has_and_fails_with_what_it_lacks(
    checkpoint, cut_clip, tmp_path
):
    mask = tmp_path / 'mask.png'
    cv2.imwrite(str(mask), square_mask((8, 30, 24), (90, 60, 20)))
    out = tmp_path / 'out'
    result = run_demo(checkpoint, cut_clip, mask, out)
    assert result.returncode == 1 and 'Traceback' not in result.stderr, result.stderr
    assert result.stdout.index('its header promises 12 frames') < result.stdout.index('seeded')
    assert 'its header promises 12 frames' in result.stderr
    found = len(list(VideoReader(out / 'annotated.mp4')))
    assert found in (7, 8) and f'the {found} frames that were decoded' in result.stderr


def test_demo_says_why_a_mask_is_refused_and_leaves_nothing_behind(checkpoint, clip, tmp_path):
    mask = tmp_path / 'mask.png'
    cv2.imwrite(str(mask), np.ones((10, 10), np.uint8))
    result = run_demo(checkpoint, clip, mask, tmp_path / 'out')
    assert result.returncode == 1
    assert '10x10' in result.stderr and '128x96' in result.stderr
    assert 'Traceback' not in result.stderr
    running = subprocess.run(['ps', '-eo', 'args'], capture_output=True, text=True, check=True)
    assert str(tmp_path) not in running.stdout
