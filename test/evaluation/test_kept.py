# SPDX-License-Identifier: Apache-2.0
"""Which results are kept: what decides them is found by rule, by content."""

import json
import os
from pathlib import Path
import shutil
import subprocess
import sys

import numpy as np
import pytest

from drift_ros.evaluation import run as runner
from drift_ros.evaluation.bag_writing import bag_from_davis
from drift_ros.evaluation.bags import open_sequence
from drift_ros.evaluation.datasets import DatasetError, find_sequences
from drift_ros.evaluation.digests import digest_of_code, digest_of_path, import_closure
from drift_ros.evaluation.engines import EngineSpec, parse_engine
from drift_ros.evaluation.provenance import describe_run, fingerprint, model_digest
from drift_ros.evaluation.results import check_masks, mask_file, score_file
from drift_ros.evaluation.summaries import load_results, write_results
from drift_ros.media.labels import write_labels

from .conftest import scene

FIRST = parse_engine('first-mask')


@pytest.fixture
def made(monkeypatch):
    """Labels of the engines that were made."""
    found = []
    make = EngineSpec.make
    monkeypatch.setattr(EngineSpec, 'make', lambda spec: found.append(spec.label) or make(spec))
    return found


def test_scores_of_the_first_mask(davis, tmp_path):
    """To the digit: squares of 20 pixels that move by 3 a frame."""
    ((result,), errors) = runner.run([FIRST], find_sequences(davis, names=['one']), tmp_path)
    assert not errors
    expected = [(20 - 3 * k) / (20 + 3 * k) for k in range(1, 7)]
    assert result.score.j[:, 0].tolist() == expected
    golden = [0.5, 0.425, 0.35, 0.275, 0.20000000000000004, 0.125]
    assert result.score.f[:, 0].tolist() == golden


def test_a_corrected_truth_is_scored_anew(davis, tmp_path, made):
    """The same number of bytes, even the same time of change: the content counts."""
    before, _ = runner.run([FIRST], find_sequences(davis), tmp_path)
    path = davis / 'Annotations' / 'one' / '00003.png'
    labels = scene(1)[1][3]
    state = path.stat()
    write_labels(path, np.roll(labels, 7, axis=0))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == pytest.approx(state.st_size, abs=20)
    after, _ = runner.run([FIRST], find_sequences(davis), tmp_path)
    assert made == ['first-mask'] * 3
    assert after[0].summary.j.mean < before[0].summary.j.mean
    assert after[1].as_dict() == before[1].as_dict()


def test_a_corrected_seed_or_truth_of_a_bag(davis, tmp_path):
    """Messages and files count by content; the way they are stored does not."""
    (source, _) = find_sequences(davis)
    bags = [
        bag_from_davis(source, tmp_path / name, storage=storage)
        for name, storage in (('a', 'mcap'), ('b', 'sqlite3'))
    ]
    plain = [open_sequence(bag, name='x').digest() for bag in bags]
    assert plain[0] == plain[1]
    write_labels(tmp_path / 'seed.png', scene(1)[1][0])
    seeded = open_sequence(bags[0], seed_mask=tmp_path / 'seed.png').digest()
    write_labels(tmp_path / 'seed.png', np.roll(scene(1)[1][0], 1, axis=1))
    assert open_sequence(bags[0], seed_mask=tmp_path / 'seed.png').digest() != seeded


def test_deleted_masks_are_made_again(davis, tmp_path, made):
    sequences = find_sequences(davis)
    runner.run([FIRST], sequences, tmp_path)
    path = mask_file(tmp_path, 'first-mask', 'two', '00005')
    content = path.read_bytes()
    path.unlink()
    runner.run([FIRST], sequences, tmp_path)
    assert path.read_bytes() == content and len(made) == 3
    unsaved = runner.RunOptions(save_masks=False)
    path.unlink()
    runner.run([FIRST], sequences, tmp_path, options=unsaved)
    assert len(made) == 3, 'a run that keeps no masks misses none'


def test_the_code_that_counts_is_what_computes():
    """Every stage of the tracker is in it, whatever imports it where; reports are not."""
    modules = {type(FIRST).__module__, 'drift_ros.evaluation.results'}
    files, foreign = import_closure(frozenset(modules))
    names = {name.removeprefix('drift_ros.') for name in files}
    assert {
        'engine.tracker',
        'engine.kernel_fast',
        'refinement.colour',
        'diffusion.features',
        'evaluation.metric',
        'evaluation.protocol',
        'media.labels',
        'evaluation.baselines',
    } <= names
    assert not {name for name in names if name.startswith(('nodes', 'ros', 'commands'))}
    assert not names & {
        f'evaluation.{name}'
        for name in ('report', 'tables', 'compare', 'live', 'run', 'cluster', 'summaries')
    }
    assert {'torch', 'numpy', 'cv2'} <= foreign


