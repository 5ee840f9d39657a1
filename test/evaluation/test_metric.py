# SPDX-License-Identifier: Apache-2.0
"""J and F: golden values, a second implementation, and properties that must always hold."""

from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest

from drift_ros.evaluation import metric

from . import transcription
from .random_masks import mask_pair

SHAPE = (480, 854)


def region_similarity(truth, prediction):
    """Return J of two masks."""
    return metric.mask_scores(truth, prediction)[0]


def boundary_accuracy(truth, prediction):
    """Return F of two masks."""
    return metric.mask_scores(truth, prediction)[1]


def rectangle(down=0, right=0):
    """Return the golden rectangle, shifted."""
    mask = np.zeros(SHAPE, bool)
    mask[100 + down : 200 + down, 100 + right : 250 + right] = True
    return mask


@pytest.mark.parametrize(
    'down, right, j, f',
    [
        (0, 0, 1, 1),
        (0, 5, 0.935484, 1),
        (0, 8, 0.898734, 1),
        (0, 9, 0.886792, 0.632),
        (0, 20, 0.764706, 0.588),
        (10, 12, 0.706485, 0.068),
    ],
)
def test_golden_shifts(down, right, j, f):
    """The published golden values of a shifted rectangle."""
    truth, prediction = rectangle(), rectangle(down, right)
    assert region_similarity(truth, prediction) == pytest.approx(j, abs=5e-7)
    assert boundary_accuracy(truth, prediction) == pytest.approx(f, abs=5e-4)


def test_golden_statistics():
    """Mean, recall and decay of a straight line from 1 to 0."""
    result = metric.statistics(np.linspace(1, 0, 10))
    assert result.mean == pytest.approx(0.5)
    assert result.recall == pytest.approx(0.5)
    assert result.decay == pytest.approx(0.777778, abs=5e-7)


def test_radius_at_480p():
    """The tolerance is 8 pixels at 480x854 and grows with the diagonal."""
    assert metric.boundary_radius(SHAPE) == 8
    assert metric.boundary_radius((2160, 3840)) == 36


@pytest.mark.parametrize('seed', range(200))
def test_agrees_with_transcription(seed):
    """Two implementations that share no code agree on 200 random pairs."""
    truth, prediction = mask_pair(seed)
    assert region_similarity(truth, prediction) == pytest.approx(
        transcription.region_similarity(truth, prediction), abs=1e-9
    )
    assert boundary_accuracy(truth, prediction) == pytest.approx(
        transcription.boundary_accuracy(truth, prediction), abs=1e-9
    )
    j, f = metric.frame_scores(truth.astype(np.uint8) * 3, prediction.astype(np.uint8) * 3, [3])
    assert j[0] == pytest.approx(transcription.region_similarity(truth, prediction), abs=1e-9)
    assert f[0] == pytest.approx(transcription.boundary_accuracy(truth, prediction), abs=1e-9)


@pytest.mark.parametrize('shape', [(720, 1280), (1, 40), (40, 1), (1, 1), (2, 2)])
def test_agrees_on_other_sizes(shape):
    """Large and degenerate images follow the same definition."""
    rng = np.random.default_rng(7)
    first, second = rng.random((2, *shape)) > 0.5
    assert boundary_accuracy(first, second) == pytest.approx(
        transcription.boundary_accuracy(first, second), abs=1e-9
    )
    assert region_similarity(first, second) == pytest.approx(
        transcription.region_similarity(first, second), abs=1e-9
    )


masks = hnp.arrays(bool, st.tuples(st.integers(1, 24), st.integers(1, 24)))


@st.composite
def pairs(draw):
    """Two masks of one size."""
    first = draw(masks)
    return first, draw(hnp.arrays(bool, first.shape))


@given(pairs())
@settings(deadline=None)
def test_symmetric_and_bounded(pair):
    """Swapping truth and prediction changes neither measure; both stay in [0, 1]."""
    first, second = pair
    j, f = region_similarity(first, second), boundary_accuracy(first, second)
    assert j == region_similarity(second, first)
    assert f == pytest.approx(boundary_accuracy(second, first), abs=1e-12)
    assert 0 <= j <= 1 and 0 <= f <= 1


