# SPDX-License-Identifier: Apache-2.0
"""Find the folder of a checkpoint, and refuse what is none before anything is loaded from it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drift_ros.engine.errors import CheckpointError
from drift_ros.weights import check_component, read_settings, tensors, whose

_FILES = ('.safetensors', '.ckpt', '.pt', '.pth', '.bin', '.gguf', '.onnx')
_SUPPORTED = 'Stable Diffusion 1.x, 2.x and XL are supported'


def locate(checkpoint: str | Path) -> Path:
    """
    Find the folder of a checkpoint, here or in the hub's local cache; nothing is ever fetched.

    Raises
    ------
    CheckpointError
        There is none; a file, or another place, is told from a folder.

    """
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    if folder.is_file():
        raise single_file(folder)
    name = str(checkpoint)
    if '://' in name:
        raise CheckpointError(
            f'{name} is an address; nothing is ever fetched: download the checkpoint and give its '
            'folder'
        )
    if folder.is_absolute() or name.startswith(('.', '~')) or name.count('/') != 1:
        raise CheckpointError(
            f'checkpoint folder {name} does not exist; give a local diffusers folder, a hub id '
            "'owner/name', or nothing for the embedded model"
        )
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                name,
                local_files_only=True,
                allow_patterns=['*.json', '*.txt', '*/*.safetensors', '*/*.model'],
            )
        )
    except Exception as error:  # the hub client raises many kinds; the remedy is the same
        raise CheckpointError(
            f'checkpoint {name} is neither a local folder nor in the local hub cache; download it '
            f'once (hf download {name}) or give a local diffusers folder'
        ) from error


def single_file(path: Path) -> CheckpointError:
    """Say what a file is that stands where a folder is needed, and what to do with it."""
    family = whose(tensors(path)) if path.suffix == '.safetensors' else ''
    what = f' ({family})' if family else ''
    if 'Segment Anything' in family or 'SAM' in family:
        remedy = (
            'give such weights as refinement.sam_checkpoint, and a diffusers folder, or nothing, '
            'as model'
        )
    elif family and 'single file' not in family:
        remedy = 'give the whole diffusers folder it is a part of'
    elif path.suffix in _FILES:
        remedy = (
            f'convert it once: StableDiffusionPipeline.from_single_file("{path}")'
            '.save_pretrained("FOLDER") (StableDiffusionXLPipeline for XL), and give FOLDER'
        )
    else:
        remedy = 'give the folder'
    return CheckpointError(f'{path} is a file{what}, and a diffusers folder is needed: {remedy}')


def check_folder(folder: Path) -> dict[str, str]:
    """
    Map each component's name to its class name, once all of them are there and whole.

    Raises
    ------
    CheckpointError
        The folder is of another kind, lacks something, or holds a file that is not whole.

    """
    path = folder / 'model_index.json'
    if not path.is_file():
        raise CheckpointError(
            f'{folder} has no model_index.json: it is not a diffusers checkpoint folder'
            + _instead(folder)
        )
    index = read_settings(path)
    components = {name: _class(entry) for name, entry in index.items() if _class(entry)}
    required = ['unet', 'vae', 'scheduler', 'tokenizer', 'text_encoder']
    if components.get('text_encoder_2'):
        required += ['tokenizer_2', 'text_encoder_2']
    if 'unet' not in components and 'transformer' in components:
        raise CheckpointError(
            f'{folder} is a {index.get("_class_name", "pipeline")}, whose network is a '
            f'transformer and no U-Net; {_SUPPORTED}'
        )
    files = {'scheduler': 'scheduler_config.json', 'tokenizer': 'tokenizer_config.json'}
    files['tokenizer_2'] = files['tokenizer']
    missing = [
        name for name in required if not (folder / name / files.get(name, 'config.json')).is_file()
    ]
    if missing:
        raise CheckpointError(
            f'{folder} lacks {", ".join(missing)}; a Stable-Diffusion-style checkpoint has '
            f'{", ".join(required)}: copy or download the whole folder'
        )
    for name in required:
        check_component(folder / name)
    return components


def _class(entry: Any) -> str:
    """Give the class of an entry of model_index.json: [library, class]; empty for others."""
    fits = isinstance(entry, list) and len(entry) == 2 and all(isinstance(e, str) for e in entry)
    return entry[1] if fits else ''


def _instead(folder: Path) -> str:
    """Say what a folder is, and what to give in its place."""
    snapshots = sorted(folder.glob('snapshots/*/model_index.json'))
    if snapshots:
        return f' itself; give {snapshots[-1].parent}'
    if (folder.parent / 'model_index.json').is_file():
        return f' but a part of one; give {folder.parent}'
    inner = sorted(folder.glob('*/model_index.json'))
    if inner:
        return f' itself; give {inner[0].parent}'
    weights = sorted(folder.glob('*.safetensors'))
    if weights and 'Segment Anything' in (whose(tensors(weights[0]))):
        return (
            ' but a Segment Anything model; give it as refinement.sam_checkpoint, and a diffusers '
            'folder, or nothing, as model'
        )
    if weights:
        return f'; {single_file(weights[0])}'
    return "; save the model with a pipeline's save_pretrained"
