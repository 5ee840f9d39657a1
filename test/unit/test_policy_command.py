# SPDX-License-Identifier: Apache-2.0
"""``drift_ros policy``: made of the shipped policy, for any names that the node takes."""

from pathlib import Path

from click.testing import CliRunner
import pytest
from security_policy import read

from drift_ros.commands import policy as module
from drift_ros.commands.main import main

SHIPPED = Path(__file__).resolve().parents[2] / 'config' / 'sros2_policy.xml'
TEXT = SHIPPED.read_text()
CAMERAS = ('front', 'rear_left', 'Cam3')


def run(*arguments):
    return CliRunner().invoke(main, ['policy', *map(str, arguments)])


def permissions(tmp_path, *cameras):
    """Read what is printed for cameras."""
    done = run(*(f'--camera={name}' for name in cameras))
    assert done.exit_code == 0, done.output
    (tmp_path / 'policy.xml').write_text(done.stdout)
    return read(tmp_path / 'policy.xml')


def test_one_camera_has_what_the_shipped_policy_says(tmp_path):
    assert permissions(tmp_path) == read(SHIPPED)


def test_names_of_cameras_stand_before_what_each_has(tmp_path):
    one, several = read(SHIPPED), permissions(tmp_path, *CAMERAS)
    assert not [name for names in several.values() for name in names if '*' in name or '?' in name]
    common, below = {}, {}
    for right, names in several.items():
        assert len(names) == len(set(names))
        found = [
            # /front/image and /tracker/front/mask without the name
            {name.replace(f'/{camera}/', '/', 1) for name in names if f'/{camera}/' in name}
            for camera in CAMERAS
        ]
        assert all(item == found[0] for item in found), right
        below[right] = found[0]
        common[right] = {
            name for name in names if not any(f'/{camera}/' in name for camera in CAMERAS)
        }
    assert below['reply'] - set(one['reply']) == {'/tracker/find'}
    below['reply'] -= {'/tracker/find'}
    for right, names in one.items():
        assert common[right] | below[right] == set(names)
        assert not common[right] & below[right]
    assert '/image' in below['subscribe'] and below['execute'] == {'/tracker/optimize'}
    assert '/tracker/get_state' in common['reply'] and '/diagnostics' in common['publish']


def test_a_single_camera_with_a_name_can_be_asked_to_find(tmp_path):
    """As the node is: it has the service, and no other camera to look in."""
    assert '/tracker/front/find' in permissions(tmp_path, 'front')['reply']


def test_no_mark_is_left():
    assert '<?each' in TEXT and '<?named' in TEXT
    for text in (module.make_policy(TEXT), module.make_policy(TEXT, CAMERAS)):
        assert text.count('<?') == 1 and text.startswith('<?xml')


def test_it_is_written_to_a_file(tmp_path):
    path = tmp_path / 'made' / 'policy.xml'
    done = run('--camera', 'front', '--out', path)
    assert done.exit_code == 0 and str(path) in done.output
    assert path.read_text() == run('--camera', 'front').stdout
    done = run('--out', path / 'below')
    assert done.exit_code == 1 and 'cannot write' in done.output


@pytest.mark.parametrize(
    'names', [('front', 'front'), ('1st',), ('a/b',), ('two words',), ('a__b',), ('',), ('*',)]
)
def test_names_that_the_node_refuses(names, tmp_path):
    path = tmp_path / 'policy.xml'
    done = run(*(f'--camera={name}' for name in names), '--out', path)
    assert done.exit_code == 2 and not path.exists()
    said = ' '.join(done.output.split())
    assert "'--camera'" in said and f'cameras is {list(names)}' in said and 'each once' in said


@pytest.mark.parametrize(
    ('text', 'said'),
    [
        ('<policy', 'no XML'),
        ('<policy version="0.2.0"/>', 'each-camera'),
        (TEXT.replace('<?each-camera?>', ''), 'each-camera'),
        (TEXT.replace('>image<', '>/camera/image_raw<'), '/camera/image_raw is absolute'),
    ],
)
def test_a_policy_of_which_none_can_be_made(text, said, tmp_path, monkeypatch):
    """An installed one that was edited, for instance."""
    path = tmp_path / 'edited.xml'
    path.write_text(text)
    monkeypatch.setattr(module, 'shared_file', lambda *_, **__: path)
    done = run('--camera', 'front')
    assert done.exit_code == 1 and said in done.output and str(path) in done.output


def test_a_policy_in_the_working_folder_is_somebody_elses(tmp_path, monkeypatch):
    (tmp_path / 'config').mkdir()
    (tmp_path / 'config' / SHIPPED.name).write_text('<policy version="0.2.0"/>')
    monkeypatch.chdir(tmp_path)
    assert run().exit_code == 0
    elsewhere = tmp_path / 'site' / 'drift_ros' / 'ros' / 'processes.py'
    monkeypatch.setattr('drift_ros.ros.processes.__file__', str(elsewhere))
    monkeypatch.setattr('sys.prefix', str(tmp_path / 'nowhere'))
    monkeypatch.delenv('AMENT_PREFIX_PATH', raising=False)
    done = run()
    assert done.exit_code == 1 and 'is not here: source the workspace' in done.output


@pytest.mark.parametrize(
    'text',
    [
        '<policy version="0.1.0"/>',
        '<policies/>',
        '<policy version="0.2.0"><enclaves><enclave path="x"/></enclaves></policy>',
    ],
)
def test_what_is_no_policy_is_told(tmp_path, text):
    """By the reader that these tests, and those of the graph, judge with."""
    (tmp_path / 'policy.xml').write_text(text)
    with pytest.raises(ValueError):
        read(tmp_path / 'policy.xml')
