"""The site check: a real job in the lab, and what comes of its answer."""

from __future__ import annotations

import dataclasses
import http.server
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from launch.cluster.__main__ import app
from launch.cluster.answers import findings, read_answers
from launch.cluster.check import Pending, log_folder, script
from launch.config import ROOT, resolve
from launch.follow import slurm_state
from launch.lab import Lab
from launch.profile import Checked, Cluster
from launch.spec import make_spec
from launch.submission import submit

from golden_scripts import assert_golden
from launch_jobs import PROGRAMS
from launch_jobs import make_spec as made_spec
from support import free_port, wait_until


@pytest.fixture
def name() -> Iterator[str]:
    """A profile's name that no other test uses; the log of its check goes with it."""
    chosen = f"check-{os.getpid()}"
    yield chosen
    subprocess.run(["rm", "-rf", str(log_folder(chosen))], check=True)


@pytest.fixture
def in_lab(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This process as one that uses the lab, with profiles of its own; returns a folder with an odd name."""
    for variable, value in lab.environment().items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "xdg"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("WANDB_BASE_URL", f"http://127.0.0.1:{free_port()}")  # nobody listens there
    return tmp_path / 'o\'dd "fol der"; echo foo'


@pytest.fixture
def server() -> Iterator[str]:
    """A server that answers, though it does not know the page."""
    httpd = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{httpd.server_address[1]}"
    httpd.shutdown()


def cluster(*arguments: str) -> Result:
    return CliRunner().invoke(app, arguments)


def checked(name: str) -> Checked:
    found = resolve("smoke", name, []).cluster.checked
    assert found is not None
    return found


@pytest.mark.slurm
def test_a_written_profile_runs_a_job_and_a_check_writes_what_it_saw(
    in_lab: Path, name: str, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", server)
    made = cluster("init", name, "--run-root", str(in_lab / "runs"))
    assert made.exit_code == 0, made.output
    config = resolve("smoke", name, ["resources.gpus_per_node=1", "resources.time=2", "name=of-a-new-profile"])
    assert (config.cluster.partition, config.cluster.account, config.cluster.qos) == ("a100-80gb", "lab", "normal")
    spec = make_spec(config, datetime.now())
    own = {"module": "probe", "argv": ("go",), "environment": {"PYTHONPATH": str(PROGRAMS)}}
    spec = dataclasses.replace(spec, **own, log_dir=in_lab / "logs" / spec.name)
    submitted = submit(config, spec)
    wait_until(lambda: (slurm_state(submitted.job_id) or "").startswith("COMPLETED"), 60, "COMPLETED")
    assert json.loads(next(spec.run_dir.glob("seen-0-*.json")).read_text())["argv"][1:] == ["go"]

    before = (in_lab.parent / "xdg" / "gilbreth" / "clusters" / f"{name}.yaml").read_text()
    done = cluster("check", name)
    assert done.exit_code == 0, done.output
    found = checked(name)
    assert len(found.nodes) == 2
    for seen in (found.shared, found.srun, found.internet, found.requeue):
        assert seen is not None
        assert seen.ok is True, seen
    assert found.shared is not None
    assert f"{in_lab}/runs and {in_lab}/data" in found.shared.saw
    assert found.internet is not None
    assert server in found.internet.saw
    assert found.modules is None  # the profile names none
    assert abs((datetime.strptime(found.date[:16], "%Y-%m-%d %H:%M") - datetime.now()).total_seconds()) < 600
    after = (in_lab.parent / "xdg" / "gilbreth" / "clusters" / f"{name}.yaml").read_text()
    assert after.startswith(
        before.replace("internet: null", "internet: true").replace("requeue: null", "requeue: true")
    )
    assert not list(in_lab.rglob(".site-check-*"))
    assert not (log_folder(name) / "check.json").exists()
    assert f"python -m launch.submit --stage smoke --cluster {name}" in done.output


@pytest.mark.slurm
def test_what_is_wrong_is_written_too_and_a_check_is_taken_up_where_it_stands(in_lab: Path, name: str) -> None:
    """GIVEN modules that this machine does not have and a W&B that nobody reaches THEN the profile says so."""
    profile = in_lab.parent / "xdg" / "gilbreth" / "clusters" / f"{name}.yaml"
    profile.parent.mkdir(parents=True)
    profile.write_text(
        f"# mine\nexecutor: slurm\npartition: short\naccount: lab\nqos: standby\nrun_root: {json.dumps(str(in_lab))}\n"
        f'data_root: {json.dumps(str(in_lab))}\nmodules: [cuda, "it\'s odd"]\ngpus_per_node: 4\nrequeue: false\n'
    )
    queued = cluster("check", name, "--no-wait", "--nodes", "1")
    assert (queued.exit_code, f"next: python -m launch.cluster check {name}" in queued.output) == (0, True), (
        queued.output
    )
    taken_up = cluster("check", name)
    assert "is under way already" in taken_up.output
    assert queued.output.split()[1] == taken_up.output.split()[1]  # the same job
    assert taken_up.exit_code == 1, taken_up.output
    assert "jobs would fail here (modules)" in taken_up.output
    found = checked(name)
    assert found.modules is not None
    assert found.modules.ok is False
    assert "has no 'module' command" in found.modules.saw
    assert len(found.nodes) == 1
    for part, ok in (("shared", True), ("srun", True), ("requeue", True), ("internet", False)):
        assert getattr(found, part).ok is ok, part
    config = resolve("smoke", name, []).cluster
    assert (config.internet, config.requeue) == (False, True)
    assert profile.read_text().startswith("# mine\n")


@pytest.mark.slurm
def test_a_check_that_slurm_refuses_leaves_nothing(in_lab: Path, name: str) -> None:
    profile = in_lab.parent / "xdg" / "gilbreth" / "clusters" / f"{name}.yaml"
    profile.parent.mkdir(parents=True)
    text = f"executor: slurm\npartition: nowhere\nrun_root: {json.dumps(str(in_lab))}\n"
    profile.write_text(text)
    done = cluster("check", name)
    assert done.exit_code == 2
    assert "there is no such partition" in done.stderr
    assert profile.read_text() == text
    assert not list(in_lab.rglob(".site-check-*"))
    assert not (log_folder(name) / "check.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "unknown cluster 'nowhere'"),
        (["local"], "without Slurm: there is no site to check"),
        (["generic", "--nodes", "0"], "greater than or equal to 1"),
    ],
)
def test_what_cannot_be_checked(arguments: list[str], message: str) -> None:
    done = cluster("check", *arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_root_that_is_not_shared_is_found(tmp_path: Path) -> None:
    """GIVEN the answers of two nodes, one of which has a disk of its own THEN the verdict names it."""
    log = (
        "something else\n"
        "site-check shared n1 yes /s/runs\n"
        "site-check shared n2 no /s/runs: the login node's file is not seen (No such file or directory)\n"
        "site-check internet n1 yes https://api.wandb.ai answers in 0.2 s\n"
        "site-check internet n2 no https://api.wandb.ai: timed out\n"
        "site-check home n1 unknown /home/ann: 3.0 GB free of 9.0 GB; no quota is told\n"
        "site-check over\n"
    )
    here = Cluster(name="x", executor="slurm")
    found = findings(read_answers(log), here, 2, [tmp_path], "now")
    assert found.shared is not None
    assert (found.shared.ok, "n2: /s/runs" in found.shared.saw) == (False, True)
    # What one of the nodes cannot do, jobs cannot count on.
    assert found.internet is not None
    assert (found.internet.ok, found.internet.saw) == (False, "n2: https://api.wandb.ai: timed out")
    assert found.srun is not None
    assert found.srun.ok is True
    assert found.home is not None
    assert found.home.ok is None

    fine = log.replace("n2 no /s/runs: the login node's file is not seen (No such file or directory)", "n2 yes /s/runs")
    (tmp_path / "node-n1").write_text("x")
    unseen = findings(read_answers(fine), here, 2, [tmp_path], "now").shared
    assert unseen is not None
    assert (unseen.ok, "login node" in unseen.saw, "node-n2" in unseen.saw or "of n2" in unseen.saw) == (
        False,
        True,
        True,
    )
    (tmp_path / "node-n2").write_text("x")
    both = findings(read_answers(fine), here, 2, [tmp_path], "now").shared
    assert both is not None
    assert both.ok is True

    alone = "\n".join(line for line in fine.splitlines() if " n2 " not in line)
    few = findings(read_answers(alone), here, 2, [tmp_path], "now").srun
    assert few is not None
    assert (few.ok, "1 of 2 nodes" in few.saw) == (False, True)


def test_golden_site_check() -> None:
    """The script as it goes to sbatch: golden/site_check.sh."""
    spec = made_spec(cluster={"modules": ["external", "it's"], "conda_env": "my env"})
    spec = dataclasses.replace(spec, name="site-check-here", environment={"A": "b c", "WANDB_BASE_URL": "http://w"})
    assert_golden("site_check", script(spec, Pending("token", ("/scratch/o'neil/runs/.site-check-token",), 1, "now")))


def test_the_script_quotes_what_it_is_given(weird_tmp_path: Path) -> None:
    spec = made_spec(
        root=ROOT,
        cluster={"modules": ["a; echo foo", "it's"], "conda_env": "my env", "name": "x"},
        environment={"ODD": "it's $HOME `id`", "WANDB_BASE_URL": "http://w&b:80"},
    )
    asked = Pending("token", (str(weird_tmp_path / ".site-check-token"),), 2, "now")
    text = script(spec, asked)
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    # The last command with its arguments, as bash would see them.
    command = text[text.index("srun --kill") :].partition(" || say")[0].replace('"$PYTHON"', "python")
    shown = subprocess.run(
        ["bash", "-c", f"srun() {{ printf '%s\\0' \"$@\"; }}; {command}"], capture_output=True, text=True, check=True
    )
    words = shown.stdout.split("\0")
    assert words[words.index("--server") + 1] == "http://w&b:80"
    assert words[words.index("--folder") + 1] == str(weird_tmp_path / ".site-check-token")
