"""As nobody, with and without the two capabilities; and what a kernel may lack."""

from __future__ import annotations

import errno
import logging
import os
import pathlib
import resource
import shutil
import subprocess
from typing import Any, Callable, List, Tuple

import attr
import attrs
import pytest
import typing_extensions

import execwatch
from execwatch import AttachError, ExecEvent, ExecTracer, Filter, LoadError, NotSupportedError, wire
from execwatch.build import images
from execwatch.build.__main__ import STEPS_MAX, everything, steps_of, verify
from execwatch.events import ProcessEvent
from execwatch.kernel import bpf, btf, filtering, loader, offsets, setup
from execwatch.kernel.image import Program
from execwatch.tracer import CAPTURE

from .conftest import COUNT, Reason, open_files, skip
from .witness import held

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
        bpf.program_load(bpf.Code(17, bytes([0x95, 0, 0, 0, 0, 0, 0, 0]), "GPL"), "bad")
    assert raised.value.errno == 13
    assert "R0 !read_ok" in raised.value.log


def test_a_tracepoint_that_this_kernel_lacks() -> None:
    name = "raw_tracepoint__sched_process_exec"
    config = wire.pack(wire.CONFIG, everything(typed=False).config)
    image = loader.LoadedImage(images.load("exec"), [name], {}, {"config": config}, {})
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


# -- What the verifier knows ------------------------------------------------------------------

IMAGE = images.load("exec")


def test_no_program_needs_many_steps_of_the_verifier() -> None:
    """The limit is a million; much below it an older or stricter verifier is done too."""
    steps = verify(IMAGE)
    assert steps.keys() == {program.name for program in IMAGE.programs}
    assert 0 < min(steps.values()) <= max(steps.values()) < STEPS_MAX == 100_000


def nothing() -> setup.Setup:
    """What a tracer needs that asks for no more than that programs start."""
    size = wire.LIMITS["ARGV_SIZE_MAX"]
    options = setup.Options(probe="tracepoint", buffer_size=1 << 22, argv_size=size)
    return setup.plan(options, filtering.compile_filter(None), setup.read_clock())


@pytest.mark.parametrize(
    "name",
    ["raw_tracepoint__sched_process_exec", "kretprobe__exec", "raw_tracepoint__sched_process_fork"],
)
def test_the_verifier_takes_out_what_is_not_asked_for(name: str) -> None:
    """It can only if it reads the configuration as constants."""
    (program,) = (program for program in IMAGE.programs if program.name == name)
    assert 10 * steps_of(IMAGE, program, nothing()) < steps_of(IMAGE, program, everything())


#: See offsets.TRACEPOINTS.
TYPED = tuple(map(int, os.uname().release.split(".")[:2])) >= (5, 16)
#: Of programs (include/uapi/linux/bpf.h), as fdinfo has them.
RAW_TRACEPOINT, TRACING = "17", "26"


def program_types() -> List[str]:
    """Of the programs that this process holds."""
    types = []
    for fd, target in open_files().items():
        if target == "anon_inode:bpf-prog":
            text = pathlib.Path(f"/proc/self/fdinfo/{fd}").read_text()
            types.append(dict(line.split(":\t", 1) for line in text.splitlines())["prog_type"])
    return sorted(types)


def test_programs_are_told_the_types_of_what_tracepoints_give_them() -> None:
    """Else each would be slower by half, and nothing would show it."""
    told = TRACING if TYPED else RAW_TRACEPOINT
    with ExecTracer(failed=True, forks=True, exits=True):
        assert program_types() == [RAW_TRACEPOINT, told, told, told]
    assert program_types() == []


@pytest.mark.parametrize(
    "program",
    [program for program in IMAGE.programs if program.target in offsets.TRACEPOINTS],
    ids=lambda program: program.name,
)
def test_such_a_program_reads_by_itself(program: Program) -> None:
    """A verifier that knows no types refuses that: for it the pointer is a number."""
    frozen = {"config": wire.pack(wire.CONFIG, {**everything().config, "typed": 1})}
    with pytest.raises(LoadError) as raised:
        loader.LoadedImage(IMAGE, [program.name], {}, frozen, {})
    assert "invalid mem access" in raised.value.log


