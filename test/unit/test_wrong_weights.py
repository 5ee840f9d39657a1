# SPDX-License-Identifier: Apache-2.0
"""Checkpoints of every wrong kind: each is refused with its own cause and remedy, none fetched."""

import json
import shutil
import socket
import struct

from huggingface_hub import constants
import pytest
from safetensors.torch import load_file, save_file
from tiny_models import save_checkpoint
import torch

from drift_ros.diffusion.checkpoint import load_checkpoint
from drift_ros.engine.errors import CheckpointError
from drift_ros.refinement.sam_weights import load_sam, save_untrained
from drift_ros.weights import tensors, whose

POINTER = b'version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 123456\n'
PAGE = b'<!DOCTYPE html>\n<html><body>Login</body></html>'
SETTINGS = [
    'model_index.json',
    'scheduler/scheduler_config.json',
    'text_encoder/config.json',
    'tokenizer/tokenizer.json',
    'tokenizer/tokenizer_config.json',
    'tokenizer/vocab.json',
    'unet/config.json',
    'vae/config.json',
]
WEIGHTS = ['text_encoder/model.safetensors', 'unet/diffusion_pytorch_model.safetensors']
WRONG = {
    'name': (b'"google/foo"', 'holds "google/foo".*never looked up'),
    'address': (b'"https://example.org/x.json"', 'holds "https://example.org.*never looked up'),
    'list': (b'[]', r'holds \[\]'),
    'null': (b'null', 'holds null'),
    'number': (b'3', 'holds 3'),
    'empty': (b'', 'is empty'),
    'cut': (b'{"a": [1, 2', 'not JSON, or cut short'),
    'deep': (b'[' * 100_000, 'not JSON, or cut short'),
    'binary': (bytes(range(128, 255)), 'no text'),
    'pointer': (POINTER, 'git lfs pull'),
    'page': (PAGE, 'web page'),
}


@pytest.fixture(scope='module')
def whole(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp('whole') / 'tiny', 'sd1')


@pytest.fixture
def folder(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / 'copy')


@pytest.fixture(autouse=True)
def connections(monkeypatch):
    """No test may as much as try to reach the network, whatever becomes of the error."""
    tried = []

    def refuse(*arguments, **_):
        tried.append(arguments)
        raise OSError('sockets are forbidden here')

    monkeypatch.setattr(socket.socket, 'connect', refuse)
    monkeypatch.setattr(socket.socket, 'connect_ex', refuse)
    monkeypatch.setattr(socket, 'getaddrinfo', refuse)
    monkeypatch.setattr(socket, 'create_connection', refuse)
    yield tried
    assert not tried, f'the network was tried: {tried[:3]}'


def refused(call, *arguments, words):
    """Check that a call is refused in words; whatever else is raised fails."""
    with pytest.raises(CheckpointError, match=f'(?s){words}') as caught:
        call(*arguments, device='cpu')
    assert len(str(caught.value)) < 900
    return str(caught.value)


@pytest.mark.parametrize('kind', WRONG)
@pytest.mark.parametrize('file', SETTINGS)
def test_settings_that_are_none(folder, file, kind):
    content, words = WRONG[kind]
    (folder / file).write_bytes(content)
    assert file.rpartition('/')[2] in refused(load_checkpoint, folder, words=words)
    assert not constants.HF_HUB_OFFLINE, 'only while loading'


@pytest.mark.parametrize('file', SETTINGS)
@pytest.mark.parametrize(
    'content', [{}, {'a': {'b': 1}}, {'_name_or_path': 'google/foo', 'auto_map': {'A': 'g/f--x'}}]
)
def test_settings_of_something_else(folder, file, content):
    """They load, where everything has a default, or are refused by their place."""
    (folder / file).write_text(json.dumps(content))
    try:
        load_checkpoint(folder, device='cpu')
    except CheckpointError as error:
        assert str(folder) in str(error)


