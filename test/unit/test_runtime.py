# SPDX-License-Identifier: Apache-2.0
"""A node's executor outlives messages that cannot be taken and callbacks that fail."""

import threading
import time

import pytest

rclpy = pytest.importorskip('rclpy', reason='ROS 2 is not installed')

from std_srvs.srv import Trigger  # noqa: E402

from drift_ros.engine.errors import out_of_memory  # noqa: E402
from drift_ros.ros import runtime  # noqa: E402


@pytest.mark.parametrize(
    ('error', 'told'),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to"), True),
        (RuntimeError('CUDA out of memory. Tried to allocate 2 GiB'), True),
        (RuntimeError("can't start new thread"), True),
        (OSError(12, 'Cannot allocate memory'), True),
        (RuntimeError('std::bad_alloc'), True),
        (RuntimeError('shapes do not fit'), False),
        (ValueError(''), False),
    ],
)
def test_want_of_memory_is_known_however_it_is_said(error, told):
    assert out_of_memory(error) is told


def test_what_cannot_be_taken_once_is_taken_the_next_time(monkeypatch):
    """Rclpy alone would never look at such a service again; and its threads are there at once."""
    context = rclpy.Context()
    rclpy.init(args=[], context=context, domain_id=94)
    node = rclpy.create_node('endures', context=context)
    service = node.create_service(Trigger, 'ask', lambda request, response: response)
    reported = []
    before = threading.active_count()
    executor = runtime._make_executor(3, reported.append, context)
    assert threading.active_count() >= before + 3
    executor.add_node(node)
    time.sleep(0.1)  # the threads pass their barrier
    failing = [MemoryError('no room'), RuntimeError('Unable to convert call argument')]
    take = executor._take_service

    def fail_twice(entity):
        if failing:
            raise failing.pop()
        return take(entity)

    monkeypatch.setattr(executor, '_take_service', fail_twice)
    client = node.create_client(Trigger, 'ask')
    assert client.wait_for_service(30)
    future = client.call_async(Trigger.Request())
    end = time.monotonic() + 60
    while not future.done() and time.monotonic() < end:
        executor.spin_once(timeout_sec=0.1)
    assert future.done() and len(reported) == 2 and service is not None
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_a_callback_is_handed_to_a_thread_once_however_late_that_begins():
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node('late', context=context)
    executor = runtime._make_executor(2, lambda error: None, context)
    called, handed = [], []
    submit = executor._executor.submit

    def late(task):
        handed.append(task)
        return submit(lambda: (time.sleep(0.02), task()))

    executor._executor.submit = late
    timer = node.create_timer(0.05, lambda: called.append(1))
    executor.add_node(node)
    end = time.monotonic() + 60
    while len(called) < 5 and time.monotonic() < end:
        executor.spin_once(timeout_sec=0.1)
    assert timer is not None and 5 <= len(called) <= len(handed) <= len(called) + 1
    executor.shutdown()
    node.destroy_node()
    rclpy.shutdown(context=context)
