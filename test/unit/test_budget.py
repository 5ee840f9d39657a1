# SPDX-License-Identifier: Apache-2.0
"""What a checkpoint will need is told before it is read, and what would not fit is refused."""

import numpy as np
import pytest
from tiny_models import FAMILIES, save_checkpoint
import torch

from drift_ros import CheckpointError, Tracker, TrackerConfig
from drift_ros.diffusion import budget
from drift_ros.diffusion.budget import check_room, layout_of, plan, remembered
from drift_ros.diffusion.checkpoint import load_checkpoint
from drift_ros.diffusion.features import DiffusionFeatures
from drift_ros.experiments.full_size import LAYOUTS, write_random

SMALL = TrackerConfig.of({'features.resolution': 64})


@pytest.fixture(scope='module', params=FAMILIES)
def folder(request, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp('model') / request.param, request.param)


def profiled(call):
    """Bytes that a call takes at most, from the allocations PyTorch's profiler records."""
    with torch.profiler.profile(profile_memory=True, record_shapes=False) as profile:
        call()
    now = most = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == '[memory]' and event.device_type() == torch.profiler.DeviceType.CPU:
            now += event.nbytes()
            most = max(most, now)
    return most


def test_the_estimate_is_what_is_taken(folder):
    """Weights and remembered frames to the byte, a pass within a tenth, layers as they are."""
    checkpoint = load_checkpoint(folder, device='cpu')
    needed = plan(layout_of(folder), SMALL, half=False, size=(256, 256))
    assert needed.unet + needed.vae == checkpoint.nbytes
    features = DiffusionFeatures(checkpoint, resolution=256, precision='float32')
    large = TrackerConfig.of({'features.resolution': 256, 'states.confidence': 0.0})
    needed = plan(layout_of(folder), large, half=False, size=(256, 256))
    frame = np.random.default_rng(0).integers(0, 256, (256, 256, 3), np.uint8)
    features.extract(frame)
    assert profiled(lambda: features.extract(frame)) == pytest.approx(needed.activations, rel=0.1)
    (layer,) = features.extract(frame).layers
    (told,) = needed.layers
    assert (told.heads, told.rows, told.columns, told.size) == tuple(layer.query.shape)
    assert told.stride * told.rows == 256 and told.name == features.layers[0]
    tracker = Tracker(config=large, features=features)
    mask = np.zeros((256, 256), np.uint8)
    mask[64:192, 64:192] = 1
    tracker.seed(frame, mask)
    labels = 4 * 2 * layer.query[0, ..., 0].numel()
    assert tracker.memory_bytes == needed.reference + labels


def test_half_precision_and_what_is_asked_for(folder):
    """Half as much in float16; more layers, samples and steps of inversion cost more."""
    layout = layout_of(folder)
    layout['vae']['force_upcast'] = False
    whole, half = (plan(layout, SMALL, half=value) for value in (False, True))
    assert (whole.unet, whole.vae) == (2 * half.unet, 2 * half.vae)
    assert whole.reference == half.reference

    def changed(**options):
        flat = {name.replace('__', '.'): value for name, value in options.items()}
        return plan(layout, TrackerConfig.of({**SMALL.flat(), **flat}), half=False)

    every = changed(features__layers=('down_blocks', 'mid_block', 'up_blocks'))
    assert len(every.layers) > 1 and every.reference > whole.reference
    assert changed(features__noise='inversion').operations > whole.operations
    sampled = changed(features__noise='random', experimental__noise_samples=16)
    assert sampled.activations >= whole.activations and sampled.operations > whole.operations


def test_an_autoencoder_that_must_not_be_half_is_not(folder):
    layout = layout_of(folder)
    layout['vae']['force_upcast'] = True
    wide = plan(layout, SMALL, half=True)
    assert wide.vae == plan(layout, SMALL, half=False).vae


