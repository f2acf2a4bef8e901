"""The real client in a process of its own, with everything that it writes in one folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from wandb_server.server import WandbServer

KEPT = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "VIRTUAL_ENV")


@dataclass
class WandbClient:
    """Starts client processes against a server.

    Attributes:
        folder: Holds HOME and all of wandb's folders; `folder / "work"` is the working folder.
        settings: More environment variables.
    """

    server: WandbServer
    folder: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def work(self) -> Path:
        """Working folder of the processes; runs are written to `work / "wandb"`."""
        return self.folder / "work"

    def environment(self) -> dict[str, str]:
        """Environment of the processes: nothing of the caller's settings, key or home."""
        kept = {name: os.environ[name] for name in KEPT if name in os.environ}
        folders = {
            "HOME": self.folder,
            "WANDB_DIR": self.work,
            "WANDB_CACHE_DIR": self.folder / "cache",
            "WANDB_DATA_DIR": self.folder / "data",
            "WANDB_CONFIG_DIR": self.folder / "config",
            "WANDB_ARTIFACT_DIR": self.folder / "artifacts",
        }
        own = {
            "WANDB_BASE_URL": self.server.url,
            "WANDB_API_KEY": self.server.api_key,
            "WANDB_ENTITY": self.server.entity,
            "WANDB_ERROR_REPORTING": "false",
            "WANDB__DISABLE_STATS": "true",
        }
        return kept | {name: str(path) for name, path in folders.items()} | own | self.settings

    def start(self, command: list[str], **variables: str) -> subprocess.Popen[str]:
        """Starts a process in the working folder, with its output piped."""
        self.work.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            command,
            cwd=self.work,
            env=self.environment() | variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill(self, process: subprocess.Popen[str]) -> None:
        """Kills a process and wandb's service, as a power cut or Slurm does: alone, the service would end the run."""
        tasks = Path(f"/proc/{process.pid}/task").glob("*/children")
        children = [int(child) for task in tasks for child in task.read_text().split()]
        for number in [process.pid, *children]:
            os.kill(number, signal.SIGKILL)
        process.communicate()

    def start_python(self, code: str, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """Starts Python with the code; `sys.argv[1:]` are the arguments."""
        return self.start([sys.executable, "-c", textwrap.dedent(code), *arguments], **variables)

    def run(self, command: list[str], timeout: float = 120.0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs a process to its end; its output, both streams in one, is `stdout`."""
        process = self.start(command, **variables)
        try:
            output, _ = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            raise
        return subprocess.CompletedProcess(command, process.returncode, output)

    def python(self, code: str, *arguments: str, timeout: float = 120.0, **variables: str) -> Any:
        """Runs the code, which must end well, and gives what it stored in `answer` (as JSON; None when nothing).

        Raises:
            AssertionError: It failed; the message is what it printed.
        """
        report = self.folder / "answer.json"
        report.unlink(missing_ok=True)
        tail = f"import json\nif 'answer' in globals():\n    open({str(report)!r}, 'w').write(json.dumps(answer))\n"
        text = f"{textwrap.dedent(code)}\n{tail}"
        done = self.run([sys.executable, "-c", text, *arguments], timeout, **variables)
        if done.returncode:
            raise AssertionError(f"the client ended with {done.returncode}:\n{done.stdout}")
        return json.loads(report.read_text()) if report.exists() else None

    def wandb(self, *arguments: str, timeout: float = 120.0, **variables: str) -> subprocess.CompletedProcess[str]:
        """Runs the `wandb` command."""
        return self.run([sys.executable, "-m", "wandb", *arguments], timeout, **variables)
