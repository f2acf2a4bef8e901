"""Who a process is, and where its job's processes meet."""

from __future__ import annotations

import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from threading import Event, Thread

import pytest

from gilbreth_phase0.ranks import Ranks, _greeting, _tell, drop_dead_locks, first_host, keep_extensions_here, ports
from tracking.errors import UserError

from rank_pairs import PROGRAMS, run_pair
from support import free_port

SRUN = {
    "SLURM_PROCID": "3",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "8",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_CONF": "/etc/slurm/slurm.conf",
    "SLURM_CLUSTER_NAME": "gilbreth",
    "SLURM_JOB_ID": "77",
}


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("node1", "node1"),
        ("a1,b2", "a1"),
        ("gpu[007-012,20]", "gpu007"),
        ("gpu[20,007-012]", "gpu20"),
        ("gilbreth-k[001-002]", "gilbreth-k001"),
        ("gilbreth-k[001-002],gilbreth-i004", "gilbreth-k001"),
        ("gilbreth-i004,gilbreth-k[001-002]", "gilbreth-i004"),
        ("n[3]", "n3"),
        ("rack[1-2]-ib", "rack1-ib"),
        ("rack[4,6]-ib,other[1-9]", "rack4-ib"),
        ("node1.cluster.edu,node2.cluster.edu", "node1.cluster.edu"),
    ],
)
def test_the_first_host_of_a_node_list(nodelist: str, first: str) -> None:
    assert first_host(nodelist) == first


@pytest.mark.parametrize("nodelist", ["", "[1-2]", "gpu[1-2"])
def test_what_is_no_node_list_is_named(nodelist: str) -> None:
    with pytest.raises(UserError, match=r"cannot read the node list .*expected Slurm's form"):
        first_host(nodelist)


def test_a_task_of_srun_and_not_the_batch_script_around_it() -> None:
    ranks = Ranks.from_environment(SRUN)
    assert (ranks.rank, ranks.world_size, ranks.local_rank, ranks.host) == (3, 4, 1, "node1")
    assert not ranks.is_main
    batch_script = {name: value for name, value in SRUN.items() if name != "SLURM_STEP_ID"}
    assert Ranks.from_environment(batch_script).world_size == 1


def test_a_task_of_submitit_on_this_machine() -> None:
    environ = {"SUBMITIT_LOCAL_GLOBALID": "1", "SUBMITIT_LOCAL_NTASKS": "2", "SUBMITIT_LOCAL_LOCALID": "1"}
    ranks = Ranks.from_environment({**environ, "SUBMITIT_LOCAL_JOB_ID": "4711"})
    assert (ranks.rank, ranks.world_size, ranks.local_rank, ranks.host) == (1, 2, 1, "127.0.0.1")
    other = Ranks.from_environment({**environ, "SUBMITIT_LOCAL_JOB_ID": "4712"})
    assert ranks.job != other.job


def test_a_process_of_torchrun() -> None:
    environ = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "MASTER_ADDR": "gpu007", "MASTER_PORT": "29500"}
    ranks = Ranks.from_environment(environ)
    assert (ranks.rank, ranks.world_size, ranks.local_rank, ranks.host) == (5, 8, 1, "gpu007")


def test_a_plain_process_is_alone() -> None:
    ranks = Ranks.from_environment({})
    assert (ranks.rank, ranks.world_size, ranks.local_rank, ranks.is_main) == (0, 1, 0, True)


def test_all_tasks_of_an_attempt_agree_on_its_name() -> None:
    names = {Ranks.from_environment({**SRUN, "SLURM_PROCID": str(rank)}).job for rank in range(4)}
    assert len(names) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"SLURM_JOB_ID": "78"},
        {"SLURM_RESTART_COUNT": "1"},
        {"SLURM_CLUSTER_NAME": "negishi"},
        # Two labs on one machine share the cluster's name and count their jobs alike.
        {"SLURM_CONF": "/home/user/lab/etc/slurm.conf"},
    ],
)
def test_no_other_attempt_has_its_name_or_its_ports(other: dict[str, str]) -> None:
    here, there = Ranks.from_environment(SRUN).job, Ranks.from_environment({**SRUN, **other}).job
    assert here != there
    assert list(ports(here)) != list(ports(there))


