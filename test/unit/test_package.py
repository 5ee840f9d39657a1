# SPDX-License-Identifier: Apache-2.0
"""What package.xml, setup.py and the requirements say fits the code and each other."""

import ast
from importlib import metadata
import os
from pathlib import Path
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

from catkin_pkg.package import parse_package
from packaging.requirements import Requirement
import pytest

import drift_ros

ROOT = Path(__file__).resolve().parents[2]
# Import name -> name in the requirements, where they differ.
DISTRIBUTIONS = {
    'cv2': 'opencv-contrib-python-headless',
    'PIL': 'pillow',
    'skimage': 'scikit-image',
    'sklearn': 'scikit-learn',
    'yaml': 'pyyaml',
    'segment_anything': 'segment-anything',
}
ROS = re.compile(r'.*_(msgs|srvs|interfaces)$|rclpy$|launch(_ros)?$|ament_index_python$')


def imports(*folders):
    """Return the top-level names of everything imported below the folders."""
    names = set()
    for path in (path for folder in folders for path in sorted((ROOT / folder).rglob('*.py'))):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.partition('.')[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names.add(node.module.partition('.')[0])
    own = {'drift_ros', 'training', 'test'}
    own |= {path.stem for folder in folders for path in (ROOT / folder).rglob('*.py')}
    return names - set(sys.stdlib_module_names) - own


def requirements(name):
    """Return the requirements in a file by normalised name."""
    lines = [
        line
        for line in (ROOT / name).read_text().splitlines()
        if line and not line.startswith('#')
    ]
    found = [Requirement(line) for line in lines]
    return {re.sub('[-_.]+', '-', item.name).lower(): item for item in found}


@pytest.mark.parametrize('folder', ['.', 'drift_ros_msgs', 'tools/vision_msgs'])
def test_package_xml_is_valid(folder):
    warnings = []
    package = parse_package(str(ROOT / folder), warnings=warnings)
    package.validate(warnings=warnings)
    assert not warnings
    assert package.package_format == 3
    assert package.licenses == ['Apache-2.0']


def test_one_version():
    package = parse_package(str(ROOT))
    assert package.version == drift_ros.__version__ == metadata.version('drift_ros')
    assert package.version == parse_package(str(ROOT / 'drift_ros_msgs')).version
    assert (
        f'{package.version} ' in (ROOT / 'CHANGELOG.rst').read_text()
        or 'Forthcoming' in (ROOT / 'CHANGELOG.rst').read_text()
    )


def test_ros_dependencies_are_declared():
    declared = {item.name for item in parse_package(str(ROOT)).exec_depends}
    used = {name for name in imports('drift_ros', 'launch') if ROS.match(name)}
    assert used <= declared
    # ros2launch is the command, the rest of the names are those of modules
    assert {name for name in declared if ROS.match(name)} <= used | {'drift_ros_msgs'}


def test_python_dependencies_are_declared():
    runtime = requirements('requirements.txt')
    used = {
        DISTRIBUTIONS.get(name, name).lower()
        for name in imports('drift_ros')
        if not ROS.match(name)
    }
    # extras: imported on use, with a message where they are missing
    optional = {'mujoco', 'ray', 'scikit-learn'}
    assert {name.replace('_', '-') for name in used} - optional <= set(runtime)
    development = {
        DISTRIBUTIONS.get(name, name).lower().replace('_', '-')
        for name in imports('training', 'test')
        if not ROS.match(name)
    }
    known = {
        *runtime,
        *requirements('requirements-dev.txt'),
        *requirements('requirements-ros.txt'),
        'packaging',
        'setuptools',
    }
    assert development <= known


def test_opencv_and_cv_bridge():
    """OpenCV is new enough for NumPy 2 and not apt's; cv_bridge is apt's, which needs NumPy 1."""
    declared = {item.name for item in parse_package(str(ROOT)).exec_depends}
    assert 'cv_bridge' in declared and 'python3-opencv' not in declared
    (item,) = (v for k, v in requirements('requirements.txt').items() if k.startswith('opencv'))
    assert '4.9.0' not in item.specifier and '4.10.0' in item.specifier
    # the last one that goes with NumPy 1
    assert '4.11.0' in item.specifier
    beside = (ROOT / 'constraints-apt-ros.txt').read_text().splitlines()
    assert [line for line in beside if not line.startswith('#')] == ['numpy<2']
    assert '1.26.4' in requirements('requirements.txt')['numpy'].specifier
    for page in ('README.md', 'CONTRIBUTING.md'):
        text = (ROOT / page).read_text()
        assert '--system-site-packages' in text and '-c src/drift_ros/constraints-apt-ros' in text


def test_every_name_of_opencv_is_there():
    """IMREAD_COLOR_RGB, for one, came with 4.11 only: names newer than the range do not pass."""
    import cv2

    newer = {'IMREAD_COLOR_RGB', 'IMREAD_ANYCOLOR_RGB', 'imreadanimation', 'imwriteanimation'}
    for folder in ('drift_ros', 'training', 'tools'):
        for path in sorted((ROOT / folder).rglob('*.py')):
            for name in re.findall(r'\bcv2\.([A-Za-z_]\w*)', path.read_text()):
                assert hasattr(cv2, name) and name not in newer, f'{path.name}: cv2.{name}'


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('drift_ros_msgs.srv', 'interfaces drift_ros_msgs are not built'),
        ('rclpy', 'ROS 2 is needed, and its package rclpy'),
        ('sensor_msgs', 'its package sensor_msgs'),
        ('diffusers', 'requirements.txt'),
    ],
)
def test_what_is_missing_is_said(name, words):
    from drift_ros.starting import missing

    assert words in missing(ModuleNotFoundError(f'No module named {name!r}', name=name))


