"""Shell completion, help, and what the command imports."""

from __future__ import annotations

import pathlib
import re
import shlex
import shutil
import subprocess
import sys
from typing import List

import pytest

from execwatch import cli

README = pathlib.Path(__file__).parent.parent.parent / "README.md"


def complete(script: pathlib.Path, *words: str) -> List[str]:
    """What bash offers for the last word."""
    bash = shutil.which("bash") or pytest.skip("needs bash")
    lines = [
        f"source {script}",
        'COMP_WORDS=("$@") COMP_CWORD=$(($# - 1))',
        # The function's name is what `complete -p` tells.
        "$(complete -p execwatch | sed 's/.*-F \\([^ ]*\\).*/\\1/')",
        'printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    done = subprocess.run([bash, "-c", "\n".join(lines), "bash", *words], capture_output=True, text=True)
    assert "execwatch" not in done.stderr
    return done.stdout.splitlines()


def test_bash_offers_verbs_options_users_files_and_commands(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("shtab", reason="needs the extra cli")
    assert cli.main(["--print-completion", "bash"]) == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    (tmp_path / "build.ndjson").touch()
    monkeypatch.chdir(tmp_path)
    assert complete(script, "execwatch", "") == list(cli.VERBS)
    assert complete(script, "execwatch", "re") == ["record", "report"]
    assert complete(script, "execwatch", "--d") == ["--duration"]
    assert complete(script, "execwatch", "-u", "nobod") == ["nobody"]
    assert set(complete(script, "execwatch", "run", "--t")) == {"--tree", "--timeout"}
    assert complete(script, "execwatch", "report", "bu") == ["build.ndjson"]
    assert complete(script, "execwatch", "record", "-o", "bu") == ["build.ndjson"]
    assert "printf" in complete(script, "execwatch", "run", "--", "print")
    assert "printf" in complete(script, "execwatch", "run", "-x", "print")
    assert complete(script, "execwatch", "--print-completion", "") == ["bash", "zsh", "tcsh"]


@pytest.mark.parametrize(("shell", "begins"), [("zsh", "#compdef execwatch"), ("tcsh", "# ")])
def test_other_shells_get_every_verb(shell: str, begins: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab", reason="needs the extra cli")
    assert cli.main(["--print-completion", shell]) == 0
    out = capsys.readouterr().out
    assert out.startswith(begins)
    assert all(re.search(rf"\b{verb}\b", out) for verb in cli.VERBS)
    program = shutil.which(shell)
    if program:
        assert subprocess.run([program, "-n"], input=out, text=True, check=True, capture_output=True)


def test_without_the_extra_it_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert cli.main(["--print-completion", "bash"]) == 1
    assert capsys.readouterr() == (
        "",
        "execwatch: shtab is needed for this, and not installed: pip install 'execwatch[cli]'\n",
    )


def test_a_shell_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--print-completion", "ksh"]) == 2
    assert "'ksh'" in capsys.readouterr().err


def test_help_fits_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert all(f"\n  {verb} " in out for verb in cli.VERBS)


@pytest.mark.parametrize("verb", cli.VERBS)
def test_help_has_examples_that_are_understood(
    verb: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([verb, "--help"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    assert "exit status:" in out
    lines = re.findall(r"^  (?:sudo )?execwatch(.*?)(?:  +.*)?$", out.split("examples:")[1], re.M)
    assert lines
    for line in lines:
        words = shlex.split(line.split(" | ")[0].replace("$$", "1").replace("www-data", "0")) or ["trace"]
        name = words.pop(0) if words[0] in cli.VERBS else "trace"
        assert cli.parser(name, cli.verb_module(name)).parse_args(words)


@pytest.mark.parametrize(
    ("words", "heavy"),
    [
        ("--help", "json|execwatch.(recording|formats|processes|kernel|build|wire)"),
        ("trace --duration 0", "json|execwatch.(formats|kernel|build)"),
        ("report /dev/null", "ctypes|execwatch.(recording|kernel|build)"),
        ("report --help", "json|ctypes|execwatch.(recording|formats|kernel|build)"),
        ("run", "execwatch.(recording|formats|kernel|build)"),
    ],
)
def test_nothing_heavy_is_imported_for_nothing(words: str, heavy: str) -> None:
    code = f"""
from execwatch import cli, testing
from execwatch.cli import trace
trace.ExecTracer = lambda *args, **options: testing.fake_tracer([testing.exec_event()])
cli.main({words.split()!r})
import sys
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    modules = done.stdout.splitlines()[-1].split()
    assert "execwatch.cli" in modules
    never = "rich|shtab|asyncio|pyarrow|pandas"
    assert [name for name in modules if re.fullmatch(f"{never}|{heavy}", name)] == []


def test_the_options_of_the_readme_are_those_of_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    section = README.read_text(encoding="utf-8").split("### What a command ran")[1].split("\n## ")[0]
    known = set()
    for verb in ("run", "record", "report"):
        cli.main([verb, "--help"])
        known |= set(re.findall(r"(?<=[ ,])(--?[a-zA-Z]+)", capsys.readouterr().out))
    told = set(re.findall(r"`(--?[a-zA-Z][a-z-]*)", section)) - {"--print-completion"}
    assert {"--tree", "--summary", "-o", "--linger"} <= told <= known
