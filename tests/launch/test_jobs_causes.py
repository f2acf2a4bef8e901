"""Why runs failed: on the logs of processes that really fail so, and on what PyTorch writes where there is a GPU."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launch.jobs.causes import Cause, find_cause, lines_around
from launch.jobs.signatures import SIGNATURES
from launch.slurm import JobState

from launch_jobs import PROGRAMS

FACTS = {"stage": "bc", "run": "mine", "environment": "the conda environment robots", "nodes": "node[3-4]"}

# As PyTorch 2.10 formats them; test_the_recorded_words_are_those_of_the_installed_pytorch compares the fixed parts.
CUDA_MEMORY = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.25 GiB "
    "of which 1.19 GiB is free. Including non-PyTorch memory, this process has 78.05 GiB memory in use."
)
NCCL_TIMEOUT = (
    "[rank{rank}]:[E{date} ProcessGroupNCCL.cpp:683] [Rank {rank}] Watchdog caught collective operation timeout: "
    "WorkNCCL(SeqNum=12, OpType=ALLREDUCE, NumelIn=1, NumelOut=1, Timeout(ms)=600000) ran for 600041 milliseconds "
    "before timing out."
)


def run_ranks(tmp_path: Path, way: str, ranks: int = 1) -> dict[int, Path]:
    """Runs the failing program, one process a rank, each with its log; the first failure ends all, as srun's does."""
    logs = {rank: tmp_path / f"12_{rank}_log.out" for rank in range(ranks)}
    processes = []
    for rank, log in logs.items():
        environment = {**os.environ, "SLURM_PROCID": str(rank), "SLURM_NTASKS": str(ranks), "CUDA_VISIBLE_DEVICES": ""}
        command = [sys.executable, "-u", str(PROGRAMS / "fails.py"), f"--run-dir={tmp_path}", way]
        with log.open("ab") as output:
            processes.append(subprocess.Popen(command, stdout=output, stderr=output, env=environment))
    try:
        deadline = time.monotonic() + 120
        while all(process.poll() is None for process in processes):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for process in processes:  # what has lost its peers ends by itself
            try:
                process.wait(3 if ranks > 1 else 30)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGTERM)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return logs


def failed(code: int = 1, by_signal: int | None = None, state: str = "FAILED") -> JobState:
    return JobState("12", state, "NonZeroExitCode", code, by_signal)


def cause_of(logs: dict[int, Path], job: JobState | None = None, *, refused: bool = False) -> Cause:
    cause = find_cause(logs, job or failed(), FACTS, refused=refused)
    assert cause is not None
    return cause


@pytest.mark.parametrize(
    ("way", "kind", "words", "fix"),
    [
        ("package", "module missing", "a_package_that_nobody_has", "the conda environment robots"),
        ("library", "import", "libnobody.so.7", "make setup"),
        ("memory", "host memory", "ran out of memory", "resources.memory_gb"),
        ("disk", "disk full", "a disk is full", "df -h"),
        ("quota", "quota", "quota", "cluster.run_root"),
        ("file_size", "file size", "limit of its size", "ulimit -f"),
        ("port", "port", "port was taken", "MASTER_PORT"),
        ("program", "command missing", "a_program_that_nobody_has", "cluster.modules"),
        ("own", "exception", "ValueError: the loss is not what it was", "explain"),
        pytest.param("wandb_key", "wandb key", "API key", "wandb login", marks=pytest.mark.wandb),
        pytest.param("workers", "shared memory", "/dev/shm", "num_workers", marks=pytest.mark.train),
        pytest.param("deepspeed", "batch", "7 != 4 * 2 * 1", "--dry-run", marks=pytest.mark.train),
    ],
)
def test_a_process_that_fails(way: str, kind: str, words: str, fix: str, tmp_path: Path) -> None:
    logs = run_ranks(tmp_path, way)
    cause = cause_of(logs)
    assert (cause.kind, cause.rank, cause.log) == (kind, 0, logs[0])
    assert words in cause.what
    assert fix in cause.fix
    assert cause.line is not None
    assert any(cause.line.rstrip("…") in " ".join(line.split()) for line in lines_around(cause))


def test_a_refused_input_is_said_in_its_own_words(tmp_path: Path) -> None:
    cause = cause_of(run_ranks(tmp_path, "refuse"), failed(2), refused=True)
    assert cause.what == "the input was refused: dataset 'lift' is not in /data"
    assert "cannot mend it" in cause.fix


