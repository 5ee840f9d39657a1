# SPDX-License-Identifier: Apache-2.0
"""Reading and writing video."""

import numpy as np
import pytest

from drift_ros.media.video import (
    DEFAULT_RATE,
    list_images,
    read_image,
    VideoError,
    VideoReader,
    VideoWriter,
    write_image,
)


def moving(count, height=48, width=64):
    """Frames with a white bar that moves by 4 columns a frame: the bar tells the index."""
    frames = []
    for index in range(count):
        frame = np.full((height, width, 3), (40, 80, 160), np.uint8)
        frame[:, 4 * index : 4 * index + 4] = 255
        frames.append(frame)
    return frames


def index_of(frame):
    return int(frame[..., 0].mean(axis=0).argmax()) // 4


@pytest.fixture
def folder(tmp_path):
    for index, frame in enumerate(moving(12)):
        write_image(tmp_path / f'frame{index}.png', frame)
    (tmp_path / 'notes.txt').write_text('no image')
    return tmp_path


def test_folders_are_sorted_naturally(folder):
    assert [file.name for file in list_images(folder)] == [f'frame{i}.png' for i in range(12)]
    reader = VideoReader(folder)
    assert len(reader) == 12 and reader.rate == DEFAULT_RATE
    for _ in range(2):  # every loop starts again
        assert [index_of(frame) for frame in reader] == list(range(12))
    np.testing.assert_array_equal(next(iter(reader)), moving(1)[0])


def test_start_and_count(folder):
    reader = VideoReader(folder, start=3, count=4)
    assert len(reader) == 4
    assert [index_of(frame) for frame in reader] == [3, 4, 5, 6]
    assert len(VideoReader(folder, start=10, count=9)) == 2


@pytest.mark.parametrize('size', [(48, 64), (49, 65)])
def test_video_round_trip(tmp_path, size):
    frames = moving(10, *size)
    with VideoWriter(tmp_path / 'new' / 'clip.mp4', rate=12.5) as writer:
        for frame in frames:
            writer.write(frame)
    reader = VideoReader(writer.path)
    assert len(reader) == 10 and reader.rate == pytest.approx(12.5)
    read = list(reader)
    assert [index_of(frame) for frame in read] == list(range(10))
    assert read[0].shape == (48, 64, 3)  # 4:2:0 has even sizes
    assert np.abs(read[5].astype(int) - frames[5][:48, :64]).mean() < 6
    assert [index_of(frame) for frame in VideoReader(writer.path, 4, 3)] == [4, 5, 6]


def test_a_changed_size_is_refused(tmp_path):
    with VideoWriter(tmp_path / 'clip.mp4') as writer:
        writer.write(moving(1)[0])
        with pytest.raises(VideoError, match='changed'):
            writer.write(moving(1, 20, 20)[0])


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(VideoError, match='nothing.mp4 does not exist'):
        VideoReader(tmp_path / 'nothing.mp4')
    with pytest.raises(VideoError, match='holds no images'):
        VideoReader(tmp_path)
    (tmp_path / 'text.mp4').write_text('not a video')
    with pytest.raises(VideoError, match='text.mp4'):
        VideoReader(tmp_path / 'text.mp4')
    with pytest.raises(VideoError, match='text.mp4'):
        read_image(tmp_path / 'text.mp4')
    with pytest.raises(VideoError):
        write_image(tmp_path / 'no' / 'folder.png', moving(1)[0])
