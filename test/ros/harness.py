# SPDX-License-Identifier: Apache-2.0
"""Node processes and a client of theirs, in a domain of their own on this machine."""

from collections import defaultdict
import contextlib
import os
from pathlib import Path
import signal
import subprocess
import sys
import time

from diagnostic_msgs.msg import DiagnosticArray
from drift_ros_msgs.msg import TrackArray
from drift_ros_msgs.srv import RemoveObject, SeedMask
import numpy as np
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.parameter import Parameter, parameter_value_to_python
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from vision_msgs.msg import Detection2DArray, LabelInfo

from drift_ros import TrackerClient
from drift_ros.engine.config import OPTIONS
from drift_ros.ros import conversions, qos, stamp

ROOT = Path(__file__).resolve().parents[2]
# Discovery is one-sided for a moment: what is sent to a peer that has not seen the sender yet
# (best-effort images, service answers) is dropped by the middleware.
SETTLE = 0.5
TIMEOUT = 300.0  # only ever reached when something is broken
# the last part of an option's name is enough to name it
NAMES = {name.rpartition('.')[2]: name for name in OPTIONS}
TYPES = {
    'mask': Image,
    'overlay': Image,
    'detections': Detection2DArray,
    'tracks': TrackArray,
    'label_info': LabelInfo,
    'seeds': Image,
    'diagnostics': DiagnosticArray,
}


