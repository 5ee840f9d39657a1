# SPDX-License-Identifier: Apache-2.0
"""What the tracker promises its callers."""

import threading
import tracemalloc

import numpy as np
import pytest
from scenes import BLUE, ColourFeatures, configure, GREEN, overlap, RED, scene, square_mask
import torch

from drift_ros import (
    FrameError,
    ObjectState,
    SeedError,
    Tracker,
    TrackerConfig,
    UnknownObjectError,
)
from drift_ros.engine.config import OPTIONS, RENAMED
from drift_ros.engine.seeds import token_shares
from drift_ros.engine.table import LAST_ID


def make(**options):
    defaults = {'resolution': 96, 'radius': 6, 'method': 'none', 'lost_after': 3}
    return Tracker(config=configure(**{**defaults, **options}), features=ColourFeatures())


def test_follows_a_moving_object():
    tracker = make()
    assert tracker.seed(scene((16, 16, 24, RED)), square_mask((16, 16, 24)), ['cup']) == [1]
    for step in range(1, 12):
        x = 16 + 5 * step
        result = tracker.step(scene((x, 16 + step, 24, RED)))
        truth = square_mask((x, 16 + step, 24)) == 1
        assert overlap(result.labels == 1, truth) > 0.75
        (cup,) = result.objects
        assert (cup.id, cup.name, cup.state, cup.age) == (1, 'cup', ObjectState.TRACKING, step)
        assert np.abs(np.subtract(cup.box, (x, 16 + step, x + 24, 40 + step))).max() <= 4
        assert cup.area == (result.labels == 1).sum()
        assert 0.5 < cup.confidence <= 1
    assert set(result.timings) == {'features', 'propagation', 'refinement', 'memory', 'total'}


def test_a_result_is_given_out_before_the_frame_is_remembered():
    tracker = make()
    tracker.seed(scene((16, 16, 24, RED)), square_mask((16, 16, 24)))
    before, given = tracker.state, []

    def ready(result):
        given.append(result)
        assert tracker.state is before

    result = tracker.step(scene((20, 16, 24, RED)), ready)
    assert tracker.state.memory is not before.memory
    (early,) = given
    assert early.objects == result.objects and np.array_equal(early.labels, result.labels)
    assert set(early.timings) == {'features', 'propagation', 'refinement', 'total'}
    assert early.timings['total'] < result.timings['total']


def test_a_result_that_cannot_be_given_out_leaves_tracking_as_it_was():
    tracker = make()
    tracker.seed(scene((16, 16, 24, RED)), square_mask((16, 16, 24)))
    before = tracker.state
    with pytest.raises(ZeroDivisionError):
        tracker.step(scene((20, 16, 24, RED)), lambda result: 1 / 0)
    assert tracker.state is before


def test_objects_join_while_others_are_tracked():
    tracker = make()
    tracker.seed(scene((16, 16, 24, RED), (80, 40, 20, GREEN)), square_mask((16, 16, 24)))
    for x in (18, 20, 22):
        tracker.step(scene((x, 16, 24, RED), (80, 40, 20, GREEN)))
    frame = scene((24, 16, 24, RED), (80, 40, 20, GREEN))
    assert tracker.seed(frame, square_mask((80, 40, 20)), ['green']) == [2]
    for x in (26, 28, 30, 32, 34):
        result = tracker.step(scene((x, 16, 24, RED), (80, 40 + x - 24, 20, GREEN)))
    assert overlap(result.labels == 1, square_mask((34, 16, 24)) == 1) > 0.75
    assert overlap(result.labels == 2, square_mask((80, 50, 20)) == 1) > 0.75
    assert [entry.age for entry in result.objects] == [8, 5]


def test_a_seed_may_lie_in_an_earlier_frame():
    """References older than the seed must not vote the new object away."""
    tracker = make(recent=4)
    frames = [scene((16, 16, 24, RED), (70 + 2 * i, 40, 20, GREEN)) for i in range(8)]
    tracker.seed(frames[0], square_mask((16, 16, 24)))
    for frame in frames[1:5]:
        tracker.step(frame)
    tracker.seed(frames[2], square_mask((74, 40, 20)))
    result = tracker.step(frames[5])
    assert overlap(result.labels == 2, square_mask((80, 40, 20)) == 1) > 0.7


