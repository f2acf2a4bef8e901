"""What a live Slurm tells about itself and its user, in four questions that are asked at once.

Each part that Slurm does not tell (a command is not there, refuses, is slow, or answers what nobody can read) is None,
and `not_known` says why. The fields of the answers have had these names since Slurm 22.05; its JSON changes with every
version.
"""

from __future__ import annotations

import platform
import re
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from launch.profile import PartitionLimits, QosRules, minutes
from launch.questions import ACCOUNT_FIELDS, QOS_FIELDS, Questions
from tracking.slurm import ask

# Words of a node's state that keep jobs away from it; what is powered down comes back when a job needs it.
_OUT = {"DOWN", "DRAIN", "DRAINED", "DRAINING", "ERROR", "FAIL", "FAILING", "FUTURE", "INVAL", "INVALID_REG", "UNKNOWN"}
_OUT |= {"NOT_RESPONDING"}
_NO_LIMIT = {"", "UNLIMITED", "INFINITE", "NONE", "N/A", "(NULL)", "PARTITION_LIMIT"}

Result = TypeVar("Result")


@dataclass(frozen=True)
class PartitionState:
    """How a partition is now.

    Attributes:
        state: Slurm's word; jobs start where it is `UP`.
        nodes_up: How many of its nodes take jobs, now or when they are free; None is not known.
    """

    state: str
    nodes_up: int | None


@dataclass(frozen=True)
class Site:
    """What Slurm told; None is not known. What a profile holds too has the profile's names and forms.

    Attributes:
        cluster: Slurm's name of the cluster.
        version: Slurm's version on its nodes.
        partitions: The partitions that the user sees.
        states: How each of them is now.
        qos_limits: Longest time in minutes, of each QOS that limits it.
        qos_rules: What else a QOS limits; every QOS that there is stands in it.
        accounts: The accounts of the user.
        account_qos: The QOS that each of them may name.
        default_account: The account of jobs that name none.
        default_qos: The QOS of jobs that name none, by account.
        one_machine: Whether all nodes are this machine, so that they share every folder.
        not_known: Why a part is not known, by the part: `partitions`, `nodes`, `qos`, `accounts`.
    """

    cluster: str | None = None
    version: str | None = None
    partitions: dict[str, PartitionLimits] | None = None
    states: dict[str, PartitionState] | None = None
    qos_limits: dict[str, int] | None = None
    qos_rules: dict[str, QosRules] | None = None
    accounts: tuple[str, ...] | None = None
    account_qos: dict[str, tuple[str, ...]] | None = None
    default_account: str | None = None
    default_qos: dict[str, str] = field(default_factory=dict)
    one_machine: bool = False
    not_known: Mapping[str, str] = field(default_factory=dict)


def ask_site(timeout: float = 10.0, asked: Questions | None = None) -> Site:
    """Asks Slurm.

    Args:
        timeout: Seconds until all that is not answered counts as not known.
        asked: The questions, where they are on their way already.
    """
    deadline = time.monotonic() + timeout
    questions = asked or Questions()
    answers = questions.answers(deadline)
    not_known: dict[str, str] = {}

    def told(part: str, read: Callable[[str], Result]) -> Result | None:
        answer = answers[part]
        if answer.output is None:
            not_known[part] = answer.problem
            return None
        try:
            return read(answer.output)
        except (ValueError, KeyError) as error:
            not_known[part] = f"`{' '.join(questions.commands[part][:4])}` answered what cannot be read: {error}"
            return None

    nodes = told("nodes", read_nodes)
    partitions = told("partitions", lambda text: read_partitions(text, nodes))
    qos = told("qos", read_qos)
    accounts = told("accounts", lambda text: read_accounts(text, lambda: _cluster_name(deadline)))
    return Site(
        cluster=None if accounts is None else accounts.cluster,
        version=next((node.version for node in nodes or () if node.version), None),
        partitions=None if partitions is None else {name: limits for name, (limits, _) in partitions.items()},
        states=None if partitions is None else {name: state for name, (_, state) in partitions.items()},
        qos_limits=None if qos is None else {name: time for name, (time, _) in qos.items() if time is not None},
        qos_rules=None if qos is None else {name: rules for name, (_, rules) in qos.items()},
        accounts=None if accounts is None else tuple(accounts.qos),
        account_qos=None if accounts is None else accounts.qos,
        default_account=None if accounts is None else accounts.default,
        default_qos={} if accounts is None else accounts.default_qos,
        one_machine=bool(nodes) and all(_is_here(node.address) for node in nodes or ()),
        not_known=not_known,
    )


