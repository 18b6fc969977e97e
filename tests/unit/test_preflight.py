"""``check()`` answers wherever it is asked, whatever is broken."""

from __future__ import annotations

import pickle
import sys
from typing import Callable, Optional

import pytest

import execwatch
from execwatch import BccNotFoundError, Check, LoadError, NotSupportedError, PrivilegeError
from execwatch.build import bcc
from execwatch.cli import main
from execwatch.kernel import cache, kprobe, privileges, probes
from execwatch.preflight import Problem

# The function hides the module of its name.
module = sys.modules["execwatch.preflight"]

Healthy = pytest.MonkeyPatch


def raising(error: Exception) -> Callable[..., object]:
    def fail(*args: object, **kwargs: object) -> object:
        raise error

    return fail


def available(found: Check, name: str) -> Optional[bool]:
    return next(feature.available for feature in found.features if feature.name == name)


def only_problem(found: Check) -> Problem:
    (problem,) = found.problems
    assert problem.cause
    assert problem.evidence
    assert problem.remedy
    assert problem.cause in str(found)
    assert problem.evidence in str(found)
    assert problem.remedy in str(found)
    return problem


@pytest.fixture
def healthy(monkeypatch: pytest.MonkeyPatch) -> Healthy:
    """A machine that has all; the tests take away."""
    if not sys.platform.startswith("linux"):
        pytest.skip("looks at Linux")
    monkeypatch.setattr(privileges, "missing_capabilities", lambda: ())
    monkeypatch.setattr(privileges, "lockdown", lambda: "none")
    for name in ("btf", "cache"):
        monkeypatch.setitem(module._PROBES, name, lambda name: (module._present(name, "there"), ()))
    monkeypatch.setattr(probes, "ring_buffer", lambda: None)
    monkeypatch.setattr(probes, "raw_tracepoint", lambda name: True)
    monkeypatch.setattr(kprobe, "check", lambda: None)
    monkeypatch.setattr(probes, "pid_namespace", lambda: 0)
    monkeypatch.setattr(module, "_load_and_attach", lambda: None)
    monkeypatch.setattr(module, "_shipped_image_fits", lambda: True)
    monkeypatch.setattr(bcc, "locate", lambda: "/usr/lib/python3/dist-packages")
    return monkeypatch


def test_it_never_raises_here() -> None:
    found = execwatch.check()
    assert found.ok is not any(problem.fatal for problem in found.problems)
    assert pickle.loads(pickle.dumps(found)) == found
    assert len({found, pickle.loads(pickle.dumps(found))}) == 1


def test_all_is_well(healthy: Healthy, capsys: pytest.CaptureFixture[str]) -> None:
    found = execwatch.check()
    assert found.ok
    assert found.problems == ()
    assert {feature.available for feature in found.features} == {True}
    assert main(["doctor"]) == 0
    assert capsys.readouterr() == (f"{found}\n", "")


