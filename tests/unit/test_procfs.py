"""What /proc tells, of real processes that wait until the test lets them go."""

from __future__ import annotations

import contextlib
import logging
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any, Dict, Iterator, List, Sequence, Union

import pytest

from execwatch import Container, wire
from execwatch.kernel import procfs
from execwatch.processes import Process, ProcessTable

TICK = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
CLOCK = wire.Clock("boot", TICK, 0)

#: A child that does something to itself, says so and waits.
WAIT = "import ctypes, os, sys, threading\n{}\nprint(flush=True)\nsys.stdin.read()\n"

#: A program that waits, whatever its arguments.
CAT = str(shutil.which("cat"))


@contextlib.contextmanager
def waiting(command: Sequence[Union[str, bytes]], **options: Any) -> Iterator[int]:
    """The pid of a process that waits for its input to end."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, **options) as process:
        yield process.pid
        assert process.stdin
        process.stdin.close()


@contextlib.contextmanager
def having_done(code: str, *arguments: str) -> Iterator[int]:
    """The same of a Python that has run ``code`` first."""
    command = [sys.executable, "-I", "-c", WAIT.format(code), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdout.readline() == b"\n"
        yield process.pid
        process.communicate()


def by_pid() -> Dict[int, Process]:
    return {process.pid: process for process in procfs.scan(CLOCK).values()}


def ticks(pid: int) -> int:
    """Start time as proc_pid_stat(5) says: field 22."""
    return int(pathlib.Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])


def test_this_process() -> None:
    process = by_pid()[os.getpid()]
    assert process.key == f"boot-{os.getpid()}-{ticks(os.getpid())}"
    assert process.parent_key == f"boot-{os.getppid()}-{ticks(os.getppid())}"
    assert process.ppid == os.getppid()
    assert process.comm == pathlib.Path("/proc/self/comm").read_text()[:-1]
    assert process.exe == os.path.realpath("/proc/self/exe")
    assert process.uid == os.getuid()
    assert process.alive
    assert process.exec_boottime_ns is None


def test_a_child_and_when_it_started() -> None:
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    with waiting([CAT]) as pid:
        after = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        found = procfs.scan(CLOCK)
        child = found[f"boot-{pid}-{ticks(pid)}"]
        assert child.start_boottime_ns is not None
        assert before - TICK < child.start_boottime_ns <= after
        assert child.key == CLOCK.process_key(pid, child.start_boottime_ns)
        assert child.exe == os.path.realpath(CAT)
        assert child.argv == (CAT,)
        assert child.parent_key is not None
        assert found[child.parent_key].pid == os.getpid()
        table = ProcessTable()
        for process in found.values():
            table.add(process)
        assert len(table) == len(found)
        assert child in table.children(child.parent_key)
        assert len(table.tree()) == len(found)


def test_arguments_are_bytes_of_any_kind() -> None:
    arguments = [b"", b"-", b"a b", b"new\nline", b"\xff\xfe", "ü".encode(), b"", b"x"]
    with having_done("", *map(os.fsdecode, arguments)) as pid:
        argv = by_pid()[pid].argv
    assert argv is not None
    assert [text.encode("utf-8", "surrogateescape") for text in argv[4:]] == arguments


def test_arguments_are_read_up_to_a_limit() -> None:
    with having_done("", "x" * 20_000, "y") as pid:
        argv = by_pid()[pid].argv
    assert argv is not None
    assert sum(len(argument) + 1 for argument in argv) == 16384 + 1
    assert argv[-1] == "x" * len(argv[-1])


@pytest.mark.parametrize(
    ("data", "argv"),
    [
        (b"", None),
        (b"a\0", ("a",)),
        (b"a\0\0", ("a", "")),
        (b"\0", ("",)),
        (b"a", ("a",)),
        (b"nginx: worker" + b"\0" * 50, ("nginx: worker",)),
    ],
)
def test_arguments_end_with_nuls(data: bytes, argv: Any) -> None:
    assert procfs._argv(data) == argv


@pytest.mark.parametrize(
    "comm",
    [b") (", b"a) R 1 1 1 (b", b"two\nlines", b"\\n\\", b"a\\b)\n( c", b"\xff\t\x1b", b"Uid:\t7"],
    ids=repr,
)
def test_a_name_may_hold_anything(comm: bytes) -> None:
    code = "open('/proc/self/comm', 'wb').write(bytes.fromhex(sys.argv[1]))"
    with having_done(code, comm.hex()) as pid:
        process = by_pid()[pid]
        assert process.comm.encode("utf-8", "surrogateescape") == comm
        assert (process.ppid, process.uid) == (os.getpid(), os.getuid())
        assert process.key == f"boot-{pid}-{ticks(pid)}"


def test_names_have_no_more_bytes_than_in_events() -> None:
    """/proc shows more of a kernel thread's: what a worker works on."""
    assert all(len(p.comm.encode("utf-8", "surrogateescape")) <= 15 for p in by_pid().values())


