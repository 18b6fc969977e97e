"""execwatch.run and execwatch.record, against strace and against what the programs themselves tell."""

from __future__ import annotations

import os
import pathlib
import signal
import stat
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, List, Optional

import pytest

import execwatch
from execwatch import ExecEvent, FailedExecEvent, Filter, Recording, StateError

from .commands import execute
from .conftest import COUNT, children, until
from .test_strace import execution, normalised, read_strace
from .test_strace import project as project
from .test_tree import forked

Programs = Callable[[str], str]


def commands(recording: Recording) -> List[tuple[str, ...]]:
    return [event.argv for event in recording.execs]


def test_a_build_is_recorded_as_strace_sees_it(project: pathlib.Path, programs: Programs) -> None:
    """Executions, arguments, results, parents, exit codes; nothing of another build at that time."""
    traces = project / "traces"
    traces.mkdir()
    calls = "execve,execveat,fork,vfork,clone,clone3,exit_group"
    strace = ["strace", "-ff", "-o", str(traces / "pid"), "-e", f"trace={calls}", "-v", "-xx", "-s", "99999"]
    stop = threading.Event()

    def another_build() -> None:
        while not stop.is_set():
            execute(programs("nothing"), "of another build", path=programs("nothing"))

    another = threading.Thread(target=another_build)
    another.start()
    try:
        recording = execwatch.run(
            [*strace, "sh", "-c", "./configure && make -j2"], cwd=project, capture_output=True, failed=True
        )
    finally:
        stop.set()
        another.join()
    assert recording.result is not None
    assert recording.result.returncode == 0, recording.result.stderr
    assert (recording.lost, recording.complete, recording.still_running) == (0, True, ())
    texts = {int(path.suffix[1:]): path.read_text() for path in traces.iterdir()}
    attempts: Dict[int, list] = {}
    for event in recording:
        if isinstance(event, (ExecEvent, FailedExecEvent)):
            attempts.setdefault(event.pid, []).append(event)
    tracers = {p.pid for p in recording.processes if p.pid not in texts}
    assert all(event.argv[0] == "strace" for pid in tracers for event in attempts.get(pid, ()))
    for pid, text in texts.items():
        expected = read_strace(text)
        got = [execution(event) for event in attempts.get(pid, ())]
        assert got == [normalised(call, got, at) for at, call in enumerate(expected)]
    processes = {p.pid: p for p in recording.processes if p.pid in texts}
    assert processes.keys() == texts.keys()
    children_of = {pid: set(forked(traces / f"pid.{pid}")) for pid in texts}
    for pid, text in texts.items():
        assert all(processes[child].ppid == pid for child in children_of[pid])
        (code,) = [
            int(line.split("exited with ")[1].split()[0]) for line in text.splitlines() if "+++" in line
        ]
        assert (processes[pid].exit_code, processes[pid].signal) == (code, None)
        assert (processes[pid].duration_ns or 0) > 0


def test_what_it_returns(tmp_path: pathlib.Path) -> None:
    recording = execwatch.run(
        ["sh", "-c", "pwd; cat; echo $WHO >&2; exit 3"],
        input="from here\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": os.environ["PATH"], "WHO": "somebody"},
    )
    assert recording.result is not None
    assert recording.result.returncode == 3
    assert (recording.result.stdout, recording.result.stderr) == (f"{tmp_path}\nfrom here\n", "somebody\n")
    assert [argv[0] for argv in commands(recording)] == ["sh", "cat"]
    assert [event.cwd for event in recording.execs] == [str(tmp_path)] * 2
    first, second = recording.processes
    assert (first.exit_code, second.exit_code, second.parent_key) == (3, 0, first.key)
    assert recording[0].kind == "exec"
    assert recording[-1].kind == "exit"
    assert children() == set()


def test_only_the_command_and_its_descendants(programs: Programs) -> None:
    nothing = programs("nothing")
    stop = threading.Event()

    def stranger() -> None:
        while not stop.is_set():
            execute(nothing, "stranger", path=nothing)

    thread = threading.Thread(target=stranger)
    thread.start()
    try:
        for number in range(COUNT):
            recording = execwatch.run([nothing, str(number)])
            assert commands(recording) == [(nothing, str(number))]
            assert len(recording.processes) == 1
    finally:
        stop.set()
        thread.join()


def test_a_daemon_is_waited_for_and_named(programs: Programs) -> None:
    started = time.monotonic()
    recording = execwatch.run(["sh", "-c", "sleep 1000 & echo $!"], stdout=subprocess.PIPE, linger=0.3)
    seconds = time.monotonic() - started
    assert recording.result is not None
    (daemon,) = recording.still_running
    try:
        # It holds the output open, too.
        assert daemon.pid == int(recording.result.stdout)
        assert (daemon.argv, daemon.alive) == (("sleep", "1000"), True)
        assert 0.3 <= seconds < 20
    finally:
        os.kill(daemon.pid, signal.SIGKILL)
    until(lambda: not pathlib.Path(f"/proc/{daemon.pid}/comm").exists(), "its end")


