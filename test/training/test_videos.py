# SPDX-License-Identifier: Apache-2.0
"""Synthetic videos: their masks tell the truth about their pictures."""

from click.testing import CliRunner
import cv2
import numpy as np
import pytest

from drift_ros.evaluation.datasets import find_sequences
from training.sam.cutouts import Cutouts
from training.videos import main, make_video


@pytest.fixture
def red_things(tmp_path):
    """Cut-outs of one colour that the background does not have."""
    for index in range(24):
        item = np.zeros((80, 60 + index, 4), np.uint8)
        item[..., 2] = 250
        item[..., :2] = 10
        cv2.ellipse(item, (30, 40), (26, 36), 0, 0, 360, (10, 10, 250, 255), -1)
        cv2.imwrite(str(tmp_path / f'thing_{index}.png'), item)
    return Cutouts(tmp_path)


def test_masks_lie_on_the_objects(red_things):
    background = np.full((200, 300, 3), (20, 60, 200), np.uint8)
    moved = 0
    for seed in range(6):
        images, masks = make_video(
            red_things, background, np.random.default_rng(seed), 12, (96, 160)
        )
        assert images.shape == (12, 96, 160, 3) and masks.shape == (12, 96, 160)
        inside, outside = images[masks > 0], images[masks == 0]
        # harmonised colours and motion blur change a little, not which of both it is
        if len(inside):
            redder = inside.astype(int)[:, 0] - inside.astype(int)[:, 2]
            bluer = outside.astype(int)[:, 2] - outside.astype(int)[:, 0]
            assert redder.mean() > -bluer.mean() + 60
        moved += bool((masks[0] != masks[-1]).any())
    assert moved >= 5


def test_the_generator_decides_everything(red_things):
    background = np.random.default_rng(1).integers(0, 255, (120, 180, 3), dtype=np.uint8)
    first, again, other = (
        make_video(red_things, background, np.random.default_rng(seed), 4, (64, 96))
        for seed in (3, 3, 4)
    )
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()
    assert (first[0] != other[0]).any()


def test_the_command_writes_sequences_the_evaluation_reads(tmp_path):
    photos = tmp_path / 'photos' / 'disc'
    photos.mkdir(parents=True)
    for index in range(12):  # objects before clean backgrounds
        photo = np.full((150, 150, 3), 240, np.uint8)
        cv2.circle(photo, (75, 75), 40 + index, (30, 10 * index, 200), -1)
        cv2.imwrite(str(photos / f'{index}.png'), photo)
    large = tmp_path / 'large'
    large.mkdir()
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    cv2.imwrite(str(large / 'view.png'), cv2.resize(noise, (300, 200)))
    arguments = [
        '--photos',
        str(photos.parent),
        '--backgrounds',
        str(large),
        '--out',
        str(tmp_path / 'out'),
        '--count',
        '2',
        '--frames',
        '3',
        '--height',
        '96',
        '--width',
        '128',
        '--cutouts',
        '10',
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    sequences = list(find_sequences(tmp_path / 'out'))
    assert [len(list(sequence)) for sequence in sequences] == [3, 3]
    for sequence in sequences:
        assert next(iter(sequence)).truth.any()
