"""What a notebook shows of values: whatever traced programs pass, it is text there, and nothing else."""

from __future__ import annotations

from typing import Any, Dict, List

import attrs
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from execwatch import Container, Event, Process, ProcessTree, Recording, render
from execwatch.processes import ProcessTable
from execwatch.testing import exec_event, exit_event, failed_exec_event, fork_event, lost_events

from ..page import Page

TAGS = {"div", "details", "summary", "table", "thead", "tbody", "tr", "th", "td", "bdi"}

#: Bytes as programs pass them, decoded as execwatch decodes them; and what a user may have made.
TEXTS = st.one_of(
    st.binary(max_size=60).map(lambda word: word.replace(b"\0", b"").decode("utf-8", "surrogateescape")),
    st.text(max_size=20),
    st.text("<>&\"'`=/\\$;# \x1b\x9b\r\n\t\u202e\u2066\u200f\u2028\ud800\udcffscriptonload", max_size=100),
    st.sampled_from(
        [
            "<script>alert(1)</script>",
            '"><img src=x onerror=alert(1)>',
            "' style='position:fixed' x='",
            "</bdi></td></table></details></div><h1>",
            "<!-- ", "]]>", "&lt;b&gt;", "&#60;b&#62;", "$\\href{javascript:alert(1)}{x}$",
            "\x1b[2K\rnothing", "\u202egpj.exe", "שלום", "x" * 3000, "\x1b" * 900,
        ]
    ),
)  # fmt: skip


def cell(text: str) -> List[str]:
    """What a cell says of a quoted text: all of it, or its beginning, and what that opens to."""
    assert text.isprintable()
    if len(text) <= 80:
        return [text] if text else []
    left = len(text) - 2000
    return [text[:80] + "…", text[:2000] + (f"… and {left:,} characters more" if left > 0 else "")]


def visible(text: str) -> str:
    return text if text.isprintable() else render.escape(text)


def events_of(texts: List[str]) -> List[Any]:
    """One of each kind, with hostile text wherever there can be any."""
    first, second, third = (texts * 3)[:3]
    who: Dict[str, Any] = {"pid": 7, "start_boottime_ns": 60_000_000_000, "process_key": first + "-7"}
    hostile: Dict[str, Any] = {
        "comm": first,
        "parent_comm": second,
        "cgroup_path": third,
        "container": Container(id=second, runtime=third, pod_uid=first),
    }
    return [
        fork_event(**who, **hostile),
        attrs.evolve(
            exec_event(**who, argv=("/x",), boottime_ns=60_000_100_000),
            **hostile, argv=tuple(texts), filename=second, interp=third, cwd=first,
            env=((first, second), ("argv", first), ("mode", second), ("env", third), ("cap_x", "1")),
            env_status="complete",
        ),
        failed_exec_event(**who, **hostile, argv=tuple(texts), filename=third, boottime_ns=60_000_200_000),
        attrs.evolve(
            exec_event(boottime_ns=60_000_300_000, argv=(), argv_status="unreadable"),
            comm=third, filename=first,
        ),
        exec_event(
            comm=first, filename="/x", argv=tuple(texts), argv_status="truncated", ppid=None,
            boottime_ns=60_000_400_000,
        ),
        exit_event(**who, **hostile, exit_code=3, boottime_ns=60_000_500_000),
        lost_events(of=first, reason=second, boottime_ns=60_000_600_000),
    ]  # fmt: skip


def shown(value: Any) -> Page:
    text = value._repr_html_()
    assert text.isprintable(), "a control character, a bidi mark or a line break"
    text.encode("utf-8")
    return Page(text)


#: What is written in tags, whatever the values: of values that are known.
BENIGN = [*events_of(["/bin/true", "-x"] + ["long"] * 20)]
ATTRIBUTES = {
    pair
    for value in (*BENIGN, Recording(BENIGN), Recording(BENIGN).tree(), Recording(BENIGN).summary())
    for pair in shown(value).attributes
} | {("style", "display:inline-block")}


@settings(max_examples=60)
@given(st.lists(TEXTS, min_size=1, max_size=5))
@example(["<script>", "\x1b[31m\r\n", "\u202e", "\udcff\ud800", "$x$"])
@example(["<b>" * 3000, "\x1b" * 700, ""])
def test_nothing_is_markup_or_moves_the_text(texts: List[str]) -> None:
    events = events_of(texts)
    recording = Recording(events, complete=False)
    values = [*events, recording, recording.tree(), recording.summary(), *recording.processes]
    for value in values:
        page = shown(value)
        assert set(page.tags) <= TAGS
        assert set(page.attributes) <= ATTRIBUTES
        assert len(page.titles) == 1
    line = render.command_line(texts)
    rows = shown(recording).rows
    commands = ["".join(row[-1]) for row in rows[1:]]
    assert commands == [
        "".join(cell(line)),
        "".join(cell(line)) + " ENOENT",
        "".join(cell(f"{render.quote(texts[0])} ")) + "(arguments unreadable)",
        "".join(cell(line)) + " and more arguments",
        "".join(cell(visible(f"1 of {texts[0]} lost here: {(texts * 3)[1]}"))),
    ]
    assert rows[1][3] == cell(render.escape(texts[0]))
    tree = shown(recording.tree()).rows
    assert tree[1][-1] == cell(line)
    fields = {row[0][0]: row[1] for row in shown(events[1]).rows if len(row) == 2 and row[0]}
    assert fields["argv"] == cell(line)
    assert fields["cwd"] == cell(render.escape(texts[0]))
    assert fields["filename"] == cell(render.escape((texts * 3)[1]))
    assert fields["env"][0] == "5 variables"
    assert {"argv", "mode", "env", "cap_x"} <= set(fields["env"])


