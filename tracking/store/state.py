"""What the records of a name come to: its versions, where each alias is, and what holds a version."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from tracking.errors import UserError
from tracking.store.log import Record

LATEST = "latest"


class AliasMoved(UserError):
    """An alias is not where the caller took it to be when it decided to move it."""


@dataclass(frozen=True)
class Version:
    """One version of a model; what it was made as never changes.

    Attributes:
        number: Its number, 0 for the first.
        type: Its type on W&B.
        folder: The name of its folder and card.
        digest: Of all its files together.
        files: Size and SHA-256 digest of each file, by its name.
        metadata: Plain values: numbers are numbers.
        description: Free text.
        run: The run that made it: `id`, `name`, `project`, `entity`; None without one.
        inputs: The models that it was made from, as `name:vN`.
        target: The W&B project that it is uploaded to, as `entity/project` or `project`; None for none.
        time: When it was published, seconds since the epoch.
        by: Who published it, as `user@host`.
        aliases: The aliases that it was published with.
    """

    number: int
    type: str
    folder: str
    digest: str
    files: Mapping[str, Mapping[str, Any]]
    metadata: Mapping[str, Any]
    description: str | None
    run: Mapping[str, Any] | None
    inputs: tuple[str, ...]
    target: str | None
    time: float
    by: str
    aliases: tuple[str, ...]

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(int(file["size"]) for file in self.files.values())

    @property
    def step(self) -> int | None:
        """The training step, where it is known."""
        step = self.metadata.get("step")
        return step if isinstance(step, int) else None


@dataclass
class Project:
    """What a W&B project has of a name, as far as the store knows.

    Attributes:
        artifacts: W&B's name of each version, by the store's number: `entity/project/name:v5`.
        aliases: The store's number of the version that each alias is at.
        asked: When W&B was last asked or told, seconds since the epoch.
    """

    artifacts: dict[int, str] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    asked: float = 0.0


@dataclass
class State:
    """A name.

    Attributes:
        versions: By number, those that are there.
        gone: Numbers of those that were deleted; no number is given again.
        aliases: The version that each alias is at.
        been: Every version that an alias ever was at, oldest first.
        uses: The runs that used a version.
        shown: Ids of those that W&B shows as its users.
        pins: Why a version must stay, and until when (seconds since the epoch; None for ever).
        waiting: The upload intents of a version.
        projects: What W&B has, by `entity/project`.
        touched: When something about a version last changed.
    """

    versions: dict[int, Version] = field(default_factory=dict)
    gone: dict[int, Version] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    been: dict[str, list[int]] = field(default_factory=dict)
    uses: dict[int, list[Mapping[str, Any]]] = field(default_factory=dict)
    shown: dict[int, list[str]] = field(default_factory=dict)
    pins: dict[int, dict[str, float | None]] = field(default_factory=dict)
    waiting: dict[int, list[str]] = field(default_factory=dict)
    projects: dict[str, Project] = field(default_factory=dict)
    touched: dict[int, float] = field(default_factory=dict)

    @classmethod
    def of(cls, records: Iterable[Record]) -> State:
        """Goes through the records in their order; kinds that a later version of this program knows are passed over."""
        state = cls()
        for record in records:
            state._apply(record)
        return state

    @property
    def next_number(self) -> int:
        """The number of the next version."""
        return max([*self.versions, *self.gone], default=-1) + 1

    def same(self, digest: str) -> Version | None:
        """The version that has these files."""
        return next((version for version in self.versions.values() if version.digest == digest), None)

    def aliases_of(self, number: int) -> list[str]:
        """The aliases of a version, `latest` and the other words before the steps."""
        found = [alias for alias, at in self.aliases.items() if at == number]
        return sorted(found, key=lambda alias: (is_step(alias), alias != LATEST, alias))

    def expect(self, name: str, places: Mapping[str, int | None]) -> None:
        """Refuses a move of aliases that was decided when they were elsewhere.

        Args:
            name: The model's name, for the message.
            places: The version that each alias must be at; None where no version may have it.

        Raises:
            AliasMoved: One is elsewhere.
        """
        for alias, number in places.items():
            if (now := self.aliases.get(alias)) != number:
                was, is_now = (f"{name}:v{at}" if at is not None else "no version" for at in (number, now))
                raise AliasMoved(
                    f"{alias!r} was at {was} and is at {is_now} meanwhile; nothing was moved\n"
                    "  next: compare with the version that has it now"
                )

    def _apply(self, record: Record) -> None:
        match record["kind"]:
            case "version":
                self._add(record)
            case "alias":
                self._move(record["set"], record["time"])
            case "use":
                self.uses.setdefault(record["version"], []).append(record["run"])
                self.touched[record["version"]] = record["time"]
            case "shown":
                self.shown.setdefault(record["version"], []).append(record["run"])
            case "pin":
                self.pins.setdefault(record["version"], {})[record["reason"]] = record["until"]
                self.touched[record["version"]] = record["time"]
            case "unpin":
                self.pins.get(record["version"], {}).pop(record["reason"], None)
                self.touched[record["version"]] = record["time"]
            case "target":
                number = record["version"]
                self.versions[number] = replace(self.versions[number], target=record["target"])
            case "waiting":
                self.waiting.setdefault(record["version"], []).append(record["intent"])
            case "wandb" | "off_wandb" as kind:
                (self._mirror if kind == "wandb" else self._forget)(record)
            case "gone":
                for number in record["versions"]:
                    if number in self.versions:
                        self.gone[number] = self.versions.pop(number)

    def _add(self, record: Record) -> None:
        version = Version(
            number=record["version"],
            type=record["type"],
            folder=record["folder"],
            digest=record["digest"],
            files=record["files"],
            metadata=record["metadata"],
            description=record["description"],
            run=record["run"],
            inputs=tuple(record["inputs"]),
            target=record["target"],
            time=record["time"],
            by=record["by"],
            aliases=tuple(record["aliases"]),
        )
        self.versions[version.number] = version
        self._move(dict.fromkeys(version.aliases, version.number), version.time)
        self.touched[version.number] = version.time

    def _move(self, moves: Mapping[str, int | None], at: float) -> None:
        for alias, number in moves.items():
            left = self.aliases.pop(alias, None)
            if left is not None:
                self.touched[left] = at
            if number is not None:
                self.aliases[alias] = number
                self.been.setdefault(alias, []).append(number)
                self.touched[number] = at

    def _mirror(self, record: Record) -> None:
        number, artifact = record["version"], record["artifact"]
        project = self.projects.setdefault(artifact.rpartition("/")[0], Project())
        project.artifacts[number] = artifact
        project.asked = record["time"]
        for alias in [alias for alias, at in project.aliases.items() if at == number]:
            del project.aliases[alias]
        project.aliases |= dict.fromkeys(record["aliases"], number)
        if record.get("intent") in self.waiting.get(number, []):
            self.waiting[number].remove(record["intent"])

    def _forget(self, record: Record) -> None:
        """A version was deleted on W&B, and is not to be uploaded again unless somebody asks for it."""
        number, artifact = record["version"], record["artifact"]
        project = self.projects.get(artifact.rpartition("/")[0], Project())
        if project.artifacts.get(number) == artifact:
            del project.artifacts[number]
            project.aliases = {alias: at for alias, at in project.aliases.items() if at != number}
        if number in self.versions:
            self.versions[number] = replace(self.versions[number], target=None)


def is_step(alias: str) -> bool:
    """Whether an alias only says which training step a version is of."""
    return re.fullmatch(r"step-\d+", alias) is not None
