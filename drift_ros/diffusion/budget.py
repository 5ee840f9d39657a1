# SPDX-License-Identifier: Apache-2.0
"""
What a checkpoint will need, found before any of its weights is read.

The networks are built from their settings without memory (PyTorch's fake tensors), and the very
pass that a frame takes is taken through them; every tensor that would be made is counted while it
would live. So whatever is set, layers, resolution, inversion, is in the numbers.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator, Mapping, Sequence
import contextlib
from dataclasses import dataclass
from pathlib import Path
import time
from typing import Any
import weakref

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from drift_ros.diffusion.checkpoint import (
    autoencoder_class,
    Checkpoint,
    located,
    recommendations,
)
from drift_ros.diffusion.checkpoint_folder import check_folder
from drift_ros.diffusion.features import DiffusionFeatures
from drift_ros.engine.config import TrackerConfig
from drift_ros.engine.device import resolve_device
from drift_ros.engine.errors import CheckpointError
from drift_ros.weights import read_settings

_SMALL = 1 << 28
"""Bytes of weights below which there is always room."""

Layout = Mapping[str, Mapping[str, Any]]
"""Settings of 'unet', 'vae', 'scheduler' and the text encoders, as config files hold them."""


@dataclass(frozen=True)
class LayerShape:
    """
    A self-attention layer as frames of a size go through it.

    Attributes
    ----------
    name : str
    stride : int
        Pixels of the working size a token is wide.
    heads, rows, columns, size : int
        Of its queries; size is that of a head.

    """

    name: str
    stride: int
    heads: int
    rows: int
    columns: int
    size: int


@dataclass(frozen=True)
class Budget:
    """
    Bytes and work of a checkpoint that follows objects.

    Attributes
    ----------
    unet, vae : int
        Weights.
    text_encoders : int
        Weights, in float32; on the CPU, and only while the model is loaded.
    activations : int
        Largest of what a pass holds at one time besides weights.
    reference : int
        One remembered frame: queries and keys in half precision, and the picture.
    operations : int
        Floating-point operations of a pass.
    layers : tuple of LayerShape
        What is read.

    """

    unet: int
    vae: int
    text_encoders: int
    activations: int
    reference: int
    operations: int
    layers: tuple[LayerShape, ...]

    def tracking(self, references: int) -> int:
        """Bytes while tracking with this many remembered frames."""
        return self.unet + self.vae + self.activations + references * self.reference

    def loading(self) -> int:
        """Bytes at most while loading; files of weights are mapped, and need no room besides."""
        return self.unet + self.vae + self.text_encoders

    def peak(self, references: int, gpu: bool = False) -> int:
        """Bytes at most, of a GPU or of the CPU's memory: while loading, or while tracking."""
        tracking = self.tracking(references)
        return tracking if gpu else max(self.loading(), tracking)


def layout_of(folder: Path) -> dict[str, dict[str, Any]]:
    """
    Read the settings of a checkpoint folder's parts.

    Raises
    ------
    CheckpointError
        The folder is none, or a file in it is damaged.

    """
    components = check_folder(folder)
    layout: dict[str, dict[str, Any]] = {
        name: read_settings(folder / name / 'config.json')
        for name in ('unet', 'vae', 'text_encoder', 'text_encoder_2')
        if name != 'text_encoder_2' or name in components
    }
    layout['vae']['_class_name'] = components.get('vae', 'AutoencoderKL')
    return {**layout, 'scheduler': read_settings(folder / 'scheduler' / 'scheduler_config.json')}


