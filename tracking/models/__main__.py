"""`python -m tracking.models`: the model store on the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tracking.errors import UserError, exit_on_disk_error, exit_on_user_error

if TYPE_CHECKING:
    from tracking.store import Resolved, Store

app = typer.Typer(
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
    help="Models by name, on a shared disk and without a network. MODEL is NAME, NAME:ALIAS, NAME:v3, "
    "ENTITY/PROJECT/NAME:ALIAS (W&B's) or a path.",
)

StoreOption = Annotated[
    Path | None,
    typer.Option("--store", metavar="FOLDER", help="The store. Without it: GILBRETH_STORE, else ./models."),
]
Model = Annotated[str, typer.Argument(metavar="MODEL", help="Such as act-lift:best.")]
Names = Annotated[list[str] | None, typer.Argument(metavar="NAME", help="All names where none is given.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@app.command("list")
def list_models(
    name: Annotated[str | None, typer.Argument(help="Show the versions of this name.")] = None,
    as_json: AsJson = False,
    store: StoreOption = None,
) -> None:
    """Lists the names, or the versions of one."""
    with exit_on_user_error():
        from tracking.models.tables import console, names_table, version_facts, versions_table
        from tracking.store.push import adopt

        where = _open(store, must_exist=True)
        adopt(where)
        names = _names(where, [name] if name else None)
        if as_json:
            found = [_version(where, each, number) for each in names for number in where.state(each).versions]
            print(json.dumps([version_facts(where, version) for version in found], indent=2))
        elif name:
            console().print(versions_table(where.state(name)))
        else:
            console().print(names_table(where))


@app.command()
def show(model: Model, as_json: AsJson = False, store: StoreOption = None) -> None:
    """Shows what is known of one version, what it was made from, and where its files are."""
    with exit_on_user_error():
        from tracking.models.lineage import as_tree, lineage
        from tracking.models.tables import console, facts_table, version_facts

        where = _open(store)
        found = _resolve(where, model, pull=False)
        facts, origin = version_facts(where, found), lineage(where, str(found))
        if as_json:
            print(json.dumps(facts | {"lineage": origin.as_plain()}, indent=2))
        elif found.version is None:
            print(found.path)
        else:
            console().print(facts_table(facts))
            if origin.origins:
                console().print(as_tree(origin))
            print(found.path)  # whole, to be copied: a table would fold it


@app.command()
def publish(
    path: Annotated[Path, typer.Argument(help="A policy bundle, or one safetensors file.")],
    name: Annotated[str, typer.Argument(help="Such as act-lift.")],
    *,
    alias: Annotated[list[str] | None, typer.Option(help="Beside latest; may be repeated.")] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Metadata, as in --set success_rate=0.93; may be repeated."),
    ] = None,
    description: Annotated[str | None, typer.Option(help="For the model card.")] = None,
    run_dir: Annotated[Path | None, typer.Option("--run", metavar="RUN_DIR", help="The run that made it.")] = None,
    inputs: Annotated[
        list[str] | None, typer.Option("--from", metavar="MODEL", help="A model that it was made from.")
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(metavar="[ENTITY/]PROJECT", help="W&B project. Without it: the run's, else WANDB_PROJECT."),
    ] = None,
    local: Annotated[bool, typer.Option("--local", help="Never upload it.")] = False,
    store: StoreOption = None,
) -> None:
    """Gives a model a name, at once; its upload to W&B waits for a network."""
    with exit_on_user_error():
        from tracking.store import publish as publish_model
        from tracking.store.reference import today

        where = _open(store)
        given, (name, old_aliases) = name, today(name)
        if old_aliases:
            typer.echo(f"note: {given} is an old name for {name} with {', '.join(old_aliases)}", err=True)
        done = publish_model(
            where,
            path,
            name,
            [*old_aliases, *(alias or [])],
            dict(map(_pair, metadata or [])),
            description=description,
            run_dir=run_dir,
            inputs=[str(_resolve(where, model)) for model in inputs or []],
            target=project,
            mirror=not local,
        )
        aliases = ", ".join(where.state(name).aliases_of(done.version.number))
        print(f"{done} ({aliases}){'' if done.is_new else ': the same files were there'}\n{done.folder}")
        if done.intent is not None:
            run = shlex.quote(str(run_dir)) if run_dir else None
            command = f"python -m tracking.sync run {run}" if run else "python -m tracking.models push"
            print(f"its upload waits; where there is internet: {command}")


@app.command()
def pull(
    model: Annotated[str, typer.Argument(metavar="ENTITY/PROJECT/NAME:ALIAS", help="A version on W&B.")],
    name: Annotated[str | None, typer.Option(help="Its name in the store; W&B's where none is given.")] = None,
    store: StoreOption = None,
) -> None:
    """Takes a version from W&B into the store, which numbers it anew."""
    with exit_on_user_error():
        from tracking.store.reference import Reference, parse
        from tracking.store.remote import fetch

        where, wanted = _open(store), parse(model)
        if not isinstance(wanted, Reference) or wanted.project is None:
            raise UserError(f"{model!r} names no version on W&B\n  expected: ENTITY/PROJECT/NAME:ALIAS")
        here, number = fetch(where, wanted, name)
        found = _version(where, here, number)
        aliases = ", ".join(where.state(here).aliases_of(number)) or "no alias here"
        print(f"{wanted} is {found} ({aliases})\n{found.path}")


@app.command()
def push(
    models: Annotated[list[str] | None, typer.Argument(metavar="MODEL", help="Upload these too.")] = None,
    project: Annotated[
        str | None, typer.Option(metavar="[ENTITY/]PROJECT", help="W&B project of the named ones.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be uploaded, and what keep_last_n would delete.")
    ] = False,
    store: StoreOption = None,
) -> None:
    """Uploads what waits, moves W&B's aliases to where the store's are, and deletes there by keep_last_n."""
    with exit_on_user_error():
        from tracking.store.publish import default_target
        from tracking.store.push import push as push_waiting
        from tracking.store.push import want_upload

        where = _open(store, must_exist=True)
        if dry_run:
            from tracking.models.on_wandb import say_push

            say_push(where, [str(_resolve(where, model)) for model in models or []])
            return
        for model in models or []:
            want_upload(where, _resolve(where, model), project or default_target())
        done = push_waiting(where)
        for version in done.elsewhere:
            print(f"{version} waits in the folder of its run: python -m tracking.sync run RUN_DIR")
        print(f"{len(done.uploaded)} uploaded, {done.aliases} with other aliases, {len(done.failed)} failed")
        if done.failed:
            raise UserError("\n  ".join(["W&B did not take everything:", *done.failed]))


@app.command()
def alias(
    model: Model,
    aliases: Annotated[list[str], typer.Argument(metavar="ALIAS", help="Such as best, stable, prod.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take them away instead.")] = False,
    store: StoreOption = None,
) -> None:
    """Puts aliases at a version: they leave the one that had them."""
    with exit_on_user_error():
        from tracking.models.files import check_alias
        from tracking.store.resolve import move_aliases, remove_aliases

        where = _open(store)
        found = _resolve(where, model)
        if found.name is None or found.version is None:
            raise UserError(f"{model} is no version of the store\n  next: python -m tracking.models publish PATH NAME")
        for each in aliases:
            check_alias(each, "alias")
        if remove:
            remove_aliases(where, found, aliases)
        else:
            move_aliases(where, found.name, dict.fromkeys(aliases, found.version.number))
        there = ", ".join(where.state(found.name).aliases_of(found.version.number))
        print(f"{found}: {there or 'no alias'}")


@app.command()
def best(
    model: Model,
    evaluation: Annotated[
        Path, typer.Option(metavar="FILE", help="Its evaluation.json, or the run folder that holds it.")
    ],
    *,
    against: Annotated[
        Path | None, typer.Option(metavar="FILE", help="That of the version that is best now, on the same seeds.")
    ] = None,
    fresh: Annotated[
        tuple[Path, Path] | None, typer.Option(metavar="FILE FILE", help="Its and the best one's, on fresh seeds.")
    ] = None,
    metric: Annotated[str, typer.Option(help="success or reward of an episode.")] = "success",
    best_rule: Annotated[
        str, typer.Option("--best-rule", help="paired: better beyond chance; naive: greater on average.")
    ] = "paired",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say.")] = False,
    store: StoreOption = None,
) -> None:
    """Puts the alias best at a version if it is better than the one that has it; exit code 1 where it is not."""
    with exit_on_user_error():
        from tracking.models.best import check_rule, judge_files
        from tracking.store.resolve import move_aliases

        where, rule = _open(store), check_rule(best_rule)
        found = _resolve(where, model)
        if found.name is None or found.version is None:
            raise UserError(f"{model} is no version of the store\n  next: python -m tracking.models publish PATH NAME")
        now = where.state(found.name).aliases.get("best")
        if now == found.version.number:
            print(f"{found} is best already")
            return
        if (now is None) != (against is None):
            who = f"{found.name}:v{now} is best now" if now is not None else f"no version of {found.name} is best yet"
            raise UserError(
                f"{who}\n  next: {'--against ITS_EVALUATION' if now is not None else 'leave out --against'}"
            )
        judgement = judge_files(evaluation, against, fresh, metric=metric, rule=rule)
        if judgement.better and not dry_run:
            move_aliases(where, found.name, {"best": found.version.number}, expected={"best": now})
    print(f"{found} is {'the best' if judgement.better else 'not the best'}: {judgement.reason}")
    if judgement.confirm:
        print("to confirm it, evaluate both on fresh seeds and give --fresh ITS_FILE THE_BEST_ONES_FILE")
    if not judgement.better:
        raise typer.Exit(1)


@app.command()
def link(
    model: Model,
    collection: Annotated[str, typer.Argument(help="wandb-registry-NAME/COLLECTION, or ENTITY/PROJECT/PORTFOLIO.")],
    alias: Annotated[list[str] | None, typer.Option(help="Its aliases there; may be repeated.")] = None,
    store: StoreOption = None,
) -> None:
    """Links a version that is on W&B into a registry or portfolio there."""
    with exit_on_user_error():
        from tracking.store.push import link as link_model
        from tracking.store.reference import Reference, parse

        where, wanted = _open(store), parse(model)
        if not isinstance(wanted, Reference):
            raise UserError(f"{model} is a path\n  next: publish it, push it, and link it by its name")
        print(link_model(where, wanted, collection, alias or []))


@app.command()
def prune(
    names: Names = None,
    *,
    keep_last: Annotated[
        int | None, typer.Option(min=0, help="How many of a name's newest versions stay; 1 where nothing says.")
    ] = None,
    grace: Annotated[float, typer.Option(min=0, metavar="HOURS", help="What is younger stays.")] = 24.0,
    steps: Annotated[bool, typer.Option("--steps", help="An alias step-N alone does not hold a version.")] = False,
    used: Annotated[bool, typer.Option("--used", help="That a run used a version does not hold it.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; delete nothing.")] = False,
    remote: Annotated[bool, typer.Option("--remote", help="On W&B instead, what has no alias there.")] = False,
    project: Annotated[
        str | None, typer.Option(metavar="[ENTITY/]PROJECT", help="With --remote; without it: WANDB_PROJECT.")
    ] = None,
    rules_file: Annotated[
        Path | None, typer.Option("--config", metavar="YAML", help="Where model_management has keep_last_n.")
    ] = None,
    store: StoreOption = None,
) -> None:
    """Deletes versions that no alias, run, other model, pin or waiting upload holds."""
    with exit_on_user_error():
        from tracking.models.on_wandb import keep_by, prune_there

        keep = keep_by(keep_last, rules_file)
        if remote:
            from tracking.models.remote import RemoteRules

            prune_there(
                _open(store), names or [], RemoteRules(keep, grace * 3600, not steps, not used), project, dry_run
            )
            return
        from tracking.store.prune import Rules
        from tracking.store.prune import prune as prune_store
        from tracking.words import many, size

        where = _open(store, must_exist=True)
        rules = Rules(grace * 3600, keep, steps_hold=not steps, uses_hold=not used)
        done = prune_store(where, _names(where, names), rules, dry_run=dry_run)
        for version in done.versions:
            print(f"{version} {'would go' if dry_run else 'is deleted'}")
        for version, why in done.held.items():
            print(f"{version} stays: {why}")
        freed = "" if dry_run else f", {size(done.bytes)} freed"
        print(f"{many(len(done.versions), 'version')} {'would go' if dry_run else 'deleted'}{freed}")


@app.command()
def verify(names: Names = None, store: StoreOption = None) -> None:
    """Reads every file and compares it with the digest that was recorded; exit code 1 where one differs."""
    with exit_on_user_error():
        from tracking.store.verify import verify as verify_store

        where = _open(store, must_exist=True)
        faults = verify_store(where, _names(where, names), print)
    for fault in faults:
        print(f"error: {fault}")
    if faults:
        raise typer.Exit(1)


def _open(folder: Path | None, *, must_exist: bool = False) -> Store:
    from tracking.store.root import VARIABLE, open_store

    store = open_store(folder)
    if must_exist and not store.exists:
        raise UserError(
            f"there is no model store in {store.root}\n"
            f"  next: name its folder with --store FOLDER or {VARIABLE}=FOLDER; publishing a model makes one"
        )
    return store


def _names(store: Store, given: list[str] | None) -> list[str]:
    for name in given or []:
        store.known(name)
    return given or store.names()


def _version(store: Store, name: str, number: int) -> Resolved:
    from tracking.store.reference import Reference
    from tracking.store.resolve import find

    return find(store, Reference(name, f"v{number}"))


def _resolve(store: Store, model: str, *, pull: bool = True) -> Resolved:
    from tracking.store import resolve

    found = resolve(model, store, pull=pull)
    if found.note:
        typer.echo(f"note: {found.note}", err=True)
    return found


def _pair(text: str) -> tuple[str, Any]:
    import yaml

    key, sign, value = text.partition("=")
    if not key or not sign:
        raise UserError(f"--set {text!r}: expected KEY=VALUE, as in --set success_rate=0.93")
    return key, yaml.safe_load(value)


if __name__ == "__main__":
    with exit_on_disk_error():
        app(prog_name="python -m tracking.models")
