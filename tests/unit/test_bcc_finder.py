from __future__ import annotations

import os
import sys
import sysconfig
import warnings
from pathlib import Path
from types import ModuleType
from typing import Iterator

import pytest

from execwatch.build import bcc
from execwatch.errors import BccNotFoundError


def make_bcc(folder: Path, code: str = "class BPF: pass") -> str:
    """Lay out what a distribution installs, as far as the finder looks."""
    package = folder / "bcc"
    package.mkdir(parents=True)
    package.joinpath("__init__.py").write_text(f"from .libbcc import lib\n{code}\n")
    package.joinpath("libbcc.py").write_text("lib = object()\n")
    package.joinpath("version.py").write_text("__version__ = '0.99.1'\n")
    return str(folder)


def make_crystals(folder: Path) -> str:
    """PyPI's package of the same name."""
    package = folder / "bcc"
    package.mkdir(parents=True)
    package.joinpath("__init__.py").write_text("raise SystemExit('imported the wrong package')\n")
    return str(folder)


@pytest.fixture(autouse=True)
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An interpreter's own folder, and two of the system's, in place of the real ones."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path / "own"))
    monkeypatch.setattr(bcc, "_SYSTEM_FOLDERS", (f"{tmp_path}/system*",))
    monkeypatch.delenv(bcc.PATH_VARIABLE, raising=False)
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "bcc"}
    for name in before:
        del sys.modules[name]
    for name in ("own", "system1", "system2"):
        tmp_path.joinpath(name).mkdir()
    yield tmp_path
    for name in [name for name in sys.modules if name.split(".")[0] == "bcc"]:
        del sys.modules[name]
    sys.modules.update(before)


def test_looks_in_its_own_folder_first(site: Path) -> None:
    assert bcc.locate() is None
    system = make_bcc(site / "system1")
    assert bcc.locate() == system
    own = make_bcc(site / "own")
    assert bcc.locate() == own


def test_passes_over_the_other_package_of_that_name(site: Path) -> None:
    make_crystals(site / "own")
    make_crystals(site / "system2")
    system = make_bcc(site / "system1")
    assert bcc.locate() == system
    assert hasattr(bcc.find(), "BPF")


def test_loads_it_as_bcc_and_leaves_the_path_alone(site: Path) -> None:
    folder = make_bcc(site / "system1")
    before = list(sys.path)
    found = bcc.find()
    assert found.__name__ == "bcc"
    assert str(found.__file__).startswith(folder)
    assert sys.modules["bcc"] is found
    assert bcc.find() is found
    assert sys.path == before


