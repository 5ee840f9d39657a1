# SPDX-License-Identifier: Apache-2.0
"""Runs: the protocol, resuming, processes, failures, and what is written."""

import csv
import json

import numpy as np
import pytest

from drift_ros.evaluation import run as runner
from drift_ros.evaluation.baselines import FirstMask
from drift_ros.evaluation.datasets import find_sequences, SequenceFrame
from drift_ros.evaluation.engines import EngineSpec, parse_engine
from drift_ros.evaluation.metric import score_sequence
from drift_ros.evaluation.protocol import track
from drift_ros.evaluation.provenance import describe_run, fingerprint
from drift_ros.evaluation.results import mask_file, score_file
from drift_ros.evaluation.summaries import load_results, write_results
from drift_ros.media.labels import read_labels

from .conftest import scene

FIRST, FLOW = parse_engine('first-mask'), parse_engine('flow')


def frames_of(frames, labels):
    """Return the frames of a made-up sequence."""
    return [
        SequenceFrame(f'{index:05d}', *pair)
        for index, pair in enumerate(zip(frames, labels, strict=True))
    ]


def test_labels_come_back_in_the_truth_s_ids():
    """An engine's ids count from 1; predictions carry the labels of the truth."""
    frames, labels = scene(2, objects=2)
    labels = np.where(labels == 1, 9, np.where(labels == 2, 4, 0)).astype(np.uint8)
    outcome = list(track(FirstMask(), frames_of(frames, labels)))
    for _, predicted, *_ in outcome:
        np.testing.assert_array_equal(predicted, labels[0])
    assert [elapsed is None for _, _, elapsed, _ in outcome] == [True] + [False] * 7


def test_engine_never_sees_more_than_the_first_mask():
    """The official protocol: one seed, void left out, later objects unknown."""
    frames, labels = scene(2, objects=2)
    labels[:3][labels[:3] == 2] = 0
    labels[0, 0] = 255
    seeds = []

    class Watched(FirstMask):
        def seed(self, frame, label_mask):
            seeds.append(np.unique(label_mask).tolist())
            return super().seed(frame, label_mask)

    list(track(Watched(), frames_of(frames, labels)))
    assert seeds == [[0, 1]]


def test_late_objects_are_seeded_where_they_appear():
    """With late_objects, each id is seeded once, in its first frame."""
    frames, labels = scene(2, objects=2)
    labels[:3][labels[:3] == 2] = 0
    outcome = list(track(FirstMask(), frames_of(frames, labels), late_objects=True))
    assert not (outcome[2][1] == 2).any()
    for _, predicted, *_ in outcome[3:]:
        np.testing.assert_array_equal(predicted == 2, labels[3] == 2)
        np.testing.assert_array_equal(predicted == 1, labels[0] == 1)


def test_scores_are_those_of_the_written_masks(davis, tmp_path):
    """Reading the predictions back and scoring them gives the same numbers."""
    sequences = find_sequences(davis)
    results, errors = runner.run([FLOW], sequences, tmp_path / 'out')
    assert not errors
    for result, sequence in zip(results, sequences, strict=True):
        masks = [
            read_labels(mask_file(tmp_path / 'out', 'flow', sequence.name, frame.name), False)
            for frame in sequence
        ]
        again = score_sequence([frame.truth for frame in sequence], masks)
        np.testing.assert_array_equal(result.score.j, again.j)
        np.testing.assert_array_equal(result.score.f, again.f)
        np.testing.assert_array_equal(masks[0], next(iter(sequence)).truth)


def test_processes_give_the_same_results(davis, tmp_path):
    """Two workers write what one writes, and report every frame."""
    sequences = find_sequences(davis)
    seen = []
    alone, _ = runner.run(
        [FIRST, FLOW], sequences, tmp_path / 'a', options=runner.RunOptions(threads=1)
    )
    shared, errors = runner.run(
        [FIRST, FLOW],
        sequences,
        tmp_path / 'b',
        workers=2,
        options=runner.RunOptions(threads=1),
        progress=lambda *item: seen.append(item),
    )
    assert not errors
    assert sum(count for _, _, count in seen) == 2 * sum(len(item) for item in sequences)
    assert [(r.engine, r.sequence) for r in alone] == [(r.engine, r.sequence) for r in shared]
    for first, second in zip(alone, shared, strict=True):
        np.testing.assert_array_equal(first.score.j, second.score.j)
        np.testing.assert_array_equal(first.score.f, second.score.f)


