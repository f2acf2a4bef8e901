"""Slurm's programs: the system's, or Debian's packages unpacked for one user."""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from launch.lab.settings import LabUnavailable, check_characters

PACKAGES = (
    "munge",
    "slurmctld",
    "slurmd",
    "slurm-client",
    "slurmdbd",
    "slurm-wlm-mysql-plugin",
    "mariadb-server-core",
    "mariadb-client-core",
)
DAEMONS = ("munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
LOADERS = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}


@dataclass(frozen=True)
class Programs:
    """Where Slurm, munge and MariaDB are.

    Attributes:
        prefix: The folder of the unpacked packages, or None where the system has them installed.
    """

    prefix: Path | None

    @property
    def search_path(self) -> str | None:
        """The folder to put first on the PATH, or None where the PATH has the programs already."""
        return str(self.prefix / "bin") if self.prefix else None

    @property
    def usr(self) -> Path:
        """The root of MariaDB's installation."""
        return self.prefix / "usr" if self.prefix else Path("/usr")

    @property
    def mysql_share(self) -> Path:
        """MariaDB's messages and the SQL of its system tables."""
        return self.usr / "share" / "mysql"

    @property
    def plugins(self) -> Path | None:
        """Slurm's plugins, where they are not at the place that was compiled in."""
        return _libraries(self.prefix) / "slurm-wlm" if self.prefix else None

    def path(self) -> str:
        """A PATH for daemons, with Slurm's programs first."""
        return f"{self.search_path}:{SYSTEM_PATH}" if self.search_path else SYSTEM_PATH

    def find(self, program: str) -> str:
        """The absolute path of a program.

        Raises:
            LabUnavailable: It is not there.
        """
        found = shutil.which(program, path=self.path())
        if found is None:
            raise LabUnavailable(f"the program {program!r} is missing on {self.path()}")
        return found


def cache_folder() -> Path:
    """Where the unpacked packages are kept."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").expanduser().resolve()
    check_characters("the cache folder", cache, "choose another with XDG_CACHE_HOME")
    return cache / "gilbreth" / "slurm"


def locate() -> Programs | None:
    """Finds programs that are already here: the system's first, then the unpacked ones."""
    if all(shutil.which(daemon, path=SYSTEM_PATH) for daemon in DAEMONS):
        return Programs(None)
    prefix = cache_folder()
    return Programs(prefix) if prefix.is_dir() else None


def provide(report: Callable[[str], None]) -> Programs:
    """Finds Slurm's programs, or downloads and unpacks them (about 12 MB; the system stays as it is).

    Args:
        report: Called with a line for the user before a download.

    Raises:
        LabUnavailable: There are no packages for this machine, or the programs do not run here.
    """
    programs = locate()
    if programs is None:
        prefix = cache_folder()
        report(f"unpacking Debian's Slurm packages into {prefix}")
        try:
            _fetch(prefix)
        except (OSError, subprocess.CalledProcessError) as error:
            raise LabUnavailable(
                f"Slurm's packages could not be unpacked into {prefix} (74 MB): {error}\n"
                "  choose a folder with room: export XDG_CACHE_HOME=PATH"
            ) from None
        programs = Programs(prefix)
    version = subprocess.run([programs.find("slurmctld"), "-V"], capture_output=True, text=True, check=False)
    if version.returncode != 0:
        raise LabUnavailable(
            f"{programs.find('slurmctld')} does not run here: {version.stderr.strip()}\n"
            f"  packages of another system? delete {programs.prefix or 'them'} and run: python -m launch.lab up"
        )
    return programs


