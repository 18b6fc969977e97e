"""Runs pytest on a suite of its own, as somebody does who has execwatch installed."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import subprocess
import sys
import textwrap
import xml.etree.ElementTree
from typing import Mapping, NamedTuple

#: Where the package is not installed, pytest doesn't find the plugin by itself.
_FOUND = any(
    entry.group == "pytest11"
    for distribution in importlib.metadata.distributions(name="execwatch")
    for entry in distribution.entry_points
)
_PLUGIN = () if _FOUND else ("-p", "execwatch.pytest_plugin")


class Result(NamedTuple):
    """What became of one test.

    Attributes:
        outcome: ``"passed"``, ``"failed"``, ``"error"``, or ``"skipped"``, also where it failed as expected.
        text: Why.
    """

    outcome: str
    text: str


class Run(NamedTuple):
    """What became of a suite.

    Attributes:
        status: The exit status.
        output: What was printed.
        results: By the test's name.
    """

    status: int
    output: str
    results: Mapping[str, Result]

    @property
    def outcomes(self) -> dict[str, str]:
        return {name: result.outcome for name, result in self.results.items()}


def run(folder: pathlib.Path, files: Mapping[str, str], *options: str, before: tuple[str, ...] = ()) -> Run:
    """Write the files, run pytest there.

    Args:
        folder: An empty one.
        files: Texts by name.
        options: Of pytest.
        before: A command that runs it.
    """
    for name, text in {"pytest.ini": "[pytest]\n", **files}.items():
        (folder / name).write_text(textwrap.dedent(text), encoding="utf-8")
    report = folder / "report.xml"
    command = (
        *before, sys.executable, "-m", "pytest", *_PLUGIN, "-p", "no:cacheprovider", "-W", "error",
        "--strict-markers", f"--junit-xml={report}", f"--basetemp={folder / 'tmp'}", *options,
    )  # fmt: skip
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "COV"))
    }
    environment.update(COLUMNS="80", PYTHONDONTWRITEBYTECODE="1", LC_ALL="C.UTF-8")
    done = subprocess.run(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output = done.stdout.decode("utf-8", "surrogateescape")
    return Run(done.returncode, output, _results(report) if report.exists() else {})


def _results(report: pathlib.Path) -> dict[str, Result]:
    found: dict[str, Result] = {}
    for case in xml.etree.ElementTree.parse(report).iter("testcase"):
        name = case.get("name", "")
        outcome, text = "passed", ""
        for kind, told in (("skipped", "skipped"), ("failure", "failed"), ("error", "error")):
            for element in case.iter(kind):
                outcome, text = told, f"{element.get('message')}\n{element.text or ''}"
        found[name] = Result(outcome, text)
    return found
