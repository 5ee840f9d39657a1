# SPDX-License-Identifier: Apache-2.0
"""
Anything at all in the place of messages, masks, requests, bags and folders.

What is made by chance is either used or refused by an error of this package; nothing else may be
raised, and what was there before goes on. A few hundred cases here, 10^5 with the profile "soak"
(``make soak``). What has been found once stays as an ``example``.
"""

import array
from contextlib import contextmanager
import json
import shutil
from types import SimpleNamespace

import cv2
from hypothesis import example, given, HealthCheck, note, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
import numpy as np
import pytest
from scenes import ColourFeatures, GREEN, RED, scene, square_mask
from tiny_models import save_checkpoint

from drift_ros import Tracker, TrackerConfig
from drift_ros.diffusion.checkpoint_folder import check_folder
from drift_ros.engine.config import OPTIONS
from drift_ros.engine.errors import CheckpointError, DriftRosError
from drift_ros.evaluation.bag_check import fault_of
from drift_ros.evaluation.bag_files import BagError
from drift_ros.evaluation.bag_writing import bag_from_davis
from drift_ros.evaluation.bags import open_sequence
from drift_ros.evaluation.datasets import DatasetError, find_sequences
from drift_ros.media.labels import LabelError, read_labels, write_labels
from drift_ros.nodes.tracker.frames import FrameBuffer, ReceivedImage
from drift_ros.ros import conversions
from drift_ros.ros.conversions import ConversionError
from drift_ros.weights import read_settings, tensors

FRAME = scene((16, 16, 24, RED), (80, 40, 30, GREEN))
CUP = square_mask((16, 16, 24))
ENCODINGS = st.one_of(
    st.sampled_from(
        'rgb8 rgba8 bgr8 bgra8 mono8 mono16 8UC1 8UC3 8UC4 16UC1 16SC1 32SC1 32FC1 64FC1 rgb16 '
        'bgr16 bayer_rggb8 bayer_gbrg16 yuv422 yuv422_yuy2 uyvy yuyv nv12 nv21 nv24 MONO8'.split()
    ),
    st.text(max_size=12),
)


def cases(share):
    """Take a share of the profile's number of examples."""
    return settings(
        max_examples=max(int(share * settings().max_examples), 1),
        suppress_health_check=list(HealthCheck),
    )


@contextmanager
def only(*errors):
    """Whatever is raised is one of these errors, and says something."""
    try:
        yield
    except errors as error:
        note(str(error))
        assert len(str(error)) > 10, 'an error without words'


@st.composite
def messages(draw):
    """Make an image message, sound or not: as from a driver whose author was in a hurry."""
    encoding = draw(ENCODINGS)
    height, width = draw(st.integers(0, 20)), draw(st.integers(0, 20))
    row = width * draw(st.sampled_from([1, 1, 2, 3, 3, 4, 6, 8]))
    step = draw(st.one_of(st.just(row), st.integers(0, 200), st.integers(0, 2**32 - 1)))
    size = draw(st.one_of(st.just(height * min(step, 300)), st.integers(0, 4000)))
    if draw(st.integers(0, 9)) == 0:
        height, width = draw(st.integers(0, 2**32 - 1)), draw(st.integers(0, 2**32 - 1))
    fill = draw(st.integers(0, 255))
    return SimpleNamespace(
        header=None,
        height=height,
        width=width,
        encoding=encoding,
        is_bigendian=draw(st.integers(0, 255)),
        step=step,
        data=array.array('B', np.random.default_rng(fill).bytes(size) if fill else bytes(size)),
    )


@cases(2)
@given(messages())
def test_image_messages(message):
    with only(ConversionError):
        frame = conversions.image_to_rgb(message)
        assert frame.shape == (message.height, message.width, 3) and frame.dtype == np.uint8
    with only(ConversionError):
        labels = conversions.image_to_labels(message)
        assert labels.shape == (message.height, message.width) and labels.dtype.kind in 'iu'


def _pictures():
    made = [cv2.imencode(kind, FRAME[:24, :32])[1].tobytes() for kind in ('.png', '.jpg', '.bmp')]
    made.append(cv2.imencode('.png', FRAME[:9, :9, 0].astype(np.uint16) * 200)[1].tobytes())
    return made


