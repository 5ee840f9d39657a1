# SPDX-License-Identifier: Apache-2.0
"""The ablation runs every row on any checkpoint, goes on where it stopped, and reports."""

import csv
import json
from pathlib import Path
import sys
import time

from click.testing import CliRunner
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'unit'))

from tiny_models import save_checkpoint  # noqa: E402
import torch  # noqa: E402

from drift_ros import TrackerConfig  # noqa: E402
from drift_ros.commands.main import main  # noqa: E402
from drift_ros.diffusion.checkpoint import load_checkpoint  # noqa: E402
from drift_ros.diffusion.features import DiffusionFeatures  # noqa: E402
from drift_ros.evaluation import run as runner  # noqa: E402
from drift_ros.evaluation.baselines import CosineFeatures  # noqa: E402
from drift_ros.evaluation.datasets import find_sequences  # noqa: E402
from drift_ros.evaluation.engines import load_params_file, parse_engine  # noqa: E402
from drift_ros.evaluation.provenance import model_digest  # noqa: E402
from drift_ros.experiments import ablation  # noqa: E402
from drift_ros.experiments.benchmarks import (  # noqa: E402
    time_heads,
)
from drift_ros.experiments.figures import tsne  # noqa: E402
from drift_ros.experiments.rows import make_rows, PARTS, SharedFeatures  # noqa: E402
from drift_ros.media.video import read_image  # noqa: E402


@pytest.fixture(scope='module')
def model(tmp_path_factory):
    """Folder with the layout of Stable Diffusion 1.x, random weights."""
    return save_checkpoint(tmp_path_factory.mktemp('model') / 'sd1', 'sd1')


def test_every_part_on_a_stable_diffusion_folder(davis, model, tmp_path, monkeypatch):
    chosen = {
        'attention',
        'cosine-0.05',
        'inversion-300',
        'ensemble-300',
        'adaptive',
        'prompt-category',
        'prompt-learnt',
        'inverted-null',
        'shipped',
        'paper',
    }
    monkeypatch.setattr(
        ablation,
        'make_rows',
        lambda *arguments: [row for row in make_rows(*arguments) if row.label in chosen],
    )
    arguments = [
        'ablate',
        str(davis),
        '--sequences',
        'one',
        '--max-frames',
        '3',
        '--timesteps',
        '300',
        '--set',
        'features.resolution=64',
        '--set',
        'states.confidence=0',
        '--budget',
        '0.2',
        '--threads',
        '1',
        '--model',
        str(model),
        '--out',
        str(tmp_path / 'out'),
    ]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with (tmp_path / 'out' / 'rows.csv').open() as file:
        rows = list(csv.DictReader(file))
    assert {row['part'] for row in rows} == set(PARTS)
    assert {row['row'] for row in rows} == chosen
    scores = {(row['part'], row['row']): float(row['j_and_f']) for row in rows}
    assert all(0 <= value <= 1 for value in scores.values())
    assert all(float(row['ms_median']) > 0 for row in rows)
    for name in ('kernel', 'noise', 'prompts', 'parts'):
        assert (tmp_path / 'out' / f'{name}.png').stat().st_size > 5000
    page = (tmp_path / 'out' / 'report.html').read_text()
    assert all(
        row['text']
        .replace('&', '&amp;')
        .replace('"', '&#34;')
        .replace("'", '&#39;')
        .replace('<', '&lt;')
        .replace('>', '&gt;')
        in page
        for row in rows
    )
    tokens = json.loads(
        (tmp_path / 'out' / 'tokens' / 'heads.prompt-learnt' / 'one.json').read_text()
    )
    assert np.array(list(tokens['tokens'].values())).shape[1:] == (4, 32)
    # again: nothing is run a second time, and the numbers are the same
    monkeypatch.setattr(runner, 'run_together', lambda *_: pytest.fail('run again'))
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    with (tmp_path / 'out' / 'rows.csv').open() as file:
        assert list(csv.DictReader(file)) == rows


