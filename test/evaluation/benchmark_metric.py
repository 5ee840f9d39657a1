# SPDX-License-Identifier: Apache-2.0
"""
Time the metric against the scikit-image transcription on real 480p masks (a command, no test).

    python test/evaluation/benchmark_metric.py [DAVIS_ROOT]

Without a folder, random masks are used. Pairs are a true mask and the one five frames later.
"""

from pathlib import Path
import sys
import time
from unittest import mock

import cv2
import numpy as np

from drift_ros.evaluation import metric
from drift_ros.media.labels import read_labels

sys.path.insert(0, str(Path(__file__).parent))
import random_masks  # noqa: E402
import transcription  # noqa: E402


def pairs(root):
    """Return mask pairs (480, 854) bool."""
    if root is None:
        return [random_masks.mask_pair(seed, (480, 854)) for seed in range(16)]
    found = []
    for folder in sorted(path for path in Path(root, 'Annotations').rglob('*') if path.is_dir()):
        files = sorted(folder.glob('*.png'))
        for first, second in list(zip(files, files[5:]))[::40]:
            found.append(tuple(read_labels(path) > 0 for path in (first, second)))
    return found


def timed(function, data):
    """Return milliseconds per pair (best of two rounds) and the values."""
    best = np.inf
    for _ in range(2):
        start = time.perf_counter()
        values = [function(*pair) for pair in data]
        best = min(best, (time.perf_counter() - start) / len(data) * 1000)
    return best, np.array(values)


def official_style(truth, prediction):
    """Return J and F on whole frames with OpenCV's dilation, as the official code does."""
    with mock.patch.object(transcription, 'dilation', opencv_dilation):
        return (
            transcription.region_similarity(truth, prediction),
            transcription.boundary_accuracy(truth, prediction),
        )


def opencv_dilation(edge, footprint):
    """Dilate (H, W) bool."""
    return cv2.dilate(edge.astype(np.uint8), footprint) > 0


def main():
    """Print milliseconds per pair of both implementations, their ratio and difference."""
    cv2.setNumThreads(1)
    data = pairs(sys.argv[1] if len(sys.argv) > 1 else None)
    fast_ms, fast = timed(
        lambda t, p: [
            m[0] for m in metric.frame_scores(t.astype(np.uint8), p.astype(np.uint8), [1])
        ],
        data,
    )
    slow_ms, slow = timed(
        lambda t, p: (
            transcription.region_similarity(t, p),
            transcription.boundary_accuracy(t, p),
        ),
        data,
    )
    official_ms, _ = timed(official_style, data)
    print(
        f'{len(data)} pairs of 480p masks, J and F, ms per pair: metric {fast_ms:.2f}, '
        f'scikit-image transcription {slow_ms:.2f} ({slow_ms / fast_ms:.1f} times), with '
        f'OpenCV dilation {official_ms:.2f} ({official_ms / fast_ms:.1f} times); '
        f'largest difference {np.abs(fast - slow).max():.1e}'
    )


if __name__ == '__main__':
    main()