def test_labels_of_any_value_and_names_by_label():
    tracker = make()
    mask = np.array([0, 40, 7000])[square_mask((16, 16, 24), (60, 40, 20))]
    frame = scene((16, 16, 24, RED), (60, 40, 20, BLUE))
    assert tracker.seed(frame, mask, {7000: 'blue', 40: 'red'}) == [1, 2]
    assert [info.name for info in tracker.objects] == ['red', 'blue']


def test_probabilities():
    tracker = make(method='colour')
    frame = scene((16, 16, 24, RED), (60, 40, 20, BLUE))
    tracker.seed(frame, square_mask((16, 16, 24), (60, 40, 20)))
    result = tracker.step(frame)
    for object_id in (1, 2):
        probability = result.probability(object_id)
        assert probability.shape == frame.shape[:2] and probability.dtype == np.float32
        assert 0 <= probability.min() and probability.max() <= 1
        assert probability[result.labels == object_id].mean() > 0.7
        assert probability[result.labels == 0].mean() < 0.1
    assert not result.probability(99).any()


def test_refinement_sharpens_edges():
    mask = square_mask((18, 18, 25))
    frame = scene((18, 18, 25, RED))
    scores = {}
    for refinement in ('none', 'colour'):
        tracker = make(method=refinement)
        tracker.seed(frame, mask)
        scores[refinement] = overlap(tracker.step(frame).labels == 1, mask == 1)
    assert scores['colour'] > scores['none']


def test_occluded_then_lost_then_found_elsewhere():
    tracker = make()
    tracker.seed(scene((16, 16, 24, RED)), square_mask((16, 16, 24)))
    tracker.step(scene((16, 16, 24, RED)))
    states = []
    for _ in range(6):
        result = tracker.step(scene())
        (entry,) = result.objects
        assert entry.box is None and entry.area == 0 and not result.labels.any()
        states.append(entry.state)
    assert states == [ObjectState.OCCLUDED] * 2 + [ObjectState.LOST] * 4
    # It comes back far outside the window of its last place, and is believed when seen again.
    result = tracker.step(scene((92, 60, 24, RED)))
    assert result.objects[0].state is ObjectState.LOST and not result.labels.any()
    result = tracker.step(scene((92, 60, 24, RED)))
    assert result.objects[0].state is ObjectState.TRACKING
    assert overlap(result.labels == 1, square_mask((92, 60, 24)) == 1) > 0.4  # a coarse match
    result = tracker.step(scene((94, 60, 24, RED)))
    assert overlap(result.labels == 1, square_mask((94, 60, 24)) == 1) > 0.75


def test_a_lost_object_leaves_the_others_alone():
    tracker = make()
    tracker.seed(
        scene((16, 16, 24, RED), (60, 40, 20, GREEN)), square_mask((16, 16, 24), (60, 40, 20))
    )
    for _ in range(6):
        result = tracker.step(scene((60, 40, 20, GREEN)))
    assert [entry.state for entry in result.objects] == [ObjectState.LOST, ObjectState.TRACKING]
    assert overlap(result.labels == 2, square_mask((60, 40, 20)) == 1) > 0.75


def test_remove_and_ids_never_reused():
    tracker = make()
    frame = scene((16, 16, 24, RED), (60, 40, 20, GREEN))
    assert tracker.seed(frame, square_mask((16, 16, 24), (60, 40, 20))) == [1, 2]
    tracker.step(frame)
    tracker.remove(1)
    result = tracker.step(frame)
    assert [entry.id for entry in result.objects] == [2]
    assert set(np.unique(result.labels)) == {0, 2}
    with pytest.raises(UnknownObjectError, match='no object 1; live objects: 2'):
        tracker.remove(1)
    assert tracker.seed(frame, square_mask((16, 16, 24))) == [3]
    tracker.reset()
    assert tracker.objects == () and tracker.memory_bytes == 0
    assert tracker.seed(frame, square_mask((16, 16, 24))) == [4]


def test_rename_keeps_everything_but_the_name():
    tracker = make()
    frame = scene((16, 16, 24, RED), (60, 40, 20, GREEN))
    tracker.seed(frame, square_mask((16, 16, 24), (60, 40, 20)), ['cup', 'can'])
    before = tracker.step(frame)
    tracker.rename(2, '<b>tin</b>')
    after = tracker.step(frame)
    assert [entry.name for entry in after.objects] == ['cup', '<b>tin</b>']
    assert (after.labels == before.labels).all()
    tracker.rename(1, '')
    assert [info.name for info in tracker.objects] == ['object 1', '<b>tin</b>']
    with pytest.raises(UnknownObjectError, match='no object 3; live objects: 1, 2'):
        tracker.rename(3, 'x')
    with pytest.raises(SeedError, match='is no text'):
        tracker.rename(1, 7)


