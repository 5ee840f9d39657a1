# SPDX-License-Identifier: Apache-2.0
"""The propagation kernel agrees with a deliberately plain, dense implementation."""

import numba
import numpy as np
import pytest
import torch

from drift_ros.engine import compiled, kernel_fast, key_tiles
from drift_ros.engine.kernel_fast import propagate


def dense(query, keys, labels, radius, top_k, temperature, head_weights):
    """Every affinity, one query at a time, in double precision: slow and obvious."""
    heads, height, width, dim = query.shape
    out = torch.zeros(height, width, labels.shape[-1], dtype=torch.float64)
    for head in range(heads):
        for y in range(height):
            for x in range(width):
                logits, values = [], []
                for reference in range(len(keys)):
                    for v in range(height):
                        for u in range(width):
                            if radius is not None and max(abs(v - y), abs(u - x)) > radius:
                                continue
                            product = (
                                query[head, y, x].double() @ keys[reference, head, v, u].double()
                            )
                            logits.append(product / dim**0.5 / temperature)
                            values.append(labels[reference, v, u].double())
                logits = torch.stack(logits)
                if top_k:
                    kept = logits.topk(min(top_k, len(logits))).indices
                    logits, values = logits[kept], [values[i] for i in kept]
                out[y, x] += head_weights[head] * (
                    logits.softmax(0)[:, None] * torch.stack(values)
                ).sum(0)
    return out


def masked(query, keys, labels, radii, top_k, head_weights):
    """One masked attention over everything, in double precision; a radius for each reference."""
    heads, height, width, dim = query.shape
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    y, x = y.flatten(), x.flatten()
    away = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs())
    near = torch.cat([away <= radius for radius in radii], dim=1)
    flat_keys = keys.double().transpose(0, 1).flatten(1, 3)
    logits = query.double().flatten(1, 2) @ flat_keys.transpose(1, 2) / dim**0.5
    logits = logits.masked_fill(~near, float('-inf'))
    if top_k:
        least = logits.topk(top_k).values[..., -1:]
        logits = logits.masked_fill(logits < least, float('-inf'))
    found = logits.softmax(-1) @ labels.double().flatten(0, 2)
    found = torch.einsum('h,hnc->nc', head_weights.double(), found)
    # where all labels within the smallest window are one, they are the answer
    flat = labels.double().flatten(1, 2)
    for place in range(height * width):
        seen = flat[:, away[place] <= min(radii)].flatten(0, 1)
        if (seen == seen[0]).all():
            found[place] = seen[0]
    return found.view(height, width, -1)


def example(heads=2, height=5, width=7, dim=6, references=2, channels=3):
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(heads, height, width, dim, generator=generator)
    keys = torch.randn(references, heads, height, width, dim, generator=generator)
    labels = torch.rand(references, height, width, channels, generator=generator).softmax(-1)
    return query, keys, labels


@pytest.fixture(params=['int8', 'bfloat16', 'float32', 'rows'])
def way(request, monkeypatch):
    """Every way to compute it: with fast products in each type, and without loops."""
    if request.param == 'int8' and not key_tiles.multiplies_whole_numbers():
        pytest.skip('this processor cuts sums of products of 8 bits off')
    if request.param != 'rows':
        monkeypatch.setattr(key_tiles, 'rough_type', lambda: getattr(torch, request.param))
    else:
        monkeypatch.setattr(kernel_fast, 'propagate_tiles', kernel_fast.propagate_rows)
        monkeypatch.setattr(kernel_fast, '_CHUNK', 100)


@pytest.mark.parametrize('radius', [None, 0, 1, 2, 3, 50])
@pytest.mark.parametrize('top_k', [0, 1, 5, 1000])
def test_agrees_with_the_dense_implementation(way, radius, top_k):
    query, keys, labels = example()
    weights = torch.tensor([0.3, 0.7])
    got = propagate(
        query, keys, labels, radius=radius, top_k=top_k, temperature=0.7, head_weights=weights
    )
    want = dense(query, keys, labels, radius, top_k, 0.7, weights)
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)


