# SPDX-License-Identifier: Apache-2.0
"""Video files: what is in them, not what their headers say."""

from fractions import Fraction
import multiprocessing
from pathlib import Path
import re

import av
import cv2
import numpy as np
from PIL import Image
import pytest

from drift_ros.media import pictures
from drift_ros.media.video import (
    IMAGE_SUFFIXES,
    VideoDamage,
    VideoError,
    VideoReader,
    write_image,
)
from drift_ros.ros.conversions import FRAME_ENCODINGS

RNG = np.random.default_rng(4)
GROUND = cv2.resize(RNG.integers(0, 255, (12, 16, 3), np.uint8), (160, 120))
COUNT = 24


def picture(index):
    """Give frame `index`: the ground moves, and a white bar tells the index."""
    frame = np.roll(GROUND, 3 * index, axis=1) // 2
    frame[:, 6 * index : 6 * index + 6] = 255
    return frame


def index_of(frame):
    return int(frame.astype(int).sum(axis=(0, 2)).reshape(-1, 2).sum(axis=1).argmax()) // 3


def write(path, codec='libx264', **more):
    """
    Write a video, see encode; AV1 in a process of its own.

    As root that encoder gives its process real-time priority, for good: every process and thread
    started from there later would starve all others on the machine.
    """
    if codec != 'libsvtav1':
        return encode(path, codec, **more)
    process = multiprocessing.get_context('spawn').Process(
        target=encode, args=(path, codec), kwargs=more
    )
    process.start()
    process.join()
    assert process.exitcode == 0
    return path


def encode(path, codec, times=None, rate=25, count=COUNT, pix_fmt='yuv420p', **options):
    """Write a video; `times` (seconds) instead of a constant rate."""
    with av.open(str(path), 'w', options=options) as container:
        stream = container.add_stream(codec, rate=rate, options={'g': '8'})
        stream.width, stream.height, stream.pix_fmt = 160, 120, pix_fmt
        stream.thread_count = 1
        base = Fraction(1, 1000) if times is not None else Fraction(1, rate)
        stream.codec_context.time_base = base
        for index in range(count):
            frame = av.VideoFrame.from_ndarray(picture(index), format='rgb24')
            frame.pts = index if times is None else round(1000 * times[index])
            frame.time_base = base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


KINDS = {
    'mp4': ('libx264', 'yuv420p'),
    'avi': ('mjpeg', 'yuvj420p'),
    'mkv': ('ffv1', 'yuv420p'),
    'webm': ('libvpx-vp9', 'yuv420p'),
    'ts': ('libx264', 'yuv420p'),
    'mov': ('mjpeg', 'yuvj420p'),
    'm4v': ('libsvtav1', 'yuv420p'),
}


def drain(reader):
    """Give the frames of a reader and what it said at the end."""
    frames = []
    try:
        for number, frame in reader.numbered():
            frames.append((number, frame))
    except VideoDamage as damage:
        return frames, str(damage)
    return frames, ''


@pytest.mark.parametrize('suffix', KINDS)
def test_every_frame_of_every_kind_is_read_and_counted(suffix, tmp_path):
    codec, pix_fmt = KINDS[suffix]
    options = {'format': 'mp4'} if suffix == 'm4v' else {}
    path = tmp_path / f'clip.{suffix}'
    if options:  # AV1 in an MP4
        write(tmp_path / 'clip.mp4', codec, pix_fmt=pix_fmt).rename(path)
    else:
        write(path, codec, pix_fmt=pix_fmt)
    reader = VideoReader(path)
    assert len(reader) == COUNT and reader.rate == pytest.approx(25, rel=1e-3)
    np.testing.assert_allclose(reader.times, np.arange(COUNT) / 25, atol=2e-3)
    assert [index_of(frame) for frame in reader] == list(range(COUNT))
    assert reader.survey() == (list(range(COUNT)), '') and reader.notes == ()


def test_times_are_those_of_the_file_and_not_a_rate(tmp_path):
    times = np.cumsum([0, *([0.04] * 10), 0.5, *([0.1] * 12)])
    reader = VideoReader(write(tmp_path / 'phone.mp4', times=times))
    np.testing.assert_allclose(reader.times, times, atol=1e-3)
    assert reader.rate == pytest.approx(23 / times[-1], rel=1e-3)
    part = VideoReader(tmp_path / 'phone.mp4', start=10, count=3)
    np.testing.assert_allclose(part.times, times[10:13] - times[10], atol=1e-3)
    assert [index_of(frame) for frame in part] == [10, 11, 12]


def test_times_that_do_not_ascend_are_replaced_and_that_is_said(tmp_path):
    # a millisecond, the unit of Matroska, is too long for this
    reader = VideoReader(write(tmp_path / 'fast.mkv', rate=4000))
    assert (np.diff(reader.times) > 0).all() and 'several frames have one time' in reader.notes[0]
    assert [index_of(frame) for frame in reader] == list(range(COUNT))


