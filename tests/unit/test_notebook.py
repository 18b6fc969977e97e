"""Pictures of recordings, and %%execwatch in IPython's shell; without a kernel of either kind."""

from __future__ import annotations

import html
import json
import pathlib
import re
import subprocess
import sys
from typing import Any, Dict, Iterator, List, Tuple

import pytest
from hypothesis import given, settings

import execwatch
from execwatch import MissingExtraError, PrivilegeError, Recording, render
from execwatch.events import AnyEvent
from execwatch.notebook import magic, timeline, tree
from execwatch.testing import exec_event, exit_event, fork_event

from .test_html import TEXTS

pytest.importorskip("plotly", reason="needs the extra notebook")
IPython = pytest.importorskip("IPython", reason="needs the extra notebook")

GALLERY = sorted((pathlib.Path(__file__).parents[2] / "docs" / "gallery").glob("*.ipynb"))

START_NS = 60_000_000_000
MS = 1_000_000


def process(
    pid: int, start: int, end: int, *argv: str, parent: int = 1, comm: str = "", **fields: Any
) -> List[AnyEvent]:
    """A process's three events; times in milliseconds, -1 for an end that was not seen."""
    who: Dict[str, Any] = {
        "pid": pid,
        "ppid": parent,
        "process_key": f"key-{pid}",
        "parent_key": f"key-{parent}",
        "start_boottime_ns": START_NS + start * MS,
        "comm": comm or argv[0],
    }
    events: List[AnyEvent] = [
        fork_event(**who, boottime_ns=START_NS + start * MS),
        exec_event(**who, boottime_ns=START_NS + start * MS, argv=argv, filename="/x"),
    ]
    if end >= 0:
        events.append(exit_event(**who, boottime_ns=START_NS + end * MS, **fields))
    return events


def recording(*processes: List[AnyEvent]) -> Recording:
    events = [event for one in processes for event in one]
    return Recording(sorted(events, key=lambda event: event.boottime_ns))


BUILD = recording(
    process(10, 0, 1000, "make", "-j2", exit_code=2),
    process(11, 100, 600, "cc", "a b.c", parent=10),
    process(12, 150, 550, "cc1", "a b.c", parent=11),
    process(13, 200, 700, "cc", "b.c", parent=10, exit_code=1),
    process(14, 250, 300, "cc1", "b.c", parent=13, signal=11),
    process(15, 900, -1, "daemon", parent=10),
)


def bars(figure: Any) -> Dict[int, Tuple[str, float, float, str]]:
    """By row: program, start, end, and what the pointer shows."""
    return {
        row: (trace.name, base, base + x, text)
        for trace in figure.data
        for row, base, x, text in zip(trace.y, trace.base, trace.x, trace.hovertext)
    }


def test_a_timeline_has_a_bar_for_each_process_below_its_parent() -> None:
    figure = timeline(BUILD)
    found = bars(figure)
    assert [(name, round(start, 6), round(end, 6)) for _, (name, start, end, _) in sorted(found.items())] == [
        ("make", 0.0, 1.0),
        ("cc", 0.1, 0.6),
        ("cc1", 0.15, 0.55),
        ("cc", 0.2, 0.7),
        ("cc1", 0.25, 0.3),
        ("daemon", 0.9, 1.0),
    ]
    assert found[1][3] == "cc &#39;a b.c&#39;<br>pid 11, 0.500 s, exit code 0"
    assert found[3][3].endswith("<br>pid 13, 0.500 s, exit code 1")
    assert found[4][3].endswith("<br>pid 14, 0.050 s, ended by signal 11")
    assert found[5][3].endswith("<br>pid 15, 0.100 s, had not ended")
    assert len({trace.marker.color for trace in figure.data}) == len(figure.data) == 4
    names = [name.replace("&nbsp;", " ").rstrip() for name in figure.layout.yaxis.ticktext]
    assert names == ["make 10", "  cc 11", "    cc1 12", "  cc 13", "    cc1 14", "  daemon 15"]
    assert figure.layout.title.text == "6 processes"


