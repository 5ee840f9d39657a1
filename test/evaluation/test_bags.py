# SPDX-License-Identifier: Apache-2.0
"""Bags give the numbers of the dataset they were made from, and broken ones a clear error."""

from click.testing import CliRunner
import cv2
import numpy as np
import pytest
from rosbags.rosbag2 import Writer
from rosbags.typesys import get_typestore, Stores

from drift_ros.commands.bag import bag as bag_command
from drift_ros.commands.evaluate import evaluate
from drift_ros.evaluation import bag_files
from drift_ros.evaluation import run as runner
from drift_ros.evaluation.bag_files import BagError
from drift_ros.evaluation.bag_writing import bag_from_davis, STORAGES
from drift_ros.evaluation.bags import open_sequence
from drift_ros.evaluation.datasets import find_sequences
from drift_ros.evaluation.engines import parse_engine
from drift_ros.media.labels import read_labels
from drift_ros.media.video import VideoWriter

from .conftest import scene, SIZE

STORE = get_typestore(Stores.ROS2_KILTED)
IMAGE, TRUTH = bag_files.IMAGE_TOPIC, bag_files.TRUTH_TOPIC


def write_bag(path, entries, storage='mcap'):
    """Write messages (topic, type, stamp in ns, message made from its header)."""
    with Writer(path, version=9, storage_plugin=STORAGES[storage]) as writer:
        connections = {}
        for number, (topic, kind, stamp, make) in enumerate(entries):
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            message = make(bag_files.make_header(STORE, stamp))
            writer.write(connections[topic], number, STORE.serialize_cdr(message, kind))
    return path


def entries(stamps=None, truth_shift=0):
    """Return image and truth messages of a scene."""
    frames, labels = scene(1)
    stamps = stamps or [10**9 + index * 10**8 for index in range(len(frames))]
    found = []
    for stamp, frame, label in zip(stamps, frames, labels, strict=True):
        found.append(
            (
                IMAGE,
                bag_files.IMAGE,
                stamp,
                lambda header, frame=frame: bag_files.image_message(STORE, header, frame),
            )
        )
        found.append(
            (
                TRUTH,
                bag_files.IMAGE,
                stamp + truth_shift,
                lambda header, label=label: bag_files.image_message(STORE, header, label),
            )
        )
    return found


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
@pytest.mark.parametrize('compressed', [False, True])
def test_numbers_equal_the_dataset_s(davis, tmp_path, storage, compressed):
    """Frames, truth, masks and scores are those of the folder, bit for bit."""
    spec = parse_engine('colour8:features.resolution=64')
    for source in find_sequences(davis):
        bag = bag_from_davis(
            source, tmp_path / 'bags' / source.name, storage=storage, compressed=compressed
        )
        sequence = open_sequence(bag)
        assert len(sequence) == len(source)
        for ours, theirs in zip(sequence, source, strict=True):
            assert ours.name == theirs.name
            np.testing.assert_array_equal(ours.image, theirs.image)
            np.testing.assert_array_equal(ours.truth, theirs.truth)
        first = runner.run_job(spec, source, tmp_path / 'folder', runner.RunOptions())
        second = runner.run_job(spec, sequence, tmp_path / 'bag', runner.RunOptions())
        assert first.score.j.tolist() == second.score.j.tolist()
        assert first.score.f.tolist() == second.score.f.tolist()
        for path in (tmp_path / 'folder' / 'masks').rglob('*.png'):
            other = tmp_path / 'bag' / path.relative_to(tmp_path / 'folder')
            assert path.read_bytes() == other.read_bytes()


def test_conversion_is_reproducible(davis, tmp_path):
    """The same folder gives the same messages, with stamps at the rate."""
    (source, _) = find_sequences(davis)
    for name in 'ab':
        bag_from_davis(source, tmp_path / name, rate=10)
    first, second = (open_sequence(tmp_path / name, name='x') for name in 'ab')
    assert first.stamps == second.stamps and first.digest() == second.digest()
    assert np.diff(first.stamps).tolist() == [10**8] * 7
    with bag_files.open_bag(tmp_path / 'a') as reader:
        kinds = {item.topic: item.msgtype for item in reader.connections}
    assert kinds == {
        IMAGE: bag_files.IMAGE,
        TRUTH: bag_files.IMAGE,
        bag_files.INFO_TOPIC: bag_files.CAMERA_INFO,
    }
    with pytest.raises(BagError, match='exists already'):
        bag_from_davis(source, tmp_path / 'a')


def test_truth_that_comes_late_or_is_sparse(tmp_path):
    """Messages belong together by stamp, whatever their order in the bag."""
    messages = entries()
    late = sorted(messages, key=lambda item: item[2] + (3 * 10**8 if item[0] == TRUTH else 0))
    sparse = [item for item in late if item[0] == IMAGE or item[2] % (2 * 10**8) == 0]
    for name, chosen in (('late', late), ('sparse', sparse)):
        sequence = open_sequence(write_bag(tmp_path / name, chosen))
        frames, labels = scene(1)
        for number, frame in enumerate(sequence):
            np.testing.assert_array_equal(frame.image, frames[number])
            if name == 'late' or number % 2 == 0:
                np.testing.assert_array_equal(frame.truth, labels[number])
            else:
                assert frame.truth is None


