"""The pytest plugin on suites of its own: what tests execute is known, and has to be told."""

from __future__ import annotations

import pathlib
import re
import shutil

import pytest

from .. import suites
from .conftest import COUNT, Reason, skip

FIXTURE = f"""
    import os
    import subprocess
    import threading

    import pytest

    from execwatch.pytest_plugin import Execs

    def spawn(*argv, path="/bin/true"):
        return os.waitpid(os.posix_spawn(path, argv, os.environ), 0)[1]

    def test_nothing(execs):
        assert execs.commands == []
        execs.assert_not_ran("true")

    def test_each_one_is_seen_at_once(execs: Execs):
        for number in range({COUNT}):
            spawn("true", str(number))
            execs.assert_ran("true", str(number))
            execs.assert_not_ran("true", str(number + 1))
        assert execs.commands == [("true", str(number)) for number in range({COUNT})]

    def test_the_one_before_is_forgotten(execs):
        assert execs.commands == []

    def test_descendants(execs):
        script = "env /bin/true one; (/bin/true two); exit 0"
        subprocess.run(["sh", "-c", script])
        true = [("/bin/true", "one"), ("/bin/true", "two")]
        assert execs.commands == [("sh", "-c", script), ("env", *true[0]), *true]
        execs.assert_ran("true", "one")
        execs.assert_not_ran("false")

    def test_a_script(execs, tmp_path):
        script = tmp_path / "tool"
        script.write_text("#!/bin/sh -e\\ntrue\\n")
        script.chmod(0o755)
        spawn("whatever", "push", path=str(script))
        execs.assert_ran("tool", "push")
        execs.assert_ran(script, "push")
        execs.assert_ran("sh", "-e", script)
        assert execs.commands == [("/bin/sh", "-e", str(script), "push")]

    def test_what_is_not_there_did_not_run(execs):
        with pytest.raises(FileNotFoundError):
            subprocess.run(["no-such-program"])
        execs.assert_not_ran("no-such-program")

    def test_the_recording(execs):
        spawn("true")
        recording = execs.recording
        assert [event.kind for event in recording] == ["fork", "exec", "exit"]
        assert recording.header.boot_id and not recording.lost
        (process,) = recording.processes
        assert process.exit_code == 0

    @pytest.fixture
    def before():
        spawn("true", "before")

    @pytest.fixture
    def after(execs):
        spawn("true", "after")
        yield
        execs.assert_ran("true", "test")

    def test_from_its_set_up_on(before, execs, after):
        spawn("true", "test")
        assert [argv[1] for argv in execs.commands] == ["after", "test"]

    def test_asked_for_by_name(request):
        execs = request.getfixturevalue("execs")
        spawn("true")
        execs.assert_ran("true")

    kept = []

    def test_kept(execs):
        kept.append(execs)
        spawn("true", "kept")

    def test_it_is_of_its_test(execs):
        spawn("true", "other")
        assert kept[0].commands == [("true", "kept")]

    def test_in_threads(execs):
        def work(number):
            spawn("true", str(number))
            execs.assert_ran("true", str(number))
            seen.append(number)

        seen = []
        threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(seen) == list(range(8))

    def test_fails(execs):
        subprocess.run(["sh", "-c", "env true; exit 0"])
        execs.assert_ran("git", "clone")
    """


def passed(run: suites.Run) -> set[str]:
    return {name for name, outcome in run.outcomes.items() if outcome == "passed"}


