# SPDX-License-Identifier: Apache-2.0
"""What the tracker node publishes of its frames and objects, between activate and deactivate."""

from __future__ import annotations

from collections.abc import Mapping
import threading
from typing import Any, TYPE_CHECKING

from drift_ros_msgs.msg import TrackArray
from geometry_msgs.msg import PoseStamped, Vector3Stamped
import numpy as np
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from vision_msgs.msg import Detection2DArray, Detection3DArray, LabelInfo
from visualization_msgs.msg import MarkerArray

from drift_ros.media import overlay
from drift_ros.nodes.tracker.frames import ReceivedImage
from drift_ros.ros import conversions, messages, qos

if TYPE_CHECKING:
    from drift_ros.api import Tracker
    from drift_ros.engine.estimates import TrackResult
    from drift_ros.space.locate import Place

PUBLISHED = {
    'mask': (Image, qos.RESULTS),
    'detections': (Detection2DArray, qos.RESULTS),
    'tracks': (TrackArray, qos.RESULTS),
    'overlay': (Image, qos.PICTURES),
    'label_info': (LabelInfo, qos.LATCHED),
    'seeds': (Image, qos.RESULTS),
    'detections_3d': (Detection3DArray, qos.RESULTS),
    'pose': (PoseStamped, qos.POSES),
    'bearing': (Vector3Stamped, qos.POSES),
    'markers': (MarkerArray, qos.PICTURES),
}
"""Topics below the node's name, with their types and quality of service."""


class Outputs:
    """
    The publishers of a lifecycle node; silent unless active. Thread safe.

    Attributes
    ----------
    opacity : float
        Of the masks in the overlay, 0 to 1.

    """

    def __init__(self, node: Any, prefix: str = '') -> None:
        """Publish nothing yet; later below ``~/`` and a prefix."""
        self.opacity = 0.5
        self._node, self._prefix = node, prefix
        # held while something is published or the set of publishers changes
        self._lock = threading.Lock()
        self._publishers: dict[str, Any] = {}
        self._active = False

    def create(self) -> None:
        """Create the publishers."""
        with self._lock:
            self._publishers = {
                name: self._node.create_lifecycle_publisher(
                    kind, f'~/{self._prefix}{name}', profile
                )
                for name, (kind, profile) in PUBLISHED.items()
            }

    def create_tf(self) -> None:
        """
        Create the publisher of /tf, unless it is there.

        Raises
        ------
        ImportError
            tf2_msgs is not installed.

        """
        from tf2_msgs.msg import TFMessage

        with self._lock:
            if 'tf' not in self._publishers:
                self._publishers['tf'] = self._node.create_lifecycle_publisher(
                    TFMessage, '/tf', qos.TRANSFORMS
                )

    def destroy(self) -> None:
        """Fall silent, and take the publishers down."""
        with self._lock:
            self._active = False
            for publisher in self._publishers.values():
                self._node.destroy_lifecycle_publisher(publisher)
            self._publishers = {}

    @property
    def active(self) -> bool:
        """Whether anything is published."""
        return self._active

    @active.setter
    def active(self, value: bool) -> None:
        with self._lock:
            self._active = value

    def result(
        self,
        frame: ReceivedImage,
        image: np.ndarray,
        result: TrackResult,
        places: Mapping[int, Place] | None = None,
    ) -> bool:
        """
        Publish what was found in a frame; False when the node is no longer active.

        Parameters
        ----------
        frame : ReceivedImage
        image : np.ndarray
            The same, (H, W, 3) uint8 RGB.
        result : TrackResult
        places : mapping of int to Place, optional
            Where objects are in space, by id, as far as that is known by now.

        """
        header = frame.message.header
        made: dict[str, Any] = {
            'mask': conversions.labels_to_image(result.labels, header),
            'detections': messages.detections(result.objects, header, places),
        }
        with self._lock:
            wanted = self._active and self._publishers['overlay'].get_subscription_count() > 0
        if wanted:
            picture = overlay.draw(image, result.labels, result.objects, opacity=self.opacity)
            made['overlay'] = conversions.rgb_to_image(picture, header)
        latency = self._node.get_clock().now().nanoseconds - frame.stamp
        made['tracks'] = messages.tracks(result.objects, result.timings, latency, header)
        return self.publish(made)

    def names(self, tracker: Tracker) -> None:
        """Publish the names of all objects."""
        header = Header(stamp=self._node.get_clock().now().to_msg())
        names = {item.id: item.name for item in tracker.objects}
        self.publish({'label_info': messages.label_info(names, header)})

    def seeds(self, labels: np.ndarray, header: Header) -> None:
        """
        Publish a mask that was taken.

        Parameters
        ----------
        labels : np.ndarray
            (H, W) integer, pixel = object id, 0 = background.
        header : Header
            That of the image it belongs to.

        """
        self.publish({'seeds': conversions.labels_to_image(labels, header)})

    def publish(self, made: Mapping[str, Any]) -> bool:
        """Publish messages by the names of their outputs; False when the node is not active."""
        with self._lock:
            if not self._active:
                return False
            for name, message in made.items():
                self._publishers[name].publish(message)
            return True
