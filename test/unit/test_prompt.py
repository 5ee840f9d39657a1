# SPDX-License-Identifier: Apache-2.0
"""The online prompt against a plain dense solve, and what the tracker relies on."""

import dataclasses

import numpy as np
import torch

from drift_ros.engine.existence import Shown
from drift_ros.engine.frame_features import FrameFeatures, LayerFeatures
from drift_ros.engine.prompt import combine, describe, Judgement, PromptOptions, TargetModel
from drift_ros.engine.reference import Reference

OPTIONS = PromptOptions(fourier=64, every=1, hard=0.0)


def scene(places, seed=0, grid=(12, 16), dim=8):
    """Features of a textured ground on which objects of their own texture lie, and their masks."""
    generator = torch.Generator().manual_seed(seed)
    looks = torch.randn(9, dim, generator=torch.Generator().manual_seed(7))
    query = looks[0] + 0.4 * torch.randn(*grid, dim, generator=generator)
    masks = torch.zeros(*grid, len(places))
    for k, (look, row, column) in enumerate(places):
        part = (slice(row, row + 4), slice(column, column + 4))
        query[part] = looks[look] + 0.4 * torch.randn(4, 4, dim, generator=generator)
        masks[(*part, k)] = 1.0
    layer = LayerFeatures(query[None], query[None])
    return FrameFeatures((layer,)), masks


def soft_of(masks):
    return torch.cat([1.0 - masks.sum(-1, keepdim=True), masks], dim=-1)


def judged_of(soft):
    """A judgement of objects 1, 2, ... and 4, 7 that are where they are."""
    shown = dict.fromkeys((1, 2, 4, 7), Shown(0.1, float(soft[..., 1].sum()), 1.0, 1.0))
    return Judgement(soft, soft, (soft[..., 1:] > 0.005).any(dim=-1), {}, shown)


def snapshot(model):
    held = {
        field.name: value.clone()
        for field in dataclasses.fields(model)
        if isinstance(value := getattr(model, field.name), torch.Tensor)
    }
    return {**held, **{f'look {k}': one.looks.clone() for k, one in enumerate(model.traits)}}


def test_weights_are_those_of_a_dense_solve_in_float64():
    features, masks = scene([(1, 2, 2), (2, 6, 9)])
    later, moved = scene([(1, 3, 3), (2, 6, 10)], seed=1)
    tokens, again = describe(features), describe(later)
    soft = soft_of(0.9 * moved)
    model = TargetModel.empty(OPTIONS).seeded(tokens, masks, [4, 7])
    model = model.learnt(again, judged_of(soft), [4, 7], [True, True])

    samples = torch.cat([tokens.flatten(0, 1), again.flatten(0, 1)])
    lifted = model._lift(samples).double().numpy()
    n = len(lifted) // 2
    first = soft_of(masks).flatten(0, 1).double().numpy()
    second = (2.0 * soft - 1.0).clamp_min(0.0).flatten(0, 1).double().numpy()
    gram = OPTIONS.ridge * np.eye(lifted.shape[1])
    wanted = np.zeros((lifted.shape[1], 2))
    for channel in range(3):
        weight = np.concatenate(
            [
                OPTIONS.mass * first[:, channel] / first[:, channel].sum(),
                OPTIONS.rate * OPTIONS.mass * second[:, channel] / second[:, channel].sum(),
            ]
        )
        assert len(weight) == 2 * n
        gram += lifted.T @ (weight[:, None] * lifted)
        for k in range(2):
            wanted[:, k] += lifted.T @ weight * (1.0 if channel == k + 1 else -1.0)
    expected = lifted[:n] @ np.linalg.solve(gram, wanted)
    scores = model.scores(tokens, [4, 7]).flatten(0, 1)
    np.testing.assert_allclose(scores.numpy(), expected, atol=2e-3)


def test_objects_are_told_from_the_rest():
    features, masks = scene([(1, 2, 2), (2, 6, 9)])
    tokens = describe(features)
    model = TargetModel.empty(OPTIONS).seeded(tokens, masks, [1, 2])
    scores = model.scores(tokens, [1, 2])
    for k in range(2):
        assert scores[..., k][masks[..., k] > 0].mean() > 0.5
        assert scores[..., k][masks[..., k] == 0].mean() < -0.5
    # in the order asked for
    assert torch.equal(model.scores(tokens, [2, 1]), scores.flip(-1))


