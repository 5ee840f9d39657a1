# SPDX-License-Identifier: Apache-2.0
"""Messages to arrays and back: every encoding, padding, byte order, damage."""

import array
from types import SimpleNamespace

import cv2
from hypothesis import given, settings
from hypothesis import strategies as st
import numpy as np
import pytest

from drift_ros.media.greys import GreyRange
from drift_ros.ros import conversions, messages
from drift_ros.ros.conversions import ConversionError

RNG = np.random.default_rng(7)


def image(pixels, encoding, padding=0, bigendian=False):
    """Lay pixels out as a message by hand, row by row."""
    pixels = np.asarray(pixels)
    if pixels.dtype.itemsize > 1:
        pixels = pixels.astype(pixels.dtype.newbyteorder('>' if bigendian else '<'))
    rows = [row.tobytes() + b'\xa5' * padding for row in pixels]
    return SimpleNamespace(
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=int(bigendian),
        step=len(rows[0]),
        data=array.array('B', b''.join(rows)),
    )


def noise(*shape, dtype=np.uint8):
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def narrow(pixels):
    return np.floor(pixels.astype(np.float64) * 255 / 65535 + 0.5).astype(np.uint8)


@pytest.mark.parametrize('padding', [0, 1, 7])
@pytest.mark.parametrize(
    ('encoding', 'order'),
    [
        ('rgb8', [0, 1, 2]),
        ('bgr8', [2, 1, 0]),
        ('8UC3', [2, 1, 0]),
        ('rgba8', [0, 1, 2]),
        ('bgra8', [2, 1, 0]),
        ('8UC4', [2, 1, 0]),
    ],
)
def test_8_bit_colour(encoding, order, padding):
    pixels = noise(5, 7, 4 if encoding in ('rgba8', 'bgra8', '8UC4') else 3)
    np.testing.assert_array_equal(
        conversions.image_to_rgb(image(pixels, encoding, padding)), pixels[..., order]
    )


@pytest.mark.parametrize('bigendian', [False, True])
@pytest.mark.parametrize('padding', [0, 3])
@pytest.mark.parametrize(
    ('encoding', 'order', 'channels'),
    [
        ('rgb16', [0, 1, 2], 3),
        ('bgr16', [2, 1, 0], 3),
        ('rgba16', [0, 1, 2], 4),
        ('bgra16', [2, 1, 0], 4),
    ],
)
def test_16_bit_colour_is_scaled_over_the_full_range(
    encoding, order, channels, padding, bigendian
):
    pixels = noise(4, 6, channels, dtype=np.uint16)
    pixels[0, 0] = 65535
    pixels[0, 1] = 0
    np.testing.assert_array_equal(
        conversions.image_to_rgb(image(pixels, encoding, padding, bigendian)),
        narrow(pixels)[..., order],
    )


@pytest.mark.parametrize('padding', [0, 5])
@pytest.mark.parametrize(
    ('encoding', 'dtype', 'bigendian'),
    [
        ('mono8', np.uint8, False),
        ('8UC1', np.uint8, True),
        ('mono16', np.uint16, False),
        ('mono16', np.uint16, True),
    ],
)
def test_grey_is_repeated(encoding, dtype, bigendian, padding):
    pixels = noise(6, 5, dtype=dtype)
    expected = narrow(pixels) if dtype is np.uint16 else pixels
    rgb = conversions.image_to_rgb(image(pixels, encoding, padding, bigendian))
    np.testing.assert_array_equal(rgb, np.repeat(expected[..., None], 3, axis=2))


@pytest.mark.parametrize('padding', [0, 6])
@pytest.mark.parametrize(
    ('encoding', 'luma', 'blue', 'red'),
    [
        ('yuv422', (1, 3), 0, 2),
        ('uyvy', (1, 3), 0, 2),
        ('yuv422_yuy2', (0, 2), 1, 3),
        ('yuyv', (0, 2), 1, 3),
    ],
)
def test_yuv_against_the_bt601_formula(encoding, luma, blue, red, padding):
    groups = RNG.integers(16, 235, (4, 3, 4)).astype(np.uint8)  # two pixels each
    y = groups[..., luma].reshape(4, 6).astype(np.float64) - 16
    u = np.repeat(groups[..., blue], 2, axis=1) - 128.0
    v = np.repeat(groups[..., red], 2, axis=1) - 128.0
    expected = np.stack(
        [1.164 * y + 1.596 * v, 1.164 * y - 0.813 * v - 0.391 * u, 1.164 * y + 2.018 * u], axis=-1
    ).clip(0, 255)
    message = image(groups.reshape(4, 6, 2), encoding, padding)
    assert np.abs(conversions.image_to_rgb(message) - expected).max() <= 2


