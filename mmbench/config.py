"""The configuration of a run: everything that decides its outcome, typed and complete."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import model_validator

from mmbench.hashing import digest
from mmbench.options import Options, option

SCHEMA = 1
"""Version of the stored configuration and record. A reader refuses any other."""


NEEDS = {
    "momentum": ("optimizer", "sgd"),
    "step_epochs": ("schedule", "step"),
    "step_factor": ("schedule", "step"),
}
"""Training settings that are used with one value of another setting alone."""


class Recipe(Options):
    """How a network is trained (`-t key=value`). Datasets override the defaults."""

    epochs: int = option(100, "passes over the training rows", ge=1)
    batch_size: int = option(64, "rows per update", ge=1)
    optimizer: Literal["sgd", "adam", "adamw"] = option("sgd", "update rule")
    lr: float = option(1e-3, "learning rate at the start", gt=0)
    momentum: float | None = option(None, "momentum of sgd; 0.9 unless given", ge=0, lt=1)
    weight_decay: float = option(1e-4, "weight decay", ge=0)
    schedule: Literal["constant", "step", "cosine"] = option(
        "constant", "learning rate over epochs"
    )
    step_epochs: int | None = option(
        None, "epochs between the drops of schedule=step; 70 unless given", ge=1
    )
    step_factor: float | None = option(
        None, "factor of a drop of schedule=step; 0.1 unless given", gt=0, lt=1
    )
    clip_norm: float | None = option(
        None, "largest norm of the whole gradient; none to not clip", gt=0
    )
    select: Literal["best-val", "last", "best-test"] = option(
        "best-val",
        "which epoch's model is tested: the best on validation, the last, or the best on test, "
        "which repeats a fault of many papers and is marked in every table",
    )
    train_on: Literal["train", "train+val"] = option(
        "train", "rows to train on; train+val leaves nothing to select on and needs select=last"
    )

    @model_validator(mode="after")
    def _settings_are_used(self) -> Recipe:
        for name, (other, value) in NEEDS.items():
            if getattr(self, name) is not None and (chosen := getattr(self, other)) != value:
                raise ValueError(f"{name} is not used by {other}={chosen}; leave it out")
        if self.train_on == "train+val" and self.select == "best-val":
            raise ValueError("train_on=train+val leaves no validation rows: add select=last")
        return self


class RunConfig(Options):
    """One run, fully resolved. Stored as ``config.yaml``; running it again repeats the run."""

    schema_version: int = SCHEMA
    method: str
    """Registered name, or path of a Python file."""
    method_options: dict[str, Any] = {}
    dataset: str
    """Registered name, or path of a Python or YAML file."""
    dataset_options: dict[str, Any] = {}
    protocol: str
    fusion: str
    encoders: dict[str, str] = {}
    recipe: Recipe = Recipe()
    files: dict[str, str] = {}
    """SHA-256 of the method's or dataset's file, where it was given by path."""
    seed: int = option(0, "seed of everything that is drawn", ge=0)
    precision: Literal["fp32", "tf32", "bf16"] = "fp32"
    device: str = "cpu"
    threads: int = option(1, "CPU threads", ge=1)

    @model_validator(mode="after")
    def _precision_is_used(self) -> RunConfig:
        if self.precision == "tf32" and self.device == "cpu":
            raise ValueError("precision=tf32 is not used by device=cpu; leave it out")
        return self

    def identity(self) -> dict[str, Any]:
        """Return what tells this experiment from others: all but its seed, its machine and the
        folder that a method's or dataset's file lies in (its hash is in ``files``)."""
        values = self.model_dump(mode="json", exclude={"seed", "device", "threads"})
        return values | {name: Path(values[name]).stem for name in ("method", "dataset")}

    def config_hash(self) -> str:
        """Return 12 hex digits that name the experiment in the store."""
        return digest(json.dumps(self.identity(), sort_keys=True))[:12]
