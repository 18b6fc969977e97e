"""Whether a program that ran is the one that is meant."""

from __future__ import annotations

import posixpath
from typing import TYPE_CHECKING, Iterable, Iterator, Optional, Sequence, Tuple

if TYPE_CHECKING:
    from execwatch.events import ExecEvent


def ran_as(event: ExecEvent, words: Sequence[str], unreadable: bool = False) -> bool:
    """Return whether the program was executed with these first words.

    Args:
        words: The program's name or path, and arguments.
        unreadable: What to assume of arguments that nobody knows.
    """
    program, arguments = words[0], tuple(words[1:])
    for names, rest in _views(event):
        if _is_one(program, names):
            if event.argv_status == "unreadable" and arguments:
                return unreadable
            if rest[: len(arguments)] == arguments:
                return True
    return False


def is_allowed(event: ExecEvent, programs: Iterable[str]) -> bool:
    """Return whether the program is one of these. What it calls itself, ``argv[0]``, doesn't count."""
    names = (event.filename, event.exe and event.exe.path)
    return any(_is_one(program, names) for program in programs)


def _views(event: ExecEvent) -> Iterator[Tuple[Sequence[Optional[str]], Tuple[str, ...]]]:
    """The names of what ran, and its arguments; a script is seen in two ways."""
    exe = event.exe and event.exe.path
    script = event.filename if event.interp != event.filename else None
    # The kernel makes "interpreter [argument] script arguments..." of it, see execve(2).
    if script is not None and script in event.argv[1:]:
        yield (*event.argv[:1], exe), event.argv[1:]
        yield (script,), event.argv[event.argv.index(script, 1) + 1 :]
    else:
        yield (*event.argv[:1], exe, event.filename), event.argv[1:]


def _is_one(program: str, names: Iterable[Optional[str]]) -> bool:
    whole = "/" in program
    return any(program == (name if whole else posixpath.basename(name)) for name in names if name)
