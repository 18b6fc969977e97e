"""What an exec captures besides its arguments, field by field, against what /proc says.

Each program is held right after its exec. Whatever a test is about, all fields are
compared. Credentials, paths and what can be asked for have files of their own.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import pty
import shutil
import subprocess
import sys
from typing import Any, Callable, Iterator, Optional

import attrs
import pytest

from execwatch import ExecEvent, ExecTracer, Filter, Session
from execwatch.events import ProcessEvent
from execwatch.tracer import CAPTURE

from . import witness
from .conftest import Reason, scaled, skip
from .witness import held

pytestmark = pytest.mark.usefixtures("root")

Programs = Callable[[str], str]

#: A user that no system has, and that no kernel makes up for ids that it can't map.
SOMEBODY = 54321

ALL: dict[str, Any] = {"capture": CAPTURE, "env": True}


@pytest.fixture
def place(tmp_path: pathlib.Path) -> pathlib.Path:
    """A folder that every user can reach."""
    for path in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        path.chmod(0o755)
    return tmp_path


@contextlib.contextmanager
def seen(
    *command: witness.Command, tracing: Optional[dict[str, Any]] = None, **options: Any
) -> Iterator[tuple[ExecEvent, int]]:
    """A command that becomes ``hold``: the event of that exec, and the pid of the process, held.

    Args:
        tracing: Options of the tracer, beside the environment and all parts.
        **options: Of :class:`subprocess.Popen`.
    """
    with ExecTracer(Filter(descendants_of=os.getpid()), **{**ALL, **(tracing or {})}) as tracer:
        with held(*command, **options) as pid:
            yield [event for event in tracer.read(timeout=0) if event.pid == pid][-1], pid
        assert tracer.stats().lost == 0


def needs_user_namespaces() -> None:
    if witness.root() != "/":
        pytest.skip("KERNEL: no user namespaces in a chroot")


def ids_and_sets(event: ExecEvent) -> dict[str, Any]:
    """All of the credentials but what the program owes to its file."""
    assert event.creds is not None
    fields = attrs.asdict(event.creds)
    return {
        name: value for name, value in fields.items() if name not in ("setuid", "setgid", "file_capabilities")
    }


def agree(event: ExecEvent, pid: int) -> None:
    """All that was captured is what /proc says."""
    assert event.session is not None
    assert event.namespaces is not None
    assert event.exe is not None
    assert ids_and_sets(event) == witness.credentials(pid)
    assert attrs.asdict(event.session) == witness.session(pid)
    assert attrs.asdict(event.namespaces) == witness.namespaces(pid)
    assert attrs.asdict(event.exe) == witness.executable(pid)
    assert event.cwd == witness.cwd(pid)
    assert event.cgroup_path == witness.cgroup(pid)[1]
    assert (event.env, event.env_status) == (witness.environment(pid), "complete")
    assert event.creds is not None
    assert (event.uid, event.gid) == (event.creds.uid, event.creds.gid)
    assert event.ppid == witness.parent(pid)
    assert event.process_key == witness.key(pid)
    assert event.parent_key == witness.key(event.ppid)


# ---- Sessions and terminals ----------------------------------------------------------


def test_the_session_of_whoever_started_it(programs: Programs) -> None:
    with seen(programs("hold")) as (event, pid):
        agree(event, pid)
        assert event.session is not None
        # 0 where the tests themselves are in a pid namespace that their session is not in.
        assert (event.session.sid, event.session.pgid) == (os.getsid(0) or None, os.getpgid(0) or None)


def test_a_session_of_its_own_without_a_terminal(programs: Programs) -> None:
    with seen(programs("hold"), start_new_session=True) as (event, pid):
        agree(event, pid)
        assert event.session == Session(sid=pid, pgid=pid)


def test_a_process_group_of_its_own(programs: Programs) -> None:
    with seen(programs("context"), "group", "-", programs("hold")) as (event, pid):
        agree(event, pid)
        assert event.session is not None
        assert (event.session.sid, event.session.pgid) == (os.getsid(0) or None, pid)


@contextlib.contextmanager
def terminal() -> Iterator[int]:
    """A terminal for a session to control; hung up at the end."""
    master, slave = pty.openpty()
    try:
        yield slave
    finally:
        os.close(slave)
        os.close(master)


def test_a_controlling_terminal(programs: Programs) -> None:
    with contextlib.ExitStack() as stack:
        slaves = [stack.enter_context(terminal()) for _ in range(3)]
        command = ("setsid", "--ctty", programs("hold"))
        event, pid = stack.enter_context(seen(*command, stdin=slaves[1]))
        agree(event, pid)
        device = os.fstat(slaves[1]).st_rdev
        assert event.session == Session(
            sid=pid, pgid=pid, tty_major=os.major(device), tty_minor=os.minor(device)
        )


def test_a_group_and_a_terminal_of_a_session(programs: Programs) -> None:
    with terminal() as slave:
        command = ("setsid", "--ctty", programs("context"), "shared", "-", programs("context"), "group", "-")
        with seen(*command, programs("hold"), stdin=slave) as (event, pid):
            agree(event, pid)
            assert event.session is not None
            assert (event.session.sid, event.session.pgid) == (event.ppid, pid)
            assert event.session.tty_minor == os.minor(os.fstat(slave).st_rdev)


def test_a_terminal_that_does_not_control(programs: Programs) -> None:
    with terminal() as slave, seen("setsid", programs("hold"), stdin=slave) as (event, pid):
        agree(event, pid)
        assert event.session == Session(sid=pid, pgid=pid)


def test_a_terminal_of_script(programs: Programs) -> None:
    shutil.which("script") or skip(Reason.TOOL, "script")
    with seen("script", "-qc", f"exec {programs('hold')}", "/dev/null") as (event, pid):
        agree(event, pid)
        assert event.session is not None
        assert event.session.sid == pid
        ps = subprocess.run(
            ["ps", "-o", "tty=", "-p", str(pid)], stdout=subprocess.PIPE, text=True, check=True
        )
        device = os.stat(f"/dev/{ps.stdout.strip()}").st_rdev
        assert (event.session.tty_major, event.session.tty_minor) == (os.major(device), os.minor(device))


def test_a_tracer_in_a_pid_namespace_of_its_own(programs: Programs) -> None:
    """All of it once more, from there; a session that is not visible there is unknown."""
    if witness.root() != "/":
        pytest.skip("KERNEL: in a chroot, the witness would look at another /proc")
    code = (
        "import sys\n"
        "from tests.kernel.test_context import agree, seen\n"
        "for new in (False, True):\n"
        "    with seen(sys.argv[1], start_new_session=new) as (event, pid):\n"
        "        agree(event, pid)\n"
        "        print(event.session.sid, event.session.pgid, pid)\n"
    )
    command = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", code, programs("hold")]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=root)
    outside, inside = (line.split() for line in done.stdout.splitlines())
    assert outside[:2] == ["None", "None"]
    assert len(set(inside)) == 1


# ---- Namespaces -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mnt", "net", "uts", "ipc", "cgroup", "user", "time"])
def test_one_namespace_of_its_own(kind: str, programs: Programs) -> None:
    if not os.path.exists(f"/proc/self/ns/{kind}"):
        skip(Reason.KERNEL, f"the namespaces of {kind}")
    if kind == "user":
        needs_user_namespaces()
    option = {"mnt": "mount"}.get(kind, kind)
    # A time namespace is entered by fork, on many kernels.
    with seen("unshare", f"--{option}", "--fork", programs("hold")) as (event, pid):
        agree(event, pid)
        assert other_than_mine(event) == {kind}


def other_than_mine(event: ExecEvent) -> set[str]:
    assert event.namespaces is not None
    found, mine = attrs.asdict(event.namespaces), witness.namespaces(os.getpid())
    return {kind for kind, number in found.items() if kind != "vpid" and number != mine[kind]}


def test_pid_namespaces_in_one_another(programs: Programs) -> None:
    inner = ("unshare", "--pid", "--fork")
    for command in ((*inner, programs("hold")), (*inner, *inner, programs("hold"))):
        with seen(*command) as (event, pid):
            agree(event, pid)
            assert event.namespaces is not None
            assert event.namespaces.vpid == 1 != pid
            assert other_than_mine(event) == {"pid"}
    shell = ("sh", "-c", f"/bin/true; /bin/true; {programs('hold')}; :")  # which is number 1
    with seen(*inner, *inner, *shell) as (event, pid):
        agree(event, pid)
        assert event.namespaces is not None
        assert event.namespaces.vpid == 4 != pid


def test_all_namespaces_of_its_own(programs: Programs) -> None:
    needs_user_namespaces()
    kinds = ["mount", "net", "uts", "ipc", "cgroup", "pid", "user"]
    kinds += ["time"] if os.path.exists("/proc/self/ns/time") else []
    with seen("unshare", *(f"--{kind}" for kind in kinds), "--fork", programs("hold")) as (event, pid):
        agree(event, pid)
        assert other_than_mine(event) == {*kinds[1:], "mnt"}


# ---- Cgroups ----------------------------------------------------------------------------


@pytest.mark.parametrize("names", [["plain"], ["with space \udcff", "b:c", "d"], list("abcdefghijklmnop")])
def test_the_path_of_a_cgroup(names: list[str], programs: Programs) -> None:
    mount, mine = witness.cgroup(os.getpid())
    names = [f"execwatch-{os.getpid()}", *names]
    made = [os.path.join(mount + mine, *names[: depth + 1]) for depth in range(len(names))]
    with contextlib.ExitStack() as stack:
        for folder in made:
            os.mkdir(folder)
            stack.callback(os.rmdir, folder)
        enter = ("sh", "-ec", 'echo $$ > "$1/cgroup.procs"; exec unshare --cgroup "$0"')
        with seen(*enter, programs("hold"), made[-1]) as (event, pid):
            agree(event, pid)
            assert event.cgroup_path == os.path.join(mine, *names)
            assert event.cgroup_id == os.stat(made[-1]).st_ino
            assert event.container is None


# ---- Environments -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "variables",
    [
        [],
        [b"A=1", b"B=", b"=x", b"nothing", b"", b"A=2", b"A=1", b"C=with=equals", b"D=two words", b"E=a\nb"],
        [b"\xff=\xfe", "ü=é".encode(), b"half=\xc3"],
        [b"V%d=%d" % (number, number) for number in range(997)],
        [b"", b"", b""],
        [b"LAST=" + b"x" * (16_384 - 6)],
    ],
    ids=["none", "odd", "bytes", "many", "empty", "as large as it may be"],
)
def test_an_environment(variables: list[bytes], programs: Programs) -> None:
    with seen(programs("context"), "environment", "-", programs("hold"), *variables) as (event, pid):
        agree(event, pid)
        assert event.env is not None
        assert len(event.env) == len(variables)


@pytest.mark.parametrize(
    "variables", [[b"A=b", b"LAST=" + b"x" * (16_384 - 9)], [b"V=%d" % n for n in range(9_997)]]
)
def test_a_large_environment_is_cut_and_says_so(variables: list[bytes], programs: Programs) -> None:
    with seen(programs("context"), "environment", "-", programs("hold"), *variables) as (event, pid):
        assert event.env_status == "truncated"
        assert event.env is not None
        whole, part = (
            "\0".join("=".join(pair) for pair in pairs) for pairs in (witness.environment(pid), event.env)
        )
        # The "=" of the last may be one that was not read.
        assert whole.startswith(part) or whole.startswith(part[:-1])
        assert 16_384 - 1 <= len(part) <= 16_384 + 1


def test_the_variables_that_were_asked_for(programs: Programs) -> None:
    variables = [
        b"PATH=first",
        b"LD_PRELOADED=no",
        b"LD_PRELOAD=x=y",
        b"path=no",
        b"PATH=second",
        b"PATHS=no",
    ]
    command: list[str | bytes] = [programs("context"), "environment", "-", programs("hold"), *variables]
    with seen(*command, tracing={"env": ("LD_PRELOAD", "PATH", "NOT_THERE")}) as (event, _):
        assert event.env == (("PATH", "first"), ("LD_PRELOAD", "x=y"), ("PATH", "second"))
        assert event.env_status == "complete"
    with seen(*command, tracing={"env": ("NOT_THERE",)}) as (event, _):
        assert (event.env, event.env_status) == ((), "complete")


# ---- All of it ---------------------------------------------------------------------------


def test_what_belongs_together_stays_together(programs: Programs, place: pathlib.Path) -> None:
    """Of programs that start side by side, with names and environments of all lengths."""
    nothing, count = programs("nothing"), scaled(101)
    folders = [place / ("n" * (number * 37 % 251 + 1)) / str(number) for number in range(count)]
    variables = [{"NUMBER": str(number), "REST": "x" * (number * 613 % 9_973)} for number in range(count)]
    with ExecTracer(Filter(ppids=os.getpid()), env=True) as tracer:
        processes = []
        for number in range(count):
            folders[number].mkdir(parents=True)
            command = [nothing, str(number), "y" * (number * 211 % 4_999)]
            processes.append(subprocess.Popen(command, cwd=folders[number], env=variables[number]))
        for process in processes:
            process.wait()
        events = {event.pid: event for event in tracer.read(timeout=0)}
        assert tracer.stats().lost == 0
    assert set(events) == {process.pid for process in processes}
    for number, process in enumerate(processes):
        event = events[process.pid]
        assert list(event.argv) == process.args
        assert event.env == tuple(variables[number].items())
        assert event.cwd is not None
        assert event.cwd.endswith(str(folders[number]))


@pytest.mark.parametrize("size", [20_011, 120_011, 1_200_007])
def test_all_of_it_beside_a_large_argv(size: int, programs: Programs, tracer_buffer: str) -> None:
    if tracer_buffer == "perf":
        pytest.skip("KERNEL: a perf record holds no more than 16 KiB of argv")
    words = ["z" * 9_999] * (size // 10_000)
    tracing = {"env": True, "argv_size": 2 << 20, "buffer_size": 8 << 20}
    with seen(programs("hold"), *words, tracing=tracing, env={"A": "b"}) as (event, pid):
        agree(event, pid)
        assert event.argv[1:] == tuple(words)


def test_the_cgroup_of_a_process_that_starts_and_ends(programs: Programs) -> None:
    """The one part that forks, exits and failed attempts have too."""
    # Which tries one after the other.
    search = ("/usr/bin/env", f"PATH=/no/such:{os.path.dirname(programs('hold'))}", "hold")
    with ExecTracer(Filter(ppids=os.getpid()), failed=True, forks=True, exits=True) as tracer:
        with held(*search) as pid:
            path = witness.cgroup(pid)[1]
        events = tracer.read(timeout=0)
    assert [event.kind for event in events] == ["fork", "exec", "failed_exec", "exec", "exit"]
    assert {(event.pid, event.cgroup_path) for event in events if isinstance(event, ProcessEvent)} == {
        (pid, path)
    }
