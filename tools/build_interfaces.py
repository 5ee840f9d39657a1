# SPDX-License-Identifier: Apache-2.0
"""
Build the ROS interfaces and install them into the running virtual environment.

Run by ``make setup`` with the Python of the environment. Builds ``drift_ros_msgs``, and before it
the stand-ins for parts of ``vision_msgs``, ``tf2_msgs`` and ``nav2_msgs`` where no ROS
installation has the official ones. When ROS comes from the wheels, what is installed into the
prefix is found without environment variables; an installed ROS needs ``LD_LIBRARY_PATH`` (the
Makefile and ``bin/activate`` set it).
"""

from __future__ import annotations

import os
from pathlib import Path
import shutil
import subprocess
import sys
import sysconfig
import time

ROOT = Path(__file__).resolve().parent.parent
PREFIX = Path(sys.prefix)
BUILD = ROOT / '.cache' / 'interfaces'
STAND_INS = ('vision_msgs', 'tf2_msgs', 'nav2_msgs')


def stop(message: str) -> None:
    """End the program with a message that says what to do."""
    sys.exit(f'build_interfaces: {message}')


def find_tool(name: str) -> str:
    """Return the path of a build tool, taken from its wheel if the system has none."""
    path = shutil.which(name, path=f'{PREFIX / "bin"}{os.pathsep}{os.environ["PATH"]}')
    if path is None:
        print(f'  {name} is not installed: taking it from its wheel', flush=True)
        install = [sys.executable, '-m', 'pip', 'install', '--quiet', name]
        if subprocess.run(install, check=False).returncode:
            stop(f'{name} could not be installed. Install it by hand: sudo apt install {name}')
        path = str(PREFIX / 'bin' / name)
    return path


def check_system() -> None:
    """Stop with the name of the missing system package if this machine cannot compile."""
    if sys.prefix == sys.base_prefix:
        stop('run this with the Python of the virtual environment (make setup does)')
    compilers = {'CC': ('cc', 'gcc', 'clang'), 'CXX': ('c++', 'g++', 'clang++')}
    for variable, candidates in compilers.items():
        named = os.environ.get(variable, '').split()
        if not any(shutil.which(name) for name in (named[:1] or candidates)):
            stop('no C and C++ compiler found. Install one: sudo apt install build-essential')
    if not (Path(sysconfig.get_path('include')) / 'Python.h').is_file():
        version = sysconfig.get_python_version()
        stop(
            f'the headers of Python {version} (Python.h) are missing. Install them: '
            f'sudo apt install python{version}-dev'
        )


def foreign_prefixes() -> list[str]:
    """Return the sourced ROS prefixes, without this environment's own."""
    paths = os.environ.get('AMENT_PREFIX_PATH', '').split(os.pathsep)
    return [path for path in paths if path and Path(path).resolve() != PREFIX.resolve()]


def build(source: Path) -> None:
    """Configure, build and install one ament_cmake package; its output goes into a log file."""
    name = source.name
    folder, log = BUILD / name, BUILD / f'{name}.log'
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    environment = dict(os.environ)
    prefixes = [str(PREFIX), *foreign_prefixes()]
    environment['AMENT_PREFIX_PATH'] = os.pathsep.join(prefixes)
    environment['CMAKE_PREFIX_PATH'] = os.pathsep.join(
        [*prefixes, *filter(None, [environment.get('CMAKE_PREFIX_PATH')])]
    )
    environment['PATH'] = f'{PREFIX / "bin"}{os.pathsep}{environment["PATH"]}'
    cmake, ninja = find_tool('cmake'), find_tool('ninja')
    commands = (
        [
            cmake,
            '-S',
            str(source),
            '-B',
            str(folder),
            '-G',
            'Ninja',
            f'-DCMAKE_MAKE_PROGRAM={ninja}',
            '-DCMAKE_BUILD_TYPE=Release',
            f'-DCMAKE_INSTALL_PREFIX={PREFIX}',
            # Libraries find each other where they are installed.
            f'-DCMAKE_INSTALL_RPATH={PREFIX / "lib"}',
            f'-DCMAKE_PROJECT_INCLUDE={ROOT / "tools" / "ros_wheels.cmake"}',
            f'-DPython3_EXECUTABLE={sys.executable}',
            '-DBUILD_TESTING=OFF',
        ],
        [cmake, '--build', str(folder)],
        [cmake, '--install', str(folder)],
    )
    print(f'  {name}: ', end='', flush=True)
    started = time.monotonic()
    with log.open('w') as output:
        for step, command in zip(('configure', 'build', 'install'), commands):
            print(f'{step} ... ', end='', flush=True)
            done = subprocess.run(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, check=False
            )
            if done.returncode:
                print('FAILED')
                tail = log.read_text(errors='replace').splitlines()[-30:]
                print('\n'.join(f'    {line}' for line in tail))
                stop(f'the {step} step of {name} failed, the full output is in {log}')
    print(f'done ({time.monotonic() - started:.0f} s)', flush=True)


def main() -> None:
    """Build what is needed."""
    check_system()
    for name in STAND_INS:
        official = [
            path
            for path in foreign_prefixes()
            if (Path(path) / 'share' / name / 'package.xml').is_file()
        ]
        if official:
            print(f'  {name}: found in {official[0]}')
        else:
            build(ROOT / 'tools' / name)
    build(ROOT / 'drift_ros_msgs')


if __name__ == '__main__':
    main()
