"""The command without a kernel: what it prints of events, and what it makes of failures."""

from __future__ import annotations

import json
import re
import signal
import sys
from typing import Any, Callable, List
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from execwatch import BccNotFoundError, LoadError, NotSupportedError, PrivilegeError, cli
from execwatch.cli import rows, trace
from execwatch.cli.screen import Line
from execwatch.events import AnyEvent, ExecEvent
from execwatch.testing import exec_event, failed_exec_event, fake_tracer, lost_events

from .recorded import needs, value_of

EXECS = value_of(ExecEvent)

Main = Callable[..., int]


@pytest.fixture
def main(monkeypatch: pytest.MonkeyPatch) -> Main:
    """The command over these events."""

    def run(events: List[AnyEvent], *options: str) -> int:
        monkeypatch.setattr(trace, "ExecTracer", lambda filter, **options: fake_tracer(events))
        return cli.main(options)

    return run


def table(capsys: pytest.CaptureFixture[str]) -> List[str]:
    """What stands under PCOMM and behind it, without the header."""
    return [line[8:] for line in capsys.readouterr().out.splitlines()[1:]]


def text(line: Line) -> str:
    return "".join(part for part, _ in line)


# -- Rows -------------------------------------------------------------------------------


def test_a_row_in_its_columns() -> None:
    event = exec_event(argv=("/usr/bin/docker", "exec"), pid=8854, ppid=3154, boottime_ns=6_908_000_000)
    row = rows.table_row(1_000_000_000, time_of_day=False, seconds=True)
    assert text(row(event)) == "5.908   docker           8854    3154      0 /usr/bin/docker exec"
    assert "bad" not in {style for _, style in row(event)}
    assert (" -2 ", "bad") in row(failed_exec_event(retval=-2))


def test_a_parent_that_is_not_known() -> None:
    row = rows.table_row(0, time_of_day=False, seconds=False)
    assert text(row(exec_event(pid=7, ppid=None))) == "true             7       ?         0 /bin/true"


@given(EXECS, st.booleans(), st.booleans())
def test_a_plain_row_is_the_same_text(event: ExecEvent, time_of_day: bool, seconds: bool) -> None:
    columns = {"time_of_day": time_of_day, "seconds": seconds}
    assert rows.plain_row(7, **columns)(event) == text(rows.table_row(7, **columns)(event)) + "\n"


def test_columns_hold_what_is_longest() -> None:
    """Pids of 22 bits, as Linux gives them, and names of 15 bytes stand below their headings."""
    columns = {"time_of_day": True, "seconds": True}
    event = exec_event(pid=4194304, ppid=4194303, comm="x" * 15, boottime_ns=999_999_000_000)
    heading, shown = text(rows.header(**columns)), text(rows.table_row(0, **columns)(event))
    for name, value in (("TIME(s)", "999.999"), ("PCOMM", "xxx"), ("PID", "4194304"), ("PPID", "4194303")):
        assert heading.index(name) == shown.index(value)
    assert heading.index("ARGS") == shown.index("/bin/true")


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"argv": ("lie", "x"), "filename": "./prog", "interp": "./prog"}, "./prog x"),
        (
            {"argv": ("/bin/sh", "./script", "x"), "filename": "./script", "interp": "/bin/sh"},
            "/bin/sh ./script x",
        ),
        ({"argv": (), "filename": "/bin/x", "interp": "/bin/x"}, "/bin/x"),
        ({"argv": ("x",), "filename": None, "interp": None, "comm": "x"}, "x"),
        ({"argv": (), "argv_status": "unreadable", "filename": "/a b"}, "'/a b' (arguments unreadable)"),
        (
            {"argv": (), "argv_status": "unreadable", "filename": None, "comm": "x"},
            "'?' (arguments unreadable)",
        ),
        ({"argv": ("/bin/x", "y"), "argv_status": "truncated"}, "/bin/x y ..."),
        ({"argv": ("/bin/x", "(arguments", "unreadable)")}, "/bin/x '(arguments' 'unreadable)'"),
    ],
)
def test_arguments(fields: Any, shown: str) -> None:
    assert rows.arguments(exec_event(**fields)) == shown


def test_one_event_is_one_line_of_json() -> None:
    event = exec_event(argv=("/bin/x", "\n\u2028\x9b\x7f\U0001f600", "\udcff"))
    line = rows.json_line(event)
    assert line.isascii()
    assert line[-1] == "\n"
    assert line[:-1].isprintable()
    assert json.loads(line) == event.to_dict()


