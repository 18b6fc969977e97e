"""What is printed of a recording; files that are none; readers that leave."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import re
import subprocess
import sys
from typing import Callable, List

import pytest

from execwatch import Recording, cli, formats, load

from . import cli_recordings
from .cli_recordings import process


@pytest.fixture
def build(tmp_path: pathlib.Path) -> str:
    """The path of a recording of a small build."""
    path = str(tmp_path / "build.ndjson")
    cli_recordings.build().save(path)
    return path


@pytest.fixture
def report(capfd: pytest.CaptureFixture[str]) -> Callable[..., List[str]]:
    """What it prints, line by line; standard error is empty but for lost events."""

    def run(*options: str) -> List[str]:
        assert cli.main(["report", *options]) == 0
        out, err = capfd.readouterr()
        assert "lost" in err or err == ""
        return out.splitlines()

    return run


Report = Callable[..., List[str]]


# -- Views ------------------------------------------------------------------------------


def test_the_table(build: str, report: Report) -> None:
    assert report(build) == [
        "TIME(s) PCOMM            PID     PPID    RET ARGS",
        "0.000   make             100     1         0 /usr/bin/make -j2",
        "0.100   cc               101     100       0 /usr/bin/cc -c 'a b.c'",
        "0.200   cc               102     100       0 /usr/bin/cc -c b.c",
        "0.300   cc1              103     102       0 /usr/libexec/cc1 b.c",
    ]


def test_attempts_that_failed_are_shown_when_they_are_asked_for(build: str, report: Report) -> None:
    assert "0.000   cc               103     102      -2 /opt/bin/cc1 b.c" in report(build, "-x")


def test_the_tree(build: str, report: Report) -> None:
    assert report(build, "--tree") == [
        "  TOOK(s) EXIT      PID     COMMAND",
        "    2.500 2         100     /usr/bin/make -j2",
        "    0.250 0         101     ├─ /usr/bin/cc -c 'a b.c'",
        "    0.500 1         102     └─ /usr/bin/cc -c b.c",
        "    0.400 SIGSEGV   103        └─ /usr/libexec/cc1 b.c",
    ]


def test_a_tree_of_processes_of_which_little_is_known(tmp_path: pathlib.Path, report: Report) -> None:
    shell, child, fork = process(0, "sh"), process(1, "sleep", "9", parent=0), process(2, "-", parent=0)
    killed = process(3, "x", parent=0, signal=35)
    Recording([*shell[:2], *child[:2], fork[0], *killed]).save(tmp_path / "x.json")
    assert report(str(tmp_path / "x.json"), "--tree")[1:] == [
        "        - -         100     sh",
        "        - -         101     ├─ sleep 9",
        "        - -         102     ├─ sh (forked)",
        "    1.000 SIG35     103     └─ x",
    ]


def test_the_summary_is_that_of_the_recording(build: str, report: Report) -> None:
    shown = report(build, "--summary")
    assert shown == str(load(build).summary()).split("\n")
    assert shown[0] == "4 processes, 4 execs, 1 failed attempt, 3 events lost in 2.500 s"


def test_json_is_every_event(build: str, report: Report) -> None:
    shown = report(build, "--json")
    assert list(map(json.loads, shown)) == load(build).to_dicts()
    assert len(shown) == 14


def test_columns_of_time(build: str, report: Report, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.match(r"TIME     PCOMM ", report(build, "-T")[0])
    assert re.match(r"\d\d:\d\d:\d\d make ", report(build, "-T")[1])
    assert re.match(r"\d\d:\d\d:\d\d 0\.000   make ", report(build, "-T", "-t")[1])


def test_an_empty_recording(tmp_path: pathlib.Path, report: Report) -> None:
    Recording([]).save(tmp_path / "x.ndjson")
    path = str(tmp_path / "x.ndjson")
    assert [len(report(path, option)) for option in ("-t", "--tree", "--json")] == [1, 1, 0]
    assert report(path, "--summary") == ["0 processes, 0 execs in 0.000 s"]


# -- Which ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "pids"),
    [
        (["-n", "^cc$"], ["101", "102"]),
        (["-l", r"-c b\.c$"], ["102"]),
        (["-P", "100"], ["101", "102"]),
        (["-P", "100", "-l", " a b"], ["101"]),
        (["-u", "1000", "-n", "cc1"], ["103"]),
        (["-u", "0"], []),
    ],
)
def test_programs_are_chosen(options: List[str], pids: List[str], build: str, report: Report) -> None:
    assert [line.split()[2] for line in report(build, *options)[1:]] == pids
    shown = map(json.loads, report(build, "--json", *options))
    assert [str(event["pid"]) for event in shown if event["kind"] == "exec"] == pids


def test_attempts_that_failed_are_chosen_too(build: str, report: Report) -> None:
    assert [line.split()[-2:] for line in report(build, "-x", "-u", "7")[1:]] == [["/opt/bin/cc1", "b.c"]]
    kinds = [json.loads(line)["kind"] for line in report(build, "--json", "-u", "7")]
    assert kinds == ["failed_exec", "lost"]


def test_in_a_tree_processes_are_chosen_whole(build: str, report: Report) -> None:
    assert report(build, "--tree", "-l", r"b\.c$")[1:] == [
        "    0.250 0         101     /usr/bin/cc -c 'a b.c'",
        "    0.500 1         102     /usr/bin/cc -c b.c",
        "    0.400 SIGSEGV   103     └─ /usr/libexec/cc1 b.c",
    ]
    assert report(build, "--summary", "-n", "^make$")[0].startswith("1 process, 1 exec")


# -- What is wrong ----------------------------------------------------------------------


def test_lost_events_are_told_where_they_are_and_in_the_end(
    build: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["report", build]) == 0
    first, last = capfd.readouterr().err.splitlines()
    assert first == "execwatch: 3 events lost here"
    assert last.startswith("execwatch: 3 events lost in all")


def test_a_file_that_was_cut(build: str, capfd: pytest.CaptureFixture[str]) -> None:
    whole = pathlib.Path(build).read_bytes()
    pathlib.Path(build).write_bytes(whole[: whole.rindex(b'"exit"')])
    assert cli.main(["report", build]) == 0
    out, err = capfd.readouterr()
    assert out.count("\n") == 5
    told = err.splitlines()
    assert f"execwatch: {build} was cut: the end is missing" in told
    assert told[-1].startswith("execwatch: 3 events lost in all")


@pytest.mark.parametrize("options", [[], ["--tree"], ["--json"]])
def test_no_recording(options: List[str], tmp_path: pathlib.Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "passwd\x1b"
    path.write_text("root:x\n")
    assert cli.main(["report", str(path), *options]) == 1
    out, err = capfd.readouterr()
    assert out == ""
    assert re.fullmatch(r"execwatch: '.*passwd\\x1b': line 1: not the header of a recording: .*\n", err)
    assert cli.main(["report", str(tmp_path / "none")]) == 1
    assert "No such file" in capfd.readouterr().err


def test_seconds_count_from_the_first_event_whatever_is_chosen(
    build: str, report: Callable[..., List[str]]
) -> None:
    whole = report(build)[1:]
    chosen = report(build, "-P", whole[-1].split()[3])[1:]
    assert whole[-1] in chosen
    assert whole[0] not in chosen
    assert set(chosen) <= set(whole)


def test_a_file_of_somebody_else(
    build: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", build)

    monkeypatch.setattr(formats, "open_reader", refuse)
    monkeypatch.setattr(os, "geteuid", lambda: os.stat(build).st_uid + 1)
    assert cli.main(["report", build]) == 1
    assert capfd.readouterr().err == (
        f"execwatch: {build}: Permission denied (it belongs to another user: sudo chown $USER {build})\n"
    )


def test_a_file_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "no\nsuch"]) == 1
    assert capfd.readouterr().err == "execwatch: $'no\\nsuch': No such file or directory\n"


def test_a_link_that_is_not_written_through(tmp_path: pathlib.Path) -> None:
    link = tmp_path / "link.ndjson"
    link.symlink_to("target")
    with pytest.raises(OSError, match="link.ndjson") as refused:
        cli_recordings.build().save(link)
    told = cli._told(refused.value)
    assert told == f"{link} is a symbolic link, which is not followed: name the file itself"


def test_events_of_kinds_to_come(build: str, capfd: pytest.CaptureFixture[str]) -> None:
    lines = pathlib.Path(build).read_text().splitlines()
    lines.insert(2, '{"kind":"dance"}')
    pathlib.Path(build).write_text("\n".join(lines) + "\n")
    assert cli.main(["report", build]) == 0
    assert "execwatch: 1 event left out, of kinds that only a newer execwatch knows" in capfd.readouterr().err


@pytest.mark.parametrize("options", [["x", "--tree", "--json"], [], ["x", "-u", "no-such-user"], ["x", "y"]])
def test_wrong_usage(options: List[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", *options]) == 2
    assert capfd.readouterr().err.startswith("usage: execwatch report")


# -- Output -----------------------------------------------------------------------------


@pytest.mark.parametrize("view", ["-t", "--json", "--tree", "--summary"])
def test_a_reader_that_leaves(view: str, tmp_path: pathlib.Path) -> None:
    events = [event for number in range(1000) for event in process(number, "/bin/true", str(number))]
    Recording(events).save(tmp_path / "x.ndjson")
    read, write = os.pipe()
    command = [sys.executable, "-m", "execwatch", "report", str(tmp_path / "x.ndjson"), view]
    with subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE) as child:
        os.close(write)
        os.close(read)
        assert child.stderr is not None
        assert child.stderr.read() == b""
        assert child.wait() == 0


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="the peak is told by /proc")
@pytest.mark.parametrize("view", ["-t", "--json"])
def test_a_large_recording_takes_little_memory(view: str, tmp_path: pathlib.Path) -> None:
    """As it is read it is printed, whatever its size."""
    code = (
        "import sys; from execwatch.cli import main; main(sys.argv[1:]);"
        "sys.stderr.write(open('/proc/self/status').read())"
    )
    path, peaks = tmp_path / "x.ndjson", []
    for count in (300, 4_000):
        Recording(
            [event for number in range(count) for event in process(number, "/bin/true", "x" * 200)]
        ).save(path)
        command = [sys.executable, "-c", code, "report", str(path), view]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        peaks += map(int, re.findall(r"VmHWM:\s+(\d+) kB", done.stderr))
    small, large = peaks
    assert large - small < path.stat().st_size / 1000 / 10


def test_closed_streams(build: str) -> None:
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        line = f"exec {sys.executable} -m execwatch report {build} {closed}"
        done = subprocess.run(["/bin/sh", "-c", line], capture_output=True)
        assert done.returncode == 0
        assert done.stdout.count(b"\n") == (5 if closed == "2>&-" else 0)