def test_a_rename_does_not_lose_seeds_that_are_on_their_way():
    """Neither a correction that was prepared before it nor a new object it names."""
    tracker = make()
    frame = scene((16, 16, 24, RED), (60, 40, 20, GREEN))
    tracker.seed(frame, square_mask((16, 16, 24)))
    mask = square_mask((60, 40, 20), (16, 16, 24))
    request = tracker.prepare_seed(frame, mask, object_ids={1: 1})  # one corrected, one new
    tracker.rename(1, 'tin')
    tracker.rename(2, 'cup')
    tracker.apply_seed(request)
    result = tracker.step(frame)
    assert [entry.name for entry in result.objects] == ['tin', 'cup']
    assert overlap(result.labels == 1, square_mask((60, 40, 20)) == 1) > 0.75
    request = tracker.prepare_seed(frame, square_mask((90, 70, 12)))
    tracker.rename(3, 'given up')
    tracker.cancel_seed(request)
    assert [info.id for info in tracker.objects] == [1, 2]


def test_memory_does_not_grow_with_the_video():
    tracker = make(recent=2, older=2, older_interval=3)
    frame = scene((16, 16, 24, RED))
    tracker.seed(frame, square_mask((16, 16, 24)))
    counts, sizes = [], []
    for _ in range(14):
        tracker.step(frame)
        counts.append(len(tracker.state.memory.references))
        sizes.append(tracker.memory_bytes)
    assert counts == [2, 3, 4, 4, 4] + [5] * 9
    assert sizes[:3] == sorted(set(sizes[:3])) and len(set(sizes[-8:])) == 1


def test_after_a_reset_all_is_as_at_the_start():
    frames = [scene((16 + 3 * step, 16, 24, RED)) for step in range(11)]
    tracker, runs = make(recent=1, older_interval=4), []
    for _ in range(2):
        tracker.seed(frames[0], square_mask((16, 16, 24)))
        tracker.step(frames[1])
        (item,) = tracker.objects
        runs.append([tracker.step(frame).probability(item.id) for frame in frames[2:]])
        tracker.reset()
    assert np.array_equal(*runs)


def test_older_frames_are_spaced():
    """The newest frames are all there; before them every third of those that left."""
    tracker = make(recent=1, older=2, older_interval=3)
    tracker.seed(scene((16, 16, 24, RED)), square_mask((16, 16, 24)))
    for step in range(12):
        tracker.step(scene((16 + 2 * step, 16, 24, RED)))
    centres = [
        float(
            (r.labels[..., 1].sum(0) * torch.arange(r.labels.shape[1])).sum()
            / r.labels[..., 1].sum()
        )
        for r in tracker.state.memory.references
    ]
    assert np.allclose(np.diff(centres), np.diff([0, 7, 10, 11]) * 2 / 4, atol=0.4)


def test_sixteen_bits_past_255_ids():
    tracker = make(seed_frames=64)
    frame = scene((16, 16, 24, RED), (60, 40, 20, GREEN))
    while tracker.seed(frame, square_mask((16, 16, 24)))[0] < 255:
        assert tracker.step(frame).labels.dtype == np.uint8
        tracker.remove(tracker.objects[0].id)
    tracker.seed(frame, square_mask((60, 40, 20)))
    labels = tracker.step(frame).labels
    assert labels.dtype == np.uint16 and labels.max() == 256


def test_stepping_without_objects_costs_no_inference():
    tracker = make()
    result = tracker.step(scene())
    assert not result.labels.any() and result.objects == ()
    assert tracker.state.features.calls == 0


def many_labels():
    mask = np.zeros((96, 128), np.uint16)
    for index in range(300):
        y, x = divmod(index, 20)
        mask[6 * y : 6 * y + 6, 6 * x : 6 * x + 6] = index + 1
    return mask