def test_a_large_recording_shows_its_beginning_and_says_so() -> None:
    argv = ("/bin/echo", "<" * 100_000)
    events = [exec_event(argv=argv) for _ in range(123)]
    text = Recording(events)._repr_html_()
    page = Page(text)
    assert len(page.rows) == 1 + 50
    assert page.text[-1] == "and 73 more"
    assert len(text) < 1_000_000
    tree = Page(Recording(events).tree()._repr_html_())
    assert (len(tree.rows), tree.text[-1]) == (1 + 50, "and 73 more")


def test_a_chain_of_many_processes_is_drawn_within_bounds() -> None:
    rows = tuple((depth, Process(key=str(depth), pid=depth, comm="sh")) for depth in range(5000))
    assert len(ProcessTree(rows)._repr_html_()) < 100_000


def test_a_recording_tells_what_it_lacks() -> None:
    events = [exec_event(), failed_exec_event(), failed_exec_event(), lost_events(count=1200)]
    (title,) = shown(
        Recording(events, complete=False, still_running=[Process(key="", pid=1, comm="a")])
    ).titles
    assert title.startswith("1 program in 0.0")
    assert title.endswith(" s, 2 failed attempts, 1 process still running, 1,200 events lost, not complete")
    (title,) = shown(Recording([])).titles
    assert title == "0 programs in 0.000 s"


def test_a_tree_tells_how_long_and_how_it_ended() -> None:
    table = ProcessTable()
    start = 60_000_000_000
    parent: Dict[str, Any] = {"pid": 10, "process_key": "ten", "start_boottime_ns": start}
    child: Dict[str, Any] = {"pid": 11, "process_key": "eleven", "ppid": 10, "parent_key": "ten"}
    for event in (
        exec_event(**parent, argv=("make",), boottime_ns=start + 1000),
        fork_event(**child, comm="make", start_boottime_ns=start + 2000, boottime_ns=start + 2000),
        exit_event(**child, signal=9, start_boottime_ns=start + 2000, boottime_ns=start + 5_002_000),
    ):
        table.feed(event)
    page = shown(table.tree())
    assert page.rows == [
        [["took (s)"], ["end"], ["pid"], ["command"]],
        [[], ["runs"], ["10"], ["make"]],
        [["0.005"], ["signal 9"], ["11"], ["└─ ", "make (forked)"]],
    ]
    table.feed(exit_event(**parent, exit_code=2, boottime_ns=start + 2_000_000_000))
    assert shown(table.tree()).rows[1][:2] == [["2.000"], ["exit 2"]]
    (process,) = [process for process in table if process.pid == 10]
    assert shown(process).titles == ["process 10 make exit 2"]


def test_a_summary_is_its_text_in_tables() -> None:
    events = events_of(["/bin/true"])
    summary = Recording(events).summary()
    page = shown(summary)
    assert page.titles == [str(summary).partition("\n")[0]]
    assert [row[0] for row in page.rows if row[-1] in (["command"], ["program"])] == [
        ["slowest (s)"],
        ["most often"],
        ["failed"],
    ]
    assert [["exit 3"], ["7"], ["/bin/true"]] in page.rows


@pytest.mark.parametrize("event", events_of(["a b"]), ids=lambda event: event.kind)
def test_an_event_is_one_line_that_opens(event: Event) -> None:
    page = shown(event)
    assert ("open", None) not in page.attributes
    (title,) = page.titles
    assert title.startswith(f"{event.kind} ")
    assert [row for row in page.rows if row[0] == ["time_ns"]] == [[["time_ns"], [str(event.time_ns)]]]
    assert not [row for row in page.rows if row[1] == ["None"]]


def test_numbers_stand_as_people_read_them() -> None:
    rows = {row[0][0]: row[1] for row in shown(exec_event(uid=0)).rows if row[0]}
    assert "0o100755" in rows["exe"]
    assert "0x1ffffffffff" in rows["creds"]


def test_text_in_html() -> None:
    assert render.html("a<b> & \"c\" 'd'") == "a&lt;b&gt; &amp; &#34;c&#34; &#39;d&#39;"
    assert render.html("\x1b<\udcff") == r"\x1b&lt;\xff"
    assert render.html(r"printable\n") == r"printable\n"


def test_counts() -> None:
    assert [render.count(n, "process", "processes") for n in (0, 1, 2300)] == [
        "0 processes",
        "1 process",
        "2,300 processes",
    ]


def test_in_a_terminal_a_tree_and_a_summary_are_their_text() -> None:
    pretty = pytest.importorskip("IPython.lib.pretty", reason="needs the extra notebook")
    recording = Recording(events_of(["a\x1b[2Kb"]))
    for value in (recording.tree(), recording.summary()):
        assert pretty.pretty(value) == str(value)
        assert "\x1b" not in pretty.pretty(value)
