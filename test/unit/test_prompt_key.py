# SPDX-License-Identifier: Apache-2.0
"""
The online prompt as the paper has it: a token whose cross-attention marks the object.

In a small random Stable Diffusion: the decision is solved in closed form on a layer's queries, put
into that layer's text as an embedding, and the layer's own cross-attention is looked at. The layer
is the first one, where a linear decision tells objects of another texture; deeper in a random
network it hardly does.
"""

import pytest
from tiny_models import make_unet
import torch

from drift_ros.diffusion.attention import AttentionReader, capturing

LAYER = 'down_blocks.0.attentions.0.transformer_blocks.0.attn2'
SIZE = 32


@pytest.fixture(scope='module')
def scene():
    """Run the network on latents of two textures; give the layer, its input and the object."""
    unet = make_unet('sd2')
    generator = torch.Generator().manual_seed(3)
    marked = torch.zeros(SIZE, SIZE, dtype=torch.bool)
    marked[8:24, 10:26] = True
    ground, surface = torch.randn(2, 4, 1, 1, generator=generator)
    latents = torch.where(marked, surface, ground) + 0.2 * torch.randn(
        4, SIZE, SIZE, generator=generator
    )
    found = {}

    def read(attn, states):
        found['states'] = states[0]

    def reader(stock):
        return AttentionReader(stock, read=read, last=False)

    with torch.no_grad(), capturing(unet, {LAYER: reader}):
        unet(latents[None], 50, torch.randn(1, 8, 32, generator=generator))
    states = found['states']
    side = round(len(states) ** 0.5)
    small = torch.nn.functional.avg_pool2d(marked.float()[None], SIZE // side)[0]
    return unet.get_submodule(LAYER), states, small.flatten() > 0.5


def solve(queries, inside):
    """Ridge regression onto +1 in the object and -1 outside, with a constant; classes alike."""
    inputs = torch.cat([queries, torch.ones(len(queries), 1)], dim=1).double()
    weight = torch.where(inside, 1.0 / inside.sum(), 1.0 / (~inside).sum()).double()
    wanted = torch.where(inside, 1.0, -1.0).double()
    gram = (inputs * weight[:, None]).t() @ inputs + 1e-6 * torch.eye(inputs.shape[1]).double()
    solution = torch.linalg.solve(gram, inputs.t() @ (weight * wanted))
    return solution[:-1].float(), float(solution[-1])


def test_a_solved_key_in_the_layers_own_cross_attention_is_the_score(scene, monkeypatch):
    attn, states, inside = scene
    with torch.no_grad():
        queries = attn.to_q(states)
        # one head; its key is what the softmax sees once it has divided by the root of its size
        monkeypatch.setattr(attn, 'heads', 1)
        monkeypatch.setattr(attn, 'scale', queries.shape[1] ** -0.5)
        decision, constant = solve(queries, inside)
        keys = torch.stack([torch.zeros_like(decision), decision / attn.scale])
        text = torch.linalg.lstsq(attn.to_k.weight, keys.t()).solution.t()  # embeddings
        assert torch.allclose(attn.to_k(text), keys, atol=1e-3)
        attention = attn.get_attention_scores(queries[None], attn.to_k(text)[None])[0]
    score = queries @ decision
    assert torch.allclose(attention[:, 1], score.sigmoid(), atol=1e-4)
    found = torch.logit(attention[:, 1]) + constant > 0
    overlap = (found & inside).sum() / (found | inside).sum()
    assert overlap > 0.9


def test_with_several_heads_it_still_tells_the_object_but_is_not_the_score(scene):
    attn, states, inside = scene
    assert attn.heads > 1
    with torch.no_grad():
        queries = attn.to_q(states)
        decision, constant = solve(queries, inside)
        keys = torch.stack([torch.zeros_like(decision), decision / attn.scale])
        heads = attn.get_attention_scores(
            attn.head_to_batch_dim(queries[None]), attn.head_to_batch_dim(keys[None])
        )
    mean = heads[..., 1].mean(dim=0)
    assert (mean - (queries @ decision).sigmoid()).abs().max() > 1e-3
    higher = (mean[inside][:, None] > mean[~inside]).float().mean()
    assert higher > 0.95
