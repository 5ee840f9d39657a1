# SPDX-License-Identifier: Apache-2.0
"""
Build the small stock Stable-Diffusion-style model, run it part-way, and export it.

Every component is a stock `diffusers` or `transformers` class, so that the exported folder loads
with `StableDiffusionPipeline.from_pretrained` and nothing of this repository.
"""

from __future__ import annotations

from collections.abc import Sequence
import contextlib
import json
from pathlib import Path
from typing import Any

from diffusers import AutoencoderTiny, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from drift_ros.diffusion.attention import AttentionReader, capturing, PassEnded, split_heads

LUMA_BASIS = 16
CHROMA_BASIS = 4
LATENT_CHANNELS = LUMA_BASIS + 2 * CHROMA_BASIS
LATENT_STRIDE = 4

# Standard deviations of the 4x4 DCT coefficients of photographs fall steeply with frequency.
# Dividing by the square root of that fall ("half whitening") keeps the coarse-to-fine order of
# the noise while the fine coefficients stay visible to the network.
_WHITENING_POWER = 0.5


def dct_matrix(n: int) -> np.ndarray:
    """Return the orthonormal DCT-II matrix, (n, n) float64, rows are frequencies."""
    k = np.arange(n)[:, None]
    x = np.arange(n)[None]
    m = np.cos(np.pi * (x + 0.5) * k / n) * np.sqrt(2.0 / n)
    m[0] /= np.sqrt(2.0)
    return m


def latent_transform() -> tuple[np.ndarray, np.ndarray]:
    """
    Return the linear map from a 4x4 RGB cell in [0, 1] to the latent channels.

    Returns
    -------
    (matrix, bias) : (24, 3, 4, 4) and (24,) float64
        16 luma DCT coefficients, then the 4 lowest of each of two chroma planes (YCbCr, BT.601),
        half whitened, zero mean for a mid-grey cell.

    """
    ycc = np.array(
        [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]
    )
    d = dct_matrix(4)
    order = sorted(((u, v) for u in range(4) for v in range(4)), key=lambda p: (p[0] + p[1], p))
    rows: list[np.ndarray] = []
    bias: list[float] = []
    for plane, count, spread in (
        (0, LUMA_BASIS, 1.0),
        (1, CHROMA_BASIS, 0.25),
        (2, CHROMA_BASIS, 0.25),
    ):
        for u, v in order[:count]:
            deviation = spread * 0.9 / (1.0 + 2.2 * (u + v)) ** 1.3
            gain = deviation**-_WHITENING_POWER
            basis = np.outer(d[u], d[v])
            rows.append(gain * ycc[plane][:, None, None] * basis[None])
            # a constant 0.5 grey cell has luma DC 4 * 0.5
            bias.append(-gain * 2.0 if plane == 0 and u == v == 0 else 0.0)
    return np.stack(rows), np.array(bias)


@torch.no_grad()
def build_vae() -> AutoencoderTiny:
    """
    Return an `AutoencoderTiny` whose encoder equals the latent transform exactly.

    With zero blocks per stage the encoder is a stack of convolutions without non-linearity: two
    stride-2 convolutions do the space-to-depth (the second one contracts it with the transform),
    the first and the last are identities. The decoder is ordinary and has to be trained.
    """
    c = LATENT_CHANNELS
    vae = AutoencoderTiny(
        encoder_block_out_channels=(c, c, c),
        num_encoder_blocks=(0, 0, 0),
        decoder_block_out_channels=(40, 40, 40),
        num_decoder_blocks=(1, 1, 0),
        latent_channels=c,
        scaling_factor=1.0,
    )
    matrix, bias = latent_transform()
    stem, half, quarter, out = vae.encoder.layers
    for conv in (stem, half, quarter, out):
        conv.weight.zero_()
        if conv.bias is not None:
            conv.bias.zero_()
    for rgb in range(3):
        stem.weight[rgb, rgb, 1, 1] = 1.0
        for y in range(2):
            for x in range(2):
                # kernel 3, padding 1, stride 2: taps 1 and 2 are rows 2i and 2i + 1
                half.weight[rgb * 4 + y * 2 + x, rgb, 1 + y, 1 + x] = 1.0
                for yy in range(2):
                    for xx in range(2):
                        quarter.weight[:, rgb * 4 + y * 2 + x, 1 + yy, 1 + xx] = torch.from_numpy(
                            matrix[:, rgb, 2 * yy + y, 2 * xx + x]
                        ).float()
    out.weight[range(c), range(c), 1, 1] = 1.0
    out.bias.copy_(torch.from_numpy(bias))
    vae.encoder.requires_grad_(False)
    return vae


