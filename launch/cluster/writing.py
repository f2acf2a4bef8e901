"""A profile as text: written with a comment on each value, and changed in one place without touching the rest."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from launch import yaml_core
from launch.config import user_profiles, validate
from launch.profile import Checked, Cluster, PartitionLimits, QosRules
from launch.render import slurm_time
from launch.site import Site
from tracking.errors import UserError
from tracking.exclusive import create_exclusive
from tracking.files import write_atomic
from tracking.names import check_name

_WIDTH = 120


def profile_text(cluster: Cluster, site: Site, root_words: str) -> str:
    """Writes a new profile.

    Args:
        cluster: What it holds.
        site: What Slurm told.
        root_words: What is known of the disk of its roots.
    """
    told = f"Slurm {site.version} of {site.cluster}" if site.cluster and site.version else "Slurm"
    lines = [
        f"# Written by `python -m launch.cluster init {cluster.name}` from what {told} told on {date.today()}.",
        "# Change what you like; `python -m launch.cluster check` writes only `checked`, `internet` and `requeue`.",
        *_choices(cluster, root_words),
        *_facts(cluster, site),
        "",
    ]
    return "\n".join(lines)


def own_path(name: str, force: bool) -> Path:
    """Where a new profile goes.

    Raises:
        UserError: The name cannot be part of a path, or is taken.
    """
    path = user_profiles() / f"{check_name('cluster', name)}.yaml"
    if path.exists() and not force:
        raise _taken(path)
    return path


def create(path: Path, text: str, force: bool) -> None:
    """Writes a new profile.

    Raises:
        UserError: It is there meanwhile, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if force:
            write_atomic(path, text)
        elif not create_exclusive(path, text.encode()):
            raise _taken(path)
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror}") from None


