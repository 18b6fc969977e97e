"""The odd ways to execute, each as often as it is done, each field as it should be."""

from __future__ import annotations

import errno
import os
import pathlib
import platform
import shutil
import subprocess
from typing import Callable

import pytest

from execwatch import ExecEvent, ExecTracer, FailedExecEvent, Filter

from .conftest import COUNT, Reason, skip

Programs = Callable[[str], str]

INT80 = pytest.mark.skipif(platform.machine() != "x86_64", reason="KERNEL: int 0x80 is x86's")

WAYS = [
    "execve",
    "execveat",
    "execveat_empty_path",
    "fexecve",
    "memfd",
    "thread",
    "vfork",
    "posix_spawn",
    pytest.param("int80", marks=INT80),
    pytest.param("int80_execveat", marks=INT80),
]


def needs_int80(way: str, programs: Programs) -> None:
    """A kernel without CONFIG_IA32_EMULATION ends a process that uses the entry."""
    if way.startswith("int80"):
        done = subprocess.run([programs("odd"), way, "/no/such/program"], capture_output=True)
        if done.returncode != 0:
            skip(Reason.KERNEL, "CONFIG_IA32_EMULATION")


@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_seen_once_each_time(way: str, programs: Programs) -> None:
    needs_int80(way, programs)
    nothing = programs("nothing")
    outputs = []
    with ExecTracer(Filter(descendants_of=os.getpid())) as tracer:
        for number in range(COUNT):
            command = [programs("odd"), way, nothing, str(number), "", "two words"]
            outputs.append(subprocess.run(command, capture_output=True, check=True).stdout)
        events = [event for event in tracer.read(timeout=0) if event.argv[0] == nothing]
        stats = tracer.stats()
    assert [event.argv for event in events] == [
        (nothing, str(number), "", "two words") for number in range(COUNT)
    ]
    assert stats.lost == 0
    for event, output in zip(events, outputs):
        assert (event.argc, event.argv_status, event.retval) == (4, "complete", 0)
        check_names(way, event, nothing)
        if way == "thread":
            assert event.tid == int(output) != event.pid
        else:
            assert event.tid == event.pid


def check_names(way: str, event: ExecEvent, nothing: str) -> None:
    assert event.filename is not None
    if way in ("execveat_empty_path", "fexecve", "memfd"):
        # The kernel makes up a name for a file that came as a descriptor.
        assert event.filename.startswith("/dev/fd/")
    else:
        assert event.filename == nothing
        assert event.comm == "nothing"


def test_a_deleted_binary(programs: Programs, tmp_path: pathlib.Path) -> None:
    with ExecTracer(Filter(descendants_of=os.getpid())) as tracer:
        for number in range(COUNT):
            copy = shutil.copy(programs("nothing"), tmp_path / f"gone-{number}")
            subprocess.run([programs("odd"), "deleted", copy], check=True)
        events = [event for event in tracer.read(timeout=0) if "gone" in event.argv[0]]
    assert [event.argv for event in events] == [(str(tmp_path / f"gone-{n}"),) for n in range(COUNT)]


def test_scripts_nested_and_without_a_first_line(programs: Programs, tmp_path: pathlib.Path) -> None:
    """Without #! execve fails with ENOEXEC, and the shell that called it tries as a shell."""
    nothing = programs("nothing")
    inner, outer, plain = (tmp_path / name for name in ("inner", "outer", "plain"))
    inner.write_text(f"#!{nothing} -i\n")
    outer.write_text(f"#!{inner}\n")
    plain.write_text(f"{nothing} from-plain\n")
    for script in (inner, outer, plain):
        script.chmod(0o755)
    with ExecTracer(Filter(descendants_of=os.getpid()), failed=True) as tracer:
        for _ in range(COUNT):
            os.waitpid(os.posix_spawn(str(outer), ["outer", "x"], {}), 0)
            subprocess.run(["/bin/sh", "-c", f"{plain}; :"], check=True)
        events = tracer.read(timeout=0)
    execs = [event for event in events if isinstance(event, ExecEvent)]
    nested = [event for event in execs if event.filename == str(outer)]
    assert len(nested) == COUNT
    assert {event.argv for event in nested} == {(nothing, "-i", str(inner), str(outer), "x")}
    assert {(event.interp, event.comm) for event in nested} == {(nothing, "outer")}
    refused = [e for e in events if isinstance(e, FailedExecEvent) and e.filename == str(plain)]
    assert [event.error for event in refused] == ["ENOEXEC"] * COUNT
    assert len([event for event in execs if event.argv == (nothing, "from-plain")]) == COUNT


