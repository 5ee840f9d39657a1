# SPDX-License-Identifier: Apache-2.0
"""
Published checkpoints: what is known of them, told by their files, and fetched when asked for.

This is the only place of the package that downloads anything. Nothing here imports torch until
then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
import hashlib
import os
from pathlib import Path
from typing import Any

import yaml

from drift_ros.diffusion.checkpoint_folder import single_file
from drift_ros.engine.errors import CheckpointError

_CHUNK = 1 << 20
_SETTINGS = ('model_index.json', '*/*.json', '*/*.txt', 'LICENSE*', '*.md')
_WEIGHTS = ('diffusion_pytorch_model', 'model')


@dataclass(frozen=True)
class KnownModel:
    """
    A published checkpoint: a file, or a folder of the diffusers kind.

    Attributes
    ----------
    name : str
        What this command calls it; the folder's name.
    purpose, licence : str
    megabytes : mapping of str to int
        'full', and 'half' where files in half precision are published.
    url : str
        Of a file.
    hub : str
        Of a folder, owner/name.
    revision : str
        Of the hub's repository; empty: its newest.
    hashes : mapping of str to str
        SHA-256 by path within the folder, or by the file's name.
    preset : str
        Options that fit, a file of ``config/``.
    note : str

    """

    name: str
    purpose: str
    licence: str
    megabytes: Mapping[str, int]
    url: str = ''
    hub: str = ''
    revision: str = ''
    hashes: Mapping[str, str] = field(default_factory=dict)
    preset: str = ''
    note: str = ''

    @property
    def file(self) -> str:
        """Name of the file or folder below the folder of models."""
        return self.name if self.hub else next(iter(self.hashes))

    @property
    def address(self) -> str:
        """Where a person can look at it."""
        return self.url or f'https://huggingface.co/{self.hub}'


KNOWN = tuple(
    KnownModel(**item)
    for item in yaml.safe_load(
        Path(__file__).with_name('known_models.yaml').read_text(encoding='utf-8')
    )
)


def default_folder() -> Path:
    """Give the folder downloads go to: $DRIFT_ROS_MODELS, else one in the user's cache."""
    chosen = os.environ.get('DRIFT_ROS_MODELS')
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(cache).expanduser() / 'drift_ros'


def sha256(path: Path, told: Callable[[int], Any] = lambda count: None) -> str:
    """Give a file's SHA-256 in hexadecimal digits; ``told`` hears of the bytes that are read."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
            told(len(chunk))
    return digest.hexdigest()


def owners(digest: str, known: Sequence[KnownModel] = KNOWN) -> list[str]:
    """Name the published files with this SHA-256: 'MODEL: PATH'."""
    return [
        f'{model.name}: {path}'
        for model in known
        for path, published in model.hashes.items()
        if published == digest
    ]


def check(path: Path, known: Sequence[KnownModel] = KNOWN) -> KnownModel:
    """
    Say which published checkpoint a single file is, whatever it is called.

    Raises
    ------
    CheckpointError
        It is none of them, or a part of one; the message tells what its name promises.

    """
    found = sha256(path)
    files = [model for model in known if model.url]
    for model in files:
        if found in model.hashes.values():
            return model
    promised = next((model for model in files if model.file == path.name), None)
    if promised is not None:
        raise CheckpointError(
            f'{path} is not {promised.name} as published: its SHA-256 is {found} instead of '
            f'{promised.hashes[path.name]}. It may be cut short '
            f'({path.stat().st_size / 1e6:.0f} of {promised.megabytes["full"]} MB): delete it and '
            f'get it again from {promised.url}'
        )
    if parts := owners(found, known):
        raise CheckpointError(
            f'{path} is a part of a checkpoint ({parts[0]}): check its whole folder'
        )
    unknown = CheckpointError(f'{path} is no checkpoint known here; its SHA-256 is {found}')
    if path.suffix in ('.safetensors', '.ckpt'):
        raise CheckpointError(f'{unknown}. {single_file(path)}')
    raise unknown


def download(model: KnownModel, folder: Path, half: bool = False) -> Path:
    """
    Fetch a checkpoint, showing progress, and check it.

    An interrupted download of a folder goes on where it stopped. A file appears under its name
    once it is whole.

    Parameters
    ----------
    model : KnownModel
    folder : Path
        Of all models.
    half : bool
        Take the files in half precision, where there are such.

    Raises
    ------
    CheckpointError
        It cannot be fetched, or what came is not what was published: that file is not kept.

    """
    if half and 'half' not in model.megabytes:
        raise CheckpointError(f'{model.name} is not published in half precision')
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CheckpointError(
            f'{folder} cannot be written to ({error.strerror}): choose another --folder'
        ) from error
    return _download_folder(model, folder, half) if model.hub else _download_file(model, folder)


def _download_file(model: KnownModel, folder: Path) -> Path:
    from torch.hub import download_url_to_file

    path = folder / model.file
    try:
        download_url_to_file(model.url, str(path), hash_prefix=model.hashes[model.file])
    except OSError as error:
        raise _unreachable(model, error) from error
    except RuntimeError as error:
        raise CheckpointError(
            f'what came from {model.url} is not what was published; nothing was kept ({error})'
        ) from error
    return path


def _download_folder(model: KnownModel, folder: Path, half: bool) -> Path:
    from huggingface_hub import snapshot_download

    place, ending = folder / model.file, '.fp16.safetensors' if half else '.safetensors'
    parts = ('unet', 'vae', 'text_encoder', 'text_encoder_2')
    weights = [f'{part}/{name}{ending}' for part in parts for name in _WEIGHTS]
    try:
        snapshot_download(
            model.hub,
            revision=model.revision or None,
            local_dir=place,
            allow_patterns=[*_SETTINGS, *weights],
        )
    except Exception as error:  # the hub's client raises many kinds; the remedy is the same
        raise _unreachable(model, error) from error
    for name, published in model.hashes.items():
        path = place / name
        if path.is_file() and (found := sha256(path)) != published:
            path.unlink()
            raise CheckpointError(
                f'{name} of {model.address} is not what was published (SHA-256 {found} instead '
                f'of {published}): it was not kept'
            )
    return place


def _unreachable(model: KnownModel, error: Exception) -> CheckpointError:
    reason = ' '.join(str(error).split())[:300].rstrip('.')
    again = ', which goes on where it stopped' if model.hub else ''
    return CheckpointError(
        f'cannot download {model.address}: {reason}. Run it again{again}; or get it by another '
        'way, put it anywhere and check it with --check'
    )
