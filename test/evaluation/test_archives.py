# SPDX-License-Identifier: Apache-2.0
"""Benchmarks as their archives unpack: recognised, run, packed for servers, put in a table."""

import json
import zipfile

from click.testing import CliRunner
import numpy as np
import pytest

from drift_ros.commands.evaluate import evaluate
from drift_ros.evaluation import paper
from drift_ros.evaluation.datasets import DatasetError
from drift_ros.evaluation.layouts import recognise
from drift_ros.evaluation.submission import write_submission
from drift_ros.media.labels import read_labels

from .conftest import scene, write_sequence


def keep(root, name, *numbers):
    """Leave the annotations of these frames only."""
    for path in (root / 'Annotations' / name).iterdir():
        if int(path.stem) not in numbers:
            path.unlink()


def late(number):
    """Make a scene whose second object appears in frame 3."""
    frames, labels = scene(number, objects=2, length=11)
    labels[:3][labels[:3] == 2] = 0
    return frames, labels


@pytest.fixture
def youtube(tmp_path):
    """YouTube-VOS: every fifth frame counts, objects start when they appear, no public truth."""
    root = tmp_path / 'ytvos'
    for name in ('train', 'valid'):
        write_sequence(root / name, '003234408d', *late(1))
        keep(root / name, '003234408d', 0, 5, 10)
        videos = {
            '003234408d': {
                'objects': {
                    '1': {'category': 'penguin', 'frames': ['00000', '00005', '00010']},
                    '2': {'category': 'penguin', 'frames': ['00005', '00010']},
                }
            }
        }
        (root / name / 'meta.json').write_text(json.dumps({'videos': videos}))
    keep(root / 'valid', '003234408d', 0, 5)
    write_sequence(root / 'valid_all_frames', '003234408d', *late(1))
    for index in range(11):
        if index % 5:
            (root / f'valid/JPEGImages/003234408d/{index:05d}.jpg').unlink()
    return root


def davis_2017(root):
    """DAVIS-2017 with both sets unpacked into one folder; of test-dev the first masks only."""
    for name in ('val', 'held'):
        write_sequence(root, name, *scene(2, objects=2), level='480p')
    for path in (root / 'Annotations/480p/held').iterdir():
        if path.stem != '00000':
            path.unlink()
    for year, part, name in (
        ('2016', 'val', 'val'),
        ('2017', 'val', 'val'),
        ('2017', 'test-dev', 'held'),
        ('2017', 'train', 'val'),
    ):
        path = root / 'ImageSets' / year / f'{part}.txt'
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f'{name}\n')
    return root


def run(root, out, *more):
    return CliRunner().invoke(
        evaluate, ['paper', str(root), '-e', 'first-mask', '--no-report', '--out', str(out), *more]
    )


def test_youtube_vos(youtube, tmp_path):
    """All frames are tracked, later objects seeded, what counts is packed, no score is told."""
    (split,) = recognise(youtube)
    assert (split.key, split.late_objects) == ('youtube-vos-valid', True)
    assert split.all_frames == (youtube / 'valid_all_frames/JPEGImages').resolve()
    (sequence,) = split.sequences()
    assert len(sequence) == 11 and not sequence.with_truth
    seeds = {frame.name: frame.seed for frame in sequence if frame.seed is not None}
    assert list(seeds) == ['00000', '00005']
    done = run(youtube, tmp_path / 'out')
    assert done.exit_code == 0, done.output
    with zipfile.ZipFile(tmp_path / 'out/youtube-vos-valid/submission/first-mask.zip') as packed:
        assert packed.namelist() == [
            f'Annotations/003234408d/{index:05d}.png' for index in (0, 5, 10)
        ]
        packed.extractall(tmp_path)
    last = read_labels(tmp_path / 'Annotations/003234408d/00010.png')
    assert set(np.unique(last)) == {0, 1, 2}
    row = json.loads((tmp_path / 'out/paper.json').read_text())['own'][0]
    assert row['scores'] == {} and 'no truth to score against; masks are packed' in row['note']
    assert 'submit [1]' in (tmp_path / 'out/paper.md').read_text()


def test_training_set_of_youtube_vos_has_a_truth(youtube, tmp_path):
    """Objects that appear later are seeded then, and scored from then on."""
    done = run(youtube / 'train', tmp_path / 'out')
    assert done.exit_code == 0, done.output
    folder = tmp_path / 'out/youtube-vos-train'
    scores = json.loads((folder / 'scores/first-mask/003234408d.json').read_text())
    assert scores['objects'] == [1] and scores['frames'] == [5]  # the last does not count
    assert not (folder / 'submission').exists()