@pytest.mark.parametrize(('height', 'width', 'radius'), [(33, 20, 3), (17, 35, 6), (40, 16, 20)])
def test_tiles_join_without_seams(height, width, radius):
    """Grids of several tiles equal one masked attention over everything."""
    query, keys, labels = example(1, height, width, 8, 2, 2)
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing='ij')
    y, x = y.flatten(), x.flatten()
    near = torch.maximum((y[:, None] - y).abs(), (x[:, None] - x).abs()) <= radius
    logits = query.flatten(1, 2)[0] @ keys.transpose(0, 1).flatten(1, 3)[0].T / 8**0.5
    logits = logits.masked_fill(~near.repeat(1, 2), float('-inf'))
    want = (logits.softmax(-1) @ labels.flatten(0, 2)).view(height, width, 2)
    got = propagate(query, keys, labels, radius=radius)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_uniform_windows_are_skipped_without_changing_the_result():
    """Where every label in reach is background, the answer is background, exactly."""
    query, keys, _ = example(1, 48, 64, 4, 2)
    labels = torch.zeros(2, 48, 64, 2)
    labels[..., 0] = 1
    labels[:, 5:9, 5:9] = torch.tensor([0.0, 1.0])
    got = propagate(query, keys, labels, radius=2)
    assert (got[20:, 20:, 0] == 1).all()
    assert got[5:9, 5:9, 1].min() > 0
    torch.testing.assert_close(got.sum(-1), torch.ones(48, 64))


def test_more_objects_than_head_channels():
    query, keys, labels = example(dim=4, channels=11)
    weights = torch.tensor([0.5, 0.5])
    got = propagate(query, keys, labels, radius=2)
    want = dense(query, keys, labels, 2, 0, 1.0, weights)
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)


def test_half_precision_keys():
    query, keys, labels = example()
    got = propagate(query, keys.half(), labels)
    torch.testing.assert_close(got, propagate(query, keys, labels), atol=2e-3, rtol=0)


def test_shapes_that_do_not_fit_are_refused():
    query, keys, labels = example()
    with pytest.raises(ValueError, match='shapes do not fit'):
        propagate(query, keys[:, :1], labels)
    with pytest.raises(ValueError, match='temperature'):
        propagate(query, keys, labels, temperature=0)


@pytest.mark.parametrize('radius', [None, 2])
def test_heads_of_weight_zero_are_not_computed(radius):
    query, keys, labels = example(heads=3)
    weights = torch.tensor([0.4, 0.0, 0.6])
    want = propagate(query, keys, labels, radius=radius, head_weights=weights)
    query[1], keys[:, 1] = float('nan'), float('nan')  # would spread if it were looked at
    assert torch.equal(propagate(query, keys, labels, radius=radius, head_weights=weights), want)


@pytest.mark.parametrize('top_k', [0, 5])
@pytest.mark.parametrize(
    ('height', 'width', 'radii'),
    [
        (14, 27, (9, 2, 2)),
        (31, 22, (4, 1, 3, 3, 7)),
        (9, 40, (100, 5, 5, 5, 5, 5, 5)),
        (5, 3, (0, 2)),
    ],
)
def test_each_reference_may_have_its_own_window(way, height, width, radii, top_k):
    """A key out of its reference's window has no say: as if its logit were minus infinity."""
    query, keys, labels = example(3, height, width, references=len(radii))
    top_k = min(top_k, len(radii))
    weights = torch.tensor([0.5, 0.2, 0.3])
    got = propagate(query, keys, labels, radius=radii, top_k=top_k, head_weights=weights)
    want = masked(query, keys, labels, radii, top_k, weights)
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match='3 radii are given for'):
        propagate(query, keys[:2], labels[:2], radius=(3, 3, 3))


def test_far_objects_and_windows_of_two_sizes(way):
    """Few objects far apart, so that most queries need no work."""
    query, keys, _ = example(2, 33, 46, 8, 4)
    labels = torch.zeros(4, 33, 46, 3)
    labels[:, 2:6, 3:9, 1] = 0.7
    labels[:, 20:31, 30:40, 2] = 1.0  # wide enough to hold windows of its own
    labels[0, 15, 11, 1] = 1.0  # seen through the wide window only
    labels[..., 0] = 1.0 - labels.sum(-1)
    weights = torch.tensor([0.5, 0.5])
    radii = (6, 2, 2, 2)
    got = propagate(query, keys, labels, radius=radii, top_k=7)
    want = masked(query, keys, labels, radii, 7, weights)
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)
    assert torch.equal(got[25, 34], torch.tensor([0.0, 0.0, 1.0]))


def test_keys_may_come_one_reference_at_a_time():
    query, keys, labels = example(3, 20, 9, references=4)
    for options in ({}, {'radius': 2, 'top_k': 3}, {'radius': (4, 1, 1, 1)}):
        want = propagate(query, keys, labels, **options)
        assert torch.equal(propagate(query, list(keys), labels, **options), want)


