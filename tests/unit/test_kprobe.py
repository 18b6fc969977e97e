"""Which calls of exec have lost their return, told from what is left of them in a map."""

from __future__ import annotations

import os
import time
from typing import Dict, Iterator, Optional

import pytest

from execwatch import wire
from execwatch.kernel import bpf, kprobe

SECOND = 10**9


class Calls:
    """The map ``in_flight``: a call for each age in seconds."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, ages: Dict[int, float]) -> None:
        now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        self.values = {
            tid.to_bytes(8, "little"): wire.pack(
                wire.CALL, {"host_tid": tid, "entered_ns": now - int(age * SECOND)}
            )
            for tid, age in ages.items()
        }
        monkeypatch.setattr(bpf, "map_keys", self.keys)
        monkeypatch.setattr(bpf, "map_lookup", self.lookup)
        monkeypatch.setattr(bpf, "map_delete", lambda fd, key: self.values.pop(key))

    def keys(self, fd: int, size: int) -> Iterator[bytes]:
        return iter(list(self.values))

    def lookup(self, fd: int, key: bytes, size: int) -> Optional[bytes]:
        value = self.values.get(key)
        return None if value is None else value.ljust(size, b"\0")

    def left(self) -> set[int]:
        return {int.from_bytes(key, "little") for key in self.values}


def test_a_young_call_may_be_going_on_whatever_its_thread_does(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, {1: 0.0, 2: 1.0})
    monkeypatch.setattr(kprobe, "_may_be_in_exec", lambda tid: False)
    assert kprobe.count_in_flight(3) == 2
    assert calls.left() == {1, 2}


def test_an_old_call_is_over_where_its_thread_does_something_else(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, {1: 5.0, 2: 5.0, 3: 0.0})
    monkeypatch.setattr(kprobe, "_may_be_in_exec", lambda tid: tid == 2)
    assert kprobe.count_in_flight(3) == 2
    assert calls.left() == {2, 3}


def test_a_very_old_call_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = Calls(monkeypatch, {1: 100.0})
    monkeypatch.setattr(kprobe, "_may_be_in_exec", lambda tid: True)
    assert kprobe.count_in_flight(3) == 0
    assert calls.left() == set()


def test_what_a_thread_does_is_read_from_proc() -> None:
    child = os.fork()
    if child == 0:
        os.read(os.pipe()[0], 1)
        os._exit(0)
    try:
        deadline = time.monotonic() + 20
        while kprobe._may_be_in_exec(child):  # it is "running" until it waits in read(2)
            assert time.monotonic() < deadline
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
    assert not kprobe._may_be_in_exec(child), "it has ended"
