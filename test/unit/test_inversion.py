# SPDX-License-Identifier: Apache-2.0
"""Steps between noise levels are the stock scheduler's, and inversion comes back."""

from diffusers import DDIMInverseScheduler, DDIMScheduler
import numpy as np
import pytest
from scenes import configure
from tiny_models import save_checkpoint
import torch

from drift_ros import Tracker
from drift_ros.diffusion.checkpoint import load_checkpoint
from drift_ros.diffusion.features import DiffusionFeatures
from drift_ros.diffusion.inversion import DDIM
from drift_ros.engine.errors import CheckpointError

KINDS = ('epsilon', 'v_prediction', 'sample')
SETTINGS = {
    'sd': {'beta_start': 0.00085, 'beta_end': 0.012, 'beta_schedule': 'scaled_linear'},
    'linear': {'beta_schedule': 'linear', 'set_alpha_to_one': False},
}


def restore(ddim, latents, timestep, steps, predict):
    """Sample back from a level to clean latents: the way of ``invert``."""
    levels = [-1, *ddim.levels(timestep, steps)]
    for start, end in zip(levels[:0:-1], levels[-2::-1], strict=True):
        latents = ddim.step(latents, predict(latents, start), start, end, start)
    return latents


def make(kind, settings='sd', **options):
    return DDIMScheduler(
        prediction_type=kind,
        timestep_spacing='trailing',
        clip_sample=False,
        **{**SETTINGS[settings], **options},
    )


def noise(seed=0, size=(1, 4, 8, 8)):
    return torch.randn(size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def frame(height=64, width=96):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize('settings', SETTINGS)
@pytest.mark.parametrize('kind', KINDS)
def test_a_step_is_the_stock_schedulers(kind, settings):
    scheduler = make(kind, settings)
    scheduler.set_timesteps(8)
    ddim = DDIM(scheduler)
    levels = ddim.levels(999, 8)
    assert scheduler.timesteps.tolist() == levels[::-1]
    x, output = noise(1), noise(2)
    for start, end in zip(levels[::-1], [*levels[-2::-1], -1], strict=True):
        expected = scheduler.step(output, start, x).prev_sample
        torch.testing.assert_close(
            ddim.step(x, output, start, end, start), expected, rtol=1e-6, atol=1e-6
        )


@pytest.mark.parametrize('settings', SETTINGS)
def test_inversion_is_the_stock_inverse_schedulers_over_all_levels(settings):
    """For noise prediction both say the same; there the stock one is told the same level."""
    scheduler = make('epsilon', settings)
    inverse = DDIMInverseScheduler.from_config(scheduler.config)
    inverse.set_timesteps(8)
    expected = x = noise(1)
    for level in inverse.timesteps:
        expected = inverse.step(torch.tanh(expected) * 0.3, level, expected).prev_sample
    ours = DDIM(scheduler).invert(x, 999, 8, lambda x, level: torch.tanh(x) * 0.3)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-6)


def test_levels_end_at_the_timestep():
    ddim = DDIM(make('epsilon'))
    assert ddim.levels(50, 1) == [50]
    assert ddim.levels(51, 4) == [12, 25, 38, 51]
    assert ddim.levels(2, 8) == [0, 1, 2] and ddim.levels(0, 5) == [0]


def smooth_network(kind, ddim):
    """Predict a smooth function of latents and level as noise, in the wanted terms."""

    def predict(x, level):
        epsilon = torch.sin(1.3 * x + level / 400) * 0.5 + 0.3 * x.roll(1, -1)
        signal, sigma = ddim.signal(level), ddim.noise(level)
        clean = (x - sigma * epsilon) / signal
        return {
            'epsilon': epsilon,
            'v_prediction': signal * epsilon - sigma * clean,
            'sample': clean,
        }[kind]

    return predict


@pytest.mark.parametrize('settings', SETTINGS)
@pytest.mark.parametrize('kind', KINDS)
def test_round_trip(kind, settings):
    """Of first order in the step: four times the steps, about a fourth of the error."""
    ddim = DDIM(make(kind, settings))
    predict = smooth_network(kind, ddim)
    clean = noise(3)
    errors = []
    for steps in (4, 16, 64):
        there = ddim.invert(clean, 300, steps, predict)
        assert (there - clean).abs().max() > 0.1
        back = restore(ddim, there, 300, steps, predict)
        errors.append(float((back - clean).abs().max()))
    assert errors[0] < 0.4 and errors[1] < 0.1 and errors[2] < 0.03
    assert errors[1] < 0.4 * errors[0] and errors[2] < 0.4 * errors[1]


