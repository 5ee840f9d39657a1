# SPDX-License-Identifier: Apache-2.0
"""
Where the tracker's objects are in space: depth and camera_info in, places out.

The worker asks for places when a frame is tracked. Those that need a depth image which has not
come yet are told later, on the thread that receives it: masks never wait. What keeps places from
being known is kept for the diagnostics, by cause. Nothing that goes wrong here ends tracking.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
import threading
import time
import traceback
from typing import Any, TYPE_CHECKING

import numpy as np
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from drift_ros.nodes.tracker.depths import Depths, half_period
from drift_ros.nodes.tracker.frames import ReceivedImage
from drift_ros.ros import messages, qos, space_messages, stamp
from drift_ros.space.camera import Camera
from drift_ros.space.front import Front
from drift_ros.space.locate import locate, Place
from drift_ros.space.options import read_sizes, SpaceOptions
from drift_ros.space.target import Target

if TYPE_CHECKING:
    from drift_ros.engine.estimates import ObjectEstimate, TrackResult

_EXPECTED = 1.0  # seconds since the last depth image within which another one is waited for
_PERIODS = 20  # intervals between images of which the median is their period
_RECENT = 10.0  # seconds for which a cause is told


@dataclass
class Look:
    """A tracked frame, and what is known of its objects' places."""

    frame: ReceivedImage
    labels: np.ndarray
    """(H, W) object ids."""
    objects: tuple[ObjectEstimate, ...]
    places: dict[int, Place] = field(default_factory=dict)
    """By id; of objects that are seen."""
    waits: bool = False
    """A depth image may still come."""


