"""Playing one trial of pushing runs, and what came of it: `sync_trials` has all of them."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from sync_site import Job, Site, Tally
from wandb_server import WandbServer
from wandb_server.client import WandbClient

# Rows until the fault, and in all.
HALF = 40
ALL = 2 * HALF


@dataclass
class Outcome:
    """What became of a trial.

    Attributes:
        tallies: Of each run that is left, by its name.
        notes: What else was seen, in words for the table.
        problems: What was not as it should be.
    """

    tallies: dict[str, Tally] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Nothing lost, nothing twice, every run's state right, no problem."""
        return bool(self.tallies) and not self.problems and all(tally.is_whole for tally in self.tallies.values())


@dataclass
class Play:
    """A trial under way.

    Attributes:
        site: Where it is played.
        outcome: What was seen so far.
        states: The state that each run must be in at the end, where it is not `finished`.
    """

    site: Site
    outcome: Outcome = field(default_factory=Outcome)
    states: dict[str, str] = field(default_factory=dict)

    def check(self, holds: bool, problem: str) -> None:
        """Notes a problem unless something holds."""
        if not holds:
            self.outcome.problems.append(problem)

    def once(self) -> None:
        """Pushes what there is, which must succeed."""
        done = self.site.once()
        self.check(done.returncode == 0, f"`once` ended with {done.returncode}: {done.stdout[-1000:]}")

    def note(self, text: str) -> None:
        """Notes what the table shows."""
        self.outcome.notes.append(text)

    def half_pushed(self, name: str = "run", mode: str = "offline") -> Job:
        """A job whose first half is on the server and that goes on."""
        job = self.site.job(name, mode)
        job.log(1, HALF)
        self.site.wait_rows(name, HALF)
        return job


@dataclass(frozen=True)
class Trial:
    """One fault.

    Attributes:
        act: Plays it.
        isolated: It mounts a small disk, for which it needs a namespace.
    """

    act: Callable[[Play], None]
    isolated: bool = False


class Trials(dict[str, Trial]):
    """Trials by their titles."""

    def enter(self, title: str, *, isolated: bool = False) -> Callable[[Callable[[Play], None]], None]:
        """A decorator that enters a trial under its title."""

        def enter(act: Callable[[Play], None]) -> None:
            self[title] = Trial(act, isolated)

        return enter


def play_here(trial: Trial, folder: Path, outage: float) -> Outcome:
    """Plays a trial in this process's own file system.

    Args:
        trial: Which.
        folder: A folder that does not exist.
        outage: How long outages last, s.
    """
    folder.mkdir(parents=True)
    with WandbServer() as server, Site(folder, server, WandbClient(server, folder / "client"), outage) as site:
        scene = Play(site)
        try:
            trial.act(scene)
        except (AssertionError, subprocess.TimeoutExpired) as error:
            scene.outcome.problems.append(str(error))
        for name in site.names():
            tally = scene.outcome.tallies[name] = site.tally(name)
            expected = scene.states.get(name, "finished")
            scene.check(tally.state == expected, f"{name} is {tally.state} at the end and should be {expected}")
        scene.outcome.problems += [f"the server was asked: {error}" for error in server.errors()]
        return scene.outcome
