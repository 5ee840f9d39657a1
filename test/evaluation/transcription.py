# SPDX-License-Identifier: Apache-2.0
"""
A direct transcription of the DAVIS measures with scikit-image.

Written from the definition alone, whole frames, one step per sentence, without a line shared
with ``drift_ros.evaluation.metric``: it is the second opinion the metric is tested against and
the yardstick of its speed.
"""

import numpy as np
from skimage.morphology import dilation, disk


def region_similarity(truth, prediction):
    """Return intersection over union; 1 when both masks are empty."""
    union = np.logical_or(truth, prediction).sum()
    if union == 0:
        return 1.0
    return np.logical_and(truth, prediction).sum() / union


def boundary(mask):
    """Return the boundary map: a pixel that differs from its east, south or diagonal one."""
    mask = mask.astype(bool)
    east = np.zeros_like(mask)
    south = np.zeros_like(mask)
    diagonal = np.zeros_like(mask)
    east[:, :-1] = mask[:, 1:]
    south[:-1, :] = mask[1:, :]
    diagonal[:-1, :-1] = mask[1:, 1:]
    edge = (
        np.logical_xor(mask, east) | np.logical_xor(mask, south) | np.logical_xor(mask, diagonal)
    )
    edge[-1, :] = np.logical_xor(mask, east)[-1, :]
    edge[:, -1] = np.logical_xor(mask, south)[:, -1]
    edge[-1, -1] = False
    return edge


def boundary_accuracy(truth, prediction):
    """Return the F measure of the boundaries, tolerance 0.008 of the diagonal."""
    radius = int(np.ceil(0.008 * np.linalg.norm(truth.shape)))
    true_edge, edge = boundary(truth), boundary(prediction)
    footprint = disk(radius)
    near_truth = dilation(true_edge, footprint)
    near_prediction = dilation(edge, footprint)
    if true_edge.sum() == 0 and edge.sum() == 0:
        return 1.0
    if true_edge.sum() == 0 or edge.sum() == 0:
        return 0.0
    precision = (edge & near_truth).sum() / edge.sum()
    recall = (true_edge & near_prediction).sum() / true_edge.sum()
    if precision + recall == 0:
        return 0.0
    return 2 * precision * recall / (precision + recall)
