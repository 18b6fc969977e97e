"""What happens around each test: tracing where it is needed, and the markers."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Generator, List, NamedTuple, Optional, Tuple

import pytest

from execwatch.pytest_plugin import matching

if TYPE_CHECKING:
    from execwatch.pytest_plugin.watch import Watch

_HINT = "expected a list of names or paths of programs, such as @pytest.mark.allow_exec(['git'])"


class Rule(NamedTuple):
    """What a test may execute, as its markers say.

    Attributes:
        text: The markers, as they are written.
        allowed: Names and paths.
    """

    text: str
    allowed: Tuple[str, ...]


def rule_of(item: pytest.Item) -> Optional[Rule]:
    """Return what the test's markers say; None if it has none.

    Raises:
        pytest.UsageError: They make no sense.
    """
    forbids, allows = list(item.iter_markers("no_exec")), list(item.iter_markers("allow_exec"))
    if forbids and allows:
        raise pytest.UsageError(
            f"{item.nodeid}: has both markers, no_exec and allow_exec: leave no_exec away, "
            "what allow_exec doesn't name is forbidden"
        )
    if any(mark.args or mark.kwargs for mark in forbids):
        raise pytest.UsageError(f"{item.nodeid}: no_exec takes no arguments: use allow_exec([...])")
    if forbids:
        return Rule("@pytest.mark.no_exec", ())
    if not allows:
        return None
    programs: List[str] = []
    for mark in allows:  # the module's, the class's and the function's: all of it is allowed
        programs += _programs(item.nodeid, mark)
    return Rule(f"@pytest.mark.allow_exec({sorted(set(programs))})", tuple(programs))


def _programs(nodeid: str, mark: pytest.Mark) -> List[str]:
    given: Any = mark.args[0] if len(mark.args) == 1 and not mark.kwargs else None
    if not given or not isinstance(given, (list, tuple, set, frozenset)):
        raise pytest.UsageError(f"{nodeid}: allow_exec: {_HINT}")
    for program in given:
        if not isinstance(program, (str, os.PathLike)) or not os.fspath(program):
            raise pytest.UsageError(f"{nodeid}: allow_exec: {_HINT}, got {program!r}")
    return [str(os.fspath(program)) for program in given]


class Hooks:
    """One tracer, that runs as long as tests follow each other that need it.

    Starting one costs a tenth of a second, too much for each test of many. A whole session
    is too long: tests that don't ask for it would run traced as well. It belongs to the
    process, so that each worker of pytest-xdist traces its own descendants.

    Args:
        everything: Trace every test.
        strict: A test that can't be traced fails.
    """

    def __init__(self, *, everything: bool, strict: bool) -> None:
        self._everything = everything
        self._strict = strict
        self._watch: Optional[Watch] = None
        self._reason: Optional[str] = None
        #: Of the test that runs.
        self._rule: Optional[Rule] = None
        self._violation: Optional[str] = None
        self._told: Any = None

    # -- The tracer -----------------------------------------------------------------

    def watch(self) -> Watch:
        """Return it, started.

        Raises:
            pytest.skip.Exception: It can't be; with ``strict`` ``pytest.fail.Exception``.
        """
        self._start()
        if self._watch is not None:
            return self._watch
        if self._strict:
            pytest.fail(str(self._reason), pytrace=False)
        pytest.skip(str(self._reason))

    def _start(self) -> None:
        if self._watch is not None or self._reason is not None:  # what was refused once is not tried again
            return
        if not sys.platform.startswith("linux"):
            self._reason = "execwatch can't trace here: this is not Linux"
            return
        from execwatch.errors import ExecwatchError
        from execwatch.pytest_plugin.watch import Watch

        try:
            self._watch = Watch()
        except ExecwatchError as exc:
            first = (str(exc) or type(exc).__name__).splitlines()[0]
            self._reason = f"execwatch can't trace here: {first}"

    def _running(self) -> Optional[Watch]:
        """Return it if it runs, and not in a child that a test forked and that came back here."""
        return self._watch if self._watch is not None and self._watch.mine else None

    def _close(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.close()

    def _needed(self, item: Optional[pytest.Item]) -> bool:
        if item is None:
            return False
        marked = item.get_closest_marker("no_exec") or item.get_closest_marker("allow_exec")
        return self._everything or bool(marked) or "execs" in getattr(item, "fixturenames", ())

    # -- Around each test -------------------------------------------------------------

    @pytest.hookimpl(hookwrapper=True)
    def pytest_make_collect_report(self, collector: pytest.Collector) -> Generator[None, Any, None]:
        """Tell of markers that make no sense, as pytest does of unknown ones: the file can't be collected."""
        outcome = yield
        report = outcome.get_result()
        for item in report.result or ():
            try:
                if isinstance(item, pytest.Item):
                    rule_of(item)
            except pytest.UsageError as exc:
                report.outcome, report.longrepr, report.result = "failed", str(exc), []

    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Start to trace: after skip marks were looked at, and before fixtures are set up."""
        self._violation = self._told = None
        self._rule = rule_of(item)
        if self._rule is not None or "execs" in getattr(item, "fixturenames", ()):
            self.watch()
        elif self._everything:
            self._start()

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Generator[None, Any, None]:
        """See whether the test itself, its fixtures left out, keeps to the rule."""
        rule, watch = self._rule, self._running()
        if rule is None or watch is None:
            yield
            return
        mark = watch.mark()
        yield
        if self._running() is not None:
            window = watch.since(mark)
            found = [pair for pair in window.started if not matching.is_allowed(pair[0], rule.allowed)]
            if found or window.unseen:
                from execwatch.pytest_plugin import messages

                self._violation = messages.violation(item.nodeid, rule.text, found, window)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, Any, None]:
        """Fail the test for its violation; where it failed by itself, tell both."""
        violation = failure = None
        if call.when == "call":
            violation, self._violation = self._violation, None
        if violation and (call.excinfo is None or isinstance(call.excinfo.value, pytest.skip.Exception)):
            call.excinfo = failure = type(call).from_call(lambda: _fail(violation), "call").excinfo
        outcome = yield
        report = outcome.get_result()
        if violation and call.excinfo is not failure:
            _add(report, violation)
        if call.when == "teardown" and self._told is not None:
            # An attribute comes from a worker to pytest-xdist's main process, as properties do, but is
            # not written into everybody's JUnit file.
            report.execwatch, self._told = self._told, None

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_teardown(
        self, item: pytest.Item, nextitem: Optional[pytest.Item]
    ) -> Generator[None, Any, None]:
        """Count and forget; end tracing if the next test doesn't need it."""
        yield
        watch = self._running()
        if self._everything:
            self._told = {"reason": self._reason} if watch is None else watch.counts()
        if watch is not None:
            watch.forget()
        if not self._needed(nextitem):
            self._close()

    def pytest_sessionfinish(self) -> None:
        """End tracing, wherever the last test was left."""
        self._close()


def _fail(text: str) -> None:
    pytest.fail(text, pytrace=False)


def _add(report: Any, text: str) -> None:
    """Tell a violation beside what became of the test."""
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", text
    elif hasattr(report.longrepr, "addsection"):
        report.longrepr.addsection("execwatch", text)
    else:
        report.longrepr = f"{report.longrepr}\n\n{text}"
