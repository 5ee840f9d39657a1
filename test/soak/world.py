# SPDX-License-Identifier: Apache-2.0
"""The processes of the soak, what they answer, and what they use."""

from collections.abc import Callable
import contextlib
from dataclasses import dataclass, field
import json
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import psutil
from scene import MARK, picture

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'test' / 'ros'))

from harness import Client, environment, NodeProcess  # noqa: E402

from drift_ros.ros.processes import prepare_environment  # noqa: E402

prepare_environment()  # before anything of ROS: its profiles are read once a process

DOMAIN = 97
GRACE = 12
"""Answers after an interruption, or a seed, in which an object need not be found again yet."""
FOUND = 0.4
"""Intersection over union from which an object counts as found."""
MISSES = 3
"""Answers in a row without an object that is in the picture, from which it counts as lost."""
PATIENCE = 60.0
"""Seconds within which there must be an answer again."""
PARAMETERS = {'features.resolution': 120, 'diagnostics_period': 1.0, 'buffer_frames': 10}


@dataclass
class Judge:
    """
    Compares every answer with what was in the picture.

    Attributes
    ----------
    objects : dict of int to int
        Label in the scene, by object id.
    answers, found : int
        Answers looked at, and objects found in them.
    lost : list of str
        Objects that were in the picture and not found, with when.

    """

    objects: dict[int, int] = field(default_factory=dict)
    answers: int = 0
    judged: int = 0
    found: int = 0
    overlaps: list[float] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    excused: bool = True
    """Nobody can follow just now: what is not found does not count."""
    grace: int = GRACE
    misses: dict[int, int] = field(default_factory=dict)

    def restart(self) -> None:
        """Begin a new period of grace."""
        self.misses.clear()
        self.grace = GRACE

    def look(self, index: int, labels: np.ndarray, what: str) -> None:
        """Look at an answer: the labels of the frame of a number, (H, W), during an attack."""
        self.answers += 1
        if self.excused:
            return
        if self.grace:
            self.grace -= 1
            return
        _, truth = picture(index, labels.shape)
        for number, label in list(self.objects.items()):
            seen, true = labels == number, truth == label
            overlap = np.count_nonzero(seen & true) / max(np.count_nonzero(seen | true), 1)
            self.judged += 1
            self.overlaps.append(overlap)
            if overlap >= FOUND:
                self.found += 1
                self.misses[number] = 0
                continue
            self.misses[number] = self.misses.get(number, 0) + 1
            if self.misses[number] == MISSES:
                self.lost.append(f'object {number} in frame {index} ({what})')


