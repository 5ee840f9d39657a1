# SPDX-License-Identifier: Apache-2.0
"""
Every operation happens wholly or not at all, whatever is raised and wherever.

For each public operation, the first, second, third ... call into what the tracker is made of
(features, memory, head weights, refiner, table, decisions) raises, until the operation runs
through. After each time the tracker's state is the one before, and ten more frames come out as
those of a twin to which nothing happened.
"""

import contextlib
import dataclasses

import numpy as np
import pytest
from scenes import ColourFeatures, configure, GREEN, RED, scene, square_mask
from tiny_models import save_checkpoint

from drift_ros import FrameError, Prompt, Tracker
from drift_ros.diffusion.checkpoint import load_checkpoint
from drift_ros.diffusion.features import DiffusionFeatures
from drift_ros.diffusion.textual_inversion import TextualInversion
from drift_ros.engine import decide
from drift_ros.engine import memory as memory_module
from drift_ros.engine import tracker as tracker_module
from drift_ros.engine.head_weights import HeadWeighting
from drift_ros.engine.memory import ReferenceMemory
from drift_ros.engine.prompt import TargetModel
from drift_ros.engine.table import ObjectTable
from drift_ros.refinement.colour import ColourSolver

FRAMES = [scene((16 + 2 * i, 16, 24, RED), (80 - i, 50, 28, GREEN)) for i in range(14)]
BOTH = square_mask((16, 16, 24), (80, 50, 28))
LATER = square_mask((22, 16, 24), (77, 50, 28))


class Heads(ColourFeatures):
    """Two heads, so that there is something to weigh; can look again."""

    def extract(self, frame):
        features = super().extract(frame)
        layer = features.layers[0]
        both = type(layer)(layer.query.repeat(2, 1, 1, 1), layer.key.repeat(2, 1, 1, 1))
        return type(features)((both,), frame)

    extract_resized = extract


COLLABORATORS = [
    *((Heads, name) for name in ('extract', 'extract_resized')),
    *((DiffusionFeatures, name) for name in ('extract', 'extract_resized', 'conditioned')),
    *((TextualInversion, name) for name in ('__init__', '_look', '_evaluate')),
    *((ReferenceMemory, n) for n in ('read', 'search', 'push', 'pin', 'remove', 'refresh')),
    *((ReferenceMemory, n) for n in ('aligned', '_bounded')),
    *((HeadWeighting, name) for name in ('add', 'remove')),
    *((TargetModel, name) for name in ('seeded', 'learnt', 'without', 'judge', 'again')),
    *((ColourSolver, name) for name in ('remember', 'refine')),
    *(
        (ObjectTable, n)
        for n in ('reserve', 'follow', 'recover', 'observe', 'remove', 'rename', 'clear')
    ),
    *(
        (decide, n)
        for n in ('seen', 'recall', 'leave_out', 'forget', 'compete', 'assign', 'others')
    ),
    (decide, 'confidence_of'),
    (memory_module, 'propagate'),
    *(
        (tracker_module, name)
        for name in ('token_shares', 'distinct_labels', 'covered', 'describe', 'find')
    ),
]


class Fuse:
    """Raises at the n-th call into any collaborator."""

    def __init__(self, at, error):
        self._left, self._error = at, error
        self.blown = ''

    def burn(self, name):
        self._left -= 1
        if self._left == 0:
            self.blown = name
            raise self._error(f'at {name}')


