"""The pytest plugin without a kernel: what matches, what failures say, and where nothing can be traced."""

from __future__ import annotations

import pathlib
import subprocess
import sys
from typing import Any, Iterable

import pytest

from execwatch.events import AnyEvent, ExecEvent
from execwatch.pytest_plugin import Execs, matching, messages
from execwatch.pytest_plugin.watch import Kinship, Window, _unseen
from execwatch.testing import exec_event, exit_event, fork_event, lost_events

from .. import suites

ME = 500


def window(events: Iterable[AnyEvent], unseen: int = 0) -> Window:
    kinship, events = Kinship(ME), tuple(events)
    seen = [(event, kinship.take(event)) for event in events]
    started = tuple((event, link) for event, link in seen if isinstance(event, ExecEvent) and link)
    return Window(events, started, unseen, None)


def execs(events: Iterable[AnyEvent], unseen: int = 0) -> Execs:
    return Execs(lambda: window(events, unseen))


# -- What matches ------------------------------------------------------------------------

GIT = exec_event(argv=("git", "clone", "-q", "url"), filename="/usr/bin/git")
#: pip, a script: as the kernel has it, its arguments come behind the interpreter's.
PIP = exec_event(
    argv=("/venv/bin/python3", "-E", "/venv/bin/pip", "install", "x"),
    filename="/venv/bin/pip",
    interp="/venv/bin/python3",
)
SHELL = exec_event(argv=("-bash",), filename="/bin/sh", interp="/bin/sh", exe=GIT.exe)
UNREADABLE = exec_event(
    argv=(), argv_status="unreadable", argc=0, filename="/usr/bin/git", interp="/usr/bin/git"
)


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (GIT, ["git"]),
        (GIT, ["git", "clone"]),
        (GIT, ["/usr/bin/git", "clone", "-q", "url"]),
        (PIP, ["pip", "install"]),
        (PIP, ["/venv/bin/pip", "install", "x"]),
        (PIP, ["python3", "-E"]),
        (PIP, ["/venv/bin/python3", "-E", "/venv/bin/pip"]),
        (SHELL, ["-bash"]),
        (SHELL, ["sh"]),
        (SHELL, ["/usr/bin/git"]),  # the file that ran
        (UNREADABLE, ["git"]),
    ],
)
def test_ran_as(event: ExecEvent, words: list[str]) -> None:
    assert matching.ran_as(event, words)
    execs([event]).assert_ran(words[0], *words[1:])
    with pytest.raises(AssertionError, match="^executed: "):
        execs([event]).assert_not_ran(words[0], *words[1:])


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (GIT, ["clone"]),
        (GIT, ["gi"]),
        (GIT, ["git", "clon"]),
        (GIT, ["git", "-q"]),
        (GIT, ["git", "clone", "-q", "url", "more"]),
        (GIT, ["/bin/git"]),
        (GIT, ["bin/git"]),
        (GIT, ["git clone"]),
        (PIP, ["pip", "-E"]),
        (PIP, ["python3", "install"]),
        (SHELL, ["bash"]),
    ],
)
def test_did_not_run_as(event: ExecEvent, words: list[str]) -> None:
    execs([event]).assert_not_ran(words[0], *words[1:])
    with pytest.raises(AssertionError, match="^not executed: "):
        execs([event]).assert_ran(words[0], *words[1:])


def test_paths_are_words_too() -> None:
    execs([GIT]).assert_ran(pathlib.Path("/usr/bin/git"), "clone")


@pytest.mark.parametrize("words", [(["git", "clone"],), (b"git",), ("git", 1), (None,)])
def test_other_words_are_refused(words: Any) -> None:
    for ask in (execs([GIT]).assert_ran, execs([GIT]).assert_not_ran):
        with pytest.raises(TypeError, match="expected words, such as 'git', 'clone', got "):
            ask(*words)


