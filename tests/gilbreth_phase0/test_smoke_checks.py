"""What a smoke test says of a check that does not hold, on two real ranks."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from gilbreth_phase0.smoke.nodes import has_interface

from rank_pairs import PROGRAMS, Ended, run_pair

HERE = os.uname().nodename


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("checks") / "it's a run"


@pytest.fixture(scope="module")
def ranks(folder: Path) -> list[Ended]:
    return run_pair([PROGRAMS / "smoke_checks.py", folder], timeout=300)


def end_of(rank: Ended, name: str) -> str:
    """How a check ended on a rank."""
    found = re.search(rf"^== {name}: (.*(?:\n(?: .*))*)", rank.output, re.MULTILINE)
    assert found is not None, rank.output
    return found[1]


@pytest.mark.train
@pytest.mark.parametrize(
    ("name", "seen"),
    [
        ("one rank", f"a fault (rank 1 on {HERE})"),
        ("one node", "all 2 on one (every rank)"),
        ("other settings", f"NCCL_IB_DISABLE=1, and rank 0 has another set (rank 1 on {HERE})"),
        ("other gradients", "2 different gradients on 2 ranks (every rank)"),
    ],
)
def test_a_fault_ends_all_ranks_after_rank_0_has_said_why(name: str, seen: str, ranks: list[Ended]) -> None:
    assert [end_of(rank, name) for rank in ranks] == ["exit 2", "exit 2"]
    assert f"error: FAILED: {name}\n  seen: {seen}\n  fix:  the fix of {name}\n" in ranks[0].output
    assert f"FAILED: {name}" not in ranks[1].output, "once for all ranks"
    assert f"ok      {name}" not in ranks[0].output


@pytest.mark.train
def test_a_disk_that_is_not_shared_is_named_with_the_ranks_that_are_missing(ranks: list[Ended], folder: Path) -> None:
    assert [end_of(rank, "two disks") for rank in ranks] == ["exit 2", "exit 2"]
    for missing, rank in ((1, 0), (0, 1)):
        seen = rf"not those of rank {missing} in {re.escape(str(folder))}/{rank}/shared-disk-\w+, after 0.5 s"
        assert re.search(rf"{seen} \(rank {rank} on {HERE}\)", ranks[0].output)
    assert not list(folder.glob("*/shared-disk-*")), "nothing of it stays"


@pytest.mark.train
def test_an_interface_that_a_node_does_not_have(ranks: list[Ended]) -> None:
    assert re.search(r"seen: NCCL_SOCKET_IFNAME=ibp161s0, and this node has .*\blo\b", ranks[0].output)


@pytest.mark.train
@pytest.mark.parametrize("name", ["one disk", "same settings", "gradients"])
def test_what_holds_passes(name: str, ranks: list[Ended]) -> None:
    assert [end_of(rank, name) for rank in ranks] == ["passed", "passed"]
    assert f"ok      {name}: " in ranks[0].output


@pytest.mark.train
def test_an_error_is_the_failure_of_its_check_on_the_rank_that_has_it(ranks: list[Ended]) -> None:
    for number, rank in enumerate(ranks):
        said = end_of(rank, "an error")
        seen = f"OSError: no disk\n        for {number} (rank {number} on {HERE})"
        assert said == f"FAILED: an error\n  seen: {seen}\n  fix:  the fix of an error"
        assert "Traceback" in rank.output, "where it came from"


@pytest.mark.train
def test_the_loss_of_the_run_to_a_later_attempt_is_no_failed_check(ranks: list[Ended]) -> None:
    assert [end_of(rank, "a successor") for rank in ranks] == ["a later attempt has the run"] * 2


@pytest.mark.train
def test_a_rank_that_hangs_is_given_up(ranks: list[Ended], folder: Path) -> None:
    """GIVEN a rank that waits for ever, and another that waits for it THEN both end in time, with their places."""
    assert [rank.returncode for rank in ranks] == [2, 2]
    assert f"error: FAILED: hang\n  seen: no end after 1.5 s, rank 1 on {HERE}\n" in ranks[1].output
    assert "== hang" not in ranks[1].output


@pytest.mark.train
def test_the_words_of_the_first_failure_are_left_for_the_batch_script(ranks: list[Ended], folder: Path) -> None:
    said = (folder / "refused").read_text()
    assert said == f"error: FAILED: one rank\n  seen: a fault (rank 1 on {HERE})\n  fix:  the fix of one rank\n"


@pytest.mark.parametrize(
    ("wanted", "there"),
    [("ib", True), ("eth0,ib", True), ("=ib0", True), ("=ib", False), ("^docker", True), ("eth", False), ("", True)],
)
def test_interfaces_as_nccl_names_them(wanted: str, there: bool) -> None:
    assert has_interface(wanted, ["lo", "ib0"]) is there
