"""Fields of the schema about artifacts: upload, commit, aliases, links, files and lineage."""

from __future__ import annotations

import base64
import binascii
import time
from typing import Any

from wandb_server.artifacts import LATEST, SEQUENCE, Artifact, Collection, Membership
from wandb_server.queries import Context, connection, resolver
from wandb_server.run_queries import existing_run, file_node, storage_url
from wandb_server.runs import Project, timestamp
from wandb_server.store import RefusedError

Arguments = dict[str, Any]


# Upload and commit


@resolver("Mutation", "createArtifactType")
def create_artifact_type(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    given = arguments["input"]
    project, _new = context.store.make_project(given["entityName"], given["projectName"])
    project.artifact_types.setdefault(given["name"], time.time())
    return {"artifactType": artifact_type(project, given["name"])}


@resolver("Mutation", "createArtifact")
def create_artifact(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    return {"artifact": context.store.create_artifact(arguments["input"])}


@resolver("Mutation", "createArtifactManifest")
def create_artifact_manifest(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    given = arguments["input"]
    artifact = context.store.artifact(given["artifactID"])
    artifact.manifest_key = f"manifest/{artifact.id}/{given['name']}"
    return {"artifactManifest": manifest_node(context, artifact.manifest_key)}


@resolver("Mutation", "updateArtifactManifest")
def update_artifact_manifest(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    return {"artifactManifest": manifest_node(context, arguments["input"]["artifactManifestID"])}


def manifest_node(context: Context, key: str) -> dict[str, Any]:
    """An ArtifactManifest of the schema."""
    file = file_node(context, key, key.rpartition("/")[2], context.store.blobs.get(key))
    return {"id": key, "file": file | {"uploadUrl": storage_url(context, key), "uploadHeaders": []}}


@resolver("Mutation", "createArtifactFiles")
def create_artifact_files(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    nodes = []
    for spec in arguments["input"]["artifactFiles"]:
        artifact = context.store.artifact(spec["artifactID"])
        key = content_key(artifact, spec["md5"])
        blob = context.store.blobs.get(key)
        # No upload URL tells the client that the server has this content already.
        upload = None if blob else storage_url(context, key)
        node = file_node(context, key, spec["name"], blob)
        nodes.append(node | {"uploadUrl": upload, "uploadHeaders": [], "artifact": artifact})
    return {"files": connection(nodes, {})}


def content_key(artifact: Artifact, md5: str) -> str:
    """Contents are shared among the versions of a sequence, by digest."""
    return f"content/{artifact.sequence.id}/{binascii.hexlify(base64.b64decode(md5)).decode()}"


@resolver("Mutation", "commitArtifact")
def commit_artifact(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    artifact = context.store.artifact(arguments["input"]["artifactID"])
    context.store.commit_artifact(artifact)
    return {"artifact": artifact}


# Use and change


@resolver("Mutation", "useArtifact")
def use_artifact(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    given = arguments["input"]
    run, artifact = existing_run(context, given), context.store.artifact(given["artifactID"])
    if artifact not in run.used:
        run.used.append(artifact)
        artifact.used_by.append(run)
    return {"artifact": artifact}


@resolver("Mutation", "updateArtifact")
def update_artifact(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    given = arguments["input"]
    artifact = context.store.artifact(given["artifactID"])
    if given.get("description") is not None:
        artifact.description = given["description"]
    if given.get("metadata") is not None:
        artifact.metadata = given["metadata"]
    if given.get("ttlDurationSeconds") is not None:
        artifact.ttl_duration_seconds = given["ttlDurationSeconds"]
    removed = {tag["tagName"] for tag in given.get("tagsToDelete") or []}
    added = [tag["tagName"] for tag in given.get("tagsToAdd") or []]
    artifact.tags = [tag for tag in artifact.tags if tag not in removed]
    artifact.tags += [tag for tag in added if tag not in artifact.tags]
    return {"artifact": artifact}


@resolver("Mutation", "deleteArtifact")
def delete_artifact(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    given = arguments["input"]
    artifact = context.store.artifact(given["artifactID"])
    context.store.delete_artifact(artifact, bool(given.get("deleteAliases")))
    return {"artifact": artifact}


def _member(context: Context, artifact: Artifact, given: Arguments) -> tuple[Collection, Membership]:
    project = context.store.project(given["entityName"], given["projectName"])
    collection = project.collections.get(given["artifactCollectionName"]) if project else None
    member = collection.holding(artifact) if collection else None
    if not (collection and member):
        raise RefusedError(f"artifact {artifact.name} is not in collection {given['artifactCollectionName']}")
    return collection, member


@resolver("Mutation", "addAliases")
def add_aliases(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    given = arguments["input"]
    for alias in given["aliases"]:
        collection, member = _member(context, context.store.artifact(given["artifactID"]), alias)
        collection.give_alias(member, alias["alias"])
    return {"success": True}


@resolver("Mutation", "deleteAliases")
def delete_aliases(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    given = arguments["input"]
    for alias in given["aliases"]:
        _, member = _member(context, context.store.artifact(given["artifactID"]), alias)
        if alias["alias"] in member.aliases:
            member.aliases.remove(alias["alias"])
    return {"success": True}


@resolver("Mutation", "linkArtifact")
def link_artifact(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    given, store = arguments["input"], context.store
    if given.get("artifactID"):
        artifact = store.artifact(given["artifactID"])
    else:
        found = store.by_client_id(given.get("clientID") or "")
        if not found:
            raise RefusedError(f"artifact of client id {given.get('clientID')} not found")
        artifact = found
    project, _new = store.make_project(given.get("entityName"), given.get("projectName"))
    aliases = [alias["alias"] for alias in given.get("aliases") or []]
    member = store.link_artifact(artifact, project, given["artifactPortfolioName"], aliases)
    return {"versionIndex": member.version_index, "artifactMembership": member}


@resolver("Mutation", "unlinkArtifact")
def unlink_artifact(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    given = arguments["input"]
    portfolio = context.store.collection(given["artifactPortfolioID"])
    portfolio.remove(context.store.artifact(given["artifactID"]))
    return {"success": True}


@resolver("Mutation", "deleteArtifactSequence", "deleteArtifactPortfolio")
def delete_collection(_: Any, context: Context, arguments: Arguments) -> dict[str, Any]:
    given = arguments["input"]
    collection = context.store.collection(given.get("artifactSequenceID") or given["artifactPortfolioID"])
    if collection.kind == SEQUENCE:
        for member in list(collection.memberships):
            context.store.delete_artifact(member.artifact, with_aliases=True)
    del collection.project.collections[collection.name]
    collection.state = "DELETED"
    return {"artifactCollection": collection}


# Look-ups


@resolver("Query", "artifact")
def artifact_by_id(_: Any, context: Context, arguments: Arguments) -> Artifact | None:
    return context.store.artifacts.get(arguments["id"])


@resolver("Query", "artifactCollection")
def collection_by_id(_: Any, context: Context, arguments: Arguments) -> Collection:
    return context.store.collection(arguments["id"])


@resolver("Query", "clientIDMapping")
def client_id_mapping(_: Any, context: Context, arguments: Arguments) -> dict[str, Any] | None:
    artifact = context.store.by_client_id(arguments["clientID"])
    return {"serverID": artifact.id} if artifact else None


def _named(project: Project, name: str) -> Membership | None:
    collection, _, version = name.partition(":")
    found = project.collections.get(collection)
    return found.find(version or LATEST) if found else None


@resolver("Project", "artifact")
def artifact_of_project(project: Project, _: Context, arguments: Arguments) -> Artifact | None:
    member = _named(project, arguments["name"])
    return member.artifact if member else None


@resolver("Project", "artifactCollectionMembership")
def membership_of_project(project: Project, _: Context, arguments: Arguments) -> Membership | None:
    return _named(project, arguments["name"])


@resolver("Project", "artifactCollection")
def collection_of_project(project: Project, _: Context, arguments: Arguments) -> Collection | None:
    return project.collections.get(arguments["name"])


def artifact_type(project: Project, name: str) -> dict[str, Any]:
    """An ArtifactType of the schema."""
    created = timestamp(project.artifact_types[name])
    return {"id": f"type-{project.number}-{name}", "name": name, "createdAt": created, "project": project}


@resolver("Project", "artifactType")
def type_of_project(project: Project, _: Context, arguments: Arguments) -> dict[str, Any] | None:
    return artifact_type(project, arguments["name"]) if arguments["name"] in project.artifact_types else None


@resolver("Project", "artifactTypes")
def types_of_project(project: Project, _: Context, arguments: Arguments) -> dict[str, Any]:
    return connection([artifact_type(project, name) for name in project.artifact_types], arguments)


def _collections(source: dict[str, Any]) -> list[Collection]:
    collections: dict[str, Collection] = source["project"].collections
    return [collection for collection in collections.values() if collection.type_name == source["name"]]


@resolver("ArtifactType", "artifact")
def artifact_of_type(source: dict[str, Any], _: Context, arguments: Arguments) -> Artifact | None:
    member = _named(source["project"], arguments["name"])
    return member.artifact if member and member.collection in _collections(source) else None


@resolver("ArtifactType", "artifactCollection")
def collection_of_type(source: dict[str, Any], _: Context, arguments: Arguments) -> Collection | None:
    return next((one for one in _collections(source) if one.name == arguments["name"]), None)


@resolver("ArtifactType", "artifactCollections")
def collections_of_type(source: dict[str, Any], _: Context, arguments: Arguments) -> dict[str, Any]:
    return connection(_collections(source), arguments)
