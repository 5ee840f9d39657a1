# SPDX-License-Identifier: Apache-2.0
"""Prompt tokens are learnt from the masks, swapped in at the end, and never halfway."""

import numpy as np
import pytest
from scenes import ColourFeatures, configure, GREEN, RED, scene, square_mask
from test_diffusion import RecordProbabilities
from tiny_models import save_checkpoint
import torch

from drift_ros import Tracker, UnknownObjectError
from drift_ros.diffusion.checkpoint import load_checkpoint
from drift_ros.diffusion.features import DiffusionFeatures
from drift_ros.diffusion.textual_inversion import _key, join_prompt, prompt_reaches
from drift_ros.engine.errors import OptimizeError

FRAME = scene((16, 16, 40, RED), (84, 40, 40, GREEN))
MASK = square_mask((16, 16, 40), (84, 40, 40))
FAST = {'resolution': 96, 'radius': 6, 'confidence': 0.0, 'method': 'none'}


@pytest.fixture(scope='module', params=['sd1', 'sdxl'])
def folder(request, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope='module')
def sd1(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp('sd1'), 'sd1')


def make(folder, **options):
    return Tracker(folder, configure(**{**FAST, 'optimize_steps': 60, **options}), device='cpu')


def finish(steps):
    """Run a generator to its end: what it gave, and its value."""
    given = []
    while True:
        try:
            given.append(next(steps))
        except StopIteration as end:
            return given, end.value


def test_learning_fits_the_masks_and_changes_what_is_seen(folder):
    tracker = make(folder)
    assert tracker.seed(FRAME, MASK) == [1, 2]
    seen = tracker.state.features.extract(FRAME).layers[-1].query
    kept = tracker.state.memory.pinned[0].features.layers[-1].key
    given, result = finish(tracker.optimize())
    losses = [progress.loss for progress in given if progress.loss]
    assert sum(losses[-1].values()) < sum(losses[0].values()) - 0.02
    assert set(result.before) == set(result.after) == {1, 2}
    assert 0 < result.steps <= 60 and result.seconds > 0
    assert [p.step for p in given] == sorted(p.step for p in given)
    assert sorted(tracker.tokens) == [1, 2] and tracker.tokens[1].shape[0] == 4
    # later frames, and the remembered ones, are seen under the new prompt
    now = tracker.state.features.extract(FRAME).layers[-1].query
    assert not torch.allclose(now, seen, atol=1e-3)
    pinned = tracker.state.memory.pinned[0].features.layers[-1].key
    assert not torch.equal(pinned, kept)
    torch.testing.assert_close(
        pinned, tracker.state.features.extract(FRAME).layers[-1].key.half(), rtol=0, atol=1e-3
    )
    assert [entry.id for entry in tracker.step(FRAME).objects] == [1, 2]
    tracker.reset()
    assert torch.equal(tracker.state.features.prompt, tracker.state.features.checkpoint.prompt)


def test_the_map_of_a_step_is_the_networks_own(sd1):
    """What the objective sees at its first step are the stock processor's probabilities."""
    tracker = make(sd1)
    tracker.seed(FRAME, MASK)
    steps = tracker.optimize([1])
    next(steps)
    learning = steps.gi_frame.f_locals['learning']
    checkpoint, features = tracker.state.features.checkpoint, tracker.state.features
    view = learning._look(learning._seeds[0])
    prompt = join_prompt(checkpoint.prompt.clone(), learning.tokens)
    for name, query in view.queries.items():
        attention = checkpoint.unet.get_submodule(name)
        stock = attention.processor
        attention.processor = recorder = RecordProbabilities()
        with torch.no_grad():
            features.run_unet(features.noisy(features.encode(view.seed.image)), prompt=prompt)
        attention.processor = stock
        logits = query @ _key(attention, prompt).transpose(1, 2) * query.shape[-1] ** -0.5
        torch.testing.assert_close(
            logits.softmax(-1), recorder.probabilities, atol=1e-5, rtol=1e-4
        )


def test_tracking_goes_on_meanwhile_and_closing_changes_nothing(sd1):
    """Frames between steps come out as without learning, and so do those after giving up."""
    plain, learning = make(sd1), make(sd1)
    frames = [scene((16 + 2 * i, 16, 40, RED)) for i in range(6)]
    for tracker in (plain, learning):
        tracker.seed(frames[0], square_mask((16, 16, 40)))
    steps = learning.optimize()
    for frame in frames[1:4]:
        next(steps)
        assert np.array_equal(learning.step(frame).labels, plain.step(frame).labels)
    steps.close()
    assert learning.tokens == {}
    for frame in frames[4:]:
        assert np.array_equal(learning.step(frame).labels, plain.step(frame).labels)


