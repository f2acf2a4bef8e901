"""The stage program `bc` by its real command line: what it refuses, and what a whole run leaves."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gilbreth_phase0.attempt import MAX_ATTEMPTS, Outcome, decide
from gilbreth_phase0.datasets import write_environment
from tracking import checkpoints, read_journal
from tracking.files import read_json
from tracking.ownership import AttemptKey
from tracking.store import Store, resolve
from tracking.store.pending import needs_push
from tracking.sync.scan import run_due_at

from rank_pairs import ROOT, rank_environment, run_pair
from tiny_dataset import ENVIRONMENT, EPISODES, FRAMES, SMALL, Written, make_tiny_dataset, write_dataset

PROGRAM = [sys.executable, "-m", "gilbreth_phase0.train_policy"]


def bc(*flags: str | Path, timeout: float = 60, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*PROGRAM, *flags],
        cwd=ROOT,
        env={**rank_environment(), **environ},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def check_refused(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 2, done.stdout + done.stderr
    assert done.stdout == ""
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_help_comes_at_once() -> None:
    began = time.monotonic()
    done = bc("--help")
    seconds = time.monotonic() - began
    assert done.returncode == 0
    for flag in ("--run-dir", "--repo-ids", "--batch-size", "--zero-stage", "--eval-episodes"):
        assert flag in done.stdout
    # PyTorch alone takes longer to import; 0.6 s was measured.
    assert seconds < 5
    heavy = "import sys, gilbreth_phase0.train_policy; print({'torch', 'lerobot', 'robosuite'} & set(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", heavy], cwd=ROOT, capture_output=True, text=True, check=True)
    assert loaded.stdout == "set()\n"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    (root / "there" / "meta").mkdir(parents=True)
    (root / "there" / "meta" / "info.json").write_text("{}")
    write_environment(root / "there" / "meta" / "environment.json", ENVIRONMENT)
    return root


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--policy-settings={dim_model: 64}"], ["--policy-settings '{dim_model: 64}' is not JSON"]),
        (["--policy-settings=[1]"], ["--policy-settings '[1]'", "expected an object"]),
        (["--n-action-steps=11"], ["--n-action-steps 11", "only the 10 actions", "--action-chunk-size"]),
        (["--batch-size=64", "--gradient-accumulation=3"], ["--batch-size 64", "multiple of 3", "for example 66"]),
        (["--batch-size=0"], ["--batch-size 0", "greater than or equal to 1"]),
        (["--eval-freq=100", "--eval-episodes=0"], ["--eval-freq 100: there is nothing to evaluate"]),
        (["--model-management=/no/such.yaml"], ["/no/such.yaml cannot be read: No such file or directory"]),
        (["--repo-ids=lfit"], ["no dataset at ", "lfit", "gilbreth_phase0.collect --repo-id lfit --root"]),
        (["--weights=1,3"], ["--weights '1,3'", "for each of the 1 dataset", "as in 3"]),
        (["--policy=diffusion", "--action-chunk-size=10"], ["--action-chunk-size 10", "multiple of 8, for example 16"]),
        (["--eval-seed=7"], ["--eval-seed 7", "seeds 7 to 16", "next: --eval-seed 100000"]),
        (["--env=Stack"], ["--env Stack: dataset there was recorded with Lift", "next: --env Lift"]),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(
    flags: list[str], words: list[str], data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    done = bc(f"--run-dir={run}", f"--root={data}", "--repo-ids=there", *flags)
    check_refused(done, *words)
    assert not run.exists()


def test_a_batch_must_be_shared_by_all_ranks(data: Path, tmp_path: Path) -> None:
    flags = [f"--run-dir={tmp_path}", f"--root={data}", "--repo-ids=there", "--batch-size=64"]
    check_refused(bc(*flags, WORLD_SIZE="3", RANK="1"), "--batch-size 64 cannot be shared by 3 ranks")
    assert (tmp_path / "refused").exists(), "in a run folder that is there, the batch script finds the refusal"


@pytest.mark.train
def test_a_run_folder_that_cannot_be_written_is_refused(data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    done = bc(f"--run-dir={tmp_path}/file/run", f"--root={data}", "--repo-ids=there")
    check_refused(done, f"the run folder {tmp_path}/file/run cannot be written: Not a directory", "--run-dir")


@pytest.mark.train
def test_a_gpu_that_is_not_there_is_refused(data: Path, tmp_path: Path) -> None:
    done = bc(f"--run-dir={tmp_path / 'run'}", f"--root={data}", "--repo-ids=there", "--device=cuda")
    check_refused(done, "--device 'cuda': PyTorch sees no GPU here", "--device cpu")
    assert not (tmp_path / "run").exists()


@pytest.mark.train
def test_diffusion_on_two_datasets_and_two_ranks(tmp_path: Path) -> None:
    """GIVEN plain and annotated episodes THEN both ranks train what is kept, and policies stay where users look."""
    write_dataset(tmp_path, "plain", [Written(20)])
    write_dataset(
        tmp_path,
        "extra",
        [Written(10, source=0, success=0), Written(12, relabelled=(3,)), Written(9, success=0)],
        columns=("source", "success", "intervention"),
    )
    store = tmp_path / "models"
    command = [
        *("-m", "gilbreth_phase0.train_policy", f"--root={tmp_path}", "--repo-ids=plain,extra", "--weights=1,2"),
        f"--checkpoint-dir={tmp_path / 'my checkpoints'}",
        *(
            "--policy=diffusion",
            "--action-chunk-size=8",
            "--n-action-steps=6",
            '--policy-settings={"down_dims": [8, 16]}',
        ),
        *("--batch-size=4", "--training-steps=5", "--checkpoint-freq=2", "--log-interval=1", "--eval-episodes=0"),
        *("--num-workers=0", "--device=cpu", "--no-use-wandb"),
    ]
    ended = run_pair(command, timeout=200, GILBRETH_STORE=str(store))
    assert [rank.returncode for rank in ended] == [0, 0], ended[0].output + ended[1].output
    run = tmp_path / "my checkpoints" / "diffusion_plain-extra"
    for line in (
        "  extra: 1 of 3 episodes, 12 of 31 frames, weight 2",
        "data:        plain, extra: 32 frames of 2 episodes",
        f"folder:      {run}",
        "model diffusion-plain-extra:v0 (latest, final, best, step-5) in ",
    ):
        assert line in ended[0].output
    assert {path.name for path in run.glob("*_*")} == {"checkpoint_2", "checkpoint_4", "final_model"}
    sizes = {(run / name / "model.safetensors").stat().st_ino for name in ("checkpoint_2", "checkpoint_4", "bundle")}
    assert len(sizes) == 3
    assert (run / "final_model" / "model.safetensors").samefile(run / "bundle" / "model.safetensors")
    assert read_json(run / "final_model" / "config.json")["do_mask_loss_for_padding"] is True
    assert read_json(run / "final_model" / "config.json")["drop_n_last_frames"] == 8 - 6 - 2 + 1
    journal = read_journal(run)
    assert [row.step for row in journal.rows if "loss/total" in row.data] == [1, 2, 3, 4, 5]
    assert not any((run / name).exists() for name in ("wandb", "sync.json")), "W&B has no part in it"
    assert run_due_at(run) is None and not needs_push(Store(store)), "and the daemon leaves it alone"
    facts = resolve("diffusion-plain-extra:final", Store(store)).version
    assert facts is not None and facts.metadata["datasets"] == ["plain", "extra"]
    assert (facts.metadata["weights"], facts.metadata["dagger_filter"]) == ([1.0, 2.0], "corrections")


@pytest.mark.train
@pytest.mark.sim
def test_a_whole_run_without_zero(tmp_path: Path) -> None:
    """GIVEN ZeRO stage 0 and one process THEN the run ends in a bundle, an evaluation and a done record."""
    make_tiny_dataset(tmp_path / "data")
    run = tmp_path / "it's a run"
    flags = [
        f"--run-dir={run}",
        f"--root={tmp_path / 'data'}",
        "--repo-ids=tiny",
        f"--policy-settings={json.dumps(SMALL)}",
        *("--zero-stage=0", "--batch-size=8", "--training-steps=6", "--save-freq=4", "--log-interval=2"),
        *("--eval-episodes=1", "--max-steps=30", "--num-workers=0", "--device=cpu", "--save-video"),
    ]
    store = tmp_path / "models"
    environ = {"MUJOCO_GL": os.environ.get("MUJOCO_GL", "osmesa"), "GILBRETH_STORE": str(store)}
    done = bc(*flags, timeout=180, **environ)
    assert done.returncode == 0, done.stdout + done.stderr
    for line in (
        r"policy:      act, [\d,]+ parameters",
        rf"data:        tiny: {EPISODES * FRAMES} frames of {EPISODES} episodes",
        "steps:       6 of 8 samples",
        r"device:      cpu, 1 rank\(s\) x \d+ thread\(s\), ZeRO stage 0",
        "environment: Lift, Panda, 20 Hz; evaluated every 1000 steps and at the end, 1 episode of at most 30 steps",
        f"folder:      {run}",
    ):
        assert re.search(rf"^{line}$", done.stdout, re.MULTILINE), (line, done.stdout)
    for step in (4, 6):
        assert re.search(rf"^step-0000000{step} is saved, in \S+ s; training waited for ", done.stdout, re.MULTILINE)
    assert "evaluation on seeds 100000 to 100000: " in done.stdout
    assert read_json(run / "done.json")["step"] == 6
    assert read_json(run / "evaluation.json")["trained"]["trials"] == 1
    assert {"config.json", "model.safetensors", "environment.json"} <= {
        path.name for path in (run / "bundle").iterdir()
    }
    assert "model act-tiny:v0 (latest, final, best, step-6) in " in done.stdout
    found = resolve("act-tiny:best", Store(store))
    assert {path.name for path in found.path.iterdir()} == {path.name for path in (run / "bundle").iterdir()}
    assert found.version is not None and found.version.run is not None
    assert (found.version.metadata["dataset"], found.version.metadata["dataset_frames"]) == ("tiny", EPISODES * FRAMES)
    assert found.version.metadata["eval_seeds"] == [100_000]
    assert found.version.run["id"] == read_json(run / "run.json")["run_id"]
    for name in ("best_model", "final_model"):
        files = {path.name: path for path in (run / name).iterdir()}
        assert files["model.safetensors"].samefile(run / "bundle" / "model.safetensors"), "no second copy on the disk"
        assert files.keys() == {path.name for path in (run / "bundle").iterdir()}
    assert read_json(run / "evaluation.json")["trained"]["mean_length"] <= 30
    (video,) = (run / "videos").iterdir()
    assert re.fullmatch(r"seed-100000-(success|failure)\.mp4", video.name) and video.stat().st_size > 1000
    whole = checkpoints.newest_whole(run / "checkpoints", print)
    assert whole is not None and (whole[1].step, whole[1].zero_stage) == (6, 0)
    journal = read_journal(run)
    assert [row.step for row in journal.rows if "loss/total" in row.data] == [2, 4, 6]
    assert journal.rows[-1].data["eval/episodes"] == 1.0

    def contents() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in run.rglob("*") if path.is_file()}

    before = contents()
    again = bc(*flags)
    assert (again.returncode, again.stdout) == (0, f"{run} is complete already; nothing to do\n"), again.stderr
    assert contents() == before

    for name in ["done.json", *(str(path.relative_to(run)) for path in run.glob("checkpoints/step-*/manifest.json"))]:
        (run / name).unlink()
    lost = bc(*flags, timeout=60)
    assert lost.returncode == 2, lost.stdout + lost.stderr
    assert f"error: no checkpoint in {run / 'checkpoints'} is whole" in lost.stderr
    assert "not started again at step 0" in lost.stderr
    assert decide(run, lost.returncode, AttemptKey("1", 0), MAX_ATTEMPTS, cancelled=False).outcome is Outcome.END
