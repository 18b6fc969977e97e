"""What one exec event says, against witnesses that share no code with the tracer."""

from __future__ import annotations

import contextlib
import os
import pathlib
import pickle
import pwd
import re
import subprocess
import sys
import time
from typing import Callable, Iterator

import pytest

from execwatch import ExecEvent, ExecTracer, Filter

from .conftest import Reason, skip

Programs = Callable[[str], str]


def execute(argv: list[bytes], path: bytes | str | None = None) -> None:
    """Execute and wait, with exactly these arguments."""
    pid = os.posix_spawn(path or argv[0], argv, {})
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@contextlib.contextmanager
def held(path: str, *arguments: str) -> Iterator[int]:
    """The pid of a process that has just done its exec and stays until the block ends."""
    with subprocess.Popen([path, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.read(1) == b"R"
        yield process.pid
        process.communicate()


def status(pid: int, field: str) -> list[str]:
    text = pathlib.Path(f"/proc/{pid}/status").read_text()
    return re.findall(rf"^{field}:\s*(.*)$", text, re.M)[0].split()


def mine() -> Filter:
    return Filter(ppids=os.getpid())


def test_twenty_three_of_twenty_three(programs: Programs) -> None:
    nothing = programs("nothing")
    with ExecTracer(mine()) as tracer:
        for number in range(23):
            execute([nothing.encode(), str(number).encode()])
        events = tracer.read(timeout=0)
        assert tracer.read(timeout=0) == []
        stats = tracer.stats()
    assert [event.argv for event in events] == [(nothing, str(number)) for number in range(23)]
    assert [event.boottime_ns for event in events] == sorted(event.boottime_ns for event in events)
    assert stats.exec.delivered == 23
    assert stats.lost == stats.pending == 0
    assert stats.seen == stats.delivered + stats.filtered


def test_every_field_is_what_proc_says_of_the_held_process(programs: Programs) -> None:
    hold = programs("hold")
    before = time.time_ns()
    with ExecTracer(mine()) as tracer, held(hold, "one", "two words") as pid:
        (event,) = tracer.read(timeout=0)
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        boot_id = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip().replace("-", "")
        me = pathlib.Path("/proc/self/stat").read_text().rpartition(")")[2].split()

        assert event.kind == "exec"
        assert event.retval == 0
        assert event.pid == event.tid == event.host_pid == pid
        assert event.ppid == os.getpid() == int(stat[1])
        assert event.comm == pathlib.Path(f"/proc/{pid}/comm").read_text().strip() == "hold"
        assert event.parent_comm == pathlib.Path("/proc/self/comm").read_text().strip()
        cmdline = pathlib.Path(f"/proc/{pid}/cmdline").read_text()
        assert "\0".join(event.argv) + "\0" == cmdline
        assert (event.argv_status, event.argc) == ("complete", 3)
        assert [event.uid, event.gid] == [int(status(pid, f)[0]) for f in ("Uid", "Gid")]
        assert event.filename == event.interp == hold
        assert event.process_key == f"{boot_id}-{pid}-{stat[19]}"
        assert event.parent_key == f"{boot_id}-{os.getpid()}-{me[19]}"
        assert event.start_boottime_ns is not None
        ticks = os.sysconf("SC_CLK_TCK")
        assert event.start_boottime_ns * ticks // 10**9 == int(stat[19])
        assert event.namespaces is not None
        assert event.namespaces.mnt == os.stat(f"/proc/{pid}/ns/mnt").st_ino
        assert event.cgroup_id == os.stat(cgroup_directory(pid)).st_ino
        assert 0 <= event.cpu < (os.cpu_count() or 1)
    assert before <= event.time_ns <= time.time_ns()
    assert event.boottime_ns <= time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert event.start_boottime_ns <= event.boottime_ns


def cgroup_directory(pid: int) -> str:
    """The directory of the hierarchy that stands for the process, found with mountinfo."""
    lines = [line.split(":", 2) for line in pathlib.Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
    paths = {name: path for _, names, path in lines for name in names.split(",")}
    controller = next((name for name in ("memory", "pids") if name in paths), "")
    for line in pathlib.Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        kind, _, options = rest.split()
        if controller and kind == "cgroup" and controller in options.split(","):
            return fields.split()[4] + paths[controller]
        if not controller and kind == "cgroup2":
            return fields.split()[4] + paths[""]
    raise AssertionError("no cgroup file system is mounted")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        [b""],
        [b"", b"", b"x", b""],
        [b"a b", b"new\nline", b"tab\t", b"\x1b[2Jescape"],
        [b"\xff\xfe", "ünïcode".encode(), b"half \xc3"],
        [b"x" * 16_000],
        [str(n).encode() for n in range(997)],
    ],
    ids=["none", "empty", "empties", "controls", "bytes", "long", "many"],
)
def test_arguments_arrive_byte_for_byte(programs: Programs, arguments: list[bytes]) -> None:
    argv = [programs("nothing").encode(), *arguments]
    with ExecTracer(mine()) as tracer:
        execute(argv)
        (event,) = tracer.read(timeout=0)
    assert [argument.encode("utf-8", "surrogateescape") for argument in event.argv] == argv
    assert (event.argv_status, event.argc) == ("complete", len(argv))


def test_no_argv_at_all(programs: Programs) -> None:
    """Since Linux 5.18 the kernel puts in an empty string."""
    with ExecTracer(mine()) as tracer:
        # Python itself refuses an empty argv[0], so the call is made below it.
        code = (
            "import ctypes; libc = ctypes.CDLL(None); empty = (ctypes.c_char_p * 1)(None);"
            f"libc.execve({programs('nothing')!r}.encode(), empty, empty)"
        )
        subprocess.run([sys.executable, "-c", code], check=True)
        event = tracer.read(timeout=0)[-1]
    assert event.comm == "nothing"
    assert event.argv in ((), ("",))
    assert event.argc == len(event.argv)


@pytest.mark.parametrize("size", [1, 7, 64, 100])
def test_argv_beyond_argv_size_is_cut_and_says_so(programs: Programs, size: int) -> None:
    argv = [programs("nothing").encode(), b"one", b"two", b"x" * 200]
    with ExecTracer(mine(), argv_size=size) as tracer:
        execute(argv)
        (event,) = tracer.read(timeout=0)
        stats = tracer.stats()
    whole = b"\0".join(argv)
    assert (event.argv_status, event.argc) == ("truncated", 4)
    assert whole.startswith("\0".join(event.argv).encode())
    assert size - 1 <= len("\0".join(event.argv)) <= size
    assert stats.argv_truncated == 1


def test_the_default_limit_is_sixteen_kibibytes(programs: Programs) -> None:
    nothing = programs("nothing").encode()
    fits = 16_384 - len(nothing) - 2
    with ExecTracer(mine()) as tracer:
        execute([nothing, b"x" * fits])
        execute([nothing, b"x" * (fits + 1)])
        whole, cut = tracer.read(timeout=0)
    assert (whole.argv_status, len(whole.argv[1])) == ("complete", fits)
    assert (cut.argv_status, len(cut.argv[1])) == ("truncated", fits + 1)


def test_a_script_and_its_interpreter(programs: Programs, tmp_path: pathlib.Path) -> None:
    script = tmp_path / "script"
    script.write_text(f"#!{programs('nothing')} -option\n")
    script.chmod(0o755)
    with ExecTracer(mine()) as tracer:
        execute([b"argv0", b"x"], path=str(script))
        (event,) = tracer.read(timeout=0)
    assert event.comm == "script"
    assert event.filename == str(script)
    assert event.interp == programs("nothing")
    assert event.argv == (programs("nothing"), "-option", str(script), "x")
    assert event.argc == 4


def test_a_relative_name_is_kept_as_it_was_passed(programs: Programs) -> None:
    folder, name = os.path.split(programs("nothing"))
    with ExecTracer(mine()) as tracer:
        subprocess.run([f"./{name}"], cwd=folder, check=True)
        (event,) = tracer.read(timeout=0)
    assert event.filename == f"./{name}"


@pytest.mark.usefixtures("root")
def test_another_user(programs: Programs) -> None:
    nobody = pwd.getpwnam("nobody")
    with ExecTracer(Filter(uids={"nobody"})) as tracer:
        subprocess.run([programs("nothing")], user="nobody", group=nobody.pw_gid, check=True)
        execute([programs("nothing").encode()])
        events = [event for event in tracer.read(timeout=0) if event.comm == "nothing"]
    assert [(event.uid, event.gid) for event in events] == [(nobody.pw_uid, nobody.pw_gid)]


def test_an_exec_by_a_thread_that_is_not_the_leader(programs: Programs) -> None:
    code = (
        "import os, sys, threading\n"
        f"run = lambda: os.execv({programs('nothing')!r}, ['x'])\n"
        "def main():\n"
        "    print(threading.get_native_id(), flush=True)\n"
        "    run()\n"
        "thread = threading.Thread(target=main); thread.start(); thread.join()\n"
    )
    with ExecTracer(mine()) as tracer:
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        output = process.communicate()[0]
        event = tracer.read(timeout=0)[-1]
    assert event.comm == "nothing"
    assert event.pid == process.pid
    assert event.tid == int(output) != process.pid


def test_events_of_a_pid_namespace_carry_the_pids_of_the_tracer(programs: Programs) -> None:
    with ExecTracer(Filter(descendants_of=os.getpid())) as tracer:
        command = ["unshare", "--pid", "--fork", "--mount-proc", programs("hold")]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            assert process.stdout.read(1) == b"R"
            event = tracer.read(timeout=0)[-1]
            assert event.comm == "hold"
            assert status(event.pid, "NSpid") == [str(event.pid), "1"]
            assert event.ppid == process.pid
            process.communicate()


def test_a_tracer_in_a_pid_namespace_speaks_its_own_pids(programs: Programs) -> None:
    """It sees what runs in its namespace, by the pids there; the rest is counted as filtered."""
    code = (
        "import os, sys\n"
        "from execwatch import ExecTracer, Filter\n"
        "with ExecTracer() as tracer, ExecTracer(Filter(descendants_of=os.getpid())) as mine:\n"
        "    print('R', flush=True); sys.stdin.readline()\n"
        f"    child = os.posix_spawn({programs('nothing')!r}, ['nothing', 'inside'], {{}}); os.wait()\n"
        "    (event,), stats = tracer.read(timeout=0), tracer.stats()\n"
        "    assert [e.argv for e in mine.read(timeout=0)] == [event.argv]\n"
        "    assert stats.seen == stats.filtered + 1 > 1, stats\n"
        "    print(event.pid == event.tid == child, event.ppid == os.getpid() < 100, event.host_pid)\n"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with ExecTracer(Filter(descendants_of=os.getpid())) as outside:
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
            assert process.stdout is not None
            process.stdout.readline()
            execute([programs("nothing").encode(), b"outside"])
            output, _ = process.communicate("go\n")
        assert process.returncode == 0
        event = outside.read(timeout=0)[-1]
    assert event.argv[1] == "inside"
    assert output.split() == ["True", "True", str(event.pid)]


def test_it_is_typed(programs: Programs) -> None:
    nothing = programs("nothing")
    with ExecTracer(mine()) as tracer:
        execute([nothing.encode()])
        (event,) = tracer.read(timeout=0)
    assert type(event) is ExecEvent
    assert pickle.loads(pickle.dumps(event)) == event
    assert hash(event) == hash(pickle.loads(pickle.dumps(event)))


@pytest.mark.usefixtures("root")
def test_a_tracer_in_a_time_namespace_has_its_times(programs: Programs) -> None:
    code = (
        "import os, time\n"
        "from execwatch import ExecTracer, Filter\n"
        "with ExecTracer(Filter(descendants_of=os.getpid())) as tracer:\n"
        f"    pid = os.posix_spawn({programs('hold')!r}, ['hold'], {{}})\n"
        "    events = tracer.read(timeout=10)\n"
        "    stat = open(f'/proc/{pid}/stat').read().rpartition(')')[2].split()\n"
        "    assert abs(events[0].time_ns - time.time_ns()) < 10**10\n"
        "    assert 0 <= time.clock_gettime_ns(time.CLOCK_BOOTTIME) - events[0].boottime_ns < 10**10\n"
        "    number, ticks = map(int, events[0].process_key.split('-')[1:])\n"
        "    hz = os.sysconf('SC_CLK_TCK')\n"
        "    # Linux 5.10 tells the start by the machine's clock there, newer ones by the namespace's.\n"
        "    assert ticks in (int(stat[19]), int(stat[19]) + 100000 * hz)\n"
        "    assert abs(ticks / hz - time.clock_gettime(time.CLOCK_BOOTTIME)) < 10\n"
        "    print(len(events), number == pid)\n"
    )
    command = ["unshare", "--time", "--boottime", "100000", "--fork", sys.executable, "-c", code]
    if not os.path.exists("/proc/self/ns/time"):
        skip(Reason.KERNEL, "CONFIG_TIME_NS")
    done = subprocess.run(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True)
    assert done.stdout.replace("R", "").split() == ["1", "True"]  # without what the held program says
