# SPDX-License-Identifier: Apache-2.0
"""Masks from boxes and clicks, and the engine's use of them."""

import cv2
import numpy as np
import pytest
from sam_models import random_sam, save_folder
from scenes import BLUE, ColourFeatures, configure, GREEN, overlap, RED, scene, square_mask
import torch

from drift_ros import Prompt, PromptError, SeedError, Tracker
from drift_ros.engine.frame_features import FrameFeatures, LayerFeatures
from drift_ros.experiments.prompt_masks import measure, next_click, WAYS
from drift_ros.prompts.boxes import in_boxes, likely
from drift_ros.prompts.clicks import attention_graph, mark
from drift_ros.prompts.segmenter import (
    check_prompts,
    complete_cut,
    label_image,
    SamSegmenter,
    Segmentation,
    Segmenter,
)
from drift_ros.refinement.sam import SamCoder
from drift_ros.refinement.window import Window

FRAME = scene((16, 16, 32, RED), (80, 40, 36, GREEN))
TRUTH = square_mask((16, 16, 32), (80, 40, 36))
RED_BOX, GREEN_BOX = (13, 13, 51, 51), (77, 37, 119, 79)


def make(**options):
    defaults = {'resolution': 96, 'radius': 6, 'prompts': 'grabcut', 'method': 'none'}
    return Tracker(config=configure(**{**defaults, **options}), features=ColourFeatures())


@pytest.mark.parametrize(
    'prompt',
    [
        Prompt(box=RED_BOX),
        Prompt(box=(13.4, 13.2, 51.5, 50.8), points=((30, 30, True),)),
        Prompt(points=((32, 32, True),)),
        Prompt(points=((20, 20, True), (40, 40, True), (96, 60, False))),
        Prompt(box=(-20, -30, 51, 51)),
    ],
    ids=['box', 'box and point', 'point', 'points', 'box beyond the image'],
)
def test_grabcut_finds_what_is_pointed_at(prompt):
    (found,) = make().segment(FRAME, [prompt])
    assert found.mask.shape == FRAME.shape[:2] and found.mask.dtype == bool
    assert overlap(found.mask, TRUTH == 1) > 0.85
    assert 0 <= found.score <= 1


