# SPDX-License-Identifier: Apache-2.0
"""Cameras, depth, places and targets; on scenes of known geometry."""

import struct

import cv2
import numpy as np
import pytest

from drift_ros.experiments.depth_scenes import (
    a_moment_ago,
    CAMERA,
    Fault,
    FAULTS,
    measure,
    Solid,
    take_picture,
)
from drift_ros.space.camera import Camera, CameraError
from drift_ros.space.depth import decode_compressed, DepthError, metres
from drift_ros.space.locate import locate, UNKNOWN
from drift_ros.space.options import read_sizes, SpaceConfig
from drift_ros.space.target import Target

K = (300.0, 0, 160, 0, 310, 118, 0, 0, 1)
P = (250.0, 0, 150, -12, 0, 250, 110, 0, 0, 0, 1, 0)
BOWL = (-0.35, 0.12, 0.001, -0.002, 0.01)


class TestCamera:
    pixels = np.array([[0.0, 0.0], [160, 118], [319, 10], [40, 239]])

    @pytest.mark.parametrize(
        ('d', 'model'),
        [
            ((), ''),
            ((0.0,) * 5, 'plumb_bob'),
            (BOWL, 'plumb_bob'),
            ((*BOWL, 0.01, 0.02, 0.001), 'rational_polynomial'),
            ((-0.02, 0.01, 0.0, 0.0), 'equidistant'),
        ],
    )
    def test_rays_and_projection_are_inverse(self, d, model):
        camera = Camera.of((320, 240), K, d, P, model)
        rays = camera.rays(self.pixels)
        assert (rays[:, 2] == 1).all()
        np.testing.assert_allclose(camera.project(rays * 3.7), self.pixels, atol=0.02)

    def test_raw_images_go_by_k_and_rectified_ones_by_p(self):
        raw = Camera.of((320, 240), K, BOWL, P, 'plumb_bob')
        np.testing.assert_allclose(raw.rays(np.array([[160.0, 118]]))[0], (0, 0, 1), atol=1e-6)
        flat = Camera.of((320, 240), K, BOWL, P, 'plumb_bob', rectified=True)
        ray = flat.rays(np.array([[275.0, 60]]))[0]
        np.testing.assert_allclose(ray, (0.5, -0.2, 1))
        assert raw.rays(np.array([[0.0, 0]]))[0, 0] < -160 / 300 - 0.02  # bent outward

    @pytest.mark.parametrize(
        ('changes', 'words'),
        [
            ({'k': (0.0,) * 9}, 'K of camera_info is all zero'),
            ({'p': (0.0,) * 12, 'rectified': True}, 'P of camera_info is all zero'),
            ({'k': (*K[:8], float('nan'))}, 'not finite'),
            ({'k': (-300.0, *K[1:])}, 'focal'),
            ({'k': K[:5]}, 'matrix'),
            ({'d': BOWL, 'model': 'magic'}, "'magic'"),
            ({'d': (0.1, 0.2, 0.3), 'model': 'plumb_bob'}, '3 coefficients'),
            ({'d': BOWL, 'model': 'equidistant'}, '5 coefficients'),
            ({'size': (0, 240)}, '0x240'),
        ],
    )
    def test_what_is_no_calibration_is_refused(self, changes, words):
        values = {'size': (320, 240), 'k': K, 'p': P, **changes}
        with pytest.raises(CameraError, match=words.replace('(', r'\(')):
            Camera.of(**values)