def test_a_daemon_that_ends_in_time_is_no_rest() -> None:
    recording = execwatch.run(["sh", "-c", "(sleep 0.2; exit 4) &"], linger=30)
    assert recording.still_running == ()
    assert sorted(p.exit_code or 0 for p in recording.processes) == [0, 0, 4]


def test_input_that_is_read_late() -> None:
    result = execwatch.run(
        ["sh", "-c", "sleep 0.2; wc -c"], input=b"x" * 1_000_003, capture_output=True
    ).result
    assert result is not None
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, b"1000003", b"")


def test_input_that_nobody_reads() -> None:
    result = execwatch.run(["true"], input="é" * 100_003, capture_output=True, encoding="utf-8").result
    assert result is not None
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("options", [{}, {"stderr": subprocess.STDOUT}, {"text": True, "encoding": "utf-8"}])
def test_output_is_what_subprocess_reads(options: Dict[str, Any]) -> None:
    """A character whose bytes come one by one, ends of lines, and more than a pipe holds."""
    script = r"printf '\303'; sleep 0.2; printf '\251\r\n'; seq 200003; echo err >&2"
    pipes: Dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    result, expected = (
        execwatch.run(["sh", "-c", script], **pipes).result,
        subprocess.run(["sh", "-c", script], **pipes),
    )
    assert result == expected or vars(result) == vars(expected)


@pytest.mark.parametrize(("text", "said"), [(True, "hi\n"), (False, b"hi\n")])
def test_output_that_is_held_open(text: bool, said: object) -> None:
    """The command's own is there whole, also where nobody waits; what holds it open is named."""
    for _ in range(COUNT):
        recording = execwatch.run(
            ["sh", "-c", "sleep 60 & echo hi"], capture_output=True, text=text, linger=0
        )
        (sleeper,) = recording.still_running
        os.kill(sleeper.pid, signal.SIGKILL)
        assert recording.result is not None
        assert (recording.result.stdout, recording.result.stderr) == (said, "" if text else b"")


def test_none_is_what_is_not_given() -> None:
    result = execwatch.run(
        ["cat"], input=b"x", capture_output=True, stdin=None, stdout=None, stderr=None
    ).result
    assert result is not None
    assert result.stdout == b"x"


def test_check_and_timeout_raise_with_the_recording() -> None:
    with pytest.raises(subprocess.CalledProcessError) as failed:
        execwatch.run(["sh", "-c", "true; exit 7"], check=True)
    assert failed.value.returncode == 7
    assert commands(failed.value.recording) == [("sh", "-c", "true; exit 7")]  # type: ignore[attr-defined]
    with pytest.raises(subprocess.TimeoutExpired) as expired:
        execwatch.run(
            ["sh", "-c", "echo begun; exec sleep 1000"], timeout=0.4, capture_output=True, text=True
        )
    assert expired.value.output == "begun\n"
    recording = expired.value.recording  # type: ignore[attr-defined]
    assert [argv[0] for argv in commands(recording)] == ["sh", "sleep"]
    assert [p.signal for p in recording.processes] == [signal.SIGKILL]
    assert children() == set()


def test_a_command_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match="no-such-program"):
        execwatch.run(["/no-such-program"])


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"linger": -1}, ValueError, "linger"),
        ({"linger": "1"}, TypeError, "linger"),
        ({"timeout": -1}, ValueError, "timeout"),
        ({"capture_output": True, "stdout": -1}, ValueError, "capture_output"),
        ({"input": "", "stdin": -1}, ValueError, "input"),
        ({"tracer": {"argv_size": 0}}, ValueError, "argv_size"),
        ({"no_such": 1}, TypeError, "no_such"),
    ],
)
def test_bad_arguments(options: Dict[str, object], error: type, text: str) -> None:
    with pytest.raises(error, match=text):
        execwatch.run(["true"], **options)  # type: ignore[arg-type]


def test_another_user(root: None, programs: Programs) -> None:
    recording = execwatch.run([programs("nothing")], user="nobody", cwd="/")
    (event,) = recording.execs
    assert event.uid == int(subprocess.check_output(["id", "-u", "nobody"]))


def test_ctrl_c_ends_the_command_too(programs: Programs) -> None:
    code = "import execwatch; execwatch.run(['sh', '-c', 'echo begun; exec sleep 1000'])"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as python:
        assert python.stdout is not None
        assert python.stdout.readline() == b"begun\n"
        # In wait4(2): within Popen itself an interrupt leaves the child alone, as it does in subprocess.run.
        until(lambda: pathlib.Path(f"/proc/{python.pid}/syscall").read_text().startswith("61 "), "waiting")
        python.send_signal(signal.SIGINT)
        _, errors = python.communicate(timeout=60)
    assert errors.endswith(b"KeyboardInterrupt\n")


