# SPDX-License-Identifier: Apache-2.0
"""
The launch packages of ROS for the tests: installed ones, or sources.

``ROS_LAUNCH_SOURCES`` may name a folder with checkouts of ros2/launch, ros2/launch_ros and
ros2/ros2cli (and, beside them or installed, osrf_pycommon and lark). Without either, the tests
execute the launch file by the stand-in alone.
"""

from functools import cache
import importlib
import os
from pathlib import Path
import sys
from types import ModuleType

VARIABLE = 'ROS_LAUNCH_SOURCES'


@cache
def find() -> tuple[str, str]:
    """
    Make the packages importable.

    Returns
    -------
    which : str
        What launch files are executed by, for people; empty when there is no real launch.
    reason : str
        Why not.

    """
    folder = os.environ.get(VARIABLE, '')
    if folder:
        for manifest in sorted(Path(folder).glob('**/package.xml')):
            package = manifest.parent
            found = (package / package.name / '__init__.py').is_file()
            if found and str(package) not in sys.path:
                sys.path.append(str(package))
        sys.path.append(str(Path(folder) / 'deps'))
        _stand_in_for('composition_interfaces.srv', 'LoadNode')
        sys.modules.pop('launch', None)  # an empty namespace: the folder of this repository
    try:
        launch = importlib.import_module('launch')
        importlib.import_module('launch_ros.actions')
        place = launch.LaunchDescription.__module__ and launch.__file__
    except (ImportError, AttributeError) as error:
        asked = f' (sources in {folder}: {error})' if folder else f' ({VARIABLE} names none)'
        return '', f'the launch packages of ROS are not importable{asked}'
    return f'the launch packages of ROS at {Path(str(place)).parent}', ''


def _stand_in_for(module: str, name: str) -> None:
    """Let launch_ros import interfaces that are not built; it needs them for components only."""
    package, _, last = module.partition('.')
    try:
        importlib.import_module(module)
    except ImportError:
        outer, inner = ModuleType(package), ModuleType(module)
        setattr(outer, last, inner)
        setattr(inner, name, type(name, (), {'Request': object, 'Response': object}))
        sys.modules.update({package: outer, module: inner})
