"""What ``--execs`` prints: how many programs the tests executed, and which."""

from __future__ import annotations

from collections import Counter
from typing import Any, Dict, List, Mapping, Optional, Tuple

#: Lines of tests without -v; programs.
_TESTS, _PROGRAMS = 10, 10


class Summary:
    """Collects what the tests' last reports tell, here or from the workers of pytest-xdist."""

    def __init__(self) -> None:
        self._tests: Dict[str, int] = {}
        self._programs: Counter[str] = Counter()
        self._unseen = 0
        self._reason: Optional[str] = None

    def pytest_runtest_logreport(self, report: Any) -> None:
        """Take in a report."""
        told = getattr(report, "execwatch", None)
        if told is None:
            return
        self._reason = told.get("reason", self._reason)
        programs = told.get("programs", {})
        # Added up: a plugin may have it run again.
        self._tests[report.nodeid] = self._tests.get(report.nodeid, 0) + sum(programs.values())
        self._programs.update(programs)
        self._unseen += told.get("unseen", 0)

    def pytest_terminal_summary(self, terminalreporter: Any, config: Any) -> None:
        """Print it."""
        line = terminalreporter.write_line
        terminalreporter.section("programs executed")
        if self._reason is not None:
            line(f"not recorded: {self._reason}")
            return
        tests = _ranked(self._tests)
        shown = tests if config.getoption("verbose") > 0 else tests[:_TESTS]
        for nodeid, count in shown:
            line(f"{count:6}  {nodeid}")
        if len(shown) < len(tests):
            line(f"        ... {len(tests) - len(shown)} more tests, -v shows them")
        line(f"{sum(self._programs.values()):6}  in all, by {len(tests)} of {len(self._tests)} tests")
        if self._programs:
            often = _ranked(self._programs)[:_PROGRAMS]
            line("most often: " + ", ".join(f"{name} ({count})" for name, count in often))
        if self._unseen:
            line(f"{self._unseen} events were lost: these are too few")


def _ranked(counts: Mapping[str, int]) -> List[Tuple[str, int]]:
    """The most frequent first; in the same order also where workers tell of them in another one."""
    return sorted(
        ((name, count) for name, count in counts.items() if count), key=lambda item: (-item[1], item[0])
    )
