# SPDX-License-Identifier: Apache-2.0
"""Refiners: what they keep, what they sharpen, and what they refuse."""

import cv2
import numba
import numpy as np
import pytest
from sam_models import OFFICIAL, random_sam, save_folder, save_official, SMALL
from scenes import BLUE, ColourFeatures, configure, GREEN, overlap, RED, scene, square_mask
from scipy import sparse
from scipy.sparse.linalg import spsolve
from segment_anything.modeling import Sam
import torch

from drift_ros import CheckpointError, Tracker
from drift_ros.refinement import make_refiner
from drift_ros.refinement.bilateral import BilateralGrid
from drift_ros.refinement.colour import ColourSolver
from drift_ros.refinement.compiled import compiled
from drift_ros.refinement.histogram import colour_bins
from drift_ros.refinement.mask_prompts import read_prompt, stack_points
from drift_ros.refinement.refiner import Every, Upsampling
from drift_ros.refinement.sam import (
    mask_logits,
    SamCoder,
    SamRefiner,
    score_candidates,
    shared_sam,
    stability,
)
from drift_ros.refinement.sam_weights import infer_config, load_sam
from drift_ros.refinement.window import place, Window

SQUARE = (32, 24, 40)
FRAME = scene((*SQUARE, RED))
TRUTH = square_mask(SQUARE) == 1


