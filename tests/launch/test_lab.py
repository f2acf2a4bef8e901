"""The lab: a real Slurm is started, used, broken and stopped."""

from __future__ import annotations

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from launch.lab import Lab, LabFailed, configuration, daemons, processes
from launch.lab import settings as lab_settings
from launch.lab.installation import Installation
from launch.lab.packages import Programs
from launch.lab.settings import Settings
from tracking.errors import UserError

from support import free_port, wait_until

ROOT = Path(__file__).parents[2]


def command_line(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.lab", *arguments]
    environment = {**os.environ, **variables}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def client(lab: Lab, *command: str) -> str:
    done = subprocess.run(command, env=lab.environment(), capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout.strip()


def submit(lab: Lab, script: Path, text: str, *options: str) -> str:
    script.write_text(f"#!/bin/bash\n{text}\n")
    return client(lab, "sbatch", "--parsable", f"--output={script}.log", *options, str(script))


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def processes_with(*needles: str) -> list[int]:
    """Processes whose command line and environment together hold all of the needles."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            except OSError:
                continue  # It has just ended.
            if all(needle.encode() in text for needle in needles):
                found.append(int(entry.name))
    return found


# Configuration and settings


def installation(prefix: Path | None) -> Installation:
    return Installation(Settings(Path("/tmp/example"), 20000), Programs(prefix))


def test_configuration_has_every_value() -> None:
    files = configuration.render(installation(Path("/opt/slurm")))
    assert set(files) == {"slurm.conf", "slurmdbd.conf", "gres.conf", "my.cnf", "hosts", "plugstack.conf"}
    for name, text in files.items():
        assert not re.search(r"[{}]|None|Undefined", text), name
    keys = [line.partition("=")[0] for line in files["slurm.conf"].splitlines() if line and not line.startswith("#")]
    assert {key for key in keys if keys.count(key) > 1} == {"NodeName", "PartitionName"}
    assert files["gres.conf"].splitlines()[-1] == "Name=gpu Type=a100 File=/tmp/example/dev/nvidia[0-3]"


def test_configuration_names_the_plugins_only_where_they_are_unpacked() -> None:
    unpacked, system = configuration.render(installation(Path("/opt/slurm"))), configuration.render(installation(None))
    for name in ("slurm.conf", "slurmdbd.conf"):
        assert "\nPluginDir=/opt/slurm/usr/lib/" in unpacked[name]
        assert "PluginDir" not in system[name]


def test_ports_and_addresses_are_distinct_and_in_the_block() -> None:
    settings = Settings(Path("/tmp/example"), 20000)
    ports = [settings.controller_port, settings.accounting_port, *(node.port for node in settings.nodes)]
    assert len(set(ports)) == 6
    assert all(20000 <= port < 20000 + lab_settings.PORTS_PER_LAB for port in ports)
    assert len({node.address for node in settings.nodes}) == 4


def test_ports_are_chosen_once_and_apart_from_those_in_use(tmp_path: Path) -> None:
    first = lab_settings.load_or_create(tmp_path)
    assert lab_settings.load_or_create(tmp_path) == first
    (tmp_path / "lab.json").unlink()
    with socket.create_server(("127.0.0.1", first.port + 3)):
        assert lab_settings.load_or_create(tmp_path).port != first.port


def test_a_port_that_was_taken_since_is_named(tmp_path: Path) -> None:
    settings = lab_settings.load_or_create(tmp_path)
    lab = Installation(settings, Programs(None))
    daemons.check_ports(lab)
    with socket.create_server(("127.0.0.1", settings.nodes[2].port)), pytest.raises(LabFailed) as error:
        daemons.check_ports(lab)
    assert str(settings.nodes[2].port) in str(error.value)
    assert "node3" in str(error.value)


def test_the_longest_folder_is_one_whose_socket_fits() -> None:
    room = lab_settings.SOCKET_PATH_LIMIT - 1 - len("/tmp//run/munge.socket")
    longest = Path("/tmp") / ("x" * room)
    assert Lab(longest).folder == longest
    with pytest.raises(UserError, match=r"1 characters too long.*\n.*--folder"):
        Lab(Path("/tmp") / ("x" * (room + 1)))


@pytest.mark.parametrize("name", ["sp ace", "quo'te", "'; echo foo", "new\nline", "a,b", "50%", "a#b"])
def test_a_folder_that_slurm_cannot_write_down_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="characters"):
        Lab(Path("/tmp") / name)


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    folder = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    try:
        (folder / "thesis.tex").write_text("precious")
        folder.chmod(0o755)
        for action in ("up", "down --wipe"):
            refused = command_line(*action.split(), "--folder", str(folder))
            assert refused.returncode == 2, action
            assert "thesis.tex" in refused.stderr
        assert [entry.name for entry in folder.iterdir()] == ["thesis.tex"]
        assert folder.stat().st_mode & 0o777 == 0o755
    finally:
        (folder / "thesis.tex").unlink()
        folder.rmdir()


def test_without_a_lab_the_next_command_is_named(tmp_path: Path) -> None:
    for command in (["env"], ["kill-node", "node1"], ["start-node", "node1"]):
        refused = command_line(*command, GILBRETH_LAB="/tmp/no-such-slurm")
        assert refused.returncode == 2, command
        assert "python -m launch.lab up" in refused.stderr
    assert command_line("status", GILBRETH_LAB="/tmp/no-such-slurm").returncode == 1
    assert command_line("down", GILBRETH_LAB="/tmp/no-such-slurm").returncode == 0
    assert not Path("/tmp/no-such-slurm").exists()


def test_a_kernel_without_namespaces_is_told(tmp_path: Path) -> None:
    """GIVEN a user namespace that allows no process namespaces WHEN a lab starts THEN it says so and exits with 3."""
    up = shlex.join([sys.executable, "-m", "launch.lab", "up", "--folder", "/tmp/no-such-slurm"])
    script = f"echo 0 >/proc/sys/user/max_pid_namespaces && exec {up}"
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", script]
    refused = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert refused.returncode == 3, refused.stderr
    assert "does not allow" in refused.stderr
    assert "--cluster local" in refused.stderr
    assert not Path("/tmp/no-such-slurm").exists()


# Processes


@pytest.fixture
def sleeper(tmp_path: Path) -> Iterator[Path]:
    record = tmp_path / "sleeper.json"
    processes.start(["sleep", "60"], pid_file=record, output=tmp_path / "out", environment=dict(os.environ))
    pid = processes.running(record)
    assert pid is not None
    yield record
    if Path(f"/proc/{pid}").exists():
        os.kill(pid, signal.SIGKILL)


def test_a_daemon_is_known_until_it_is_stopped(sleeper: Path) -> None:
    processes.stop(sleeper)
    assert processes.running(sleeper) is None
    assert not sleeper.exists()
    processes.stop(sleeper)


def test_a_daemon_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    record = tmp_path / "stubborn.json"
    script = "trap '' TERM; echo ready; while :; do sleep 0.1; done"
    output = tmp_path / "out"
    processes.start(["bash", "-c", script], pid_file=record, output=output, environment=dict(os.environ))
    wait_until(lambda: lines_of(output) == ["ready"], 5, "the trap")
    pid = processes.running(record)
    processes.stop(record, grace=0.2)
    assert not Path(f"/proc/{pid}/exe").exists()


def test_a_record_from_before_a_reboot_names_nobody(sleeper: Path) -> None:
    """GIVEN a record whose number another process has now WHEN it is stopped THEN that process lives on."""
    pid = processes.running(sleeper)
    boot, _, ticks = processes.read_json(sleeper)["identity"].partition(" ")
    for identity in (f"another-boot {ticks}", f"{boot} 1"):
        processes.write_json(sleeper, {"pid": pid, "identity": identity})
        assert processes.running(sleeper) is None
        processes.stop(sleeper)
        assert Path(f"/proc/{pid}").exists()


# The real thing


@pytest.mark.slurm
def test_up_again_changes_nothing(lab: Lab) -> None:
    before = lab.status()
    assert before.is_up
    lab.up()
    after = lab.status()
    assert [part.pid for part in (*after.daemons, *after.nodes)] == [p.pid for p in (*before.daemons, *before.nodes)]
    shown = command_line("status", "--folder", str(lab.folder))
    assert shown.returncode == 0
    assert all(name in shown.stdout for name in ("munged", "mariadbd", "slurmdbd", "slurmctld", "node4"))


@pytest.mark.slurm
def test_env_is_quoted_and_is_all_that_a_shell_needs(lab: Lab, weird_tmp_path: Path) -> None:
    printed = command_line("env", "--folder", str(lab.folder), PATH=f"{weird_tmp_path}:{os.environ['PATH']}")
    script = f'{printed.stdout}\nscontrol ping; echo "$SLURM_CONF $GILBRETH_LAB"; echo "$PATH"'
    shell = subprocess.run(["/bin/bash", "-c", script], env={}, capture_output=True, text=True, check=True)
    assert "UP" in shell.stdout.splitlines()[0]
    assert f"{lab.folder}/etc/slurm.conf {lab.folder}\n" in shell.stdout
    assert str(weird_tmp_path) in shell.stdout


@pytest.mark.slurm
def test_ranks_on_two_nodes_find_each_other_by_name(lab: Lab) -> None:
    program = """
import os, socket, sys, time
port, me = int(sys.argv[1]), socket.gethostname()
if os.environ["SLURM_PROCID"] == "0":
    with socket.create_server((me, port)) as server:
        server.settimeout(20)
        print(server.accept()[0].recv(100).decode(), "wrote to", me)
else:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("node1", port)).sendall(me.encode())
            break
        except ConnectionRefusedError:
            assert time.monotonic() < deadline
            time.sleep(0.05)
"""
    ranks = ("srun", "--nodelist=node1,node2", "--nodes=2", "--ntasks=2")
    said = client(lab, *ranks, sys.executable, "-c", program, str(free_port()))
    assert said == "node2 wrote to node1"


@pytest.mark.slurm
def test_two_jobs_on_a_node_see_different_gpus(lab: Lab, tmp_path: Path) -> None:
    seen = [tmp_path / "first", tmp_path / "second"]
    # Each waits for the other, so that both hold their GPUs at the same time.
    for mine, other in zip(seen, reversed(seen), strict=True):
        text = f'echo "$CUDA_VISIBLE_DEVICES" >{mine}; until [ -s {other} ]; do sleep 0.1; done'
        submit(lab, mine.with_suffix(".sh"), text, "--nodelist=node1", "--gres=gpu:2")
    wait_until(lambda: all(lines_of(path) for path in seen), 20, "both jobs")
    assert sorted(lines_of(seen[0]) + lines_of(seen[1])) == ["0,1", "2,3"]


@pytest.mark.slurm
def test_accounting_knows_the_job(lab: Lab, tmp_path: Path) -> None:
    job = submit(lab, tmp_path / "job", "exit 3", "--qos=standby", "--partition=short")
    wanted = "standby|lab|short|FAILED|3:0"
    fields = "--format=qos,account,partition,state,exitcode"
    asked = ("sacct", "-XnP", "-j", job, fields)
    wait_until(lambda: client(lab, *asked) == wanted, 20, f"sacct to say {wanted}", interval=0.3)


@dataclass(frozen=True)
class Contest:
    """A standby job that a job of QOS normal has just driven from its node."""

    job: str
    runs: Path
    winner: Path


@pytest.fixture(scope="module")
def contest(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Contest:
    folder = tmp_path_factory.mktemp("contest")
    runs, winner = folder / "runs", folder / "winner"
    text = f"echo ${{SLURM_RESTART_COUNT:-0}} >>{runs}; [ -e {winner} ] || sleep 300"
    node = ("--nodelist=node3", "--exclusive")
    job = submit(lab, folder / "standby", text, "--qos=standby", *node)
    wait_until(lambda: lines_of(runs) == ["0"], 20, "the standby job")
    submit(lab, folder / "normal", f"cat {runs} >{winner}", "--qos=normal", *node)
    return Contest(job, runs, winner)


@pytest.mark.slurm
@pytest.mark.usefixtures("contest")  # Its waiting and this test's pass at the same time.
def test_a_power_cut_moves_the_job_to_another_node(lab: Lab, tmp_path: Path) -> None:
    """GIVEN a running job WHEN its node loses power THEN it runs again elsewhere, and the node can come back."""
    runs = tmp_path / "runs"
    note = 'echo "$SLURMD_NODENAME $(hostname) ${SLURM_RESTART_COUNT:-0}"'
    text = f"{note} >>{runs}; [ $(wc -l <{runs}) = 2 ] || sleep 300"
    job = submit(lab, tmp_path / "job", text, "--exclude=node3")
    wait_until(lambda: lines_of(runs), 20, "the job")
    node = lines_of(runs)[0].split()[0]
    of_job = (f"SLURM_JOB_ID={job}\0", f"SLURM_CONF={lab.folder}")
    assert processes_with(*of_job)

    lab.kill_node(node)

    assert not processes_with(*of_job)
    lab.kill_node(node)
    assert not lab.is_up()
    wait_until(lambda: len(lines_of(runs)) == 2, 70, "the second run", interval=0.2)
    first, second = (line.split() for line in lines_of(runs))
    assert first == [node, node, "0"]
    assert second[0] == second[1] != node
    assert second[2] == "1"

    lab.start_node(node)
    assert lab.is_up()
    assert client(lab, "srun", f"--nodelist={node}", "hostname") == node


@pytest.mark.slurm
def test_standby_gives_way_to_normal_and_comes_back(lab: Lab, contest: Contest) -> None:
    wait_until(lambda: lines_of(contest.runs) == ["0", "1"], 60, "the standby job's second run", interval=0.2)
    assert lines_of(contest.winner) == ["0"]
    asked = ("squeue", "-h", "-t", "all", "-j", contest.job, "-o", "%T")
    wait_until(lambda: client(lab, *asked) == "COMPLETED", 20, "its end", interval=0.2)


@pytest.mark.slurm
def test_an_unknown_node_is_answered_with_the_nearest(lab: Lab) -> None:
    for command in ("kill-node", "start-node"):
        refused = command_line(command, "nod3", "--folder", str(lab.folder))
        assert refused.returncode == 2
        assert "'node3'" in refused.stderr
    assert lab.is_up()


@pytest.mark.slurm
def test_labs_side_by_side_and_nothing_left_after_down(lab: Lab) -> None:
    folder = Path(tempfile.mkdtemp(prefix="lab-", dir="/tmp"))
    other = Lab(folder)
    # Two starts at once: one does the work, the other waits and finds it done.
    command = [sys.executable, "-m", "launch.lab", "up", "--folder", str(folder)]
    starts = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    try:
        assert [start.wait(120) for start in starts] == [0, 0]
        assert other.is_up()
        assert client(other, "scontrol", "show", "config") != client(lab, "scontrol", "show", "config")
        before = {part.name: part.pid for part in (*other.status().daemons, *other.status().nodes)}

        os.kill(before["slurmctld"] or 0, signal.SIGKILL)
        record = Settings(folder, 0).pid_file("slurmctld")
        wait_until(lambda: processes.running(record) is None, 5, "the crash")
        other.up()
        after = {part.name: part.pid for part in (*other.status().daemons, *other.status().nodes)}
        assert [name for name in after if after[name] != before[name]] == ["slurmctld"]
        assert client(other, "srun", "hostname").startswith("node")
        assert processes_with(str(folder))
    finally:
        for start in starts:
            start.kill()
        # What no record names any more is found all the same.
        for name in ("slurmdbd", "node2"):
            Settings(folder, 0).pid_file(name).unlink()
        other.down()
    assert not processes_with(str(folder))
    assert str(folder) not in Path("/proc/mounts").read_text()
    assert not other.is_up()
    other.down(wipe=True)
    assert not folder.exists()
    assert lab.is_up()
