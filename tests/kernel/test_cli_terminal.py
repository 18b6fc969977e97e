"""The command in a real terminal: typed at a shell's prompt, with Ctrl-C, Ctrl-Z, a window that is closed."""

from __future__ import annotations

import os
import pathlib
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from typing import Callable, Iterator

import pytest

import execwatch as package

from .commands import PATIENCE, again_and_again, execute
from .conftest import COUNT, Reason, skip, until

COLUMNS, LINES = 80, 40

HEADER = "TIME(s) PCOMM            PID     PPID    RET ARGS"

#: The shells, each with a prompt that is the exit status.
BASH = "PS1='[$?]> ' exec bash --norc --noprofile"
ZSH = "PS1='[%?]> ' exec zsh -f"


class Terminal:
    """A terminal with a shell in it, by a tmux server of its own.

    The shell's prompt is the exit status of what ran last: ``[0]>``.

    Args:
        folder: Where the shell is.
        shell: What starts it.
        environ: Variables of its environment.
    """

    def __init__(self, folder: pathlib.Path, shell: str = BASH, **environ: str) -> None:
        tmux = shutil.which("tmux") or skip(Reason.TOOL, "tmux")
        self._sockets = tempfile.mkdtemp(prefix="tmux-")  # a socket's path has to be short
        self._tmux = [tmux, "-u", "-L", f"execwatch-{os.getpid()}", "-f", os.devnull]
        self._environ = {
            **{name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")},
            "TMUX_TMPDIR": self._sockets,
            "PATH": f"{folder}/bin:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",
            "HISTFILE": os.devnull,
            **environ,
        }
        size = ("-x", str(COLUMNS), "-y", str(LINES))
        self.tmux("new-session", "-d", "-s", "it", *size, f"cd {shlex.quote(str(folder))}; {shell}")

    def tmux(self, *words: str) -> str:
        return subprocess.run(
            [*self._tmux, *words], env=self._environ, stdout=subprocess.PIPE, text=True, check=True
        ).stdout

    def close(self) -> None:
        subprocess.run([*self._tmux, "kill-server"], env=self._environ, stderr=subprocess.DEVNULL)
        shutil.rmtree(self._sockets)

    # -- Reading --------------------------------------------------------------------

    def text(self, *options: str) -> str:
        """What is on the screen, without blanks at the ends of the lines and empty lines at the end.

        A line that the terminal had to break is one.
        """
        lines = self.tmux("capture-pane", "-p", "-J", "-t", "it", *options).splitlines()
        return "\n".join(line.rstrip(" ") for line in lines).rstrip("\n")

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Wait until the text matches; in it a line begins at ``^`` and ends at ``$``."""
        found = [re.search(pattern, self.text(), re.M)]

        def search() -> bool:
            found.append(re.search(pattern, self.text(), re.M))
            return found[-1] is not None

        try:
            until(search, "what was expected", PATIENCE)
        except AssertionError:
            pytest.fail(f"there is no {pattern!r} in:\n{self.text()}")
        match = found[-1]
        assert match
        return match

    def end(self, status: int) -> list[str]:
        """Wait for the prompt, of this status; return the lines above it."""
        *lines, prompt = self.wait_for(r"\[\d+\]>\Z").string.splitlines()
        assert prompt == f"[{status}]>", "\n".join(lines)
        return lines

    # -- Typing ---------------------------------------------------------------------

    def type(self, line: str) -> None:
        """Type at the prompt. The screen is empty when the line is executed."""
        self.wait_for(r"^\[\d+\]>\Z")
        self.tmux("send-keys", "-t", "it", "-l", rf"printf '\033[H\033[2J'; {line}")
        self.wait_for(r"[^>]\Z")
        self.press("Enter")

    def press(self, *keys: str) -> None:
        self.tmux("send-keys", "-t", "it", *keys)


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Where there is a program ``execwatch``."""
    program = tmp_path / "bin" / "execwatch"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m execwatch "$@"\n')
    program.chmod(0o755)
    return tmp_path


@pytest.fixture
def terminals(folder: pathlib.Path) -> Iterator[Callable[..., Terminal]]:
    opened: list[Terminal] = []

    def open_terminal(shell: str = BASH, **environ: str) -> Terminal:
        opened.append(Terminal(folder, shell, **environ))
        return opened[-1]

    yield open_terminal
    for terminal in opened:
        terminal.close()


@pytest.fixture
def terminal(terminals: Callable[..., Terminal]) -> Terminal:
    return terminals()


# -- trace ------------------------------------------------------------------------------


def test_the_live_table_until_ctrl_c(terminal: Terminal) -> None:
    # Of this process, not of what it asks the terminal by.
    terminal.type(f"execwatch -P {os.getpid()} -l hostile")
    terminal.wait_for(f"^{re.escape(HEADER)}$")
    title = terminal.tmux("display-message", "-p", "#{pane_title}")
    pid = execute("/bin/true", "\x1b]2;hostile\x07\x1b[2J", "two\nlines", "\x9b2J")
    columns = rf"\d+\.\d{{3}} +true {{13}}{pid:<7} {os.getpid():<7}   0 "
    terminal.wait_for(rf"^{columns}/bin/true \$'\\x1b\]2;hostile")
    terminal.press("C-c")
    header, row, echo = terminal.end(130)
    assert (header, echo) == (HEADER, "^C")
    assert re.match(columns, row)
    assert terminal.tmux("display-message", "-p", "#{pane_title}") == title


def test_what_is_wider_is_cut(terminal: Terminal) -> None:
    pytest.importorskip("rich", reason="needs the extra cli")
    terminal.type(f"execwatch -P {os.getpid()} -l wide")
    terminal.wait_for("^TIME")
    execute("/bin/true", "wide", "x" * 200)
    terminal.wait_for("^.{79}…$")
    terminal.tmux("resize-window", "-t", "it", "-x", "75")
    execute("/bin/true", "wide", "x" * 200)
    terminal.wait_for("^.{74}…$")
    execute("/bin/true", "wide", "日" * 100)
    terminal.wait_for("日 ?…$")
    terminal.press("C-c")
    terminal.end(130)


# -- run --------------------------------------------------------------------------------


def test_a_command_has_the_terminal(terminal: Terminal) -> None:
    asks = (
        'test -t 0 && test -t 1 && test -t 2 && printf "na""me? " && read name && echo "hello $name"; exit 5'
    )
    terminal.type(f"execwatch run --tree -- sh -c {shlex.quote(asks)}")
    terminal.wait_for("^name\\?$")
    terminal.press("Joe", "Enter")
    said, greeted, empty, heading, row = terminal.end(5)
    assert (said, greeted, empty, heading) == (
        "name? Joe",
        "hello Joe",
        "",
        "  TOOK(s) EXIT      PID     COMMAND",
    )
    assert re.match(r" +\d+\.\d{3} 5 +\d+ +sh -c 'test -t 0", row)


def test_ctrl_c_ends_the_command_and_what_it_did_is_shown(terminal: Terminal) -> None:
    terminal.type("execwatch run -- sh -c 'env true; echo rea\"\"dy; exec sleep 1000'")
    terminal.wait_for("^ready$")
    terminal.press("C-c")
    lines = terminal.end(130)
    assert lines[0] == "ready"
    assert HEADER in lines
    shown = [line.split("   0 ", 1)[1].split("/")[-1] for line in lines[lines.index(HEADER) + 1 :]]
    assert shown[1:] == ["env true", "true", "sleep 1000"]


def test_a_command_that_survives_ctrl_c(terminal: Terminal) -> None:
    script = 'trap \'echo cau""ght\' INT; echo rea""dy; read line; exit 4'
    terminal.type(f"execwatch run --summary sh -c {shlex.quote(script)}")
    terminal.wait_for("^ready$")
    terminal.press("C-c")
    terminal.wait_for("caught$")
    # What waits for a line is ended by the signal, where it is the shell itself; execwatch is not.
    terminal.press("Enter")
    assert "1 process, 1 exec in" in "\n".join(terminal.end(4))


def test_ctrl_z_stops_both_and_fg_goes_on(terminal: Terminal) -> None:
    terminal.type("execwatch run --tree sh -c 'echo rea\"\"dy; read line; exit 6'")
    terminal.wait_for("^ready$")
    terminal.press("C-z")
    terminal.wait_for(r"^\[148\]>\Z")
    terminal.type("fg")
    terminal.wait_for("^execwatch run")
    terminal.press("Enter")
    assert re.search(r"^ +\d+\.\d{3} 6 +\d+ +sh -c", "\n".join(terminal.end(6)), re.M)


def test_wide_characters_keep_the_tree_straight(terminal: Terminal) -> None:
    pytest.importorskip("rich", reason="needs the extra cli")
    terminal.type("execwatch run --tree sh -c 'env true 日本語" + "日" * 40 + "; true'")
    lines = terminal.end(0)
    assert [line[-1] for line in lines if "日" in line] == ["…"] * 2
    assert len(lines) == 4  # an empty one, the heading, two processes: none is broken


# -- record -----------------------------------------------------------------------------


def test_how_far_a_recording_is_and_its_end_by_ctrl_c(terminal: Terminal, folder: pathlib.Path) -> None:
    terminal.type("execwatch record -o x.ndjson")
    progress = r"^execwatch: (\d+) events, 0 lost, [\d.]+ [kM]?B; Ctrl-C ends it$"
    terminal.wait_for(progress)
    with again_and_again("/bin/true"):
        until(lambda: int(terminal.wait_for(progress)[1]) > COUNT, "the counter", PATIENCE)
    terminal.press("C-c", "C-c", "C-c")
    lines = terminal.end(130)
    assert len(lines) == 1  # that of the counter is gone
    recording = package.load(folder / "x.ndjson")
    assert re.match(rf"(\^C)*execwatch: {len(recording):,} events in x\.ndjson \([\d.]+ [kM]?B\)$", lines[0])
    assert recording.complete


def test_a_window_that_is_closed_ends_a_recording_well(terminal: Terminal, folder: pathlib.Path) -> None:
    path = folder / "x.ndjson"
    terminal.type("execwatch record -o x.ndjson")
    terminal.wait_for("Ctrl-C ends it$")
    terminal.tmux("kill-session", "-t", "it")
    until(lambda: path.read_bytes().splitlines()[-1].startswith(b'{"kind":"end"'), "the end", PATIENCE)
    assert package.load(path).complete


def test_a_command_is_recorded_without_a_counter(terminal: Terminal) -> None:
    terminal.type("execwatch record -o x.ndjson -- sh -c 'echo out; exit 3'")
    said, told = terminal.end(3)
    assert said == "out"
    assert re.match(r"execwatch: [\d,]+ events in x\.ndjson \([\d.]+ [kM]?B\)$", told)


# -- report -----------------------------------------------------------------------------


@pytest.fixture
def recorded(folder: pathlib.Path) -> pathlib.Path:
    """A recording of a command: with long arguments, and with one that would change a terminal."""
    wide, hostile = "x" * 200, "$(printf '\\033]2;hostile\\007\\033[2J')"
    with package.record(path=folder / "x.ndjson", failed=True):
        subprocess.run(["sh", "-c", f'env no-such; true {wide}; env true "{hostile}"; exit 3'])
    return folder / "x.ndjson"


def test_views_are_cut_and_coloured_here_and_whole_in_a_pipe(
    terminal: Terminal, recorded: pathlib.Path
) -> None:
    pytest.importorskip("rich", reason="needs the extra cli")
    title = terminal.tmux("display-message", "-p", "#{pane_title}")
    for view in ("-x", "--tree", "--summary"):
        terminal.type(f"execwatch report x.ndjson {view}")
        shown = terminal.end(0)
        assert any(len(line) == COLUMNS and line.endswith("…") for line in shown)
        assert "\x1b[31m" in terminal.text("-e")
        terminal.type(f"execwatch report x.ndjson {view} | tee piped | grep -c '[[:cntrl:]]'")
        assert terminal.end(1) == ["0"]
        whole = (recorded.parent / "piped").read_text(encoding="utf-8").splitlines()
        assert max(map(len, whole)) > 200
        assert [line if len(line) <= COLUMNS else f"{line[: COLUMNS - 1]}…" for line in whole] == shown
    assert terminal.tmux("display-message", "-p", "#{pane_title}") == title


def test_a_terminal_without_colours(terminal: Terminal, recorded: pathlib.Path) -> None:
    for setting in ("NO_COLOR=1", "TERM=dumb"):
        terminal.type(f"{setting} execwatch report x.ndjson --tree -n sh")
        assert terminal.end(0)[0] == "  TOOK(s) EXIT      PID     COMMAND"
        assert "\x1b" not in terminal.text("-e")


def test_a_pipe_that_is_closed(terminal: Terminal, recorded: pathlib.Path) -> None:
    terminal.type("execwatch report x.ndjson | head -n 1; echo ${PIPESTATUS[0]}")
    assert terminal.end(0) == [HEADER, "0"]
    terminal.type(f"execwatch -P {os.getpid()} | head -n 1; echo ${{PIPESTATUS[0]}}")
    assert terminal.end(0) == [HEADER, "0"]
    terminal.type("execwatch run --json seq 9 2>&1 | head -n 1; echo ${PIPESTATUS[0]}")
    assert terminal.end(0)[0] == "1"


def test_ctrl_c_ends_a_report(terminal: Terminal, folder: pathlib.Path) -> None:
    os.mkfifo(folder / "fifo")
    terminal.type("execwatch report fifo")
    writers: list[int] = []

    def opened() -> bool:
        try:
            writers.append(os.open(folder / "fifo", os.O_WRONLY | os.O_NONBLOCK))
        except OSError:  # nobody reads it yet
            return False
        return True

    until(opened, "a reader", PATIENCE)
    terminal.press("C-c")
    assert terminal.end(130) == ["^C"]
    os.close(writers[0])


# -- doctor, completion -----------------------------------------------------------------


def test_doctor(terminal: Terminal) -> None:
    terminal.type("execwatch doctor")
    assert terminal.end(0)[-1] == "execwatch can trace here."


COMPLETED = {
    "execwatch rep": "execwatch report",
    "execwatch run --tr": "execwatch run --tree",
    "execwatch report x.nd": "execwatch report x.ndjson",
    "execwatch record -o x.nd": "execwatch record -o x.ndjson",
    "execwatch -u nobod": "execwatch -u nobody",
    "execwatch run -- printen": "execwatch run -- printenv",
    "execwatch run --tree cat x.nd": "execwatch run --tree cat x.ndjson",
}


@pytest.mark.parametrize("shell", [BASH, ZSH], ids=["bash", "zsh"])
def test_the_tab_key(shell: str, terminals: Callable[..., Terminal], folder: pathlib.Path) -> None:
    pytest.importorskip("shtab", reason="needs the extra cli")
    if shell == ZSH and not shutil.which("zsh"):
        skip(Reason.TOOL, "zsh")
    (folder / "x.ndjson").touch()
    terminal = terminals(shell)
    if shell == ZSH:
        terminal.type("fpath=($PWD/zsh $fpath); mkdir zsh; execwatch --print-completion zsh >zsh/_execwatch")
        terminal.end(0)
        terminal.type("autoload -Uz compinit; compinit -D")
    else:
        terminal.type("source <(execwatch --print-completion bash)")
    terminal.end(0)
    for typed, completed in COMPLETED.items():
        terminal.press("C-l")
        terminal.wait_for(r"\A\[\d+\]>\Z")
        terminal.press(typed, "Tab")
        terminal.wait_for(rf"\A\[\d+\]> {re.escape(completed)}\Z")
        terminal.press("C-u")
