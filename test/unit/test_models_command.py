# SPDX-License-Identifier: Apache-2.0
"""``drift_ros models``: hashes are checked; nothing is fetched but on demand."""

import hashlib
import json
from pathlib import Path
import urllib.request

from click.testing import CliRunner
import huggingface_hub
import pytest
from safetensors.torch import load_file, save_file
from tiny_models import FAMILIES, save_checkpoint
import torch

from drift_ros import CheckpointError
from drift_ros.commands import known_models as module
from drift_ros.commands.main import main
from drift_ros.refinement.sam_weights import load_sam

MADE_UP = b'made-up weights' * 1000
DIGEST = hashlib.sha256(MADE_UP).hexdigest()
KNOWN = (
    module.KnownModel(
        name='made_up',
        purpose='a test',
        licence='Apache-2.0',
        megabytes={'full': 1},
        url='file:///nowhere',
        hashes={'made_up.pth': DIGEST},
    ),
    module.KnownModel(
        name='folder',
        purpose='a test',
        licence='Apache-2.0',
        megabytes={'full': 1},
        hub='owner/name',
        revision='1234',
        hashes={'unet/diffusion_pytorch_model.safetensors': hashlib.sha256(b'unet').hexdigest()},
    ),
)


def test_a_file_is_recognised_by_its_hash(tmp_path):
    path = tmp_path / 'any name'
    path.write_bytes(MADE_UP)
    assert module.check(path, KNOWN).name == 'made_up'
    path.write_bytes(MADE_UP[:-1])
    with pytest.raises(CheckpointError, match='no checkpoint known here'):
        module.check(path, KNOWN)
    short = tmp_path / 'made_up.pth'
    short.write_bytes(MADE_UP[:-1])
    with pytest.raises(CheckpointError, match='is not made_up as published.*get it again'):
        module.check(short, KNOWN)


def test_download_keeps_only_what_was_published(tmp_path):
    """The url is a local file: no network."""
    source = tmp_path / 'source.pth'
    source.write_bytes(MADE_UP)
    known = module.KnownModel(**{**vars(KNOWN[0]), 'url': source.as_uri()})
    folder = tmp_path / 'models'
    assert module.download(known, folder).read_bytes() == MADE_UP
    assert [path.name for path in folder.iterdir()] == ['made_up.pth']
    source.write_bytes(b'something else')
    (folder / 'made_up.pth').unlink()
    with pytest.raises(CheckpointError, match='nothing was kept'):
        module.download(known, folder)
    source.unlink()
    with pytest.raises(CheckpointError, match='cannot download'):
        module.download(known, folder)
    assert not list(folder.iterdir())


def test_listing_tells_what_is_here(tmp_path, monkeypatch):
    monkeypatch.setenv('DRIFT_ROS_MODELS', str(tmp_path))
    (tmp_path / 'sam_vit_b_01ec64.pth').write_bytes(b'1')

    def refuse(*args, **kwargs):
        raise AssertionError('the listing went to the network')

    monkeypatch.setattr(urllib.request, 'urlopen', refuse)
    result = CliRunner().invoke(main, ['models'])
    assert result.exit_code == 0, result.output
    for name in ('sam_vit_b', 'sam_vit_l', 'sam_vit_h', 'mobile_sam', 'stable-diffusion-2.1'):
        assert name in result.output
    assert str(tmp_path / 'sam_vit_b_01ec64.pth') in result.output
    assert result.output.count(f'not in {tmp_path}') == len(module.KNOWN) - 1
    assert 'Apache-2.0' in result.output and '375 MB' in result.output


def test_check_on_the_command_line(tmp_path):
    path = tmp_path / 'sam_vit_h_4b8939.pth'
    path.write_bytes(MADE_UP)
    result = CliRunner().invoke(main, ['models', '--check', str(path)])
    assert result.exit_code == 1 and 'is not sam_vit_h as published' in result.output


def test_an_untrained_model_is_written_and_can_be_loaded(tmp_path):
    folder = tmp_path / 'random'
    result = CliRunner().invoke(main, ['models', '--untrained', str(folder)])
    assert result.exit_code == 0, result.output
    embedded, random = (load_sam(path, 'cpu').state_dict() for path in (None, folder))
    assert {n: v.shape for n, v in random.items()} == {n: v.shape for n, v in embedded.items()}
    name = 'image_encoder.blocks.0.attn.qkv.weight'
    assert not torch.equal(random[name], embedded[name].to(random[name].dtype))


def test_a_part_of_a_folder_is_told(tmp_path):
    path = tmp_path / 'x.safetensors'
    path.write_bytes(b'unet')
    with pytest.raises(CheckpointError, match='a part of a checkpoint .folder: unet/diffusion'):
        module.check(path, KNOWN)


@pytest.fixture
def hub(monkeypatch):
    """Stand in for the hub: writes what is wanted, and remembers what was asked for."""
    asked = []

    def snapshot(name, *, revision, local_dir, allow_patterns):
        asked.append((name, revision, tuple(allow_patterns)))
        for part in ('model_index.json', 'unet/diffusion_pytorch_model.safetensors'):
            (Path(local_dir) / part).parent.mkdir(parents=True, exist_ok=True)
            (Path(local_dir) / part).write_bytes(hub.content)
        return str(local_dir)

    def hub():
        return asked

    hub.content = b'unet'
    monkeypatch.setattr(huggingface_hub, 'snapshot_download', snapshot)
    return hub


