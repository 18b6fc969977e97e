"""What several verbs take."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, List, Optional, Union

if TYPE_CHECKING:
    from execwatch.events import ExecEvent, FailedExecEvent


def time_columns(group: argparse._ArgumentGroup, start: str) -> None:
    """Add -T and -t; ``start`` says since when the seconds are."""
    group.add_argument("-T", "--time", action="store_true", help="a column with the time of day (HH:MM:SS)")
    group.add_argument(
        "-t",
        "--timestamp",
        action="store_true",
        help=f"a column with seconds since {start} (the default, unless -T is given)",
    )


def failed(
    group: argparse._ArgumentGroup,
    help: str = "also attempts that failed, with the negative errno as RET; slows every system call a little",
) -> None:
    """Add -x."""
    group.add_argument("-x", "--failed", action="store_true", help=help)


def choices(group: argparse._ArgumentGroup) -> None:
    """Add -u, -P, -n, -l: which programs."""
    group.add_argument("-u", "--uid", metavar="USER", type=user, help="this user's (id or name)")
    group.add_argument("-P", "--ppid", metavar="PPID", type=whole, help="children of this process")
    group.add_argument("-n", "--name", metavar="REGEX", type=regex, help="whose name (PCOMM) matches")
    group.add_argument(
        "-l", "--line", metavar="REGEX", type=regex, help="whose arguments match, joined by spaces"
    )


def named(
    event: Union[ExecEvent, FailedExecEvent],
    name: Optional[re.Pattern[str]],
    line: Optional[re.Pattern[str]],
) -> bool:
    """Whether -n and -l choose an event; None: all."""
    if name and not name.search(event.comm):
        return False
    return not line or line.search(" ".join(event.argv or ())) is not None


def command(parser: argparse.ArgumentParser, help: str) -> None:
    """Add the command to run: whatever follows the options, with or without ``--`` between them."""
    parser.add_argument("command", metavar="COMMAND", nargs=argparse.REMAINDER, help=help)


def words(args: argparse.Namespace) -> List[str]:
    """Return the command and its arguments."""
    found: List[str] = args.command
    return found[1:] if found[:1] == ["--"] else found


def user(text: str) -> int:
    """Return the id of a user."""
    if text.isdecimal() and int(text) < 2**32 - 1:
        return int(text)
    import pwd

    try:
        return pwd.getpwnam(text).pw_uid
    except KeyError:
        raise argparse.ArgumentTypeError(
            f"there is no user {text!r}; expected an id or a name of `getent passwd`"
        ) from None


def whole(text: str) -> int:
    """Return a whole number."""
    if not text.isdecimal() or not 0 < int(text) < 2**32:
        raise argparse.ArgumentTypeError(f"expected a whole number, 1 or more, got {text!r}")
    return int(text)


def seconds(text: str) -> float:
    """Return a span of time."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"expected seconds, 0 or more, got {text!r}")
    return value


def regex(text: str) -> re.Pattern[str]:
    """Return a regular expression."""
    try:
        return re.compile(text)
    except (re.error, OverflowError, RecursionError) as exc:
        raise argparse.ArgumentTypeError(f"not a regular expression: {text!r}: {exc}") from None
