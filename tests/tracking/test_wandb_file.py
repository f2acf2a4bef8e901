"""W&B's offline file: read in whatever state it is in, and written as W&B writes it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracking.sync.plain.wandb_file import Scan, has_exit, read_wandb_file, write_records

from wandb_server import WandbClient

pytestmark = pytest.mark.wandb


@pytest.fixture
def written(wandb_client: WandbClient) -> Path:
    """The file of a run with 400 rows."""
    return Path(
        wandb_client.python(
            """
            import wandb
            run = wandb.init(project="p", id="r", mode="offline")
            for row in range(400):
                run.log({"x": row, "padding": "-" * 100})
            run.finish()
            answer = run.settings.sync_file
            """
        )
    )


def test_a_file_is_read_at_every_length(written: Path, tmp_path: Path) -> None:
    """GIVEN a file cut anywhere THEN it is read up to there, and the rows never become fewer."""
    whole = written.read_bytes()
    path = tmp_path / "run-r.wandb"
    assert read_wandb_file(written).rows == 400
    assert has_exit(written)
    before = 0
    for size in [*range(0, 700, 7), *range(700, len(whole), 997)]:
        path.write_bytes(whole[:size])
        found = read_wandb_file(path)
        assert before <= found.rows <= 400
        assert found.exit_code is None
        assert not has_exit(path)
        before = found.rows
    assert before > 390
    path.write_bytes(b"")
    assert read_wandb_file(path).damage == "empty"
    path.write_bytes(whole[:7])
    assert read_wandb_file(path).damage == "header only"
    path.write_bytes(b"something else")
    assert read_wandb_file(path).damage == "foreign"
    assert read_wandb_file(tmp_path / "absent").damage == "unreadable"


def test_a_file_is_written_as_wandb_writes_it(written: Path, tmp_path: Path) -> None:
    path = tmp_path / "run-r.wandb"
    write_records(path, Scan(written))
    assert path.read_bytes() == written.read_bytes()
    sizes = [0, 1, 32746, 32747, 32754, 32755, 32761, 100_000, 5, 65_521, 65_522]
    given = [bytes([number]) * size for number, size in enumerate(sizes)]
    write_records(path, given)
    scan = Scan(path)
    assert list(scan) == given
    assert scan.damage is None
