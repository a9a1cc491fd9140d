"""From what a user asks for to complete configurations, with every name and option checked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from mmbench import options as opt
from mmbench.config import SCHEMA, Recipe, RunConfig
from mmbench.data.dataset import Dataset, Splits
from mmbench.environment import choose_device
from mmbench.errors import RequestError, unknown_name
from mmbench.nets.network import fusion_type, resolve_encoders
from mmbench.registry import file_hash, load_dataset, load_method
from mmbench.train.method import Method


@dataclass
class Request:
    """What a user asks for; whatever is left open takes the default of method and dataset."""

    methods: Sequence[str] = ("iibalance",)
    dataset: str = "mfeat"
    protocol: str | None = None
    fusion: str | None = None
    seeds: Sequence[int] = (0,)
    method_options: Mapping[str, Any] = field(default_factory=dict)
    dataset_options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    encoders: Mapping[str, str] = field(default_factory=dict)
    precision: str = "fp32"
    device: str = "auto"
    threads: int | None = None
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Job:
    """One run, ready to train."""

    config: RunConfig
    method: type[Method]
    options: opt.Options
    splits: Splits
    changed: dict[str, Any]
    """Settings that differ from the defaults, with dotted names."""


def make_jobs(request: Request) -> Iterable[Job]:
    """Yield the jobs of a request, seed by seed; data are loaded once for a seed.

    Raises :class:`RequestError` before the first job if any name, option or combination is wrong.
    """
    dataset = open_dataset(request.dataset, request.dataset_options)
    protocol = request.protocol or dataset.protocols[0]
    dataset.check_protocol(protocol)
    methods = [load_method(name) for name in request.methods]
    first = _load(dataset, protocol, request.seeds[0])
    for name, method in zip(request.methods, methods, strict=True):
        list(_jobs_of(request, name, method, dataset, protocol, request.seeds[0], first))
    for seed in request.seeds:
        splits = first if seed == request.seeds[0] else _load(dataset, protocol, seed)
        for name, method in zip(request.methods, methods, strict=True):
            yield from _jobs_of(request, name, method, dataset, protocol, seed, splits)


def open_dataset(name: str, options: Mapping[str, Any]) -> Dataset:
    """Return the dataset of a name, of a Python file, or of a YAML file that describes arrays."""
    values = dict(options)
    if Path(name).suffix in (".yaml", ".yml"):
        values, name = {"file": name, **values}, "arrays"
    kind = load_dataset(name)
    return kind(opt.validated(kind.Config, values, kind.name()))


def _load(dataset: Dataset, protocol: str, seed: int) -> Splits:
    splits = dataset.load(protocol, seed)
    splits.check(dataset.name())
    return splits


def _jobs_of(
    request: Request,
    name: str,
    method: type[Method],
    dataset: Dataset,
    protocol: str,
    seed: int,
    splits: Splits,
) -> Iterable[Job]:
    modalities = tuple(splits.modalities)
    asked = opt.validated(method.Config, _options_for(request, method.name()), method.name())
    assert isinstance(asked, opt.Options)
    defaults = {**Recipe().model_dump(), **dataset.recipe(protocol)}
    recipe = opt.validated(Recipe, {**defaults, **request.recipe}, "the recipe (-t)")
    fusion = request.fusion or method.info.default_fusion
    check_support(method, fusion, len(modalities))
    files = {"method": file_hash(method), "dataset": file_hash(type(dataset))}
    for variant in method.variants(asked, modalities):
        config = opt.validated(
            RunConfig,
            {
                "method": name,
                "method_options": variant.model_dump(mode="json"),
                "dataset": dataset.name() if _is_builtin(files["dataset"]) else request.dataset,
                "dataset_options": dataset.config.model_dump(mode="json"),
                "protocol": protocol,
                "fusion": fusion,
                "encoders": resolve_encoders(splits.modalities, request.encoders),
                "recipe": recipe.model_dump(mode="json"),
                "files": {kind: sha for kind, sha in files.items() if sha is not None},
                "seed": seed,
                "precision": request.precision,
                "device": str(choose_device(request.device)),
                "threads": request.threads or torch.get_num_threads(),
            },
            "the run",
        )
        _check_files(request.files, config)
        changed = {
            **opt.changed(variant),
            **{f"dataset.{k}": v for k, v in opt.changed(dataset.config).items()},
            **{
                f"recipe.{k}": v
                for k, v in recipe.model_dump(mode="json").items()
                if v != defaults[k]
            },
            **{f"encoder.{m}": encoder for m, encoder in request.encoders.items()},
            **({"fusion": fusion} if fusion != method.info.default_fusion else {}),
            **({"precision": config.precision} if config.precision != "fp32" else {}),
        }
        yield Job(config, method, variant, splits, changed)


def _is_builtin(sha: str | None) -> bool:
    return sha is None


def _options_for(request: Request, method: str) -> dict[str, Any]:
    """Return a method's own options. With several methods they are given as ``method.option``."""
    given = dict(request.method_options)
    if len(request.methods) == 1:
        return given
    names = [Path(name).stem for name in request.methods]
    for key in given:
        if key not in names:
            raise RequestError(
                f"-o {key}: with several methods, say whose option it is, such as "
                f"-o {names[0]}.{key}=..."
            )
    own = given.get(method, {})
    if not isinstance(own, dict):
        raise RequestError(f"-o {method}: name an option, such as -o {method}.option=value")
    return own


def check_support(method: type[Method], fusion: str, modalities: int) -> None:
    """Raise :class:`RequestError` unless the method can use the fusion and number of modalities."""
    info, name = method.info, method.name()
    fusion_type(fusion)
    if info.fusions is not None and fusion not in info.fusions:
        raise RequestError(
            f"method '{name}' cannot use fusion '{fusion}': use {', '.join(info.fusions)}"
        )
    most = info.max_modalities
    if modalities < info.min_modalities or (most is not None and modalities > most):
        limits = f"at least {info.min_modalities}" if most is None else f"at most {most}"
        if most is not None and modalities < info.min_modalities:
            limits = f"at least {info.min_modalities}"
        raise RequestError(
            f"method '{name}' needs {limits} modalities, the dataset has {modalities}: "
            "choose other modalities or another method"
        )


def _check_files(expected: Mapping[str, str], config: RunConfig) -> None:
    for kind, sha in expected.items():
        if config.files.get(kind) != sha:
            raise RequestError(
                f"the file of the {kind} '{getattr(config, kind)}' is not the one that the "
                "configuration was stored with: restore it, or remove 'files' from that YAML"
            )


def request_from_file(path: Path) -> tuple[dict[str, Any], bool]:
    """Return the fields of a request from a YAML file, and whether it is a stored configuration.

    A stored ``config.yaml`` has every setting; a file written by hand has those it wants to fix.
    Raises :class:`RequestError` for a file that cannot be read or names an unknown setting.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RequestError(f"{path} does not exist: check the path") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RequestError(f"{path} cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise RequestError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise RequestError(f"{path} holds no settings: write lines such as 'method: joint'")
    is_stored = "schema_version" in values
    if is_stored and values.pop("schema_version") != SCHEMA:
        raise RequestError(
            f"{path} was stored by another version of mmbench (schema other than {SCHEMA}): run it "
            "with that version, or write the settings anew"
        )
    known = {*RunConfig.model_fields, "methods", "seeds"}
    for name in values:
        if name not in known:
            raise unknown_name(f"setting in {path}", str(name), known)
    if "method" in values:
        values["methods"] = [values.pop("method")]
    if "seed" in values:
        values["seeds"] = [values.pop("seed")]
    return values, is_stored
