# SPDX-License-Identifier: Apache-2.0
"""DAVIS-layout folders as people have them, and masks the official tools can read."""

import numpy as np
from PIL import Image
import pytest

from drift_ros.evaluation.datasets import DatasetError, find_sequences, sound
from drift_ros.media.labels import write_labels

from .conftest import scene, write_sequence


def test_plain_layout(davis):
    """Sequences lie directly in JPEGImages; frames and truth come in pairs."""
    one, two = find_sequences(davis)
    assert (one.name, two.name) == ('one', 'two')
    frames = list(two)
    assert [frame.name for frame in frames] == [f'{i:05d}' for i in range(8)]
    assert set(np.unique(frames[0].truth)) == {0, 1, 2}
    assert frames[0].image.shape == (64, 96, 3)
    # RGB, not BGR: JPEG loses little of flat colours.
    assert np.abs(frames[0].image.astype(int) - scene(2, 2)[0][0]).mean() < 12


@pytest.mark.parametrize(
    'levels, wanted, expected',
    [
        (['480p'], None, '480p'),
        (['480p', '1080p'], None, '480p'),
        (['480p', 'Full-Resolution'], 'Full-Resolution', 'Full-Resolution'),
        (['small'], None, 'small'),
    ],
)
def test_resolution_level(tmp_path, levels, wanted, expected):
    """A level between JPEGImages and the sequences is found, or chosen."""
    for level in levels:
        write_sequence(tmp_path, 'one', *scene(1), level=level)
    (found,) = find_sequences(tmp_path, resolution=wanted)
    assert found.images[0].parts[-3] == expected


def test_2016_release(tmp_path):
    """Masks of 0 and 255 hold one object; lists name pairs of files."""
    frames, labels = scene(1)
    write_sequence(tmp_path, 'one', frames, labels * 255, level='480p')
    write_sequence(tmp_path, 'other', frames, labels * 255, level='480p')
    folder = tmp_path / 'ImageSets' / '480p'
    folder.mkdir(parents=True)
    (folder / 'val.txt').write_text(
        ''.join(
            f'/JPEGImages/480p/one/{i:05d}.jpg /Annotations/480p/one/{i:05d}.png \n'
            for i in range(8)
        )
    )
    (found,) = find_sequences(tmp_path, subset='val')
    assert found.name == 'one' and found.task == 'single'
    assert set(np.unique(next(iter(found)).truth)) == {0, 1}


def test_2017_release(tmp_path):
    """Lists name sequences, masks hold several objects; 255 is void there."""
    frames, labels = scene(2, objects=2)
    labels[:, :3] = 255
    write_sequence(tmp_path, 'two', frames, labels, level='480p')
    write_sequence(tmp_path, 'more', frames, labels, level='480p')
    for year in ('2016', '2017'):
        (tmp_path / 'ImageSets' / year).mkdir(parents=True)
        (tmp_path / 'ImageSets' / year / 'val.txt').write_text('two\n')
    with pytest.raises(DatasetError, match='2016, 2017.*--year'):
        find_sequences(tmp_path, subset='val')
    (found,) = find_sequences(tmp_path, subset='val', year='2017')
    assert found.task == 'multi'
    assert set(np.unique(next(iter(found)).truth)) == {0, 1, 2}
    (merged,) = find_sequences(tmp_path, subset='val', year='2017', task='single')
    assert set(np.unique(next(iter(merged)).truth)) == {0, 1}


def test_sparse_annotations_and_late_start(tmp_path):
    """The sequence starts at the first annotation; later gaps are frames without truth."""
    write_sequence(tmp_path, 'one', *scene(1))
    for index in (0, 1, 3, 4):
        (tmp_path / 'Annotations' / 'one' / f'{index:05d}.png').unlink()
    (found,) = find_sequences(tmp_path)
    assert found.images[0].stem == '00002' and len(found) == 6
    assert [frame.truth is None for frame in found] == [False, True, True, False, False, False]


def test_max_frames_and_names(davis):
    """Sequences can be chosen and cut short."""
    (found,) = find_sequences(davis, names=['two'], max_frames=4)
    assert found.name == 'two' and len(found) == 4


@pytest.mark.parametrize(
    'break_it, message',
    [
        (lambda root: (root / 'Annotations').rename(root / 'Masks'), 'no folder Annotations'),
        (
            lambda root: (root / 'JPEGImages' / 'one' / '00003.jpg').unlink(),
            '00003.png has no frame',
        ),
        (
            lambda root: [path.unlink() for path in (root / 'Annotations' / 'one').iterdir()],
            'no annotation',
        ),
    ],
)
def test_broken_folders(davis, break_it, message):
    """What is wrong is said, with the file."""
    break_it(davis)
    with pytest.raises(DatasetError, match=message):
        sound(find_sequences(davis))


def test_unknown_names(davis):
    """Names that do not exist come with those that do."""
    with pytest.raises(DatasetError, match='no sequence three.*one, two'):
        find_sequences(davis, names=['three'])
    with pytest.raises(DatasetError, match="no resolution '720p'"):
        find_sequences(davis, resolution='720p')
    with pytest.raises(DatasetError, match='val.txt'):
        find_sequences(davis, subset='val')
    with pytest.raises(DatasetError, match='3 or more'):
        find_sequences(davis, max_frames=2)


def test_colour_annotation_and_wrong_size(davis):
    """Pictures that are no label images, or of another size, are refused."""
    path = davis / 'Annotations' / 'one' / '00000.png'
    Image.new('RGB', (96, 64), (12, 200, 77)).save(path)
    with pytest.raises(DatasetError, match='colour picture'):
        sound(find_sequences(davis))
    Image.fromarray(np.ones((32, 48), np.uint8)).save(path)
    (found, _) = find_sequences(davis)
    with pytest.raises(DatasetError, match='48x32.*96x64'):
        next(iter(found))


def test_missing_frame_is_an_error(davis):
    """A picture that cannot be read ends the sequence with its name."""
    found = find_sequences(davis)[0]
    (davis / 'JPEGImages' / 'one' / '00002.jpg').write_bytes(b'no picture')
    with pytest.raises(DatasetError, match='00002.jpg'):
        list(found)


def test_masks_are_indexed_png_in_the_official_palette(tmp_path):
    """Mode P, the labels as indices, and the first colours of the DAVIS palette."""
    labels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    write_labels(tmp_path / 'a' / '00000.png', labels)
    with Image.open(tmp_path / 'a' / '00000.png') as image:
        assert image.mode == 'P' and image.format == 'PNG'
        np.testing.assert_array_equal(np.array(image), labels)
        colours = np.array(image.getpalette()).reshape(-1, 3)
    assert colours[:10].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [128, 0, 128],
        [0, 128, 128],
        [128, 128, 128],
        [64, 0, 0],
        [192, 0, 0],
    ]
    assert not list(tmp_path.rglob('*.partial'))
    with pytest.raises(ValueError, match='300'):
        write_labels(tmp_path / 'b.png', np.full((2, 2), 300, np.uint16))
