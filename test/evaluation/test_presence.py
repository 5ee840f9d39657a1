# SPDX-License-Identifier: Apache-2.0
"""Boxes, absence and recovery: by hand, through a run, and made of any sequences."""

import json
import math

from click.testing import CliRunner
import numpy as np
import pytest

from drift_ros.commands.evaluate import evaluate
from drift_ros.evaluation import run as runner
from drift_ros.evaluation.composites import composed, CompositeSequence
from drift_ros.evaluation.datasets import DatasetError, find_sequences
from drift_ros.evaluation.engines import parse_engine
from drift_ros.evaluation.metric import SequenceScore
from drift_ros.evaluation.presence import (
    box_iou,
    centre_error,
    measure,
    MEASURES,
    ObjectRecord,
    records,
    reliability,
    returns,
    roc,
)
from drift_ros.evaluation.protocol import Track
from drift_ros.evaluation.results import JobResult
from drift_ros.evaluation.splice import spliced, SplicedSequence
from drift_ros.evaluation.summaries import engine_summary, frame_rows, object_rows

NAN = math.nan


def test_boxes():
    """By hand: half covered, apart, equal; centres in diagonals of the true box."""
    assert box_iou((0, 0, 10, 10), (5, 0, 15, 10)) == 50 / 150
    assert box_iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0
    assert box_iou((3, 4, 5, 9), (3, 4, 5, 9)) == 1
    assert centre_error((0, 0, 3, 4), (3, 4, 6, 8)) == 1
    assert centre_error((0, 0, 3, 4), (0, 0, 3, 4)) == 0


def test_reliability_compares_what_is_said_with_what_is():
    present = np.array([False, False, True, True, True, True])
    said, true, count = reliability(present, np.array([0.02, 0.08, 0.06, 0.95, 1.0, NAN]))
    np.testing.assert_allclose(said, [0.16 / 3, 0.975])
    np.testing.assert_allclose(true, [1 / 3, 1.0])
    assert count.tolist() == [3, 2]


def track(box, existence=NAN, area=None):
    return Track(1, 1, 0.9, (box is not None) if area is None else area, 0, box, existence)


TRUTH, FAR = (0, 0, 10, 10), (20, 20, 30, 30)


def job(truths, claims, j):
    """Return a job of one object whose frames 1, 2, ... are given."""
    frames = len(truths)
    score = SequenceScore(
        np.arange(1, frames + 1), (1,), np.array(j, float)[:, None], np.zeros((frames, 1))
    )
    tracks = tuple((item,) for item in (track(TRUTH), *claims, track(TRUTH)))
    names = tuple(map(str, range(frames + 2)))
    boxes = tuple((box,) for box in truths)
    return JobResult('a', 's', score, np.ones(frames), (40, 40), names, tracks, None, boxes)


def test_measures_by_hand():
    """Seen twice, once lost; two absent frames, one false find; back, found after one frame."""
    result = job(
        [TRUTH, TRUTH, TRUTH, None, None, TRUTH, TRUTH],
        [
            track(TRUTH, 0.9),
            track((5, 0, 15, 10), 0.8),
            track(None, 0.3),
            track(FAR, 0.5),
            track(None, 0.1),
            track(FAR, 0.4),
            track(TRUTH, 0.7),
        ],
        [1, 0.4, 0, 0, 1, 0, 0.9],
    )
    (record,) = result.presence().values()
    assert record.present.tolist() == [True, True, True, False, False, True, True]
    assert record.reported.tolist() == [True, True, False, True, False, True, True]
    found = measure([record])
    assert found['box_iou'] == pytest.approx((1 + 1 / 3 + 0 + 0 + 1) / 5)
    assert found['box_half'] == 2 / 5
    far = math.hypot(20, 20) / math.hypot(10, 10)
    assert found['centre_error'] == pytest.approx((0 + 5 / math.hypot(10, 10) + far + 0) / 4)
    assert found['false_finds'] == 1 / 2 and found['absent_frames'] == 2
    assert found['false_losses'] == 1 / 5
    # pairs of a present and an absent frame in the right order: all but (.3, .5) and (.4, .5)
    assert found['existence_auc'] == pytest.approx(8 / 10)
    assert [values.tolist() for values in returns(record)] == [[0, 0.9]]
    assert (found['found_again'], found['again_delay'], found['again_frames']) == (1, 1, 0.5)
    assert JobResult.from_dict(json.loads(json.dumps(result.as_dict()))).presence().keys() == {1}


