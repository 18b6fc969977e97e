"""As nobody, with and without the two capabilities; and what a kernel may lack."""

from __future__ import annotations

import os
import pathlib
import resource
import shutil
import subprocess
from typing import Callable

import attr
import attrs
import pytest
import typing_extensions

import execwatch
from execwatch import AttachError, ExecTracer, LoadError, NotSupportedError
from execwatch.build import images
from execwatch.kernel import bpf, btf, loader, offsets
from execwatch.kernel.image import PROGRAM_TYPES, Program

from .conftest import COUNT, Reason, skip

pytestmark = pytest.mark.usefixtures("root")

Run = Callable[..., "subprocess.CompletedProcess[str]"]

#: Numbers of CAP_PERFMON and CAP_BPF: setpriv(1) of Debian 11 doesn't know the names.
BPF_AND_PERFMON = "+cap_38,+cap_39"


@pytest.fixture
def as_nobody(programs: Callable[[str], str], tmp_path: pathlib.Path) -> Run:
    """Run Python code as nobody, with these capabilities and no others."""
    if not shutil.which("setpriv"):
        skip(Reason.TOOL, "setpriv (util-linux)")
    # Where nobody can read it: the interpreter of the tests may lie in root's home.
    folder = pathlib.Path(programs("nothing")).parent / "packages"
    if not folder.exists():
        for module in (execwatch, attr, attrs):
            source = pathlib.Path(str(module.__file__)).parent
            shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(str(typing_extensions.__file__), folder)
        subprocess.run(["chmod", "-R", "a+rX", str(folder)], check=True)
    python = "/usr/bin/python3"
    if not os.path.exists(python):
        skip(Reason.TOOL, python)

    def run(code: str, capabilities: str = "") -> subprocess.CompletedProcess[str]:
        sets = f"-all{',' + capabilities if capabilities else ''}"
        return subprocess.run(
            [
                "setpriv",
                "--reuid=65534",
                "--regid=65534",
                "--clear-groups",
                f"--inh-caps={sets}",
                f"--ambient-caps={sets}",
                f"--bounding-set={sets}",
                python,
                "-W",
                "error",
                "-c",
                code,
            ],
            env={"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            cwd="/",
            check=False,
        )

    return run


TRACE = f"""
import os
from execwatch import ExecTracer, Filter
with ExecTracer(Filter(ppids=os.getpid())) as tracer:
    for number in range({COUNT}):
        os.waitpid(os.posix_spawn("/bin/true", ["true", str(number)], {{}}), 0)
    print(*(event.argv[1] for event in tracer.read(timeout=0)))
"""


def test_nobody_is_told_what_is_missing(as_nobody: Run) -> None:
    done = as_nobody(
        "import pickle, execwatch\n"
        "try: execwatch.ExecTracer().start()\n"
        "except execwatch.PrivilegeError as exc:\n"
        "    assert isinstance(exc, PermissionError) and str(pickle.loads(pickle.dumps(exc))) == str(exc)\n"
        "    print(exc)\n"
    )
    assert done.stderr == ""
    assert "CAP_BPF and CAP_PERFMON" in done.stdout
    assert "uid 65534" in done.stdout
    assert "sudo" in done.stdout


def test_nobody_with_one_of_two_is_told_the_other(as_nobody: Run) -> None:
    done = as_nobody(TRACE, "+cap_39")
    assert done.returncode == 1
    assert "PrivilegeError: tracing needs CAP_PERFMON," in done.stderr


def test_nobody_with_both_capabilities_traces(as_nobody: Run) -> None:
    done = as_nobody(TRACE, BPF_AND_PERFMON)
    assert done.stderr == ""
    assert done.stdout.split() == [str(number) for number in range(COUNT)]


def test_nobody_with_both_capabilities_follows_a_subtree(as_nobody: Run) -> None:
    done = as_nobody(TRACE.replace("ppids", "descendants_of"), BPF_AND_PERFMON)
    assert done.stderr == ""
    assert done.stdout.split() == [str(number) for number in range(COUNT)]


def test_the_verifier_is_quoted() -> None:
    """A program that returns a register it never set."""
    with pytest.raises(LoadError) as raised:
        bpf.program_load(17, bytes([0x95, 0, 0, 0, 0, 0, 0, 0]), "GPL", "bad")
    assert raised.value.errno == 13
    assert "R0 !read_ok" in raised.value.log


def test_a_tracepoint_that_this_kernel_lacks() -> None:
    name = "raw_tracepoint__sched_process_exec"
    image = loader.LoadedImage(images.load("exec"), [name], {})
    try:
        with pytest.raises(NotSupportedError) as raised:
            bpf.raw_tracepoint_open("no_such_tracepoint", image.programs[name])
    finally:
        image.close()
    assert raised.value.feature == "tracepoint no_such_tracepoint"


def test_something_that_is_no_program_is_not_attached() -> None:
    with open("/dev/null") as file, pytest.raises(AttachError) as raised:
        bpf.raw_tracepoint_open("sched_process_exec", file.fileno())
    assert raised.value.probe == "raw_tracepoint:sched_process_exec"


def test_a_kernel_without_btf(monkeypatch: pytest.MonkeyPatch, tmp_path: pathlib.Path) -> None:
    def load(path: str = str(tmp_path / "no" / "btf")) -> btf.Btf:
        return real(path)

    real = btf.load
    monkeypatch.setattr(btf, "load", load)
    monkeypatch.setattr(offsets, "kernel_build_id", lambda: None)
    with pytest.raises(NotSupportedError, match="CONFIG_DEBUG_INFO_BTF") as raised:
        ExecTracer().start()
    assert raised.value.minimum_kernel == "5.2"


def test_a_map_that_the_kernel_refuses_is_named() -> None:
    with pytest.raises(LoadError, match="map 'odd' of 1 entries: Invalid argument"):
        bpf.map_create(9999, 4, 4, 1, 0, "odd")


@pytest.mark.parametrize("program", images.load("exec").programs, ids=lambda program: program.name)
def test_no_program_needs_many_steps_of_the_verifier(program: Program) -> None:
    """The limit is a million; much below it an older or stricter verifier is done too."""
    image = images.load("exec")
    loaded = loader.LoadedImage(image, [program.name], {})
    try:
        steps = bpf.verifier_steps(
            PROGRAM_TYPES[program.type], loader.relocate(program, loaded.maps), image.license
        )
    finally:
        loaded.close()
    assert 0 < steps < 100_000


def test_the_offsets_are_remembered_for_this_kernel(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "cache"
    fresh = offsets.load(str(folder))
    (kept_file,) = folder.iterdir()
    assert offsets.kernel_build_id() in kept_file.name
    assert offsets.load(str(folder)) == fresh
    kept_file.write_bytes(b"spoilt")
    assert offsets.load(str(folder)) == fresh


def test_an_unwritable_cache_costs_time_only(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    assert offsets.load(str(file / "cache")) == offsets.load()


def test_the_limit_is_restored_where_memory_is_counted() -> None:
    before = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    with ExecTracer():
        assert resource.getrlimit(resource.RLIMIT_MEMLOCK) == before
    assert resource.getrlimit(resource.RLIMIT_MEMLOCK) == before


HAS_KPROBES = os.path.exists("/sys/bus/event_source/devices/kprobe")


def test_kprobes_work_or_the_option_that_is_missing_is_named() -> None:
    tracer = ExecTracer(probe="kprobe")
    if HAS_KPROBES:
        with tracer:
            subprocess.run(["/bin/true"], check=True)
            assert "true" in [event.comm for event in tracer.read(timeout=0)]
    else:
        with pytest.raises(NotSupportedError, match="CONFIG_KPROBE_EVENTS=y") as raised:
            tracer.start()
        assert raised.value.feature == "kprobes"
    tracer.close()


def test_auto_takes_kprobes_where_there_is_no_tracepoint(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, program: int) -> int:
        raise NotSupportedError(f"tracepoint {name}")

    monkeypatch.setattr(bpf, "raw_tracepoint_open", refuse)
    tracer = ExecTracer(probe="auto")
    if HAS_KPROBES:
        with tracer:
            subprocess.run(["/bin/true"], check=True)
            assert "true" in [event.comm for event in tracer.read(timeout=0)]
    else:
        with pytest.raises(NotSupportedError, match="no kprobes"):
            tracer.start()
    with pytest.raises(NotSupportedError, match="tracepoint sched_process_exec"):
        ExecTracer(probe="tracepoint").start()
    tracer.close()
