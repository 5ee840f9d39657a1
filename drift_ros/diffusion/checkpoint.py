# SPDX-License-Identifier: Apache-2.0
"""Load the parts of a Stable-Diffusion-style diffusers folder that the tracker needs."""

from collections.abc import Iterator
import contextlib
from dataclasses import dataclass, field
from pathlib import Path
import threading
from typing import Any

import torch
from torch import Tensor

from drift_ros.diffusion.checkpoint_folder import check_folder, locate
from drift_ros.engine.device import resolve_device
from drift_ros.engine.errors import CheckpointError
from drift_ros.weights import read_settings

EMBEDDED = Path(__file__).resolve().parent.parent / 'checkpoints'

_DIFT_TIMESTEP = 51
_AUTOENCODERS = ('AutoencoderKL', 'AutoencoderTiny')
_TEXT_ENCODERS = ('CLIPTextModel', 'CLIPTextModelWithProjection')


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
        """Type of the U-Net's weights."""
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
    dtype: torch.dtype | None = None,
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
        'auto' is the first GPU, else the CPU.
    prompt : str
        Text that conditions the U-Net.
    dtype : torch.dtype, optional
        Of the weights. None: float16 on a GPU, float32 on a CPU. An autoencoder whose
        ``config.json`` says ``force_upcast`` overflows in half precision (SDXL's does) and is
        float32 in any case.

    Raises
    ------
    CheckpointError
        When the folder is missing, lacks a component, or holds no safetensors weights. Pickled
        weights are never loaded.

    """
    from diffusers import DDIMScheduler, UNet2DConditionModel

    folder = located(checkpoint)
    components = check_folder(folder)
    target = resolve_device(device)
    dtype = dtype or (torch.float16 if target.type == 'cuda' else torch.float32)
    vae_dtype = torch.float32 if _needs_upcast(folder) else dtype
    with _offline():
        unet = _load_weights(UNet2DConditionModel, folder, 'unet', dtype)
        vae_class = autoencoder_class(components.get('vae', 'AutoencoderKL'))
        vae = _load_weights(vae_class, folder, 'vae', vae_dtype)
        states, added = _encode_prompt(folder, components, prompt, unet)
        with _complaint(folder / 'scheduler'):
            scheduler = DDIMScheduler.from_pretrained(
                folder, subfolder='scheduler', local_files_only=True
            )
    for model in (unet, vae):
        # Convolutions on CPUs are about three times faster with channels last.
        model.eval().requires_grad_(False).to(target, memory_format=torch.channels_last)
    return Checkpoint(
        name=str(checkpoint or 'embedded'),
        unet=unet,
        vae=vae,
        scheduler=scheduler,
        prompt=states.to(target, dtype),
        added_conditions={key: value.to(target, dtype) for key, value in added.items()},
        **recommendations(folder),
    )


def located(checkpoint: str | Path | None) -> Path:
    """Find the folder of a checkpoint as :func:`load_checkpoint` does; raises as it does."""
    return EMBEDDED if checkpoint is None or str(checkpoint) == '' else locate(checkpoint)


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """Forbid the hub's client the network, for whatever a library makes of a file."""
    from huggingface_hub import constants

    with _offline_lock:
        before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
        try:
            yield
        finally:
            constants.HF_HUB_OFFLINE = before


_offline_lock = threading.Lock()


@contextlib.contextmanager
def _complaint(part: Path) -> Iterator[None]:
    """Say which part of a checkpoint a library stumbled over, whatever it raises."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        text = ' '.join(str(error).split())[:300]
        raise CheckpointError(
            f'{part} cannot be used ({type(error).__name__}: {text}): its settings do not fit, or '
            'are of another model; copy or download the whole checkpoint again'
        ) from error


def recommendations(folder: Path) -> dict[str, Any]:
    """
    Read what a folder's own ``drift_ros.json`` recommends: 'layers' and 'timestep', or nothing.

    Raises
    ------
    CheckpointError
        The file is damaged.

    """
    path = folder / 'drift_ros.json'
    if not path.is_file():
        return {}
    try:
        notes = read_settings(path)
        return {'layers': (str(notes['attention_layer']),), 'timestep': int(notes['timestep'])}
    except CheckpointError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f'{path} must name attention_layer and timestep ({error!r}); mend or remove it'
        ) from error


def autoencoder_class(name: str) -> type:
    """
    Give diffusers' class of this name.

    Raises
    ------
    CheckpointError
        It is none of those that can be used.

    """
    import diffusers

    if name not in _AUTOENCODERS:
        raise CheckpointError(
            f'the autoencoder {name} is not supported; use one of {", ".join(_AUTOENCODERS)}'
        )
    return getattr(diffusers, name)


def _needs_upcast(folder: Path) -> bool:
    """Whether the autoencoder says itself that half precision is too narrow for it."""
    # not the loaded config: there diffusers' own default stands for what the file leaves out
    return read_settings(folder / 'vae' / 'config.json').get('force_upcast') is True


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
        model, told = cls.from_pretrained(
            folder,
            subfolder=component,
            use_safetensors=True,
            local_files_only=True,
            variant=variant,
            output_loading_info=True,
            **options,
        )
    except Exception as error:  # diffusers and transformers raise many kinds for broken files
        raise CheckpointError(
            f'{folder / component} could not be loaded as {cls.__name__}: {error}'
        ) from error
    # the libraries fill what is missing with whatever is in memory; older files name buffers
    missing = sorted(name for name in told['missing_keys'] if 'position_ids' not in name)
    if missing:
        raise CheckpointError(
            f'the weights in {folder / component} lack {len(missing)} of those its config.json '
            f'describes ({", ".join(missing[:3])}{", ..." if missing[3:] else ""}): they are of '
            'another model, or a part of it was left out; get the folder again'
        )
    return model


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
        with _complaint(folder / f'tokenizer{suffix}'):
            tokenizer = transformers.CLIPTokenizer.from_pretrained(
                folder, subfolder=f'tokenizer{suffix}', local_files_only=True
            )
        name = components.get(f'text_encoder{suffix}', 'CLIPTextModel')
        if name not in _TEXT_ENCODERS:
            raise CheckpointError(
                f'the text encoder {name} of {folder} is not supported; use a checkpoint with one '
                f'of {", ".join(_TEXT_ENCODERS)}'
            )
        cls = getattr(transformers, name)
        with _no_progress_bar():
            encoder = _load_weights(cls, folder, f'text_encoder{suffix}', torch.float32).eval()
        with _complaint(folder / f'tokenizer{suffix}'), torch.inference_mode():
            tokens = tokenizer(
                prompt,
                padding='max_length',
                max_length=min(tokenizer.model_max_length, encoder.config.max_position_embeddings),
                truncation=True,
                return_tensors='pt',
            ).input_ids
            output = encoder(tokens, output_hidden_states=True)
        # SDXL takes the last but one layer of both encoders, without the final norm.
        states.append(output.hidden_states[-2] if len(suffixes) > 1 else output[0])
        pooled = output[0]
    added = {}
    if unet.config.addition_embed_type == 'text_time':
        with _complaint(folder / 'unet'):
            size = float(unet.config.sample_size * 8)
        added = {
            'text_embeds': pooled,
            # Original size, crop corner and target size, as SDXL was trained.
            'time_ids': torch.tensor([[size, size, 0.0, 0.0, size, size]]),
        }
    return torch.cat(states, dim=-1), added