@pytest.mark.parametrize(
    ('mask', 'names', 'message'),
    [
        (
            np.zeros((50, 60), np.uint8),
            None,
            '60x50 and the image 128x96; give the mask at the im',
        ),
        (np.zeros((96, 128), np.uint8), None, 'the mask is empty; mark each object'),
        (np.ones((96, 128), np.float32), None, 'one channel of integer labels'),
        (np.ones((96, 128, 3), np.uint8), None, 'one channel of integer labels'),
        (-square_mask((60, 40, 20)).astype(np.int16), None, 'negative label'),
        (square_mask((60, 40, 2)), None, 'label 1: 4 pixels.* needs 16: mark more'),
        (many_labels(), None, '300 objects in the mask and room for 63.*raise it'),
        (square_mask((60, 40, 20)), ['a', 'b'], 'does not name the 1 objects'),
        (square_mask((60, 40, 20)), 'a', 'does not name'),
        (square_mask((60, 40, 20)), 5, '5 does not name the 1 objects'),
        (square_mask((60, 40, 20)), {'a'}, 'does not name the 1 objects'),
        (square_mask((60, 40, 20)), [7], 'the name 7 is no text'),
        (square_mask((60, 40, 20)), {1: b'cup'}, "the name b'cup' is no text"),
        (None, None, 'one channel of integer labels'),
        ([[1, 2], [3]], None, 'a list that is no array'),
        (square_mask((60, 40, 20)) > 0, None, r'mask.astype\(numpy.uint8\)'),
        (square_mask((60, 40, 20)).astype('m8[s]'), None, 'one channel of integer labels'),
    ],
)
def test_bad_seeds_leave_tracking_as_it_was(mask, names, message):
    tracker = make()
    frame = scene((16, 16, 24, RED))
    tracker.seed(frame, square_mask((16, 16, 24)))
    tracker.step(frame)
    before = tracker.state
    with pytest.raises(SeedError, match=message):
        tracker.seed(frame, mask, names)
    assert tracker.state is before
    assert tracker.step(frame).objects[0].state is ObjectState.TRACKING
    assert tracker.seed(frame, square_mask((60, 40, 20))) == [2]


def test_reasons_name_each_label_and_nothing_is_seeded_by_halves():
    tracker = make()
    with pytest.raises(SeedError) as caught:
        tracker.seed(scene(), square_mask((16, 16, 24), (60, 40, 2), (80, 60, 1)))
    assert sorted(caught.value.reasons) == [2, 3]
    assert tracker.objects == ()


@pytest.mark.parametrize(
    ('frame', 'message'),
    [
        (np.zeros((96, 128), np.uint8), r'\(height, width, 3\) RGB'),
        (np.zeros((96, 128, 4), np.uint8), r'\(height, width, 3\) RGB'),
        (np.zeros((96, 128, 3), np.float32), 'must be uint8'),
        (np.zeros((16, 4000, 3), np.uint8), '4000x16; one side may be at most 64 times the other'),
        (np.zeros((8, 8, 3), np.uint8), 'at least 16x16'),
        (np.zeros((48, 64, 3), np.uint8), 'is 64x48, the objects were seeded in 128x96; reset'),
    ],
)
def test_bad_frames_leave_tracking_as_it_was(frame, message):
    tracker = make()
    tracker.seed(scene((16, 16, 24, RED)), square_mask((16, 16, 24)))
    with pytest.raises(FrameError, match=message):
        tracker.step(frame)
    with pytest.raises(FrameError, match=message):
        tracker.seed(frame, square_mask((60, 40, 20)))
    result = tracker.step(scene((18, 16, 24, RED)))
    assert result.objects[0].age == 1 and result.objects[0].state is ObjectState.TRACKING


def test_a_new_size_may_follow_a_reset():
    tracker = make()
    tracker.seed(scene((16, 16, 24, RED)), square_mask((16, 16, 24)))
    tracker.reset()
    size = (64, 96)
    tracker.seed(scene((16, 16, 24, RED), size=size), square_mask((16, 16, 24), size=size))
    assert tracker.step(scene((16, 16, 24, RED), size=size)).labels.shape == size


def test_seeds_are_prepared_from_another_thread_during_a_step():
    tracker = make()
    frame = scene((16, 16, 24, RED), (60, 40, 20, GREEN))
    tracker.seed(frame, square_mask((16, 16, 24)))
    extract, requests = tracker.state.features.extract, []

    def while_inferring(image):
        thread = threading.Thread(
            target=lambda: requests.append(
                tracker.prepare_seed(frame, square_mask((60, 40, 20)), ['late'])
            )
        )
        thread.start()
        thread.join(timeout=10)
        return extract(image)

    tracker.state.features.extract = while_inferring
    assert [entry.id for entry in tracker.step(frame).objects] == [1]
    tracker.state.features.extract = extract
    assert requests[0].object_ids == (2,)
    tracker.apply_seed(requests[0])
    assert [entry.name for entry in tracker.step(frame).objects] == ['object 1', 'late']


