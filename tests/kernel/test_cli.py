"""The command, as a user types it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time

import pytest

import execwatch as package
from execwatch import ExecEvent, event_from_dict

from .commands import Traced, again_and_again, execute, execwatch, traced
from .conftest import COUNT, Reason, skip

HEADER = b"TIME(s) PCOMM            PID     PPID    RET ARGS"
ME = ("-P", str(os.getpid()))


def run(*options: str, **kwargs: object) -> subprocess.CompletedProcess[str]:
    done: subprocess.CompletedProcess[str] = subprocess.run(  # type: ignore[call-overload]
        execwatch(*options), capture_output=True, text=True, cwd="/", timeout=60, **kwargs
    )
    return done


def rows(program: Traced, number: int) -> list[str]:
    return [program.line().decode() for _ in range(number)]


def ended(program: Traced, status: int = 0) -> None:
    done = program.end()
    assert (done.status, done.errors) == (status, "")


# -- The table -------------------------------------------------------------------------


def test_the_table() -> None:
    with traced(*execwatch(*ME, "--count", "1")) as program:
        assert program.line() == HEADER
        pid = execute("/bin/true", "one", "two words")
        (row,) = rows(program, 1)
        ended(program)
    assert re.fullmatch(
        rf"\d+\.\d{{3}} +true {{13}}{pid:<7} {os.getpid():<7}   0 /bin/true one 'two words'", row
    )


def test_columns_of_time() -> None:
    for options, heading, pattern in (
        (["-T"], b"TIME     PCOMM ", r"\d\d:\d\d:\d\d true "),
        (["-t"], b"TIME(s) PCOMM ", r"\d+\.\d{3} +true "),
        (["-t", "-T"], b"TIME     TIME(s) PCOMM ", r"\d\d:\d\d:\d\d \d+\.\d{3} +true "),
    ):
        with traced(*execwatch(*ME, "--count", "1", *options)) as program:
            assert program.line().startswith(heading)
            execute("/bin/true")
            assert re.match(pattern, rows(program, 1)[0])
            ended(program)


def test_seconds_count_from_the_start() -> None:
    before = time.monotonic()
    with traced(*execwatch(*ME, "--count", "1")) as program:
        program.line()
        execute("/bin/true")
        seconds = float(rows(program, 1)[0].split()[0])
    assert 0 <= seconds <= time.monotonic() - before


def test_the_time_of_day_is_local() -> None:
    zone = {**os.environ, "TZ": "EST-12"}
    with traced(*execwatch(*ME, "-T", "--count", "1"), env=zone) as program:
        program.line()
        now = time.time()
        execute("/bin/true")
        shown = rows(program, 1)[0][:8]
    # A second may pass between the two clocks.
    assert shown in {time.strftime("%H:%M:%S", time.gmtime(now + 43200 + s)) for s in (0, 1, 2)}


def test_a_script_shows_its_interpreter_and_a_binary_its_path(tmp_path: object) -> None:
    script = f"{tmp_path}/script"
    with open(script, "w") as file:
        file.write("#!/bin/sh -e\n")
    os.chmod(script, 0o755)
    with traced(*execwatch(*ME, "--count", "2")) as program:
        program.line()
        execute("calls itself this", "and that", path=script)
        execute("a lie", "x", path="/bin/true")
        shown = [row.split("   0 ", 1)[1] for row in rows(program, 2)]
        ended(program)
    assert shown == [f"/bin/sh -e {script} 'and that'", "/bin/true x"]


def test_hostile_text_stays_on_its_line_and_reads_back() -> None:
    argv = [
        b"/bin/true",
        b"two\nlines",
        b"\x1b[2Jred\x07",
        b"\xff\xfe",
        b"it's",
        b"",
        "é😀\u202e".encode(),
        b"a\\nb",
    ]
    with traced(*execwatch(*ME, "--count", "1")) as program:
        program.line()
        execute(*argv)
        row = program.line()
        ended(program)
    assert row.decode().isprintable()
    # A shell reads the line back as the same bytes.
    shown = row.split(b"   0 ", 1)[1]
    bash = shutil.which("bash")
    if bash is None:
        skip(Reason.TOOL, "bash")
    read_back = subprocess.run([bash, "-c", b"printf '%s\\0' " + shown], capture_output=True, check=True)
    assert read_back.stdout.split(b"\0")[:-1] == argv


def test_a_hostile_name(tmp_path: object) -> None:
    path = f"{tmp_path}/a\n1 2 \x1b[m"
    os.symlink("/bin/true", path)
    with traced(*execwatch(*ME, "--count", "1")) as program:
        program.line()
        execute("x", path=path)
        row = program.line().decode()
        ended(program)
    assert r"a\n1 2 \x1b[m" in row
    assert row.isprintable()


def test_arguments_beyond_the_limit_are_marked() -> None:
    with traced(*execwatch(*ME, "--count", "1")) as program:
        program.line()
        execute("/bin/true", *["x" * 1000] * 20)
        row = program.line()
        ended(program)
    assert row.endswith(b"x ...")


def test_a_terminal_that_knows_only_ascii() -> None:
    narrow = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    with traced(*execwatch(*ME, "--count", "1"), env=narrow) as program:
        program.line()
        execute("/bin/true", "é")
        assert program.line().endswith(rb"/bin/true '\xe9'")
        ended(program)


# -- JSON --------------------------------------------------------------------------------


def test_json_lines_are_events() -> None:
    with traced(*execwatch(*ME, "--json", "--count", "1")) as program:
        with again_and_again("/bin/true", "two\nlines"):
            line = program.line()
        ended(program)
    event = event_from_dict(json.loads(line))
    assert isinstance(event, ExecEvent)
    assert event.argv == ("/bin/true", "two\nlines")
    assert event.ppid == os.getpid()


def test_json_loses_no_byte_and_is_ascii() -> None:
    argv = ("/bin/true", "\udcff", "\x1b\x9b", "é")
    with traced(*execwatch(*ME, "--json", "--count", "1")) as program:
        with again_and_again(*argv):
            line = program.line()
        ended(program)
    assert line.isascii()
    assert b"\x1b" not in line
    event = event_from_dict(json.loads(line))
    assert isinstance(event, ExecEvent)
    assert event.argv == argv


# -- Which -------------------------------------------------------------------------------


def shown_arguments(*options: str, until: str = "the last") -> list[str]:
    """What is shown, of a few programs, up to the last one of them."""
    with traced(*execwatch(*options)) as program:
        program.line()
        execute("/bin/true", "first")
        execute("/bin/sh", "-c", "/bin/true of-a-shell; exit", path="/bin/sh")
        subprocess.run(["/bin/true", "of-nobody"], user=65534, check=True)
        execute("/bin/echo", until, path="/bin/echo")
        shown: list[str] = []
        while not shown or until not in shown[-1]:
            shown += [row.split("   0 ", 1)[1] for row in rows(program, 1)]
        program.interrupt()
        ended(program, 130)
    return shown


def test_attempts_that_failed() -> None:
    with traced(*execwatch("-x", *ME, "--count", "2")) as program:
        assert program.line() == HEADER
        with pytest.raises(FileNotFoundError):
            os.posix_spawn("/no/such", ["/no/such", "a b"], {})
        execute("/bin/true")
        failed, done = rows(program, 2)
        ended(program)
    assert re.search(r"  -2 /no/such 'a b'$", failed)
    assert re.search(r"   0 /bin/true$", done)


def test_by_name() -> None:
    assert shown_arguments(*ME, "-n", "^echo$") == ["/bin/echo 'the last'"]


def test_by_arguments() -> None:
    chosen = shown_arguments("-l", "^/bin/true (first|of-a)|the last$")
    assert [row for row in chosen if "python" not in row] == [
        "/bin/true first",
        "/bin/true of-a-shell",
        "/bin/echo 'the last'",
    ]


def test_by_parent() -> None:
    assert "/bin/true of-a-shell" not in shown_arguments(*ME)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("user", ["nobody", "65534"])
def test_by_user(user: str) -> None:
    with traced(*execwatch(*ME, "-u", user, "--count", "1")) as program:
        program.line()
        execute("/bin/true", "of-root")
        subprocess.run(["/bin/true", "of-nobody"], user=65534, check=True)
        assert program.line().endswith(b"/bin/true of-nobody")
        ended(program)


# -- The end -----------------------------------------------------------------------------


def test_the_end_by_time() -> None:
    done = run(*ME, "--duration", "0.2")
    assert (done.returncode, done.stdout, done.stderr) == (0, HEADER.decode() + "\n", "")


def test_what_came_before_the_end_is_shown() -> None:
    with traced(*execwatch(*ME, "--duration", "0.5")) as program:
        program.line()
        with again_and_again("/bin/true", "in time"):
            done = program.end()
    assert (done.status, done.errors) == (0, "")
    # Whole lines, of all that started before the time was up.
    times = [float(row.split(b" ", 1)[0]) for row in done.output.splitlines()]
    assert times == sorted(times)
    assert done.output.endswith(b"/bin/true 'in time'\n")


def test_ctrl_c_shows_what_is_buffered_and_is_quiet() -> None:
    with traced(*execwatch(*ME)) as program:
        program.line()
        for number in range(COUNT):
            execute("/bin/true", str(number))
        program.interrupt()
        done = program.end()
    assert (done.status, done.errors) == (130, "")
    assert len(done.output.splitlines()) == COUNT


def test_a_reader_that_leaves() -> None:
    with traced(*execwatch(*ME)) as program:
        program.line()
        assert program.process.stdout is not None
        program.process.stdout.close()
        with again_and_again("/bin/true"):
            assert program.process.wait() == 0
        assert program.process.stderr is not None
        assert program.process.stderr.read() == b""


def test_a_reader_that_leaves_an_idle_tracer() -> None:
    with traced(*execwatch(*ME)) as program:
        program.line()
        assert program.process.stdout is not None
        program.process.stdout.close()
        assert program.process.wait() == 0


def test_a_full_disk() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            execwatch("--duration", "0"), stdout=full, stderr=subprocess.PIPE, cwd="/", check=False
        )
    assert done.returncode == 1
    assert done.stderr == b"execwatch: No space left on device\n"


# -- What can't be done --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-P", "4194305"], "there is no process 4194305"),
        (["no-such-command"], "no command 'no-such-command'; expected trace, run, record, report, doctor"),
    ],
)
def test_wrong_usage_names_what_is_wrong(options: list[str], said: str) -> None:
    done = run(*options)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert "Traceback" not in done.stderr


#: A user who may read everything, so that it can be run wherever the interpreter lies, and nothing else.
_NOBODY = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
_READS = ["--inh-caps=-all,+cap_2", "--ambient-caps=-all,+cap_2", "--bounding-set=-all,+cap_2"]


def as_nobody(*options: str) -> subprocess.CompletedProcess[str]:
    if not shutil.which("setpriv"):
        skip(Reason.TOOL, "setpriv (util-linux)")
    return subprocess.run(
        [*_NOBODY, *_READS, *execwatch(*options)], capture_output=True, text=True, cwd="/", check=False
    )


@pytest.mark.usefixtures("root")
def test_nobody_may_not_trace() -> None:
    done = as_nobody()
    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr.startswith("execwatch: tracing needs CAP_BPF and CAP_PERFMON")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.usefixtures("root")
def test_doctor_tells_nobody_why() -> None:
    done = as_nobody("doctor")
    assert (done.returncode, done.stderr) == (4, "")
    assert "no  privileges      without CAP_BPF, CAP_PERFMON (uid 65534)" in done.stdout
    assert "remedy: sudo " in done.stdout


def test_doctor_finds_that_all_is_well() -> None:
    done = run("doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\nexecwatch can trace here.\n")
    assert "loaded and attached" in done.stdout


def test_doctor_inside_a_pid_namespace() -> None:
    if not shutil.which("unshare"):
        skip(Reason.TOOL, "unshare (util-linux)")
    command = ["unshare", "--pid", "--fork", "--mount-proc", *execwatch("doctor")]
    done = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
    assert done.returncode == 0
    assert "note: inside a pid namespace" in done.stdout


def test_version_and_help() -> None:
    assert run("--version").stdout == f"execwatch {package.__version__}\n"
    for words in (["--help"], ["trace", "--help"], ["doctor", "--help"]):
        done = run(*words)
        assert done.returncode == 0
        assert "examples:" in done.stdout