@pytest.mark.parametrize(
    "installed", [pytest.param(True, marks=needs("msgspec")), False], ids=["msgspec", "json"]
)
@given(EXECS)
def test_json_is_the_same_with_and_without_msgspec(installed: bool, event: ExecEvent) -> None:
    rows._encoder.cache_clear()
    with mock.patch.dict(sys.modules, {} if installed else {"msgspec.json": None}):
        line = rows.json_line(event)
    rows._encoder.cache_clear()
    assert line[:-1].isprintable()
    assert line[:-1].isascii()
    assert json.loads(line) == event.to_dict()


# -- The loop ------------------------------------------------------------------------------


def test_all_events_then_the_end(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    events: List[AnyEvent] = [exec_event(argv=("/bin/a",)), exec_event(argv=("/bin/b",))]
    assert main(events, "--duration", "0") == 0
    assert [line.split()[-1] for line in table(capsys)] == ["/bin/a", "/bin/b"]


def test_the_count_is_of_programs_that_are_shown(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["x", "sh", "x", "sh", "sh"]
    events: List[AnyEvent] = [exec_event(argv=(name, str(n))) for n, name in enumerate(names)]
    events.insert(1, lost_events())
    assert main(events, "-n", "^sh$", "--count", "2") == 0
    assert [line[-4:] for line in table(capsys)] == ["sh 1", "sh 3"]


def test_the_arguments_are_matched_joined(main: Main, capsys: pytest.CaptureFixture[str]) -> None:
    events: List[AnyEvent] = [exec_event(argv=("/bin/a", "b", "c")), exec_event(argv=("/bin/a", "c"))]
    assert main(events, "-l", "^/bin/a b c$", "--duration", "0") == 0
    assert len(table(capsys)) == 1


def test_a_gap_is_told_where_it_is_and_in_the_end(main: Main, capfd: pytest.CaptureFixture[str]) -> None:
    events: List[AnyEvent] = [exec_event(), lost_events(count=7), exec_event(), lost_events(count=4)]
    assert main(events, "--duration", "0") == 0
    out, err = capfd.readouterr()
    assert len(out.splitlines()) == 3
    first, second, last = err.splitlines()
    assert (first, second) == ("execwatch: 7 events lost here", "execwatch: 4 events lost here")
    assert last.startswith("execwatch: 11 events lost in all")


def test_gaps_are_events_in_json(main: Main, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([exec_event(), lost_events(count=7)], "--json", "--duration", "0") == 0
    out, err = capfd.readouterr()
    _, lost = map(json.loads, out.splitlines())
    assert (lost["kind"], lost["count"], lost["of"]) == ("lost", 7, "exec")
    assert re.fullmatch(r"execwatch: 7 events lost in all.*\n", err)


def test_the_handler_for_ctrl_c_is_given_back(main: Main) -> None:
    before = signal.getsignal(signal.SIGINT)
    assert main([exec_event()], "--duration", "0") == 0
    assert signal.getsignal(signal.SIGINT) is before


# -- Failures -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (PrivilegeError("needs root"), 4),
        (BccNotFoundError("needs BCC"), 3),
        (NotSupportedError("BTF", "5.2"), 1),
        (LoadError(22, "program 'x'", "many\nlines"), 1),
        (ValueError("ppids: there is no process 5"), 2),
        (OSError(28, "No space left on device"), 1),
        (KeyError("x"), 1),
    ],
)
def test_an_error_is_a_message_and_a_status(
    error: Exception, status: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing:
        def __init__(self, filter: object, **options: bool) -> None: ...

        def start(self) -> None:
            raise error

    monkeypatch.setattr(trace, "ExecTracer", Failing)
    assert cli.main([]) == status
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("execwatch: ")
    assert (error.strerror if isinstance(error, OSError) and error.strerror else str(error)) in err
    assert "Traceback" not in err


def test_ctrl_c_before_the_start(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(trace, "ExecTracer", interrupted)
    assert cli.main([]) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["-u", "-1"], "-u"),
        (["-u", "4294967295"], "'4294967295'"),
        (["-u", "no-such-user"], "there is no user 'no-such-user'"),
        (["-P", "0"], "'0'"),
        (["-l", "*"], "not a regular expression: '*'"),
        (["-l", "a{99999999999}"], "not a regular expression: 'a{99999999999}'"),
        (["--duration", "nan"], "'nan'"),
        (["--duration", "soon"], "'soon'"),
        (["--count", "0"], "'0'"),
        (["--coun", "3"], "--coun"),
        (["--no-such-option"], "--no-such-option"),
    ],
)
def test_wrong_usage_names_what_is_wrong(
    options: List[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(options) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: execwatch trace")
    assert said in err.splitlines()[-1]
