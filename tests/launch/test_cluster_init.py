"""A profile from what Slurm tells: chosen, written, read back."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from launch.cluster.__main__ import app
from launch.cluster.choice import Wishes, draft
from launch.cluster.roots import file_system, inspect, roots
from launch.cluster.writing import profile_of, profile_text, with_findings
from launch.config import ROOT, clusters, resolve
from launch.profile import Checked, Cluster, PartitionLimits, Seen
from launch.site import Site, ask_site
from tracking.errors import UserError

from slurm_answers import place_slurm

MOUNTS = """\
/dev/vda1 / ext4 rw 0 0
proc /proc proc rw 0 0
tmpfs /dev/shm tmpfs rw 0 0
nas:/homes /home nfs4 rw 0 0
mds@o2ib:/scratch /scratch lustre rw 0 0
mds@o2ib:/odd /scratch/with\\040blank lustre rw 0 0
tmpfs /scratch/quick tmpfs rw 0 0
auto.proj /proj autofs rw 0 0
nas:/proj /proj nfs rw 0 0
objects /objects fuse.s3fs rw 0 0
"""


@pytest.fixture
def grove(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cluster of Slurm 24.05 and a user's home on it; returns the folder of the answers."""
    place_slurm(tmp_path, "24.05")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("COLUMNS", "80")
    for name in ("LOADEDMODULES", "SLURM_CONF", "SCRATCH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def cluster(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def own(folder: Path, name: str) -> Path:
    return folder / "xdg" / "gilbreth" / "clusters" / f"{name}.yaml"


def shared_folder() -> Path:
    """A run root of which nothing says that it is this host's alone; tests run below /tmp."""
    return Path("/srv/grove/ann/runs")


def test_a_profile_is_written_and_a_job_of_it_is_accepted(grove: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADEDMODULES", "external:cuda/12.6:it's odd")
    done = cluster("init", "grove", "--run-root", str(shared_folder()))
    assert done.exit_code == 0, done.output
    assert all(
        len(line) <= 80 for line in done.stdout.splitlines() if str(ROOT) not in line and "grove.yaml" not in line
    )
    assert done.stdout.splitlines()[-1] == "next: python -m launch.cluster check grove"
    profile = resolve("smoke", "grove", []).cluster
    # The GPU partition that is open to the user's accounts, with an account and a QOS that it takes.
    assert (profile.partition, profile.account, profile.qos) == ("a100", "vision", "long")
    assert profile.modules == ("external", "cuda/12.6", "it's odd")
    assert (profile.gpus_per_node, profile.run_root) == (8, str(shared_folder()))
    assert profile.accounts == ("guests", "vision")
    # Those of the user's accounts, and the partitions' own.
    assert profile.qos_limits == {"long": 20160, "scavenge": 240, "part_a100": 2160}
    assert (profile.partitions, profile.account_qos) == (ask_site().partitions, ask_site().account_qos)
    text = own(grove, "grove").read_text()
    assert "  a100: {max_time: '2-00:00:00', nodes: 3, max_nodes: 4, gpus_per_node: 8, gpu_types: [a100, a30]" in text
    keys = [line for line in text.splitlines() if line[:1].isalpha() and not line.startswith("executor")]
    assert all("#" in line for line in keys), "each value is explained"
    dry = [sys.executable, "-m", "launch.submit", "--stage", "smoke", "--cluster", "grove", "--dry-run"]
    shown = subprocess.run(dry, cwd=ROOT, capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "\n#SBATCH --partition=a100\n" in shown.stdout
    # Preflight finds nothing in what was chosen, asked of Slurm too; the project itself may be below /tmp.
    assert not [line for line in shown.stderr.splitlines() if line.startswith("error") and "log folder" not in line]
    assert "load_modules external cuda/12.6 'it'\"'\"'s odd'" in shown.stdout


def test_flags_choose_among_what_was_found(grove: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = str(shared_folder())
    flags = ("--account", "vision", "--qos", "vision", "--module", "gcc", "--module", "cuda", "--run-root", root)
    assert cluster("init", "mine", "--partition", "h100", *flags).exit_code == 0
    profile = resolve("smoke", "mine", []).cluster
    assert (profile.partition, profile.account, profile.qos) == ("h100", "vision", "vision")
    assert profile.modules == ("gcc", "cuda")
    assert cluster("init", "none", "--partition", "cpu", "--module", "", "--run-root", root).exit_code == 0
    profile = resolve("smoke", "none", []).cluster
    # A node without GPUs: the stages' own two would be refused.
    assert (profile.modules, profile.resources, profile.gpus_per_node) == ((), {"gpus_per_node": 0}, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--partition", "a10"], "unknown partition 'a10'. Did you mean 'a100'?"),
        (["--account", "visoin"], "unknown account 'visoin'. Did you mean 'vision'?"),
        (["--qos", "logn"], "unknown QOS 'logn'. Did you mean 'long'?"),
        (
            ["--partition", "a100", "--account", "guests"],
            "account 'guests' may not use partition 'a100', which refuses",
        ),
        (["--partition", "h100", "--account", "guests"], "which takes only: vision"),
        (
            ["--partition", "a100", "--qos", "scavenge"],
            "QOS 'scavenge' cannot be used by account 'vision' in partition",
        ),
        (["--run-root", "/dev/shm/runs"], "--run-root '/dev/shm/runs' is on this host's own tmpfs"),
        (["--run-root", "/tmp/runs"], "which other nodes do not see"),
    ],
)
def test_what_does_not_go_together_is_refused_and_nothing_is_written(
    arguments: list[str], message: str, grove: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "--run-root" not in arguments:
        arguments = [*arguments, "--run-root", str(shared_folder())]
    done = cluster("init", "mine", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr
    assert not (grove / "xdg").exists()


def test_a_profile_that_is_there_is_not_written_over(grove: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own(grove, "mine").parent.mkdir(parents=True)
    own(grove, "mine").write_text("executor: slurm\n")
    root = str(shared_folder())
    done = cluster("init", "mine", "--run-root", root)
    assert done.exit_code == 2
    assert "is there already" in done.stderr
    assert own(grove, "mine").read_text() == "executor: slurm\n"
    assert cluster("init", "mine", "--run-root", root, "--force").exit_code == 0
    assert "partition: a100" in own(grove, "mine").read_text()


@pytest.mark.parametrize(
    ("name", "message"), [("../mine", "cannot be part of a path"), ("a b", "try: a-b"), ("", "try: unnamed")]
)
def test_a_name_that_is_no_file_is_refused(name: str, message: str, grove: Path) -> None:
    done = cluster("init", name)
    assert done.exit_code == 2
    assert message in done.stderr


def test_without_slurm_and_with_one_that_does_not_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    place_slurm(tmp_path, "24.05", partition="echo 'Unable to contact slurm controller' >&2; exit 1")
    for path, message in ((tmp_path, "no Slurm on the PATH"), (tmp_path / "bin", "Unable to contact slurm controller")):
        monkeypatch.setenv("PATH", f"{path}:/usr/bin:/bin" if path.name == "bin" else str(path))
        done = cluster("init", "mine")
        assert done.exit_code == 2
        assert message in done.stderr
    assert not (tmp_path / "xdg").exists()


def test_where_accounting_tells_nothing_the_profile_says_so(grove: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for what in ("qos", "user"):
        (grove / f"{what}.sh").write_text("echo 'Access/permission denied' >&2; exit 1")
    done = cluster("init", "mine", "--run-root", str(shared_folder()), "--account", "physics")
    assert done.exit_code == 0, done.output
    assert "note: accounts not known: Access/permission denied" in done.stdout
    profile = resolve("smoke", "mine", []).cluster
    # What the user says is believed where nobody knows better.
    assert (profile.account, profile.qos, profile.accounts, profile.qos_rules) == ("physics", None, None, {})
    assert "# qos: not known. Access/permission denied" in own(grove, "mine").read_text()


def test_the_partition_of_choice() -> None:
    """GIVEN partitions that are closed, down, small or without GPUs THEN the open one with the most GPUs is taken."""
    site = Site(
        accounts=("mine",),
        partitions={
            "cpu": PartitionLimits(default=True, nodes=100, gpus_per_node=0),
            "few": PartitionLimits(nodes=2, gpus_per_node=4),
            "many": PartitionLimits(nodes=9, gpus_per_node=2),
            "others": PartitionLimits(nodes=99, gpus_per_node=8, accounts=("theirs",)),
        },
    )
    wishes = Wishes(run_root=shared_folder())
    assert draft("x", site, wishes).cluster.partition == "many"
    no_gpus = Site(partitions={"a": PartitionLimits(nodes=1), "b": PartitionLimits(nodes=1, default=True)})
    assert draft("x", no_gpus, wishes).cluster.partition == "b"


def test_what_a_node_does_not_have_is_not_asked_for() -> None:
    small = PartitionLimits(nodes=1, gpus_per_node=2, cpus_per_node=8, memory_gb=31.2)
    made = draft("x", Site(partitions={"gpu": small}), Wishes(run_root=shared_folder()))
    assert made.cluster.resources == {"cpus_per_task": 4, "memory_gb": 31.2}


@pytest.mark.parametrize(
    ("folder", "kind", "shared"),
    [
        ("/home/ann/x", "nfs4", True),
        ("/scratch/ann", "lustre", True),
        ("/scratch/with blank/runs", "lustre", True),
        ("/scratch/quick/ann", "tmpfs", False),
        ("/proj/ours", "nfs", True),  # mounted over its automounter
        ("/objects/x", "fuse.s3fs", True),
        ("/srv/data", "ext4", None),
        ("/tmp/ann", "ext4", False),
    ],
)
def test_which_disks_other_nodes_see(folder: str, kind: str, shared: bool | None) -> None:
    assert file_system(Path(folder), MOUNTS) == kind
    assert inspect(Path(folder), "x", MOUNTS).shared is shared


def test_shared_disks_come_first_and_what_cannot_be_written_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("work", "home", "scratch"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    mounts = f"/dev/vda / ext4 rw 0 0\nmds:/s {tmp_path}/scratch lustre rw 0 0\nnas:/h {tmp_path}/home nfs rw 0 0\n"
    variables = {"SCRATCH": str(tmp_path / "gone"), "CLUSTER_SCRATCH": str(tmp_path / "scratch")}
    found = roots({**variables, "WORK": str(tmp_path / "work"), "PROJECT": "relative"}, "ann", mounts)
    assert [(root.origin, root.file_system) for root in found][:2] == [("$CLUSTER_SCRATCH", "lustre"), ("home", "nfs")]
    assert found[-1].origin == "$WORK"  # below /tmp


HAND_WRITTEN = """\
# ours: do not lose this line
executor: slurm
partition: gpu     # the new one

internet: null  # who knows
modules:
  # external first
  - external
  - "it's odd"

checked:  # old
  date: long ago
  shared: {ok: true,
           saw: x}

  srun: {ok: true, saw: y}
# about QOS
qos_limits: {standby: 4:00:00}
"""


def seen(**parts: Any) -> Checked:
    return Checked(date="2025-01-02 03:04 CET", nodes=("n1", "n2"), **parts)


def test_what_a_check_saw_takes_its_place_and_all_else_stays() -> None:
    checked = seen(shared=Seen(ok=False, saw="n2: it's: not # seen"), internet=Seen(ok=True, saw="x"))
    text = with_findings(HAND_WRITTEN, "mine", Path("mine.yaml"), checked, {"internet": True, "requeue": False})
    before, after = HAND_WRITTEN.splitlines(), text.splitlines()
    kept = [
        line for line in before if not line.startswith(("internet", "checked")) and line and not line.startswith(" ")
    ]
    assert [line for line in after if line in kept] == kept
    assert "internet: true  # who knows" in after
    assert after[-1] == "requeue: false"
    assert "  # external first" in after
    assert "long ago" not in text
    profile = profile_of(text, "mine", Path("mine.yaml"))
    assert profile.checked == checked
    assert (profile.internet, profile.requeue, profile.modules) == (True, False, ("external", "it's odd"))
    # Once more, and nothing grows.
    assert with_findings(text, "mine", Path("mine.yaml"), checked, {"internet": True, "requeue": False}) == text


def test_a_form_that_cannot_be_changed_in_one_place_is_left_alone() -> None:
    flow = "{executor: slurm, internet: null}\n"
    with pytest.raises(UserError, match=r"write there:\n  checked:"):
        with_findings(flow, "mine", Path("mine.yaml"), seen(), {"internet": True})


def test_odd_values_survive_writing(grove: Path) -> None:
    odd = Cluster(
        name="odd",
        executor="slurm",
        partition="it's # odd: {x}",
        account="null",
        qos="1e3",
        run_root="/s/a 'b' \"c\" # d",
        partitions={"on": PartitionLimits(gpu_types=("a: b",)), "12": PartitionLimits(max_time=5)},
        account_qos={"~": ("yes", "1:30:00")},
        environment={"A": "x\ny"},
    )
    text = profile_text(odd, Site(not_known={"qos": "two\nlines"}), "a disk")
    assert profile_of(text, "odd", Path("odd.yaml")) == odd


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("partitions: {gpu: {max_tme: 5}}", "unknown key 'cluster.partitions.gpu.max_tme'. Did you mean 'cluster.part"),
        ("qos_rules: {standby: {gpus_per_usr: 5}}", "Did you mean 'cluster.qos_rules.standby.gpus_per_user'?"),
        (
            "checked: {date: x, shard: {}}",
            "unknown key 'cluster.checked.shard'. Did you mean 'cluster.checked.shared'?",
        ),
        ("checked: {date: x, home: {ok: true, sow: x}}", "Did you mean 'cluster.checked.home.saw'?"),
        ("acounts: [a]", "Did you mean 'cluster.accounts'?"),
        ("partitions: {gpu: {max_time: soon}}", "cluster.partitions.gpu.max_time='soon': expected minutes"),
        ("partitions: {gpu: {memory_gb: -1}}", "cluster.partitions.gpu.memory_gb=-1: Input should be greater than 0"),
        ("requeue: perhaps", "cluster.requeue='perhaps'"),
    ],
)
def test_a_profile_with_a_mistake_is_refused(yaml: str, message: str, grove: Path) -> None:
    own(grove, "mine").parent.mkdir(parents=True)
    own(grove, "mine").write_text(f"executor: slurm\n{yaml}\n")
    with pytest.raises(UserError) as error:
        resolve("smoke", "mine", [])
    assert message in str(error.value)
    shown = cluster("show")
    assert shown.exit_code == 0
    assert "gilbreth" in shown.stdout  # the others are shown all the same


def test_show(grove: Path) -> None:
    shown = cluster("show")
    assert all(name in shown.stdout for name in clusters())
    one = cluster("show", "gilbreth")
    assert "14-00:00:00" in one.stdout
    assert "standby" in one.stdout
    assert max(map(len, one.stdout.splitlines()[1:])) <= 80
    wrong = cluster("show", "gilberth")
    assert (wrong.exit_code, "Did you mean 'gilbreth'?" in wrong.stderr) == (2, True)


@pytest.mark.parametrize("command", [[], ["init"], ["check"], ["show"]])
def test_help_is_quick_and_says_something_of_every_option(command: list[str]) -> None:
    script = f"""
import sys
from launch.cluster.__main__ import app
try:
    app({[*command, "--help"]!r}, prog_name="x")
finally:
    print("heavy:", *[name for name in ("yaml", "jinja2", "submitit", "torch", "wandb") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == "heavy:"
