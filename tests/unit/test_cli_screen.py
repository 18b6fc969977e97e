"""Lines on a terminal: in colour, cut to its width; and hostile text, which is never more than text."""

from __future__ import annotations

import io
import os
import pathlib
import re
import subprocess
import sys
import unicodedata
from typing import Any, Callable, Dict
from unittest import mock

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from execwatch import Recording, cli
from execwatch.cli import screen as screens
from execwatch.cli import views
from execwatch.cli.screen import Screen
from execwatch.testing import exec_event, failed_exec_event

from . import cli_recordings
from .cli_recordings import process

cells = pytest.importorskip("rich.cells", reason="needs the extra cli")
pty = pytest.importorskip("pty", reason="terminals are those of Unix")

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture
def build(tmp_path: pathlib.Path) -> str:
    """The path of a recording of a small build."""
    path = str(tmp_path / "build.ndjson")
    cli_recordings.build().save(path)
    return path


# -- Hostile text -----------------------------------------------------------------------

words = st.binary(max_size=8).filter(lambda word: b"\0" not in word).map(os.fsdecode)
words |= st.sampled_from(
    ["\x1b[31m", "\x1b]2;x\x07", "\u202e", "a\n0.000   x", "\x9b2J", "日本語", "(forked)"]
)

VIEWS: Dict[str, Callable[[Recording, Screen], None]] = {
    "table": lambda recording, screen: views.table(recording, screen, failed=True, time_of_day=True),
    "tree": views.tree,
    "summary": views.summary,
    "json": views.json_lines,
}


@st.composite
def recordings(draw: Any) -> Recording:
    """Two processes, of which nothing is to be trusted."""
    argv, (name, path, interp) = draw(st.lists(words, min_size=1, max_size=3)), draw(st.tuples(*[words] * 3))
    events = process(0, *argv, exit_code=1)
    events[1] = attrs.evolve(events[1], comm=name, filename=path, interp=interp, cwd=path)
    fork, *_ = process(1, *argv, parent=0)
    failed = failed_exec_event(argv=draw(st.none() | st.just(tuple(argv))), comm=name, filename=path)
    return Recording([*events, attrs.evolve(fork, comm=name, parent_comm=path), failed])


