"""Everything that the server knows, and the changes that clients can make to it."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

from wandb_server.artifacts import LATEST, PORTFOLIO, SEQUENCE, Artifact, Collection, Membership
from wandb_server.blobs import Blobs
from wandb_server.runs import Project, Run


class RefusedError(Exception):
    """A request that W&B answers with an error message."""


class Store:
    """State of the server. Callers hold `lock` while they read or change it."""

    def __init__(self, folder: Path, entity: str, organization: str, crash_after: float) -> None:
        self.lock = threading.RLock()
        self.blobs = Blobs(folder)
        self.entity = entity
        self.organization = organization
        self.projects: dict[tuple[str, str], Project] = {}
        self.artifacts: dict[str, Artifact] = {}
        self._crash_after = crash_after
        self._numbers = itertools.count(1)

    def new_id(self, kind: str) -> str:
        """An id of the server's own, never given twice."""
        return f"{kind}-{next(self._numbers)}"

    # Projects and runs

    def project(self, entity: str | None, name: str | None) -> Project | None:
        """The project, if it exists."""
        return self.projects.get((entity or self.entity, name or "uncategorized"))

    def make_project(self, entity: str | None, name: str | None) -> tuple[Project, bool]:
        """The project and whether it is new; W&B makes one at the first run."""
        key = (entity or self.entity, name or "uncategorized")
        if found := self.projects.get(key):
            return found, False
        project = Project(next(self._numbers), key[0], key[1], time.time())
        self.projects[key] = project
        return project, True

    def run(self, entity: str | None, project: str | None, name: str) -> Run | None:
        """The run by the id that the client gave it, if it exists."""
        found = self.project(entity, project)
        return found.runs.get(name) if found else None

    def run_by_id(self, run_id: str) -> Run:
        """The run by the server's own id.

        Raises:
            RefusedError: There is none.
        """
        for project in self.projects.values():
            for run in project.runs.values():
                if run.id == run_id:
                    return run
        raise RefusedError(f"run {run_id} not found")

    def upsert_run(self, given: dict[str, Any]) -> tuple[Run, bool]:
        """Makes or changes a run, and says whether it is new.

        Who gives the name that the client gave it begins it or goes on with it; who gives the server's id alone
        (`wandb.Api`) changes what it holds; who gives both resumes it.
        """
        given = dict(given)
        run_id, name = given.pop("id", None), given.pop("name", None)
        entity, project_name = given.pop("entityName", None), given.pop("modelName", None)
        if run_id:
            run, found = self.run_by_id(run_id), True
        else:
            project, _ = self.make_project(entity, project_name)
            name = name or self.new_id("unnamed")
            found = name in project.runs
            run = project.runs.setdefault(name, Run(self.new_id("run"), name, project, time.time(), self._crash_after))
        if not found:
            run.values["displayName"] = f"loopback-{len(run.project.runs)}"
        if name:
            run.begin(resumed=bool(run_id))
        run.upsert(given)
        return run, not found

    def delete_run(self, run_id: str, with_artifacts: bool) -> None:
        """Removes a run and its files; its artifacts only when asked."""
        run = self.run_by_id(run_id)
        del run.project.runs[run.name]
        for key in self.blobs.keys(f"run/{run.id}/"):
            self.blobs.remove(key)
        if with_artifacts:
            for artifact in run.logged:
                self.delete_artifact(artifact, with_aliases=True)

    # Artifacts

    def artifact(self, artifact_id: str) -> Artifact:
        """The artifact with this id.

        Raises:
            RefusedError: There is none.
        """
        if artifact_id not in self.artifacts:
            raise RefusedError(f"artifact {artifact_id} not found")
        return self.artifacts[artifact_id]

    def by_client_id(self, client_id: str) -> Artifact | None:
        """The artifact that a client created under an id of its own."""
        return next((artifact for artifact in self.artifacts.values() if artifact.client_id == client_id), None)

    def make_collection(self, kind: str, project: Project, name: str, type_name: str) -> Collection:
        """The collection; made when it is new.

        Raises:
            RefusedError: One of this name has another type or kind.
        """
        project.artifact_types.setdefault(type_name, time.time())
        found = project.collections.get(name)
        if not found:
            found = Collection(self.new_id("collection"), kind, name, project, type_name, time.time())
            project.collections[name] = found
        if (found.kind, found.type_name) != (kind, type_name):
            raise RefusedError(f"{name} is a {found.kind} of type {found.type_name}, not a {kind} of type {type_name}")
        return found

    def collection(self, collection_id: str) -> Collection:
        """The collection with this id.

        Raises:
            RefusedError: There is none.
        """
        for project in self.projects.values():
            for collection in project.collections.values():
                if collection.id == collection_id:
                    return collection
        raise RefusedError(f"artifact collection {collection_id} not found")

    def create_artifact(self, given: dict[str, Any]) -> Artifact:
        """Begins a version, or gives the one that has the same content or the same client id already."""
        project, _ = self.make_project(given["entityName"], given["projectName"])
        names = given.get("artifactCollectionNames") or [given.get("artifactCollectionName")]
        sequence = self.make_collection(SEQUENCE, project, names[0], given["artifactTypeName"])
        run = project.runs.get(given.get("runName") or "")
        client_id = given.get("clientID")
        artifact = self.by_client_id(client_id) if client_id else None
        artifact = artifact or self._same_content(sequence, given["digest"])
        if not artifact:
            now = time.time()
            artifact = Artifact(self.new_id("artifact"), sequence, sequence.type_name, given["digest"], now, now)
            artifact.client_id, artifact.created_by = client_id, run
            artifact.description, artifact.metadata = given.get("description"), given.get("metadata")
            artifact.history_step = given.get("historyStep")
            artifact.ttl_duration_seconds = given.get("ttlDurationSeconds") or -1
            artifact.tags = [tag["tagName"] for tag in given.get("tags") or []]
            self.artifacts[artifact.id] = artifact
        artifact.wanted_aliases = [alias["alias"] for alias in given.get("aliases") or []]
        if artifact.state == "COMMITTED":
            self._give_wanted_aliases(artifact)
        if run and artifact not in run.logged:
            run.logged.append(artifact)
        return artifact

    def _same_content(self, sequence: Collection, digest: str) -> Artifact | None:
        same = [member.artifact for member in sequence.memberships if member.artifact.digest == digest]
        return same[-1] if same else None

    def commit_artifact(self, artifact: Artifact) -> None:
        """Makes a pending artifact the newest version of its sequence; again without effect."""
        artifact.commits += 1
        if artifact.state != "PENDING":
            return
        if artifact.manifest_key and self.blobs.get(artifact.manifest_key):
            artifact.load_manifest(self.blobs.read(artifact.manifest_key))
        artifact.state, artifact.updated = "COMMITTED", time.time()
        artifact.sequence.add(self.new_id("membership"), artifact)
        self._give_wanted_aliases(artifact)

    def _give_wanted_aliases(self, artifact: Artifact) -> None:
        member = artifact.membership
        if member:
            for alias in artifact.wanted_aliases:
                artifact.sequence.give_alias(member, alias)

    def link_artifact(self, artifact: Artifact, project: Project, name: str, aliases: list[str]) -> Membership:
        """Puts the artifact into a portfolio; a second link of the same version only moves aliases."""
        portfolio = self.make_collection(PORTFOLIO, project, name, artifact.type_name)
        member = portfolio.holding(artifact) or portfolio.add(self.new_id("membership"), artifact)
        for alias in [*aliases, LATEST]:
            portfolio.give_alias(member, alias)
        return member

    def delete_artifact(self, artifact: Artifact, with_aliases: bool) -> None:
        """Deletes a version everywhere.

        Raises:
            RefusedError: It has aliases and `with_aliases` is false.
        """
        if artifact.aliases and not with_aliases:
            raise RefusedError(f"cannot delete artifact {artifact.name} with aliases {artifact.aliases}")
        artifact.state = "DELETED"
        for member in self.memberships(artifact):
            member.collection.remove(artifact)

    def memberships(self, artifact: Artifact) -> list[Membership]:
        """Every collection's member that holds the artifact, its own sequence's first."""
        collections = [one for project in self.projects.values() for one in project.collections.values()]
        members = [member for one in collections if (member := one.holding(artifact))]
        return sorted(members, key=lambda member: member.collection is not artifact.sequence)