def text(run: suites.Run, name: str) -> str:
    """What is said of a test, with the process ids left out."""
    return re.sub(r"\(\d+\)", "(PID)", run.results[name].text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return tmp_path_factory.mktemp("suite")


def test_the_fixture(tmp_path: pathlib.Path) -> None:
    run = suites.run(tmp_path, {"test_suite.py": FIXTURE})
    assert {name: outcome for name, outcome in run.outcomes.items() if outcome != "passed"} == {
        "test_fails": "failed"
    }, run.output
    assert len(run.outcomes) == 13
    told = text(run, "test_fails")
    assert told.startswith(
        "AssertionError: not executed: git clone\n"
        "what was executed:\n"
        "  sh -c 'env true; exit 0' (PID)\n"
        "    env true (PID)\n"
        "      true (PID)\n"
    )
    # The traceback ends in the test.
    assert told.rstrip().splitlines()[-1].startswith("test_suite.py:")


# -- The markers ---------------------------------------------------------------------------

MARKERS = """
    import os
    import subprocess
    import unittest

    import pytest

    @pytest.fixture
    def around():
        subprocess.run(["true", "before"], check=True)
        yield
        subprocess.run(["true", "behind"], check=True)

    @pytest.mark.no_exec
    class TestNoExec:
        def test_nothing(self, around): pass

        def test_no_such_program(self):
            with pytest.raises(FileNotFoundError):
                subprocess.run(["no-such-program"])

        def test_violation(self):
            subprocess.run(["sh", "-c", "env true; exit 0"])

        def test_that_fails_by_itself(self):
            subprocess.run(["true"])
            raise RuntimeError("its own")

        @pytest.mark.xfail(strict=True)
        def test_that_is_expected(self):
            subprocess.run(["true"])

        def test_that_skips(self):
            subprocess.run(["true"])
            pytest.skip("too late")

        def test_that_only_skips(self):
            pytest.skip("in time")

        def test_with_the_fixture(self, execs):
            subprocess.run(["true"])
            execs.assert_ran("true")

    @pytest.mark.no_exec
    class TestCase(unittest.TestCase):
        def test_case(self): pass

        def test_case_violation(self):
            subprocess.run(["true"])

        def test_case_that_fails_by_itself(self):
            subprocess.run(["true"])
            self.fail("its own")

        def test_case_that_skips(self):
            subprocess.run(["true"])
            self.skipTest("too late")

    @pytest.mark.allow_exec(["sh", "/usr/bin/env"])
    class TestAllowExec:
        def test_allowed(self):
            subprocess.run(["sh", "-c", "exit 0"])
            subprocess.run(["/bin/sh", "-c", "exit 0"])
            subprocess.run(["/usr/bin/env", "sh", "-c", "exit 0"])

        def test_descendants_count(self):
            subprocess.run(["sh", "-c", "/usr/bin/env cat /dev/null; exit 0"])

        def test_another_path(self, tmp_path):
            copy = tmp_path / "env"
            copy.write_bytes(open("/usr/bin/env", "rb").read())
            copy.chmod(0o755)
            subprocess.run([copy])

        def test_what_it_calls_itself_does_not_count(self):
            subprocess.run(["sh"], executable="/bin/true")

        @pytest.mark.allow_exec(["cat"])
        def test_all_markers_count(self):
            subprocess.run(["sh", "-c", "/usr/bin/env cat /dev/null; exit 0"])
    """

HEAD = "test_suite.py::{} executed a program against @pytest.mark.no_exec:\n"
TRUE = "  true (PID)\n    <- the test process (PID)\n"


def test_the_markers(tmp_path: pathlib.Path) -> None:
    run = suites.run(tmp_path, {"test_suite.py": MARKERS})
    failed = {
        "test_violation", "test_that_fails_by_itself", "test_that_skips", "test_with_the_fixture",
        "test_case_violation", "test_case_that_fails_by_itself", "test_case_that_skips",
        "test_descendants_count", "test_another_path", "test_what_it_calls_itself_does_not_count",
    }  # fmt: skip
    skipped = {"test_that_is_expected", "test_that_only_skips"}
    fine = {"test_nothing", "test_no_such_program", "test_case", "test_allowed", "test_all_markers_count"}
    assert run.outcomes == {
        **dict.fromkeys(failed, "failed"),
        **dict.fromkeys(skipped, "skipped"),
        **dict.fromkeys(fine, "passed"),
    }, run.output

    # The test, the command, its chain of parents.
    assert (
        "test_suite.py::TestNoExec::test_violation executed 3 programs against @pytest.mark.no_exec:\n"
        "  sh -c 'env true; exit 0' (PID)\n"
        "    <- the test process (PID)\n"
        "  env true (PID)\n"
        "    <- sh -c 'env true; exit 0' (PID)\n"
        "    <- the test process (PID)\n"
        "  true (PID)\n"
        "    <- env true (PID)\n"
        "    <- sh -c 'env true; exit 0' (PID)\n"
        "    <- the test process (PID)"
    ) in text(run, "test_violation")
    assert "  cat /dev/null (PID)\n    <- /usr/bin/env cat /dev/null (PID)\n    <- sh -c " in text(
        run, "test_descendants_count"
    )
    assert "against @pytest.mark.allow_exec(['/usr/bin/env', 'sh']):\n" in run.output

    # What the test failed of itself isn't hidden.
    for name, own in (
        ("that_fails_by_itself", "RuntimeError"),
        ("case_that_fails_by_itself", "AssertionError"),
    ):
        told = text(run, f"test_{name}")
        assert told.startswith(f"{own}: its own\n")
        where = "TestNoExec" if own == "RuntimeError" else "TestCase"
        assert HEAD.format(f"{where}::test_{name}") + TRUE.rstrip() in told


def test_the_own_failure_and_the_violation_are_printed_whatever_is_captured(tmp_path: pathlib.Path) -> None:
    options = ("--show-capture=no", "-k", "test_that_fails_by_itself")
    run = suites.run(tmp_path, {"test_suite.py": MARKERS}, *options)
    assert "RuntimeError: its own" in run.output
    assert HEAD.format("TestNoExec::test_that_fails_by_itself") in run.output


HOSTILE = r"""
    import os
    import pytest

    @pytest.mark.no_exec
    def test_hostile():
        argv = [b"true", b"\x1b[2J", b"a\nFAKED\rb", "\u202edone".encode(), b"\xff\x9b"]
        os.waitpid(os.posix_spawn("/bin/true", argv, {}), 0)

    def test_hostile_names(tmp_path, execs):
        name = os.path.join(os.fsencode(tmp_path), b"\x1b]0;x\x07\n\xff")
        os.symlink("/bin/true", name)
        os.waitpid(os.posix_spawn(name, [b"\x1b[31m"], {}), 0)
        execs.assert_ran("git")
    """


@pytest.mark.parametrize("workers", [(), ("-n", "2")])
def test_nothing_hostile_is_printed(tmp_path: pathlib.Path, workers: tuple[str, ...]) -> None:
    run = suites.run(tmp_path, {"test_suite.py": HOSTILE}, "--execs", *workers)
    assert set(run.outcomes.values()) == {"failed"}, run.output
    assert re.search(
        r"  true \$'\\x1b\[2J' \$'a\\nFAKED\\rb' \$'\\xe2\\x80\\xaedone' \$'\\xff\\x9b' \(\d+\)\n", run.output
    )
    assert r"most often: \x1b]0;x\x07\n\xff (1), true (1)" in run.output
    assert not [line for line in run.output.splitlines() if not line.isprintable()]


LOST = """
    import os
    import subprocess
    import pytest
    from execwatch.pytest_plugin import watch

    watch._BUFFER = 4096

    def many():
        for number in range(500):
            os.waitpid(os.posix_spawn("/bin/true", ["true", str(number)], {}), 0)

    @pytest.mark.allow_exec(["true"])
    def test_allowed(): many()

    @pytest.mark.no_exec
    def test_no_exec(): many()

    def test_not_ran(execs):
        many()
        execs.assert_not_ran("git")

    def test_ran(execs):
        many()
        assert execs.recording.lost
        execs.assert_ran("true", "0")
        execs.assert_ran("git")

    def test_none_are_lost_any_more(execs):
        subprocess.run(["true"])
        execs.assert_not_ran("git")
    """


def test_where_events_are_lost_nothing_is_claimed(tmp_path: pathlib.Path) -> None:
    run = suites.run(tmp_path, {"test_suite.py": LOST}, "--execs")
    assert passed(run) == {"test_none_are_lost_any_more"}, run.output
    lost = r"\d\d+ events were lost"
    unproven = (
        rf"{lost}, so it can't be told whether test_suite.py::test_allowed kept to @pytest.mark.allow_exec"
    )
    assert re.search(unproven, run.results["test_allowed"].text)
    assert re.search(rf"\n{lost}", run.results["test_no_exec"].text)
    assert re.search(
        rf"{lost}, so it can't be told whether this was executed: git\n", run.results["test_not_ran"].text
    )
    assert re.search(rf"not executed: git\n{lost}: it may be among them\n", run.results["test_ran"].text)
    assert re.search(rf"\n{lost}: these are too few\n", run.output)


# -- The test process ------------------------------------------------------------------------

FORKS = """
    import multiprocessing
    import os
    import threading
    import pytest

    def descriptors():
        with os.scandir("/proc/self/fd") as entries:
            return [os.readlink(entry.path) for entry in entries]

    def double(number):
        return 2 * number

    def test_before():
        assert not any("bpf" in name for name in descriptors())

    @pytest.mark.no_exec
    def test_forks():
        assert any("bpf" in name for name in descriptors())
        assert threading.active_count() == 1
        pid = os.fork()
        if pid == 0:
            os._exit(3 if any("bpf" in name for name in descriptors()) else 4)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 4

    @pytest.mark.no_exec
    def test_pool():
        with multiprocessing.get_context("fork").Pool(2) as pool:
            assert pool.map(double, range(5)) == [0, 2, 4, 6, 8]

    @pytest.mark.no_exec
    def test_a_fork_that_executes():
        pid = os.fork()
        if pid == 0:
            pid = os.fork()
            if pid == 0:
                os.execv("/bin/true", ["true"])
            os._exit(os.waitpid(pid, 0)[1])
        os.waitpid(pid, 0)

    @pytest.mark.no_exec
    def test_that_hides_its_pid(monkeypatch):
        monkeypatch.setattr(os, "getpid", lambda: 1234)
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)

    @pytest.mark.no_exec
    def test_that_forbids_files(monkeypatch):
        def forbid(*_):
            raise AssertionError("a file was opened")

        monkeypatch.setattr("builtins.open", forbid)

    @pytest.mark.no_exec
    def test_forks_still():
        pass

    def test_behind():
        assert not any("bpf" in name for name in descriptors())

    def test_again(execs):
        os.waitpid(os.posix_spawn("/bin/true", ["true"], {}), 0)
        execs.assert_ran("true")
    """

COUNTS = """
    from execwatch import ExecTracer

    started = []
    start = ExecTracer.start

    def count(self):
        started.append(self)
        start(self)

    ExecTracer.start = count

    def pytest_terminal_summary(terminalreporter):
        terminalreporter.write_line(f"started {len(started)}, closed {sum(each.closed for each in started)}")
    """


def test_forks_threads_and_descriptors(tmp_path: pathlib.Path) -> None:
    run = suites.run(tmp_path, {"test_suite.py": FORKS, "conftest.py": COUNTS})
    assert {name for name, outcome in run.outcomes.items() if outcome != "passed"} == {
        "test_a_fork_that_executes",
        "test_that_hides_its_pid",
    }, run.output
    assert re.search(
        r"  true \(PID\)\n    <- \S+ \(PID\), forked\n    <- the test process \(PID\)",
        text(run, "test_a_fork_that_executes"),
    )
    # One for those that follow each other.
    assert "started 2, closed 2\n" in run.output


# -- Workers, the summary, privileges --------------------------------------------------------

WORKERS = """
    import os
    import pathlib
    import subprocess
    import time
    import pytest

    FOLDER = pathlib.Path(__file__).parent

    @pytest.mark.parametrize("name,other", [("a", "b"), ("b", "a")])
    def test_both_at_once(name, other, execs):
        (FOLDER / name).touch()
        deadline = time.monotonic() + 60
        while not (FOLDER / other).exists():
            assert time.monotonic() < deadline
            subprocess.run(["/bin/true", name])
        for number in range(COUNT):
            subprocess.run(["/bin/true", name])
        assert set(execs.commands) == {("/bin/true", name)}
        assert len(execs.commands) >= COUNT

    @pytest.mark.no_exec
    def test_no_exec():
        subprocess.run(["true"])
    """


def test_each_worker_sees_its_own(tmp_path: pathlib.Path) -> None:
    need_xdist()
    suite = WORKERS.replace("COUNT", str(COUNT))
    run = suites.run(tmp_path, {"test_suite.py": suite}, "-n", "2", "--execs")
    assert passed(run) == {"test_both_at_once[a-b]", "test_both_at_once[b-a]"}, run.output
    assert HEAD.format("test_no_exec") + TRUE.rstrip() in text(run, "test_no_exec")
    found = re.search(r"most often: true \((\d+)\)\n", run.output)
    assert found
    assert int(found[1]) >= 2 * COUNT + 1


SUMMARY = """
    import subprocess
    import pytest

    @pytest.fixture(scope="module")
    def whole():
        subprocess.run(["/bin/true"])

    def test_nothing(): pass

    @pytest.mark.parametrize("count", range(1, 13))
    def test_some(count, whole):
        for _ in range(count):
            subprocess.run(["/bin/sh", "-c", ""])

    @pytest.mark.skip
    def test_skipped():
        subprocess.run(["/bin/false"])
    """


@pytest.mark.parametrize("options", [(), ("-v",), ("-n", "2", "--dist=loadfile")])
def test_the_summary(tmp_path: pathlib.Path, options: tuple[str, ...]) -> None:
    if "-n" in options:
        need_xdist()
    run = suites.run(tmp_path, {"test_suite.py": SUMMARY}, "--execs", *options)
    assert run.status == 0, run.output
    lines = run.output.partition("= programs executed =")[2].splitlines()[1:]
    tests = [f"{count:6}  test_suite.py::test_some[{count}]" for count in range(12, 2, -1)]
    # The first one's module fixture is counted with it.
    tests += [f"     2  test_suite.py::test_some[{count}]" for count in (1, 2)]
    if options != ("-v",):
        tests[10:] = ["        ... 2 more tests, -v shows them"]
    expected = [*tests, "    79  in all, by 12 of 14 tests", "most often: sh (78), true (1)"]
    assert lines[: len(expected)] == expected


def test_without_it_no_test_is_traced_that_does_not_ask(tmp_path: pathlib.Path) -> None:
    run = suites.run(tmp_path, {"test_suite.py": SUMMARY, "conftest.py": COUNTS})
    assert "programs executed" not in run.output
    assert "started 0, closed 0\n" in run.output


def privileged(*capabilities: str) -> tuple[str, ...]:
    """The command that runs another with these capabilities alone."""
    if not shutil.which("setpriv"):
        skip(Reason.TOOL, "setpriv (util-linux)")
    return ("setpriv", f"--bounding-set={','.join(('-all', *capabilities))}", "--inh-caps=-all")


#: Numbers of CAP_PERFMON and CAP_BPF: setpriv(1) of Debian 11 doesn't know the names.
BPF_AND_PERFMON = ("+cap_38", "+cap_39")


@pytest.mark.usefixtures("root")
def test_two_capabilities_are_enough(tmp_path: pathlib.Path) -> None:
    before = privileged(*BPF_AND_PERFMON)
    run = suites.run(tmp_path, {"test_suite.py": FIXTURE}, "--execs-strict", before=before)
    assert set(run.outcomes) - passed(run) == {"test_fails"}, run.output


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize("options", [(), ("-n", "2"), ("--execs-strict",)])
def test_without_privilege(tmp_path: pathlib.Path, options: tuple[str, ...]) -> None:
    if "-n" in options:
        need_xdist()
    run = suites.run(tmp_path, {"test_suite.py": WORKERS}, "-rs", "--execs", *options, before=privileged())
    strict = options == ("--execs-strict",)
    assert set(run.outcomes.values()) == {"error" if strict else "skipped"}, run.output
    assert run.status == strict
    reason = "execwatch can't trace here: tracing needs CAP_BPF and CAP_PERFMON, which this process (uid 0) "
    assert all(reason in result.text for result in run.results.values())
    assert f"not recorded: {reason}" in run.output


def need_xdist() -> None:
    pytest.importorskip("xdist")


# -- The documentation -----------------------------------------------------------------------

ROOT = pathlib.Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "how-to" / "pytest.md").read_text(encoding="utf-8")
FILES = {name: code for name, code in re.findall(r"^```python\n# (\S+)\n(.*?)^```$", PAGE, re.M | re.S)}
RUNS = re.findall(r"^```console\n\$ pytest (.*?)\n(.*?)^```$", PAGE, re.M | re.S)