def test_prepared_seeds_can_be_given_up_or_overtaken():
    tracker = make()
    frame = scene((16, 16, 24, RED))
    request = tracker.prepare_seed(frame, square_mask((16, 16, 24)))
    tracker.cancel_seed(request)
    tracker.apply_seed(request)
    assert tracker.objects == () and tracker.step(frame).objects == ()
    request = tracker.prepare_seed(frame, square_mask((16, 16, 24), (60, 40, 20)))
    tracker.remove(request.object_ids[0])
    tracker.apply_seed(request)
    assert [entry.id for entry in tracker.step(frame).objects] == [request.object_ids[1]]


def test_giving_a_seed_up_twice_leaves_who_got_its_id_alone():
    tracker = make()
    frame = scene((16, 16, 24, RED), (70, 50, 24, GREEN))
    first = tracker.prepare_seed(frame, square_mask((16, 16, 24)), ['red'])
    tracker.cancel_seed(first)
    second = tracker.prepare_seed(frame, square_mask((70, 50, 24)), ['green'])
    assert second.object_ids == first.object_ids
    tracker.cancel_seed(first)
    tracker.apply_seed(first)
    tracker.apply_seed(second)
    result = tracker.step(frame)
    assert [item.name for item in result.objects] == ['green']
    assert overlap(result.labels == 1, square_mask((70, 50, 24)) == 1) > 0.8


def test_giving_a_correction_up_leaves_the_prepared_seed_it_corrects():
    tracker = make()
    frame = scene((16, 16, 24, RED))
    seed = tracker.prepare_seed(frame, square_mask((16, 16, 24)))
    tracker.cancel_seed(tracker.prepare_seed(frame, square_mask((16, 16, 24)), None, {1: 1}))
    tracker.apply_seed(seed)
    assert [item.id for item in tracker.step(frame).objects] == [1]


def test_a_seed_given_up_while_its_correction_is_carried_out():
    tracker = make()
    frame = scene((16, 16, 24, RED))
    tracker.seed(frame, square_mask((16, 16, 24)))
    seed = tracker.prepare_seed(frame, square_mask((60, 40, 20)))
    correction = tracker.prepare_seed(frame, square_mask((60, 40, 20)), None, {1: 2})
    extract = tracker.state.features.extract

    def overtaken(image):
        thread = threading.Thread(target=tracker.cancel_seed, args=[seed])
        thread.start()
        thread.join(timeout=10)
        return extract(image)

    tracker.state.features.extract = overtaken
    with pytest.raises(SeedError, match='the seed of object 2 was given up while'):
        tracker.apply_seed(correction)
    tracker.state.features.extract = extract
    assert [item.id for item in tracker.step(frame).objects] == [1]
    assert tracker.seed(frame, square_mask((60, 40, 20))) == [2]
    assert [item.id for item in tracker.step(frame).objects] == [1, 2]


def test_prepared_seeds_do_not_change_with_the_arrays_they_were_made_of():
    tracker = make()
    frame, mask = scene((16, 16, 24, RED)), square_mask((16, 16, 24))
    request = tracker.prepare_seed(frame, mask)
    frame[:], mask[:] = 0, 0
    tracker.apply_seed(request)
    labels = tracker.step(scene((16, 16, 24, RED))).labels
    assert overlap(labels == 1, square_mask((16, 16, 24)) == 1) > 0.8


@pytest.mark.parametrize(
    'form',
    [
        lambda mask: mask.tolist(),
        np.asfortranarray,
        lambda mask: mask.astype('>i4') * (2**31 - 1),
        lambda mask: mask.astype(np.uint64) << np.uint64(63),
        lambda mask: np.ma.array(np.where(mask, mask, 2), mask=mask == 0),
    ],
)
def test_masks_may_come_in_any_form_that_is_an_array(form):
    tracker = make()
    frame, mask = scene((16, 16, 24, RED)), square_mask((16, 16, 24))
    assert tracker.seed(frame, form(mask)) == [1]
    assert overlap(tracker.step(frame).labels == 1, mask == 1) > 0.8