def plan(
    layout: Layout,
    config: TrackerConfig,
    *,
    half: bool,
    size: tuple[int, int] = (480, 640),
    layers: Sequence[str] = (),
) -> Budget:
    """
    Find what a checkpoint of a layout needs.

    Parameters
    ----------
    layout : mapping
        See :func:`layout_of`.
    config : TrackerConfig
        Its features: resolution, layers, noise.
    half : bool
        Whether weights are float16 (as on a GPU) or float32. An autoencoder that must not be
        is float32 in any case.
    size : tuple of int
        (height, width) of frames.
    layers : sequence of str
        Read where the configuration names none.

    Raises
    ------
    CheckpointError
        A layer is not in the U-Net, or settings do not fit together.

    """
    try:
        return _plan(layout, config, half, size, layers)
    except CheckpointError:
        raise
    except Exception as error:  # whatever settings that do not fit make the libraries raise
        text = ' '.join(str(error).split())[:300]
        raise CheckpointError(
            f'no network can be built of the settings of this checkpoint '
            f'({type(error).__name__}: {text}): its config files are damaged, or of several '
            'models; get the folder again'
        ) from error


def _plan(
    layout: Layout, config: TrackerConfig, half: bool, size: tuple[int, int], layers: Sequence[str]
) -> Budget:
    checkpoint, without_memory = _planned(layout, half)
    features = DiffusionFeatures.configured(checkpoint, config, layers).plain()
    frame = np.zeros((*features.working_size(*size), 3), np.uint8)
    with without_memory, _Counter() as counted:
        found = features.extract_resized(frame)
        kept = sum(layer.query.half().nbytes + layer.key.half().nbytes for layer in found.layers)
    return Budget(
        _bytes(checkpoint.unet),
        _bytes(checkpoint.vae),
        4 * sum(_parameters_of_text(layout[name]) for name in _text_encoders(layout)),
        counted.most,
        frame.nbytes + kept,
        counted.operations,
        tuple(
            LayerShape(name, round(frame.shape[0] / layer.query.shape[1]), *layer.query.shape)
            for name, layer in zip(features.layers, found.layers, strict=True)
        ),
    )


def check_room(
    checkpoint: str | Path | None, config: TrackerConfig, device: str | torch.device
) -> None:
    """
    Refuse a checkpoint that would not fit into the memory there is, before any of it is read.

    Models of less than a quarter of a gigabyte are not asked about. The frame is taken to be
    640x480; another shape of it changes little.

    Raises
    ------
    CheckpointError
        With what is needed, what there is, and the working size that would fit.

    """
    folder = located(checkpoint)
    weights = sum(path.stat().st_size for path in folder.glob('*/*.safetensors'))
    if weights < _SMALL:
        return
    target = resolve_device(device)
    half, free = target.type == 'cuda', free_memory(target)
    layout = layout_of(folder)
    references, layers = remembered(config), recommendations(folder).get('layers', ())
    needed = plan(layout, config, half=half, layers=layers)
    if needed.peak(references, half) <= free:
        return
    known = config.flat()
    sizes = range(64, known['features.resolution'], 64)

    def too_large(resolution: int) -> bool:
        smaller = TrackerConfig.of({**known, 'features.resolution': resolution})
        return plan(layout, smaller, half=half, layers=layers).peak(references, half) > free

    fitting = bisect.bisect_left(sizes, True, key=too_large)
    remedy = 'no working size would fit: use a smaller checkpoint, or more memory'
    if fitting:
        remedy = f'features.resolution {sizes[fitting - 1]} would fit'
    parts = {
        'weights': needed.unet + needed.vae,
        'text encoders': 0 if half else needed.text_encoders,
        'a pass': needed.activations,
        f'{references} remembered frames': references * needed.reference,
    }
    listed = ', '.join(f'{name} {_gigabytes(size)}' for name, size in parts.items())
    raise CheckpointError(
        f'{folder} needs {_gigabytes(needed.peak(references, half))} on {target} at '
        f'features.resolution {known["features.resolution"]} ({listed}), and {_gigabytes(free)} '
        f'are free: {remedy}'
    )


def _gigabytes(size: int) -> str:
    return f'{size / 1e9:.1f} GB'


def remembered(config: TrackerConfig) -> int:
    """Give the number of frames a tracker remembers at most."""
    options = config.memory
    return options.recent + options.older + options.seed_frames


def free_memory(device: torch.device) -> int:
    """Give the bytes that are free on a device; of a CPU, within this process's control group."""
    if device.type == 'cuda':
        return torch.cuda.mem_get_info(device)[0]
    import psutil

    free = psutil.virtual_memory().available
    group = Path('/sys/fs/cgroup')
    with contextlib.suppress(OSError, ValueError):
        limit, used = ((group / name).read_text() for name in ('memory.max', 'memory.current'))
        free = min(free, int(limit) - int(used))
    return free