@pytest.mark.train
def test_a_rank_that_dies_is_the_cause_and_what_its_peer_says_is_not(tmp_path: Path) -> None:
    """GIVEN two ranks that reduce over gloo WHEN rank 1 dies THEN rank 0 complains, and rank 1 is named."""
    logs = run_ranks(tmp_path, "peers", ranks=2)
    assert cause_of({0: logs[0]}).kind == "peer gone"
    cause = cause_of(logs)
    assert (cause.kind, cause.rank) == ("module missing", 1)


def write(tmp_path: Path, *texts: str) -> dict[int, Path]:
    logs = {rank: tmp_path / f"12_{rank}_log.out" for rank in range(len(texts))}
    for rank, text in enumerate(texts):
        logs[rank].write_text(text)
    return logs


@pytest.mark.parametrize("earlier_first", [True, False])
def test_memory_goes_before_the_time_out_that_followed(earlier_first: bool, tmp_path: Path) -> None:
    """GIVEN rank 1 out of memory and rank 0 waiting ten minutes for it THEN memory is the cause, whoever wrote last."""
    waits = NCCL_TIMEOUT.format(rank=0, date="1121 15:14:05.123456789")
    logs = write(tmp_path, f"loss 0.1\n{waits}\n", f"Traceback (most recent call last):\n{CUDA_MEMORY}\n")
    now = time.time()
    os.utime(logs[1 if earlier_first else 0], (now - 600, now - 600))
    cause = cause_of(logs)
    assert (cause.kind, cause.rank) == ("cuda memory", 1)
    assert "halve --set bc.batch_size" in cause.fix


def test_the_first_of_two_causes_is_the_one(tmp_path: Path) -> None:
    early = "2026-11-21 15:00:01 [Errno 28] No space left on device: '/scratch/x'"
    late = "2026-11-21 15:00:09 MemoryError: Cannot allocate memory"
    assert cause_of(write(tmp_path, f"{late}\n", f"{early}\n")).kind == "disk full"
    assert cause_of(write(tmp_path, f"{early}\n", f"{late}\n")).kind == "disk full"


def test_a_time_out_alone_is_what_is_known(tmp_path: Path) -> None:
    cause = cause_of(write(tmp_path, NCCL_TIMEOUT.format(rank=0, date="1121 15:14:05.1") + "\n"))
    assert cause.kind == "collective timeout"
    assert "logs mine --rank N" in cause.fix


def test_only_the_last_attempt_counts(tmp_path: Path) -> None:
    begin = "submitit INFO (2026-11-21 15:26:10,942) - Starting with JobEnvironment(job_id=12)\n"
    first, second = "ModuleNotFoundError: No module named 'robots'\n", "OSError: [Errno 122] Disk quota exceeded\n"
    assert cause_of(write(tmp_path, begin + first + begin + second)).kind == "quota"
    # An attempt that left no words of its own is taken to have ended as the one before it.
    assert cause_of(write(tmp_path, begin + first + begin)).kind == "module missing"


@pytest.mark.parametrize(
    ("job", "kind"),
    [
        (failed(0, 15, "CANCELLED"), "cancelled"),
        (failed(0, None, "NODE_FAIL"), "node lost"),
        (failed(0, None, "PREEMPTED"), "preempted"),
        (failed(0, None, "TIMEOUT"), "time limit"),
        (failed(0, 125, "OUT_OF_MEMORY"), "host memory"),
        (failed(0, 53), "no log"),
        (failed(0, 9), "signal"),
        (failed(7), "exit"),
    ],
)
def test_what_slurm_alone_tells(job: JobState, kind: str, tmp_path: Path) -> None:
    logs = {} if kind == "no log" else write(tmp_path, "step 1\nstep 2\n")
    assert cause_of(logs, job).kind == kind


def test_a_run_that_met_its_limit_after_it_hung(tmp_path: Path) -> None:
    logs = write(tmp_path, "waiting\n", f"{CUDA_MEMORY}\n")
    assert cause_of(logs, failed(0, None, "TIMEOUT")).kind == "cuda memory"
    assert cause_of(logs, failed(0, 15, "CANCELLED")).kind == "cancelled"


def test_a_killed_rank_is_named_by_srun(tmp_path: Path) -> None:
    cause = cause_of(write(tmp_path, "step 1\nsrun: error: node1: task 3: Killed\n", ""), failed(137))
    assert (cause.kind, cause.rank) == ("killed", 3)


