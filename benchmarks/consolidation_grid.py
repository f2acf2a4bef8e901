"""Consolidation over the whole grid, bit for bit against the live engines and against DeepSpeed's converter.

    python benchmarks/consolidation_grid.py [--only REGEX] [--results FILE] [--deepspeed DIR]

ZeRO 0 to 3, fp32, bf16 and fp16, 1 to 4 ranks, each with and without frozen parameters, tied weights, buffers and a
second parameter group: 768 checkpoints. Then BF16_Optimizer, offload, round-robin gradients, alignment, sub-groups, SGD
and autocast, with all of that in the model and with none. Real engines write them, gloo on CPUs, and each is removed
when it has been compared. Cases that stand in the file of results, a line each, are not made again. Another DeepSpeed
is tried from where `uv pip install --no-deps --target DIR deepspeed==…` has put it. Ends with 1 when a consolidated
model is not the live engine's, or not DeepSpeed's where that one is right.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
# The root first: tests/ has a folder that is called tracking too.
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from gilbreth_phase0.ranks import compile_extensions  # noqa: E402

from forked_ranks import run_ranks  # noqa: E402
from rank_pairs import rank_environment  # noqa: E402
from zero_verdicts import Verdict, judge  # noqa: E402

if TYPE_CHECKING:
    from zero_cases import Case

# Of one process group: DeepSpeed gives back little of what an engine took.
GROUP = 32
DTYPES = ("fp32", "bf16", "fp16")
WORDS = ("equal", "refused", "wrong", "other types")
OTHER_TYPE = re.compile(r"\w+, not float32")


@dataclass(frozen=True)
class Result:
    """One case that was played.

    Attributes:
        name: Of the case.
        stage: ZeRO stage.
        dtype: What was trained in.
        special: The special kind, or nothing.
        verdict: How it was read.
    """

    name: str
    stage: int
    dtype: str
    special: str
    verdict: Verdict

    @property
    def equal(self) -> bool:
        """Whether ours is the live engine's, and DeepSpeed's where that one is right."""
        return not self.verdict.ours and self.verdict.apart == self.verdict.theirs

    @property
    def theirs(self) -> str:
        """What DeepSpeed's converter did: one of `WORDS`."""
        if self.verdict.refusal:
            return "refused"
        found = self.verdict.theirs.values()
        return (
            "equal" if not found else "other types" if all(OTHER_TYPE.fullmatch(fault) for fault in found) else "wrong"
        )


def groups_of(cases: Iterable[Case]) -> Iterator[list[Case]]:
    """Cases of the same number of ranks, as many as one process group plays."""
    by_world: dict[int, list[Case]] = defaultdict(list)
    for case in cases:
        by_world[case.world].append(case)
    for _, own in sorted(by_world.items()):
        yield from (own[first : first + GROUP] for first in range(0, len(own), GROUP))


def read_results(path: Path) -> list[Result]:
    """What was played before."""
    lines = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
    return [Result(**line | {"verdict": Verdict(**line["verdict"])}) for line in lines]


