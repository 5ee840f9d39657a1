# SPDX-License-Identifier: Apache-2.0
"""
What is wrong with a bag, by looking at it before a library does.

The library that reads bags has few words for many faults, and takes a topic whose quality of
service was edited for one without messages. Each kind of fault is told here, with its own remedy.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePath
import struct
from typing import Any

from rosbags.rosbag2 import Reader
import yaml

_REINDEX = '"ros2 bag reindex" writes it anew'
_NEWEST = 9
_STORAGES = {'mcap': b'\x89MCAP0\r\n', 'sqlite3': b'SQLite format 3\0'}
_QOS = ('depth', 'deadline', 'lifespan', 'liveliness_lease_duration')
_TIMES = _QOS[1:]
_CONVENTIONS = 'avoid_ros_namespace_conventions'


def fault_of(path: Path) -> str:
    """
    Say what keeps a bag from being read, with the remedy; empty where nothing is seen.

    Parameters
    ----------
    path : Path
        Should be the folder of a bag.

    """
    if not path.exists():
        return f'{path} does not exist'
    if path.is_file():
        return _file(path)
    metadata = path / 'metadata.yaml'
    if not metadata.is_file():
        if list(path.glob('*.bag')):
            return f'{path} holds ROS 1 bags: convert them once (rosbags-convert --src FILE --dst)'
        return (
            f'{path} is not a rosbag2 folder: it has no metadata.yaml. If recording was '
            f'interrupted, "ros2 bag reindex" writes it'
        )
    try:
        content = yaml.safe_load(metadata.read_bytes())
        return _information(path, content['rosbag2_bagfile_information'])
    except (yaml.YAMLError, UnicodeError, RecursionError) as error:
        text = ' '.join(str(error).split())
        return f'{metadata} is no YAML, or cut short ({text}): mend it, or {_REINDEX}'
    except KeyError as error:
        return f'{metadata} lacks {error}, which every bag has: mend it, or {_REINDEX}'
    except (TypeError, AttributeError, ValueError) as error:
        return f'{metadata} is not as rosbag2 writes it ({error}): mend it, or {_REINDEX}'


def _file(path: Path) -> str:
    """Say what to give in the place of a file."""
    if path.suffix == '.bag':
        return (
            f'{path} is a bag of ROS 1: convert it once (rosbags-convert --src {path.name} --dst '
            f'{path.stem}) and give the folder'
        )
    if path.suffix not in ('.mcap', '.db3'):
        return f'{path} is a file, and a bag is a folder with metadata.yaml: give that'
    if (path.parent / 'metadata.yaml').is_file():
        return f'{path} is one file of a bag: give the folder, {path.parent}'
    return (
        f'{path} is a single file, and a bag is a folder with metadata.yaml: move it into a '
        'folder of its own, run "ros2 bag reindex" on that, and give it'
    ) + ((fault := _storage(path)) and f'. Moreover, {fault}')


def _information(path: Path, information: Mapping[str, Any]) -> str:
    """Check what metadata.yaml says, and the files it names."""
    metadata = path / 'metadata.yaml'
    version, storage = information['version'], information['storage_identifier']
    if int(version) > _NEWEST:
        return (
            f'{metadata} is of version {version}, and versions up to {_NEWEST} can be read: '
            'convert the bag with the ros2 bag of an earlier distribution'
        )
    if storage not in _STORAGES:
        return (
            f'{path} is stored as {storage!r}; {" and ".join(_STORAGES)} can be read: "ros2 bag '
            'convert" writes one of them'
        )
    mode = str(information.get('compression_mode') or 'none').lower()
    form = information.get('compression_format')
    if mode not in ('none', '') and form != 'zstd':
        return (
            f'{path} is compressed with {form!r}, and only zstd can be read: "ros2 bag convert" '
            'decompresses it'
        )
    topics = [item['topic_metadata'] for item in information['topics_with_message_count']]
    other = {
        str(topic['name']): str(topic['serialization_format'])
        for topic in topics
        if topic['serialization_format'] != 'cdr'
    }
    if other:
        listing = ', '.join(f'{name} ({kind})' for name, kind in other.items())
        return (
            f'{path} has topics whose messages are not serialised as ROS 2 does it (cdr): '
            f'{listing}. Record or convert it without them ("ros2 bag convert" with a list of '
            'topics)'
        )
    for topic in topics:
        if reason := _quality(topic.get('offered_qos_profiles')):
            return (
                f'{metadata}: the offered_qos_profiles of {topic["name"]} {reason}. Put back what '
                f'was recorded, or an empty list; or {_REINDEX}'
            )
    for name in information['relative_file_paths']:
        file = path / PurePath(str(name)).name
        if not file.is_file():
            return (
                f'{path} lacks {file.name}, which metadata.yaml names: copy the whole folder, or '
                f'{_REINDEX} for the files there are'
            )
        if mode != 'file' and (reason := _storage(file, storage)):
            return reason
    return ''


def _quality(profiles: Any) -> str:
    """Say what is wrong with a topic's recorded quality of service."""
    if isinstance(profiles, str):
        try:
            profiles = yaml.safe_load(profiles)
        except yaml.YAMLError:
            return 'are no YAML'
    if not profiles:
        return ''
    if not isinstance(profiles, list) or not all(isinstance(p, dict) for p in profiles):
        return 'are no list of profiles'
    for profile in profiles:
        missing = [name for name in (*_QOS, _CONVENTIONS) if name not in profile]
        if missing:
            return f'lack {", ".join(missing)}'
        for name in _TIMES:
            time = profile[name]
            if not isinstance(time, dict) or not {'sec', 'nsec'} <= set(time):
                return f'have a {name} without sec and nsec'
        for name in ('history', 'reliability', 'durability', 'liveliness'):
            if not isinstance(profile.get(name, ''), (int, str)):
                return f'have a {name} that is neither a name nor a number'
    return ''


