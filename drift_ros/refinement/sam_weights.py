# SPDX-License-Identifier: Apache-2.0
"""Segment Anything models of any size, built of the stock classes of ``segment_anything``."""

from collections.abc import Iterable, Mapping
from functools import partial
import importlib
import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from segment_anything.modeling import (
    ImageEncoderViT,
    MaskDecoder,
    PromptEncoder,
    Sam,
    TwoWayTransformer,
)
import torch
from torch import nn

from drift_ros.engine.errors import CheckpointError
from drift_ros.engine.finite import first_not_finite
from drift_ros.weights import check_whole, read_settings, tensors, whose


def build_sam(config: dict[str, Any]) -> Sam:
    """
    Build a model with fresh weights.

    Parameters
    ----------
    config : dict
        ``image_size`` and ``patch_size`` in pixels, ``width``, ``depth``, ``heads``,
        ``mlp_ratio``, ``window`` (tokens) and ``global_blocks`` (indices) of the image encoder,
        ``relative_positions`` (bool), ``prompt_width``, ``decoder_heads``, ``decoder_mlp`` and
        ``iou_width`` of the prompt encoder and mask decoder.

    """
    size, width = config['image_size'], config['prompt_width']
    grid = (size // config['patch_size'],) * 2
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=size,
            patch_size=config['patch_size'],
            embed_dim=config['width'],
            depth=config['depth'],
            num_heads=config['heads'],
            mlp_ratio=config['mlp_ratio'],
            out_chans=width,
            norm_layer=partial(nn.LayerNorm, eps=1e-6),
            use_rel_pos=config['relative_positions'],
            window_size=config['window'],
            global_attn_indexes=tuple(config['global_blocks']),
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=width,
            image_embedding_size=grid,
            input_image_size=(size, size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(
                depth=2,
                embedding_dim=width,
                mlp_dim=config['decoder_mlp'],
                num_heads=config['decoder_heads'],
            ),
            transformer_dim=width,
            iou_head_depth=3,
            iou_head_hidden_dim=config['iou_width'],
        ),
    )


def save_untrained(folder: Path, seed: int = 0) -> None:
    """Write a folder for :func:`load_sam`: the embedded model's layout with random weights."""
    notes = json.loads((EMBEDDED / 'config.json').read_text())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        weights = build_sam(notes['model']).state_dict()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps({'model': notes['model']}, indent=2) + '\n')


EMBEDDED = Path(__file__).parent.parent / 'checkpoints' / 'sam_small'


def load_sam(checkpoint: str | Path | None = None, device: str | torch.device = 'auto') -> Sam:
    """
    Load a Segment Anything model.

    Parameters
    ----------
    checkpoint : str or Path, optional
        A weights file (.pth as published for ViT-B, ViT-L, ViT-H and MobileSAM, or .safetensors
        of the same names), whose architecture is inferred from its shapes, or a folder with
        ``model.safetensors`` and ``config.json``. None: the embedded small model.
    device : str or torch.device
        'auto', 'cpu' or 'cuda[:n]'.

    Returns
    -------
    Sam
        In evaluation mode, single precision.

    Raises
    ------
    CheckpointError
        The file is missing or of another kind; the message names what to get.

    """
    from drift_ros.engine.device import resolve_device

    path = Path(checkpoint).expanduser() if checkpoint else EMBEDDED
    if path.is_dir():
        model = _load_folder(path)
    elif path.is_file():
        model = _load_file(path)
    else:
        raise CheckpointError(f'there is no Segment Anything checkpoint at {path}. {_ADVICE}')
    damaged = first_not_finite(model)
    if damaged:
        raise CheckpointError(
            f'{path} has weights that are not finite numbers ({damaged}): it is damaged. {_ADVICE}'
        )
    return model.to(resolve_device(device)).eval().requires_grad_(False)


def _load_folder(folder: Path) -> Sam:
    for name in ('config.json', 'model.safetensors'):
        if not (folder / name).is_file():
            raise CheckpointError(
                f'{folder} has no {name}: a folder of a Segment Anything model needs '
                f'model.safetensors and the config.json written with it. {_ADVICE}'
            )
    shapes = tensors(folder / 'model.safetensors')
    config = read_settings(folder / 'config.json').get('model')
    if not isinstance(config, dict):
        _refuse_others(folder, shapes)
        raise CheckpointError(
            f'{folder / "config.json"} does not describe a model of this package (under "model"). '
            f'{_ADVICE}'
        )
    try:
        state = load_file(folder / 'model.safetensors')
        model = build_sam(config)
        model.load_state_dict({name: value.float() for name, value in state.items()})
    except Exception as error:  # settings of any kind meet the classes of the library
        raise CheckpointError(
            f'{folder} holds no Segment Anything model that can be used ({_brief(error)}): its '
            f'config.json and model.safetensors do not belong together. {_ADVICE}'
        ) from error
    return model


