"""Run a command in other Debian releases, with their Python and their BCC, on the running kernel.

    python tests/distro/distro.py                              # the tests, in each full tree
    python tests/distro/distro.py --tree plain -- python3 -c 'import execwatch'
    python tests/distro/distro.py --tree fresh --script commands.sh

In the tree the project is /src, read-only, and pip reaches what it reaches on this machine. /tmp, /var/tmp,
/run and $HOME are empty and in memory; nothing else can be written, but in the tree `fresh`, where everything
can and nothing stays.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

# trees goes first: it makes the modules beside vm.py importable.
import trees  # isort: skip
import debian
import process
import results

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parent.parent
DEFAULT_TREES = ("bullseye", "bookworm", "trixie")
TESTS = """\
python3 -m venv /tmp/venv
/tmp/venv/bin/python -m pip install -q --upgrade pip
/tmp/venv/bin/python -m pip install -q --group /src/pyproject.toml:test /src
cd /src
# Not "python -m pytest": it would import the package from here, not what was installed.
exec /tmp/venv/bin/pytest tests/kernel --buffer ring --buffer perf
"""
NAMESPACE = ("unshare", "--mount", "--propagation", "private")
NETWORK = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
CERTIFICATES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO")
ALWAYS = ("/etc/resolv.conf", "/etc/hosts")


@dataclass(frozen=True)
class Options:
    """How commands are run."""

    script: str
    timeout: float = 1800
    env: Mapping[str, str] = field(default_factory=dict)
    echo: bool = True


def run(tree: trees.Tree, options: Options) -> results.Cell:
    """Run a shell script in the tree."""
    path = trees.build(tree)
    started = time.monotonic()
    # Not under /tmp or /run: the tree's mounts would hide it from themselves.
    with tempfile.TemporaryDirectory(prefix=".run-", dir=trees.cache()) as name:
        exchange = Path(name)
        _prepare(exchange, tree, path, options)
        output = exchange / "output"
        with open(output, "ab") as file:
            status = process.supervise(
                [*NAMESPACE, "sh", str(HERE / "enter.sh"), str(exchange)],
                timeout=options.timeout,
                output=file,
                tail=output,
                echo=options.echo,
            )
        collected = exchange / "results"
        return results.Cell(
            place=tree.name,
            status=results.TIMED_OUT if status is None else status,
            seconds=time.monotonic() - started,
            facts={"distribution": f"debian {tree.suite}", **results.read_facts(collected / "facts")},
            tests=results.read_junit(collected / "junit.xml"),
        )


def _prepare(exchange: Path, tree: trees.Tree, path: Path, options: Options) -> None:
    """The files that enter.sh reads."""
    for folder in ("results", "layers"):
        (exchange / folder).mkdir()
    settings = {"tree": path, "project": PROJECT, "scratch": int(tree.scratch)}
    environment = {**_environment(), **options.env}
    (exchange / "settings").write_text(_assignments(settings))
    (exchange / "environment").write_text(_assignments(environment))
    (exchange / "command").write_text(f"set -e\n{options.script}\n")
    paths = [*ALWAYS, *_local_paths(environment)]
    (exchange / "paths").write_text("".join(f"{item}\n" for item in paths))


def _assignments(values: Mapping[str, object]) -> str:
    return "".join(f"{name}={shlex.quote(str(value))}\n" for name, value in values.items())


def _environment() -> dict[str, str]:
    """All that the command inherits."""
    passed = {name: os.environ[name] for name in (*NETWORK, *CERTIFICATES) if name in os.environ}
    passed.update((name, value) for name, value in os.environ.items() if name.startswith("EXECWATCH_"))
    passed.pop("EXECWATCH_TEST_CACHE", None)
    return {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/root",
        "LANG": "C.UTF-8",
        "DEBIAN_FRONTEND": "noninteractive",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        # The project is read-only; the JUnit file is what the table is made of.
        "PYTEST_ADDOPTS": "-p no:cacheprovider --junit-xml=/results/junit.xml",
        **_pip_settings(),
        **passed,
    }


def _pip_settings() -> dict[str, str]:
    """pip's configuration on this machine, wherever it is written, as environment variables."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    settings = {"PIP_ROOT_USER_ACTION": "ignore", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    if done.returncode:
        # No pip in this Python (uv's venvs): what is in the environment must do.
        settings.update((name, value) for name, value in os.environ.items() if name.startswith("PIP_"))
        return settings
    for line in done.stdout.splitlines():
        key, _, value = line.partition("=")
        section, _, name = key.rpartition(".")
        # The environment's settings are listed first, and rule.
        if section in (":env:", "global", "install"):
            settings.setdefault("PIP_" + name.upper().replace("-", "_"), str(ast.literal_eval(value)))
    return settings


def _local_paths(environment: Mapping[str, str]) -> list[str]:
    """Files and folders of this machine that pip or TLS are told to use."""
    found = []
    for name, value in environment.items():
        if name.startswith("PIP_") or name in CERTIFICATES:
            found += re.findall(r"(?:^|\s|file://)(/[^\s:]+)", value)
    return sorted({str(_shared(Path(path))) for path in found if Path(path).exists()})


def _shared(path: Path) -> Path:
    """A package index (`.../simple`) may link to files that lie beside it."""
    return path.parent if path.name == "simple" and path.is_dir() else path


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    made.add_argument("--tree", action="append", choices=list(trees.TREES), help=f"default: {DEFAULT_TREES}")
    made.add_argument("--timeout", type=float, default=1800, help="seconds for the command in each tree")
    made.add_argument("--env", action="append", default=[], metavar="NAME=VALUE")
    made.add_argument("--script", type=Path, help="a shell script to run instead of a command; - for stdin")
    made.add_argument("--results", type=Path, help="append JSON lines to this file")
    made.add_argument("--refresh", action="store_true", help="build the trees again")
    made.add_argument("--build-only", action="store_true")
    made.add_argument("command", nargs="*", help="default: the project in a venv, then pytest tests/kernel")
    return made


def _script(args: argparse.Namespace) -> str:
    if args.script:
        return sys.stdin.read() if str(args.script) == "-" else str(args.script.read_text())
    return f"exec {shlex.join(args.command)}" if args.command else TESTS


def _check_root() -> None:
    if os.geteuid():
        raise debian.SetupError(f"chroot needs root; run: sudo {shlex.join([sys.executable, *sys.argv])}")
    if not shutil.which("unshare"):
        debian.need(trees.TOOLS)


def main(argv: Optional[Sequence[str]] = None) -> int:
    args = parser().parse_args(argv)
    process.exit_when_terminated()
    cells = []
    try:
        _check_root()
        options = Options(_script(args), args.timeout, dict(pair.split("=", 1) for pair in args.env))
        for name in args.tree or DEFAULT_TREES:
            tree = trees.TREES[name]
            path = trees.build(tree, refresh=args.refresh)
            if args.build_only:
                print(f"{name}  {path}", flush=True)
                continue
            print(f"--- {name}", flush=True)
            cell = run(tree, options)
            cells.append(cell)
            if args.results:
                results.write(args.results, cell, args.command or [str(args.script or "pytest tests/kernel")])
    except (debian.SetupError, subprocess.SubprocessError) as error:
        print(f"distro.py: {error}", file=sys.stderr)
        return 2
    if cells:
        print("\n" + results.table(cells))
    return 0 if all(cell.passed for cell in cells) else 1


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
    sys.exit(130)
