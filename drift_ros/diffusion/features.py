# SPDX-License-Identifier: Apache-2.0
"""Queries and keys of a diffusion U-Net's self-attention for one frame."""

from collections.abc import Mapping, Sequence
import contextlib
import copy
from functools import partial

import cv2
import numpy as np
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

from drift_ros.diffusion.attention import (
    AttentionReader,
    capturing,
    PassEnded,
    select_layers,
    split_heads,
    token_grid,
)
from drift_ros.diffusion.checkpoint import Checkpoint
from drift_ros.diffusion.colour_patches import colour_patches
from drift_ros.diffusion.compiled_pass import compile_pass, Pass
from drift_ros.diffusion.inversion import DDIM
from drift_ros.engine.config import TrackerConfig
from drift_ros.engine.device import has_bfloat16
from drift_ros.engine.errors import CheckpointError
from drift_ros.engine.frame_features import FrameFeatures, LayerFeatures, working_scale

# Colour patches are blocks of 3 x 3 tokens; their cosine is divided by this to stand beside
# attention logits.
_PATCH = 3
_COLOUR_TEMPERATURE = 0.009
# Of so many sizes of pictures a compiled pass is kept.
_SIZES = 4
# A compiled pass holds the weights once more: only of models of at most so many bytes.
_SMALL = 1 << 30


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
        noise: str = 'none',
        inversion_steps: int = 1,
        noise_samples: int = 1,
        noise_seed: int = 0,
        colour_share: float = 0.0,
        precision: str = 'float32',
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
            The frame's shorter side is resized to about this many pixels; fewer where a
            picture is long, see :func:`drift_ros.engine.frame_features.working_scale`.
        noise, inversion_steps, noise_samples, noise_seed
            How latents get to the noise level, see
            :class:`drift_ros.engine.config.FeatureOptions`.
        colour_share : float
            Of raw colour in queries and keys, see :func:`with_colour`.
        precision : str
            Of the network on a CPU, see :class:`drift_ros.engine.config.FeatureOptions`.

        Raises
        ------
        CheckpointError
            When a layer is not in the U-Net, or the timestep is outside the scheduler's range.

        """
        self.checkpoint = checkpoint
        self._resolution = resolution
        steps = checkpoint.scheduler.config.num_train_timesteps
        if timestep == -1:
            timestep = checkpoint.timestep
        if not 0 <= timestep < steps:
            raise CheckpointError(f'timestep is {timestep}; this checkpoint has 0 to {steps - 1}')
        self.timestep = timestep
        self._alpha = float(checkpoint.scheduler.alphas_cumprod[timestep])
        self.prompt = checkpoint.prompt
        """(1, tokens, cross-attention width): what the U-Net is conditioned on."""
        self.tokens: dict[int, Tensor] = {}
        """Prompt tokens (n, width) learnt for objects, by id; they are part of the prompt."""
        self._ddim = DDIM(checkpoint.scheduler) if noise == 'inversion' else None
        self._steps = inversion_steps
        self._samples = noise_samples if noise == 'random' else 0
        self._noise_seed = noise_seed
        self._colour_share = colour_share
        self.layers = select_layers(checkpoint.unet, layers or checkpoint.layers)
        # the embedded model's queries and keys are one
        self._tied = [_tied(checkpoint.unet.get_submodule(name)) for name in self.layers]
        self._precision = precision
        self._passes: dict[tuple[int, ...], Pass] = {}  # by size of the picture
        self._ahead: list[tuple[np.ndarray, FrameFeatures]] = []

    @classmethod
    def configured(
        cls,
        checkpoint: Checkpoint,
        config: TrackerConfig,
        layers: Sequence[str] = (),
    ) -> 'DiffusionFeatures':
        """
        Make the features a configuration asks for; ``layers`` are read where it names none.

        Raises as the constructor.
        """
        options, more = config.features, config.experimental
        return cls(
            checkpoint,
            layers=options.layers or layers,
            timestep=options.timestep,
            resolution=options.resolution,
            noise=options.noise,
            inversion_steps=options.inversion_steps,
            noise_samples=more.noise_samples,
            noise_seed=more.noise_seed,
            colour_share=more.colour_share,
            precision=options.precision,
        )

    def conditioned(self, prompt: Tensor, tokens: Mapping[int, Tensor]) -> 'DiffusionFeatures':
        """
        Give the same extractor under another prompt; this one stays as it is.

        Parameters
        ----------
        prompt : Tensor
            (1, tokens, cross-attention width).
        tokens : mapping of int to Tensor
            What of it was learnt for objects, (n, width) by id.

        """
        other = copy.copy(self)
        other.prompt = prompt.to(self.checkpoint.dtype)
        other.tokens = dict(tokens)
        other._passes, other._ahead = {}, []
        return other

    def plain(self) -> 'DiffusionFeatures':
        """Give the same extractor as torch runs it in the type of its weights, uncompiled."""
        other = copy.copy(self)
        other._precision, other._passes, other._ahead = 'float32', {}, []
        return other

    def prepare(self, frame: np.ndarray) -> None:
        """Compile what frames (H, W, 3) uint8 RGB of this size need, unless that is done."""
        if (*self.working_size(*frame.shape[:2]), 3) not in self._passes:
            with self.checkpoint.lock, torch.inference_mode():
                self._pass(torch.from_numpy(self.resize(frame)))

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
        for place, (known, features) in enumerate(self._ahead):
            if known is frame:
                del self._ahead[place]
                return features
        return self.extract_resized(self.resize(frame))

    def extract_ahead(self, frames: Sequence[np.ndarray]) -> None:
        """
        Run the network on several frames at once, those of one working size in one batch.

        :meth:`extract` of each of these very arrays then gives what was found, once; what was
        found before and not asked for is forgotten. A batch is torch's, never compiled: it pays
        where a GPU has room for more than one picture.

        Parameters
        ----------
        frames : sequence of np.ndarray
            (H, W, 3) uint8 RGB each.

        """
        self._ahead = []
        sizes: dict[tuple[int, ...], list[tuple[np.ndarray, np.ndarray]]] = {}
        for frame in frames:
            image = self.resize(frame)
            sizes.setdefault(image.shape, []).append((frame, image))
        for pairs in sizes.values():
            pixels = torch.from_numpy(np.stack([image for _, image in pairs]))
            with self.checkpoint.lock, torch.inference_mode():
                found = self._look_at(pixels)
            for place, (frame, image) in enumerate(pairs):
                own = [tensor[place].clone() for tensor in found]  # no view of the whole batch
                self._ahead.append((frame, self._features(own, image)))

    def extract_resized(self, image: np.ndarray) -> FrameFeatures:
        """Run the network on a frame of the working size, as :meth:`resize` gives it."""
        pixels = torch.from_numpy(image)
        with self.checkpoint.lock, torch.inference_mode():
            return self._features(self._pass(pixels)(pixels), image)

    def _features(self, tensors: Sequence[Tensor], image: np.ndarray) -> FrameFeatures:
        """Put queries and keys of the layers together."""
        found, layers = iter(tensors), []
        for tied in self._tied:
            query = next(found)
            layers.append(LayerFeatures(query, query if tied else next(found)))
        return with_colour(FrameFeatures(tuple(layers), image), self._colour_share)

    def extract_scaled(self, image: np.ndarray, scale: float) -> FrameFeatures:
        """Run the network on a frame of the working size, made about ``scale`` times as large."""
        rows, columns = (
            max(round(side * scale / self.stride), 1) * self.stride for side in image.shape[:2]
        )
        how = cv2.INTER_AREA if scale < 1.0 else cv2.INTER_LINEAR
        return self.extract_resized(cv2.resize(image, (columns, rows), interpolation=how))

    def _pass(self, pixels: Tensor) -> Pass:
        """Choose how the network is run on pictures of this size."""
        size = tuple(pixels.shape)
        if size not in self._passes:
            while len(self._passes) >= _SIZES:
                del self._passes[next(iter(self._passes))]
            self._passes[size] = self._chosen(pixels)
        return self._passes[size]

    def _chosen(self, pixels: Tensor) -> Pass:
        checkpoint, precision = self.checkpoint, self._precision
        if checkpoint.device.type != 'cpu' or precision == 'float32':
            return self._look
        wanted = [precision]
        if precision == 'auto':
            wanted = ['bfloat16', 'float32'] if has_bfloat16() else ['float32']
        if checkpoint.nbytes <= _SMALL and not self.inverts:
            for each in wanted:
                compiled = compile_pass(self._look, pixels, each)
                if compiled is not None:
                    return compiled
        return self._look_roughly if precision == 'bfloat16' else self._look

    def _look_roughly(self, pixels: Tensor) -> list[Tensor]:
        with torch.autocast('cpu', torch.bfloat16):
            return self._look(pixels)

    def _look(self, pixels: Tensor) -> list[Tensor]:
        """
        Run the network on a picture (h, w, 3) uint8.

        Gives each layer's query and, unless it is the same, key: (heads, h, w, d) float32.
        """
        return [tensor[0] for tensor in self._look_at(pixels[None])]

    def _look_at(self, pixels: Tensor) -> list[Tensor]:
        """As :meth:`_look`, of pictures (n, h, w, 3) uint8: (n, heads, h, w, d) each."""
        latents = self.noisy(self._encode(pixels))
        captured: dict[str, list[Tensor]] = {}
        latent_size = (latents.shape[-2], latents.shape[-1])

        def read(name: str, attn: torch.nn.Module, states: Tensor) -> None:
            tied = self._tied[self.layers.index(name)]
            captured[name] = _queries_keys(attn, states, latent_size, tied, len(pixels))

        processors = {
            name: partial(AttentionReader, read=partial(read, name), last=name == self.layers[-1])
            for name in self.layers
        }
        with capturing(self.checkpoint.unet, processors), contextlib.suppress(PassEnded):
            self.run_unet(latents)
        return [tensor for name in self.layers for tensor in captured[name]]

    def resize(self, frame: np.ndarray) -> np.ndarray:
        """Resize a frame (H, W, 3) uint8 to the working size."""
        height, width = self.working_size(*frame.shape[:2])
        shrink = height * width < frame.shape[0] * frame.shape[1]
        return cv2.resize(
            frame, (width, height), interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        )

    def encode(self, image: np.ndarray) -> Tensor:
        """Encode an image of the working size into clean latents (1, channels, h, w)."""
        with torch.inference_mode():
            return self._encode(torch.from_numpy(image)[None])

    def _encode(self, pixels: Tensor) -> Tensor:
        """Pictures (n, h, w, 3) uint8 to clean latents (n, channels, h, w)."""
        vae = self.checkpoint.vae
        pixels = pixels.to(self.checkpoint.device)
        # the autoencoder may need a wider type than the U-Net
        pixels = pixels.permute(0, 3, 1, 2).to(next(vae.parameters()).dtype) / 127.5 - 1.0
        encoded = vae.encode(pixels.contiguous(memory_format=torch.channels_last))
        # A KL autoencoder gives a distribution, whose mode is taken; a tiny one gives latents.
        latents = encoded.latent_dist.mode() if 'latent_dist' in encoded else encoded.latents
        shift = getattr(vae.config, 'shift_factor', None) or 0.0
        return ((latents - shift) * vae.config.scaling_factor).to(self.checkpoint.dtype)

    def noisy(self, latents: Tensor) -> Tensor:
        """Take clean latents (n, channels, h, w) to the noise level: (n * samples, ...)."""
        if self._ddim is not None:
            with torch.inference_mode():
                return self._ddim.invert(latents, self.timestep, self._steps, self.run_unet)
        scaled = latents * self._alpha**0.5
        if not self._samples:
            return scaled  # the mean of the forward process at tau, without its noise
        # On the CPU, so that every device gets the same noise.
        generator = torch.Generator().manual_seed(self._noise_seed)
        noise = torch.randn((self._samples, *latents.shape[1:]), generator=generator)
        # (n, samples, channels, h, w)
        return (scaled[:, None] + (1.0 - self._alpha) ** 0.5 * noise.to(latents)).flatten(0, 1)

    def working_size(self, height: int, width: int) -> tuple[int, int]:
        """Size in pixels that a frame is resized to: multiples of :attr:`stride`."""
        stride = self.stride
        ratio = working_scale(height, width, self._resolution) / stride
        rows, columns = max(round(height * ratio), 1), max(round(width * ratio), 1)
        if 1 in (rows, columns):  # a strip may be too thin for the network, but not too long
            most = max(round(height * width * ratio**2), 1)
            rows, columns = min(rows, most), min(columns, most)
        return rows * stride, columns * stride

    @property
    def stride(self) -> int:
        """The network's total stride in pixels."""
        vae, unet = self.checkpoint.vae, self.checkpoint.unet
        halvings = len(vae.config.block_out_channels) + len(unet.config.block_out_channels) - 2
        return 2**halvings

    @property
    def inverts(self) -> bool:
        """Whether whole passes of the network take the latents to the noise level."""
        return self._ddim is not None

    def run_unet(
        self, latents: Tensor, timestep: int | None = None, prompt: Tensor | None = None
    ) -> Tensor:
        """
        Run the U-Net on latents (n, channels, h, w); returns its prediction.

        ``timestep`` is the level it is told, by default the one features are read at; ``prompt``
        (1, tokens, width) stands in for :attr:`prompt`. Raises PassEnded where a processor ended
        the pass.
        """
        prompt = self.prompt if prompt is None else prompt
        count = len(latents)
        added = {
            key: value.expand(count, *value.shape[1:])
            for key, value in self.checkpoint.added_conditions.items()
        }
        return self.checkpoint.unet(
            latents,
            self.timestep if timestep is None else timestep,
            encoder_hidden_states=prompt.expand(count, -1, -1),
            added_cond_kwargs=added or None,
        ).sample


