"""What Slurm is asked about a site and its user: four questions that are on their way while this process goes on.

Standard library only: they are put before Python has imported what reads the answers, which takes about as long.
"""

from __future__ import annotations

import os
import pwd

from tracking.slurm import Answer, Question

QOS_FIELDS = ("name", "maxwall", "maxtres", "grptres", "maxtrespa", "maxtrespu", "maxjobspu", "maxsubmitpu", "flags")
ACCOUNT_FIELDS = ("user", "defaultaccount", "cluster", "account", "partition", "qos", "defaultqos")


class Questions:
    """The four questions, put to Slurm now; whoever does not want the answers drops them.

    Attributes:
        commands: What is asked, by the part of a site: `partitions`, `nodes`, `qos`, `accounts`.
    """

    def __init__(self) -> None:
        people = ("sacctmgr", "--noheader", "--parsable2", "show", "user", user_name(), "withassoc")
        self.commands = {
            # The slow ones first.
            "accounts": (*people, f"format={','.join(ACCOUNT_FIELDS)}"),
            "qos": ("sacctmgr", "--noheader", "--parsable2", "show", "qos", f"format={','.join(QOS_FIELDS)}"),
            "nodes": ("scontrol", "--oneliner", "show", "node"),
            "partitions": ("scontrol", "--oneliner", "show", "partition"),
        }
        self._asked = {part: Question(command) for part, command in self.commands.items()}

    def answers(self, deadline: float) -> dict[str, Answer]:
        """Waits for the answers.

        Args:
            deadline: When those that are missing count as not known, on the monotonic clock.
        """
        return {part: question.answer(deadline) for part, question in self._asked.items()}


def user_name() -> str:
    """The name of the user, as the system has it; the number where it has none."""
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())