@given(pairs())
@settings(deadline=None)
def test_property_agrees_with_transcription(pair):
    """Whatever the masks, the second implementation gives the same numbers."""
    first, second = pair
    assert region_similarity(first, second) == pytest.approx(
        transcription.region_similarity(first, second), abs=1e-9
    )
    assert boundary_accuracy(first, second) == pytest.approx(
        transcription.boundary_accuracy(first, second), abs=1e-9
    )


@given(masks)
@settings(deadline=None)
def test_identity(mask):
    """A mask scores 1 against itself."""
    assert region_similarity(mask, mask) == 1
    assert boundary_accuracy(mask, mask) == 1


@given(masks)
@settings(deadline=None)
def test_empty_prediction(mask):
    """Against an empty mask J is 0 unless the other is empty too; F looks at boundaries."""
    empty = np.zeros_like(mask)
    assert region_similarity(mask, empty) == float(not mask.any())
    assert boundary_accuracy(mask, empty) == float(not metric.boundary_map(mask).any())


@given(
    st.tuples(st.integers(0, 39), st.integers(0, 39)),
    st.tuples(st.integers(0, 39), st.integers(0, 39)),
)
@settings(deadline=None)
def test_one_pixel_masks(first, second):
    """One pixel against another: J asks for the same pixel, F for a neighbourhood."""
    masks_ = np.zeros((2, 40, 40), bool)
    masks_[0][first] = True
    masks_[1][second] = True
    assert region_similarity(*masks_) == float(first == second)
    distance = np.hypot(first[0] - second[0], first[1] - second[1])
    f = boundary_accuracy(*masks_)
    if first == second:
        assert f == 1
    elif distance > metric.boundary_radius((40, 40)) + 4:
        assert f == 0


@given(
    hnp.arrays(bool, (12, 12)),
    hnp.arrays(bool, (12, 12)),
    st.tuples(st.integers(2, 30), st.integers(2, 30)),
)
@settings(deadline=None)
def test_translation(first, second, offset):
    """Moving both masks together changes nothing as long as they stay off the border."""
    scores = set()
    for down, right in ((20, 20), offset):
        truth, prediction = np.zeros((2, 48, 48), bool)
        truth[down : down + 12, right : right + 12] = first
        prediction[down : down + 12, right : right + 12] = second
        scores.add(
            (
                region_similarity(truth, prediction),
                boundary_accuracy(truth, prediction),
            )
        )
    assert len(scores) == 1


def sequence(length):
    """Return label images of a moving square with id 2, and a lagging prediction."""
    truth = np.zeros((length, 60, 80), np.uint8)
    prediction = truth.copy()
    for index in range(length):
        left = 10 + index % 40
        truth[index, 20:40, left : left + 20] = 2
        prediction[index, 20:40, left - 3 : left + 17] = 2
    return truth, prediction


@pytest.mark.parametrize('length', [3, 4, 10, 300])
def test_first_and_last_frame_do_not_count(length):
    """Frames 1 .. n-2 are scored and the statistics are those of a loop."""
    truth, prediction = sequence(length)
    prediction[0] = prediction[-1] = 0
    score = metric.score_sequence(truth, prediction)
    assert score.objects == (2,)
    assert list(score.frames) == list(range(1, length - 1))
    expected = [
        transcription.region_similarity(t == 2, p == 2)
        for t, p in zip(truth[1:-1], prediction[1:-1])
    ]
    np.testing.assert_allclose(score.j[:, 0], expected, atol=1e-12)
    j, f = score.statistics(2)
    assert j.mean == pytest.approx(np.mean(expected))
    assert j.recall == 1 and f.mean == pytest.approx(score.f.mean())


@pytest.mark.parametrize('length', [0, 1, 2])
def test_too_short(length):
    """Two frames leave nothing to score: an error says so."""
    truth, prediction = sequence(length)
    with pytest.raises(metric.MetricError, match='3 or more'):
        metric.score_sequence(truth, prediction)


