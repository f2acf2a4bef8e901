"""What is known of a process: git, Slurm, host, versions, command line."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tracking.redact import redact_arguments, redact_text
from tracking.seeds import known_seeds

_PACKAGES = ("torch", "deepspeed", "lerobot", "robosuite", "transformers", "numpy", "wandb", "submitit")

_GIT_TIMEOUT_S = 10
_MAX_DIFF = 4 * 2**20

_SLURM = {
    "job_id": "SLURM_JOB_ID",
    "job_name": "SLURM_JOB_NAME",
    "array_job_id": "SLURM_ARRAY_JOB_ID",
    "array_task_id": "SLURM_ARRAY_TASK_ID",
    "nodes": "SLURM_JOB_NODELIST",
    "num_nodes": "SLURM_JOB_NUM_NODES",
    "num_tasks": "SLURM_NTASKS",
    "partition": "SLURM_JOB_PARTITION",
    "qos": "SLURM_JOB_QOS",
    "account": "SLURM_JOB_ACCOUNT",
    "restart_count": "SLURM_RESTART_COUNT",
    "cluster": "SLURM_CLUSTER_NAME",
}
_NUMBERS = {"num_nodes", "num_tasks", "restart_count"}


def get_metadata(folder: Path | None = None) -> dict[str, Any]:
    """Collects what is known of this process, without importing torch.

    Args:
        folder: A folder in the git tree that is described; the current one by default.

    Returns:
        `git` (commit, branch, dirty, remote), `slurm`, `seeds`, `host`, `versions`, `command`, `program`, `arguments`
        and `folder`, made of plain values without secrets. What cannot be known (no git tree, not a Slurm job, a
        package that is not installed, a seed that nobody set) is None.
    """
    return {
        "git": git_facts(folder or Path.cwd()),
        "slurm": slurm_facts(),
        "seeds": known_seeds(),
        "host": {
            "name": socket.gethostname(),
            "platform": platform.platform(),
            "cpus": len(os.sched_getaffinity(0)),
        },
        "versions": versions(),
        "command": shlex.join(redact_arguments(sys.orig_argv)),
        "program": _program(),
        "arguments": redact_arguments(sys.argv)[1:],
        "folder": str(Path.cwd()),
    }


def git_facts(folder: Path) -> dict[str, Any]:
    """Reads commit, branch, whether tracked files are changed, and the remote; each is None outside a git tree.

    Args:
        folder: Any folder of the tree.

    Returns:
        `commit` (40 hex digits), `branch` (None when detached), `dirty` and `remote` (the address of `origin`, without
        a user name or password; None where there is none).
    """
    facts: dict[str, Any] = {"commit": None, "branch": None, "dirty": None, "remote": None}
    try:
        import git
    except ImportError:  # GitPython refuses to be imported where there is no git program
        return facts
    try:
        with git.Repo(folder, search_parent_directories=True) as repository:
            facts["commit"] = repository.head.commit.hexsha
            if "origin" in repository.remotes:
                facts["remote"] = re.sub(r"(?<=://)[^/@]*@", "", repository.remotes["origin"].url)
            facts["branch"] = None if repository.head.is_detached else repository.active_branch.name
            # Many jobs ask at once, and the tree may be on a slow disk: no lock on the index, and no waiting for ever.
            repository.git.update_environment(GIT_OPTIONAL_LOCKS="0")
            changes = repository.git.status("--porcelain", "--untracked-files=no", kill_after_timeout=_GIT_TIMEOUT_S)
            facts["dirty"] = bool(changes)
    except (git.GitError, ValueError, OSError):  # ValueError: a tree without a commit
        return facts
    return facts


def git_diff(folder: Path) -> str | None:
    """Reads what the tracked files differ by from the commit, without secrets.

    Args:
        folder: Any folder of the tree.

    Returns:
        The diff, cut after 4 MiB, or None outside a git tree and where nothing differs.
    """
    try:
        import git
    except ImportError:
        return None
    try:
        with git.Repo(folder, search_parent_directories=True) as repository:
            repository.git.update_environment(GIT_OPTIONAL_LOCKS="0")
            diff: str = repository.git.diff("HEAD", strip_newline_in_stdout=False, kill_after_timeout=_GIT_TIMEOUT_S)
    except (git.GitError, ValueError, OSError):
        return None
    if len(diff) > _MAX_DIFF:
        diff = diff[:_MAX_DIFF] + f"\n[cut: {len(diff)} characters in all]\n"
    return redact_text(diff) or None


def slurm_facts(environ: Mapping[str, str] = os.environ) -> dict[str, Any] | None:
    """Reads the Slurm job from the environment: None outside Slurm, None for each field that Slurm did not set."""
    if not environ.get("SLURM_JOB_ID"):
        return None
    facts: dict[str, Any] = {name: environ.get(variable) or None for name, variable in _SLURM.items()}
    for name in _NUMBERS:
        text = facts[name]
        facts[name] = int(text) if text is not None and text.isdigit() else None
    return facts


def _program() -> str | None:
    """The script or `-m module` that this process runs; None for code from a command line or a prompt."""
    spec = getattr(sys.modules.get("__main__"), "__spec__", None)
    if spec is not None:
        return f"-m {spec.name.removesuffix('.__main__')}"
    return sys.argv[0] if sys.argv[0] not in {"", "-", "-c"} else None


def versions() -> dict[str, str | None]:
    """The versions of Python, CUDA and the packages that decide results; None for what is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version(), "cuda": _cuda_version()}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def _cuda_version() -> str | None:
    """The CUDA version that torch was built for, read from its version file: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    version_file = Path(spec.origin).with_name("version.py")
    try:
        match = re.search(r"^cuda[^=\n]*=\s*(.+)$", version_file.read_text(), re.MULTILINE)
    except OSError:
        return None
    value = ast.literal_eval(match[1]) if match else None
    return str(value) if value is not None else None
