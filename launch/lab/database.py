"""The database and the accounts behind `sacct`, QOS and preemption."""

from __future__ import annotations

import shutil
import subprocess

from launch.lab.installation import Installation
from launch.lab.settings import ACCOUNT, CLUSTER, LabFailed, owner

# Seconds that a preempted job has between its signal and its end.
PREEMPTION_GRACE = 10


def create(lab: Installation) -> None:
    """Makes the database folder, once: MariaDB's system tables and an empty database for slurmdbd.

    The folder gets its name when it is complete, so that an interrupted start leaves no half database behind.

    Raises:
        LabFailed: MariaDB refused; the message holds its errors.
    """
    final = lab.settings.folder / "database"
    if final.is_dir():
        return
    partial = lab.settings.folder / "database.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    # The owner logs in through the socket, without a password. Each statement needs a line of its own here.
    sql = [f"CREATE DATABASE mysql;\nUSE mysql;\nSET @auth_root_socket='{owner()}';\n"]
    sql += [(lab.programs.mysql_share / f"mysql_system_tables{part}.sql").read_text() for part in ("", "_data")]
    sql += ["CREATE DATABASE slurm_acct_db;\n"]
    command = [
        lab.programs.find("mariadbd"),
        f"--defaults-file={lab.etc}/my.cnf",
        f"--datadir={partial}",
        "--bootstrap",
        # The system tables name engines of their own.
        "--enforce-storage-engine=",
    ]
    made = subprocess.run(command, env=lab.environment, input="".join(sql), capture_output=True, text=True, check=False)
    (lab.settings.folder / "log" / "mariadb-create.log").write_text(made.stderr)
    if made.returncode != 0:
        errors = [line for line in made.stderr.splitlines() if "ERROR" in line]
        raise LabFailed("mariadbd could not create the accounting database:\n    " + "\n    ".join(errors[-5:]))
    partial.rename(final)


def create_accounts(lab: Installation) -> bool:
    """Registers the cluster, the QOS `normal` and `standby`, and the account of the owner, unless they stand.

    Returns:
        Whether anything was missing.

    Raises:
        LabFailed: slurmdbd refused; the message holds its answer.
    """
    user = owner()
    default = _sacctmgr(lab, "list", "user", f"user={user}", "format=defaultaccount").strip()
    # It is what is set last, so that it tells of all the rest.
    if default == ACCOUNT:
        return False
    _sacctmgr(lab, "add", "cluster", CLUSTER)
    standby = ("priority=0", "preemptmode=requeue", f"gracetime={PREEMPTION_GRACE}")
    _sacctmgr(lab, "add", "qos", "standby", *standby)
    _sacctmgr(lab, "modify", "qos", "normal", "set", "priority=1000", "preempt=standby")
    _sacctmgr(lab, "add", "account", ACCOUNT, "qos=normal,standby", "defaultqos=normal")
    _sacctmgr(lab, "add", "user", user, f"account={ACCOUNT}")
    # root has an account already, which knows no standby.
    _sacctmgr(lab, "modify", "user", user, "set", f"defaultaccount={ACCOUNT}")
    return True


def _sacctmgr(lab: Installation, *arguments: str) -> str:
    done = lab.run("sacctmgr", "--immediate", "--quiet", "--noheader", "--parsable2", *arguments)
    said = (done.stderr or done.stdout).strip()
    # Exit code 1 also means that there was nothing to do.
    if done.returncode != 0 and "already exists" not in said and "Nothing" not in said:
        raise LabFailed(f"sacctmgr {' '.join(arguments)}\n    {said}")
    return done.stdout
