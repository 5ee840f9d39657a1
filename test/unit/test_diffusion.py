# SPDX-License-Identifier: Apache-2.0
"""Checkpoints load, and captured queries and keys are the network's own."""

import json
import shutil

from diffusers.models.attention_processor import AttnProcessor
import numpy as np
import pytest
from scenes import configure, overlap, square_mask
from tiny_models import FAMILIES, save_checkpoint
import torch

from drift_ros import Tracker
from drift_ros.api import look_ahead
from drift_ros.diffusion.attention import self_attention_layers
from drift_ros.diffusion.checkpoint import load_checkpoint
from drift_ros.diffusion.colour_patches import colour_patches
from drift_ros.diffusion.features import DiffusionFeatures, with_colour
from drift_ros.engine.errors import CheckpointError
from drift_ros.engine.frame_features import FrameFeatures, LayerFeatures
from drift_ros.engine.kernel_fast import propagate


@pytest.fixture(scope='module', params=sorted(FAMILIES))
def folder(request, tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope='module')
def sd1(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp('sd1'), 'sd1')


@pytest.fixture
def broken(sd1, tmp_path):
    """Copy of a good folder, for tests to break."""
    return shutil.copytree(sd1, tmp_path / 'broken')


def frame(height=96, width=128):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)


def picture(number):
    return np.random.default_rng(number).integers(0, 256, (96, 128, 3), np.uint8)


class RecordProbabilities(AttnProcessor):
    """diffusers' plain processor; keeps the probabilities the network itself computes."""

    def __call__(self, attn, hidden_states, *args, **kwargs):
        original = attn.get_attention_scores

        def spy(query, key, mask=None):
            self.probabilities = original(query, key, mask)
            return self.probabilities

        attn.get_attention_scores = spy
        try:
            return super().__call__(attn, hidden_states, *args, **kwargs)
        finally:
            del attn.get_attention_scores


def test_kernel_is_the_networks_own_self_attention(folder):
    """With the reference equal to the current frame, for every layer and head (DESIGN 3.1)."""
    checkpoint = load_checkpoint(folder, device='cpu')
    names = self_attention_layers(checkpoint.unet)
    extractor = DiffusionFeatures(checkpoint, layers=names, timestep=30, resolution=96)
    features = extractor.extract(frame())
    assert extractor.layers == tuple(names)

    recorders = {}
    for name in names:
        recorders[name] = checkpoint.unet.get_submodule(name).processor = RecordProbabilities()
    with torch.inference_mode():
        checkpoint.unet(
            extractor.encode(extractor.resize(frame()))
            * float(checkpoint.scheduler.alphas_cumprod[30]) ** 0.5,
            30,
            checkpoint.prompt,
            added_cond_kwargs=checkpoint.added_conditions,
        )
    for name, layer in zip(names, features.layers, strict=True):
        heads, height, width, _ = layer.query.shape
        tokens = height * width
        # With the identity as labels, propagation returns the affinity itself.
        identity = torch.eye(tokens).view(1, height, width, tokens)
        for head in range(heads):
            kernel = propagate(
                layer.query[head : head + 1], layer.key[None, head : head + 1], identity
            ).view(tokens, tokens)
            torch.testing.assert_close(
                kernel, recorders[name].probabilities[head], atol=1e-5, rtol=0
            )


def test_tied_projections_are_computed_and_kept_once(sd1):
    checkpoint = load_checkpoint(sd1, device='cpu')
    extractor = DiffusionFeatures(checkpoint, resolution=64)
    (layer,) = extractor.extract(frame()).layers
    assert not torch.equal(layer.query, layer.key)
    attention = checkpoint.unet.get_submodule(extractor.layers[0])
    attention.to_k.load_state_dict(attention.to_q.state_dict())
    (tied,) = DiffusionFeatures(checkpoint, resolution=64).extract(frame()).layers
    assert tied.key is tied.query and torch.equal(tied.query, layer.query)


