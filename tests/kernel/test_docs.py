"""The documentation does what it shows: of each page the Python blocks are run as one program, then commands.

Not run: what installs or takes very long (``shell`` blocks), and what is shown as output (``text``, ``ini``).
"""

from __future__ import annotations

import os
import pathlib
import re
import subprocess
import sys

import pytest

from .commands import PATIENCE, python

DOCS = pathlib.Path(__file__).resolve().parent.parent.parent / "docs"
#: It has tests of its own, in test_pytest_plugin.
ELSEWHERE = {"how-to/pytest.md"}
PAGES = sorted({str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")} - ELSEWHERE)
LANGUAGES = {"python", "console", "shell", "text", "ini", "{eval-rst}", "{toctree}"}

_BLOCK = re.compile(r"^```(\S*)\n(.*?)^```$", re.M | re.S)


def blocks(page: str, language: str) -> list[str]:
    found = _BLOCK.findall((DOCS / page).read_text(encoding="utf-8"))
    assert {name for name, _ in found} <= LANGUAGES
    return [text for name, text in found if name == language]


def commands(page: str) -> list[str]:
    """The lines behind a prompt, with those that continue them."""
    text = "".join(blocks(page, "console")).replace("\\\n", "")
    return [line[2:] for line in text.splitlines() if line.startswith(("# ", "$ "))]


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")])
def test_python(page: str, tmp_path: pathlib.Path) -> None:
    code = "\n".join(blocks(page, "python"))
    done = subprocess.run(
        python("-W", "error", "-c", code), cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_commands(page: str, tmp_path: pathlib.Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "execwatch").write_text(f'#!/bin/sh\nexec {sys.executable} -m execwatch "$@"\n')
    (tools / "execwatch").chmod(0o755)
    env = {**os.environ, "PATH": f"{tools}:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"}
    for command in commands(page):
        done = subprocess.run(
            ["sh", "-ec", command], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=PATIENCE
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
