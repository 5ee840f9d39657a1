# SPDX-License-Identifier: Apache-2.0
"""A calibrated camera: which way a pixel looks, and where a point in space is seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np


class CameraError(ValueError):
    """A calibration that cannot be used; the text says what is wrong and what to do."""


_PINHOLE = {'': 0, 'plumb_bob': 5, 'rational_polynomial': 8, 'thin_prism': 12}
_FISHEYE = ('equidistant', 'fisheye')
MODELS = (*filter(None, _PINHOLE), *_FISHEYE)
"""Distortion models that are understood, by the names of sensor_msgs."""


_PRECISELY = (cv2.TERM_CRITERIA_COUNT + cv2.TERM_CRITERIA_EPS, 40, 1e-7)


@dataclass(frozen=True)
class Camera:
    """
    A camera whose images have ``width`` x ``height`` pixels.

    Attributes
    ----------
    width, height : int
        Pixels.
    matrix : np.ndarray
        (3, 3), focal lengths and centre in pixels; (0, 0) is the *middle* of the first pixel.
    distortion : np.ndarray
        (N,) coefficients in OpenCV's order; empty for images without distortion.
    fisheye : bool
        Whether ``distortion`` is that of OpenCV's fisheye model.

    """

    width: int
    height: int
    matrix: np.ndarray
    distortion: np.ndarray
    fisheye: bool = False

    @classmethod
    def of(
        cls,
        size: tuple[int, int],
        k: Sequence[float],
        d: Sequence[float] = (),
        p: Sequence[float] = (),
        model: str = '',
        rectified: bool = False,
    ) -> Camera:
        """
        Make a camera of what a sensor_msgs/CameraInfo says.

        Parameters
        ----------
        size : tuple of int
            (width, height) in pixels.
        k : sequence of float
            9, row by row: the intrinsic matrix of the raw images.
        d : sequence of float
            Distortion of the raw images.
        p : sequence of float
            12, row by row: the projection of the rectified images.
        model : str
            Of the distortion, one of :data:`MODELS`; empty where there is none.
        rectified : bool
            The images are rectified: ``p`` holds, without distortion. Else ``k`` and ``d``.

        Raises
        ------
        CameraError
            There is no calibration (zero), it is no calibration, or its model is unknown.

        """
        width, height = size
        if width < 1 or height < 1:
            raise CameraError(
                f'camera_info has the size {width}x{height}: its publisher has to set width and '
                'height'
            )
        name, values, shape = ('P', p, (3, 4)) if rectified else ('K', k, (3, 3))
        try:
            matrix = np.array(values, float).reshape(shape)[:, :3].copy()
            coefficients = np.array(() if rectified else d, float).ravel()
        except ValueError as error:
            raise CameraError(f'{name} of camera_info is no {shape} matrix: {error}') from None
        if not np.isfinite(matrix).all() or not np.isfinite(coefficients).all():
            raise CameraError(
                'camera_info holds numbers that are not finite: calibrate the camera'
            )
        if not matrix.any():
            remedy = (
                'set space.rectified to false' if rectified else 'give its driver the calibration'
            )
            raise CameraError(
                f'{name} of camera_info is all zero, the camera is not calibrated: calibrate it, '
                f'or {remedy}'
            )
        if matrix[0, 0] <= 0 or matrix[1, 1] <= 0 or matrix[2, 2] == 0:
            raise CameraError(
                f'{name} of camera_info has the focal lengths {matrix[0, 0]:g} and '
                f'{matrix[1, 1]:g}: they are pixels, above 0; calibrate the camera'
            )
        if not coefficients.any():
            return cls(width, height, matrix / matrix[2, 2], np.zeros(0))
        if model not in _PINHOLE and model not in _FISHEYE:
            raise CameraError(
                f'the distortion model {model!r} of camera_info is none of {", ".join(MODELS)}: '
                'rectify the images and set space.rectified'
            )
        fisheye = model in _FISHEYE
        allowed = (4,) if fisheye else (4, 5, 8, 12, 14)
        if len(coefficients) not in allowed:
            raise CameraError(
                f'camera_info has {len(coefficients)} coefficients of distortion; the model '
                f'{model!r} has {" or ".join(map(str, allowed))}'
            )
        return cls(width, height, matrix / matrix[2, 2], coefficients, fisheye)

    def rays(self, pixels: np.ndarray) -> np.ndarray:
        """
        Tell which way pixels look.

        Parameters
        ----------
        pixels : np.ndarray
            (N, 2), x and y; whole numbers are the middles of pixels.

        Returns
        -------
        np.ndarray
            (N, 3), x right, y down, z forward; z is 1, so that a ray times a depth is a point.

        """
        points = np.asarray(pixels, float).reshape(-1, 1, 2)
        if not self.distortion.size:
            flat = points[:, 0]
            x = (flat[:, 0] - self.matrix[0, 2]) / self.matrix[0, 0]
            y = (flat[:, 1] - self.matrix[1, 2]) / self.matrix[1, 1]
            return np.stack([x, y, np.ones_like(x)], -1)
        if not points.size:
            return np.zeros((0, 3))
        if self.fisheye:
            flat = cv2.fisheye.undistortPoints(points, self.matrix, self.distortion)[:, 0]
        else:
            flat = cv2.undistortPoints(points, self.matrix, self.distortion, criteria=_PRECISELY)[
                :, 0
            ]
        return np.concatenate([flat, np.ones((len(flat), 1))], -1)

    def project(self, points: np.ndarray) -> np.ndarray:
        """
        Tell where points are seen.

        Parameters
        ----------
        points : np.ndarray
            (N, 3) before the camera (z > 0).

        Returns
        -------
        np.ndarray
            (N, 2) pixels; they may lie outside of the image.

        """
        rows = np.asarray(points, float).reshape(-1, 1, 3)
        project = cv2.fisheye.projectPoints if self.fisheye else cv2.projectPoints
        coefficients = self.distortion if self.distortion.size else np.zeros(4)
        if self.fisheye:
            return project(rows, np.zeros(3), np.zeros(3), self.matrix, coefficients)[0][:, 0]
        return project(rows, np.zeros(3), np.zeros(3), self.matrix, coefficients)[0][:, 0]

    @property
    def focal(self) -> float:
        """Focal length in pixels, the mean of both axes."""
        return float(self.matrix[0, 0] + self.matrix[1, 1]) / 2
