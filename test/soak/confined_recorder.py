# SPDX-License-Identifier: Apache-2.0
"""
A recorder on a disk that fills up: ``confined_recorder.py FOLDER MEGABYTES SECONDS TOPIC...``.

The disk is a small one in memory, of this process alone where it may have one; else files may not
grow beyond that size, which is a full disk to who writes them. The bag is copied to FOLDER
afterwards; the exit code is the recorder's.
"""

import ctypes
import os
from pathlib import Path
import resource
import shutil
import signal
import subprocess
import sys
import tempfile

_NEW_USER, _NEW_MOUNTS = 0x10000000, 0x00020000


def small_disk(place: Path, megabytes: int) -> bool:
    """Mount a disk of a size, seen by this process and its children only; False: not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    flags = _NEW_MOUNTS if os.geteuid() == 0 else _NEW_USER | _NEW_MOUNTS
    if libc.unshare(flags):
        return False
    libc.mount(None, b'/', None, 0x44000, None)  # private, recursively: nobody else sees it
    return not libc.mount(b'tmpfs', bytes(place), b'tmpfs', 0, f'size={megabytes}m'.encode())


def main() -> int:
    """Record; return the recorder's exit code."""
    folder, megabytes, seconds = Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        limit = None
        if not small_disk(place, megabytes):
            limit = megabytes << 20
        topics = '[' + ','.join(f"'{topic}'" for topic in sys.argv[4:]) + ']'
        process = subprocess.Popen(
            [sys.executable, '-m', 'drift_ros.nodes.recorder', '--ros-args']
            + ['-p', f'output:={place / "bag"}', '-p', f'topics:={topics}'],
            preexec_fn=limit and (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit,) * 2)),
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            code = process.wait(30)
        if (place / 'bag').exists():
            shutil.copytree(place / 'bag', folder / 'bag')
        libc = ctypes.CDLL(None)
        libc.umount2(bytes(place), 2)
    return code


if __name__ == '__main__':
    sys.exit(main())
