"""Signals that end a run come through, once and at the right place."""

import os
import signal
import time

import pytest

from vpexp.signals import (
    describe_stop,
    ignore_stops,
    keep_handlers,
    leave_stops_to_parent,
    repeat_lost_stops,
    stop_on_sigterm,
)


class Slow:
    """Is freed slowly, as a loader is that waits for its processes."""

    def __init__(self, number: int) -> None:
        self.number = number

    def __del__(self) -> None:
        os.kill(os.getpid(), self.number)
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("number", "error", "words"),
    [
        (signal.SIGINT, KeyboardInterrupt, "stopped by Ctrl-C"),
        (signal.SIGTERM, SystemExit, "stopped by SIGTERM"),
        (signal.SIGHUP, SystemExit, "stopped by SIGHUP"),
    ],
)
def test_repeat_lost_stops__stop_while_an_object_is_freed_is_heard(number, error, words):
    def free_and_go_on():
        Slow(number)
        time.sleep(5)

    with keep_handlers():
        signal.signal(
            signal.SIGHUP, signal.SIG_DFL
        )  # what nohup, which tests may be started by, has ignored stays ignored
        with pytest.raises(error) as caught, stop_on_sigterm(), repeat_lost_stops():
            free_and_go_on()
    assert describe_stop(caught.value) == words


def test_stop_on_sigterm__what_nohup_has_ignored_stays_ignored():
    with keep_handlers():
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with stop_on_sigterm():
            signal.raise_signal(signal.SIGHUP)


def test_describe_stop__another_exit_is_none():
    assert [describe_stop(error) for error in (SystemExit(1), SystemExit("x"), SystemExit(None), None)] == [None] * 4


def test_ignore_stops__for_a_moment():
    before = signal.getsignal(signal.SIGINT)
    with ignore_stops():
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
    assert signal.getsignal(signal.SIGINT) is before


def test_leave_stops_to_parent__a_reader_outlives_them():
    with keep_handlers():
        leave_stops_to_parent(0)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.raise_signal(number)