@pytest.mark.parametrize(('count', 'year'), [(474, '2018'), (507, '2019')])
def test_year_of_youtube_vos(youtube, count, year):
    """Only the number of videos tells the validation sets apart."""
    meta = {f'{index}': {'objects': {'1': {'frames': ['00000']}}} for index in range(count)}
    (youtube / 'valid/meta.json').write_text(json.dumps({'videos': meta}))
    (split,) = recognise(youtube)
    assert split.key == f'youtube-vos-{year}-valid' and split.key in paper.published()['columns']


@pytest.mark.parametrize('text', ['{', '[]', '{"videos": [1]}', '{"videos": {"a": 1}}'])
def test_damaged_description(youtube, text):
    (youtube / 'valid/meta.json').write_text(text)
    with pytest.raises(DatasetError, match='meta.json does not name videos'):
        recognise(youtube)


def test_davis_2017(tmp_path):
    """Val is scored, test-dev is packed with folders at the top; the list of 2016 is not taken."""
    root = davis_2017(tmp_path / 'DAVIS')
    assert [split.key for split in recognise(root)] == ['davis-2017-test-dev', 'davis-2017-val']
    done = run(root, tmp_path / 'out')
    assert done.exit_code == 0, done.output
    with zipfile.ZipFile(tmp_path / 'out/davis-2017-test-dev/submission/first-mask.zip') as packed:
        assert packed.namelist() == [f'held/{index:05d}.png' for index in range(8)]
    results = json.loads((tmp_path / 'out/davis-2017-val/results.json').read_text())
    j_and_f = results['engines']['first-mask']['j_and_f']
    own = (tmp_path / 'out/paper.md').read_text().split('\n')
    (line,) = [text for text in own if text.startswith('| drift_ros first-mask')]
    assert f' {100 * j_and_f:.1f} |' in line and line.count(paper.ABSENT) == 4


def test_davis_2016(tmp_path):
    """Whatever is not background is the object, and the list is of files."""
    frames, labels = scene(1)
    write_sequence(tmp_path, 'one', frames, labels * 255, level='480p')
    for level in ('480p', '1080p'):
        (tmp_path / 'ImageSets' / level).mkdir(parents=True)
        (tmp_path / 'ImageSets' / level / 'val.txt').write_text(
            f'/JPEGImages/{level}/one/00000.jpg /Annotations/{level}/one/00000.png\n'
        )
    (split,) = recognise(tmp_path)
    (sequence,) = split.sequences()
    assert split.key == 'davis-2016-val' and sequence.task == 'single'


def test_long_videos(tmp_path):
    """Truth is sparse: frames without it are tracked and not scored."""
    root = tmp_path / 'long_video'
    for name in ('blueboy', 'dressage', 'rat'):
        write_sequence(root, name, *scene(1, length=16))
        keep(root, name, 0, 5, 10)
    (split,) = recognise(root)
    done = run(root, tmp_path / 'out')
    assert split.key == 'long-videos' and done.exit_code == 0, done.output
    scores = json.loads((tmp_path / 'out/long-videos/scores/first-mask/rat.json').read_text())
    assert scores['frames'] == [5, 10] and len(scores['frame_names']) == 16


def test_lvos(tmp_path):
    root = tmp_path / 'LVOS'
    for part in ('valid', 'test'):
        write_sequence(root / part, 'video', *late(1))
        described = {'1': {'frame_range': {'start': '0', 'end': '10', 'frame_nums': '3'}}}
        (root / part / f'{part}_meta.json').write_text(
            json.dumps({'videos': {'video': {'objects': described}}})
        )
    keep(root / 'test', 'video', 0, 3)
    hidden, scored = recognise(root)
    assert (hidden.key, scored.key) == ('lvos-test', 'lvos-valid') and scored.late_objects
    assert [split.sequences()[0].with_truth for split in (hidden, scored)] == [False, True]


def test_mose(tmp_path):
    root = tmp_path / 'MOSE'
    for part in ('train', 'valid'):
        write_sequence(root / part, 'video', *scene(1))
    keep(root / 'valid', 'video', 0)
    (split,) = recognise(root)
    assert split.key == 'mose-valid' and not split.sequences()[0].with_truth


