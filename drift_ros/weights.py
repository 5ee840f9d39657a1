# SPDX-License-Identifier: Apache-2.0
"""
What files of weights and settings are, before any library is asked to load them.

The libraries that load checkpoints take a broken file for many things, and a name in the place of
settings for something to fetch. So files are looked at first: what is not whole, or is another
thing than its place promises, is refused here, with its own cause and remedy. Nothing is
unpickled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
import json
from pathlib import Path
import struct
from typing import Any

from drift_ros.engine.errors import CheckpointError

_HEAD = 512
_LONGEST_HEADER = 100 << 20
"""Bytes; the limit of the format."""

_FAMILIES = (
    # what a tensor's name begins with, or holds, and whose it is; the first that fits counts
    ('lora', 'a LoRA, which changes another model and is none by itself: merge it into its model'),
    ('image_encoder.trunk.', 'SAM 2'),
    ('memory_attention.', 'SAM 2'),
    ('vision_encoder.backbone.', 'SAM 2 of transformers'),
    ('detector.', 'SAM 3'),
    ('mask_decoder.hf_token', 'HQ-SAM'),
    ('mask_decoder.compress_vit_feat', 'HQ-SAM'),
    ('image_encoder.patch_embed.seq.0.c.weight', 'MobileSAM'),
    ('image_encoder.pos_embed', 'Segment Anything'),
    ('vision_encoder.pos_embed', 'Segment Anything of transformers'),
    ('model.diffusion_model.joint_blocks', 'Stable Diffusion 3 in a single file'),
    ('model.diffusion_model.double_blocks', 'Flux in a single file'),
    ('model.diffusion_model.', 'Stable Diffusion in a single file'),
    ('double_blocks.', 'Flux in a single file'),
    ('transformer_blocks.', 'a diffusion transformer (Stable Diffusion 3, Flux...)'),
    ('down_blocks.', 'the U-Net of a diffusers folder'),
    ('encoder.down_blocks.', 'the autoencoder of a diffusers folder'),
    ('text_model.', 'a text encoder'),
)


def whose(names: Iterable[str]) -> str:
    """
    Tell whose weights these are by the names of the tensors; empty where that is not known.

    >>> whose(['image_encoder.trunk.pos_embed'])
    'SAM 2'
    """
    known = list(names)
    for mark, family in _FAMILIES:
        inside = mark == 'lora'
        if any(mark in name.lower() if inside else name.startswith(mark) for name in known):
            return family
    return ''


def check_whole(path: Path) -> bytes:
    """
    Refuse a file that stands for another one or is none; give its first bytes.

    Raises
    ------
    CheckpointError
        It cannot be read, is empty, a pointer of git-lfs, or a web page.

    """
    try:
        with path.open('rb') as file:
            head = file.read(_HEAD)
    except OSError as error:
        raise CheckpointError(
            f'{path} cannot be read: {error.strerror or error}; copy or download it again'
        ) from error
    if not head:
        raise CheckpointError(f'{path} is empty; copy or download it again')
    if head.startswith(b'version https://git-lfs'):
        raise CheckpointError(
            f'{path} is a pointer of git-lfs and not the file itself: run "git lfs pull" in its '
            'folder (git lfs install once before), or download the file'
        )
    if head.lstrip()[:15].lower().startswith((b'<!doctype', b'<html', b'<?xml')):
        raise CheckpointError(
            f'{path} is a web page, as servers send where a file is missing or wants a login; '
            'download the file itself'
        )
    return head


def read_settings(path: Path) -> dict[str, Any]:
    """
    Read a file of settings: a JSON object.

    Raises
    ------
    CheckpointError
        It is not whole (see :func:`check_whole`), no text, no JSON, or JSON but no object.

    """
    check_whole(path)
    try:
        found = json.loads(path.read_bytes().decode())
    except UnicodeDecodeError as error:
        raise CheckpointError(
            f'{path} is not JSON: it is no text (byte {error.start}); copy or download it again'
        ) from error
    except (json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(
            f'{path} is not JSON, or cut short: {error}; copy or download it again'
        ) from error
    if not isinstance(found, dict):
        raise CheckpointError(
            f'{path} holds {_shown(found)} where settings by name ({{"...": ...}}) belong; copy '
            'or download it again. A name in it is never looked up anywhere'
        )
    return found


def _shown(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) < 40 else f'{text[:36]}...'


def tensors(path: Path) -> dict[str, tuple[int, ...]]:
    """
    Give the shape of every tensor in a safetensors file, by name, from its header.

    Raises
    ------
    CheckpointError
        It is not whole, another kind of file, or cut short.

    """
    head, size = check_whole(path), path.stat().st_size
    if head.startswith((b'PK\x03\x04', b'\x80\x02')):
        raise CheckpointError(
            f'{path} is a pickle of PyTorch in spite of its name; pickled weights are not loaded: '
            'convert it with save_pretrained(..., safe_serialization=True)'
        )
    length = struct.unpack('<Q', head[:8])[0] if len(head) > 8 else size
    if head[8:9] != b'{' or length > _LONGEST_HEADER:
        raise CheckpointError(
            f'{path} is no safetensors file: its header is none; copy or download it again'
        )
    if size < 8 + length:
        raise _cut(path, size, 8 + length)
    try:
        with path.open('rb') as file:
            file.seek(8)
            entries = json.loads(file.read(length))
        entries.pop('__metadata__', None)
        shapes = {name: tuple(entry['shape']) for name, entry in entries.items()}
        end = max((entry['data_offsets'][1] for entry in entries.values()), default=0)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f'{path} is no safetensors file: its header is damaged ({error}); copy or download '
            'it again'
        ) from error
    if size < 8 + length + end:
        raise _cut(path, size, 8 + length + end)
    return shapes


def _cut(path: Path, size: int, whole: int) -> CheckpointError:
    return CheckpointError(
        f'{path} is cut short: it has {size} of {whole} bytes or more; copy or download it again'
    )


def check_component(folder: Path) -> None:
    """
    Refuse the folder of a component that holds a file that cannot be what its name promises.

    Parameters
    ----------
    folder : Path
        Such as ``unet`` or ``tokenizer`` of a diffusers checkpoint.

    Raises
    ------
    CheckpointError

    """
    for path in sorted(item for item in folder.iterdir() if item.is_file()):
        if path.name.endswith('.safetensors.index.json'):
            _check_parts(path, read_settings(path))
        elif path.suffix == '.json':
            read_settings(path)
        elif path.suffix == '.safetensors':
            tensors(path)
        elif path.suffix in ('.txt', '.model'):
            check_whole(path)


def _check_parts(path: Path, index: Mapping[str, Any]) -> None:
    """Refuse an index of weights in several files when one of those is not there."""
    places = index.get('weight_map')
    if not isinstance(places, dict):
        raise CheckpointError(
            f'{path} names no weight_map: it is no index of weights; copy or download it again'
        )
    missing = sorted({str(name) for name in places.values()} - _names(path.parent))
    if missing:
        raise CheckpointError(
            f'{path.parent} lacks {", ".join(missing[:4])}, which {path.name} names; copy or '
            'download the whole folder'
        )


def _names(folder: Path) -> set[str]:
    return {item.name for item in folder.iterdir()}
