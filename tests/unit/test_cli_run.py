"""``run`` and ``record`` without a kernel: the command and its exit status; the recorder is a fake."""

from __future__ import annotations

import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from typing import Any, Callable, Dict, Iterator, List

import pytest

import execwatch.recording.recorder as recorders
from execwatch import BccNotFoundError, ExecTracer, PrivilegeError, Recording, cli
from execwatch.cli import record as record_verb
from execwatch.events import AnyEvent, KindStats, Stats
from execwatch.testing import exec_event, exit_event, fork_event, lost_events

PYTHON = sys.executable

ENDS = (signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD)


class FakeRecorder:
    """Has recorded these events, and counts a fork and an exit for each call to ``stats``."""

    made: List[FakeRecorder]
    events: List[AnyEvent]
    counts: Callable[[], Stats]

    def __init__(self, filter: Any = None, **options: Any) -> None:
        self.filter, self.options = filter, options
        self.made.append(self)

    def __enter__(self) -> FakeRecorder:
        return self

    def __exit__(self, *exc_info: object) -> None:
        pass

    def stats(self) -> Stats:
        return type(self).counts()

    @property
    def recording(self) -> Recording:
        return Recording(self.events)


def counted(forks: int, exits: int) -> Callable[[], Stats]:
    return lambda: Stats(fork=KindStats(delivered=forks), exit=KindStats(delivered=exits))


@pytest.fixture
def recorder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    class Recorder(FakeRecorder):
        counts = staticmethod(counted(1, 1))

    Recorder.made, Recorder.events = [], []
    monkeypatch.setattr(recorders, "record", Recorder)
    before = list(map(signal.getsignal, ENDS))
    yield Recorder
    assert list(map(signal.getsignal, ENDS)) == before


def sh(text: str) -> List[str]:
    return ["run", "--", "/bin/sh", "-c", text]


