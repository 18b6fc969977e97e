"""The command ``execwatch``: one module a verb, imported when it is asked for.

A verb's module has ``EXAMPLES`` (the end of its help), ``configure(parser)`` and
``run(args) -> int``, the exit status. Where statuses have other meanings than those here
it has ``USAGE`` and ``EXIT_STATUS`` for its help.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
from types import ModuleType
from typing import List, Optional, Sequence, TextIO

from execwatch.errors import BccNotFoundError, ExecwatchError, PrivilegeError

#: Each verb with what its help says first. Without a verb it is the first one.
VERBS = {
    "trace": "Print every program that starts, as it starts.",
    "run": "Run a command, then print what it executed.",
    "record": "Record what a command executes, or the whole machine, to a file.",
    "report": "Print what is in a recording. Needs no privilege.",
    "doctor": "Tell whether this machine and this user can trace, and what mends it.",
}

OK, FAILED, USAGE, NO_BCC, NO_PRIVILEGE, INTERRUPTED = 0, 1, 2, 3, 4, 130

#: What went wrong was not the command that was run; as env, nohup and timeout have it.
OWN_FAILURE = 125

_EXIT_STATUS = """\
exit status:
  0 done      1 failed      2 wrong usage      3 BCC is missing
  4 a privilege is missing      130 interrupted
"""


class Failure(Exception):
    """What ends the command.

    Attributes:
        status: The exit status.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command.

    Args:
        argv: Its arguments, without the program's name; those of the process, if None.

    Returns:
        The exit status.
    """
    call = _Call(list(sys.argv[1:] if argv is None else argv))
    try:
        return call.run()
    except SystemExit as exc:  # argparse's: it has said all
        status = exc.code if isinstance(exc.code, int) else FAILED
    except KeyboardInterrupt:
        from execwatch.cli import screen

        screen.leave_ctrl_c()
        return INTERRUPTED
    except BrokenPipeError:
        _discard(sys.stdout)
        _discard(sys.stderr)
        return OK  # whoever reads the output has seen enough, as with `| head`
    except Failure as exc:
        status = fail(str(exc), exc.status)
    except ExecwatchError as exc:
        status = fail(str(exc), _status(exc))
    except OSError as exc:
        status = fail(_told(exc), _status(exc))
    except Exception as exc:
        status = fail(f"this should not happen, please report it: {_where(exc)}", FAILED)
    return OWN_FAILURE if call.wraps and status in (FAILED, USAGE, NO_BCC, NO_PRIVILEGE) else status


def fail(message: str, status: int) -> int:
    """Print one message and return the status."""
    say(message)
    return status


def say(message: str) -> None:
    """Print one message to standard error, if anybody reads that."""
    if sys.stderr is None:  # closed
        return
    try:
        print(f"execwatch: {message}", file=sys.stderr, flush=True)
    except OSError:
        _discard(sys.stderr)


def _told(error: OSError) -> str:
    """What is wrong with which file, and what mends it."""
    if error.strerror is None:
        return str(error)
    if error.filename is None:
        return error.strerror
    from execwatch import render

    path = os.fsdecode(error.filename) if isinstance(error.filename, (str, bytes)) else str(error.filename)
    name = render.quote(path)
    if error.errno == errno.ELOOP and os.path.islink(path):
        return f"{name} is a symbolic link, which is not followed: name the file itself"
    hint = ""
    if error.errno == errno.EACCES and os.path.exists(path) and os.stat(path).st_uid != os.geteuid():
        hint = f" (it belongs to another user: sudo chown $USER {name})"
    return f"{name}: {error.strerror}{hint}"


def _discard(stream: Optional[TextIO]) -> None:
    from execwatch.cli import output

    output.discard(stream)


def parser(verb: str, module: ModuleType) -> argparse.ArgumentParser:
    """Return what reads a verb's arguments."""
    made = argparse.ArgumentParser(
        prog=f"execwatch {verb}",
        usage=getattr(module, "USAGE", None),
        description=VERBS[verb],
        epilog=f"{module.EXAMPLES}\n{getattr(module, 'EXIT_STATUS', _EXIT_STATUS)}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.configure(made)
    return made


def verb_module(verb: str) -> ModuleType:
    return importlib.import_module(f"execwatch.cli.{verb}")


class _Call:
    """One use of the command.

    Attributes:
        wraps: Whether the exit status is that of another command.
    """

    def __init__(self, words: List[str]) -> None:
        self._words = words
        self.wraps = words[:1] == ["run"] or (words[:1] == ["record"] and "--" in words)

    def run(self) -> int:
        words = self._words
        if words and words[0].startswith(("-h", "--help", "--version", "--print-completion")):
            return _general(words)
        verb = next(iter(VERBS))
        if words and not words[0].startswith("-"):
            verb, words = words[0], words[1:]
            if verb not in VERBS:
                general_parser().error(f"there is no command {verb!r}; expected {', '.join(VERBS)}")
        module = verb_module(verb)
        args = parser(verb, module).parse_args(words)
        if verb == "record":
            self.wraps = bool(args.command)
        status: int = module.run(args)
        return status


def _general(words: List[str]) -> int:
    from execwatch.cli import completion

    print(completion.script(general_parser().parse_args(words).print_completion))
    return OK


def general_parser() -> argparse.ArgumentParser:
    """Return what answers when no verb does."""
    verbs = "\n".join(f"  {verb:<8} {text}" for verb, text in VERBS.items())
    made = argparse.ArgumentParser(
        prog="execwatch",
        usage="execwatch [COMMAND] [OPTION...]",
        description="Every program that starts on this machine, seen in the kernel.",
        epilog=f"commands:\n{verbs}\n\n"
        "Without a command it traces. What a command takes: execwatch COMMAND --help\n\n"
        "examples:\n"
        "  sudo execwatch                       a table of all that starts, until Ctrl-C\n"
        "  sudo execwatch run --tree -- make    what did that build execute?\n"
        "  sudo execwatch record -o day.ndjson  keep what happens, for later\n"
        "  execwatch report day.ndjson          and look at it\n"
        "  sudo execwatch --json | jq -c .argv  for programs\n"
        "  execwatch doctor                     when it doesn't work\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    made.add_argument("--version", action="version", version=f"execwatch {_version()}")
    made.add_argument(
        "--print-completion",
        metavar="SHELL",
        choices=("bash", "zsh", "tcsh"),
        help="print what completes this command in bash, zsh or tcsh",
    )
    return made


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
