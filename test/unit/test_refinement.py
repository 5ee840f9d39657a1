# SPDX-License-Identifier: Apache-2.0
"""Refiners: what they keep, what they sharpen, and what they refuse."""

import cv2
import numpy as np
import pytest
from sam_models import OFFICIAL, random_sam, save_folder, save_official, SMALL
from scenes import BLUE, ColourFeatures, configure, GREEN, overlap, RED, scene, square_mask
from scipy import sparse
from scipy.sparse.linalg import cg
from segment_anything.modeling import Sam
import torch

from drift_ros import CheckpointError, Tracker, TrackerConfig
from drift_ros.prompts.grabcut import agreement, GrabCut, object_window
from drift_ros.refinement import Every, make_refiner
from drift_ros.refinement.bilateral import (
    _conjugate_gradients,
    BilateralSolver,
    GuidedFilter,
    Upsampling,
)
from drift_ros.refinement.colour import _colour_bins, ColourSolver
from drift_ros.refinement.mask_prompts import read_prompt, stack_points
from drift_ros.refinement.sam import (
    mask_logits,
    sam_predictor,
    SamPredictor,
    SamRefiner,
    score_candidates,
    stability,
)
from drift_ros.refinement.sam_weights import infer_config, load_sam

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


# -- without weights


@pytest.mark.parametrize(
    'refiner',
    [GuidedFilter(), BilateralSolver(), ColourSolver(), GrabCut(GuidedFilter(), gate=0.5)],
    ids=['guided', 'bilateral', 'colour', 'grabcut'],
)
def test_refiners_without_weights_find_edges(refiner):
    coarse = {1: coarse_of(TRUTH, shift=2.0)}
    before = overlap(Upsampling().refine(FRAME, coarse).probability(1) > 0.5, TRUTH)
    refined = refiner.refine(FRAME, coarse).probability(1)
    assert refined.shape == FRAME.shape[:2] and refined.dtype == np.float32
    assert 0 <= refined.min() and refined.max() <= 1
    assert overlap(refined > 0.5, TRUTH) > before + 0.01


def test_bilateral_solver_keeps_constants_and_respects_edges():
    flat = np.full((24, 32), 0.7, np.float32)
    out = BilateralSolver().refine(FRAME, {1: flat}).probability(1)
    assert np.abs(out - 0.7).max() < 0.02


def test_colours_of_the_seed_bring_back_a_part_the_tracker_lost():
    # red above, green below; the tracker has lost the green part
    frame = scene((32, 16, 32, RED), (32, 48, 32, GREEN))
    truth = square_mask((32, 16, 32), (32, 48, 32)) > 0
    coarse = {1: coarse_of(square_mask((32, 16, 32)) == 1)}
    coarse[1][12:20, 8:16] = np.maximum(coarse[1][12:20, 8:16], 0.45)
    refiner = ColourSolver()
    before = overlap(refiner.refine(frame, coarse).probability(1) > 0.5, truth)
    refiner.remember(frame, {1: truth})
    after = overlap(refiner.refine(frame, coarse).probability(1) > 0.5, truth)
    assert after > 0.9 > before
    refiner.forget([1, 2])
    assert overlap(refiner.refine(frame, coarse).probability(1) > 0.5, truth) == before


def test_colours_say_nothing_where_object_and_surroundings_look_alike():
    noise = np.random.default_rng(0).integers(120, 136, FRAME.shape, np.uint8)
    soft = cv2.GaussianBlur(TRUTH.astype(np.float32), (0, 0), 2.0)
    refiner = ColourSolver()
    for frame, low, high in ((noise, 0.0, 0.1), (FRAME, 1.5, 2.0)):
        refiner.remember(frame, {1: TRUTH})
        evidence = refiner.evidence(1, soft, _colour_bins(frame))
        assert low <= np.abs(evidence).mean() <= high


