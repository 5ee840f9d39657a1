# SPDX-License-Identifier: Apache-2.0
"""One table of encodings, read by this package and by cv_bridge; a broken one is left alone."""

import array
import os
from pathlib import Path
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from drift_ros.ros import bridge, conversions

ROOT = Path(__file__).resolve().parents[2]
WAYS = {
    'works': """
        import cv2, numpy as np
        class CvBridge:
            def imgmsg_to_cv2(self, message, encoding='passthrough'):
                print('asked')
                count = {'rgb8': 3, 'bgr8': 3, '8UC3': 3, 'rgba8': 4, 'bgra8': 4}
                count = count.get(message.encoding, 1)
                rows = np.frombuffer(bytes(message.data), np.uint8)
                rows = rows.reshape(message.height, message.step)[:, : message.width * count]
                pixels = rows.reshape(message.height, message.width, count)
                return self.cvtColor2(pixels, message.encoding, encoding)
            def cvtColor2(self, pixels, source, target):
                code = {'bgr8': cv2.COLOR_BGR2RGB, 'rgba8': cv2.COLOR_RGBA2RGB,
                        'bgra8': cv2.COLOR_BGRA2RGB, 'mono8': cv2.COLOR_GRAY2RGB}.get(source)
                plain = target == 'passthrough' or code is None
                return pixels if plain else cv2.cvtColor(np.ascontiguousarray(pixels), code)
    """,
    'raises': "raise ImportError('numpy.core.multiarray failed to import')",
    'dies': 'import os; os.abort()',
    'ignores padding': """
        import numpy as np
        class CvBridge:
            def imgmsg_to_cv2(self, message, encoding):
                pixels = np.frombuffer(message.data, np.uint8)
                return pixels[: 36].reshape(2, 6, 3)[..., ::-1]
    """,
    'has another interface': 'class Bridge: pass',
}
CODE = """
import sys
sys.path[:0] = [{unit!r}]
from test_bridge import ENCODINGS, made
import numpy as np
from drift_ros.ros import bridge, conversions
found = {{name: conversions.image_to_rgb(made(name)) for name in ENCODINGS}}
np.savez(sys.argv[1], reason=bridge.find()[1], **found)
"""
ENCODINGS = bridge.SHARED


def made(encoding, padding=5):
    """Make an image message with padded rows."""
    layout = conversions.encodings.PACKED[encoding]
    rows = np.random.default_rng(3).integers(0, 256, (7, 8 * layout.channels + padding), np.uint8)
    return SimpleNamespace(
        height=7,
        width=8,
        encoding=encoding,
        is_bigendian=0,
        step=rows.shape[1],
        data=array.array('B', rows.tobytes()),
    )


def in_a_process(tmp_path, path, **more):
    """Read the table in a process that finds a cv_bridge; give arrays, reason, output."""
    out = tmp_path / 'found.npz'
    paths = [str(path), str(ROOT), os.environ.get('PYTHONPATH', '')]
    done = subprocess.run(
        [sys.executable, '-c', CODE.format(unit=str(Path(__file__).parent)), str(out)],
        env={**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, paths)), **more},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    with np.load(out) as found:
        return {name: found[name] for name in ENCODINGS}, str(found['reason']), done.stdout


@pytest.mark.parametrize('way', WAYS)
def test_a_bridge_is_used_where_it_works(tmp_path, monkeypatch, way):
    import textwrap

    (tmp_path / 'cv_bridge').mkdir()
    (tmp_path / 'cv_bridge' / '__init__.py').write_text(textwrap.dedent(WAYS[way]))
    found, reason, output = in_a_process(tmp_path, tmp_path, DRIFT_ROS_CV_BRIDGE='1')
    monkeypatch.setattr(bridge, 'find', lambda: (None, 'ours'))
    for name in ENCODINGS:
        np.testing.assert_array_equal(found[name], conversions.image_to_rgb(made(name)), name)
    if way == 'works':
        assert reason == '' and output.count('asked') == len(ENCODINGS)
    else:
        assert 'does not work here' in reason and 'asked' not in output


def test_it_can_be_left_alone(tmp_path):
    (tmp_path / 'cv_bridge.py').write_text("raise RuntimeError('was imported')")
    _, reason, _ = in_a_process(tmp_path, tmp_path, DRIFT_ROS_CV_BRIDGE='0')
    assert reason == 'DRIFT_ROS_CV_BRIDGE is 0'


@pytest.mark.parametrize('encoding', ENCODINGS)
def test_the_installed_one_reads_the_same(encoding):
    found, reason = bridge.find()
    if found is None:
        pytest.skip(f'no cv_bridge: {reason}')
    expected = conversions.encodings.packed_to_rgb(
        conversions._pixels(
            made(encoding), np.uint8, conversions.encodings.PACKED[encoding].channels, ''
        ),
        encoding,
        conversions.GreyRange(),
    )
    np.testing.assert_array_equal(bridge.to_rgb(made(encoding)), expected)
