# SPDX-License-Identifier: Apache-2.0
"""The training loop: data, losses, moving average, checkpoints, curves."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from diffusers import UNet2DConditionModel
from diffusers.optimization import get_cosine_schedule_with_warmup
import numpy as np
import torch
from torch import Tensor
import torch.nn.functional as F
from torch.optim.swa_utils import AveragedModel
from transformers import CLIPTextModel
import yaml

from . import model as models
from .losses import kernel_losses, velocity
from .run_folder import Run
from .views import collate, make_scene, PhotoFolder, ViewConfig

DEFAULT_CONFIG = Path(__file__).with_name('config.yaml')


def load_config(
    path: Path | None = None, overrides: tuple[str, ...] = (), defaults: Path = DEFAULT_CONFIG
) -> dict[str, Any]:
    """
    Read a configuration file of one stage over the defaults; see `load_stages`.

    Raises
    ------
    ValueError
        for an unknown key, naming it, or when the file describes several stages

    """
    stages = load_stages(path, overrides, defaults)
    if len(stages) > 1:
        raise ValueError(f'{path} describes {len(stages)} stages, here one is expected')
    return stages[0][1]


def load_stages(
    path: Path | None = None, overrides: tuple[str, ...] = (), defaults: Path = DEFAULT_CONFIG
) -> list[tuple[str, dict[str, Any]]]:
    """
    Read a configuration file over the defaults.

    Parameters
    ----------
    path : YAML file whose keys override those of `defaults`. Under its key `stages` it may list
        runs that follow each other, each starting from the weights of the one before: a `name`
        and the keys that are its own
    overrides : 'key=value' strings; nested keys with dots, values in YAML; for every stage
    defaults : YAML file with all keys

    Returns
    -------
    list of (str, dict)
        name and configuration of each stage; a file without stages is one stage named ''

    Raises
    ------
    ValueError
        for an unknown key, naming it

    """

    def merge(into: dict[str, Any], new: dict[str, Any], prefix: str = '') -> None:
        for key, value in new.items():
            if key not in into:
                raise ValueError(
                    f'unknown configuration key {prefix + key!r}; known here: {sorted(into)}'
                )
            if isinstance(into[key], dict):
                merge(into[key], value, f'{prefix}{key}.')
            else:
                into[key] = value

    given = (yaml.safe_load(Path(path).read_text()) or {}) if path is not None else {}
    stages = []
    for stage in given.pop('stages', [{}]):
        config = yaml.safe_load(defaults.read_text())
        merge(config, given)
        merge(config, {key: value for key, value in stage.items() if key != 'name'})
        for item in overrides:
            key, _, value = item.partition('=')
            nested: Any = yaml.safe_load(value)
            for part in reversed(key.split('.')):
                nested = {part: nested}
            merge(config, nested)
        stages.append((stage.get('name', ''), config))
    return stages


def _weights(path: Path) -> dict[str, Any]:
    """Read averaged weights of U-Net and text encoder from a state.pt or an exported folder."""
    if path.is_dir():
        return {
            'unet': UNet2DConditionModel.from_pretrained(
                path, subfolder='unet', low_cpu_mem_usage=False
            ).state_dict(),
            'text': CLIPTextModel.from_pretrained(path, subfolder='text_encoder').state_dict(),
        }
    average = torch.load(path, map_location='cpu', weights_only=True)['average']
    return {
        part: {
            name.removeprefix(f'module.{part}.'): value
            for name, value in average.items()
            if name.startswith(f'module.{part}.')
        }
        for part in ('unet', 'text')
    }


class Trainer(Run[dict[str, Tensor]]):
    """
    Owns everything a run needs and can be saved and resumed exactly.

    Every step draws its scenes and its noise from generators seeded by (seed, step), so a resumed
    run continues as an uninterrupted one would.

    Parameters
    ----------
    config : as `load_config` returns
    photos : training photographs
    out : run folder: state.pt, history.json, curves.png

    """

    def __init__(self, config: dict[str, Any], photos: PhotoFolder, out: Path) -> None:
        super().__init__(config, out)
        self.photos = photos
        torch.manual_seed(config['seed'])
        u = config['unet']
        self.unet: UNet2DConditionModel = models.build_unet(
            u['channels'],
            u['heads'],
            u['attention'],
            layers_per_block=u['layers_per_block'],
            early=u['early'],
            groups=u['groups'],
            stem=u['stem'],
        )
        self.unet.to(memory_format=torch.channels_last)
        self.tokenizer = models.build_tokenizer(['a photo of', *photos.categories])
        self.text = models.build_text_encoder(self.tokenizer)
        self.layer = config['layer']
        self.capture = models.Capture(self.unet, self.layer)
        if config['tie_start']:
            models.tie_queries_keys(self.unet, self.layer, config['temperature'])
        if config['tied']:
            attn = self.unet.get_submodule(self.layer)
            attn.to_k.weight = attn.to_q.weight
        self.tokens = self.tokenizer(
            [f'a photo of {c}' for c in photos.categories] + [''],
            padding='max_length',
            truncation=True,
            return_tensors='pt',
        ).input_ids
        for name, parameter in self.unet.named_parameters():
            parameter.requires_grad_(not name.startswith(tuple(config['frozen'])))
        self.network = torch.nn.ModuleDict({'unet': self.unet, 'text': self.text})
        self.parameters = list(self.network.parameters())
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=config['learning_rate'],
            betas=(0.9, 0.99),
            weight_decay=config['weight_decay'],
        )
        self.schedule = get_cosine_schedule_with_warmup(
            self.optimizer, config['warmup'], config['steps']
        )
        self._start_average()
        self.alphas = models.build_scheduler().alphas_cumprod
        views: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in config['views'].items()
        }
        self.views = ViewConfig(**views)

    def _start_average(self) -> None:
        decay = self.config['ema']

        @torch.no_grad()
        def update(average: Any, current: Any, count: Any) -> None:
            # a young average forgets faster, so that it is usable early
            share = 1 - min(decay, (1 + int(count)) / (10 + int(count)))
            torch._foreach_lerp_(average, current, share)

        self.average = AveragedModel(self.network, multi_avg_fn=update)

    # ---- data
    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the scenes of a step (deterministic)."""
        rng = np.random.default_rng([self.config['seed'], step])
        return collate(
            [make_scene(self.photos, rng, self.views) for _ in range(self.config['batch'])]
        )

    # ---- one step
    def _text(self, category: Tensor, rng: torch.Generator, dropout: float) -> Tensor:
        drop = torch.rand(len(category), generator=rng) < dropout
        rows = torch.where(drop, torch.tensor(len(self.tokens) - 1), category)
        return self.text(self.tokens[rows]).last_hidden_state

    def _kernel_losses(self, batch: dict[str, Tensor], scenes: int) -> dict[str, Tensor]:
        q, k = self.capture.query, self.capture.key
        assert q is not None and k is not None
        v = self.views.views
        return kernel_losses(
            q.unflatten(0, (-1, v)),
            k.unflatten(0, (-1, v)),
            batch['target'][:scenes],
            batch['visible'][:scenes],
            batch['labels'][:scenes],
            self.views.stride,
            self.config['kernel_rows'],
            batch['owner'][:scenes],
            self.config['strangers'],
            self.config['key_dropout'],
            self.config['window'],
        )

    def losses(self, batch: dict[str, Tensor], step: int) -> dict[str, Tensor]:
        """Return the losses of a batch; differentiable except 'accuracy'."""
        c = self.config
        rng = torch.Generator().manual_seed(c['seed'] * 1_000_003 + step)
        torch.manual_seed(c['seed'] * 1_000_003 + step)
        images = batch['images']
        scenes, views = images.shape[:2]
        latents = models.encode_exact(images.flatten(0, 1)).contiguous(
            memory_format=torch.channels_last
        )
        out: dict[str, Tensor] = {}
        w = c['weights']
        if w['correspondence'] or w['transport'] or w['membership']:
            # the kernel, as deployed: low timestep, mostly noise-free, stop at the layer
            t = torch.randint(0, c['low_timestep'], (scenes,), generator=rng)
            noisy = torch.rand(scenes, generator=rng) >= c['clean_share']
            t_all = t.repeat_interleave(views)
            noise = torch.randn(latents.shape, generator=rng)
            noise = noise * noisy.repeat_interleave(views)[:, None, None, None]
            z = velocity(latents, noise, self.alphas[t_all])[0]
            text = self._text(batch['category'], rng, 0.5).repeat_interleave(views, 0)
            self.capture.queries_keys(z, t_all, text)
            out.update(self._kernel_losses(batch, scenes))
        if step % c['denoise_every'] == 0:
            m = min(c['denoise_scenes'], scenes)
            t = torch.randint(0, 1000, (m,), generator=rng).repeat_interleave(views)
            clean = latents[: m * views]
            noise = torch.randn(clean.shape, generator=rng)
            z, v_true = velocity(clean, noise, self.alphas[t])
            text = self._text(batch['category'][:m], rng, c['caption_dropout']).repeat_interleave(
                views, 0
            )
            shared = float(torch.rand((), generator=rng)) < c['shared_share']
            v_predicted = self.capture.denoise(z, t, text, views if shared else 1)
            out['denoise'] = F.mse_loss(v_predicted, v_true)
            low = t[::views] < c['kernel_max_timestep']
            if bool(low.all()) and 'transport' in out:
                noisy_losses = self._kernel_losses(batch, m)
                for name in ('correspondence', 'transport', 'membership'):
                    out[f'noisy_{name}'] = noisy_losses[name]
        return out

    def train_step(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Take one optimiser step and return the scalars of it."""
        w = self.config['weights']
        with torch.autocast('cpu', torch.bfloat16, enabled=self.config['precision'] == 'bfloat16'):
            losses = self.losses(batch, self.step)
        total = torch.zeros(())
        for name, value in losses.items():
            if name != 'accuracy':
                weight = w[name.removeprefix('noisy_')] * (0.3 if name.startswith('noisy') else 1)
                total = total + weight * value
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config['gradient_clip'])
        self.optimizer.step()
        self.schedule.step()
        self.average.update_parameters(self.network)
        self.step += 1
        row = {'step': float(self.step), **{k: float(v.detach()) for k, v in losses.items()}}
        self.history.append(row)
        return row

    # ---- state
    def state(self) -> dict[str, Any]:
        """Return weights, their average, the optimiser and the configuration."""
        return {
            'config': self.config,
            'unet': self.unet.state_dict(),
            'text': self.text.state_dict(),
            'average': self.average.state_dict(),
            'optimizer': self.optimizer.state_dict(),
            'schedule': self.schedule.state_dict(),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take over the state of a run of the same configuration."""
        self.unet.load_state_dict(state['unet'])
        self.text.load_state_dict(state['text'])
        self.average.load_state_dict(state['average'])
        self.optimizer.load_state_dict(state['optimizer'])
        self.schedule.load_state_dict(state['schedule'])

    def start_from(self, path: Path) -> list[str]:
        """
        Start a new run from another run's averaged weights, whose network may differ.

        Weights of equal name and shape are taken. A first convolution of another kernel size is
        centred. Attention blocks the other network lacks start as identities.

        Returns
        -------
        list of str
            Names of the U-Net's weights that keep their fresh start.

        """
        state = _weights(path)
        own = self.unet.state_dict()
        fresh = []
        for name, value in own.items():
            old = state['unet'].get(name)
            if old is not None and old.shape == value.shape:
                value.copy_(old)
            elif name == 'conv_in.weight' and old is not None and old.shape[2] < value.shape[2]:
                margin = (value.shape[-1] - old.shape[-1]) // 2
                value.zero_()
                value[..., margin : margin + old.shape[-1], margin : margin + old.shape[-1]] = old
            else:
                fresh.append(name)
                if name.endswith(('.proj_out.weight', '.proj_out.bias')):
                    value.zero_()
        self.unet.load_state_dict(own)
        self.text.load_state_dict(state['text'])
        self._start_average()
        return fresh

    def averaged(self) -> tuple[UNet2DConditionModel, Any]:
        """Return copies of U-Net and text encoder with the averaged weights."""
        unet, text = copy.deepcopy(self.average.module).values()
        attn = unet.get_submodule(self.layer)
        attn.to_k.weight = torch.nn.Parameter(attn.to_k.weight.detach().clone())
        return unet.eval(), text.eval()
