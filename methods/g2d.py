"""G2D: gradient-guided distillation with sequential modality prioritisation.

    t_m, v_m  features and logits of modality m's teacher: a model that was trained alone, frozen
    L     = CE(z, y) + sum_m ( a MSE(h_m, t_m) + b T^2 KL( softmax(v_m / T) || softmax(z / T) ) )
    c_m   = mean_i softmax(v_m)[i, y_i]              confidence of the teacher in the batch
    k_m   = 1  if c_m is the r-th smallest  else 0   in a window of epochs; after it 1
    g    <- k_m g                                    for the weights of encoder m

With M modalities the window has M - 1 equal phases, r = 1, ..., M - 1: first the weakest modality
learns alone, then the next. For two, the weaker one learns and the stronger one waits.

M. Rakib, A. Bagavathi: G2D: Boosting Multimodal Learning with Gradient-Guided Distillation,
ICCV 2025.
"""

import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from mmbench.errors import RequestError
from mmbench.nets.fusion import add
from mmbench.options import option, refuse_unused
from mmbench.train.method import Batch, MethodInfo, Options, Output
from mmbench.train.modulation import (
    SCALE_WHERE_MEANING,
    SCOPE_MEANING,
    ScaleWhere,
    Scope,
    note_undone_scaling,
    scale,
    scoped_parameters,
)
from mmbench.train.run import Run
from mmbench.train.teachers import Distillation, feature_distances

PRIORITY_OPTIONS = ("first_epoch", "last_epoch", "scope", "scale_where", "hard_freeze")