def planes(encoding, height=6, width=8, padding=0):
    """Make a message in two planes, and the RGB the BT.601 formula gives of it."""
    whole = encoding == 'nv24'
    luma = RNG.integers(16, 236, (height, width)).astype(np.uint8)
    rows, columns = (height, width) if whole else (height // 2, width // 2)
    chroma = RNG.integers(16, 240, (rows, columns, 2)).astype(np.uint8)
    step = width + padding
    data = bytearray()
    for row in luma:
        data += row.tobytes() + b'\xa5' * padding
    for row in chroma:
        data += row.tobytes() + b'\xa5' * (padding * (2 if whole else 1))
    message = SimpleNamespace(
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=0,
        step=step,
        data=array.array('B', bytes(data)),
    )
    spread = chroma if whole else chroma.repeat(2, axis=0).repeat(2, axis=1)
    u, v = np.moveaxis(spread - 128.0, -1, 0)[:: -1 if encoding == 'nv21' else 1]
    y = luma - 16.0
    return message, np.stack(
        [1.164 * y + 1.596 * v, 1.164 * y - 0.813 * v - 0.391 * u, 1.164 * y + 2.018 * u], axis=-1
    ).clip(0, 255)


@pytest.mark.parametrize('padding', [0, 1, 6])
@pytest.mark.parametrize('encoding', ['nv12', 'nv21', 'nv24'])
def test_planes_of_luma_and_chroma_against_the_bt601_formula(encoding, padding):
    for size in ((6, 8), (2, 2), (480, 640)):
        message, expected = planes(encoding, *size, padding)
        frame = conversions.image_to_rgb(message)
        assert frame.shape == (*size, 3) and frame.dtype == np.uint8
        assert frame.flags['C_CONTIGUOUS'] and np.abs(frame - expected).max() <= 2


@pytest.mark.parametrize('encoding', ['nv12', 'nv21', 'nv24'])
def test_planes_that_do_not_fit_are_refused(encoding):
    message, _ = planes(encoding)
    for name, value, words in (
        ('data', message.data[:-1], 'needs rows.*bytes'),
        ('data', message.data[:48], 'needs rows.*48'),  # the luma alone
        ('data', message.data + array.array('B', [0]), 'needs rows'),
        ('step', 7, 'needs rows'),
        ('height', 0, 'empty'),
        ('width', 0, 'empty'),
    ):
        broken_message = SimpleNamespace(**{**vars(message), name: value})
        with pytest.raises(ConversionError, match=words):
            conversions.image_to_rgb(broken_message)
    if encoding != 'nv24':
        for name, value in (('width', 7), ('height', 5)):
            with pytest.raises(ConversionError, match='even'):
                conversions.image_to_rgb(SimpleNamespace(**{**vars(message), name: value}))


def test_nv24_of_an_odd_size():
    message, expected = planes('nv24', 5, 7)
    assert np.abs(conversions.image_to_rgb(message) - expected).max() <= 2


@pytest.mark.parametrize('bigendian', [False, True])
@pytest.mark.parametrize(
    ('encoding', 'white'),
    [
        ('16UC1', 10_000),  # millimetres
        ('16UC1', 16_383),
        ('mono16', 4095),
        ('mono16', 1023),
        ('bayer_rggb16', 4095),
        ('rgb16', 4095),
    ],
)
def test_sixteen_bits_in_the_ranges_drivers_publish(encoding, white, bigendian):
    ramp = np.linspace(0, white, 48 * 64).reshape(48, 64).astype(np.uint16)
    pixels = np.dstack([ramp] * 3) if encoding == 'rgb16' else ramp
    greys = GreyRange()
    rgb = conversions.image_to_rgb(image(pixels, encoding, 2, bigendian), greys)
    assert rgb.max() > 150 and rgb.min() < 8 and greys.white >= white
    assert 'grey_range' in greys.warning
    fixed = GreyRange((0, white))
    rgb = conversions.image_to_rgb(image(pixels, encoding, 2, bigendian), fixed)
    assert np.abs(rgb[1:-1, 1:-1, 1] - ramp[1:-1, 1:-1] * (255 / white)).max() <= 3
    # of one image alone, the same as of a stream's first
    alone = conversions.image_to_rgb(image(pixels, encoding, 2, bigendian))
    np.testing.assert_array_equal(
        alone, conversions.image_to_rgb(image(pixels, encoding, 2, bigendian), GreyRange())
    )


@pytest.mark.parametrize('bits', [8, 16])
@pytest.mark.parametrize('pattern', ['rggb', 'bggr', 'gbrg', 'grbg'])
def test_bayer_gives_a_flat_colour_back(pattern, bits):
    colour = {'r': 200, 'g': 120, 'b': 40}
    cell = np.array([[colour[c] for c in pattern[:2]], [colour[c] for c in pattern[2:]]])
    mosaic = np.tile(cell, (4, 5)).astype(np.uint8)
    if bits == 16:
        mosaic = mosaic.astype(np.uint16) * 257
    rgb = conversions.image_to_rgb(image(mosaic, f'bayer_{pattern}{bits}', 4, bits == 16))
    assert rgb.shape == (8, 10, 3)
    np.testing.assert_array_equal(rgb[1:-1, 1:-1], np.broadcast_to([200, 120, 40], (6, 8, 3)))


@pytest.mark.parametrize('bigendian', [False, True])
@pytest.mark.parametrize('padding', [0, 1, 4])
@pytest.mark.parametrize(
    ('encoding', 'dtype'),
    [
        ('mono8', np.uint8),
        ('8UC1', np.uint8),
        ('mono16', np.uint16),
        ('16UC1', np.uint16),
        ('32SC1', np.int32),
    ],
)
def test_labels_keep_their_values(encoding, dtype, padding, bigendian):
    labels = noise(5, 9, dtype=dtype)
    labels = np.abs(labels) if dtype is np.int32 else labels
    labels = np.maximum(labels, 0)
    read = conversions.image_to_labels(image(labels, encoding, padding, bigendian))
    np.testing.assert_array_equal(read, labels)
    assert read.dtype == dtype and read.dtype.isnative


def test_every_claimed_encoding_is_tested_here():
    with open(__file__, encoding='utf-8') as file:
        text = file.read()
    for encoding in conversions.FRAME_ENCODINGS + conversions.LABEL_ENCODINGS:
        name = "'rggb', 'bggr', 'gbrg', 'grbg'" if encoding.startswith('bayer') else encoding
        assert f"'{encoding}'" in text or name in text, encoding


def test_unpadded_rgb8_is_not_copied():
    message = image(noise(4, 4, 3), 'rgb8')
    frame = conversions.image_to_rgb(message)
    message.data[0] ^= 255
    assert frame[0, 0, 0] == message.data[0]


@pytest.mark.parametrize('read', [conversions.image_to_rgb, conversions.image_to_labels])
def test_unknown_encodings_are_refused_by_name(read):
    with pytest.raises(ConversionError, match="'yuv411'.*mono8") as caught:
        read(image(noise(4, 4), 'yuv411'))
    supported = (
        conversions.FRAME_ENCODINGS
        if read is conversions.image_to_rgb
        else conversions.LABEL_ENCODINGS
    )
    assert all(name in str(caught.value) for name in supported)


def test_colour_is_not_a_label_mask():
    with pytest.raises(ConversionError, match="'rgb8'"):
        conversions.image_to_labels(image(noise(4, 4, 3), 'rgb8'))


def broken(**changes):
    message = image(noise(6, 8, 3), 'rgb8')
    for name, value in changes.items():
        setattr(message, name, value)
    return message


@pytest.mark.parametrize(
    ('message', 'words'),
    [
        (broken(data=broken().data[:-10]), 'truncated.*134 bytes.*144'),
        (broken(data=broken().data + array.array('B', [0])), 'too long'),
        (broken(data=array.array('B')), 'truncated'),
        (broken(step=23), 'step 23'),
        (broken(width=0), 'empty'),
        (broken(height=0), 'empty'),
        (broken(encoding='rgba8'), 'step 24.*need 32'),
        (broken(encoding='yuyv', width=7), 'even width'),
        (broken(encoding='bayer_rggb8', width=2, step=24), 'demosaiced'),
    ],
)
def test_damage_is_named(message, words):
    with pytest.raises(ConversionError, match=words):
        conversions.image_to_rgb(message)


def test_negative_labels_are_refused():
    with pytest.raises(ConversionError, match='-3'):
        conversions.image_to_labels(image(np.full((4, 4), -3, np.int32), '32SC1'))


def compressed(data, name='jpeg'):
    return SimpleNamespace(format=name, data=array.array('B', bytes(data)))


def test_compressed_png_is_exact_and_jpeg_close():
    frame = cv2.GaussianBlur(noise(40, 50, 3), (0, 0), 5)
    bgr = frame[..., ::-1]
    png = compressed(cv2.imencode('.png', bgr)[1].tobytes(), 'png')
    np.testing.assert_array_equal(conversions.compressed_to_rgb(png), frame)
    jpeg = compressed(cv2.imencode('.jpg', bgr, [cv2.IMWRITE_JPEG_QUALITY, 98])[1].tobytes())
    assert np.abs(conversions.compressed_to_rgb(jpeg).astype(int) - frame).mean() < 3


@pytest.mark.parametrize(('suffix', 'keep'), [('.jpg', 0.5), ('.png', 0.5), ('.jpg', 0.01)])
def test_truncated_compressed_images_are_refused(suffix, keep):
    data = cv2.imencode(suffix, noise(60, 60, 3))[1].tobytes()
    with pytest.raises(ConversionError, match='truncated'):
        conversions.compressed_to_rgb(compressed(data[: int(len(data) * keep)]))


@pytest.mark.parametrize('data', [b'', b'nonsense' * 20])
def test_undecodable_compressed_images_are_refused(data):
    with pytest.raises(ConversionError):
        conversions.compressed_to_rgb(compressed(data))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    padding=st.integers(0, 9),
    bigendian=st.booleans(),
    seed=st.integers(0, 2**31),
    kind=st.sampled_from(
        [('mono16', np.uint16), ('16UC1', np.uint16), ('8UC1', np.uint8), ('32SC1', np.int32)]
    ),
)
def test_any_size_padding_and_order(height, width, padding, bigendian, seed, kind):
    encoding, dtype = kind
    labels = np.random.default_rng(seed).integers(
        0, np.iinfo(dtype).max, (height, width), dtype, endpoint=True
    )
    read = conversions.image_to_labels(image(labels, encoding, padding, bigendian))
    np.testing.assert_array_equal(read, labels)


