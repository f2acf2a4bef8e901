"""From the log of a site check to what it saw."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.profile import Checked, Cluster, Seen

OVER = "site-check over"
"""The last line of a check that came to its end."""

_LINE = re.compile(r"^site-check (\S+) (\S+) (yes|no|unknown) (.*)$", re.MULTILINE)
_VERDICTS = {"yes": True, "no": False, "unknown": None}


@dataclass(frozen=True)
class Answer:
    """One line of a check.

    Attributes:
        part: What was looked at.
        node: Who looked.
        ok: Whether it is as jobs need it; None is not told.
        words: What was seen.
    """

    part: str
    node: str
    ok: bool | None
    words: str


def read_answers(log: str) -> list[Answer]:
    """Reads the lines of a check out of the log of its job."""
    return [Answer(part, node, _VERDICTS[ok], words) for part, node, ok, words in _LINE.findall(log)]


def findings(
    answers: Sequence[Answer], cluster: Cluster, asked_nodes: int, folders: Sequence[Path], date: str
) -> Checked:
    """Puts together what the nodes said and what the login node sees.

    Args:
        answers: The lines of the job.
        cluster: The profile that it ran with.
        asked_nodes: How many nodes it was to run on.
        folders: The folders that were made for it, one below each root.
        date: When it ran.
    """
    nodes = tuple(sorted({answer.node for answer in answers if answer.part == "internet"}))
    return Checked(
        date=date,
        nodes=nodes,
        partition=cluster.partition,
        shared=_shared([answer for answer in answers if answer.part == "shared"], nodes, folders),
        home=_together([answer for answer in answers if answer.part == "home"][:1]),
        internet=_together([answer for answer in answers if answer.part == "internet"]),
        modules=_together([answer for answer in answers if answer.part in ("modules", "python")]),
        srun=_srun([answer for answer in answers if answer.part == "srun"], nodes, asked_nodes),
        requeue=_together([answer for answer in answers if answer.part == "requeue"]),
    )


def _shared(answers: Sequence[Answer], nodes: Sequence[str], folders: Sequence[Path]) -> Seen | None:
    if not answers:
        return None
    bad = [f"{answer.node}: {answer.words}" for answer in answers if not answer.ok]
    bad += [
        f"login node: {folder.parent}: the file of {node} is not seen"
        for folder in folders
        for node in nodes
        if not bad and not (folder / f"node-{node}").exists()
    ]
    if bad:
        return Seen(ok=False, saw="; ".join(dict.fromkeys(bad)))
    places = " and ".join(dict.fromkeys(answer.words for answer in answers))
    return Seen(ok=True, saw=f"{places}: the login node and {' and '.join(nodes)} see the same files")


def _together(answers: Sequence[Answer]) -> Seen | None:
    """One verdict for all nodes: what one of them does not have, jobs cannot count on."""
    if not answers:
        return None
    bad = [answer for answer in answers if answer.ok is False]
    ok = False if bad else None if any(answer.ok is None for answer in answers) else True
    said: dict[str, list[str]] = {}
    for answer in bad or answers:
        said.setdefault(answer.words, []).append(answer.node)
    return Seen(ok=ok, saw="; ".join(f"{', '.join(sorted(set(nodes)))}: {words}" for words, nodes in said.items()))


def _srun(failed: Sequence[Answer], nodes: Sequence[str], asked: int) -> Seen:
    if failed or len(nodes) < asked:
        words = "; ".join(answer.words for answer in failed) or "no task came to its end on the others"
        return Seen(ok=False, saw=f"tasks ran on {len(nodes)} of {asked} nodes; {words}")
    return Seen(ok=True, saw=f"one task on each of {', '.join(nodes)}")
