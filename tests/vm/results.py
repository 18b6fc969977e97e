"""What a run of the tests in one place (a kernel, a distribution) gave: JSON lines, a table, an exit status.

One line of kind `cell` for each place, then one of kind `test` for each test in it, so that a support table
(kernel, BCC, probe, buffer) can be made from the file alone.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional
from xml.etree import ElementTree

PROBES = ("tracepoint", "kprobe")
BUFFERS = ("ring", "perf")
TIMED_OUT = 124
"""As timeout(1) has it."""


@dataclass(frozen=True)
class TestResult:
    """One test, as pytest's JUnit file tells it."""

    __test__ = False

    name: str
    outcome: str
    seconds: float
    message: str = ""
    properties: dict[str, str] = field(default_factory=dict)

    def choice(self, name: str, values: Sequence[str]) -> Optional[str]:
        """What the test said with `record_property`, or what the id of its parameters says."""
        said = self.properties.get(name)
        if said is not None:
            return said
        words = re.split(r"[^a-z]+", self.name.partition("[")[2])
        return next((value for value in values if value in words), None)


@dataclass(frozen=True)
class Cell:
    """One place in which the tests ran."""

    place: str
    status: Optional[int]
    """The command's exit status, `None` if it never came back."""
    seconds: float
    facts: dict[str, Optional[str]] = field(default_factory=dict)
    """kernel, distribution, python, bcc: what is known about the place."""
    tests: tuple[TestResult, ...] = ()
    error: str = ""

    @property
    def passed(self) -> bool:
        return self.status == 0

    @property
    def verdict(self) -> str:
        if self.passed:
            return "passed"
        return "timed out" if self.status == TIMED_OUT else "failed"

    def records(self, command: Sequence[str]) -> Iterator[dict[str, Any]]:
        yield {
            "kind": "cell",
            "place": self.place,
            **self.facts,
            "command": list(command),
            "status": self.status,
            "verdict": self.verdict,
            "seconds": round(self.seconds, 1),
            "outcomes": dict(Counter(test.outcome for test in self.tests)),
            "error": self.error,
        }
        for test in self.tests:
            yield {
                "kind": "test",
                "place": self.place,
                **self.facts,
                "test": test.name,
                "probe": test.choice("probe", PROBES),
                "buffer": test.choice("buffer", BUFFERS),
                "outcome": test.outcome,
                "seconds": test.seconds,
                "message": test.message,
            }


def read_junit(path: Path) -> tuple[TestResult, ...]:
    """The tests in a JUnit file; none if the command was not pytest or died before writing it."""
    try:
        tree = ElementTree.parse(path)
    except (OSError, ElementTree.ParseError):
        return ()
    return tuple(_test(case) for case in tree.iter("testcase"))


def _test(case: ElementTree.Element) -> TestResult:
    outcome, message = "passed", ""
    for kind in ("skipped", "failure", "error"):
        found = case.find(kind)
        if found is not None:
            outcome = {"failure": "failed"}.get(kind, kind)
            message = found.get("message", "")[:300]
    pairs = {item.get("name", ""): item.get("value", "") for item in case.iter("property")}
    name = "::".join(part for part in (case.get("classname"), case.get("name")) if part)
    return TestResult(name, outcome, float(case.get("time", "0")), message, pairs)


def read_facts(path: Path) -> dict[str, Optional[str]]:
    """`name=value` lines, written from inside the place; an empty value is an unknown one."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return {}
    return {name: value.strip() or None for name, _, value in (line.partition("=") for line in lines)}


def write(path: Path, cell: Cell, command: Sequence[str]) -> None:
    """Appended cell by cell, so that a run which is cut short leaves what it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a", encoding="utf-8") as file:
        for record in cell.records(command):
            file.write(json.dumps(record, ensure_ascii=False) + "\n")


def table(cells: Iterable[Cell]) -> str:
    """The cells as text, for the end of a run."""
    heads = ("place", "kernel", "python", "bcc", "result", "tests", "seconds")
    rows = [heads, *(_row(cell) for cell in cells)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads))]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def _row(cell: Cell) -> tuple[str, ...]:
    counts = Counter(test.outcome for test in cell.tests)
    tests = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items())) or "-"
    facts = [cell.facts.get(name) or "-" for name in ("kernel", "python", "bcc")]
    result = cell.verdict if cell.passed or cell.status is None else f"{cell.verdict} ({cell.status})"
    return (cell.place, *facts, result, tests, f"{cell.seconds:.0f}")
