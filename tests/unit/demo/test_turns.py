"""Turns: one at a time, a page before what works ahead; and what works ahead gives way."""

import os
import sys
import threading
import time

import pytest

from vpexp.demo.turns import GIVES_WAY, Turns, build_helper


def test_turns__are_had_by_one_at_a_time_and_by_pages_first():
    turns, order, at_once = Turns(), [], []

    def take(name, *, ahead):
        with turns.take(ahead=ahead):
            at_once.append(1)
            assert len(at_once) == 1
            order.append(name)
            time.sleep(0.01)
            at_once.pop()

    threads = [
        threading.Thread(target=take, args=(f"{'ahead' if ahead else 'click'}",), kwargs={"ahead": ahead})
        for ahead in (True, True, False, False)
    ]
    with turns.take():
        for thread in threads:
            thread.start()
        until = time.monotonic() + 60
        while turns._first < 2:
            assert time.monotonic() < until
    for thread in threads:
        thread.join()

    assert order == ["click", "click", "ahead", "ahead"]


def test_turn__that_fails_is_given_back():
    turns = Turns()
    with pytest.raises(ValueError, match="broken"), turns.take():
        raise ValueError("broken")
    with turns.take(ahead=True):
        pass


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere only processes have a priority")
def test_helper__gives_way_and_nobody_else_does():
    def read() -> int:
        return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    before = read()
    assert build_helper("test").submit(read).result() == max(before, GIVES_WAY)
    assert read() == before
