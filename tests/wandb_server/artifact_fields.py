"""Fields of the schema on artifacts, collections and memberships."""

from __future__ import annotations

import json
from typing import Any

from wandb_server.artifact_queries import artifact_type, content_key, manifest_node
from wandb_server.artifacts import Artifact, Collection, Membership
from wandb_server.queries import Context, connection, resolver
from wandb_server.run_queries import file_node
from wandb_server.runs import Project, Run, timestamp

Arguments = dict[str, Any]


def _alias(member: Membership, alias: str) -> dict[str, Any]:
    return {"id": f"{member.id}-{alias}", "alias": alias, "artifactCollection": member.collection}


def _tag(name: str) -> dict[str, Any]:
    return {"id": f"tag-{name}", "name": name}


# Artifacts


@resolver("Artifact", "artifactSequence")
def sequence(artifact: Artifact, _: Context, __: Arguments) -> Collection:
    return artifact.sequence


@resolver("Artifact", "artifactType")
def type_of_artifact(artifact: Artifact, _: Context, __: Arguments) -> dict[str, Any]:
    return artifact_type(artifact.sequence.project, artifact.type_name)


@resolver("Artifact", "ttlIsInherited")
def ttl_is_inherited(artifact: Artifact, _: Context, __: Arguments) -> bool:
    return artifact.ttl_duration_seconds == -1


@resolver("Artifact", "tags")
def tags(artifact: Artifact, _: Context, __: Arguments) -> list[dict[str, Any]]:
    return [_tag(name) for name in artifact.tags]


@resolver("Artifact", "commitHash")
def commit_hash(artifact: Artifact, _: Context, __: Arguments) -> str:
    return artifact.id


@resolver("Artifact", "fileCount")
def file_count(artifact: Artifact, _: Context, __: Arguments) -> int:
    return len(artifact.entries)


@resolver("Artifact", "createdAt")
def created_at(artifact: Artifact, _: Context, __: Arguments) -> str:
    return timestamp(artifact.created)


@resolver("Artifact", "updatedAt")
def updated_at(artifact: Artifact, _: Context, __: Arguments) -> str:
    return timestamp(artifact.updated)


@resolver("Artifact", "aliases")
def aliases(artifact: Artifact, context: Context, __: Arguments) -> list[dict[str, Any]]:
    members = context.store.memberships(artifact)
    return [_alias(member, alias) for member in members for alias in member.aliases]


@resolver("Artifact", "currentManifest")
def current_manifest(artifact: Artifact, context: Context, _: Arguments) -> dict[str, Any] | None:
    return manifest_node(context, artifact.manifest_key) if artifact.manifest_key else None


@resolver("Artifact", "artifactMemberships")
def memberships(artifact: Artifact, context: Context, arguments: Arguments) -> dict[str, Any]:
    return connection(context.store.memberships(artifact), arguments)


@resolver("Artifact", "createdBy")
def created_by(artifact: Artifact, _: Context, __: Arguments) -> Run | None:
    return artifact.created_by


@resolver("Artifact", "usedBy")
def used_by(artifact: Artifact, _: Context, arguments: Arguments) -> dict[str, Any]:
    return connection(artifact.used_by, arguments)


@resolver("Artifact", "files")
def files(artifact: Artifact, context: Context, arguments: Arguments) -> dict[str, Any]:
    return _files(artifact, context, arguments)


def _files(artifact: Artifact, context: Context, arguments: Arguments) -> dict[str, Any]:
    wanted = arguments.get("names")
    names = [name for name in artifact.entries if not wanted or name in wanted]
    return connection([_file(artifact, context, name) for name in names], arguments)


@resolver("Artifact", "filesByManifestEntries")
def files_by_entries(artifact: Artifact, context: Context, arguments: Arguments) -> dict[str, Any]:
    names = [entry["name"] for entry in arguments.get("entries") or []]
    return connection([_file(artifact, context, name) for name in names], {})


def _file(artifact: Artifact, context: Context, name: str) -> dict[str, Any]:
    entry = artifact.entries[name]
    if "ref" in entry:
        node = file_node(context, entry["ref"], name, None)
        return node | {"directUrl": entry["ref"], "url": entry["ref"], "artifact": artifact}
    key = content_key(artifact, entry["digest"])
    return file_node(context, key, name, context.store.blobs.get(key)) | {"artifact": artifact}


# Collections


@resolver("ArtifactSequence", "project")
@resolver("ArtifactPortfolio", "project")
def project(collection: Collection, _: Context, __: Arguments) -> Project:
    return collection.project


@resolver("ArtifactSequence", "createdAt")
@resolver("ArtifactPortfolio", "createdAt")
def collection_created(collection: Collection, _: Context, __: Arguments) -> str:
    return timestamp(collection.created)


@resolver("ArtifactSequence", "defaultArtifactType")
@resolver("ArtifactPortfolio", "defaultArtifactType")
def default_type(collection: Collection, _: Context, __: Arguments) -> dict[str, Any]:
    return artifact_type(collection.project, collection.type_name)


@resolver("ArtifactSequence", "tags")
@resolver("ArtifactPortfolio", "tags")
def collection_tags(*_: Any) -> dict[str, Any]:
    return {"edges": []}


@resolver("ArtifactSequence", "aliases")
@resolver("ArtifactPortfolio", "aliases")
def collection_aliases(collection: Collection, _: Context, arguments: Arguments) -> dict[str, Any]:
    found = [_alias(member, alias) for member in collection.memberships for alias in member.aliases]
    return connection(found, arguments)


@resolver("ArtifactSequence", "artifacts")
@resolver("ArtifactPortfolio", "artifacts")
def artifacts(collection: Collection, _: Context, arguments: Arguments) -> dict[str, Any]:
    """Newest first, as W&B lists them."""
    state = json.loads(arguments.get("filters") or "{}").get("state", "COMMITTED")
    members = [member for member in reversed(collection.memberships) if member.artifact.state == state]
    versions = {member.artifact.id: member.version for member in members}
    nodes = [member.artifact for member in members]
    return connection(nodes, arguments, edge=lambda artifact: {"version": versions[artifact.id]})


@resolver("ArtifactSequence", "artifactMembership")
@resolver("ArtifactPortfolio", "artifactMembership")
def membership(collection: Collection, _: Context, arguments: Arguments) -> Membership | None:
    return collection.find(arguments["aliasName"])


@resolver("ArtifactSequence", "latestArtifact")
def latest_artifact(collection: Collection, _: Context, __: Arguments) -> Artifact | None:
    return collection.memberships[-1].artifact if collection.memberships else None


# Memberships


@resolver("ArtifactCollectionMembership", "aliases")
def membership_aliases(member: Membership, _: Context, __: Arguments) -> list[dict[str, Any]]:
    return [_alias(member, alias) for alias in member.aliases]


@resolver("ArtifactCollectionMembership", "artifactCollection")
def membership_collection(member: Membership, _: Context, __: Arguments) -> Collection:
    return member.collection


@resolver("ArtifactCollectionMembership", "files")
def membership_files(member: Membership, context: Context, arguments: Arguments) -> dict[str, Any]:
    return _files(member.artifact, context, arguments)
