"""Several writers at once, and writers that are killed at every step: versions are made once, and stay whole."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tracking.intents import pending_intents
from tracking.store import Store, publish, resolve
from tracking.store.prune import Rules, prune
from tracking.store.push import Pushed, put_what_is_missing
from tracking.store.resolve import move_aliases
from tracking.store.state import AliasMoved
from tracking.store.verify import verify

from model_store import contents, save_bundle
from support import wait_until

ROOT = Path(__file__).resolve().parents[2]
EVERYTHING = Rules(grace=0.0, keep_last=0, steps_hold=False, leftovers=0.0)

_WRITER = """
import sys, time
from pathlib import Path
from tracking.store import Store, publish
from tracking.store.prune import Rules, prune
from tracking.store.resolve import move_aliases

root, flags, who, kind = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
store = Store(root)
(flags / f"ready-{who}").touch()
while not (flags / "go").exists():
    time.sleep(0.001)
if kind == "prune":
    while not (flags / "stop").exists():
        prune(store, store.names(), Rules(grace=0.0, keep_last=0, steps_hold=False))
for bundle in sorted(Path(sys.argv[5]).iterdir()) if kind == "publish" else []:
    done = publish(store, bundle, "act-lift", [who], mirror=False)
    print(done.version.number, bundle, flush=True)