@dataclass(frozen=True)
class Node:
    """What one node has for jobs; memory in MiB."""

    partitions: tuple[str, ...]
    cpus: int
    memory: int
    gpus: int
    gpu_types: tuple[str, ...]
    is_up: bool
    version: str | None
    address: str


def read_nodes(text: str) -> list[Node]:
    """Reads `scontrol --oneliner show node`.

    Raises:
        ValueError: It is something else.
    """
    return [_node(fields) for fields in _records(text, "NodeName")]


def read_partitions(text: str, nodes: Iterable[Node] | None) -> dict[str, tuple[PartitionLimits, PartitionState]]:
    """Reads `scontrol --oneliner show partition`.

    Args:
        text: What it printed.
        nodes: The nodes of the cluster; None is not known.

    Raises:
        ValueError: It is something else.
    """
    members: dict[str, list[Node]] = defaultdict(list)
    for node in nodes or ():
        for name in node.partitions:
            members[name].append(node)
    found = {}
    for fields in _records(text, "PartitionName"):
        name = fields["PartitionName"]
        # Some sites show only the nodes that a user may use.
        up = sum(node.is_up for node in members[name]) if members[name] else None
        found[name] = _partition(fields, members[name]), PartitionState(fields.get("State", "UNKNOWN"), up)
    return found


def read_qos(text: str) -> dict[str, tuple[int | None, QosRules]]:
    """Reads what `sacctmgr show qos` says of time and of everything else.

    Raises:
        ValueError: It is something else.
    """
    found = {}
    for cells in _rows(text, QOS_FIELDS):
        of_a_job = [_gpus_in(cells[key]) for key in ("maxtres", "grptres", "maxtrespa")]
        rules = QosRules(
            gpus_per_job=_least(of_a_job),
            gpus_per_user=_gpus_in(cells["maxtrespu"]),
            jobs_per_user=_count(cells["maxjobspu"]),
            submitted_per_user=_count(cells["maxsubmitpu"]),
            flags=_names(cells["flags"]),
        )
        found[cells["name"]] = _minutes(cells["maxwall"]), rules
    return found


@dataclass(frozen=True)
class Accounts:
    """The accounts of a user on one cluster: the QOS of each, its default QOS, and the default account."""

    cluster: str
    qos: dict[str, tuple[str, ...]]
    default_qos: dict[str, str]
    default: str | None


def read_accounts(text: str, here: Callable[[], str | None]) -> Accounts:
    """Reads `sacctmgr show user NAME withassoc`.

    Args:
        text: What it printed.
        here: Says the name of this cluster. Several may share their accounting; it is asked only then.

    Raises:
        ValueError: It is something else, or knows no account of the user here.
    """
    rows = list(_rows(text, ACCOUNT_FIELDS))
    clusters = {row["cluster"] for row in rows}
    cluster = clusters.pop() if len(clusters) == 1 else here()
    qos: dict[str, tuple[str, ...]] = {}
    for row in rows:
        # One account may stand there for several partitions.
        if row["cluster"] == cluster:
            qos[row["account"]] = tuple(dict.fromkeys((*qos.get(row["account"], ()), *_names(row["qos"]))))
    if cluster is None or not qos:
        raise ValueError(f"no account of this user on {cluster or 'this cluster, whose name is not known'}")
    default = next((row["defaultaccount"] for row in rows if row["defaultaccount"] in qos), None)
    default_qos: dict[str, str] = {}
    # What holds in one partition alone comes last.
    for row in sorted(rows, key=lambda row: row["partition"] != ""):
        if row["cluster"] == cluster and row["defaultqos"]:
            default_qos.setdefault(row["account"], row["defaultqos"])
    return Accounts(cluster, qos, default_qos, default)


def gpus_of(gres: str) -> tuple[int, tuple[str, ...]]:
    """Reads Slurm's `Gres=`: how many GPUs, and of what types, as in `gpu:a100:4(S:0-1),lscratch:800`."""
    entries = re.findall(r"(?:^|,)gpu(?::([^:,()]+))??:(\d+)(?=[(,]|$)", gres)
    return sum(int(count) for _, count in entries), tuple(dict.fromkeys(kind for kind, _ in entries if kind))


