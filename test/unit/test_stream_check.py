# SPDX-License-Identifier: Apache-2.0
"""What is said of streams that are not one sound stream, without a graph."""

import array
from types import SimpleNamespace

import numpy as np
import pytest

from drift_ros.nodes.tracker.frames import FrameBuffer, ReceivedImage
from drift_ros.nodes.tracker.images import Images, RequestImage
from drift_ros.nodes.tracker.stream import (
    FLAWS,
    FRAME_IDS,
    GREYS,
    JUMPS,
    LOST,
    REPEATED,
    several,
    SIZES,
    StreamCheck,
    ZERO,
)

SECOND = 10**9


def said(headers, sizes=()):
    """Give the flaws that are found in stamps (seconds) and frame_ids."""
    found = []
    check = StreamCheck(lambda flaw, text: found.append((flaw, text)))
    for when, frame_id in headers:
        check.header(round(when * SECOND), frame_id)
    for size in sizes:
        check.size(*size)
    assert all(text and flaw in FLAWS for flaw, text in found)
    return [flaw for flaw, _ in found]


@pytest.mark.parametrize(
    ('headers', 'flaws'),
    [
        ([(1, 'a'), (2, 'a'), (2.5, 'a')], []),
        ([(1, ''), (1000, '')], []),  # a pause is no flaw
        ([(0, 'a'), (0, 'a')], [ZERO, ZERO]),
        ([(1, 'a'), (1, 'a'), (1, 'a')], [REPEATED, REPEATED]),
        ([(5, 'a'), (4, 'a'), (5, 'a')], [JUMPS]),
        ([(5, 'a'), (0, 'a'), (6, 'a')], [ZERO]),
        ([(1, 'left'), (1, 'right'), (2, 'left')], [REPEATED, FRAME_IDS, FRAME_IDS]),
        ([(3, 'left'), (1, 'right'), (4, 'left')], [JUMPS, FRAME_IDS, FRAME_IDS]),
    ],
)
def test_headers(headers, flaws):
    assert said(headers) == flaws


def test_sizes():
    assert said([], [(480, 640), (480, 640), (240, 320), (480, 640)]) == [SIZES, SIZES]


def test_a_new_stream_may_begin_anywhere():
    found = []
    check = StreamCheck(lambda flaw, text: found.append(flaw))
    check.header(9 * SECOND, 'a')
    check.size(4, 5)
    check.reset()
    check.header(SECOND, 'b')
    check.size(9, 9)
    assert not found


def test_publishers():
    assert several((), '/image') == several(('/camera',), '/image') == ''
    assert '2 publishers on /image (/a, /b)' in several(('/b', '/a'), '/image')


