# SPDX-License-Identifier: Apache-2.0
"""Drawing results."""

from types import SimpleNamespace

import numpy as np
import pytest

from drift_ros import ObjectState
from drift_ros.media import overlay


def thing(number, name='cup', box=(10, 10, 30, 30), state=ObjectState.TRACKING):
    return SimpleNamespace(id=number, name=name, state=state, confidence=0.5, box=box)


def test_palette_is_that_of_voc():
    colors = overlay.palette()
    assert colors[:9].tolist() == [
        [0, 0, 0],
        [128, 0, 0],
        [0, 128, 0],
        [128, 128, 0],
        [0, 0, 128],
        [128, 0, 128],
        [0, 128, 128],
        [128, 128, 128],
        [64, 0, 0],
    ]
    assert colors[255].tolist() == [224, 224, 192]
    assert len(np.unique(colors, axis=0)) == 256
    many = overlay.palette(600)
    assert many.shape == (600, 3) and many[1:].any(axis=1).all()


def test_inside_is_tinted_and_outside_untouched():
    frame = np.full((60, 80, 3), 100, np.uint8)
    labels = np.zeros((60, 80), np.uint8)
    labels[20:40, 20:50] = 2
    drawn = overlay.draw_labels(frame, labels, opacity=0.5)
    assert (frame == 100).all()
    assert drawn[30, 35].tolist() == [50, 114, 50]
    assert (drawn[:16] == 100).all() and (drawn[:, :16] == 100).all()
    assert overlay.draw_labels(frame, labels, opacity=0.0)[30, 35].tolist() == [100] * 3
    np.testing.assert_array_equal(overlay.draw_labels(frame, 0 * labels), frame)


def test_ids_beyond_255():
    labels = np.zeros((60, 80), np.uint16)
    labels[20:40, 20:50] = 300
    drawn = overlay.draw_labels(np.zeros((60, 80, 3), np.uint8), labels, opacity=1.0)
    assert drawn[30, 35].tolist() == list(overlay.color(300)) != [0, 0, 0]


def test_boxes_names_and_missing_objects_are_drawn():
    frame = np.full((240, 320, 3), 90, np.uint8)
    labels = np.zeros((240, 320), np.uint8)
    plain = overlay.draw(frame, labels)
    np.testing.assert_array_equal(plain, frame)
    boxed = overlay.draw(frame, labels, [thing(1, box=(100, 100, 140, 150))])
    assert boxed[120, 100].tolist() == boxed[149, 120].tolist() == list(overlay.color(1))
    assert (boxed[100:150, 140:] == 90).all()  # the maxima are exclusive
    lost = overlay.draw(frame, labels, [thing(2, box=None, state=ObjectState.LOST)])
    assert (lost[-20:, :100] != 90).any() and (lost[:200] == 90).all()
    titled = overlay.draw(frame, labels, caption='hello')
    assert (titled[:20, :60] != 90).any() and (titled[40:] == 90).all()
    overlay.draw(frame, labels, [thing(3, name='x' * 200, box=(310, 0, 320, 4))])  # stays inside


def test_sizes_must_agree():
    with pytest.raises(ValueError, match='label image'):
        overlay.draw_labels(np.zeros((4, 4, 3), np.uint8), np.zeros((5, 4), np.uint8))


def test_contact_sheet():
    frames = [np.full((30, 40, 3), 10 * index, np.uint8) for index in range(5)]
    sheet = overlay.contact_sheet(frames, columns=2, width=80, margin=3)
    assert sheet.shape == (3 * 63 + 3, 2 * 83 + 3, 3)
    for index in range(5):
        top, left = 3 + index // 2 * 63, 3 + index % 2 * 83
        assert (sheet[top : top + 60, left : left + 80] == 10 * index).all()
    assert (sheet[3 + 2 * 63 :, 3 + 83 :] == 255).all()
    assert (overlay.contact_sheet(frames, captions=['a', 'b']) != sheet.mean()).any()
    with pytest.raises(ValueError, match='at least one'):
        overlay.contact_sheet([])