def test_what_cannot_be_said_is_left_out():
    """No absent frame, no existence: None, not 0; nor is there anything without tracks."""
    result = job([TRUTH] * 3, [track(TRUTH)] * 3, [1, 1, 1])
    found = measure(result.presence().values())
    for name in ('false_finds', 'existence_auc', 'found_again', 'again_frames', 'again_delay'):
        assert found[name] is None
    assert found['box_iou'] == 1 and found['returns'] == 0
    assert records(result.score, result.truth_boxes, ()) == {}
    assert set(measure([])) == {*MEASURES, 'absent_frames', 'returns'}
    never = job([TRUTH, None, TRUTH], [track(TRUTH), track(None), track(None)], [1, 1, 0])
    found = measure(never.presence().values())
    assert found['found_again'] == 0 and found['again_delay'] is None


def test_pixels_without_a_box_count_as_reported():
    result = job([None, TRUTH], [track(None, area=7)] * 2, [0, 0.1])
    (record,) = result.presence().values()
    assert record.reported.tolist() == [True, True] and record.box_iou[1] == 0


def test_roc_is_scikit_learn_s():
    metrics = pytest.importorskip('sklearn.metrics')
    rng = np.random.default_rng(0)
    present = rng.random(500) < 0.7
    existence = np.round(np.clip(rng.normal(0.4 + 0.2 * present, 0.2), 0, 1), 1)
    false, true, area = roc(present, existence)
    theirs = metrics.roc_curve(present, existence, drop_intermediate=False)
    np.testing.assert_allclose(false, theirs[0])
    np.testing.assert_allclose(true, theirs[1])
    assert area == pytest.approx(metrics.roc_auc_score(present, existence))
    existence[:10] = NAN
    assert roc(present, existence)[2] == pytest.approx(
        metrics.roc_auc_score(present[10:], existence[10:])
    )


def test_means_are_over_objects():
    def record(iou):
        ones = np.ones(len(iou))
        return ObjectRecord(ones > 0, ones > 0, np.array(iou), ones * 0, ones * NAN, ones)

    assert measure([record([1.0]), record([0.0, 0.0, 0.0])])['box_iou'] == 0.5


def test_published_boxes_are_measured(davis, tmp_path):
    """A run: what the first mask claims has the boxes of its masks, by label."""
    (result, _), errors = runner.run([parse_engine('first-mask')], find_sequences(davis), tmp_path)
    assert not errors
    (record,) = result.presence().values()
    # squares of 20 pixels that move by 3 a frame: boxes overlap as the masks do
    np.testing.assert_allclose(record.box_iou, result.score.j[:, 0])
    np.testing.assert_allclose(record.centre_error, np.arange(1, 7) * 3 / math.hypot(20, 20))
    assert np.isnan(record.existence).all()


def test_splice(davis):
    """Frames of the next sequence, at this one's size, with an empty truth; then the rest."""
    one, two = find_sequences(davis)
    sequence = SplicedSequence(one, two, before=3, absent=4)
    frames, ours, theirs = list(sequence), list(one), list(two)
    assert len(frames) == len(sequence) == 12 and sequence.bounds == (3, 7)
    assert [frame.name for frame in frames] == [f'{i:05d}' for i in range(12)]
    for frame, given in zip(frames[:3] + frames[7:], ours, strict=True):
        np.testing.assert_array_equal(frame.image, given.image)
        np.testing.assert_array_equal(frame.truth, given.truth)
    for frame, given in zip(frames[3:7], theirs, strict=False):
        np.testing.assert_array_equal(frame.image, given.image)
        assert frame.truth.shape == ours[0].truth.shape and not frame.truth.any()
    assert [item.name for item in spliced([one, two])] == ['one+absent', 'two+absent']
    assert spliced([one, two])[0].bounds == (4, 12), 'half of a short sequence'
    digests = {
        SplicedSequence(one, two, before=before, absent=absent).digest()
        for before, absent in ((3, 4), (3, 5), (4, 4))
    }
    assert len(digests | {sequence.digest()}) == 3
    with pytest.raises(DatasetError, match='choose two'):
        spliced([one])