def test_frames_before_the_first_object_are_background(tmp_path):
    root = tmp_path / 'MOSE/valid'
    write_sequence(root, 'video', *scene(1))
    keep(root, 'video', 2)
    done = run(root, tmp_path / 'out')
    assert done.exit_code == 0, done.output
    with zipfile.ZipFile(tmp_path / 'out/mose-valid/submission/first-mask.zip') as packed:
        assert len(packed.namelist()) == 8
        packed.extractall(tmp_path)
    shown = [read_labels(tmp_path / f'video/{index:05d}.png') for index in (0, 1, 2)]
    assert [bool(labels.any()) for labels in shown] == [False, False, True]
    assert shown[0].shape == shown[2].shape


def test_parts_are_told_from_whole_sets(tmp_path):
    """A number of some frames or sequences is marked, and nothing is packed of it."""
    root = davis_2017(tmp_path / 'DAVIS')
    done = run(root, tmp_path / 'out', '--max-frames', '4')
    assert done.exit_code == 0, done.output
    assert 'not the whole set' in (tmp_path / 'out/paper.md').read_text()
    assert not list((tmp_path / 'out').glob('*/submission/*'))


def test_edited_masks_are_not_packed(tmp_path):
    root = davis_2017(tmp_path / 'DAVIS')
    run(root, tmp_path / 'out')
    out, split = tmp_path / 'out/davis-2017-test-dev', recognise(root)[0]
    (out / 'submission/first-mask.zip').unlink()
    (out / 'masks/first-mask/held/00003.png').write_bytes(
        (out / 'masks/first-mask/held/00000.png').read_bytes() + b'\0'
    )
    with pytest.raises(DatasetError, match='are not those of its results'):
        write_submission(out, 'first-mask', split, split.sequences())
    assert not list((out / 'submission').iterdir())


def test_one_set_twice_and_none(tmp_path):
    done = run(tmp_path, tmp_path / 'out')
    assert done.exit_code == 1 and 'holds no JPEGImages' in done.output
    for name in ('a', 'b'):
        write_sequence(tmp_path / name / 'MOSE', 'video', *scene(1))
    done = CliRunner().invoke(
        evaluate, ['paper', *(str(tmp_path / name / 'MOSE') for name in ('a', 'b'))]
    )
    assert done.exit_code == 1 and 'are both mose:' in done.output


def table_of(out):
    return (out / 'paper.md').read_text()


def test_what_a_set_lacks_fails_it(youtube, tmp_path):
    """A sequence that is known to be in it, of Long Videos by name, of others by their file."""
    root = tmp_path / 'long_video'
    write_sequence(root, 'rat', *scene(1, length=16))
    done = run(root, tmp_path / 'out')
    assert done.exit_code == 1 and 'lacks its sequence blueboy' in done.output
    assert 'not the whole set, sequences: 1' in table_of(tmp_path / 'out')
    meta = json.loads((youtube / 'valid/meta.json').read_text())
    meta['videos']['other'] = meta['videos']['003234408d']
    (youtube / 'valid/meta.json').write_text(json.dumps(meta))
    done = run(youtube, tmp_path / 'more')
    assert done.exit_code == 1 and 'lacks its sequence other' in done.output
    assert not list((tmp_path / 'more').glob('*/submission/*.zip'))


def test_an_unfinished_copy_of_a_published_truth(tmp_path):
    """It is no test set: the other sequences are scored, and this one is told."""
    root = davis_2017(tmp_path / 'DAVIS')
    write_sequence(root, 'cut', *scene(3), level='480p')
    (root / 'ImageSets/2017/val.txt').write_text('val\ncut\n')
    for path in (root / 'Annotations/480p/cut').iterdir():
        if path.stem != '00000':
            path.unlink()
    done = run(root, tmp_path / 'out')
    assert done.exit_code == 1 and 'cut has none after its objects start' in done.output
    row = next(
        item
        for item in json.loads((tmp_path / 'out/paper.json').read_text())['own']
        if item['key'] == 'davis-2017-val'
    )
    assert row['scores'] and 'not the whole set' in row['note']