class TestDepth:
    def test_units_go_by_encoding_or_by_scale(self):
        raw = np.full((8, 8), 1500, np.uint16)
        raw[0, 0] = 0
        depth = metres(raw, '16UC1')
        assert np.isnan(depth[0, 0]) and depth[1, 1] == pytest.approx(1.5)
        assert metres(raw, '16UC1', 0.0001)[1, 1] == pytest.approx(0.15)
        values = raw.astype(np.float32) / 1000
        values[1, 0], values[2, 0], values[3, 0] = np.nan, np.inf, -1
        depth = metres(values, '32FC1')
        assert np.isnan(depth[:4, 0]).all() and depth[4, 0] == pytest.approx(1.5)

    @pytest.mark.parametrize(
        ('values', 'encoding'),
        [
            (np.full((40, 40), 1500, np.float32), '32FC1'),  # millimetres
            (np.full((40, 40), 3, np.uint16), '16UC1'),  # metres
            (np.full((40, 40), 150, np.uint8), 'mono8'),
        ],
    )
    def test_other_units_and_encodings_are_refused(self, values, encoding):
        with pytest.raises(DepthError, match='space.depth_scale|not supported'):
            metres(values, encoding)

    def test_compressed_depth(self):
        raw = np.random.default_rng(0).integers(0, 5000, (20, 30)).astype(np.uint16)
        png = cv2.imencode('.png', raw)[1].tobytes()
        image, encoding = decode_compressed(bytes(12) + png, '16UC1; compressedDepth png')
        assert encoding == '16UC1' and (image == raw).all()
        # 32FC1: inverse depth, quantised by near * (near + 1) and 1 - quantum / far
        a, b = 100.0 * 101, 1 - 100.0 * 101 / 10
        depth = np.linspace(0.5, 9, 600, dtype=np.float32).reshape(20, 30)
        quantised = (a / depth + b).astype(np.uint16)
        quantised[0, 0] = 0
        png = cv2.imencode('.png', quantised)[1].tobytes()
        image, encoding = decode_compressed(
            struct.pack('<iff', 0, a, b) + png, '32FC1; compressedDepth'
        )
        assert np.isnan(image[0, 0]) and encoding == '32FC1'
        np.testing.assert_allclose(image.ravel()[1:], depth.ravel()[1:], rtol=0.01)

    @pytest.mark.parametrize(
        ('data', 'declared', 'words'),
        [
            (bytes(100), '16UC1; compressedDepth rvl', 'rvl'),
            (bytes(100), '16UC1; compressedDepth png', 'cannot be decoded'),
            (bytes(5), '16UC1; compressedDepth png', 'no data'),
            (bytes(100), 'rgb8; jpeg compressed bgr8', 'no depth encoding'),
        ],
    )
    def test_other_compressions_are_refused(self, data, declared, words):
        with pytest.raises(DepthError, match=words):
            decode_compressed(data, declared)


