# SPDX-License-Identifier: Apache-2.0
"""
DDIM inversion: clean latents are taken to a noise level without any randomness.

Source: Song, Meng, Ermon, Denoising Diffusion Implicit Models (arXiv 2010.02502), equation 12 run
backwards. diffusers' ``DDIMInverseScheduler`` only walks schedules over *all* levels, so it can
not end at the level tau the tracker reads at; and where a network predicts v or the sample, it
turns the prediction into noise with the level the latents are at, though the network was told the
next one (for a clean sample this divides by zero). Here both use the level the network was told,
which makes one step exactly the reverse of ``DDIMScheduler.step`` but for the point at which the
network is asked.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from drift_ros.engine.errors import CheckpointError

Predict = Callable[[Tensor, int], Tensor]
"""The network: latents and the level it is told, to its prediction."""

_KINDS = ('epsilon', 'v_prediction', 'sample')


class DDIM:
    """
    Deterministic steps between noise levels, by a checkpoint's own scheduler settings.

    Level -1 is the clean end of the schedule: its signal share is 1 where the scheduler says
    ``set_alpha_to_one``, else that of level 0, as in ``DDIMScheduler``. Clipping of samples is
    not done: it can not be inverted, and latent models do not use it.
    """

    def __init__(self, scheduler: Any) -> None:
        """
        Read the settings.

        Parameters
        ----------
        scheduler : diffusers.DDIMScheduler

        Raises
        ------
        CheckpointError
            When the network predicts something else than noise, v or the sample.

        """
        self.kind: str = scheduler.config.prediction_type
        if self.kind not in _KINDS:
            raise CheckpointError(
                f'the scheduler says prediction_type {self.kind!r}; DDIM inversion knows '
                f'{", ".join(_KINDS)}: set features.noise to none'
            )
        # Element -1, the last, is the clean end.
        self._alphas = [*scheduler.alphas_cumprod.tolist(), float(scheduler.final_alpha_cumprod)]

    def levels(self, timestep: int, steps: int) -> list[int]:
        """
        Choose the levels of an inversion, ascending; the last is ``timestep``.

        They are spaced evenly and counted from the noisy end ("trailing" in diffusers' words, the
        one spacing that reaches the end); there are no more than ``timestep + 1`` of them.
        """
        steps = min(steps, timestep + 1)
        return [round((timestep + 1) * (i + 1) / steps) - 1 for i in range(steps)]

    def signal(self, level: int) -> float:
        """Factor of the clean latents at a level: square root of the cumulated alpha."""
        return self._alphas[level] ** 0.5

    def noise(self, level: int) -> float:
        """Factor of the noise at a level."""
        return (1.0 - self._alphas[level]) ** 0.5

    def step(self, latents: Tensor, output: Tensor, start: int, end: int, told: int) -> Tensor:
        """
        Move latents from level ``start`` to level ``end``, either way.

        ``output`` is the network's prediction when told level ``told``.
        """
        signal, noise = self.signal(told), self.noise(told)
        if self.kind == 'epsilon':
            epsilon = output
        elif self.kind == 'v_prediction':
            epsilon = signal * output + noise * latents
        else:
            epsilon = (latents - signal * output) / noise
        if start == told and self.kind != 'epsilon':
            # Without a division by the signal share, which is 0 at zero terminal SNR.
            clean = output if self.kind == 'sample' else signal * latents - noise * output
        else:
            clean = (latents - self.noise(start) * epsilon) / self.signal(start)
        return self.signal(end) * clean + self.noise(end) * epsilon

    def invert(self, latents: Tensor, timestep: int, steps: int, predict: Predict) -> Tensor:
        """
        Take clean latents to the level ``timestep`` in ``steps`` steps.

        The network is told the level a step leads to, as when sampling comes back over the same
        step; the latents it sees are those of the step's start. The error of a round trip is that
        difference: of first order in the step.
        """
        at = -1
        for level in self.levels(timestep, steps):
            latents = self.step(latents, predict(latents, level), at, level, level)
            at = level
        return latents