def test_ports_are_the_same_on_every_rank_and_below_those_of_outgoing_connections() -> None:
    for job in range(200):
        tried = list(ports(f"lab:{job}"))
        assert tried == list(ports(f"lab:{job}"))
        assert len(tried) == 16
        assert all(20000 <= port < 32000 for port in tried)
    firsts = {next(ports(f"lab:{job}")) for job in range(200)}
    # 200 draws from 12,000 ports: fewer than 190 distinct ones has a probability below 1e-5.
    assert len(firsts) >= 190


def test_compiled_extensions_belong_to_this_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two checkouts that compile into one folder delete each other's extension while jobs load it."""
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/where/the/user/said")
    keep_extensions_here()
    assert os.environ["TORCH_EXTENSIONS_DIR"] == "/where/the/user/said"
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    keep_extensions_here()
    assert Path(os.environ["TORCH_EXTENSIONS_DIR"]).is_relative_to(sys.prefix)


def test_a_lock_that_a_killed_process_left_is_taken_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """GIVEN locks of a killed and of a living process THEN only the first one goes, and nobody waits for ever."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    dead, alive = tmp_path / "fused_adam" / "lock", tmp_path / "shm_comm" / "lock"
    for lock in (dead, alive):
        lock.parent.mkdir()
        lock.touch()
    done = Event()

    def hold() -> None:
        while not done.is_set():  # the next process takes it as soon as the one before has let go
            fresh = alive.with_name("next")
            fresh.touch()
            fresh.replace(alive)
            time.sleep(0.01)

    holder = Thread(target=hold)
    holder.start()
    try:
        drop_dead_locks(patience=0.3)
    finally:
        done.set()
        holder.join()
    assert (dead.exists(), alive.exists()) == (False, True)
    assert capsys.readouterr().out.startswith(f"{dead} is there for 0 s: whoever made it was killed")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    drop_dead_locks(patience=0.0)


def test_the_ninja_of_this_environment_is_found_first(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Another version sees what this one compiled as outdated, and compiles it again under running jobs."""
    (tmp_path / "ninja").symlink_to("/bin/true")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "/where/the/user/said")
    for _ in range(2):
        keep_extensions_here()
        assert os.environ["PATH"] == f"{Path(sys.executable).parent}:{tmp_path}:/usr/bin:/bin"
    assert shutil.which("ninja") == str(Path(sys.executable).with_name("ninja"))


def test_an_environment_of_others_is_not_written_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/usr/bin")
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR", raising=False)
    monkeypatch.setattr(sys, "prefix", "/nowhere")
    keep_extensions_here()
    assert "TORCH_EXTENSIONS_DIR" not in os.environ


@contextmanager
def listener(port: int) -> Iterator[None]:
    """Something that takes connections and never answers."""
    with socket.socket() as junk:
        junk.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        junk.bind(("127.0.0.1", port))
        junk.listen()
        yield


@contextmanager
def talker(port: int) -> Iterator[None]:
    """Something that answers whoever connects, but with another job's name."""
    with socket.create_server(("127.0.0.1", port)) as stranger:
        Thread(target=_tell, args=(stranger, _greeting("another job", free_port())), daemon=True).start()
        yield


@contextmanager
def store_of_another_job(port: int) -> Iterator[None]:
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    store.set("another job", "here")
    yield
    del store


@pytest.mark.train
@pytest.mark.parametrize("holder", [listener, talker, store_of_another_job])
def test_two_ranks_meet_though_someone_holds_their_first_port(holder) -> None:
    port, first = next((port, first) for port in iter(free_port, None) if is_free(first := first_port(port)))
    with holder(first):
        ended = run_pair([PROGRAMS / "meet.py"], timeout=60, port=port)
    assert [rank.returncode for rank in ended] == [0, 0], ended
    assert f"rendezvous: port {first} is taken, trying the next" in ended[0].output
    assert "hello from 1" in ended[0].output
    assert "hello from 0" in ended[1].output


def first_port(master_port: int) -> int:
    """The first port that the ranks of `run_pair` try."""
    job = Ranks.from_environment({"RANK": "0", "WORLD_SIZE": "2", "MASTER_PORT": str(master_port)}).job
    return next(ports(job))


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0