def encode_exact(images: Tensor) -> Tensor:
    """
    Encode as `build_vae` does, in one stride-4 convolution (fast path of the training).

    Parameters
    ----------
    images : (B, 3, H, W) float in [-1, 1]; H and W divisible by 4

    Returns
    -------
    (B, 24, H / 4, W / 4) float latents

    """
    matrix, bias = latent_transform()
    weight = torch.from_numpy(matrix).to(images)
    return F.conv2d(images.add(1).div(2), weight, torch.from_numpy(bias).to(images), stride=4)


def build_tokenizer(words: Sequence[str], length: int = 12) -> CLIPTokenizer:
    """Return a CLIP tokenizer whose merges make every given word one token (bytes remain)."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    alphabet = list(bytes_to_unicode().values())
    tokens = alphabet + [a + '</w>' for a in alphabet]
    ranks: dict[tuple[str, str], int] = {}
    for word in sorted({w.lower() for text in words for w in text.split()}):
        pieces = [*word[:-1], word[-1] + '</w>']
        # merges of earlier words apply first; whatever they leave is joined by new ones, which
        # rank behind and so cannot change an earlier word
        while len(pieces) > 1:
            pairs = list(zip(pieces, pieces[1:]))
            best = min(pairs, key=lambda p: ranks.get(p, len(ranks)))
            if best not in ranks:
                best = pairs[0]
                ranks[best] = len(ranks)
                tokens.append(''.join(best))
            joined: list[str] = []
            for piece in pieces:
                if joined and (joined[-1], piece) == best:
                    joined[-1] += piece
                else:
                    joined.append(piece)
            pieces = joined
    merges = list(ranks)
    tokens = list(dict.fromkeys(tokens))
    tokens += ['<|startoftext|>', '<|endoftext|>']
    vocab = {t: i for i, t in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=length)


def build_text_encoder(tokenizer: CLIPTokenizer, width: int = 64) -> CLIPTextModel:
    """Return a two-layer CLIP text encoder for the tokenizer."""
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=4 * width,
            projection_dim=width,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_unet(
    channels: Sequence[int] = (64, 96, 160),
    heads: Sequence[int] = (1, 3, 4),
    attention: Sequence[bool] = (True, False, True),
    text_width: int = 64,
    layers_per_block: int = 1,
    early: bool = False,
    groups: int = 16,
    stem: int = 3,
) -> UNet2DConditionModel:
    """
    Return the U-Net: one resolution per entry of `channels`, the first at latent resolution.

    Parameters
    ----------
    channels : channels per resolution
    heads : attention heads per resolution
    attention : whether the *up* path has attention at each resolution
    text_width : width of the text encoder's hidden states
    layers_per_block : residual blocks per down block (up blocks have one more)
    early : attention also in the down path at latent resolution
    groups : groups of the group normalisation
    stem : kernel size of the first convolution

    """
    n = len(channels)
    down = tuple(
        'CrossAttnDownBlock2D' if attention[i] and (i > 0 or early) else 'DownBlock2D'
        for i in range(n)
    )
    up = tuple('CrossAttnUpBlock2D' if attention[i] else 'UpBlock2D' for i in reversed(range(n)))
    return UNet2DConditionModel(
        sample_size=48,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=down,
        up_block_types=up,
        block_out_channels=tuple(channels),
        layers_per_block=layers_per_block,
        attention_head_dim=tuple(heads),
        conv_in_kernel=stem,
        cross_attention_dim=text_width,
        norm_num_groups=groups,
        use_linear_projection=True,
        mid_block_type='UNetMidBlock2DCrossAttn',
    )


def build_scheduler() -> DDIMScheduler:
    """Return the noise schedule: 1000 scaled-linear steps, v-prediction, zero terminal SNR."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_schedule='scaled_linear',
        beta_start=0.00085,
        beta_end=0.012,
        prediction_type='v_prediction',
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        rescale_betas_zero_snr=True,
        timestep_spacing='trailing',
    )