class Progress:
    """Says after each case how far the grid is, and how long the rest will take."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._start = time.monotonic()
        # The ranks' own stderr goes to a log.
        self._stream = os.fdopen(os.dup(2), "w")

    def skip(self, count: int) -> None:
        """Cases that another process has played."""
        self._done += count

    def __call__(self, result: Result) -> None:
        """Counts one case."""
        self._done += 1
        rate = self._done / (time.monotonic() - self._start)
        ours = "equal" if result.equal else "NOT EQUAL"
        print(
            f"{self._done}/{self._total} {result.name}: {ours}, DeepSpeed's {result.theirs};"
            f" {rate:.2f} cases/s, {(self._total - self._done) / rate:.0f} s left",
            file=self._stream,
            flush=True,
        )


def play(cases: list[Case], results: TextIO, progress: Progress) -> None:
    """Makes and compares cases of one number of ranks; rank 0 writes what came of each.

    Raises:
        SystemExit: A rank failed; what the ranks printed goes before.
    """
    import torch.distributed as dist

    from zero_cases import join, make

    with tempfile.TemporaryDirectory(prefix="consolidation-grid-") as temporary:
        folder = Path(temporary)

        def rank_of(rank: int) -> None:
            log = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            join(rank, cases[0].world, folder)
            for case in cases:
                make(case, folder / case.name)
                if rank == 0:
                    verdict = judge(folder / case.name)
                    result = Result(case.name, case.stage, case.dtype, case.special, verdict)
                    print(json.dumps(asdict(result)), file=results, flush=True)
                    progress(result)
                    shutil.rmtree(folder / case.name)
            dist.barrier()
            dist.destroy_process_group()

        try:
            run_ranks(cases[0].world, rank_of)
        except ChildProcessError as error:
            sys.exit(f"{(folder / 'log').read_text()[-5000:]}\n{error}")
    progress.skip(len(cases))


def counts(results: list[Result]) -> Table:
    """The table by ZeRO stage and element type."""
    columns = ["ZeRO", "trained in", "checkpoints", "equal", "unequal"]
    table = Table(*columns, *(f"DeepSpeed's {word}" for word in WORDS), box=MARKDOWN)

    def add(stage: str, dtype: str, own: list[Result]) -> None:
        equal = sum(result.equal for result in own)
        theirs = [sum(result.theirs == word for result in own) for word in WORDS]
        table.add_row(stage, dtype, *map(str, [len(own), equal, len(own) - equal, *theirs]))

    for stage in range(4):
        for dtype in DTYPES:
            own = [result for result in results if (result.stage, result.dtype) == (stage, dtype)]
            if own:
                add(str(stage), dtype, own)
    add("all", "", results)
    return table


def faults(results: list[Result]) -> Table:
    """What DeepSpeed's converter does where it is not equal, and in how many of which cases."""
    table = Table("DeepSpeed's converter", "checkpoints", "ZeRO", "trained in", "rows", box=MARKDOWN)
    kinds: dict[str, list[Result]] = defaultdict(list)
    for result in results:
        if result.verdict.refusal:
            kinds[re.sub(r"\S*/", "…/", result.verdict.refusal)[:70]].append(result)
        elif result.verdict.theirs:
            named = "; ".join(f"{name} {fault}" for name, fault in result.verdict.theirs.items())
            kinds[named].append(result)
    for kind, own in kinds.items():
        seen: list[set[Any]] = [set(), set(), set()]
        for result in own:
            for values, value in zip(seen, (result.stage, result.dtype, result.special or "grid"), strict=True):
                values.add(value)
        table.add_row(kind, str(len(own)), *(", ".join(map(str, sorted(values))) for values in seen))
    return table


def main(
    only: Annotated[str, typer.Option(help="Cases whose name this regular expression is found in.")] = "",
    results: Annotated[Path | None, typer.Option(help="File that keeps what came of each case.")] = None,
    deepspeed: Annotated[Path | None, typer.Option(help="Folder of another DeepSpeed.")] = None,
) -> None:
    """Plays the grid, prints the tables and ends with 1 when something is not equal."""
    environment = rank_environment()
    os.environ.clear()
    os.environ.update(environment)
    if deepspeed:
        sys.path.insert(0, str(deepspeed.resolve()))
        # Its extension is another one; jobs would load what is compiled anew in their place.
        os.environ["TORCH_EXTENSIONS_DIR"] = str(deepspeed.resolve() / "torch_extensions")
        # Before 0.16 it relies on the default of an older torch.
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"
    # Once, not in every process group.
    compile_extensions()
    from deepspeed import __version__

    from zero_cases import whole_grid

    with tempfile.TemporaryDirectory() as temporary:
        path = results or Path(temporary) / "results.jsonl"
        done = {result.name for result in read_results(path)}
        wanted = [case for case in whole_grid() if re.search(only, case.name)]
        names = {case.name for case in wanted}
        missing = [case for case in wanted if case.name not in done]
        progress = Progress(len(missing))
        with path.open("a") as file:
            for group in groups_of(missing):
                play(group, file, progress)
        played = [result for result in read_results(path) if result.name in names]
    console = Console(width=200)
    print(f"DeepSpeed {__version__}")
    console.print(counts(played))
    console.print(faults(played))
    for result in played:
        if not result.equal:
            print(f"NOT EQUAL: {result.name}: {result.verdict.ours or result.verdict.apart}")
    sys.exit(int(not played or not all(result.equal for result in played)))


if __name__ == "__main__":
    typer.run(main)
