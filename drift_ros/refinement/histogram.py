# SPDX-License-Identifier: Apache-2.0
"""Histograms of colours."""

import cv2
import numpy as np

from drift_ros.refinement.compiled import compiled

# Bins of luma and of the two chroma channels; chroma beyond 64..192 goes to the outer bins.
_BINS = (16, 24, 24)
COLOURS = int(np.prod(_BINS))
# What each value of luma and of the two chroma channels adds to the number of a colour.
_BIN_OF = np.stack(
    [
        np.clip((np.arange(256) - low) * count // width, 0, count - 1) * step
        for low, width, count, step in (
            (0, 256, _BINS[0], _BINS[1] * _BINS[2]),
            (64, 128, _BINS[1], _BINS[2]),
            (64, 128, _BINS[2], 1),
        )
    ]
).astype(np.uint16)


def colour_bins(image: np.ndarray) -> np.ndarray:
    """Number the colours of (h, w, 3) uint8 RGB: (h, w) uint16, below the number of bins."""
    bins = np.empty(image.shape[:2], np.uint16)
    _number_colours(cv2.cvtColor(image, cv2.COLOR_RGB2YCrCb), _BIN_OF, bins)
    return bins


@compiled('void(uint8[:, :, :], uint16[:, ::1], uint16[:, ::1])')
def _number_colours(image, numbers, bins):
    for y in range(bins.shape[0]):
        for x in range(bins.shape[1]):
            bins[y, x] = (
                numbers[0, image[y, x, 0]]
                + numbers[1, image[y, x, 1]]
                + numbers[2, image[y, x, 2]]
            )


def count_colours(bins: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """
    Count the colours inside of a soft mask and outside of it.

    Parameters
    ----------
    bins : np.ndarray
        (h, w) uint16, as :func:`colour_bins` gives them.
    inside : np.ndarray
        (h, w) float32 in [0, 1].

    Returns
    -------
    np.ndarray
        (2, colours) float32.

    """
    counts = np.zeros((2, COLOURS), np.float32)
    _count(bins, inside, counts)
    return counts


def count_sure(bins: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Count colours by how sure it is that they are inside, and that they are not; likewise."""
    counts = np.zeros((2, COLOURS), np.float32)
    _count_sure(bins, probability, counts)
    return counts


@compiled('void(uint16[:, :], float32[:, :], float32[:, ::1])')
def _count(bins, inside, counts):
    for y in range(bins.shape[0]):
        for x in range(bins.shape[1]):
            counts[0, bins[y, x]] += inside[y, x]
            counts[1, bins[y, x]] += np.float32(1) - inside[y, x]


@compiled('void(uint16[:, :], float32[:, :], float32[:, ::1])')
def _count_sure(bins, probability, counts):
    for y in range(bins.shape[0]):
        for x in range(bins.shape[1]):
            beyond = probability[y, x] - np.float32(0.5)
            # from 0 at one half to 1 where the tracker is sure
            if beyond > 0:
                counts[0, bins[y, x]] += min(beyond / np.float32(0.3), np.float32(1))
            else:
                counts[1, bins[y, x]] += min(-beyond / np.float32(0.4), np.float32(1))


def shares_of(counts: np.ndarray) -> np.ndarray:
    """Turn counts of colours into shares, somewhat smoothed: flat float32, sum 1."""
    smooth = np.empty(_BINS, np.float32)
    _smooth_counts(counts.reshape(_BINS), smooth)
    return (smooth / max(float(smooth.sum()), 1e-6)).ravel()


@compiled('void(float32[:, :, ::1], float32[:, :, ::1])')
def _smooth_counts(counts, smooth):
    # a Gaussian of 0.7 bins, cut off after one
    middle = np.float32(0.5808)
    side = np.float32(0.2096)
    luma, red, blue = counts.shape
    first, second = np.empty_like(counts), np.empty_like(counts)
    for i in range(luma):
        low, high = max(i - 1, 0), min(i + 1, luma - 1)
        for j in range(red):
            for k in range(blue):
                ends = counts[low, j, k] + counts[high, j, k]
                first[i, j, k] = middle * counts[i, j, k] + side * ends
    for i in range(luma):
        for j in range(red):
            low, high = max(j - 1, 0), min(j + 1, red - 1)
            for k in range(blue):
                ends = first[i, low, k] + first[i, high, k]
                second[i, j, k] = middle * first[i, j, k] + side * ends
    for i in range(luma):
        for j in range(red):
            for k in range(blue):
                ends = second[i, j, max(k - 1, 0)] + second[i, j, min(k + 1, blue - 1)]
                smooth[i, j, k] = middle * second[i, j, k] + side * ends
