# SPDX-License-Identifier: Apache-2.0
"""What a run leaves behind: the trained decoder, the exported folder, the curves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from diffusers import AutoencoderTiny
import numpy as np
import torch
import torch.nn.functional as F

from . import model as models
from .run_folder import draw_curves
from .trainer import Trainer


def train_decoder(
    trainer: Trainer, steps: int, on_step: Callable[[int, float], None] | None = None
) -> AutoencoderTiny:
    """
    Train the decoder of the autoencoder by mean squared error on photographs.

    The encoder is exact and stays as it is. The result is kept in the run folder (vae.pt) and
    read from there when it is asked for again with as many or fewer steps.
    """
    vae = models.build_vae()
    path = trainer.out / 'vae.pt'
    done = 0
    if path.exists():
        state = torch.load(path, weights_only=True)
        vae.load_state_dict(state['vae'])
        done = state['steps']
    if done >= steps:
        return vae
    vae.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(vae.decoder.parameters(), lr=1e-3)
    rng = np.random.default_rng(trainer.config['seed'])
    size = 96
    for step in range(done, steps):
        crops: list[np.ndarray] = []
        while len(crops) < 8:
            photo = trainer.photos.read(int(rng.integers(len(trainer.photos))))
            y, x = (int(rng.integers(photo.shape[i] - size + 1)) for i in range(2))
            crops.append(photo[y : y + size, x : x + size])
        images = torch.from_numpy(np.stack(crops)).permute(0, 3, 1, 2).float() / 127.5 - 1
        latents = models.encode_exact(images)
        # what a sampler hands over is never quite clean
        latents = latents + torch.randn_like(latents) * 0.05 * torch.rand(8, 1, 1, 1)
        for group in optimizer.param_groups:
            group['lr'] = 1e-3 * min(1.0, (step + 1) / 50) * (1 - step / steps) ** 0.5
        loss = F.mse_loss(vae.decode(latents).sample, images)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        if on_step is not None:
            on_step(step + 1, float(loss.detach()))
    torch.save({'vae': vae.state_dict(), 'steps': steps}, path)
    return vae


def export_run(trainer: Trainer, vae: AutoencoderTiny, folder: Path) -> None:
    """Write the averaged weights of a run as a stock diffusers folder."""
    unet, text = trainer.averaged()
    notes: dict[str, Any] = {
        'attention_layer': trainer.layer,
        'timestep': trainer.config['timestep'],
        'training_steps': trainer.step,
        'categories': trainer.photos.categories,
        'prompt_template': 'a photo of {category}',
    }
    models.export(folder, unet, vae, text, trainer.tokenizer, notes)


def plot_curves(history: list[dict[str, float]], path: Path) -> None:
    """Draw the losses and the J&F on development sequences over the steps."""
    panels = [
        ('denoising loss (v)', ['denoise']),
        ('correspondence loss', ['correspondence', 'noisy_correspondence']),
        ('label transport loss', ['transport', 'noisy_transport']),
        ('membership loss', ['membership', 'noisy_membership']),
        ('match within one token', ['accuracy']),
        ('J&F on dev', ['dev_jf']),
    ]

    def draw(axis: Any, name: str, x: np.ndarray, y: np.ndarray) -> None:
        if name == 'dev_jf':
            axis.plot(x, y, 'o-')
            return
        window = max(1, min(50, len(y) // 8))
        smooth = np.convolve(y, np.ones(window) / window, 'valid')
        axis.plot(x, y, alpha=0.15, color='tab:grey')
        axis.plot(x[window - 1 :], smooth, label=name)

    draw_curves(history, panels, draw, path)