def test_a_kernel_that_refuses_typed_programs_is_traced_without(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load(code: bpf.Code, name: str) -> int:
        if code.arguments:
            raise LoadError(errno.EACCES, f"program {name!r}", "R1 invalid mem access")
        return real(code, name)

    real = bpf.program_load
    monkeypatch.setattr(bpf, "program_load", load)
    with caplog.at_level(logging.INFO, "execwatch"):
        tracer = ExecTracer(Filter(ppids=os.getpid()), failed=True, forks=True, exits=True, capture=CAPTURE)
        with tracer:
            assert program_types() == [RAW_TRACEPOINT] * 4
            subprocess.run(["/bin/true"], check=True)
            kinds = [event.kind for event in tracer.read(timeout=0)]
        assert kinds == ["fork", "exec", "exit"]
        with ExecTracer() as tracer:
            assert program_types() == [RAW_TRACEPOINT]
            # For the table more is loaded.
            assert os.getpid() in [process.pid for process in tracer.processes]
            assert program_types() == [RAW_TRACEPOINT] * 3
    assert caplog.text.count("refuses typed programs") == (2 if TYPED else 0)
    assert program_types() == []


def test_what_is_refused_either_way_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(code: bpf.Code, name: str) -> int:
        raise LoadError(errno.EACCES, f"program {name!r}", f"said of {code.arguments > 0}")

    monkeypatch.setattr(bpf, "program_load", load)
    before = open_files()
    with pytest.raises(LoadError) as raised:
        ExecTracer().start()
    assert raised.value.log == "said of False"
    assert open_files() == before


def test_only_the_word_of_a_verifier_is_taken_for_a_refusal(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not that there was no memory, say: that would be so a second time."""
    refused = []

    def create(*arguments: Any) -> int:
        refused.append(arguments)
        raise LoadError(errno.ENOMEM, "map 'events'")

    monkeypatch.setattr(bpf, "map_create", create)
    with caplog.at_level(logging.INFO, "execwatch"), pytest.raises(LoadError, match="map 'events'"):
        ExecTracer().start()
    assert len(refused) == 1
    assert caplog.text == ""


def array_of(layout: wire.Layout) -> Tuple[int, dict[str, str]]:
    """The array of this process that holds one such structure: its descriptor, and its fdinfo (proc(5))."""
    found = []
    for fd, target in open_files().items():
        if target == "anon_inode:bpf-map":
            text = pathlib.Path(f"/proc/self/fdinfo/{fd}").read_text()
            info = dict(line.split(":\t", 1) for line in text.splitlines())
            size = str(wire.struct_of(layout).size)
            if (info["map_type"], info["max_entries"], info["value_size"]) == (str(bpf.ARRAY), "1", size):
                found.append((int(fd), info))
    (one,) = found
    return one


def value_of(layout: wire.Layout) -> dict[str, Any]:
    value = bpf.map_lookup(array_of(layout)[0], bytes(4), wire.struct_of(layout).size)
    assert value is not None
    return wire.unpack(layout, value)


def test_nobody_can_change_the_configuration_of_a_tracer_that_runs() -> None:
    with ExecTracer(Filter(uids=54321), capture=("cwd",)):
        config, info = array_of(wire.CONFIG)
        assert (info["frozen"], int(info["map_flags"], 16)) == ("1", 1 << 7)  # BPF_F_RDONLY_PROG
        before = value_of(wire.CONFIG)
        assert (before["capture"], before["include"]) == (wire.CAPTURE["cwd"], wire.FILTER_BITS["uid"])
        assert before["offset_task_tgid"] == offsets.load()["offset_task_tgid"]
        with pytest.raises(PermissionError) as raised:
            bpf.map_update(config, bytes(4), bytes(wire.struct_of(wire.CONFIG).size))
        assert raised.value.errno == errno.EPERM
        assert value_of(wire.CONFIG) == before


def test_what_is_switched_while_programs_run_is_not_frozen() -> None:
    with ExecTracer(Filter(descendants_of=os.getpid())) as tracer:
        assert array_of(wire.SWITCHES)[1]["frozen"] == "0"
        assert value_of(wire.SWITCHES) == {"arming": 0, "track": 0}
        assert os.getpid() in [process.pid for process in tracer.processes]
        assert value_of(wire.SWITCHES) == {"arming": 0, "track": 1}


# -- Kernels that have their members elsewhere ------------------------------------------------

ALL: dict[str, Any] = {"capture": CAPTURE, "env": True, "failed": True, "forks": True, "exits": True}

#: What is found by a walk, which takes blocks.
WALKED = ("cwd", "exe.path")
#: Each tracer's programs have a clock reading of their own.
OWN = ("time_ns", "boottime_ns", "exec_boottime_ns")


def fields(event: ProcessEvent) -> dict[str, Any]:
    """All fields by name, those of what was captured as in "creds.uid"."""
    found: dict[str, Any] = {"kind": event.kind}
    for name, value in attrs.asdict(event).items():
        if name in ("creds", "exe", "namespaces", "session") and value is not None:
            found.update({f"{name}.{inner}": number for inner, number in value.items()})
        else:
            found[name] = value
    return found


@pytest.mark.parametrize("apart", [False, True])
def test_without_types_the_same_is_told(
    programs: Callable[[str], str], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    """Two tracers of the same processes: the kernel tells one of them no types.

    Args:
        apart: And no two members are near each other, as with RANDSTRUCT: then mounts can't be walked.
    """
    for path in (tmp_path, tmp_path.parent, tmp_path.parent.parent):
        path.chmod(0o755)
    # The file's owner and group are told by what the program gains.
    hold = tmp_path / "hold"
    shutil.copy(programs("hold"), hold)
    os.chown(hold, 54321, 54322)
    hold.chmod(0o6755)
    script = f"/no/such/program; exec {hold} 'an argument'"
    near = offsets.load()
    changed = {name: wire.ABSENT if name.startswith("type_") else value for name, value in near.items()}
    if apart:
        changed.update({name: 0 for name in near if name.startswith(("first_", "size_"))})
        changed.update({name: wire.ABSENT for name in near if name.startswith("at_")})
    mine = Filter(descendants_of=os.getpid())
    with ExecTracer(mine, **ALL) as tracer:
        monkeypatch.setattr(offsets, "load", lambda: changed)
        with ExecTracer(mine, **ALL) as other:
            # A session of its own: one whose leader is in no pid namespace of ours has no id.
            options: dict[str, Any] = {"cwd": tmp_path, "start_new_session": True}
            with held("/bin/sh", "-c", script, env={"NAME": "value"}, **options):
                pass
            events, others = list(tracer.read(timeout=0)), list(other.read(timeout=0))
    kinds = ["fork", "exec", "fork", "failed_exec", "exit", "exec", "exit"]
    assert [event.kind for event in events] == [event.kind for event in others] == kinds
    held_exec = fields(events[-2])
    there = {"exe.path": str(hold), "cwd": str(tmp_path), "creds.euid": 54321, "creds.egid": 54322}
    assert {name: held_exec[name] for name in there} == there
    assert None not in [
        held_exec[name] for name in ("cgroup_path", "session.sid", "namespaces.net", "exe.inode")
    ]
    for expected, told in zip(map(fields, events), map(fields, others)):
        assert told.keys() == expected.keys()
        for name in expected:
            if name in OWN:
                assert (told[name] is None) == (expected[name] is None), name
            elif apart and name in WALKED:
                assert told[name] is None, name
            else:
                assert told[name] == expected[name], f"{name} of {expected['kind']}"


@pytest.mark.parametrize("name", sorted(set(wire.OFFSETS) - set(offsets._NEEDED)))
def test_a_kernel_that_lacks_a_member_is_traced_without(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And without types, where it leads to others: what is read in its place has none."""
    found = {**offsets.load(), f"offset_{name}": wire.ABSENT}
    for block in wire.BLOCKS:
        found.update(offsets._block(block, found))
    monkeypatch.setattr(offsets, "load", lambda: found)
    options = {**ALL, "failed": name != "regs_orig_ax"}  # without it there are no failed ones, as it says
    with ExecTracer(**options) as tracer:
        subprocess.run(["/bin/true", name], check=True)
        execs = [event.argv for event in tracer.read(timeout=0) if isinstance(event, ExecEvent)]
    assert execs.count(("/bin/true", name)) == 1


def test_the_offsets_are_remembered_for_this_kernel(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "cache"
    fresh = offsets.load(str(folder))
    (kept_file,) = folder.iterdir()
    assert str(offsets.kernel_build_id()) in kept_file.name
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
    def refuse(name: str, program: int, *, typed: bool) -> int:
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