def test_two_cameras(tmp_path):
    """Several candidates must be named; each camera is then a sequence of its own."""
    messages = [
        *entries(),
        *(('/left/image', *item[1:]) for item in entries() if item[0] == IMAGE),
    ]
    path = write_bag(tmp_path / 'bag', messages)
    with pytest.raises(BagError, match='several topics.*/camera/image_raw, /left/image'):
        open_sequence(path)
    assert len(open_sequence(path, image_topic='/left/image')) == 8
    outcome = CliRunner().invoke(
        evaluate,
        [
            'bag',
            str(path),
            '--image',
            '/left/image',
            '--image',
            IMAGE,
            '-e',
            'first-mask',
            '--out',
            str(tmp_path / 'out'),
            '--no-report',
        ],
    )
    assert outcome.exit_code == 0, outcome.output
    assert {item.name for item in (tmp_path / 'out' / 'masks' / 'first-mask').iterdir()} == {
        'bag-left-image',
        'bag-camera-image_raw',
    }


BACK = [10**9 + index * 10**8 for index in (0, 1, 2, 3, 0, 1, 2, 3)]


def test_a_clock_that_jumps_back(tmp_path):
    """It is refused with the place; what is sorted instead is in test_flaws.py."""
    path = write_bag(tmp_path / 'bag', entries(BACK))
    with pytest.raises(BagError, match='message 4 .*is 0.300 s older'):
        open_sequence(path)


def test_topics_missing_or_of_the_wrong_type(tmp_path):
    """The error lists what there is."""
    text = (
        '/talk',
        'std_msgs/msg/String',
        0,
        lambda header: STORE.types['std_msgs/msg/String']('hello'),
    )
    path = write_bag(tmp_path / 'bag', [*entries(), text])
    with pytest.raises(BagError, match=r'no topic /camera/left.*/camera/image_raw \(sensor_msgs'):
        open_sequence(path, image_topic='/camera/left')
    with pytest.raises(BagError, match='/talk is of type std_msgs/msg/String; sensor_msgs'):
        open_sequence(path, image_topic='/talk')
    only_images = [item for item in entries() if item[0] == IMAGE]
    path = write_bag(tmp_path / 'bare', only_images)
    with pytest.raises(BagError, match='no ground truth topic'):
        open_sequence(path)
    path = write_bag(tmp_path / 'apart', entries(truth_shift=7))
    with pytest.raises(BagError, match='has the stamp of one of'):
        open_sequence(path)


@pytest.mark.parametrize('storage, suffix', [('mcap', '.mcap'), ('sqlite3', '.db3')])
@pytest.mark.parametrize('share', [0.02, 0.5, 0.97])
def test_truncated_files(davis, tmp_path, storage, suffix, share):
    """A file that ends early is an error, never fewer frames and another number."""
    path = bag_from_davis(find_sequences(davis)[0], tmp_path / 'bag', storage=storage)
    (file,) = path.glob(f'*{suffix}')
    file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
    with pytest.raises(BagError, match='damaged or truncated|is truncated'):
        for _ in open_sequence(path):
            pass


@pytest.mark.parametrize('storage', ['mcap', 'sqlite3'])
def test_no_metadata(davis, tmp_path, storage):
    """Without metadata.yaml the file of messages is used, which is said; or how to repair it."""
    path = bag_from_davis(find_sequences(davis)[0], tmp_path / 'bag', storage=storage)
    whole = open_sequence(path)
    (path / 'metadata.yaml').unlink()
    sequence = open_sequence(path)
    assert sequence.stamps == whole.stamps and 'no metadata.yaml' in sequence.notes[0]
    for ours, theirs in zip(sequence, find_sequences(davis)[0], strict=True):
        np.testing.assert_array_equal(ours.truth, theirs.truth)
    (file,) = path.iterdir()
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(BagError, match='reindex'):
        list(open_sequence(path))
    file.unlink()
    with pytest.raises(BagError, match='no metadata.yaml'):
        open_sequence(path)
    with pytest.raises(BagError, match='does not exist'):
        open_sequence(tmp_path / 'nothing')


def test_damaged_messages(tmp_path):
    """An image that lost a part names its topic and stamp; so does a mask of another size."""

    def cut(header):
        message = bag_files.image_message(STORE, header, np.zeros((*SIZE, 3), np.uint8))
        message.data = message.data[:-5]
        return message

    messages = entries()
    messages[6] = (*messages[6][:3], cut)
    sequence = open_sequence(write_bag(tmp_path / 'cut', messages))
    with pytest.raises(BagError, match=r'/camera/image_raw with stamp 1.3000+: .*truncated'):
        list(sequence)
    messages = entries()
    messages[5] = (
        *messages[5][:3],
        lambda header: bag_files.image_message(STORE, header, np.zeros((4, 5), np.uint8)),
    )
    sequence = open_sequence(write_bag(tmp_path / 'small', messages))
    with pytest.raises(BagError, match='5x4.*96x64'):
        list(sequence)


