# SPDX-License-Identifier: Apache-2.0
"""The jobs on a real local Ray instance, a dying worker included."""

import os
from pathlib import Path
import signal
import sys

import pytest

from drift_ros.evaluation import cluster
from drift_ros.evaluation import run as runner
from drift_ros.evaluation.datasets import find_sequences
from drift_ros.evaluation.engines import EngineSpec, parse_engine

SPECS = [parse_engine('first-mask'), parse_engine('flow')]


class Deadly(EngineSpec):
    """An engine whose worker is killed the first time it is made."""

    def make(self):
        """Die once."""
        mark = Path(os.environ['DRIFT_ROS_TEST_MARK'])
        if not mark.exists():
            mark.write_text(str(os.getpid()))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().make()


def test_ray_gives_the_results_of_one_process(davis, tmp_path, monkeypatch):
    """Killed worker, failing sequence: the rest is the same, masks and numbers; and resumed."""
    pytest.importorskip('ray', reason='Ray is not installed')
    monkeypatch.setenv('DRIFT_ROS_TEST_MARK', str(tmp_path / 'mark'))
    # the workers import this file, too
    monkeypatch.setenv('PYTHONPATH', os.pathsep.join(sys.path))
    sequences = find_sequences(davis)
    (davis / 'JPEGImages' / 'two' / '00004.jpg').write_bytes(b'')
    alone, _ = runner.run(SPECS, sequences, tmp_path / 'a')
    flow = SPECS[1]
    deadly = Deadly(flow.label, flow.name, flow.options)
    seen = []
    shared, errors = runner.run(
        [SPECS[0], deadly],
        sequences,
        tmp_path / 'b',
        ray='local',
        progress=lambda *item: seen.append(item),
    )
    assert int((tmp_path / 'mark').read_text()) != os.getpid()
    assert set(errors) == {('first-mask', 'two'), ('flow', 'two')}
    assert '00004.jpg' in errors['flow', 'two']
    assert len(alone) == len(shared) == 2 and len(seen) == 2
    for first, second in zip(alone, shared, strict=True):
        free = {'milliseconds': 0}
        if first.engine == deadly.label:  # the code of its class counts, too
            free['fingerprint'] = ''
        assert {**first.as_dict(), **free} == {**second.as_dict(), **free}
    masks = sorted(
        path.relative_to(tmp_path / 'a')
        for path in (tmp_path / 'a').rglob('*.png')
        if path.parent.name == 'one'
    )
    assert len(masks) == 16
    for path in masks:
        assert (tmp_path / 'a' / path).read_bytes() == (tmp_path / 'b' / path).read_bytes()

    def no_cluster(*_):
        raise AssertionError('everything was done already')

    monkeypatch.setattr(cluster, 'run_on_ray', no_cluster)
    again, _ = runner.run([SPECS[0], deadly], sequences[:1], tmp_path / 'b', ray='local')
    assert [row.as_dict() for row in again] == [row.as_dict() for row in shared]


def test_no_cluster_is_an_error(davis, tmp_path):
    """An address where nothing listens is named."""
    pytest.importorskip('ray', reason='Ray is not installed')
    with pytest.raises(ValueError, match='cannot reach a Ray cluster at 127.0.0.1:1'):
        runner.run(SPECS[:1], find_sequences(davis), tmp_path, ray='127.0.0.1:1')
