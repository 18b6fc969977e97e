"""HTML for notebooks: tables that open and close, made of plain values.

All text goes through :func:`execwatch.render.html`. What comes out is one printable line: no
script, nothing that is loaded from elsewhere, and no colour but one for what went wrong, so
that it can be read on light and dark pages. Its size is bounded, whatever it is made of.
"""

from __future__ import annotations

from itertools import islice
from typing import Any, Iterable, Sequence, Tuple

import attrs

from execwatch import render

#: Text, and what it is: one of _STYLES, or "".
Part = Tuple[str, str]

_STYLES = {
    "aside": "opacity:.65",
    "bad": "color:#d9363e",  # contrast 4.6 : 1 on white, 4.1 : 1 on JupyterLab's dark pages
    "branches": "opacity:.5;white-space:pre",
}

#: Rows that are shown of a table.
ROWS = 50

#: Characters of a text that are there at once, and those that it opens to.
_SHORT, _LONG = 80, 2000

# The classes: else MathJax takes what stands between two dollars for a formula. What is said of
# cells has to stand at each: JupyterLab says otherwise for every cell.
_BOX = '<div class="tex2jax_ignore mathjax_ignore" dir="ltr" style="overflow-x:auto;font-family:monospace">'
_SUMMARY = '<summary style="cursor:pointer">'
_CELL = 'style="text-align:left;vertical-align:top;white-space:nowrap;padding:1px 12px 1px 0"'
_WHOLE = '<div style="white-space:pre-wrap;overflow-wrap:anywhere;max-width:60em">'


def box(title: Iterable[Part], *bodies: str, opened: bool = True) -> str:
    """Return a line that opens and closes what is below it.

    Args:
        title: The line.
        bodies: HTML that functions of this module made.
        opened: Whether it is open at first.
    """
    line = "".join(_span(_cut(_printable(text)), style) for text, style in title if text)
    tag = "<details open>" if opened else "<details>"
    return f"{_BOX}{tag}{_SUMMARY}{line}</summary>{''.join(bodies)}</details></div>"


def table(headings: Sequence[str], rows: Iterable[Sequence[Sequence[Part]]], total: int) -> str:
    """Return the first rows of a table, and how many more there are.

    Args:
        headings: Of the columns.
        rows: All, or the first :data:`ROWS` of them; the cells of each, and their parts.
        total: How many there are.
    """
    shown = [
        "".join(_cell("".join(_part(text, style) for text, style in parts)) for parts in row)
        for row in islice(rows, ROWS)
    ]
    return _table(headings, shown, total)


def fields(value: Any, *pairs: Tuple[str, object]) -> str:
    """Return a table of what is known (not None) of an attrs value.

    Args:
        value: The value; a field may hold another one.
        pairs: Names and values of more, that come first.
    """
    own = ((field.name, getattr(value, field.name)) for field in attrs.fields(type(value)))
    return _pairs([(name, found) for name, found in (*pairs, *own) if found is not None])


def _pairs(pairs: Sequence[Tuple[str, object]]) -> str:
    shown = [
        _cell(_part(render.escape(name), "aside")) + _cell(_value(name, value))
        for name, value in pairs[:ROWS]
    ]
    return _table((), shown, len(pairs))


def _value(name: str, value: Any) -> str:
    if isinstance(value, str):  # a variable of the environment may have any name
        return _part(render.escape(value), "")
    if attrs.has(type(value)):
        return f"<details>{_SUMMARY}{_span('…', '')}</summary>{fields(value)}</details>"
    if name == "env":
        title = _span(render.count(len(value), "variable"), "")
        return f"<details>{_SUMMARY}{title}</summary>{_pairs(value)}</details>"
    if name == "argv":
        return _part(render.command_line(value), "")
    return _part(oct(value) if name == "mode" else hex(value) if name.startswith("cap_") else str(value), "")


def _table(headings: Sequence[str], rows: Sequence[str], total: int) -> str:
    head = "".join(f"<th {_CELL}>{_span(text, 'aside')}</th>" for text in headings)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    more = _span(f"and {total - len(rows):,} more", "aside") if total > len(rows) else ""
    return f"<table>{head and f'<thead><tr>{head}</tr></thead>'}<tbody>{body}</tbody></table>{more}"


def _cell(content: str) -> str:
    return f"<td {_CELL}>{content}</td>"


def _part(text: str, style: str) -> str:
    text = _printable(text)
    if len(text) <= _SHORT or style == "branches":
        return _span(text, style)
    left = len(text) - _LONG
    whole = text[:_LONG] + (f"… and {left:,} characters more" if left > 0 else "")
    return (
        f'<details style="display:inline-block">{_SUMMARY}{_span(_cut(text), style)}</summary>'
        f"{_WHOLE}{_span(whole, style)}</div></details>"
    )


def _printable(text: str) -> str:
    return text if text.isprintable() else render.escape(text)


def _cut(text: str) -> str:
    return text if len(text) <= _SHORT else text[:_SHORT] + "…"


def _span(text: str, style: str) -> str:
    """Text of its own direction: Hebrew in an argument moves nothing around it."""
    css = f' style="{_STYLES[style]}"' if style else ""
    return f'<bdi dir="ltr"{css}>{render.html(text)}</bdi>' if text else ""