def test_look_alikes_repel_each_other_when_both_are_followed():
    # two objects of nearly one look: each alone scores high on the other
    generator = torch.Generator().manual_seed(3)
    features, masks = scene([(1, 2, 2), (1, 6, 9)])
    query = features.layers[0].query.clone()
    query[0][masks[..., 1] > 0] += 0.8 * torch.randn(8, generator=generator)
    features = FrameFeatures((LayerFeatures(query, query),))
    tokens = describe(features)
    alone = TargetModel.empty(OPTIONS).seeded(tokens[:, :8], masks[:, :8, :1], [1])
    both = TargetModel.empty(OPTIONS).seeded(tokens, masks, [1, 2])
    other = masks[..., 1] > 0
    before, after = alone.scores(tokens, [1]), both.scores(tokens, [1, 2])
    assert before[..., 0][other].mean() > 0.5
    assert after[..., 0][other].mean() < -0.3
    undecided = soft_of(torch.full((12, 16, 2), 0.45))
    voted = combine(undecided, after, OPTIONS)
    assert (voted[..., 2] > voted[..., 1])[other].float().mean() > 0.9
    assert (voted[..., 1] > voted[..., 2])[masks[..., 0] > 0].float().mean() > 0.9


def test_combined_probabilities_sum_to_one():
    soft = torch.rand(5, 6, 4).softmax(-1)
    out = combine(soft, 4.0 * torch.randn(5, 6, 3), OPTIONS)
    torch.testing.assert_close(out.sum(-1), torch.ones(5, 6))
    torch.testing.assert_close(combine(soft, torch.zeros(5, 6, 3), OPTIONS), soft)
    never = torch.tensor([1.0, 0.0, 0.0, 0.0]).expand(5, 6, 4)
    torch.testing.assert_close(combine(never, torch.ones(5, 6, 3), OPTIONS), never)


def test_an_object_that_is_gone_does_not_exist():
    features, masks = scene([(1, 2, 2), (2, 6, 9)])
    tokens = describe(features)
    model = TargetModel.empty(OPTIONS).seeded(tokens, masks, [1, 2])
    gone = describe(scene([(1, 2, 2), (5, 6, 9)])[0])
    soft = soft_of(masks)
    here = model.judge(tokens, soft, [1, 2])
    assert min(here.existence.values()) > 0.9
    model = model.learnt(tokens, here, [1, 2], [True, True])
    then = model.judge(gone, soft, [1, 2]).existence
    assert then[1] > 0.9 and then[2] < 0.3
    none = soft_of(torch.zeros_like(masks))
    assert not any(model.judge(tokens, none, [1, 2]).existence.values())


def test_only_the_objects_asked_for_are_looked_for():
    features, masks = scene([(1, 2, 2), (2, 6, 9)])
    tokens, soft = describe(features), soft_of(masks)
    model = TargetModel.empty(OPTIONS).seeded(tokens, masks, [1, 2])
    both, one = model.judge(tokens, soft, [1, 2]), model.judge(tokens, soft, [1, 2], asked=[2])
    assert one.existence == {2: both.existence[2]} and one.shown == {2: both.shown[2]}
    assert torch.equal(one.soft, both.soft)


def test_a_removed_object_takes_its_statistics_along():
    features, masks = scene([(1, 2, 2), (2, 6, 9)])
    tokens = describe(features)
    first = TargetModel.empty(OPTIONS).seeded(tokens, masks[..., :1], [1], others=masks[..., 1])
    both = first.seeded(tokens, masks[..., 1:], [2], others=masks[..., 0])
    assert both.object_ids == (1, 2) and both.nbytes > first.nbytes
    back = both.without(2)
    assert back.object_ids == (1,) and back.nbytes == first.nbytes
    torch.testing.assert_close(back.weights, first.weights)
    assert both.without(9) is both
    assert back.without(1).object_ids == () and back.without(1).nbytes == 0


def test_a_correction_outweighs_what_was_learnt_before():
    features, masks = scene([(1, 2, 2)])
    other, moved = scene([(2, 6, 9)], seed=1)
    tokens, again = describe(features), describe(other)
    model = TargetModel.empty(OPTIONS).seeded(tokens, masks, [1])
    for _ in range(20):
        model = model.learnt(tokens, judged_of(soft_of(masks)), [1], [True])
    new = moved[..., 0] > 0
    assert model.scores(again, [1])[..., 0][new].mean() < 0.0
    model = model.seeded(again, moved, [1])
    assert model.object_ids == (1,)
    assert model.scores(again, [1])[..., 0][new].mean() > 0.5