def test_versions_are_named_once():
    files = [requirements(f'requirements{suffix}.txt') for suffix in ('', '-dev', '-ros')]
    names = [name for file in files for name in file]
    assert len(names) == len(set(names))
    for item in (item for file in files for item in file.values()):
        operators = {part.operator for part in item.specifier}
        assert operators == {'>=', '<'}, f'{item} is not a range'
    for path in ('setup.py', 'pyproject.toml', 'Makefile', 'setup.cfg', 'tools/environment.py'):
        text = (ROOT / path).read_text()
        for name in names:
            assert (
                not re.search(rf'\b{re.escape(name)}[=<>~]=? ?\d', text) or name == 'setuptools'
            ), f'{path} names a version of {name}'


def test_installed_versions_are_in_range():
    for file in ('requirements.txt', 'requirements-dev.txt'):
        for name, item in requirements(file).items():
            assert metadata.version(name) in item.specifier, name


def test_entry_points_can_be_imported():
    scripts = {
        item.name: item
        for item in metadata.distribution('drift_ros').entry_points
        if item.group == 'console_scripts'
    }
    nodes = {'tracker', 'player', 'recorder', 'follower', 'follow_goal', 'web'}
    assert set(scripts) == {'drift_ros', *nodes}
    for item in scripts.values():
        assert callable(item.load()), item.name


def test_ros2_finds_executables_and_files():
    """The environment's prefix is laid out as ros2 run and ros2 launch expect."""
    prefix = Path(sys.prefix)
    assert (prefix / 'share/ament_index/resource_index/packages/drift_ros').is_file()
    for name in ('tracker', 'player', 'recorder', 'web', 'drift_ros'):
        assert (prefix / 'lib/drift_ros' / name).stat().st_mode & 0o111, name
    for name in (
        'package.xml',
        'launch/tracker.launch.py',
        'config/tracker.yaml',
        'config/fastdds_large_images.xml',
        'config/drift_ros.rviz',
        'config/foxglove_layout.json',
    ):
        installed = prefix / 'share/drift_ros' / name
        assert installed.read_bytes() == (ROOT / name).read_bytes(), name


def test_checkpoint_files_are_packaged():
    """Every file of the embedded model goes into the wheel, or a plain install has none."""
    from setuptools.dist import Distribution

    scope = {'__file__': str(ROOT / 'setup.py')}
    captured = {}
    import setuptools

    original, setuptools.setup = setuptools.setup, captured.update
    try:
        exec(compile((ROOT / 'setup.py').read_text(), 'setup.py', 'exec'), scope)
    finally:
        setuptools.setup = original
    assert Distribution(captured).package_data == captured['package_data']
    folder = ROOT / 'drift_ros'
    packaged = {
        path for pattern in captured['package_data']['drift_ros'] for path in folder.glob(pattern)
    }
    data = {path for path in (folder / 'checkpoints').rglob('*') if path.is_file()}
    assert data, 'there is no embedded model'
    assert data <= packaged


def test_files_of_the_page_are_packaged():
    from drift_ros.nodes.web.server import FILES

    text = (ROOT / 'setup.py').read_text()
    assert "'nodes/web/page/*'" in text
    for name, _ in FILES.values():
        assert (ROOT / 'drift_ros/nodes/web/page' / name).is_file()


def test_fast_dds_profile():
    root = ElementTree.parse(ROOT / 'config' / 'fastdds_large_images.xml').getroot()
    space = {'d': 'http://www.eprosima.com'}
    descriptors = {
        item.findtext('d:transport_id', None, space): item
        for item in root.iterfind('.//d:transport_descriptor', space)
    }
    used = [item.text for item in root.iterfind('.//d:userTransports/d:transport_id', space)]
    assert sorted(used) == sorted(descriptors), 'every transport is defined and used'
    size = descriptors['large_images_shared_memory'].findtext('d:segment_size', None, space)
    assert int(size) > 4 * 1920 * 1080 * 3


@pytest.mark.parametrize(
    ('given', 'want'),
    [
        ({}, {'GOMP_SPINCOUNT': '1000'}),
        ({'GOMP_SPINCOUNT': '5'}, {'GOMP_SPINCOUNT': '5'}),
        ({'OMP_WAIT_POLICY': 'ACTIVE'}, {'OMP_WAIT_POLICY': 'ACTIVE'}),
    ],
)
def test_waiting_threads_hardly_spin_unless_told_to(given, want):
    """Said in the environment before torch is loaded, however the package comes to be used."""
    names = ('GOMP_SPINCOUNT', 'OMP_WAIT_POLICY')
    code = (
        'import drift_ros, os, sys; '
        f'print({{n: os.environ[n] for n in {names} if n in os.environ}}); '
        'assert "torch" not in sys.modules'
    )
    environment = {key: value for key, value in os.environ.items() if key not in names}
    run = subprocess.run(
        [sys.executable, '-c', code],
        env={**environment, **given},
        cwd=ROOT,
        check=True,
        capture_output=True,
        text=True,
    )
    assert ast.literal_eval(run.stdout) == want