class World:
    """
    A camera, a tracker and a client, and a log of what the tracker uses.

    Attributes
    ----------
    samples : list of dict
        Time in seconds and what was measured then.
    faults : list of str
        What went wrong.

    """

    def __init__(self, out: Path, rate: float) -> None:
        out.mkdir(parents=True, exist_ok=True)
        self.out, self.rate = out, rate
        self.begin, self.epoch = time.monotonic(), time.time()
        self.samples: list[dict] = []
        self.faults: list[str] = []
        self.counts: dict[str, int] = {}
        self.judge = Judge()
        self.doing = 'start'
        self.answered = time.monotonic()
        self._steps: list[float] = []
        self._values: dict[str, str] = {}
        self._cameras = 0
        self._stop = threading.Event()
        self.tracker = NodeProcess('tracker', DOMAIN, out / 'tracker.log', parameters=PARAMETERS)
        self.usage = psutil.Process(self.tracker.process.pid)
        self.camera = self.start_camera()
        self.client = Client(DOMAIN)
        self.client.timeout, self.client.watch = PATIENCE, self._alive
        self.client.start()
        # TrackerClient.results keeps frames apart by their stamps, which are attacked here
        from diagnostic_msgs.msg import DiagnosticArray
        from drift_ros_msgs.msg import TrackArray
        from sensor_msgs.msg import Image

        node = self.client.node
        for kind, topic, take in (
            (Image, '/tracker/mask', self._mask),
            (TrackArray, '/tracker/tracks', self._tracks),
            (DiagnosticArray, '/diagnostics', self._diagnostics),
        ):
            node.create_subscription(kind, topic, take, 10)
        self.wait(lambda: self.judge.answers, 'the first answer')
        self.seed()
        self._sampler = threading.Thread(target=self._sample, daemon=True)
        self._sampler.start()

    # -- what comes back

    def _mask(self, message: object) -> None:
        from drift_ros.ros import conversions

        self.answered = time.monotonic()
        index = int(message.header.frame_id.removeprefix(MARK))
        self.judge.look(index, conversions.image_to_labels(message), self.doing)

    def _tracks(self, message: object) -> None:
        times = dict(zip(message.stages, message.stage_times))
        self._steps.append(1e3 * times['total'])

    def _diagnostics(self, message: object) -> None:
        for status in message.status:
            values = {item.key: item.value for item in status.values}
            if 'rate out (Hz)' in values:  # of the tracker; others report here, too
                self._values = values

    def _alive(self) -> None:
        code = self.tracker.process.poll()
        if code is not None:
            raise AssertionError(f'the tracker ended with {code}')

    # -- doing

    def count(self, what: str, number: int = 1) -> None:
        """Count something for the report."""
        self.counts[what] = self.counts.get(what, 0) + number

    def fault(self, what: str) -> None:
        """Note that something went wrong."""
        self.faults.append(f'{self.elapsed():.0f} s, {self.doing}: {what}')
        print(f'        fault: {self.faults[-1]}', flush=True)

    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.begin

    def wait(self, condition: Callable, what: str, patience: float = PATIENCE) -> bool:
        """Wait for something; a fault when it does not come about."""
        end = time.monotonic() + patience
        while time.monotonic() < end:
            if condition():
                return True
            if self.tracker.process.poll() is not None or self.camera.poll() is not None:
                self.fault('a process has ended')
                break
            time.sleep(0.02)
        self.fault(f'{what} did not come within {patience:.0f} s')
        return False

    def start_camera(self) -> subprocess.Popen:
        """Start a camera."""
        self._cameras += 1
        with open(self.out / f'camera_{self._cameras}.log', 'w') as log:
            return subprocess.Popen(
                [
                    sys.executable,
                    str(Path(__file__).with_name('camera.py')),
                    str(self.epoch),
                    str(self.rate),
                ],
                env=environment(DOMAIN),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def set_camera(self, **settings: object) -> None:
        """Change what the camera does."""
        self.camera.stdin.write(json.dumps(settings) + '\n')
        self.camera.stdin.flush()

    def kill_camera(self) -> None:
        """Kill the camera, and remove what no dead process can: its shared memory."""
        mine = shared_memory(self.camera.pid)
        others = shared_memory(self.usage.pid) | shared_memory(os.getpid())
        self.camera.kill()
        self.camera.wait()
        self.camera.stdin.close()
        for path in mine - others:
            with contextlib.suppress(OSError):
                Path(path).unlink()

    def seed(self) -> None:
        """Have both objects of the scene followed, from nothing."""
        self.judge.objects.clear()
        self.client.reset()
        frame, labels = picture(int((time.time() - self.epoch) * self.rate))
        answers = self.client.seed(labels, names=['disc', 'square'], frame=frame)
        self.judge.objects.update({item.id: item.label for item in answers})
        self.judge.restart()
        self.frames(GRACE)  # a seed is answered before it is carried out

    def frames(self, number: int = 3) -> None:
        """Wait until so many more frames are answered."""
        start = self.judge.answers
        self.wait(lambda: self.judge.answers >= start + number, f'{number} answers')

    # -- watching

    def rest(self, seconds: float) -> None:
        """Let the tracker follow in peace, and take the sample at the end of a round."""
        self.doing = 'rest'
        with contextlib.suppress(psutil.Error):
            frames, used = self.judge.answers, self._used()
            time.sleep(seconds)
            frames = self.judge.answers - frames
            self._take('round', 1e3 * (self._used() - used) / frames if frames else float('nan'))

    def _used(self) -> float:
        times = self.usage.cpu_times()
        return times.user + times.system

    def _take(self, where: str = '', effort: float = float('nan')) -> None:
        with contextlib.suppress(psutil.Error):
            steps, self._steps = self._steps, []
            self.samples.append(
                {
                    'time': self.elapsed(),
                    'doing': self.doing,
                    'where': where,
                    'memory': self.usage.memory_info().rss / 1e6,
                    'threads': self.usage.num_threads(),
                    'descriptors': self.usage.num_fds(),
                    'shared': shared_size(self.usage.pid) / 1e6,
                    'effort': effort,
                    'step': float(np.median(steps)) if steps else float('nan'),
                    'rate': float(self._values.get('rate out (Hz)', 'nan')),
                }
            )

    def _sample(self) -> None:
        while not self._stop.wait(2.0):
            self._take()

    def close(self) -> None:
        """End everything; what a clean end has to leave behind is nothing."""
        self.doing = 'end'
        self._stop.set()
        self._sampler.join()
        mine = shared_memory(self.usage.pid) if self.tracker.process.poll() is None else set()
        self.camera.stdin.close()
        try:
            self.camera.wait(5)
        except subprocess.TimeoutExpired:
            self.camera.kill()
        others = shared_memory(os.getpid())
        if self.tracker.process.poll() is None:
            self.tracker.process.send_signal(signal.SIGINT)
        try:
            code = self.tracker.process.wait(15)
        except subprocess.TimeoutExpired:
            self.tracker.close()
            code = None
        if code != 0:
            self.fault(f'the tracker ended with {code}')
        self.client.close()  # a port goes with the last who has it open
        left = [path for path in mine - others if os.path.exists(path)]
        if left:
            self.fault(f'the tracker left {", ".join(left)}')


def shared_memory(pid: int) -> set[str]:
    """Files of shared memory a process has mapped."""
    with contextlib.suppress(OSError):
        lines = Path(f'/proc/{pid}/maps').read_text().splitlines()
        return {line.split()[5] for line in lines if '/dev/shm/' in line}
    return set()


def shared_size(pid: int) -> int:
    """Bytes of shared memory a process has mapped."""
    size = 0
    for path in shared_memory(pid):
        with contextlib.suppress(OSError):
            size += os.path.getsize(path)
    return size