def test_commands_end_in_messages_not_tracebacks(davis, tmp_path):
    """From the command line: convert, evaluate, and what a broken bag looks like."""
    command = CliRunner()
    made = command.invoke(
        bag_command,
        [
            'from-davis',
            str(davis),
            'two',
            str(tmp_path / 'two'),
            '--storage',
            'sqlite3',
            '--compressed',
        ],
    )
    assert made.exit_code == 0, made.output
    good = command.invoke(
        evaluate,
        [
            'bag',
            str(tmp_path / 'two'),
            '-e',
            'flow',
            '--no-report',
            '--out',
            str(tmp_path / 'out'),
        ],
    )
    assert good.exit_code == 0 and 'J&F' in good.output
    again = command.invoke(
        evaluate,
        [
            'bag',
            str(tmp_path / 'two'),
            '-e',
            '4x=flow',
            '--no-report',
            '--out',
            str(tmp_path / 'out'),
            '--write-bags',
        ],
    )
    assert again.exit_code == 0, again.output
    result = tmp_path / 'out' / 'bags' / 'two'
    predicted = open_sequence(result, truth_topic='/e4x/mask', image_topic=f'{IMAGE}/compressed')
    given = open_sequence(tmp_path / 'two')
    assert predicted.stamps == given.stamps
    for number, (frame, original) in enumerate(zip(predicted, given, strict=True)):
        np.testing.assert_array_equal(frame.image, original.image)
        np.testing.assert_array_equal(
            frame.truth,
            read_labels(tmp_path / 'out' / 'masks' / '4x' / 'two' / f'{number:05d}.png'),
        )
    (file,) = (tmp_path / 'two').glob('*.db3')
    file.write_bytes(file.read_bytes()[:5000])
    bad = command.invoke(evaluate, ['bag', str(tmp_path / 'two'), '--out', str(tmp_path / 'o')])
    assert bad.exit_code == 1 and bad.output.startswith('Error: ') and 'truncated' in bad.output


@pytest.mark.parametrize('compressed', [False, True])
def test_video_with_masks(tmp_path, compressed):
    """A video becomes a bag whose frames are the decoded ones; one mask file seeds it."""
    frames, labels = scene(1)
    with VideoWriter(tmp_path / 'clip.mp4', 12) as writer:
        for frame in frames:
            writer.write(frame)
    cv2.imwrite(str(tmp_path / 'mask.png'), labels[0] * 255)
    command = [
        'from-video',
        str(tmp_path / 'clip.mp4'),
        str(tmp_path / 'bag'),
        '--masks',
        str(tmp_path / 'mask.png'),
    ]
    made = CliRunner().invoke(bag_command, command + ['--compressed'] * compressed)
    assert made.exit_code == 0, made.output
    sequence = open_sequence(tmp_path / 'bag')
    assert np.abs(np.diff(sequence.stamps) - 1e9 / 12).max() <= 1
    found = list(sequence)
    np.testing.assert_array_equal(found[0].seed, labels[0])
    assert all(frame.truth is None for frame in found)
    assert np.abs(found[5].image.astype(int) - frames[5]).mean() < 20


@pytest.mark.parametrize('values, expected', [({1: 255}, {0, 1}), ({1: 7, 0: 255}, {0, 7})])
def test_truth_on_a_topic_is_read_as_that_in_files(tmp_path, values, expected):
    """Black and white is one object, and 255 beside other values is void, in every frame."""
    frames, labels = scene(1)
    found = []
    for index, (frame, label) in enumerate(zip(frames, labels, strict=True)):
        mask = label.copy()
        for old, new in values.items():
            mask[label == old] = new
        if index == 4:
            mask[label == 1] = 255  # in the second case only void is left
        for topic, picture in ((IMAGE, frame), (TRUTH, mask)):
            found.append(
                (
                    topic,
                    bag_files.IMAGE,
                    10**9 + index * 10**8,
                    lambda header, picture=picture: bag_files.image_message(
                        STORE, header, picture
                    ),
                )
            )
    truths = [frame.truth for frame in open_sequence(write_bag(tmp_path / 'bag', found))]
    assert {int(v) for v in np.unique(truths[0])} == expected
    assert bool(truths[4].any()) == (1 in expected)


def test_a_blurred_truth_on_a_topic_is_refused(tmp_path):
    found = entries()
    blurred = cv2.GaussianBlur(scene(1)[1][0] * 255, (0, 0), 2)
    found[1] = (*found[1][:3], lambda header: bag_files.image_message(STORE, header, blurred))
    with pytest.raises(BagError, match='the true mask of stamp 1.0.* are not crisp'):
        list(open_sequence(write_bag(tmp_path / 'bag', found)))
