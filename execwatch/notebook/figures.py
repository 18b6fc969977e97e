"""A recording as pictures, which plotly draws.

What plotly is given as text it reads as HTML of a few tags: all of it goes through :func:`_html`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from execwatch import render
from execwatch.errors import MissingExtraError

if TYPE_CHECKING:
    import plotly.graph_objects

    from execwatch.processes import Process
    from execwatch.recording.values import Recording

#: Processes that are drawn at most: a browser that draws more is slow.
_MOST = 1000

#: For the programs that took the most time: Okabe and Ito's colours, which people who don't
#: see all colours can tell apart. Each with that of text on it.
_COLOURS = {
    "#0072b2": "white",
    "#e69f00": "black",
    "#009e73": "black",
    "#cc79a7": "black",
    "#56b4e9": "black",
    "#d55e00": "black",
    "#b59f00": "black",
}
_OTHERS, _GREY = "others", "#8c8c8c"

#: Rows up to which each has its name beside it, and levels that names are moved to the right.
_NAMED, _INDENTED = 60, 12

#: Characters of a command line that are shown, and those of one line of it.
_LONGEST, _LINE = 800, 80

#: They lie on the page's own background, which may be light or dark.
_LAYOUT: Dict[str, Any] = {
    "template": "none",
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "font": {"color": "#777777", "size": 12},
    "hoverlabel": {"align": "left", "font": {"family": "monospace", "size": 12}},
    "modebar": {"bgcolor": "rgba(0,0,0,0)", "color": "#777777", "activecolor": "#0072b2"},
}
_LINES = "rgba(128,128,128,0.25)"


class _Bar(NamedTuple):
    """A process as it is drawn.

    Attributes:
        parent: The nearest ancestor that is drawn, by its key.
        start, end: Seconds since the recording's first event.
    """

    process: Process
    depth: int
    parent: Optional[str]
    start: float
    end: float

    @property
    def seconds(self) -> float:
        return self.end - self.start


def timeline(recording: Recording) -> plotly.graph_objects.Figure:
    """Return a figure with a bar for each process, from its start to its end.

    A process stands below the one that forked it, in the order of starts. The colour is that
    of the program that it executed last. The pointer over a bar shows its command line
    and how it ended. One that had not ended reaches to the end of the recording. Of more
    than 1,000 processes those that took longest are drawn.

    Args:
        recording: With its forks and exits, as all are unless made with ``forks=False``.

    Raises:
        MissingExtraError: plotly is not there.
    """
    go = _graph_objects()
    bars = _bars(recording)
    figure = go.Figure(layout=_LAYOUT)
    colours = _colours(bars)
    for program, colour in [*colours.items(), (_OTHERS, _GREY)]:
        mine = [(row, bar) for row, bar in enumerate(bars) if colours.get(bar.process.comm, _GREY) == colour]
        if mine:
            figure.add_bar(
                name=_html(_program(program)),
                orientation="h",
                width=0.75,
                y=[row for row, _ in mine],
                base=[bar.start for _, bar in mine],
                x=[bar.seconds for _, bar in mine],
                hovertext=[_told(bar) for _, bar in mine],
                hoverinfo="text",
                marker={"color": colour, "line": {"color": colour, "width": 1}},  # seen, however short
            )
    named = bars if len(bars) <= _NAMED else []
    figure.update_layout(
        barmode="overlay",
        height=max(240, 110 + 18 * min(len(bars), 2 * _NAMED)),
        margin={"l": 12, "r": 12, "t": 36, "b": 48},
        showlegend=True,
        title={"text": _title(recording, bars), "font": {"size": 13}, "x": 0, "xref": "paper"},
        xaxis={"title": {"text": "seconds"}, "rangemode": "tozero", "gridcolor": _LINES, "zeroline": False},
        yaxis={
            "range": [len(bars) - 0.4, -0.6],  # the first at the top
            "automargin": True,
            "showgrid": False,
            "zeroline": False,
            "tickmode": "array",
            "tickvals": list(range(len(named))),
            "ticktext": _names(named),
            "tickfont": {"family": "monospace"},
        },
    )
    return figure


def tree(recording: Recording) -> plotly.graph_objects.Figure:
    """Return a figure of the processes below each other, as wide as they took time.

    A process is as wide as its children together and the time in which it had none. A click
    enlarges one with all that is below it. Colours, the pointer and the limit are those of
    :func:`timeline`.

    Args:
        recording: As for :func:`timeline`.

    Raises:
        MissingExtraError: plotly is not there.
    """
    go = _graph_objects()
    bars = _bars(recording)
    colours = _colours(bars)
    places = {bar.process.key: str(place) for place, bar in enumerate(bars)}
    # One box has to hold all others.
    several = sum(bar.parent is None for bar in bars) != 1
    top = "all" if several else ""
    colour_of = [_GREY] * several + [colours.get(bar.process.comm, _GREY) for bar in bars]
    figure = go.Figure(layout=_LAYOUT)
    figure.add_icicle(
        ids=["all"] * several + list(places.values()),
        parents=[""] * several + [top if bar.parent is None else places[bar.parent] for bar in bars],
        labels=["all"] * several + [_html(_cut(_program(bar.process.comm), _LINE)) for bar in bars],
        values=[0.0] * several + _alone(bars),
        hovertext=[_title(recording, bars)] * several + [_told(bar) for bar in bars],
        hoverinfo="text",
        textinfo="label",
        branchvalues="remainder",
        marker={"colors": colour_of, "line": {"width": 1, "color": "rgba(255,255,255,0.6)"}},
        leaf={"opacity": 1},
        textfont={"color": [_COLOURS.get(colour, "black") for colour in colour_of]},
        sort=False,
        tiling={"orientation": "v"},
    )
    figure.update_layout(
        height=max(300, 120 + 44 * (1 + max((bar.depth for bar in bars), default=0))),
        margin={"l": 12, "r": 12, "t": 36, "b": 12},
        uniformtext={"minsize": 9, "mode": "hide"},  # what has no room is for the pointer
        title={"text": _title(recording, bars), "font": {"size": 13}, "x": 0, "xref": "paper"},
    )
    return figure


def _graph_objects() -> Any:
    try:
        import plotly.graph_objects
    except ImportError:
        raise MissingExtraError("notebook", "plotly") from None
    return plotly.graph_objects


# -- What is drawn --------------------------------------------------------------------------


def _bars(recording: Recording) -> List[_Bar]:
    """The processes to draw, a parent before its children."""
    times = [event.boottime_ns for event in recording]
    first, last = (min(times), max(times)) if times else (0, 0)
    rows = recording.tree().rows
    spans = {process.key: _span(process, first, last) for _, process in rows}
    longest = sorted(spans, key=lambda key: spans[key][0] - spans[key][1])[:_MOST]
    chosen = set(longest)
    bars: List[_Bar] = []
    above: List[Optional[_Bar]] = []  # of each level the nearest that is drawn
    for depth, process in rows:
        del above[depth:]
        bar = parent = above[-1] if above else None
        if process.key in chosen:
            start, end = spans[process.key]
            key, level = (parent.process.key, parent.depth + 1) if parent else (None, 0)
            bar = _Bar(process, level, key, (start - first) / 1e9, (end - first) / 1e9)
            bars.append(bar)
        above.append(bar)
    return bars


def _span(process: Process, first: int, last: int) -> Tuple[int, int]:
    """When it started and ended, as far as the recording goes."""
    end = last if process.exit_boottime_ns is None else process.exit_boottime_ns
    start = first if process.start_boottime_ns is None else process.start_boottime_ns
    return min(max(start, first), end), end


def _alone(bars: Sequence[_Bar]) -> List[float]:
    """For each the seconds in which none of its children ran."""
    busy: Dict[str, float] = {}
    until: Dict[str, float] = {}
    for child in sorted(bars, key=lambda bar: bar.start):
        if child.parent is not None:
            start = max(child.start, until.get(child.parent, child.start))
            busy[child.parent] = busy.get(child.parent, 0.0) + max(0.0, child.end - start)
            until[child.parent] = max(child.end, until.get(child.parent, child.end))
    return [max(0.0, bar.seconds - busy.get(bar.process.key, 0.0)) for bar in bars]


def _colours(bars: Iterable[_Bar]) -> Dict[str, str]:
    """The programs that took most time, and their colours."""
    took: Dict[str, float] = {}
    for bar in bars:
        took[bar.process.comm] = took.get(bar.process.comm, 0.0) + bar.seconds
    return dict(zip(sorted(took, key=lambda program: -took[program]), _COLOURS))


# -- Text -----------------------------------------------------------------------------------


def _title(recording: Recording, bars: Sequence[_Bar]) -> str:
    number = len(recording.processes)
    if number > len(bars):
        return f"the {len(bars):,} longest of {number:,} processes"
    return f"{number:,} process{'es' * (number != 1)}"


def _names(bars: Sequence[_Bar]) -> List[str]:
    """Program and pid, moved to the right by level."""
    names = [
        "  " * min(bar.depth, _INDENTED) + f"{_cut(_program(bar.process.comm), 20)} {bar.process.pid}"
        for bar in bars
    ]
    width = max(map(len, names), default=0)
    # Labels end at the axis: so that they begin in one column too, all have one length.
    return [_html(name.ljust(width)).replace(" ", "&nbsp;") for name in names]


def _told(bar: _Bar) -> str:
    """What the pointer shows."""
    process = bar.process
    line = _cut(process.command_line, _LONGEST)
    lines = [line[start : start + _LINE] for start in range(0, len(line), _LINE)]
    if process.signal is not None:
        end = f"ended by signal {process.signal}"
    elif process.exit_code is not None:
        end = f"exit code {process.exit_code}"
    else:
        end = "ended" if process.ended else "had not ended"
    return "<br>".join(map(_html, [*lines, f"pid {process.pid}, {bar.seconds:.3f} s, {end}"]))


def _program(comm: str) -> str:
    return render.escape(comm) or "''"  # a process may give itself no name


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _html(text: str) -> str:
    """Quoted for plotly, which also takes what stands between two dollars for a formula."""
    return render.html(text).replace("$", "&#36;")
