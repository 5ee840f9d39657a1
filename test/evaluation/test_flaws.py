# SPDX-License-Identifier: Apache-2.0
"""One bad item is reported, the others are scored; a flaw that can be mended is, and is said."""

import json
import re
import shutil

from click.testing import CliRunner
import cv2
import numpy as np
from PIL import Image
import pytest

from drift_ros.commands.bag import bag as bag_command
from drift_ros.commands.evaluate import evaluate
from drift_ros.evaluation import bag_files
from drift_ros.evaluation import run as runner
from drift_ros.evaluation.bag_files import BagError
from drift_ros.evaluation.bags import open_sequence
from drift_ros.evaluation.baselines import FirstMask
from drift_ros.evaluation.datasets import BrokenSequence, DatasetError, find_sequences
from drift_ros.evaluation.engines import parse_engine
from drift_ros.media.labels import write_labels
from drift_ros.media.video import write_image

from .conftest import scene, write_sequence
from .test_bags import entries, IMAGE, STORE, TRUTH, write_bag

FIRST = parse_engine('first-mask')
TRACKS = 'drift_ros_msgs/msg/TrackArray'


def run(*arguments):
    return CliRunner().invoke(evaluate, [*map(str, arguments), '-e', 'first-mask', '--no-report'])


# -- sequences of a folder

SHORT = (scene(3)[0][:2], scene(3)[1][:2])


def short(root):
    write_sequence(root, 'bad', *SHORT)


def unannotated(root):
    write_sequence(root, 'bad', *scene(3))
    shutil.rmtree(root / 'Annotations' / 'bad')


def without_images(root):
    write_sequence(root, 'bad', *scene(3))
    shutil.rmtree(root / 'JPEGImages' / 'bad')


def no_annotation(root):
    write_sequence(root, 'bad', *scene(3))
    for path in (root / 'Annotations' / 'bad').iterdir():
        path.unlink()


def coloured_mask(root):
    write_sequence(root, 'bad', *scene(3))
    Image.fromarray(scene(3)[0][0]).save(root / 'Annotations' / 'bad' / '00000.png')


def coloured_later(root):
    write_sequence(root, 'bad', *scene(3))
    Image.fromarray(scene(3)[0][4]).save(root / 'Annotations' / 'bad' / '00004.png')


def empty_first(root):
    frames, labels = scene(3)
    write_sequence(root, 'bad', frames, np.concatenate([0 * labels[:1], labels[1:]]))


def blurred(root):
    write_sequence(root, 'bad', *scene(3))
    mask = cv2.GaussianBlur(scene(3)[1][0] * 255, (0, 0), 2)
    cv2.imwrite(str(root / 'Annotations' / 'bad' / '00000.png'), mask)


def orphan(root):
    write_sequence(root, 'bad', *scene(3))
    (root / 'JPEGImages' / 'bad' / '00003.jpg').unlink()


def twice(root):
    write_sequence(root, 'bad', *scene(3))
    write_image(root / 'JPEGImages' / 'bad' / '00003.png', scene(3)[0][3])


def other_size(root):
    write_sequence(root, 'bad', *scene(3))
    write_labels(root / 'Annotations' / 'bad' / '00003.png', np.ones((5, 7), np.uint8))


def many_labels(root):
    write_sequence(root, 'bad', *scene(3))
    mask = scene(3)[1][0].astype(np.uint16) * 1000
    cv2.imwrite(str(root / 'Annotations' / 'bad' / '00000.png'), mask)


@pytest.mark.parametrize(
    ('spoil', 'message'),
    [
        (short, 'has 2 frames'),
        (unannotated, 'has no annotations'),
        (without_images, 'has no images'),
        (no_annotation, 'has no annotation'),
        (coloured_mask, 'VOC/DAVIS palette'),
        (coloured_later, '00004.png.*VOC/DAVIS palette'),
        (empty_first, 'first mask is empty'),
        (blurred, 'not crisp'),
        (orphan, '00003.png has no frame'),
        (twice, 'two frames named 00003'),
        (other_size, '7x5 but its frame .* is 96x64'),
        (many_labels, 'label 1000'),
    ],
)
def test_a_bad_sequence_is_reported_and_the_others_are_scored(davis, tmp_path, spoil, message):
    spoil(davis)
    found = find_sequences(davis)
    results, errors = runner.run([FIRST], found, tmp_path / 'out')
    assert [item.name for item in found] == ['bad', 'one', 'two']
    assert [item.sequence for item in results] == ['one', 'two']
    assert list(errors) == [('first-mask', 'bad')]
    assert re.search(message, errors['first-mask', 'bad']), errors


