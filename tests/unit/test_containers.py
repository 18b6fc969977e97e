from __future__ import annotations

import json
import pathlib
from typing import Any, Dict, List

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from execwatch import containers
from execwatch.events import Container

#: Real paths, each with where it was found; "form" is an id put into what a project's source writes.
ROWS: List[Dict[str, Any]] = json.loads(
    pathlib.Path(__file__).with_name("cgroup_paths.json").read_text(encoding="utf-8")
)
INSIDE = [row for row in ROWS if row["id"]]
OUTSIDE = [row for row in ROWS if not row["id"]]

ID = "605439acbd4fb18c145069289094b17f17e0cfa938f78012d4960bc797305f22"
OTHER = "c40dff48f1d53c3f07a50aa12bb9ae0e58c0927dc6b1d77e3f166784722642ad"

anything = st.text(st.characters(exclude_categories=()))
levels = st.text(st.characters(exclude_categories=(), exclude_characters="/"), min_size=1)
parts = st.sampled_from(sorted({part for row in ROWS for part in row["path"].split("/") if part}))
paths = st.lists(st.one_of(parts, levels)).map(lambda names: "/" + "/".join(names))


def expected(row: Dict[str, Any]) -> Container:
    return Container(id=row["id"], runtime=row["runtime"], pod_uid=row["pod_uid"])


def is_of_root_only(row: Dict[str, Any]) -> bool:
    """What LXC before 3.1 writes is known only where it begins at the root."""
    return bool(row["path"].startswith("/lxc/"))


@pytest.mark.parametrize("row", INSIDE, ids=lambda row: row["path"][-80:])
def test_the_container_of_a_real_path(row: Dict[str, Any]) -> None:
    assert containers.parse(row["path"]) == expected(row), row["source"]


@pytest.mark.parametrize("row", OUTSIDE, ids=lambda row: row["path"][-80:] or "empty")
def test_a_real_path_without_a_container(row: Dict[str, Any]) -> None:
    assert containers.parse(row["path"]) is None, row["source"]


def test_the_table_tells_where_each_path_is_from() -> None:
    assert all(row["source"] for row in ROWS)
    assert len({row["path"] for row in ROWS}) == len(ROWS)


def test_the_table_has_every_runtime_that_is_documented() -> None:
    runtimes = {row["runtime"] for row in INSIDE} - {None}
    assert runtimes == {
        *("docker", "containerd", "cri-o", "podman", "buildkit", "ecs", "garden"),
        *("runc", "crun", "runsc", "lxc", "libvirt-lxc", "systemd-nspawn"),
    }
    assert all(f'"{runtime}"' in (containers.parse.__doc__ or "") for runtime in runtimes)


@pytest.mark.parametrize("outer", INSIDE, ids=lambda row: row["path"][-80:])
def test_the_innermost_container_counts(outer: Dict[str, Any]) -> None:
    for inner in INSIDE:
        if not is_of_root_only(inner):
            container = containers.parse(outer["path"] + inner["path"])
            assert container is not None
            assert container.id == inner["id"]
            assert container.pod_uid == (inner["pod_uid"] or outer["pod_uid"])


@pytest.mark.parametrize("outer", INSIDE, ids=lambda row: row["path"][-80:])
def test_what_is_no_container_does_not_hide_the_one_around_it(outer: Dict[str, Any]) -> None:
    # Services of a systemd inside, pods without a container, and also monitors: those of an inner container
    # are processes of the outer one.
    for inner in OUTSIDE:
        assert containers.parse(outer["path"] + inner["path"]) == expected(outer), inner["path"]


@given(st.sampled_from(INSIDE), st.lists(levels, min_size=1, max_size=4))
def test_no_name_that_is_no_id_leads_out(row: Dict[str, Any], names: List[str]) -> None:
    below = "/" + "/".join(names)
    assume(containers.parse(below) is None)
    assert containers.parse(row["path"] + below) == expected(row)


@given(anything)
def test_no_text_is_refused(text: str) -> None:
    containers.parse(text)
    containers.parse("/" + text)
    containers.is_id(text)


@given(paths)
def test_an_id_is_part_of_a_level_and_can_be_asked_for(path: str) -> None:
    container = containers.parse(path)
    if container is not None:
        assert any(container.id in level for level in path.replace("\\x2d", "-").split("/"))
        assert containers.is_id(container.id)
        assert containers.matcher({container.id})(container)
        assert container.injected is None


@given(st.sampled_from(INSIDE), st.characters(exclude_categories=(), exclude_characters="/"))
def test_an_id_is_a_whole_word_of_its_level(row: Dict[str, Any], character: str) -> None:
    assume(len(row["id"]) == 64)
    for path in (
        row["path"].replace(row["id"], row["id"] + character),
        row["path"].replace(row["id"], row["id"][:-1] + "g"),
        row["path"].replace(row["id"], row["id"][:-1]),
    ):
        container = containers.parse(path)
        assert container is None or container.id != row["id"]


def test_a_container_without_a_pod_in_a_container_of_one() -> None:
    pod = "/kubepods/podac04f3f2-1f2c-11e9-b015-1ebee232acfa"
    assert containers.parse(f"{pod}/{ID}/docker/{OTHER}") == Container(
        id=OTHER, runtime="docker", pod_uid="ac04f3f2-1f2c-11e9-b015-1ebee232acfa"
    )


def test_a_pod_below_a_container_is_not_its_pod() -> None:
    pod = "/kubepods/podac04f3f2-1f2c-11e9-b015-1ebee232acfa"
    assert containers.parse(f"/docker/{ID}{pod}") == Container(id=ID, runtime="docker")


def test_a_process_that_makes_cgroups_can_claim_another_container() -> None:
    # The limit that the module tells of: this is docker in docker, or a lie.
    claimed = containers.parse(f"/docker/{ID}/docker/{OTHER}")
    assert claimed is not None
    assert claimed.id == OTHER


@pytest.mark.parametrize(
    "text",
    [
        ID,
        ID[:12],
        ID[:63],
        "34dc0b5e626f2c5c4c5170e34b10e765-1234567890",
        "6f265890-5165-7fab-6b52-18d1",
        "jvifp9a6b1lxa1kuw8bwfcovf",
        "project_web-1.example",
        "100",
        "db",
    ],
)
def test_what_containers_can_be_asked_for(text: str) -> None:
    assert containers.is_id(text)


@pytest.mark.parametrize(
    "text",
    ["", "/", f"/docker/{ID}", "docker/x", "a b", "web\n", "-x", ".", "..", "*", "wéb", "\udcff", "a" * 256],
)
def test_what_containers_can_not_be_asked_for(text: str) -> None:
    assert not containers.is_id(text)


def test_matching_by_the_whole_id_or_what_docker_ps_shows() -> None:
    container = Container(id=ID, runtime="docker")
    assert containers.matcher(frozenset({OTHER, ID}))(container)
    assert containers.matcher({ID[:12]})(container)
    assert containers.matcher({OTHER, ID[:40]})(container)
    assert not containers.matcher({ID[:11]})(container)
    assert not containers.matcher({ID[1:13]})(container)
    assert not containers.matcher({OTHER, OTHER[:12]})(container)
    assert not containers.matcher({ID + "0"})(container)
    assert not containers.matcher(set())(container)
    assert not containers.matcher({ID})(None)


def test_names_match_as_a_whole() -> None:
    container = Container(id="production-database-2", runtime="lxc")
    assert containers.matcher({"production-database-2"})(container)
    assert not containers.matcher({"production-database"})(container)