@pytest.mark.parametrize('where', ['valid/JPEGImages', 'valid_all_frames/JPEGImages'])
def test_a_lost_frame_is_told_before_anything_is_tracked(youtube, tmp_path, where):
    lost = youtube / where / '003234408d' / '00010.jpg'
    lost.unlink()
    if where.startswith('valid/'):
        lost.symlink_to(tmp_path / 'nowhere.jpg')
    done = run(youtube, tmp_path / 'out')
    if where.startswith('valid/'):  # the frame of all frames is tracked in its place
        assert done.exit_code == 0, done.output
    else:
        assert done.exit_code == 1 and 'lacks the frame 00010' in done.output
        assert not list((tmp_path / 'out').glob('*/submission/*.zip'))


def test_a_link_to_nothing_is_no_missing_frame(tmp_path):
    root = tmp_path / 'MOSE/valid'
    write_sequence(root, 'video', *scene(1))
    keep(root, 'video', 0)
    (root / 'JPEGImages/video/00003.jpg').unlink()
    (root / 'JPEGImages/video/00003.jpg').symlink_to(tmp_path / 'nowhere.jpg')
    done = run(root, tmp_path / 'out')
    assert done.exit_code == 1 and '00003.jpg' in done.output
    assert not list((tmp_path / 'out').glob('*/submission/*.zip'))


@pytest.mark.parametrize(
    'objects', ['[]', '{"1": 5}', '{"1": null}', '{"1": []}', '{"1": {"start": 1}}']
)
def test_descriptions_of_other_things(youtube, objects):
    text = f'{{"videos": {{"a": {{"objects": {objects}}}}}}}'
    (youtube / 'valid/meta.json').write_text(text)
    with pytest.raises(DatasetError, match='does not name videos and their objects'):
        recognise(youtube)


def test_a_set_that_cannot_be_run_does_not_end_the_others(youtube, tmp_path):
    bad = tmp_path / 'MOSE'
    write_sequence(bad, 'video [/b]', *scene(1))
    keep(bad, 'video [/b]')
    done = CliRunner().invoke(
        evaluate,
        [
            *('paper', str(bad), str(youtube / 'train'), '-e', 'first-mask', '--no-report'),
            *('--out', str(tmp_path / 'out')),
        ],
    )
    assert done.exit_code == 1 and 'has no annotation' in done.output
    assert '| drift_ros first-mask |' in table_of(tmp_path / 'out')


def test_a_table_is_made_in_several_runs(youtube, tmp_path):
    """What earlier runs reached stays, and is told from this one's."""
    out = tmp_path / 'out'
    run(davis_2017(tmp_path / 'DAVIS'), out)
    first = {item['key']: item for item in json.loads((out / 'paper.json').read_text())['own']}
    run(youtube / 'train', out)
    now = {item['key']: item for item in json.loads((out / 'paper.json').read_text())['own']}
    assert set(now) == {*first, 'youtube-vos-train'}
    assert now['davis-2017-val']['scores'] == first['davis-2017-val']['scores']
    assert 'of an earlier run' in now['davis-2017-val']['note']
    assert 'of an earlier run' not in now['youtube-vos-train']['note']


def test_names_are_looked_for_in_all_sets(tmp_path):
    root = davis_2017(tmp_path / 'DAVIS')
    done = run(root, tmp_path / 'out', '--sequences', 'held')
    assert done.exit_code == 0, done.output
    done = run(root, tmp_path / 'out', '--sequences', 'held,nobody')
    assert done.exit_code == 1 and 'no sequence nobody' in done.output


def test_an_old_submission_does_not_outlive_its_masks(tmp_path):
    root = davis_2017(tmp_path / 'DAVIS')
    run(root, tmp_path / 'out')
    assert list((tmp_path / 'out').glob('*/submission/*.zip'))
    run(root, tmp_path / 'out', '--max-frames', '3')
    assert not list((tmp_path / 'out').glob('*/submission/*.zip'))
    assert 'packed' not in table_of(tmp_path / 'out')


def test_objects_that_are_not_of_the_protocol_are_told(tmp_path):
    run(davis_2017(tmp_path / 'DAVIS'), tmp_path / 'out', '--late-objects')
    assert 'objects that appear later are scored as well' in table_of(tmp_path / 'out')


def test_published_numbers():
    """Every value is of a column, in percent, with its source."""
    data = paper.published()
    for row in data['rows']:
        assert row['source'] and 2015 < row['year'] < 2027 and row['learnt']
        assert row['values'] or 'not at hand' in row['learnt']
        assert set(row['values']) <= set(data['columns'])
        assert all(10 < value < 100 for item in row['values'].values() for value in item.values())
