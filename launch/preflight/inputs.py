"""What must stand before a stage's job starts: datasets, policies, and that they go together."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from launch.config import Config, listed
from launch.models import check_policy, find_policy, folder_of, policies_of
from launch.places import expand
from launch.preflight import rules
from launch.preflight.finding import Finding
from launch.spec import JobSpec
from tracking.errors import UserError
from tracking.files import read_json
from tracking.store.reference import Reference, parse

_SHOWN = 3


def input_findings(config: Config, spec: JobSpec) -> Iterator[Finding]:
    """Yields which datasets and which policies are not there, or do not go together."""
    yield from _missing_datasets(config, spec)
    yield from _missing_policies(config, spec)
    inputs = config.stage.inputs
    for argument, name in policies_of(config, spec.root, (*inputs.policies, *inputs.others)):
        bundle = _bundle(name, spec)
        if bundle is not None:
            for folder in datasets_of(config, spec):
                yield from _features(spec, folder, bundle, argument)


def datasets_of(config: Config, spec: JobSpec) -> list[Path]:
    """The folders of the datasets that a stage reads: by name below a root, or `dataset`, which is a folder."""
    return [folder for _, folder in _datasets(config, spec)]


def _datasets(config: Config, spec: JobSpec) -> list[tuple[str, Path]]:
    """The argument that names a dataset, and its folder."""
    arguments = config.stage.inputs.datasets
    if not arguments:
        folder = config.arguments.get("dataset")
        return [("dataset", spec.root / Path(folder).expanduser())] if folder is not None else []
    root = expand(config.arguments["root"] or spec.cluster.data_root, spec.root, "root")
    return [(one, root / name) for one in arguments for name in listed(config.arguments[one])]


def bundle_of(config: Config, spec: JobSpec) -> Path | None:
    """The folder of the policy that a stage starts from; None where there is none, or only W&B has it."""
    names = policies_of(config, spec.root, config.stage.inputs.policies)
    return _bundle(names[0][1], spec) if names else None


def _bundle(given: str, spec: JobSpec) -> Path | None:
    if given in spec.promised:
        return None
    if (folder := folder_of(given, spec.root)) is not None:
        return folder if os.access(folder, os.X_OK) and folder.is_dir() else None
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
    recorded = config.stage.inputs.datasets[:1]
    for argument, folder in _datasets(config, spec):
        if not os.access(folder / "meta" / "info.json", os.R_OK) and str(folder) not in spec.promised:
            name = folder.name
            record = f"record it: python -m launch.submit --stage collect --cluster {spec.cluster.name} "
            record += f"--set collect.repo_id={name}, or name another: "
            yield rules.DATASET_MISSING(
                f"dataset {name!r} is not in {folder.parent} (no {name}/meta/info.json)",
                f"{record if argument in recorded else ''}--set {spec.stage}.{argument}=NAME",
            )


def _missing_policies(config: Config, spec: JobSpec) -> Iterator[Finding]:
    """W&B is asked for a bare name that the store does not have; of W&B's own names only the submission can say."""
    inputs = config.stage.inputs
    if inputs.policies and not policies_of(config, spec.root, inputs.policies):
        keys = [f"{spec.stage}.{argument}" for argument in inputs.policies]
        yield rules.POLICY_MISSING(
            f"{' or '.join(keys)} is not set",
            f"--set {keys[-1]}=runs/NAME/bundle, or a model by name: --set {keys[0]}=act-lift:best",
        )
    for argument, name in policies_of(config, spec.root, (*inputs.policies, *inputs.others)):
        if name not in spec.promised:
            yield from _missing_policy(f"{spec.stage}.{argument}", name, spec)


def _missing_policy(key: str, given: str, spec: JobSpec) -> Iterator[Finding]:
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


def _features(spec: JobSpec, dataset: Path, bundle: Path, argument: str) -> Iterator[Finding]:
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
            f"a policy that was trained on such data: --set {spec.stage}.{argument}=NAME",
        )


def _same(column: tuple[int, ...], feature: tuple[int, ...]) -> bool:
    """Whether a column fits a feature; images stand as height, width, channels in a dataset, else channels first."""
    return column == feature or (len(column) == 3 and (column[2], *column[:2]) == feature)
