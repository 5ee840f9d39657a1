# SPDX-License-Identifier: Apache-2.0
"""Ground truth in files, seeds in files and topics, and what is said without ground truth."""

import csv
import json

from click.testing import CliRunner
import numpy as np
import pytest
from rosbags.typesys import get_typestore, Stores

from drift_ros.commands.evaluate import evaluate
from drift_ros.evaluation import bag_files, stability
from drift_ros.evaluation.bag_choice import parse_stamp
from drift_ros.evaluation.bag_files import BagError
from drift_ros.evaluation.bags import open_sequence
from drift_ros.media.labels import read_labels, write_labels

from .conftest import scene
from .test_bags import entries, IMAGE, STORE, TRUTH, write_bag

STAMPS = [10**9 + index * 10**8 for index in range(8)]


@pytest.fixture
def bare(tmp_path):
    """Make a bag of images only."""
    return write_bag(tmp_path / 'bare', [item for item in entries() if item[0] == IMAGE])


@pytest.fixture
def mask(tmp_path):
    """Write the first true mask to a file."""
    write_labels(tmp_path / 'mask.png', scene(1)[1][0])
    return tmp_path / 'mask.png'


def run(*arguments):
    return CliRunner().invoke(evaluate, ['bag', *map(str, arguments)])


@pytest.mark.parametrize('name', ['{}', '{1}.{2:09d}', '{1}_{2:09d}'])
def test_truth_in_a_folder_is_that_of_the_topic(bare, tmp_path, name):
    frames, labels = scene(1)
    for stamp, label in zip(STAMPS, labels, strict=True):
        text = name.format(stamp, *divmod(stamp, 10**9))
        write_labels(tmp_path / 'truth' / f'{text}.png', label)
    given = open_sequence(write_bag(tmp_path / 'bag', entries()))
    sequence = open_sequence(bare, truth_folder=tmp_path / 'truth')
    assert sequence.stamps == given.stamps
    for ours, theirs in zip(sequence, given, strict=True):
        np.testing.assert_array_equal(ours.truth, theirs.truth)
    write_labels(tmp_path / 'truth' / '1.5.png', labels[0])
    with pytest.raises(BagError, match='1.5.png.*is not a stamp.*nine digits'):
        open_sequence(bare, truth_folder=tmp_path / 'truth')


def test_stamps():
    assert parse_stamp('1600000000.041666667') == parse_stamp('1600000000041666667')
    for text in ('1.5', 'frame', '1.0416666670', ''):
        with pytest.raises(BagError, match='is not a stamp'):
            parse_stamp(text)


def test_seed_file_starts_at_its_frame(bare, mask, tmp_path):
    frames = list(open_sequence(bare, seed_mask=mask, seed_stamp='1.200000000'))
    assert len(frames) == 6
    np.testing.assert_array_equal(frames[0].seed, scene(1)[1][0])
    assert all(frame.seed is None for frame in frames[1:])
    assert all(frame.truth is None for frame in frames)
    with pytest.raises(BagError, match='belongs to no message of /camera/image_raw'):
        open_sequence(bare, seed_mask=mask, seed_stamp='77')


def test_recorded_seeds(tmp_path):
    """Two seeds of one frame are one; a later one starts another object; they are no truth."""
    frames, labels = scene(2, objects=2)
    messages = [item for item in entries() if item[0] == IMAGE]
    for stamp, label, value in (
        (STAMPS[1], labels[1] == 1, 3),
        (STAMPS[1], labels[1] == 2, 4),
        (STAMPS[4], labels[4] == 1, 9),
    ):
        picture = label.astype(np.uint8) * value
        messages.append(
            (
                '/tracker/seeds',
                bag_files.IMAGE,
                stamp,
                lambda header, picture=picture: bag_files.image_message(STORE, header, picture),
            )
        )
    path = write_bag(tmp_path / 'bag', messages)
    sequence = open_sequence(path)
    found = list(sequence)
    assert sequence.seed_numbers == [0, 3] and not sequence.truth_stamps and len(found) == 7
    assert np.unique(found[0].seed).tolist() == [0, 3, 4]
    assert np.unique(found[3].seed).tolist() == [0, 9]
    outcome = run(path, '-e', 'first-mask', '--out', tmp_path / 'out', '--no-report')
    assert outcome.exit_code == 0, outcome.output
    last = read_labels(tmp_path / 'out' / 'masks' / 'first-mask' / 'bag' / '00006.png')
    assert np.unique(last).tolist() == [0, 3, 4, 9]


