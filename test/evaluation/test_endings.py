# SPDX-License-Identifier: Apache-2.0
"""However a command ends, no process and no traceback of it stays, and its exit code says how."""

import os
from pathlib import Path
import signal
import subprocess
import sys
import time

import numpy as np
import psutil
import pytest

from drift_ros.ros import signals

ROOT = Path(__file__).resolve().parents[2]
# Interrupts the process that imports a module, at that moment.
INTERRUPTING = """
import os, signal, sys
class Finder:
    def find_spec(self, name, *rest):
        if name == os.environ.get('INTERRUPT_AT'):
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Finder())
"""


def environment(**more):
    return {**os.environ, 'PYTHONPATH': str(ROOT), **more}


def wait_for(condition, process=None):
    end = time.monotonic() + 120
    while not condition():
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < end, 'it did not come about'
        time.sleep(0.02)


WORKING = """
import os, sys, time
from drift_ros.evaluation.workers import in_processes
from drift_ros.ros.signals import interruptible
def work(number, progress):
    os.write(1, b'working\\n')
    time.sleep(600)
if __name__ == '__main__':
    with interruptible():
        list(in_processes(work, {1: (1,), 2: (2,)}, 2, 1, print))
"""


@pytest.mark.parametrize(
    ('number', 'code', 'group'),
    [
        (signal.SIGINT, 130, False),
        (signal.SIGINT, 130, True),
        (signal.SIGTERM, 143, False),
        (signal.SIGKILL, -9, False),
    ],
)
def test_workers_end_with_their_parent(tmp_path, number, code, group):
    """Also when the whole group is told, as by Ctrl-C in a terminal; without a traceback."""
    (tmp_path / 'working.py').write_text(WORKING)
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / 'working.py')],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        assert [process.stdout.readline() for _ in range(2)] == [b'working\n'] * 2
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        (os.killpg if group else os.kill)(process.pid, number)
        _, complained = process.communicate(timeout=60)
        assert process.returncode == code and b'Traceback' not in complained, complained
        wait_for(lambda: not any(item.is_running() for item in children))
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ('module', 'code', 'at'),
    [
        *(('drift_ros.commands.main', 130, at) for at in ('lazy_loader', 'click', 'rich', 'cv2')),
        *(('drift_ros.nodes.tracker', 0, at) for at in ('lazy_loader', 'rclpy', 'cv2')),
        ('drift_ros.nodes.player', 0, 'std_srvs'),
        ('drift_ros.nodes.recorder', 0, 'rosbags'),
    ],
)
def test_an_interrupt_at_the_start(davis, tmp_path, module, code, at):
    """In the middle of the imports: no traceback, and the exit code any interrupt gives."""
    (tmp_path / 'site').mkdir()
    (tmp_path / 'site' / 'sitecustomize.py').write_text(INTERRUPTING)
    words = ['eval', 'davis', str(davis), '--out', str(tmp_path / 'out')]
    found = subprocess.run(
        [sys.executable, '-m', module, *(words if 'commands' in module else [])],
        env=environment(PYTHONPATH=f'{tmp_path / "site"}:{ROOT}', INTERRUPT_AT=at),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == code, found.stderr
    assert 'Traceback' not in found.stderr, found.stderr


SWALLOWING = """
import os, pathlib, signal, sys, time
from drift_ros.evaluation import run
from drift_ros.evaluation.baselines import FirstMask
from drift_ros.evaluation.datasets import find_sequences
from drift_ros.evaluation.engines import parse_engine
from drift_ros.ros import signals

signal.signal(signal.SIGINT, signal.default_int_handler)
steps, before, handler = [], FirstMask.step, signal.getsignal(signal.SIGINT)

def step(self, frame):
    steps.append(1)
    if len(steps) == 3:
        try:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
        except KeyboardInterrupt:
            pass
    return before(self, frame)

FirstMask.step = step
try:
    with signals.interruptible():
        run.run([parse_engine('first-mask')], find_sequences(pathlib.Path(sys.argv[1])),
                pathlib.Path(sys.argv[2]))
finally:
    assert signal.getsignal(signal.SIGINT) is handler
    signals.check()
    print(len(steps), 'steps')
"""


def test_an_interrupt_that_is_swallowed_ends_the_run(davis, tmp_path):
    """Callbacks of C libraries print and forget it; the next frame does not."""
    found = subprocess.run(
        [sys.executable, '-c', SWALLOWING, str(davis), str(tmp_path)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 130, found.stderr
    assert found.stdout.endswith('3 steps\n') and 'Traceback' not in found.stderr


BECOMING = """
import os, signal, sys, time
from drift_ros.ros import signals

with signals.interruptible():
    try:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    except KeyboardInterrupt:
        if error := {error}:
            raise error from None
"""


@pytest.mark.parametrize('error', ['None', 'ValueError', 'SystemExit', 'ImportError'])
def test_whatever_an_interrupt_becomes_the_exit_code_is_its_own(error):
    found = subprocess.run(
        [sys.executable, '-c', BECOMING.format(error=error)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert found.returncode == 143 and not found.stderr


def test_without_an_interrupt_nothing_changes():
    with pytest.raises(ZeroDivisionError), signals.interruptible():
        assert np.sum([1 / 0])
    with signals.interruptible():
        signals.check()
