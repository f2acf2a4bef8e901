"""What programs write into a log when they end for a known reason."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Signature:
    """One kind of failure.

    Attributes:
        kind: Its short name, the same for all patterns of the kind.
        pattern: What a line of the log holds; a group `rank` is the rank that it speaks of.
        what: The cause in plain words; `{0}` is the pattern's first group.
        fix: What to do about it.
        rank: 0 for a cause; 1 for what may also be the consequence of another rank's end; 2 for what says no more than
            that something ended.
    """

    kind: str
    pattern: re.Pattern[str]
    what: str
    fix: str
    rank: int = 0


def _one(kind: str, pattern: str, what: str, fix: str, rank: int = 0) -> Signature:
    return Signature(kind, re.compile(pattern), what, fix, rank)


_LESS_GPU_MEMORY = (
    "a smaller micro batch with the same effect: halve --set {stage}.batch_size= or double "
    "{stage}.gradient_accumulation; or {stage}.zero_stage=2"
)
_LESS_MEMORY = "more memory: --set resources.memory_gb=…; or fewer DataLoader workers"
_ROOM = "make room or write elsewhere: `myquota`, `df -h`, `df -i`; --set cluster.run_root=FOLDER"
_ENVIRONMENT = "install it in {environment}, or name the environment that has it: --set cluster.conda_env=NAME"

SIGNATURES = (
    # The machine.
    _one(
        "gpu lost",
        r"fallen off the bus|NVRM: Xid|uncorrectable (?:NVLink|ECC)|CUDA error: (?:unspecified launch|uncorrect)"
        r"|Unable to determine the device handle for GPU",
        "a GPU failed",
        "leave the node out and tell the site: SBATCH_EXCLUDE={nodes}; then requeue",
    ),
    _one(
        "no gpu",
        r"No CUDA GPUs are available|CUDA driver version is insufficient|Found no NVIDIA driver"
        r"|CUDA-capable device\(s\) is/are busy|Driver/library version mismatch|CUDA error: invalid device ordinal",
        "the job saw no usable GPU",
        "ask for GPUs (--set resources.gpus_per_node=…); if it did, leave the node out: SBATCH_EXCLUDE={nodes}",
    ),
    _one(
        "node lost", r"DUE TO NODE FAILURE|Node failure on", "a node failed", "requeue: it resumes where it was saved"
    ),
    # Memory.
    _one(
        "cuda memory",
        r"CUDA out of memory|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED|Cuda failure.*out of memory"
        r"|(?:torch\.(?:cuda\.)?)?OutOfMemoryError",
        "a GPU ran out of memory",
        _LESS_GPU_MEMORY,
    ),
    _one(
        "shared memory",
        r"killed by signal: Bus error|insufficient shared memory|unable to (?:mmap|open|resize|write).*(?:shm|torch_\d)"
        r"|^Bus error|No space left on device: '/dev/shm",
        "shared memory (/dev/shm) ran out, or a mapped file was cut",
        "fewer DataLoader workers (num_workers=0 needs none); `df -h /dev/shm` on the node shows its size",
    ),
    _one(
        "host memory",
        r"oom[-_ ]?kill|Out Of Memory|^(?:\S+ )?MemoryError|Cannot allocate memory|std::bad_alloc"
        r"|DefaultCPUAllocator: (?:can't|not enough)|Exceeded (?:job|step) memory limit",
        "the job ran out of memory (not the GPU's)",
        _LESS_MEMORY,
    ),
    # Disks.
    _one("quota", r"Disk quota exceeded|\[Errno 122\]", "the disk quota is used up", _ROOM),
    _one("disk full", r"No space left on device|\[Errno 28\]", "a disk is full", _ROOM),
    _one(
        "file size",
        r"File too large|\[Errno 27\]|File size limit exceeded",
        "a file met a limit of its size",
        "`ulimit -f` in the shell that submits: jobs inherit it; set it to unlimited and submit again",
    ),
    _one(
        "disk gone",
        r"Stale file handle|\[Errno 116\]|Read-only file system|\[Errno 30\]|Input/output error|\[Errno 5\]"
        r"|Transport endpoint is not connected",
        "the shared disk failed under the job",
        "requeue when it is back; leave the node out if it is only one: SBATCH_EXCLUDE={nodes}",
    ),
    # The environment.
    _one("module missing", r"No module named '?([\w.]+)'?", "the Python package {0} is missing", _ENVIRONMENT),
    _one(
        "import",
        r"ImportError: ((?:cannot import|\S+: (?:undefined symbol|cannot open|version|symbol)|lib|/).*)"
        r"|error while loading shared libraries: (\S+)",
        "a Python package does not load: {0}",
        "the versions in the job's environment do not go together; `make setup` installs those that do",
    ),
    _one(
        "environment module",
        r"module load (.+) failed|module\(s\) are unknown: (.+)|Unable to locate a modulefile for '(\S+)'",
        "the environment module {0} cannot be loaded",
        "`module spider NAME` lists what there is; --set cluster.modules=[…]",
    ),
    _one(
        "command missing",
        r"(?:line \d+: |execve\(\): |bash: )([\w./-]+): (?:command not found|No such file or directory)",
        "the command {0} is not on the node",
        "load its module or name its environment: --set cluster.modules=[…], --set cluster.conda_env=NAME",
    ),
    # DeepSpeed.
    _one(
        "batch",
        r"Check batch related parameters\. (.*)|DeepSpeedConfigError: (.*)|(train_batch_size is not equal.*)",
        "DeepSpeed refused its configuration: {0}",
        "batch = micro batch x GPUs x accumulation; see --dry-run",
    ),
    _one(
        "extension",
        r"Error building extension '(\w+)'|(ninja: build stopped)|CUDAMismatchException|Ninja is required",
        "a DeepSpeed extension could not be compiled",
        "compile it once where there is a compiler: `make setup`; the module cuda must be of torch's CUDA version",
    ),
    _one(
        "deepspeed",
        r"(ZeRORuntimeException.*|deepspeed\.\S*Error: .*|AssertionError: .*(?:zero|ZeRO|deepspeed|optimizer).*)",
        "DeepSpeed stopped: {0}",
        "explain shows the lines; another number of GPUs needs a universal checkpoint",
    ),
    # The network.
    _one(
        "port",
        r"Address already in use|EADDRINUSE|\[Errno 98\]",
        "a network port was taken",
        "requeue: it tries another; a fixed MASTER_PORT collides on shared nodes, so unset it",
    ),
    _one(
        "wandb key",
        r"(?:wandb|W&B).*(?:API key must|[Ii]nvalid API key|[Nn]o API key configured|api_key not|[Uu]nauthori[sz]ed"
        r"|permission denied|\b401\b)|(?:AuthenticationError|UsageError): .*(?:API key|api_key|log ?in)",
        "W&B refused the API key, or had none",
        "`wandb login` on the login node (jobs read ~/.netrc), or --set tracking.mode=offline",
    ),
    _one(
        "nccl duplicate",
        r"Duplicate GPU detected",
        "two ranks used one GPU",
        "one task a GPU: --set resources.tasks_per_node=null",
    ),
    # What may follow from another rank's end.
    _one(
        "collective timeout",
        r"Watchdog caught collective operation timeout|collective operation timed? ?out|NCCL.*(?:[Tt]imed? ?out)"
        r"|Timed out waiting \d+ms|wait timeout after \d+|Timeout waiting for key",
        "a rank waited for the others until the time-out",
        "see whether one of them hung or died: logs {run} --rank N; between nodes, NCCL_DEBUG=INFO shows more",
        1,
    ),
    _one(
        "nccl",
        r"ncclSystemError|ncclUnhandledCudaError|ncclInternalError|ncclRemoteError|NCCL error|NCCL WARN",
        "NCCL failed between the GPUs",
        "NCCL_DEBUG=INFO shows where; on one node NCCL_P2P_LEVEL and /dev/shm, between nodes the network",
        1,
    ),
    _one(
        "peer gone",
        r"Connection (?:closed|reset) by peer|Broken pipe|DistNetworkError|DistStoreError|recvValue failed|gloo.*EOF",
        "another rank went away",
        "see the logs of the others: logs {run} --rank N",
        1,
    ),
    _one(
        "segmentation",
        r"Segmentation fault|Fatal Python error|Aborted \(core|double free|Illegal instruction",
        "a process crashed outside Python",
        "explain shows the lines; PYTHONFAULTHANDLER=1 shows where",
        1,
    ),
    _one(
        "permission",
        r"Permission denied|\[Errno 13\]",
        "a file may not be read or written",
        "see whose it is: ls -ld; --set cluster.run_root=FOLDER",
        1,
    ),
    # What only says that something ended.
    _one("preempted", r"DUE TO PREEMPTION", "a job of higher priority took its nodes", "requeue: it resumes", 2),
    _one("time limit", r"DUE TO TIME LIMIT", "it met its time limit", "requeue: it resumes where it was saved", 2),
    _one(
        "killed",
        r"srun: error: \S+: tasks? (?P<rank>\d+)\S*: Killed|exit code 137\b|signal 9\b",
        "a rank was killed, as when memory runs out",
        _LESS_MEMORY,
        2,
    ),
)
"""In the order of precedence where a line fits several."""
