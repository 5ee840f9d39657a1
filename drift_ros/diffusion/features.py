# SPDX-License-Identifier: Apache-2.0
"""Queries and keys of a diffusion U-Net's self-attention for one frame."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from drift_ros.diffusion.checkpoint import Checkpoint
from drift_ros.errors import CheckpointError


@dataclass(frozen=True)
class LayerFeatures:
    """
    One self-attention layer's view of a frame.

    Attributes
    ----------
    query, key : Tensor
        (heads, h, w, d) floating point on the token grid h x w. ``query @ key^T / sqrt(d)`` are
        the network's own attention logits.

    """

    query: Tensor
    key: Tensor


@dataclass(frozen=True)
class FrameFeatures:
    """The captured layers of one frame, in the order of the U-Net's forward pass."""

    layers: tuple[LayerFeatures, ...]

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the finest layer."""
        return max(tuple(layer.query.shape[1:3]) for layer in self.layers)


class DiffusionFeatures:
    """
    Turn a frame into self-attention queries and keys (DRIFT, arXiv 2511.19936, section 3.1).

    The U-Net is the stock one; attention processors read Q and K, and the pass ends at the last
    layer asked for.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        layers: Sequence[str] = (),
        timestep: int = -1,
        resolution: int = 240,
    ) -> None:
        """
        Choose layers, noise level and working size.

        Parameters
        ----------
        checkpoint : Checkpoint
            The model.
        layers : sequence of str
            Names of attention blocks or parts of them, for instance ``up_blocks.2.attentions.0``.
            Empty: those the checkpoint recommends, else the first self-attention of the last up
            block that has one (the finest grid reached with the network's whole context).
        timestep : int
            Noise level tau the U-Net is told, 0 to 999. -1: the checkpoint's own.
        resolution : int
            The frame's shorter side is resized to about this many pixels.

        Raises
        ------
        CheckpointError
            When a layer is not in the U-Net, or the timestep is outside the scheduler's range.

        """
        self._checkpoint = checkpoint
        self._resolution = resolution
        steps = checkpoint.scheduler.config.num_train_timesteps
        if timestep == -1:
            timestep = checkpoint.timestep
        if not 0 <= timestep < steps:
            raise CheckpointError(f'timestep is {timestep}; this checkpoint has 0 to {steps - 1}')
        self._timestep = timestep
        self.layers = select_layers(checkpoint.unet, layers or checkpoint.layers)
        self._captured: dict[str, LayerFeatures] = {}

    def extract(self, frame: np.ndarray) -> FrameFeatures:
        """
        Run the network on one frame.

        Parameters
        ----------
        frame : np.ndarray
            (H, W, 3) uint8 RGB.

        Returns
        -------
        FrameFeatures
            float32 on the checkpoint's device.

        """
        latents = self.encode(frame)
        with torch.inference_mode():
            self._run_unet(latents)
        captured = tuple(self._captured.pop(name) for name in self.layers)
        return FrameFeatures(captured)

    def encode(self, frame: np.ndarray) -> Tensor:
        """Encode (H, W, 3) uint8 RGB into latents (1, channels, h, w), resized as configured."""
        height, width = self.working_size(*frame.shape[:2])
        shrink = height * width < frame.shape[0] * frame.shape[1]
        resized = cv2.resize(
            frame, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        )
        vae = self._checkpoint.vae
        image = torch.from_numpy(resized).to(self._checkpoint.device)
        image = image.permute(2, 0, 1)[None].to(self._checkpoint.dtype) / 127.5 - 1.0
        with torch.inference_mode():
            encoded = vae.encode(image.contiguous(memory_format=torch.channels_last))
        # A KL autoencoder gives a distribution, whose mode is taken; a tiny one gives latents.
        latents = encoded.latent_dist.mode() if 'latent_dist' in encoded else encoded.latents
        shift = getattr(vae.config, 'shift_factor', None) or 0.0
        return (latents - shift) * vae.config.scaling_factor

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Size in pixels that a frame is resized to: multiples of the network's total stride."""
        vae, unet = self._checkpoint.vae, self._checkpoint.unet
        stride = 2 ** (len(vae.config.block_out_channels) - 1)
        stride *= 2 ** (len(unet.config.block_out_channels) - 1)
        ratio = self._resolution / min(height, width)
        return (
            max(round(height * ratio / stride), 1) * stride,
            max(round(width * ratio / stride), 1) * stride,
        )

    def _run_unet(self, latents: Tensor) -> None:
        unet, scheduler = self._checkpoint.unet, self._checkpoint.scheduler
        # The noise-free pass: the mean of the forward process at tau, without its noise.
        alpha = float(scheduler.alphas_cumprod[self._timestep])
        height, width = latents.shape[-2:]
        stock = {}
        last = self.layers[-1]
        for name in self.layers:
            attention = unet.get_submodule(name)
            stock[name] = attention.processor
            attention.processor = _QueryKeyCapture(
                attention.processor, self._captured, name, (height, width), name == last
            )
        try:
            unet(
                latents * alpha**0.5,
                self._timestep,
                encoder_hidden_states=self._checkpoint.prompt,
                added_cond_kwargs=self._checkpoint.added_conditions or None,
            )
        except _LastLayerReached:
            pass
        finally:
            for name, processor in stock.items():
                unet.get_submodule(name).processor = processor