def test_a_kernel_that_escapes_names_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    real = procfs._content

    def content(directory: int, name: str, size: int) -> bytes:
        data = real(directory, name, size)
        return data.replace(b"(x\ny\\z)", rb"(x\ny\\z)") if name == "stat" else data

    monkeypatch.setattr(procfs, "_content", content)
    with having_done(r"open('/proc/self/comm', 'wb').write(b'x\ny\\z')") as pid:
        assert by_pid()[pid].comm == "x\ny\\z"


def test_the_real_user_is_told() -> None:
    code, uid = "", os.getuid()
    if uid == 0:
        code, uid = "os.setresuid(12345, 0, 0)", 12345
    with having_done(code) as pid:
        assert by_pid()[pid].uid == uid


@pytest.mark.parametrize("name", ["plain", "x (deleted)", "new\nline", os.fsdecode(b"\xff")])
@pytest.mark.parametrize("removed", [False, True])
def test_the_path_of_a_program(tmp_path: pathlib.Path, name: str, removed: bool) -> None:
    path = tmp_path / name
    shutil.copy(CAT, path)
    with waiting(["cat"], executable=os.fsencode(path)) as pid:
        if removed:
            path.unlink()
        assert by_pid()[pid].exe == str(path)


@pytest.mark.parametrize("name", ["plain", "x (deleted)"])
def test_the_path_of_a_program_whose_file_has_another_name_left(tmp_path: pathlib.Path, name: str) -> None:
    path = tmp_path / name
    shutil.copy(CAT, path)
    os.link(path, tmp_path / "other")
    with waiting(["cat"], executable=str(path)) as pid:
        assert by_pid()[pid].exe == str(path)
        path.unlink()
        assert os.readlink(f"/proc/{pid}/exe") == f"{path} (deleted)"
        assert by_pid()[pid].exe == str(path)
        shutil.copy(CAT, f"{path} (deleted)")
        assert by_pid()[pid].exe == str(path), "that is another file"