def with_colour(features: FrameFeatures, share: float) -> FrameFeatures:
    """
    Let colour speak in every head: attention and colour become one kernel.

    Its logits are ``(1 - share)`` times the attention's plus ``share`` times the cosine of colour
    patches over 0.009, as in a joint bilateral filter: both have to agree. Patches are appended to
    queries and keys, so that the kernel stays one product.

    Parameters
    ----------
    features : FrameFeatures
        With its image.
    share : float
        In [0, 1]; 0 gives ``features`` back.

    """
    if share == 0.0 or features.image is None:
        return features
    layers = []
    for layer in features.layers:
        heads, height, width, dim = layer.query.shape
        patches = torch.from_numpy(colour_patches(features.image, (height, width), _PATCH))
        patches = patches.to(layer.query).expand(heads, -1, -1, -1)
        wide = dim + patches.shape[-1]
        # The kernel divides by the root of the wider dimension. Half of each factor goes to the
        # queries, half to the keys: where both were one tensor they still are.
        ours = ((1.0 - share) * (wide / dim) ** 0.5) ** 0.5
        colour = patches * (share / _COLOUR_TEMPERATURE * wide**0.5) ** 0.5
        query = torch.cat([ours * layer.query, colour], dim=-1)
        tied = layer.key is layer.query
        key = query if tied else torch.cat([ours * layer.key, colour], dim=-1)
        layers.append(LayerFeatures(query, key))
    return FrameFeatures(tuple(layers), features.image)