@pytest.mark.parametrize(
    ('name', 'unet', 'heads'),
    [
        ('sd15', 859_520_964, {8}),
        ('sd21', 865_910_724, {5, 10, 20}),
        ('sdxl', 2_567_463_684, {10, 20}),
    ],
)
def test_published_layouts(name, unet, heads):
    """They have the weights that are published; nothing of their size is made."""
    everything = {'features.layers': ('down_blocks', 'mid_block', 'up_blocks')}
    needed = plan(LAYOUTS[name], TrackerConfig.of(everything), half=True)
    assert needed.unet == 2 * unet
    assert {layer.heads for layer in needed.layers} == heads


@pytest.fixture
def tight(monkeypatch):
    """Every model counts as large, and so many bytes are free."""
    monkeypatch.setattr(budget, '_SMALL', 0)

    def set_free(count):
        monkeypatch.setattr(budget, 'free_memory', lambda device: count)

    return set_free


def test_what_does_not_fit_is_refused_before_it_is_read(folder, tight, monkeypatch):
    """With what is needed, what there is, and what would fit."""
    options = TrackerConfig.of({'features.resolution': 512})
    layout = layout_of(folder)
    needed = plan(layout, options, half=False).peak(remembered(options))
    fits = TrackerConfig.of({'features.resolution': 256})
    monkeypatch.setattr('drift_ros.api.load_checkpoint', None)  # it must not be called
    tight(plan(layout, fits, half=False).peak(remembered(fits)))
    with pytest.raises(CheckpointError, match=r'needs .* GB on cpu .* are free: .* 256 would fit'):
        Tracker(folder, options, device='cpu')
    tight(1000)
    with pytest.raises(CheckpointError, match='no working size would fit'):
        check_room(folder, options, 'cpu')
    tight(needed)
    check_room(folder, options, 'cpu')


def test_memory_that_is_free():
    import psutil

    assert 0 < budget.free_memory(torch.device('cpu')) <= psutil.virtual_memory().total


@pytest.mark.parametrize(('shard', 'variant'), [('10GB', None), ('10GB', 'fp16'), ('40KB', None)])
def test_ways_of_storing_weights(tmp_path, shard, variant):
    """Whole files, files of a variant alone, and weights in several files are the same model."""
    tiny = {
        'unet': {
            'sample_size': 16,
            'block_out_channels': [16, 32],
            'layers_per_block': 1,
            'norm_num_groups': 8,
            'attention_head_dim': 4,
            'cross_attention_dim': 32,
            'down_block_types': ['CrossAttnDownBlock2D', 'DownBlock2D'],
            'up_block_types': ['UpBlock2D', 'CrossAttnUpBlock2D'],
        },
        'vae': {
            'block_out_channels': [8, 8],
            'down_block_types': ['DownEncoderBlock2D'] * 2,
            'up_block_types': ['UpDecoderBlock2D'] * 2,
            'norm_num_groups': 4,
            'latent_channels': 4,
        },
        'text_encoder': {
            'vocab_size': 60,
            'hidden_size': 32,
            'intermediate_size': 32,
            'num_hidden_layers': 1,
            'num_attention_heads': 2,
            'max_position_embeddings': 8,
        },
        'scheduler': {},
    }
    plain = write_random(tiny, tmp_path / 'plain', torch.float32)
    other = write_random(tiny, tmp_path / 'other', torch.float32, shard=shard, variant=variant)
    files = sorted(path.name for path in (other / 'unet').glob('*.safetensors'))
    assert (len(files) > 1) == (shard == '40KB') and ('.fp16.' in files[0]) == bool(variant)
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    ours, theirs = (
        DiffusionFeatures(load_checkpoint(path, device='cpu'), precision='float32')
        .extract(frame)
        .layers[0]
        for path in (plain, other)
    )
    torch.testing.assert_close(ours.query, theirs.query)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_narrow_weights_give_nearly_the_same(folder, dtype):
    frame = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    wide, narrow = (
        DiffusionFeatures(
            load_checkpoint(folder, device='cpu', dtype=kind), resolution=64, precision='float32'
        )
        .extract(frame)
        .layers[0]
        .query
        for kind in (torch.float32, dtype)
    )
    assert narrow.dtype == torch.float32
    assert (narrow - wide).norm() < 0.05 * wide.norm()
