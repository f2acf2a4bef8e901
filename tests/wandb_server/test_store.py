"""Lines, filters and the schema, without a client."""

from __future__ import annotations

import json

import pytest
import wandb.apis._generated.operations as api_operations
import wandb.sdk.artifacts._generated.operations as artifact_operations
from graphql import parse, validate

from wandb_server.artifacts import SEQUENCE, Artifact, Collection
from wandb_server.filters import matches, ordered
from wandb_server.queries import connection, operation_name, schema
from wandb_server.runs import LineFile, Project, Run
from wandb_server.store import RefusedError

# Sweeps, teams, members and the editing of registries and collections are out of this server's reach.
UNSUPPORTED = (
    "SWEEP",
    "TEAM",
    "MEMBERS",
    "ROLE",
    "INVITE",
    "API_KEY",
    "SERVICE_ACCOUNT",
    "USER",
    "REGISTRIES",
    "REGISTRY_",
    "_REGISTRY",
    "COLLECTION_TAGS",
    "UPDATE_ARTIFACT_SEQUENCE",
    "UPDATE_ARTIFACT_PORTFOLIO",
)


def line(**values: object) -> str:
    return json.dumps(values)


def test_lines_sent_twice_stand_once_and_show_as_overwritten() -> None:
    file = LineFile()
    file.write(0, [line(a=0), line(a=1)])
    file.write(0, [line(a=0), line(a=1)])
    assert file.rows() == [{"a": 0}, {"a": 1}]
    assert [(upload.offset, upload.count, upload.overwritten, upload.changed) for upload in file.uploads] == [
        (0, 2, 0, 0),
        (0, 2, 2, 0),
    ]


def test_a_second_writer_at_zero_destroys_what_stood_there() -> None:
    file = LineFile()
    file.write(0, [line(a=0), line(a=1), line(a=2)])
    assert file.rows()[0] == {"a": 0}
    file.write(0, [line(a=7), line(a=8)])
    assert file.rows() == [{"a": 7}, {"a": 8}, {"a": 2}]
    assert file.uploads[1].changed == 2


def test_a_write_past_the_end_leaves_a_gap_until_it_is_filled() -> None:
    file = LineFile()
    file.write(0, [line(a=0)])
    file.write(3, [line(a=3)])
    assert file.gaps() == [1, 2]
    assert file.rows() == [{"a": 0}, {"a": 3}]
    file.write(1, [line(a=1), line(a=2)])
    assert file.gaps() == []
    assert [row["a"] for row in file.rows()] == [0, 1, 2, 3]


def test_tail_is_a_list_of_json_strings() -> None:
    file = LineFile()
    assert json.loads(file.tail()) == []
    file.write(0, [line(_step=0), line(_step=1)])
    assert json.loads(json.loads(file.tail())[0]) == {"_step": 1}


def test_a_page_follows_the_cursor_of_the_one_before() -> None:
    first = connection(list("abc"), {"first": 2})
    assert [edge["node"] for edge in first["edges"]] == ["a", "b"]
    assert first["pageInfo"]["hasNextPage"]
    second = connection(list("abc"), {"first": 2, "after": first["pageInfo"]["endCursor"]})
    assert [edge["node"] for edge in second["edges"]] == ["c"]
    assert not second["pageInfo"]["hasNextPage"]


def make_run(name: str, created: float, lr: float, tags: list[str]) -> Run:
    run = Run(f"run-{name}", name, Project(1, "lab", "p", 0.0), created, crash_after=300.0)
    run.raw_config = {"lr": {"value": lr}, "_wandb": {"value": {}}}
    run.tags, run.declared_state = tags, "finished"
    return run


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, ["a", "b"]),
        ({"config.lr": 0.1}, ["a"]),
        ({"config.lr.value": {"$gt": 0.1}}, ["b"]),
        ({"tags": "x"}, ["a", "b"]),
        ({"tags": {"$in": ["y"]}}, ["b"]),
        ({"$or": [{"name": "a"}, {"name": "b"}]}, ["a", "b"]),
        ({"$and": [{"name": "a"}, {"state": "running"}]}, []),
        ({"name": {"$regex": "^b"}}, ["b"]),
        ({"summary_metrics.loss": {"$exists": True}}, []),
    ],
)
def test_filters(filters: dict[str, object], expected: list[str]) -> None:
    runs = [make_run("a", 1.0, 0.1, ["x"]), make_run("b", 2.0, 0.2, ["x", "y"])]
    assert [run.name for run in runs if matches(run, filters)] == expected


def test_an_unknown_filter_is_refused() -> None:
    with pytest.raises(RefusedError, match=r"\$near"):
        matches(make_run("a", 1.0, 0.1, []), {"config.lr": {"$near": 1}})


def test_order() -> None:
    runs = [make_run("a", 1.0, 0.2, []), make_run("b", 2.0, 0.1, [])]
    assert [run.name for run in ordered(runs, "-created_at")] == ["b", "a"]
    assert [run.name for run in ordered(runs, "config.lr.value")] == ["b", "a"]


def test_an_alias_belongs_to_one_version_and_numbers_are_not_used_again() -> None:
    collection = Collection("c", SEQUENCE, "act", Project(1, "lab", "p", 0.0), "model", 0.0)
    first, second, third = (Artifact(str(n), collection, "model", str(n), 0.0, 0.0) for n in range(3))
    collection.give_alias(collection.add("m0", first), "best")
    collection.give_alias(collection.add("m1", second), "best")
    assert (first.aliases, second.aliases) == ([], ["latest", "best"])
    collection.remove(second)
    assert collection.add("m2", third).version == "v2"


def test_operation_names_are_read_from_the_text() -> None:
    assert operation_name("query Viewer { viewer { id } }") == "Viewer"
    assert operation_name("mutation UpsertBucket($id: String) { x }") == "UpsertBucket"
    assert operation_name("{ viewer { id } }") == "anonymous"


def test_the_schema_answers_what_the_installed_client_asks() -> None:
    """Every generated document of the client that is not about teams, sweeps or the editing of registries."""
    checked = []
    for module in (artifact_operations, api_operations):
        for name in module.__all__:
            if not any(word in name for word in UNSUPPORTED):
                assert not validate(schema(), parse(getattr(module, name))), name
                checked.append(name)
    assert {"LINK_ARTIFACT_GQL", "ADD_ALIASES_GQL", "PROJECT_ARTIFACTS_GQL", "GET_PROJECTS_GQL"} <= set(checked)