def speed(device: torch.device) -> float:
    """
    Measure how many floating-point operations a second a device does.

    It is given a convolution as Stable Diffusion has many, in the type weights have there. Passes
    reach less, as they wait for memory as well; so times made of it are the least to expect.
    """
    dtype = torch.float16 if device.type == 'cuda' else torch.float32
    image, weight = torch.ones(1, 320, 64, 64), torch.ones(320, 320, 3, 3)
    values, kernel = (
        each.to(device, dtype, memory_format=torch.channels_last) for each in (image, weight)
    )
    work = 2 * weight.numel() * 64 * 64
    taken = []
    with torch.inference_mode():
        for _ in range(5):
            start = time.perf_counter()
            found = torch.nn.functional.conv2d(values, kernel, padding=1)
            float(found[0, 0, 0, 0])  # waits for a GPU
            taken.append(time.perf_counter() - start)
    return work / min(taken)


def _text_encoders(layout: Layout) -> Iterator[str]:
    return (name for name in ('text_encoder', 'text_encoder_2') if name in layout)


def _planned(layout: Layout, half: bool) -> tuple[Checkpoint, Any]:
    """Build a checkpoint whose tensors have shapes and no memory, and the mode they live in."""
    from diffusers import DDIMScheduler, UNet2DConditionModel
    from torch._subclasses.fake_tensor import FakeTensorMode

    dtype = torch.float16 if half else torch.float32
    vae_class = autoencoder_class(layout['vae'].get('_class_name', 'AutoencoderKL'))
    wide = layout['vae'].get('force_upcast') is True
    scheduler = DDIMScheduler.from_config(dict(layout['scheduler']))
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        unet = _built(UNet2DConditionModel, layout['unet'], dtype)
        vae = _built(vae_class, layout['vae'], torch.float32 if wide else dtype)
        tokens = int(layout['text_encoder'].get('max_position_embeddings', 77))
        prompt = torch.zeros(1, tokens, int(unet.config.cross_attention_dim), dtype=dtype)
        added = {}
        if unet.config.addition_embed_type == 'text_time':
            width = int(unet.config.projection_class_embeddings_input_dim)
            pooled = width - 6 * int(unet.config.addition_time_embed_dim)
            added = {
                'text_embeds': torch.zeros(1, pooled, dtype=dtype),
                'time_ids': torch.zeros(1, 6, dtype=dtype),
            }
    return Checkpoint('planned', unet, vae, scheduler, prompt, added), mode


def _built(cls: Any, settings: Mapping[str, Any], dtype: torch.dtype) -> torch.nn.Module:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return cls.from_config(dict(settings)).eval().requires_grad_(False)
    finally:
        torch.set_default_dtype(before)


def _bytes(model: torch.nn.Module) -> int:
    return sum(weight.nbytes for weight in model.parameters())


def _parameters_of_text(settings: Mapping[str, Any]) -> int:
    """Count the weights of a text encoder."""
    from transformers import CLIPTextConfig, CLIPTextModel

    with torch.device('meta'):
        model = CLIPTextModel(CLIPTextConfig(**settings))
    return sum(weight.numel() for weight in model.parameters())


class _Counter(TorchDispatchMode):
    """Counts the bytes of tensors made within it while they live, and multiplications."""

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._known: dict[int, weakref.ref] = {}
        from torch.utils.flop_counter import FlopCounterMode

        self._flops = FlopCounterMode(display=False)

    @property
    def operations(self) -> int:
        return self._flops.get_total_flops()

    def __enter__(self) -> _Counter:
        self._flops.__enter__()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._flops.__exit__(*error)

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        found = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        return found

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._now += size
        self.most = max(self.most, self._now)

        def gone(_: Any) -> None:
            self._known.pop(key, None)
            self._now -= size

        self._known[key] = weakref.ref(storage, gone)