class TestPlaces:
    ball = Solid((0.2, -0.1, 2.0), (0.15,))
    box = Solid((-0.3, 0.1, 1.6), (0.3, 0.2, 0.25), 0.5)

    @pytest.mark.parametrize('solid', [ball, box], ids=['ball', 'box'])
    @pytest.mark.parametrize('name', FAULTS)
    def test_places_on_scenes_of_known_geometry(self, solid, name):
        picture = take_picture(solid, CAMERA, FAULTS[name], 3)
        place = locate(picture.mask, CAMERA, picture.depth)
        error = np.linalg.norm(place.position - picture.truth) / np.linalg.norm(picture.truth)
        hidden, fault = FAULTS[name].occlusion, FAULTS[name]
        allowed = 0.02 + 0.1 * hidden + 0.06 * (fault.holes + fault.glass)
        assert place.kind == 'depth' and error < allowed
        assert not place.cut
        off = place.position - picture.truth
        assert off @ np.linalg.solve(place.covariance, off) < 9
        if not hidden and FAULTS[name].holes < 0.5:
            np.testing.assert_allclose(place.size[:2], picture.extent[:2], rtol=0.25)

    def test_errors_over_many_scenes(self):
        rows = measure({'noise': Fault(noise=0.002, holes=0.2)}, (1.0, 3.0), repeats=1)
        (whole,) = (row for row in rows if not row.distance)
        assert whole.number == 12 and not whole.missing
        assert whole.median < 0.02 and whole.high < 0.05 and whole.honest > 0.9

    def test_an_object_that_was_seen_whole_is_placed_behind_what_hides_it(self):
        for solid in (self.ball, self.box):
            before = take_picture(a_moment_ago(solid), CAMERA, Fault(noise=0.002), 5)
            front = locate(before.mask, CAMERA, before.depth).front
            assert front is not None
            for share in (0.25, 0.5, 0.7):
                picture = take_picture(solid, CAMERA, Fault(noise=0.002, occlusion=share), 4)
                seen = locate(picture.mask, CAMERA, picture.depth)
                known = locate(picture.mask, CAMERA, picture.depth, front=front)
                errors = [np.linalg.norm(item.position - picture.truth) for item in (seen, known)]
                assert errors[1] < 0.02 * np.linalg.norm(picture.truth) < errors[0] * 4
                assert errors[1] < errors[0] / 2
                assert known.hidden == pytest.approx(share, abs=0.1)
                assert seen.front is None and known.front is None  # these show a part
                np.testing.assert_allclose(known.size[:2], front.size[:2])

    def test_the_border_of_the_image_hides_as_well(self):
        solid = Solid((1.1, 0.1, 2.0), (0.15,))
        before = take_picture(Solid((0.8, 0.1, 2.1), (0.15,)), CAMERA)
        front = locate(before.mask, CAMERA, before.depth).front
        picture = take_picture(solid, CAMERA)
        place = locate(picture.mask, CAMERA, picture.depth, front=front)
        assert place.cut and place.hidden > 0.2
        assert np.linalg.norm(place.position - picture.truth) < 0.03

    def test_another_side_of_an_object_is_not_taken_for_the_one_that_was_seen(self):
        flat = Solid((0.1, 0.0, 1.5), (0.5, 0.1, 0.1))
        high = Solid((0.1, 0.0, 1.5), (0.1, 0.5, 0.1))
        before = take_picture(flat, CAMERA)
        front = locate(before.mask, CAMERA, before.depth).front
        picture = take_picture(high, CAMERA, Fault(occlusion=0.3))
        alone = locate(picture.mask, CAMERA, picture.depth)
        place = locate(picture.mask, CAMERA, picture.depth, front=front)
        np.testing.assert_allclose(place.position, alone.position)

    def front(self, solid):
        picture = take_picture(solid, CAMERA)
        return locate(picture.mask, CAMERA, picture.depth).front

    def test_a_patch_of_something_else_is_not_the_object(self):
        front = self.front(self.box)
        other = take_picture(Solid((0.6, 0.2, 2.0), (0.3, 0.3, 0.2)), CAMERA)
        rows, columns = np.nonzero(other.mask)
        patch = other.mask & (np.arange(240)[:, None] < rows.min() + 8)
        patch &= np.arange(320) < columns.min() + 12
        place = locate(patch, CAMERA, other.depth, front=front)
        assert place.kind == 'part' and not place.known and place.front is None
        # all of it could be the object from another side, and so could that patch
        assert locate(other.mask, CAMERA, other.depth, front=front).kind == 'depth'
        assert locate(patch, CAMERA, other.depth).known

    def test_patches_that_lie_as_far_apart_as_the_object_is_large_are_not_the_object(self):
        front = self.front(self.ball)
        mask = np.zeros((240, 320), bool)
        mask[100:106, 60:66] = mask[100:106, 100:106] = True
        assert locate(mask, CAMERA, None, 0.3).kind == 'size'
        assert locate(mask, CAMERA, None, 0.3, front).kind == 'part'

    def test_two_patches_far_apart_beside_something_nearer_are_not_the_object(self):
        front = self.front(self.ball)
        depth = np.full((240, 320), 4.0, np.float32)
        mask = np.zeros((240, 320), bool)
        mask[100:112, 60:72] = mask[100:112, 150:162] = True
        depth[mask] = 2.0
        depth[:, 72:150] = 0.8
        assert locate(mask, CAMERA, depth, front=front).kind == 'part'

    def test_an_object_that_turns_its_narrow_side_stays_the_object(self):
        front = self.front(Solid((0.0, 0.0, 1.5), (0.3, 0.3, 0.1)))
        narrow = take_picture(Solid((0.0, 0.0, 1.5), (0.1, 0.3, 0.3)), CAMERA)
        place = locate(narrow.mask, CAMERA, narrow.depth, front=front)
        assert place.kind == 'depth' and place.front is not None
        assert place.front.area < front.area / 2 and place.front.first_area == front.first_area

    def test_a_mask_that_is_too_large_for_a_while_does_not_make_the_right_one_too_small(self):
        picture = take_picture(self.box, CAMERA)
        first = last = locate(picture.mask, CAMERA, picture.depth).front
        depth = np.full_like(picture.depth, 8.0)
        depth[30:210, 20:300] = 1.6  # as large as what the mask has leaked into
        rows, columns = (int(np.median(each)) for each in np.nonzero(picture.mask))
        for reach in (30, 55, 85):
            leak = np.zeros_like(picture.mask)
            leak[
                max(rows - reach, 32) : rows + reach, max(columns - reach, 22) : columns + reach
            ] = 1
            around = np.where(leak, depth, 8.0).astype(np.float32)
            last = locate(leak, CAMERA, around, front=last).front or last
        assert last.area > 5 * first.area
        place = locate(picture.mask, CAMERA, picture.depth, front=last)
        assert place.kind == 'depth'
        assert place.front.area == pytest.approx(first.area, rel=0.05)
        # what grows more than that at once is not remembered
        whole = np.zeros_like(picture.mask)
        whole[32:208, 22:298] = True
        assert locate(whole, CAMERA, depth, front=first).front is None

    def test_the_covariance_grows_where_the_middle_is_a_guess(self):
        picture = take_picture(self.box, CAMERA, Fault(noise=0.002))
        whole = locate(picture.mask, CAMERA, picture.depth).covariance
        hidden = take_picture(self.box, CAMERA, Fault(noise=0.002, occlusion=0.5))
        part = locate(hidden.mask, CAMERA, hidden.depth).covariance
        assert np.linalg.eigvalsh(part)[-1] > np.linalg.eigvalsh(whole)[-1]
        # nothing of it is measured, only the wall behind
        depth = picture.depth.copy()
        depth[picture.mask] = 8.0
        place = locate(picture.mask, CAMERA, depth)
        assert place.kind == 'depth' and place.covariance[2, 2] > 1
        front = locate(picture.mask, CAMERA, picture.depth).front
        place = locate(picture.mask, CAMERA, depth, front=front)
        assert place.kind == 'size'  # what is that far away is of another size
        assert np.linalg.norm(place.position - picture.truth) < 0.1

    def test_a_floor_hides_nothing_of_what_stands_on_it(self):
        depth = take_picture(self.ball, CAMERA).depth
        rows = np.arange(240)[:, None]
        floor = 280.0 * 0.25 / np.maximum(rows - 119.5, 0.1)  # a quarter of a metre below
        depth = np.minimum(depth, np.broadcast_to(floor, depth.shape)).astype(np.float32)
        box = Solid((0.0, 0.1, 1.6), (0.3, 0.3, 0.2))
        picture = take_picture(box, CAMERA)
        depth = np.minimum(depth, picture.depth)
        mask = picture.mask & (depth == picture.depth)
        place = locate(mask, CAMERA, depth)
        assert place.front is not None and place.hidden == 0

    def test_what_is_seen_through_an_object_is_not_the_object(self):
        picture = take_picture(self.box, CAMERA, Fault(noise=0.002))
        depth, mask = picture.depth.copy(), picture.mask
        rows, columns = np.nonzero(mask)
        depth[mask] = 8.0  # glass, but for a strip
        strip = mask & (np.arange(240)[:, None] < rows.min() + 8)
        depth[strip] = picture.depth[strip]
        place = locate(mask, CAMERA, depth)
        assert place.position[2] == pytest.approx(picture.truth[2], rel=0.03)

    def test_some_of_many_pixels_tell_as_much(self):
        large = Camera.of((1280, 960), (1120.0, 0, 639.5, 0, 1120, 479.5, 0, 0, 1))
        picture = take_picture(Solid((0.1, 0.0, 0.7), (0.2,)), large, Fault(noise=0.002))
        place = locate(picture.mask, large, picture.depth)
        assert np.linalg.norm(place.position - picture.truth) < 0.005

    def test_distorted_images(self):
        camera = Camera.of((320, 240), (280, 0, 160, 0, 280, 120, 0, 0, 1), BOWL, P, 'plumb_bob')
        corner = Solid((0.8, 0.55, 2.0), (0.12,))
        picture = take_picture(corner, camera)
        place = locate(picture.mask, camera, picture.depth)
        assert np.linalg.norm(place.position - picture.truth) < 0.02
        ideal = Camera.of((320, 240), camera.matrix.ravel())
        wrong = locate(picture.mask, ideal, picture.depth)
        assert np.linalg.norm(wrong.position - picture.truth) > 0.05

    def test_no_depth_gives_a_bearing_and_a_known_size_a_distance(self):
        picture = take_picture(self.ball, CAMERA)
        for depth in (None, np.full_like(picture.depth, np.nan)):
            place = locate(picture.mask, CAMERA, depth)
            assert place.kind == 'bearing' and not place.known
            way = place.bearing
            assert np.degrees(np.arccos(way @ picture.truth / np.linalg.norm(picture.truth))) < 0.5
            assert way @ place.covariance @ way == pytest.approx(UNKNOWN, rel=1e-3)
            side = np.cross(way, [0, 1, 0])
            assert side @ place.covariance @ side < 0.02
            place = locate(picture.mask, CAMERA, depth, known_size=0.3)
            assert place.kind == 'size'
            # the outline of a ball lies before its middle
            assert np.linalg.norm(place.position - self.ball.centre) < 0.05
            assert way @ place.covariance @ way > 0.01

    def test_the_border_cuts_an_object_off(self):
        picture = take_picture(Solid((1.12, 0, 2.0), (0.15,)), CAMERA)
        place = locate(picture.mask, CAMERA, None, known_size=0.3)
        assert place.cut and place.kind == 'bearing'  # its outline tells no distance
        assert locate(picture.mask, CAMERA, picture.depth).kind == 'depth'

    def test_little_masks(self):
        depth = np.full((240, 320), 2.0, np.float32)
        mask = np.zeros((240, 320), bool)
        assert locate(mask, CAMERA, depth) is None
        mask[10, 10] = True
        assert locate(mask, CAMERA, depth).kind == 'bearing'  # a pixel is no measurement
        mask[8:14, 8:14] = True
        assert locate(mask, CAMERA, depth).position[2] == pytest.approx(2)

    def test_other_sizes_are_refused_by_name(self):
        depth, mask = np.full((240, 320), 2.0, np.float32), np.ones((240, 320), bool)
        with pytest.raises(ValueError, match='160x120.*320x240'):
            locate(mask[::2, ::2], CAMERA, depth)
        with pytest.raises(ValueError, match='depth image has 160x120'):
            locate(mask, CAMERA, depth[::2, ::2])