def wait_for(condition, what='condition', timeout=TIMEOUT):
    """Wait until a condition gives something true, and return it."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        value = condition()
        if value:
            return value
        time.sleep(0.005)
    raise AssertionError(f'{what} did not come about within {timeout} s')


def environment(domain):
    """Give the environment of a process that takes part in a test."""
    paths = [str(ROOT), *filter(None, [os.environ.get('PYTHONPATH')])]
    return {
        **os.environ,
        'ROS_DOMAIN_ID': str(domain),
        'PYTHONPATH': os.pathsep.join(paths),
        'OMP_NUM_THREADS': '1',
        'PYTHONUNBUFFERED': '1',
    }


class NodeProcess:
    """
    A node as a process; its output goes to a file.

    ``module`` is one of this package's nodes, or a program of its own (a path).
    """

    def __init__(self, module, domain, log, arguments=(), parameters=None):
        program = [module] if isinstance(module, Path) else ['-m', f'drift_ros.nodes.{module}']
        command = [sys.executable, *map(str, program), *arguments, '--ros-args']
        for name, value in (parameters or {}).items():
            if isinstance(value, bool):
                value = str(value).lower()
            command += ['-p', f'{name}:={value}']
        self.log = Path(log)
        with open(self.log, 'w') as file:
            self.process = subprocess.Popen(
                command,
                env=environment(domain),
                stdout=file,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
            )

    @property
    def output(self):
        return self.log.read_text()

    def interrupt(self):
        """Send SIGINT; return exit code and seconds until the end."""
        start = time.monotonic()
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait(TIMEOUT)
        return code, time.monotonic() - start

    def close(self):
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


@contextlib.contextmanager
def tracker_process(domain, log, program='tracker', **parameters):
    """Run a tracker node; at the end it must not have written a traceback."""
    node = NodeProcess(program, domain, log, parameters=parameters)
    yield node
    node.close()
    assert 'Traceback' not in node.output, node.output


class Client(TrackerClient):
    """
    Publishes images to a tracker node and keeps what it publishes.

    The ``ask`` methods give the service's own answer, refusals included.
    """

    def __init__(self, domain, tracker='tracker', name='test_client'):
        super().__init__(f'/{tracker}', name=name, domain_id=domain, timeout=TIMEOUT)
        self.messages = {}
        self.subscriptions = {}
        self.publishers = {}
        self.stamp = 1000 * 10**9

    # -- topics

    def listen(self, *names):
        """Subscribe to outputs of the tracker and wait until it knows."""
        for name in names:
            topic = '/diagnostics' if name == 'diagnostics' else f'{self.tracker}/{name}'
            if name in self.subscriptions:
                self.forget(name)
            kept = self.messages[name] = []
            profile = qos.LATCHED if name == 'label_info' else qos.LISTENING
            self.subscriptions[name] = self.node.create_subscription(
                TYPES[name], topic, kept.append, profile
            )
            wait_for(
                lambda topic=topic: self.node.count_publishers(topic), f'a publisher on {topic}'
            )
            time.sleep(SETTLE)

    def forget(self, name):
        self.node.destroy_subscription(self.subscriptions.pop(name))

    def send(self, message, topic='/image'):
        """Publish an image message once a subscriber is there."""
        new = topic not in self.publishers
        if new:
            self.publishers[topic] = self.node.create_publisher(
                type(message), topic, qos.LISTENING
            )
        publisher = self.publishers[topic]
        wait_for(publisher.get_subscription_count, f'a subscriber on {topic}')
        if new:
            time.sleep(SETTLE)
        publisher.publish(message)

    def header(self, when=None, frame_id='test_camera'):
        """Make a header; without a stamp, 0.1 s after the last."""
        if when is None:
            self.stamp += 10**8
            when = self.stamp
        return Header(stamp=stamp.message(when), frame_id=frame_id)

    def publish(self, frame, when=None):
        """Publish an RGB frame; return its header."""
        header = self.header(when)
        self.send(conversions.rgb_to_image(frame, header))
        return header

    def result(self, header, name='mask', timeout=TIMEOUT):
        """Wait for an output with the stamp of a header (or of another output)."""
        header = getattr(header, 'header', header)

        def find():
            for message in self.messages[name]:
                if message.header.stamp == header.stamp:
                    return message
            return None

        return wait_for(find, f'{name} of stamp {header.stamp}', timeout)

    def track(self, frame):
        """Publish a frame and wait for its tracks."""
        return self.result(self.publish(frame), 'tracks')

    # -- services

    def ask(self, kind, name, request, timeout=TIMEOUT):
        return self.call(kind, f'{self.tracker}/{name}', request, timeout=timeout)

    def change(self, transition):
        """Ask for a lifecycle transition; True when it succeeded."""
        success = self.change_state(transition)
        if transition == 'activate':
            time.sleep(SETTLE)
        return success

    def start(self):
        assert self.change('configure')
        assert self.change('activate')

    def unconfigure(self):
        """Take the node down as far as it is up."""
        for step in {'active': ('deactivate', 'cleanup'), 'inactive': ('cleanup',)}.get(
            self.state(), ()
        ):
            assert self.change(step)

    def set(self, **values):  # noqa: A003
        """Set parameters; return the reasons of refusal, '' where set."""
        request = SetParameters.Request(
            parameters=[
                Parameter(NAMES.get(name, name), value=value).to_parameter_msg()
                for name, value in values.items()
            ]
        )
        results = self.ask(SetParameters, 'set_parameters', request).results
        return [item.reason if not item.successful else '' for item in results]

    def get(self, name):
        request = GetParameters.Request(names=[NAMES.get(name, name)])
        (value,) = self.ask(GetParameters, 'get_parameters', request).values
        return parameter_value_to_python(value)

    def ask_seed(self, labels, header=None, names=(), frame=None, encoding=None, object_ids=()):
        """Seed a label image, for a frame sent before (by header) or sent along."""
        request = SeedMask.Request(names=list(names), object_ids=list(object_ids))
        request.mask = conversions.labels_to_image(np.asarray(labels), header or Header())
        if encoding:
            request.mask.encoding = encoding
        if frame is not None:
            request.image = conversions.rgb_to_image(frame, header or Header())
        return self.ask(SeedMask, 'seed_mask', request)

    def ask_remove(self, number):
        return self.ask(RemoveObject, 'remove_object', RemoveObject.Request(object_id=number))

    def ask_reset(self):
        return self.ask(Trigger, 'reset', Trigger.Request())

    def diagnostics(self, condition=lambda values: True):
        """Wait for a fresh diagnostic message that fulfils a condition: (status, values)."""
        start = len(self.messages['diagnostics'])

        def find():
            for array in self.messages['diagnostics'][start:]:
                for status in array.status:
                    values = {item.key: item.value for item in status.values}
                    # what another part of the node does not tell is nothing
                    told = defaultdict(str, values)
                    told.update(message=status.message, level=status.level[0])
                    if condition(told):
                        return status, values
            return None

        return wait_for(find, 'diagnostics')


def compressed(frame, header):
    return conversions.rgb_to_compressed(frame, header)


__all__ = [
    'Client',
    'CompressedImage',
    'NodeProcess',
    'compressed',
    'environment',
    'tracker_process',
    'wait_for',
]