def test_nothing_is_learnt_of_what_is_not_sure():
    features, masks = scene([(1, 2, 2), (2, 6, 9)])
    tokens = describe(features)
    model = TargetModel.empty(OPTIONS).seeded(tokens, masks, [1, 2])
    assert model.learnt(tokens, judged_of(soft_of(masks)), [1, 2], [False, False]) is model
    half = model.learnt(tokens, judged_of(soft_of(masks)), [1, 2], [True, False])
    assert half.seen_objects[0].any() and not half.seen_objects[1].any()


def test_without_objects_there_is_nothing_to_say():
    tokens = describe(scene([])[0])
    model = TargetModel.empty(OPTIONS)
    soft = torch.ones(12, 16, 1)
    scores = model.scores(tokens, [])
    assert scores.shape == (12, 16, 0)
    assert torch.equal(combine(soft, scores, OPTIONS), soft)
    judged = model.judge(tokens, soft, [])
    assert judged.existence == {} and torch.equal(judged.soft, soft)
    assert model.learnt(tokens, judged, [], []) is model


def test_weights_are_solved_every_few_frames():
    features, masks = scene([(1, 2, 2)])
    tokens, soft = describe(features), soft_of(masks)
    options = dataclasses.replace(OPTIONS, every=3)
    model = TargetModel.empty(options).seeded(tokens, masks, [1])
    changed = []
    for _ in range(6):
        later = model.learnt(tokens, judged_of(soft), [1], [True])
        changed.append(not torch.equal(later.weights, model.weights))
        model = later
    assert changed == [True, False, False, True, False, False]


def test_memory_is_bounded():
    features, masks = scene([(1, 2, 2), (2, 6, 9)])
    tokens = describe(features)
    model = TargetModel.empty(OPTIONS).seeded(tokens, masks, [1, 2])
    held = model.nbytes
    for _ in range(30):
        model = model.learnt(tokens, judged_of(soft_of(masks)), [1, 2], [True, True])
        model = model.seeded(tokens, masks[..., :1], [1], others=masks[..., 1])
    assert model.nbytes == held
    assert model.weights.isfinite().all()


def test_it_is_deterministic_and_changes_nothing_in_place():
    features, masks = scene([(1, 2, 2), (2, 6, 9)])
    tokens = describe(features)
    model = TargetModel.empty(OPTIONS).seeded(tokens, masks, [1, 2])
    held, looked = snapshot(model), tokens.clone()
    soft = soft_of(masks)
    given = soft.clone()
    ways = [
        lambda: model.learnt(tokens, judged_of(soft), [1, 2], [True, True]),
        lambda: model.seeded(tokens, masks[..., :1], [1]),
        lambda: model.without(1),
    ]
    for way in ways:
        one, two = way(), way()
        assert all(torch.equal(a, snapshot(two)[name]) for name, a in snapshot(one).items())
    combine(soft, model.scores(tokens, [1, 2]), OPTIONS)
    for name, value in snapshot(model).items():
        assert torch.equal(value, held[name]), name
    assert torch.equal(tokens, looked) and torch.equal(soft, given)


def test_layers_of_several_grids_and_heads_are_joined():
    fine, coarse = torch.randn(2, 12, 16, 4), torch.randn(3, 6, 8, 5)
    features = FrameFeatures((LayerFeatures(coarse, coarse), LayerFeatures(fine, fine)))
    tokens = describe(features)
    assert tokens.shape == (12, 16, 8 + 15)
    torch.testing.assert_close(tokens.norm(dim=-1), torch.ones(12, 16))
    masks = torch.zeros(12, 16, 1)
    masks[2:6, 2:6] = 1.0
    model = TargetModel.empty(OPTIONS).seeded(tokens, masks, [1])
    where = torch.zeros(12, 16, dtype=torch.bool)
    where[:5, :5] = True
    everywhere, some = model.scores(tokens, [1]), model.scores(tokens, [1], where)
    torch.testing.assert_close(some[where], everywhere[where], atol=1e-4, rtol=1e-4)
    assert not some[~where].any()


def test_what_is_marked_is_learnt_again_and_nothing_else():
    features, masks = scene([(1, 2, 2), (2, 6, 9)])
    tokens = describe(features)
    model = TargetModel.empty(OPTIONS).seeded(tokens, masks, [1, 2])
    later = model.learnt(tokens, judged_of(soft_of(masks)), [1, 2], [True, True])
    seed = Reference(features, soft_of(masks), frozenset({1, 2}))
    again = later.again([(seed, masks, [1, 2]), (seed, masks[..., :0], [])])
    torch.testing.assert_close(again.weights, model.weights)
    assert again.object_ids == (1, 2) and not again.seen_rest.any()