def test_small_pieces_far_away_are_dropped_unless_the_seed_was_in_pieces():
    body, speck, near = (32, 24, 40), (112, 80, 8), (74, 40, 8)
    frame = scene((*body, RED), (*speck, RED), (*near, RED))
    masks = {
        name: square_mask(square) == 1
        for name, square in (('body', body), ('speck', speck), ('near', near))
    }
    everything = masks['body'] | masks['speck'] | masks['near']
    coarse = {1: np.clip(1.5 * coarse_of(everything), 0, 1)}

    def found(seed):
        refiner = ColourSolver()
        refiner.remember(frame, {1: seed})
        refined = refiner.refine(frame, coarse).probability(1) > 0.5
        return {name: overlap(refined & mask, mask) > 0.7 for name, mask in masks.items()}

    assert found(masks['body']) == {'body': True, 'speck': False, 'near': True}
    assert found(everything) == {'body': True, 'speck': True, 'near': True}


def test_pinholes_are_filled_and_holes_kept():
    frame = scene((16, 12, 64, RED), (44, 40, 4, BLUE))
    solid = square_mask((16, 12, 64)) == 1
    coarse = {1: coarse_of(solid)}
    assert (ColourSolver().refine(frame, coarse).probability(1) > 0.5)[40:44, 44:48].all()
    frame = scene((16, 12, 64, RED), (36, 32, 24, BLUE))
    ring = solid & (square_mask((36, 32, 24)) == 0)
    found = ColourSolver().refine(frame, {1: coarse_of(ring)}).probability(1) > 0.5
    assert overlap(found, ring) > 0.9


def test_a_map_with_nothing_in_it_stays_empty():
    faint = {1: np.full((24, 32), 0.1, np.float32)}
    assert ColourSolver().refine(FRAME, faint).probability(1).max() < 0.5


def test_a_cut_that_disagrees_is_not_taken():
    # what the mask covers has nothing to do with what is in the picture
    noise = np.random.default_rng(0).integers(0, 255, FRAME.shape, np.uint8)
    coarse = {1: coarse_of(TRUTH)}
    refiner = GrabCut(GuidedFilter(), gate=0.999)
    refined = refiner.refine(noise, coarse)
    assert not refined.accepted
    kept = GuidedFilter().refine(noise, coarse).probability(1)
    assert np.array_equal(refined.probability(1), kept)
    assert GrabCut(GuidedFilter(), gate=0.3).refine(FRAME, coarse).accepted == {1}


def test_agreement():
    a, b = np.zeros((4, 4), np.float32), np.zeros((4, 4), np.float32)
    assert agreement(a, b) == 0
    a[:2], b[1:3] = 1, 0.5
    assert agreement(a, b) == pytest.approx(2 / (8 + 2))


def test_object_window():
    mask = np.zeros((24, 32), bool)
    assert object_window(mask, (96, 128)) is None
    mask[10:14, 10:14] = True
    x0, y0, x1, y1 = object_window(mask, (96, 128))
    assert x0 < 40 < 56 < x1 and y0 < 40 < 56 < y1
    mask[:] = True
    assert object_window(mask, (96, 128)) == (0, 0, 128, 96)


def test_every_nth_frame():
    calls = []

    class Spy:
        def __init__(self, name):
            self.name = name

        def refine(self, frame, coarse):
            calls.append(self.name)

    refiner = Every(Spy('dear'), Spy('cheap'), 3)
    for _ in range(7):
        refiner.refine(FRAME, {})
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
    predictor = SamPredictor(random_sam())
    for window in ((0, 0, 128, 96), (20, 10, 90, 80)):
        view = predictor.look(FRAME, window)
        coarse = cv2.resize(TRUTH.astype(np.float32), (32, 24), interpolation=cv2.INTER_AREA)
        sampled = predictor.to_map(view, coarse, FRAME.shape)
        logits = np.log((sampled + 1e-3) / (1 - sampled + 1e-3))
        back = predictor.render(view, logits, FRAME.shape) > 0.5
        assert overlap(back, TRUTH) > 0.93
        # the same of points: the square's corner, in pixels of the model
        corner = view.to_model(np.array([[31.5, 23.5]]))[0]
        expected = (np.array([32, 24]) - window[:2]) * view.scale - 0.5
        assert corner == pytest.approx(expected, abs=1e-4)


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


