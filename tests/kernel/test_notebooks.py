"""%%execwatch and the gallery in a real Jupyter kernel, which runs an event loop; real programs."""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import subprocess
import sys
from typing import Any, List

import pytest

from ..page import Page
from .commands import again_and_again
from .conftest import COUNT, Reason, skip

nbformat = pytest.importorskip("nbformat", reason="needs the extra notebook")
pytest.importorskip("plotly", reason="needs the extra notebook")

GALLERY = pathlib.Path(__file__).resolve().parents[2] / "docs" / "gallery"

#: In a process of its own: sockets and threads of Jupyter's stay as long as that does.
EXECUTE = """
import sys, nbformat
from nbclient import NotebookClient
notebook = nbformat.read(sys.argv[1], 4)
NotebookClient(notebook, timeout=60, kernel_name="python3").execute()
nbformat.write(notebook, sys.argv[1])
"""

PLOTLY = "application/vnd.plotly.v1+json"


def executed(notebook: Any, folder: pathlib.Path, *prefix: str) -> List[Any]:
    """Execute a notebook; return its cells of code.

    Args:
        notebook: Which.
        folder: Where it runs, and what Jupyter keeps.
        prefix: A command that runs another one.
    """
    path = folder / "executed.ipynb"
    nbformat.write(notebook, path)
    names = ("IPYTHONDIR", "JUPYTER_RUNTIME_DIR", "JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR")
    places = {name: str(folder / name.lower()) for name in names}
    done = subprocess.run(
        [*prefix, sys.executable, "-c", EXECUTE, path],
        cwd=folder,
        env={**os.environ, **places},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]


def cells(*sources: str) -> Any:
    """A notebook of these; where one fails the others go on."""
    made = [nbformat.v4.new_code_cell(source) for source in sources]
    for cell in made:
        cell.metadata["tags"] = ["raises-exception"]
    return nbformat.v4.new_notebook(cells=made)


def shown(cell: Any, kind: str = "text/html") -> List[Any]:
    """What a cell displayed, of one MIME type, in order."""
    return [output.data[kind] for output in cell.outputs if kind in output.get("data", {})]


def printed(cell: Any, stream: str = "stdout") -> str:
    return "".join(output.text for output in cell.outputs if output.get("name") == stream)


def commands(html: str) -> List[str]:
    """The last column of a table."""
    return ["".join(row[-1]) for row in Page(html).rows[1:]]


def gallery(name: str, folder: pathlib.Path, *prefix: str) -> List[Any]:
    return executed(nbformat.read(GALLERY / f"{name}.ipynb", 4), folder, *prefix)


def test_a_cell_is_recorded_and_nobody_else(tmp_path: pathlib.Path) -> None:
    kept = "print(json.dumps([event.argv for event in {0}.execs]), {0}.complete, {0}.lost)"
    notebook = cells(
        "%load_ext execwatch\nimport asyncio, json, os, subprocess",
        # In a running loop, by each way that there is.
        "%%execwatch --out one\n"
        "asyncio.get_running_loop()\n"
        f"for number in range({COUNT}):\n"
        "    subprocess.run(['/bin/echo', str(number)], stdout=subprocess.DEVNULL)\n"
        "!/bin/echo by the shell\n"
        "os.waitpid(os.posix_spawn('/bin/true', ['by posix_spawn'], {}), 0)[1]",
        kept.format("one"),
        "%%execwatch --tree --out two\n%%bash\n/bin/true 'in bash'\n(exit 3)\nexit 0",
        kept.format("two"),
        "%%execwatch --failed --out three\n!env no-such-program\nraise OSError('full')",
        "print(kept)",
        "print([event.error for event in three.failed if event.argv[0] == 'no-such-program'])",
        "with execwatch.record() as recorder:\n"
        "    process = await asyncio.create_subprocess_exec('/bin/true', 'awaited')\n"
        "    await process.wait()\n"
        "recorder.recording",
        "%%execwatch\nawait asyncio.sleep(0)",
    )
    notebook.cells[0].source += "\nimport execwatch"
    with again_and_again("/bin/true", "of another process", path="/bin/true"):
        done = executed(notebook, tmp_path)
    _, one, one_kept, two, two_kept, three, _, failed, awaited, refused = done

    expected = [["/bin/echo", str(number)] for number in range(COUNT)]
    argvs = json.loads(printed(one_kept).rpartition("]")[0] + "]")
    assert argvs[:COUNT] == expected
    assert argvs[COUNT][-1] == "/bin/echo by the shell"
    assert argvs[-1] == ["by posix_spawn"]
    assert printed(one_kept).endswith("] True 0\n")
    assert "by the shell" in printed(one)
    assert one.outputs[-2].data["text/plain"] == "0"  # what the last line says, then the recording
    (table,) = shown(one)
    assert commands(table)[:COUNT] == [" ".join(argv) for argv in expected]
    assert commands(table)[-1] == "'by posix_spawn'"
    assert "of another process" not in table

    argvs = json.loads(printed(two_kept).rpartition("]")[0] + "]")
    assert argvs == [["bash"], ["/bin/true", "in bash"]]
    (tree,) = shown(two)
    assert commands(tree) == ["bash", "├─ /bin/true 'in bash'", "└─ bash (forked)"]
    assert [row[1] for row in Page(tree).rows[1:]] == [["exit 0"], ["exit 0"], ["exit 3"]]

    (error,) = [output for output in three.outputs if output.output_type == "error"]
    assert (error.ename, error.evalue) == ("OSError", "full")
    assert any(command.startswith("no-such-program ENOENT") for command in commands(shown(three)[0]))
    assert "ENOENT" in printed(failed)

    assert commands(shown(awaited)[0]) == ["/bin/true awaited"]
    assert "with execwatch.record() as recorder:" in printed(refused, "stderr")
    assert shown(refused) == []