def test_samples_are_averaged(sd1):
    checkpoint = load_checkpoint(sd1, device='cpu')
    options = {'resolution': 64, 'noise': 'random'}
    found = []
    for samples in (1, 2):
        extractor = DiffusionFeatures(checkpoint, noise_samples=samples, **options)
        found.append(extractor.extract(frame()).layers[0].query)
    assert found[0].shape == found[1].shape
    assert not torch.equal(*found)


def test_the_pass_stops_after_the_last_layer(sd1):
    checkpoint = load_checkpoint(sd1, device='cpu')
    reached = []
    for name, block in checkpoint.unet.named_modules():
        if name in ('down_blocks.1', 'mid_block', 'up_blocks.0'):
            block.register_forward_hook(lambda *_, name=name: reached.append(name))
    names = self_attention_layers(checkpoint.unet)
    DiffusionFeatures(checkpoint, layers=names[:1], resolution=64).extract(frame())
    assert reached == []
    DiffusionFeatures(checkpoint, layers=['up_blocks.1'], resolution=64).extract(frame())
    assert reached == ['down_blocks.1', 'mid_block', 'up_blocks.0']


def test_stock_processors_are_put_back(sd1):
    checkpoint = load_checkpoint(sd1, device='cpu')
    before = {name: type(p) for name, p in checkpoint.unet.attn_processors.items()}
    DiffusionFeatures(checkpoint, resolution=64).extract(frame())
    assert {name: type(p) for name, p in checkpoint.unet.attn_processors.items()} == before


def test_default_layer_is_the_first_of_the_last_up_block(folder):
    checkpoint = load_checkpoint(folder, device='cpu')
    (layer,) = DiffusionFeatures(checkpoint).layers
    blocks = [n.split('.')[1] for n in self_attention_layers(checkpoint.unet) if 'up_' in n]
    assert layer == f'up_blocks.{blocks[-1]}.attentions.0.transformer_blocks.0.attn1'


def test_layers_are_chosen_by_parts_of_names(sd1):
    checkpoint = load_checkpoint(sd1, device='cpu')
    chosen = DiffusionFeatures(checkpoint, layers=['up_blocks.2', 'mid_block']).layers
    assert [name.split('.attentions')[0] for name in chosen] == [
        'mid_block',
        'up_blocks.2',
        'up_blocks.2',
    ]
    with pytest.raises(CheckpointError, match=r"no self-attention layer 'up_blocks.9'.*mid_block"):
        DiffusionFeatures(checkpoint, layers=['up_blocks.9'])


def test_a_checkpoint_recommends_its_own_layer_and_timestep(broken):
    assert DiffusionFeatures(load_checkpoint(broken, device='cpu')).timestep == 51
    layer = 'down_blocks.1.attentions.0.transformer_blocks.0.attn1'
    notes = broken / 'drift_ros.json'
    notes.write_text(json.dumps({'attention_layer': layer, 'timestep': 7}))
    checkpoint = load_checkpoint(broken, device='cpu')
    extractor = DiffusionFeatures(checkpoint)
    assert extractor.layers == (layer,) and extractor.timestep == 7
    chosen = DiffusionFeatures(checkpoint, layers=['up_blocks.2.attentions.0'], timestep=3)
    assert chosen.layers[0].startswith('up_blocks.2') and chosen.timestep == 3
    notes.write_text('{}')
    with pytest.raises(CheckpointError, match='must name attention_layer and timestep'):
        load_checkpoint(broken, device='cpu')


def test_timestep_out_of_range(sd1):
    with pytest.raises(CheckpointError, match='timestep is 1000'):
        DiffusionFeatures(load_checkpoint(sd1, device='cpu'), timestep=1000)


