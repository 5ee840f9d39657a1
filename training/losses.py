# SPDX-License-Identifier: Apache-2.0
"""Self-supervised losses on the temporal propagation kernel, and the denoising loss."""

from __future__ import annotations

import torch
from torch import Tensor


def bilinear_weights(
    points: Tensor, width: int, height: int, stride: int
) -> tuple[Tensor, Tensor]:
    """
    Return the four tokens around each point and their bilinear weights.

    Parameters
    ----------
    points : (..., 2) float, x and y in pixels (pixel centres at integers)
    width, height : tokens
    stride : pixels per token

    Returns
    -------
    (index, weight) : (..., 4) int64 and (..., 4) float, weights sum to one

    """
    u = (points + 0.5) / stride - 0.5
    u = torch.stack([u[..., 0].clamp(0, width - 1), u[..., 1].clamp(0, height - 1)], -1)
    low = u.floor()
    f = u - low
    x0, y0 = low[..., 0].long(), low[..., 1].long()
    x1, y1 = (x0 + 1).clamp(max=width - 1), (y0 + 1).clamp(max=height - 1)
    fx, fy = f[..., 0], f[..., 1]
    index = torch.stack([y0 * width + x0, y0 * width + x1, y1 * width + x0, y1 * width + x1], -1)
    weight = torch.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], -1)
    return index, weight


def kernel_losses(
    query: Tensor,
    key: Tensor,
    target: Tensor,
    visible: Tensor,
    labels: Tensor,
    stride: int,
    rows: int | None = None,
    owner: Tensor | None = None,
    strangers: int = 0,
    dropout: float = 0.0,
    window: int = 0,
) -> dict[str, Tensor]:
    """
    Losses of the views 1.. towards the views before them.

    The kernel is `softmax(Q^b K^a^T / sqrt(d))` as deployed, global within the view.
    *Correspondence*: cross-entropy against the known position in view 0 (bilinear over the four
    nearest tokens), on points visible there; every other position is a negative.
    *Transport*: the soft labels of all earlier views are propagated with one joint softmax, as the
    tracker does; minus the log of the probability that arrives at the true label, on points
    visible in view 0.
    *Membership*: the same for the layers that labels belong to, on all points, those that come
    into view included.

    Parameters
    ----------
    query, key : (B, V, heads, N, d) float, N a square token grid
    target : (B, V, N, 2) float, pixels in view 0
    visible : (B, V, N) bool
    labels : (B, V, N, K) float
    stride : pixels per token
    rows : only so many queries, drawn at random, enter per view (all keys always do)
    owner : (B, K, L) float, which of the L layers each label belongs to; without, no membership
    strangers : so many random keys of each other scene are further negatives of correspondence
    dropout : share of the keys that labels are not propagated from, drawn at random
    window : labels are propagated from at most so many tokens away, as the tracker does it, and
        points that moved farther do not count; 0 for everywhere

    Returns
    -------
    dict of str to Tensor
        'correspondence', 'transport', 'membership': scalars, and 'accuracy', the share of visible
        points whose strongest match is at most one token away, no gradient

    """
    scenes, views, heads, n, d = query.shape
    side = int(round(n**0.5))
    query = query * d**-0.5
    cells = torch.arange(n)
    place = torch.stack([cells % side, cells // side], -1)  # N, 2
    at = place
    if rows is not None and rows < n:
        pick = torch.randperm(n)[:rows]
        query, target, visible = query[:, :, :, pick], target[:, :, pick], visible[:, :, pick]
        aim, at = labels[:, :, pick], place[pick]
    else:
        aim = labels
    index, weight = bilinear_weights(target, side, side, stride)
    alien = None
    if strangers and scenes > 1:
        sample = key[:, 0, :, torch.randperm(n)[:strangers]]  # B, heads, S, d
        shifted = [sample.roll(k, 0) for k in range(1, scenes)]
        alien = torch.cat(shifted, 2)  # B, heads, (B - 1) * S, d
    out = {name: query.new_zeros((), dtype=torch.float32) for name in _NAMES}
    for v in range(1, views):
        mask = visible[:, v].float()  # B, rows
        count = mask.sum().clamp(min=1)

        keys = key[:, 0] if alien is None else torch.cat([key[:, 0], alien], 2)
        logits = (query[:, v] @ keys.transpose(-1, -2)).float()  # B, heads, rows, N + strangers
        gathered = logits.gather(-1, index[:, v, None].expand(-1, heads, -1, -1))
        nll = logits.logsumexp(-1) - (gathered * weight[:, v, None]).sum(-1)
        out['correspondence'] += (nll.mean(1) * mask).sum() / count
        with torch.no_grad():
            best = logits[..., :n].mean(1).argmax(-1)
            true = (target[:, v] + 0.5) / stride - 0.5
            near = ((place[best] - true).abs().amax(-1) <= 1.0).float()
            out['accuracy'] += (near * mask).sum() / count

        keys = key[:, :v].transpose(1, 2).flatten(2, 3)  # B, heads, v * N, d
        values = labels[:, :v].flatten(1, 2)  # B, v * N, K
        kept = torch.arange(v * n)
        if dropout:
            kept = torch.randperm(v * n)[: round((1 - dropout) * v * n)]
            keys, values = keys[:, :, kept], values[:, kept]
        logits = (query[:, v] @ keys.transpose(-1, -2)).float()
        if window:
            far = (at[:, None] - place[kept % n]).abs().amax(-1) > window  # rows, keys
            logits = logits.masked_fill(far, -torch.inf)
            mask = mask * ((at - true).abs().amax(-1) <= window - 1)
            count = mask.sum().clamp(min=1)
        shares = logits.softmax(-1)
        carried = (shares @ values[:, None]).float().mean(1)  # B, rows, K
        cross = -(aim[:, v] * (carried + 1e-5).log()).sum(-1)
        out['transport'] += (cross * mask).sum() / count
        if owner is not None:
            cross = -(aim[:, v] @ owner * (carried @ owner + 1e-4).log()).sum(-1)
            out['membership'] += cross.mean()
    return {name: value / (views - 1) for name, value in out.items()}


_NAMES = ('correspondence', 'transport', 'membership', 'accuracy')


def velocity(clean: Tensor, noise: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """
    Return the noisy latents and the v target.

    Parameters
    ----------
    clean, noise : (B, C, h, w) float
    alpha : (B,) float, cumulative product of 1 - beta at each entry's timestep

    """
    a = alpha.sqrt()[:, None, None, None]
    s = (1 - alpha).sqrt()[:, None, None, None]
    return a * clean + s * noise, a * noise - s * clean
