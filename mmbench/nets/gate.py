"""A gate over modalities that starts as no gate at all.

    omega_m(x) = M * softmax_m( a log pi_m - beta v_m(x) + G(s_m(x)) )

``pi`` is a prior over modalities, ``v_m`` the normalised entropy of modality m's prediction,
``s_m`` its summary (entropy, margin, distance to the nearest prototype) and ``G`` a small network
shared by all modalities whose last layer starts at zero. With ``a`` at its start, ``beta`` = 0 and
``G`` = 0 the weights are constants: the static fusion. ``a, beta >= 0`` are learned and say how
much the prior and the uncertainty were worth.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mmbench.evaluate.calibration import fit_temperature
from mmbench.nets.fusion import Fusion, add, linear
from mmbench.seeds import Key, torch_stream

HIDDEN = 32
SUMMARY = 3
RATE = 1e-3
BATCH = 64
PATIENCE = 10


class Gate(nn.Module):
    """Weights ``(B, M)`` that sum to M, from a log prior ``(M,)`` and summaries ``(B, M, 3)``."""

    temperature: Tensor
    mean_weights: Tensor
    """Mean over the rows it was fitted to, as shares ``(M,)``; equal before that."""

    def __init__(
        self,
        start: float,
        uses_prior: bool,
        uses_uncertainty: bool,
        uses_net: bool,
        uses_temperature: bool,
        modalities: int,
        *key: Key,
    ) -> None:
        super().__init__()
        self.prior_weight = nn.Parameter(torch.tensor(start), requires_grad=uses_prior)
        self.entropy_weight = nn.Parameter(torch.tensor(0.0), requires_grad=uses_uncertainty)
        self.uses_temperature = uses_temperature
        self.register_buffer("temperature", torch.tensor(1.0))
        self.register_buffer("mean_weights", torch.full((modalities,), 1 / modalities))
        last = linear(HIDDEN, 1, *key, "gate", 2)
        nn.init.zeros_(last.weight)
        self.net = nn.Sequential(linear(SUMMARY, HIDDEN, *key, "gate", 1), nn.ReLU(), last)
        self.net.requires_grad_(uses_uncertainty and uses_net)

    def forward(self, log_prior: Tensor, summary: Tensor) -> Tensor:
        score = self.prior_weight * log_prior - self.entropy_weight * summary[..., 0]
        score = score + self.net(summary).squeeze(-1)
        return torch.softmax(score, dim=1) * summary.shape[1]

    @torch.no_grad()
    def constrain(self) -> None:
        """Put the two weights back to at least zero."""
        self.prior_weight.clamp_(min=0)
        self.entropy_weight.clamp_(min=0)


def summarise(logits: Tensor, nearest: Tensor) -> Tensor:
    """Return ``(B, M, 3)``: entropy over log C, margin of the two largest probabilities, and one
    minus the probability of the nearest prototype ``nearest (B, M)``, for logits ``(B, M, C)``."""
    probability = logits.softmax(dim=-1)
    entropy = -(probability * logits.log_softmax(dim=-1)).sum(dim=-1) / math.log(logits.shape[-1])
    top = probability.topk(2, dim=-1).values
    return torch.stack([entropy, top[..., 0] - top[..., 1], 1 - nearest], dim=-1)


class HeldOut(nn.Module):
    """What a network said of rows that it was not trained on: what a gate is fitted to.

    ``fusion`` is a copy of the network's; features are ``(N, width_m)``, summaries ``(N, M, 3)``.
    """

    summary: Tensor
    y: Tensor

    def __init__(self, fusion: Fusion, widths: Mapping[str, int], rows: int) -> None:
        super().__init__()
        self.fusion = copy.deepcopy(fusion).requires_grad_(False)
        self.modalities = tuple(widths)
        self.features = nn.Module()
        for m, width in widths.items():
            self.features.register_buffer(m, torch.zeros(rows, width))
        self.register_buffer("summary", torch.zeros(rows, len(widths), SUMMARY))
        self.register_buffer("y", torch.zeros(rows, dtype=torch.long))

    def fill(
        self, fusion: Fusion, features: Mapping[str, Tensor], summary: Tensor, y: Tensor
    ) -> None:
        """Take what the network says; shapes are those given at the start."""
        self.fusion.load_state_dict(fusion.state_dict())
        for m in self.modalities:
            self.features.get_buffer(m).copy_(features[m])
        self.summary.copy_(summary)
        self.y.copy_(y)

    def logits(self, weights: Tensor, rows: Tensor) -> Tensor:
        """Return the fused logits ``(B, C)`` of some of the rows under ``weights (B, M)``."""
        features = {m: self.features.get_buffer(m)[rows] for m in self.modalities}
        return weighted_logits(self.fusion, features, weights)


def weighted_logits(fusion: Fusion, features: Mapping[str, Tensor], weights: Tensor) -> Tensor:
    """Return logits with modality m weighted by column m of ``weights (B, M)`` or ``(1, M)``: its
    part of the logits where the fusion is additive, elsewhere its features."""
    columns = dict(zip(features, torch.split(weights, 1, dim=1), strict=True))
    if fusion.parts_are_exact:
        return add({m: columns[m] * part for m, part in fusion.parts(features).items()})
    logits: Tensor = fusion({m: columns[m] * h for m, h in features.items()})
    return logits


def fit_gate(
    gate: Gate,
    held_out: Sequence[HeldOut],
    log_prior: Tensor,
    pull: float,
    epochs: int,
    *key: Key,
) -> float:
    """Fit a gate to ``mean cross-entropy + pull * KL(mean weights || weights at the start)`` by
    Adam, between two fits of its temperature to all held-out rows.

    Four fifths of the rows are fitted, and the epoch with the lowest objective on the last fifth is
    kept. The start counts as an epoch: a gate that cannot be improved stays static. The temperature
    is out of Adam's hands, or its gains would hide what the weights lose. Returns what the weights
    gained on that fifth, in nats.
    """
    rows = _HeldOutRows(gate, held_out, log_prior)
    rows.measure()
    learned = [p for p in gate.parameters() if p.requires_grad]
    if not learned:
        return 0.0
    device = log_prior.device
    start = (gate.prior_weight.detach() * log_prior).log_softmax(dim=0)

    def objective(chosen: Tensor) -> Tensor:
        logits, weights, y = rows.predict(chosen)
        mean = weights.mean(dim=0) / len(log_prior)
        divergence = (mean * (mean.log() - start)).sum()
        return functional.cross_entropy(logits / gate.temperature, y) + pull * divergence

    order = torch.randperm(len(rows), generator=torch_stream(*key, "gate rows")).to(device)
    watched, fitted = order[: len(rows) // 5], order[len(rows) // 5 :]
    optimizer = torch.optim.Adam(learned, RATE)
    generator = torch_stream(*key, "gate order")
    kept, waited = _copy(gate), 0
    with torch.no_grad():
        first = best = float(objective(watched))
    for _ in range(epochs):
        shuffled = fitted[torch.randperm(len(fitted), generator=generator).to(device)]
        for batch in torch.split(shuffled, BATCH):
            optimizer.zero_grad()
            objective(batch).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            gate.constrain()
        with torch.no_grad():
            now = float(objective(watched))
        if now < best:
            best, kept, waited = now, _copy(gate), 0
        elif (waited := waited + 1) >= PATIENCE:
            break
    optimizer.zero_grad(set_to_none=True)  # or the next optimiser that holds them would use them
    gate.load_state_dict(kept)
    rows.measure()
    return first - best


class _HeldOutRows:
    """The held-out rows of all folds, numbered through."""

    def __init__(self, gate: Gate, parts: Sequence[HeldOut], log_prior: Tensor) -> None:
        self.gate = gate
        self.parts = parts
        self.log_prior = log_prior

    def __len__(self) -> int:
        return sum(len(part.y) for part in self.parts)

    def predict(self, chosen: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits, gate weights and classes of some rows, fold by fold."""
        logits, weights, labels = [], [], []
        begin = 0
        for part in self.parts:
            inside = chosen[(chosen >= begin) & (chosen < begin + len(part.y))] - begin
            begin += len(part.y)
            weights.append(self.gate(self.log_prior, part.summary[inside]))
            logits.append(part.logits(weights[-1], inside))
            labels.append(part.y[inside])
        return torch.cat(logits), torch.cat(weights), torch.cat(labels)

    @torch.no_grad()
    def measure(self) -> None:
        """Set the gate's mean weights, and its temperature to what is best for all rows, if it
        has one."""
        everything = torch.arange(len(self), device=self.log_prior.device)
        logits, weights, labels = self.predict(everything)
        self.gate.mean_weights.copy_(weights.mean(dim=0) / len(self.log_prior))
        if self.gate.uses_temperature:
            self.gate.temperature.fill_(fit_temperature(logits, labels))


def _copy(gate: Gate) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in gate.state_dict().items()}