class TestTarget:
    def test_the_first_object_stays_the_target_and_nothing_takes_its_place(self):
        target = Target()
        assert target.choose('', []) == (None, 'there are no objects: seed one')
        assert target.choose('', [(3, 'cup'), (5, 'box')]) == (3, '')
        number, reason = target.choose('', [(5, 'box')])
        assert number is None and 'object 3' in reason
        assert target.choose('', [])[0] is None
        assert target.choose('', [(7, '')]) == (7, '')  # a new beginning

    def test_by_name_and_by_id(self):
        target, objects = Target(), [(1, 'cup'), (2, 'box'), (3, 'cup'), (4, '1')]
        assert target.choose('box', objects) == (2, '')
        assert target.choose('3', objects) == (3, '')
        assert target.choose('1', objects) == (4, '')  # names come first
        number, reason = target.choose('cup', objects)
        assert number is None and '1, 3' in reason
        number, reason = target.choose('dog', objects)
        assert number is None and "2 'box'" in reason
        assert target.choose('cup', objects[1:]) == (3, '')


def test_known_sizes_are_checked():
    assert read_sizes(('cup=0.1', '7=2', 'a=b=1.5')) == {'cup': 0.1, '7': 2.0, 'a=b': 1.5}
    for entry in ('cup', '=1', 'cup=', 'cup=-1', 'cup=0', 'cup=nan', 'cup=inf', 'cup=1 m'):
        with pytest.raises(ValueError, match='NAME=METRES'):
            SpaceConfig.of({'space.sizes': (entry,)})