"""


def start(root: Path, flags: Path, who: str, kind: str, bundles: Path | str = "") -> subprocess.Popen[str]:
    command = [sys.executable, "-c", _WRITER, str(root), str(flags), who, kind, str(bundles)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def race(flags: Path, writers: list[subprocess.Popen[str]]) -> None:
    wait_until(lambda: len(list(flags.glob("ready-*"))) == len(writers), 60, "the writers")
    (flags / "go").touch()


def told(writer: subprocess.Popen[str]) -> list[tuple[int, Path]]:
    out, error = writer.communicate(timeout=120)
    assert writer.returncode == 0, error
    return [(int(line.split(" ", 1)[0]), Path(line.split(" ", 1)[1])) for line in out.splitlines()]


@pytest.fixture
def flags(tmp_path: Path) -> Path:
    (tmp_path / "flags").mkdir()
    return tmp_path / "flags"


def test_processes_that_race_never_make_the_same_version(tmp_path: Path, flags: Path) -> None:
    """GIVEN five processes with ten models each THEN there are fifty versions, each with the files of its maker."""
    root = tmp_path / "models"
    for who in range(5):
        for number in range(10):
            save_bundle(tmp_path / "given" / str(who) / f"{number:02d}", value=100.0 * who + number)
    writers = [start(root, flags, f"w{who}", "publish", tmp_path / "given" / str(who)) for who in range(5)]
    race(flags, writers)
    made = [line for writer in writers for line in told(writer)]
    store = Store(root)
    state = store.state("act-lift")
    assert sorted(number for number, _ in made) == list(range(50)) == sorted(state.versions)
    for number, bundle in made:
        kept = store.folder("act-lift", state.versions[number]) / "model.safetensors"
        assert kept.read_bytes() == (bundle / "model.safetensors").read_bytes()
    assert state.aliases["latest"] == 49
    assert {state.aliases[f"w{who}"] for who in range(5)} <= set(state.versions)
    assert verify(store, ["act-lift"]) == []


def test_the_same_model_from_many_is_one_version(tmp_path: Path, flags: Path) -> None:
    root = tmp_path / "models"
    save_bundle(tmp_path / "given" / "00", elements=200_000)
    writers = [start(root, flags, f"w{who}", "publish", tmp_path / "given") for who in range(5)]
    race(flags, writers)
    assert {number for writer in writers for number, _ in told(writer)} == {0}
    state = Store(root).state("act-lift")
    assert (sorted(state.versions), len(contents(root))) == ([0], 3)
    assert set(state.aliases) == {"latest", *(f"w{who}" for who in range(5))}


def test_pruning_takes_nothing_from_those_who_publish(tmp_path: Path, flags: Path) -> None:
    """GIVEN two that publish the same models again and again WHILE two prune THEN what has an alias is whole."""
    root = tmp_path / "models"
    for who in range(2):
        for number in range(30):
            save_bundle(tmp_path / "given" / str(who) / f"{number:02d}", value=float(number % 3))
    publishers = [start(root, flags, f"w{who}", "publish", tmp_path / "given" / str(who)) for who in range(2)]
    pruners = [start(root, flags, f"p{who}", "prune") for who in range(2)]
    race(flags, [*publishers, *pruners])
    made = [line for publisher in publishers for line in told(publisher)]
    (flags / "stop").touch()
    for pruner in pruners:
        told(pruner)
    store = Store(root)
    state = store.state("act-lift")
    assert len(made) == 60 and len(state.gone) > 0
    assert set(state.aliases.values()) <= set(state.versions)
    assert verify(store, ["act-lift"]) == []


def test_threads_of_one_process(tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    bundles = [save_bundle(tmp_path / str(number), value=float(number)) for number in range(12)]
    made: list[int] = []

    def work(bundle: Path) -> None:
        made.append(publish(Store(store.root), bundle, "act-lift", mirror=False).version.number)

    threads = [threading.Thread(target=work, args=(bundle,)) for bundle in bundles]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(made) == list(range(12))


def test_an_alias_is_moved_only_from_where_it_was_seen(tmp_path: Path) -> None:
    """GIVEN `best` that somebody has moved meanwhile THEN who judged before moves nothing, and leaves nothing."""
    store = Store(tmp_path / "models")
    for number in range(3):
        publish(store, save_bundle(tmp_path / str(number), float(number)), "act-lift", mirror=False)
    move_aliases(store, "act-lift", {"best": 0}, expected={"best": None})
    move_aliases(store, "act-lift", {"best": 1}, expected={"best": 0})
    before = [path for path in store.root.rglob("*")]
    with pytest.raises(
        AliasMoved, match=r"'best' was at act-lift:v0 and is at act-lift:v1 meanwhile; nothing was moved"
    ):
        move_aliases(store, "act-lift", {"best": 2, "prod": 2}, expected={"best": 0})
    bundle = save_bundle(tmp_path / "3", 3.0)
    with pytest.raises(AliasMoved, match=r"'best' was at no version and is at act-lift:v1"):
        publish(store, bundle, "act-lift", ["best"], mirror=False, expected={"best": None})
    assert set(store.state("act-lift").aliases.items()) == {("latest", 2), ("best", 1)}
    assert not {path for path in store.root.rglob("*.json")} - set(before)
    publish(store, bundle, "act-lift", ["best"], mirror=False, expected={"best": 1})
    assert store.state("act-lift").aliases["best"] == 3


_CHANGES = {"os.link", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "open"}


def killed_at(moment: int, work: Callable[[], None]) -> bool:
    """Does the work in a process that kills itself before a change of the disk; False when there are fewer."""
    child = os.fork()
    if child == 0:
        left = moment

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal left
            if event in _CHANGES and not (event == "open" and not _writes(arguments)):
                left -= 1
                if left < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.addaudithook(hook)
            work()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def _writes(arguments: tuple[object, ...]) -> bool:
    flags = arguments[2]
    return isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR) != 0


def at_every_moment(root: Path, work: Callable[[], None], check: Callable[[], None]) -> int:
    """Kills the work before each of its changes of the disk, on a fresh copy each; returns how many there were."""
    before = root.with_name("before")
    root.rename(before)
    moment, killed = 0, True
    while killed:
        subprocess.run(["rm", "-rf", root], check=True)
        subprocess.run(["cp", "-a", before, root], check=True)
        killed = killed_at(moment, work)
        check()
        moment += 1
    return moment - 1


def is_clean(store: Store) -> None:
    """Nothing but what versions have is left after a pruning that spares nothing."""
    prune(store, store.names(), EVERYTHING)
    assert list((store.root / "incoming").iterdir()) == []
    assert all(path.stat().st_nlink > 1 for path in contents(store.root))
    for name in store.names():
        folders = {version.folder for version in store.state(name).versions.values()}
        assert {path.name for path in (store.root / "names" / name / "files").iterdir()} == folders


def test_a_publication_that_is_killed_at_any_moment(tmp_path: Path) -> None:
    root = tmp_path / "models"
    publish(Store(root), save_bundle(tmp_path / "first"), "act-lift", mirror=False)
    bundle = save_bundle(tmp_path / "second", 1.0)

    def work() -> None:
        publish(Store(root), bundle, "act-lift", "best", target="lab/p")

    def check() -> None:
        state = Store(root).state("act-lift")
        assert sorted(state.versions) in ([0], [0, 1])
        # All of the version or nothing: its aliases are in the record that makes it.
        assert state.aliases == ({"latest": 0} if len(state.versions) == 1 else {"latest": 1, "best": 1})
        assert verify(Store(root), ["act-lift"]) == []
        put_what_is_missing(Store(root), Pushed())
        assert len(pending_intents(root)) == len(state.versions) - 1
        is_clean(Store(root))

    assert at_every_moment(root, work, check) > 20


def test_a_version_whose_upload_was_never_put_aside_gets_one(tmp_path: Path) -> None:
    """GIVEN a publication that was killed behind its record THEN the next push has something to upload, once."""
    root = tmp_path / "models"
    bundle = save_bundle(tmp_path / "b", 1.0)
    moment = 0
    while killed_at(moment, lambda: _publish(root, bundle)) and not Store(root).state("act-lift").versions:
        moment += 1
    store = Store(root)
    assert (len(store.state("act-lift").versions), pending_intents(root)) == (1, [])
    put_what_is_missing(store, Pushed())
    put_what_is_missing(store, Pushed())
    (waiting,) = pending_intents(root)
    assert store.state("act-lift").waiting == {0: [str(waiting)]}


def _publish(root: Path, bundle: Path) -> None:
    publish(Store(root), bundle, "act-lift", "best", target="lab/p")


def test_pruning_that_is_killed_at_any_moment(tmp_path: Path) -> None:
    root = tmp_path / "models"
    store = Store(root)
    for number in range(4):
        publish(store, save_bundle(tmp_path / str(number), float(number)), "act-lift", mirror=False)
    publish(store, tmp_path / "0", "other", mirror=False)
    move_aliases(store, "act-lift", {"best": 1})

    def check() -> None:
        state = Store(root).state("act-lift")
        assert sorted(state.versions) in ([0, 1, 2, 3], [1, 3])
        assert verify(Store(root), ["act-lift", "other"]) == []
        assert str(resolve("act-lift:best", Store(root))) == "act-lift:v1"
        is_clean(Store(root))

    assert at_every_moment(root, lambda: _prune(root), check) > 12


def _prune(root: Path) -> None:
    prune(Store(root), ["act-lift", "other"], EVERYTHING)


def test_an_alias_move_that_is_killed_at_any_moment(tmp_path: Path) -> None:
    root = tmp_path / "models"
    for number in range(2):
        publish(Store(root), save_bundle(tmp_path / str(number), float(number)), "act-lift", mirror=False)
    seen = []

    def check() -> None:
        seen.append(Store(root).state("act-lift").aliases)

    at_every_moment(root, lambda: move_aliases(Store(root), "act-lift", {"best": 0, "prod": 1}), check)
    before, after = {"latest": 1}, {"latest": 1, "best": 0, "prod": 1}
    assert seen[0] == before and seen[-1] == after and all(aliases in (before, after) for aliases in seen)
