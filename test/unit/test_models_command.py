# SPDX-License-Identifier: Apache-2.0
"""``drift_ros models``: hashes are checked; nothing is fetched but on demand."""

import hashlib
import urllib.request

from click.testing import CliRunner
import pytest
import torch

from drift_ros import CheckpointError
from drift_ros.commands import models as module
from drift_ros.commands.main import main
from drift_ros.refinement.sam_weights import load_sam

MADE_UP = b'made-up weights' * 1000
KNOWN = (
    module.KnownModel(
        'made_up',
        'made_up.pth',
        1,
        'Apache-2.0',
        'a test',
        'file:///nowhere',
        hashlib.sha256(MADE_UP).hexdigest(),
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


def test_hashes_are_whole_and_files_are_named_after_them():
    for known in module.KNOWN:
        assert len(known.sha256) in (0, 64)
