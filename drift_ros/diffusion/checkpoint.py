# SPDX-License-Identifier: Apache-2.0
"""Load the parts of a Stable-Diffusion-style diffusers folder that the tracker needs."""

from collections.abc import Iterator
import contextlib
from dataclasses import dataclass, field
import json
from pathlib import Path
import threading
from typing import Any

import torch
from torch import Tensor

from drift_ros.engine.device import resolve_device
from drift_ros.engine.errors import CheckpointError

EMBEDDED = Path(__file__).resolve().parent.parent / 'checkpoints'

_DIFT_TIMESTEP = 51
_AUTOENCODERS = ('AutoencoderKL', 'AutoencoderTiny')


@dataclass(frozen=True)
class Checkpoint:
    """
    A diffusion model ready for feature extraction; all parts in evaluation mode.

    Attributes
    ----------
    name : str
        The folder or hub id it was loaded from.
    unet : diffusers.UNet2DConditionModel
    vae : diffusers.AutoencoderKL or diffusers.AutoencoderTiny
    scheduler : diffusers.DDIMScheduler
        Made from the folder's scheduler settings, whatever scheduler they name.
    prompt : Tensor
        (1, tokens, cross-attention width), the text encoder's states of the empty prompt.
    added_conditions : dict of str to Tensor
        SDXL's pooled text embedding and time ids, else empty.
    layers : tuple of str
        Attention layers the folder's own ``drift_ros.json`` recommends for tracking; else empty.
    timestep : int
        Noise level it recommends; else DIFT's for Stable Diffusion on video (arXiv 2306.03881).

    """

    name: str
    unet: torch.nn.Module
    vae: torch.nn.Module
    scheduler: Any
    prompt: Tensor
    added_conditions: dict[str, Tensor]
    layers: tuple[str, ...] = ()
    timestep: int = _DIFT_TIMESTEP
    lock: threading.RLock = field(default_factory=threading.RLock, repr=False, compare=False)
    """Held during a pass: extractors that share a checkpoint put their own processors in."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Type of the weights."""
        return next(self.unet.parameters()).dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        models = (self.unet, self.vae)
        return sum(weight.nbytes for model in models for weight in model.parameters())


def load_checkpoint(
    checkpoint: str | Path | None = None,
    *,
    device: str | torch.device = 'auto',
    prompt: str = '',
) -> Checkpoint:
    """
    Load a checkpoint from a local folder, or from the hub's local cache.

    Parameters
    ----------
    checkpoint : str or Path, optional
        A diffusers folder (``unet``, ``vae``, ``scheduler``, ``tokenizer``, ``text_encoder``), or
        a hub id ``owner/name`` that is in the local cache: nothing is ever fetched. None or '':
        the embedded model.
    device : str or torch.device
        'auto' is the first GPU, else the CPU. Weights are float16 on a GPU, float32 on a CPU.
    prompt : str
        Text that conditions the U-Net.

    Raises
    ------
    CheckpointError
        When the folder is missing, lacks a component, or holds no safetensors weights. Pickled
        weights are never loaded.

    """
    from diffusers import DDIMScheduler, UNet2DConditionModel

    folder = _locate(checkpoint)
    components = _check_components(folder)
    target = resolve_device(device)
    dtype = torch.float16 if target.type == 'cuda' else torch.float32
    unet = _load_weights(UNet2DConditionModel, folder, 'unet', dtype)
    vae = _load_weights(_autoencoder_class(components), folder, 'vae', dtype)
    states, added = _encode_prompt(folder, components, prompt, unet)
    for model in (unet, vae):
        # Convolutions on CPUs are about three times faster with channels last.
        model.eval().requires_grad_(False).to(target, memory_format=torch.channels_last)
    return Checkpoint(
        name=str(checkpoint or 'embedded'),
        unet=unet,
        vae=vae,
        scheduler=DDIMScheduler.from_pretrained(folder, subfolder='scheduler'),
        prompt=states.to(target, dtype),
        added_conditions={key: value.to(target, dtype) for key, value in added.items()},
        **_recommendations(folder),
    )


def _locate(checkpoint: str | Path | None) -> Path:
    if checkpoint is None or str(checkpoint) == '':
        checkpoint = EMBEDDED
    folder = Path(checkpoint).expanduser()
    if folder.is_dir():
        return folder
    name = str(checkpoint)
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


