# SPDX-License-Identifier: Apache-2.0
"""The verdict of the soak: growth, losses and tracebacks are found, and noise is not."""

from pathlib import Path
import sys

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'soak'))

from scene import picture, SIZE  # noqa: E402
import verdict  # noqa: E402


def samples(per_hour, noise, count=24):
    """Make samples at the ends of rounds of an hour."""
    random = np.random.default_rng(0)
    times = np.linspace(0, 3600, count)
    flat = {'shared': 100.0, 'descriptors': 23, 'threads': 28, 'effort': 50.0}
    return [
        {
            'time': time,
            'where': 'round',
            'memory': 1000 + per_hour * time / 3600 + random.normal(0, noise),
            **flat,
        }
        for time in times
    ]


@pytest.mark.parametrize(
    ('per_hour', 'noise', 'word'),
    [
        (0, 1, 'passed'),
        (100, 1, 'FAILED'),
        (100, 20, 'FAILED'),
        (0, 200, 'open'),
        (15, 1, 'passed'),
    ],
)
def test_growth(per_hour, noise, word):
    passed, reasons, slopes = verdict.judge(samples(per_hour, noise), [], [], [])
    (line,) = (text for text in reasons if 'memory grows' in text)
    assert line.startswith(word)
    assert passed is (word != 'FAILED')
    assert slopes['memory'].low < per_hour < slopes['memory'].high


def test_what_never_changes_passes():
    _, reasons, slopes = verdict.judge(samples(0, 1), [], [], [])
    for name in ('shared', 'descriptors', 'threads', 'effort'):
        (line,) = (text for text in reasons if f'{name} grows' in text)
        assert line.startswith('passed') and slopes[name] == verdict.Slope(0.0, 0.0, 0.0)


@pytest.mark.parametrize('kind', range(3))
def test_anything_that_went_wrong_fails(kind):
    lists = [[], [], []]
    lists[kind] = ['something']
    passed, reasons, _ = verdict.judge(samples(0, 1), *lists)
    assert not passed and any('something' in text for text in reasons)


def test_too_few_rounds_prove_nothing_and_fail_nothing():
    passed, reasons, _ = verdict.judge(samples(0, 1, 3), [], [], [])
    assert passed and sum(text.startswith('open') for text in reasons) == len(verdict.GROWTH)


def test_tracebacks_are_found_in_any_log(tmp_path):
    (tmp_path / 'deep').mkdir()
    text = 'x\nTraceback (most recent call last):\n  File "a"\nValueError: why\n'
    (tmp_path / 'deep' / 'a.log').write_text(text)
    (tmp_path / 'b.log').write_text('all is well\nerror: told in one line\n')
    assert verdict.tracebacks(tmp_path) == ['deep/a.log: ValueError: why']


def test_both_objects_are_always_whole_in_the_picture():
    areas = []
    for index in range(0, 600, 7):
        frame, labels = picture(index)
        assert frame.shape == (*SIZE, 3) and labels[96:].max() == 0
        areas.append(np.bincount(labels.ravel(), minlength=3)[1:])
    assert np.ptp(areas, axis=0).max() == 0 and np.min(areas) > 500


def test_curves_are_drawn(tmp_path):
    found = [{**item, 'step': 50.0, 'rate': 5.0} for item in samples(3, 1)]
    _, _, slopes = verdict.judge(found, [], [], [])
    verdict.draw(tmp_path / 'curves.png', found, slopes)
    assert (tmp_path / 'curves.png').read_bytes().startswith(b'\x89PNG')
