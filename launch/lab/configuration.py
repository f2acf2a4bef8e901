"""The files that Slurm, munge and MariaDB read."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from launch.lab.installation import Installation
from launch.lab.settings import CLUSTER, GPUS_PER_NODE, owner
from tracking.files import write_atomic

TEMPLATES = Path(__file__).parent / "templates"
FOLDERS = ("etc", "log", "run", "state", "spool", "dev", "munge")
# slurmdbd refuses a configuration that others can read.
SECRET = {"slurmdbd.conf"}


def render(lab: Installation) -> dict[str, str]:
    """Renders every configuration file of a lab.

    Returns:
        The text of each file under its name in the lab's folder `etc`; the same settings give the same text.
    """
    import jinja2

    settings, programs = lab.settings, lab.programs
    templates = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
        autoescape=False,
    )
    values = {
        "cluster": CLUSTER,
        "host": socket.gethostname().partition(".")[0],
        "owner": owner(),
        "folder": settings.folder,
        "munge_socket": settings.munge_socket,
        "database_socket": settings.database_socket,
        "controller_port": settings.controller_port,
        "accounting_port": settings.accounting_port,
        "nodes": settings.nodes,
        "gpus": GPUS_PER_NODE,
        "plugins": programs.plugins,
        "mysql_base": programs.usr,
        "mysql_share": programs.mysql_share,
    }
    names = sorted(template.name.removesuffix(".j2") for template in TEMPLATES.glob("*.j2"))
    # Slurm looks for a plugin stack beside the system's configuration unless it is given one.
    return {"plugstack.conf": "", **{name: templates.get_template(f"{name}.j2").render(values) for name in names}}


def is_current(lab: Installation, files: dict[str, str]) -> bool:
    """Whether the lab's files are the rendered ones already."""
    return all((lab.etc / name).is_file() and (lab.etc / name).read_text() == text for name, text in files.items())


def write(lab: Installation, files: dict[str, str]) -> None:
    """Writes the configuration, the munge key (once) and the fake GPUs."""
    folder = lab.settings.folder
    for name in FOLDERS:
        (folder / name).mkdir(exist_ok=True)
    for node in lab.settings.nodes:
        (folder / "spool" / node.name).mkdir(exist_ok=True)
    for name, text in files.items():
        write_atomic(lab.etc / name, text)
        (lab.etc / name).chmod(0o600 if name in SECRET else 0o644)
    key = folder / "munge" / "munge.key"
    if not key.exists():
        write_atomic(key, os.urandom(128))
        # munged refuses a key that others can read.
        key.chmod(0o600)
    for index in range(GPUS_PER_NODE):
        device = folder / "dev" / f"nvidia{index}"
        if not device.is_symlink():
            device.symlink_to("/dev/null")