# -- The command --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["run", "--", "printf", "%s,", "--", "-x", "--tree"], "--,-x,--tree,"),
        (["run", "printf", "%s,", "--", "-x", "--tree"], "--,-x,--tree,"),
        (["run", "--tree", "--linger", "0", "printf", "%s,", "a"], "a,"),
        (["run", "-x", "--", "printf", "%s,", "two words", ""], "two words,,"),
        (["record", "-o", "x.ndjson", "--", "printf", "%s,", "-o"], "-o,"),
        (["record", "-x", "-o", "x.ndjson", "printf", "%s,", "-o"], "-o,"),
        (["run", "-o", "x.parquet", "printf", "%s,", "a"], "a,"),
    ],
)
def test_its_words_are_what_follows_the_options(
    words: List[str], said: str, recorder: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == 0
    assert capfd.readouterr().out == said
    (made,) = recorder.made
    assert made.filter is None
    path = words[words.index("-o") + 1] if "-o" in words[:3] else None
    assert made.options == {"path": path, "failed": "-x" in words[:3]}


def test_its_streams_and_descriptors_are_left_alone(
    recorder: Any, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x"
    read, write = os.pipe()
    os.set_inheritable(read, True)
    os.write(write, b"a descriptor\n")
    os.close(write)
    assert cli.main(sh(f"cat /dev/fd/{read}; echo out; echo err >&2; pwd >{path}")) == 0
    os.close(read)
    out, err = capfd.readouterr()
    assert out == "a descriptor\nout\n"
    assert err.startswith("err\n")
    assert path.read_text().strip() == os.getcwd()


@pytest.mark.parametrize("verb", [["run"], ["record", "-o", "x.ndjson"]])
@pytest.mark.parametrize(
    ("command", "status", "said"),
    [
        (["sh", "-c", "exit 0"], 0, ""),
        (["sh", "-c", "exit 3"], 3, ""),
        (["sh", "-c", "kill -9 $$"], 137, ""),
        (["sh", "-c", "kill -2 $$"], 130, ""),
        (["no-such-command"], 127, "execwatch: no-such-command: No such file or directory\n"),
        (["./no\nsuch"], 127, "execwatch: $'./no\\nsuch': No such file or directory\n"),
        (["/"], 126, "execwatch: /: Permission denied\n"),
        (["/etc/passwd"], 126, "execwatch: /etc/passwd: Permission denied\n"),
    ],
)
def test_exit_status(
    verb: List[str],
    command: List[str],
    status: int,
    said: str,
    recorder: Any,
    capfd: pytest.CaptureFixture[str],
) -> None:
    assert cli.main([*verb, "--", *command]) == status
    err = capfd.readouterr().err
    assert err == said if said else not err.startswith("execwatch: /")


def test_a_script_that_says_nothing_of_an_interpreter(
    recorder: Any, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "script"
    script.write_text("exit 0\n")
    script.chmod(0o755)
    assert cli.main(["run", str(script)]) == 126
    assert capfd.readouterr().err == f"execwatch: {script}: Exec format error\n"


def test_a_command_that_takes_too_long(recorder: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["run", "--timeout", "0.2", "sleep", "1000"]) == 124
    assert "execwatch: sleep was killed after 0.2 s\n" in capfd.readouterr().err


@pytest.mark.parametrize("words", [["run"], ["run", "--tree"], ["run", "--"], ["run", "--no-such", "ls"]])
def test_wrong_usage_of_run(words: List[str], recorder: Any, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == 125
    out, err = capfd.readouterr()
    assert out == ""
    assert "execwatch run [OPTION...] [--] COMMAND" in err
    assert recorder.made == []


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["record"], 2),
        (["record", "-o", "x.ndjson", "--duration", "soon"], 2),
        (["record", "--", "ls"], 125),
        (["record", "-o", "x.ndjson", "--"], 125),
        (["record", "-o", "x.ndjson", "-u", "0", "ls"], 125),
        (["record", "-o", "x.ndjson", "--duration", "1", "--", "ls"], 125),
    ],
)
def test_wrong_usage_of_record(
    words: List[str], status: int, recorder: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(words) == status
    assert capfd.readouterr().err
    assert recorder.made == []


@pytest.mark.parametrize(
    ("error", "alone"),
    [
        (PrivilegeError("needs root"), 4),
        (BccNotFoundError("needs BCC"), 3),
        (OSError(28, "No space left"), 1),
        (KeyError("x"), 1),
    ],
)
def test_failures_of_its_own(
    error: Exception,
    alone: int,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: pathlib.Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    def start(tracer: object) -> None:
        raise error

    monkeypatch.setattr(ExecTracer, "start", start)
    path = str(tmp_path / "x.ndjson")
    assert cli.main(["run", "ls"]) == 125
    assert cli.main(["record", "-o", path, "ls"]) == 125
    assert cli.main(["record", "-o", path, "--duration", "0"]) == alone
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("No space left" if isinstance(error, OSError) and error.errno else str(error)) == 3


@pytest.mark.parametrize(
    ("words", "status"), [(["record", "-o", "x.txt"], 2), (["record", "-o", "x.txt", "ls"], 125)]
)
def test_a_name_of_no_format(words: List[str], status: int, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(words) == status
    assert capfd.readouterr().err.startswith("execwatch: -o: expected a name that ends with one of .ndjson")


# -- Signals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 5), (signal.SIGQUIT, 5), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
)
def test_who_wants_to_end_it_ends_the_command(
    number: int, status: int, recorder: Any, tmp_path: pathlib.Path
) -> None:
    """SIGINT and SIGQUIT a terminal sends to both: here, to execwatch alone, they do nothing."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    text = f"kill -{int(number)} {os.getpid()}; read line <{fifo}; exit 5"
    writer = subprocess.Popen([PYTHON, "-c", f"open({str(fifo)!r}, 'w').write('on\\n')"])
    if status == 5:
        assert cli.main(sh(text)) == status
    else:
        writer.kill()
        assert cli.main(sh(text)) == status
    writer.wait()


def test_signals_that_were_ignored_stay_so(recorder: Any) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    try:
        assert cli.main(sh(f"kill -15 {os.getpid()}; kill -15 $$; exit 6")) == 6
    finally:
        signal.signal(signal.SIGTERM, before)


def test_who_started_it_may_have_ignored_the_end_of_children(recorder: Any) -> None:
    """Then the kernel keeps no exit status."""
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert cli.main(sh("exit 6")) == 6
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGCHLD, before)


# -- The rest of its tree -------------------------------------------------------------------


def test_descendants_are_waited_for(recorder: Any) -> None:
    states = iter([(0, 0), (3, 1), (3, 2), (3, 3)])
    recorder.counts = staticmethod(lambda: counted(*next(states))())
    assert cli.main(["run", "--linger", "60", "true"]) == 0
    assert list(states) == []


def test_but_only_so_long(recorder: Any) -> None:
    recorder.counts = staticmethod(counted(2, 1))
    started = time.monotonic()
    assert cli.main(["run", "--linger", "0.3", "true"]) == 0
    assert 0.3 <= time.monotonic() - started < 20


def test_and_only_until_ctrl_c(recorder: Any) -> None:
    asked: List[int] = []

    def counts() -> Stats:
        asked.append(1)
        if len(asked) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return counted(2, 1)()

    recorder.counts = staticmethod(counts)
    assert cli.main(["run", "--linger", "1000", "true"]) == 0


# -- What is shown ---------------------------------------------------------------------------


def daemon(pid: int, *argv: str) -> List[AnyEvent]:
    who: Dict[str, Any] = {"pid": pid, "process_key": f"boot-{pid}-1"}
    return [fork_event(**who), exec_event(**who, argv=argv)]


@pytest.mark.parametrize(
    ("options", "first"),
    [
        ([], "TIME(s) PCOMM"),
        (["--tree"], "  TOOK(s) EXIT"),
        (["--summary"], "1 process, 1 exec"),
        (["--json"], '{"kind":"exec"'),
    ],
)
def test_views_go_to_standard_error(
    options: List[str], first: str, recorder: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder.events = [exec_event(), exit_event()][:1]
    assert cli.main(["run", *options, "--", "true"]) == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(first)
    assert cli.main(["run", *options, "-o", "x.ndjson", "--", "true"]) == 0
    assert capfd.readouterr().err.startswith(first if options else "execwatch: still running")


@pytest.mark.parametrize(
    ("options", "begins"),
    [
        ([], "TIME(s) PCOMM"),
        (["--tree"], "  TOOK(s) EXIT"),
        (["--summary"], "1 process, 1 exec"),
        (["--json"], '{"kind":"exec"'),
    ],
)
def test_a_file_of_another_name_gets_the_text(
    options: List[str], begins: str, recorder: Any, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recorder.events = [exec_event(argv=("/bin/true", "é\udcff"))]
    path = tmp_path / "out.txt"
    assert cli.main(["run", *options, "-o", str(path), "--", "sh", "-c", "echo err >&2; exit 3"]) == 3
    assert path.read_text(encoding="utf-8").startswith(begins)
    assert path.stat().st_mode & 0o777 == 0o600
    assert recorder.made[0].options["path"] is None
    out, err = capfd.readouterr()
    assert out == ""
    first, second = err.splitlines()
    assert first == "err"
    assert second.startswith("execwatch: still running: ")


def test_a_file_that_can_not_be_written(recorder: Any, tmp_path: pathlib.Path, capfd: Any) -> None:
    ran = tmp_path / "ran"
    for path in (tmp_path, tmp_path / "none" / "x.txt"):
        assert cli.main(["run", "-o", str(path), "touch", str(ran)]) == 125
        assert capfd.readouterr().err.startswith("execwatch: ")
    assert not ran.exists()


def test_what_still_runs_is_named_on_one_line(recorder: Any, capfd: pytest.CaptureFixture[str]) -> None:
    recorder.events = daemon(7, "sleep", "a b\n\x1b")
    assert cli.main(["run", "true"]) == 0
    assert capfd.readouterr().err.splitlines()[2:] == [r"execwatch: still running: 7 sleep $'a b\n\x1b'"]
    recorder.events = [event for pid in range(10, 17) for event in daemon(pid, "x")]
    assert cli.main(["run", "true"]) == 0
    (last,) = capfd.readouterr().err.splitlines()[8:]
    assert last == "execwatch: still running: 10 x; 11 x; 12 x; 13 x; 14 x; and 2 more"


def test_lost_events_are_told(recorder: Any, capfd: pytest.CaptureFixture[str]) -> None:
    recorder.events = [lost_events(count=4)]
    assert cli.main(["run", "--tree", "true"]) == 0
    assert capfd.readouterr().err.splitlines()[1:] == [
        "execwatch: 4 events lost in all: they came faster than they were read"
    ]


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "2>&1 | head -c 0"])
def test_the_exit_status_is_the_commands_when_nobody_reads(closed: str, tmp_path: pathlib.Path) -> None:
    code = (
        "import sys; from execwatch import cli; from execwatch.recording import recorder;"
        "from tests.unit import test_cli_run as fakes;"
        "fakes.FakeRecorder.made, fakes.FakeRecorder.counts = [], staticmethod(fakes.counted(1, 1));"
        "fakes.FakeRecorder.events = [fakes.exec_event()] * 9999; recorder.record = fakes.FakeRecorder;"
        "sys.exit(cli.main(['run', 'sh', '-c', 'exit 9']))"
    )
    root = pathlib.Path(__file__).parent.parent.parent
    line = f"{{ {PYTHON} -c {shlex.quote(code)}; echo $? >{tmp_path}/status; }} {closed}"
    done = subprocess.run(["/bin/sh", "-c", line], cwd=root, capture_output=True)
    assert (tmp_path / "status").read_text() == "9\n"
    assert (done.stdout, done.stderr) == (b"", b"")


# -- record -----------------------------------------------------------------------------------


def test_the_whole_machine(recorder: Any, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a b.ndjson"
    path.write_text("x" * 1234)
    recorder._thread = type("Thread", (), {"is_alive": staticmethod(lambda: True)})
    words = ["record", "-o", str(path), "-x", "-u", "7", "-u", "root", "--duration", "0"]
    assert cli.main(words) == 0
    (made,) = recorder.made
    assert (made.filter.uids, made.filter.descendants_of, made.options["failed"]) == ({0, 7}, None, True)
    out, err = capfd.readouterr()
    assert (out, err) == ("", f"execwatch: 2 events in '{path}' (1.23 kB)\n")


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_the_end_by_a_signal(number: int, status: int, recorder: Any) -> None:
    def alive() -> bool:
        os.kill(os.getpid(), number)
        return True

    recorder._thread = type("Thread", (), {"is_alive": staticmethod(alive)})
    assert cli.main(["record", "-o", "x.ndjson"]) == status


def test_the_end_because_it_can_not_be_written(recorder: Any) -> None:
    recorder._thread = type("Thread", (), {"is_alive": staticmethod(lambda: False)})
    assert cli.main(["record", "-o", "x.ndjson"]) == 0


def test_what_still_runs_is_counted(recorder: Any, capfd: pytest.CaptureFixture[str]) -> None:
    recorder.counts = staticmethod(counted(5, 2))
    assert cli.main(["record", "-o", "x.ndjson", "--linger", "0", "true"]) == 0
    assert capfd.readouterr().err.splitlines() == [
        "execwatch: 7 events in x.ndjson (no longer there)",
        "execwatch: still running: 3 of the command's processes",
    ]


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 kB"),
        (999_499, "999 kB"),
        (999_500, "1 MB"),
        (2_340_000_000, "2.34 GB"),
    ],
)
def test_sizes(count: int, text: str) -> None:
    assert record_verb.views.size(count) == text