def test_unknown_part(davis):
    result = CliRunner().invoke(main, ['ablate', str(davis), '--parts', 'everything'])
    assert result.exit_code == 1 and 'choose from kernel, noise' in result.output


def test_rows_differ_in_what_they_are_about():
    rows = make_rows(tuple(PARTS), 'late', ['a', 'late'], [10], 5.0)
    specs = [row.spec('car-shadow', {'features.resolution': 96}, None, 'cpu') for row in rows]
    for part in PARTS:
        ours = [spec for spec in specs if spec.label.startswith(f'{part}.')]
        assert (
            len(
                {json.dumps([spec.name, *sorted(map(str, spec.options.items()))]) for spec in ours}
            )
            == len(ours)
            > 3
        )
    by_label = {spec.label: spec for spec in specs}
    assert by_label['heads.prompt-category'].options['features.prompt'] == 'a photo of car shadow'
    assert by_label['heads.prompt-learnt'].options['learn'] == 5.0
    larger = {'parts.finer', 'parts.quality', 'parts.finer-wide'}
    assert all(
        (spec.options['features.resolution'] == 96) == (spec.label not in larger) for spec in specs
    )


def test_the_quality_preset_is_a_row():
    rows = make_rows(['parts'], 'late', ['late'], [10], 5.0)
    (quality,) = [row for row in rows if row.label == 'quality']
    preset = Path(__file__).resolve().parents[2] / 'config' / 'quality.yaml'
    assert load_params_file(str(preset)) == quality.options


OPTIONS = {'features.resolution': 64, 'states.confidence': 0.0}


def specs_of(labels, model=None):
    rows = make_rows(tuple(PARTS), 'late', ['late'], [10], 0.2)
    return [
        row.spec('one', OPTIONS, model and str(model), 'cpu')
        for row in rows
        if f'{row.part}.{row.label}' in labels
    ]


def test_rows_share_features_only_where_they_look_in_the_same_way():
    def keys(*labels):
        return {spec.features_key for spec in specs_of(labels)}

    assert len(keys('kernel.attention', 'parts.shipped', 'parts.no-older', 'paper.none')) == 1
    for pair in (
        ('kernel.attention', 'kernel.cosine-0.05'),
        ('kernel.cosine-0.05', 'kernel.cosine-0.1'),
        ('parts.shipped', 'parts.quality'),
        ('parts.shipped', 'heads.prompt-null'),
        ('heads.prompt-null', 'heads.prompt-learnt'),
        ('heads.prompt-null', 'heads.prompt-category'),
        ('noise.random-10', 'noise.scaled-10'),
    ):
        assert len(keys(*pair)) == 2, pair


def test_rows_in_lock_step_are_those_alone(davis, model, tmp_path):
    """Same masks and scores; one extraction a frame, whose time is in every row."""
    (sequence,) = find_sequences(davis, names=['one'], max_frames=4)
    specs = specs_of(('parts.shipped', 'parts.no-older', 'parts.no-refinement'), model)
    together = ablation.run_group(specs, sequence, tmp_path / 'together', lambda *_: None)
    for spec, result in zip(specs, together, strict=True):
        (alone,) = ablation.run_group([spec], sequence, tmp_path / 'alone', lambda *_: None)
        assert alone.engine == result.engine == spec.label
        np.testing.assert_array_equal(alone.score.j, result.score.j)
        np.testing.assert_array_equal(alone.score.f, result.score.f)
        assert [t.area for row in alone.tracks for t in row] == [
            t.area for row in result.tracks for t in row
        ]
        assert result.milliseconds.shape == alone.milliseconds.shape == (3,)


