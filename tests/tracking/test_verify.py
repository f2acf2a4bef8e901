"""`verify`: every row is compared, and what differs is named."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tracking import Image, Table
from tracking.media import Media

from sync_runs import begin, end, history, keep, log, run_on_server, site, sync, write_run
from sync_site import Site
from wandb_server.runs import LineFile

__all__ = ["site"]

pytestmark = pytest.mark.wandb


def media(run_dir: Path, value: Media, name: str) -> dict[str, Any]:
    return value.store(run_dir, name, 3)


def change(file: LineFile, line: int, **values: Any) -> None:
    """Changes values of a row on the server; None removes one."""
    row = json.loads(file.lines[line] or "{}") | values
    file.write(line, [json.dumps({name: value for name, value in row.items() if value is not None})])


def test_rows_of_every_kind_are_equal(site: Site) -> None:
    run_dir = site.root / "run"
    writer = begin(run_dir)
    writer.row(1, {"nan": math.nan, "inf": math.inf, "minus": -math.inf, "text": "NaN", "none": None, "yes": True})
    writer.row(2, {"small": 5e-324, "third": 1 / 3, "big": 2**53, "ü/x": 'it\'s "q"\n'})
    picture = media(run_dir, Image(np.zeros((4, 4))), "view")
    writer.row(3, {"view": picture, "table": media(run_dir, Table(["a"], [[1], [math.nan]]), "table"), "x": 3})
    lost = media(run_dir, Image(np.ones((4, 4))), "lost")
    (run_dir / lost["path"]).unlink()
    writer.row(3, {"lost": lost, "y": 3})
    end(writer)
    live = begin(site.root / "live")
    log(live, 1, 1_500)  # more than a page
    empty = begin(site.root / "empty")
    end(empty)
    assert sync(site, "once", "--root", site.root).returncode == 0

    done = sync(site, "verify", "--root", site.root)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines() == [
        "empty: 0 rows, every one equal on the server",
        "live: 1500 rows, every one equal on the server",
        "run: 4 rows, every one equal on the server",
    ]


def test_what_differs_is_named(site: Site) -> None:
    names = ["changed", "equal", "extra", "missing", "twice"]
    for name in names:
        write_run(site.root / name, 20)
    assert sync(site, "once", "--root", site.root).returncode == 0
    files = {name: history(site, site.root / name) for name in names}
    change(files["changed"], 4, x=-1)
    change(files["changed"], 7, x=None)
    keep(files["missing"], 12)
    files["extra"].write(20, [json.dumps({"_step": 20, "_timestamp": 0.0})])
    files["twice"].write(20, [files["twice"].lines[number] or "" for number in (3, 5)])
    write_run(site.root / "absent", 2)
    broken = write_run(site.root / "broken", 2)
    (broken / "run.json").write_text("{}")

    done = sync(site, "verify", "--root", site.root)

    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {broken}: {broken / 'run.json'} does not describe a run")
    assert done.stdout.splitlines() == [
        "absent: 2 rows, 0 on the server: 2 missing (0, 1)",
        "changed: 20 rows, 20 on the server: 2 different (row 4: x is -1, 5 in the journal)",
        "equal: 20 rows, every one equal on the server",
        "extra: 20 rows, 21 on the server: 1 extra (20)",
        "missing: 20 rows, 12 on the server: 8 missing (12, 13, 14, …)",
        "twice: 20 rows, 22 on the server: 2 twice (3, 5)",
    ]
    # Named ones alone, and as JSON.
    done = sync(site, "verify", "--json", site.root / "changed", site.root / "twice")
    assert done.returncode == 1
    changed, twice = json.loads(done.stdout)
    assert changed == {
        "path": str(site.root / "changed"), "rows": 20, "on_server": 20, "missing": [], "twice": [], "extra": [],
        "different": ["row 4: x is -1, 5 in the journal", "row 7: x is missing, 8 in the journal"], "equal": False,
    }  # fmt: skip
    assert (twice["twice"], twice["equal"]) == ([3, 5], False)
    done = sync(site, "verify", "runs/equal")
    assert (done.returncode, done.stdout) == (0, "equal: 20 rows, every one equal on the server\n")
    # W&B shows as text what JSON has no number for; a number is another thing.
    change(files["equal"], 0, x="NaN")
    assert "row 0: x is 'NaN', 1 in the journal" in sync(site, "verify", "runs/equal").stdout


def test_what_cannot_be_compared_is_refused(site: Site) -> None:
    done = sync(site, "verify", "--root", site.root)
    assert done.returncode == 2
    assert done.stderr == f"error: no run folder in {site.root}\n  next: give one, or --root FOLDER\n"
    run_dir = write_run(site.root / "run", 2)
    done = sync(site, "verify", run_dir, WANDB_API_KEY="f" * 40)
    assert (done.returncode, "refused the API key (401)" in done.stderr) == (2, True)
    site.server.stop_listening()
    done = sync(site, "verify", run_dir)
    assert done.returncode == 2
    assert "cannot be reached" in done.stderr
    assert "next: the same command where there is internet" in done.stderr
    with pytest.raises(KeyError):
        run_on_server(site, run_dir)
