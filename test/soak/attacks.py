# SPDX-License-Identifier: Apache-2.0
"""What is done to the tracker in the soak, one attack after another."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
import os
from pathlib import Path
import random
import resource
import signal
import subprocess
import sys
import time
from typing import NamedTuple

import numpy as np
import psutil
from scene import SIZE
from world import DOMAIN, World

from drift_ros import TrackerClient
from drift_ros.ros.client_errors import ClientError, NoAnswerError


class Attack(NamedTuple):
    """Something that is done to the tracker; ``blind``: it cannot follow meanwhile."""

    name: str
    do: Callable[[World], None]
    blind: bool


def drop_outs(world: World) -> None:
    """Leave out single frames, then all of them for a while."""
    world.set_camera(loss=0.5)
    time.sleep(4)
    world.set_camera(loss=0.0, paused=True)
    time.sleep(random.uniform(2, 8))
    world.set_camera(paused=False)


def kill_camera(world: World) -> None:
    """Kill the publisher, twice in a row, and start another."""
    for _ in range(2):
        world.kill_camera()
        time.sleep(random.uniform(0.1, 2))
        world.camera = world.start_camera()
        world.frames()
        world.count('publishers killed')


def stop_tracker(world: World) -> None:
    """Stop the tracker in the middle of whatever it does, and let it go on."""
    for seconds in (0.2, random.uniform(2, 10), 0.2):
        world.tracker.process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        world.tracker.process.send_signal(signal.SIGCONT)
        time.sleep(random.uniform(0.1, 0.5))
        world.count('trackers stopped')


def change_size(world: World) -> None:
    """Change the size of the frames, to ones that fit the objects and ones that do not."""
    for size in ((96, 128), (160, 120), (30, 900), (1, 1), (240, 320)):
        world.set_camera(size=size)
        time.sleep(1.5)
        world.count('sizes changed')
    world.set_camera(size=SIZE)


def jump_in_time(world: World) -> None:
    """Let the camera's clock jump, stand still, and begin at zero."""
    for offset in (3600, -3600, -time.time(), 0.5, -0.5):
        world.set_camera(offset=offset)
        time.sleep(1.0)
        world.count('time jumps')
    world.set_camera(frozen=True)
    time.sleep(1.0)
    world.set_camera(frozen=False, offset=0.0)


def storm(world: World) -> None:
    """Ask for many things at once, good and bad, from several clients."""
    chance = random.Random(world.counts.get('requests', 0))

    def client(number: int) -> dict[str, int]:
        counts = {'requests': 0, 'refused': 0, 'unanswered': 0}
        with TrackerClient('/tracker', domain_id=DOMAIN, name=f'storm_{number}') as tracker:
            tracker.state()  # once each side knows the other, every request is answered
            mine: list[int] = []
            for _ in range(25):
                counts['requests'] += 1
                try:
                    _ask(tracker, chance, mine, list(world.judge.objects))
                except NoAnswerError:
                    counts['unanswered'] += 1
                except ClientError:
                    counts['refused'] += 1
            for identity in mine:
                counts['requests'] += 1
                try:
                    tracker.remove(identity)
                except ClientError:
                    counts['refused'] += 1
        return counts

    with ThreadPoolExecutor(3) as pool:
        for counts in pool.map(client, range(3)):
            for name, number in counts.items():
                world.count(name, number)
            if counts['unanswered']:
                world.fault(f'{counts["unanswered"]} requests were not answered')


def _ask(
    tracker: TrackerClient, chance: random.Random, mine: list[int], others: list[int]
) -> None:
    """Ask for one thing; the objects of the scene are left alone, or corrected by the truth."""
    what = chance.choice(('seed', 'seed', 'correct', 'remove', 'point', 'segment', 'bad', 'bad'))
    mask = np.zeros(SIZE, np.uint8)
    x, y = chance.randrange(4, SIZE[1] - 16), chance.randrange(96, SIZE[0] - 14)
    mask[y : y + 12, x : x + 12] = 1
    if what == 'seed' and len(mine) < 4:
        mine += [item.id for item in tracker.seed(mask, names=[f'wall {x}'])]
    elif what == 'correct' and mine:
        tracker.correct(chance.choice(mine), mask)
    elif what == 'remove' and mine:
        tracker.remove(mine.pop())
    elif what == 'point' and len(mine) < 4:
        mine.append(tracker.seed_prompt(points=[(x + 6, y + 6)]).id)
    elif what == 'segment':
        tracker.segment(box=(x, y, x + 12, y + 12))
    else:
        bad: list[Callable[[], object]] = [
            lambda: tracker.seed(mask[:50]),
            lambda: tracker.seed(mask * 0),
            lambda: tracker.seed(mask.astype(np.uint16) * 65535, names=['a', 'b']),
            lambda: tracker.correct(64999, mask),
            lambda: tracker.remove(0),
            lambda: tracker.seed_prompt(points=[(1e9, -1e9)]),
            lambda: tracker.seed_prompt(box=(float('nan'),) * 4),
            lambda: tracker.seed(np.arange(np.prod(SIZE)).reshape(SIZE).astype(np.uint16)),
            lambda: tracker.seed(mask, object_ids=[others[0] if others else 1, 7]),
        ]
        chance.choice(bad)()


