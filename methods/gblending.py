"""Gradient-Blending: every branch's loss is weighed by how well the branch generalises.

Branches k are the M modalities, each with an own head beside the fusion, and the fused logits.
With mean losses L^T_k on the rows a branch learns from and L^V_k on rows held out of train, between
checkpoints n (start) and N (end) of a training of branch k alone:

    dG_k = L^V_k(n) - L^V_k(N)                       generalisation gained
    O_k  = L^V_k - L^T_k,   dO_k = O_k(N) - O_k(n)   overfitting gained
    w_k  = (1/Z) |dG_k| / (dO_k^2 + eps)             Z: so that the weights sum to 1
    L    = sum_k w_k CE_k

offline: n is the start and N the end of full trainings from fresh weights, before the training.
online:  every S epochs (a super-epoch), branches go S epochs ahead on copies of the network.

W. Wang, D. Tran, M. Feiszli: What Makes Training Multi-Modal Classification Networks Hard?, CVPR
2020, section 3.
"""

import copy
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from mmbench.errors import RequestError, unknown_name
from mmbench.nets.fusion import add, own_heads
from mmbench.options import option, refuse_unused
from mmbench.train.holdout import hold_out, holdout_option
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output, Stage
from mmbench.train.run import Run

JOINT = "joint"
"""Name of the branch of the fused logits."""
FAINT = 0.01
"""Below this weight of the fused logits the results bear a note."""

Losses = tuple[float, float]
"""Mean loss on rows learned from, and on rows held out."""


def blend_weights(
    start: Mapping[str, Losses], end: Mapping[str, Losses], epsilon: float
) -> dict[str, float]:
    """Return ``w_k`` for losses at both checkpoints; equal ones where no branch has moved."""
    ratios = {}
    for k, (train, held) in start.items():
        train_end, held_end = end[k]
        gained, overfit = held - held_end, (held_end - train_end) - (held - train)
        ratios[k] = abs(gained) / (overfit**2 + epsilon)
    total = sum(ratios.values())
    return {k: ratio / total if total > 0 else 1 / len(ratios) for k, ratio in ratios.items()}