def pattern(shown: str) -> str:
    """What the shown output stands for: process ids, folders, and what was left out are others."""
    lines = []
    for line in shown.splitlines():
        expression = re.escape(line).replace(re.escape("/tmp/pytest-of-root/pytest-0"), r"\S+")
        expression = re.sub(r"\\\(\d{3,}\\\)", r"\\(\\d+\\)", expression)
        left_out = line == "..."
        lines.append(r"(?:.*\n)*?" if left_out else expression.replace(re.escape("..."), ".*") + "\n")
    return "".join(lines)


@pytest.mark.usefixtures("root")
@pytest.mark.parametrize(("options", "shown"), RUNS, ids=[options for options, _ in RUNS])
def test_the_page_shows_what_is_true(tmp_path: pathlib.Path, options: str, shown: str) -> None:
    before = privileged() if "can't trace here" in shown else ()
    run = suites.run(tmp_path, FILES, *options.split(), before=before)
    assert re.fullmatch(pattern(shown), run.output), run.output


def test_the_page_is_run_whole() -> None:
    assert set(FILES) == {"test_backup.py", "test_names.py"}
    assert len(RUNS) == 4
    assert PAGE.count("```python") == len(FILES)


def test_the_readme(tmp_path: pathlib.Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^### In pytest\n.*?^```py\n(.*?)^```$", readme, re.M | re.S)
    assert found
    run = suites.run(tmp_path, {"test_suite.py": f"import subprocess\nimport pytest\n\n{found[1]}"})
    assert len(run.outcomes) == 2
    assert set(run.outcomes.values()) == {"passed"}, run.output
