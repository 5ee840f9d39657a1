# SPDX-License-Identifier: Apache-2.0
"""Head weights are the optimum of their problem, and useless heads get none."""

import numpy as np
import pytest
from scenes import ColourFeatures, GREEN, overlap, RED, scene, square_mask
from scipy.optimize import minimize
from tiny_models import save_checkpoint
import torch

from drift_ros import Tracker, TrackerConfig
from drift_ros.diffusion.features import FrameFeatures, LayerFeatures
from drift_ros.head_weights import HeadWeighting, least_squares_on_simplex, propagate_by_head


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

        first = [torch.cat([side, noise(1, height, width, 4)]) for side in
                 (layer.query, layer.key)]
        second = [noise(2, height // 2, width // 2, 4) for _ in range(2)]
        return FrameFeatures((LayerFeatures(*first), LayerFeatures(*second)), frame)

    extract_resized = extract


def make(**options):
    config = {'resolution': 96, 'radius': 6, 'refinement': 'none', **options}
    return Tracker(config=TrackerConfig(**config), features=ManyHeads())


def test_a_useless_head_gets_no_weight_and_tracking_gains():
    first, mask = scene((16, 16, 24, RED)), square_mask((16, 16, 24))
    moved, truth = scene((28, 20, 24, RED)), square_mask((28, 20, 24)) == 1
    scores = {}
    for weighting in ('uniform', 'adaptive'):
        tracker = make(head_weighting=weighting, confidence_threshold=0.0)
        tracker.seed(first, mask)
        scores[weighting] = overlap(tracker.step(moved).labels == 1, truth)
    weights = torch.cat(tracker._memory.head_weights)
    assert weights[0] > 0.9 and weights[1:].max() < 0.05
    assert scores['adaptive'] > max(scores['uniform'], 0.7)


def test_weights_follow_the_objects():
    tracker = make(head_weighting='adaptive')
    frame = scene((16, 16, 24, RED), (80, 40, 20, GREEN))

    def weights():
        return torch.cat(tracker._memory.head_weights)

    tracker.seed(frame, square_mask((16, 16, 24)))
    one = weights()
    tracker.seed(frame, square_mask((80, 40, 20)))
    both = weights()
    assert not torch.equal(one, both) and float(both.sum()) == pytest.approx(1, abs=1e-5)
    tracker.remove(2)
    assert torch.equal(weights(), one)
    tracker.remove(1)
    assert tracker._memory.head_weights is None


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
    config = TrackerConfig(top_k=0, radius=6)
    seen = propagate_by_head(features, features, mask, config)[0]
    torch.testing.assert_close(seen, mask[::3, ::3], atol=1e-3, rtol=0)
    hidden = propagate_by_head(features, features, mask, config, exclude=1)
    # Without itself, identity knows no more than a head for which all tokens are alike.
    torch.testing.assert_close(hidden[0], hidden[1], atol=1e-3, rtol=0)


def test_a_single_head_needs_no_choice():
    weighting = HeadWeighting(TrackerConfig())
    features = ColourFeatures().extract(scene((16, 16, 24, RED)))
    weighting.add(features, torch.ones(*features.grid, 1), [1])
    assert weighting.solve() is None


def test_with_a_diffusion_model(tmp_path):
    """Every layer and head of a U-Net, with the altered copies."""
    tracker = Tracker(
        save_checkpoint(tmp_path, 'sd2'),
        TrackerConfig(resolution=96, head_weighting='adaptive', layers=('up_blocks', 'mid_block')),
        device='cpu',
    )
    tracker.seed(scene((16, 16, 24, RED)), square_mask((16, 16, 24)))
    weights = torch.cat(tracker._memory.head_weights)
    assert len(weights) > 8 and weights.min() >= 0
    assert float(weights.sum()) == pytest.approx(1, abs=1e-5)
    result = tracker.step(scene((18, 16, 24, RED)))
    assert np.isfinite(result.probability(1)).all()
