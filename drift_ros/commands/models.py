# SPDX-License-Identifier: Apache-2.0
"""
``drift_ros models``: known checkpoints, whether they are here, and are what they should be.

This is the only place of the package that downloads anything, and only when a person asks for
it on the command line. Nothing else here imports torch.
"""

from __future__ import annotations

from dataclasses import dataclass
import hashlib
import os
from pathlib import Path

import click

from drift_ros.engine.errors import CheckpointError

_SAM = 'https://dl.fbaipublicfiles.com/segment_anything'
_CHUNK = 1 << 20


@dataclass(frozen=True)
class KnownModel:
    """
    A published checkpoint.

    Attributes
    ----------
    name : str
        What this command calls it.
    file : str
        File name, or folder name of a diffusers checkpoint.
    megabytes : int
    licence : str
    purpose : str
    url : str
        Of the file, or of a page that tells where the folder is to be had.
    sha256 : str
        Of the file as published; empty for folders.

    """

    name: str
    file: str
    megabytes: int
    licence: str
    purpose: str
    url: str
    sha256: str = ''


KNOWN = (
    KnownModel(
        'sam_vit_b',
        'sam_vit_b_01ec64.pth',
        375,
        'Apache-2.0',
        'Segment Anything, smallest: masks and prompts',
        f'{_SAM}/sam_vit_b_01ec64.pth',
        'ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912',
    ),
    KnownModel(
        'sam_vit_l',
        'sam_vit_l_0b3195.pth',
        1250,
        'Apache-2.0',
        'Segment Anything, medium',
        f'{_SAM}/sam_vit_l_0b3195.pth',
        '3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622',
    ),
    KnownModel(
        'sam_vit_h',
        'sam_vit_h_4b8939.pth',
        2565,
        'Apache-2.0',
        'Segment Anything, largest',
        f'{_SAM}/sam_vit_h_4b8939.pth',
        'a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e',
    ),
    KnownModel(
        'mobile_sam',
        'mobile_sam.pt',
        41,
        'Apache-2.0',
        'MobileSAM: fast; needs the package mobile_sam, too',
        'https://github.com/ChaoningZhang/MobileSAM/raw/'
        'f706ad9c4eb7f219c00d9050e46328518ffb65d2/weights/mobile_sam.pt',
        '6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f',
    ),
    KnownModel(
        'stable-diffusion-1.5',
        'stable-diffusion-v1-5',
        4300,
        'CreativeML Open RAIL-M',
        'features for tracking (diffusers folder, get it by hand)',
        'https://huggingface.co/stable-diffusion-v1-5/stable-diffusion-v1-5',
    ),
    KnownModel(
        'stable-diffusion-2.1',
        'stable-diffusion-2-1',
        5200,
        'CreativeML Open RAIL++-M',
        "features for tracking, the paper's (diffusers folder, get it by hand; its "
        'publisher withdrew it in 2025)',
        '',
    ),
)


def default_folder() -> Path:
    """Give the folder downloads go to: $DRIFT_ROS_MODELS, else one in the user's cache."""
    chosen = os.environ.get('DRIFT_ROS_MODELS')
    if chosen:
        return Path(chosen).expanduser()
    cache = os.environ.get('XDG_CACHE_HOME') or '~/.cache'
    return Path(cache).expanduser() / 'drift_ros'