@pytest.mark.parametrize('family', ['sd1', 'sd2'])
def test_round_trip_with_a_network(tmp_path, family):
    """A whole U-Net, noise and v prediction."""
    checkpoint = load_checkpoint(save_checkpoint(tmp_path, family), device='cpu')
    features = DiffusionFeatures(checkpoint, timestep=200, resolution=64)
    clean = features.encode(features.resize(frame()))
    clean = clean / clean.std()
    ddim = DDIM(checkpoint.scheduler)
    errors = []
    with torch.inference_mode():
        for steps in (2, 8, 32):
            there = ddim.invert(clean, 200, steps, features.run_unet)
            back = restore(ddim, there, 200, steps, features.run_unet)
            errors.append(float((back - clean).abs().max()))
    assert errors[0] > 1.5 * errors[1] > 2.25 * errors[2]
    assert errors[2] < 0.02


def test_zero_terminal_snr():
    ddim = DDIM(make('v_prediction', rescale_betas_zero_snr=True))
    noisy = ddim.invert(noise(4), 999, 4, lambda x, level: 0.1 * x)
    assert noisy.isfinite().all()
    assert restore(ddim, noisy, 999, 4, lambda x, level: 0.1 * x).isfinite().all()


def test_unknown_prediction_type():
    scheduler = make('epsilon')
    scheduler.register_to_config(prediction_type='flow')
    with pytest.raises(CheckpointError, match="'flow'.*features.noise to none"):
        DDIM(scheduler)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    return load_checkpoint(save_checkpoint(tmp_path_factory.mktemp('tiny'), 'sd2'), device='cpu')


def query(checkpoint, **options):
    features = DiffusionFeatures(checkpoint, resolution=64, timestep=100, **options)
    return features.extract(frame()).layers[0].query


def test_noise_options_change_features_and_are_deterministic(checkpoint):
    found = {}
    for name, options in {
        'none': {},
        'inverted': {'noise': 'inversion', 'inversion_steps': 3},
        'random': {'noise': 'random'},
        'other': {'noise': 'random', 'noise_seed': 5},
        'ensemble': {'noise': 'random', 'noise_samples': 3},
    }.items():
        found[name] = query(checkpoint, **options)
        assert torch.equal(found[name], query(checkpoint, **options)), name
    names = list(found)
    for i, first in enumerate(names):
        for second in names[:i]:
            assert not torch.allclose(found[first], found[second], atol=1e-3), (first, second)


def test_an_ensemble_is_the_mean_over_its_noises(checkpoint):
    features = DiffusionFeatures(checkpoint, resolution=64, noise='random', noise_samples=3)
    image = features.resize(frame())
    noisy = features.noisy(features.encode(image))
    assert noisy.shape[0] == 3 and not torch.equal(noisy[0], noisy[1])
    whole = features.extract_resized(image).layers[0]
    singles = []
    for sample in noisy:
        features.noisy = lambda latents, sample=sample: sample[None]
        singles.append(features.extract_resized(image).layers[0])
    for name in ('query', 'key'):
        mean = torch.stack([getattr(layer, name) for layer in singles]).mean(0)
        torch.testing.assert_close(getattr(whole, name), mean, atol=1e-5, rtol=1e-4)


def test_random_noise_has_the_levels_strength(checkpoint):
    features = DiffusionFeatures(checkpoint, resolution=96, timestep=400, noise='random')
    alpha = float(checkpoint.scheduler.alphas_cumprod[400])
    latents = torch.zeros(1, 4, 64, 64)
    assert features.noisy(latents).std() == pytest.approx((1 - alpha) ** 0.5, rel=0.05)


def test_the_tracker_passes_its_options_on(tmp_path):
    folder = save_checkpoint(tmp_path, 'sd1')
    plain = Tracker(folder, configure(resolution=64), device='cpu')
    inverted = Tracker(
        folder, configure(resolution=64, noise='inversion', inversion_steps=2), device='cpu'
    )
    first, second = (t.state.features.extract(frame()).layers[0].query for t in (plain, inverted))
    assert not torch.allclose(first, second, atol=1e-3)
    prompted = Tracker(folder, configure(resolution=64, prompt='a b'), device='cpu')
    assert not torch.allclose(prompted.state.features.prompt, plain.state.features.prompt)
