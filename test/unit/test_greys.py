# SPDX-License-Identifier: Apache-2.0
"""16-bit images to 8 bits, in the value ranges cameras publish."""

import numpy as np
import pytest

from drift_ros.media.greys import GreyRange

RNG = np.random.default_rng(1)
RAMP = np.linspace(0, 1, 120 * 160).reshape(120, 160)


def between(low, high):
    return (low + RAMP * (high - low)).round().astype(np.uint16)


@pytest.mark.parametrize('bits', [8, 10, 12, 14, 16])
@pytest.mark.parametrize('grey', [True, False])
def test_the_bits_of_a_sensor_are_found(bits, grey):
    greys = GreyRange()
    narrow = greys.narrow(between(0, 2**bits - 1), grey)
    np.testing.assert_array_equal(
        narrow, np.floor(between(0, 2**bits - 1) * 255.0 / (2**bits - 1) + 0.5)
    )
    assert (greys.black, greys.white) == (0, 2**bits - 1)
    assert bool(greys.warning) == (bits < 16)
    assert f'0 to {2**bits - 1} (automatic)' == greys.text


@pytest.mark.parametrize(
    ('low', 'high'),
    [
        (29000, 30500),  # hundredths of a kelvin, a room
        (7400, 8100),  # 14 bits of an uncooled sensor
        (400, 1900),  # millimetres
        (500, 520),
    ],
)
def test_a_picture_of_low_contrast_is_stretched(low, high):
    narrow = GreyRange().narrow(between(low, high), True)
    assert narrow.max() - narrow.astype(int).min() > 90
    assert 0 < narrow.min() and narrow.max() < 255  # with room for what comes
    assert (np.diff(narrow.reshape(-1).astype(int)) >= 0).all()


def test_colour_is_never_stretched():
    image = np.dstack([between(30000, 30100), between(30050, 30150), between(29900, 30000)])
    narrow = GreyRange().narrow(image, False)
    np.testing.assert_array_equal(narrow, np.floor(image * 255.0 / 65535 + 0.5))


def test_a_given_range_is_kept_whatever_comes():
    greys = GreyRange((100, 1100))
    narrow = greys.narrow(np.array([[0, 100, 600, 1100, 60000]], np.uint16), True)
    np.testing.assert_array_equal(narrow, [[0, 0, 128, 255, 255]])
    assert greys.text == '100 to 1100' and greys.warning == '' and greys.changes == 0


def test_a_thing_keeps_its_grey_from_frame_to_frame():
    greys = GreyRange()
    first = greys.narrow(between(29000, 30500), True)
    hot = between(29000, 30500)
    hot[:20] = 30900  # something warm comes in
    second = greys.narrow(hot, True)
    np.testing.assert_array_equal(first[20:], second[20:])
    assert greys.changes == 1


def test_another_range_is_chosen_when_the_picture_leaves_it():
    greys = GreyRange()
    greys.narrow(between(29000, 30500), True)
    narrow = greys.narrow(between(36000, 37000), True)
    assert greys.changes == 2 and narrow.max() - narrow.astype(int).min() > 90


def test_the_range_grows_with_brighter_frames_and_does_not_shrink():
    greys = GreyRange()
    greys.narrow(between(0, 900), False)
    assert greys.white == 1023
    greys.narrow(between(0, 4000), False)
    assert greys.white == 4095 and greys.changes == 2
    greys.narrow(between(0, 900), False)
    assert greys.white == 4095 and greys.changes == 2


def test_hot_pixels_and_missing_values_do_not_count():
    image = between(0, 4000)
    image[0, :3] = 65535
    image[:40] = 0  # nothing measured
    greys = GreyRange()
    greys.narrow(image, True)
    assert greys.white == 4095


def test_a_black_frame_decides_nothing():
    greys = GreyRange()
    assert not greys.narrow(np.zeros((4, 5), np.uint16), True).any()
    greys.narrow(between(0, 1000), True)
    assert greys.white == 1023 and greys.changes == 1


@pytest.mark.parametrize('value', [1, 255, 30000, 65535])
def test_a_flat_frame_is_no_error(value):
    narrow = GreyRange().narrow(np.full((6, 7), value, np.uint16), True)
    assert narrow.shape == (6, 7) and (narrow == narrow[0, 0]).all()
