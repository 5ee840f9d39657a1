# SPDX-License-Identifier: Apache-2.0
"""The wheel: built, installed into a fresh environment, and used from there."""

import os
from pathlib import Path
import re
import shutil
import subprocess
import sys
import sysconfig
import zipfile

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = tuple(sorted(path.name for path in (ROOT / 'resource' / 'lib').iterdir()))
NODES = tuple(name for name in PROGRAMS if name != 'drift_ros')


def run(*command, **options):
    return subprocess.run(
        list(map(str, command)), capture_output=True, text=True, check=False, **options
    )


@pytest.fixture(scope='module')
def wheel(tmp_path_factory):
    """Build from a copy: setuptools writes into the folder it builds from."""
    pytest.importorskip('setuptools')
    folder = tmp_path_factory.mktemp('wheel')
    source = folder / 'source'
    ignored = shutil.ignore_patterns('.*', 'out', 'data', 'build', '*.egg-info', '__pycache__')
    shutil.copytree(ROOT, source, ignore=ignored)
    options = ('--no-deps', '--no-build-isolation', '--no-index', '--disable-pip-version-check')
    done = run(sys.executable, '-m', 'pip', 'wheel', *options, '-w', folder, source)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob('*.whl')
    return path


@pytest.fixture(scope='module')
def prefix(wheel, tmp_path_factory):
    """Make an environment with the wheel, which sees this one's third-party packages."""
    prefix = tmp_path_factory.mktemp('environment')
    assert run(sys.executable, '-m', 'venv', '--without-pip', prefix).returncode == 0
    python = prefix / 'bin' / 'python'
    site = Path(
        run(python, '-c', 'import sysconfig; print(sysconfig.get_path("purelib"))').stdout.strip()
    )
    options = ('--no-deps', '--no-index', '--disable-pip-version-check', '--quiet')
    done = run(sys.executable, '-m', 'pip', '--python', python, 'install', *options, wheel)
    assert done.returncode == 0, done.stderr
    # after the wheel's own files, and without what an editable install adds
    (site / 'others.pth').write_text(sysconfig.get_path('purelib') + '\n')
    return prefix


def outside(prefix, *command, **more):
    """Run a program of the environment away from the checkout."""
    kept = {k: v for k, v in os.environ.items() if k not in ('PYTHONPATH', 'PYTHONHOME')}
    return run(*command, cwd=prefix, env={**kept, **more}, timeout=120)


def test_the_wheel_holds_what_it_needs(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        (metadata,) = (name for name in names if name.endswith('METADATA'))
        text = archive.read(metadata).decode()
    for part in (
        'drift_ros/py.typed',
        'drift_ros/__init__.pyi',
        'drift_ros/checkpoints/model_index.json',
        *(f'data/lib/drift_ros/{name}' for name in PROGRAMS),
        'data/share/drift_ros/launch/tracker.launch.py',
        'data/share/drift_ros/config/tracker.yaml',
        'data/share/drift_ros/config/sros2_policy.xml',
        'data/share/ament_index/resource_index/packages/drift_ros',
    ):
        assert any(name.endswith(part) for name in names), part
    assert not [name for name in names if name.startswith(('test/', 'training/', 'tools/'))]
    assert 'Description-Content-Type: text/markdown' in text and 'Project-URL: ' in text
    assert len(text.partition('\n\n')[2]) > 2000, 'the long description is the README'


def test_every_program_has_its_caller():
    """What setup.py makes a program of is found by ros2 run, too."""
    scripts = re.findall(r"'(\w+) = drift_ros\.", (ROOT / 'setup.py').read_text())
    assert sorted(scripts) == sorted(PROGRAMS)


def test_it_is_imported_from_its_own_place(prefix):
    code = 'import drift_ros; print(drift_ros.__file__, drift_ros.TrackerConfig())'
    done = outside(prefix, prefix / 'bin' / 'python', '-c', code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(prefix))


def test_commands_run(prefix):
    done = outside(prefix, prefix / 'bin' / 'drift_ros', '--help')
    assert done.returncode == 0 and 'demo' in done.stdout, done.stderr
    done = outside(prefix, prefix / 'bin' / 'drift_ros', 'policy', '--camera', 'front')
    assert done.returncode == 0 and '~/front/mask' in done.stdout, done.stderr


@pytest.mark.parametrize('name', NODES)
def test_ros2_finds_programs_that_start(prefix, name):
    """Without ROS or its interfaces they say which is missing, in one line."""
    program = prefix / 'lib' / 'drift_ros' / name
    assert os.access(program, os.X_OK)
    hidden = prefix / 'hidden'
    for package in ('rclpy', 'drift_ros_msgs'):
        (hidden / package).mkdir(parents=True, exist_ok=True)
        broken = f'raise ModuleNotFoundError("No module named {package}", name="{package}")'
        (hidden / package / '__init__.py').write_text(broken)
        if package == 'rclpy':
            done = outside(prefix, program, PYTHONPATH=str(hidden))
            assert done.returncode == 1 and 'Traceback' not in done.stderr
            assert 'ROS 2 is needed' in done.stderr or 'drift_ros_msgs' in done.stderr
    shutil.rmtree(hidden)


def test_the_demo_says_what_to_give(prefix):
    """There is no "make setup" away from a checkout."""
    done = outside(prefix, prefix / 'bin' / 'drift_ros', 'demo', ROS_DOMAIN_ID='95')
    text = ' '.join((done.stdout + done.stderr).split())
    assert done.returncode and 'make setup' not in text and 'Traceback' not in text
    assert '--video' in text and '--mask' in text