def _fetch(prefix: Path) -> None:
    """Unpacks the packages beside the prefix and renames the finished folder, so that a prefix is always whole."""
    tools = [tool for tool in ("apt-get", "dpkg") if shutil.which(tool) is None]
    if tools or platform.machine() not in LOADERS:
        raise LabUnavailable(
            f"no Slurm is installed, and packages can be unpacked only on Debian or Ubuntu for {' or '.join(LOADERS)}"
            f" (missing here: {', '.join(tools) or 'a supported processor'}).\n"
            "  install slurmctld, slurmd, slurmdbd, munge and mariadb with the system's package manager, "
            "or run jobs with --cluster local"
        )
    prefix.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="slurm-", dir=prefix.parent) as temporary:
        work = Path(temporary)
        archives, unpacked = work / "archives", work / "unpacked"
        archives.mkdir()
        unpacked.mkdir()
        _download(archives, work)
        for archive in sorted(archives.glob("*.deb")):
            subprocess.run(["dpkg", "-x", str(archive), str(unpacked)], check=True)
        _write_wrappers(unpacked, prefix)
        try:
            unpacked.rename(prefix)
        except OSError:
            # Another start of a lab was faster; its folder is as good.
            if not prefix.is_dir():
                raise


def _download(archives: Path, work: Path) -> None:
    """Downloads the packages and what they need that the system has not.

    The system's package lists are tried first. Where they are missing, or so old that the files are gone from the
    mirror, lists of our own are fetched; neither way needs root or changes the system.
    """
    failure = _try_download(archives, [])
    if failure is None:
        return
    lists, cache = work / "lists", work / "cache"
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    private = ["-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
    update = _apt(["update", *private], archives)
    failure = _try_download(archives, private)
    if failure is not None:
        # Without a network, the update tells why; what follows only says that there are no packages.
        raise LabUnavailable(
            f"Debian's Slurm packages could not be downloaded:\n    {_errors(update) or failure}\n"
            "  check the network and /etc/apt/sources.list, or have an administrator run: "
            f"apt-get install {' '.join(PACKAGES)}\n  without Slurm, jobs run with --cluster local"
        )


def _try_download(archives: Path, options: list[str]) -> str | None:
    """Downloads into the folder; returns None, or apt's last errors."""
    done = _apt(["install", "--simulate", "--no-install-recommends", *options, *PACKAGES], archives)
    if done.returncode == 0:
        needed = set(re.findall(r"^Inst (\S+)", done.stdout, re.MULTILINE)) | set(PACKAGES)
        done = _apt(["download", *options, *sorted(needed)], archives)
    return None if done.returncode == 0 else _errors(done) or f"apt-get ended with exit code {done.returncode}"


def _errors(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in done.stderr.splitlines() if line.startswith(("E:", "W: Failed to fetch"))]
    return "\n    ".join(lines[:3])


def _apt(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    # Root's apt would drop to a user who may not write here; an ordinary user's apt may not take the system's lock.
    options = ["-q", "-o", "APT::Sandbox::User=root", "-o", "Debug::NoLocking=1"]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    command = ["apt-get", *options, *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def _libraries(prefix: Path) -> Path:
    return prefix / "usr" / "lib" / f"{platform.machine()}-linux-gnu"


def _write_wrappers(unpacked: Path, prefix: Path) -> None:
    """Writes a script for each program that names its libraries to the loader.

    LD_LIBRARY_PATH would do the same, but leak into every job.
    """
    loader = LOADERS[platform.machine()]
    libraries = f"{_libraries(prefix)}:{_libraries(prefix)}/slurm-wlm"
    folder = unpacked / "bin"
    folder.mkdir()
    for program in sorted([*(unpacked / "usr/bin").iterdir(), *(unpacked / "usr/sbin").iterdir()]):
        with program.open("rb") as file:
            is_binary = file.read(4) == b"\x7fELF"
        if is_binary:
            # Debian calls the daemons slurmctld-wlm and so on, beside another package of the same name.
            name = program.name.removesuffix("-wlm")
            target = prefix / program.relative_to(unpacked)
            wrapper = folder / name
            wrapper.write_text(
                f"#!/bin/sh\nexec {loader} --library-path '{libraries}' --argv0 {name} '{target}' \"$@\"\n"
            )
            wrapper.chmod(0o755)
