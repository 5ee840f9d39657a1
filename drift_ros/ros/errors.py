# SPDX-License-Identifier: Apache-2.0
"""What can go wrong for a client of a node. Imports no ROS."""

from __future__ import annotations


class ClientError(RuntimeError):
    """The tracker did not do what was asked; the text says why and what to do about it."""


class NoAnswerError(ClientError, TimeoutError):
    """The node is not there, or did not answer in time."""


class RefusedError(ClientError):
    """
    The node refused a request, and is as it was.

    Attributes
    ----------
    reasons : dict of int to str
        Why, by label of the mask or index of the prompt; empty when the request as a whole is at
        fault.

    """

    def __init__(self, message: str, reasons: dict[int, str] | None = None) -> None:
        """Keep the message and the reasons."""
        super().__init__(message)
        self.reasons = dict(reasons or {})