@pytest.mark.parametrize('size', [(96, 128), (97, 131), (480, 854)])
def test_any_frame_size(sd1, size):
    features = DiffusionFeatures(load_checkpoint(sd1, device='cpu'), resolution=64)
    height, width = features.working_size(*size)
    assert height % 32 == width % 32 == 0
    assert features.extract(frame(*size)).grid == (height // 8, width // 8)


@pytest.mark.parametrize('size', [(480, 854), (854, 480), (480, 480), (400, 960), (97, 131)])
def test_the_shorter_side_of_ordinary_pictures_has_the_resolution(sd1, size):
    features = DiffusionFeatures(load_checkpoint(sd1, device='cpu'), resolution=240)
    want = tuple(round(length * 240 / min(size) / 32) * 32 for length in size)
    assert features.working_size(*size) == want


@pytest.mark.parametrize('size', [(32, 1024), (1024, 32), (16, 4000), (16, 65_000), (300, 1000)])
def test_long_pictures_have_no_more_tokens_than_wide_ones(sd1, size):
    features = DiffusionFeatures(load_checkpoint(sd1, device='cpu'), resolution=240)
    height, width = features.working_size(*size)
    assert 0.5 < height * width / (2.4 * 240**2) < 1.5  # sides are multiples of 32
    assert (height > width) == (size[0] > size[1])


def test_extraction_is_deterministic(sd1):
    features = DiffusionFeatures(load_checkpoint(sd1, device='cpu'), resolution=64)
    first, second = features.extract(frame()), features.extract(frame())
    assert torch.equal(first.layers[0].query, second.layers[0].query)


@pytest.mark.parametrize(
    'noise', [{}, {'noise': 'random', 'noise_samples': 2}, {'noise': 'inversion'}], ids=str
)
def test_a_batch_gives_what_single_pictures_give(folder, noise):
    checkpoint = load_checkpoint(folder, device='cpu')
    batched, single = (
        DiffusionFeatures(checkpoint, resolution=64, timestep=100, **noise) for _ in range(2)
    )
    pictures = [picture(1), frame(64, 128), picture(2)]  # one of another size
    batched.extract_ahead(pictures)
    extract_resized = batched.extract_resized
    batched.extract_resized = None  # what was found is taken, not found again
    for each in pictures[::-1]:
        ours, theirs = batched.extract(each), single.extract(each)
        np.testing.assert_array_equal(ours.image, theirs.image)
        for one, other in zip(ours.layers, theirs.layers, strict=True):
            for name in ('query', 'key'):
                found, wanted = getattr(one, name), getattr(other, name)
                torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
            assert (one.key is one.query) == (other.key is other.query)
    batched.extract_resized = extract_resized
    again = batched.extract(pictures[0])  # each is given once
    assert torch.equal(again.layers[0].query, single.extract(pictures[0]).layers[0].query)
    batched.extract_ahead(pictures[:1])
    assert not batched.conditioned(checkpoint.prompt, {})._ahead
    batched.extract_ahead([])
    assert not batched._ahead


def test_trackers_that_share_a_model_look_ahead_together(sd1, monkeypatch):
    """Steps take what was found at once; who follows nothing is left out."""
    # in bfloat16 a batch, which torch computes, and one picture, which is compiled, differ
    config = configure(resolution=64, radius=6, existence=0.0, confidence=0.0, precision='float32')
    base = Tracker(load_checkpoint(sd1, device='cpu'), config)
    trackers = [base.beside(number, 3) for number in (1, 2, 3)]
    twins = [base.beside(number, 3) for number in (1, 2)]
    pictures = [
        np.random.default_rng(n).integers(0, 256, (96, 128, 3), np.uint8) for n in range(3)
    ]
    for one, twin, shown in zip(trackers, twins, pictures):
        for each in (one, twin):
            each.seed(shown, square_mask((20, 20, 40)))
    batches = []
    look_at = DiffusionFeatures._look_at
    monkeypatch.setattr(
        DiffusionFeatures,
        '_look_at',
        lambda self, pixels: batches.append(len(pixels)) or look_at(self, pixels),
    )
    look_ahead(list(zip(trackers, pictures)))
    assert batches == [2]
    results = [one.step(shown) for one, shown in zip(trackers, pictures)]
    assert batches == [2]
    for result, twin, shown in zip(results, twins, pictures):
        expected = twin.step(shown)
        assert overlap(result.labels > 0, expected.labels > 0) > 0.99
        assert result.objects[0].existence == pytest.approx(
            expected.objects[0].existence, abs=1e-3
        )
    batches.clear()
    look_ahead([(trackers[0], pictures[0])])  # nothing to share
    assert not batches


@pytest.mark.parametrize('component', ['unet', 'vae', 'scheduler', 'tokenizer', 'text_encoder'])
def test_a_missing_component_is_named(broken, component):
    shutil.rmtree(broken / component)
    with pytest.raises(CheckpointError, match=rf'lacks {component};.*copy or download'):
        load_checkpoint(broken, device='cpu')


def test_no_model_index(broken):
    (broken / 'model_index.json').unlink()
    with pytest.raises(CheckpointError, match='no model_index.json'):
        load_checkpoint(broken, device='cpu')


def test_pickled_weights_are_never_loaded(broken):
    weights = broken / 'unet' / 'diffusion_pytorch_model.safetensors'
    weights.rename(weights.with_suffix('.bin'))
    with pytest.raises(CheckpointError, match='no safetensors weights'):
        load_checkpoint(broken, device='cpu')


def test_truncated_weights(broken):
    weights = broken / 'unet' / 'diffusion_pytorch_model.safetensors'
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match='cut short: it has 1000 of'):
        load_checkpoint(broken, device='cpu')