def test_equal_affinities_count_alike(way):
    """More keys tie for a place among the largest than there are places."""
    query, keys = torch.ones(1, 20, 20, 4), torch.ones(2, 1, 20, 20, 4)
    labels = torch.zeros(2, 20, 20, 2)
    labels[:, ::2, :, 1] = 1.0
    labels[:, 1::2, :, 0] = 1.0
    got = propagate(query, keys, labels, radius=4, top_k=6)
    torch.testing.assert_close(got.sum(-1), torch.ones(20, 20))
    torch.testing.assert_close(got * 6, (got * 6).round(), atol=1e-5, rtol=0)


def test_threads_of_other_numbers_give_the_same():
    query, keys, labels = example(2, 40, 50)
    threads = torch.get_num_threads()
    want = propagate(query, keys, labels, radius=3, top_k=5)
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert torch.equal(propagate(query, keys, labels, radius=3, top_k=5), want)
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)


def test_keys_that_stand_out_cost_no_exactness(way):
    """Rounded to multiples of what the largest needs, the others are hardly told apart."""
    query, keys, labels = example(2, 20, 26, 12, 3)
    keys[1, :, 4, 7] *= 300.0
    query[:, 11, 13] *= 50.0
    keys[2] += 40.0  # what is common to all keys of a frame
    weights = torch.tensor([0.5, 0.5])
    got = propagate(query, keys, labels, radius=(5, 3, 3), top_k=6)
    want = masked(query, keys, labels, (5, 3, 3), 6, weights)
    torch.testing.assert_close(got.double(), want, atol=2e-4, rtol=0)  # logits of 1e4 in float32


def test_what_is_made_of_keys_is_kept(way):
    query, keys, labels = example(2, 24, 30, 8, 3)
    held = [key_tiles.Keys(key) for key in keys]
    want = propagate(query, keys, labels, radius=(5, 2, 2), top_k=5)
    assert torch.equal(propagate(query, held, labels, radius=(5, 2, 2), top_k=5), want)
    kept = [each.nbytes for each in held]
    assert torch.equal(propagate(query, held, labels, radius=(5, 2, 2), top_k=5), want)
    assert [each.nbytes for each in held] == kept
    # the other reference keeps its own place and window
    want = propagate(query, keys[[2, 0]], labels[[2, 0]], radius=(2, 4), top_k=5)
    assert torch.equal(
        propagate(query, [held[2], held[0]], labels[[2, 0]], radius=(2, 4), top_k=5), want
    )


def test_whole_numbers_are_used_only_where_they_are_exact_and_fast(monkeypatch):
    """Where sums are cut off, or there is no such product, floating point does it."""
    monkeypatch.setattr(key_tiles, 'has_bfloat16', lambda: False)
    plain = key_tiles.rough_type.__wrapped__

    def cut_off(one, two):
        return (one.int() @ two.int()).clamp(-(2**15), 2**15 - 1)

    monkeypatch.setattr(torch, '_int_mm', cut_off)
    assert plain() == torch.float32
    monkeypatch.delattr(torch, '_int_mm')
    assert plain() == torch.float32


@pytest.mark.parametrize('kind', [torch.float16, torch.float32])
def test_rounded_keys_are_off_by_no_more_than_is_said(kind, monkeypatch):
    monkeypatch.setattr(key_tiles, 'rough_type', lambda: torch.int8)
    key = (torch.randn(1, 13, 21, 24) * torch.rand(24) * 9 + 3).to(kind)
    made = key_tiles.Keys(key).rough(0)
    blocks = made.blocks.float().transpose(0, 1).flatten(1, 2)[:, :21]  # (h, w, d)
    centre = torch.from_numpy(made.centre)
    off = (key[0].float() - centre - made.scale * blocks).norm(dim=-1)
    assert float(off.max()) == pytest.approx(made.error, rel=1e-3)
    assert float((key[0].float() - centre).norm(dim=-1).max()) == pytest.approx(made.longest)
    assert made.blocks.abs().max() == 127


@pytest.mark.parametrize('way', ['instruction', 'integers'])
def test_every_float16_is_widened_exactly(way):
    if way == 'instruction' and not compiled._EXTENDS:
        pytest.skip('this processor has no instruction for it')
    widen = compiled._extended if way == 'instruction' else numba.njit(compiled._widen)

    @numba.njit
    def widen_all(values, out):
        for i in range(len(values)):
            out[i] = widen(values[i])

    bits = np.arange(2**16, dtype=np.uint16).view(np.int16)
    values = bits.view(np.float16).astype(np.float32)
    finite, out = np.isfinite(values), np.empty(2**16, np.float32)
    widen_all(bits, out)
    assert np.array_equal(out[finite].view(np.int32), values[finite].view(np.int32))