def test_nothing_is_said_where_nothing_is_known(tmp_path: Path) -> None:
    assert find_cause({}, None, FACTS) is None
    assert find_cause(write(tmp_path, "all is well\n"), None, FACTS) is None
    assert find_cause({0: tmp_path / "none"}, failed(0, state="COMPLETED"), FACTS) is None


def test_no_more_of_a_log_is_read_than_its_end(tmp_path: Path) -> None:
    """GIVEN a log of 200 MB THEN its last lines tell, in a moment."""
    log = tmp_path / "12_0_log.out"
    with log.open("wb") as file:
        file.truncate(200 * 2**20)
        file.seek(0, 2)
        file.write(b"\nModuleNotFoundError: No module named 'robots'\n")
    began = time.monotonic()
    assert cause_of({0: log}).kind == "module missing"
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("slurmstepd: error: Detected 1 oom-kill event(s) in StepId=12.0. Some of your processes may", "host memory"),
        ("slurmstepd: error: *** STEP 12.0 ON k1 CANCELLED AT 2026-11-21T15:06:13 DUE TO TIME LIMIT ***", "time limit"),
        ("slurmstepd: error: *** JOB 12 ON k001 CANCELLED AT 2026-11-21T15:06:13 DUE TO PREEMPTION ***", "preempted"),
        ("srun: error: Node failure on gilbreth-k001", "node lost"),
        ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "gpu lost"),
        ("kernel: NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.", "gpu lost"),
        ("RuntimeError: No CUDA GPUs are available", "no gpu"),
        ("ncclInvalidUsage: Duplicate GPU detected : rank 0 and rank 1 both on CUDA device 3b000", "nccl duplicate"),
        ("OSError: [Errno 116] Stale file handle: '/scratch/x/journal-000.jsonl'", "disk gone"),
        ("ImportError: /lib64/libc.so.6: version `GLIBC_2.32' not found (required by x.so)", "import"),
        ('Lmod has detected an error: The following module(s) are unknown: "cuda/99"', "environment module"),
        ("RuntimeError: Error building extension 'cpu_adam'", "extension"),
        ("ninja: build stopped: subcommand failed.", "extension"),
        ("RuntimeError: DataLoader worker (pid 77) is killed by signal: Bus error.", "shared memory"),
        ("torch.distributed.DistNetworkError: The server socket has failed to listen. port: 29500, EADDRINUSE", "port"),
        ("deepspeed.runtime.zero.utils.ZeRORuntimeException: The checkpoint used a DP world size of 4", "deepspeed"),
    ],
)
def test_what_else_programs_write(line: str, kind: str, tmp_path: Path) -> None:
    assert cause_of(write(tmp_path, f"step 1\n{line}\n")).kind == kind


@pytest.mark.parametrize(
    "line",
    [
        "eval: 19/20, success 0.9, 3.1/s",
        "W&B: offline, no API key is needed",
        "requeue: planned stop, newest checkpoint at step 600",
        "wandb: Tracking run with wandb version 0.24.2",
        "[2026-11-21 15:00:00,000] [INFO] [config.py:1003:print]   memory_breakdown ............. False",
        "loss 0.28 lr 1e-4 [Errno-free]",
    ],
)
def test_what_a_healthy_log_says_is_no_cause(line: str, tmp_path: Path) -> None:
    assert find_cause(write(tmp_path, f"{line}\n"), None, FACTS) is None, line


def test_every_fix_can_be_said() -> None:
    for signature in SIGNATURES:
        assert signature.fix.format_map(FACTS)
        assert signature.what.format("x")
        assert ":" not in signature.kind


def test_the_recorded_words_are_those_of_the_installed_pytorch() -> None:
    """GIVEN no GPU to run out of memory THEN the fixed parts of the recorded lines stand in PyTorch's own libraries."""
    import importlib.util

    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.origin is not None
    folder = Path(found.origin).parent / "lib"
    if not (folder / "libtorch_cuda.so").is_file():
        pytest.skip("this PyTorch was built without CUDA")
    recorded = {
        "libc10_cuda.so": ["CUDA out of memory. Tried to allocate "],
        "libtorch_cuda.so": ["Watchdog caught collective operation timeout: ", " milliseconds before timing out."],
    }
    for name, parts in recorded.items():
        with (folder / name).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            for part in parts:
                assert part in CUDA_MEMORY + NCCL_TIMEOUT
                assert content.find(part.encode()) >= 0, part
