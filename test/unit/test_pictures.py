# SPDX-License-Identifier: Apache-2.0
"""Encoded pictures: formats, damage, orientation, size; files and messages read them alike."""

import array
import io
import struct
from types import SimpleNamespace
import zlib

import cv2
import numpy as np
from PIL import Image
import pytest

from drift_ros.media import pictures
from drift_ros.media.labels import LabelError, read_labels
from drift_ros.media.pictures import decode, PictureError
from drift_ros.media.video import read_image, VideoError
from drift_ros.ros.conversions import compressed_to_rgb, ConversionError

RNG = np.random.default_rng(3)
FRAME = cv2.resize(RNG.integers(0, 255, (12, 16, 3), np.uint8), (320, 240))
FRAME = (FRAME + RNG.normal(0, 5, FRAME.shape)).clip(0, 255).astype(np.uint8)


def encoded(kind, image=FRAME, **options):
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, kind, **options)
    return stream.getvalue()


def message(data, form='jpeg'):
    return SimpleNamespace(format=form, data=array.array('B', data))


JPEG = encoded('JPEG', quality=90)
SCAN = JPEG.index(b'\xff\xda') + 14  # where the coded pixels begin


def damaged(data, where, count, seed=0):
    changed = bytearray(data)
    changed[where : where + count] = np.random.default_rng(seed).bytes(count)
    return bytes(changed)


@pytest.mark.parametrize('kind', pictures.FORMATS)
def test_every_format_claimed_is_read_from_file_and_topic(kind, tmp_path):
    options = {'lossless': True} if kind == 'WEBP' else {}
    data = encoded(kind, **options)
    (tmp_path / 'picture.bin').write_bytes(data)
    frame = read_image(tmp_path / 'picture.bin')
    np.testing.assert_array_equal(compressed_to_rgb(message(data, kind.lower())), frame)
    if kind == 'JPEG':  # the very pixels of libjpeg-turbo, as image_transport decodes them
        np.testing.assert_array_equal(frame, np.array(Image.open(io.BytesIO(data))))
    else:
        np.testing.assert_array_equal(frame, FRAME)


@pytest.mark.parametrize('kind', ['GIF', 'JPEG2000', 'ICO', 'TGA'])
def test_other_formats_are_refused_and_the_claimed_ones_named(kind, tmp_path):
    data = encoded(kind, FRAME[:64, :64])
    with pytest.raises(PictureError, match='none of JPEG, PNG, TIFF, WEBP, BMP, PPM'):
        decode(data, 'it')
    with pytest.raises(ConversionError, match='none of JPEG'):
        compressed_to_rgb(message(data, kind.lower()))
    (tmp_path / 'frame.png').write_bytes(data)
    with pytest.raises(VideoError, match=r'frame\.png.*none of JPEG'):
        read_image(tmp_path / 'frame.png')


@pytest.mark.parametrize('padding', [b'\0' * 4096, b'\xff' * 100, b'\0' * 3, b'--boundary\r\n'])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_what_follows_a_picture_is_no_damage(kind, padding):
    data = encoded(kind)
    np.testing.assert_array_equal(decode(data + padding, '').values, decode(data, '').values)


@pytest.mark.parametrize('progressive', [False, True])
def test_400_damaged_bytes_inside_a_jpeg_are_told(progressive):
    data = encoded('JPEG', quality=90, progressive=progressive)
    told = 0
    for seed in range(20):
        where = SCAN + seed * (len(data) - SCAN - 500) // 20
        try:
            frame = decode(damaged(data, where, 400, seed), 'the frame').values
            # JPEG has no checksum: what is not noticed is in the last, faint passes
            assert progressive and np.abs(frame.astype(int) - FRAME).mean() < 6
        except PictureError as error:
            assert 'the frame is damaged' in str(error)
            told += 1
    assert told == 20 or (progressive and told >= 17)


