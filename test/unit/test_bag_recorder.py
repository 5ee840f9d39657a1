# SPDX-License-Identifier: Apache-2.0
"""A recording whose disk is full is closed where it can be, and says what is lost."""

import errno
import importlib.util
import os
from pathlib import Path
import re
import resource
import subprocess
import sys

import pytest
from rosbags.rosbag2 import Reader
from rosbags.typesys import get_typestore, Stores

from drift_ros.evaluation.bag_files import BagError, open_bag
from drift_ros.ros import bag_recorder
from drift_ros.ros.bag_recorder import BagRecorder

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec('std_msgs') is None, reason='the definitions of messages are needed'
)
STORE = get_typestore(Stores.ROS2_KILTED)
KIND = 'std_msgs/msg/String'
MESSAGES, SIZE = 40, 200_000


def message(number):
    return bytes(STORE.serialize_cdr(STORE.types[KIND](f'{number:05d}' + 'x' * SIZE), KIND))


def record(path):
    """Record 40 messages of 0.2 MB on each of two topics."""
    recorder = BagRecorder(path)
    for topic in ('/a', '/b'):
        recorder.add_topic(topic, KIND)
    taken = [recorder.write('/b' if n % 2 else '/a', n, message(n)) for n in range(MESSAGES)]
    recorder.close()
    return recorder, taken


def read(path):
    with Reader(path) as reader:
        assert sum(item.msgcount for item in reader.connections) == reader.message_count
        return [
            (item.topic, int(STORE.deserialize_cdr(data, KIND).data[:5]))
            for item, _, data in reader.messages()
        ]


def test_a_recording_that_goes_well(tmp_path):
    recorder, taken = record(tmp_path / 'bag')
    assert not recorder.failure and all(taken)
    assert read(tmp_path / 'bag') == [('/b' if n % 2 else '/a', n) for n in range(MESSAGES)]
    assert sorted(item.name for item in (tmp_path / 'bag').iterdir()) == [
        'bag.mcap',
        'metadata.yaml',
    ]
    assert not recorder.write('/a', 0, message(0)), 'it was closed'


class Disk:
    """A disk of so many bytes, on which writes are cut short before they fail."""

    def __init__(self, room, number):
        self.room, self.number = room, number

    def write(self, descriptor, data):
        end = os.lseek(descriptor, 0, os.SEEK_CUR)
        if end >= self.room:
            raise OSError(self.number, os.strerror(self.number))
        done = os.pwrite(descriptor, data[: self.room - end], end)
        os.lseek(descriptor, end + done, os.SEEK_SET)
        return done


@pytest.mark.parametrize('room', [1, 20_000, 1_100_000, 1_200_000, 3_000_000, 7_999_000])
@pytest.mark.parametrize('number', [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO])
def test_whatever_room_there_is(tmp_path, monkeypatch, room, number):
    """What is in the bag is its beginning, whole; the rest is counted."""
    disk = Disk(room, number)
    monkeypatch.setattr(bag_recorder.os, 'write', disk.write)
    recorder, _ = record(tmp_path / 'bag')
    assert os.strerror(number) in recorder.failure
    lost = dict(re.findall(r'(/\w): \d+ recorded, (\d+) lost', recorder.losses()))
    found = []
    if 'is closed' in recorder.failure:
        found = read(tmp_path / 'bag')
        assert (tmp_path / 'bag' / 'bag.mcap').stat().st_size <= room
    else:
        assert room < 50_000 and 'mcap recover' in recorder.failure
        with pytest.raises(BagError, match='mcap recover'), open_bag(tmp_path / 'bag'):
            pass
    assert found == [('/b' if n % 2 else '/a', n) for n in range(len(found))]
    assert sum(map(int, lost.values())) == MESSAGES - len(found) > 0
    assert len(found) * SIZE >= room - 2_500_000, 'no more is lost than has to be'


def test_where_no_bag_can_be(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ValueError, match='cannot be made'):
        BagRecorder(tmp_path / 'file' / 'bag')
    with pytest.raises(ValueError, match='exists already'):
        BagRecorder(tmp_path / 'file')


RECORDING = """
import sys
from pathlib import Path
sys.path[:0] = [sys.argv[1], sys.argv[2]]
from test_bag_recorder import record
recorder, taken = record(Path(sys.argv[3]))
print(recorder.failure, recorder.losses())
"""


def test_a_limit_of_the_system(tmp_path):
    """Files of 3 MB at most, which the system enforces."""
    here = Path(__file__).resolve()
    found = subprocess.run(
        [sys.executable, '-c', RECORDING, here.parent, here.parents[2], tmp_path / 'bag'],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000)),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert 'File too large' in found.stdout and 'is closed' in found.stdout, found.stderr
    assert len(read(tmp_path / 'bag')) >= 9


def test_a_bag_without_metadata(tmp_path):
    """It is read from its file of messages; one that has no end is told what to do about it."""
    record(tmp_path / 'bag')
    (tmp_path / 'bag' / 'metadata.yaml').unlink()
    with open_bag(tmp_path / 'bag') as reader:
        assert reader.message_count == MESSAGES
    file = tmp_path / 'bag' / 'bag.mcap'
    file.write_bytes(file.read_bytes()[:3_000_000])
    with pytest.raises(BagError, match='interrupted.*mcap recover'), open_bag(tmp_path / 'bag'):
        pass
    file.unlink()
    with pytest.raises(BagError, match='no metadata.yaml.*reindex'), open_bag(tmp_path / 'bag'):
        pass