# -- record ------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["ndjson", "ndjson.gz", "parquet"])
def test_ctrl_c_at_the_end_leaves_a_whole_file(
    suffix: str, tmp_path: pathlib.Path, programs: Programs, monkeypatch: pytest.MonkeyPatch
) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow", reason="needs the extra arrow")
    path, nothing = tmp_path / f"x.{suffix}", programs("nothing")
    join = threading.Thread.join
    interrupts = iter([KeyboardInterrupt()])

    def interrupted(thread: threading.Thread, timeout: Optional[float] = None) -> None:
        for interrupt in interrupts:
            raise interrupt
        join(thread, timeout)

    monkeypatch.setattr(threading.Thread, "join", interrupted)
    with pytest.raises(KeyboardInterrupt), execwatch.record(path=path):
        execute(nothing, path=nothing)
    recording = execwatch.load(path)
    assert recording.complete
    assert [argv[0] for argv in commands(recording)] == [nothing]


def test_a_recorder_is_its_process_s(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.ndjson"
    with execwatch.record(path=path) as recorder:
        pid = os.fork()
        if pid == 0:
            try:
                with pytest.raises(StateError, match="process that forked"):
                    recorder.snapshot()
                recorder.__exit__(None, None, None)
                held = [
                    os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if entry.is_symlink()
                ]
                os._exit(sum("bpf" in name or name == str(path) for name in held))
            except BaseException:
                os._exit(99)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert recorder.recording.complete


def test_what_this_process_starts_is_recorded(programs: Programs) -> None:
    nothing = programs("nothing")
    with execwatch.record() as recorder:
        with pytest.raises(StateError, match="snapshot"):
            _ = recorder.recording
        for number in range(COUNT):
            execute(nothing, str(number), path=nothing)
            snapshot = recorder.snapshot()
            assert [argv[1] for argv in commands(snapshot)] == [str(n) for n in range(number + 1)]
        assert not snapshot.complete
    recording = recorder.recording
    assert recording.complete
    assert [argv[1] for argv in commands(recording)] == [str(n) for n in range(COUNT)]
    assert [p.exit_code for p in recording.processes if p.comm == "nothing"] == [0] * COUNT
    assert recording.stats is not None
    assert recording.stats.seen == recording.stats.delivered + recording.stats.filtered
    with pytest.raises(StateError, match="inside"):
        recorder.snapshot()
    with pytest.raises(StateError, match="once"), recorder:
        pass


@pytest.mark.parametrize("suffix", ["ndjson", "ndjson.gz"])
def test_to_a_file(suffix: str, tmp_path: pathlib.Path, programs: Programs) -> None:
    nothing = programs("nothing")
    path = tmp_path / f"recording.{suffix}"
    with execwatch.record(Filter(comms={"nothing"}), path=path, exits=False, forks=False) as recorder:
        with pytest.raises(StateError, match="load that"):
            recorder.snapshot()
        for number in range(COUNT):
            execute(nothing, str(number), path=nothing)
    recording = recorder.recording
    assert recording == execwatch.load(path)
    assert recording.complete
    assert [argv[1] for argv in commands(recording)] == [str(n) for n in range(COUNT)]
    assert (recording.header.filter or {})["comms"] == ["nothing"]  # type: ignore[union-attr]
    assert recording.stats == recorder.stats()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("suffix", ["ndjson", "ndjson.gz"])
def test_what_was_written_survives_a_kill(suffix: str, tmp_path: pathlib.Path, programs: Programs) -> None:
    path, nothing = tmp_path / f"recording.{suffix}", programs("nothing")

    def numbers() -> List[str]:
        return [argv[1] for argv in commands(execwatch.load(path)) if argv[0] == nothing]

    code = (
        "import execwatch, sys, subprocess, signal\n"
        f"with execwatch.record(path={str(path)!r}):\n"
        f"    for number in range({COUNT}): subprocess.run([{nothing!r}, str(number)], check=True)\n"
        "    print('done', flush=True); signal.pause()\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as python:
        assert python.stdout is not None
        assert python.stdout.readline() == b"done\n"
        until(lambda: len(numbers()) == COUNT, "the last of them in the file")
        python.kill()
    assert not execwatch.load(path).complete
    assert numbers() == [str(n) for n in range(COUNT)]


def test_a_full_disk_ends_the_recording_and_says_so(
    root: None, tmp_path: pathlib.Path, programs: Programs
) -> None:
    path = tmp_path / "recording.ndjson"
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, 7))  # as /dev/full
    with pytest.raises(OSError, match="No space left"), execwatch.record(path=path):
        for _ in range(COUNT):
            execute(programs("nothing"), path=programs("nothing"))


def test_a_recording_that_can_not_begin_leaves_the_file_alone(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "kept.ndjson"
    path.write_text("kept")
    recorder = execwatch.record(path=path)
    monkeypatch.setattr(recorder._tracer, "start", lambda: (_ for _ in ()).throw(PermissionError))
    with pytest.raises(PermissionError), recorder:
        pass
    assert path.read_text() == "kept"