def test_a_folder_is_downloaded_and_checked(hub, tmp_path):
    """Weights of one precision, safetensors only, of the revision that is known."""
    folder = module.download(KNOWN[1], tmp_path)
    assert folder == tmp_path / 'folder'
    ((name, revision, patterns),) = hub()
    assert (name, revision) == ('owner/name', '1234')
    weights = [pattern for pattern in patterns if 'model.' in pattern]
    assert 'unet/diffusion_pytorch_model.safetensors' in weights
    assert not [pattern for pattern in weights if 'fp16' in pattern or '.bin' in pattern]
    hub.content = b'something else'
    with pytest.raises(CheckpointError, match='not what was published.*it was not kept'):
        module.download(KNOWN[1], tmp_path)
    assert not (folder / 'unet/diffusion_pytorch_model.safetensors').exists()


def test_half_precision_is_asked_for_where_it_is_published(hub, tmp_path):
    with pytest.raises(CheckpointError, match='folder is not published in half precision'):
        module.download(KNOWN[1], tmp_path, half=True)
    both = module.KnownModel(**{**vars(KNOWN[1]), 'megabytes': {'full': 2, 'half': 1}})
    module.download(both, tmp_path, half=True)
    ((_, _, patterns),) = hub()
    assert 'unet/diffusion_pytorch_model.fp16.safetensors' in patterns
    assert 'unet/diffusion_pytorch_model.safetensors' not in patterns


def test_an_unreachable_hub_is_told(monkeypatch, tmp_path):
    def fail(*_, **__):
        raise ConnectionError('no network')

    monkeypatch.setattr(huggingface_hub, 'snapshot_download', fail)
    with pytest.raises(
        CheckpointError, match='cannot download .*owner/name: no network. Run it again, which'
    ):
        module.download(KNOWN[1], tmp_path)


@pytest.mark.parametrize('family', FAMILIES)
def test_a_folder_is_checked_as_a_whole(family, tmp_path):
    """Files, layers with stride and heads, needs; then it is loaded."""
    folder = save_checkpoint(tmp_path / family, family)
    told = CliRunner().invoke(main, ['models', '--check', str(folder), '--device', 'cpu'])
    assert told.exit_code == 0, told.output
    assert 'not a file that is known here' in told.output
    heads = {'sd1': '4 heads of 4', 'sd2': '2 heads of 8', 'sdxl': '4 heads of 8'}
    assert f'down_blocks.{int(family == "sdxl")}.attentions.0: stride' in told.output
    assert heads[family] in told.output and 'free on cpu' in told.output
    assert 'seconds at least' in told.output and 'cpu convolves at' in told.output
    assert 'it loads, and a small picture goes through it' in told.output


def test_a_damaged_folder_is_refused_with_its_reason(tmp_path):
    folder = save_checkpoint(tmp_path / 'sd1', 'sd1')
    (folder / 'unet' / 'config.json').write_text('"google/foo"')
    told = CliRunner().invoke(main, ['models', '--check', str(folder)])
    assert told.exit_code == 1 and 'settings by name' in told.output


def test_damage_behind_the_layer_that_is_read_is_found(tmp_path):
    """A pass ends before it; a step of inversion does not."""
    folder = save_checkpoint(tmp_path / 'sd1', 'sd1')
    path = folder / 'unet' / 'diffusion_pytorch_model.safetensors'
    state = load_file(path)
    state['conv_out.weight'].fill_(float('nan'))
    save_file(state, path, metadata={'format': 'pt'})
    told = CliRunner().invoke(main, ['models', '--check', str(folder), '--device', 'cpu'])
    assert told.exit_code == 1 and 'not finite numbers (conv_out.weight)' in told.output


@pytest.mark.parametrize(
    ('part', 'name', 'value'),
    [
        ('unet', 'block_out_channels', [-16, 32, 32]),
        ('unet', 'attention_head_dim', 'four'),
        ('vae', 'norm_num_groups', 3),
        ('text_encoder', 'num_attention_heads', 3),
        ('text_encoder', 'max_position_embeddings', 'x'),
        ('scheduler', 'beta_schedule', 'q'),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, part, name, value):
    folder = save_checkpoint(tmp_path / 'sd1', 'sd1')
    file = 'scheduler_config.json' if part == 'scheduler' else 'config.json'
    settings = json.loads((folder / part / file).read_text())
    (folder / part / file).write_text(json.dumps({**settings, name: value}))
    told = CliRunner().invoke(main, ['models', '--check', str(folder), '--device', 'cpu'])
    assert told.exit_code == 1 and isinstance(told.exception, SystemExit), told.exception
    assert 'config files are damaged, or of several models' in told.output


def test_what_cannot_be_is_refused_first(tmp_path):
    folder = save_checkpoint(tmp_path / 'sd1', 'sd1')
    told = CliRunner().invoke(main, ['models', '--check', str(folder), '--device', 'banana'])
    assert told.exit_code == 1 and 'hashing' not in told.output
    assert CliRunner().invoke(main, ['models', '--half']).exit_code == 2
    (tmp_path / 'file').write_text('')
    with pytest.raises(CheckpointError, match='cannot be written to .*another --folder'):
        module.download(KNOWN[0], tmp_path / 'file' / 'x')


def test_a_single_file_is_told_how_to_become_a_folder(tmp_path):
    (tmp_path / 'v1.ckpt').write_bytes(b'some weights')
    with pytest.raises(CheckpointError, match='no checkpoint known here.*from_single_file'):
        module.check(tmp_path / 'v1.ckpt', KNOWN)


def test_what_is_known_is_whole():
    """Hashes have all their digits, files and presets their names."""
    presets = Path(__file__).resolve().parents[2] / 'config'
    for known in module.KNOWN:
        assert bool(known.url) != bool(known.hub) and known.megabytes['full']
        assert known.hub or len(known.hashes) == 1
        assert all(len(digest) == 64 for digest in known.hashes.values())
        assert all(path.endswith(('.safetensors', '.pth', '.pt')) for path in known.hashes)
        assert not known.preset or (presets / f'{known.preset}.yaml').is_file()
