"""What completes the command in a shell, by shtab (the extra ``cli``)."""

from __future__ import annotations

from execwatch import cli
from execwatch.errors import MissingExtraError

#: Where a function is needed.
_FUNCTIONS = {
    "bash": """\
_execwatch_users() { compgen -u -- "$1"; }
_execwatch_command() { compgen -c -- "$1"; compgen -f -- "$1"; }""",
    "zsh": """\
_execwatch_command() {
  if [[ $words[1] == -- ]]; then
    shift words
    (( CURRENT -= 1 ))
  fi
  _normal
}""",
}

#: By what an argument is called: what completes it in each shell.
_COMPLETES = {
    "USER": {"bash": "_execwatch_users", "zsh": "_users", "tcsh": "u", "preamble": _FUNCTIONS},
    "FILE": {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"},
    "COMMAND": {
        "bash": "_execwatch_command",
        "zsh": "_execwatch_command",
        "tcsh": "c",
        "preamble": _FUNCTIONS,
    },
}


def script(shell: str) -> str:
    """Return what a shell reads to complete the command.

    Raises:
        MissingExtraError: shtab is not there.
    """
    try:
        import shtab
    except ImportError:
        raise MissingExtraError("cli", "shtab") from None

    parser = cli.general_parser()
    # Without a verb it is the first one.
    cli.verb_module(next(iter(cli.VERBS))).configure(parser)
    verbs = parser.add_subparsers()
    parsers = [parser]
    for verb, help in cli.VERBS.items():
        parsers.append(verbs.add_parser(verb, help=help, description=help))
        cli.verb_module(verb).configure(parsers[-1])
    for each in parsers:
        for action in each._actions:
            if action.metavar in _COMPLETES:
                action.complete = _COMPLETES[action.metavar]  # type: ignore[attr-defined]
    return shtab.complete(parser, shell)
