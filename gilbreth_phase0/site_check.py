"""What one node sees of the site, a line for each thing: run by `job_templates/site_check.sbatch.j2`, one task a node.

Standard library only: it must run where the project's environment does not.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from pathlib import Path

# Clients of a network disk may hold a folder's listing for this long.
_SECONDS_UNTIL_SEEN = 15.0
_SECONDS_FOR_W_AND_B = 10.0
_LITTLE_BYTES, _FEW_FILES = 2 * 10**9, 10_000


def main() -> None:
    """Prints `site-check PART NODE yes|no|unknown WORDS` for each thing; `launch.cluster.answers` reads it."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--token", required=True, help="what the login node has written into each folder")
    parser.add_argument("--folder", action="append", default=[], help="a folder that the login node has made")
    parser.add_argument("--server", required=True, help="base URL of W&B")
    arguments = parser.parse_args()
    for folder in arguments.folder:
        say("shared", *shared(Path(folder), arguments.token))
    say("internet", *reaches(arguments.server))
    say("home", *room(Path.home()))


def say(part: str, ok: bool | None, words: str) -> None:
    """Prints one line, in one piece, because two nodes write into one log."""
    verdict = {True: "yes", False: "no", None: "unknown"}[ok]
    sys.stdout.write(f"site-check {part} {node()} {verdict} {' '.join(words.split())}\n")
    sys.stdout.flush()


def node() -> str:
    """The name of this node, as Slurm has it."""
    return os.environ.get("SLURMD_NODENAME") or platform.node()


def shared(folder: Path, token: str) -> tuple[bool, str]:
    """Reads what the login node has written into a folder, and leaves a file there for it to see."""
    deadline = time.monotonic() + _SECONDS_UNTIL_SEEN
    while True:
        try:
            if (folder / "login").read_text() == token:
                break
            problem = "the file of the login node holds something else"
        except OSError as error:
            problem = error.strerror or str(error)
        if time.monotonic() > deadline:
            return False, f"{folder.parent}: the login node's file is not seen ({problem})"
        time.sleep(0.5)
    try:
        (folder / f"node-{node()}").write_text(token)
    except OSError as error:
        return False, f"{folder.parent}: cannot be written ({error.strerror})"
    return True, f"{folder.parent}"


def reaches(server: str) -> tuple[bool, str]:
    """Asks W&B's server for anything at all, through the proxies that the environment names."""
    answer: list[tuple[bool, str]] = []
    # A name server that does not answer holds a lookup for longer than the request's own limit.
    thread = threading.Thread(target=lambda: answer.append(_ask(server)), daemon=True)
    thread.start()
    thread.join(_SECONDS_FOR_W_AND_B)
    return answer[0] if answer else (False, f"{server}: no answer within {_SECONDS_FOR_W_AND_B:g} s")


def _ask(server: str) -> tuple[bool, str]:
    began = time.monotonic()
    try:
        with urllib.request.urlopen(f"{server.rstrip('/')}/healthz", timeout=_SECONDS_FOR_W_AND_B):
            pass
    except urllib.error.HTTPError as error:
        # A proxy that forbids the way answers too.
        if error.code in (403, 407, 502, 503, 504):
            return False, f"{server}: what answers says {error.code}"
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        return False, f"{server}: {getattr(reason, 'strerror', None) or reason}"
    return True, f"{server} answers in {time.monotonic() - began:.1f} s"


def room(home: Path) -> tuple[bool | None, str]:
    """Tells how much may still be written into the home folder, by the user's quota where there is one."""
    try:
        disk = os.statvfs(home)
    except OSError as error:
        return False, f"{home}: {error.strerror}"
    if (quota := quota_of(mount_of(home), _quota())) is not None:
        return quota
    free, files = disk.f_bavail * disk.f_frsize, disk.f_favail
    words = f"{home}: {free / 1e9:.1f} GB free of {disk.f_blocks * disk.f_frsize / 1e9:.1f} GB; no quota is told"
    # Some file systems make room for files as they need it, and say 0.
    is_enough = free >= _LITTLE_BYTES and (disk.f_files == 0 or files >= _FEW_FILES)
    return (None if is_enough else False), words


def quota_of(mount: str, said: str) -> tuple[bool, str] | None:
    """Reads the line of one disk in what `quota -w` said; None where it has none.

    Its fields are KiB used, soft and hard limit, then the same of files; an over-used one has a star and a grace time.
    """
    for line in said.splitlines():
        device, *fields = line.split()
        if device != mount:
            continue
        numbers = [field.rstrip("*") for field in fields if field.rstrip("*").isdigit()]
        if len(numbers) < 6:
            return None
        used, soft, hard, files, files_soft, files_hard = (int(number) for number in numbers[:6])
        limit, files_limit = soft or hard, files_soft or files_hard
        words, ok = [], True
        if limit:
            words.append(f"{used * 1024 / 1e9:.1f} of {limit * 1024 / 1e9:.1f} GB")
            ok = (limit - used) * 1024 >= _LITTLE_BYTES
        if files_limit:
            words.append(f"{files:,} of {files_limit:,} files")
            ok = ok and files_limit - files >= _FEW_FILES
        return ok, f"home quota: {' and '.join(words) or 'no limit'} used"
    return None


def mount_of(folder: Path) -> str:
    """The device or server of the disk that holds a folder; empty where it is not told."""
    while not folder.is_mount() and folder != folder.parent:
        folder = folder.parent
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split()[0] for line in reversed(lines) if line.split()[1] == str(folder)), "")


def _quota() -> str:
    if shutil.which("quota") is None:
        return ""
    try:
        # It exits with 1 where a limit is exceeded.
        done = subprocess.run(["quota", "-w"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


if __name__ == "__main__":
    main()
