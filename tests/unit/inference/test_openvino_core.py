"""One Core for all: who makes another one takes away the stack that signal handlers run on."""

import ctypes

import numpy as np
import openvino
from openvino import opset13 as ops

from vpexp.inference.graph_predictor import get_core, lend_core


class SignalStack(ctypes.Structure):
    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def read_signal_stack() -> int:
    stack = SignalStack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return int(stack.address or 0)


def build_graph():
    numbers = ops.parameter([2], np.float32)
    return openvino.Model([ops.add(numbers, numbers)], [numbers], "double")


def test_get_core__is_one():
    assert get_core() is get_core()


def test_lend_core__is_what_libraries_get_and_is_taken_back():
    usual = openvino.Core, openvino.compile_model
    with lend_core() as core:
        assert openvino.Core() is core is get_core()
    assert (openvino.Core, openvino.compile_model) == usual


def test_lend_core__models_that_go_in_any_order_leave_the_signal_stack_alone():
    get_core()
    stack = read_signal_stack()
    with lend_core():
        first = openvino.Core().compile_model(build_graph(), "CPU")
        second = openvino.compile_model(build_graph(), device_name="CPU", config=None)
        third = openvino.compile_model(build_graph())
    np.testing.assert_array_equal(second(np.array([1, 2], np.float32))[0], [2, 4])
    del first
    assert read_signal_stack() == stack
    del second, third
    assert read_signal_stack() == stack