@pytest.mark.parametrize(
    ('file', 'changes'),
    [
        ('scheduler/scheduler_config.json', {'num_train_timesteps': 'many'}),
        ('scheduler/scheduler_config.json', {'beta_schedule': 'google/foo'}),
        ('unet/config.json', {'block_out_channels': 'google/foo'}),
        ('unet/config.json', {'down_block_types': ['NoSuchBlock']}),
        ('text_encoder/config.json', {'hidden_act': 'google/foo'}),
        ('text_encoder/config.json', {'hidden_size': -1}),
        ('tokenizer/tokenizer_config.json', {'model_max_length': 'many'}),
        ('vae/config.json', {'latent_channels': None}),
    ],
)
def test_single_settings_that_do_not_fit(folder, file, changes):
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    refused(load_checkpoint, folder, words=file.partition('/')[0])


@pytest.mark.parametrize(
    'content', [None, b'', b'x' * 40, POINTER, PAGE], ids='none empty text pointer page'.split()
)
@pytest.mark.parametrize('file', ['merges.txt', 'vocab.json'])
def test_tokenizers_in_their_old_files(folder, file, content):
    """SD 1.5 and 2.1 come without tokenizer.json."""
    (folder / 'tokenizer' / 'tokenizer.json').unlink()
    load_checkpoint(folder, device='cpu')
    path = folder / 'tokenizer' / file
    path.unlink() if content is None else path.write_bytes(content)
    try:
        load_checkpoint(folder, device='cpu')
    except CheckpointError as error:
        assert 'tokenizer' in str(error)
    else:
        assert file == 'merges.txt' and content == b'x' * 40


@pytest.mark.parametrize('file', WEIGHTS)
@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'', 'is empty'),
        (POINTER, 'git lfs pull'),
        (PAGE, 'web page'),
        (b'PK\x03\x04' + bytes(100), 'pickle'),
        (bytes(100), 'no safetensors file'),
        (struct.pack('<Q', 10) + b'{' + bytes(40), 'header is damaged'),
        (struct.pack('<Q', 2) + b'[]' + bytes(40), 'no safetensors'),
        (struct.pack('<Q', 9) + b'{"a": [0]' + bytes(40), 'header is damaged'),
        (struct.pack('<Q', 999) + b'{"a"', 'cut short'),
    ],
)
def test_weights_that_are_none(folder, file, content, words):
    (folder / file).write_bytes(content)
    assert file in refused(load_checkpoint, folder, words=words)


@pytest.mark.parametrize('share', [0.001, 0.3, 0.999])
def test_weights_that_are_cut_short_say_how_long_they_should_be(folder, share):
    path = folder / WEIGHTS[1]
    data = path.read_bytes()
    path.write_bytes(data[: int(share * len(data))])
    refused(load_checkpoint, folder, words=r'cut short: it has \d+ of \d+ bytes')


def test_weights_in_parts_of_which_one_is_missing(folder):
    path = folder / 'unet' / 'diffusion_pytorch_model.safetensors.index.json'
    path.write_text(json.dumps({'weight_map': {'a': 'part-1.safetensors'}}))
    refused(load_checkpoint, folder, words='lacks part-1.safetensors')
    path.write_text('{}')
    refused(load_checkpoint, folder, words='no weight_map')


def test_a_single_file_is_told_by_what_is_in_it(whole, tmp_path):
    single = tmp_path / 'v1-5-pruned.safetensors'
    cases = {
        'model.diffusion_model.input_blocks.0.0.weight': 'single file.*from_single_file',
        'double_blocks.0.a': 'Flux.*from_single_file',
        'image_encoder.pos_embed': 'Segment Anything.*refinement.sam_checkpoint',
        'image_encoder.trunk.pos_embed': 'SAM 2.*refinement.sam_checkpoint',
        'down_blocks.0.weight': 'U-Net.*whole diffusers folder',
        'unet.lora_A.weight': 'LoRA',
    }
    for name, words in cases.items():
        save_file({name: torch.zeros(1)}, single)
        refused(load_checkpoint, single, words=words)
    single.write_bytes(POINTER)
    refused(load_checkpoint, single, words='git lfs pull')
    pickled = tmp_path / 'model.ckpt'
    pickled.write_bytes(b'PK')
    refused(load_checkpoint, pickled, words='is a file.*from_single_file')
    refused(load_checkpoint, whole / 'model_index.json', words='give the folder')
    refused(load_checkpoint, 'https://example.org/model.safetensors', words='is an address')


