"""Quoting: the one place that makes hostile text safe to look at.

Arguments, names and paths of traced programs come from whoever started them. A
newline in one can fake a line of output, an escape sequence can hide one.
What leaves these functions is one printable line and, in a shell, means the
same bytes again.
"""

from __future__ import annotations

import re
from typing import Iterable

#: A word that a shell takes as it is.
_PLAIN_WORD = re.compile(r"[A-Za-z0-9_@%+=:,./-]+").fullmatch


def quote(text: str) -> str:
    r"""Return one word for a shell: as it is, in ``'...'``, or in ``$'...'`` with escapes.

    Every character that is not printable (:meth:`str.isprintable`) becomes an
    escape, and every byte that is not valid UTF-8 becomes ``\xff``.
    """
    if _PLAIN_WORD(text):
        return text
    if text.isprintable():
        return "'" + text.replace("'", "'\"'\"'") + "'"
    return "$'" + escape(text, also="'") + "'"


def escape(text: str, also: str = "") -> str:
    r"""Return ``text`` with non-printables, backslashes and the characters in ``also`` escaped.

    For a column of a table, where quotes would be in the way.
    """
    if text.isprintable() and "\\" not in text and not (also and any(c in text for c in also)):
        return text
    return "".join(_escape_character(c, also) for c in text)


def command_line(argv: Iterable[str]) -> str:
    """Return ``argv`` as one printable line that a shell would read back as the same words."""
    words = tuple(argv)
    if _PLAIN_WORD("/".join(words)) and "" not in words:  # as most are: all at once
        return " ".join(words)
    return " ".join(map(quote, words))


def count(number: int, noun: str, plural: str = "") -> str:
    """Return a number with its noun: ``1 program``, ``2,300 programs``."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def html(text: str) -> str:
    """Return ``text`` as it stands in HTML, also inside a quoted attribute's value.

    Printable text, as the functions above return it, keeps its characters; other text goes
    through :func:`escape` first.
    """
    return (text if text.isprintable() else escape(text)).translate(_ENTITIES)


_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&#34;", "'": "&#39;"})

_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t", "\\": "\\\\"}


def _escape_character(character: str, also: str) -> str:
    if character in _SHORT:
        return _SHORT[character]
    if character in also:
        return "\\" + character
    if character.isprintable():
        return character
    # A lone surrogate that stands for no byte: no kernel's, a user's.
    if "\ud800" <= character < "\udc80" or "\udcff" < character <= "\udfff":
        return f"\\u{ord(character):04x}"
    # As bytes, each in two digits: a digit that follows can't be taken for a part of it.
    return "".join(f"\\x{byte:02x}" for byte in character.encode("utf-8", "surrogateescape"))