def test_an_edited_kernel_counts_and_an_edited_report_does_not(tmp_path, monkeypatch):
    package = tmp_path / 'toy'
    package.mkdir()
    sources = {
        '__init__': 'EXPORTS = {"report": "toy.report"}\n',
        'engine': 'from __future__ import annotations\n'
        'from typing import TYPE_CHECKING\n'
        'import cv2\n'
        'if TYPE_CHECKING:\n    from toy.report import Page\n'
        'def step():\n    from .kernel import propagate\n    return propagate()\n',
        'kernel': 'def propagate():\n    return 1\n',
        'report': 'import toy.engine\nclass Page: ...\n',
    }
    for name, text in sources.items():
        (package / f'{name}.py').write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    first = digest_of_code(['toy.engine'])
    (package / 'report.py').write_text('import toy.engine\nclass Page: colour = "red"\n')
    assert digest_of_code(['toy.engine']) == first
    (package / 'kernel.py').write_text('def propagate():\n    return 2\n')
    assert digest_of_code(['toy.engine']) != first


def test_the_content_of_all_models_counts(davis, tmp_path):
    model = tmp_path / 'model'
    (model / 'unet').mkdir(parents=True)
    (model / 'unet' / 'weights.safetensors').write_bytes(b'1' * 100)
    sam = tmp_path / 'sam.pth'
    sam.write_bytes(b'1' * 100)
    spec = parse_engine('tracker', {'refinement.sam_checkpoint': str(sam)}, str(model))
    seen = {model_digest(spec)}
    for path in (model / 'unet' / 'weights.safetensors', sam):
        path.write_bytes(b'1' * 99 + b'2')
        seen.add(model_digest(spec))
    assert len(seen) == 3
    assert model_digest(FIRST) is None
    assert digest_of_path(model) == digest_of_path(model)
    sequence = find_sequences(davis)[0]
    assert fingerprint(spec, sequence, False) != fingerprint(FIRST, sequence, False)


def test_two_runs_in_one_folder_are_refused(davis, tmp_path):
    """Another process holds the folder; once it is gone, whatever ended it, the folder is free."""
    code = (
        'import sys, time\nfrom pathlib import Path\n'
        'from drift_ros.evaluation.run import exclusive\n'
        'with exclusive(Path(sys.argv[1])):\n    print("held", flush=True)\n    time.sleep(600)\n'
    )
    root = str(Path(__file__).resolve().parents[2])
    other = subprocess.Popen(
        [sys.executable, '-c', code, str(tmp_path)],
        stdout=subprocess.PIPE,
        env={**os.environ, 'PYTHONPATH': root},
    )
    try:
        assert other.stdout.readline() == b'held\n'
        with pytest.raises(runner.FolderInUse, match=f'process {other.pid}.*another --out'):
            runner.run([FIRST], find_sequences(davis), tmp_path)
    finally:
        other.kill()
        other.communicate()
    with runner.exclusive(tmp_path):
        results, _ = runner.run([FIRST], find_sequences(davis), tmp_path)
    assert len(results) == 2


def edit_mask(folder):
    """Replace a mask by another of the same size: by hand, or by an interrupted run."""
    path = mask_file(folder, 'first-mask', 'two', '00005')
    write_labels(path, np.roll(scene(2)[1][0], 3, axis=1))


def edit_score(folder):
    path = score_file(folder, 'first-mask', 'two')
    data = json.loads(path.read_text())
    data['j'][2][0] += 0.25
    path.write_text(json.dumps(data))


def cut_score(folder):
    path = score_file(folder, 'first-mask', 'two')
    path.write_text(path.read_text()[:-40])


def strange_score(folder):
    score_file(folder, 'first-mask', 'two').write_text('[1, 2]')


def empty_mask(folder):
    mask_file(folder, 'first-mask', 'two', '00002').write_bytes(b'')


