"""MSES: modality-specific early stopping.

After every epoch e, with l_m(e) the loss of modality m's own logits on rows held out of train:

    s_m(e) = a l_m(e-1) + (1 - a) l_m(e),  s_m(0) = l_m(0)       a = 0.6; raw losses, not recursive
    best_m, e*_m <- s_m(e), e              if s_m(e) < best_m; the weights are kept
    r_m <- 0, weights of epoch e*_m back   if e - e*_m > patience
    g_m <- r_m g_m                         for encoder m and its own head

Training ends when every r_m is 0. N. Fujimori, R. Endo, Y. Kawai, T. Mochizuki: Modality-Specific
Learning Rate Control for Multimodal Classification, ACPR 2019; as coded with AGM (Li et al., ICCV
2023). The fusion is additive: z = sum_m u_m of own heads.
"""

from typing import Any, Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from mmbench.options import option, refuse_unused
from mmbench.train.checkpoint import State
from mmbench.train.holdout import hold_out, holdout_option
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output, Stage
from mmbench.train.modulation import scale_gradients
from mmbench.train.run import Run


class MSES(Method):
    """Stops each modality where it starts to overfit, while the others learn on."""

    info = MethodInfo(
        title="Modality-specific early stopping",
        family="gradient",
        summary="stops an encoder and its head when its own held-out loss no longer falls",
        acts="on the gradients of encoder and own head, from the epoch in which a modality stops",
        cost="1 forward, 1 backward; a forward of the held-out rows each epoch; the weights of "
        "every modality's best epoch in memory",
        authors="N. Fujimori, R. Endo, Y. Kawai, T. Mochizuki",
        venue="ACPR",
        year=2019,
        departures=(
            "Losses are measured on rows held out of train, which are not learned from.",
            "Only the modality that stops gets the weights of its best epoch back; the released "
            "code (of AGM) puts back the whole model and the optimiser's state (restore=all).",
            "As released, a stopped modality has zero gradients, so that momentum, weight decay "
            "and batch norm statistics go on changing it (hard_freeze=true stops it truly).",
        ),
        default_fusion="sum",
        fusions=("sum", "late"),
        neutral={"patience": None},
    )

    class Config(Options):
        patience: int | None = option(
            80,
            "epochs without a lower held-out loss before a modality stops, 80 as released; none "
            "never stops one and holds nothing out",
            ge=0,
            search=[5, 10, 20, 80],
        )
        smoothing: float = option(
            0.6, "a: weight of the loss of the epoch before, as released", ge=0, lt=1
        )
        restore: Literal["modality", "all"] = option(
            "modality",
            "what returns to the best epoch of a modality that stops: its encoder and head, or the "
            "whole network and the optimiser's state, as released",
        )
        hard_freeze: bool = option(
            False,
            "take a stopped modality out of the optimiser, its batch norms too; without it only "
            "its gradients are zero, as released",
            search=[False, True],
        )
        holdout: float = holdout_option()

        @model_validator(mode="after")
        def _settings_are_used(self) -> "MSES.Config":
            if self.patience is None:
                names = [name for name in type(self).model_fields if name != "patience"]
                refuse_unused(self, names, "with patience=none")
            return self

    def setup(self, run: Run) -> None:
        self.kept, self.held = np.arange(len(run.train)), np.arange(0)
        if self.config.patience is not None:
            self.kept, self.held = hold_out(run, self.config.holdout, "mses")
            if self.config.patience + 1 >= run.recipe.epochs:
                run.note(
                    f"with a patience of {self.config.patience} nothing stops in "
                    f"{run.recipe.epochs} epochs: use a lower -o patience"
                )
        self.last: dict[str, float] = {}
        self.best: dict[str, float] = {}
        self.best_epoch: dict[str, int] = {}
        self.stopped: dict[str, int] = {}
        self.snapshots: dict[str, State] = {}

    def stages(self, run: Run) -> list[Stage]:
        rows = None if self.config.patience is None else self.kept
        return [Stage("train", run.recipe.epochs, rows=rows, select="protocol")]

    # -- what is stopped -----------------------------------------------------------------------

    def on_epoch_start(self, run: Run) -> None:
        if self.config.hard_freeze:
            for m in self.stopped:
                run.freeze(m, run.own_head(m))

    def modulate(self, run: Run, out: Output, batch: Batch) -> None:
        if not self.config.hard_freeze:
            for m in self.stopped:
                scale_gradients(run.branch_params(m), 0.0)

    # -- when to stop --------------------------------------------------------------------------

    def on_epoch_end(self, run: Run) -> None:
        if self.config.patience is None:
            return
        losses = self.held_out_losses(run)
        active = [m for m in run.modalities if m not in self.stopped]
        for m in active:
            smooth = self.config.smoothing
            loss = smooth * self.last.get(m, losses[m]) + (1 - smooth) * losses[m]
            run.log(f"held_out_loss.{m}", loss)
            if m not in self.best or loss < self.best[m]:
                self.best[m], self.best_epoch[m] = loss, run.epoch
                self.snapshots[m] = self._snapshot(run, m)
        self.last = losses
        for m in active:
            if run.epoch - self.best_epoch[m] > self.config.patience:
                self.stopped[m] = run.epoch
                self._restore(run, m, self.snapshots.pop(m))
        if len(self.stopped) == len(run.modalities):
            run.end_stage()

    def on_stage_end(self, run: Run) -> None:
        self.snapshots = {}

    def held_out_losses(self, run: Run) -> dict[str, float]:
        """Return ``l_m``: the mean loss of each modality's own logits on the held-out rows."""
        read = [(self.own_logits(run, out), batch.y) for out, batch in run.outputs(self.held)]
        y = torch.cat([y for _, y in read])
        return {
            m: float(functional.cross_entropy(torch.cat([own[m] for own, _ in read]).double(), y))
            for m in run.modalities
        }

    def _snapshot(self, run: Run, m: str) -> State:
        if self.config.restore == "modality":
            return {
                "encoder": _copied(run.network.encoders[m].state_dict()),
                "head": _copied(run.own_head(m).state_dict()),
            }
        assert run.optimizer is not None
        momenta = run.optimizer.state_dict()["state"]
        return {
            "network": _copied(run.network.state_dict()),
            "optimizer": {number: _copied(state) for number, state in momenta.items()},
        }

    def _restore(self, run: Run, m: str, kept: State) -> None:
        if self.config.restore == "modality":
            run.network.encoders[m].load_state_dict(kept["encoder"])
            run.own_head(m).load_state_dict(kept["head"])
            return
        assert run.optimizer is not None
        run.network.load_state_dict(kept["network"])
        # The learning rates, which are in the groups, stay where the schedule has brought them.
        groups = run.optimizer.state_dict()["param_groups"]
        run.optimizer.load_state_dict({"state": kept["optimizer"], "param_groups": groups})

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        return {m: run.own_head(m)(h) for m, h in out.features.items()}

    # -- record and resume ---------------------------------------------------------------------

    def report(self, run: Run) -> dict[str, Any]:
        best = {m: epoch + 1 for m, epoch in self.best_epoch.items()}
        return {"stopped": {m: e + 1 for m, e in self.stopped.items()}, "best_epoch": best}

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "last": dict(self.last),
            "best": dict(self.best),
            "best_epoch": dict(self.best_epoch),
            "stopped": dict(self.stopped),
            "snapshots": dict(self.snapshots),
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.last = dict(state["last"])
        self.best = dict(state["best"])
        self.best_epoch = dict(state["best_epoch"])
        self.stopped = dict(state["stopped"])
        self.snapshots = dict(state["snapshots"])


def _copied(state: State) -> State:
    return {
        name: value.detach().clone() if isinstance(value, Tensor) else value
        for name, value in state.items()
    }