def profile_of(text: str, name: str, path: Path) -> Cluster:
    """Reads a profile's text as `launch.submit` does.

    Raises:
        UserError: It holds what a profile must not.
    """
    tree = yaml_core.parse(text, str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds {type(tree).__name__}, expected `key: value` lines")
    return validate(Cluster, {**tree, "name": name}, "cluster", path)


def with_findings(text: str, name: str, path: Path, checked: Checked, changes: Mapping[str, Any]) -> str:
    """Writes what a check saw into the text of a profile; all else stays letter by letter.

    Args:
        text: The profile.
        name: Its name.
        path: Its file, for messages.
        checked: What takes the place of its section `checked`.
        changes: Values that stand on the line of their key; its comment stays.

    Raises:
        UserError: The text is of a form in which that cannot be done; the message says what to write by hand.
    """
    values = {key: value for key, value in checked.model_dump(mode="json").items() if value not in (None, [])}
    block = ["checked:  # what `python -m launch.cluster check` saw"]
    block += [f"  {key}: {yaml_core.inline(value)}" for key, value in values.items()]
    changed = _replace_section(text, "checked", block)
    for key, value in changes.items():
        changed = _replace_value(changed, key, yaml_core.inline(value))
    expected = {**yaml_core.parse(text, str(path)), **changes, "checked": values, "name": name}
    try:
        is_right = profile_of(changed, name, path) == validate(Cluster, expected, "cluster", path)
    except UserError:
        is_right = False
    if not is_right:
        by_hand = "\n  ".join([*block, *(f"{key}: {yaml_core.inline(value)}" for key, value in changes.items())])
        raise UserError(f"{path} cannot be changed without touching the rest of it; write there:\n  {by_hand}")
    return changed


def _choices(cluster: Cluster, root_words: str) -> Iterator[str]:
    yield "executor: slurm"
    yield _line("partition", cluster.partition, "where jobs go; `partitions` below has the others")
    yield _line("account", cluster.account, "who is charged; null: your default account, or SBATCH_ACCOUNT")
    yield _line("qos", cluster.qos, "null: your default QOS, or SBATCH_QOS")
    yield ""
    yield f"# {root_words}"
    yield _line("run_root", cluster.run_root, "run folders; all nodes must see it")
    yield _line("data_root", cluster.data_root, "datasets; all nodes must see it")
    yield _line("store_root", cluster.store_root, "where models are found by name; null: models beside run_root")
    yield _line("node_local", list(cluster.node_local), "folders that other nodes do not see")
    yield ""
    yield _line("modules", list(cluster.modules), "`module load` these, in this order")
    yield _line("conda_env", cluster.conda_env, "null: the Python that launch.submit runs under")
    yield _line("environment", cluster.environment, "variables of every job; no secrets: jobs inherit those")
    yield _line("resources", cluster.resources, "takes the place of a stage's own, as in {memory_gb: 32}")
    yield _line("arguments", cluster.arguments, "takes the place of a stage's own, as in {device: cuda}")
    yield ""


def _facts(cluster: Cluster, site: Site) -> Iterator[str]:
    yield "# What the site allows. It is checked before a job is queued; null and what is missing are not known."
    yield _line("internet", cluster.internet, "whether nodes reach W&B; `check` finds out")
    yield _line("requeue", cluster.requeue, "whether a job may be requeued; false: the next one is queued instead")
    yield _line(
        "sync_partition", cluster.sync_partition, "whose nodes reach W&B, for --sync-after; null: the job's own"
    )
    yield _line("gpus_per_node", cluster.gpus_per_node, "of the partition above")
    accounts = None if cluster.accounts is None else list(cluster.accounts)
    yield _line("accounts", accounts, "those that you may name")
    yield from _table(
        "account_qos", {key: list(qos) for key, qos in cluster.account_qos.items()}, "QOS of each account"
    )
    limits = {key: slurm_time(time) for key, time in cluster.qos_limits.items()}
    yield from _table("qos_limits", limits, "longest time by QOS")
    yield from _table(
        "qos_rules", {key: _given(rules) for key, rules in cluster.qos_rules.items()}, "what else a QOS limits"
    )
    yield from _table(
        "partitions", {key: _given(one) for key, one in cluster.partitions.items()}, "largest node of each"
    )
    for part, why in site.not_known.items():
        yield f"# {part}: not known. {' '.join(why.split())[:100]}"


def _given(limits: PartitionLimits | QosRules) -> dict[str, Any]:
    """What differs from the defaults, times as Slurm writes them."""
    values = limits.model_dump(mode="json", exclude_defaults=True)
    if values.get("max_time") is not None:
        values["max_time"] = slurm_time(values["max_time"])
    return values


def _table(key: str, rows: Mapping[str, Any], comment: str) -> Iterator[str]:
    if not rows:
        yield _line(key, {}, comment)
        return
    yield f"{key}:  # {comment}"
    for name, value in rows.items():
        yield f"  {yaml_core.inline(name)}: {yaml_core.inline(value)}"


def _line(key: str, value: Any, comment: str) -> str:
    line = f"{key}: {yaml_core.inline(value)}"
    return f"{line}  # {comment}" if len(line) + len(comment) + 4 <= _WIDTH else f"# {comment}\n{line}"


def _replace_section(text: str, key: str, block: list[str]) -> str:
    """Puts lines in the place of a top-level key and what belongs to it, else at the end."""
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if _begins(line, key)), None)
    if start is None:
        return "\n".join([*lines, *block]) + "\n"
    end = start + 1
    for number in range(start + 1, len(lines)):
        if re.match(r"\S", lines[number]):
            break
        if lines[number].strip():
            end = number + 1  # blank lines that follow belong to what comes next
    return "\n".join([*lines[:start], *block, *lines[end:]]) + "\n"


def _replace_value(text: str, key: str, value: str) -> str:
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if _begins(line, key)), None)
    if start is None:
        return "\n".join([*lines, f"{key}: {value}"]) + "\n"
    comment = re.search(r"\s+#.*$", lines[start])
    lines[start] = f"{key}: {value}{comment[0] if comment else ''}"
    return "\n".join(lines) + "\n"


def _begins(line: str, key: str) -> bool:
    return re.match(rf"['\"]?{re.escape(key)}['\"]?\s*:(\s|$)", line) is not None


def _taken(path: Path) -> UserError:
    return UserError(f"{path} is there already.\n  next: choose another name, or write over it: --force")