@pytest.mark.parametrize("way", ["execve", "execveat", *WAYS[-2:]])
def test_refused_attempts_tell_what_was_asked(way: str, programs: Programs, tmp_path: pathlib.Path) -> None:
    needs_int80(way, programs)
    directory, text, missing = tmp_path, tmp_path / "text", tmp_path / "missing"
    text.write_text("no program")
    text.chmod(0o755)
    wanted = [(missing, "ENOENT"), (directory, "EACCES"), (text, "ENOEXEC"), (text / "x", "ENOTDIR")]
    arguments = ["", "two words", "new\nline", "\udcff"]
    with ExecTracer(Filter(descendants_of=os.getpid()), failed=True) as tracer:
        for number in range(COUNT):
            path, error = wanted[number % 4]
            done = subprocess.run(
                [programs("odd"), way, path, str(number), *arguments], stdout=subprocess.PIPE, check=True
            )
            assert int(done.stdout) == getattr(errno, error)
        refused = [e for e in tracer.read(timeout=0) if isinstance(e, FailedExecEvent)]
        stats = tracer.stats().failed
    refused = [event for event in refused if event.comm == "odd"]
    assert len(refused) == COUNT
    for number, event in enumerate(refused):
        path, error = wanted[number % 4]
        assert (event.filename, event.error) == (str(path), error)
        assert event.retval == -getattr(errno, error)
        assert event.argv == (str(path), str(number), *arguments)
        assert event.argv_status == "complete"
        assert event.pid == event.tid != event.ppid == os.getpid()
        assert event.parent_comm == pathlib.Path("/proc/self/comm").read_text().strip()
    assert stats.seen == stats.delivered + stats.filtered
    assert stats.lost == stats.pending == 0


def test_what_can_not_be_read_is_unknown(programs: Programs) -> None:
    with ExecTracer(Filter(descendants_of=os.getpid()), failed=True) as tracer:
        subprocess.run([programs("odd"), "bad_pointers", "x"], stdout=subprocess.PIPE, check=True)
        subprocess.run([programs("odd"), "bad_argv", "/x"], stdout=subprocess.PIPE, check=True)
        first, second = [
            e for e in tracer.read(timeout=0) if isinstance(e, FailedExecEvent) and e.comm == "odd"
        ]
    assert (first.filename, first.argv, first.argv_status, first.error) == (
        None,
        None,
        "unreadable",
        "EFAULT",
    )
    assert (second.filename, second.argv, second.argv_status) == ("/x", None, "unreadable")


def test_many_arguments_of_a_refused_attempt_are_cut_and_say_so(programs: Programs) -> None:
    with ExecTracer(Filter(descendants_of=os.getpid()), failed=True) as tracer:
        words = [str(number) for number in range(997)]
        subprocess.run([programs("odd"), "execve", "/no", *words], stdout=subprocess.PIPE, check=True)
        (event,) = [e for e in tracer.read(timeout=0) if isinstance(e, FailedExecEvent) and e.comm == "odd"]
    assert event.argv == ("/no", *words[:63])
    assert event.argv_status == "truncated"


@pytest.mark.usefixtures("root")
def test_a_chroot(programs: Programs, tmp_path: pathlib.Path) -> None:
    shutil.copy(programs("nothing"), tmp_path / "inside")
    with ExecTracer(Filter(descendants_of=os.getpid())) as tracer:
        for number in range(COUNT):
            subprocess.run(["chroot", tmp_path, "/inside", str(number)], check=True)
        events = [event for event in tracer.read(timeout=0) if event.comm == "inside"]
    assert [(event.filename, event.argv) for event in events] == [
        ("/inside", ("/inside", str(number))) for number in range(COUNT)
    ]


