"""Where things are: the project, its profiles and the user's, the Slurm that is meant, what a path in a profile means.

Standard library only: `launch.config`, which checks what a profile holds, takes most of a second to import.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
from pathlib import Path
from string import Template

from tracking.errors import UserError, unknown

ROOT = Path(__file__).resolve().parents[1]
"""The project root: relative roots of a profile start here, and jobs run here."""


def user_profiles() -> Path:
    """Where the user's own cluster profiles are."""
    config = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(config).expanduser() / "gilbreth" / "clusters"


def clusters() -> dict[str, Path]:
    """The cluster profiles that there are, by name; the user's own wins over one of the same name that is shipped."""
    folders = (ROOT / "launch" / "clusters", user_profiles())
    return {path.stem: path for folder in folders for path in folder.glob("*.yaml")}


def expand(path: str, root: Path, key: str) -> Path:
    """Expands `~` and variables in a path of a profile; a relative one starts at the project root.

    Raises:
        UserError: A variable in it is not set.
    """
    # Shells always set USER; cron and containers do not.
    expanded = Template(path).safe_substitute({"USER": getpass.getuser(), **os.environ})
    if "$" in expanded:
        raise UserError(f"{key}={path!r}: a variable in it is not set here; export it or write the path out")
    return root / Path(expanded).expanduser()


def run_root(cluster: str) -> Path:
    """Where a profile has its run folders.

    Raises:
        UserError: There is no such profile, or its path cannot be expanded.
    """
    from launch import yaml_core

    profiles = clusters()
    if cluster not in profiles:
        raise unknown("cluster", cluster, profiles)
    return expand(str(yaml_core.load(profiles[cluster]).get("run_root", "runs")), ROOT, "cluster.run_root")


def default_cluster() -> str:
    """Chooses the profile where none was named."""
    if shutil.which("sbatch") is None:
        return "local"
    return "lab" if in_lab() else "generic"


def in_lab() -> bool:
    """Whether the Slurm that this shell talks to is a lab on this machine."""
    path = os.environ.get("SLURM_CONF")
    try:
        return path is not None and re.search(r"^ClusterName=lab$", Path(path).read_text(), re.MULTILINE) is not None
    except OSError:
        return False


def enter_lab() -> None:
    """Makes this process talk to the lab, unless its shell does already.

    Raises:
        UserError: The lab is not running.
    """
    if in_lab() and shutil.which("sbatch") is not None:
        return
    from launch.lab import Lab

    lab = Lab()
    if not lab.is_up():
        raise UserError("the lab is not running.\n  start it: python -m launch.lab up")
    os.environ.update(lab.environment())