def test_unknown_autoencoder(broken):
    index = json.loads((broken / 'model_index.json').read_text())
    index['vae'] = ['diffusers', 'VQModel']
    (broken / 'model_index.json').write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match='VQModel is not supported'):
        load_checkpoint(broken, device='cpu')


def test_half_precision_variant(broken):
    for component in ('unet', 'vae'):
        weights = broken / component / 'diffusion_pytorch_model.safetensors'
        weights.rename(weights.with_name('diffusion_pytorch_model.fp16.safetensors'))
    assert load_checkpoint(broken, device='cpu').dtype == torch.float32


def test_missing_folder_and_uncached_hub_id(tmp_path, monkeypatch):
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    with pytest.raises(CheckpointError, match='does not exist'):
        load_checkpoint(tmp_path / 'nowhere', device='cpu')
    with pytest.raises(CheckpointError, match='neither a local folder nor in the local hub cache'):
        load_checkpoint('nobody/nothing', device='cpu')


def test_unknown_device(sd1):
    with pytest.raises(CheckpointError, match='is unknown'):
        load_checkpoint(sd1, device='toaster')


@pytest.mark.parametrize('tied', [True, False])
def test_colour_joins_the_logits(tied):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (24, 40, 3), dtype=np.uint8)
    query = torch.randn(2, 6, 10, 8)
    layer = LayerFeatures(query, query if tied else torch.randn(2, 6, 10, 8))
    (joint,) = with_colour(FrameFeatures((layer,), image), 0.25).layers

    def logits(features):
        flat_query, flat_key = features.query.flatten(1, 2), features.key.flatten(1, 2)
        return flat_query @ flat_key.transpose(1, 2) / features.query.shape[-1] ** 0.5

    patches = torch.from_numpy(colour_patches(image, (6, 10), 3)).flatten(0, 1)
    wanted = 0.75 * logits(layer) + 0.25 * (patches @ patches.T) / 0.009
    torch.testing.assert_close(logits(joint), wanted, rtol=1e-4, atol=1e-4)
    assert (joint.key is joint.query) is tied


def test_colour_is_left_out_unless_asked_for(sd1):
    checkpoint = load_checkpoint(sd1, device='cpu')
    layers = [
        DiffusionFeatures(checkpoint, resolution=64, **options).extract(frame()).layers[0]
        for options in ({}, {'colour_share': 0.5})
    ]
    attention, joint = (layer.query for layer in layers)
    width = attention.shape[-1]
    assert joint.shape[-1] == width + 27
    # the attention's own part is only scaled
    ratio = joint[..., :width] / attention
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-3, atol=1e-3)