def test_neither_pythonpath_nor_cwd_is_looked_at(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evil = make_bcc(site / "evil")
    monkeypatch.syspath_prepend(evil)
    monkeypatch.chdir(evil)
    assert bcc.locate() is None


def test_keeps_quiet_about_old_escapes(site: Path) -> None:
    make_bcc(site / "system1", "class BPF: pattern = '\\.'")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        bcc.find()


@pytest.mark.parametrize(
    "code", ["raise OSError('libbcc.so.0: cannot open')", "import nothing_of_that_name", "x = 1", "lib.gone"]
)
def test_one_that_does_not_work_is_an_error_and_leaves_no_trace(site: Path, code: str) -> None:
    make_bcc(site / "system1", code)
    mine = sys.modules["bcc"] = ModuleType("bcc")
    with pytest.raises(BccNotFoundError) as caught:
        bcc.find()
    assert str(site / "system1") in str(caught.value)
    assert [name for name in sys.modules if name.split(".")[0] == "bcc"] == ["bcc"]
    assert sys.modules["bcc"] is mine


def test_version_is_read_not_run(site: Path) -> None:
    assert bcc.version(make_bcc(site / "system1", "raise SystemExit")) == "0.99.1"
    assert bcc.version(str(site / "own")) is None


class TestChosenFolder:
    def test_comes_before_all_others(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_bcc(site / "own")
        chosen = make_bcc(site / "chosen")
        monkeypatch.setenv(bcc.PATH_VARIABLE, chosen)
        assert bcc.locate() == os.path.realpath(chosen)

    def test_may_be_a_link_to_a_good_one(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        chosen = make_bcc(site / "chosen")
        site.joinpath("link").symlink_to(chosen)
        monkeypatch.setenv(bcc.PATH_VARIABLE, str(site / "link"))
        assert bcc.locate() == os.path.realpath(chosen)

    @pytest.mark.parametrize("spoilt", ["", "bcc", "bcc/libbcc.py", "bcc/__pycache__/libbcc.pyc"])
    @pytest.mark.parametrize("bit", [0o020, 0o002])
    def test_is_refused_if_others_can_write(
        self, site: Path, monkeypatch: pytest.MonkeyPatch, spoilt: str, bit: int
    ) -> None:
        chosen = make_bcc(site / "chosen")
        site.joinpath("chosen/bcc/__pycache__").mkdir()
        site.joinpath("chosen/bcc/__pycache__/libbcc.pyc").touch()
        path = site / "chosen" / spoilt
        path.chmod(path.stat().st_mode | bit)
        monkeypatch.setenv(bcc.PATH_VARIABLE, chosen)
        with pytest.raises(BccNotFoundError, match="can be written by others"):
            bcc.locate()

    def test_is_refused_below_a_folder_that_others_can_write(
        self, site: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        chosen = make_bcc(site / "open" / "chosen")
        site.joinpath("open").chmod(0o777)
        monkeypatch.setenv(bcc.PATH_VARIABLE, chosen)
        with pytest.raises(BccNotFoundError, match="can be written by others"):
            bcc.find()

    def test_without_bcc_is_an_error(self, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        make_bcc(site / "own")
        monkeypatch.setenv(bcc.PATH_VARIABLE, make_crystals(site / "chosen"))
        with pytest.raises(BccNotFoundError, match="holds no BCC"):
            bcc.locate()


RELEASES = {
    "debian": ('ID=debian\nVERSION_ID="12"\n', "apt-get install -y python3-bpfcc"),
    "mint": ('ID=linuxmint\nID_LIKE="ubuntu debian"\n', "apt-get install -y python3-bpfcc"),
    "fedora": ("ID=fedora\n", "dnf install -y python3-bcc"),
    "rocky": ('ID="rocky"\nID_LIKE="rhel centos fedora"\n', "dnf install -y python3-bcc"),
    "arch": ("ID=arch\n", "pacman -S --noconfirm python-bcc"),
    "alpine": ("NAME='Alpine Linux'\nID=alpine\n", "apk add py3-bcc"),
    "tumbleweed": ('ID="opensuse-tumbleweed"\nID_LIKE="opensuse suse"\n', "zypper install -y python3-bcc"),
    "gentoo": ("# comment\n\nID=gentoo\n", "emerge dev-util/bcc"),
    "unknown": ("ID=plan9\n", None),
}


@pytest.mark.parametrize(("text", "command"), RELEASES.values(), ids=RELEASES)
def test_the_error_tells_how_to_install(
    site: Path, monkeypatch: pytest.MonkeyPatch, text: str, command: str | None
) -> None:
    release = site / "os-release"
    release.write_text(text)
    monkeypatch.setattr(bcc, "_OS_RELEASE", (str(site / "none"), str(release)))
    make_crystals(site / "system2")
    assert bcc.install_command() == command
    with pytest.raises(BccNotFoundError) as caught:
        bcc.require()
    message = str(caught.value)
    assert (command or "python3-bcc") in message
    assert str(site / "own") in message
    assert f"{site / 'system2'} (has another package" in message


def test_no_release_file_is_no_problem(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bcc, "_OS_RELEASE", (str(site / "none"),))
    assert bcc.install_command() is None