def test_the_exit_code_says_so(davis, tmp_path):
    short(davis)
    outcome = run('davis', davis, '--out', tmp_path / 'out')
    assert outcome.exit_code == 1 and 'failed: first-mask on bad' in outcome.output
    data = json.loads((tmp_path / 'out' / 'results.json').read_text())
    assert [row['sequence'] for row in data['sequences']] == ['one', 'two']
    assert 'has 2 frames' in data['errors'][0]['error']
    outcome = run('davis', davis, '--compose', 'beside', '--out', tmp_path / 'composed')
    assert outcome.exit_code == 1 and 'one+two' in outcome.output, outcome.output
    outcome = run('davis', davis, '--sequences', 'bad', '--out', tmp_path / 'alone')
    assert outcome.exit_code == 1 and outcome.output.startswith('Error: the sequence bad has 2')


def test_a_list_that_names_what_is_not_there(davis, tmp_path):
    (davis / 'ImageSets' / '2017').mkdir(parents=True)
    (davis / 'ImageSets' / '2017' / 'val.txt').write_text('one\ngone\n')
    outcome = run('davis', davis, '--subset', 'val', '--out', tmp_path / 'out')
    assert outcome.exit_code == 1 and 'on gone: ' in outcome.output, outcome.output
    assert (tmp_path / 'out' / 'scores' / 'first-mask' / 'one.json').exists()


def test_what_tools_leave_in_folders_is_not_looked_at(davis, tmp_path):
    """Hidden files and folders, and a folder beside the pictures, are no data."""
    for kind, suffix in (('JPEGImages', 'jpg'), ('Annotations', 'png')):
        (davis / kind / '.DS_Store').write_bytes(b'\0')
        (davis / kind / '.ipynb_checkpoints').mkdir()
        for name in ('one', 'two'):
            (davis / kind / name / f'._00000.{suffix}').write_bytes(b'Mac')
            (davis / kind / name / f'.00003.{suffix}.swp').write_bytes(b'vim')
            (davis / kind / name / '.ipynb_checkpoints').mkdir()
            (davis / kind / name / 'thumbnails').mkdir()
            (davis / kind / name / 'Thumbs.db').write_bytes(b'\0')
    outcome = run('davis', davis, '--out', tmp_path / 'out')
    assert outcome.exit_code == 0, outcome.output
    assert [len(item) for item in find_sequences(davis)] == [8, 8]


def test_what_nobody_foresaw_in_a_job_does_not_end_the_others(davis, tmp_path, monkeypatch):
    def step(self, frame):
        if (frame == sequences[0][2]).all():
            raise ZeroDivisionError('by a kitten')
        return before(self, frame)

    before = FirstMask.step
    sequences = [[frame.image for frame in item] for item in find_sequences(davis)]
    monkeypatch.setattr(FirstMask, 'step', step)
    results, errors = runner.run([FIRST], find_sequences(davis), tmp_path)
    assert [item.sequence for item in results] == ['two']
    text = errors['first-mask', 'one']
    assert 'ZeroDivisionError: by a kitten' in text and 'one.txt' in text
    assert 'Traceback' in (tmp_path / 'logs' / 'first-mask' / 'one.txt').read_text()


# -- bags


def stamps_of(order):
    return [10**9 + index * 10**8 for index in order]


