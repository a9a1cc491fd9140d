"""Generated data whose information is known: what a modality tells and how hard it is to learn
are independent dials.

A row of modality m has a latent vector: evidence ``z_m (C,)`` and, with synergy, a symbol
``(C,)``, as defined in :mod:`mmbench.data.gaussians`; the rest is standard normal noise. An
invertible map turns the latents into the input. Nothing is lost in it, so the posterior of the
latents is that of the inputs: ``p(y | x_m)``, ``I(Y; X_m)`` and the Bayes accuracies are exact,
whatever the map.

What each modality alone knows goes along as further labels: ``evidence``, the noise in its evidence
that neither the class nor the other modalities tell, and ``symbol``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import log
from typing import Any

import numpy as np
import torch
from pydantic import model_validator

from mmbench.data.dataset import Dataset, DatasetInfo, Modality, Rows, Source, Split, Splits
from mmbench.data.gaussians import Evidence, offset_for
from mmbench.data.standardise import standardise
from mmbench.errors import unknown_name
from mmbench.options import Options, option
from mmbench.seeds import numpy_stream

AMPLITUDE = 2.0
"""Height of a whole layer's wave, in standard deviations of a latent coordinate."""
FREQUENCY = 1.0
"""Radians per standard deviation: two thirds of a wave over the bulk of the data. With 2, ten times
the rows hardly help an MLP at difficulty 3; with 1 they win back a third of what is lost."""
SYMBOL_MARGIN = 0.5
"""Smallest distance of a symbol's coordinates from zero, whose signs tell the symbol."""
COPY = 1e-6
"""Noise of its own, in standard deviations, below which a modality is a copy of the others."""


class WaveMap:
    """An invertible map of ``R^D``: each layer turns the space by a random rotation and adds to one
    half of the coordinates a sine wave of the other half (an additive coupling layer; Dinh et al.,
    2014, arXiv:1410.8516).

    ``difficulty`` is the number of layers; of a broken number the last layer has waves of that
    fraction of the height. 0 is the identity.
    """

    def __init__(self, dimension: int, difficulty: float, rng: np.random.Generator) -> None:
        self.layers: list[tuple[np.ndarray, np.ndarray, np.ndarray, float]] = []
        self.half = dimension // 2
        left = difficulty
        while left > 0:
            rotation, _ = np.linalg.qr(rng.standard_normal((dimension, dimension)))
            weight = rng.standard_normal((self.half, dimension - self.half))
            weight *= FREQUENCY / np.linalg.norm(weight, axis=0)
            phase = rng.uniform(0, 2 * np.pi, dimension - self.half)
            self.layers.append((rotation, weight, phase, AMPLITUDE * min(left, 1.0)))
            left -= 1

    def forward(self, latents: np.ndarray) -> np.ndarray:
        """Return the inputs ``(N, D)`` of latents ``(N, D)``."""
        x = latents
        for rotation, weight, phase, height in self.layers:
            x = x @ rotation
            kept, moved = x[:, : self.half], x[:, self.half :]
            x = np.concatenate([kept, moved + height * np.sin(kept @ weight + phase)], axis=1)
        return x

    def inverse(self, inputs: np.ndarray) -> np.ndarray:
        """Return the latents of inputs."""
        x = inputs
        for rotation, weight, phase, height in reversed(self.layers):
            kept, moved = x[:, : self.half], x[:, self.half :]
            x = np.concatenate([kept, moved - height * np.sin(kept @ weight + phase)], axis=1)
            x = x @ rotation.T
        return x


@dataclass(frozen=True)
class Sample:
    """``N`` generated rows."""

    y: np.ndarray
    """Class numbers ``(N,)``."""
    latents: dict[str, np.ndarray]
    """``{m: (N, D)}`` before the map."""
    inputs: dict[str, np.ndarray]
    """``{m: (N, D)}`` after it."""
    labels: dict[str, dict[str, np.ndarray]]
    """``{m: {"evidence": (N, C), "symbol": (N,)}}``, as far as there are any."""