def test_report_without_truth(bare, mask, tmp_path):
    """Stability, survival, agreement with the first engine; no J&F anywhere."""
    out = tmp_path / 'out'
    outcome = run(bare, '--seed-mask', mask, '-e', 'first-mask', '-e', 'flow', '--out', out)
    assert outcome.exit_code == 0, outcome.output
    assert 'this is not accuracy' in outcome.output and 'J&F' not in outcome.output
    data = json.loads((out / 'results.json').read_text())
    assert data['engines']['flow']['j_and_f'] is None
    first, flow = data['stability']
    assert first['temporal_iou'] == 1 and first['warped_iou'] < 0.95
    assert flow['warped_iou'] > first['warped_iou']
    assert flow['temporal_iou'] < 0.95
    assert first['survival'] == flow['survival'] == 1 and flow['first_loss'] is None
    assert first['agreement_j'] is None and 0 < flow['agreement_j'] < 1
    assert flow['reference'] == 'first-mask'
    (_, row) = csv.DictReader((out / 'stability.csv').read_text().splitlines())
    assert float(row['warped_iou']) == flow['warped_iou']
    page = (out / 'report.html').read_text()
    assert 'id="stability"' in page and 'scores.png' not in page
    assert 'bare - drift_ros evaluation' in page and str(bare) in page
    summary = page.split('id="summary"')[1].split('</table>')[0]
    assert '<td>-</td>' not in summary and 'J mean' not in summary
    assert data['engines']['flow']['objects'] == 1
    again = run(
        bare,
        '--seed-mask',
        mask,
        '-e',
        'flow',
        '--out',
        tmp_path / 'two',
        '--compare',
        out,
        '--no-report',
    )
    assert again.exit_code == 0, again.output
    (row,) = json.loads((tmp_path / 'two' / 'results.json').read_text())['stability']
    assert row['agreement_j'] == row['agreement_f'] == 1
    assert row['reference'].startswith('flow in ')


def test_survival_counts_frames_and_first_loss(tmp_path):
    """Shares are means over objects; the seed frame does not count."""
    from drift_ros.evaluation.protocol import Track
    from drift_ros.evaluation.results import JobResult, NO_SCORE

    states = {1: [1, 1, 2, 3, 1], 2: [1, 1, 1, 1, 1]}
    tracks = tuple(
        tuple(Track(label, row[index], 0.5, 9, index, None) for label, row in states.items())
        for index in range(5)
    )
    row = JobResult('a', 's', NO_SCORE, np.ones(4), (4, 4), tuple('01234'), tracks)
    assert stability._survival(row) == {'survival': (0.5 + 1) / 2, 'first_loss': 3}
    assert JobResult.from_dict(json.loads(json.dumps(row.as_dict()))).as_dict() == row.as_dict()