def test_a_mask_of_thousands_of_labels_is_refused_in_a_sentence():
    tracker = make()
    mask = np.arange(96 * 128).reshape(96, 128)
    with pytest.raises(SeedError, match='not crisp: it holds 12287 values') as caught:
        tracker.seed(scene(), mask)
    assert len(str(caught.value)) < 1000 and len(caught.value.reasons) == 96 * 128 - 1
    with pytest.raises(SeedError, match='not crisp') as caught:
        make(resolution=384).seed(scene(), mask, ['a'])
    assert len(str(caught.value)) < 1000


def test_masks_of_many_objects_do_not_multiply_in_memory():
    tracker = make(max_objects=1024, resolution=1200)
    mask = np.arange(1000, dtype=np.uint16).repeat(1200).reshape(1000, 1200)
    frame = np.zeros((1000, 1200, 3), np.uint8)
    request = tracker.prepare_seed(frame, mask)
    tracemalloc.start()
    shares = token_shares((mask == label for label in request.labels), (10, 12))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert shares.shape == (10, 12, 999)
    assert peak < 50e6, 'one mask after the other'


def test_a_seed_that_fails_inside_the_network_reserves_nothing():
    tracker = make()

    def fail(frame):
        raise RuntimeError('out of memory')

    tracker.state.features.extract = fail
    with pytest.raises(RuntimeError, match='out of memory'):
        tracker.seed(scene(), square_mask((16, 16, 24)))
    assert tracker.objects == ()


@pytest.mark.parametrize(
    ('option', 'value', 'message'),
    [
        ('radius', -1, r'kernel.radius is -1; it must lie in \[0, 512\]'),
        ('temperature', 0.0, 'temperature is 0.0'),
        ('method', 'magic', "refinement.method is 'magic'; choose from colour"),
        ('resolution', 1.5, 'resolution is 1.5; it must be of type int'),
        ('normalize', 1, 'normalize is 1; it must be of type bool'),
        ('temperature', float('nan'), 'temperature is nan'),
    ],
)
def test_bad_options_are_refused_with_a_reason(option, value, message):
    with pytest.raises(ValueError, match=message):
        make(**{option: value})


def test_every_option_is_described():
    assert all(option.help.endswith('.') for option in OPTIONS.values())
    TrackerConfig().validate()


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'recovery': 0.2, 'existence': 0.4}, 'found again and lost at once'),
        ({'inversion_steps': 3}, 'no effect unless features.noise is inversion'),
        ({'noise_samples': 2, 'noise': 'inversion'}, 'no effect unless features.noise is random'),
        ({'every': 4}, 'no effect unless refinement.method is sam'),
    ],
)
def test_options_that_contradict_each_other_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        configure(**options)


def test_old_names_are_refused_with_the_new_one():
    assert set(RENAMED.values()) <= set(OPTIONS) and not set(RENAMED) & set(OPTIONS)
    with pytest.raises(ValueError, match=r'max_seed_frames is now called memory\.seed_frames'):
        TrackerConfig.of({'max_seed_frames': 3})
    with pytest.raises(ValueError, match='memory_labels any more'):
        TrackerConfig.of({'memory_labels': 'coarse'})


def test_options_survive_the_way_to_names_and_back():
    config = configure(radius=3, layers=('a', 'b'), noise='inversion', inversion_steps=4)
    assert TrackerConfig.of(config.flat()) == config


# -- identity


def test_a_correction_keeps_the_id_and_replaces_what_is_known():
    """The tracker took the wrong square; told so, it follows the right one under the same id."""
    tracker = make()
    frames = [scene((16 + 2 * i, 16, 24, RED), (72, 48, 24, GREEN)) for i in range(8)]
    tracker.seed(frames[0], square_mask((16, 16, 24)), ['cup'])
    tracker.step(frames[1])
    tracker.correct(frames[2], square_mask((72, 48, 24)) > 0, 1)
    for frame in frames[3:]:
        result = tracker.step(frame)
        (item,) = result.objects
        assert (item.id, item.name, item.state) == (1, 'cup', ObjectState.TRACKING)
        assert overlap(result.labels == 1, square_mask((72, 48, 24)) == 1) > 0.8
    assert len(tracker.state.memory.pinned) == 1, 'the look at the wrong one is gone'


