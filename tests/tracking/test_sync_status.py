"""`status` and the command line: read from the run folders alone, right without any network, and legible."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from tracking.artifacts import put_config
from tracking.errors import UserError
from tracking.files import write_json
from tracking.sync.claims import Claim, Observer
from tracking.sync.daemon import DaemonState
from tracking.sync.overview import count_rows
from tracking.sync.pushed import PushState, journal_position, write_push_state

from sync_runs import begin, end, log, write_run
from sync_site import ROOT

# What would be imported instead of W&B's client and the libraries that talk to a server.
POISON = "raise SystemExit('imported where nobody is to be asked')"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("wandb", "requests", "pydantic"):
        (tmp_path / "poison" / name).mkdir(parents=True)
        (tmp_path / "poison" / name / "__init__.py").write_text(POISON)
    folder = tmp_path / "runs"
    folder.mkdir()
    return folder


def run(root: Path, *arguments: str, columns: int = 80) -> subprocess.CompletedProcess[str]:
    """The command line where the root's folder is the current one, and nobody can be asked."""
    environment = os.environ | {"PYTHONPATH": f"{root.parent / 'poison'}:{ROOT}", "COLUMNS": str(columns)}
    command = [sys.executable, "-m", "tracking.sync", *arguments]
    return subprocess.run(
        command, cwd=root.parent, env=environment, capture_output=True, text=True, timeout=30, check=False
    )