class Recorded(SamPredictor):
    """Counts passes, and can be made to answer as if it knew."""

    def __init__(self, model, answer=None):
        super().__init__(model)
        self.looks, self.batches, self.answer = 0, [], answer

    def look(self, frame, window):
        self.looks += 1
        self.window = window
        return super().look(frame, window)

    def decode(self, view, points, labels, boxes, masks):
        self.batches.append(len(labels))
        logits, quality = (t.clone() for t in super().decode(view, points, labels, boxes, masks))
        if self.answer is not None:
            for row, mask in enumerate(self.answer):
                known = self.to_map(view, mask.astype(np.float32), mask.shape)
                logits[row, 2] = torch.from_numpy(20 * known - 10)
            quality[:] = 1
        return logits, quality


def test_one_look_and_one_batch_for_all_objects():
    frame = scene((10, 10, 24, RED), (50, 40, 30, GREEN), (90, 10, 24, BLUE))
    masks = [square_mask(s) == 1 for s in ((10, 10, 24), (50, 40, 30), (90, 10, 24))]
    predictor = Recorded(random_sam(), masks)
    refined = SamRefiner(predictor, GuidedFilter(), gate=0.5).refine(
        frame, {number: coarse_of(mask) for number, mask in enumerate(masks, start=4)}
    )
    assert predictor.looks == 1 and predictor.batches == [3]
    assert refined.accepted == {4, 5, 6}
    for number, mask in enumerate(masks, start=4):
        assert overlap(refined.probability(number) > 0.5, mask) > 0.93


def test_a_useless_model_changes_nothing():
    coarse = {1: coarse_of(TRUTH)}
    for seed in range(5):
        refiner = SamRefiner(SamPredictor(random_sam(seed=seed)), GuidedFilter(), gate=0.5)
        refined = refiner.refine(FRAME, coarse)
        assert not refined.accepted
        kept = GuidedFilter().refine(FRAME, coarse).probability(1)
        assert np.array_equal(refined.probability(1), kept)


def test_a_map_without_an_object_is_left_alone():
    predictor = Recorded(random_sam())
    refined = SamRefiner(predictor, GuidedFilter(), gate=0.0).refine(
        FRAME, {1: np.full((24, 32), 0.2, np.float32)}
    )
    assert not refined.accepted and predictor.looks == 0
    assert refined.probability(1).max() < 0.5


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
    first = sam_predictor(str(folder), 'cpu')
    assert sam_predictor(str(folder), 'cpu') is first, 'a model is shared while it is in use'


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
    predictor = SamPredictor(load_sam(tmp_path / 'mobile_sam.pt', 'cpu'))
    loaded = predictor.model.image_encoder.state_dict()
    assert all(
        torch.equal(value, weights[f'image_encoder.{name}']) for name, value in loaded.items()
    )
    refined = SamRefiner(predictor, GuidedFilter(), gate=0.0).refine(FRAME, {1: coarse_of(TRUTH)})
    assert refined.accepted == {1}


# -- in the tracker


def track(frames, mask, **options):
    defaults = {'resolution': 96, 'radius': 6}
    tracker = Tracker(config=configure(**{**defaults, **options}), features=ColourFeatures())
    tracker.seed(frames[0], mask)
    return tracker, [tracker.step(frame) for frame in frames[1:]]


MOVING = [scene((16 + 4 * i, 16, 32, RED), (90, 50, 30, GREEN)) for i in range(6)]
SEED = square_mask((16, 16, 32), (90, 50, 30))