class SharedAttention:
    """Attention processor that lets `views` consecutive batch entries share one self-attention."""

    def __init__(self, processor: Any, views: int) -> None:
        self._processor, self._views = processor, views

    def __call__(
        self, attn: torch.nn.Module, hidden_states: Tensor, *args: Any, **kwargs: Any
    ) -> Tensor:
        """Attend as the given processor does, once for all views: (B, N, C) to (B, N, C)."""
        joined = hidden_states.unflatten(0, (-1, self._views)).flatten(1, 2)
        out = self._processor(attn, joined, *args, **kwargs)
        return out.unflatten(1, (self._views, -1)).flatten(0, 1)


class Capture:
    """
    Runs a U-Net and reads one self-attention layer's queries and keys.

    Attributes
    ----------
    query, key : (B, heads, N, d) float
        of the last pass

    """

    def __init__(self, unet: UNet2DConditionModel, layer: str) -> None:
        self.unet = unet
        self.layer = layer
        self.query: Tensor | None = None
        self.key: Tensor | None = None

    def _read(self, attn: torch.nn.Module, states: Tensor) -> None:
        self.query = split_heads(attn, attn.to_q(states), None)
        self.key = split_heads(attn, attn.to_k(states), None)

    def _pass(
        self, latents: Tensor, timesteps: Tensor, text: Tensor, views: int, last: bool
    ) -> Tensor:
        def make(stock: Any) -> AttentionReader:
            shared = SharedAttention(stock, views) if views > 1 else stock
            return AttentionReader(shared, self._read, last)

        with capturing(self.unet, {self.layer: make}):
            return self.unet(latents, timesteps, text).sample

    def queries_keys(
        self, latents: Tensor, timesteps: Tensor, text: Tensor
    ) -> tuple[Tensor, Tensor]:
        """
        Return Q and K of the layer without computing anything behind it.

        Parameters
        ----------
        latents : (B, C, h, w) float
        timesteps : (B,) long
        text : (B, T, D) float hidden states of the text encoder

        Returns
        -------
        (query, key) : (B, heads, N, d) float each

        """
        with contextlib.suppress(PassEnded):
            self._pass(latents, timesteps, text, views=1, last=True)
        assert self.query is not None and self.key is not None
        return self.query, self.key

    def denoise(self, latents: Tensor, timesteps: Tensor, text: Tensor, views: int = 1) -> Tensor:
        """
        Return the U-Net's prediction, (B, C, h, w) float; parameters as of `queries_keys`.

        `views` > 1 lets that many consecutive batch entries share the layer's attention.
        """
        return self._pass(latents, timesteps, text, views, last=False)


@torch.no_grad()
def tie_queries_keys(unet: UNet2DConditionModel, layer: str, temperature: float) -> None:
    """
    Start the layer at Q = K with orthogonal projections.

    Layer normalisation makes every token's norm sqrt(width), so with equal orthogonal weights
    the logits are `temperature * cosine` (for one head; about that for several).
    """
    attn = unet.get_submodule(layer)
    width = attn.to_q.weight.shape[1]
    head = attn.to_q.weight.shape[0] // attn.heads
    torch.nn.init.orthogonal_(attn.to_q.weight)
    # logits = gain^2 * (width / heads) * cosine / sqrt(head)
    attn.to_q.weight.mul_((temperature * head**0.5 / (width / attn.heads)) ** 0.5)
    attn.to_k.weight.copy_(attn.to_q.weight)


def export(
    folder: Path,
    unet: UNet2DConditionModel,
    vae: AutoencoderTiny,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    notes: dict[str, Any],
) -> None:
    """
    Write a stock half-precision diffusers folder.

    `notes` (the capture layer, the timestep and the like) go to `drift_ros.json` beside
    `model_index.json`; stock loaders ignore it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    dtypes = {
        name: next(m.parameters()).dtype
        for name, m in pipeline.components.items()
        if isinstance(m, torch.nn.Module)
    }
    try:
        pipeline.to(torch.float16)
        pipeline.save_pretrained(folder, safe_serialization=True)
    finally:
        pipeline.to(torch.float32)
    assert all(d == torch.float32 for d in dtypes.values()), 'train in float32'
    # The class derives this entry, writes it, and warns of it when it reads it back.
    config = folder / 'vae' / 'config.json'
    entries = json.loads(config.read_text())
    entries.pop('block_out_channels', None)
    config.write_text(json.dumps(entries, indent=2) + '\n')
    (folder / 'drift_ros.json').write_text(json.dumps(notes, indent=2) + '\n')
