"""From what Slurm told to a profile: a partition, an account and a QOS that go together, and shared folders."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launch import yaml_core
from launch.cluster.roots import NODE_LOCAL, Root, inspect, roots
from launch.config import stages
from launch.profile import Cluster, PartitionLimits
from launch.questions import user_name
from launch.site import Site
from tracking.errors import UserError, unknown

_FOLDER = "gilbreth-phase0"


@dataclass(frozen=True)
class Wishes:
    """What the user asked for; None and empty leave the choice open.

    Attributes:
        partition: The partition.
        account: The account.
        qos: The QOS.
        run_root: Where run folders are made.
        modules: What jobs load; None is what this shell has loaded.
    """

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    run_root: Path | None = None
    modules: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Draft:
    """A profile to be written.

    Attributes:
        cluster: The profile.
        root: The folder in which its roots are.
        doubts: What the user should look at, a sentence each.
    """

    cluster: Cluster
    root: Root
    doubts: tuple[str, ...]


def draft(name: str, site: Site, wishes: Wishes, environ: Mapping[str, str] = os.environ) -> Draft:
    """Chooses what was left open.

    Raises:
        UserError: A wish names what Slurm does not have or what does not go together, or Slurm told too little.
    """
    if not site.partitions:
        raise UserError(
            f"Slurm did not tell its partitions ({site.not_known.get('partitions', 'there are none for this user')}).\n"
            "  next: run this on a login node of the cluster, where `sinfo` answers"
        )
    partition = _partition(site, wishes.partition)
    limits = site.partitions[partition]
    account = _account(site, limits, partition, wishes.account)
    qos = _qos(site, limits, partition, account, wishes.qos)
    node_local = () if site.one_machine else NODE_LOCAL
    root, run_root, data_root = _roots(wishes.run_root, environ, one_machine=site.one_machine)
    modules = wishes.modules if wishes.modules is not None else loaded_modules(environ)
    worth = _worth_noting(site)
    cluster = Cluster(
        name=name,
        executor="slurm",
        partition=partition,
        account=account,
        qos=qos,
        run_root=str(run_root),
        data_root=str(data_root),
        modules=modules,
        gpus_per_node=limits.gpus_per_node,
        qos_limits={key: value for key, value in (site.qos_limits or {}).items() if key in worth},
        qos_rules={key: value for key, value in (site.qos_rules or {}).items() if key in worth},
        partitions=site.partitions,
        accounts=site.accounts,
        account_qos=site.account_qos or {},
        node_local=node_local,
        resources=_resources(limits),
    )
    doubts = [f"{part} not known: {why}" for part, why in site.not_known.items()]
    if root.shared is None and not site.one_machine:
        doubts.append(f"{root.path} is on {root.file_system}, which does not tell whether other nodes see it")
    if site.states and site.states[partition].state != "UP":
        doubts.append(f"partition {partition} is {site.states[partition].state} now")
    return Draft(cluster, root, tuple(doubts))


def loaded_modules(environ: Mapping[str, str]) -> tuple[str, ...]:
    """What `module list` would show in this shell, in the order in which it was loaded."""
    return tuple(filter(None, environ.get("LOADEDMODULES", "").split(":")))


def _partition(site: Site, wish: str | None) -> str:
    partitions = site.partitions or {}
    if wish is not None:
        if wish not in partitions:
            raise unknown("partition", wish, partitions)
        return wish
    mine = set(site.accounts) if site.accounts is not None else None

    def rank(name: str) -> tuple[bool, bool, bool, int]:
        limits, state = partitions[name], (site.states or {}).get(name)
        is_open = _allows(mine, limits.accounts, limits.denied_accounts)
        gpus = (limits.gpus_per_node or 0) * (limits.nodes or 0)
        return is_open, state is None or state.state == "UP", limits.default and gpus > 0, gpus

    # Of equals the default one, and then the first that Slurm named.
    return max(partitions, key=lambda name: (*rank(name), partitions[name].default))


def _account(site: Site, limits: PartitionLimits, partition: str, wish: str | None) -> str | None:
    if wish is not None:
        if site.accounts is not None and wish not in site.accounts:
            raise unknown("account", wish, site.accounts)
        if not _allows({wish}, limits.accounts, limits.denied_accounts):
            raise _mismatch("account", wish, partition, limits.accounts, limits.denied_accounts)
        return wish
    if site.accounts is None:
        return None
    fitting = [name for name in site.accounts if _allows({name}, limits.accounts, limits.denied_accounts)]
    if not fitting:
        raise _mismatch("account", ", ".join(site.accounts), partition, limits.accounts, limits.denied_accounts)
    return site.default_account if site.default_account in fitting else fitting[0]


def _qos(site: Site, limits: PartitionLimits, partition: str, account: str | None, wish: str | None) -> str | None:
    usable = _usable(site, limits, account)
    if wish is not None:
        if site.qos_rules is not None and wish not in site.qos_rules:
            raise unknown("QOS", wish, usable)
        if site.qos_rules is not None and wish not in usable:
            raise UserError(
                f"QOS {wish!r} cannot be used by account {account!r} in partition {partition!r}.\n"
                f"  valid: {', '.join(usable) or '(none)'}"
            )
        return wish
    default = site.default_qos.get(account or "")
    return next((name for name in (default, "normal", *usable) if name in usable), None)


def _usable(site: Site, limits: PartitionLimits, account: str | None) -> list[str]:
    """The QOS that an account may name in a partition, as far as that is known."""
    names: Iterable[str] = (site.account_qos or {}).get(account or "") or site.qos_rules or ()
    return [name for name in names if _allows({name}, limits.qos, limits.denied_qos)]


def _worth_noting(site: Site) -> set[str]:
    """The QOS that limit this user: those of the accounts (all, where these are not known) and the partitions' own."""
    of_accounts = {name for names in (site.account_qos or {}).values() for name in names} or set(site.qos_rules or ())
    return of_accounts | {limits.own_qos for limits in (site.partitions or {}).values() if limits.own_qos}