def test_a_long_gap_is_said(tmp_path):
    times = np.cumsum([0, *([0.04] * 10), 3600, *([0.04] * 12)])
    reader = VideoReader(write(tmp_path / 'clip.mp4', times=times))
    assert 'a gap of 3600.0 s after frame 10' in reader.notes[0]
    assert reader.survey() == (list(range(COUNT)), '')


@pytest.mark.parametrize(
    ('suffix', 'codec', 'pix_fmt', 'options'),
    [
        ('avi', 'mjpeg', 'yuvj420p', {}),
        ('avi', 'mpeg4', 'yuv420p', {}),
        ('mp4', 'libx264', 'yuv420p', {'movflags': 'faststart'}),
        ('mov', 'mjpeg', 'yuvj420p', {'movflags': 'faststart'}),
        ('mkv', 'libx264', 'yuv420p', {}),
        ('webm', 'libvpx-vp9', 'yuv420p', {}),
    ],
)
def test_a_file_cut_at_60_percent_gives_what_it_has_and_says_so(
    suffix, codec, pix_fmt, options, tmp_path
):
    path = write(tmp_path / f'clip.{suffix}', codec, pix_fmt=pix_fmt, **options)
    with av.open(str(path)) as container:
        places = sorted((p.pos, p.size) for p in container.demux(video=0) if p.size)
    start, size = places[int(0.6 * COUNT)]
    path.write_bytes(path.read_bytes()[: start + size // 2])
    reader = VideoReader(path)
    frames, said = drain(reader)
    assert 11 <= len(frames) <= 15
    assert len(frames) <= len(reader) < COUNT
    assert str(path) in said and 'its header promises' in said and 'cut off' in said
    for number, frame in frames[:-1]:  # the last may have been cut itself
        assert index_of(frame) == number
    some = VideoReader(path, count=3)  # those are all there
    assert [index_of(frame) for frame in some] == [0, 1, 2]
    with pytest.raises(VideoDamage):
        list(VideoReader(path, count=COUNT))


@pytest.mark.parametrize('keep', [0.0, 0.001, 0.6])
def test_a_file_without_its_index_is_refused_with_the_reason(keep, tmp_path):
    path = write(tmp_path / 'clip.mp4')  # its index is at the end
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(VideoError, match=r'clip\.mp4 is not a video that can be read'):
        VideoReader(path)


def damage(path, packet_number, size=60, where=0.5):
    """Overwrite a part of a packet."""
    with av.open(str(path)) as container:
        packets = [p for p in container.demux(video=0) if p.size]
        packet = sorted(packets, key=lambda p: p.dts if p.dts is not None else p.pts)[
            packet_number
        ]
        start, length = packet.pos + int(where * packet.size), packet.size
    data = bytearray(path.read_bytes())
    size = min(size, length // 3)
    data[start : start + size] = np.random.default_rng(2).bytes(size)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ('suffix', 'codec', 'pix_fmt'),
    [
        ('avi', 'mjpeg', 'yuvj420p'),
        ('avi', 'mpeg4', 'yuv420p'),
        ('mp4', 'libx264', 'yuv420p'),
        ('mkv', 'ffv1', 'yuv420p'),
    ],
)
def test_damage_within_a_file_is_told_and_costs_no_other_frame(suffix, codec, pix_fmt, tmp_path):
    path = write(tmp_path / f'clip.{suffix}', codec, pix_fmt=pix_fmt)
    damage(path, 8)
    frames, said = drain(VideoReader(path))
    assert [number for number, _ in frames] == list(range(COUNT))
    assert 'is damaged: frame ' in said
    for number, frame in [*frames[:7], *frames[16:]]:  # a key frame every 8
        assert index_of(frame) == number
    numbers, words = VideoReader(path).survey()
    assert numbers == list(range(COUNT)) and words == said
    assert drain(VideoReader(path, count=6))[1] == ''


def test_frames_that_cannot_be_decoded_leave_a_gap(tmp_path):
    path = write(tmp_path / 'clip.mp4', 'libsvtav1')
    damage(path, 8, size=200, where=0.1)
    frames, said = drain(VideoReader(path))
    numbers = [number for number, _ in frames]
    assert len(numbers) < COUNT and numbers[:8] == list(range(8))
    assert 'frame ' in said and 'is damaged' in said


def test_a_video_of_which_nothing_can_be_decoded_is_refused(tmp_path):
    path = write(tmp_path / 'clip.avi', 'mjpeg', pix_fmt='yuvj420p')
    for number in range(COUNT):
        damage(path, number, size=10**6, where=0.0)
    try:
        reader = VideoReader(path)
    except VideoError as error:
        assert 'clip.avi' in str(error)
    else:
        assert drain(reader)[1]


def test_frames_an_edit_list_leaves_out_are_no_damage(tmp_path):
    write(tmp_path / 'whole.mp4')
    path = tmp_path / 'edited.mp4'
    with av.open(str(tmp_path / 'whole.mp4')) as source, av.open(str(path), 'w') as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        shift = round(0.4 / source.streams.video[0].time_base)
        for packet in source.demux(video=0):
            if packet.dts is None:
                continue
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, stream
            target.mux(packet)
    frames, said = drain(VideoReader(path))
    assert said == '' and len(frames) == len(VideoReader(path)) <= COUNT
    assert index_of(frames[-1][1]) == COUNT - 1


def test_a_rotation_is_not_applied_and_said(tmp_path):
    write(tmp_path / 'whole.mp4')
    plain = list(VideoReader(tmp_path / 'whole.mp4'))
    # the matrix of the track header, as phones write it: a quarter turn
    data = (tmp_path / 'whole.mp4').read_bytes()
    unit = b'\0\1\0\0' + b'\0' * 12 + b'\0\1\0\0' + b'\0' * 12 + b'\x40\0\0\0'
    turned = b'\0\0\0\0\0\1\0\0\0\0\0\0\xff\xff\0\0' + b'\0' * 16 + b'\x40\0\0\0'
    track = data.index(b'tkhd')
    where = data.index(unit, track)
    path = tmp_path / 'phone.mp4'
    path.write_bytes(data[:where] + turned + data[where + len(unit) :])
    reader = VideoReader(path)
    assert len(reader.notes) == 1 and 'rotated' in reader.notes[0] and '90' in reader.notes[0]
    for frame, same in zip(reader, plain, strict=True):
        np.testing.assert_array_equal(frame, same)


def test_a_folder_of_turned_photographs_says_so_too(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for index in range(3):
        Image.fromarray(picture(index)).save(tmp_path / f'{index}.jpg', exif=exif)
    reader = VideoReader(tmp_path)
    assert 'EXIF orientation 6' in reader.notes[0]
    assert next(iter(reader)).shape == (120, 160, 3)


def test_a_damaged_picture_in_a_folder_is_named(tmp_path):
    for index in range(4):
        write_image(tmp_path / f'{index}.jpg', picture(index))
    data = (tmp_path / '2.jpg').read_bytes()
    (tmp_path / '2.jpg').write_bytes(data[: len(data) // 2])
    got = []
    with pytest.raises(VideoError, match=r'2\.jpg.*truncated'):
        got.extend(VideoReader(tmp_path))
    assert len(VideoReader(tmp_path)) == 4
    (tmp_path / '0.jpg').write_bytes(b'')
    with pytest.raises(VideoError, match=r'0\.jpg'):
        VideoReader(tmp_path)


def test_a_size_that_changes_is_told(tmp_path):
    for index in range(4):
        frame = picture(index)
        write_image(tmp_path / f'{index}.png', frame if index < 2 else frame[:80])
    frames, said = drain(VideoReader(tmp_path))
    assert len(frames) == 4 and 'frame 2: the size changes from 160x120 to 160x80' in said


def test_the_size_of_a_frame_is_bounded(tmp_path, monkeypatch):
    path = write(tmp_path / 'clip.mp4', count=3)
    monkeypatch.setattr(pictures, 'MAX_PIXELS', 160 * 120 - 1)
    with pytest.raises(VideoError, match='160x120.*at most'):
        VideoReader(path)


@pytest.mark.parametrize(
    'text',
    [
        'ffconcat version 1.0\nfile {other}\n',
        '#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nhttp://127.0.0.1:9/c.ts\n#EXT-X-ENDLIST\n',
        'v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nm=video 5004 RTP/AVP 96\n',
        'not a video',
    ],
)
def test_lists_that_lead_elsewhere_are_no_videos(text, tmp_path):
    other = write(tmp_path / 'other.mp4', count=3)
    path = tmp_path / 'clip.mp4'
    path.write_text(text.format(other=other))
    with pytest.raises(VideoError):
        VideoReader(path)


def test_sound_alone_is_no_video(tmp_path):
    path = tmp_path / 'sound.mkv'
    with av.open(str(path), 'w') as container:
        stream = container.add_stream('pcm_s16le', rate=8000, layout='mono')
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), 's16', 'mono')
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match='no video'):
        VideoReader(path)


def test_the_formats_in_the_docs_are_those_of_the_code():
    root = Path(__file__).parents[2]
    text = (root / 'docs' / 'nodes.md').read_text()
    *first, last = ['WebP' if name == 'WEBP' else name for name in pictures.FORMATS]
    assert f'{", ".join(first)} or {last}, of 67 megapixels' in text
    assert round(pictures.MAX_PIXELS / 1e6) == 67
    for name in FRAME_ENCODINGS:
        plain = re.sub(r'^bayer_.*', 'bayer_*', name)
        assert plain in text or plain.replace('16', '8') in text, name
    known = {Image.registered_extensions()[suffix] for suffix in IMAGE_SUFFIXES}
    assert known == set(pictures.FORMATS)