@pytest.mark.parametrize("lost", [True, False])
def test_nothing_is_claimed_of_arguments_that_nobody_knows(lost: bool) -> None:
    asked = execs([GIT], unseen=3) if lost else execs([UNREADABLE])
    with pytest.raises(
        AssertionError, match="^not executed: git push\n(3 events were lost|what was executed)"
    ):
        asked.assert_ran("git", "push")
    with pytest.raises(AssertionError, match="^3 events were lost, so" if lost else "^executed: git push\n"):
        asked.assert_not_ran("git", "push")


@pytest.mark.parametrize(
    ("event", "programs", "allowed"),
    [
        (GIT, ["git"], True),
        (GIT, ["make", "/usr/bin/git"], True),
        (GIT, ["/opt/git"], False),
        (GIT, [], False),
        (PIP, ["pip"], True),
        (PIP, ["python3"], True),
        (SHELL, ["sh"], True),
        (SHELL, ["-bash"], False),  # only calls itself so
    ],
)
def test_is_allowed(event: ExecEvent, programs: list[str], allowed: bool) -> None:
    assert matching.is_allowed(event, programs) is allowed


def test_commands_and_recording() -> None:
    events = [fork_event(ppid=ME), GIT, PIP, exit_event()]
    asked = execs(events)
    assert asked.commands == [GIT.argv, PIP.argv]
    assert list(asked.recording) == events
    assert not asked.recording.complete
    assert repr(asked) == "<Execs: 2 programs>"


@pytest.mark.parametrize(
    ("event", "count"),
    [
        (lost_events(count=5), 5),
        (lost_events(count=5, reason="skipped"), 5),
        (lost_events(count=5, of="fork", reason="skipped"), 5),  # a child that nobody follows
        (lost_events(count=5, of="fork"), 0),  # it is followed, only not told
        (lost_events(count=5, of="exit", reason="skipped"), 0),
        (GIT, 0),
    ],
)
def test_what_may_hide_a_program(event: AnyEvent, count: int) -> None:
    assert _unseen(event) == count


# -- What failures say -------------------------------------------------------------------


def child(pid: int, ppid: int, *argv: str, comm: str = "python") -> list[AnyEvent]:
    """A process that is forked and, with ``argv``, executes that."""
    events: list[AnyEvent] = [fork_event(pid=pid, ppid=ppid, comm=comm, **keys(pid, ppid))]
    return [*events, executed(pid, ppid, *argv)] if argv else events


def executed(pid: int, ppid: int, *argv: str) -> ExecEvent:
    return exec_event(pid=pid, ppid=ppid, argv=argv, **keys(pid, ppid))


def keys(pid: int, ppid: int) -> dict[str, str]:
    return {"process_key": f"k{pid}", "parent_key": f"k{ppid}"}


def chain(events: list[AnyEvent]) -> list[str]:
    """What is said of the last program."""
    seen = window(events)
    text = messages.violation("test.py::test", "a rule", seen.started[-1:], seen)
    first, *lines = text.splitlines()
    assert first == "test.py::test executed a program against a rule:"
    return [line.strip() for line in lines]


def test_the_chain_leads_to_the_test_process() -> None:
    events = [*child(501, ME, "make"), *child(502, 501, "sh", "-c", "true; true"), *child(503, 502, "true")]
    assert chain(events) == [
        "true (503)",
        "<- sh -c 'true; true' (502)",
        "<- make (501)",
        f"<- the test process ({ME})",
    ]


def test_the_chain_tells_what_each_was_when_it_started_the_next() -> None:
    events = [*child(501, ME, "sh"), *child(502, 501, "true"), executed(501, ME, "other")]
    assert chain(events[:4])[1] == "<- sh (501)"
    # The same process executes again and again, as env does.
    assert chain(events) == ["other (501)", "<- sh (501)", f"<- the test process ({ME})"]
    # And forks that execute nothing.
    events = [*child(501, ME), *child(502, 501, comm="wor\nker"), *child(503, 502, "true")]
    assert chain(events)[1:3] == [r"<- wor\nker (502), forked", "<- python (501), forked"]


