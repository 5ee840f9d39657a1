# SPDX-License-Identifier: Apache-2.0
"""A tracker node that needs no weights, and fails at frames that carry a mark."""

from pathlib import Path
import sys

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / 'unit'))

import cv2  # noqa: E402
from scenes import ColourFeatures  # noqa: E402

from drift_ros import Tracker  # noqa: E402
from drift_ros.engine.frame_features import FrameFeatures, LayerFeatures  # noqa: E402
from drift_ros.nodes.tracker.node import TrackerNode  # noqa: E402
from drift_ros.ros import conversions, runtime  # noqa: E402

RAISED = {1: RuntimeError, 2: MemoryError, 3: KeyboardInterrupt}
NOT_A_NUMBER, OTHER_GRID, NO_PICTURE = 4, 5, 6


def mark(frame, what):
    """Mark a frame: (H, W, 3) uint8, the corner pixel tells what is to go wrong."""
    marked = frame.copy()
    marked[0, 0] = (1, 2, what)
    return marked


class FailingFeatures(ColourFeatures):
    """Colours, but for frames that are marked."""

    def extract(self, frame):
        """Extract features, or fail as the mark says."""
        first, second, what = frame[0, 0].tolist()
        if (first, second) != (1, 2):
            return super().extract(frame)
        if what in RAISED:
            raise RAISED[what]('as the mark asks')
        features = super().extract(frame[:48] if what == OTHER_GRID else frame)
        if what == NOT_A_NUMBER:
            vectors = features.layers[0].key * float('nan')
            features = FrameFeatures((LayerFeatures(vectors, vectors),))
        return features


class FailingNode(TrackerNode):
    """The node, with features that fail."""

    def load_tracker(self, settings, config):
        """Make a tracker that needs no weights."""
        return Tracker(config=config, features=FailingFeatures())


def to_rgb(message, greys=None):
    """Decode an image; OpenCV refuses one that is marked, in a way nobody foresaw."""
    image = decode(message, greys)
    if image[0, 0].tolist() == [1, 2, NO_PICTURE]:
        raise cv2.error('refused as the mark asks')
    return image


decode, conversions.to_rgb = conversions.to_rgb, to_rgb

if __name__ == '__main__':
    runtime.run(FailingNode)
