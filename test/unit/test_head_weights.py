# SPDX-License-Identifier: Apache-2.0
"""Head weights are the optimum of their problem, and useless heads get none."""

import cv2
import numpy as np
import pytest
from scenes import ColourFeatures, configure, overlap, RED, scene, square_mask
from scipy.optimize import minimize
from tiny_models import save_checkpoint
import torch

from drift_ros import Tracker
from drift_ros.diffusion.attention import self_attention_layers
from drift_ros.diffusion.checkpoint import load_checkpoint
from drift_ros.diffusion.features import DiffusionFeatures
from drift_ros.engine.frame_features import FrameFeatures, LayerFeatures
from drift_ros.engine.head_weights import (
    choose_cells,
    HeadWeighting,
    least_squares_on_simplex,
    Look,
    propagate_by_head,
)
from drift_ros.engine.kernel import resize_labels
from drift_ros.engine.kernel_fast import propagate


def problem(seed, count, rows=60, rank=None):
    rng = np.random.default_rng(seed)
    matrix = rng.random((rows, rank or count)) @ rng.random((rank or count, count))
    if rank is None:
        matrix = rng.random((rows, count))
    target = matrix @ rng.dirichlet(np.full(count, 0.2)) + 0.1 * rng.standard_normal(rows)
    return matrix, target


def cost(matrix, target, weights):
    return float(((matrix @ weights - target) ** 2).sum())


@pytest.mark.parametrize('count', [1, 2, 5, 24])
@pytest.mark.parametrize('seed', range(5))
def test_no_general_purpose_solver_does_better(seed, count):
    matrix, target = problem(seed, count)
    weights = least_squares_on_simplex(matrix.T @ matrix, matrix.T @ target)
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    found = minimize(
        lambda w: cost(matrix, target, w),
        np.full(count, 1 / count),
        jac=lambda w: 2 * matrix.T @ (matrix @ w - target),
        method='SLSQP',
        bounds=[(0, 1)] * count,
        constraints={'type': 'eq', 'fun': lambda w: w.sum() - 1, 'jac': np.ones_like},
        options={'maxiter': 1000, 'ftol': 1e-14},
    )
    best = cost(matrix, target, np.clip(found.x, 0, None) / np.clip(found.x, 0, None).sum())
    assert cost(matrix, target, weights) <= best * (1 + 1e-6) + 1e-9
    np.testing.assert_allclose(weights, found.x, atol=2e-3)


@pytest.mark.parametrize('rank', [None, 3])
@pytest.mark.parametrize('seed', range(5))
def test_optimality_conditions(seed, rank):
    """Karush, Kuhn, Tucker: equal gradients on what is used, none smaller on what is not."""
    matrix, target = problem(seed, 24, rank=rank)
    weights = least_squares_on_simplex(matrix.T @ matrix, matrix.T @ target)
    gradient = matrix.T @ (matrix @ weights - target)
    used = weights > 0
    level, scale = gradient[used].mean(), np.abs(matrix.T @ target).mean()
    np.testing.assert_allclose(gradient[used], level, atol=1e-6 * scale)
    assert gradient[~used].min(initial=np.inf) >= level - 1e-6 * scale
    assert not used.all()


def test_equal_heads():
    weights = least_squares_on_simplex(np.ones((4, 4)), np.ones(4))
    assert weights.min() >= 0 and weights.sum() == pytest.approx(1)
    assert least_squares_on_simplex(np.zeros((3, 3)), np.zeros(3)).sum() == pytest.approx(1)


