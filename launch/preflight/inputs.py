"""What must stand before a stage's job starts: datasets, a policy, and that they go together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launch.config import Config
from launch.models import check_policy, find_policy, folder_of
from launch.places import expand
from launch.preflight import rules
from launch.preflight.finding import Finding
from launch.spec import JobSpec
from tracking.errors import UserError
from tracking.files import read_json
from tracking.store.reference import Reference, parse

_SHOWN = 3


def input_findings(config: Config, spec: JobSpec) -> Iterator[Finding]:
    """Yields which datasets and which policy are not there, or do not go together."""
    yield from _missing_datasets(config, spec)
    yield from _missing_policy(config, spec)
    bundle = bundle_of(config, spec)
    if bundle is not None:
        for folder in datasets_of(config, spec):
            yield from _features(config, spec, folder, bundle)


def datasets_of(config: Config, spec: JobSpec) -> list[Path]:
    """The folders of the datasets that a stage reads: by name below a root, or `dataset`, which is a folder."""
    argument = config.stage.inputs.datasets
    if argument is None:
        folder = config.arguments.get("dataset")
        return [spec.root / Path(folder).expanduser()] if folder is not None else []
    root = expand(config.arguments["root"] or spec.cluster.data_root, spec.root, "root")
    given = config.arguments[argument]
    return [root / name for name in (given if isinstance(given, list) else str(given).split(","))]


def bundle_of(config: Config, spec: JobSpec) -> Path | None:
    """The folder of the policy that a stage starts from; None where there is none, or only W&B has it."""
    argument = config.stage.inputs.bundle
    given = config.arguments[argument] if argument is not None else None
    if given in spec.promised:
        return None
    if given is None or (folder := folder_of(given, spec.root)) is not None:
        is_there = given is not None and folder is not None and os.access(folder, os.X_OK) and folder.is_dir()
        return folder if is_there else None
    try:
        return find_policy(given, spec, pull=False).path
    except UserError:
        return None


def features_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """Shapes by name: of a dataset's columns, or of a bundle's inputs and outputs; empty where none can be read."""
    info = _read(folder / "meta" / "info.json").get("features")
    config = _read(folder / "config.json")
    found = (
        info
        if isinstance(info, dict)
        else {**(config.get("input_features") or {})} | {**(config.get("output_features") or {})}
    )
    return {
        name: tuple(feature["shape"])
        for name, feature in found.items()
        if isinstance(feature, Mapping) and isinstance(feature.get("shape"), list)
    }


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty where there is none that can be read, which other findings speak of."""
    try:
        value = read_json(path)
    except (ValueError, OSError):
        return {}
    return value if isinstance(value, dict) else {}


def _missing_datasets(config: Config, spec: JobSpec) -> Iterator[Finding]:
    for folder in datasets_of(config, spec):
        if not os.access(folder / "meta" / "info.json", os.R_OK) and str(folder) not in spec.promised:
            name = folder.name
            yield rules.DATASET_MISSING(
                f"dataset {name!r} is not in {folder.parent} (no {name}/meta/info.json)",
                f"record it: python -m launch.submit --stage collect --cluster {spec.cluster.name} "
                f"--set collect.repo_id={name}, or name another: "
                f"--set {spec.stage}.{config.stage.inputs.datasets or 'dataset'}=NAME",
            )


def _missing_policy(config: Config, spec: JobSpec) -> Iterator[Finding]:
    """W&B is asked for a bare name that the store does not have; of W&B's own names only the submission can say."""
    argument = config.stage.inputs.bundle
    if argument is None:
        return
    key, given = f"{spec.stage}.{argument}", config.arguments[argument]
    if given is None:
        yield rules.POLICY_MISSING(
            f"{key} is not set", f"--set {key}=runs/NAME/bundle, or a model by name: --set {key}=act-lift:best"
        )
        return
    if given in spec.promised:
        return
    if (folder := folder_of(given, spec.root)) is not None:
        if not os.access(folder / "config.json", os.R_OK):
            yield rules.POLICY_MISSING(
                f"{key}={given!r}: {folder} has no config.json, so no policy",
                f"a bc run leaves one in runs/NAME/bundle: --set {key}=runs/NAME/bundle",
            )
        return
    try:
        wanted = parse(given)
        if not isinstance(wanted, Reference):
            find_policy(wanted, spec, pull=False)
        elif wanted.project is None:
            check_policy(wanted, spec)
    except UserError as error:
        yield rules.POLICY_MISSING(
            f"{key}={given!r}: {spec.root / given} has no config.json, so no policy, and no model is found by that "
            f"name: {'; '.join(line.strip() for line in str(error).splitlines())}",
            "python -m tracking.models list, or the folder of a bundle",
        )


def _features(config: Config, spec: JobSpec, dataset: Path, bundle: Path) -> Iterator[Finding]:
    there, wanted = features_of(dataset), features_of(bundle)
    if not there or not wanted:
        return
    faults = [f"{name} {shape} is not in the dataset" for name, shape in wanted.items() if name not in there]
    faults += [
        f"{name} is {there[name]} in the dataset, {shape} in the policy"
        for name, shape in wanted.items()
        if name in there and not _same(there[name], shape)
    ]
    if faults:
        more = f" and {len(faults) - _SHOWN} more" if len(faults) > _SHOWN else ""
        yield rules.FEATURES(
            f"dataset {dataset.name!r} and policy {bundle}: {'; '.join(faults[:_SHOWN])}{more}",
            f"a policy that was trained on such data: --set {spec.stage}.{config.stage.inputs.bundle}=NAME",
        )


def _same(column: tuple[int, ...], feature: tuple[int, ...]) -> bool:
    """Whether a column fits a feature; images stand as height, width, channels in a dataset, else channels first."""
    return column == feature or (len(column) == 3 and (column[2], *column[:2]) == feature)