def coarse_of(mask, shift=0.0):
    """Blur a mask onto a grid of stride 4, as the kernel does."""
    moved = cv2.warpAffine(
        mask.astype(np.float32), np.array([[1, 0, shift], [0, 1, 0.0]]), mask.shape[::-1]
    )
    small = cv2.resize(
        moved, (mask.shape[1] // 4, mask.shape[0] // 4), interpolation=cv2.INTER_AREA
    )
    return cv2.GaussianBlur(small, (0, 0), 1.0)


def render(refiner, frame, coarse, looks=None):
    """Refine one object, number 1: (H, W) float32."""
    return refiner.refine(frame, {1: coarse}, looks or {}, 0).probability(1)


# -- windows


def test_windows_around_masks():
    mask = np.zeros((24, 32), bool)
    assert Window.around(mask, (96, 128)) is None
    mask[10:14, 10:14] = True
    window = Window.around(mask, (96, 128))
    assert window.left < 40 < 56 < window.right and window.top < 40 < 56 < window.bottom
    mask[:] = True
    assert Window.around(mask, (96, 128)) == Window.whole((96, 128))


@pytest.mark.parametrize(
    'box, slices',
    [
        ((3.2, 4.9, 10.1, 12.0), (slice(4, 12), slice(3, 11))),
        ((-5, -6, 200, 300), (slice(0, 96), slice(0, 128))),
        ((50, 50, 50, 50), (slice(50, 52), slice(50, 52))),
        ((128, 96, 140, 140), (slice(94, 96), slice(126, 128))),
        ((-9, -9, -5, -5), (slice(0, 2), slice(0, 2))),
    ],
    ids=['between pixels', 'beyond the frame', 'empty', 'right of it', 'left of it'],
)
def test_windows_are_inside_the_frame_and_never_empty(box, slices):
    assert Window.clipped(box, (96, 128)).slices == slices


def test_windows_are_reduced_but_never_enlarged():
    window = Window.clipped((10, 20, 110, 70), (96, 128))
    assert window.size == (100, 50)
    assert window.reduced_to_pixels(1250).size == (50, 25)
    assert window.reduced_to_side(40).size == (40, 20)
    assert window.reduced_to_pixels(10**6) == window.reduced_to_side(10**6) == window
    assert window.scaled_to_side(200).size == (200, 100)
    assert window.reduced_to_side(9).size == (9, 8)


@pytest.mark.parametrize('side', [30, 60, 160])
@pytest.mark.parametrize('box', [(0, 0, 128, 96), (20, 10, 90, 80)])
def test_what_a_window_takes_out_it_puts_back_in_place(box, side):
    window = Window.clipped(box, FRAME.shape).scaled_to_side(side)
    part = window.crop(TRUTH.astype(np.float32))
    assert part.shape == window.size[::-1]
    assert overlap(window.paste(part) > 0.5, TRUTH) > 0.9
    grid = cv2.resize(TRUTH.astype(np.float32), (32, 24), interpolation=cv2.INTER_AREA)
    sampled = window.sample(grid, window.size)
    back = place(window.enlarge_map(sampled), window.slices, window.frame)
    assert overlap(back > 0.5, TRUTH) > 0.9
    # and points: the square's corner, to and in the part
    corner = window.to_part(np.array([[31.5, 23.5]]))[0]
    expected = (np.array([32, 24]) - box[:2]) * window.scale - 0.5
    assert corner == pytest.approx(expected, abs=1e-4)
    assert window.corners_to_part((32, 24, 32, 24))[:2] == pytest.approx(expected + 0.5)


def test_a_piece_of_a_part_comes_back_where_it_was():
    window = Window.clipped((20, 10, 90, 80), FRAME.shape).scaled_to_side(30)
    part = window.crop(TRUTH.astype(np.float32))
    pixels = np.s_[4:21, 2:19]
    area, values = window.enlarge_piece(part[pixels], pixels)
    whole = window.paste(part)
    inside = (
        slice(area[0].start + 2, area[0].stop - 2),
        slice(area[1].start + 2, area[1].stop - 2),
    )
    np.testing.assert_allclose(place(values, area, window.frame)[inside], whole[inside], atol=0.05)
    area, values = window.enlarge_piece(part, np.s_[0:30, 0:30])
    assert np.array_equal(place(values, area, window.frame), whole)


# -- without weights


def test_colour_finds_edges():
    coarse = coarse_of(TRUTH, shift=2.0)
    before = overlap(render(Upsampling(), FRAME, coarse) > 0.5, TRUTH)
    refined = render(ColourSolver(), FRAME, coarse)
    assert refined.shape == FRAME.shape[:2] and refined.dtype == np.float32
    assert 0 <= refined.min() and refined.max() <= 1
    assert overlap(refined > 0.5, TRUTH) > before + 0.01


def test_the_bilateral_grid_keeps_constants():
    out = BilateralGrid(FRAME).smooth(np.full(FRAME.shape[:2], 0.7, np.float32))
    assert np.abs(out - 0.7).max() < 0.02


def dense_solution(frame, target, certainty):
    """Solve as the paper says, on matrices of SciPy: (h, w)."""
    rows, columns = np.indices(frame.shape[:2])
    colours = cv2.cvtColor(frame, cv2.COLOR_RGB2YCrCb).astype(int)
    places = np.stack([columns, rows, *np.moveaxis(colours, -1, 0)], -1).reshape(-1, 5)
    cells, vertex = np.unique(places // (6, 6, 9, 5, 5), axis=0, return_inverse=True)
    vertex, count = vertex.ravel(), len(cells)
    distance = np.abs(cells[:, None] - cells[None]).sum(-1)
    blur = 10.0 * np.eye(count) + (distance == 1)
    mass = np.bincount(vertex)
    scale = np.ones(count)
    for _ in range(8):
        scale = np.sqrt(scale * mass / (blur @ scale))
    smoothness = scale[:, None] * (np.diag(blur @ scale) - blur * scale)
    weight = np.bincount(vertex, certainty.ravel())
    system = sparse.csc_matrix(16.0 * smoothness + np.diag(weight + 1e-6))
    value = np.bincount(vertex, (certainty * target).ravel())
    return spsolve(system, value)[vertex].reshape(target.shape)


def test_the_bilateral_grid_solves_what_it_stands_for():
    rng = np.random.default_rng(0)
    frame = cv2.resize(rng.integers(0, 255, (4, 6, 3), np.uint8), (40, 27))
    target = rng.random(frame.shape[:2], np.float32)
    certainty = np.maximum(np.abs(2 * target - 1) ** 3, 0.05)
    grid = BilateralGrid(frame)
    assert grid.mass.sum() == target.size and grid.count == len(grid.mass)
    solution = np.zeros(grid.count, np.float32)
    value = grid.splat(certainty * target, grid.all)
    grid.relax(grid.splat(certainty, grid.all), value, solution, grid.all, iterations=500)
    want = dense_solution(frame, target, certainty)
    np.testing.assert_allclose(grid.slice(solution, grid.all), want, atol=0.02)


def test_a_part_of_the_grid_is_solved_as_if_all_else_were_absent():
    frame = np.random.default_rng(0).integers(90, 160, (36, 60, 3), np.uint8)
    target = np.zeros((36, 60), np.float32)
    target[8:20, 20:30] = 1.0
    certainty = np.full_like(target, 0.5)
    whole = BilateralGrid(frame)
    cells = whole.cells_of((13, 0, 40, 29))
    area = whole.pixels(cells)
    assert area == (slice(0, 30), slice(12, 42))
    outside = np.ones(target.shape, bool)
    outside[area] = False
    active = np.zeros((6, 10), bool)
    active[cells.slices] = True
    part = BilateralGrid(frame, active)
    assert part.count < whole.count and (part.vertex[outside] == -1).all()
    found = []
    for grid in (whole, part):
        solution = np.zeros(grid.count, np.float32)
        weight = grid.splat(certainty, grid.all)
        value = grid.splat((certainty * target)[area], cells)
        grid.relax(weight, value, solution, cells)
        found.append(grid.slice(solution, grid.all))
        assert not found[-1][outside].any()
    # at the border they differ: links that lead out hold it down
    np.testing.assert_allclose(found[0][6:24, 18:36], found[1][6:24, 18:36], atol=0.02)


@pytest.mark.parametrize('number', [2, 8])
def test_objects_compete_whatever_their_order(number):
    sides = [(4 + 30 * (i % 4), 4 + 44 * (i // 4), 26) for i in range(number)]
    frame = scene(*((*side, (RED, GREEN, BLUE)[i % 3]) for i, side in enumerate(sides)))
    masks = {i: square_mask(side) == 1 for i, side in enumerate(sides, start=1)}
    coarse = {i: coarse_of(mask, shift=2.0) for i, mask in masks.items()}
    refiner = ColourSolver()
    looks = refiner.remember(frame, masks)
    refined = refiner.refine(frame, coarse, looks, 0)
    turned = refiner.refine(frame, dict(reversed(coarse.items())), looks, 0)
    total = np.zeros(frame.shape[:2], np.float32)
    for i, mask in masks.items():
        found = refined.probability(i)
        assert overlap(found > 0.5, mask) > 0.9
        np.testing.assert_allclose(turned.probability(i), found, atol=1e-3)
        area, values = refined.piece(i)
        assert values.size < found.size / 2 or number == 2
        assert np.array_equal(place(values, area, found.shape), found)
        total += found
    assert total.max() < 1.05


def test_far_objects_are_refined_as_each_alone():
    """What lies between them costs no pixels, so that edges are as fine."""
    size = (960, 1280)
    squares = [(40, 60, 90), (1100, 800, 100)]
    frame = scene(*((*s, RED) for s in squares), size=size)
    masks = {i: square_mask(s, size=size) == 1 for i, s in enumerate(squares, start=1)}
    coarse = {
        i: cv2.GaussianBlur(
            cv2.resize(m.astype(np.float32), (80, 60), interpolation=cv2.INTER_AREA), (0, 0), 0.7
        )
        for i, m in masks.items()
    }
    refiner = ColourSolver()
    both = refiner.refine(frame, coarse, {}, 0)
    for i, mask in masks.items():
        alone = refiner.refine(frame, {i: coarse[i]}, {}, 0).probability(i) > 0.5
        assert overlap(both.probability(i) > 0.5, mask) > 0.95
        assert overlap(both.probability(i) > 0.5, alone) > 0.97


def test_what_is_not_there_takes_no_part():
    """A map too faint to have surroundings is left as it is, beside one that has some."""
    coarse = {1: coarse_of(TRUTH), 2: np.full((24, 32), 0.1, np.float32)}
    refined = ColourSolver().refine(FRAME, coarse, {}, 0)
    assert overlap(refined.probability(1) > 0.5, TRUTH) > 0.9
    assert np.allclose(refined.probability(2), 0.1)


@pytest.mark.parametrize('method', ['none', 'colour', 'sam'])
def test_frames_without_objects(method, tmp_path):
    config = configure(method=method, sam_checkpoint=str(save_folder(tmp_path / 'sam')))
    refined = make_refiner(config, 'cpu').refine(FRAME, {}, {}, 0)
    with pytest.raises(KeyError):
        refined.probability(1)


def test_loops_are_compiled_even_where_nothing_can_be_kept(monkeypatch):
    compile_it = numba.njit

    def njit(*signature, cache=False, **options):
        if cache:
            raise RuntimeError('cannot cache function: no locator available')
        return compile_it(*signature, **options)

    monkeypatch.setattr(numba, 'njit', njit)
    double = compiled('float64(float64)')(lambda value: 2 * value)
    assert double(1.5) == 3.0


@pytest.mark.parametrize('size', [(32, 32), (33, 47), (16, 400), (480, 12)])
def test_odd_frames(size):
    rng = np.random.default_rng(0)
    frame = rng.integers(0, 255, (*size, 3), np.uint8)
    grid = (max(size[0] // 4, 1), max(size[1] // 4, 1))
    coarse = {i: rng.random(grid, np.float32) / 2 for i in (1, 2)}
    refined = ColourSolver().refine(frame, coarse, {}, 0)
    for i in (1, 2):
        found = refined.probability(i)
        assert found.shape == size and 0 <= found.min() and found.max() <= 1


def test_colours_of_the_seed_bring_back_a_part_the_tracker_lost():
    # red above, green below; the tracker has lost the green part
    frame = scene((32, 16, 32, RED), (32, 48, 32, GREEN))
    truth = square_mask((32, 16, 32), (32, 48, 32)) > 0
    coarse = coarse_of(square_mask((32, 16, 32)) == 1)
    coarse[12:20, 8:16] = np.maximum(coarse[12:20, 8:16], 0.45)
    refiner = ColourSolver()
    before = render(refiner, frame, coarse)
    looks = refiner.remember(frame, {1: truth})
    after = render(refiner, frame, coarse, looks)
    assert overlap(after > 0.5, truth) > 0.9 > overlap(before > 0.5, truth)
    # what is not handed in plays no part
    assert np.array_equal(render(refiner, frame, coarse, {2: looks[1]}), before)


def test_colours_say_nothing_where_object_and_surroundings_look_alike():
    noise = np.random.default_rng(0).integers(120, 136, FRAME.shape, np.uint8)
    soft = cv2.GaussianBlur(TRUTH.astype(np.float32), (0, 0), 2.0)
    refiner = ColourSolver()
    for frame, low, high in ((noise, 0.0, 0.1), (FRAME, 1.5, 2.0)):
        look = refiner.remember(frame, {1: TRUTH})[1]
        bins = colour_bins(frame)
        evidence = np.log(refiner.evidence(soft, bins, look))[bins]
        assert low <= np.abs(evidence).mean() <= high


def test_small_pieces_far_away_are_dropped_unless_the_seed_was_in_pieces():
    body, speck, near = (32, 24, 40), (112, 80, 8), (74, 40, 8)
    frame = scene((*body, RED), (*speck, RED), (*near, RED))
    masks = {
        name: square_mask(square) == 1
        for name, square in (('body', body), ('speck', speck), ('near', near))
    }
    everything = masks['body'] | masks['speck'] | masks['near']
    coarse = np.clip(1.5 * coarse_of(everything), 0, 1)

    def found(seed):
        refiner = ColourSolver()
        refined = render(refiner, frame, coarse, refiner.remember(frame, {1: seed})) > 0.5
        return {name: overlap(refined & mask, mask) > 0.7 for name, mask in masks.items()}

    assert found(masks['body']) == {'body': True, 'speck': False, 'near': True}
    assert found(everything) == {'body': True, 'speck': True, 'near': True}


def test_pinholes_are_filled_and_holes_kept():
    frame = scene((16, 12, 64, RED), (44, 40, 4, BLUE))
    solid = square_mask((16, 12, 64)) == 1
    assert (render(ColourSolver(), frame, coarse_of(solid)) > 0.5)[40:44, 44:48].all()
    frame = scene((16, 12, 64, RED), (36, 32, 24, BLUE))
    ring = solid & (square_mask((36, 32, 24)) == 0)
    found = render(ColourSolver(), frame, coarse_of(ring)) > 0.5
    assert overlap(found, ring) > 0.9


def test_a_map_with_nothing_in_it_stays_empty():
    assert render(ColourSolver(), FRAME, np.full((24, 32), 0.1, np.float32)).max() < 0.5


def test_an_empty_mask_is_not_remembered():
    refiner = ColourSolver()
    assert not refiner.remember(FRAME, {1: np.zeros(FRAME.shape[:2], bool)})


def test_what_a_seed_showed_cannot_be_changed():
    look = ColourSolver().remember(FRAME, {1: TRUTH})[1]
    with pytest.raises(AttributeError):
        look.whole = False
    with pytest.raises(ValueError, match='read-only'):
        look.inside[0] = 1.0


def test_every_nth_frame():
    calls = []

    class Spy:
        def __init__(self, name):
            self.name = name

        def refine(self, frame, coarse, looks, number):
            calls.append(self.name)

    refiner = Every(Spy('dear'), Spy('cheap'), 3)
    for number in range(7):
        refiner.refine(FRAME, {}, {}, number)
    assert calls == ['dear', 'cheap', 'cheap'] * 2 + ['dear']


# -- prompts


def test_prompts_of_a_probability_map():
    own = square_mask((40, 40, 20)).astype(np.float32)
    others = square_mask((90, 10, 20)).astype(np.float32)
    prompt = read_prompt(own, others, positives=1, negatives=2, margin=0.1)
    assert prompt.box == pytest.approx([38, 38, 61, 61])
    positive = prompt.points[prompt.labels == 1]
    assert np.abs(positive - 49.5).max() <= 1
    negative = prompt.points[prompt.labels == 0].astype(int)
    assert len(negative) == 2
    assert (others[negative[:, 1], negative[:, 0]] == 1).sum() == 1, 'one on the other object'
    assert (own[negative[:, 1], negative[:, 0]] == 0).all()


def test_positive_points_cover_separate_parts():
    own = square_mask((10, 10, 20)) + square_mask((80, 40, 30))
    points = read_prompt(
        own.astype(np.float32), np.zeros(own.shape, np.float32), positives=2, negatives=0
    ).points
    assert sorted(points[:, 0] > 60) == [False, True]


def test_no_prompt_without_an_object():
    nothing = np.full((20, 20), 0.4, np.float32)
    assert read_prompt(nothing, nothing) is None


def test_points_of_several_prompts_in_one_batch():
    empty = (np.zeros((0, 2), np.float32), np.zeros(0, np.float32))
    points, labels = stack_points([empty, (np.ones((2, 2), np.float32), np.ones(2, np.float32))])
    assert points.shape == (2, 2, 2) and labels.tolist() == [[-1, -1], [1, 1]]
    assert stack_points([empty])[1].tolist() == [[-1]]


# -- Segment Anything


def test_mask_input_is_logits():
    probability = torch.tensor([0.0, 0.25, 0.5, 1.0])
    assert mask_logits(probability).tolist() == pytest.approx([-8, np.log(1 / 3), 0, 8])


def test_frame_and_model_coordinates_fit():
    """A map sampled on the model's input and rendered back is where it was."""
    coder = SamCoder(random_sam())
    for box in ((0, 0, 128, 96), (20, 10, 90, 80)):
        encoded = coder.encode(FRAME, Window.clipped(box, FRAME.shape))
        coarse = cv2.resize(TRUTH.astype(np.float32), (32, 24), interpolation=cv2.INTER_AREA)
        sampled = coder.to_map(encoded, coarse)
        logits = np.log((sampled + 1e-3) / (1 - sampled + 1e-3))
        assert overlap(coder.render(encoded, logits) > 0.5, TRUTH) > 0.93


def test_candidates_are_scored_by_agreement_first():
    soft = torch.from_numpy(cv2.GaussianBlur(TRUTH.astype(np.float32), (0, 0), 2.0))[None]
    truth = torch.from_numpy(TRUTH).float()
    logits = torch.stack([20 * truth - 10, 10 - 20 * truth, torch.full_like(truth, -10)])[None]
    scores = score_candidates(logits, torch.tensor([[0.5, 1.0, 1.0]]), soft)[0]
    assert scores.argmax() == 0 and scores[0] > 0.6 and scores[1] < 0.1
    assert score_candidates(logits[:, :1], torch.ones(1, 1), truth[None]).item() == pytest.approx(
        1, abs=0.01
    )


def test_stability():
    logits = torch.tensor([[[5.0, 0.5], [-0.5, -5.0]]])
    assert stability(logits).item() == pytest.approx(1 / 3)


class Recorded(SamCoder):
    """Counts passes, and can be made to answer as if it knew."""

    def __init__(self, model, answer=None):
        super().__init__(model)
        self.passes, self.batches, self.answer = 0, [], answer

    def encode(self, frame, window):
        self.passes += 1
        return super().encode(frame, window)

    def decode(self, encoded, points, labels, boxes, masks):
        self.batches.append(len(labels))
        answer = super().decode(encoded, points, labels, boxes, masks)
        logits, quality = (t.clone() for t in answer)
        if self.answer is not None:
            for row, mask in enumerate(self.answer):
                known = self.to_map(encoded, mask.astype(np.float32))
                logits[row, 2] = torch.from_numpy(20 * known - 10)
            quality[:] = 1
        return logits, quality


def test_one_pass_and_one_batch_for_all_objects():
    frame = scene((10, 10, 24, RED), (50, 40, 30, GREEN), (90, 10, 24, BLUE))
    masks = [square_mask(s) == 1 for s in ((10, 10, 24), (50, 40, 30), (90, 10, 24))]
    coder = Recorded(random_sam(), masks)
    # far too large, so that what is found cannot come from them
    coarse = {
        n: 0.8 * coarse_of(cv2.dilate(mask.astype(np.uint8), np.ones((9, 9))) > 0)
        for n, mask in enumerate(masks, start=4)
    }
    refined = SamRefiner(coder, ColourSolver(weight=0.0), gate=0.3).refine(frame, coarse, {}, 0)
    assert coder.passes == 1 and coder.batches == [3]
    for number, mask in enumerate(masks, start=4):
        assert overlap(refined.probability(number) > 0.5, mask) > 0.9


def test_a_useless_model_changes_nothing():
    coarse = coarse_of(TRUTH)
    kept = render(ColourSolver(), FRAME, coarse)
    for seed in range(5):
        refiner = SamRefiner(SamCoder(random_sam(seed=seed)), ColourSolver(), gate=0.5)
        assert np.array_equal(render(refiner, FRAME, coarse), kept)


def test_a_map_without_an_object_is_left_alone():
    coder = Recorded(random_sam())
    refiner = SamRefiner(coder, ColourSolver(), gate=0.0)
    assert render(refiner, FRAME, np.full((24, 32), 0.2, np.float32)).max() < 0.5
    assert coder.passes == 0


# -- checkpoints


def test_official_layout_is_inferred(tmp_path):
    path = save_official(tmp_path / 'sam_vit_b_01ec64.pth')
    state = torch.load(path, weights_only=True)
    assert infer_config(state) == OFFICIAL
    model = load_sam(path, 'cpu')
    assert isinstance(model, Sam) and not model.training
    image = torch.rand(1, 3, 64, 64)
    with torch.inference_mode():
        assert torch.equal(model.image_encoder(image), random_sam(OFFICIAL).image_encoder(image))


def test_published_vit_b_is_inferred_from_its_shapes():
    from segment_anything import build_sam_vit_b

    with torch.device('meta'):
        state = build_sam_vit_b().state_dict()
    config = infer_config(state)
    assert {
        key: config[key]
        for key in (
            'image_size',
            'patch_size',
            'width',
            'depth',
            'heads',
            'mlp_ratio',
            'window',
            'global_blocks',
        )
    } == {
        'image_size': 1024,
        'patch_size': 16,
        'width': 768,
        'depth': 12,
        'heads': 12,
        'mlp_ratio': 4.0,
        'window': 14,
        'global_blocks': [2, 5, 8, 11],
    }


def test_folder_of_the_training(tmp_path):
    folder = save_folder(tmp_path / 'sam')
    assert load_sam(folder, 'cpu').image_encoder.img_size == SMALL['image_size']
    first = shared_sam(str(folder), 'cpu')
    assert shared_sam(str(folder), 'cpu') is first, 'a model is shared while it is in use'


def test_unusable_checkpoints_say_what_to_do(tmp_path):
    with pytest.raises(
        CheckpointError,
        match=r'no Segment Anything checkpoint at .*nowhere.pth.*'
        r'sam_vit_b_01ec64.pth.*sam_checkpoint',
    ):
        load_sam(tmp_path / 'nowhere.pth')
    broken = tmp_path / 'broken.pth'
    broken.write_bytes(b'\x80\x02 no checkpoint')
    with pytest.raises(CheckpointError, match='broken.pth is not a Segment Anything checkpoint'):
        load_sam(broken)
    other = tmp_path / 'other.pth'
    torch.save({'weight': torch.zeros(3)}, other)
    with pytest.raises(CheckpointError, match='other.pth is not a Segment Anything checkpoint'):
        load_sam(other)
    with pytest.raises(CheckpointError, match='model.safetensors and the config.json'):
        load_sam(tmp_path)


def test_pickles_that_run_code_are_refused(tmp_path):
    import os
    import pickle

    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / 'proof'),)

    path = tmp_path / 'evil.pth'
    path.write_bytes(pickle.dumps({'image_encoder.pos_embed': Evil()}))
    with pytest.raises(CheckpointError):
        load_sam(path)
    assert not (tmp_path / 'proof').exists()


def test_mobile_sam_needs_its_package(tmp_path):
    path = tmp_path / 'mobile_sam.pt'
    torch.save({'image_encoder.patch_embed.seq.0.c.weight': torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match='mobile_sam.*not installed.*ChaoningZhang'):
        load_sam(path)


def test_mobile_sam_with_its_package(tmp_path, monkeypatch):
    """Stands in for the package: it builds a model, and the weights are loaded into it."""
    import sys
    import types

    class Encoder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.patch_embed = torch.nn.Module()
            self.patch_embed.seq = torch.nn.Sequential(torch.nn.Module())
            self.patch_embed.seq[0].c = torch.nn.Conv2d(3, 32, 8, 8)
            self.img_size = 64

        def forward(self, image):
            return self.patch_embed.seq[0].c(image)

    def build(checkpoint=None):
        model = random_sam()
        model.image_encoder = Encoder()
        return model

    package = types.ModuleType('mobile_sam')
    package.sam_model_registry = {'vit_t': build}
    monkeypatch.setitem(sys.modules, 'mobile_sam', package)
    weights = build().state_dict()
    torch.save(weights, tmp_path / 'mobile_sam.pt')
    coder = SamCoder(load_sam(tmp_path / 'mobile_sam.pt', 'cpu'))
    loaded = coder.model.image_encoder.state_dict()
    assert all(
        torch.equal(value, weights[f'image_encoder.{name}']) for name, value in loaded.items()
    )
    taken = render(SamRefiner(coder, ColourSolver(), gate=0.0), FRAME, coarse_of(TRUTH))
    assert not np.array_equal(taken, render(ColourSolver(), FRAME, coarse_of(TRUTH)))


# -- in the tracker


def track(frames, mask, **options):
    defaults = {'resolution': 96, 'radius': 6}
    tracker = Tracker(config=configure(**{**defaults, **options}), features=ColourFeatures())
    tracker.seed(frames[0], mask)
    return tracker, [tracker.step(frame) for frame in frames[1:]]


MOVING = [scene((16 + 4 * i, 16, 32, RED), (90, 50, 30, GREEN)) for i in range(6)]
SEED = square_mask((16, 16, 32), (90, 50, 30))


@pytest.mark.parametrize('method', ['none', 'colour'])
def test_every_refiner_tracks(method):
    _, results = track(MOVING, SEED, method=method)
    truth = square_mask((36, 16, 32), (90, 50, 30))
    for number in (1, 2):
        assert overlap(results[-1].labels == number, truth == number) > 0.85
        found = results[-1].probability(number) > 0.5
        assert overlap(found, results[-1].labels == number) > 0.95


def test_random_weights_track_as_the_colour_solver_does(tmp_path):
    sam = track(MOVING, SEED, method='sam', sam_checkpoint=str(save_folder(tmp_path / 'sam')))[1]
    colour = track(MOVING, SEED, method='colour')[1]
    for first, second in zip(sam, colour, strict=True):
        assert np.array_equal(first.labels, second.labels)


@pytest.mark.parametrize('every', [1, 2])
def test_sam_looks_at_seeds_as_the_colour_solver_does(every, tmp_path):
    config = configure(
        method='sam', every=every, sam_checkpoint=str(save_folder(tmp_path / 'sam'))
    )
    mine = make_refiner(config, 'cpu').remember(FRAME, {5: TRUTH})
    its = ColourSolver().remember(FRAME, {5: TRUTH})
    assert sorted(mine) == sorted(its) == [5]
    assert np.array_equal(mine[5].inside, its[5].inside)


@pytest.mark.parametrize('method', ['none', 'colour', 'sam'])
def test_a_refiner_keeps_nothing_so_that_trackers_can_share_it(method, tmp_path):
    config = configure(method=method, sam_checkpoint=str(save_folder(tmp_path / 'sam')))
    shared = make_refiner(config, 'cpu')
    looks = shared.remember(FRAME, {1: TRUTH})
    coarse = coarse_of(TRUTH, shift=2.0)
    first = render(shared, FRAME, coarse, looks)
    other = scene((70, 40, 30, BLUE))
    shared.remember(other, {1: square_mask((70, 40, 30)) == 1})
    shared.refine(other, {1: coarse_of(square_mask((70, 40, 30)) == 1)}, {}, 1)
    assert np.array_equal(render(shared, FRAME, coarse, looks), first)


def test_a_wrong_checkpoint_is_told_at_start(tmp_path):
    config = configure(method='sam', sam_checkpoint=str(tmp_path / 'none.pth'))
    with pytest.raises(CheckpointError, match='none.pth'):
        Tracker(config=config, features=ColourFeatures())
    assert isinstance(make_refiner(configure(method='none')), Upsampling)