def test_the_chain_of_what_ran_before() -> None:
    event = exec_event(pid=700, ppid=699, parent_comm="ng\x1binx", argv=("true",))
    assert chain([event]) == ["true (700)", r"<- ng\x1binx (699), which ran before"]


def test_a_key_that_comes_again_is_another_process() -> None:
    events = [*child(501, ME, "sh"), exit_event(pid=501, **keys(501, ME)), *child(501, ME, "true")]
    assert chain(events) == ["true (501)", f"<- the test process ({ME})"]


def test_a_process_that_never_stops_to_execute_is_not_kept_whole() -> None:
    again = [executed(501, ME, "sh", str(number)) for number in range(1000)]
    kinship = Kinship(ME)
    links = [kinship.take(event) for event in [*child(501, ME, "sh"), *again]]
    assert max(link.depth for link in links if link) < 50
    told = chain([*child(501, ME, "sh"), *again])
    assert told[0] == "sh 999 (501)"
    assert told[-2:] == ["<- ...", f"<- the test process ({ME})"]


def test_a_long_chain_is_told_by_its_ends() -> None:
    events = [event for pid in range(501, 541) for event in child(pid, pid - 1, "sh", str(pid))]
    told = chain(events)
    assert told[0] == "sh 540 (540)"
    assert told[10:13] == ["<- sh 530 (530)", "... 20 more", "<- sh 509 (509)"]
    assert told[-2:] == ["<- sh 501 (501)", f"<- the test process ({ME})"]
    assert len(told) == 22


def test_what_was_executed_instead_is_told_below_what() -> None:
    events = [
        *child(501, ME, "make"),
        *child(502, 501, "sh", "-c", "cc a.c"),
        *child(503, 501, "sh", "-c", "cc b.c"),
        *child(504, 502),
        *child(505, 504, "cc", "a.c"),
        *child(506, 503, "cc", "b.c"),
        *child(507, ME, "true"),
    ]
    with pytest.raises(AssertionError) as raised:
        execs(events).assert_ran("ld")
    assert str(raised.value).splitlines() == [
        "not executed: ld",
        "what was executed:",
        "  make (501)",
        "    sh -c 'cc a.c' (502)",
        "      cc a.c (505)",
        "    sh -c 'cc b.c' (503)",
        "      cc b.c (506)",
        "  true (507)",
    ]
    with pytest.raises(AssertionError, match="^not executed: ld\nnothing was executed$"):
        execs([]).assert_ran("ld")


HOSTILE = "\x1b[2J\nFAKE\u202e\udcff" + "x" * 10_000


def test_nothing_hostile_is_printed_and_nothing_endless() -> None:
    events = [event for pid in range(501, 601) for event in child(pid, ME, "sh", HOSTILE, comm=HOSTILE)]
    events.append(exec_event(pid=800, ppid=1, parent_comm=HOSTILE, argv=(HOSTILE,)))
    asked = execs(events)
    texts = [messages.violation("test", "a rule", window(events).started, window(events))]
    for ask in (lambda: asked.assert_ran(HOSTILE, "never"), lambda: asked.assert_not_ran("sh")):
        with pytest.raises(AssertionError) as raised:
            ask()
        texts.append(str(raised.value))
    for text in texts:
        assert len(text) < 20 * 2 * 400
        assert all(line.isprintable() and line.isascii() for line in text.splitlines())
        assert r"\x1b[2J\nFAKE\xe2\x80\xae\xff" in text
        assert re_more(text)


def re_more(text: str) -> bool:
    return text.splitlines()[-1].strip() in ("... 80 more", "... 81 more")


# -- Where nothing can be traced -----------------------------------------------------------

REFUSE = """
    import execwatch
    from execwatch import ExecTracer

    def start(self):
        raise {error}

    ExecTracer.start = start
    """

