"""One schema for a stage program's arguments: the pydantic model is the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticUndefined

from tracking.errors import UserError, exit_on_user_error


class StageArguments(BaseModel):
    """What every stage program accepts; a program's own model derives from this."""

    model_config = ConfigDict(extra="forbid", frozen=True)


Arguments = TypeVar("Arguments", bound=StageArguments)


def parse(model: type[Arguments], values: dict[str, Any]) -> Arguments:
    """Validates values against a model.

    Raises:
        UserError: One line for each value that does not fit, with the flag that sets it.
    """
    try:
        return model(**values)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            flag = "--" + ".".join(str(part) for part in fault["loc"]).replace("_", "-") if fault["loc"] else ""
            given = "" if fault["type"] == "missing" or not fault["loc"] else f" {fault['input']!r}:"
            lines.append(f"{flag}{given} {fault['msg']}".strip())
        raise UserError("\n  ".join(lines)) from None


def names(given: str | None) -> list[str]:
    """Splits a list of names at its commas; none where nothing is given."""
    return [name.strip() for name in given.split(",") if name.strip()] if given else []


@contextmanager
def marked_refusal(run_dir: Path | None) -> Iterator[None]:
    """Leaves the file `refused` in an existing run folder when input is refused, and lets the error pass."""
    try:
        yield
    except UserError as error:
        if error.exit_code == UserError.exit_code and run_dir is not None:
            mark_refusal(run_dir, error)
        raise


def mark_refusal(run_dir: Path, error: UserError) -> None:
    """Leaves the words of a refusal in the file `refused` of an existing run folder; the first rank's stay.

    Where one rank refuses, srun kills the others and returns their 137: the batch script reads the refusal from the
    file, and shows the words, which may stand in the log of another rank only. `launch.task` leaves the file, empty,
    for programs that submitit starts and that do not do it themselves.
    """
    # A folder that is not there or cannot be written may be what is refused.
    with suppress(OSError), (run_dir / "refused").open("x") as file:
        file.write(f"error: {error}\n")


def repeated(argv: Sequence[str], flag: str) -> list[str]:
    """Lets one flag take several values, as in `--policies A B C`: click wants it before each."""
    written: list[str] = []
    is_open = False
    for word in argv:
        is_open = word == flag or (is_open and not word.startswith("-"))
        if is_open and word != flag and written[-1] != flag:
            written.append(flag)
        written.append(word)
    return written


def command(model: type[Arguments], main: Callable[[Arguments], None]) -> typer.Typer:
    """Makes the command line of a stage program: a field `batch_size` is the flag `--batch-size`.

    Args:
        model: The program's arguments; each field's description is its help.
        main: What to run with the validated arguments. A `UserError` from it ends the program with its exit code.
    """

    def run(**given: Any) -> None:
        with exit_on_user_error(), marked_refusal(given.get("run_dir")):
            main(parse(model, given))

    # Without what pydantic alone reads (`Annotated[str, BeforeValidator(...)]`): the help would show it as the type.
    plain = get_type_hints(model)
    parameters = []
    for name, field in model.model_fields.items():
        default = ... if field.default is PydanticUndefined else field.default
        annotation = Annotated[plain[name], typer.Option(help=field.description)]  # type: ignore[valid-type]
        parameters.append(
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=inspect.Parameter.empty if default is ... else default,
                annotation=annotation,
            )
        )
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = inspect.getdoc(main)
    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command()(run)
    return app