@pytest.mark.parametrize('refinement', ['none', 'guided', 'bilateral', 'colour', 'grabcut'])
@pytest.mark.parametrize('memory_labels', ['coarse', 'refined'])
def test_every_refiner_tracks(refinement, memory_labels):
    _, results = track(MOVING, SEED, method=refinement, memory_labels=memory_labels)
    truth = square_mask((36, 16, 32), (90, 50, 30))
    for number in (1, 2):
        assert overlap(results[-1].labels == number, truth == number) > 0.85
        found = results[-1].probability(number) > 0.5
        assert overlap(found, results[-1].labels == number) > 0.95


def test_random_weights_track_as_the_filter_does(tmp_path):
    sam = track(
        MOVING,
        SEED,
        method='sam',
        memory_labels='refined',
        sam_checkpoint=str(save_folder(tmp_path / 'sam')),
    )[1]
    smooth = track(MOVING, SEED, method='colour')[1]
    for first, second in zip(sam, smooth):
        assert np.array_equal(first.labels, second.labels)


def test_refined_masks_are_remembered_only_when_confident():
    sharp, _ = track(
        MOVING[:2],
        SEED,
        method='grabcut',
        memory_labels='refined',
        gate=0.3,
        memory_confidence=0.0,
    )
    for options in (
        {'memory_confidence': 1.0},
        {'gate': 1.0},
        {'memory_labels': 'coarse'},
    ):
        blurred, _ = track(
            MOVING[:2],
            SEED,
            **{
                'method': 'grabcut',
                'memory_labels': 'refined',
                'gate': 0.3,
                'memory_confidence': 0.0,
                **options,
            },
        )
        remembered = [t._memory.references[-1].labels for t in (sharp, blurred)]
        assert not torch.equal(*remembered), options
        for labels in remembered:
            assert torch.allclose(labels.sum(-1), torch.ones(labels.shape[:2]), atol=1e-5)


def test_what_seeds_showed_is_forgotten_with_the_objects():
    tracker, _ = track(MOVING[:2], SEED)
    seen = tracker._refiner._seen
    assert sorted(seen) == [1, 2]
    tracker.remove(1)
    assert sorted(seen) == [2]
    tracker.seed(MOVING[1], square_mask((20, 16, 32)))
    assert sorted(seen) == [2, 3]
    tracker.reset()
    assert not seen


@pytest.mark.parametrize('refinement', ['grabcut', 'sam'])
def test_refiners_on_top_hand_seeds_down(refinement, tmp_path):
    config = TrackerConfig(
        method=refinement, every=2, sam_checkpoint=str(save_folder(tmp_path / 'sam'))
    )
    refiner = make_refiner(config, 'cpu')
    refiner.remember(FRAME, {5: TRUTH})
    assert sorted(refiner._smooth._seen) == [5]
    refiner.forget([5])
    assert not refiner._smooth._seen


def test_a_wrong_checkpoint_is_told_at_start(tmp_path):
    config = configure(method='sam', sam_checkpoint=str(tmp_path / 'none.pth'))
    with pytest.raises(CheckpointError, match='none.pth'):
        Tracker(config=config, features=ColourFeatures())
    assert isinstance(make_refiner(configure(method='none')), Upsampling)


def test_conjugate_gradients_are_those_of_scipy():
    links = sparse.random(500, 500, 0.01, random_state=0)
    links = links + links.T
    matrix = sparse.csr_matrix(sparse.diags(np.asarray(links.sum(1)).ravel() + 0.5) - links)
    rng = np.random.default_rng(0)
    value, start = rng.random(500), rng.random(500)
    want, _ = cg(
        matrix, value, x0=start, rtol=1e-3, maxiter=20, M=sparse.diags(1.0 / matrix.diagonal())
    )
    np.testing.assert_allclose(_conjugate_gradients(matrix, value, start), want, atol=1e-12)
