# SPDX-License-Identifier: Apache-2.0
"""A compiled pass of the network gives what torch gives, or is not used."""

import sys

import numpy as np
import pytest
from tiny_models import save_checkpoint
import torch

from drift_ros.diffusion import compiled_pass, features
from drift_ros.diffusion.checkpoint import load_checkpoint
from drift_ros.diffusion.compiled_pass import compile_pass, TOLERANCE
from drift_ros.diffusion.features import DiffusionFeatures
from drift_ros.diffusion.textual_inversion import join_prompt


@pytest.fixture(scope='module')
def sd1(tmp_path_factory):
    return load_checkpoint(save_checkpoint(tmp_path_factory.mktemp('sd1'), 'sd1'), device='cpu')


@pytest.fixture(scope='module')
def embedded():
    return load_checkpoint(device='cpu')


def frame(height=96, width=128, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def by_torch(checkpoint, picture, **options):
    """Features as torch alone gives them, in float32."""
    extractor = DiffusionFeatures(checkpoint, **options)
    with torch.inference_mode():
        return extractor._look(torch.from_numpy(extractor.resize(picture)))


def apart(ours, theirs):
    return max(float((a - b).norm() / b.norm()) for a, b in zip(ours, theirs, strict=True))


def tensors(extractor, picture):
    found = extractor.extract(picture).layers
    return [t for n in found for t in ((n.query,) if n.key is n.query else (n.query, n.key))]


@pytest.mark.parametrize('precision', ['float32', 'bfloat16'])
def test_it_gives_what_torch_gives(embedded, monkeypatch, precision):
    monkeypatch.setattr(features, 'has_bfloat16', lambda: precision == 'bfloat16')
    extractor = DiffusionFeatures(embedded, resolution=64, precision='auto')
    limit = TOLERANCE[precision]
    for height, width, seed in ((96, 128, 1), (128, 96, 2), (96, 128, 3)):
        picture = frame(height, width, seed)
        expected = by_torch(embedded, picture, resolution=64)
        assert apart(tensors(extractor, picture), expected) <= limit
    assert len(extractor._passes) == 2  # one for each size
    assert extractor._look not in extractor._passes.values()


def test_it_gives_what_torch_gives_for_layers_before_and_after_a_prompt(sd1, monkeypatch):
    monkeypatch.setattr(features, 'has_bfloat16', lambda: False)
    names = ('down_blocks.1', 'up_blocks.1')
    extractor = DiffusionFeatures(sd1, layers=names, resolution=96, precision='auto')
    picture = frame(seed=4)
    expected = by_torch(sd1, picture, layers=names, resolution=96)
    assert len(expected) > 2
    before = tensors(extractor, picture)
    assert apart(before, expected) <= TOLERANCE['float32']
    assert extractor._look not in extractor._passes.values()
    tokens = {1: 5.0 * torch.randn(2, sd1.prompt.shape[-1])}
    other = extractor.conditioned(join_prompt(sd1.prompt, tokens), tokens)
    assert apart(tensors(other, picture), before) > 1e-3
    assert apart(tensors(extractor, picture), before) == 0.0


def test_nothing_of_a_trace_stays_but_what_others_traced(embedded):
    kept = torch.jit._state._python_cu
    kept.drop_all_functions()
    extractor = DiffusionFeatures(embedded, resolution=64, precision='auto')
    extractor.prepare(frame())
    assert extractor._look not in extractor._passes.values()
    assert not kept.get_functions()  # else the weights would stay with them
    theirs = torch.jit.trace(lambda given: given + 1.0, torch.ones(2))
    extractor.prepare(frame(128, 96))
    assert extractor._look not in extractor._passes.values()
    assert torch.equal(theirs(torch.ones(2)), torch.full((2,), 2.0))
    # the pass goes on with weights that only it holds
    picture = frame(seed=5)
    expected = by_torch(embedded, picture, resolution=64)
    assert apart(tensors(extractor, picture), expected) <= TOLERANCE['bfloat16']


def test_results_are_the_callers_own(embedded):
    extractor = DiffusionFeatures(embedded, resolution=64, precision='auto')
    first = extractor.extract(frame(seed=1)).layers[0].query
    held = first.clone()
    extractor.extract(frame(seed=2))
    assert torch.equal(first, held)
    assert torch.equal(extractor.extract(frame(seed=1)).layers[0].query, held)


def test_what_differs_is_not_used(embedded):
    calls = []

    def moody(pixels):  # another answer each time, as no trace can have it
        calls.append(1)
        return [pixels.float() * len(calls)]

    assert compile_pass(moody, torch.from_numpy(frame()), 'float32') is None

    def invalid(pixels):
        return [pixels.float() / 0.0]

    assert compile_pass(invalid, torch.from_numpy(frame()), 'float32') is None


@pytest.mark.parametrize('precision', ['float32', 'bfloat16', 'auto'])
def test_without_the_library_torch_does_it(embedded, monkeypatch, precision):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    extractor = DiffusionFeatures(embedded, resolution=64, precision=precision)
    expected = by_torch(embedded, frame(), resolution=64)
    limit = TOLERANCE['bfloat16'] if precision == 'bfloat16' else 0.0
    assert apart(tensors(extractor, frame()), expected) <= limit


def test_in_a_forked_process_torch_does_it(embedded, monkeypatch):
    monkeypatch.setattr(compiled_pass, '_PROCESS', -1)
    extractor = DiffusionFeatures(embedded, resolution=64, precision='auto')
    assert apart(tensors(extractor, frame()), by_torch(embedded, frame(), resolution=64)) == 0.0


def test_large_models_and_inversion_are_left_to_torch(embedded, monkeypatch):
    def never(*given):
        raise AssertionError

    monkeypatch.setattr(features, 'compile_pass', never)
    inverting = DiffusionFeatures(embedded, resolution=64, noise='inversion', precision='auto')
    assert inverting.extract(frame()).layers
    monkeypatch.setattr(features, '_SMALL', 1000)
    large = DiffusionFeatures(embedded, resolution=64, precision='auto')
    assert apart(tensors(large, frame()), by_torch(embedded, frame(), resolution=64)) == 0.0
