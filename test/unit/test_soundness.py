# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that load and cannot be used are refused when they are, with the cause."""

import json
import shutil

from diffusers import AutoencoderKL, UNet2DConditionModel
import numpy as np
import pytest
from safetensors.torch import load_file, save_file
from tiny_models import make_unet, save_checkpoint
import torch

from drift_ros import Tracker
from drift_ros.diffusion.checkpoint import load_checkpoint
from drift_ros.diffusion.features import DiffusionFeatures
from drift_ros.engine.config import TrackerConfig
from drift_ros.engine.errors import CheckpointError
from drift_ros.refinement.sam_weights import load_sam, save_untrained

WEIGHTS = {
    'unet': 'diffusion_pytorch_model.safetensors',
    'vae': 'diffusion_pytorch_model.safetensors',
    'text_encoder': 'model.safetensors',
}


@pytest.fixture(scope='module')
def sound(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp('sound') / 'model', 'sd1')


@pytest.fixture
def folder(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / 'model')


def change(folder, part, names, value):
    """Overwrite the weights of a part whose names hold a text."""
    path = folder / part / WEIGHTS[part]
    state = load_file(path)
    hit = [name for name in state if names in name]
    assert hit
    for name in hit:
        state[name] = torch.full_like(state[name], value)
    save_file(state, path, metadata={'format': 'pt'})
    return hit[0]


def another_unet(folder, **changes):
    """Put a U-Net of another configuration into a folder."""
    config = {**make_unet('sd1').config, **changes}
    config.pop('_use_default_values')  # of these diffusers would take no others
    UNet2DConditionModel.from_config(config).save_pretrained(folder / 'unet')


def refused(folder, **config):
    """Give the reason for which a tracker cannot be made of a folder."""
    config = TrackerConfig.of({'features.resolution': 64, **config})
    with pytest.raises(CheckpointError) as caught:
        Tracker(folder, config, device='cpu')
    return str(caught.value)


@pytest.mark.parametrize('family', ['sd1', 'sd2', 'sdxl'])
def test_sound_checkpoints_pass(family, tmp_path):
    config = TrackerConfig.of({'features.resolution': 64})
    assert Tracker(save_checkpoint(tmp_path / 'it', family), config, device='cpu') is not None


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize(
    ('part', 'weights', 'words'),
    [
        ('unet', 'conv_in.weight', 'the U-Net'),
        ('unet', 'time_embedding', 'the U-Net'),
        ('unet', 'attn1.to_q', 'the U-Net'),
        ('vae', 'encoder.conv_in', 'the autoencoder'),
        ('vae', 'quant_conv', 'the autoencoder'),
    ],
)
def test_weights_that_are_not_numbers_are_named(folder, part, weights, words, value):
    change(folder, part, weights, value)
    said = refused(folder)
    assert f'{words} of {folder} has weights that are not finite numbers' in said
    assert weights.split('.')[0] in said and 'get the folder again' in said


def test_one_weight_that_is_not_a_number_is_enough(folder):
    path = folder / 'unet' / WEIGHTS['unet']
    state = load_file(path)
    state['conv_in.weight'].reshape(-1)[7] = float('nan')
    save_file(state, path, metadata={'format': 'pt'})
    assert '(conv_in.weight)' in refused(folder)


def test_a_text_encoder_that_is_not_a_number(folder):
    change(folder, 'text_encoder', 'final_layer_norm', float('nan'))
    assert 'the text encoder' in refused(folder)


def test_a_network_that_sees_nothing(folder):
    change(folder, 'unet', '', 0.0)
    assert 'sees no difference' in refused(folder)


@pytest.mark.parametrize(
    ('channels', 'words'),
    [(9, 'an inpainting model'), (8, 'InstructPix2Pix'), (5, 'depth-to-image'), (3, 'takes 3')],
)
def test_networks_that_want_more_than_latents(folder, channels, words):
    another_unet(folder, in_channels=channels)
    said = refused(folder)
    assert f'takes {channels} channels, its autoencoder gives 4' in said and words in said


def test_parts_that_do_not_belong_together(folder):
    another_unet(folder, cross_attention_dim=48)
    # the prompt is only read behind the first self-attention
    said = refused(folder, **{'features.layers': ('up_blocks',)})
    assert 'a small picture cannot be taken through it' in said and 'belong together' in said


