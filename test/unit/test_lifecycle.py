# SPDX-License-Identifier: Apache-2.0
"""A transition is made once and its outcome told, whatever is lost on the way."""

import time

from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import ChangeState, GetState
import pytest

from drift_ros.ros import lifecycle
from drift_ros.ros.client_errors import ArgumentError, NoAnswerError

NODE = '/node'
INACTIVE, UNCONFIGURED = State.PRIMARY_STATE_INACTIVE, State.PRIMARY_STATE_UNCONFIGURED
CONFIGURING = State.TRANSITION_STATE_CONFIGURING


class Node:
    """
    Stands in for a connection and the node behind it, of which only `configure` can be asked.

    ``fates`` says of each request for a transition: 'answered', 'lost' (the request), 'unheard'
    (the answer), 'late' (it is done while the next one is asked), 'slow' (its answer is lost, and
    it is still at it when it is looked at).
    """

    def __init__(self, *fates, works=True):
        self.fates, self.works = list(fates), works
        self.state = UNCONFIGURED
        self.asked = self.made = 0
        self.waiting = False
        self.shown = []

    def prepare(self, kind, service):
        assert (kind, service) in {
            (GetState, f'{NODE}/get_state'),
            (ChangeState, f'{NODE}/change_state'),
        }

    def _configure(self):
        success = self.state == UNCONFIGURED and self.works
        self.made += self.state == UNCONFIGURED
        if success:
            self.state = INACTIVE
        return ChangeState.Response(success=success)

    def call(self, kind, service, request, *, timeout=None, resend=0.0, unless=lambda: False):
        self.prepare(kind, service)
        if kind is GetState:
            assert resend  # else it is lost like any other
            number = self.shown.pop(0) if self.shown else self.state
            return GetState.Response(current_state=State(id=number))
        assert not resend
        assert request.transition.id == 1
        self.asked += 1
        if self.waiting:
            self.waiting = False
            self._configure()
        fate = self.fates.pop(0)
        if fate == 'lost':
            return self._wait(timeout, unless)
        if fate == 'late':
            self.waiting = True
            return self._wait(timeout, unless)
        answer = self._configure()
        if fate == 'answered':
            return answer
        if fate == 'slow':
            self.shown = [CONFIGURING] * 3
        return self._wait(timeout, unless)

    def _wait(self, timeout, unless):
        end = time.monotonic() + timeout
        while not unless():
            if time.monotonic() > end:
                raise NoAnswerError('no answer')
            time.sleep(0.001)


@pytest.fixture(autouse=True)
def impatience(monkeypatch):
    monkeypatch.setattr(lifecycle, '_SILENT', 0.02)


@pytest.mark.parametrize('works', [True, False])
@pytest.mark.parametrize(
    'fates',
    [
        ('answered',),
        ('unheard',),
        ('slow',),
        ('lost', 'answered'),
        ('lost', 'lost', 'unheard'),
        ('late', 'answered'),
        ('late', 'unheard'),
        ('lost', 'slow'),
    ],
    ids='-'.join,
)
def test_what_is_lost_changes_nothing(fates, works):
    if fates[-1] == 'unheard' and not works:
        fates = (*fates, 'answered')  # that it failed is seen by nothing but an answer
    node = Node(*fates, works=works)
    assert lifecycle.change_state(node, NODE, 'configure', 10.0) is works
    assert node.state == (INACTIVE if works else UNCONFIGURED)
    assert not node.fates
    if works:
        assert node.made == 1


def test_a_node_that_never_answers_ends_at_the_deadline():
    with pytest.raises(NoAnswerError):
        lifecycle.change_state(Node(*['lost'] * 1000), NODE, 'configure', 0.2)


def test_an_unknown_transition_is_refused_with_those_there_are():
    with pytest.raises(ArgumentError, match=r"no transition 'start'; choose from configure, "):
        lifecycle.change_state(Node(), NODE, 'start')