class ManyHeads:
    """Colour on one layer of two heads, of which one is noise; noise on a coarser layer."""

    def __init__(self):
        self.colour = ColourFeatures()

    def extract(self, frame):
        (layer,) = self.colour.extract(frame).layers
        generator = torch.Generator().manual_seed(int(frame.sum()) % 2**31)
        height, width = layer.query.shape[1:3]

        def noise(*size):
            return 4 * torch.randn(*size, generator=generator)

        first = [
            torch.cat([side, noise(1, height, width, 4)]) for side in (layer.query, layer.key)
        ]
        second = [noise(2, height // 2, width // 2, 4) for _ in range(2)]
        return FrameFeatures((LayerFeatures(*first), LayerFeatures(*second)), frame)

    extract_resized = extract


def make(**options):
    config = {'resolution': 96, 'radius': 6, 'method': 'none', **options}
    return Tracker(config=configure(**config), features=ManyHeads())


def test_a_useless_head_gets_no_weight_and_tracking_gains():
    first, mask = scene((16, 16, 24, RED)), square_mask((16, 16, 24))
    moved, truth = scene((28, 20, 24, RED)), square_mask((28, 20, 24)) == 1
    scores = {}
    for weighting in ('uniform', 'adaptive'):
        tracker = make(head_weighting=weighting, confidence=0.0)
        tracker.seed(first, mask)
        scores[weighting] = overlap(tracker.step(moved).labels == 1, truth)
    weights = torch.cat(tracker.state.weighting.weights)
    assert weights[0] > 0.9 and weights[1:].max() < 0.05
    assert scores['adaptive'] > max(scores['uniform'], 0.7)


class ChannelHeads:
    """Head 0 sees red only, head 1 green only."""

    def extract(self, frame):
        height, width = frame.shape[0] // 4, frame.shape[1] // 4
        small = cv2.resize(frame, (width, height), interpolation=cv2.INTER_AREA)
        level = torch.from_numpy(small[..., :2].astype(np.float32) / 127.5 - 1).permute(2, 0, 1)
        vectors = 12 * torch.nn.functional.normalize(
            torch.stack([level, torch.full_like(level, 0.5)], -1), dim=-1
        )
        return FrameFeatures((LayerFeatures(vectors, vectors),))


def test_weights_follow_the_objects():
    config = configure(resolution=96, radius=6, method='none', head_weighting='adaptive')
    tracker = Tracker(config=config, features=ChannelHeads())
    frame = scene((16, 16, 24, (220, 100, 100)), (80, 40, 20, (100, 220, 100)))

    def weights():
        return torch.cat(tracker.state.weighting.weights)

    tracker.seed(frame, square_mask((16, 16, 24)))
    one = weights()
    assert one[0] > 0.9
    tracker.seed(frame, square_mask((80, 40, 20)))
    both = weights()
    assert both.min() > 0.2 and float(both.sum()) == pytest.approx(1, abs=1e-5)
    tracker.remove(2)
    assert torch.equal(weights(), one)
    tracker.remove(1)
    assert tracker.state.weighting.weights is None


def random_features(*sizes, heads=2, dim=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return FrameFeatures(
        tuple(
            LayerFeatures(
                *(2 * torch.randn(heads, *size, dim, generator=generator) for _ in range(2))
            )
            for size in sizes
        )
    )


def all_cells(height, width):
    rows = np.minimum(np.arange(0, height, 2), height - 2)
    columns = np.minimum(np.arange(0, width, 2), width - 2)
    return np.stack(np.meshgrid(rows, columns, indexing='ij'), -1).reshape(-1, 2)


def looks_at(features, exclude=-1):
    return Look(tuple(la.query for la in features.layers), torch.zeros(1), exclude)


@pytest.mark.parametrize('radius', [0, 3])
@pytest.mark.parametrize('top_k', [0, 4])
def test_each_head_alone_brings_what_the_tracker_gets_from_it(radius, top_k):
    """On every cell, a layer of half and one of a quarter of the resolution among them."""
    sizes = ((15, 20), (8, 10), (4, 5))
    reference, first, second = (random_features(*sizes, seed=seed) for seed in range(3))
    labels = torch.rand(15, 20, 3, generator=torch.Generator().manual_seed(3))
    config = configure(radius=radius, top_k=top_k)
    cells = all_cells(15, 20)
    got = propagate_by_head([looks_at(first), looks_at(second)], reference, labels, cells, config)
    assert got.shape == (6, 2, len(cells), 2, 2, 3)
    for look, frame in enumerate((first, second)):
        for head in range(6):
            layer, size = head // 2, sizes[head // 2]
            want = propagate(
                frame.layers[layer].query,
                reference.layers[layer].key[None],
                resize_labels(labels[None], size, 'area'),
                radius=-(-radius * size[0] // 15) or None,
                top_k=top_k,
                head_weights=torch.eye(2)[head % 2],
            )
            want = resize_labels(want[None], (15, 20), 'bilinear')[0]
            for number, (row, column) in enumerate(cells):
                torch.testing.assert_close(
                    got[head, look, number],
                    want[row : row + 2, column : column + 2],
                    atol=1e-5,
                    rtol=0,
                )


def test_a_frame_does_not_recognise_itself():
    """Identical tokens are hidden: a head of pure identity explains nothing."""
    height, width = 12, 16
    identity = 20 * torch.eye(height * width).view(1, height, width, -1)
    same = torch.zeros(1, height, width, height * width)
    same[..., :2] = 5.0
    vectors = torch.cat([identity, same])
    features = FrameFeatures((LayerFeatures(vectors, vectors),))
    mask = torch.zeros(height, width, 1)
    mask[3:8, 4:10] = 1
    config = configure(top_k=0, radius=6)
    cells = all_cells(height, width)
    seen, hidden = propagate_by_head(
        [looks_at(features), looks_at(features, 1)], features, mask, cells, config
    ).transpose(0, 1)
    for number, (row, column) in enumerate(cells):
        want = mask[row : row + 2, column : column + 2]
        torch.testing.assert_close(seen[0, number], want, atol=1e-3, rtol=0)
    # Without itself, identity knows no more than a head for which all tokens are alike.
    torch.testing.assert_close(hidden[0], hidden[1], atol=1e-3, rtol=0)


def test_near_tokens_are_hidden():
    """Marking one position, its own neighbourhood learns nothing of it."""
    features = random_features((10, 10), heads=1)
    labels = torch.zeros(10, 10, 1)
    labels[4, 4] = 1.0
    config = configure(top_k=0, radius=3)
    cells = all_cells(10, 10)
    found = propagate_by_head([looks_at(features, 1)], features, labels, cells, config)
    for (row, column), values in zip(cells, found[0, 0, ..., 0], strict=True):
        for y in range(2):
            for x in range(2):
                away = max(abs(row + y - 4), abs(column + x - 4))
                assert (values[y, x] > 0) == (1 < away <= 3)


@pytest.mark.parametrize('size', [(30, 54), (15, 27)])
def test_cells_stand_for_all_tokens(size):
    mask = np.zeros((2, *size), np.float32)
    mask[0, 4:10, 6:16], mask[1, 6:12, 9:19] = 1, 1
    places, shares = choose_cells(mask, 5, 24)
    assert len(places) == 24 and len(np.unique(places, axis=0)) == 24
    every, all_shares = choose_cells(mask, 5, 10_000)
    tokens = {(row + y, column + x) for row, column in every for y in range(2) for x in range(2)}
    reachable = {(y, x) for y in range(0, 15) for x in range(1, 21)}
    reachable |= {(y, x) for y in range(1, min(17, size[0])) for x in range(4, 24)}
    assert reachable <= tokens and set(np.unique(all_shares)) <= {0.0, 1.0}
    assert (all_shares**2).sum() == len(tokens)  # each token once
    assert (shares**2).sum() == pytest.approx(len(tokens), rel=0.05)
    again = choose_cells(mask, 5, 24)
    assert np.array_equal(again[0], places) and np.array_equal(again[1], shares)
    # half of them where the object ends, in one of the two looks
    ends = np.zeros(size, bool)
    for top, left, bottom, right in ((4, 6, 9, 15), (6, 9, 11, 18)):
        ring = np.zeros(size, bool)
        ring[top - 1 : bottom + 2, left - 1 : right + 2] = True
        ring[top + 1 : bottom, left + 1 : right] = False
        ends |= ring
    at_end = [ends[row : row + 2, column : column + 2].any() for row, column in places]
    assert sum(at_end) >= 12


def textured(seed, shape, scale):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (shape[0] // scale, shape[1] // scale, 3), np.uint8)
    return cv2.resize(coarse, shape[::-1], interpolation=cv2.INTER_CUBIC)


def test_sampled_tokens_choose_as_all_tokens_do():
    """
    On every head of the embedded model, for a textured disc before a textured ground.

    The same head leads, no weight is off by more than 0.2, and of what choosing weights gains
    over uniform ones no more than 5 percent are lost.
    """
    frame, disc = textured(0, (160, 240), 10), textured(1, (160, 240), 8)
    y, x = np.mgrid[:160, :240]
    mask = np.hypot(y - 80, x - 110) < 36
    frame[mask] = disc[mask]
    checkpoint = load_checkpoint(device='cpu')
    features = DiffusionFeatures(
        checkpoint, layers=self_attention_layers(checkpoint.unet), resolution=160
    )
    seen = features.extract(frame)
    shares = cv2.resize(mask.astype(np.float32), seen.grid[::-1], interpolation=cv2.INTER_AREA)
    weights = []
    adaptive = configure(head_weighting='adaptive')
    for cells in ({}, {'cells': 100_000}):
        weighting = HeadWeighting(adaptive, **cells)
        everything = weighting.add(seen, torch.from_numpy(shares)[..., None], [1], features)
        weights.append(torch.cat(everything.weights).double().numpy())
    sampled, best = weights
    assert np.abs(sampled - best).max() < 0.2
    assert sampled.argmax() == best.argmax()
    gram, side = everything.systems[1]

    def cost(chosen):
        return chosen @ gram @ chosen / 2 - side @ chosen

    uniform = np.full(len(best), 1 / len(best))
    assert cost(sampled) - cost(best) < 0.05 * (cost(uniform) - cost(best))


def test_a_single_head_needs_no_choice():
    weighting = HeadWeighting(configure(head_weighting='adaptive'))
    features = ColourFeatures().extract(scene((16, 16, 24, RED)))
    assert weighting.add(features, torch.ones(*features.grid, 1), [1]).weights is None


def test_with_a_diffusion_model(tmp_path):
    """Every layer and head of a U-Net, with the altered copies."""
    tracker = Tracker(
        save_checkpoint(tmp_path, 'sd2'),
        configure(resolution=96, head_weighting='adaptive', layers=('up_blocks', 'mid_block')),
        device='cpu',
    )
    tracker.seed(scene((16, 16, 24, RED)), square_mask((16, 16, 24)))
    weights = torch.cat(tracker.state.weighting.weights)
    assert len(weights) > 8 and weights.min() >= 0
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    result = tracker.step(scene((18, 16, 24, RED)))
    assert np.isfinite(result.probability(1)).all()
