"""An exec has what its tracer asked for, and nothing else."""

from __future__ import annotations

import contextlib
import os
from typing import Any, Callable

import attrs
import pytest

from execwatch import ExecEvent, ExecTracer, Filter

from . import witness
from .witness import held

Programs = Callable[[str], str]

PARTS = ("creds", "session", "namespaces", "exe", "cwd", "container")


def captured(event: ExecEvent) -> set[str]:
    """The parts that an event has."""
    found = {name for name in ("creds", "session", "exe", "cwd", "env") if getattr(event, name) is not None}
    assert (event.env is None) == (event.env_status is None)
    assert event.namespaces is not None
    assert event.namespaces.mnt is not None
    others = [value for kind, value in attrs.asdict(event.namespaces).items() if kind != "mnt"]
    if others != [None] * len(others):
        found.add("namespaces")
    if event.cgroup_path is not None:
        found.add("container")
    return found


@pytest.mark.parametrize("part", [*PARTS, None])
def test_a_part_alone(part: Any, programs: Programs) -> None:
    parts = (part,) if part else ()
    with ExecTracer(Filter(ppids=os.getpid()), capture=parts) as tracer, held(programs("hold")):
        (event,) = tracer.read(timeout=0)
    assert captured(event) == set(parts)


def test_all_parts_but_the_session_and_the_environment_are_the_default(programs: Programs) -> None:
    with ExecTracer(Filter(ppids=os.getpid())) as tracer, held(programs("hold")):
        (event,) = tracer.read(timeout=0)
    assert captured(event) == set(PARTS) - {"session"}


def test_the_environment_alone(programs: Programs) -> None:
    tracer = ExecTracer(Filter(ppids=os.getpid()), capture=(), env=True)
    with tracer, held(programs("hold"), env={"A": "b"}):
        (event,) = tracer.read(timeout=0)
    assert captured(event) == {"env"}
    assert event.env == (("A", "b"),)


def test_each_tracer_has_what_it_asked_for(programs: Programs) -> None:
    mine = Filter(ppids=os.getpid())
    with contextlib.ExitStack() as stack:
        first = stack.enter_context(ExecTracer(mine, capture=("creds", "cwd")))
        second = stack.enter_context(ExecTracer(mine, capture=("exe",), env=("A",)))
        third = stack.enter_context(ExecTracer(mine, capture=(), env=True))
        pid = stack.enter_context(held(programs("hold"), env={"B": "c", "A": "b"}, cwd="/dev"))
        events = [event for tracer in (first, second, third) for event in tracer.read(timeout=0)]
        assert [captured(event) for event in events] == [{"creds", "cwd"}, {"exe", "env"}, {"env"}]
        assert events[0].cwd == witness.cwd(pid)
        assert events[1].exe is not None
        assert attrs.asdict(events[1].exe) == witness.executable(pid)
        assert [event.env for event in events[1:]] == [(("A", "b"),), (("B", "c"), ("A", "b"))]


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"capture": ("creds", "nope")}, ValueError),
        ({"capture": ("",)}, ValueError),
        ({"capture": ("env",)}, ValueError),
        ({"capture": "creds"}, TypeError),
        ({"capture": b"creds"}, TypeError),
        ({"capture": (1,)}, TypeError),
        ({"capture": 7}, TypeError),
        ({"capture": True}, TypeError),
        ({"env": ("PATH", "A=B")}, ValueError),
        ({"env": ("A\0B",)}, ValueError),
        ({"env": ("",)}, ValueError),
        ({"env": ()}, ValueError),
        ({"env": "PATH"}, TypeError),
        ({"env": b"PATH"}, TypeError),
        ({"env": (b"PATH",)}, TypeError),
        ({"env": 7}, TypeError),
    ],
)
def test_what_can_not_be_asked_for(options: dict[str, Any], error: type[Exception]) -> None:
    (name,) = options
    with pytest.raises(error) as caught:
        ExecTracer(**options)
    assert type(caught.value) is error
    assert str(caught.value).startswith(f"{name}: expected ")
    if name == "capture":
        assert all(repr(part) in str(caught.value) for part in PARTS)
