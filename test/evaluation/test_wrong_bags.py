# SPDX-License-Identifier: Apache-2.0
"""Bags that cannot be read, each told by its own cause; what can be read all the same is."""

import shutil
import struct

from click.testing import CliRunner
import pytest
import yaml

from drift_ros.commands.evaluate import evaluate
from drift_ros.evaluation.bag_check import fault_of
from drift_ros.evaluation.bag_files import BagError, read_messages
from drift_ros.evaluation.bag_writing import bag_from_davis
from drift_ros.evaluation.bags import open_sequence
from drift_ros.evaluation.datasets import find_sequences

from .conftest import scene, write_sequence

PROFILE = {
    'history': 'keep_last',
    'depth': 5,
    'reliability': 'best_effort',
    'durability': 'volatile',
    'deadline': {'sec': 0, 'nsec': 0},
    'lifespan': {'sec': 0, 'nsec': 0},
    'liveliness': 'automatic',
    'liveliness_lease_duration': {'sec': 0, 'nsec': 0},
    'avoid_ros_namespace_conventions': False,
}


@pytest.fixture(scope='module', params=['mcap', 'sqlite3'])
def whole(request, tmp_path_factory):
    root = tmp_path_factory.mktemp('davis')
    write_sequence(root, 'one', *scene(1))
    out = tmp_path_factory.mktemp('bags') / 'bag'
    return bag_from_davis(find_sequences(root)[0], out, storage=request.param)


@pytest.fixture
def bag(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / 'bag')


def edit(bag, change):
    """Change what metadata.yaml says."""
    path = bag / 'metadata.yaml'
    content = yaml.safe_load(path.read_text())
    change(content['rosbag2_bagfile_information'])
    path.write_text(yaml.safe_dump(content))


def topics(information):
    return [item['topic_metadata'] for item in information['topics_with_message_count']]


def storage_file(bag):
    (file,) = [path for path in bag.iterdir() if path.suffix in ('.mcap', '.db3')]
    return file


def refused(path, words):
    with pytest.raises(BagError, match=f'(?s){words}'):
        for _ in open_sequence(path):
            pass


@pytest.mark.parametrize(
    'profiles',
    [
        [],
        [PROFILE],
        [{**PROFILE, 'depth': 1000, 'reliability': 1}],
        [PROFILE] * 3,
        [{**PROFILE, 'reliability': 'sometimes'}],
        yaml.safe_dump([PROFILE]),
    ],
)
def test_quality_of_service_that_was_edited_changes_nothing(whole, bag, profiles):
    """It says how to play a bag, not what is in it."""

    def change(information):
        for topic in topics(information):
            topic['offered_qos_profiles'] = profiles

    edit(bag, change)
    assert open_sequence(bag).stamps == open_sequence(whole).stamps