def test_resume(davis, tmp_path, monkeypatch):
    """Finished jobs are taken over; what is missing, changed or damaged is done again."""
    sequences = find_sequences(davis)
    made = []
    make = EngineSpec.make
    monkeypatch.setattr(EngineSpec, 'make', lambda spec: made.append(spec.label) or make(spec))
    first, _ = runner.run([FIRST, FLOW], sequences, tmp_path)
    assert len(made) == 4
    second, _ = runner.run([FIRST, FLOW], sequences, tmp_path)
    assert len(made) == 4
    for before, after in zip(first, second, strict=True):
        assert before.as_dict() == after.as_dict()
    score_file(tmp_path, 'flow', 'one').unlink()
    score_file(tmp_path, 'first-mask', 'two').write_text('{"half')
    runner.run([FIRST, FLOW], sequences, tmp_path)
    assert made[4:] == ['flow', 'first-mask']
    runner.run([FIRST, FLOW], find_sequences(davis, max_frames=5), tmp_path)
    assert len(made) == 10


def test_options_are_part_of_the_fingerprint(davis):
    """Results of other options, another engine or another protocol are not taken over."""
    sequence = find_sequences(davis)[0]
    prints = {
        fingerprint(spec, sequence, late)
        for spec, late in (
            (parse_engine('colour8'), False),
            (parse_engine('colour8:kernel.radius=3'), False),
            (parse_engine('colour8', {'memory.recent': 5}), False),
            (FLOW, False),
            (FLOW, True),
        )
    }
    assert len(prints) == 5


def test_one_failure_does_not_end_the_others(davis, tmp_path):
    """An error is reported with its job; the rest is done."""
    (davis / 'JPEGImages' / 'one' / '00004.jpg').write_bytes(b'')
    for workers in (1, 2):
        results, errors = runner.run(
            [FIRST, FLOW], find_sequences(davis), tmp_path / str(workers), workers=workers
        )
        assert set(errors) == {('first-mask', 'one'), ('flow', 'one')}
        assert '00004.jpg' in errors['flow', 'one']
        assert [(r.engine, r.sequence) for r in results] == [
            ('first-mask', 'two'),
            ('flow', 'two'),
        ]


def test_written_files(davis, tmp_path):
    """JSON, CSV and what is loaded again tell the same, with configuration and versions."""
    sequences = find_sequences(davis)
    specs = [FIRST, parse_engine('small=colour8:kernel.radius=3,features.resolution=64')]
    results, errors = runner.run(specs, sequences, tmp_path)
    description = describe_run(specs, False, {'kind': 'davis'})
    write_results(tmp_path, description, results, errors)
    data = json.loads((tmp_path / 'results.json').read_text())
    assert data['run']['engines'][1]['options']['kernel.radius'] == 3
    assert {'drift_ros', 'commit', 'source', 'numpy', 'torch'} <= set(data['run']['versions'])
    assert data['engines']['small']['objects'] == 3
    rows = list(csv.DictReader((tmp_path / 'results.csv').read_text().splitlines()))
    assert len(rows) == 2 * 3
    mine = [float(row['j_and_f']) for row in rows if row['engine'] == 'small']
    assert np.mean(mine) == pytest.approx(data['engines']['small']['j_and_f'], abs=1e-12)
    frames = list(csv.DictReader((tmp_path / 'frames.csv').read_text().splitlines()))
    assert len(frames) == 2 * 3 * 6
    run, loaded = load_results(tmp_path)
    assert run == json.loads(json.dumps(description, default=list))
    assert [item.as_dict() for item in loaded] == [item.as_dict() for item in results]
    with pytest.raises(ValueError, match='no complete results'):
        load_results(tmp_path / 'scores')
