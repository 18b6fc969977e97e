"""What a failure says: which program, out of what, and what else ran. All of it is quoted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Dict, Iterator, List, Optional, Sequence, Tuple

from execwatch import render
from execwatch.events import ExecEvent, ForkEvent

if TYPE_CHECKING:
    from execwatch.pytest_plugin.watch import Link, Window

    Started = Sequence[Tuple[ExecEvent, Link]]

#: Characters of one command line, programs in a list, links of a chain.
_WIDE, _MANY, _LONG = 300, 20, 20


def missing(words: Sequence[str], window: Window) -> str:
    """Say that something did not run."""
    lines = [f"not executed: {_cut(render.command_line(words))}"]
    if window.unseen:
        lines.append(f"{_lost(window)}: it may be among them")
    if not window.started:
        return "\n".join([*lines, "nothing was executed"])
    return "\n".join([*lines, "what was executed:", *_some(list(_outline(window)))])


def unwanted(words: Sequence[str], found: Started, window: Window) -> str:
    """Say that something ran that should not, or that this can't be told."""
    text = _cut(render.command_line(words))
    if not found:
        return f"{_lost(window)}, so it can't be told whether this was executed: {text}"
    return "\n".join([f"executed: {text}", *_chains(found)])


def violation(nodeid: str, rule: str, found: Started, window: Window) -> str:
    """Say that a test executed what its markers forbid, or that this can't be told."""
    if not found:
        return f"{_lost(window)}, so it can't be told whether {nodeid} kept to {rule}"
    count = "a program" if len(found) == 1 else f"{len(found)} programs"
    lines = [f"{nodeid} executed {count} against {rule}:", *_chains(found)]
    return "\n".join([*lines, _lost(window)] if window.unseen else lines)


def _lost(window: Window) -> str:
    return f"{window.unseen} events were lost"


def _chains(found: Started) -> List[str]:
    blocks = []
    for _, link in found:
        links = list(_upwards(link.parent))
        left_out = len(links) - _LONG
        if left_out > 0:  # the ends tell most
            links[_LONG // 2 : -_LONG // 2] = []
        lines = [f"    <- {_line(parent)}" for parent in links]
        if left_out > 0:
            lines.insert(_LONG // 2, f"    ... {left_out} more")
        blocks.append("\n".join([f"  {_line(link)}", *lines]))
    return _some(blocks)


def _upwards(link: Optional[Link]) -> Iterator[Link]:
    while link is not None:
        yield link
        link = link.parent


def _outline(window: Window) -> Iterator[str]:
    """The programs below what started them."""
    known = {link for _, link in window.started}
    below: Dict[Optional[Link], List[Link]] = {}
    for _, link in window.started:
        parent = next((parent for parent in _upwards(link.parent) if parent in known), None)
        below.setdefault(parent, []).append(link)
    waiting = [(0, link) for link in reversed(below.get(None, []))]
    while waiting:
        depth, link = waiting.pop()
        yield f"  {'  ' * min(depth, _LONG)}{_line(link)}"
        waiting += [(depth + 1, child) for child in reversed(below.get(link, []))]


def _line(link: Link) -> str:
    event = link.event
    if event is None:
        return link.text
    if isinstance(event, ForkEvent):
        return f"{render.escape(event.comm)} ({event.pid}), forked"
    text = event.command_line or render.quote(event.filename or event.comm)
    return f"{_cut(text)} ({event.pid})"


def _cut(text: str) -> str:
    return text if len(text) <= _WIDE else f"{text[: _WIDE - 3]}..."


def _some(lines: List[str]) -> List[str]:
    left_out = len(lines) - _MANY
    return [*lines[:_MANY], f"  ... {left_out} more"] if left_out > 0 else lines