SUITE = """
    import subprocess
    import pytest

    def test_plain(): pass

    def test_fixture(execs): assert False

    def test_by_name(request):
        request.getfixturevalue("execs")
        assert False

    @pytest.mark.no_exec
    def test_no_exec(): assert False

    @pytest.mark.allow_exec(["git"])
    def test_allow_exec(): assert False

    @pytest.mark.skip(reason="elsewhere")
    @pytest.mark.no_exec
    def test_skipped(): assert False
    """

NEED = {"test_fixture", "test_by_name", "test_no_exec", "test_allow_exec"}


def refused(error: str) -> dict[str, str]:
    return {"conftest.py": REFUSE.format(error=error), "test_suite.py": SUITE}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        ("execwatch.NotSupportedError('BTF', '5.2')", "this kernel has no BTF (Linux 5.2 or later has)"),
        ("execwatch.LoadError(22, 'program', 'a log\\nof lines')", "[Errno 22] program: Invalid argument"),
    ],
)
def test_tests_that_need_it_are_skipped_with_one_line(
    tmp_path: pathlib.Path, error: str, reason: str
) -> None:
    done = suites.run(tmp_path, refused(error), "-rs")
    assert done.status == 0, done.output
    assert {name for name, result in done.results.items() if result.outcome == "skipped"} == {
        *NEED,
        "test_skipped",
    }
    assert done.results["test_plain"].outcome == "passed"
    lines = [line for line in done.output.splitlines() if "execwatch can't trace here" in line]
    # Told once, but for where the fixture was asked for by name: pytest groups by the line that skips.
    assert [line[: len("SKIPPED [3] ")] for line in lines] == ["SKIPPED [3] ", "SKIPPED [1] "]
    assert all(line.endswith(f": execwatch can't trace here: {reason}") for line in lines)


@pytest.mark.parametrize("how", ["option", "ini"])
def test_or_fail_where_that_is_asked_for(tmp_path: pathlib.Path, how: str) -> None:
    files = refused("execwatch.PrivilegeError('tracing needs CAP_BPF')")
    if how == "ini":
        files["pytest.ini"] = "[pytest]\nexecs_strict = true\n"
    done = suites.run(tmp_path, files, *(["--execs-strict"] if how == "option" else []))
    assert done.status == 1, done.output
    # By name it is asked for when the test runs already.
    assert done.outcomes == {
        **dict.fromkeys(NEED, "error"),
        "test_by_name": "failed",
        "test_plain": "passed",
        "test_skipped": "skipped",
    }
    for name in NEED:
        assert "execwatch can't trace here: tracing needs CAP_BPF" in done.results[name].text


def test_elsewhere_than_on_linux(tmp_path: pathlib.Path) -> None:
    conftest = """
        import types
        from execwatch.pytest_plugin import hooks

        hooks.sys = types.SimpleNamespace(platform="darwin")
        """
    done = suites.run(tmp_path, {"conftest.py": conftest, "test_suite.py": SUITE}, "-rs")
    assert done.status == 0, done.output
    assert ": execwatch can't trace here: this is not Linux\n" in done.output


def test_defects_are_not_taken_for_a_reason_to_skip(tmp_path: pathlib.Path) -> None:
    done = suites.run(tmp_path, refused("ValueError('a defect')"))
    assert done.status == 1
    assert "ValueError: a defect" in done.results["test_no_exec"].text


def test_without_the_fixture_and_markers_nothing_is_started(tmp_path: pathlib.Path) -> None:
    conftest = """
        import sys

        def pytest_sessionfinish():
            assert "execwatch.pytest_plugin.watch" not in sys.modules
            print("nothing came along")
        """
    done = suites.run(tmp_path, {"conftest.py": conftest, "test_suite.py": "def test_plain(): pass\n"}, "-s")
    assert done.status == 0
    assert "nothing came along" in done.output


def test_the_summary_says_that_there_is_none(tmp_path: pathlib.Path) -> None:
    done = suites.run(
        tmp_path, refused("execwatch.PrivilegeError('tracing needs CAP_BPF')"), "--execs", "-k", "plain"
    )
    assert done.status == 0
    assert "= programs executed =" in done.output
    assert "not recorded: execwatch can't trace here: tracing needs CAP_BPF\n" in done.output


