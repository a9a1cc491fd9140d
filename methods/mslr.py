"""MSLR: modality-specific learning rates.

    lr_m(e) = lr c_m r_m(e)              for encoder m and its own head

    keep:     r_m(e) = 1,   c_m given, or the factor with which modality m does best alone
    dynamic:  r_m(e) = A_m(e-1) / mean(A_m(e-2), ..., A_m(e-1-K))   once K+1 are known, before it 1

``A_m(e)`` is the accuracy of modality m's own logits after epoch e on rows held out of train, and
K = 5. Y. Yao, R. Mihalcea: Modality-specific Learning Rates for Effective Multimodal Additive
Late-fusion, Findings of ACL 2022; `dynamic` as coded with AGM (Li et al., ICCV 2023). The fusion is
additive: z = sum_m u_m of own heads.
"""

from typing import Any, Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from mmbench.errors import unknown_name
from mmbench.options import option, refuse_unused
from mmbench.train.holdout import hold_out, holdout_option
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output, Stage
from mmbench.train.modulation import (
    SCALE_WHERE_MEANING,
    ScaleWhere,
    note_undone_scaling,
    scale,
)
from mmbench.train.run import Run

CANDIDATES = (0.5, 0.7, 0.9, 1.1, 1.3, 1.5)
"""Factors that `keep` tries: a range about those released, .7 to 1.4 (mmbench's choice)."""