@contextlib.contextmanager
def fused(fuse):
    """Let every call into a collaborator burn a fuse first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracker_module, 'dataclasses', _Dataclasses(dataclasses, fuse))
        for owner, name in COLLABORATORS:
            label = f'{owner.__name__}.{name}'

            stock = getattr(owner, name)

            def call(*args, _call=stock, _label=label, **kwargs):
                fuse.burn(_label)
                return _call(*args, **kwargs)

            patch.setattr(owner, name, call)
        yield


class _Dataclasses:
    """The module, whose ``replace``, the last call before the commit, burns the fuse as well."""

    def __init__(self, module, fuse):
        self._module, self._fuse = module, fuse

    def __getattr__(self, name):
        return getattr(self._module, name)

    def replace(self, *args, **kwargs):
        self._fuse.burn('dataclasses.replace')
        return self._module.replace(*args, **kwargs)


def make(features=None, **options):
    defaults = {'resolution': 96, 'radius': 6, 'head_weighting': 'adaptive', 'seed_frames': 2}
    config = configure(**{**defaults, **options})
    return Tracker(config=config, features=features or Heads())


def prepared(**options):
    """A tracker in the midst of its work: two objects, one of them lost."""
    tracker = make(**options)
    tracker.seed(FRAMES[0], BOTH, ('red', 'green'))
    for frame in FRAMES[1:3]:
        tracker.step(frame)
    tracker.step(scene((22, 16, 24, RED)))
    return tracker


ELSEWHERE = make().beside(9, 10)
"""A tracker of another camera, that follows object 9."""
ELSEWHERE.seed(FRAMES[0], square_mask((16, 16, 24)), ['handed over'])


def same(one, two):
    """Whether two states are one: the table by its values, all else the very same objects."""
    return one.table == two.table and all(
        getattr(one, name) is getattr(two, name)
        for name in ('features', 'memory', 'weighting', 'target', 'looks', 'shown', 'frames')
    )


def follow(tracker):
    """Ten more frames: label images, and what is said of the objects."""
    results = [tracker.step(frame) for frame in FRAMES[4:14]]
    return [result.labels for result in results], [result.objects for result in results]


OPERATIONS = {
    'seed': lambda t: t.seed(FRAMES[3], square_mask((60, 60, 16)), ['third']),
    'seed several': lambda t: t.seed(FRAMES[3], LATER, ('a', 'b')),
    'seed_prompts': lambda t: t.seed_prompts(FRAMES[3], [Prompt((20, 14, 48, 42), name='box')]),
    'correct': lambda t: t.correct(FRAMES[3], LATER == 2, 2),
    'remove': lambda t: t.remove(1),
    'rename': lambda t: t.rename(1, 'other'),
    'reset': lambda t: t.reset(),
    'step': lambda t: t.step(FRAMES[3]),
    'find': lambda t: t.find(FRAMES[3], ELSEWHERE, 9),
}
ERRORS = [RuntimeError, MemoryError, KeyboardInterrupt]


def failures(start, operation, error):
    """
    Let an operation fail at its first, second ... call into a collaborator, each time anew.

    ``start`` gives a tracker and what the operation is given. Yields the tracker after each
    failure, its state before, and where it was; ends when the operation runs through.
    """
    for at in range(1, 500):
        tracker, given = start()
        before, fuse = tracker.state, Fuse(at, error)
        with fused(fuse):
            try:
                operation(tracker, *given)
            except error:
                yield tracker, before, fuse.blown
            else:
                assert not fuse.blown, f'{fuse.blown} was swallowed'
                return
    pytest.fail('it never ran through')


@pytest.mark.parametrize('error', ERRORS)
@pytest.mark.parametrize('operation', OPERATIONS)
def test_an_operation_that_fails_anywhere_changes_nothing(operation, error):
    expected_labels, expected_objects = follow(prepared())
    points = []
    for tracker, before, where in failures(lambda: (prepared(), ()), OPERATIONS[operation], error):
        points.append(where)
        assert same(tracker.state, before), f'after {where}'
        if error is RuntimeError:  # a state decides on all that follows: one kind is enough
            labels, objects = follow(tracker)
            assert objects == expected_objects, f'after {where}'
            assert all(map(np.array_equal, labels, expected_labels)), f'after {where}'
    assert len(points) > 1 and 'dataclasses.replace' in points


@pytest.mark.parametrize('error', ERRORS)
def test_a_prepared_seed_that_fails_leaves_only_its_ids_used_up(error):
    """Who prepared it may have been told the ids: they are not given to others."""

    def start():
        tracker = prepared()
        return tracker, (tracker.prepare_seed(FRAMES[3], LATER),)

    for tracker, before, where in failures(start, Tracker.apply_seed, error):
        after = tracker.state
        assert after.table.tracked == before.table.tracked, f'after {where}'
        assert after.table.reserved == () and after.table.next_id == 5, f'after {where}'
        assert after.memory is before.memory and after.looks is before.looks, f'after {where}'
        assert tracker.seed(FRAMES[3], square_mask((60, 60, 16))) == [5]


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    folder = save_checkpoint(tmp_path_factory.mktemp('sd1'), 'sd1')
    return load_checkpoint(folder, device='cpu')


@pytest.mark.parametrize('error', ERRORS)
def test_learning_tokens_that_fails_anywhere_changes_nothing(checkpoint, error):
    config = configure(
        resolution=64, optimize_steps=2, head_weighting='adaptive', layers=('up_blocks',)
    )

    def start():
        tracker = Tracker(checkpoint, config, device='cpu')
        tracker.seed(FRAMES[0], BOTH)
        tracker.step(FRAMES[1])
        return tracker, ()

    def optimize(tracker):
        assert len(list(tracker.optimize())) > 2

    points = []
    for tracker, before, where in failures(start, optimize, error):
        points.append(where)
        assert same(tracker.state, before), f'after {where}'
    assert {'DiffusionFeatures.conditioned', 'dataclasses.replace'} <= set(points)


def test_damaged_features_are_refused_and_not_remembered():
    tracker = prepared()
    undisturbed = follow(prepared())
    before = tracker.state

    class Damaged(Heads):
        def extract(self, frame):
            features = super().extract(frame)
            features.layers[0].query[0, 3, 4] = float('nan')
            return features

    tracker.look_again(Damaged())
    spoilt = tracker.state
    for operation in ('step', 'seed', 'correct'):
        with pytest.raises(FrameError, match='not finite'):
            OPERATIONS[operation](tracker)
        assert same(tracker.state, spoilt)
    tracker.look_again(before.features)
    labels, _ = follow(tracker)
    assert all(map(np.array_equal, labels, undisturbed[0]))