class G2D(Distillation):
    """Learns from a teacher of each modality, and lets the modalities begin one after another."""

    info = MethodInfo(
        title="Gradient-guided distillation",
        family="teacher",
        summary="distils features and predictions of unimodal teachers, and lets the modality with "
        "the weakest teacher learn first",
        acts="in the loss, at every step; on encoder gradients, in a window of epochs",
        cost="1 forward, a forward of each modality's teacher, 1 backward; first trains a unimodal "
        "model for each modality",
        authors="M. Rakib, A. Bagavathi",
        venue="ICCV",
        year=2025,
        arxiv="2506.21514",
        departures=(
            "Weights with two or more dimensions wait, not only convolutions: the released rule "
            "does nothing on encoders without convolutions (scope=conv repeats it).",
            "As released, an encoder that waits has zero gradients, so that momentum, weight decay "
            "and batch norm statistics go on changing it (hard_freeze=true stops it truly).",
            "More than two modalities, which the released code cannot train: one at a time from "
            "the weakest on, as the paper is recalled; the equal phases are mmbench's.",
            "Where teachers are equally confident their modalities learn together: the released "
            "code then stops with an error.",
            "Teachers are trained in the run, by its recipe and selection: the released ones were "
            "picked on the test set.",
        ),
        default_fusion="late",
        neutral={"feature_weight": 0.0, "logit_weight": 0.0, "prioritise": False},
    )

    class Config(Options):
        feature_weight: float = option(
            1.0, "a, of each modality's MSE, as released", ge=0, search=[0.3, 1.0, 10.0]
        )
        logit_weight: float = option(
            1.0, "b, of each modality's KL, as released", ge=0, search=[0.3, 1.0, 3.0]
        )
        temperature: float = option(1.0, "T, as released", gt=0)
        prioritise: bool = option(
            True, "hold the other modalities' gradients back while one learns; false: never"
        )
        first_epoch: int = option(0, "first epoch, from 0, in which modalities wait", ge=0)
        last_epoch: int | None = option(
            None,
            "last such epoch; none is half of all epochs, as 150 of 300 in the released settings",
            ge=0,
        )
        scope: Scope = option("weights", SCOPE_MEANING)
        scale_where: ScaleWhere = option("gradient", SCALE_WHERE_MEANING)
        hard_freeze: bool = option(
            False,
            "take encoders that wait out of the optimiser for the step, their batch norms too; "
            "without it only their gradients are zero, as released",
            search=[False, True],
        )

        @model_validator(mode="after")
        def _settings_are_used(self) -> "G2D.Config":
            if self.logit_weight == 0:
                refuse_unused(self, ["temperature"], "with logit_weight=0")
            if not self.prioritise:
                refuse_unused(self, PRIORITY_OPTIONS, "with prioritise=false")
            if self.hard_freeze:
                refuse_unused(self, ["scope", "scale_where"], "with hard_freeze=true")
            return self

    def needs_teachers(self) -> bool:
        options: G2D.Config = self.config
        return options.prioritise or options.feature_weight > 0 or options.logit_weight > 0

    def setup(self, run: Run) -> None:
        super().setup(run)
        if not self.config.prioritise:
            return
        first, last = self.config.first_epoch, self.last_epoch(run.recipe.epochs)
        if first > min(last, run.recipe.epochs - 1):
            raise RequestError(
                f"g2d: no epoch is in the window from {first} to {last} of {run.recipe.epochs} "
                "epochs: change -o first_epoch or last_epoch, or use -o prioritise=false"
            )
        if not self.config.hard_freeze:
            note_undone_scaling(run, self.config.scale_where)

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        taught = self.taught(run, batch)
        if taught is None:
            return super().train_step(run, batch)
        coefficients = self.coefficients(run, taught, batch.y)
        if coefficients is not None and self.config.hard_freeze:
            for m, coefficient in zip(run.modalities, coefficients.tolist(), strict=True):
                if coefficient == 0:
                    run.freeze(m)
        out = run.net(batch)
        loss = self.distilled(run, out, batch, taught)
        run.backward(loss)
        if coefficients is not None and not self.config.hard_freeze:
            for m, factor in zip(run.modalities, coefficients.unbind(), strict=True):
                waiting = scoped_parameters(run, m, self.config.scope)
                scale(run, waiting, factor, self.config.scale_where)
        run.step()
        if self.config.hard_freeze:
            run.unfreeze()
        return loss

    # -- the loss ------------------------------------------------------------------------------

    def distilled(self, run: Run, out: Output, batch: Batch, taught: dict[str, Output]) -> Tensor:
        """Return ``L``."""
        loss: Tensor = functional.cross_entropy(out.logits, batch.y)
        if self.config.feature_weight > 0:
            distances = feature_distances(run, out, taught)
            loss = loss + self.config.feature_weight * torch.stack(distances).sum()
        if self.config.logit_weight > 0:
            loss = loss + self.config.logit_weight * self.divergence(out.logits, taught)
        return loss

    def divergence(self, z: Tensor, taught: dict[str, Output]) -> Tensor:
        """Return ``sum_m T^2 KL( softmax(v_m / T) || softmax(z / T) )``, mean over the batch."""
        temperature = self.config.temperature
        student = (z / temperature).log_softmax(dim=1)
        terms = {
            m: functional.kl_div(
                student,
                (teacher.logits / temperature).log_softmax(dim=1),
                reduction="batchmean",
                log_target=True,
            )
            for m, teacher in taught.items()
        }
        divergence: Tensor = temperature**2 * add(terms)
        return divergence

    # -- who learns ----------------------------------------------------------------------------

    def last_epoch(self, epochs: int) -> int:
        """Return the last epoch of the window."""
        chosen: int | None = self.config.last_epoch
        return epochs // 2 if chosen is None else chosen

    def phase(self, run: Run) -> int | None:
        """Return ``r - 1``, how many teachers are weaker than that of the modality which learns
        alone; None where all learn."""
        first, last = self.config.first_epoch, self.last_epoch(run.stage.epochs)
        if not self.config.prioritise or not first <= run.epoch <= last:
            return None
        phases = len(run.modalities) - 1
        return int((run.epoch - first) * phases // (last - first + 1))

    def coefficients(self, run: Run, taught: dict[str, Output], y: Tensor) -> Tensor | None:
        """Return ``k (M,)`` for labels ``y (B,)``; None where all learn."""
        phase = self.phase(run)
        if phase is None:
            return None
        probability = torch.stack([out.logits for out in taught.values()]).softmax(dim=2)
        truth = y.view(1, -1, 1).expand(len(probability), -1, 1)
        confidences = probability.gather(2, truth).mean(dim=(1, 2))
        learns = confidences == confidences.sort().values[phase]
        coefficients = learns.to(confidences.dtype)
        for i, m in enumerate(taught):
            run.log(f"teacher_confidence.{m}", confidences[i])
            run.log(f"coefficient.{m}", coefficients[i])
        return coefficients