def photograph(size=(120, 200)):
    """Give a picture whose thing and surroundings have two colours each: (image, thing)."""
    random = np.random.default_rng(3)
    image = np.empty((*size, 3), np.float32)
    rows, columns = np.mgrid[: size[0], : size[1]]
    image[:] = np.where((columns // 10 % 2)[..., None], (150, 120, 80), (120, 140, 90))
    thing = ((rows - 60) / 34) ** 2 + ((columns - 90) / 45) ** 2 < 1
    image[thing] = np.where((rows[thing] > 62)[:, None], (60, 70, 190), (80, 60, 150))
    return np.clip(image + random.normal(0, 6, image.shape), 0, 255).astype(np.uint8), thing


@pytest.mark.parametrize('place', [(90, 45), (60, 70), (120, 55)])
def test_a_click_goes_as_far_as_the_thing_does(place):
    image, thing = photograph()
    tracker = make()
    (found,) = tracker.segment(image, [Prompt(points=((*place, True),))])
    assert overlap(found.mask, thing) > 0.8
    assert 0.3 < found.score < 1
    # what is said not to be on it is left out, and what is said to be on it is in
    (less,) = tracker.segment(image, [Prompt(points=((90, 45, True), (90, 85, False)))])
    assert less.mask[45, 90] and not less.mask[85, 90]


def test_a_click_on_nothing_much_scores_low():
    image, _ = photograph()
    noise = np.random.default_rng(0).integers(0, 255, image.shape, np.uint8)
    tracker = make()
    (sure,) = tracker.segment(image, [Prompt(points=((90, 45, True),))])
    (unsure,) = tracker.segment(noise, [Prompt(points=((90, 45, True),))])
    assert unsure.score < sure.score - 0.1


def test_attention_is_a_graph_of_the_networks_own_logits():
    features = ColourFeatures().extract(FRAME)
    graph = attention_graph(features.layers[0])
    rows, columns = features.grid
    assert graph.shape == (rows * columns,) * 2 and abs(graph - graph.T).max() < 1e-6
    assert 0 < graph.data.min() and graph.data.max() <= 1.0
    layer = features.layers[0]
    query = layer.query[0].reshape(-1, layer.query.shape[-1]).numpy()
    one, other = 5 * columns + 5, 5 * columns + 8
    logits = query[[one, other]] @ query[[one, other]].T / np.sqrt(query.shape[1])
    expected = np.exp((logits[0, 1] - (logits[0, 0] + logits[1, 1]) / 2) / 2.3)
    assert graph[one, other] == pytest.approx(expected, rel=1e-4)
    assert graph[one, 5 * columns + 10] == 0  # too far to attend to


@pytest.mark.parametrize('size', [(8, 8), (4, 300), (200, 5), (33, 17)])
def test_clicks_in_odd_frames(size):
    image = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    point = (size[1] - 0.5, size[0] - 0.5, True)
    (found,) = [mark(image, [point], ColourFeatures().extract)]
    assert found.mask.shape == size and 0 <= found.score <= 1


@pytest.mark.parametrize(
    ('prompts', 'message'),
    [
        (Prompt(box=RED_BOX), 'these are no prompts; give a sequence'),
        ([RED_BOX], 'these are no prompts; give a sequence'),
        ([Prompt(box=(1, 2, 3))], 'the box has 3 numbers; it needs x_min'),
        ([Prompt(box=('a', 1, 2, 3))], "a coordinate is 'a', not a number"),
        ([Prompt(box=(-1e308, -1e308, 1e308, 1e308))], '-1e[+]308, not a number of pixels from'),
        ([Prompt(box=(0, 0, np.inf, 9))], 'a coordinate is inf'),
        ([Prompt(points=((20, 20),))], 'a point is not x, y and whether'),
        ([Prompt(box=RED_BOX, name=3)], 'the name 3 is no text'),
        ([Prompt(box=RED_BOX, object_id='1')], 'integer ids'),
    ],
)
def test_prompts_that_are_none_are_refused(prompts, message):
    tracker = make()
    before = tracker.state
    with pytest.raises((PromptError, SeedError), match=message):
        tracker.seed_prompts(FRAME, prompts)
    assert tracker.state is before


def test_a_box_may_be_an_array():
    assert make().seed_prompts(FRAME, [Prompt(box=np.array(RED_BOX))])[0] == [1]


def test_several_prompts_follow_several_objects():
    tracker = make()
    ids, found = tracker.seed_prompts(
        FRAME, [Prompt(box=GREEN_BOX, name='can'), Prompt(points=((32, 32, True),), name='cup')]
    )
    assert ids == [1, 2]
    assert [item.name for item in tracker.objects] == ['can', 'cup']
    assert overlap(found[0].mask, TRUTH == 2) > 0.85
    result = tracker.step(scene((20, 18, 32, RED), (78, 38, 36, GREEN)))
    assert overlap(result.labels == 2, square_mask((20, 18, 32)) == 1) > 0.75
    assert overlap(result.labels == 1, square_mask((78, 38, 36)) == 1) > 0.75


def test_segmenting_follows_nothing():
    tracker = make()
    tracker.segment(FRAME, [Prompt(box=RED_BOX)])
    assert tracker.objects == ()
    tracker.seed_prompts(FRAME, [Prompt(box=RED_BOX)])
    tracker.segment(FRAME, [Prompt(box=GREEN_BOX)])
    assert [item.id for item in tracker.objects] == [1]


@pytest.mark.parametrize(
    'prompt, reason',
    [
        (Prompt(), 'neither a box nor a positive point'),
        (Prompt(points=((5, 5, False),)), 'neither a box nor a positive point'),
        (Prompt(box=(50, 10, 20, 40)), 'is empty; its order is'),
        (Prompt(box=(200, 10, 240, 40)), 'outside the image, which is 128x96'),
        (Prompt(box=(-40, 10, 1, 40)), 'less than 2 pixels'),
        (Prompt(points=((128, 5, True),)), r'the point \(128, 5\) is outside the image'),
        (Prompt(box=RED_BOX, points=((-1, 5, False),)), 'outside the image'),
        (Prompt(box=(0, 0, float('nan'), 9)), 'not a number'),
        (Prompt(points=((float('inf'), 9, True),)), 'not a number'),
    ],
)
def test_bad_prompts_are_refused_with_their_reasons(prompt, reason):
    tracker = make()
    with pytest.raises(PromptError, match=reason) as caught:
        tracker.seed_prompts(FRAME, [Prompt(box=RED_BOX), prompt])
    assert set(caught.value.reasons) == {1}
    assert tracker.objects == ()


def test_no_prompts_at_all():
    with pytest.raises(PromptError, match='give a box or a point'):
        check_prompts(FRAME, [])


def test_nothing_to_be_found():
    class Blind:
        def segment(self, frame, prompts):
            empty = np.zeros(frame.shape[:2], bool)
            return [Segmentation(TRUTH == 1, 1.0), Segmentation(empty, 0.9)]

    with pytest.raises(PromptError, match='nothing was found for prompt 2') as caught:
        Segmenter(Blind()).segment(FRAME, [Prompt(box=RED_BOX), Prompt(box=GREEN_BOX)])
    assert set(caught.value.reasons) == {1}


def test_a_mask_too_small_to_follow():
    tracker = make(resolution=32)
    frame = scene((60, 60, 5, RED))
    with pytest.raises(SeedError, match='too small') as caught:
        tracker.seed_prompts(frame, [Prompt(box=(57, 57, 68, 68))])
    assert set(caught.value.reasons) == {1}
    assert tracker.objects == ()


def test_small_objects_lie_on_top_of_large_ones():
    large, small = np.zeros((9, 9), bool), np.zeros((9, 9), bool)
    large[1:8, 1:8], small[3:5, 3:5] = True, True
    labels = label_image([Segmentation(small, 0.1), Segmentation(large, 0.9)])
    assert labels[3, 3] == 1 and labels[1, 1] == 2 and labels[0, 0] == 0


class Knowing(SamCoder):
    """Real classes; says the red square in its last candidate, and is sure of it."""

    def decode(self, encoded, points, labels, boxes, masks):
        answer = super().decode(encoded, points, labels, boxes, masks)
        logits, quality = (t.clone() for t in answer)
        known = self.to_map(encoded, (TRUTH == 1).astype(np.float32))
        logits[:, 3] = torch.from_numpy(20 * known - 10)
        quality[:] = 0.1
        quality[:, 3] = 1.0
        self.looked = encoded.window
        return logits, quality


@pytest.mark.parametrize(
    'prompts',
    [
        [Prompt(box=RED_BOX)],
        [Prompt(points=((32, 32, True), (96, 60, False)))],
        [Prompt(points=((32, 32, True),)), Prompt(box=RED_BOX, points=((30, 30, True),))],
    ],
)
def test_segment_anything_takes_the_best_candidate(prompts):
    found = SamSegmenter(Knowing(random_sam())).segment(FRAME, prompts)
    assert len(found) == len(prompts)
    for segmentation in found:
        assert overlap(segmentation.mask, TRUTH == 1) > 0.9
        assert segmentation.score > 0.9


def test_boxes_are_looked_at_closely():
    coder = Knowing(random_sam())
    SamSegmenter(coder).segment(FRAME, [Prompt(box=RED_BOX)])
    seen = coder.looked
    assert seen.left < 13 and seen.top < 13 and 51 < seen.right < 80 and 51 < seen.bottom < 80
    SamSegmenter(coder).segment(FRAME, [Prompt(points=((32, 32, True),))])
    assert coder.looked.slices == (slice(0, 96), slice(0, 128))


def test_random_weights_answer_or_say_why(tmp_path):
    tracker = make(prompts='sam', sam_checkpoint=str(save_folder(tmp_path / 'sam')))
    try:
        (found,) = tracker.segment(scene((16, 16, 32, BLUE)), [Prompt(box=RED_BOX)])
    except PromptError as error:
        assert error.reasons
    else:
        ys, xs = np.nonzero(found.mask)
        assert xs.min() >= 9 and xs.max() < 56 and ys.min() >= 9 and ys.max() < 56


def test_a_cut_is_completed_by_colour_and_place():
    """From half an object and a corner of the box, what GrabCut may leave, to the object."""
    frame, truth = scene((32, 24, 48, RED)), square_mask((32, 24, 48)) == 1
    frame = np.clip(frame + np.random.default_rng(0).normal(0, 4, frame.shape), 0, 255)
    half = np.where(np.arange(truth.shape[1]) < 60, truth, False).astype(np.float32)
    half[16:22, 24:30] = 1.0
    window, box = Window.clipped((8, 4, 104, 92), truth.shape), (24, 16, 88, 80)
    guess = 0.5 * (half + in_boxes(box, truth.shape, truth.shape))
    found = complete_cut(frame.astype(np.uint8), window, box, guess) > 0.5
    assert overlap(found, truth) > 0.9 > overlap(half > 0.5, truth)


def two_things(size=(96, 128)):
    """Give what a network says where a thing of two kinds of tokens stands: features, thing."""
    generator = torch.Generator().manual_seed(0)
    kinds = torch.nn.functional.normalize(torch.randn(3, 16, generator=generator), dim=-1)
    rows, columns = torch.meshgrid(torch.arange(24), torch.arange(32), indexing='ij')
    thing = (rows >= 6) & (rows < 18) & (columns >= 10) & (columns < 22)
    kind = torch.where(thing, 1 + (columns >= 16).long(), 0)
    tokens = kinds[kind] + 0.05 * torch.randn(24, 32, 16, generator=generator)
    layer = LayerFeatures(8.0 * tokens[None], 8.0 * tokens[None])
    truth = np.kron(thing.numpy(), np.ones((4, 4), bool))
    assert truth.shape == size
    return FrameFeatures((layer,)), truth


def test_queries_tell_in_a_box_what_a_cut_by_colour_leaves_out_or_takes():
    features, truth = two_things()
    ys, xs = np.nonzero(truth)
    box = (xs.min() - 14, ys.min() - 10, xs.max() + 15, ys.max() + 11)
    cut = truth & (np.arange(128) < 66)  # a little more than the half of one colour
    cut[14:24, 28:44] = True  # and a corner of the box
    found = cv2.resize(likely(features, box, cut), truth.shape[::-1]) > 0.5
    assert overlap(found, truth) > 0.9 > 0.6 > overlap(cut, truth)
    outside = in_boxes(box, truth.shape, features.grid) == 0
    assert outside.sum() > 300 and not likely(features, box, cut)[outside].any()


@pytest.mark.parametrize('box', [(0, 0, 128, 96), (40, 40, 52, 52)], ids=['all', 'tiny'])
def test_queries_tell_nothing_without_tokens_in_and_around_a_box(box):
    features, truth = two_things()
    assert likely(features, box, truth) is None


@pytest.mark.parametrize(
    'boxes',
    [
        [(10, 10, 50, 50), (10, 10, 50, 50)],
        [(10, 10, 50, 50), (10, 10, 30, 50), (30, 10, 50, 50)],
    ],
)
def test_prompts_that_leave_one_no_pixel_of_its_own_are_refused(boxes, monkeypatch):
    """Two equal masks, or one under smaller ones: as many objects as prompts, or none."""
    tracker = make()
    masks = []
    for x0, y0, x1, y1 in boxes:
        mask = np.zeros(FRAME.shape[:2], bool)
        mask[y0:y1, x0:x1] = True
        masks.append(Segmentation(mask, 1.0))
    monkeypatch.setattr(tracker, 'segment', lambda frame, prompts: masks)
    with pytest.raises(PromptError, match='wholly under that of another prompt') as caught:
        tracker.seed_prompts(FRAME, [Prompt(box=box) for box in boxes])
    assert list(caught.value.reasons) == [0] and tracker.objects == ()


def test_a_prompt_corrects_a_live_object():
    tracker = make()
    (number,), _ = tracker.seed_prompts(FRAME, [Prompt(box=RED_BOX, name='cup')])
    tracker.step(FRAME)
    again, _ = tracker.seed_prompts(FRAME, [Prompt(box=RED_BOX, object_id=number)])
    assert again == [number] and [item.name for item in tracker.objects] == ['cup']


def test_the_next_click_is_where_the_error_is_widest():
    truth, mask = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    truth[10:30, 10:30] = True
    assert next_click(truth, mask)[2] and 18 <= next_click(truth, mask)[0] <= 21
    mask[:] = truth
    mask[4:28, 34:58] = True
    x, y, positive = next_click(truth, mask)
    assert not positive and 44 <= x <= 47 and 14 <= y <= 17


def test_boxes_and_clicks_are_measured_with_the_masks_they_make():
    """Who marks exactly what is under a click, or the box, gets what that is worth."""
    asked = []

    class One:
        image = FRAME

    def segment(image, prompts):
        (prompt,) = prompts
        asked.append(prompt)
        mask = TRUTH > 0 if prompt.box is None else TRUTH == 1
        return [Segmentation(mask, 1.0)]

    import drift_ros.evaluation.protocol as protocol

    before, protocol.seed_mask = protocol.seed_mask, lambda *_: (TRUTH == 1).astype(np.uint8)
    try:
        found = measure([One()], segment)
    finally:
        protocol.seed_mask = before
    share = np.count_nonzero(TRUTH == 1) / np.count_nonzero(TRUTH)
    assert tuple(found) == WAYS
    assert found['box'] == found['box, 2 clicks'] == [1.0]
    assert found['1 click'] == found['3 clicks'] == [pytest.approx(share)]
    assert [len(prompt.points) for prompt in asked] == [1, 2, 3, 0, 1, 2]
    assert not asked[1].points[1][2]  # the other thing does not belong to it
    assert asked[3].box == (16, 16, 48, 48)