def _check_components(folder: Path) -> dict[str, str]:
    """Map each component's name to its class name; raise when one is missing."""
    try:
        index = json.loads((folder / 'model_index.json').read_text())
    except FileNotFoundError:
        raise CheckpointError(
            f'{folder} has no model_index.json: it is not a diffusers checkpoint folder; save the '
            "model with a pipeline's save_pretrained"
        ) from None
    except json.JSONDecodeError as error:
        raise CheckpointError(f'{folder / "model_index.json"} is not JSON: {error}') from error
    required = ['unet', 'vae', 'scheduler', 'tokenizer', 'text_encoder']
    if index.get('text_encoder_2', [None])[0]:
        required += ['tokenizer_2', 'text_encoder_2']
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
    return {name: entry[1] for name, entry in index.items() if isinstance(entry, list)}


def _recommendations(folder: Path) -> dict[str, Any]:
    path = folder / 'drift_ros.json'
    if not path.is_file():
        return {}
    try:
        notes = json.loads(path.read_text())
        return {'layers': (str(notes['attention_layer']),), 'timestep': int(notes['timestep'])}
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f'{path} must name attention_layer and timestep ({error!r}); mend or remove it'
        ) from error


def _autoencoder_class(components: dict[str, str]) -> type:
    import diffusers

    name = components.get('vae', 'AutoencoderKL')
    if name not in _AUTOENCODERS:
        raise CheckpointError(
            f'the autoencoder {name} is not supported; use one of {", ".join(_AUTOENCODERS)}'
        )
    return getattr(diffusers, name)


def _load_weights(cls: Any, folder: Path, component: str, dtype: torch.dtype) -> torch.nn.Module:
    """Load one component from safetensors; a half-precision variant is taken where it is alone."""
    names = [path.name for path in (folder / component).glob('*.safetensors')]
    if not names:
        raise CheckpointError(
            f'{folder / component} has no safetensors weights; pickled weights are not loaded: '
            'convert them with save_pretrained(..., safe_serialization=True)'
        )
    variant = 'fp16' if all('.fp16' in name for name in names) else None
    options: dict[str, Any] = {'dtype': dtype}
    if not component.startswith('text_encoder'):
        from diffusers.utils import is_accelerate_available

        # Asked for without accelerate, as by default, it warns each time.
        options = {'torch_dtype': dtype, 'low_cpu_mem_usage': is_accelerate_available()}
    try:
        return cls.from_pretrained(
            folder,
            subfolder=component,
            use_safetensors=True,
            local_files_only=True,
            variant=variant,
            **options,
        )
    except Exception as error:  # diffusers and transformers raise many kinds for broken files
        raise CheckpointError(
            f'{folder / component} could not be loaded as {cls.__name__}: {error}'
        ) from error


@contextlib.contextmanager
def _no_progress_bar() -> Iterator[None]:
    """Keep transformers' bar, which takes milliseconds here, out of the node's log."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _encode_prompt(
    folder: Path, components: dict[str, str], prompt: str, unet: torch.nn.Module
) -> tuple[Tensor, dict[str, Tensor]]:
    """Encode one prompt with the folder's text encoders, which are not kept in memory."""
    import transformers

    states, pooled = [], None
    suffixes = ('', '_2') if 'text_encoder_2' in components else ('',)
    for suffix in suffixes:
        tokenizer = transformers.CLIPTokenizer.from_pretrained(
            folder, subfolder=f'tokenizer{suffix}', local_files_only=True
        )
        cls = getattr(transformers, components.get(f'text_encoder{suffix}', 'CLIPTextModel'))
        with _no_progress_bar():
            encoder = _load_weights(cls, folder, f'text_encoder{suffix}', torch.float32).eval()
        tokens = tokenizer(
            prompt,
            padding='max_length',
            max_length=min(tokenizer.model_max_length, encoder.config.max_position_embeddings),
            truncation=True,
            return_tensors='pt',
        ).input_ids
        with torch.inference_mode():
            output = encoder(tokens, output_hidden_states=True)
        # SDXL takes the last but one layer of both encoders, without the final norm.
        states.append(output.hidden_states[-2] if len(suffixes) > 1 else output[0])
        pooled = output[0]
    added = {}
    if unet.config.addition_embed_type == 'text_time':
        size = float(unet.config.sample_size * 8)
        added = {
            'text_embeds': pooled,
            # Original size, crop corner and target size, as SDXL was trained.
            'time_ids': torch.tensor([[size, size, 0.0, 0.0, size, size]]),
        }
    return torch.cat(states, dim=-1), added