@pytest.mark.parametrize(
    'arguments, message',
    [
        ([], 'no ground truth topic'),
        (['--rate', '5'], 'add --live'),
        (['--seed-mask', 'MASK', '--compare', 'BAG'], 'has no masks'),
        (['--seed-mask', 'MASK', '--seeds', '/x'], 'not both'),
        (['--seed-mask', 'MASK', '--live', '--rate', '0', '-e', 'tracker'], 'above 0'),
        (['--seed-mask', 'MASK', '--live', '-e', 'flow'], 'cannot run live'),
    ],
)
def test_mistakes(bare, mask, tmp_path, arguments, message):
    arguments = [{'MASK': mask, 'BAG': bare}.get(item, item) for item in arguments]
    outcome = run(bare, '-e', 'first-mask', *arguments, '--out', tmp_path / 'o', '--no-report')
    assert outcome.exit_code == 1
    assert outcome.output.splitlines()[-1].startswith('Error: ') and message in outcome.output


def test_result_bag_says_what_the_node_says(tmp_path):
    """Boxes and tracks are serialised as the node's own conversion does it, field by field."""
    pytest.importorskip('rclpy')
    from rclpy.serialization import serialize_message
    from std_msgs.msg import Header

    from drift_ros.engine.estimates import ObjectEstimate
    from drift_ros.engine.table import ObjectState
    from drift_ros.evaluation import result_bag
    from drift_ros.ros import messages
    from drift_ros.ros.messages import register_type

    objects = [
        ObjectEstimate(3, '', ObjectState.TRACKING, 0.75, 0.9, (4, 5, 20, 31), 99, 7),
        ObjectEstimate(8, '', ObjectState.LOST, 0.125, 0.1, None, 0, 2),
    ]
    store = get_typestore(Stores.ROS2_KILTED)
    register_type(store, result_bag.DETECTIONS)
    register_type(store, result_bag.TRACKS)
    header = Header(frame_id='eye')
    header.stamp.sec, header.stamp.nanosec = 5, 6
    ours = bag_files.make_header(store, 5 * 10**9 + 6)
    ours.frame_id = 'eye'
    for kind, mine, theirs in (
        (
            result_bag.DETECTIONS,
            result_bag.detections(store, ours, objects),
            messages.detections(objects, header),
        ),
        (
            result_bag.TRACKS,
            result_bag.track_array(store, ours, objects, 1.25),
            messages.tracks(objects, {'total': 1250.0}, 1_250_000_000, header),
        ),
    ):
        # padding between fields is arbitrary in the node's
        theirs = store.deserialize_cdr(serialize_message(theirs), kind)
        assert bytes(store.serialize_cdr(mine, kind)) == bytes(store.serialize_cdr(theirs, kind))


def test_result_bag(tmp_path):
    """Each image gets mask, boxes, tracks and overlay of its own header, beside the input."""
    path = write_bag(tmp_path / 'bag', entries())
    outcome = run(path, '-e', 'flow', '--out', tmp_path / 'out', '--no-report', '--write-bags')
    assert outcome.exit_code == 0, outcome.output
    written = tmp_path / 'out' / 'bags' / 'bag'
    kinds = bag_files.topics_of(written)
    assert kinds == {
        IMAGE: bag_files.IMAGE,
        TRUTH: bag_files.IMAGE,
        '/flow/mask': bag_files.IMAGE,
        '/flow/overlay': bag_files.IMAGE,
        '/flow/tracks': 'drift_ros_msgs/msg/TrackArray',
        '/flow/detections': 'vision_msgs/msg/Detection2DArray',
    }
    from rosbags.highlevel import AnyReader

    boxes, tracks = [], []
    with AnyReader([written]) as reader:  # the definitions come with the bag
        for connection, _, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            if connection.topic == '/flow/detections':
                stamp = message.header.stamp
                boxes.append((stamp.sec * 10**9 + stamp.nanosec, message.detections[0]))
            elif connection.topic == '/flow/tracks':
                tracks.append(message)
    assert [stamp for stamp, _ in boxes] == STAMPS
    first = boxes[0][1]
    assert (first.bbox.center.position.x, first.bbox.size_x, first.id) == (20, 20, '1')
    assert [item.tracks[0].age for item in tracks] == list(range(8))
    assert tracks[3].stage_times[0] > 0