class Shown(io.StringIO):
    """A terminal, as far as it has to be one."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def shown(view: str, recording: Recording, **environ: str) -> str:
    stream = Shown()
    with mock.patch.dict(os.environ, {"TERM": "xterm", **environ}):
        VIEWS[view](recording, Screen(stream))
    return stream.getvalue()


@given(recording=recordings())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("view", VIEWS)
def test_no_control_character_reaches_a_terminal(view: str, recording: Recording) -> None:
    plain = shown(view, recording, NO_COLOR="1", FORCE_COLOR="")
    lines = plain.split("\n")
    assert all(line.isprintable() for line in lines)
    assert len(lines) - 1 == {"table": 3, "tree": 3, "summary": len(lines) - 1, "json": len(recording)}[view]
    coloured = shown(view, recording, NO_COLOR="")
    # What was printable has no escape sequence: these here are ours.
    assert _COLOUR.sub("", coloured) == plain
    with mock.patch.object(screens, "columns", return_value=40):
        cut = _COLOUR.sub("", shown(view, recording, NO_COLOR=""))
    for line, whole in zip(cut.split("\n"), lines):
        assert line == whole or whole.startswith(line[:-1].rstrip(" "))
        assert view == "json" or cells.cell_len(line) <= 40


@given(data=st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_nor_does_one_of_a_file_that_is_none(
    data: Any, tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "x\x1b.ndjson"
    Recording(process(0, "/bin/true")).save(path)
    content = path.read_bytes()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(content)))
        insert = data.draw(st.sampled_from([b"\x1b[2J", b"\\u001b", b"\x9b", b"\n", b'"', b"\xff"]))
        content = content[:place] + insert + content[place + data.draw(st.integers(0, 2)) :]
    path.write_bytes(content)
    assert cli.main(["report", str(path), data.draw(st.sampled_from(["-x", "--tree", "--json"]))]) in (0, 1)
    assert all(line.isprintable() for text in capfd.readouterr() for line in text.split("\n"))


# -- Terminals --------------------------------------------------------------------------


def on_terminal(*words: str, columns: int = 60, **environ: str) -> str:
    """What the command shows on a terminal."""
    termios, fcntl, struct = (pytest.importorskip(name) for name in ("termios", "fcntl", "struct"))
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    plain = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    env = {**plain, "TERM": "xterm", "PYTHONIOENCODING": "utf-8", **environ}
    with subprocess.Popen(
        [sys.executable, "-m", "execwatch", *words], stdout=follower, stderr=subprocess.PIPE, env=env
    ) as child:
        os.close(follower)
        shown = b""
        try:
            while piece := os.read(leader, 4096):
                shown += piece
        except OSError:  # Linux: nobody has it open any more
            pass
        os.close(leader)
        assert child.wait() == 0
    return shown.decode().replace("\r\n", "\n")


def test_on_a_terminal_lines_have_colours_and_are_cut(build: str) -> None:
    text = on_terminal("report", build, "-x", columns=50)
    assert "\x1b[31m -2 \x1b[0m" in text
    assert "\x1b[31m  0 " not in text
    lines = _COLOUR.sub("", text).splitlines()
    assert lines[1] == "0.000   make             100     1         0 /usr…"
    assert {len(line) for line in lines[1:]} == {50}


@pytest.mark.parametrize("columns", range(50, 60))
def test_wide_characters_count_twice(columns: int) -> None:
    recording = Recording([exec_event(argv=("/bin/true", "日本語日本語"))])
    with mock.patch.object(screens, "columns", return_value=columns):
        (row,) = shown("table", recording, NO_COLOR="1").splitlines()[1:]
    assert row.endswith("…")
    assert sum(2 if unicodedata.east_asian_width(c) == "W" else 1 for c in row) == columns


@pytest.mark.parametrize("view", ["tree", "summary"])
def test_what_failed_is_red(view: str) -> None:
    with mock.patch.object(screens, "columns", return_value=60):
        text = shown(view, cli_recordings.build(), NO_COLOR="")
    assert re.search(r"\x1b\[31m *(SIGSEGV|signal 11) *\x1b\[0m", text)
    assert {len(line) for line in _COLOUR.sub("", text).splitlines()} <= set(range(61))


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"NO_COLOR": "1", "FORCE_COLOR": "1"}])
def test_without_colours(environ: Dict[str, str]) -> None:
    with mock.patch.object(screens, "columns", return_value=50):
        text = shown("table", cli_recordings.build(), **environ)
    assert "\x1b" not in text
    assert max(map(len, text.splitlines())) == 50


def test_a_plain_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """That can't do more, and where rich is not installed."""
    recording = cli_recordings.build()
    plain = shown("tree", recording, TERM="dumb")
    assert "\x1b" not in plain
    monkeypatch.setitem(sys.modules, "rich", None)
    monkeypatch.setitem(sys.modules, "rich.cells", None)
    with mock.patch.object(screens, "columns", return_value=20):
        assert shown("tree", recording) == plain


def test_colours_that_are_asked_for_in_a_pipe(
    build: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shown = []
    for value in ("", "1"):
        monkeypatch.setenv("FORCE_COLOR", value)
        assert cli.main(["report", build]) == 0
        shown.append(capfd.readouterr().out)
    plain, coloured = shown
    assert "\x1b" not in plain
    assert coloured != plain
    assert _COLOUR.sub("", coloured) == plain


def test_a_terminal_that_knows_only_ascii(build: str) -> None:
    text = on_terminal("report", build, "--tree", columns=20, PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert r"\u251c\u2500" in text
    assert max(map(len, text.splitlines())) > 20