class Space:
    """
    Subscribes to depth and camera_info, and says where objects are. Thread safe.

    Attributes
    ----------
    options : SpaceOptions
        May be replaced at any time.

    """

    def __init__(self, node: Any, publish: Any, prefix: str = '') -> None:
        """
        Subscribe to nothing yet.

        Parameters
        ----------
        node : Node
        publish : callable
            Called with a mapping from output to message.
        prefix : str
            Of the topics ``camera_info`` and ``depth``.

        """
        self.options = SpaceOptions()
        self._node, self._publish, self._prefix = node, publish, prefix
        self._group = MutuallyExclusiveCallbackGroup()
        self._lock = threading.Lock()
        self._subscriptions: list[Any] = []
        self._target = Target()
        self._forget()

    def _forget(self) -> None:
        self._depths = Depths()
        self._info: CameraInfo | None = None
        self._camera: Camera | None = None
        self._stamps: deque[int] = deque(maxlen=_PERIODS)
        self._pending: Look | None = None
        self._causes: dict[str, tuple[float, str]] = {}
        self._counts = {'places by depth': 0, 'places without': 0}
        self._last_depth = -1e9
        self._number: int | None = None
        self._fronts: dict[int, Front] = {}  # of objects that were seen whole, by id
        self._doubted: frozenset[int] = frozenset()  # whose mask last showed too little

    def activate(self, options: SpaceOptions, replay: bool) -> None:
        """Subscribe; in replay to every depth image."""
        self.deactivate()
        self.options = options
        node, more = self._node, {'callback_group': self._group}
        self._subscriptions = [
            node.create_subscription(
                CameraInfo,
                f'{self._prefix}camera_info',
                self._receive_info,
                qos.CAMERA_INFO,
                **more,
            )
        ]
        if options.depth_transport != 'none':
            compressed = options.depth_transport == 'compressedDepth'
            self._subscriptions.append(
                node.create_subscription(
                    CompressedImage if compressed else Image,
                    # as image_transport does: the base topic is remapped
                    node.resolve_topic_name(f'{self._prefix}depth')
                    + ('/compressedDepth' if compressed else ''),
                    self._receive_depth,
                    qos.ALL_DEPTH if replay else qos.LIVE_DEPTH,
                    **more,
                )
            )

    def deactivate(self) -> None:
        """Unsubscribe and forget what came."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        with self._lock:
            self._forget()

    # -- what comes in ------------------------------------------------------------------------

    def receive(self, frame: ReceivedImage) -> None:
        """Note when an image was taken; the period of images tells which depth belongs to one."""
        with self._lock:
            if self._stamps and frame.stamp <= self._stamps[-1]:
                self._stamps.clear()
            self._stamps.append(frame.stamp)

    def _receive_info(self, message: CameraInfo) -> None:
        if self._info is not None and _same_camera(self._info, message):
            return
        self._info, self._camera = message, None
        try:
            self._camera = space_messages.read_camera(message, self.options.rectified)
        except ValueError as error:
            self._node.get_logger().warning(str(error), throttle_duration_sec=5.0)

    def _receive_depth(self, message: Image | CompressedImage) -> None:
        with self._lock:
            self._last_depth = time.monotonic()
            if self._depths.add(stamp.nanoseconds(message.header.stamp), message):
                self._cause('depth jumped', 'the stamps of depth images jumped back')
            look = self._pending
            if look is None or not self._match(look.frame)[1]:
                return
            self._pending = None
        self._finish(look)

    # -- what is made of it -------------------------------------------------------------------

    def look(self, frame: ReceivedImage, image: np.ndarray, result: TrackResult) -> Look:
        """
        Find the places of a frame's objects, as far as they can be known by now.

        Parameters
        ----------
        frame : ReceivedImage
        image : np.ndarray
            The same, (H, W, 3) uint8 RGB.
        result : TrackResult

        """
        look = Look(frame, result.labels, result.objects)
        with self._lock:
            self._depths.compare(image)
            passed, look.waits = self._pending, not self._match(frame)[1]
            self._pending = None
        if passed is not None:  # its depth did not come in time
            self._finish(passed)
        if not look.waits:
            self._guarded(self._find, look)
        return look

    def tell(self, look: Look) -> None:
        """Publish places, now or when their depth has come."""
        if not look.waits:
            self._guarded(self._tell, look)
            return
        with self._lock:
            if not self._match(look.frame)[1]:
                self._pending = look
                return
        self._finish(look)

    def _finish(self, look: Look) -> None:
        self._guarded(self._find, look)
        self._guarded(self._tell, look)

    def _guarded(self, work: Callable[[Look], None], look: Look) -> None:
        """Do something whose failure is nothing but a cause."""
        try:
            work(look)
        except Exception as error:
            self._cause('failed', f'{type(error).__name__}: {error}')
            self._node.get_logger().error(traceback.format_exc(), throttle_duration_sec=5.0)

    def _match(self, frame: ReceivedImage) -> tuple[Any, bool]:
        """Find the depth that belongs to an image, and whether no better one can come."""
        near = self._depths.nearest(frame.stamp)
        if self._camera is None or near is None:
            return None, True
        off = abs(near[0] - frame.stamp)
        late = time.monotonic() - self._last_depth > _EXPECTED
        settled = off == 0 or late or self._depths.newest > frame.stamp
        return near[1] if off <= self._tolerance() else None, settled

    def _tolerance(self) -> float:
        if self.options.depth_tolerance:
            return self.options.depth_tolerance * 1e9
        return half_period(self._stamps)

    def _find(self, look: Look) -> None:
        """Find the places of a frame's objects."""
        camera = self._camera
        if camera is None or (reason := self._mismatch(look)):
            if camera is not None:
                self._cause('camera', reason)
            return
        depth = self._depth(look)
        sizes = read_sizes(self.options.sizes)
        known = self._fronts
        live = {item.id for item in look.objects}
        fronts = {number: kept for number, kept in known.items() if number in live}
        doubts = self._doubted & live
        for item in look.objects:
            if item.box is None or int(item.state) != space_messages.SEEN:
                continue
            size = sizes.get(str(item.id), sizes.get(item.name, 0.0))
            mask = look.labels == item.id
            place = locate(mask, camera, depth, size, fronts.get(item.id))
            if place is None:
                continue
            if place.kind == 'part':
                doubts |= {item.id}
                self._cause(
                    'part',
                    f'the mask shows only a small part of object {item.id} {item.name!r}, and '
                    'nothing nearer explains that: it may be something else, so no place is '
                    'told; if it is right, correct the object',
                )
                continue
            if item.id in doubts:  # what comes back is believed when it is seen twice
                doubts -= {item.id}
                continue
            if place.front is not None:
                fronts[item.id] = place.front
            look.places[item.id] = place
            by_depth = place.kind == 'depth'
            self._counts['places by depth' if by_depth else 'places without'] += 1
            if depth is not None and not by_depth:
                self._cause(
                    'no depth on an object',
                    f'{place.share:.0%} of object {item.id} {item.name!r} has a depth: too little',
                )
        with self._lock:
            if self._fronts is known:  # else they were forgotten meanwhile
                self._fronts, self._doubted = fronts, doubts

    def forget(self, numbers: Sequence[int]) -> None:
        """Know no more how objects looked as a whole: a person has marked them anew."""
        with self._lock:
            self._fronts = {
                number: kept for number, kept in self._fronts.items() if number not in numbers
            }
            self._doubted = self._doubted - set(numbers)

    def _mismatch(self, look: Look) -> str:
        """Say why camera_info does not belong to the images; empty when it does."""
        assert self._info is not None and self._camera is not None
        mine, theirs = look.frame.message.header.frame_id, self._info.header.frame_id
        if mine != theirs:
            return (
                f'camera_info has the frame_id {theirs!r}, the images {mine!r}: use the '
                'camera_info of the image topic'
            )
        height, width = look.labels.shape
        if (width, height) != (self._camera.width, self._camera.height):
            return (
                f'camera_info is for {self._camera.width}x{self._camera.height} pixels, the '
                f'images have {width}x{height}: use the camera_info of the image topic'
            )
        return ''

    def _depth(self, look: Look) -> np.ndarray | None:
        """Read the depth of a frame; None, and the cause is noted, where it cannot be used."""
        with self._lock:
            found, _ = self._match(look.frame)
        if not self._depths.count:
            return None
        if self._depths.frozen:
            self._cause('depth', 'depth is frozen: it stays the same while the camera moves')
            return None
        if found is None:
            near = self._depths.nearest(look.frame.stamp)
            off = 'none' if near is None else f'{(near[0] - look.frame.stamp) / 1e9:+.3f} s off'
            self._cause(
                'pairing',
                f'no depth within {self._tolerance() / 1e9:.3f} s of an image (the nearest: '
                f'{off}): check its rate and its clock, or raise space.depth_tolerance',
            )
            return None
        ours, theirs = look.frame.message.header.frame_id, found.header.frame_id
        if ours != theirs:
            self._cause(
                'depth',
                f'depth has the frame_id {theirs!r}, the images {ours!r}: publish depth that is '
                'aligned with the colour image',
            )
            return None
        try:
            depth = space_messages.read_depth(found, self.options.depth_scale)
        except ValueError as error:
            self._cause('depth', str(error))
            return None
        if depth.shape != look.labels.shape:
            self._cause(
                'depth',
                f'depth has {depth.shape[1]}x{depth.shape[0]} pixels, the images '
                f'{look.labels.shape[1]}x{look.labels.shape[0]}: publish depth that is aligned '
                'with the colour image',
            )
            return None
        return depth

    def _tell(self, look: Look) -> None:
        """Publish places; pose and bearing only of a target that is seen, and in no future."""
        if self._info is None:
            return
        header, options = look.frame.message.header, self.options
        made: dict[str, Any] = {
            'detections_3d': space_messages.detections_3d(look.objects, look.places, header),
            'markers': space_messages.markers(look.objects, look.places, header),
        }
        if options.publish_tf and look.places:
            made['tf'] = space_messages.transforms(look.places, options.tf_prefix, header)
        objects = [(item.id, item.name) for item in look.objects]
        self._number, reason = self._target.choose(options.target, objects)
        if reason and (objects or options.target):
            self._cause('target', reason)
        place = look.places.get(self._number) if self._number is not None else None
        ahead = (look.frame.stamp - self._node.get_clock().now().nanoseconds) / 1e9
        if ahead > options.stamp_tolerance:
            self._cause(
                'stamps',
                f'images are stamped {ahead:.1f} s in the future, so no pose is published: check '
                'clocks and use_sim_time',
            )
        elif place is not None:
            made['bearing'] = space_messages.bearing(place, header)
            if place.known:
                made['pose'] = space_messages.pose(place, header)
        self._publish(made)

    # -- how it goes --------------------------------------------------------------------------

    def _cause(self, what: str, reason: str) -> None:
        self._causes[what] = (time.monotonic(), reason)
        self._node.get_logger().warning(f'places: {reason}', throttle_duration_sec=5.0)

    def diagnose(self) -> Any:
        """Sum up as a diagnostic_msgs/DiagnosticStatus."""
        now = time.monotonic()
        info = self._node.resolve_topic_name(f'{self._prefix}camera_info')
        causes = [why for when, why in list(self._causes.values()) if now - when < _RECENT]
        level, message = 0, 'places are computed'
        depths = self._depths.count
        if not self._subscriptions:
            message = 'not active'
        elif self._info is None:
            level, message = int(depths > 0), f'no camera_info on {info}: no places'
        elif self._camera is None:
            level = 1
            try:
                space_messages.read_camera(self._info, self.options.rectified)
            except ValueError as error:
                message = str(error)
        elif depths and now - self._last_depth > 2.0:
            level, message = 1, f'no depth for {now - self._last_depth:.0f} s'
        if causes and level == 0:
            level, message = 1, causes[-1]
        values: Mapping[str, object] = {
            'camera_info': 'none' if self._info is None else self._info.header.frame_id,
            'depth images': depths,
            **self._counts,
            'depth tolerance (s)': self._tolerance() / 1e9,
            'depth transport': self.options.depth_transport,
            'target': 'none' if self._number is None else self._number,
            'causes': '; '.join(causes),
        }
        name = messages.status_name(self._node, self._prefix, 'space')
        return messages.diagnostic(name, info, level, message, values)


def _same_camera(first: CameraInfo, second: CameraInfo) -> bool:
    """Whether two calibrations differ in nothing but their stamps."""
    return (
        all(
            getattr(first, name) == getattr(second, name)
            if name not in ('k', 'd', 'p')
            else np.array_equal(getattr(first, name), getattr(second, name))
            for name in (
                *('width', 'height', 'distortion_model', 'binning_x', 'binning_y', 'roi'),
                *('k', 'd', 'p'),
            )
        )
        and first.header.frame_id == second.header.frame_id
    )