class MSLR(Method):
    """Every modality learns at its own rate."""

    info = MethodInfo(
        title="Modality-specific learning rates",
        family="gradient",
        summary="gives each encoder and its head a learning rate of its own, fixed or adaptive",
        acts="on the gradients of encoder and own head, at every step; rates change once an epoch",
        cost="1 forward, 1 backward; a forward of the held-out rows each epoch; strategy=keep "
        "without factors first trains 6 unimodal models for each modality",
        authors="Y. Yao, R. Mihalcea",
        venue="Findings of ACL",
        year=2022,
        departures=(
            "Accuracies are measured on rows held out of train; the released code (of AGM) takes "
            "the test set, and on CREMA-D the visual accuracy for both modalities.",
            "Factors are 1 unless given, not those released for a few datasets.",
            "As released, the factor multiplies the gradient: weight decay and the momentum "
            "gathered so far do not feel it (scale_where=update is a true learning rate).",
            "A modality that was never right in the last epochs keeps its rate.",
        ),
        default_fusion="sum",
        fusions=("sum", "late"),
        neutral={"strategy": "keep", "factors": {}},
    )

    class Config(Options):
        strategy: Literal["keep", "dynamic"] = option(
            "dynamic",
            "keep: fixed rates; dynamic: a modality's rate follows its accuracy",
            search=["keep", "dynamic"],
        )
        factors: dict[str, float] | None = option(
            None,
            "c_m by modality, 1 for those left out; none is 1 for all with dynamic, and with keep "
            "the best of 0.5, 0.7, ..., 1.5 for the modality alone. Released: CREMA-D audio 0.9, "
            "visual 1.1; AV-MNIST 1.3, 0.7; UR-Funny audio 0.9, visual 1.4, text 0.7",
        )
        memory: int = option(5, "K: earlier accuracies that the newest is compared with", ge=1)
        holdout: float = holdout_option()
        scale_where: ScaleWhere = option("gradient", SCALE_WHERE_MEANING)

        @model_validator(mode="after")
        def _settings_are_used(self) -> "MSLR.Config":
            if any(factor <= 0 for factor in (self.factors or {}).values()):
                raise ValueError("factors are above 0")
            if self.strategy == "keep":
                refuse_unused(self, ["memory"], "by strategy=keep")
            if self.strategy == "keep" and self.factors is not None:
                refuse_unused(self, ["holdout"], "by strategy=keep with given factors")
            return self

    def setup(self, run: Run) -> None:
        for m in self.config.factors or {}:
            if m not in run.modalities:
                raise unknown_name("modality in factors", m, run.modalities)
        note_undone_scaling(run, self.config.scale_where)
        self.is_dynamic = self.config.strategy == "dynamic"
        self.is_searched = not self.is_dynamic and self.config.factors is None
        given = self.config.factors or {}
        self.factors: dict[str, float] = {m: given.get(m, 1.0) for m in run.modalities}
        self.ratios: dict[str, float] = dict.fromkeys(run.modalities, 1.0)
        self.accuracies: dict[str, list[float]] = {m: [] for m in run.modalities}
        self.scores: dict[str, list[float]] = {}
        self.kept, self.held = np.arange(len(run.train)), np.arange(0)
        if self.is_dynamic or self.is_searched:
            self.kept, self.held = hold_out(run, self.config.holdout, "mslr")

    # -- keep: the best factor of each modality alone ------------------------------------------

    def stages(self, run: Run) -> list[Stage]:
        self.alone = {
            f"alone/{m}/{factor}": (m, factor)
            for m in run.modalities
            for factor in CANDIDATES
            if self.is_searched
        }
        searches = [
            Stage(
                name,
                run.recipe.epochs,
                rows=self.kept,
                modalities=(m,),
                fresh=True,
                select="rows",
                select_rows=self.held,
            )
            for name, (m, _) in self.alone.items()
        ]
        rows = self.kept if self.is_dynamic else None
        return [*searches, Stage("train", run.recipe.epochs, rows=rows, select="protocol")]

    def param_groups(self, run: Run) -> list[dict[str, Any]]:
        if run.stage.name not in self.alone:
            return super().param_groups(run)
        factor = self.alone[run.stage.name][1]
        return [{"params": list(run.network.parameters()), "lr": factor * run.recipe.lr}]

    def on_stage_end(self, run: Run) -> None:
        if run.stage.name not in self.alone:
            return
        m, factor = self.alone[run.stage.name]
        logits = run.logits(self.held)[m].double()
        y = run.train.y[torch.as_tensor(self.held, device=run.device)]
        score = [self._accuracy(logits, y), -float(functional.cross_entropy(logits, y)), factor]
        # Where accuracies tie, the lower loss decides.
        if m not in self.scores or score > self.scores[m]:
            self.scores[m] = score
            self.factors[m] = factor

    # -- the rates -----------------------------------------------------------------------------

    def modulate(self, run: Run, out: Output, batch: Batch) -> None:
        if run.stage.name in self.alone:
            return
        for m in run.modalities:
            if (factor := self.factors[m] * self.ratios[m]) != 1:
                scale(run, run.branch_params(m), factor, self.config.scale_where)

    def on_epoch_end(self, run: Run) -> None:
        if not self.is_dynamic:
            return
        y = run.train.y[torch.as_tensor(self.held, device=run.device)]
        for m, logits in run.logits(self.held).items():
            run.log(f"rate.{m}", self.factors[m] * self.ratios[m])
            newest = self._accuracy(logits, y)
            earlier = self.accuracies[m]
            if len(earlier) == self.config.memory and sum(earlier) > 0:
                self.ratios[m] = newest / (sum(earlier) / len(earlier))
            self.accuracies[m] = [*earlier, newest][-self.config.memory :]

    @staticmethod
    def _accuracy(logits: Tensor, y: Tensor) -> float:
        return float((logits.argmax(dim=1) == y).double().mean())

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        return {m: run.own_head(m)(h) for m, h in out.features.items()}

    # -- record and resume ---------------------------------------------------------------------

    def report(self, run: Run) -> dict[str, Any]:
        return {"factors": self.factors, "ratios": self.ratios}

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "factors": dict(self.factors),
            "ratios": dict(self.ratios),
            "accuracies": {m: list(values) for m, values in self.accuracies.items()},
            "scores": dict(self.scores),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.factors = dict(state["factors"])
        self.ratios = dict(state["ratios"])
        self.accuracies = {m: list(values) for m, values in state["accuracies"].items()}
        self.scores = dict(state["scores"])