def test_100000_frames():
    """The decay's quarters stay right far beyond 255 frames."""
    result = metric.statistics(np.linspace(1, 0, 100_000))
    assert result.mean == pytest.approx(0.5)
    assert result.recall == pytest.approx(0.5)
    assert result.decay == pytest.approx(0.75, abs=1e-4)
    for length in range(1, 1200, 7):
        values = np.arange(length) / length
        low, high = values[: len(values) // 4 + 1].mean(), values[-(len(values) // 4 + 1) :].mean()
        assert metric.statistics(values).decay == pytest.approx(low - high, abs=3 / length)


def test_single_value_has_no_decay():
    """A three-frame sequence has one value: decay 0."""
    assert metric.statistics([0.7]) == metric.MeasureStatistics(0.7, 1, 0)


def test_void_label_is_background():
    """255 in the truth is neither an object nor a gap in another object's score."""
    truth, prediction = sequence(5)
    truth[:, :5] = 255
    with_void = metric.score_sequence(truth, prediction)
    assert with_void.objects == (2,)
    truth[truth == 255] = 0
    np.testing.assert_array_equal(with_void.j, metric.score_sequence(truth, prediction).j)
    # A prediction on void is a false positive.
    truth[:, :5] = 255
    prediction[:, :5] = 2
    assert (metric.score_sequence(truth, prediction).j < with_void.j).all()


def test_late_objects():
    """Officially an id that is not in the first mask is background; optionally it is scored."""
    truth, prediction = sequence(10)
    truth[4:, 45:55, 5:15] = 1
    prediction[4:, 45:55, 5:15] = 1
    official = metric.score_sequence(truth, prediction)
    assert official.objects == (2,)
    late = metric.score_sequence(truth, prediction, late_objects=True)
    assert late.objects == (2, 1)
    assert np.isnan(late.j[:4, 1]).all()
    assert (late.j[4:, 1] == 1).all() and len(late.j) == 8
    assert late.statistics(1)[0].mean == 1
    np.testing.assert_array_equal(late.j[:, 0], official.j[:, 0])


def test_object_that_leaves():
    """Once gone, an object scores 1 as long as nothing is predicted, else 0."""
    truth, prediction = sequence(6)
    truth[3:] = 0
    prediction[3] = 0
    score = metric.score_sequence(truth, prediction)
    assert score.j[2, 0] == 1 and score.f[2, 0] == 1
    assert score.j[3, 0] == 0 and score.f[3, 0] == 0


def test_missing_annotations_are_not_scored():
    """Sparse truth is scored where it exists."""
    truth, prediction = sequence(9)
    sparse = [t if i % 3 == 0 else None for i, t in enumerate(truth)]
    score = metric.score_sequence(sparse, prediction)
    assert list(score.frames) == [3, 6]


def test_empty_first_mask():
    """Nothing to seed is an error, not a score of 1."""
    truth, prediction = sequence(5)
    truth[0] = 0
    with pytest.raises(metric.MetricError, match='first true mask is empty'):
        metric.score_sequence(truth, prediction)


def test_wrong_size():
    """A prediction of another size is refused with both shapes."""
    truth, prediction = sequence(5)
    with pytest.raises(metric.MetricError, match=r'\(60, 80\).*\(30, 40\)'):
        metric.score_sequence(truth, prediction[:, ::2, ::2])


def test_summary_averages_objects_not_sequences():
    """Three objects in one sequence weigh three times one object in another."""
    one = metric.SequenceScore(np.arange(1, 3), (1,), np.zeros((2, 1)), np.zeros((2, 1)))
    three = metric.SequenceScore(np.arange(1, 3), (1, 2, 5), np.ones((2, 3)), np.ones((2, 3)))
    summary = metric.summarize([one, three])
    assert summary.objects == 4
    assert summary.j.mean == 0.75 and summary.f.recall == 0.75 and summary.j_and_f == 0.75
