# SPDX-License-Identifier: Apache-2.0
"""Asks the tracker and the follower what pages want, in their own words."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from std_msgs.msg import Header

from drift_ros.nodes.tracker.frames import ReceivedImage
from drift_ros.nodes.web.followers import Followers
from drift_ros.nodes.web.session import AskerError
from drift_ros.nodes.web.wishes import Wish
from drift_ros.ros import conversions, stamp
from drift_ros.ros.client import Marked, Seeded, TrackerClient
from drift_ros.ros.client_errors import ClientError, RefusedError

Answer = TypeVar('Answer')


class TrackerAsker:
    """Puts what pages ask to the nodes: an ``Asker`` of ``drift_ros.nodes.web.session``."""

    def __init__(self, client: TrackerClient, followers: Followers) -> None:
        """Ask through a client, and those that drive after its tracker's target."""
        self._client, self._followers = client, followers

    def segment(self, frame: ReceivedImage, wish: Wish) -> Marked:
        """Give what a box and points mark in a frame."""
        return self._with_frame(
            frame,
            lambda picture: self._client.segment(
                box=wish.box,
                points=[(x, y) for x, y, positive in wish.points if positive],
                negative=[(x, y) for x, y, positive in wish.points if not positive],
                frame=picture,
                stamp=stamp.message(frame.stamp),
            ),
        )

    def follow(self, frame: ReceivedImage, mask: np.ndarray, name: str, object_id: int) -> Seeded:
        """Follow the very mask that was shown, or correct an object by it."""
        (made,) = self._with_frame(
            frame,
            lambda picture: self._client.seed(
                np.asarray(mask, bool),
                names=[name] if name and not object_id else (),
                object_ids=[object_id] if object_id else (),
                frame=picture,
                header=Header(
                    stamp=stamp.message(frame.stamp), frame_id=frame.message.header.frame_id
                ),
            ),
        )
        return made

    def rename(self, object_id: int, name: str) -> None:
        """Call an object otherwise."""
        _said(lambda: self._client.rename(object_id, name))

    def remove(self, object_id: int) -> None:
        """Stop following an object."""
        _said(lambda: self._client.remove(object_id))

    def reset(self) -> None:
        """Forget all objects."""
        _said(self._client.reset)

    def drive(self, object_id: int) -> None:
        """Let the robot follow an object."""
        _said(lambda: self._followers.drive(object_id))

    def halt(self) -> None:
        """Stop the robot."""
        _said(self._followers.halt)

    def _with_frame(
        self, frame: ReceivedImage, ask: Callable[[np.ndarray | None], Answer]
    ) -> Answer:
        """
        Ask about a frame by its stamp; send it along where the tracker no longer has it.

        A refusal that is no prompt's or label's fault may be for that reason.
        """
        if frame.stamp:  # stamp 0 would mean the newest
            try:
                return ask(None)
            except RefusedError as error:
                if error.reasons:
                    raise AskerError(_words(error)) from error
            except ClientError as error:
                raise AskerError(str(error)) from error
        return _said(lambda: ask(conversions.to_rgb(frame.message)))


def _said(ask: Callable[[], Answer]) -> Answer:
    try:
        return ask()
    except RefusedError as error:
        raise AskerError(_words(error)) from error
    except (ClientError, conversions.ConversionError) as error:
        raise AskerError(str(error)) from error


def _words(error: RefusedError) -> str:
    """Give the tracker's reasons; a page asks about one object, which need not be numbered."""
    return '; '.join(error.reasons.values()) or str(error)