def test_folders_of_another_kind_say_which_and_what_to_give(whole, folder, tmp_path):
    refused(load_checkpoint, whole / 'unet', words=f'a part of one; give {whole}')
    refused(load_checkpoint, whole.parent, words=f'give {whole}')
    cached = tmp_path / 'models--o--n'
    shutil.copytree(whole, cached / 'snapshots' / 'abc')
    refused(load_checkpoint, cached, words='give .*snapshots/abc')
    save_untrained(tmp_path / 'sam')
    refused(load_checkpoint, tmp_path / 'sam', words='refinement.sam_checkpoint')
    index = {'_class_name': 'FluxPipeline', 'transformer': ['diffusers', 'FluxTransformer2DModel']}
    (folder / 'model_index.json').write_text(json.dumps(index))
    refused(load_checkpoint, folder, words='FluxPipeline.*no U-Net')
    index = json.loads((whole / 'model_index.json').read_text())
    index['text_encoder'] = ['transformers', 'T5EncoderModel']
    (folder / 'model_index.json').write_text(json.dumps(index))
    refused(load_checkpoint, folder, words='T5EncoderModel.*CLIPTextModel')


@pytest.mark.parametrize(
    ('names', 'family'),
    [
        (['image_encoder.trunk.pos_embed', 'mask_decoder.a'], 'SAM 2'),
        (['image_encoder.pos_embed', 'mask_decoder.hf_token.weight'], 'HQ-SAM'),
        (['vision_encoder.pos_embed', 'mask_decoder.a'], 'of transformers'),
        (['down_blocks.0.weight'], 'U-Net'),
        (['model.diffusion_model.input_blocks.0.weight'], 'Stable Diffusion in a single file'),
    ],
)
@pytest.mark.parametrize('form', ['safetensors', 'pt', 'wrapped'])
def test_other_models_in_the_place_of_segment_anything(tmp_path, names, family, form):
    state = {name: torch.zeros(1) for name in names}
    path = tmp_path / f'weights.{"safetensors" if form == "safetensors" else "pt"}'
    if form == 'safetensors':
        save_file(state, path)
    else:
        torch.save({'model': state} if form == 'wrapped' else state, path)
    refused(load_sam, path, words=f'another model: .*{family}.*sam_vit_b_01ec64')


@pytest.mark.parametrize('name', ['sam.pth', 'sam.safetensors', 'sam/model.safetensors'])
@pytest.mark.parametrize(
    ('content', 'words'),
    [(POINTER, 'git lfs pull'), (b'', 'is empty'), (PAGE, 'web page'), (b'x' * 99, 'sam')],
)
def test_segment_anything_files_that_are_none(tmp_path, name, content, words):
    save_untrained(tmp_path / 'sam')
    (tmp_path / name).write_bytes(content)
    path = tmp_path / name
    refused(load_sam, path.parent if 'model' in name else path, words=words)


@pytest.mark.parametrize('kind', WRONG)
def test_segment_anything_settings_that_are_none(tmp_path, kind):
    content, words = WRONG[kind]
    save_untrained(tmp_path)
    (tmp_path / 'config.json').write_bytes(content)
    refused(load_sam, tmp_path, words=words)


@pytest.mark.parametrize(
    'model', ['google/foo', {}, {'image_size': 'x'}, {'image_size': 64, 'patch_size': 0}, None]
)
def test_segment_anything_settings_that_do_not_fit(tmp_path, model):
    save_untrained(tmp_path)
    (tmp_path / 'config.json').write_text(json.dumps({'model': model}))
    refused(load_sam, tmp_path, words='config.json')


def test_headers_are_read_as_the_library_reads_them(whole):
    path = whole / WEIGHTS[1]
    expected = {name: tuple(value.shape) for name, value in load_file(path).items()}
    assert tensors(path) == expected
    assert whose(expected) == 'the U-Net of a diffusers folder'
