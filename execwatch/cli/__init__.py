"""The command ``execwatch``: one module a verb, imported when it is asked for.

A verb's module has ``EXAMPLES`` (the end of its help), ``configure(parser)`` and
``run(args) -> int``, the exit status.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import List, Optional, Sequence

from execwatch.errors import BccNotFoundError, ExecwatchError, PrivilegeError

#: Each verb with what its help says first. Without a verb it is the first one.
VERBS = {
    "trace": "Print every program that starts, as it starts.",
    "doctor": "Tell whether this machine and this user can trace, and what mends it.",
}

OK, FAILED, USAGE, NO_BCC, NO_PRIVILEGE, INTERRUPTED = 0, 1, 2, 3, 4, 130

_EXIT_STATUS = """\
exit status:
  0 done   1 failed   2 wrong usage   3 BCC is missing   4 a privilege is missing   130 interrupted
"""


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command.

    Args:
        argv: Its arguments, without the program's name; those of the process, if None.

    Returns:
        The exit status.
    """
    try:
        return _run(list(sys.argv[1:] if argv is None else argv))
    except SystemExit as exc:  # argparse's: it has said all
        return exc.code if isinstance(exc.code, int) else FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        from execwatch.cli import output

        output.discard()
        return OK  # whoever reads the output has seen enough, as with `| head`
    except (ExecwatchError, OSError) as exc:
        return fail(str(exc), _status(exc))
    except Exception as exc:
        return fail(f"this should not happen, please report it: {_where(exc)}", FAILED)


def fail(message: str, status: int) -> int:
    """Print one message and return the status."""
    print(f"execwatch: {message}", file=sys.stderr)
    return status


def _run(argv: List[str]) -> int:
    if argv and argv[0] in ("-h", "--help", "--version"):
        _parser().parse_args(argv)
    verb = next(iter(VERBS))
    if argv and not argv[0].startswith("-"):
        verb = argv.pop(0)
        if verb not in VERBS:
            _parser().error(f"there is no command {verb!r}; expected {', '.join(VERBS)}")
    module = importlib.import_module(f"execwatch.cli.{verb}")
    parser = argparse.ArgumentParser(
        prog=f"execwatch {verb}",
        description=VERBS[verb],
        epilog=f"{module.EXAMPLES}\n{_EXIT_STATUS}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.configure(parser)
    status: int = module.run(parser.parse_args(argv))
    return status


def _parser() -> argparse.ArgumentParser:
    """What answers when no verb does."""
    verbs = "\n".join(f"  {verb:<8} {text}" for verb, text in VERBS.items())
    parser = argparse.ArgumentParser(
        prog="execwatch",
        usage="execwatch [COMMAND] [OPTION...]",
        description="Every program that starts on this machine, seen in the kernel.",
        epilog=f"commands:\n{verbs}\n\n"
        "Without a command it traces. `execwatch COMMAND --help` tells a command's options.\n\n"
        "examples:\n"
        "  sudo execwatch                     a table of all that starts, until Ctrl-C\n"
        "  sudo execwatch trace --help        its options\n"
        "  sudo execwatch --json | jq .argv   for programs\n"
        "  execwatch doctor                   when it doesn't work\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"execwatch {_version()}")
    return parser


def _version() -> str:
    import execwatch

    return execwatch.__version__


def _status(error: Exception) -> int:
    if isinstance(error, PrivilegeError):
        return NO_PRIVILEGE
    return NO_BCC if isinstance(error, BccNotFoundError) else FAILED


def _where(error: Exception) -> str:
    frame = error.__traceback__
    while frame is not None and frame.tb_next is not None:
        frame = frame.tb_next
    place = f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}" if frame else "?"
    return f"{error!r} at {place}"
