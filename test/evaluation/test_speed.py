# SPDX-License-Identifier: Apache-2.0
"""How the time of a step is taken, what is made of it, and the scenes with many objects."""

import json

from click.testing import CliRunner
import numpy as np
import pytest

from drift_ros.commands.main import main
from drift_ros.evaluation.composites import Crowd
from drift_ros.evaluation.datasets import find_sequences
from drift_ros.evaluation.engines import parse_engine
from drift_ros.experiments import speed
from drift_ros.experiments.benchmarks import STAGES

ENGINE = 'colour8:refinement.method=none,features.resolution=64'


@pytest.fixture
def sequence(davis):
    return find_sequences(davis, names=['one'])[0]


def test_steps_are_timed_stage_by_stage(sequence):
    row = speed.steps(parse_engine(ENGINE), sequence)
    assert len({len(row[stage]) for stage in (*STAGES, 'processor')}) == 1
    assert min(np.subtract(row['total'], row['propagation'])) > 0 < row['share'] < 1
    assert row['objects'] == 1
    with pytest.raises(ValueError, match='flow has no stages'):
        speed.steps(parse_engine('flow'), sequence)


@pytest.mark.parametrize('count', [1, 2, 7, 64])
def test_a_crowd_has_as_many_objects_as_asked_for(sequence, count):
    frames = list(Crowd(sequence, count))
    assert len(frames) == len(sequence)
    assert np.unique(frames[0].truth).tolist() == list(range(count + 1))
    sizes = np.bincount(frames[0].truth.ravel())[1:]
    assert sizes.max() <= 2 * sizes.min()
    if count > 1:  # pictures are of the objects, elsewhere the first one
        ground = next(iter(sequence)).image
        assert (frames[-1].image == ground).all(axis=-1)[frames[-1].truth == 0].all()
    digests = {Crowd(sequence, n).digest() for n in (count, count + 1)}
    assert len(digests) == 2


def test_the_trend_is_that_of_the_data():
    generator = np.random.default_rng(0)
    flat, rising = generator.normal(50.0, 5.0, 4000), 0.01 * np.arange(4000)
    still = speed.Trend.of(flat)
    assert abs(still.slope) < still.interval < 1.0
    moving = speed.Trend.of(flat + rising)
    assert abs(moving.slope - 10.0) < moving.interval < 1.0


def test_runs_are_compared_frame_by_frame():
    generator = np.random.default_rng(0)
    before = generator.uniform(10.0, 100.0, 30)  # frames differ far more than runs
    now = 0.5 * before * generator.uniform(0.98, 1.02, 30)
    rows = [{'name': 'a', 'total': now.tolist()}, {'name': 'new', 'total': [1.0]}]
    ((name, middle, low, high),) = speed.ratios(rows, [{'name': 'a', 'total': before.tolist()}])
    assert name == 'a: total'
    assert 0.49 < low <= middle <= high < 0.51


def test_the_dense_kernel_gives_the_same(sequence):
    row = speed.dense(parse_engine(ENGINE), sequence)
    assert row['difference'] < 1e-5
    assert row['ours'] > 0 and row['dense'] > 0


def test_one_command_measures_prints_and_compares(davis, tmp_path):
    out, curves = tmp_path / 'now.json', tmp_path / 'curves.png'
    call = ['benchmark', 'step', str(davis), '--sequences', 'one', '--frames', '4', '-e', ENGINE]
    more = ['--objects', '2', '--resolutions', '96', '--soak', '24', '--curves', str(curves)]
    told = CliRunner().invoke(main, [*call, *more, '--json', str(out)])
    assert told.exit_code == 0, told.output
    for text in ('propagation', '2 objects', '96 pixels', 'soak one', 'last over first'):
        assert text in told.output
    report = json.loads(out.read_text())
    assert len(report['rows']) == 4 and curves.read_bytes().startswith(b'\x89PNG')
    again = CliRunner().invoke(main, [*call, '--compare', str(out)])
    assert again.exit_code == 0 and 'now over before' in again.output
    for wrong in (['--objects', '0'], ['--objects', 'many'], ['--resolutions', '8']):
        refused = CliRunner().invoke(main, [*call, *wrong])
        assert refused.exit_code == 1 and 'expected numbers' in refused.output
    assert CliRunner().invoke(main, ['benchmark', 'step', str(davis / 'no')]).exit_code == 1