def _allows(names: set[str] | None, only: Sequence[str] | None, denied: Sequence[str]) -> bool:
    """Whether one of the names may be used; None is not known."""
    return names is None or bool((names if only is None else names & set(only)) - set(denied))


def _mismatch(kind: str, given: str, partition: str, only: Sequence[str] | None, denied: Sequence[str]) -> UserError:
    rule = f"takes only: {', '.join(only)}" if only is not None else f"refuses: {', '.join(denied)}"
    return UserError(
        f"{kind} {given!r} may not use partition {partition!r}, which {rule}.\n"
        "  next: choose another partition, --partition NAME (`python -m launch.cluster show` after this, or sinfo -s)"
    )


def _roots(wish: Path | None, environ: Mapping[str, str], *, one_machine: bool) -> tuple[Root, Path, Path]:
    """The folder that is shared, the run root and the data root."""
    try:
        mounts = Path("/proc/mounts").read_text()
    except OSError:
        mounts = ""
    if wish is not None:
        folder = Path(os.path.abspath(wish.expanduser()))  # noqa: PTH100 - resolve() would follow links, which may move
        root = inspect(folder, "--run-root", mounts)
        if root.shared is False and not one_machine:
            raise UserError(
                f"--run-root {str(folder)!r} is on this host's own {root.file_system}, which other nodes do not see.\n"
                "  next: name a folder on a shared disk"
            )
        return root, folder, folder.parent / "data"
    found = roots(environ, user_name(), mounts)
    if not found or (found[0].shared is False and not one_machine):
        raise UserError(
            "no folder of yours was found on a shared disk ($SCRATCH, /scratch/$USER and home were tried).\n"
            "  next: name one: --run-root DIR"
        )
    return found[0], found[0].path / _FOLDER / "runs", found[0].path / _FOLDER / "data"


def _resources(limits: PartitionLimits) -> dict[str, Any]:
    """What the stages ask for and a node of this partition does not have, cut to what it has."""
    asked = [yaml_core.load(path)["resources"] for path in stages().values()]
    cut: dict[str, Any] = {}
    gpus = max(one["gpus_per_node"] for one in asked)
    if limits.gpus_per_node is not None and gpus > limits.gpus_per_node:
        gpus = cut["gpus_per_node"] = limits.gpus_per_node
    if limits.cpus_per_node is not None:
        cores = limits.cpus_per_node // max(gpus, 1)
        if max(one["cpus_per_task"] for one in asked) > cores:
            cut["cpus_per_task"] = max(cores, 1)
    if limits.memory_gb is not None and max(one["memory_gb"] for one in asked) > limits.memory_gb:
        cut["memory_gb"] = limits.memory_gb
    return cut
