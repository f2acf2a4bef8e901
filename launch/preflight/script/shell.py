"""Shell text as lines of commands: without comments and here-documents, joined where they go on, literals filled in."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass

_HEREDOC = re.compile(r"(?<!<)<<-?\s*(?P<quote>['\"]?)(?P<word>\w+)(?P=quote)")
_ASSIGNMENT = re.compile(r"(?:export\s+)?(?P<name>[A-Za-z_]\w*)=(?P<value>[\w./:@%+,-]*|'[^'$]*'|\"[^\"$`]*\")\s*;?")
_VARIABLE = re.compile(r"\$\{(?P<braced>[A-Za-z_]\w*)\}|\$(?P<plain>[A-Za-z_]\w*)")


@dataclass(frozen=True)
class Command:
    """One logical line of a script.

    Attributes:
        line: Where it begins, from 1.
        text: What stands there, with literal variables of the script filled in.
    """

    line: int
    text: str

    @property
    def words(self) -> list[str]:
        """Its words as the shell splits them; by spaces where a quote is open."""
        try:
            return shlex.split(self.text)
        except ValueError:
            return self.text.split()

    def option(self, *names: str) -> str | None:
        """The value of the first of these options that stands there: `--name value` or `--name=value`."""
        words = self.words
        for index, word in enumerate(words):
            key, separator, value = word.partition("=")
            # torchrun takes both --nproc_per_node and --nproc-per-node.
            if key.replace("_", "-") in {name.replace("_", "-") for name in names}:
                return value if separator else (words[index + 1] if index + 1 < len(words) else "")
        return None

    def runs(self, *programs: str) -> bool:
        """Whether one of these programs stands there as a word of its own, whatever its folder."""
        return any(word.rpartition("/")[2] in programs for word in self.words)


def commands(text: str) -> list[Command]:
    """Reads a script's commands."""
    values: dict[str, str] = {}
    found = []
    for line, joined in _logical(text.splitlines()):
        filled = _VARIABLE.sub(lambda match: values.get(match["braced"] or match["plain"], match[0]), joined)
        if assignment := _ASSIGNMENT.fullmatch(filled.strip()):
            values[assignment["name"]] = assignment["value"].strip("'\"")
        found.append(Command(line, filled.strip()))
    return found


def _logical(lines: list[str]) -> Iterator[tuple[int, str]]:
    """Lines with their numbers: joined at backslashes, without comments, empty lines and here-documents."""
    begun, start, until = "", 0, None
    for number, raw in enumerate(lines, 1):
        if until is not None:
            until = None if raw.strip() == until else until
            continue
        text = without_comment(raw)
        start = start or number
        if text.endswith("\\"):
            begun += text[:-1] + " "
            continue
        whole, first, begun, start = begun + text, start, "", 0
        # A shift, as in $((1 << n)), has no line that ends it.
        if (heredoc := _HEREDOC.search(whole)) and heredoc["word"] in map(str.strip, lines[number:]):
            until = heredoc["word"]
        if whole.strip():
            yield first, whole
    if begun.strip():
        yield start, begun


def without_comment(line: str) -> str:
    """Cuts a comment off; a `#` in quotes or inside a word is none."""
    quote = ""
    for index, letter in enumerate(line):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter == "#" and (index == 0 or line[index - 1] in " \t;"):
            return line[:index].rstrip()
    return line.rstrip()