def test_shared_features_are_extracted_once_and_charged_to_all():
    class Slow:
        calls = 0

        def extract(self, frame):
            self.calls += 1
            time.sleep(0.02)
            return frame.sum()

    slow = Slow()
    shared = SharedFeatures(slow)
    first, second = np.ones((4, 4, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    assert shared.extract(first) == 48 and shared.owed() == 0.0  # spent by itself
    assert shared.extract(first) == 48 and shared.owed() >= 20.0
    assert shared.owed() == 0.0
    assert shared.extract(second) == 0 and shared.owed() == 0.0
    assert slow.calls == 2


def test_several_processes(davis, model, tmp_path):
    arguments = [
        'ablate',
        str(davis),
        '--sequences',
        'one',
        '--parts',
        'kernel',
        '--frames',
        'kernel=4',
        '--set',
        'features.resolution=64',
        '--model',
        str(model),
        '--threads',
        '1',
    ]
    scores = []
    for workers in ('1', '2'):
        folder = tmp_path / workers
        result = CliRunner().invoke(
            main, [*arguments, '--workers', workers, '--out', str(folder)], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        with (folder / 'rows.csv').open() as file:
            scores.append(
                [(row['row'], row['j_and_f'], row['frames']) for row in csv.DictReader(file)]
            )
    assert scores[0] == scores[1] and {row[2] for row in scores[0]} == {'4'}
    result = CliRunner().invoke(main, [*arguments, '--frames', 'kernels=4'])
    assert result.exit_code == 1 and 'expected PART=N' in result.output


def test_cosine_is_the_cosine_of_the_layers_input(model):
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    features = DiffusionFeatures(load_checkpoint(model, device='cpu'), resolution=64)
    attention = features.checkpoint.unet.get_submodule(features.layers[0])
    hidden = []
    attention.to_q.register_forward_pre_hook(lambda _, args: hidden.append(args[0][0]))
    (layer,) = CosineFeatures(features, 0.1).extract(frame).layers
    flat = torch.nn.functional.normalize(hidden[0], dim=-1)
    tokens, size = flat.shape
    logits = layer.query.view(tokens, size) @ layer.key.view(tokens, size).T / size**0.5
    torch.testing.assert_close(logits, flat @ flat.T / 0.1, atol=1e-4, rtol=1e-4)
    spec = parse_engine(
        'cosine:cosine_temperature=0.05', {'features.resolution': 64}, str(model), 'cpu'
    )
    assert spec.options['cosine_temperature'] == 0.05 and model_digest(spec)
    spec.make().seed(frame, np.pad(np.ones((32, 32), np.uint8), 16))


def test_tsne_keeps_groups_together():
    rng = np.random.default_rng(0)
    centres = 8 * rng.standard_normal((4, 20))
    points = np.concatenate([centre + rng.standard_normal((10, 20)) for centre in centres])
    places = tsne(points)
    assert np.array_equal(places, tsne(points)) and np.isfinite(places).all()
    groups = np.repeat(np.arange(4), 10)
    distance = np.linalg.norm(places[:, None] - places, axis=-1)
    np.fill_diagonal(distance, np.inf)
    assert (groups[distance.argmin(1)] == groups).all()


def test_heads_are_timed():
    found = time_heads(2, 4, 15, 20, 8, 4, 1)
    assert len(found) == 6
    assert all(value > 0 for name, value in found.items() if name.startswith(('seed', 'prop')))


def test_presets_are_parameter_files():
    """Each preset names tracker options only, and they are valid."""
    folder = Path(__file__).resolve().parents[2] / 'config'
    for name in ('fast', 'quality', 'sd15', 'sd21', 'sdxl'):
        TrackerConfig.of(load_params_file(str(folder / f'{name}.yaml'))).validate()


def test_refiners_are_drawn_beside_each_other(davis, tmp_path):
    (sequence,) = find_sequences(davis, names=['one'])
    mask, out = sequence.annotations[0], tmp_path / 'refiners.png'
    call = [
        'benchmark',
        'refiners',
        str(sequence.images[0].parent),
        str(mask),
        '--refiners',
        'none,colour',
        '--out',
        str(out),
    ]
    told = CliRunner().invoke(main, [*call, '--after', '2'])
    assert told.exit_code == 0, told.output
    sheet = read_image(out)
    assert 800 < sheet.shape[1] < 1200, 'two refiners'
    told = CliRunner().invoke(main, [*call, '--after', '1000'])
    assert told.exit_code == 1 and 'choose --after below' in told.output