def test_another_operating_system(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    monkeypatch.setattr(module.platform, "system", lambda: "Darwin")
    found = execwatch.check()
    assert not found.ok
    assert only_problem(found).evidence == "this is Darwin"
    assert main(["doctor"]) == 1


def test_without_privileges_nothing_is_tried(healthy: Healthy) -> None:
    healthy.setattr(privileges, "missing_capabilities", lambda: ("CAP_BPF",))
    healthy.setattr(probes, "ring_buffer", raising(AssertionError()))
    healthy.setattr(module, "_load_and_attach", raising(AssertionError()))
    found = execwatch.check()
    assert only_problem(found).cause == "this process lacks CAP_BPF"
    assert only_problem(found).remedy.startswith("sudo ")
    assert available(found, "privileges") is False
    assert available(found, "ring_buffer") is available(found, "image") is None
    assert main(["doctor"]) == 4


def test_the_capabilities_are_there_and_the_kernel_refuses(healthy: Healthy) -> None:
    error = PrivilegeError("the kernel refused BPF: in a container run with --privileged")
    for name in ("ring_buffer", "raw_tracepoint"):
        healthy.setattr(probes, name, raising(error))
    problem = only_problem(execwatch.check())
    assert (problem.kind, problem.cause) == ("privilege", "the kernel refused BPF")
    assert problem.remedy == "in a container run with --privileged"


def test_a_locked_down_kernel_is_one_problem(healthy: Healthy) -> None:
    healthy.setattr(privileges, "lockdown", lambda: "confidentiality")
    healthy.setattr(probes, "raw_tracepoint", raising(privileges.explain()))
    assert only_problem(execwatch.check()).kind == "privilege"
    assert main(["doctor"]) == 4


def test_an_old_kernel(healthy: Healthy) -> None:
    healthy.setattr(probes, "ring_buffer", raising(NotSupportedError("BPF ring buffer", "5.8")))
    found = execwatch.check()
    assert only_problem(found).cause == "this kernel has no BPF ring buffer (Linux 5.8 or later has)"
    assert available(found, "ring_buffer") is False
    assert main(["doctor"]) == 1


def test_a_kernel_without_what_it_could_have(healthy: Healthy) -> None:
    healthy.setattr(probes, "raw_tracepoint", raising(NotSupportedError("tracepoint", "5.2", "build it so")))
    healthy.setattr(kprobe, "check", raising(NotSupportedError("kprobes")))
    assert only_problem(execwatch.check()).remedy == "build it so"
    assert not execwatch.check().ok


def test_kprobes_stand_in_for_a_tracepoint(healthy: Healthy) -> None:
    healthy.setattr(probes, "raw_tracepoint", raising(NotSupportedError("tracepoint sched_process_exec")))
    found = execwatch.check()
    assert found.ok
    assert "kprobes" in only_problem(found).remedy
    assert not only_problem(found).fatal


def test_the_verifier_refuses(healthy: Healthy) -> None:
    error = LoadError(22, "program 'x'", "0: R1 is odd\nprocessed 1 insns")
    healthy.setattr(module, "_load_and_attach", raising(error))
    assert only_problem(execwatch.check()).evidence == "0: R1 is odd\nprocessed 1 insns"


def test_without_bcc_all_is_well_where_a_shipped_image_fits(healthy: Healthy) -> None:
    healthy.setattr(bcc, "locate", lambda: None)
    healthy.setattr(bcc, "install_command", lambda: "apt-get install -y python3-bpfcc")
    found = execwatch.check()
    assert found.ok
    assert available(found, "bcc") is False
    assert "only needed where no shipped image fits" in str(found)
    assert "apt-get install -y python3-bpfcc" in str(found)


@pytest.mark.parametrize("missing", [(), ("CAP_BPF",)])
def test_without_bcc_where_it_is_needed(healthy: Healthy, missing: tuple[str, ...]) -> None:
    healthy.setattr(privileges, "missing_capabilities", lambda: missing)
    healthy.setattr(bcc, "locate", lambda: None)
    healthy.setattr(bcc, "install_command", lambda: "dnf install -y python3-bcc")
    healthy.setattr(module, "_shipped_image_fits", lambda: False)
    healthy.setattr(module, "_load_and_attach", raising(BccNotFoundError("none")))
    found = execwatch.check()
    (problem,) = (problem for problem in found.problems if problem.kind == "bcc")
    assert problem.fatal
    assert problem.remedy == "dnf install -y python3-bcc"
    assert main(["doctor"]) == (4 if missing else 3)


def test_a_folder_for_bcc_that_is_refused(healthy: Healthy) -> None:
    healthy.setattr(bcc, "locate", raising(BccNotFoundError("EXECWATCH_BCC_PATH=/tmp is refused")))
    found = execwatch.check()
    assert found.ok
    assert only_problem(found).remedy == "unset EXECWATCH_BCC_PATH"


def test_a_cache_that_can_not_be_written(healthy: Healthy, tmp_path: object) -> None:
    healthy.undo()
    healthy.setattr(cache, "write", lambda name, data: False)
    healthy.setattr(cache, "default_directory", lambda: f"{tmp_path}/none/execwatch")
    found = execwatch.check()
    (problem,) = (problem for problem in found.problems if problem.kind == "cache")
    assert not problem.fatal
    assert problem.remedy.endswith(f"{tmp_path}/none/execwatch")


def test_a_pid_namespace_is_told(healthy: Healthy) -> None:
    healthy.setattr(probes, "pid_namespace", lambda: 4026532177)
    found = execwatch.check()
    assert found.ok
    assert "only the programs in it are seen" in only_problem(found).cause


def test_a_kernel_that_does_not_count_what_it_skips(healthy: Healthy) -> None:
    healthy.setattr(probes, "raw_tracepoint", lambda name: False)
    found = execwatch.check()
    assert found.ok
    assert available(found, "skipped_runs") is False


def test_what_can_not_be_told_is_said_to_be_so(healthy: Healthy) -> None:
    healthy.setattr(probes, "pid_namespace", raising(FileNotFoundError("/proc/self/ns/pid")))
    found = execwatch.check()
    assert found.ok
    assert available(found, "pid_namespace") is None
    assert "could not be told: FileNotFoundError('/proc/self/ns/pid')" in str(found)