def _load_file(path: Path) -> Sam:
    state = _read(path)
    _refuse_others(path, state)
    try:
        if 'image_encoder.patch_embed.seq.0.c.weight' in state:
            model = _mobile_sam()
        else:
            model = build_sam(infer_config(state))
        model.load_state_dict({name: value.float() for name, value in state.items()})
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f'{path} is not a Segment Anything checkpoint that can be used ({_brief(error)}): '
            f'weights are missing or of other shapes. {_ADVICE}'
        ) from error
    return model


def _read(path: Path) -> dict[str, torch.Tensor]:
    """Read weights by name, of either kind of file."""
    if path.suffix == '.safetensors':
        tensors(path)
        return load_file(path)
    check_whole(path)
    try:
        found = torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # unpickling meets whatever is in the file
        if 'weights_only' in str(error).lower():
            cause = 'it holds other things than weights, which are never unpickled'
        else:
            cause = (
                'it is cut short or no PyTorch file: "drift_ros models --check FILE" compares it '
                'with the published hash'
            )
        raise CheckpointError(
            f'{path} is not a Segment Anything checkpoint that can be used: {cause} '
            f'({_brief(error)}). {_ADVICE}'
        ) from error
    for name in ('model', 'state_dict', 'model_state_dict'):  # as trainings wrap it
        if isinstance(found, dict) and isinstance(found.get(name), dict):
            found = found[name]
    if not isinstance(found, dict) or not all(isinstance(v, torch.Tensor) for v in found.values()):
        raise CheckpointError(
            f'{path} is not a Segment Anything checkpoint: it holds no weights by name. {_ADVICE}'
        )
    return found


def _refuse_others(path: Path, names: Iterable[str]) -> None:
    """Say of a known other model what it is."""
    family = whose(names)
    if family and family not in ('Segment Anything', 'MobileSAM'):
        raise CheckpointError(
            f'{path} holds weights of another model: {family}. Those of Segment Anything as first '
            f'published are needed. {_ADVICE}'
        )


def infer_config(state: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """
    Infer the configuration for :func:`build_sam` from published weights.

    Raises
    ------
    KeyError
        A weight of the image encoder with relative positions is missing.

    """
    positions = state['image_encoder.pos_embed']  # (1, grid, grid, width)
    grid, width = int(positions.shape[1]), int(positions.shape[3])
    patch = int(state['image_encoder.patch_embed.proj.weight'].shape[-1])
    depth = sum(name.endswith('.attn.qkv.weight') for name in state if 'image_encoder' in name)
    # a window of n tokens has 2 n - 1 relative positions
    spans = [
        (int(state[f'image_encoder.blocks.{i}.attn.rel_pos_h'].shape[0]) + 1) // 2
        for i in range(depth)
    ]
    head = int(state['image_encoder.blocks.0.attn.rel_pos_h'].shape[1])
    return {
        'image_size': grid * patch,
        'patch_size': patch,
        'width': width,
        'depth': depth,
        'heads': width // head,
        'mlp_ratio': state['image_encoder.blocks.0.mlp.lin1.weight'].shape[0] / width,
        'window': min(spans),
        'global_blocks': [i for i, span in enumerate(spans) if span == grid],
        'relative_positions': True,
        'prompt_width': int(state['mask_decoder.iou_token.weight'].shape[1]),
        'decoder_heads': 8,
        'decoder_mlp': int(state['mask_decoder.transformer.layers.0.mlp.lin1.weight'].shape[0]),
        'iou_width': int(state['mask_decoder.iou_prediction_head.layers.0.weight'].shape[0]),
    }


def _mobile_sam() -> Sam:
    try:
        registry = importlib.import_module('mobile_sam').sam_model_registry
    except ImportError as error:
        raise CheckpointError(
            'this is a MobileSAM checkpoint, and the Python package mobile_sam, which has its '
            'image encoder, is not installed: install it from '
            'https://github.com/ChaoningZhang/MobileSAM, or use another checkpoint'
        ) from error
    return registry['vit_t'](checkpoint=None)


_ADVICE = (
    'Download sam_vit_b_01ec64.pth (375 MB, Apache-2.0) from '
    'https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth into any folder and '
    'give its path as sam_checkpoint, or leave sam_checkpoint empty for the embedded model; '
    '"drift_ros models" lists more.'
)


def _brief(error: Exception) -> str:
    text = ' '.join(str(error).split())
    return f'{type(error).__name__}: {text[:160]}'
