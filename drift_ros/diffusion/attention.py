# SPDX-License-Identifier: Apache-2.0
"""The attention layers of a stock U-Net: which there are, and how to look into them."""

from collections.abc import Callable, Iterator, Mapping, Sequence
import contextlib
from typing import Any

import torch
from torch import Tensor

from drift_ros.engine.errors import CheckpointError


def self_attention_layers(unet: torch.nn.Module) -> list[str]:
    """Names of all self-attention modules, in the order of the forward pass."""
    return attention_layers(unet, '.attn1')


def attention_layers(unet: torch.nn.Module, *endings: str) -> list[str]:
    """Names of the attention modules with these endings, in the order of the forward pass."""
    order = {'down_blocks': 0, 'mid_block': 1, 'up_blocks': 2}
    names = [name for name, _ in unet.named_modules() if name.endswith(endings)]
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


class PassEnded(Exception):
    """Raised by a processor to end the pass: nothing after the last captured layer is needed."""


@contextlib.contextmanager
def capturing(
    unet: torch.nn.Module, processors: Mapping[str, Callable[[Any], Any]]
) -> Iterator[None]:
    """
    Put attention processors into a U-Net for a while.

    ``processors`` maps names of attention modules to functions that take the stock processor and
    give the one to use.
    """
    stock = {name: unet.get_submodule(name).processor for name in processors}
    try:
        for name, make in processors.items():
            unet.get_submodule(name).processor = make(stock[name])
        yield
    finally:
        for name, processor in stock.items():
            unet.get_submodule(name).processor = processor


class AttentionReader:
    """
    Attention processor that shows a layer's input, then hands over to the stock processor.

    ``read`` gets the attention module and its input (samples, tokens, channels), normalised as
    the stock processors do before they project it. ``last`` ends the pass there.
    """

    def __init__(
        self,
        processor: Any,
        read: Callable[[torch.nn.Module, Tensor], None],
        last: bool = False,
    ) -> None:
        self._processor, self._read, self._last = processor, read, last

    def __call__(
        self,
        attn: torch.nn.Module,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
        **kwargs: object,
    ) -> Tensor:
        """Attend as the stock processor does."""
        states = hidden_states
        if attn.group_norm is not None:
            states = attn.group_norm(states.transpose(1, 2)).transpose(1, 2)
        self._read(attn, states)
        if self._last:
            raise PassEnded
        return self._processor(
            attn, hidden_states, encoder_hidden_states, attention_mask, temb, **kwargs
        )


def split_heads(attn: torch.nn.Module, projected: Tensor, norm: torch.nn.Module | None) -> Tensor:
    """(samples, tokens, heads * d) to (samples, heads, tokens, d), normalised where asked to."""
    heads = projected.unflatten(-1, (attn.heads, -1)).transpose(1, 2)
    return heads if norm is None else norm(heads)


def token_grid(tokens: int, latent_size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns of a layer with this many tokens: the latents' size halved some times."""
    height, width = latent_size
    while height * width > tokens and max(height, width) > 1:
        height, width = -(-height // 2), -(-width // 2)
    if height * width != tokens:
        raise CheckpointError(
            f'{tokens} tokens do not lie on a halved grid of the latents {latent_size}'
        )
    return height, width
