"""The README says what is true: its Python is run, its options and files exist."""

from __future__ import annotations

import pathlib
import re
import subprocess

import pytest

from .. import readme
from .commands import again_and_again, execwatch, python, traced

#: By the section: what the block prints once a shell has started.
PRINTS = {
    "execwatch": rb"\d+ sh \('/bin/sh', '-c', ':'\)",
    "What it needs": rb"execwatch can trace here\.",
    "Filters": rb"\d+ started ls /",
    "Failures, forks and exits": rb"env ended with 127 after \d+ ns",
    "Who, where, and under what": rb"on the host /.*",
    "Containers": rb"\d+ programs of the host left out",
    "The tree of processes": rb"sh <- python.*",
    "Recordings": rb"       exit 2  \d+ ls /missing",
    "In files": rb"\['ls /'\]",
    "Callbacks": rb"\d\d:\d\d:\d\d a shell, started by .*: /bin/sh -c :",
    "asyncio": rb"3 .+",
    "Loss": rb"\d+ seen, \d+ delivered, 0 lost",
    "Errors": rb"\d+ programs started",
    "Tests of your own program": rb"\['exec', 'exec'\]",
}

#: Those that would go on for (too) long.
GO_ON = ("execwatch", "Callbacks")


@pytest.mark.parametrize("block", readme.blocks(), ids=lambda block: block.heading)
def test_block(block: readme.Block) -> None:
    expected = re.compile(PRINTS[block.heading]).fullmatch
    with traced(*python("-u", "-W", "error", "-c", block.code)) as program:
        with again_and_again("/bin/sh", "-c", ":", path="/bin/sh"):
            while not expected(program.line()):
                pass
        if block.heading in GO_ON:
            program.interrupt()
        done = program.end()
    if block.heading in GO_ON:
        assert done.errors.endswith("\nKeyboardInterrupt\n")
    else:
        assert (done.status, done.errors) == (0, "")


def test_every_block_is_known() -> None:
    assert [block.heading for block in readme.blocks()] == list(PRINTS)


def test_the_options_in_the_table_are_those_of_the_command() -> None:
    text = readme.README.read_text(encoding="utf-8").split("## The command")[1].split("## ")[0]
    told = set(re.findall(r"`(--?[a-zA-Z]+)", text))
    done = subprocess.run(execwatch("trace", "--help"), capture_output=True, text=True, check=True)
    known = set(re.findall(r"(?<=[ ,])(--?[a-zA-Z]+)", done.stdout))
    assert told >= {"-T", "-u", "-n", "--json", "--count"}
    assert told <= known


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", readme.README.read_text(encoding="utf-8")):
        assert (pathlib.Path(readme.README).parent / target).exists(), target
