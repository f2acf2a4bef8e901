"""Kill -9 of whatever pushes runs, at random moments of every phase, while jobs write, end, are killed and requeued."""

from __future__ import annotations

import itertools
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tracking.sync.pushed import read_push_state

from support import wait_until
from sync_site import LOST_S, Job, Site, Tally, kill, tree
from wandb_server import WandbServer
from wandb_server.client import WandbClient

PHASES = ("waiting", "opening", "pushing", "uploading", "closing", "confirming")
# Who is killed; the phase of an offline child is that it writes W&B's folder.
VICTIMS = ("daemon", "pusher", "pusher's W&B service", "online child", "online child's W&B service", "offline child")
FOLDER = "offline folder"
_BY = re.compile(r"(\w+) on .*, process (\d+)")
_LOOK_S = 0.005
_HUNT_S = 20.0
# The last runs of a place: an earlier one is on the server.
_RECENT = 3


@dataclass(frozen=True)
class Kill:
    """One kill.

    Attributes:
        victim: Of `VICTIMS`.
        phase: What it was doing: of `PHASES`, or `FOLDER`.
    """

    victim: str
    phase: str


@dataclass
class Campaign:
    """A set of jobs, a daemon, and what was killed.

    Attributes:
        site: Where it takes place.
        random: Everything that is left to chance.
        kills: So far.
        segments: How many segments were begun.
        settled: How long the daemon took to finish everything after the last job had ended, s.
        tallies: What became of each run.
        problems: What was not as it should be.
    """

    site: Site
    random: random.Random
    kills: list[Kill] = field(default_factory=list)
    segments: int = 0
    settled: float = 0.0
    tallies: dict[str, Tally] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Every run is whole, once, and finished."""
        whole = all(tally.is_whole and tally.state == "finished" for tally in self.tallies.values())
        return bool(self.tallies) and whole and not self.problems

    def count(self) -> Counter[str]:
        """Kills by phase."""
        return Counter(kill.phase for kill in self.kills)


class Place:
    """Where one job after the other runs: runs of one to three segments, some online, some killed and requeued."""

    def __init__(self, campaign: Campaign, number: int, stop: threading.Event, pace: float) -> None:
        self.runs: list[Path] = []
        self.job: Job | None = None
        self.error: BaseException | None = None
        self._campaign = campaign
        self._number = number
        self._stop = stop
        self._pace = pace
        self._random = random.Random(campaign.random.random())
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def join(self, timeout: float) -> None:
        """Waits until the last run has ended."""
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise AssertionError(f"jobs of place {self._number} have not ended after {timeout:g} s")
        if self.error is not None:
            raise self.error

    def _run(self) -> None:
        try:
            for number in itertools.count():
                name = f"run-{self._number}-{number:03d}"
                self.runs.append(self._campaign.site.root / name)
                self._live(name)
                if self._stop.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised where the place is joined
            self.error = error

    def _live(self, name: str) -> None:
        begin, segments = 1, self._random.randint(1, 3)
        for segment in range(1, segments + 1):
            self.job = job = self._campaign.site.job(name, self._random.choice(["offline", "online"]))
            self._campaign.segments += 1
            end = begin + self._random.randint(20, 60)
            job.log(begin, end, self._random.uniform(0.5, 1.5) * self._pace / 40)
            job.do("config", segment)
            if segment == segments:
                job.finish()
            elif self._random.random() < 0.5:
                job.finish("preempted")
            else:
                job.kill()
            # A checkpoint is older than the last steps.
            begin = max(1, end - 10)


class Hunter:
    """Kills, one after the other, with the rarest phase first."""

    def __init__(self, campaign: Campaign, places: list[Place]) -> None:
        self._campaign = campaign
        self._places = places
        self._daemon = campaign.site.daemon()

    @property
    def daemon(self) -> psutil.Popen:
        return self._daemon

    def kill_one(self) -> None:
        """Waits a moment, then kills somebody in the phase that was hit least; a killed daemon is started again."""
        campaign = self._campaign
        time.sleep(campaign.random.uniform(0.0, 1.0))
        seen = campaign.count()
        phases = [*PHASES, FOLDER]
        wanted = min(phases, key=lambda phase: (seen[phase], campaign.random.random()))
        deadline = time.monotonic() + _HUNT_S
        while time.monotonic() < deadline:
            if (hit := self._kill_in(wanted)) is not None:
                campaign.kills.append(hit)
                return
            time.sleep(_LOOK_S)
        # It does not come about just now; any other phase does.
        for phase in sorted(phases, key=seen.__getitem__):
            if (hit := self._kill_in(phase)) is not None:
                campaign.kills.append(hit)
                return

    def _kill_in(self, phase: str) -> Kill | None:
        if phase == FOLDER:
            return self._kill_offline_child()
        for run_dir in self._recent():
            state = read_push_state(run_dir)
            by = _BY.match(state.by) if state is not None and state.phase == phase else None
            if by is None:
                continue
            role, family = by[1], tree(int(by[2]))
            with _suspended(family):
                state = read_push_state(run_dir)
                if family and state is not None and state.phase == phase and state.by == by[0]:
                    return self._kill_of(role, family, phase)
        return None

    def _kill_of(self, role: str, family: list[psutil.Process], phase: str) -> Kill:
        holder, services = family[0], [one for one in family[1:] if "wandb-core" in one.name()]
        victims = {"online child": [holder], "online child's W&B service": services}
        if role == "daemon":
            own = tree(self._daemon.pid)[:1] if holder.pid in {one.pid for one in tree(self._daemon.pid)} else []
            victims = {"daemon": own, "pusher": [holder], "pusher's W&B service": services}
        seen = Counter(kill.victim for kill in self._campaign.kills)
        victim = min(
            (name for name in victims if victims[name]), key=lambda name: (seen[name], self._campaign.random.random())
        )
        kill(victims[victim])
        if victim == "daemon":
            self._daemon.wait()
            self._daemon = self._campaign.site.daemon()
        return Kill(victim, phase)

    def _kill_offline_child(self) -> Kill | None:
        jobs = [place.job for place in self._places if place.job is not None]
        self._campaign.random.shuffle(jobs)
        for job in jobs:
            for child in tree(job.process.pid)[1:]:
                words = _words(child)
                if "tracking.sync.child" in words and "--mode=offline" in words:
                    kill([child])
                    return Kill("offline child", FOLDER)
        return None

    def _recent(self) -> list[Path]:
        found = [run_dir for place in self._places for run_dir in place.runs[-_RECENT:]]
        self._campaign.random.shuffle(found)
        return found


@contextmanager
def _suspended(processes: list[psutil.Process]) -> Iterator[None]:
    """Stops processes for a moment, so that what they are doing can be read."""
    for process in processes:
        try:
            process.suspend()
        except psutil.NoSuchProcess:
            continue
    try:
        yield
    finally:
        for process in processes:
            try:
                process.resume()
            except psutil.NoSuchProcess:
                continue


def _words(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:
        return []


def play_campaign(folder: Path, kills: int, *, places: int = 6, pace: float = 8.0, seed: int = 0) -> Campaign:
    """Kills so often, lets the last runs end, waits for the daemon, runs `once`, and counts.

    Args:
        folder: A folder that does not exist.
        kills: How often.
        places: How many jobs run at once.
        pace: How long a segment lasts on average, s.
        seed: Of all that is left to chance, as far as the machine's own timing allows.
    """
    folder.mkdir(parents=True)
    with WandbServer() as server, Site(folder, server, WandbClient(server, folder / "client")) as site:
        campaign = Campaign(site, random.Random(seed))
        stop = threading.Event()
        running = [Place(campaign, number, stop, pace) for number in range(places)]
        try:
            hunter = Hunter(campaign, running)
            wait_until(lambda: all(place.job for place in running), 60, "every place to have a job")
            for _ in range(kills):
                hunter.kill_one()
        finally:
            stop.set()
            for place in running:
                place.join(120)
        began = time.monotonic()
        try:
            site.wait_whole(timeout=LOST_S, state="finished")
        except AssertionError as error:
            campaign.problems.append(f"the daemon did not finish it: {error}")
        campaign.settled = time.monotonic() - began
        site.stop(hunter.daemon)
        done = site.once(timeout=300)
        if done.returncode:
            campaign.problems.append(f"`once` ended with {done.returncode}: {done.stdout[-2000:]}")
        campaign.tallies = {name: site.tally(name) for name in site.names()}
        campaign.problems += [f"the server was asked: {error}" for error in server.errors()]
        return campaign