@pytest.mark.parametrize(
    ('order', 'count', 'said'),
    [
        ((0, 1, 3, 2, 4, 5, 6, 7), 8, '1 messages of /camera/image_raw came after'),
        ((1, 0, 3, 2, 5, 4, 7, 6), 8, '4 messages'),
        ((0, 1, 4, 3, 2, 5, 6, 7), 8, '2 messages'),
        ((0, 1, 2, 2, 4, 5, 6, 7), 7, '1 messages of /camera/image_raw repeat a stamp'),
        ((0, 0, 0, 3, 4, 5, 7, 6), 6, '2 messages of /camera/image_raw repeat'),
    ],
)
def test_swapped_and_repeated_messages_are_sorted_counted_and_said(tmp_path, order, count, said):
    path = write_bag(tmp_path / 'bag', entries(stamps_of(order)))
    sequence = open_sequence(path)
    found = list(sequence)
    frames, labels = scene(1)
    places = [order.index(index) for index in sorted(set(order))]  # the first of each stamp
    assert len(sequence) == len(found) == count
    for frame, place in zip(found, places, strict=True):
        np.testing.assert_array_equal(frame.image, frames[place])
        np.testing.assert_array_equal(frame.truth, labels[place])
    assert [stamp for stamp, _ in sequence.serialized()] == list(sequence.stamps)
    assert any(said in note for note in sequence.notes), sequence.notes
    outcome = run('bag', path, '--out', tmp_path / 'out', '--write-bags')
    assert outcome.exit_code == 0 and said in outcome.output, outcome.output
    run_data = json.loads((tmp_path / 'out' / 'run.json').read_text())
    assert run_data['data']['notes'] == list(sequence.notes)
    with bag_files.open_bag(tmp_path / 'out' / 'bags' / 'bag') as reader:
        written = {item.topic: item.msgcount for item in reader.connections}
    assert written['/first_mask/mask'] == count


@pytest.mark.parametrize('order', [(0, 1, 2, 3, 0, 1, 2, 3), (4, 5, 6, 7, 0, 1, 2, 3)])
def test_a_clock_that_was_reset_is_refused(tmp_path, order):
    with pytest.raises(BagError, match='message 4 .* older.*clock was reset'):
        open_sequence(write_bag(tmp_path / 'bag', entries(stamps_of(order))))


def test_a_bad_bag_is_reported_and_the_others_are_scored(tmp_path):
    good = write_bag(tmp_path / 'good', entries())
    bare = write_bag(tmp_path / 'bare', [item for item in entries() if item[0] == IMAGE])
    broken = write_bag(tmp_path / 'broken', entries())
    shutil.rmtree(broken)
    broken.mkdir()
    outcome = run('bag', good, bare, broken, '--out', tmp_path / 'out')
    assert outcome.exit_code == 1, outcome.output
    for words in ('on bare: ', 'no ground truth', 'on broken: ', 'no metadata.yaml'):
        assert words in outcome.output
    assert (tmp_path / 'out' / 'scores' / 'first-mask' / 'good.json').exists()
    outcome = run('bag', bare, broken, '--out', tmp_path / 'out')
    assert outcome.exit_code == 1 and outcome.output.startswith('Error: ')


# -- bags of our own


@pytest.fixture
def clip(tmp_path):
    folder = tmp_path / 'clip'
    folder.mkdir()
    for index, frame in enumerate(scene(1)[0]):
        write_image(folder / f'{index}.png', frame)
    write_labels(tmp_path / 'mask.png', scene(1)[1][0])
    return folder


def from_video(clip, out, *more):
    outcome = CliRunner().invoke(bag_command, ['from-video', str(clip), str(out), *map(str, more)])
    assert outcome.exit_code == 0, outcome.output
    return out


def test_a_bag_of_a_video_without_masks(clip, tmp_path):
    """It is told at once what to give, and evaluated when it is given."""
    bag = from_video(clip, tmp_path / 'bag')
    assert TRUTH not in bag_files.topics_of(bag)
    outcome = run('bag', bag, '--out', tmp_path / 'out')
    assert outcome.exit_code == 1 and '--seed-mask' in outcome.output
    outcome = run('bag', bag, '--seed-mask', tmp_path / 'mask.png', '--out', tmp_path / 'out')
    assert outcome.exit_code == 0 and 'not accuracy' in outcome.output, outcome.output