@st.composite
def damaged(draw, sound):
    """Cut, lengthen, change or replace the bytes of something sound."""
    data = bytearray(draw(st.sampled_from(sound)))
    for _ in range(draw(st.integers(0, 3))):
        where = draw(st.integers(0, max(len(data) - 1, 0)))
        kind = draw(st.sampled_from(['change', 'cut', 'insert', 'remove', 'zero']))
        if kind == 'change':
            data[where : where + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == 'cut':
            del data[where:]
        elif kind == 'insert':
            data[where:where] = draw(st.binary(max_size=20))
        elif kind == 'remove':
            del data[where : where + draw(st.integers(1, 50))]
        else:
            data[where : where + 8] = bytes(8)
    return bytes(data)


@cases(1)
@given(
    st.one_of(damaged(_pictures()), st.binary(max_size=200)),
    st.one_of(
        st.sampled_from(['', 'jpeg', 'png', 'rgb8; jpeg compressed bgr8', 'bgr8; png', 'h264']),
        st.text(max_size=20),
    ),
)
def test_compressed_messages(data, form):
    message = SimpleNamespace(header=None, format=form, data=array.array('B', data))
    with only(ConversionError):
        frame = conversions.to_rgb(message)
        assert frame.ndim == 3 and frame.shape[2] == 3 and frame.dtype == np.uint8


MASKS = st.one_of(
    hnp.arrays(
        st.sampled_from([np.uint8, np.uint16, np.int32, np.int64, np.bool_]),
        st.just((96, 128)),
        elements=st.integers(0, 1),
        fill=st.just(0),
    ),
    hnp.arrays(
        hnp.scalar_dtypes(),
        hnp.array_shapes(min_dims=0, max_dims=3, max_side=10),
    ),
    st.builds(
        lambda x, y, side, value, kind: (square_mask((x, y, side)) * np.int64(value)).astype(kind),
        st.integers(0, 120),
        st.integers(0, 90),
        st.integers(1, 96),
        st.integers(-(2**40), 2**40),
        st.sampled_from([np.uint8, np.uint16, np.int32, np.int64, np.uint64, np.float64]),
    ),
)
NUMBERS = st.one_of(st.integers(0, 4), st.integers(-(2**70), 2**70), st.floats(), st.none())


@pytest.fixture(scope='module')
def tracker():
    """A tracker that follows one object; what is asked of it must leave that one alone."""
    tracker = Tracker(
        config=TrackerConfig.of({'refinement.method': 'none'}), features=ColourFeatures()
    )
    tracker.seed(FRAME, CUP)
    return tracker


@cases(0.6)
@given(
    MASKS,
    st.one_of(st.just([]), st.lists(st.one_of(st.text(max_size=5), st.none()), max_size=3)),
    st.one_of(st.none(), st.dictionaries(NUMBERS, NUMBERS, max_size=2)),
)
@example(square_mask((40, 40, 20)).astype(np.int64) * (2**31 - 1), [], None)
def test_seeds(tracker, mask, names, numbers):
    before = [item.id for item in tracker.objects]
    made = []
    with only(DriftRosError):
        made = tracker.seed(FRAME, mask, names, object_ids=numbers)
    assert [item.id for item in tracker.objects] == sorted({*before, *made})
    for identity in set(made) - set(before):
        tracker.remove(identity)
    assert before == [item.id for item in tracker.objects]


@cases(0.3)
@given(
    st.one_of(
        hnp.arrays(hnp.scalar_dtypes(), hnp.array_shapes(min_dims=0, max_dims=4, max_side=6)),
        st.builds(
            lambda shape, kind: np.zeros(shape, kind),
            st.sampled_from([(96, 128, 3), (96, 128), (96, 128, 4), (16, 2000, 3), (0, 5, 3)]),
            st.sampled_from([np.uint8, np.float32, np.uint16, np.complex64]),
        ),
        st.none(),
        st.text(max_size=3),
        st.lists(st.integers(), max_size=3),
    )
)
def test_frames(tracker, frame):
    with only(DriftRosError):
        tracker.step(frame)
    assert [item.id for item in tracker.objects]


@cases(1)
@given(
    st.dictionaries(
        st.one_of(st.sampled_from(sorted(OPTIONS)), st.text(max_size=12)),
        st.one_of(
            st.integers(),
            st.floats(),
            st.text(max_size=8),
            st.booleans(),
            st.none(),
            st.lists(st.text(max_size=3), max_size=2),
        ),
        max_size=3,
    )
)
def test_options(options):
    with only(ValueError):
        config = TrackerConfig.of(options)
        assert isinstance(config, TrackerConfig)


@cases(1)
@given(
    st.lists(st.integers(0, 2**63 - 1), max_size=30),
    st.integers(1, 5),
    st.lists(st.integers(0, 2**63 - 1), max_size=5),
)
def test_stamps(stamps, most, wanted):
    buffer = FrameBuffer(most, 10)
    for number, stamp in enumerate(stamps):
        buffer.add(ReceivedImage(number, stamp, None, 3, 0.0))
        assert 1 <= len(buffer) <= most
        assert buffer.find(stamp).sequence == number
    for stamp in wanted:
        with only(LookupError):
            assert buffer.find(stamp).stamp == stamp or not stamp


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.fixture(scope='module')
def place(tmp_path_factory):
    return tmp_path_factory.mktemp('attacks')


@cases(1)
@given(st.one_of(JSON.map(lambda value: json.dumps(value).encode()), st.binary(max_size=60)))
def test_files_of_settings_and_weights(place, content):
    path = place / 'file'
    path.write_bytes(content)
    with only(CheckpointError):
        assert isinstance(read_settings(path), dict)
    with only(CheckpointError):
        tensors(path)


@pytest.fixture(scope='module')
def checkpoint(place):
    return save_checkpoint(place / 'checkpoint', 'sd1')


@cases(1)
@given(st.data())
def test_folders_of_checkpoints(checkpoint, data):
    """One file is damaged; the loaders' turn comes only when all files are whole."""
    files = sorted(item for item in checkpoint.rglob('*') if item.is_file())
    file = data.draw(st.sampled_from(files))
    sound = file.read_bytes()
    try:
        file.write_bytes(data.draw(damaged([sound])))
        with only(CheckpointError):
            check_folder(checkpoint)
    finally:
        file.write_bytes(sound)


class Handlers:
    """Stands in for the node: keeps what the services are handled by."""

    def __init__(self):
        self.services, self.said = {}, []

    def create_service(self, kind, name, handler, callback_group=None):
        self.services[name.removeprefix('~/')] = (kind, handler)

    def create_subscription(self, kind, name, handler, *_, callback_group=None):
        self.click = (kind, handler)

    def get_logger(self):
        return SimpleNamespace(warning=self.said.append, info=self.said.append)


@pytest.fixture(scope='module')
def services():
    """The services of a node whose tracker needs no weights, with its worker."""
    pytest.importorskip('drift_ros_msgs')
    from drift_ros.nodes.tracker.images import Images
    from drift_ros.nodes.tracker.services import Services
    from drift_ros.nodes.tracker.worker import Worker

    config = TrackerConfig.of(
        {
            'refinement.method': 'none',
            'refinement.prompts': 'grabcut',
            'states.max_objects': 3,
        }
    )
    errors = []
    tracker = Tracker(config=config, features=ColourFeatures())
    worker = Worker(tracker, None, None, errors.append)
    pictures = Images(lambda *_: None, tuple)
    pictures.configure(2, 10**9, None)
    message = conversions.rgb_to_image(FRAME, _header(5))
    pictures.buffer.add(ReceivedImage(0, 5, message, FRAME.size, 0.0))
    node = Handlers()
    outputs = SimpleNamespace(names=lambda _: None, seeds=lambda *_: None)
    Services(node, lambda: worker, pictures, outputs, errors.append, None)
    yield SimpleNamespace(node=node, worker=worker, errors=errors)
    worker.close()
    assert worker.join(60)


def _header(nanoseconds):
    from std_msgs.msg import Header

    from drift_ros.ros import stamp

    return Header(stamp=stamp.message(nanoseconds))


@st.composite
def images(draw):
    """Make an image message of ROS, sound or not."""
    from sensor_msgs.msg import Image

    kind = draw(st.sampled_from(['none', 'labels', 'picture', 'any']))
    header = _header(draw(st.sampled_from([0, 5, 7])))
    if kind == 'labels':
        values = square_mask(*draw(st.lists(st.sampled_from([(16, 16, 24), (80, 40, 30)]))))
        return conversions.labels_to_image(values, header)
    if kind == 'picture':
        return conversions.rgb_to_image(FRAME[:, : draw(st.sampled_from([128, 128, 40]))], header)
    if kind == 'none':
        return Image()
    made = draw(messages())
    names = ('height', 'width', 'encoding', 'is_bigendian', 'step', 'data')
    return Image(**{name: getattr(made, name) for name in names})


COORDINATE = st.one_of(st.integers(-5, 130).map(float), st.floats(width=32))
TEXT = st.text(st.characters(codec='utf-8', exclude_characters='\0'), max_size=6)
ID = st.one_of(st.integers(0, 4), st.integers(0, 2**32 - 1))


@st.composite
def requests(draw, name, kind):
    """Make a request to a service."""
    request = kind.Request()
    if name == 'seed_mask':
        request.mask, request.image = draw(images()), draw(images())
        request.names = draw(st.lists(TEXT, max_size=3))
        request.object_ids = draw(st.lists(ID, max_size=3))
    elif name == 'remove_object':
        request.object_id = draw(ID)
    elif name in ('seed_prompt', 'segment'):
        from drift_ros_msgs.msg import Prompt, PromptPoint

        request.image = draw(images())
        request.stamp = _header(draw(st.sampled_from([0, 5, 7]))).stamp
        point = st.builds(PromptPoint, x=COORDINATE, y=COORDINATE, positive=st.booleans())
        prompt = st.builds(
            Prompt,
            box=st.one_of(st.just([]), st.lists(COORDINATE, max_size=5)),
            points=st.lists(point, max_size=3),
            name=TEXT,
            object_id=ID,
        )
        request.prompts = draw(st.lists(prompt, max_size=3))
    return request


@cases(1)
@given(st.data())
def test_requests(services, data):
    """Whatever is asked, there is an answer, reasons where it is no, and the worker goes on."""
    name = data.draw(st.sampled_from(sorted(services.node.services)))
    kind, handler = services.node.services[name]
    answer = handler(data.draw(requests(name, kind)), kind.Response())
    services.worker.submit(lambda tracker: tracker.step(FRAME)).result(60)
    assert answer.success or len(answer.message) > 10
    # what is carried out later may be refused then, but by an error of this package
    left, services.errors[:] = list(services.errors), []
    assert all(isinstance(item, DriftRosError) for item in left), left


def _write_sequence(root):
    for folder in ('JPEGImages', 'Annotations'):
        (root / folder / 'one').mkdir(parents=True)
    for index in range(4):
        frame = scene((8 + 2 * index, 10, 16, RED), size=(48, 64))
        cv2.imwrite(str(root / 'JPEGImages' / 'one' / f'{index:05d}.jpg'), frame)
        labels = square_mask((8 + 2 * index, 10, 16), size=(48, 64))
        write_labels(root / 'Annotations' / 'one' / f'{index:05d}.png', labels)
    return root


@pytest.fixture(scope='module')
def davis(place):
    return _write_sequence(place / 'davis')


@cases(0.5)
@given(st.data())
def test_folders_of_sequences(davis, data):
    """One file is damaged, another name, or in the way."""
    files = sorted(item for item in davis.rglob('*') if item.is_file())
    file = data.draw(st.sampled_from(files))
    sound = file.read_bytes()
    kind = data.draw(st.sampled_from(['damage', 'more', 'remove', 'folder']))
    extra = file.parent / data.draw(
        st.sampled_from(['.hidden', 'Thumbs.db', 'note.txt', '00002.PNG', 'x.png', '-1.jpg'])
    )
    try:
        if kind == 'damage':
            file.write_bytes(data.draw(damaged([sound])))
        elif kind == 'more':
            extra.write_bytes(data.draw(st.binary(max_size=20)))
        elif kind == 'remove':
            file.unlink()
        else:
            extra.mkdir()
        with only(DatasetError, LabelError, ValueError, OSError):
            for sequence in find_sequences(davis):
                for frame in sequence:
                    assert frame.image.shape == (48, 64, 3)
    finally:
        if extra.is_dir():
            extra.rmdir()
        extra.unlink(missing_ok=True)
        file.write_bytes(sound)


@cases(0.5)
@given(st.data())
def test_label_images(davis, place, data):
    sound = (davis / 'Annotations' / 'one' / '00000.png').read_bytes()
    path = place / 'label.png'
    path.write_bytes(data.draw(damaged([sound])))
    with only(LabelError):
        assert read_labels(path).ndim == 2


@pytest.fixture(scope='module', params=['mcap', 'sqlite3'])
def bag(request, davis, place):
    path = place / request.param
    return bag_from_davis(find_sequences(davis)[0], path, storage=request.param)


@cases(0.5)
@given(st.data())
def test_bags(bag, data):
    """A byte of the file or of its description is not what it was, or some are missing."""
    file = data.draw(st.sampled_from(sorted(bag.iterdir())))
    copy = bag.parent / 'damaged'
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree(bag, copy)
    (copy / file.name).write_bytes(data.draw(damaged([file.read_bytes()])))
    with only(BagError):
        fault_of(copy)
        for frame in open_sequence(copy):
            assert frame.image.ndim == 3
