"""``%load_ext execwatch``, then ``%%execwatch``: what a cell executes."""

from __future__ import annotations

import ast
import inspect
import keyword
import sys
from typing import TYPE_CHECKING, Any, Tuple

from execwatch.errors import NotSupportedError, PrivilegeError
from execwatch.recording.recorder import Recorder, record

if TYPE_CHECKING:
    from types import CodeType

    from execwatch.recording.values import Recording

_HELP = """\
Record what the cell executes, then show it.

Recorded is what this process and its descendants execute while the cell runs: ``!make``,
``%%bash``, subprocess; what somebody else does is not. The table, or the tree, comes below
the cell's own output, also where the cell fails. Without the privilege to trace the cell
isn't run. Nor is one with ``await`` outside of a function: a magic can't wait for it; there
``with execwatch.record() as recorder:`` around the ``await`` does the same.
"""

_NOT_RUN = """\
The cell was not run, because it can't be recorded: {cause}
{more}To show here what is recorded elsewhere, in a terminal:
    sudo execwatch record -o build.ndjson -- make && sudo chown $USER build.ndjson
and here:
    recording = execwatch.load("build.ndjson")\
"""
_MORE = (
    "It is Jupyter that needs the privilege: its command, such as jupyter lab, takes the place of COMMAND.\n"
)

_AWAIT = """\
%%execwatch can't wait for an await outside of a function; the cell was not run. In a cell without it:
    with execwatch.record() as recorder:
        await ...
    recorder.recording\
"""

#: Programs that are named where no HTML is shown.
_NAMED = 50


def load_ipython_extension(ipython: Any) -> None:
    """Add ``%%execwatch``; IPython calls it for ``%load_ext execwatch``.

    Args:
        ipython: The running ``InteractiveShell``.
    """
    from IPython.core.magic_arguments import MagicArgumentParser

    parser = MagicArgumentParser("%%execwatch")
    parser.add_argument("--tree", action="store_true", help="show the processes below each other")
    parser.add_argument("--out", metavar="NAME", help="keep the recording in this variable")
    parser.add_argument(
        "--failed", action="store_true", help="also attempts that fail; slows every system call a little"
    )

    def execwatch(line: str, cell: str) -> None:
        from IPython.core.error import UsageError

        __tracebackhide__ = True  # from IPython's tracebacks: what they show is the cell's
        try:
            args = parser.parse_argstring(line)
        except ValueError as exc:  # a quote that is not closed
            raise UsageError(f"%%execwatch: {exc}: {line!r}") from None
        if args.out is not None and (not args.out.isidentifier() or keyword.iskeyword(args.out)):
            raise UsageError(f"--out: expected the name of a variable, got {args.out!r}")
        code = _Cell(ipython, cell)
        recorder = _start(args.failed)
        try:
            code.run()
        finally:
            recorder.__exit__(*sys.exc_info())
            if args.out is not None:
                ipython.user_ns[args.out] = recorder.recording
            _show(recorder.recording, args.tree)

    execwatch.__doc__ = f"{_HELP}\n{parser.format_help()}"
    ipython.register_magic_function(execwatch, "cell", "execwatch")


def _start(failed: bool) -> Recorder:
    from IPython.core.error import UsageError

    recorder = record(failed=failed)
    try:
        return recorder.__enter__()
    except (PrivilegeError, NotSupportedError) as exc:
        # Of all errors this is the one that IPython shows without a traceback.
        more = _MORE if "COMMAND" in str(exc) else ""
        raise UsageError(_NOT_RUN.format(cause=exc, more=more)) from None


class _Cell:
    """A cell's code, as IPython runs it: with its magics, and with what its last line says shown.

    Raises:
        SyntaxError: It is no Python.
        UsageError: It has an ``await`` outside of a function.
    """

    def __init__(self, shell: Any, cell: str) -> None:
        # A line more, in the place of the magic's own: tracebacks count from there.
        source = "# %%execwatch\n" + shell.transform_cell(cell)
        self._namespace = shell.user_ns
        name = shell.compile.cache(source, shell.execution_count)
        tree = shell.transform_ast(shell.compile.ast_parse(source, name))
        shown = tree.body[-1:] if _is_shown(tree, cell) else []
        body = tree.body[: len(tree.body) - len(shown)]
        with shell.compile.extra_flags(ast.PyCF_ALLOW_TOP_LEVEL_AWAIT):
            self._codes: Tuple[CodeType, ...] = (
                shell.compile(ast.Module(body, tree.type_ignores), name, "exec"),
                shell.compile(ast.Interactive(shown), name, "single"),
            )
        if any(code.co_flags & inspect.CO_COROUTINE for code in self._codes):
            from IPython.core.error import UsageError

            raise UsageError(_AWAIT)

    def run(self) -> None:
        """Run it in the user's namespace; raises what it raises."""
        __tracebackhide__ = True
        for code in self._codes:
            exec(code, self._namespace)


def _is_shown(tree: ast.Module, cell: str) -> bool:
    """Whether the last statement's value is to be shown."""
    return bool(tree.body) and isinstance(tree.body[-1], ast.Expr) and not cell.rstrip().endswith(";")


def _show(recording: Recording, as_tree: bool) -> None:
    from IPython.display import display

    if as_tree:
        display(recording.tree())
        if recording.lost:  # which a tree can't show
            print(f"{recording.lost} events are missing", file=sys.stderr)
        return
    execs = recording.execs
    lines = [repr(recording), *(f"{event.pid} {event.command_line}" for event in execs[:_NAMED])]
    lines += [f"and {len(execs) - _NAMED} more"] if len(execs) > _NAMED else []
    display({"text/plain": "\n".join(lines), "text/html": recording._repr_html_()}, raw=True)