@pytest.mark.parametrize('last', [False, True])
def test_a_bag_of_a_video_with_one_mask(clip, tmp_path, last):
    """It is the seed: a truth of the first frame, or the last, scores nothing."""
    masks = tmp_path / 'masks'
    write_labels(masks / '00000.png', scene(1)[1][0])
    if last:
        write_labels(masks / '00007.png', scene(1)[1][7])
    bag = from_video(clip, tmp_path / 'bag', '--masks', masks if last else tmp_path / 'mask.png')
    outcome = run('bag', bag, '--out', tmp_path / 'out')
    assert outcome.exit_code == 0, outcome.output
    assert 'only the seed' in outcome.output and 'not accuracy' in outcome.output
    frames = list(open_sequence(bag))
    assert all(frame.truth is None for frame in frames)
    assert [frame.seed is not None for frame in frames] == [True] + [False] * 7
    folder = tmp_path / 'truth'
    folder.mkdir()
    shutil.copy(tmp_path / 'mask.png', folder / f'{open_sequence(bag).stamps[0]}.png')
    only = open_sequence(bag, truth_folder=folder)
    assert only.seed_numbers == [0] and not only.truth_files


def tracks(header):
    kind = STORE.types['builtin_interfaces/msg/Duration']
    return STORE.types[TRACKS](header, [], kind(0, 0), [], np.zeros(0, np.float32))


def as_recorded(images=True, stamp_of_seed=0):
    """Return what the demo records: what the tracker says, with the frames or without."""
    from drift_ros.ros.messages import register_type

    register_type(STORE, TRACKS)
    found = [item for item in entries() if item[0] == IMAGE] if images else []
    found = [('/demo/image', *item[1:]) for item in found]
    for index, (stamp, label) in enumerate(zip(stamps_of(range(8)), scene(1)[1], strict=True)):

        def mask(header, label=label):
            return bag_files.image_message(STORE, header, label * 3)

        found.append(('/demo/tracker/tracks', TRACKS, stamp, tracks))
        for name in ('mask', 'overlay', *(['seeds'] if index == stamp_of_seed else [])):
            found.append((f'/demo/tracker/{name}', bag_files.IMAGE, stamp, mask))
    return found


def test_a_bag_of_the_demo(tmp_path):
    """The frames are what a tracker did not say; its seeds are ids of objects."""
    pytest.importorskip('drift_ros_msgs')
    path = write_bag(tmp_path / 'bag', as_recorded(stamp_of_seed=1))
    sequence = open_sequence(path)
    assert sequence.image_topic == '/demo/image' and sequence.seed_topic == '/demo/tracker/seeds'
    frames = list(sequence)
    assert len(frames) == 7 and np.unique(frames[0].seed).tolist() == [0, 3]
    assert run('bag', path, '--out', tmp_path / 'out').exit_code == 0
    bare = write_bag(tmp_path / 'bare', as_recorded(images=False))
    outcome = run('bag', bare, '--out', tmp_path / 'out')
    assert outcome.exit_code == 1 and '--record-images' in outcome.output, outcome.output


def test_recorded_ids_are_neither_white_nor_void(tmp_path):
    """Object 255 is an object: more than an evaluation takes, but never silently another."""
    pytest.importorskip('drift_ros_msgs')
    messages = as_recorded()
    for index, item in enumerate(messages):
        if item[0] == '/demo/tracker/seeds':
            mask = scene(1)[1][0].astype(np.uint16) * 255

            def make(header, mask=mask):
                message = bag_files.image_message(STORE, header, mask.astype(np.uint8))
                message.encoding, message.step = 'mono16', 2 * mask.shape[1]
                message.data = mask.view(np.uint8).reshape(-1)
                return message

            messages[index] = (*item[:3], make)
    with pytest.raises(BagError, match='label 255'):
        list(open_sequence(write_bag(tmp_path / 'bag', messages)))


def test_a_broken_one_alone():
    with pytest.raises(DatasetError, match='why'):
        list(BrokenSequence('x', 'why'))
