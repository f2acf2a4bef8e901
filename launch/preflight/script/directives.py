"""The `#SBATCH` lines of a script, as Slurm reads them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from launch.preflight.request import Request

# sbatch's short options that stand for one of those looked at here.
_SHORT = {
    "A": "account",
    "D": "chdir",
    "G": "gpus",
    "N": "nodes",
    "c": "cpus-per-task",
    "d": "dependency",
    "e": "error",
    "n": "ntasks",
    "o": "output",
    "p": "partition",
    "q": "qos",
    "t": "time",
}
_UNITS = {"K": 1 / 1024, "M": 1, "G": 1024, "T": 1024 * 1024}
_FIELDS = {
    "nodes": "nodes",
    "ntasks-per-node": "tasks_per_node",
    "ntasks": "tasks_per_node",
    "gpus-per-node": "gpus_per_node",
    "gpus": "gpus_per_node",
    "gres": "gpus_per_node",
    "cpus-per-task": "cpus_per_task",
    "mem": "memory_mb",
    "time": "minutes",
    "partition": "partition",
    "account": "account",
    "qos": "qos",
}


@dataclass(frozen=True)
class Directive:
    """One option of an `#SBATCH` line.

    Attributes:
        line: Where it stands, from 1.
        name: The long option's name.
        value: Its value; empty where it has none.
        read: Whether Slurm reads it: the lines behind the first command are not.
    """

    line: int
    name: str
    value: str
    read: bool = True

    def __str__(self) -> str:
        return f"--{self.name}={self.value}" if self.value else f"--{self.name}"


def directives(text: str) -> list[Directive]:
    """Reads the options of a script's `#SBATCH` lines."""
    found, read = [], True
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("#SBATCH"):
            found += [Directive(number, name, value, read) for name, value in _options(line.removeprefix("#SBATCH"))]
        elif line.strip() and not line.lstrip().startswith("#"):
            read = False
    return found


def _options(text: str) -> Iterator[tuple[str, str]]:
    try:
        words = shlex.split(text, comments=True)
    except ValueError:
        words = text.split()
    waiting: str | None = None
    for word in words:
        if word.startswith("--"):
            if waiting is not None:
                yield waiting, ""
            name, separator, value = word[2:].partition("=")
            waiting = None if separator else name
            if separator:
                yield name, value
        elif word.startswith("-") and len(word) > 1 and word[1] in _SHORT and waiting is None:
            waiting = None if word[2:] else _SHORT[word[1]]
            if word[2:]:
                yield _SHORT[word[1]], word[2:].removeprefix("=")
        elif waiting is not None:
            yield waiting, word
            waiting = None
    if waiting is not None:
        yield waiting, ""


def request_in(options: list[Directive]) -> Request:
    """What a script asks Slurm for; options that cannot be read are passed over."""
    given = {one.name: one for one in options if one.read}

    def count(name: str) -> int | None:
        match = re.match(r"\d+", given[name].value) if name in given else None
        return int(match[0]) if match else None

    nodes = count("nodes") or 1
    tasks = count("ntasks-per-node")
    if tasks is None and (ntasks := count("ntasks")) is not None:
        tasks = -(-ntasks // nodes)
    gpus = _gpus(given, nodes)
    memory = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGT]?)B?", given["mem"].value.upper()) if "mem" in given else None
    fields = {_FIELDS[name]: one for name, one in given.items() if name in _FIELDS}
    return Request(
        nodes=nodes,
        tasks_per_node=tasks,
        gpus_per_node=gpus,
        cpus_per_task=count("cpus-per-task"),
        memory_mb=float(memory[1]) * _UNITS[memory[2] or "M"] if memory else None,
        minutes=minutes_in(given["time"].value) if "time" in given else None,
        partition=given["partition"].value if "partition" in given else None,
        account=given["account"].value if "account" in given else None,
        qos=given["qos"].value if "qos" in given else None,
        written={field: str(one) for field, one in fields.items()},
        setter={field: f"--{name}=" for name, field in _FIELDS.items() if name not in ("gres", "gpus", "ntasks")},
        lines={field: one.line for field, one in fields.items()},
    )


def _gpus(given: dict[str, Directive], nodes: int) -> int:
    """GPUs of each node, as `2`, `a100:2`, and for `--gres` `gpu:a100:2`."""
    for name in ("gpus-per-node", "gpus", "gres"):
        if name in given:
            value = given[name].value
            if name == "gres":
                value = next((one[3:].lstrip(":") for one in value.split(",") if re.match(r"gpu(:|$)", one)), "0")
            count = re.search(r"(?:^|:)(\d+)$", value or "1")
            total = int(count[1]) if count else 1
            return -(-total // nodes) if name == "gpus" else total
    return 0


def minutes_in(value: str) -> int | None:
    """Reads a time as sbatch takes it: `M`, `M:S`, `H:M:S`, `D-H`, `D-H:M`, `D-H:M:S`; None for what it does not."""
    match = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", value)
    if match is None:
        return None
    days, first, second, third = match.groups()
    if days is not None:
        parts = (int(days) * 24 + int(first), int(second or 0), int(third or 0))
    elif third is not None:
        parts = (int(first), int(second), int(third))
    else:
        parts = (0, int(first), int(second or 0))
    return parts[0] * 60 + parts[1] + (parts[2] > 0)