def test_looks_that_fit_a_correction_stay():
    """Corrections are bounded: the oldest goes first, the first seed last."""
    tracker = make(seed_frames=3)
    frames = [scene((16 + 2 * i, 16, 24, RED)) for i in range(8)]
    tracker.seed(frames[0], square_mask((16, 16, 24)))
    kept = []
    for index, frame in enumerate(frames[1:6], start=1):
        tracker.step(frame)
        tracker.correct(frame, square_mask((16 + 2 * index, 16, 24)), 1)
        kept.append([bool(seed.first) for seed in tracker.state.memory.pinned])
    assert kept == [[True, False], *[[True, False, False]] * 4]
    seeds = [seed.labels[..., 1].sum(0) for seed in tracker.state.memory.pinned]
    assert [int(mass.nonzero()[0]) for mass in seeds] == [4, 6, 6]


def test_a_correction_finds_a_lost_object_again():
    tracker = make(lost_after=1)
    tracker.seed(scene((16, 16, 24, RED)), square_mask((16, 16, 24)))
    blue = scene((60, 50, 24, BLUE))
    for _ in range(3):
        (item,) = tracker.step(blue).objects
    assert item.state is ObjectState.LOST
    tracker.correct(blue, square_mask((60, 50, 24)) > 0, 1)
    result = tracker.step(blue)
    assert result.objects[0].state is ObjectState.TRACKING
    assert overlap(result.labels == 1, square_mask((60, 50, 24)) == 1) > 0.8


def test_corrections_and_new_objects_in_one_mask():
    tracker = make()
    frame = scene((16, 16, 24, RED), (70, 50, 24, GREEN))
    tracker.seed(frame, square_mask((10, 10, 40)), ['red'])
    mask = square_mask((16, 16, 24), (70, 50, 24))
    assert tracker.seed(frame, mask, {2: 'green'}, {1: 1}) == [1, 2]
    labels = tracker.step(frame).labels
    assert all(overlap(labels == number, mask == number) > 0.8 for number in (1, 2))
    assert [item.name for item in tracker.objects] == ['red', 'green']


@pytest.mark.parametrize(
    ('object_ids', 'message'),
    [
        ({1: 9}, 'no object 9 to correct; live objects: 1'),
        ({3: 1}, 'no label 3 in the mask'),
        ({1: 1, 2: 1}, 'two labels of the mask are to correct object 1'),
        ([1, 2], r'object_ids is \[1, 2\]; it must map labels'),
        (1, 'object_ids is 1; it must map labels'),
        ({1: '1'}, "object_ids is {1: '1'}; it must map labels of the mask to the integer ids"),
        ({1: 1.5}, 'integer ids'),
        ({1: True}, 'integer ids'),
        ({1: [1]}, 'integer ids'),
    ],
)
def test_corrections_that_make_no_sense_are_refused(object_ids, message):
    tracker = make()
    frame = scene((16, 16, 24, RED), (70, 50, 24, GREEN))
    tracker.seed(frame, square_mask((16, 16, 24)))
    before = tracker.state
    with pytest.raises(SeedError, match=message):
        tracker.seed(frame, square_mask((16, 16, 24), (70, 50, 24)), None, object_ids)
    with pytest.raises(UnknownObjectError, match='no object 5'):
        tracker.correct(frame, square_mask((16, 16, 24)), 5)
    assert tracker.state is before


def test_a_seed_that_covers_a_live_object_says_so():
    tracker = make()
    frame = scene((16, 16, 24, RED), (70, 50, 24, GREEN))
    tracker.seed(frame, square_mask((16, 16, 24)), ['cup'])
    for _ in range(2):  # told of the seed itself, and of what was tracked since
        request = tracker.prepare_seed(frame, square_mask((14, 14, 28), (70, 50, 24)))
        tracker.cancel_seed(request)
        cup, other = request.notes
        assert other == '' and 'of object 1 (cup), which is followed already' in cup
        assert int(cup.split()[1]) >= 90
        tracker.step(frame)
    request = tracker.prepare_seed(frame, square_mask((14, 14, 28)), None, {1: 1})
    assert request.notes == ('',), 'a correction is meant to'


def test_given_up_seeds_use_up_no_ids():
    tracker = make()
    frame, mask = scene((16, 16, 24, RED)), square_mask((16, 16, 24))
    for _ in range(3):
        first, second = tracker.prepare_seed(frame, mask), tracker.prepare_seed(frame, mask)
        assert first.object_ids + second.object_ids == (1, 2)
        tracker.cancel_seed(second)
        tracker.cancel_seed(first)
    assert tracker.seed(frame, mask) == [1]