def full_disk(world: World) -> None:
    """Record until the disk is full; what was recorded up to then must be a bag."""
    folder = world.out / f'recording_{world.counts.get("disks filled", 0)}'
    folder.mkdir()
    log = folder / 'recorder.log'
    from harness import environment

    with open(log, 'w') as file:
        code = subprocess.run(
            [sys.executable, str(Path(__file__).with_name('confined_recorder.py')), str(folder)]
            + ['4', '40', '/image', '/tracker/mask', '/tracker/tracks'],
            env=environment(DOMAIN),
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
        ).returncode
    world.count('disks filled')
    if code == 0:
        world.fault('the recorder says nothing of a full disk: exit code 0')
    try:
        from drift_ros.evaluation.bag_files import read_messages

        count = sum(1 for _ in read_messages(folder / 'bag', {'/image': None}))
        world.count('messages saved from full disks', count)
        if not count:
            world.fault('the bag of a full disk is empty')
    except Exception as error:
        world.fault(f'the bag of a full disk: {error}')


def squeeze(world: World) -> None:
    """Let the tracker have no more memory than it has, then take memory from all."""
    pid = world.usage.pid
    before = resource.prlimit(pid, resource.RLIMIT_DATA)
    data = _data(pid)
    for room in (16 << 20, 1 << 20):
        resource.prlimit(pid, resource.RLIMIT_DATA, (data + room, before[1]))
        time.sleep(3)
        resource.prlimit(pid, resource.RLIMIT_DATA, before)
        time.sleep(1)
        world.count('squeezes')
    # a quarter of what is free, and of that only so much
    size = min(psutil.virtual_memory().available // 4, 2 << 30)
    hog = subprocess.Popen(
        [sys.executable, '-c', f'import time; x = bytearray(b"x") * {size}; time.sleep(4)']
    )
    hog.wait()


def _data(pid: int) -> int:
    text = Path(f'/proc/{pid}/status').read_text()
    return 1024 * int(text.partition('VmData:')[2].split()[0])


def life(world: World) -> None:
    """Deactivate and activate; then begin anew, with everything loaded again."""
    for transition in ('deactivate', 'activate', 'deactivate', 'cleanup', 'configure', 'activate'):
        if not world.client.change(transition):
            world.fault(f'could not {transition}')
        world.count('transitions')
    world.frames()
    world.seed()


def busy(world: World) -> None:
    """Let others have the processors."""
    hogs = [
        subprocess.Popen([sys.executable, '-c', 'while True: pass'])
        for _ in range(os.cpu_count() or 1)
    ]
    time.sleep(4)
    for hog in hogs:
        hog.kill()
        hog.wait()


ATTACKS = (
    Attack('drop-outs', drop_outs, False),
    Attack('camera killed', kill_camera, False),
    Attack('tracker stopped', stop_tracker, False),
    Attack('sizes', change_size, True),
    Attack('time', jump_in_time, False),
    Attack('storm', storm, False),
    Attack('full disk', full_disk, False),
    Attack('memory', squeeze, True),
    Attack('processors', busy, False),
    Attack('life cycle', life, True),
)


def attack(world: World, what: Attack) -> None:
    """Do one attack; afterwards frames must be answered again, and what is there be found."""
    world.doing = what.name
    world.judge.excused = what.blind
    if not what.blind:
        world.judge.restart()
    try:
        what.do(world)
    except (ClientError, AssertionError, OSError) as error:
        world.fault(f'{type(error).__name__}: {error}')
    world.count(what.name)
    world.judge.restart()
    world.judge.excused = False
    world.frames()
