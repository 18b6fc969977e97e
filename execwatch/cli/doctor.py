"""``execwatch doctor``: what :func:`execwatch.check` found."""

from __future__ import annotations

import argparse

from execwatch import cli
from execwatch.preflight import check

EXAMPLES = """\
examples:
  execwatch doctor
  sudo execwatch doctor              as the user who will trace
"""

_STATUS = {"privilege": cli.NO_PRIVILEGE, "bcc": cli.NO_BCC}


def configure(parser: argparse.ArgumentParser) -> None:
    """It has no options."""


def run(args: argparse.Namespace) -> int:
    found = check()
    print(found, flush=True)
    fatal = next((problem.kind for problem in found.problems if problem.fatal), None)
    return cli.OK if fatal is None else _STATUS.get(fatal, cli.FAILED)
