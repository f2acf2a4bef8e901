"""`python -m launch.preflight FILE.sh`: what it says to scripts with faults, and that it is silent on good ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from launch.config import ROOT, load_cluster
from launch.preflight.finding import as_text, errors_of
from launch.preflight.script.directives import directives, minutes_in, request_in
from launch.preflight.script.lint import lint
from launch.preflight.script.shell import commands
from launch.render import batch_script

from launch_jobs import make_spec
from preflight_cases import CASES, HEAD, TWO_NODES

BROKEN = sorted((Path(__file__).parent / "broken_scripts").glob("*.sh"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "there").mkdir()
    return tmp_path


def rules_of(text: str, folder: Path, cluster: str | None = None) -> list[str]:
    return [finding.rule for finding in lint(text, folder, load_cluster(cluster) if cluster else None)]


def preflight(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "launch.preflight", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("rule", CASES)
def test_a_script_with_the_fault_and_without(rule: str, folder: Path) -> None:
    bad, good = CASES[rule]
    assert rule in rules_of(bad, folder)
    assert rule not in rules_of(good, folder)


def test_a_finding_names_the_line_and_never_shows_a_secret(folder: Path) -> None:
    (finding,) = lint(HEAD + "\n\nexport HF_TOKEN=hf_abcdefghijklmnopqrstuvwxyz\n", folder)
    assert (finding.rule, finding.line, finding.what) == ("secret", 5, "HF_TOKEN stands in the script")


def test_what_a_profile_allows_is_held_against_a_script(folder: Path) -> None:
    asks = HEAD + "#SBATCH -q standby --gpus-per-node=4 -p a100-80gb\n#SBATCH --time=4:00:01\n"
    found = {finding.rule: finding for finding in lint(asks, folder, load_cluster("gilbreth"))}
    assert found["time-qos"].line == 4 and "--time=04:00:00" in found["time-qos"].fix
    assert found["gpus-node"].line == 3
    assert rules_of(asks.replace("=4 ", "=2 ").replace(":01", ":00"), folder, "gilbreth") == []


def test_the_projects_own_scripts_are_good(folder: Path) -> None:
    """Also what `launch.submit` renders, on one node and on four."""
    own = sorted([*(ROOT / "job_templates").glob("0*.sh"), ROOT / "job_templates" / "sync_runs.sh"])
    assert len(own) >= 2
    for path in own:
        assert lint(path.read_text(), ROOT) == [], path
    (folder / "logs" / "run").mkdir(parents=True)
    for nodes in (1, 4):
        spec = make_spec(root=ROOT, log_dir=folder / "logs" / "run", resources={"nodes": nodes})
        assert lint(batch_script(spec, [str(spec.run_dir)]), folder, spec.cluster) == []


def test_what_a_script_sources_is_read_and_where_it_cannot_be_nothing_is_claimed(folder: Path) -> None:
    text = TWO_NODES + '. "$SLURM_SUBMIT_DIR/helpers.sh"\nrun python train.py\n'
    assert rules_of(text, folder) == [], "what cannot be read may hold the srun"
    (folder / "helpers.sh").write_text("run() { hostname; }\n")
    assert rules_of(text, folder) == ["missing-srun"]
    (folder / "helpers.sh").write_text('run() { srun -K "$@"; }\n')
    assert rules_of(text, folder) == []


def test_comments_quotes_and_here_documents_are_no_commands() -> None:
    text = "#!/bin/sh\necho 'a # b' # NCCL\ncat <<'END'\nsrun x\nEND\nrun \\\n  --a \\\n  b\n"
    assert [(one.line, one.words) for one in commands(text)] == [
        (2, ["echo", "a # b"]),
        (3, ["cat", "<<END"]),
        (6, ["run", "--a", "b"]),
    ]


@pytest.mark.parametrize("line", ['read -r a <<< "one"', "read -r a <<<one", "n=$((1<<k))", "n=$(( 1 << k ))"])
def test_what_looks_like_a_here_document_hides_nothing(line: str) -> None:
    assert [one.line for one in commands(f"#!/bin/bash\n{line}\nsrun x\n")] == [2, 3]


def test_options_in_all_their_forms() -> None:
    text = "#!/bin/sh\n#SBATCH -N 2 -n8 --gpus=a100:8\n#SBATCH --mem 4G --time=1-2 --exclusive # why\n##SBATCH -c 9\n"
    assert [(one.name, one.value) for one in directives(text)] == [
        ("nodes", "2"), ("ntasks", "8"), ("gpus", "a100:8"), ("mem", "4G"), ("time", "1-2"), ("exclusive", "")
    ]  # fmt: skip
    request = request_in(directives(text))
    assert (request.nodes, request.tasks_per_node, request.gpus_per_node) == (2, 4, 4)
    assert (request.memory_mb, request.minutes, request.cpus_per_task) == (4096, 26 * 60, None)
    times = ("90", "90:01", "1:30:00", "2-00", "1-01:30", "1-00:00:30", "soon")
    assert [minutes_in(one) for one in times] == [90, 91, 90, 2880, 1530, 1441, None]


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_a_broken_script_of_others(path: Path, folder: Path) -> None:
    """GIVEN scripts of kinds that public repositories have WHEN they are looked at THEN the page shows what is said."""
    found = lint(path.read_text(), folder)
    page = (ROOT / "docs" / "preflight.md").read_text().partition(f"### `{path.name}`")[2]
    shown = page.partition("```\n")[2].partition("```")[0]
    assert "\n".join(as_text(finding, 80) for finding in found) + "\n" == shown
    assert errors_of(found) and max(map(len, shown.splitlines())) <= 80


def test_the_command_line(folder: Path) -> None:
    good, bad = folder / "it's good.sh", folder / "bad.sh"
    good.write_text(HEAD + "hostname\n")
    bad.write_text(HEAD + "#SBATCH --mem=$MEM\n")
    done = preflight(str(good), "--cluster", "lab")
    assert (done.returncode, done.stdout) == (0, f"{good}: nothing found\n")
    done = preflight(str(good), str(bad), "--json")
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found[str(good)] == []
    assert [(one["rule"], one["level"], one["line"]) for one in found[str(bad)]] == [("directive-variable", "error", 3)]
    (folder / "warned.sh").write_text("#!/bin/bash\nhostname\n")
    assert preflight(str(folder / "warned.sh")).returncode == 0, "warnings do not fail"
    for arguments, message in (
        ([str(folder / "none.sh")], "cannot read"),
        ([str(folder)], "cannot read"),
        ([str(good), "--cluster", "gilbert"], "Did you mean 'gilbreth'?"),
    ):
        done = preflight(*arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr and "Traceback" not in done.stderr