@pytest.mark.parametrize(
    'spoil',
    [edit_mask, edit_score, cut_score, strange_score, empty_mask],
    ids=lambda f: f.__name__,
)
def test_results_that_were_edited_are_made_again(davis, tmp_path, made, spoil):
    sequences = find_sequences(davis)
    before, _ = runner.run([FIRST], sequences, tmp_path)
    content = {path: path.read_bytes() for path in tmp_path.rglob('masks/**/*.png')}
    spoil(tmp_path)
    after, _ = runner.run([FIRST], sequences, tmp_path)
    assert len(made) == 3, 'that one job again'
    assert before[1].score.j.tolist() == after[1].score.j.tolist()
    assert content == {path: path.read_bytes() for path in tmp_path.rglob('masks/**/*.png')}
    runner.run([FIRST], sequences, tmp_path)
    assert len(made) == 3


def swap_frames(davis):
    first, second = (davis / 'JPEGImages' / 'one' / f'0000{n}.jpg' for n in (3, 4))
    held = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(held)


def rename_frame(davis):
    for kind, suffix in (('JPEGImages', 'jpg'), ('Annotations', 'png')):
        (davis / kind / 'one' / f'00007.{suffix}').rename(davis / kind / 'one' / f'9.{suffix}')


def remove_truth(davis):
    (davis / 'Annotations' / 'one' / '00004.png').unlink()


def same_size_and_date(davis):
    """A tool that corrects a file in place and puts its date back."""
    path = davis / 'JPEGImages' / 'one' / '00004.jpg'
    state, data = path.stat(), bytearray(path.read_bytes())
    data[-30] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert path.stat().st_size == state.st_size


@pytest.mark.parametrize(
    'change',
    [swap_frames, rename_frame, remove_truth, same_size_and_date],
    ids=lambda f: f.__name__,
)
def test_whatever_changes_in_a_sequence(davis, tmp_path, made, change):
    runner.run([FIRST], find_sequences(davis), tmp_path)
    change(davis)
    runner.run([FIRST], find_sequences(davis), tmp_path)
    assert len(made) == 3


def test_changes_of_a_bag(davis, tmp_path, made):
    """A bag that is written anew with another truth, under the same name."""
    (source, _) = find_sequences(davis)
    out = tmp_path / 'out'
    first, _ = runner.run([FIRST], [open_sequence(bag_from_davis(source, tmp_path / 'a'))], out)
    again, _ = runner.run([FIRST], [open_sequence(tmp_path / 'a')], out)
    assert len(made) == 1 and again[0].as_dict() == first[0].as_dict()
    shutil.rmtree(tmp_path / 'a')
    path = davis / 'Annotations' / 'one' / '00003.png'
    write_labels(path, np.roll(scene(1)[1][3], 7, axis=0))
    after, _ = runner.run([FIRST], [open_sequence(bag_from_davis(source, tmp_path / 'a'))], out)
    assert len(made) == 2
    assert after[0].summary.j.mean < first[0].summary.j.mean


def test_weights_behind_links_count(tmp_path):
    """Caches of hubs are folders of links."""
    (tmp_path / 'blobs').mkdir()
    (tmp_path / 'blobs' / 'unet.safetensors').write_bytes(b'1')
    (tmp_path / 'model').mkdir()
    (tmp_path / 'model' / 'unet').symlink_to(tmp_path / 'blobs')
    before = digest_of_path(tmp_path / 'model')
    (tmp_path / 'blobs' / 'unet.safetensors').write_bytes(b'2')
    assert digest_of_path(tmp_path / 'model') != before


def test_results_of_two_runs_are_not_compared_as_one(davis, tmp_path):
    """A later run with other options was interrupted: scores of both are in the folder."""
    sequences = find_sequences(davis)
    spec = parse_engine('x=colour8:features.resolution=64')
    results, errors = runner.run([spec], sequences, tmp_path)
    write_results(tmp_path, describe_run([spec], False, {}), results, errors)
    assert [item.fingerprint for item in load_results(tmp_path)[1]] == [
        item.fingerprint for item in results
    ]
    other = parse_engine('x=colour8:features.resolution=64,kernel.radius=2')
    runner.run_job(other, sequences[1], tmp_path, runner.RunOptions())
    with pytest.raises(DatasetError, match='x on two .* another run'):
        load_results(tmp_path)
    with pytest.raises(DatasetError, match='run that evaluation again'):
        check_masks(tmp_path, 'x', 'missing')
    check_masks(tmp_path, 'x', 'one')
    mask_file(tmp_path, 'x', 'one', '00003').unlink()
    with pytest.raises(DatasetError, match='masks of x on one'):
        check_masks(tmp_path, 'x', 'one')