def _storage(path: Path, storage: str = '') -> str:
    """Say what is wrong with the beginning of a file of messages."""
    storage = storage or {'.mcap': 'mcap', '.db3': 'sqlite3'}[path.suffix]
    with path.open('rb') as file:
        head = file.read(256)
    if not head:
        return f'{path} is empty: nothing was written to it (disk full?); record again'
    if head.startswith(b'version https://git-lfs'):
        return f'{path} is a pointer of git-lfs and not the file itself: run "git lfs pull"'
    if not head.startswith(_STORAGES[storage]):
        actual = next((kind for kind, mark in _STORAGES.items() if head.startswith(mark)), '')
        what = f'but {actual}' if actual else 'nor of another kind that is known: it is damaged'
        return f'{path} is no {storage} file, {what}; {_REINDEX} for a sound file'
    if storage != 'mcap' or len(head) < 21 or head[8] != 1:
        return ''
    (length,) = struct.unpack_from('<I', head, 17)
    profile = head[21 : 21 + min(length, 64)].decode(errors='replace')
    if profile == 'ros2':
        return ''
    kind = {'': 'has no profile', 'ros1': 'is of ROS 1 (profile ros1)'}.get(
        profile, f'has the profile {profile!r}'
    )
    remedy = (
        'convert it to ROS 2 with "rosbags-convert"'
        if profile == 'ros1'
        else 'write it with the profile "ros2" and messages in cdr, as ros2 bag does'
    )
    return f'{path} {kind}, so its messages need not be those of ROS 2: {remedy}'


def settle(reader: Reader) -> str:
    """
    Let an open bag give the messages of topics whose quality of service was edited.

    Returns
    -------
    str
        What metadata.yaml and the files contradict each other in, with the remedy; else empty.

    """
    storage: Any = reader.storage
    stored = [item for file in storage.storages for item in file.connections]
    for number, connection in enumerate(storage.connections):
        same = [item for item in stored if item.topic == connection.topic]
        if not same or not connection.msgcount:
            continue
        kinds = {item.msgtype for item in same}
        if connection.msgtype not in kinds:
            return (
                f'{reader.path}: metadata.yaml says that {connection.topic} is of type '
                f'{connection.msgtype}, its file says {", ".join(sorted(kinds))}; {_REINDEX}'
            )
        fitting = next(item for item in same if item.msgtype == connection.msgtype)
        if fitting.ext.serialization_format != 'cdr':
            return (
                f'{reader.path}: the messages of {connection.topic} are stored as '
                f'{fitting.ext.serialization_format}, and only cdr can be read; convert the bag '
                'without this topic'
            )
        storage.connections[number] = connection._replace(ext=fitting.ext)
    return ''