class Generator:
    """Draws rows, and knows the posterior of each."""

    def __init__(
        self,
        evidence: Evidence,
        dimension: int,
        difficulty: Sequence[float],
        *key: str | int,
    ) -> None:
        self.evidence = evidence
        self.dimension = dimension
        self.modalities = tuple(f"x{i + 1}" for i in range(len(evidence.offsets)))
        self.maps = {
            m: WaveMap(dimension, difficulty[i], numpy_stream(*key, "map", m))
            for i, m in enumerate(self.modalities)
        }

    def sample(self, count: int, rng: np.random.Generator) -> Sample:
        """Return rows in random order, the classes as even as ``count`` allows."""
        classes = self.evidence.classes
        y = rng.permutation(np.arange(count) % classes)
        z, symbols = self.evidence.sample(y, rng)
        latents: dict[str, np.ndarray] = {}
        for i, m in enumerate(self.modalities):
            latent = rng.standard_normal((count, self.dimension))
            latent[:, :classes] = z[i]
            if symbols is not None:
                sign = 2 * np.eye(classes)[symbols[i]] - 1
                shown = latent[:, classes : 2 * classes]
                latent[:, classes : 2 * classes] = sign * (SYMBOL_MARGIN + np.abs(shown))
            latents[m] = latent
        inputs = {m: self.maps[m].forward(latent) for m, latent in latents.items()}
        return Sample(y, latents, inputs, self._labels(y, z, symbols))

    def _labels(
        self, y: np.ndarray, z: np.ndarray, symbols: np.ndarray | None
    ) -> dict[str, dict[str, np.ndarray]]:
        own = self.evidence.own_noise(z, y)
        labels: dict[str, dict[str, np.ndarray]] = {m: {} for m in self.modalities}
        for i, m in enumerate(self.modalities):
            if not np.allclose(own[i], 0, atol=COPY):
                labels[m]["evidence"] = own[i]
            if symbols is not None:
                labels[m]["symbol"] = symbols[i].astype(str)
        return labels

    def posterior(
        self, latents: Mapping[str, np.ndarray], chosen: Sequence[str] | None = None
    ) -> np.ndarray:
        """Return ``p(y | x) (N, C)`` given some modalities (default all) from their latents."""
        names = self.modalities if chosen is None else tuple(chosen)
        for m in names:
            if m not in self.modalities:
                raise unknown_name("modality", m, self.modalities)
        classes = self.evidence.classes
        some = latents[names[0]]
        z = np.zeros((len(self.modalities), len(some), classes))
        symbols = np.zeros((len(self.modalities), len(some)), dtype=np.int64)
        numbers = [self.modalities.index(m) for m in names]
        for i, m in zip(numbers, names, strict=True):
            z[i] = latents[m][:, :classes]
            if self.evidence.hint is not None:
                symbols[i] = latents[m][:, classes : 2 * classes].argmax(axis=1)
        result: np.ndarray = np.exp(self.evidence.posterior(z, symbols, numbers))
        return result

    def truth(self) -> dict[str, float]:
        """Return entropy of the label and information in nats, and Bayes accuracies, of each
        modality and of all together."""
        sets = {m: [i] for i, m in enumerate(self.modalities)}
        sets["all"] = list(range(len(self.modalities)))
        known = {"label_entropy": log(self.evidence.classes)}
        for name, chosen in sets.items():
            known[f"information.{name}"] = self.evidence.information(chosen)
            known[f"bayes_accuracy.{name}"] = self.evidence.bayes_accuracy(chosen)
        return known