def image(when, value=0, frame_id='camera', encoding='mono8'):
    pixels = np.full((4, 6), value, np.uint16 if encoding.endswith(('16', '16UC1')) else np.uint8)
    stamp = SimpleNamespace(sec=when // SECOND, nanosec=when % SECOND)
    return SimpleNamespace(
        header=SimpleNamespace(stamp=stamp, frame_id=frame_id),
        height=4,
        width=6,
        step=pixels.strides[0],
        encoding=encoding,
        is_bigendian=0,
        data=array.array('B', pixels.tobytes()),
    )


def buffered(*stamps):
    buffer = FrameBuffer(10, 10**6)
    for number, when in enumerate(stamps):
        buffer.add(ReceivedImage(number, when, image(when, number), 24, 0.0))
    return buffer


def test_what_is_found_by_a_stamp_of_its_own_is_beyond_doubt():
    buffer = buffered(SECOND, 2 * SECOND, 3 * SECOND)
    assert buffer.find(2 * SECOND).doubt == '' and buffer.find(0).doubt == ''


@pytest.mark.parametrize(
    ('stamps', 'asked', 'sequence', 'words'),
    [
        ((0, 0, 0), 0, 2, 'without stamps'),
        ((5, 5), 5, 1, '2 images came with the stamp 0.000000005'),
        ((1, 2, 3, 1, 2), 2, 4, '2 images came with the stamp 0.000000002'),
        ((7, 0), 0, 1, 'without stamps'),
    ],
)
def test_what_may_be_another_image_is_said(stamps, asked, sequence, words):
    found = buffered(*stamps).find(asked)
    assert found.sequence == sequence and words in found.doubt
    assert 'send that image along' in found.doubt


def test_a_buffer_that_was_emptied_doubts_nothing():
    buffer = buffered(5, 5)
    buffer.clear()
    buffer.add(ReceivedImage(9, 5, image(5), 24, 0.0))
    assert buffer.find(5).doubt == ''
    buffer.configure(10, 10**6)
    buffer.add(ReceivedImage(10, 5, image(5), 24, 0.0))
    assert buffer.find(5).doubt == ''


def time(when):
    return SimpleNamespace(sec=when // SECOND, nanosec=when % SECOND)


def test_the_newest_image_of_several_publishers_is_in_doubt():
    publishers = ['/a']
    images = Images(lambda *_: None, lambda: publishers)
    images.configure(10, 10**6, None)
    images.buffer.add(ReceivedImage(0, 5, image(5), 24, 0.0))
    assert images.find(None, time(0)).doubt == ''
    publishers.append('/b')
    assert '2 publishers' in images.find(None, time(0)).doubt
    assert images.find(None, time(5)).doubt == ''  # named by its stamp
    assert images.find(image(7), time(0)).doubt == ''  # it came along


def test_the_range_of_16_bits_is_one_for_stream_and_requests():
    told = []
    images = Images(lambda flaw, text: told.append((flaw, text)), tuple)
    images.configure(10, 10**6, None)
    images.decode(image(1, 4000, encoding='mono16'))
    assert [flaw for flaw, _ in told] == [GREYS] and 'set grey_range' in told[0][1]
    first = images.find(image(2, 4000, encoding='16UC1'), time(0)).image
    np.testing.assert_array_equal(first, images.decode(image(3, 4000, encoding='mono16')))
    assert len(told) == 1
    images.configure(10, 10**6, (0, 8000))
    assert (images.decode(image(1, 4000, encoding='16UC1')) == 128).all() and len(told) == 1


def test_notes_tell_masks_of_other_cameras_and_other_images():
    picture = RequestImage(np.zeros((4, 6, 3), np.uint8), image(5 * SECOND).header, 0)
    assert picture.notes(['']) == ['']
    assert picture.notes(['covers 2'], image(5 * SECOND).header) == ['covers 2']
    assert picture.notes([''], image(0, frame_id='').header) == ['']
    (note,) = picture.notes(['covers 2'], image(5 * SECOND, frame_id='other').header)
    assert note.startswith('covers 2; ') and "'other'" in note and "'camera'" in note
    (note,) = picture.notes([''], image(6 * SECOND).header)
    assert 'stamp 6.000000000' in note and '5.000000000' in note
    doubted = picture._replace(doubt='perhaps not')
    assert doubted.notes(['', 'x']) == ['perhaps not', 'x; perhaps not']


class TestDiagnostics:
    """Levels and sentences."""

    @pytest.fixture(autouse=True)
    def _node(self):
        pytest.importorskip('diagnostic_msgs')
        from drift_ros.nodes.tracker import diagnostics

        self.now = [0.0]
        self.statistics = diagnostics.StreamStatistics(10.0, lambda: self.now[0])
        self.shell = SimpleNamespace(statistics=self.statistics)
        self.diagnostics = diagnostics

    def health(self, replay=False, publishers=('/camera',), objects=()):
        node = SimpleNamespace(
            configured=True,
            active=True,
            failure='',
            replay=replay,
            input_timeout=5.0,
            topic='/image',
            publishers=publishers,
            unheard=('', False),
            remedy='set the profile for the camera',
        )
        self.statistics.receive()
        return self.diagnostics.Status._health(
            self.shell, node, self.statistics.snapshot(), objects
        )

    def test_a_sound_stream_is_ok(self):
        assert self.health() == (0, 'following 0 objects')

    @pytest.mark.parametrize('flaw', FLAWS)
    def test_every_flaw_warns_while_it_is_recent(self, flaw):
        self.statistics.warn(flaw, f'the flaw {flaw}', 3)
        assert self.health() == (1, f'the flaw {flaw}')
        assert self.statistics.snapshot()[flaw] == 3
        self.now[0] = 11.0
        assert self.health()[0] == 0
        assert self.statistics.snapshot()[flaw] == 3  # what was counted stays

    def test_several_flaws_are_all_said_and_publishers_too(self):
        self.statistics.warn(ZERO, 'no stamps')
        self.statistics.warn(LOST, 'lost some')
        lost = SimpleNamespace(name='cup', id=1, state=SimpleNamespace(name='LOST'))
        level, text = self.health(publishers=('/a', '/b'), objects=[lost])
        assert level == 1
        for words in ('no stamps', 'lost some', '2 publishers on /image', 'lost: cup'):
            assert words in text

    def test_losses_in_replay_are_an_error_with_the_remedy(self):
        self.statistics.warn(LOST, 'lost some', 7)
        level, text = self.health(replay=True)
        assert level == 2 and '7 frames' in text and 'set the profile for the camera' in text


def test_the_remedy_names_the_publisher_and_a_file_that_is_there(monkeypatch):
    pytest.importorskip('rclpy')
    from pathlib import Path

    from drift_ros.ros import runtime

    remedy = runtime.loss_remedy()
    assert "the *camera's* process (not this node)" in remedy
    (path,) = (word for word in remedy.split() if 'fastdds' in word)
    assert Path(path.rstrip(',')).is_file()
    monkeypatch.setattr(
        'rclpy.utilities.get_rmw_implementation_identifier', lambda: 'rmw_cyclonedds_cpp'
    )
    assert 'FASTDDS' not in runtime.loss_remedy() and 'rmem_max' in runtime.loss_remedy()