def test_a_jpeg_cut_short_is_told_wherever_it_ends():
    for keep in (0.05, 0.3, 0.7, 0.99):
        with pytest.raises(PictureError):
            decode(JPEG[: int(keep * len(JPEG))], '')
    with pytest.raises(PictureError, match='damaged or truncated'):
        decode(JPEG[:-2], '')  # only the end marker is missing
    # an end marker found by chance, or a thumbnail's, makes nothing whole
    with pytest.raises(PictureError):
        decode(JPEG[: len(JPEG) // 2] + b'\xff\xd9', '')


def test_webcams_that_pad_before_the_end_marker_are_read():
    padded = JPEG[:-2] + b'\x00' * 4 + JPEG[-2:]
    np.testing.assert_array_equal(decode(padded, '').values, decode(JPEG, '').values)
    with pytest.raises(PictureError, match='extraneous'):
        decode(JPEG[:-2] + b'\x00' * 60 + JPEG[-2:], '')


@pytest.mark.parametrize('kind', ['PNG', 'TIFF', 'WEBP', 'BMP', 'PPM'])
@pytest.mark.parametrize('keep', [0.02, 0.5, 0.9])
def test_any_format_cut_short_is_told(kind, keep):
    data = encoded(kind)
    with pytest.raises(PictureError):
        decode(data[: int(keep * len(data))], 'it')


def test_one_damaged_byte_of_a_png_is_told():
    data = encoded('PNG')
    for where in (20, 200, len(data) // 2, len(data) - 40):
        with pytest.raises(PictureError, match='damaged'):
            decode(damaged(data, where, 1, 5), 'it')


@pytest.mark.parametrize('orientation', [1, 3, 6, 8])
def test_pixels_are_as_they_are_stored_whatever_exif_says(orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = np.array(Image.open(io.BytesIO(encoded('JPEG', quality=90))))
    for kind in ('JPEG', 'PNG', 'TIFF', 'WEBP'):
        data = encoded(kind, quality=90, exif=exif)
        picture = decode(data, '')
        assert picture.orientation == orientation
        assert picture.values.shape == FRAME.shape
        if kind == 'JPEG':
            np.testing.assert_array_equal(picture.values, stored)
            np.testing.assert_array_equal(compressed_to_rgb(message(data)), stored)
            (tmp_path / 'photo.jpg').write_bytes(data)
            np.testing.assert_array_equal(read_image(tmp_path / 'photo.jpg'), stored)
    mask = np.zeros((240, 320), np.uint8)
    mask[:50, :80] = 1
    for kind in ('PNG', 'TIFF'):
        (tmp_path / 'mask').write_bytes(encoded(kind, mask, exif=exif))
        np.testing.assert_array_equal(read_labels(tmp_path / 'mask'), mask)


@pytest.mark.parametrize(
    'exif', [b'', b'garbage' * 20, b'II*\0\xff\xff\xff\xff', b'MM\0*\0\0\0\x08\0\x7f']
)
def test_broken_exif_is_no_reason_to_refuse_a_picture(exif):
    data = JPEG[:2] + b'\xff\xe1' + struct.pack('>H', len(exif) + 8) + b'Exif\0\0' + exif
    picture = decode(data + JPEG[2:], '')
    np.testing.assert_array_equal(picture.values, decode(JPEG, '').values)
    assert picture.orientation == 1


@pytest.mark.parametrize('subsampling', ['4:4:4', '4:2:2', '4:2:0'])
@pytest.mark.parametrize('size', [(240, 320), (239, 317), (1, 1), (7, 500)])
def test_jpegs_of_every_sampling_and_size_are_those_of_libjpeg(subsampling, size):
    data = encoded(
        'JPEG', np.ascontiguousarray(np.resize(FRAME, (*size, 3))), subsampling=subsampling
    )
    np.testing.assert_array_equal(decode(data, '').values, np.array(Image.open(io.BytesIO(data))))


def png_bomb(width, height):
    """A grey PNG of zeros that unpacks to width x height bytes; a thousandth of that itself."""

    def chunk(name, data):
        return (
            struct.pack('>I', len(data)) + name + data + struct.pack('>I', zlib.crc32(name + data))
        )

    packer = zlib.compressobj(9)
    row = b'\0' * (width + 1)
    data = b''.join(packer.compress(row) for _ in range(height)) + packer.flush()
    head = struct.pack('>IIBBBBB', width, height, 8, 0, 0, 0, 0)
    return b'\x89PNG\r\n\x1a\n' + chunk(b'IHDR', head) + chunk(b'IDAT', data) + chunk(b'IEND', b'')


def test_what_a_small_file_unpacks_to_is_bounded(tmp_path):
    bomb = png_bomb(10000, 9000)
    assert len(bomb) < 100_000
    with pytest.raises(PictureError, match='10000x9000.*67108864 at most'):
        decode(bomb, 'it')
    with pytest.raises(ConversionError, match='at most'):
        compressed_to_rgb(message(bomb, 'png'))
    (tmp_path / 'mask.png').write_bytes(bomb)
    with pytest.raises(LabelError, match='at most'):
        read_labels(tmp_path / 'mask.png')


@pytest.mark.parametrize('size', [(65500, 65500), (30000, 30000), (8193, 8192)])
@pytest.mark.parametrize('kind', ['JPEG', 'BMP', 'PPM', 'PNG'])
def test_a_header_that_lies_about_the_size_costs_nothing(kind, size):
    width, height = size
    if kind == 'JPEG':
        data = bytearray(JPEG)
        where = data.index(b'\xff\xc0') + 5
        data[where : where + 4] = struct.pack('>HH', height, width)
    elif kind == 'BMP':
        data = bytearray(encoded('BMP'))
        data[18:26] = struct.pack('<ii', width, height)
    elif kind == 'PPM':
        data = f'P6 {width} {height} 255\n'.encode() + b'abc'
    else:
        head = b'IHDR' + struct.pack('>IIBBBBB', width, height, 8, 2, 0, 0, 0)
        data = encoded('PNG')
        data = data[:12] + head + struct.pack('>I', zlib.crc32(head)) + data[33:]
    with pytest.raises(PictureError, match='at most'):
        decode(bytes(data), 'it')


def test_a_jpeg_made_of_endless_scans_is_refused():
    data = encoded('JPEG', FRAME[:16, :16], progressive=True)
    first = data.index(b'\xff\xda')
    scan = data[first : data.index(b'\xff\xc4', first)]
    with pytest.raises(PictureError, match='scans'):
        decode(data[:first] + scan * 1000 + data[first:], 'it')


@pytest.mark.parametrize(
    'junk', [b'', b'\0', b'no picture' * 9, b'\xff\xd8', b'\x89PNG\r\n\x1a\n']
)
def test_what_is_no_picture_is_told(junk):
    with pytest.raises(PictureError):
        decode(junk, 'it')


def test_random_damage_never_does_anything_but_raise():
    for kind in pictures.FORMATS:
        data = encoded(kind, FRAME[:40, :50])
        for seed in range(60):
            rng = np.random.default_rng(seed)
            changed = damaged(
                data, int(rng.integers(0, len(data))), int(rng.integers(1, 30)), seed
            )
            try:
                assert decode(changed, 'it').values.ndim in (2, 3)
            except PictureError as error:
                assert 'it' in str(error) or 'the picture' in str(error)


# -- the format of a CompressedImage

MOSAIC = {'r': 200, 'g': 120, 'b': 40}


def mosaic(pattern, bits=8):
    cell = np.array([[MOSAIC[c] for c in pattern[:2]], [MOSAIC[c] for c in pattern[2:]]])
    tiled = np.tile(cell, (16, 20))
    return (tiled.astype(np.uint16) * 257) if bits == 16 else tiled.astype(np.uint8)


@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
@pytest.mark.parametrize(
    ('bits', 'suffix', 'form'),
    [
        (8, '.png', 'bayer_{}8; png compressed '),
        (16, '.png', 'bayer_{}16; png compressed '),
        (8, '.jpg', 'bayer_{}8; jpeg compressed '),
        (8, '.jpg', 'bayer_{}8; jpeg compressed bayer_{}8'),
        (8, '.png', 'bayer_{}16; png compressed '),  # narrowed on the way
        (8, '.png', 'bayer_{}8'),
    ],
)
def test_a_compressed_mosaic_gets_its_colours(pattern, bits, suffix, form):
    data = cv2.imencode(suffix, mosaic(pattern, bits), [cv2.IMWRITE_JPEG_QUALITY, 100])[1]
    frame = compressed_to_rgb(message(data.tobytes(), form.format(pattern, pattern)))
    inside = frame[2:-2, 2:-2].astype(int)
    assert np.abs(inside - (200, 120, 40)).max() <= (0 if suffix == '.png' else 6)


def test_a_mosaic_that_was_compressed_in_colour_is_left_alone():
    data = cv2.imencode('.png', FRAME[..., ::-1])[1].tobytes()
    frame = compressed_to_rgb(message(data, 'bayer_rggb8; jpeg compressed bgr8'))
    np.testing.assert_array_equal(frame, FRAME)


@pytest.mark.parametrize(
    ('form', 'order'),
    [
        ('bgr8; png compressed bgr8', 1),
        ('rgb8; png compressed bgr8', 1),
        ('rgba8; png compressed bgr8', 1),
        ('yuv422_yuy2; jpeg compressed bgr8', 1),
        ('png', 1),
        ('', 1),
        ('rgb8; png compressed rgb8', -1),  # image_transport reads it so
        ('bgr8; png compressed rgb8', -1),
    ],
)
def test_colours_are_in_the_order_the_format_says(form, order):
    data = cv2.imencode('.png', FRAME[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(compressed_to_rgb(message(data, form)), FRAME[..., ::order])


def test_sixteen_bits_of_colour_and_grey_in_a_png():
    wide = FRAME.astype(np.uint16) * 257
    data = cv2.imencode('.png', wide[..., ::-1])[1].tobytes()
    np.testing.assert_array_equal(
        compressed_to_rgb(message(data, 'rgb16; png compressed bgr16')), FRAME
    )
    data = cv2.imencode('.png', wide[..., 0])[1].tobytes()
    grey = compressed_to_rgb(message(data, 'mono16; png compressed '))
    np.testing.assert_array_equal(grey, np.repeat(FRAME[..., :1], 3, axis=2))


def test_depth_with_its_own_header_is_refused_by_name():
    with pytest.raises(ConversionError, match='16UC1; compressedDepth png.*depth'):
        compressed_to_rgb(message(b'\0' * 12 + JPEG, '16UC1; compressedDepth png'))


def test_video_in_a_compressed_image_is_refused_by_name():
    with pytest.raises(ConversionError, match="'h264'.*none of"):
        compressed_to_rgb(message(b'\0\0\0\1\x67' + b'\x42' * 500, 'h264'))


def test_pictures_of_several_phones_lenses_are_jpegs():
    stream = io.BytesIO()
    first = Image.fromarray(FRAME)
    first.save(stream, 'MPO', save_all=True, append_images=[first.rotate(180)], quality=90)
    picture = decode(stream.getvalue(), '')
    assert picture.format == 'JPEG' and np.abs(picture.values.astype(int) - FRAME).mean() < 6


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'I;16'])
def test_every_mode_becomes_a_frame(mode, tmp_path):
    image = Image.fromarray(FRAME)
    if mode == 'I;16':
        image = Image.fromarray(FRAME[..., 0].astype(np.uint16) * 257)
    elif mode == 'P':
        image = image.quantize(64)
    else:
        image = image.convert(mode)
    path = tmp_path / f'picture.{"jpg" if mode == "CMYK" else "png"}'
    image.save(path)
    frame = read_image(path)
    assert frame.shape == FRAME.shape and frame.dtype == np.uint8
    if mode == 'I;16':
        np.testing.assert_array_equal(frame[..., 0], FRAME[..., 0])
    elif mode in ('L', 'P', 'RGBA'):
        np.testing.assert_array_equal(frame, np.array(image.convert('RGB')))
