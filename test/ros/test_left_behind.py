# SPDX-License-Identifier: Apache-2.0
"""Programs that talk to nodes, and end in one way or another, leave nothing in shared memory."""

from pathlib import Path
import re
import resource
import signal
import subprocess
import sys
import time

from harness import Client, environment, NodeProcess, wait_for
import numpy as np
import psutil
import pytest
from std_srvs.srv import Trigger

from drift_ros.evaluation import bag_files
from drift_ros.media.video import write_image
from drift_ros.ros import conversions
from drift_ros.ros.client_errors import NoAnswerError

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


@pytest.fixture
def clip(tmp_path):
    (tmp_path / 'clip').mkdir()
    for index in range(3):
        write_image(tmp_path / 'clip' / f'{index}.png', np.zeros((32, 32, 3), np.uint8))
    return tmp_path / 'clip'


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
def test_nodes(tmp_path, clip, module, number):
    parameters = {'source': clip, 'wait_for_subscribers': 0, 'loop': True}
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


STARTING = """
import sys, time
from pathlib import Path
from drift_ros.ros.processes import Children
children = Children(Path(sys.argv[1]), '/left_behind')
parameters = {'source': sys.argv[2], 'wait_for_subscribers': 0, 'loop': True}
print(children.start('player', parameters), flush=True)
time.sleep(600)
"""


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGKILL])
def test_nodes_end_with_the_process_that_started_them(tmp_path, clip, number):
    """It has no chance to stop them; they see that it is gone."""
    process = subprocess.Popen(
        [sys.executable, '-c', STARTING, str(tmp_path / 'logs'), str(clip)],
        env=environment(DOMAIN),
        stdout=subprocess.PIPE,
    )
    try:
        node = psutil.Process(int(process.stdout.readline()))
        wait_for(lambda: mapped(node.pid), 'a participant')
        segments = mapped(node.pid)
        process.send_signal(number)
        assert process.wait(60) == -number
        wait_for(lambda: not node.is_running(), 'the end of the node', 60)
    finally:
        process.kill()
        process.communicate()
    assert not [path for path in segments if path.exists()]
    assert 'Traceback' not in (tmp_path / 'logs' / 'player.log').read_text()


FAILING = """
from rclpy.node import Node
from std_srvs.srv import Trigger
from drift_ros.ros import runtime

class Failing(Node):
    def __init__(self):
        super().__init__('failing')
        self.create_service(Trigger, '~/fail', lambda *_: 1 / 0)
        self.create_service(Trigger, '~/work', self.work)
        self.create_timer(0.5, lambda: {}['nothing'])

    def work(self, request, response):
        response.success = True
        return response

runtime.run(Failing)
"""


def test_a_callback_that_raises_does_not_end_the_node(tmp_path):
    """A service, and a timer that does so again and again: reported, and others are served."""
    (tmp_path / 'failing.py').write_text(FAILING)
    node = NodeProcess(tmp_path / 'failing.py', DOMAIN, tmp_path / 'log')
    client = Client(DOMAIN, 'failing')
    try:
        assert client.ask(Trigger, 'work', Trigger.Request()).success
        with pytest.raises(NoAnswerError, match='did not answer'):
            client.ask(Trigger, 'fail', Trigger.Request(), timeout=2.0)
        assert client.ask(Trigger, 'work', Trigger.Request()).success
        code, _ = node.interrupt()
    finally:
        client.close()
        node.close()
    assert code == 0
    assert 'ZeroDivisionError' in node.output and "KeyError: 'nothing'" in node.output


def test_a_recorder_whose_disk_is_full(tmp_path):
    """It closes the bag, says what is lost, and ends by itself with a code of its own."""
    bag = tmp_path / 'bag'
    parameters = f"-p output:={bag} -p topics:=['image']"
    node = subprocess.Popen(
        [sys.executable, '-m', 'drift_ros.nodes.recorder', '--ros-args', *parameters.split()],
        env=environment(DOMAIN),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (2_500_000, 2_500_000)),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    client = Client(DOMAIN)
    frame = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
    try:
        client.publish(frame)  # waits for the recorder
        for _ in range(200):
            client.publishers['/image'].publish(conversions.rgb_to_image(frame, client.header()))
            if node.poll() is not None:
                break
            time.sleep(0.05)
        said, _ = node.communicate(timeout=60)
    finally:
        node.kill()
        client.close()
    assert node.returncode == 1 and 'Traceback' not in said, said
    assert 'File too large' in said and re.search(r'/image: [12] recorded, \d+ lost', said), said
    with bag_files.open_bag(bag) as reader:
        assert 1 <= reader.message_count <= 2
