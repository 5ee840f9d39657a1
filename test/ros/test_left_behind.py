# SPDX-License-Identifier: Apache-2.0
"""Programs that talk to nodes, and end in one way or another, leave nothing in shared memory."""

from pathlib import Path
import re
import signal
import subprocess
import sys

from harness import environment, NodeProcess, wait_for
import numpy as np
import pytest

from drift_ros.media.video import write_image

DOMAIN = 65
PROGRAM = """
import os, signal, sys, time
from drift_ros import TrackerClient
client = TrackerClient('/nobody', timeout=0.1)
results = client.results()
print('here', flush=True)
sys.stdin.readline()
if sys.argv[1] == 'fails':
    raise RuntimeError('as asked')
if sys.argv[1] == 'interrupted':
    os.kill(os.getpid(), signal.SIGINT)
"""


def mapped(pid):
    """List segments of the middleware that a process uses: its own and those of others."""
    maps = Path(f'/proc/{pid}/maps').read_text()
    return {Path(path) for path in re.findall(r'/dev/shm/fastdds_[0-9a-f]{16}\b', maps)}


@pytest.mark.parametrize(
    ('how', 'code'), [('without close', 0), ('fails', 1), ('interrupted', -signal.SIGINT)]
)
def test_a_program_with_a_client(how, code):
    process = subprocess.Popen(
        [sys.executable, '-c', PROGRAM, how],
        env=environment(DOMAIN),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == 'here\n'
    segments = mapped(process.pid)
    _, complained = process.communicate('\n', timeout=60)
    assert process.returncode == code, complained
    assert segments and not [path for path in segments if path.exists()]
    assert 'terminate called' not in complained


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_a_command_that_waits_for_the_node(number):
    process = subprocess.Popen(
        [sys.executable, '-m', 'drift_ros.commands.main', 'seed', '--box', '1', '1', '9', '9'],
        env=environment(DOMAIN),
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(lambda: mapped(process.pid), 'a participant')
    segments = mapped(process.pid)
    process.send_signal(number)
    _, complained = process.communicate(timeout=60)
    assert process.returncode == 128 + number, complained
    assert not [path for path in segments if path.exists()] and 'Traceback' not in complained


@pytest.mark.parametrize('module', ['player', 'recorder'])
@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_nodes(tmp_path, module, number):
    (tmp_path / 'clip').mkdir()
    for index in range(3):
        write_image(tmp_path / 'clip' / f'{index}.png', np.zeros((32, 32, 3), np.uint8))
    parameters = {'source': tmp_path / 'clip', 'wait_for_subscribers': 0, 'loop': True}
    if module == 'recorder':
        parameters = {'output': tmp_path / 'bag', 'topics': "['image']"}
    node = NodeProcess(module, DOMAIN, tmp_path / 'log', parameters=parameters)
    try:
        wait_for(lambda: mapped(node.process.pid), 'a participant')
        segments = mapped(node.process.pid)
        node.process.send_signal(number)
        assert node.process.wait(60) == 0, node.output
    finally:
        node.close()
    assert not [path for path in segments if path.exists()] and 'Traceback' not in node.output