def test_a_network_that_wants_more_than_a_prompt(folder):
    another_unet(folder, num_class_embeds=10)
    assert 'cannot be taken through it' in refused(folder)


@pytest.mark.parametrize('noise', ['inversion', 'random'])
def test_all_of_the_way_is_looked_at(folder, noise):
    change(folder, 'unet', 'conv_out', float('nan'))  # read by inversion alone
    options = {'features.noise': noise}
    if noise == 'inversion':
        assert '(conv_out' in refused(folder, **options)
    else:
        config = TrackerConfig.of({'features.resolution': 64, **options})
        Tracker(folder, config, device='cpu')


def overflowing(folder, force_upcast):
    """Make the autoencoder's values too large for half precision, as those of SDXL's are."""
    path = folder / 'vae' / WEIGHTS['vae']
    state = load_file(path)
    state['encoder.conv_in.weight'] *= 3e4 / state['encoder.conv_in.weight'].abs().max()
    save_file(state, path, metadata={'format': 'pt'})
    config = json.loads((folder / 'vae' / 'config.json').read_text())
    if force_upcast is None:
        config.pop('force_upcast')
    else:
        config['force_upcast'] = force_upcast
    (folder / 'vae' / 'config.json').write_text(json.dumps(config))


def test_force_upcast_is_respected_in_half_precision(folder):
    overflowing(folder, True)
    half = load_checkpoint(folder, device='cpu', dtype=torch.float16)
    assert half.dtype == torch.float16
    assert next(half.vae.parameters()).dtype == torch.float32
    picture = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
    seen = DiffusionFeatures(half, resolution=64).encode(picture)
    whole = load_checkpoint(folder, device='cpu')
    expected = DiffusionFeatures(whole, resolution=64).encode(picture)
    assert seen.dtype == torch.float16 and seen.isfinite().all()
    assert torch.allclose(seen.float(), expected, rtol=2e-3, atol=2e-3)
    Tracker(half, TrackerConfig.of({'features.resolution': 64}), device='cpu')


@pytest.mark.parametrize('force_upcast', [False, None])
def test_an_overflow_in_half_precision_is_told(folder, force_upcast):
    overflowing(folder, force_upcast)
    half = load_checkpoint(folder, device='cpu', dtype=torch.float16)
    assert next(half.vae.parameters()).dtype == torch.float16
    said = refused(half)
    assert 'the autoencoder' in said and 'in float16: it overflows' in said
    assert 'force_upcast' in said
    Tracker(folder, TrackerConfig.of({'features.resolution': 64}), device='cpu')


def test_an_autoencoder_whose_config_is_none(folder):
    config = json.loads((folder / 'vae' / 'config.json').read_text())
    assert config['force_upcast'] and isinstance(
        load_checkpoint(folder, device='cpu').vae, AutoencoderKL
    )
    (folder / 'vae' / 'config.json').write_text('[1]')
    with pytest.raises(CheckpointError, match='vae'):
        load_checkpoint(folder, device='cpu')


def test_segment_anything_with_weights_that_are_not_numbers(tmp_path):
    save_untrained(tmp_path / 'sam')
    assert load_sam(tmp_path / 'sam', 'cpu') is not None
    path = tmp_path / 'sam' / 'model.safetensors'
    state = load_file(path)
    name = sorted(state)[5]
    state[name].reshape(-1)[0] = float('nan')
    save_file(state, path)
    with pytest.raises(CheckpointError, match='not finite numbers') as caught:
        load_sam(tmp_path / 'sam', 'cpu')
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ('part', 'names'),
    [
        ('unet', 'norm'),
        ('unet', 'conv_in'),
        ('unet', 'conv_out'),
        ('unet', 'up_blocks.2.attentions'),
        ('vae', 'encoder.conv_in'),
        ('text_encoder', 'q_proj'),
    ],
)
def test_weights_that_are_missing_are_never_made_up(folder, part, names):
    """The libraries fill them with what is in memory, and say so in the log only."""
    path = folder / part / WEIGHTS[part]
    state = load_file(path)
    left = {name: value for name, value in state.items() if names not in name}
    assert len(left) < len(state)
    save_file(left, path, metadata={'format': 'pt'})
    text = refused(folder)
    assert f'lack {len(state) - len(left)} of those' in text and names in text and part in text
