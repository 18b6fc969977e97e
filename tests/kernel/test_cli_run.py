"""``run``, ``record`` and ``report`` as a user types them, through pipes."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil
import signal
import stat
import subprocess
from typing import Callable

import pytest

import execwatch as package
from execwatch import Filter

from .commands import PATIENCE, again_and_again, execute, execwatch, traced
from .conftest import COUNT, Reason, skip, until
from .test_cli import as_nobody

Programs = Callable[[str], str]

HEADER = "TIME(s) PCOMM            PID     PPID    RET ARGS"


def run(*words: str, **options: object) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(  # type: ignore[call-overload]
        execwatch(*words), capture_output=True, text=True, timeout=PATIENCE, **{"cwd": "/", **options}
    )
    return done


# -- run --------------------------------------------------------------------------------


def test_the_table_of_a_command_and_of_nothing_else(programs: Programs) -> None:
    nothing = programs("nothing")
    script = f"echo out; echo err >&2; for n in $(seq {COUNT}); do {nothing} $n; done; exit 3"
    with again_and_again(nothing, "a stranger", path=nothing):
        done = run("run", "--", "/bin/sh", "-c", script)
    assert (done.returncode, done.stdout) == (3, "out\n")
    said, header, *rows = done.stderr.splitlines()
    assert (said, header) == ("err", HEADER)
    shown = [row.split("   0 ", 1)[1] for row in rows]
    assert shown[0].startswith("/bin/sh -c ")
    assert shown[2:] == [f"{nothing} {number}" for number in range(1, COUNT + 1)]
    assert rows[0].split()[2] == rows[-1].split()[3]
    assert [float(row.split()[0]) for row in rows] == sorted(float(row.split()[0]) for row in rows)


def test_the_tree_tells_durations_and_ends() -> None:
    script = "sleep 0.2; sh -c 'kill -9 $$'; (exit 5); (sh -c 'exit 4'; true); exit 3"
    done = run("run", "--tree", "sh", "-c", script)
    assert done.returncode == 3
    tree = done.stderr[done.stderr.index("  TOOK(s) ") :].splitlines()[1:]
    rows = [re.fullmatch(r" *(\d+\.\d{3}) (\S+) +\d+ +([│├└─ ]*)(.*)", row) for row in tree]
    assert [(row[2], row[3].strip(), row[4].split(" -c ")[0]) for row in rows if row] == [
        ("3", "", "sh"),
        ("0", "├─", "sleep 0.2"),
        ("SIGKILL", "├─", "sh"),
        ("5", "├─", "sh"),
        ("0", "└─", "sh"),
        ("4", "└─", "sh"),
    ]
    took = [float(row[1]) for row in rows if row]
    assert took[0] >= took[1] >= 0.2
    assert tree[3].endswith("(forked)")


def test_the_summary_counts() -> None:
    done = run("run", "--summary", "sh", "-c", "env true; env true; env false")
    assert done.returncode == 1
    assert re.match(r"4 processes, 7 execs in \d\.\d{3} s\n\nslowest:\n", done.stderr)
    assert re.search(r"\n +3    env\n", done.stderr)
    assert re.search(r"\nfailed \(2\):\n +exit 1  \d+ sh -c ", done.stderr)


def test_attempts_that_failed_are_the_commands_own(tmp_path: pathlib.Path) -> None:
    env = {**os.environ, "PATH": f"{tmp_path}/a:{tmp_path}/b:{os.environ['PATH']}"}
    done = run("run", "-x", "env", "true", env=env)
    names = [row.split(None, 5)[-1] for row in done.stderr.splitlines()[1:]]
    assert names[1:3] == [f"{tmp_path}/a/true", f"{tmp_path}/b/true"]
    # Where `env` was looked for was no attempt of anybody's.
    assert names[0] == f"{shutil.which('env')} true"
    assert [row.split()[4] for row in done.stderr.splitlines()[2:4]] == ["-2", "-2"]


def test_a_recording_that_is_kept_is_what_is_shown(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "x.ndjson.gz")
    done = run("run", "--json", "-o", path, "--", "sh", "-c", "env true; exit 2")
    report = run("report", "--json", path)
    assert (done.returncode, report.returncode, report.stderr) == (2, 0, "")
    assert done.stderr == report.stdout
    kinds = [json.loads(line)["kind"] for line in report.stdout.splitlines()]
    assert kinds == ["fork", "exec", "fork", "exec", "exec", "exit", "exit"]
    done = run("run", "-o", path, "true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_command_has_the_same_descriptors_as_without() -> None:
    read, write = os.pipe()
    command = ("ls", "-l", "/proc/self/fd")
    try:
        direct = subprocess.run(command, pass_fds=[write], capture_output=True, text=True)
        under = run("run", *command, pass_fds=[write])
    finally:
        os.close(read)
        os.close(write)
    # Pipes of its own aside, which have other numbers.
    descriptors = [re.findall(r"(\d+) -> (?:(pipe):|\S+)", done.stdout) for done in (direct, under)]
    assert descriptors[0] == descriptors[1]
    assert (str(write), "pipe") in descriptors[1]


def test_an_output_that_nobody_reads_any_more() -> None:
    line = f"{' '.join(execwatch('run', '--', 'sh', '-c'))} 'yes; exit 9' | head -n 2"
    done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=PATIENCE, cwd="/")
    assert done.stdout == "y\ny\n"
    # The command was ended by SIGPIPE as it would have been without; that is told.
    assert done.stderr.splitlines()[0] == HEADER or "Broken pipe" in done.stderr


def test_who_ends_it_ends_the_command() -> None:
    script = "trap 'echo bye; exit 7' TERM; echo ready; while :; do sleep 0.01; done"
    with traced(*execwatch("run", "--tree", "sh", "-c", script)) as program:
        assert program.line() == b"ready"
        program.process.send_signal(signal.SIGTERM)
        done = program.end()
    assert (done.status, done.output) == (7, b"bye\n")
    assert re.search(r"^ +\d+\.\d{3} 7 +\d+ +sh -c ", done.errors, re.M)


def test_ctrl_c_is_the_commands_affair() -> None:
    with traced(
        *execwatch("run", "sh", "-c", "echo ready; read line; exit 4"), stdin=subprocess.PIPE
    ) as program:
        assert program.line() == b"ready"
        program.interrupt()
        assert program.process.stdin is not None
        program.process.stdin.write(b"\n")
        done = program.end()
    assert done.status == 4
    assert done.errors.startswith(HEADER)


def test_a_daemon_is_named(tmp_path: pathlib.Path) -> None:
    done = run("run", "--linger", "0.2", "sh", "-c", "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!")
    pid = int(done.stdout)
    os.kill(pid, signal.SIGKILL)
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1] == f"execwatch: still running: {pid} sleep 1000"


def test_a_time_limit() -> None:
    done = run("run", "--timeout", "0.3", "sleep", "1000")
    assert done.returncode == 124
    said, header, row = done.stderr.splitlines()
    assert (said, header) == ("execwatch: sleep was killed after 0.3 s", HEADER)
    assert row.endswith("sleep 1000")


def test_hostile_text_is_escaped() -> None:
    hostile = ["\x1b]2;title\x07", "two\nlines", "\u202eesrever", "\udcff", "\x9b2J"]
    for view in ([], ["--tree"]):
        done = run("run", *view, "--", "true", *hostile, errors="surrogateescape")
        assert done.returncode == 0
        assert done.stdout == ""
        assert all(line.isprintable() for line in done.stderr.split("\n"))
        assert "title" in done.stderr


@pytest.mark.usefixtures("root")
def test_without_privileges_the_command_is_not_run(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "of everybody"
    folder.mkdir()
    folder.chmod(0o777)
    for verb in (["run"], ["record", "-o", str(folder / "x.ndjson")]):
        done = as_nobody(*verb, "--", "echo", "it runs")
        assert (done.returncode, done.stdout) == (125, "")
        assert done.stderr.startswith("execwatch: tracing needs CAP_BPF and CAP_PERFMON")


# -- record -----------------------------------------------------------------------------


def test_the_whole_machine_until_ctrl_c(tmp_path: pathlib.Path, programs: Programs) -> None:
    path, nothing = tmp_path / "x.ndjson", programs("nothing")
    with traced(*execwatch("record", "-o", str(path))) as program:
        until(lambda: path.exists() and path.stat().st_size, "its first line")
        with again_and_again(nothing, "ready", path=nothing):
            until(lambda: "ready" in path.read_text(), "the first event")
        for number in range(COUNT):
            execute(nothing, str(number), path=nothing)
        program.interrupt()
        done = program.end()
    recording = package.load(path)
    assert (done.status, done.output) == (130, b"")
    assert done.errors == f"execwatch: {len(recording)} events in {path} ({size(path)})\n"
    assert recording.complete
    mine = [event.argv for event in recording.execs if event.ppid == os.getpid()]
    assert [argv for argv in mine if argv[1:] != ("ready",)] == [(nothing, str(n)) for n in range(COUNT)]
    assert path.stat().st_mode & 0o777 == 0o600


def size(path: pathlib.Path) -> str:
    """As people read it: three digits and a unit."""
    count = path.stat().st_size
    return (
        f"{count} B"
        if count < 1000
        else f"{count / 1000:.3g} kB"
        if count < 999_500
        else f"{count / 1e6:.3g} MB"
    )


def test_for_some_time_of_two_users(root: None, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.ndjson"
    with traced(
        *execwatch("record", "-o", str(path), "-u", "nobody", "-u", "65533", "--duration", "1")
    ) as program:
        until(lambda: path.exists() and path.stat().st_size, "its first line")
        while program.process.poll() is None:
            execute("/bin/true", "of root")
            subprocess.run(["/bin/true", "of nobody"], user=65534, check=True)
            subprocess.run(["/bin/true", "of another"], user=65533, check=True)
        done = program.end()
    assert done.status == 0
    recording = package.load(path)
    assert recording.complete
    assert {event.argv[1] for event in recording.execs} == {"of nobody", "of another"}


def test_the_subtree_of_a_command(tmp_path: pathlib.Path, programs: Programs) -> None:
    path, nothing = tmp_path / "x.ndjson.gz", programs("nothing")
    with again_and_again(nothing, "a stranger", path=nothing):
        done = run(
            "record",
            "-x",
            "-o",
            str(path),
            "--",
            "sh",
            "-c",
            "env true; env no-such; (sleep 0.1; true) & exit 6",
        )
    recording = package.load(path)
    assert (done.returncode, done.stdout) == (6, "")
    assert f"execwatch: {len(recording)} events in {path} ({size(path)})\n" in done.stderr
    assert recording.complete
    assert all(process.ended for process in recording.processes)
    names = [event.comm for event in recording.execs]
    assert names[:3] == ["sh", "env", "true"]
    assert "sleep" in names
    assert {event.error for event in recording.failed} == {"ENOENT"}
    report = run("report", str(path), "-n", "^sleep$")
    assert report.stdout.splitlines()[1:][0].endswith("sleep 0.1")


def test_what_outlives_the_command_is_counted(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "x.ndjson")
    command = ("sh", "-c", "sleep 1000 </dev/null >/dev/null 2>&1 & echo $!")
    done = run("record", "-o", path, "--linger", "0.2", *command)
    os.kill(int(done.stdout), signal.SIGKILL)
    assert done.stderr.splitlines()[-1] == "execwatch: still running: 1 of the command's processes"


@pytest.mark.parametrize(("command", "status"), [([], 1), (["--", "sh", "-c", "exit 3"], 125)])
def test_a_full_disk(command: list[str], status: int, root: None, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.ndjson"
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 7))  # as /dev/full
    with again_and_again("/bin/true"):
        done = run("record", "-o", str(path), *command)
    assert (done.returncode, done.stderr) == (status, "execwatch: No space left on device\n")


# -- report -----------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path: pathlib.Path) -> pathlib.Path:
    """A recording of a command."""
    with package.record(Filter(descendants_of=os.getpid()), path=tmp_path / "x.ndjson"):
        subprocess.run(["sh", "-c", f"for n in $(seq {COUNT}); do /bin/true $n; done"], check=True)
    return tmp_path / "x.ndjson"


def test_a_recording_needs_no_root(root: None, recorded: pathlib.Path) -> None:
    # It is its owner's alone; who owns it needs nothing else.
    done = as_nobody("report", str(recorded))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == run("report", str(recorded)).stdout
    assert done.stdout.count("/bin/true") >= COUNT


def test_the_first_lines_are_enough(recorded: pathlib.Path) -> None:
    for view in ("-t", "--tree"):
        line = f"{' '.join(execwatch('report', str(recorded), view))} | head -n 1; wait"
        done = subprocess.run(["sh", "-c", line], capture_output=True, text=True, timeout=PATIENCE, cwd="/")
        assert (done.stdout.count("\n"), done.stderr) == (1, "")


def test_jq_reads_what_comes(recorded: pathlib.Path) -> None:
    jq = shutil.which("jq") or skip(Reason.TOOL, "jq")
    shown = run("report", "--json", str(recorded), "-n", "^true$").stdout
    done = subprocess.run([jq, "-r", ".argv[1]"], input=shown, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(number) for number in range(1, COUNT + 1)]
