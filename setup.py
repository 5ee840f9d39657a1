# SPDX-License-Identifier: Apache-2.0
"""Package description for colcon (ament_python) and pip."""

from pathlib import Path
import sys

from setuptools import find_packages, setup

package = 'drift_ros'
root = Path(__file__).parent


def requirements(name):
    """Return the requirements listed in one of the files, without comments."""
    lines = (line.partition('#')[0].strip() for line in (root / name).read_text().splitlines())
    return [line for line in lines if line]


def files(folder):
    """Return (destination, files) for a folder below share/ and all folders in it."""
    folders = [Path(folder), *sorted(p for p in (root / folder).rglob('*') if p.is_dir())]
    found = []
    for path in (root / f for f in folders):
        names = sorted(str(p.relative_to(root)) for p in path.iterdir() if p.is_file())
        if names:
            found.append((f'share/{package}/{path.relative_to(root)}', names))
    return found


# ros2 run and ros2 launch look for programs in lib/<package>, where colcon puts them (setup.cfg);
# a wheel has them in bin/ and something in lib/ that calls them.
programs = (
    [
        (
            f'lib/{package}',
            sorted(str(p.relative_to(root)) for p in (root / 'resource/lib').iterdir()),
        )
    ]
    if 'bdist_wheel' in sys.argv
    else []
)

setup(
    name=package,
    version='0.2.0',
    description='Follow any object in a camera stream from one mask, with the self-attention of '
    'an image diffusion model, in ROS 2.',
    long_description=(root / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    project_urls={'Paper': 'https://arxiv.org/abs/2511.19936'},
    author='drift_ros maintainers',
    author_email='drift_ros@users.noreply.github.com',
    license='Apache-2.0',
    packages=find_packages(include=[package, f'{package}.*']),
    package_data={
        package: [
            'checkpoints/*',
            'checkpoints/**/*',
            'nodes/web/page/*',
            '*.pyi',
            'py.typed',
            '*/*.j2',
            '*/*.yaml',
        ],
    },
    data_files=[
        ('share/ament_index/resource_index/packages', [f'resource/{package}']),
        (f'share/{package}', ['package.xml']),
        *files('launch'),
        *files('config'),
        *programs,
    ],
    python_requires='>=3.10,<3.14',
    install_requires=requirements('requirements.txt'),
    extras_require={
        'dev': requirements('requirements-dev.txt'),
        'experiments': [
            line
            for line in requirements('requirements-dev.txt')
            if line.startswith('scikit-learn')
        ],
        'simulation': [
            line for line in requirements('requirements-dev.txt') if line.startswith('mujoco')
        ],
        'ray': [line for line in requirements('requirements-dev.txt') if line.startswith('ray')],
        'ros': requirements('requirements-ros.txt'),
    },
    zip_safe=False,
    entry_points={
        'console_scripts': [
            'drift_ros = drift_ros.commands:run',
            'tracker = drift_ros.nodes.programs:tracker',
            'player = drift_ros.nodes.programs:player',
            'recorder = drift_ros.nodes.programs:recorder',
            'web = drift_ros.nodes.programs:web',
            'follower = drift_ros.nodes.programs:follower',
            'follow_goal = drift_ros.nodes.programs:follow_goal',
        ],
    },
)
