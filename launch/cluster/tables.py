"""What the commands show, at 80 columns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from launch.profile import Checked, Cluster, PartitionLimits, QosRules, Seen
from launch.render import slurm_time
from tracking.words import NOTHING

_PARTS = ("shared", "srun", "modules", "home", "internet", "requeue")
_VERDICTS = {True: "[green]yes[/green]", False: "[bold red]no[/bold red]", None: "?"}
_QUESTIONS = {
    "shared": "roots are shared",
    "srun": "srun on every node",
    "modules": "modules load",
    "home": "room at home",
    "internet": "nodes reach W&B",
    "requeue": "jobs may be requeued",
}


def show_profiles(profiles: Mapping[str, tuple[Path, Cluster | str]], own: Path, console: Console) -> None:
    """One line a profile; a text in the place of a profile says why it cannot be read."""
    table = Table(Column("profile", no_wrap=True), "partition", "account", "QOS", "GPUs", "W&B")
    table.add_column("checked", no_wrap=True)
    for name, (path, cluster) in sorted(profiles.items()):
        mark = "" if path.is_relative_to(own) else " *"
        if isinstance(cluster, str):
            table.add_row(name + mark, f"[red]{escape(cluster)}[/red]")
            continue
        where = cluster.partition or ("this machine" if cluster.executor == "local" else "default")
        table.add_row(
            name + mark,
            *map(escape, (where, cluster.account or NOTHING, cluster.qos or NOTHING)),
            _number(cluster.gpus_per_node),
            _word(cluster.internet),
            cluster.checked.date.partition(" ")[0] if cluster.checked else NOTHING,
        )
    console.print(table)
    console.print("GPUs: of a node. W&B: whether nodes reach it.")
    console.print(f"* shipped; your own are in {own}", highlight=False, markup=False)


def show_profile(cluster: Cluster, path: Path, console: Console) -> None:
    """One profile: where jobs go, what the site allows, what a check saw."""
    console.print(f"{cluster.name}: {path}", highlight=False, markup=False)
    console.print(choices(cluster))
    if cluster.partitions:
        console.print(partitions(cluster.partitions, cluster.partition))
    if names := list(dict.fromkeys([*cluster.qos_limits, *cluster.qos_rules])):
        console.print(qos(names, cluster))
    if cluster.checked:
        show_checked(cluster.checked, console)


def choices(cluster: Cluster) -> Table:
    """What jobs get where they name nothing else."""
    table = Table(show_header=False, box=None)
    rows = {
        "partition": cluster.partition or "the default",
        "account": cluster.account or "your default",
        "QOS": cluster.qos or "your default",
        "run root": cluster.run_root,
        "data root": cluster.data_root,
        "modules": " ".join(cluster.modules) or "none",
    }
    if cluster.resources:
        rows["resources"] = ", ".join(f"{key}={value}" for key, value in cluster.resources.items())
    for key, value in rows.items():
        table.add_row(key, escape(value))
    return table


def partitions(found: Mapping[str, PartitionLimits], chosen: str | None) -> Table:
    """One line a partition, the largest node of each."""
    table = Table("partition", "longest", "nodes", "GPUs", "cores", "memory", "only for")
    for name, limits in found.items():
        table.add_row(
            f"[bold]{escape(name)}[/bold] <" if name == chosen else escape(name),
            slurm_time(limits.max_time) if limits.max_time else NOTHING,
            _number(limits.nodes),
            escape(" ".join(filter(None, [_number(limits.gpus_per_node), *limits.gpu_types]))),
            _number(limits.cpus_per_node),
            f"{limits.memory_gb:g} GiB" if limits.memory_gb else NOTHING,
            escape(_only_for(limits)),
        )
    return table


def qos(names: Iterable[str], cluster: Cluster) -> Table:
    """One line a QOS."""
    table = Table("QOS", "longest", "GPUs a job", "GPUs a user", "jobs queued", "flags")
    for name in names:
        rules = cluster.qos_rules.get(name, QosRules())
        longest = cluster.qos_limits.get(name)
        table.add_row(
            f"[bold]{escape(name)}[/bold] <" if name == cluster.qos else escape(name),
            slurm_time(longest) if longest else NOTHING,
            *map(_number, (rules.gpus_per_job, rules.gpus_per_user, rules.submitted_per_user)),
            escape(" ".join(rules.flags)),
        )
    return table


def show_checked(checked: Checked, console: Console) -> None:
    """What a check saw."""
    table = Table("", "", f"seen on {checked.date}")
    for part in _PARTS:
        seen: Seen | None = getattr(checked, part)
        if seen is not None:
            table.add_row(_QUESTIONS[part], _VERDICTS[seen.ok], escape(seen.saw))
    console.print(table)


def _only_for(limits: PartitionLimits) -> str:
    parts = [
        ("", limits.accounts),
        ("QOS ", limits.qos),
        ("not ", limits.denied_accounts),
        ("not QOS ", limits.denied_qos),
    ]
    return "; ".join(f"{word}{', '.join(names)}" for word, names in parts if names)


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:g}"


def _word(value: bool | None) -> str:
    return {True: "yes", False: "no", None: "?"}[value]
