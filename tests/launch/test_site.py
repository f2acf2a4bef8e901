"""What Slurm tells, read from answers of two versions, and from none."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from launch.lab import Lab
from launch.profile import PartitionLimits, QosRules
from launch.site import PartitionState, Site, ask_site, gpus_of

from slurm_answers import place_slurm


def site_of(folder: Path, monkeypatch: pytest.MonkeyPatch, version: str = "24.05", **instead: str) -> Site:
    place_slurm(folder, version, **instead)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    return ask_site(timeout=3)


def test_a_slurm_of_22_05(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_of(tmp_path, monkeypatch, "22.05")
    assert site.not_known == {}
    assert (site.cluster, site.version, site.one_machine) == ("lab", "22.05.8", True)
    assert site.partitions is not None
    assert site.partitions["a100-80gb"] == PartitionLimits(
        default=True, max_time=1440, nodes=4, gpus_per_node=4, gpu_types=("a100",), cpus_per_node=16, memory_gb=250
    )
    assert site.partitions["short"].max_time == 10
    assert site.states == {"a100-80gb": PartitionState("UP", 4), "short": PartitionState("UP", 4)}
    assert site.qos_limits == {"standby": 240}
    assert site.qos_rules == {
        "normal": QosRules(),
        "standby": QosRules(
            gpus_per_job=4, gpus_per_user=8, jobs_per_user=10, submitted_per_user=50, flags=("DenyOnLimit",)
        ),
    }
    assert site.accounts == ("lab", "physics")
    assert site.account_qos == {"lab": ("normal", "standby"), "physics": ("normal",)}
    assert (site.default_account, site.default_qos) == ("lab", {"lab": "normal"})


def test_a_slurm_of_24_05_with_nodes_of_several_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_of(tmp_path, monkeypatch)
    assert site.not_known == {}
    assert (site.cluster, site.version, site.one_machine) == ("grove", "24.05.2", False)
    assert site.partitions == {
        "cpu": PartitionLimits(default=True, nodes=2, gpus_per_node=0, cpus_per_node=128, memory_gb=251.7),
        "a100": PartitionLimits(
            max_time=2880,
            nodes=3,
            max_nodes=4,
            gpus_per_node=8,  # of a node that is down: it comes back
            gpu_types=("a100", "a30"),
            cpus_per_node=120,  # MaxCPUsPerNode
            memory_gb=488.2,  # MaxMemPerNode
            denied_accounts=("guests",),
            denied_qos=("scavenge",),
            own_qos="part_a100",
        ),
        # Its nodes are not shown to this user.
        "h100": PartitionLimits(max_time=10080, nodes=6, accounts=("vision",), qos=("vision", "long")),
    }
    assert site.states == {
        "cpu": PartitionState("UP", 2),
        "a100": PartitionState("UP", 2),
        "h100": PartitionState("DRAIN", None),
    }
    assert site.qos_limits == {"long": 20160, "scavenge": 240, "part_a100": 2160, "hill_only": 1440}
    assert site.qos_rules is not None
    assert site.qos_rules["long"] == QosRules(gpus_per_job=16, submitted_per_user=4)  # GrpTRES: it could never start
    assert site.qos_rules["scavenge"].gpus_per_job == 8
    assert site.qos_rules["scavenge"].flags == ("DenyOnLimit", "PartitionTimeLimit")
    assert site.qos_rules["vision"].gpus_per_job == 24
    # The other cluster of the same accounting is left out, and one account on two partitions is one.
    assert site.account_qos == {"guests": ("normal",), "vision": ("normal", "long", "scavenge", "vision")}


def test_it_asks_four_times_and_a_fifth_time_only_where_clusters_share_their_accounting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version, count in (("22.05", 4), ("24.05", 5)):
        folder = tmp_path / version
        folder.mkdir()
        asked = place_slurm(folder, version)
        monkeypatch.setenv("PATH", f"{folder / 'bin'}:/usr/bin:/bin")
        ask_site()
        lines = asked.read_text().splitlines()
        assert len(lines) == count
        assert not any("json" in line for line in lines)


@pytest.mark.parametrize(
    ("shell", "reason"),
    [
        ("echo 'You are not running a supported accounting_storage plugin' >&2; exit 1", "not running a supported"),
        ("exit 1", "sacctmgr ended with 1"),
        ("sleep 30", "sacctmgr did not answer in time"),
        ("echo 'slurm_load: <html>502 Bad Gateway</html>'; exit 0", "cannot be read"),
        ("printf '\\xff\\xfe|\\n'; exit 0", "cannot be read"),
    ],
)
def test_what_accounting_does_not_tell_is_not_known(
    shell: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GIVEN accounting that refuses, hangs or answers nonsense THEN the rest is known all the same, and in time."""
    began = time.monotonic()
    site = site_of(tmp_path, monkeypatch, qos=shell, user=shell)
    assert time.monotonic() - began < 8
    assert (site.qos_limits, site.qos_rules, site.accounts, site.account_qos) == (None, None, None, None)
    assert set(site.not_known) == {"qos", "accounts"}
    assert all(reason in why for why in site.not_known.values())
    assert site.partitions is not None
    assert site.partitions["a100"].gpus_per_node == 8


def test_nodes_that_are_not_told_leave_what_the_partitions_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = site_of(tmp_path, monkeypatch, node="echo 'Access denied' >&2; exit 1")
    assert site.not_known == {"nodes": "Access denied"}
    assert site.partitions is not None
    assert (site.partitions["a100"].max_time, site.partitions["a100"].gpus_per_node) == (2880, None)
    assert site.states is not None
    assert site.states["a100"] == PartitionState("UP", None)
    assert site.version is None


def test_without_slurm_nothing_is_known_and_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    site = ask_site()
    assert site.partitions is None
    assert set(site.not_known) == {"partitions", "nodes", "qos", "accounts"}
    assert all("No such file or directory" in why for why in site.not_known.values())


@pytest.mark.parametrize(
    ("gres", "expected"),
    [
        ("(null)", (0, ())),
        ("gpu:4", (4, ())),
        ("gpu:a100:4(S:0-1)", (4, ("a100",))),
        ("gpu:2(S:0)", (2, ())),
        ("gpu:a100:2(S:0),gpu:v100:1(S:1,3),lscratch:800", (3, ("a100", "v100"))),
        ("gpu:a100_1g.5gb:14,gpu:a100:2", (16, ("a100_1g.5gb", "a100"))),
        ("shard:8,gpu:nvidia_h100_80gb_hbm3:8(S:0-1)", (8, ("nvidia_h100_80gb_hbm3",))),
        ("craynetwork:4", (0, ())),
    ],
)
def test_gpus_of_a_node(gres: str, expected: tuple[int, tuple[str, ...]]) -> None:
    assert gpus_of(gres) == expected


@pytest.mark.slurm
def test_the_recorded_answers_are_those_of_the_lab(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GIVEN the Slurm that runs here THEN it tells what is on file, apart from the QOS limits that it has not."""
    recorded = site_of(tmp_path, monkeypatch, "22.05")
    monkeypatch.undo()
    for name, value in lab.environment().items():
        monkeypatch.setenv(name, value)
    live = ask_site()
    assert live.not_known == {}
    assert (live.partitions, live.states) == (recorded.partitions, recorded.states)
    assert (live.cluster, live.one_machine, live.default_account) == ("lab", True, "lab")
    assert live.account_qos is not None
    assert live.account_qos["lab"] == ("normal", "standby")
    assert set(live.qos_rules or ()) == {"normal", "standby"}