def _queries_keys(
    attn: torch.nn.Module, states: Tensor, latent_size: tuple[int, int], tied: bool, count: int
) -> list[Tensor]:
    """
    Project and put on the token grid: (count, heads, h, w, d) float32; keys unless tied.

    ``states`` (count * samples, tokens, channels); the mean over the samples is taken.
    """
    grid = token_grid(states.shape[1], latent_size)

    def project(projection: torch.nn.Module, norm: torch.nn.Module | None) -> Tensor:
        heads = split_heads(attn, projection(states), norm).float()
        if len(heads) > count:  # the mean of one sample would be a copy
            heads = heads.unflatten(0, (count, -1)).mean(dim=1)
        return heads.unflatten(2, grid)

    query = project(attn.to_q, attn.norm_q)
    return [query] if tied else [query, project(attn.to_k, attn.norm_k)]


def _tied(attn: torch.nn.Module) -> bool:
    """Whether an attention module's queries are its keys."""
    if attn.norm_q is not None or attn.norm_k is not None:
        return False
    ours, theirs = attn.to_q.state_dict(), attn.to_k.state_dict()
    if any(isinstance(value, FakeTensor) for value in ours.values()):  # it holds no values
        return False
    return ours.keys() == theirs.keys() and all(
        torch.equal(value, theirs[name]) for name, value in ours.items()
    )
