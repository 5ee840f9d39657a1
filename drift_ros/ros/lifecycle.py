# SPDX-License-Identifier: Apache-2.0
"""
Asks for lifecycle transitions of a node, and learns how they ended even if an answer is lost.

The middleware drops an answer whose receiver the server has not discovered yet, which on a busy
machine can take longer than anybody waits. A transition is not asked for twice lightly, but the
state tells whether it was made.
"""

from __future__ import annotations

import time
from typing import Any

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState

from drift_ros.ros.client_errors import ArgumentError
from drift_ros.ros.connection import Connection

TRANSITIONS = {
    'configure': Transition.TRANSITION_CONFIGURE,
    'cleanup': Transition.TRANSITION_CLEANUP,
    'activate': Transition.TRANSITION_ACTIVATE,
    'deactivate': Transition.TRANSITION_DEACTIVATE,
}
"""Lifecycle transitions by name."""

_GOALS = {
    'configure': State.PRIMARY_STATE_INACTIVE,
    'cleanup': State.PRIMARY_STATE_UNCONFIGURED,
    'activate': State.PRIMARY_STATE_ACTIVE,
    'deactivate': State.PRIMARY_STATE_INACTIVE,
}
_SILENT = 3.0
"""Seconds without an answer after which the state is looked at."""
_AGAIN = 2.0
"""Seconds after which the state is asked for again; that does no harm."""


def prepare(connection: Connection, node: str) -> None:
    """Get ready to ask a node, by its full name; see :meth:`Connection.prepare`."""
    connection.prepare(GetState, f'{node}/get_state')
    connection.prepare(ChangeState, f'{node}/change_state')


def state(connection: Connection, node: str, timeout: float | None = None) -> State:
    """
    Tell a node's lifecycle state.

    Parameters
    ----------
    connection : Connection
    node : str
        Full name of the node.
    timeout : float, optional
        Seconds; default: the connection's.

    Returns
    -------
    lifecycle_msgs/State

    Raises
    ------
    NoAnswerError

    """
    request = GetState.Request()
    answer = connection.call(
        GetState, f'{node}/get_state', request, timeout=timeout, resend=_AGAIN
    )
    return answer.current_state


def change_state(
    connection: Connection, node: str, transition: str, timeout: float = 600.0
) -> bool:
    """
    Ask for a lifecycle transition; False when the node could not.

    Parameters
    ----------
    connection : Connection
    node : str
        Full name of the node.
    transition : str
        One of :data:`TRANSITIONS`.
    timeout : float
        Seconds; to configure loads a model, which a cold disk makes slow.

    Returns
    -------
    bool
        Whether the transition was made. Where the answer was lost, whether the node is now in the
        state it leads to.

    Raises
    ------
    ArgumentError
        There is no such transition.
    NoAnswerError
        The node is not there, or did not answer in time.

    """
    if transition not in TRANSITIONS:
        raise ArgumentError(
            f'there is no transition {transition!r}; choose from {", ".join(TRANSITIONS)}'
        )
    end = time.monotonic() + timeout
    prepare(connection, node)
    before = state(connection, node).id
    request = ChangeState.Request()
    request.transition.id = TRANSITIONS[transition]
    answer = _ask(connection, node, request, end)
    if answer is not None:
        return bool(answer.success)
    # lost: the request, and nothing has changed; or its answer, and the state tells
    now, moved = _settled(connection, node, end)
    while not moved and now == before:
        answer = _ask(connection, node, request, end)
        now, moved = _settled(connection, node, end)
        if answer is not None:  # a refusal, perhaps, as the first request was only late
            break
    return now == _GOALS[transition]


def _ask(connection: Connection, node: str, request: Any, end: float) -> Any:
    """Give the answer; None when it keeps one waiting."""
    begun = time.monotonic()
    return connection.call(
        ChangeState,
        f'{node}/change_state',
        request,
        timeout=max(0.0, end - begun),
        unless=lambda: time.monotonic() > begun + _SILENT,
    )


def _settled(connection: Connection, node: str, end: float) -> tuple[int, bool]:
    """Wait for the end of a transition; give the state, and whether there was a transition."""
    moved = False
    while True:
        left = max(0.0, end - time.monotonic())
        now = state(connection, node, left).id
        if now <= State.PRIMARY_STATE_FINALIZED:
            return now, moved
        moved = True
        time.sleep(0.05)
