# SPDX-License-Identifier: Apache-2.0
"""Node processes and a client of theirs, in a domain of their own on this machine."""

import contextlib
import os
from pathlib import Path
import signal
import subprocess
import sys
import threading
import time

from diagnostic_msgs.msg import DiagnosticArray
from drift_ros_msgs.msg import TrackArray
from drift_ros_msgs.srv import RemoveObject, SeedMask
from lifecycle_msgs.srv import ChangeState, GetState
import numpy as np
from rcl_interfaces.srv import GetParameters, SetParameters
import rclpy
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from std_srvs.srv import Trigger
from vision_msgs.msg import Detection2DArray, LabelInfo

from drift_ros.ros import conversions

ROOT = Path(__file__).resolve().parents[2]
PROFILES = str(ROOT / 'config' / 'fastdds_large_images.xml')
# Discovery is one-sided for a moment: what is sent to a peer that has not seen the sender yet
# (best-effort images, service answers) is dropped by the middleware.
SETTLE = 0.5
TIMEOUT = 300.0  # only ever reached when something is broken
TRANSITIONS = {'configure': 1, 'cleanup': 2, 'activate': 3, 'deactivate': 4}
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


class NodeProcess:
    """A node of this package as a process; its output goes to a file."""

    def __init__(self, module, domain, log, arguments=(), parameters=None):
        command = [sys.executable, '-m', f'drift_ros.nodes.{module}', *arguments, '--ros-args']
        for name, value in (parameters or {}).items():
            if isinstance(value, bool):
                value = str(value).lower()
            command += ['-p', f'{name}:={value}']
        environment = {
            **os.environ,
            'ROS_DOMAIN_ID': str(domain),
            'ROS_AUTOMATIC_DISCOVERY_RANGE': 'LOCALHOST',
            'PYTHONPATH': os.pathsep.join([str(ROOT), os.environ.get('PYTHONPATH', '')]).rstrip(
                os.pathsep
            ),
            'OMP_NUM_THREADS': '1',
            'PYTHONUNBUFFERED': '1',
            'FASTDDS_DEFAULT_PROFILES_FILE': PROFILES,
        }
        self.log = Path(log)
        with open(self.log, 'w') as file:
            self.process = subprocess.Popen(
                command,
                env=environment,
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
def tracker_process(domain, log, **parameters):
    """Run a tracker node; at the end it must not have written a traceback."""
    node = NodeProcess('tracker', domain, log, parameters=parameters)
    yield node
    node.close()
    assert 'Traceback' not in node.output, node.output


class Client:
    """Publishes images to a tracker node, calls its services and keeps what it publishes."""

    def __init__(self, domain, tracker='tracker'):
        os.environ['ROS_AUTOMATIC_DISCOVERY_RANGE'] = 'LOCALHOST'
        os.environ['FASTDDS_DEFAULT_PROFILES_FILE'] = PROFILES
        self.context = rclpy.Context()
        rclpy.init(args=[], context=self.context, domain_id=domain)
        self.node = rclpy.create_node('test_client', context=self.context)
        self.tracker = tracker
        self.messages = {}
        self.subscriptions = {}
        self.publishers = {}
        self.clients = {}
        self.stamp = 1000 * 10**9
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.thread = threading.Thread(target=self._spin, daemon=True)
        self.thread.start()

    def _spin(self):
        try:
            while self.context.ok():
                self.executor.spin_once(timeout_sec=0.1)
        except ExternalShutdownException:
            pass

    def close(self):
        self.context.try_shutdown()
        self.thread.join(5)

    # -- topics

    def listen(self, *names):
        """Subscribe to outputs of the tracker and wait until it knows."""
        for name in names:
            topic = '/diagnostics' if name == 'diagnostics' else f'/{self.tracker}/{name}'
            if name in self.subscriptions:
                self.forget(name)
            kept = self.messages[name] = []
            latched = name == 'label_info'
            qos = QoSProfile(
                depth=100,
                durability=(
                    DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
                ),
            )

            self.subscriptions[name] = self.node.create_subscription(
                TYPES[name], topic, kept.append, qos
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
                type(message), topic, QoSProfile(depth=100)
            )
        publisher = self.publishers[topic]
        wait_for(publisher.get_subscription_count, f'a subscriber on {topic}')
        if new:
            time.sleep(SETTLE)
        publisher.publish(message)

    def header(self, stamp=None, frame_id='test_camera'):
        """Make a header; without a stamp, 0.1 s after the last."""
        if stamp is None:
            self.stamp += 10**8
            stamp = self.stamp
        header = Header(frame_id=frame_id)
        header.stamp.sec, header.stamp.nanosec = divmod(stamp, 10**9)
        return header

    def publish(self, frame, stamp=None):
        """Publish an RGB frame; return its header."""
        header = self.header(stamp)
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

    def call(self, kind, name, request, timeout=TIMEOUT):
        key = (kind, name)
        if key not in self.clients:
            self.clients[key] = self.node.create_client(kind, f'/{self.tracker}/{name}')
            assert self.clients[key].wait_for_service(timeout), f'no service {name}'
            time.sleep(SETTLE)
        done = threading.Event()
        future = self.clients[key].call_async(request)
        future.add_done_callback(lambda _: done.set())
        assert done.wait(timeout), f'{name} did not answer within {timeout} s'
        return future.result()

    def change(self, transition):
        """Ask for a lifecycle transition; True when it succeeded."""
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[transition]
        success = self.call(ChangeState, 'change_state', request).success
        if transition == 'activate':
            time.sleep(SETTLE)
        return success

    def state(self):
        return self.call(GetState, 'get_state', GetState.Request()).current_state.label

    def start(self):
        assert self.change('configure')
        assert self.change('activate')

    def set(self, **values):  # noqa: A003
        """Set parameters; return the reasons of refusal, '' where set."""
        request = SetParameters.Request(
            parameters=[
                Parameter(name, value=value).to_parameter_msg() for name, value in values.items()
            ]
        )
        results = self.call(SetParameters, 'set_parameters', request).results
        return [item.reason if not item.successful else '' for item in results]

    def get(self, name):
        answer = self.call(GetParameters, 'get_parameters', GetParameters.Request(names=[name]))
        return Parameter.from_parameter_msg(
            __import__('rcl_interfaces.msg', fromlist=['Parameter']).Parameter(
                name=name, value=answer.values[0]
            )
        ).value

    def seed(self, labels, header=None, names=(), frame=None, encoding=None):
        """Seed a label image, for a frame sent before (by header) or sent along."""
        request = SeedMask.Request(names=list(names))
        request.mask = conversions.labels_to_image(np.asarray(labels), header or Header())
        if encoding:
            request.mask.encoding = encoding
        if frame is not None:
            request.image = conversions.rgb_to_image(frame, header or Header())
        return self.call(SeedMask, 'seed_mask', request)

    def remove(self, number):
        return self.call(RemoveObject, 'remove_object', RemoveObject.Request(object_id=number))

    def reset(self):
        return self.call(Trigger, 'reset', Trigger.Request())

    def diagnostics(self, condition=lambda values: True):
        """Wait for a fresh diagnostic message that fulfils a condition: (status, values)."""
        start = len(self.messages['diagnostics'])

        def find():
            for array in self.messages['diagnostics'][start:]:
                for status in array.status:
                    values = {item.key: item.value for item in status.values}
                    if condition({**values, 'message': status.message, 'level': status.level[0]}):
                        return status, values
            return None

        return wait_for(find, 'diagnostics')


def compressed(frame, header):
    return conversions.rgb_to_compressed(frame, header)


__all__ = ['Client', 'CompressedImage', 'NodeProcess', 'compressed', 'tracker_process', 'wait_for']