class GBlending(Method):
    """Own heads beside the fusion; the fused logits are the prediction."""

    info = MethodInfo(
        title="Gradient-Blending",
        family="loss",
        summary="weighs fused and unimodal losses by generalisation gained per overfitting squared",
        acts="in the loss, at every step, with weights estimated before training or now and then",
        cost="1 forward, 1 backward; offline: M unimodal and 1 joint training beforehand; online: "
        "as many epochs again for each of the M+1 branches",
        authors="W. Wang, D. Tran, M. Feiszli",
        venue="CVPR",
        year=2020,
        arxiv="1905.12681",
        departures=(
            "Losses are means over rows held out of train and rows learned from; BalanceBenchmark "
            "takes sums over batches of splits of unequal length, and the test set.",
            "Losses at a checkpoint are measured with its weights, not averaged over an epoch.",
            "Every modality has an own head, as in the authors' code; BalanceBenchmark reads the "
            "fused logits with other inputs zeroed.",
            "mode=offline and mode=given train on all rows once the weights are known; mode=online "
            "keeps its held-out rows apart.",
            "Branches of mode=online start without momentum, at the learning rate of the moment.",
        ),
        neutral={"mode": "given", "weights": {"joint": 1.0}},
    )

    class Config(Options):
        mode: Literal["offline", "online", "given"] = option(
            "offline",
            "weights estimated once beforehand, before every super-epoch, or given",
            search=["offline", "online"],
        )
        weights: dict[str, float] | None = option(
            None,
            "of mode=given: w by modality and 'joint', 0 for those left out, divided by their sum. "
            "Published (audio, visual, joint): Kinetics .014 .630 .356, AudioSet .239 .384 .377",
        )
        super_epoch: int = option(10, "S of mode=online in epochs, 10 as in BalanceBenchmark", ge=1)
        epsilon: float = option(
            1e-8,
            "eps in squared nats; a larger one keeps a branch that happens not to overfit from "
            "taking all the weight",
            gt=0,
            search=[1e-8, 1e-4, 1e-2],
        )
        holdout: float = holdout_option()

        @model_validator(mode="after")
        def _settings_are_used(self) -> "GBlending.Config":
            if (self.mode == "given") != (self.weights is not None):
                raise ValueError("mode=given and weights={...} belong together")
            given = (self.weights or {}).values()
            if self.weights is not None and (min(given, default=0) < 0 or sum(given) <= 0):
                raise ValueError("weights are at least 0, and one is above")
            if self.mode != "online":
                refuse_unused(self, ["super_epoch"], f"by mode={self.mode}")
            if self.mode == "given":
                refuse_unused(self, ["holdout", "epsilon"], "by mode=given")
            return self

    def setup(self, run: Run) -> None:
        if JOINT in run.modalities:
            raise RequestError(
                f"gblending calls the fused branch '{JOINT}': rename the modality of that name"
            )
        self.branches = (*run.modalities, JOINT)
        self.heads = own_heads(run.network.widths, run.classes, run.seed)
        self.kept, self.held = np.arange(len(run.train)), np.arange(0)
        self.start: dict[str, Losses] = {}
        self.end: dict[str, Losses] = {}
        self.weights: dict[str, float] = {}
        if self.config.mode == "given":
            self.weights = self._given()
        else:
            self.kept, self.held = hold_out(run, self.config.holdout, "gblending")

    def _given(self) -> dict[str, float]:
        for k in self.config.weights:
            if k not in self.branches:
                raise unknown_name("branch in weights", k, self.branches)
        total = sum(self.config.weights.values())
        return {k: self.config.weights.get(k, 0.0) / total for k in self.branches}

    def stages(self, run: Run) -> list[Stage]:
        epochs = run.recipe.epochs
        self.alone = {f"branch/{k}": k for k in self.branches if self.config.mode == "offline"}
        branches = [
            Stage(name, epochs, rows=self.kept, fresh=True)
            if k == JOINT
            else Stage(name, epochs, rows=self.kept, modalities=(k,), fusion="sum", fresh=True)
            for name, k in self.alone.items()
        ]
        rows = self.kept if self.config.mode == "online" else None
        return [*branches, Stage("train", epochs, rows=rows, select="protocol")]

    # -- offline: each branch from fresh weights to the last epoch -----------------------------

    def on_stage_start(self, run: Run) -> None:
        if run.stage.name in self.alone:
            self.start[self.alone[run.stage.name]] = self._measure(run, JOINT, self.heads)

    def on_stage_end(self, run: Run) -> None:
        if run.stage.name in self.alone:
            self.end[self.alone[run.stage.name]] = self._measure(run, JOINT, self.heads)
            if len(self.end) == len(self.branches):
                self.weights = blend_weights(self.start, self.end, self.config.epsilon)

    # -- online: each branch a super-epoch ahead, on a copy ------------------------------------

    def on_epoch_start(self, run: Run) -> None:
        if self.config.mode == "online" and run.epoch % self.config.super_epoch == 0:
            self.start = {k: self._measure(run, k, self.heads) for k in self.branches}
            self.end = {k: self._ahead(run, k) for k in self.branches}
            self.weights = blend_weights(self.start, self.end, self.config.epsilon)
        if run.stage.name in self.alone:
            return
        for k, weight in self.weights.items():
            run.log(f"weight.{k}", weight)
        if self.weights[JOINT] < FAINT:
            run.note(
                f"gblending gave the fused logits, which predict, less than {FAINT:g} of the loss "
                "in at least one run, so that they hardly learn: a larger -o epsilon or -o holdout "
                "evens the weights out"
            )

    def _ahead(self, run: Run, k: str) -> Losses:
        """Return the losses of branch k after it alone has learned for a super-epoch."""
        network, heads = copy.deepcopy(run.network), copy.deepcopy(self.heads)
        learning: list[nn.Module] = [network] if k == JOINT else [network.encoders[k], heads[k]]
        last = min(run.epoch + self.config.super_epoch, run.stage.epochs)
        with run.aside(network, [p for module in learning for p in module.parameters()]):
            for epoch in range(run.epoch, last):
                for batch in run.shuffled(self.kept, epoch):
                    out = run.net(batch, keep=self._inputs(k))
                    run.backward(self._branch_loss(out, batch, k, heads))
                    run.step()
            return self._measure(run, k, heads)

    # -- losses --------------------------------------------------------------------------------

    @staticmethod
    def _inputs(k: str) -> tuple[str, ...] | None:
        return None if k == JOINT else (k,)

    @staticmethod
    def _branch_logits(out: Output, k: str, heads: nn.ModuleDict) -> Tensor:
        logits: Tensor = out.logits if k == JOINT else heads[k](out.features[k]).float()
        return logits

    def _branch_loss(self, out: Output, batch: Batch, k: str, heads: nn.ModuleDict) -> Tensor:
        return functional.cross_entropy(self._branch_logits(out, k, heads), batch.y)

    def _measure(self, run: Run, k: str, heads: nn.ModuleDict) -> Losses:
        """Return the losses of branch k, JOINT for the whole of a branch's own network."""
        return self.mean_loss(run, k, heads, self.kept), self.mean_loss(run, k, heads, self.held)

    def mean_loss(self, run: Run, k: str, heads: nn.ModuleDict, rows: np.ndarray) -> float:
        """Return the mean cross-entropy of branch k over training rows, in nats."""
        losses = []
        for out, batch in run.outputs(rows, self._inputs(k)):
            logits = self._branch_logits(out, k, heads).double()
            losses.append(functional.cross_entropy(logits, batch.y, reduction="none"))
        return float(torch.cat(losses).mean())

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        if run.stage.name in self.alone:
            return functional.cross_entropy(out.logits, batch.y)
        return add(
            {
                k: weight * self._branch_loss(out, batch, k, self.heads)
                for k, weight in self.weights.items()
                if weight > 0
            }
        )

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        return {m: self.heads[m](h).float() for m, h in out.features.items()}

    # -- record and resume ---------------------------------------------------------------------

    def report(self, run: Run) -> dict[str, Any]:
        losses = {
            k: {"start": list(self.start[k]), "end": list(end)} for k, end in self.end.items()
        }
        return {"weights": self.weights, "train_and_held_out_loss": losses}

    def get_extra_state(self) -> dict[str, Any]:
        return {"weights": dict(self.weights), "start": dict(self.start), "end": dict(self.end)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.weights = dict(state["weights"])
        self.start = dict(state["start"])
        self.end = dict(state["end"])