def table(root: Path, **arguments: Any) -> list[str]:
    done = run(root, "status", **arguments)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def shown(root: Path) -> dict[str, Any]:
    """The runs of `status --json` by name."""
    done = run(root, "status", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    return {Path(line["path"]).name: line for line in json.loads(done.stdout)["runs"]}


def pushed(run_dir: Path, confirmed: int, closed: str | None = "finished", **more: Any) -> PushState:
    """Notes that the server has all that is written, or the first rows of it."""
    state = PushState("waiting", confirmed, confirmed, journal_position(run_dir), closed, **more)
    write_push_state(run_dir, state)
    return state


def test_the_table_fits_into_80_columns(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"act_bc_{'lift_' * 12}20260131_120000_0123abc"
    pushed(write_run(root / name, 12), 12)
    part = root / "[red]part"
    then = time.time() - 7200
    with monkeypatch.context() as patch:
        patch.setattr(time, "time", lambda: then)
        write_run(part, 1_000)
    write_push_state(part, PushState(confirmed=400).failed("the server has 400 of 1000 rows; and so on" * 3))
    write_run(root / "none", 5, None)
    put_config(root / "none", "none", {"lr": 1})

    lines = table(root)

    assert lines[0] == "No daemon has looked after this root; `python -m tracking.sync` starts one."
    assert lines[1].split() == ["run", "rows", "on", "server", "lag", "uploads", "state"]
    assert max(map(len, lines[:-1])) <= 80
    by_name = {line.split()[0]: line.split()[1:] for line in lines[2:]}
    long, red, none = (next(words for key, words in by_name.items() if key.startswith(start))
                       for start in ("act_bc_lift_", "[red]part", "none"))  # fmt: skip
    assert long == ["12", "12", "0", "s", "-", "finished"]
    assert red == ["1000", "400", "2", "h", "0", "min", "-", "waiting"]
    assert none[:2] == ["5", "0"]
    assert none[-2:] == ["1", "waiting"]
    assert any(len(line) <= 80 and "…" in line for line in lines)
    assert lines[-1].startswith("[red]part: the server has 400 of 1000 rows; and so on")
    assert "; next try in " in lines[-1]
    # A wider terminal shows the whole name.
    assert any(line.startswith(f"{name} ") for line in table(root, columns=200))


def test_what_json_says(root: Path) -> None:
    whole = write_run(root / "a group" / "whole", 12)
    pushed(whole, 12, url="http://server/run")
    grown = write_run(root / "grown", 10, "preempted")
    pushed(grown, 10, "preempted")
    log(begin(grown), 11, 13)
    (root / "no run").mkdir()

    lines = shown(root)

    assert list(lines) == ["whole", "grown"]
    assert lines["whole"] == {
        "path": str(whole), "rows": 12, "on_server": 12, "lag": 0.0, "waiting": 0, "state": "finished", "by": None,
        "error": None, "next_try": None, "url": "http://server/run",
    }  # fmt: skip
    assert (lines["grown"]["rows"], lines["grown"]["on_server"], lines["grown"]["state"]) == (13, 10, "waiting")
    assert 0 < lines["grown"]["lag"] < 60


def test_where_runs_are_found(root: Path) -> None:
    for place in ("direct", "a/grouped", "a/b/deep", "a/b/c/too deep", ".hidden/run", "direct/inner"):
        write_run(root / place, 1)
    (root / "link").symlink_to(root / "a" / "b")
    folder = root / "a" / "wandb" / "offline-run-20260101_000000-x"
    folder.mkdir(parents=True)
    (folder / "run-x.wandb").touch()
    assert list(shown(root)) == ["deep", "grouped", folder.name, "direct"]
    # A run folder is a root of its own.
    named = run(root, "status", "--json", f"--root={root / 'direct'}")
    assert [line["path"] for line in json.loads(named.stdout)["runs"]] == [str(root / "direct")]


def test_who_pushes_a_run_and_what_it_does(root: Path) -> None:
    run_dir = write_run(root / "run", 10, None)
    claim = Claim.take(run_dir, "daemon", Observer())
    assert claim is not None
    for phase, word in (("uploading", "uploading"), ("pushing", "live")):
        write_push_state(run_dir, PushState(phase))  # type: ignore[arg-type]
        line = shown(root)["run"]
        assert (line["by"], line["state"]) == (f"daemon on {os.uname().nodename}, process {os.getpid()}", word)
    claim.release()
    assert (shown(root)["run"]["by"], shown(root)["run"]["state"]) == (None, "waiting")


def test_a_broken_run_is_named_beside_the_others(root: Path) -> None:
    write_run(root / "good", 3)
    broken = write_run(root / "broken", 3)
    (broken / "journal-000.jsonl").write_bytes(b"x\n")
    (write_run(root / "damaged", 3) / "push.json").write_text("{")
    empty = root / "empty"
    begin(empty).close()
    (empty / "push.json").write_text('{"confirmed": 7, "of": "another version"}')
    lines = table(root)
    assert [line.split()[0] for line in lines[2:6]] == ["broken", "damaged", "empty", "good"]
    assert lines[6:] == [f"broken: {broken / 'journal-000.jsonl'} does not begin with a segment line"]


def test_rows_are_counted_from_the_end(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    writer = begin(run_dir)
    assert count_rows(run_dir) == 0
    log(writer, 1, 2_000)
    assert count_rows(run_dir) == 2_000
    # Longer than what is read at first.
    writer.row(2_001, {"text": "x" * 300_000})
    assert count_rows(run_dir) == 2_001
    writer.config({"text": "x" * 300_000})
    assert count_rows(run_dir) == 2_001
    with writer.path.open("ab") as file:
        file.write(b'{"kind":"row","n":2001,"st')
    assert count_rows(run_dir) == 2_001
    end(begin(run_dir))
    assert count_rows(run_dir) == 2_001
    begin(run_dir).path.write_bytes(b"\n")
    with pytest.raises(UserError, match="does not begin with a segment line"):
        count_rows(run_dir)


def test_what_a_daemon_last_said(root: Path) -> None:
    now = time.time()
    state = DaemonState("login1", 4711, 30.0, started=now - 1000, looked=now)
    expected = {
        "A daemon looks every 30 s on login1 (process 4711).": state,
        "A daemon looks every 30 s on login1 (process 4711). Connection refused; next try in 1 min": replace(
            state, error="Connection refused", next_try=now + 90
        ),
        "The daemon on login1 has ended: --max-hours.": replace(state, ended="--max-hours"),
        "The daemon on login1 (process 4711) has not been seen for 16 min": replace(state, looked=now - 1000),
    }
    (root / ".sync").mkdir()
    for words, said in expected.items():
        write_json(root / ".sync" / "daemon-login1.json", asdict(said))
        first, *rest = table(root)
        assert first.startswith(words)
        assert rest == [f"No run in {root}."]
    (root / ".sync" / "daemon-login2.json").write_text('{"of": "a version to come"}')
    assert len(table(root)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["statsu"], "invalid choice: 'statsu'"),
        (["status", "--jsno"], "unrecognized arguments: --jsno"),
        (["once", "--interval=3"], "unrecognized arguments: --interval=3"),
        (["--interval=0"], "'0' is not a number above 0"),
        (["daemon", "--max-hours=soon"], "'soon' is not a number above 0"),
        (["run"], "required: PATH"),
        (["status", "--root=nowhere"], "error: --root nowhere: there is no such folder\n  next: "),
        (["verify", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_meant_is_refused(root: Path, arguments: list[str], words: str) -> None:
    done = run(root, *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stdout == ""


def test_the_roots_that_are_looked_after_by_themselves(root: Path) -> None:
    assert table(root)[-1] == f"No run in {root}."
    root.rmdir()
    done = run(root, "status")
    assert done.returncode == 2
    assert f"there is neither ./runs, ./wandb nor ./models in {root.parent}" in done.stderr
    assert "--root FOLDER" in done.stderr
    (root.parent / "wandb").mkdir()
    assert table(root)[-1] == f"No run in {root.parent / 'wandb'}."


def test_help_names_every_command(root: Path) -> None:
    said = run(root, "--help").stdout
    for command in ("daemon", "once", "run", "status", "verify"):
        assert f"\n    {command} " in said
        assert run(root, command, "--help").returncode == 0