def test_the_tree_is_as_wide_as_the_time_that_was_taken() -> None:
    (trace,) = tree(BUILD).data
    nodes = dict(zip(trace.ids, zip(trace.labels, trace.parents, map(float, trace.values))))
    assert [(label, parent) for label, parent, _ in nodes.values()] == [
        ("make", ""),
        ("cc", "0"),
        ("cc1", "1"),
        ("cc", "0"),
        ("cc1", "3"),
        ("daemon", "0"),
    ]
    # Of make's second, two compilers ran from 0.1 to 0.7, and the daemon from 0.9.
    assert [round(value, 6) for _, _, value in nodes.values()] == [0.3, 0.1, 0.4, 0.45, 0.05, 0.1]
    assert trace.branchvalues == "remainder"
    colours = dict(zip(trace.labels, trace.marker.colors))
    assert colours == {trace.name: trace.marker.color for trace in timeline(BUILD).data}


def test_processes_of_several_commands_stand_below_one_box() -> None:
    (trace,) = tree(recording(process(10, 0, 5, "a"), process(11, 5, 9, "b"))).data
    assert list(zip(trace.ids, trace.labels, trace.parents)) == [
        ("all", "all", ""),
        ("0", "a", "all"),
        ("1", "b", "all"),
    ]


def test_of_many_processes_the_longest_are_drawn_below_the_nearest_that_is() -> None:
    # Each of the ten groups: a shell that is long, in it a short one, in that a hundred and fifty long ones.
    groups = []
    for group in range(10):
        first, second = 1000 * (group + 1), 1000 * (group + 1) + 1
        groups += [
            process(first, 0, 5000, "outer"),
            process(second, 1, 2, "inner", parent=first),
            *[process(second + n, 10, 20 + n, "cc", parent=second) for n in range(1, 151)],
        ]
    many = recording(*groups)
    (trace,) = tree(many).data
    assert len(trace.ids) == 1 + 1000
    assert set(trace.labels) == {"all", "outer", "cc"}
    outer = {id for id, label in zip(trace.ids, trace.labels) if label == "outer"}
    assert {parent for parent, label in zip(trace.parents, trace.labels) if label == "cc"} == outer
    figure = timeline(many)
    assert len(bars(figure)) == 1000
    assert figure.layout.title.text == "the 1,000 longest of 1,520 processes"
    assert list(figure.layout.yaxis.ticktext) == []


def test_what_ran_before_the_recording_begins_with_it() -> None:
    started = exec_event(argv=("sh",), boottime_ns=START_NS, start_boottime_ns=START_NS - 500 * MS)
    later = exec_event(boottime_ns=START_NS + 100 * MS, start_boottime_ns=None, argv=("ls",))
    found = bars(timeline(Recording([started, later])))
    assert sorted((start, round(end, 6)) for _, start, end, _ in found.values()) == [(0, 0.1), (0, 0.1)]


@pytest.mark.parametrize("events", [[], [exit_event()], [fork_event(ppid=None)]])
def test_little_is_drawn_too(events: List[AnyEvent]) -> None:
    for figure in (timeline(Recording(events)), tree(Recording(events))):
        figure.to_json()


@settings(max_examples=30)
@given(TEXTS, TEXTS)
def test_hostile_text_is_text_in_pictures(one: str, other: str) -> None:
    """plotly takes a few tags, entities, and formulas between dollars."""
    pictured = recording(process(7, 0, 9, one, other), process(8, 1, 2, other, parent=7))
    timed, (icicle,) = timeline(pictured), tree(pictured).data
    labels = [*(trace.name for trace in timed.data), *icicle.labels]
    told = [text for trace in (*timed.data, icicle) for text in trace.hovertext]
    for text in [*labels, *told, *timed.layout.yaxis.ticktext]:
        for line in text.split("<br>"):
            assert line.isprintable()
            assert not re.search("[<>$]", line)
            assert not re.search("&(?!#3[469];|#39;|amp;|lt;|gt;|nbsp;)", line)
    assert html.unescape(icicle.labels[0]) == cut(render.escape(one) or "''", 80)
    line = "".join(html.unescape(part) for part in icicle.hovertext[0].split("<br>")[:-1])
    assert line == cut(render.command_line([one, other]), 800)


def cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def test_without_plotly_it_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "plotly"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "plotly", None)
    for picture in (timeline, tree):
        with pytest.raises(MissingExtraError, match=r"pip install 'execwatch\[notebook\]'"):
            picture(BUILD)


# -- The magic ------------------------------------------------------------------------------


class Shell:
    """IPython's shell.

    Attributes:
        shown: What was displayed, by MIME type.
    """

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.shown: List[Dict[str, str]] = []
        shell.display_pub.publish = lambda data, **_: self.shown.append(data)

    def run(self, cell: str) -> Any:
        """Run a cell; return what became of it."""
        return self.shell.run_cell(cell, store_history=True)

    def __getitem__(self, name: str) -> Any:
        return self.shell.user_ns[name]


@pytest.fixture
def shell(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    settings = Config()
    settings.HistoryManager.enabled = False
    modules = dict(sys.modules)
    made = InteractiveShell.instance(config=settings)
    try:
        yield Shell(made)
    finally:
        made.restore_sys_module_state()
        InteractiveShell.clear_instance()
        sys.modules["__main__"] = modules["__main__"]


class FakeRecorder:
    """In the place of a recorder: what it recorded is there already."""

    made: List[FakeRecorder]

    def __init__(self, recording: Recording, options: Dict[str, Any]) -> None:
        self.recording = recording
        self.options = options
        self.inside = False
        self.ended_with: Any = "has not ended"

    def __enter__(self) -> FakeRecorder:
        self.inside = True
        return self

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        self.inside = False
        self.ended_with = error


@pytest.fixture
def recorders(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> List[FakeRecorder]:
    """What %%execwatch made, in a shell that has loaded it."""
    made: List[FakeRecorder] = []

    def record(**options: Any) -> FakeRecorder:
        made.append(FakeRecorder(BUILD, options))
        return made[-1]

    monkeypatch.setattr(magic, "record", record)
    shell.shell.run_line_magic("load_ext", "execwatch")
    shell.shell.user_ns["recorders"] = made
    return made


def test_a_cell_is_run_while_it_is_recorded_then_the_recording_is_shown(
    shell: Shell, recorders: List[FakeRecorder], capsys: pytest.CaptureFixture[str]
) -> None:
    result = shell.run("%%execwatch --out kept\ninside = recorders[0].inside\nfirst = 20\nfirst + 22")
    assert result.success
    (made,) = recorders
    assert (shell["inside"], made.inside, made.ended_with) == (True, False, None)
    assert made.options == {"failed": False}
    assert shell["kept"] is BUILD
    assert shell["_"] == 42
    assert "42" in capsys.readouterr().out
    (shown,) = shell.shown
    assert shown["text/html"] == BUILD._repr_html_()
    lines = shown["text/plain"].splitlines()
    assert lines[:3] == [repr(BUILD), "10 make -j2", "11 cc 'a b.c'"]


def test_a_semicolon_hides_the_last_value(
    shell: Shell, recorders: List[FakeRecorder], capsys: pytest.CaptureFixture[str]
) -> None:
    assert shell.run("%%execwatch\n6 * 7;").success
    assert "42" not in capsys.readouterr().out
    assert len(recorders) == len(shell.shown) == 1


def test_the_tree_is_shown_and_failed_attempts_are_recorded_where_that_is_asked_for(
    shell: Shell, recorders: List[FakeRecorder]
) -> None:
    assert shell.run("%%execwatch --tree --failed\npass").success
    assert recorders[0].options == {"failed": True}
    (shown,) = shell.shown
    assert shown["text/html"] == BUILD.tree()._repr_html_()
    assert shown["text/plain"] == str(BUILD.tree())


def test_a_tree_of_a_recording_with_gaps_says_so(
    shell: Shell, recorders: List[FakeRecorder], capsys: pytest.CaptureFixture[str]
) -> None:
    cell = "from execwatch.testing import lost_events\nimport execwatch\n"
    cell += "recorders[0].recording = execwatch.Recording([lost_events(count=5)])"
    assert shell.run(f"%%execwatch --tree\n{cell}").success
    assert capsys.readouterr().err == "5 events are missing\n"


def test_what_a_cell_raises_comes_through_and_the_recording_is_shown(
    shell: Shell, recorders: List[FakeRecorder], capsys: pytest.CaptureFixture[str]
) -> None:
    result = shell.run("%%execwatch --out kept\ndef fail():\n    raise OSError('full')\nfail()\nlater = 1")
    assert isinstance(result.error_in_exec, OSError)
    assert recorders[0].ended_with is result.error_in_exec
    assert shell["kept"] is BUILD
    assert "later" not in shell.shell.user_ns
    assert len(shell.shown) == 1
    told = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert "OSError: full" in told
    assert "magic.py" not in told
    # Lines are counted as they stand in the cell, the magic's own included.
    assert "-> 4 fail()" in told


@pytest.mark.parametrize(
    ("cell", "told"),
    [
        ("%%execwatch\n1 +", "SyntaxError"),
        ("%%execwatch\nimport asyncio\nran = await asyncio.sleep(0, 1)", "can't wait for an await"),
        ("%%execwatch\nasync with x: pass", "can't wait for an await"),
        ("%%execwatch --no\nran = 1", "UsageError: unrecognized arguments: --no"),
        ("%%execwatch --out\nran = 1", "UsageError: argument --out: expected one argument"),
        ("%%execwatch --out 1x\nran = 1", "--out: expected the name of a variable, got '1x'"),
        (
            "%%execwatch --out class\nran = 1",
            "--out: expected the name of a variable, got 'class'",
        ),
    ],
)
def test_what_can_not_be_run_is_not_recorded(
    cell: str, told: str, shell: Shell, recorders: List[FakeRecorder], capsys: pytest.CaptureFixture[str]
) -> None:
    assert not shell.run(cell).success
    captured = capsys.readouterr()
    assert told in captured.out + captured.err
    assert (recorders, shell.shown) == ([], [])
    assert "ran" not in shell.shell.user_ns


def test_an_await_inside_a_function_is_none_of_the_cell(shell: Shell, recorders: List[FakeRecorder]) -> None:
    cell = "import asyncio\nasync def wait(): return await asyncio.sleep(0, 5)\nran = asyncio.run(wait())"
    assert shell.run(f"%%execwatch\n{cell}").success
    assert (shell["ran"], len(recorders)) == (5, 1)


def test_without_privilege_the_cell_is_not_run_and_one_message_tells_the_ways_out(
    shell: Shell, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(self: Any) -> None:
        raise PrivilegeError("tracing needs CAP_BPF, or: capsh -c COMMAND")

    monkeypatch.setattr(execwatch.ExecTracer, "start", refuse)
    shell.shell.run_line_magic("load_ext", "execwatch")
    result = shell.run("%%execwatch --out kept\nran = 1")
    assert not result.success
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err == (
        "UsageError: The cell was not run, because it can't be recorded: tracing needs CAP_BPF, "
        "or: capsh -c COMMAND\n"
        "It is Jupyter that needs the privilege: its command, such as jupyter lab, "
        "takes the place of COMMAND.\n"
        "To show here what is recorded elsewhere, in a terminal:\n"
        "    sudo execwatch record -o build.ndjson -- make && sudo chown $USER build.ndjson\n"
        "and here:\n"
        '    recording = execwatch.load("build.ndjson")\n'
    )
    assert shell.shown == []
    assert not {"ran", "kept"} & set(shell.shell.user_ns)


@pytest.mark.parametrize("path", GALLERY, ids=lambda path: path.stem)
def test_notebooks_are_kept_without_what_they_showed_here(path: pathlib.Path) -> None:
    notebook = json.loads(path.read_text(encoding="utf-8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all((cell["outputs"], cell["execution_count"]) == ([], None) for cell in code)
    assert notebook["metadata"]["kernelspec"]["name"] == "python3"


def test_help_tells_the_options(shell: Shell, recorders: List[FakeRecorder]) -> None:
    text = shell.shell.magics_manager.magics["cell"]["execwatch"].__doc__
    assert all(option in text for option in ("--tree", "--out NAME", "--failed", "await", "privilege"))


def test_importing_it_brings_neither_ipython_nor_plotly() -> None:
    code = (
        "import sys, execwatch; from execwatch.notebook import magic, tree;"
        "assert not {'IPython', 'plotly'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