def sha256(path: Path) -> str:
    """Give a file's SHA-256 in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def check(path: Path, known: tuple[KnownModel, ...] = KNOWN) -> KnownModel:
    """
    Say which published checkpoint a file is, whatever it is called.

    Raises
    ------
    CheckpointError
        It is none of them; the message tells what its name promises.

    """
    found = sha256(path)
    for model in known:
        if model.sha256 == found:
            return model
    promised = next((model for model in known if model.file == path.name), None)
    if promised is not None and promised.sha256:
        raise CheckpointError(
            f'{path} is not {promised.name} as published: its SHA-256 is {found} instead of '
            f'{promised.sha256}. It may be cut short ({path.stat().st_size / 1e6:.0f} of '
            f'{promised.megabytes} MB): delete it and get it again from {promised.url}'
        )
    raise CheckpointError(f'{path} is no checkpoint known here; its SHA-256 is {found}')


def download(model: KnownModel, folder: Path) -> Path:
    """
    Fetch a checkpoint, showing progress, and check it.

    The file appears under its name only once it is whole.

    Raises
    ------
    CheckpointError
        It cannot be fetched, or what came is not what was published.

    """
    if not model.sha256:
        raise CheckpointError(
            f'{model.name} is a folder and is not downloaded by this command'
            + (f': see {model.url}' if model.url else '')
        )
    from torch.hub import download_url_to_file

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / model.file
    try:
        download_url_to_file(model.url, str(path), hash_prefix=model.sha256)
    except OSError as error:
        raise CheckpointError(
            f'cannot download {model.url}: {error}. Get it by another way, put '
            f'it anywhere and check it with --check'
        ) from error
    except RuntimeError as error:
        raise CheckpointError(
            f'what came from {model.url} is not what was published; nothing was kept ({error})'
        ) from error
    return path


@click.command()
@click.option(
    '--check',
    'file',
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help='Tell which published checkpoint a file is, by its hash.',
)
@click.option(
    '--download',
    'name',
    type=click.Choice([m.name for m in KNOWN if m.sha256]),
    help='Download a checkpoint.',
)
@click.option(
    '--folder',
    type=click.Path(path_type=Path, file_okay=False),
    help='Where checkpoints are looked for and downloaded to.  [default: '
    '$DRIFT_ROS_MODELS, else ~/.cache/drift_ros]',
)
@click.option(
    '--untrained',
    'blank',
    type=click.Path(path_type=Path, file_okay=False),
    help='Write a Segment Anything model of random weights to a folder, to see that '
    'the gate rejects what it says.',
)
def models(file: Path | None, name: str | None, folder: Path | None, blank: Path | None) -> None:
    """
    List known checkpoints, check a file, or download one.

    Give the file to the tracker as the parameter refinement.sam_checkpoint, a folder as model.
    """
    folder = folder or default_folder()
    try:
        if file is not None:
            model = check(file)
            click.echo(f'{file} is {model.name} ({model.licence}): {model.purpose}')
        elif name is not None:
            _fetch(next(m for m in KNOWN if m.name == name), folder)
        elif blank is not None:
            from drift_ros.refinement.sam_weights import save_untrained

            save_untrained(blank)
            click.echo(
                f'{blank} holds random weights; give it to the tracker as '
                'refinement.sam_checkpoint'
            )
        else:
            _list(folder)
    except CheckpointError as error:
        raise click.ClickException(str(error)) from error


def _fetch(model: KnownModel, folder: Path) -> None:
    path = folder / model.file
    if path.exists():
        check(path)
        click.echo(f'{path} is there already, and whole')
        return
    download(model, folder)
    click.echo(f'{path} is whole; give it to the tracker as refinement.sam_checkpoint')


def _list(folder: Path) -> None:
    from drift_ros import __file__ as package

    embedded = Path(package).parent / 'checkpoints'
    rows = [
        (
            'embedded',
            _size(embedded, 'sam_small'),
            'Apache-2.0',
            'small diffusion model, the default of model',
            str(embedded),
        ),
        (
            'embedded',
            _size(embedded / 'sam_small'),
            'Apache-2.0',
            'small Segment Anything model, the default of refinement.sam_checkpoint',
            str(embedded / 'sam_small'),
        ),
    ]
    for model in KNOWN:
        path = folder / model.file
        rows.append(
            (
                model.name,
                f'{model.megabytes} MB',
                model.licence,
                model.purpose,
                str(path) if path.exists() else f'not in {folder}',
            )
        )
    for name, size, licence, purpose, place in rows:
        click.echo(f'{name:22} {size:>8}  {licence}\n    {purpose}\n    {place}')
    click.echo('\nWhat a node or the tracker needs, it takes from a path; it never downloads.')


def _size(folder: Path, without: str = '\0') -> str:
    size = sum(
        path.stat().st_size
        for path in folder.rglob('*')
        if path.is_file() and without not in path.relative_to(folder).parts
    )
    return f'{size / 1e6:.0f} MB' if size else 'missing'