def test_composites(davis):
    """Side by side, cut out and pasted, mirrored: pictures and labels agree."""
    one, two = find_sequences(davis)
    (beside, _) = composed([one, two], 'beside')
    frames = list(beside)
    assert frames[0].image.shape == (64, 192, 3) and len(frames) == len(beside) == 8
    assert np.unique(frames[0].truth[:, 96:]).tolist() == [0, 2, 3]
    assert beside.name == 'one+two'
    (_, pasted) = composed([one, two], 'pasted')
    for frame, back, front in zip(pasted, two, one, strict=True):
        mask = front.truth > 0
        assert (frame.truth[mask] == 3).all()
        np.testing.assert_array_equal(frame.image[mask], front.image[mask])
        np.testing.assert_array_equal(frame.truth[~mask], back.truth[~mask])
        np.testing.assert_array_equal(frame.image[~mask], back.image[~mask])
    (mirrored, _) = composed([one, two], 'mirrored')
    assert mirrored.name == 'one+mirrored'
    for frame, given in zip(mirrored, one, strict=True):
        np.testing.assert_array_equal(frame.truth == 2, given.truth[:, ::-1] == 1)
    assert CompositeSequence(one, two, 'beside').digest() != pasted.digest()
    with pytest.raises(DatasetError, match='choose two'):
        composed([one], 'pasted')


def test_splice_on_the_command_line(davis, tmp_path):
    """Per sequence and in sum, with workers as without, and kept; in files, report, compare."""
    out = tmp_path / 'out'
    call = ['davis', str(davis), '--splice', '-e', 'first-mask', '-e', 'flow']
    outcome = CliRunner().invoke(evaluate, [*call, '--out', str(out)])
    assert outcome.exit_code == 0, outcome.output
    assert 'False finds' in outcome.output and 'one+absent' in outcome.output
    data = json.loads((out / 'results.json').read_text())
    assert data['run']['data']['splice'] is True
    assert data['engines']['first-mask']['false_finds'] == 1
    assert data['engines']['first-mask']['absent_frames'] == 3 * 8
    assert data['engines']['first-mask']['returns'] == 3
    assert {row['sequence'] for row in data['sequences']} == {'one+absent', 'two+absent'}
    page = (out / 'report.html').read_text()
    assert 'id="presence"' in page and 'boxes with IoU' in page and ' .. ' in page
    again = CliRunner().invoke(
        evaluate, [*call, '--workers', '2', '--out', str(tmp_path / 'two'), '--no-report']
    )
    assert again.exit_code == 0, again.output
    for path in sorted((out / 'scores').rglob('*.json')):
        first, second = (
            json.loads((folder / path.relative_to(out)).read_text())
            for folder in (out, tmp_path / 'two')
        )
        # the seal covers the time, which no two runs share
        free = {'milliseconds': 0, 'digest': ''}
        assert {**first, **free} == {**second, **free}
    told = CliRunner().invoke(evaluate, ['compare', str(out), '--engines', 'first-mask,flow'])
    assert told.exit_code == 0, told.output
    for text in ('box IoU', 'boxes with IoU > .5', 'false finds', 'found again: frames'):
        assert text in told.output


def test_composites_on_the_command_line(davis, tmp_path):
    call = ['davis', str(davis), '--compose', 'mirrored', '-e', 'first-mask', '--no-report']
    outcome = CliRunner().invoke(evaluate, [*call, '--out', str(tmp_path)])
    assert outcome.exit_code == 0, outcome.output
    assert json.loads((tmp_path / 'results.json').read_text())['engines']['first-mask'][
        'objects'
    ] == 2 * (1 + 2)


class Sure:
    """An engine that says how sure it is that its object is there."""

    def __init__(self, engine):
        self._engine = engine

    def seed(self, frame, label_mask):
        return self._engine.seed(frame, label_mask)

    def step(self, frame):
        from types import SimpleNamespace

        result = self._engine.step(frame)
        thing = SimpleNamespace(
            id=1, state=1, confidence=1.0, area=9, age=1, box=(1, 2, 3, 4), existence=0.25
        )
        return SimpleNamespace(labels=result.labels, objects=(thing,), timings={})


def test_existence_of_an_engine_is_kept(davis, tmp_path):
    """It travels from the engine's estimate to scores and tables."""
    spec = parse_engine('first-mask')
    (sequence, _) = find_sequences(davis)
    (result,) = runner.run_together(
        [(spec, Sure(spec.make()))], sequence, tmp_path, runner.RunOptions()
    )
    assert {item.existence for row in result.tracks[1:] for item in row} == {0.25}
    assert {row['existence'] for row in frame_rows([result])} == {0.25}
    (row,) = object_rows([result])
    assert row['box_half'] == 0 and engine_summary([result])['first-mask']['box_half'] == 0