@pytest.mark.parametrize(
    ('profiles', 'words'),
    [
        ('[{', 'offered_qos_profiles of /.* are no YAML'),
        (['best_effort'], 'no list of profiles'),
        ({'depth': 1}, 'no list of profiles'),
        (3, 'no list of profiles'),
        ([{'depth': 1}], 'lack deadline, lifespan'),
        ([{**PROFILE, 'deadline': 'never'}], 'have a deadline without sec'),
        ([{**PROFILE, 'history': ['keep_all']}], 'have a history that is neither'),
    ],
)
def test_quality_of_service_that_is_none(bag, profiles, words):
    edit(bag, lambda i: topics(i)[0].update(offered_qos_profiles=profiles))
    refused(bag, f'{words}.*reindex')


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (
            lambda i: topics(i)[0].update(serialization_format='json'),
            r'\(json\).*ros2 bag convert',
        ),
        (
            lambda i: topics(i)[1].update(serialization_format='ros1'),
            r'\(ros1\).*ros2 bag convert',
        ),
        (lambda i: i.update(version=10), 'of version 10.*convert'),
        (lambda i: i.update(storage_identifier='leveldb'), 'leveldb.*mcap and sqlite3'),
        (
            lambda i: i.update(compression_mode='FILE', compression_format='lz4'),
            "compressed with 'lz4'.*zstd",
        ),
        (lambda i: i['relative_file_paths'].append('more_1.mcap'), 'lacks more_1.mcap'),
        (lambda i: i.pop('storage_identifier'), "lacks 'storage_identifier'.*reindex"),
        (lambda i: i.pop('topics_with_message_count'), "lacks 'topics_with_message_count'"),
        (lambda i: i.update(topics_with_message_count=3), 'not as rosbag2 writes it'),
        (lambda i: i.update(version='nine'), 'not as rosbag2 writes it'),
        (lambda i: topics(i)[0].update(type='std_msgs/msg/String'), 'its file says sensor_msgs'),
    ],
)
def test_metadata_that_was_edited(bag, change, words):
    edit(bag, change)
    refused(bag, words)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'', 'not as rosbag2 writes it'),
        (b'[]', 'not as rosbag2 writes it'),
        (b'a: [1', 'no YAML, or cut short'),
        (b'\xff\xfe\x00', 'no YAML'),
        (b'rosbag2_bagfile_information: {}', "lacks 'version'"),
        (b'!!python/object/apply:os.system ["false"]', 'no YAML'),
    ],
)
def test_metadata_that_is_none(bag, content, words):
    (bag / 'metadata.yaml').write_bytes(content)
    refused(bag, words)


@pytest.mark.parametrize(
    ('profile', 'words'),
    [('ros1', 'ROS 1.*rosbags-convert'), ('', 'no profile.*"ros2"'), ('px4', "profile 'px4'")],
)
def test_mcap_of_another_profile(bag, profile, words):
    file = storage_file(bag)
    if file.suffix != '.mcap':
        pytest.skip('of mcap')
    data = file.read_bytes()
    (length,) = struct.unpack_from('<I', data, 25)
    library = data[29 : 29 + length].ljust(length + 4 - len(profile), b' ')
    strings = (profile.encode(), library)
    changed = b''.join(struct.pack('<I', len(text)) + text for text in strings)
    file.write_bytes(data[:17] + changed + data[29 + length :])
    refused(bag, words)


@pytest.mark.parametrize(
    ('content', 'words'),
    [
        (b'', 'is empty'),
        (b'version https://git-lfs.github.com/spec/v1\n', 'git lfs pull'),
        (bytes(100), 'is no .* file.*damaged'),
        (b'SQLite format 3\0' + bytes(99), 'no mcap file, but sqlite3|damaged or truncated'),
        (b'\x89MCAP0\r\n' + bytes(99), 'no sqlite3 file, but mcap|damaged or truncated'),
    ],
)
def test_files_of_messages_that_are_none(bag, content, words):
    storage_file(bag).write_bytes(content)
    refused(bag, words)


def test_a_file_in_the_place_of_a_folder(bag, tmp_path):
    """On the command line, as people type it."""
    file = storage_file(bag)

    def said(path):
        done = CliRunner().invoke(evaluate, ['bag', str(path), '--out', str(tmp_path / 'out')])
        assert done.exit_code and 'Traceback' not in done.output
        return ' '.join(done.output.split())

    assert f'give the folder, {bag}' in said(file)
    alone = shutil.copy(file, tmp_path / file.name)
    assert 'ros2 bag reindex' in said(alone)
    other = tmp_path / 'old.bag'
    other.write_bytes(b'#ROSBAG V2.0\n')
    assert 'rosbags-convert' in said(other)
    text = tmp_path / 'text.txt'
    text.write_text('x')
    assert 'a bag is a folder' in said(text)


def test_a_sound_bag_has_no_fault(whole):
    assert fault_of(whole) == ''
    assert sum(1 for _ in read_messages(whole, {'/camera/image_raw': None}))