def test_first_steps(tmp_path: pathlib.Path) -> None:
    _, table, tree, event, summary, timeline, icicle, attempts, errors = gallery("first-steps", tmp_path)
    assert {"ls /usr", "sort", "head -n 3", "date", "uname -s"} <= set(commands(shown(table)[0]))
    rows = Page(shown(tree)[0]).rows
    assert ["".join(row[-1]) for row in rows[1:2]] == ["bash"]
    assert [row[-1] for row in rows if row[1] == ["exit 3"]] == [["├─ ", "bash (forked)"]]
    assert "the one in the background failed" in printed(tree)
    assert Page(shown(event)[0]).titles[0].startswith("exec ")
    assert "sha1sum" in Page(shown(summary)[0]).text
    programs = {trace["name"] for trace in shown(timeline, PLOTLY)[0]["data"]}
    assert {"bash", "gzip"} <= programs
    assert {"bash", "sha1sum"} <= set(shown(icicle, PLOTLY)[0]["data"][0]["labels"])
    assert "/nowhere/true" in shown(errors, "text/plain")[0]
    assert any(command.endswith(" ENOENT") for command in commands(shown(attempts)[0]))


def test_what_a_build_runs(tmp_path: pathlib.Path) -> None:
    if not (shutil.which("make") and shutil.which("cc")):
        skip(Reason.COMPILER)
    pytest.importorskip("pandas", reason="needs the extra pandas")
    _, run, tree, by_program, timeline, lengths, common, again = gallery("what-a-build-runs", tmp_path)
    assert printed(run).endswith("passed\n\n")
    drawn = commands(shown(tree)[0])
    assert drawn[0] == "make -j2"
    assert sum("cc -c -o " in command for command in drawn) == 5
    assert "<th>cc1</th>\n      <td>5</td>" in shown(by_program)[0]
    assert {"make", "cc", "cc1", "as", "ar"} <= {t["name"] for t in shown(timeline, PLOTLY)[0]["data"]}
    assert "<th>cc1</th>\n      <td>5</td>" in shown(lengths)[0]
    assert "-o" in shown(common, "text/plain")[0]
    assert commands(shown(again)[0])[0] == "make -j2"
    first, second = (int(word) for word in printed(again).split() if word.isdigit())
    assert first > 20 > 5 > second


def test_a_recording_is_read_without_privilege_and_a_cell_is_not_run_then(tmp_path: pathlib.Path) -> None:
    if not shutil.which("setpriv"):
        skip(Reason.TOOL, "setpriv (util-linux)")
    notebook = nbformat.read(GALLERY / "reading-a-recording.ipynb", 4)
    notebook.cells += cells("%load_ext execwatch", "%%execwatch\nopen('ran', 'w').close()").cells
    powerless = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
    _, table, tree, shells, chain, timeline, names, _, refused = executed(notebook, tmp_path, *powerless)
    last = r"/bin/echo $'\x1b[2K\rnothing here' '<script>alert(1)</script>'"
    assert commands(shown(table)[0])[-1] == commands(shown(tree)[0])[-1].lstrip(" │├└─") == last
    assert "<script" not in shown(table)[0] + shown(tree)[0] + json.dumps(shown(timeline, PLOTLY))
    assert "curl -s" in shown(shells, "text/plain")[0]
    assert [line.split()[1] for line in printed(chain).splitlines()] == [
        "/bin/echo", "sh", "/bin/sh", "/usr/bin/php", "/usr/sbin/nginx",
    ]  # fmt: skip
    assert shown(names, "text/plain")[0].startswith("['nginx', 'php', 'sh', ")

    message = printed(refused, "stderr")
    reason = "UsageError: The cell was not run, because it can't be recorded: tracing needs CAP_BPF"
    assert message.startswith(reason)
    assert 'execwatch.load("build.ndjson")' in message
    assert not (tmp_path / "ran").exists()
    assert "Traceback" not in message + printed(refused)
