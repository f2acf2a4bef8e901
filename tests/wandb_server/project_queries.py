"""Fields of the schema about users, entities and projects."""

from __future__ import annotations

import base64
import json
from typing import Any

from wandb_server.filters import matches, ordered
from wandb_server.queries import Context, connection, resolver
from wandb_server.runs import Project, Run, timestamp

Arguments = dict[str, Any]


# Users and entities


@resolver("Query", "viewer")
def viewer(_: Any, context: Context, __: Arguments) -> dict[str, Any]:
    store = context.store
    return {
        "id": "user-1",
        "name": "Loopback User",
        "username": "loopback",
        "email": "loopback@example.org",
        "admin": False,
        "flags": "{}",
        "entity": store.entity,
        "apiKeys": {"edges": []},
        "teams": {"edges": [{"node": _entity(context, store.entity)}]},
    }


@resolver("Query", "serverInfo")
def server_info(_: Any, context: Context, __: Arguments) -> dict[str, Any]:
    features = [{"name": name, "isEnabled": True} for name in context.features]
    versions = {"max_cli_version": "99.0.0"}
    local = {"outOfDate": False, "latestVersionString": "0.0.0", "versionOnThisInstanceString": "0.0.0"}
    return {"cliVersionInfo": versions, "latestLocalVersionInfo": local, "features": features}


@resolver("Query", "entity")
def entity(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    return _entity(context, arguments.get("name") or context.store.entity)


@resolver("Query", "organization")
def organization(_: Any, context: Context, __: Arguments) -> dict[str, Any]:
    return _organization(context)


@resolver("Entity", "project")
def project_of_entity(source: dict[str, Any], context: Context, arguments: Arguments) -> Project | None:
    return context.store.project(source["name"], arguments.get("name"))


def _organization(context: Context) -> dict[str, Any]:
    name = context.store.organization
    return {"name": name, "orgEntity": {"id": f"entity-{name}", "name": name, "isTeam": True}}


def _entity(context: Context, name: str) -> dict[str, Any]:
    return {"id": f"entity-{name}", "name": name, "isTeam": True, "organization": _organization(context)}


# Projects


@resolver("Query", "project", "model")
def project(_: Any, context: Context, arguments: Arguments) -> Project | None:
    return context.store.project(arguments.get("entityName"), arguments.get("name"))


@resolver("Query", "models")
def models(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    wanted = arguments.get("entityName") or context.store.entity
    return connection([one for one in context.store.projects.values() if one.entity_name == wanted], arguments)


@resolver("Mutation", "upsertModel")
def upsert_model(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    given = arguments["input"]
    made, inserted = context.store.make_project(given.get("entityName"), given.get("name"))
    made.description = given.get("description") or made.description
    return {"project": made, "model": made, "inserted": inserted}


@resolver("Project", "id", "internalId")
def project_id(source: Project, _: Context, __: Arguments) -> str:
    return base64.b64encode(f"ProjectInternalId:{source.number}".encode()).decode()


@resolver("Project", "entity")
def entity_of_project(source: Project, context: Context, _: Arguments) -> dict[str, Any]:
    return _entity(context, source.entity_name)


@resolver("Project", "createdAt", "updatedAt")
def project_created(source: Project, _: Context, __: Arguments) -> str:
    return timestamp(source.created)


@resolver("Project", "access")
def project_access(*_: Any) -> str:
    return "PRIVATE"


@resolver("Project", "views")
def project_views(*_: Any) -> dict[str, Any]:
    return {}


@resolver("Project", "isBenchmark", "readOnly")
def project_flags(*_: Any) -> bool:
    return False


@resolver("Project", "allowAllArtifactTypesInRegistry")
def project_allows_types(*_: Any) -> bool:
    return True


def _selected(source: Project, arguments: Arguments) -> list[Run]:
    filters = json.loads(arguments.get("filters") or "{}")
    return ordered([run for run in source.runs.values() if matches(run, filters)], arguments.get("order"))


@resolver("Project", "runCount")
def run_count(source: Project, _: Context, arguments: Arguments) -> int:
    return len(_selected(source, arguments))


@resolver("Project", "runs")
def runs(source: Project, _: Context, arguments: Arguments) -> dict[str, Any]:
    return connection(_selected(source, arguments), arguments)


@resolver("Project", "run", "bucket")
def run_of_project(source: Project, _: Context, arguments: Arguments) -> Run | None:
    return source.runs.get(arguments.get("name") or "")