def _node(fields: Mapping[str, str]) -> Node:
    gpus, gpu_types = gpus_of(fields.get("Gres", ""))
    state = re.split(r"[+*~#%$@^!-]+", fields.get("State", "UNKNOWN"))
    return Node(
        partitions=_names(fields.get("Partitions", "")),
        # What is left where Slurm keeps cores and memory for itself.
        cpus=int(fields.get("CPUEfctv") or fields["CPUTot"]),
        memory=int(fields["RealMemory"]) - int(fields.get("MemSpecLimit", 0)),
        gpus=gpus,
        gpu_types=gpu_types,
        is_up=not _OUT & set(state),
        version=fields.get("Version"),
        address=fields.get("NodeAddr", ""),
    )


def _partition(fields: Mapping[str, str], nodes: Iterable[Node]) -> PartitionLimits:
    nodes = list(nodes)
    memory = _least([max((node.memory for node in nodes), default=None), _count(fields.get("MaxMemPerNode", ""))])
    cpus = _least([max((node.cpus for node in nodes), default=None), _count(fields.get("MaxCPUsPerNode", ""))])
    return PartitionLimits(
        default=fields.get("Default") == "YES",
        max_time=_minutes(fields.get("MaxTime", "")),
        nodes=_count(fields.get("TotalNodes", "")),
        max_nodes=_count(fields.get("MaxNodes", "")),
        gpus_per_node=max((node.gpus for node in nodes), default=None),
        gpu_types=tuple(dict.fromkeys(kind for node in nodes for kind in node.gpu_types)),
        cpus_per_node=cpus,
        memory_gb=None if memory is None else memory * 10 // 1024 / 10,
        accounts=_allowed(fields.get("AllowAccounts", "ALL")),
        denied_accounts=_names(fields.get("DenyAccounts", "")),
        qos=_allowed(fields.get("AllowQos", "ALL")),
        denied_qos=_names(fields.get("DenyQos", "")),
        own_qos=next(iter(_names(fields.get("QoS", ""))), None),
    )


def _records(text: str, first: str) -> list[dict[str, str]]:
    """The `Key=value` fields of lines that begin with a key; some values of other keys hold spaces."""
    lines = [line for line in text.splitlines() if line.startswith(f"{first}=")]
    if not lines:
        raise ValueError(f"no {first}= in {text.strip()[:60]!r}")
    records = []
    for line in lines:
        fields: dict[str, str] = {}
        for key, value in re.findall(r"(?:^|\s)([A-Za-z]\w*)=(\S*)", line):
            fields.setdefault(key, value)
        records.append(fields)
    return records


def _rows(text: str, names: tuple[str, ...]) -> Iterable[dict[str, str]]:
    """The lines of `sacctmgr --parsable2`."""
    for line in filter(None, text.splitlines()):
        cells = line.split("|")
        if len(cells) != len(names):
            raise ValueError(f"{line[:60]!r} has not {len(names)} fields")
        yield dict(zip(names, cells, strict=True))


def _cluster_name(deadline: float) -> str | None:
    said = ask(("scontrol", "show", "config"), deadline).output or ""
    name = re.search(r"^ClusterName\s*=\s*(\S+)", said, re.MULTILINE)
    return name[1] if name else None


def _is_here(address: str) -> bool:
    """Whether an address is this machine's own."""
    return address.startswith("127.") or address in ("localhost", platform.node(), platform.node().partition(".")[0])


def _minutes(text: str) -> int | None:
    return None if text.upper() in _NO_LIMIT else int(minutes(text))


def _count(text: str) -> int | None:
    return None if text.upper() in _NO_LIMIT else int(text)


def _names(text: str) -> tuple[str, ...]:
    return () if text.upper() in _NO_LIMIT else tuple(filter(None, text.split(",")))


def _allowed(text: str) -> tuple[str, ...] | None:
    return None if text.upper() == "ALL" else _names(text)


def _gpus_in(tres: str) -> int | None:
    """The GPUs in a list of resources such as `cpu=64,gres/gpu=8`; those of one type alone do not limit the others."""
    count = re.search(r"(?:^|,)gres/gpu=(\d+)", tres)
    return int(count[1]) if count else None


def _least(values: Iterable[int | None]) -> int | None:
    return min((value for value in values if value is not None), default=None)
