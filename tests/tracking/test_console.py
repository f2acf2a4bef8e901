"""The console in the run folder: each printed line, whatever the streams are and however the process ends."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tracking import ExperimentTracker
from tracking.console import Console, heading

from runs import TAGS

_ROOT = Path(__file__).parents[2]


def run_program(code: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Runs a program that has `console`, a `Console` on `output.log` in the folder."""
    begin = (
        "import os, sys, time\nfrom pathlib import Path\nfrom tracking.console import Console\n"
        "console = Console(Path('output.log'), '--- begin')\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(_ROOT), **variables}
    return subprocess.run(
        [sys.executable, "-c", begin + code],
        check=False, capture_output=True, text=True, timeout=60, cwd=folder, env=environment,
    )  # fmt: skip


def log_of(folder: Path) -> str:
    return (folder / "output.log").read_text()


def test_both_streams_are_kept_and_printed_as_before(weird_tmp_path: Path) -> None:
    done = run_program(
        """
before = sys.stdout, sys.stdout.fileno(), sys.stdout.encoding, sys.stdout.isatty()
print("one", 2, sep=", ", end="")
print("", file=sys.stderr)
print(" and three")
sys.stderr.writelines(["four\\n", "fünf\\n"])
assert before == (sys.stdout, sys.stdout.fileno(), sys.stdout.encoding, sys.stdout.isatty())
console.stop()
console.stop()
print("after")
assert "write" not in vars(sys.stdout)
""",
        weird_tmp_path,
        PYTHONUTF8="1",
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout == "one, 2 and three\nafter\n"
    assert done.stderr == "\nfour\nfünf\n"
    assert log_of(weird_tmp_path) == "--- begin\n\none, 2 and three\nfour\nfünf\n"


def test_a_progress_bar_is_its_last_state(tmp_path: Path) -> None:
    done = run_program(
        """
import tqdm
for _ in tqdm.tqdm(range(50), mininterval=0, ascii=True, ncols=40):
    pass
sys.stdout.write("10%\\r")
sys.stdout.write("20%\\r")
sys.stdout.write("done\\r\\n")
sys.stdout.write("\\rhalf")
""",
        tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("it/s") > 40
    first, bar, last, half = log_of(tmp_path).splitlines()
    assert (first, last, half) == ("--- begin", "done", "half")
    assert bar.startswith("100%|")


@pytest.mark.parametrize("how", ["raise ValueError('bad batch')", "os.kill(os.getpid(), 9)"])
def test_what_was_printed_before_a_crash_is_there(tmp_path: Path, how: str) -> None:
    done = run_program(f"print('step 1')\n{how}\n", tmp_path)

    assert done.returncode != 0
    assert log_of(tmp_path).startswith("--- begin\nstep 1\n")
    assert ("ValueError: bad batch" in log_of(tmp_path)) == ("ValueError" in how)


def test_no_secret_reaches_the_file(tmp_path: Path) -> None:
    done = run_program(
        """
print("key", os.environ["WANDB_API_KEY"])
os.environ["HF_TOKEN"] = "sesame-open-now"
print("token is sesame-", end="")
print("open-now")
print("password: swordfish, lr=0.1")
""",
        tmp_path,
        WANDB_API_KEY="0123456789abcdef",
    )

    assert done.returncode == 0, done.stderr
    assert "0123456789abcdef" in done.stdout
    assert log_of(tmp_path).splitlines()[1:] == [
        "key [redacted]",
        "token is [redacted]",
        "password: [redacted], lr=0.1",
    ]


def test_a_full_disk_is_one_warning_and_no_more_lines(tmp_path: Path) -> None:
    done = run_program(
        """
import resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (200, resource.RLIM_INFINITY))
for step in range(100):
    print("step", step)
""",
        tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "step 99"
    assert done.stderr.count("output.log cannot be written") == 1
    assert (tmp_path / "output.log").stat().st_size == 200


def test_a_folder_that_cannot_be_written_does_not_stop_the_program(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console = Console(tmp_path / "absent" / "output.log", "--- begin")
    print("goes on")
    console.stop()
    said = capsys.readouterr()
    assert said.out == "goes on\n"
    assert said.err.count("cannot be written: No such file or directory") == 1


def test_a_line_that_a_killed_process_left_is_ended_first(tmp_path: Path) -> None:
    (tmp_path / "output.log").write_text("--- first\nto")
    Console(tmp_path / "output.log", "--- second").stop()
    assert log_of(tmp_path) == "--- first\nto\n--- second\n"


def test_a_log_does_not_grow_for_ever(tmp_path: Path) -> None:
    with (tmp_path / "output.log").open("wb") as file:
        file.truncate(64 * 2**20 - 100)
        file.seek(0, os.SEEK_END)
        file.write(b"\n")
    done = run_program("for step in range(1000): print('step', step)", tmp_path)

    assert done.stdout.splitlines()[-1] == "step 999"
    with (tmp_path / "output.log").open("rb") as file:
        file.seek(-60, os.SEEK_END)
        assert file.read().endswith(b"[the log has 64 MiB; later lines are not kept]\n")
    assert (tmp_path / "output.log").stat().st_size < 64 * 2**20 + 100


@pytest.mark.parametrize("first_out", [0, 1])
def test_two_at_once_each_keep_what_was_printed_meanwhile(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], first_out: int
) -> None:
    consoles = [Console(tmp_path / "a", "---"), Console(tmp_path / "b", "---")]
    print("both")
    consoles.pop(first_out).stop()
    print("one")
    consoles[0].stop()
    print("none")

    kept = sorted([(tmp_path / "a").read_text(), (tmp_path / "b").read_text()])
    assert kept == ["---\nboth\n", "---\nboth\none\n"]
    assert capsys.readouterr().out == "both\none\nnone\n"


def test_a_forked_process_writes_nothing_into_the_file(tmp_path: Path) -> None:
    done = run_program(
        """
sys.stdout.write("begun ")
sys.stdout.flush()
if (child := os.fork()) == 0:
    print("in the child")
    console.stop()
    sys.exit(0)
os.waitpid(child, 0)
print("and ended")
""",
        tmp_path,
    )

    assert done.returncode == 0, done.stderr
    assert log_of(tmp_path) == "--- begin\nbegun and ended\n"


def test_threads_write_whole_lines(tmp_path: Path) -> None:
    done = run_program(
        """
import threading
def work(name):
    for number in range(500):
        sys.stdout.write(f"{name} {number}\\n")
threads = [threading.Thread(target=work, args=[name]) for name in "abcd"]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
""",
        tmp_path,
    )

    assert done.returncode == 0, done.stderr
    expected = {f"{name} {number}" for name in "abcd" for number in range(500)}
    assert sorted(log_of(tmp_path).splitlines()[1:]) == sorted(expected)


def test_streams_that_take_no_attribute_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", object())
    Console(tmp_path / "output.log", "---").stop()
    assert log_of(tmp_path) == "---\n"


def test_a_print_costs_microseconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound is ten times what an idle core takes."""
    with Path(os.devnull).open("w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        console = Console(tmp_path / "output.log", "---")
        best = float("inf")
        for _ in range(5):
            begin = time.perf_counter()
            for step in range(1000):
                print(f"step {step} loss 0.123 lr 1e-4 samples/s 1234.5")
            best = min(best, (time.perf_counter() - begin) / 1000)
        console.stop()
    assert best < 200e-6
    assert len(log_of(tmp_path).splitlines()) == 5001


def test_the_heading_names_segment_job_and_host() -> None:
    assert heading(0, None).startswith(f"--- segment 0, on {os.uname().nodename}, 20")
    job = {"job_id": "12", "restart_count": 2}
    assert heading(3, job).startswith(f"--- segment 3, job 12 (restart 2) on {os.uname().nodename}, 20")


@pytest.fixture
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("WANDB_", "SLURM_"))] + ["RANK"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("offline")
def test_a_tracker_keeps_each_segment_under_its_heading(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    for step in (1, 2):
        with ExperimentTracker(tags=TAGS, run_dir=run_dir, mode="offline") as tracker:
            tracker.log_metrics({"x": 1}, step)
            print("step", step)
    print("later")

    lines = log_of(run_dir).splitlines()
    heads = [number for number, line in enumerate(lines) if line.startswith("--- segment ")]
    assert [lines[head].split(",")[0] for head in heads] == ["--- segment 0", "--- segment 1"]
    assert heads[0] < lines.index("step 1") < heads[1] < lines.index("step 2")
    assert "later" not in lines


@pytest.mark.usefixtures("offline")
def test_a_crash_in_a_tracked_block_leaves_its_traceback(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        ExperimentTracker(tags=TAGS, run_dir=tmp_path / "run", mode="offline", finish_timeout=30),
    ):
        raise RuntimeError("loss is not finite")
    assert log_of(tmp_path / "run").endswith("RuntimeError: loss is not finite\n")


@pytest.mark.usefixtures("offline")
def test_a_tracker_can_do_without(tmp_path: Path) -> None:
    ExperimentTracker(tags=TAGS, run_dir=tmp_path / "run", mode="offline", console=False).finish()
    assert not (tmp_path / "run" / "output.log").exists()