class TestMessages:
    """Round trips through real message classes."""

    @pytest.fixture(autouse=True)
    def _messages(self):
        pytest.importorskip('sensor_msgs.msg')
        pytest.importorskip('drift_ros_msgs.msg')
        pytest.importorskip('vision_msgs.msg')
        from std_msgs.msg import Header

        self.header = Header(frame_id='camera')
        self.header.stamp.sec, self.header.stamp.nanosec = 12, 345

    @settings(max_examples=30, deadline=None)
    @given(
        height=st.integers(1, 9),
        width=st.integers(1, 9),
        seed=st.integers(0, 2**31),
        wide=st.booleans(),
    )
    def test_labels_round_trip(self, height, width, seed, wide):
        dtype = np.uint16 if wide else np.uint8
        labels = np.random.default_rng(seed).integers(
            0, np.iinfo(dtype).max, (height, width), dtype, endpoint=True
        )
        message = conversions.labels_to_image(labels, self.header)
        assert message.encoding == ('mono16' if wide else 'mono8')
        assert message.header == self.header
        read = conversions.image_to_labels(message)
        np.testing.assert_array_equal(read, labels)
        assert read.dtype == dtype

    def test_frames_round_trip_also_from_views(self):
        frame = noise(8, 9, 3)
        message = conversions.rgb_to_image(frame, self.header)
        np.testing.assert_array_equal(conversions.image_to_rgb(message), frame)
        flipped = conversions.rgb_to_image(frame[:, ::-1], self.header)
        np.testing.assert_array_equal(conversions.image_to_rgb(flipped), frame[:, ::-1])

    def test_compressed_round_trip(self):
        frame = cv2.GaussianBlur(noise(64, 48, 3), (0, 0), 6)
        message = conversions.rgb_to_compressed(frame, self.header, quality=95)
        read = conversions.compressed_to_rgb(message)
        assert np.abs(read.astype(int) - frame).mean() < 4
        assert message.header == self.header

    @pytest.mark.parametrize(
        'wrong', [np.zeros((4, 4), np.float32), np.zeros((4, 4, 1), np.uint8)]
    )
    def test_wrong_arrays_are_refused(self, wrong):
        with pytest.raises(ConversionError):
            conversions.labels_to_image(wrong, self.header)
        with pytest.raises(ConversionError):
            conversions.rgb_to_image(wrong, self.header)

    def test_objects(self):
        from drift_ros.engine.estimates import ObjectEstimate
        from drift_ros.engine.table import ObjectState

        objects = [
            ObjectEstimate(3, 'cup', ObjectState.TRACKING, 0.75, 0.9, (10, 20, 20, 50), 250, 7),
            ObjectEstimate(300, 'box', ObjectState.LOST, 0.1, 0.25, None, 0, 90),
        ]
        found = messages.detections(objects, self.header)
        assert found.header == self.header
        (cup,) = found.detections  # what is lost has no box
        assert cup.id == '3' and cup.header == self.header
        assert cup.results[0].hypothesis.class_id == '3'
        assert cup.results[0].hypothesis.score == pytest.approx(0.9)
        assert np.isnan(cup.results[0].pose.pose.position.z)  # no measurement, and it says so
        assert np.isnan(cup.results[0].pose.covariance).all()
        assert (cup.bbox.center.position.x, cup.bbox.center.position.y) == (15.0, 35.0)
        assert (cup.bbox.size_x, cup.bbox.size_y) == (10.0, 30.0)

        array_ = messages.tracks(
            objects, {'features': 12.0, 'total': 20.0}, 1_500_000_000, self.header
        )
        assert [(t.id, t.name, t.state, t.area, t.age) for t in array_.tracks] == [
            (3, 'cup', 1, 250, 7),
            (300, 'box', 3, 0, 90),
        ]
        np.testing.assert_allclose([t.existence for t in array_.tracks], [0.9, 0.25])
        box = array_.tracks[0].box
        assert (box.x_offset, box.y_offset, box.width, box.height) == (10, 20, 10, 30)
        assert array_.tracks[1].box.width == 0
        assert (array_.latency.sec, array_.latency.nanosec) == (1, 500_000_000)
        assert list(array_.stages) == ['features', 'total']
        np.testing.assert_allclose(array_.stage_times, [0.012, 0.020], rtol=1e-6)

    @pytest.mark.parametrize(
        ('latency', 'parts'), [(-1, (-1, 999_999_999)), (2**80, (2**31 - 1, 2**80 % 10**9))]
    )
    def test_absurd_latencies_are_published(self, latency, parts):
        message = messages.tracks([], {}, latency, self.header)
        assert (message.latency.sec, message.latency.nanosec) == parts

    def test_label_info_is_sorted(self):
        info = messages.label_info({300: 'box', 2: 'cup'}, self.header)
        assert [(c.class_id, c.class_name) for c in info.class_map] == [(2, 'cup'), (300, 'box')]

    def test_diagnostic(self):
        status = messages.diagnostic('tracker', 'camera', 1, 'hm', {'rate': 2.5, 'mode': 'x'})
        assert status.level == b'\x01'
        assert [(v.key, v.value) for v in status.values] == [('rate', '2.500'), ('mode', 'x')]

    @pytest.mark.parametrize('encoding', ['bgr8', 'rgba8', 'mono8', 'mono16', 'bayer_rggb8'])
    def test_agrees_with_cv_bridge(self, encoding):
        bridge = pytest.importorskip('cv_bridge', exc_type=ImportError).CvBridge()
        from sensor_msgs.msg import Image

        dtype = np.uint16 if encoding.endswith('16') else np.uint8
        channels = {'bgr8': (3,), 'rgba8': (4,)}.get(encoding, ())
        raw = image(noise(6, 8, *channels, dtype=dtype), encoding)
        message = Image(height=6, width=8, encoding=encoding, step=raw.step, data=raw.data)
        theirs = bridge.imgmsg_to_cv2(message, 'rgb8').astype(int)
        assert np.abs(conversions.image_to_rgb(message).astype(int) - theirs).max() <= 1
