# SPDX-License-Identifier: Apache-2.0
"""
A pass of the network on a CPU, as OpenVINO runs it.

It fuses what torch does one operation after the other, and multiplies in bfloat16 if it is asked
to. Nothing is believed of it: the first frame of each size is looked at both ways, and what
differs is not used.
"""

from collections.abc import Callable, Iterator, Sequence
import contextlib
import os
from typing import Any
import warnings

import torch
from torch import Tensor

Pass = Callable[[Tensor], Sequence[Tensor]]
"""Pixels (h, w, 3) uint8 RGB of one size to queries and keys, float32."""

# How far results may be from torch's in float32: norm of the difference, as a share of the norm.
TOLERANCE = {'float32': 1e-4, 'bfloat16': 0.03}

_NAMES = {'float32': 'f32', 'bfloat16': 'bf16'}
_PROCESS = os.getpid()


def compile_pass(network: Pass, pixels: Tensor, precision: str) -> Pass | None:
    """
    Compile a pass for pictures of the size of one.

    Parameters
    ----------
    network : callable
        The pass as torch runs it, in float32 on the CPU; the same operations for all pictures of
        one size.
    pixels : Tensor
        (h, w, 3) uint8 RGB, a picture to compare results on.
    precision : str
        'float32' or 'bfloat16'.

    Returns
    -------
    callable, optional
        The same; one thread at a time may call it. None where OpenVINO is not installed, cannot
        run the network, or gives something else than torch, see :data:`TOLERANCE`.

    """
    if os.getpid() != _PROCESS:  # its threads do not outlive a fork
        return None
    expected = network(pixels)
    try:
        compiled = _compile(network, pixels, len(expected), precision)
        found = compiled(pixels)
    except Exception:  # what it cannot translate it says in errors of its own; torch does it
        return None
    for ours, theirs in zip(expected, found, strict=True):
        # not finite: not within the tolerance
        if not (theirs - ours).norm() <= TOLERANCE[precision] * ours.norm():
            return None
    return compiled


@contextlib.contextmanager
def _traces_forgotten() -> Iterator[None]:
    """
    Forget what is traced meanwhile.

    torch keeps each function that was ever traced, and with it the weights it found: some
    megabytes a model. It can forget only all of them, so where others have some, all are kept.
    """
    kept: Any = getattr(torch.jit._state, '_python_cu', None)
    only_ours = kept is not None and not kept.get_functions()
    try:
        yield
    finally:
        if only_ours:
            kept.drop_all_functions()


def _compile(network: Pass, pixels: Tensor, count: int, precision: str) -> Pass:
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with (
        _traces_forgotten(),
        torch.inference_mode(False),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter('ignore')  # sizes and paths become constants, as they should
        traced = torch.jit.trace(lambda given: tuple(network(given)), pixels, check_trace=False)
        frontend = FrontEndManager().load_by_framework('pytorch')
        decoder = TorchScriptPythonDecoder(traced)  # to be kept until it is converted
        model = frontend.convert(frontend.load(decoder))
        del traced, decoder
    model.reshape(openvino.PartialShape(list(pixels.shape)))
    options = {
        'INFERENCE_PRECISION_HINT': _NAMES[precision],
        'PERFORMANCE_HINT': 'LATENCY',
        'INFERENCE_NUM_THREADS': torch.get_num_threads(),
        'ENABLE_CPU_PINNING': False,  # others have work as well
        'ENABLE_HYPER_THREADING': True,
    }
    request = openvino.Core().compile_model(model, 'CPU', options).create_infer_request()
    shapes = [tuple(request.get_output_tensor(n).shape) for n in range(count)]

    def run(given: Tensor) -> list[Tensor]:
        out = [torch.empty(shape) for shape in shapes]  # the caller's own
        request.set_input_tensor(openvino.Tensor(given.numpy(), shared_memory=True))
        for number, tensor in enumerate(out):
            request.set_output_tensor(number, openvino.Tensor(tensor.numpy(), shared_memory=True))
        request.infer()
        return out

    return run
