"""Who pushes a run: one of many takers, found dead at once on this host and after a still heart on another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from tracking.exclusive import create_exclusive
from tracking.sync import claims
from tracking.sync.claims import Claim, Heart, Holder, Observer

from support import wait_until

ROOT = Path(__file__).resolve().parents[2]
# A process that can be seen from here, and whose number means nothing here: to the others it is on another host.
OTHER_HOST = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc", "--kill-child"]

# Waits for the starting shot, takes what it can get, says so, and holds it until its standard input ends.
TAKE = """
import json, sys
from pathlib import Path
from tracking.sync import claims
claims._BEAT_S = 0.2
heart = claims.Heart()
print("ready", flush=True)
sys.stdin.readline()
mine = []
for name in sys.argv[1:]:
    claim = claims.Claim.take(Path(name), "daemon", claims.Observer())
    if claim is not None:
        heart.keep(claim)
        mine.append(name)
print(json.dumps(mine), flush=True)
sys.stdin.read()
"""

# Replaces its program and takes the claim again: prints the numbers of both claims.
AGAIN = """
import os, sys
from pathlib import Path
from tracking.sync.claims import Claim, Observer
claim = Claim.take(Path(sys.argv[1]), "child", Observer())
print(claim.number if claim is not None else None, flush=True)
sys.stdin.readline()
if len(sys.argv) == 3:
    os.execv(sys.executable, [sys.executable, "-c", sys.argv[2], sys.argv[1]])
"""


@contextmanager
def process(code: str, *arguments: str | Path, before: tuple[str, ...] = ()) -> Iterator[subprocess.Popen[str]]:
    command = [*before, sys.executable, "-c", code, *map(str, arguments)]
    with subprocess.Popen(
        command, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as started:
        try:
            yield started
        finally:
            started.kill()


def say(started: subprocess.Popen[str]) -> None:
    assert started.stdin is not None
    print(file=started.stdin, flush=True)


def answer(started: subprocess.Popen[str]) -> str:
    assert started.stdout is not None
    return started.stdout.readline().strip()


@contextmanager
def holding(folder: Path, *, elsewhere: bool = False) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the folder's claim, on this host or on another one."""
    with process(TAKE, folder, before=tuple(OTHER_HOST) if elsewhere else ()) as holder:
        assert answer(holder) == "ready"
        say(holder)
        assert json.loads(answer(holder)) == [str(folder)]
        yield holder


def files(folder: Path) -> set[str]:
    return {path.name for path in (folder / "claims").iterdir()}


def write_record(folder: Path, number: int, holder: Holder) -> None:
    (folder / "claims").mkdir(exist_ok=True)
    (folder / "claims" / f"{number:06d}.json").write_text(json.dumps(asdict(holder)))


def take(folder: Path, observer: Observer | None = None) -> Claim | None:
    return Claim.take(folder, "once", observer or Observer())


def test_of_many_takers_one_gets_it(tmp_path: Path) -> None:
    folders = [tmp_path / f"run {number}" for number in range(20)]
    for folder in folders:
        folder.mkdir()
    with ExitStack() as stack:
        takers = [stack.enter_context(process(TAKE, *folders)) for _ in range(6)]
        assert [answer(taker) for taker in takers] == ["ready"] * 6
        for taker in takers:
            say(taker)
        taken = [folder for taker in takers for folder in json.loads(answer(taker))]
        assert sorted(taken) == sorted(map(str, folders))
        assert not any(take(folder) for folder in folders)


def test_a_dead_process_of_this_host_is_noticed_at_once(tmp_path: Path) -> None:
    observer = Observer()
    with holding(tmp_path) as other:
        held = observer.holder(tmp_path)
        assert held is not None
        assert str(held) == f"daemon on {os.uname().nodename}, process {other.pid}"
        assert take(tmp_path, observer) is None
        # Nobody has waited for it: what is left of it is a zombie.
        other.kill()
        wait_until(lambda: observer.holder(tmp_path) is None, 5, "the death to be noticed")
        claim = take(tmp_path, observer)
    assert claim is not None
    assert claim.number == 2
    assert files(tmp_path) == {"000002.json", "000002.beat"}


def test_a_number_that_was_given_out_again_is_another_process(tmp_path: Path) -> None:
    with holding(tmp_path):
        there = Observer().holder(tmp_path)
        assert there is not None
        write_record(tmp_path, 2, replace(there, started=there.started - 1))
        assert Observer().holder(tmp_path) is None