def test_the_end_of_the_ids_is_told_and_changes_nothing():
    tracker = make(max_objects=1024, resolution=384)
    frame, mask = scene((16, 16, 24, RED)), square_mask((16, 16, 24))
    many = np.zeros(mask.size, np.int32)
    for first in range(1, LAST_ID, 1024):
        count = min(1024, LAST_ID - first)
        many[:count], many[count:] = np.arange(1, 1 + count), 0
        assert tracker.prepare_seed(frame, many.reshape(mask.shape)).object_ids[0] == first
        tracker.reset()
    assert tracker.seed(frame, mask) == [LAST_ID]
    with pytest.raises(SeedError, match='the last one, 65535, has been given; start the tracker'):
        tracker.seed(frame, mask)
    labels = tracker.step(frame).labels
    assert labels.dtype == np.uint16 and labels.max() == LAST_ID
    tracker.reset()
    with pytest.raises(SeedError, match='never reused'):
        tracker.seed(frame, mask)


def test_objects_that_show_up_one_by_one_are_all_kept():
    """Many more seed frames than are kept apart: none is refused, and no object is lost."""
    rng = np.random.default_rng(0)
    side, size = 20, (160, 224)
    colours = [tuple(map(int, c)) for c in rng.integers(0, 255, (80, 3)) if np.ptp(c) > 120][:20]
    assert len(colours) == 20
    squares = [
        (8 + 43 * (index % 5), 6 + 38 * (index // 5), side, colour)
        for index, colour in enumerate(colours)
    ]
    tracker = make(seed_frames=3, resolution=160)
    for count in range(1, 21):
        frame = scene(*squares[:count], size=size)
        tracker.seed(frame, square_mask(squares[count - 1][:3], size=size))
        tracker.step(frame)
    assert len(tracker.state.memory.pinned) == 3
    moved = [(x + 2, y + 1, side, colour) for x, y, side, colour in squares]
    result = tracker.step(scene(*moved, size=size))
    truth = square_mask(*(square[:3] for square in moved), size=size)
    assert {item.state for item in result.objects} == {ObjectState.TRACKING}
    overlaps = [overlap(result.labels == number, truth == number) for number in range(1, 21)]
    assert min(overlaps) > 0.5, overlaps


def test_objects_seeded_at_one_place_are_all_kept():
    """Each stood where the one before had stood; their looks are put together side by side."""
    tracker = make(seed_frames=2, confidence=0.2, lost_after=2)
    colours = [RED, GREEN, BLUE, (220, 220, 30), (30, 220, 220)]
    for colour in colours:
        tracker.seed(scene((50, 30, 24, colour)), square_mask((50, 30, 24)))
        tracker.step(scene((50, 30, 24, colour)))
    assert len(tracker.state.memory.pinned) == 2
    for number, colour in enumerate(colours, start=1):
        for _ in range(3):
            result = tracker.step(scene((50, 30, 24, colour)))
        assert np.bincount(result.labels.ravel(), minlength=6)[1:].argmax() + 1 == number


def test_an_object_without_pixels_is_not_tracked():
    """Whatever its tokens say: no state TRACKING with an empty mask."""
    tracker = make(confidence=0.0, existence=0.0, recovery=0.0)
    tracker.seed(scene((16, 16, 24, RED)), square_mask((16, 16, 24)))
    for frame in (scene(), scene((60, 30, 40, BLUE)), scene((16, 16, 24, RED))):
        for item in tracker.step(frame).objects:
            assert (
                (item.state is ObjectState.TRACKING) == (item.area > 0) == (item.box is not None)
            )


def test_an_object_that_fills_the_frame():
    tracker = Tracker(config=configure(resolution=96), features=ColourFeatures())
    frame = scene((0, 0, 128, RED))
    tracker.seed(frame, np.ones((96, 128), np.uint8))
    for _ in range(3):
        (item,) = tracker.step(frame).objects
        assert item.state is ObjectState.TRACKING and item.area > 0.9 * 96 * 128


def test_what_is_done_to_a_result_does_not_reach_the_tracker():
    tracker = make()
    frame = scene((16, 16, 24, RED))
    tracker.seed(frame, square_mask((16, 16, 24)), ['cup'])
    tracker.step(frame).labels[:] = 0
    request = tracker.prepare_seed(frame, square_mask((16, 16, 24)))
    assert 'of object 1 (cup)' in request.notes[0]