@pytest.mark.parametrize("size", [16_385, 49_152, 49_153, 245_760, 245_761, 1_032_192, 1_032_193, 2_000_003])
def test_large_argv_is_whole(size: int, programs: Programs, tracer_buffer: str) -> None:
    """Around the limits of the sizes in which the kernel half takes room."""
    if tracer_buffer == "perf":
        with pytest.raises(ValueError, match="argv_size: expected 1 to 16,384"):
            ExecTracer(argv_size=size)
        return
    nothing = programs("nothing")
    rest = size - len(nothing) - 1
    # One argument may have 128 KiB (MAX_ARG_STRLEN).
    words = ["x" * 99_999] * (rest // 100_000) + ["y" * (rest % 100_000 - 1)]
    with ExecTracer(Filter(ppids=os.getpid()), argv_size=2 << 20, buffer_size=8 << 20) as tracer:
        for _ in range(3):
            os.waitpid(os.posix_spawn(nothing, [nothing, *words], {}), 0)
            (event,) = tracer.read(timeout=0)
            assert event.argv == (nothing, *words)
            assert event.argv_status == "complete"
        assert tracer.stats().lost == 0


def test_large_argv_is_bounded_and_accounted(programs: Programs, tracer_buffer: str) -> None:
    """More than the ring holds: lost and counted, and what is small goes on."""
    if tracer_buffer == "perf":
        pytest.skip("KERNEL: a perf record holds no more than 16 KiB of argv")
    nothing = programs("nothing")
    words = ["x" * 99_999] * 12
    with ExecTracer(Filter(ppids=os.getpid()), argv_size=512 << 10, buffer_size=2 << 20) as tracer:
        for _ in range(COUNT):
            os.waitpid(os.posix_spawn(nothing, [nothing, *words], {}), 0)
        events, stats = tracer.read(timeout=0), tracer.stats()
        assert {event.argv_status for event in events} == {"truncated"}
        assert {sum(len(word) + 1 for word in event.argv) for event in events} <= {512 << 10, (512 << 10) + 1}
        assert 0 < len(events) < COUNT
        assert stats.delivered + stats.exec.lost_by_reason.buffer_full == COUNT
        os.waitpid(os.posix_spawn(nothing, [nothing, "small"], {}), 0)
        assert [event.argv[1] for event in tracer.read(timeout=0)] == ["small"]


def test_a_two_megabyte_argv_is_the_most(programs: Programs, tracer_buffer: str) -> None:
    if tracer_buffer == "perf":
        pytest.skip("KERNEL: a perf record holds no more than 16 KiB of argv")
    with pytest.raises(ValueError, match="argv_size: expected 1 to 2,097,152, got 2097153"):
        ExecTracer(argv_size=(2 << 20) + 1)
    with pytest.raises(ValueError, match="buffer_size: expected at least 4 x argv_size"):
        ExecTracer(argv_size=2 << 20, buffer_size=4 << 20)


def test_empty_argv(programs: Programs) -> None:
    with ExecTracer(Filter(descendants_of=os.getpid())) as tracer:
        subprocess.run([programs("odd"), "empty_argv", programs("nothing")], check=True)
        event = tracer.read(timeout=0)[-1]
    # Since Linux 5.18 the kernel puts in an empty string.
    assert event.argv in ((), ("",))
    assert event.argc == len(event.argv)


@pytest.mark.parametrize(
    "argv_size", [45_057, 65_536, 110_593, 241_665, 262_144, 503_809, 1_028_097, 2_097_152]
)
def test_the_least_buffer_for_an_argv_size_holds_such_an_event(
    argv_size: int, programs: Programs, tracer_buffer: str
) -> None:
    if tracer_buffer == "perf":
        pytest.skip("KERNEL: a perf record holds no more than 16 KiB of argv")
    nothing = programs("nothing")
    rest = min(argv_size, 1_900_000) - len(nothing) - 1
    words = ["x" * 99_999] * (rest // 100_000) + ["y" * (rest % 100_000 - 1)]
    with ExecTracer(Filter(ppids=os.getpid()), argv_size=argv_size, buffer_size=4 * argv_size) as tracer:
        for _ in range(3):
            os.waitpid(os.posix_spawn(nothing, [nothing, *words], {}), 0)
            (event,) = tracer.read(timeout=0)
            assert event.argv == (nothing, *words)
        assert tracer.stats().lost == 0


def test_exactly_as_many_arguments_as_are_kept_of_a_refused_attempt(programs: Programs) -> None:
    with ExecTracer(Filter(descendants_of=os.getpid()), failed=True) as tracer:
        words = [str(number) for number in range(63)]
        subprocess.run([programs("odd"), "execve", "/no", *words], stdout=subprocess.PIPE, check=True)
        (event,) = [e for e in tracer.read(timeout=0) if isinstance(e, FailedExecEvent) and e.comm == "odd"]
    assert event.argv == ("/no", *words)
    assert event.argv_status == "complete"