def self_attention_layers(unet: torch.nn.Module) -> list[str]:
    """Names of all self-attention modules, in the order of the forward pass."""
    order = {'down_blocks': 0, 'mid_block': 1, 'up_blocks': 2}
    names = [name for name, _ in unet.named_modules() if name.endswith('.attn1')]
    return sorted(names, key=lambda name: order[name.split('.')[0]])  # stable within a block


def select_layers(unet: torch.nn.Module, wanted: Sequence[str]) -> tuple[str, ...]:
    """
    Resolve parts of names into full names of self-attention modules, in forward order.

    Raises
    ------
    CheckpointError
        When a part matches no layer; the message lists those there are.

    """
    available = self_attention_layers(unet)
    if not available:
        raise CheckpointError('the U-Net has no self-attention; use a Stable-Diffusion-style one')
    if not wanted:
        last_block = [name for name in available if name.startswith('up_blocks')][-1:]
        block = (last_block or available[-1:])[0].split('.')[:2]
        return (next(name for name in available if name.split('.')[:2] == block),)
    chosen = set()
    for part in wanted:
        matches = [name for name in available if f'{name}.'.startswith(f'{part}.')]
        if not matches:
            raise CheckpointError(
                f'no self-attention layer {part!r}; this U-Net has {", ".join(available)}'
            )
        chosen.update(matches)
    return tuple(name for name in available if name in chosen)


class _LastLayerReached(Exception):
    """Ends the forward pass: nothing after the last captured layer is needed."""


class _QueryKeyCapture:
    """Attention processor that reads Q and K, then hands over to the stock processor."""

    def __init__(
        self,
        processor: Any,
        captured: dict[str, LayerFeatures],
        name: str,
        latent_size: tuple[int, int],
        last: bool,
    ) -> None:
        self._processor = processor
        self._captured = captured
        self._name = name
        self._latent_size = latent_size
        self._last = last

    def __call__(
        self,
        attn: torch.nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        # (batch, tokens, channels): norms and projections as the stock processors apply them.
        states = hidden_states
        if attn.group_norm is not None:
            states = attn.group_norm(states.transpose(1, 2)).transpose(1, 2)
        query = self._split_heads(attn, attn.to_q(states), attn.norm_q)
        key = self._split_heads(attn, attn.to_k(states), attn.norm_k)
        self._captured[self._name] = LayerFeatures(query, key)
        if self._last:
            raise _LastLayerReached
        return self._processor(
            attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs
        )

    def _split_heads(
        self, attn: torch.nn.Module, projected: Tensor, norm: torch.nn.Module | None
    ) -> Tensor:
        """(1, tokens, heads * d) -> (heads, h, w, d) float32."""
        heads = projected[0].unflatten(-1, (attn.heads, -1)).transpose(0, 1)
        if norm is not None:
            heads = norm(heads)
        return heads.float().unflatten(1, _token_grid(heads.shape[1], self._latent_size))


def _token_grid(tokens: int, latent_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a layer with this many tokens: the latents' size halved some times."""
    height, width = latent_size
    while height * width > tokens and max(height, width) > 1:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != tokens:
        raise CheckpointError(
            f'{tokens} tokens do not lie on a halved grid of the latents {latent_size}'
        )
    return height, width
