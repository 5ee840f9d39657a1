# SPDX-License-Identifier: Apache-2.0
"""One rule for label images, whatever tool, depth and palette wrote them."""

import struct
import zlib
from zlib import crc32

import cv2
import numpy as np
from PIL import Image
import pytest
import scenes

from drift_ros.media.labels import LabelError, LabelRule, palette, read_labels, write_labels


def disk(value=255, dtype=np.uint8):
    mask = np.zeros((120, 160), dtype)
    mask[30:90, 40:110] = value
    return mask


def indexed(labels, colours):
    image = Image.fromarray(labels)
    image.putpalette(np.asarray(colours, np.uint8).tobytes())
    return image


TWO = disk(1)
TWO[:20] = 2


@pytest.mark.parametrize(
    'make',
    [
        lambda: Image.fromarray(TWO),
        lambda: indexed(TWO, palette()),
        lambda: indexed(TWO, [(0, 0, 0), (9, 9, 9), (250, 0, 250)]),
        lambda: Image.fromarray(palette()[TWO]),
        lambda: Image.fromarray(np.repeat(TWO[..., None], 3, -1)),
        lambda: Image.fromarray(TWO).convert('RGBA'),
        lambda: Image.fromarray(TWO.astype(np.uint16)),
        lambda: Image.fromarray(TWO.astype(np.int32)),
    ],
    ids=['grey', 'davis', 'palette', 'colours', 'rgb', 'rgba', '16 bits', '32 bits'],
)
def test_labels_are_the_same_from_any_tool(tmp_path, make):
    make().save(tmp_path / 'mask.tiff' if make().mode == 'I' else tmp_path / 'mask.png')
    (path,) = tmp_path.iterdir()
    np.testing.assert_array_equal(read_labels(path), TWO)


def test_a_sorted_palette_is_read_by_its_colours(tmp_path):
    """Tools put the most frequent colour first: index 0 is then not the background."""
    colours = np.array([palette()[1], palette()[0], palette()[2]])
    indexed(np.array([1, 0, 2], np.uint8)[TWO], colours).save(tmp_path / 'a.png')
    np.testing.assert_array_equal(read_labels(tmp_path / 'a.png'), TWO)


@pytest.mark.parametrize(
    'make',
    [
        lambda: Image.fromarray(disk()),
        lambda: Image.fromarray(disk() > 0),
        lambda: indexed(disk(1), [(0, 0, 0), (255, 255, 255)]),
        lambda: indexed(1 - disk(1), [(255, 255, 255), (0, 0, 0)]),
        lambda: Image.fromarray(disk(65535, np.uint16)),
    ],
    ids=['8 bits', '1 bit', 'two colours', 'white first', '16 bits'],
)
def test_black_and_white_is_one_object(tmp_path, make):
    make().save(tmp_path / 'a.png')
    np.testing.assert_array_equal(read_labels(tmp_path / 'a.png'), disk(1))


def test_the_first_picture_decides_for_the_sequence():
    """Void stays void where only void is left; white stays the object beside other values."""
    rule = LabelRule()
    assert not rule.labels(disk(0), 'empty').any() and rule.plain is None
    two = TWO.copy()
    two[-10:] = 255
    np.testing.assert_array_equal(rule.labels(two, 'a'), TWO)
    assert rule.plain is False
    assert not rule.labels(disk(255), 'b').any()
    plain = LabelRule()
    np.testing.assert_array_equal(plain.labels(disk(), 'a'), disk(1))
    np.testing.assert_array_equal(plain.labels(two, 'b'), two > 0)
    wide = disk(255, np.uint16)
    wide[0, 0] = 7
    assert read_once(wide).max() == 255, 'void is of 8 bits'


def read_once(values):
    return LabelRule().labels(values, 'mask')


ROUND = cv2.circle(np.zeros((120, 160), np.uint8), (70, 60), 37, 255, -1)