# -- The markers ---------------------------------------------------------------------------

BOTH = """
    import pytest

    pytestmark = pytest.mark.no_exec

    def test_fine(): pass

    class TestClass:
        @pytest.mark.allow_exec(["git"])
        def test_both(self): pass
    """


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_both_markers_are_a_usage_error(tmp_path: pathlib.Path, workers: tuple[str, ...]) -> None:
    if workers:
        pytest.importorskip("xdist")
    done = suites.run(tmp_path, {"test_suite.py": BOTH}, *workers)
    assert done.status in (1, 2)
    assert (
        "test_suite.py::TestClass::test_both: has both markers, no_exec and allow_exec: leave no_exec away, "
        "what allow_exec doesn't name is forbidden"
    ) in done.output
    assert "INTERNALERROR" not in done.output


LIST = "expected a list of names or paths of programs, such as @pytest.mark.allow_exec(['git'])"

NO_SENSE = {
    'allow_exec("git")': f"allow_exec: {LIST}",
    "allow_exec": f"allow_exec: {LIST}",
    "allow_exec([])": f"allow_exec: {LIST}",
    'allow_exec("git", "make")': f"allow_exec: {LIST}",
    'allow_exec(programs=["git"])': f"allow_exec: {LIST}",
    'allow_exec(["git", 3])': f"allow_exec: {LIST}, got 3",
    'allow_exec([""])': f"allow_exec: {LIST}, got ''",
    'no_exec("git")': "no_exec takes no arguments: use allow_exec([...])",
}


def test_arguments_that_make_no_sense(tmp_path: pathlib.Path) -> None:
    suite = "import pytest\n@pytest.mark.{}\ndef test_it(): pass\n"
    files = {f"test_{number}.py": suite.format(marker) for number, marker in enumerate(NO_SENSE)}
    done = suites.run(tmp_path, files)
    assert done.status == 2
    for number, told in enumerate(NO_SENSE.values()):
        assert f"test_{number}.py::test_it: {told}\n" in done.output


def test_a_marker_that_comes_late_is_looked_at_too(tmp_path: pathlib.Path) -> None:
    conftest = """
        def pytest_collection_modifyitems(items):
            for item in items:
                item.add_marker("no_exec")
        """
    suite = 'import pytest\n@pytest.mark.allow_exec(["git"])\ndef test_it(): pass\n'
    done = suites.run(tmp_path, {"conftest.py": conftest, "test_suite.py": suite})
    assert done.outcomes == {"test_it": "error"}
    assert "has both markers" in done.results["test_it"].text


def test_help(tmp_path: pathlib.Path) -> None:
    told = suites.run(tmp_path, {}, "--help").output
    assert "  --execs-strict " in told
    assert "  execs_strict (bool):" in told
    markers = suites.run(tmp_path, {}, "--markers").output
    assert "@pytest.mark.no_exec: " in markers
    assert "@pytest.mark.allow_exec(programs): " in markers
    assert "execs -- " in suites.run(tmp_path, {}, "--fixtures").output


# -- What loading it costs -----------------------------------------------------------------


def modules_after(code: str) -> set[str]:
    command = [sys.executable, "-c", f"{code}\nimport sys; print(*sys.modules)"]
    return set(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.split())


def test_loading_the_plugin_brings_nothing_along_but_the_package() -> None:
    added = modules_after("import pytest, execwatch.pytest_plugin") - modules_after(
        "import pytest, execwatch"
    )
    assert added == {
        "execwatch.pytest_plugin",
        *(f"execwatch.pytest_plugin.{name}" for name in ("execs", "hooks", "matching", "summary")),
    }


def test_the_plugin_is_declared() -> None:
    text = (pathlib.Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    assert '[project.entry-points.pytest11]\nexecwatch = "execwatch.pytest_plugin"\n' in text