def test_the_path_of_a_program_that_only_its_mount_namespace_has(tmp_path: pathlib.Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to mount")
    shutil.copy(CAT, tmp_path / "cat")
    script = (
        'mount -t tmpfs tmpfs "$1/m" && cp "$1/cat" "$1/m/x (deleted)" && echo && exec "$1/m/x (deleted)"'
    )
    (tmp_path / "m").mkdir()
    command = ["unshare", "-m", "sh", "-c", script, "sh", str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == b"\n"
        # What it writes back has come through the program itself.
        process.stdin.write(b"up\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"up\n"
        assert by_pid()[process.pid].exe == str(tmp_path / "m" / "x (deleted)")
        process.stdin.close()


ID = "9e02dfdeb94f" + "0" * 52


@pytest.mark.parametrize(
    ("text", "container"),
    [
        (f"0::/system.slice/docker-{ID}.scope\n", Container(id=ID, runtime="docker")),
        (f"8:pids:/\n4:memory:/docker/{ID}\n0::/\n", Container(id=ID, runtime="docker")),
        (f"8:pids:/docker/{ID}\n1:name=systemd:/\n0::/\n", Container(id=ID, runtime="docker")),
        (f"8:cpu,pids:/docker/{ID}\n", Container(id=ID, runtime="docker")),
        # Not the hierarchy that events are about.
        (f"4:memory:/\n8:pids:/docker/{ID}\n0::/docker/{ID}\n", None),
        (f"0::/docker:{ID}\n", None),
        ("0::/\n", None),
        ("", None),
        # Deeper than events tell.
        (f"0::{'/x' * 22}/docker-{ID}.scope\n", Container(id=ID, runtime="docker")),
        (f"0::{'/x' * 23}/docker-{ID}.scope\n", None),
    ],
)
def test_the_container_is_told_by_the_cgroup(text: str, container: Any) -> None:
    assert procfs._container(text.encode()) == container


def test_in_a_cgroup_namespace_containers_are_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(procfs, "_container", lambda data: Container(id=ID))
    for whole, container in ((True, Container(id=ID)), (False, None)):
        monkeypatch.setattr(procfs, "_sees_whole_paths", lambda whole=whole: whole)
        assert by_pid()[os.getpid()].container == container


def test_a_cgroup_namespace_is_noticed() -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, for a namespace")
    code = "from execwatch.kernel import procfs; print(procfs._sees_whole_paths())"
    command = [sys.executable, "-c", code]
    outside = subprocess.run(command, capture_output=True, text=True, check=True)
    inside = subprocess.run(["unshare", "--cgroup", *command], capture_output=True, text=True, check=True)
    assert (outside.stdout, inside.stdout) == ("True\n", "False\n")


def test_without_cgroups_processes_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, "cgroup", error=FileNotFoundError)
    assert by_pid()[os.getpid()].container is None


def test_the_path_of_a_program_without_a_file() -> None:
    file = os.memfd_create("nowhere")
    try:
        os.write(file, pathlib.Path(CAT).read_bytes())
        with waiting(["cat"], executable=f"/proc/self/fd/{file}", pass_fds=[file]) as pid:
            assert by_pid()[pid].exe == "/memfd:nowhere"
    finally:
        os.close(file)


def test_kernel_threads_have_no_arguments() -> None:
    """What has an empty cmdline and no exe: there are none of them inside a container."""
    found = by_pid()
    for pid, process in found.items():
        if process.comm == "kthreadd" and process.ppid is None:
            assert process.argv is process.exe is None
            workers = [child for child in found.values() if child.parent_key == process.key]
            assert workers
            assert all(child.argv is child.exe is None for child in workers), pid


def test_a_process_that_has_ended_and_was_not_waited_for_is_left_out() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert pathlib.Path(f"/proc/{process.pid}/stat").exists()
        assert process.pid not in by_pid()


def test_a_process_whose_leader_has_ended_goes_on() -> None:
    number = {"x86_64": 60, "aarch64": 93}[os.uname().machine]  # exit(2), of one thread
    code = (
        "def go_on():\n"
        "    while open('/proc/self/stat').read().split()[2] != 'Z': pass\n"
        "    print(flush=True); sys.stdin.read(); os._exit(0)\n"
        "threading.Thread(target=go_on).start()\n"
        f"ctypes.CDLL(None).syscall({number}, 0)"
    )
    with having_done(code) as pid:
        process = by_pid()[pid]
        assert process.alive
        assert process.ppid == os.getpid()


def test_a_process_that_ends_while_it_is_read_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with waiting([CAT]) as pid:
        directory = os.open(f"/proc/{pid}", os.O_PATH)
    try:
        with pytest.raises((FileNotFoundError, ProcessLookupError)):
            procfs._read(directory)
    finally:
        os.close(directory)
    monkeypatch.setattr(os, "listdir", lambda path: [str(pid), str(os.getpid()), "self"])
    assert list(by_pid()) == [os.getpid()]


def test_a_parent_that_is_not_there_or_came_later_has_no_key() -> None:
    def found(ppid: int, start: int) -> Any:
        return procfs._Found(procfs.Stat(b"x", b"S", ppid, 1, start), "x", None, None, 0)

    some = {1: found(0, 5), 2: found(1, 5), 3: found(9, 5), 4: found(5, 6), 5: found(1, 7)}
    parents = {pid: procfs._process(pid, some, CLOCK) for pid in some}
    assert {pid: process.ppid for pid, process in parents.items()} == {1: None, 2: 1, 3: 9, 4: 5, 5: 1}
    assert {pid: process.parent_key for pid, process in parents.items()} == {
        1: None,
        2: "boot-1-5",
        3: None,
        4: None,
        5: "boot-1-5",
    }


def forbid(monkeypatch: pytest.MonkeyPatch, *names: str, error: type = PermissionError) -> None:
    """Let these files be unreadable, as others' are."""
    real_open, real_readlink = os.open, os.readlink

    def check(path: Any) -> None:
        if os.fsdecode(path) in names:
            raise error(13, "Permission denied")

    def open_(path: Any, *args: Any, **options: Any) -> int:
        check(path)
        return real_open(path, *args, **options)

    def readlink(path: Any, **options: Any) -> Any:
        check(path)
        return real_readlink(path, **options)

    monkeypatch.setattr(os, "open", open_)
    monkeypatch.setattr(os, "readlink", readlink)


def test_what_may_not_be_read_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    forbid(monkeypatch, "exe", "cmdline")
    process = by_pid()[os.getpid()]
    assert process.exe is process.argv is None
    assert (process.uid, process.ppid) == (os.getuid(), os.getppid())


def test_hidden_processes_are_left_out_and_that_is_said_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    forbid(monkeypatch, "stat")
    with caplog.at_level(logging.WARNING, "execwatch"):
        assert procfs.scan(CLOCK) == {}
    messages: List[str] = [record.getMessage() for record in caplog.records]
    assert len(messages) == 1
    assert "hidepid" in messages[0]


def test_a_scan_leaves_nothing_open() -> None:
    before = os.listdir("/proc/self/fd")
    procfs.scan(CLOCK)
    assert os.listdir("/proc/self/fd") == before
