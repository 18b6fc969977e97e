"""What a thread writes beside: its errors, its end, and forks."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
import threading
from typing import Any, List

import pytest

from execwatch import StateError, Stats, formats
from execwatch.formats import beside
from execwatch.formats.beside import Beside
from execwatch.testing import exec_event, exit_event, failed_exec_event, fork_event, lost_events
from tests.unit.recorded import HEADER_NOW, needs, read, write

#: More than a group of rows.
_MANY = 20_000


def threads() -> List[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("execwatch")]


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "x.parquet"


# -- Anything ---------------------------------------------------------------------------------


def test_it_is_done_beside() -> None:
    go, done = threading.Event(), []

    def work() -> None:
        assert go.wait(60)
        done.append(threading.current_thread())

    beside = Beside()
    assert threads() == []  # not yet needed
    beside.do(work)
    assert (len(threads()), done) == (1, [])
    go.set()
    beside.do(work)
    beside.wait()
    assert done == threads() * 2
    beside.wait()
    beside.close()
    beside.close()
    assert threads() == []


def test_what_it_raises_is_raised_once() -> None:
    beside = Beside()
    beside.do(lambda: [][0])
    with pytest.raises(IndexError):
        beside.do(lambda: None)
    beside.do(lambda: [][0])
    with pytest.raises(IndexError):
        beside.wait()
    beside.wait()
    beside.do(lambda: [][0])
    beside.close()


def test_where_no_thread_can_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    done: List[threading.Thread] = []
    beside = Beside()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        beside.do(lambda: done.append(threading.current_thread()))
    assert done == [threading.current_thread()]
    beside.do(lambda: done.append(threading.current_thread()))
    assert done == [threading.current_thread()] * 2
    beside.close()


def test_it_is_done_where_the_interpreter_ends() -> None:
    code = (
        "import atexit; from execwatch.formats.beside import Beside; beside = Beside();"
        "beside.do(lambda: print(1)); atexit.register(lambda: beside.do(lambda: print(2)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("1\n2\n", "")


_FORK = """
import os, threading
from execwatch.formats import beside
from execwatch.formats.beside import Beside
begun, forking, done = threading.Event(), threading.Event(), []
def work():
    begun.set()
    forking.wait()
    done.extend(number for number in range(100_000))
beside = Beside()
beside.do(work)
begun.wait()
os.register_at_fork(before=forking.set)  # the last one is called first
pid = os.fork()
if pid:
    beside.wait()
    os.waitpid(pid, 0)
else:
    beside.close()
    again = Beside()
    again.do(lambda: print(len(done)))
    again.close()
"""


_FORKS_INSIDE = """
import os
from execwatch.formats import beside
from execwatch.formats.beside import Beside

def work():
    pid = os.fork()
    if pid == 0:
        os._exit(7)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

beside = Beside()
beside.do(work)
beside.close()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are those of Unix")
def test_the_worker_itself_may_fork() -> None:
    """In a finalizer, which runs wherever the garbage collector does."""
    done = subprocess.run(
        [sys.executable, "-c", _FORKS_INSIDE], stdout=subprocess.PIPE, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "7\n")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are those of Unix")
def test_a_fork_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside, "_PATIENCE", 0.01)
    begun, forked, done = threading.Event(), threading.Event(), []

    def stuck() -> None:
        begun.set()
        forked.wait()
        done.append(1)

    worker = Beside()
    worker.do(stuck)
    begun.wait()
    pid = os.fork()
    if pid == 0:
        # The lock that is still held belongs to nobody here.
        os._exit(0 if beside._working.acquire(timeout=0.01) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert done == []
    forked.set()
    worker.wait()  # the lock is the worker's still: to release it is no error
    assert done == [1]
    worker.close()
    assert beside._working.acquire(timeout=0)
    beside._working.release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are those of Unix")
def test_a_fork_waits_for_it() -> None:
    """The child finds what was worked on complete, and may have work done of its own."""
    child = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORK]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("100000\n", "")


# -- A writer that has one --------------------------------------------------------------------


@needs("pyarrow")
def test_an_error_comes_with_a_later_write(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def joined(pieces: Any) -> None:
        raise OSError(28, "full")

    writer = formats.open_writer(path, HEADER_NOW)
    monkeypatch.setattr("execwatch.formats.columns.joined", joined)
    events = [exec_event()] * _MANY
    writer.write(events)
    with pytest.raises(OSError, match="full"):
        writer.write(events)
    with pytest.raises(StateError, match="failed"):
        writer.write(events)
    writer.close(Stats())
    assert threads() == []


@needs("pyarrow")
def test_an_error_comes_at_the_end(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = formats.open_writer(path, HEADER_NOW)
    monkeypatch.setattr("execwatch.formats.columns.joined", lambda pieces: 1 / 0)
    writer.write([exec_event()] * _MANY)
    with pytest.raises(ZeroDivisionError):
        writer.close(Stats())
    assert threads() == []


@needs("pyarrow")
def test_an_interrupt(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a group is being written: nothing is written behind it, and no thread is left."""
    from execwatch.formats import columns

    def interrupted(beside: Beside) -> None:
        raise KeyboardInterrupt

    go, joined = threading.Event(), columns.joined
    monkeypatch.setattr(columns, "joined", lambda pieces: joined(pieces) if go.wait(60) else None)
    monkeypatch.setattr(Beside, "wait", lambda beside: None)
    events = [exec_event()] * _MANY
    writer = formats.open_writer(path, HEADER_NOW)
    writer.write(events)
    monkeypatch.setattr(Beside, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        writer.write(events)
    assert len(threads()) == 1
    go.set()
    with pytest.raises(StateError, match="failed"):
        writer.write(events)
    writer.close(Stats())
    assert threads() == []


@needs("pyarrow")
def test_a_writer_that_is_left(path: pathlib.Path) -> None:
    """Its thread ends by itself."""
    formats.open_writer(path, HEADER_NOW).write([exec_event()] * _MANY)
    for thread in threads():
        thread.join(60)
    assert threads() == []


_FORKS = """
import os, sys
from execwatch import Stats, formats
from execwatch.testing import exec_event
from tests.unit.recorded import HEADER_NOW
writer = formats.open_writer(sys.argv[1], HEADER_NOW)
events = [exec_event() for _ in range(20_000)]
for _ in range(3):
    writer.write(events)
    pid = os.fork()
    if not pid:
        writer.close(Stats())
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0
writer.close(Stats())
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks are those of Unix")
@needs("pyarrow")
def test_forks_while_a_group_is_written(path: pathlib.Path) -> None:
    child = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _FORKS, str(path)]
    done = subprocess.run(child, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    back = read(path)
    assert (len(back.events), back.complete) == (60_000, True)


@needs("pyarrow")
def test_kinds_in_turn_over_several_groups(path: pathlib.Path) -> None:
    """And what columns alone can't tell among them."""
    makers = (
        lambda number: exec_event(pid=number, argv=("\udcff",) if number % 4999 == 1 else ("/bin/sh",)),
        lambda number: exit_event(pid=number, container=None),
        lambda number: fork_event(pid=number, comm="\udc80" if number % 3001 == 1 else "é"),
        lambda number: failed_exec_event(pid=number),
        lambda number: lost_events(count=number),
    )
    # Each piece of the table has other kinds in it, and in another order.
    events: List[Any] = [makers[number * number // 999 % 5](number) for number in range(1, 40_000)]
    assert read(write(path, events))[1:4] == (events, Stats(), True)