def test_a_stopped_process_of_this_host_holds_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN a process that was stopped for longer than hearts may stand still THEN on its own host it counts."""
    monkeypatch.setattr(claims, "_DEAD_S", 0.0)
    with holding(tmp_path) as other:
        os.kill(other.pid, signal.SIGSTOP)
        observer = Observer()
        assert [observer.holder(tmp_path) is None for _ in range(3)] == [False] * 3


def test_another_host_is_left_alone_while_its_heart_beats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_DEAD_S", 1.0)
    observer = Observer()
    with holding(tmp_path, elsewhere=True) as other:
        record = json.loads((tmp_path / "claims" / "000001.json").read_text())
        assert record["table"] != Holder.this_process("once").table
        until = time.monotonic() + 2.0
        while time.monotonic() < until:
            assert take(tmp_path, observer) is None
            time.sleep(0.1)
        other.kill()
        other.wait()
        # From here nobody can tell that it is dead but by its heart.
        since = time.monotonic()
        claim = wait_until(lambda: take(tmp_path, observer), 10, "the claim to be free")
        # The last beat was seen a tenth of a second before the death at the earliest.
        assert time.monotonic() - since > 0.7
    assert claim is not None
    assert claim.number == 2


def test_who_looks_for_the_first_time_watches_the_heart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever times the beat carries: the clocks of two hosts are never compared."""
    monkeypatch.setattr(claims, "_DEAD_S", 0.3)
    elsewhere = replace(Holder.this_process("daemon"), table="another", pid=1)
    for number, age in enumerate((0.0, 1e6, -1e6)):
        folder = tmp_path / str(number)
        folder.mkdir()
        write_record(folder, 7, elsewhere)
        beat = folder / "claims" / "000007.beat"
        beat.touch()
        os.utime(beat, (time.time() - age,) * 2)
        observer = Observer()
        assert observer.holder(folder) == elsewhere
        wait_until(lambda observer=observer, folder=folder: observer.holder(folder) is None, 5, "the heart")  # type: ignore[misc]
        # A clock that was set back is a beat like any other.
        os.utime(beat, (time.time() - 2 * abs(age) - 1,) * 2)
        assert observer.holder(folder) == elsewhere


def test_a_claim_is_let_go(tmp_path: Path) -> None:
    with process(AGAIN, tmp_path) as other:
        assert answer(other) == "1"
        assert take(tmp_path) is None
        Claim(tmp_path, 1).release()
        assert Observer().holder(tmp_path) is None
        claim = take(tmp_path)
    assert claim is not None
    assert files(tmp_path) == {"000002.json", "000002.beat"}
    # A claim that another process took over cannot be let go by its former holder.
    Claim(tmp_path, 1).release()
    assert claim.is_mine()


def test_a_process_that_replaces_its_program_keeps_its_claim(tmp_path: Path) -> None:
    with process(AGAIN, tmp_path, AGAIN) as other:
        assert answer(other) == "1"
        assert take(tmp_path) is None
        say(other)
        assert answer(other) == "2"
        held = Observer().holder(tmp_path)
        assert held is not None
        assert held.pid == other.pid


def test_a_record_that_cannot_be_read_holds_nothing(tmp_path: Path) -> None:
    (tmp_path / "claims").mkdir()
    for number, content in enumerate(('{"role": "of a version to come"}', "{", "")):
        (tmp_path / "claims" / f"{number:06d}.json").write_text(content)
        assert Observer().holder(tmp_path) is None
    claim = take(tmp_path)
    assert claim is not None
    assert files(tmp_path) == {"000003.json", "000003.beat"}


def test_a_heart_notices_that_another_process_took_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_BEAT_S", 0.05)
    folders = [tmp_path / name for name in ("kept", "gone", "released", "taken")]
    for folder in folders:
        folder.mkdir()
    kept, gone, released, taken = claimed = [claim for claim in map(take, folders) if claim is not None]
    heart = Heart()
    for claim in claimed:
        heart.keep(claim)
    for path in gone.folder.glob("*/*"):
        path.unlink()
    (gone.folder / "claims").rmdir()
    gone.folder.rmdir()
    heart.release(released)
    write_record(released.folder, 2, Holder.this_process("daemon"))
    before = kept.beaten_at()
    wait_until(lambda: (kept.folder / "claims" / "000001.beat").stat().st_mtime > before, 5, "a beat")
    assert not heart.lost.is_set()
    write_record(taken.folder, 2, Holder.this_process("daemon"))
    assert heart.lost.wait(5)
    assert not taken.is_mine()
    assert kept.is_mine()
    heart.release_all()
    assert heart.kept() == []
    assert "000001.released" in files(kept.folder)


def test_a_number_that_comes_free_again_is_no_claim(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN a slow taker WHEN others come and go between its look and its record THEN it has nothing."""
    create = create_exclusive

    def slowly(path: Path, content: bytes) -> bool:
        with monkeypatch.context() as patch:
            patch.setattr(claims, "create_exclusive", create)
            first = take(tmp_path)
            assert first is not None
            first.release()
            with holding(tmp_path):
                assert files(tmp_path) >= {"000002.json", "000002.beat"}
                return create(path, content)

    monkeypatch.setattr(claims, "create_exclusive", slowly)
    assert take(tmp_path) is None