def test_objects_learn_apart_and_are_used_together(sd1):
    tracker = make(sd1, optimize_steps=5, prompt_tokens=2)
    tracker.seed(FRAME, np.where(MASK == 1, 1, 0))
    finish(tracker.optimize())
    first = tracker.tokens[1]
    tracker.seed(FRAME, np.where(MASK == 2, 1, 0))
    given, result = finish(tracker.optimize([2]))
    assert set(result.after) == {2} and all(set(p.loss) <= {2} for p in given)
    assert sorted(tracker.tokens) == [1, 2] and torch.equal(tracker.tokens[1], first)
    prompt, base = tracker.state.features.prompt, tracker.state.features.checkpoint.prompt
    assert prompt.shape == base.shape  # padded as the text encoder pads
    torch.testing.assert_close(prompt[0, 0], base[0, 0])
    torch.testing.assert_close(prompt[0, 1:3], tracker.tokens[1])
    torch.testing.assert_close(prompt[0, 3:5], tracker.tokens[2])
    torch.testing.assert_close(prompt[0, 5:], base[0, 1:4])
    both, _ = finish(tracker.optimize())  # two seed frames in turns
    assert [set(p.loss) for p in both[:3]] == [set(), set(), {1, 2}]


def test_with_inversion(sd1):
    """Passes that take the latents to the noise level are whole, also while learning."""
    tracker = make(sd1, optimize_steps=60, noise='inversion', inversion_steps=2)
    tracker.seed(FRAME, MASK)
    _, result = finish(tracker.optimize())
    assert result.steps == 60 and [e.id for e in tracker.step(FRAME).objects] == [1, 2]


def test_prompts_grow_only_when_the_tokens_do_not_fit():
    base = torch.arange(8.0)[None, :, None].repeat(1, 1, 3)
    few = join_prompt(base, {2: torch.full((3, 3), 20.0), 1: torch.full((1, 3), 10.0)})
    assert few[0, :, 0].tolist() == [0, 10, 20, 20, 20, 1, 2, 3]
    many = join_prompt(base, {1: torch.full((9, 3), 10.0)})
    assert many[0, :, 0].tolist() == [0, *[10] * 9, 1]


def test_budget_and_early_end(sd1):
    tracker = make(sd1, optimize_steps=10_000)
    tracker.seed(FRAME, MASK)
    _, result = finish(tracker.optimize(budget=0.3))
    assert result.steps < 10_000
    tracker = make(sd1, optimize_steps=10_000, optimize_rate=0.0001)
    tracker.seed(FRAME, MASK)
    _, result = finish(tracker.optimize(budget=600))
    assert result.steps < 1000  # nothing to gain at that rate


def test_refusals(sd1):
    tracker = make(sd1)
    with pytest.raises(OptimizeError, match='no objects to learn tokens for; seed one'):
        tracker.optimize()
    tracker.seed(FRAME, MASK)
    with pytest.raises(UnknownObjectError, match='no object 7; live objects: 1, 2'):
        tracker.optimize([1, 7])
    for budget in (-1.0, float('nan'), float('inf')):
        with pytest.raises(OptimizeError, match='the budget is'):
            tracker.optimize(budget=budget)
    steps = tracker.optimize()
    next(steps)
    tracker.remove(2)
    with pytest.raises(OptimizeError, match='object 2 has been removed'):
        list(steps)
    tracker = Tracker(config=configure(resolution=96), features=ColourFeatures())
    tracker.seed(FRAME, MASK)
    with pytest.raises(OptimizeError, match='tokens would have no effect'):
        tracker.optimize()


@pytest.mark.parametrize(
    ('options', 'reaches'),
    [
        ({'layers': ('down_blocks.0',)}, False),
        ({'layers': ('down_blocks.0',), 'noise': 'inversion'}, True),
        ({'layers': ('down_blocks.0',), 'noise': 'random'}, False),
        ({'layers': ('down_blocks.0', 'mid_block')}, True),
        ({}, True),
    ],
)
def test_whether_a_prompt_reaches_the_features(sd1, options, reaches):
    """Said from the order of layers, and seen: two prompts, the same features or not."""
    checkpoint = load_checkpoint(sd1, device='cpu')
    features = DiffusionFeatures(checkpoint, resolution=64, timestep=100, **options)
    assert prompt_reaches(features) is reaches
    first = features.extract(FRAME).layers[-1].query
    other = features.conditioned(features.prompt + 1.0, {})
    assert torch.allclose(other.extract(FRAME).layers[-1].query, first, atol=1e-4) != reaches


def test_the_embedded_model_says_where_a_prompt_has_no_effect():
    tracker = Tracker(device='cpu')
    tracker.seed(FRAME, MASK)
    if tracker.state.features.layers[0].startswith('down_blocks.0'):
        with pytest.raises(OptimizeError, match='Choose later layers'):
            tracker.optimize()
    layer = ('up_blocks.0.attentions.0',)
    tracker = Tracker(config=configure(layers=layer, optimize_steps=150), device='cpu')
    tracker.seed(FRAME, MASK)
    _, result = finish(tracker.optimize(budget=60))
    assert all(result.after[k] > result.before[k] + 0.1 for k in (1, 2))


def test_weights_of_heads_are_chosen_anew(sd1):
    tracker = make(sd1, head_weighting='adaptive', layers=('up_blocks',), optimize_steps=20)
    tracker.seed(FRAME, MASK)
    before = torch.cat(tracker.state.weighting.weights)
    finish(tracker.optimize())
    assert not torch.equal(torch.cat(tracker.state.weighting.weights), before)