class Synthetic(Dataset):
    """Gaussian evidence and hidden symbols behind an invertible map."""

    info = DatasetInfo(
        title="Synthetic evidence of known information",
        summary="vectors with chosen Bayes accuracy, difficulty, redundancy and synergy",
        licence="generated",
        citation="",
        modalities={
            "x1": "vector; as many as asked for, named x1, x2, ...",
            "x2": "vector",
        },
        protocols={"default": "rows drawn by the seed, the classes evenly"},
    )

    class Config(Options):
        modalities: int = option(2, "number of modalities", ge=1, le=32)
        classes: int = option(4, "number of classes", ge=2, le=100)
        accuracy: list[float] | None = option(
            None,
            "Bayes accuracy of each modality alone, from chance (1 / classes: pure noise) to below "
            "1; evenly from 0.85 down to 0.6 unless given",
        )
        difficulty: list[float] | None = option(
            None,
            "layers of the map of each modality, broken numbers allowed: 0 leaves the latents as "
            "they are, 4 is hard; 1 each unless given",
        )
        redundancy: float = option(
            0.0,
            "from 0, each modality with noise of its own, to 1, weaker modalities are degraded "
            "copies of the strongest",
            ge=0,
            le=1,
        )
        synergy: float = option(
            0.0,
            "how surely all modalities together tell the class by symbols that tell nothing "
            "otherwise: from 0, chance, to below 1, certainty; an additive fusion cannot read them",
            ge=0,
            lt=1,
        )
        dimension: int = option(
            16, "length of each vector: at least classes, with synergy twice that", ge=2, le=4096
        )
        train: int = option(1000, "training rows", ge=1)
        val: int = option(500, "validation rows", ge=1)
        test: int = option(2000, "test rows", ge=1)
        generator_seed: int | None = option(
            None, "seed of the maps and rows; the run's own unless given", ge=0
        )

        @model_validator(mode="after")
        def _fits(self) -> Synthetic.Config:
            for name in ("accuracy", "difficulty"):
                values = getattr(self, name)
                if values is not None and len(values) != self.modalities:
                    raise ValueError(
                        f"{name} has {len(values)} values for {self.modalities} modalities; "
                        f"give one each, or change modalities"
                    )
            # Chance is allowed as people write it: 0.33 for a third would be refused without this.
            for value in self.accuracy or []:
                if not 1 / self.classes - 0.005 <= value < 1:
                    raise ValueError(
                        f"accuracy {value} is not between chance, {1 / self.classes:.3g}, and 1"
                    )
            for value in self.difficulty or []:
                if not 0 <= value <= 16:
                    raise ValueError(f"difficulty {value} is not between 0 and 16")
            if self.synergy > 0 and self.modalities == 1:
                raise ValueError("synergy needs at least 2 modalities")
            needed = self.classes * (2 if self.synergy > 0 else 1)
            if self.dimension < needed:
                raise ValueError(f"dimension {self.dimension} is too small; give at least {needed}")
            return self

    config: Config

    def __init__(self, config: Options) -> None:
        super().__init__(config)

    def recipe(self, protocol: str) -> dict[str, Any]:
        return {"epochs": 40, "lr": 0.01, "batch_size": 64}

    def generator(self, seed: int) -> Generator:
        """Return the generator of a seed: its truth does not depend on it, its maps do."""
        config = self.config
        accuracy = config.accuracy or np.linspace(0.85, 0.6, config.modalities).tolist()
        difficulty = config.difficulty or [1.0] * config.modalities
        chance = 1 / config.classes
        evidence = Evidence(
            tuple(offset_for(value, config.classes) for value in accuracy),
            config.classes,
            config.redundancy,
            chance + config.synergy * (1 - chance) if config.synergy > 0 else None,
        )
        return Generator(evidence, config.dimension, difficulty, seed, "synthetic")

    def load(self, protocol: str, seed: int) -> Splits:
        self.check_protocol(protocol)
        config = self.config
        seed = seed if config.generator_seed is None else config.generator_seed
        generator = self.generator(seed)
        counts = {"train": config.train, "val": config.val, "test": config.test}
        samples = {
            name: generator.sample(count, numpy_stream(seed, "synthetic", "rows", name))
            for name, count in counts.items()
        }
        inputs: dict[str, dict[str, Source]] = {name: {} for name in counts}
        for m in generator.modalities:
            arrays = standardise(*(sample.inputs[m] for sample in samples.values()))
            for name, array in zip(counts, arrays, strict=True):
                inputs[name][m] = Rows(array)
        parts = {
            name: Split(
                inputs[name],
                torch.from_numpy(sample.y),
                np.array([f"{name}-{i}" for i in range(len(sample.y))]),
                labels=sample.labels,
            )
            for name, sample in samples.items()
        }
        return Splits(
            parts["train"],
            parts["val"],
            parts["test"],
            {m: Modality("vector", (config.dimension,)) for m in generator.modalities},
            tuple(str(c) for c in range(config.classes)),
            truth=generator.truth(),
        )