@pytest.mark.parametrize(
    'values',
    [
        cv2.GaussianBlur(ROUND, (0, 0), 2),
        cv2.resize(ROUND, (75, 41), interpolation=cv2.INTER_AREA),
        cv2.resize(disk(), (500, 333)),
        cv2.resize(ROUND // 255 * 9, (75, 41), interpolation=cv2.INTER_CUBIC),
        cv2.circle(ROUND * 0, (70, 60), 37, 255, -1, cv2.LINE_AA),
        cv2.imdecode(cv2.imencode('.jpg', ROUND)[1], 0),
    ],
    ids=['blurred', 'smaller', 'larger', 'labels resized', 'antialiased', 'jpeg'],
)
def test_blurred_edges_are_refused(values):
    with pytest.raises(LabelError, match='edges of mask are not crisp.*nearest neighbour'):
        read_once(values)


def test_many_crisp_objects_are_fine():
    values = np.kron(np.arange(48, dtype=np.uint8).reshape(6, 8), np.ones((6, 6), np.uint8))
    np.testing.assert_array_equal(read_once(values), values)


@pytest.mark.parametrize(
    'values, message',
    [
        (np.full((9, 9), -1), 'values from -1'),
        (np.full((9, 9), 65536), 'to 65536'),
        (np.zeros((9, 9, 3), np.uint8), 'one channel'),
        (np.zeros((9, 9), np.float32), 'whole numbers'),
    ],
)
def test_what_is_no_label_image(values, message):
    with pytest.raises(LabelError, match=message):
        read_once(values)


def test_files_that_cannot_be_read(tmp_path):
    Image.fromarray(TWO).save(tmp_path / 'a.jpg')
    Image.new('RGB', (9, 9), (3, 200, 8)).save(tmp_path / 'colour.png')
    Image.new('RGBA', (9, 9), (0, 0, 0, 100)).save(tmp_path / 'glass.png')
    (tmp_path / 'text.png').write_text('no picture')
    for name, message in (
        ('a.jpg', 'not crisp'),
        ('colour.png', 'VOC/DAVIS palette'),
        ('glass.png', 'transparent'),
        ('text.png', 'cannot read'),
        ('missing.png', 'no such file'),
    ):
        with pytest.raises(LabelError, match=message):
            read_labels(tmp_path / name)


def test_what_is_written_is_read_again(tmp_path):
    write_labels(tmp_path / 'new' / 'a.png', TWO)
    np.testing.assert_array_equal(read_labels(tmp_path / 'new' / 'a.png'), TWO)
    with pytest.raises(ValueError, match='does not fit'):
        write_labels(tmp_path / 'b.png', TWO.astype(np.uint16) * 200)


def grey_png(path, values, bits):
    """Write a grey PNG of 1 to 16 bits, or (H, W, 3) of 16 bits: libraries write 8 or 16 only."""

    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', crc32(kind + data))

    rows = []
    for row in values.reshape(len(values), -1):
        text = ''.join(f'{value:0{bits}b}' for value in row.tolist())
        text += '0' * (-len(text) % 8)
        rows.append(b'\0' + int(text, 2).to_bytes(len(text) // 8, 'big'))
    size = struct.pack('>II', values.shape[1], values.shape[0])
    kind = bytes([bits, 2 if values.ndim == 3 else 0, 0, 0, 0])
    path.write_bytes(
        b'\x89PNG\r\n\x1a\n'
        + chunk(b'IHDR', size + kind)
        + chunk(b'IDAT', zlib.compress(b''.join(rows)))
        + chunk(b'IEND', b'')
    )


@pytest.mark.parametrize('bits', [2, 4, 8, 16])
def test_a_value_is_the_sample_whatever_the_depth(tmp_path, bits):
    """Pillow stretches 2 and 4 bits to 8."""
    grey_png(tmp_path / 'a.png', TWO, bits)
    np.testing.assert_array_equal(read_labels(tmp_path / 'a.png'), TWO)


def test_labels_in_colours_of_16_bits(tmp_path):
    """Pillow drops the lower half of each sample, and the labels with it."""
    labels = TWO.astype(np.uint16) * 300
    grey_png(tmp_path / 'a.png', np.repeat(labels[..., None], 3, -1), 16)
    np.testing.assert_array_equal(read_labels(tmp_path / 'a.png'), labels)
    coloured = np.repeat(labels[..., None], 3, -1)
    coloured[..., 1] += 1
    grey_png(tmp_path / 'b.png', coloured, 16)
    with pytest.raises(LabelError, match='colours of 16 bits'):
        read_labels(tmp_path / 'b.png')


@pytest.mark.parametrize('white', [2, 9, 255, 300, 65535])
def test_portable_grey_maps(tmp_path, white):
    """Their samples count up to any maximum, which Pillow stretches to 8 or 16 bits."""
    data = TWO.astype('>u2' if white > 255 else np.uint8).tobytes()
    (tmp_path / 'a.pgm').write_bytes(b'P5 160 120 %d\n' % white + data)
    np.testing.assert_array_equal(read_labels(tmp_path / 'a.pgm'), TWO)


@pytest.mark.parametrize('dtype', [np.uint8, np.uint16, np.int32, np.float32])
def test_tiff_of_any_type(tmp_path, dtype):
    Image.fromarray(TWO.astype(dtype)).save(tmp_path / 'a.tiff')
    np.testing.assert_array_equal(read_labels(tmp_path / 'a.tiff'), TWO)


@pytest.mark.parametrize(
    ('value', 'dtype', 'message'),
    [
        (65536, np.int32, 'to 65536'),
        (-1, np.int32, 'from -1'),
        (65536, np.float32, 'to 65536'),
        (2.0**32 + 2**10, np.float32, 'labels are 0'),
        (0.5, np.float32, 'fractions'),
        (np.nan, np.float32, 'fractions'),
        (np.inf, np.float32, 'fractions'),
    ],
)
def test_no_value_wraps_around(tmp_path, value, dtype, message):
    """65536 is no background, and 4294968320 is not 1024."""
    values = np.where(disk(1) > 0, value, 0).astype(dtype)
    Image.fromarray(values).save(tmp_path / 'a.tiff')
    with pytest.raises(LabelError, match=message):
        read_labels(tmp_path / 'a.tiff')


@pytest.mark.parametrize('suffix', ['jpg', 'webp'])
def test_formats_that_lose_something(tmp_path, suffix):
    Image.fromarray(ROUND).convert('RGB').save(tmp_path / f'a.{suffix}', quality=40)
    with pytest.raises(LabelError, match='not crisp|palette'):
        read_labels(tmp_path / f'a.{suffix}')


def test_whatever_a_library_raises_is_an_error_of_the_mask(tmp_path, monkeypatch):
    Image.fromarray(TWO).save(tmp_path / 'a.png')
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 100)
    with pytest.raises(LabelError, match='a.png.*decompression bomb'):
        read_labels(tmp_path / 'a.png')
    monkeypatch.undo()
    whole = (tmp_path / 'a.png').read_bytes()
    for length in range(0, len(whole) - 13, 7):
        (tmp_path / 'b.png').write_bytes(whole[:length])
        with pytest.raises(LabelError, match='b.png'):
            read_labels(tmp_path / 'b.png')


def test_a_blurred_seed_is_told_so():
    """As an array, too: not as hundreds of objects that are too small."""
    from drift_ros import SeedError, Tracker

    frame = np.zeros((120, 160, 3), np.uint8)
    with pytest.raises(SeedError, match='edges of the mask are not crisp'):
        Tracker(features=scenes.ColourFeatures()).seed(frame, cv2.GaussianBlur(ROUND, (0, 0), 2))
