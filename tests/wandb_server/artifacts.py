"""Artifacts as the server keeps them: versions in collections, aliases that move, links, manifests and lineage."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from wandb_server.runs import Project, Run

SEQUENCE = "ArtifactSequence"
PORTFOLIO = "ArtifactPortfolio"
LATEST = "latest"


@dataclass
class Membership:
    """A version of a collection: an artifact under a number and aliases."""

    id: str
    collection: Collection
    artifact: Artifact
    version_index: int
    aliases: list[str] = field(default_factory=list)

    @property
    def version(self) -> str:
        """The number as users write it, such as `v3`."""
        return f"v{self.version_index}"


@dataclass
class Collection:
    """A sequence (artifacts are logged to it) or a portfolio (artifacts are linked to it)."""

    id: str
    kind: str
    name: str
    project: Project
    type_name: str
    created: float
    state: str = "READY"
    description: str | None = None
    memberships: list[Membership] = field(default_factory=list)
    versions: int = 0

    def find(self, version_or_alias: str) -> Membership | None:
        """The member that `v3` or an alias names."""
        for member in self.memberships:
            if version_or_alias in (member.version, *member.aliases):
                return member
        return None

    def holding(self, artifact: Artifact) -> Membership | None:
        """The member that holds the artifact."""
        return next((member for member in self.memberships if member.artifact is artifact), None)

    def add(self, membership_id: str, artifact: Artifact) -> Membership:
        """Makes the artifact the newest version, which takes `latest`; version numbers are never used again."""
        member = Membership(membership_id, self, artifact, self.versions)
        self.versions += 1
        self.memberships.append(member)
        self.give_alias(member, LATEST)
        return member

    def give_alias(self, member: Membership, alias: str) -> None:
        """Moves the alias to the member: a collection has every alias once."""
        if re.fullmatch(r"v\d+", alias):
            return
        self.take_alias(alias)
        member.aliases.append(alias)

    def take_alias(self, alias: str) -> None:
        """Removes the alias from whichever member has it."""
        for member in self.memberships:
            if alias in member.aliases:
                member.aliases.remove(alias)

    def remove(self, artifact: Artifact) -> None:
        """Removes the artifact from the collection, with its aliases."""
        self.memberships = [member for member in self.memberships if member.artifact is not artifact]


@dataclass
class Artifact:
    """One artifact: PENDING while it is uploaded, then COMMITTED, at last DELETED.

    Attributes:
        wanted_aliases: Aliases that the commit gives, in order.
        manifest_key: Where its newest manifest is uploaded to.
        entries: Files by name, from the manifest: `{"digest", "size", "birthArtifactID"?, "ref"?}`.
        commits: How many times it was committed (a client that lost the answer asks again).
    """

    id: str
    sequence: Collection
    type_name: str
    digest: str
    created: float
    updated: float
    state: str = "PENDING"
    client_id: str | None = None
    description: str | None = None
    metadata: str | None = None
    ttl_duration_seconds: int = -1
    history_step: int | None = None
    wanted_aliases: list[str] = field(default_factory=list)
    tags: list[str] = field(default_factory=list)
    created_by: Run | None = None
    used_by: list[Run] = field(default_factory=list)
    manifest_key: str | None = None
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    commits: int = 0

    @property
    def membership(self) -> Membership | None:
        """Its place in its own sequence, once it is committed."""
        return self.sequence.holding(self)

    @property
    def version_index(self) -> int | None:
        """Its number in its own sequence, once it is committed."""
        return self.membership.version_index if self.membership else None

    @property
    def aliases(self) -> list[str]:
        """Its aliases in its own sequence."""
        return list(self.membership.aliases) if self.membership else []

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(int(entry.get("size") or 0) for entry in self.entries.values())

    @property
    def name(self) -> str:
        """As users write it, such as `act-lift:v3`."""
        return f"{self.sequence.name}:v{self.version_index}"

    def load_manifest(self, text: bytes) -> None:
        """Takes the files from the uploaded manifest."""
        self.entries = dict(json.loads(text)["contents"])
