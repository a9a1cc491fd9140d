"""Fusions: feature vectors of M modalities in, class logits ``(B, C)`` out, and their parts.

Features are a dict in the order of the modalities, each ``(B, width_m)``. ``parts`` divides the
logits among the modalities. Where the fusion is additive the parts sum to the logits
(``parts_are_exact``); elsewhere part m is what the fusion says when every other feature vector is
zero. Equations: docs/fusions.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmbench.nets.encoders import initialise
from mmbench.seeds import Key, default_stream

Features = Mapping[str, Tensor]


class Fusion(nn.Module, ABC):
    """Base: ``widths`` gives each modality's feature width, ``key`` addresses initial weights."""

    parts_are_exact: ClassVar[bool] = True
    min_modalities: ClassVar[int] = 1

    def __init__(self, widths: Mapping[str, int], classes: int, *key: Key) -> None:
        super().__init__()
        self.modalities = tuple(widths)
        self.classes = classes
        self.build(dict(widths), key)

    @abstractmethod
    def build(self, widths: dict[str, int], key: tuple[Key, ...]) -> None:
        """Create the layers."""

    def parts(self, features: Features) -> dict[str, Tensor]:
        """Return ``{m: (B, C)}``."""
        zeros = {m: torch.zeros_like(h) for m, h in features.items()}
        return {m: self(zeros | {m: h}) for m, h in features.items()}

    def logits_and_parts(self, features: Features) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return the logits, and the parts where they come about on the way to them."""
        return self(features), None


class Concat(Fusion):
    """``z = [h_1 | ... | h_M] W^T + b``; part m is ``h_m W_m^T + b / M``."""

    def build(self, widths: dict[str, int], key: tuple[Key, ...]) -> None:
        self.widths = widths
        self.head = linear(sum(widths.values()), self.classes, *key, "head")

    def forward(self, features: Features) -> Tensor:
        logits: Tensor = self.head(torch.cat(list(features.values()), dim=1))
        return logits

    def parts(self, features: Features) -> dict[str, Tensor]:
        columns = torch.split(self.head.weight, list(self.widths.values()), dim=1)
        share = self.head.bias / len(self.widths)
        return {
            m: functional.linear(features[m], weight, share)
            for m, weight in zip(self.widths, columns, strict=True)
        }


class Sum(Fusion):
    """``z = sum_m u_m`` with own heads ``u_m = h_m U_m^T + c_m``; part m is ``u_m``."""

    def build(self, widths: dict[str, int], key: tuple[Key, ...]) -> None:
        self.heads = own_heads(widths, self.classes, *key)

    def forward(self, features: Features) -> Tensor:
        return add(self.parts(features))

    def parts(self, features: Features) -> dict[str, Tensor]:
        return {m: self.heads[m](h) for m, h in features.items()}

    def logits_and_parts(self, features: Features) -> tuple[Tensor, dict[str, Tensor] | None]:
        parts = self.parts(features)
        return add(parts), parts


class Late(Sum):
    """``z = mean_m u_m`` with own heads; part m is ``u_m / M``."""

    def parts(self, features: Features) -> dict[str, Tensor]:
        return {m: self.heads[m](h) / len(features) for m, h in features.items()}


class Film(Fusion):
    """The first modality conditions every other one: ``[gamma_m | beta_m] = h_1 A_m^T + a_m`` and
    ``z = sum_(m>1) (gamma_m * h_m + beta_m) W_m^T + b`` (Perez et al., 2018)."""

    parts_are_exact = False
    min_modalities = 2

    def build(self, widths: dict[str, int], key: tuple[Key, ...]) -> None:
        first, *others = widths
        self.conditions = nn.ModuleDict(
            {m: linear(widths[first], 2 * widths[m], *key, "condition", m) for m in others}
        )
        self.heads = nn.ModuleDict(
            {m: linear(widths[m], self.classes, *key, "head", m, bias=False) for m in others}
        )
        self.bias = nn.Parameter(torch.zeros(self.classes))

    def forward(self, features: Features) -> Tensor:
        first, *others = self.modalities
        terms = {}
        for m in others:
            gamma, beta = self.conditions[m](features[first]).chunk(2, dim=1)
            terms[m] = self.heads[m](gamma * features[m] + beta)
        return add(terms) + self.bias


class Gated(Fusion):
    """The first modality gates the sum of the others: ``o_m = O_m h_m + b_m`` and
    ``z = (sigmoid(o_1) * sum_(m>1) o_m) W^T + b``."""

    parts_are_exact = False
    min_modalities = 2

    def build(self, widths: dict[str, int], key: tuple[Key, ...]) -> None:
        width = max(widths.values())
        self.gates = nn.ModuleDict(
            {m: linear(d, width, *key, "gate", m) for m, d in widths.items()}
        )
        self.head = linear(width, self.classes, *key, "head")

    def forward(self, features: Features) -> Tensor:
        first, *others = self.modalities
        gate = torch.sigmoid(self.gates[first](features[first]))
        logits: Tensor = self.head(gate * add({m: self.gates[m](features[m]) for m in others}))
        return logits


class Attention(Fusion):
    """One learned query attends to the modalities: ``k_m = K_m h_m``, ``v_m = V_m h_m``,
    ``a = softmax_m(q . k_m / sqrt(d))``, ``z = sum_m a_m v_m W^T + b``; part m is
    ``a_m v_m W^T + b / M``. The parts sum to the logits; ``a_m`` depends on every modality."""

    def build(self, widths: dict[str, int], key: tuple[Key, ...]) -> None:
        self.width = max(widths.values())
        self.keys = self._maps(widths, *key, "key")
        self.values = self._maps(widths, *key, "value")
        self.head = linear(self.width, self.classes, *key, "head")
        with default_stream(*key, "query"):
            self.query = nn.Parameter(torch.randn(self.width))

    def _maps(self, widths: dict[str, int], *key: Key) -> nn.ModuleDict:
        return nn.ModuleDict({m: linear(d, self.width, *key, m) for m, d in widths.items()})

    def weights(self, features: Features) -> Tensor:
        """Return the attention ``a`` as ``(B, M)``."""
        keys = torch.stack([self.keys[m](h) for m, h in features.items()], dim=1)
        return torch.softmax(keys @ self.query / self.width**0.5, dim=1)

    def forward(self, features: Features) -> Tensor:
        values = torch.stack([self.values[m](h) for m, h in features.items()], dim=1)
        pooled = (self.weights(features).unsqueeze(-1) * values).sum(dim=1)
        logits: Tensor = self.head(pooled)
        return logits

    def parts(self, features: Features) -> dict[str, Tensor]:
        weights = self.weights(features)
        share = self.head.bias / len(features)
        return {
            m: functional.linear(weights[:, i : i + 1] * self.values[m](h), self.head.weight, share)
            for i, (m, h) in enumerate(features.items())
        }


FUSIONS: dict[str, type[Fusion]] = {
    "concat": Concat,
    "sum": Sum,
    "late": Late,
    "film": Film,
    "gated": Gated,
    "attention": Attention,
}


def linear(size: int, out: int, *key: Key, bias: bool = True) -> nn.Linear:
    """Return a linear layer whose customary initial weights depend on the key alone."""
    with default_stream(*key):
        layer = nn.Linear(size, out, bias=bias)
        initialise(layer)
    return layer


def own_heads(widths: Mapping[str, int], classes: int, *key: Key) -> nn.ModuleDict:
    """Return a linear classifier per modality. The weights of one depend on its modality, not on
    which others exist, so unimodal and multimodal networks start alike."""
    return nn.ModuleDict({m: linear(d, classes, *key, "own_head", m) for m, d in widths.items()})


def add(terms: Mapping[str, Tensor]) -> Tensor:
    """Return the sum of the terms in their order, starting from the first."""
    first, *rest = terms.values()
    for term in rest:
        first = first + term
    return first
