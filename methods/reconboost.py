"""ReconBoost: modalities boosted in turn, then rectified together.

The fused logits are ``F = eta sum_m u_m`` with ``u_m = head(h_m)``, one head for all modalities and
a learned rate eta. Unimodal networks give the encoders their first weights. Then boosting stages
follow one another, each for the next modality m in the cycle:

    F_-m = eta sum_(j != m) u_j,   p_m = softmax(u_m),   P = softmax(F_-m)[y]     P: a constant
    L    = (1/C) mean_i (w_1 - w_2 P[i]) (-log p_m[i, y_i])
           + alpha mean_(i,c) (p_m - softmax(u_prev))^2         prev: the modality before m
                                                    E_s epochs of encoder m and head
    L    = CE(F, y)                                 E_c epochs of everything: global rectification

so that a modality learns most of what the others do not know yet. The first stage has no modality
before it and no second term.

C. Hua, Q. Xu, S. Bao, Z. Yang, Q. Huang: ReconBoost: Boosting Can Achieve Modality Reconcilement,
ICML 2024.
"""

from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from mmbench.nets.fusion import linear
from mmbench.nets.shared_head import branch_of, share_head, shared_width
from mmbench.options import option, refuse_unused
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output, Stage
from mmbench.train.run import Run

PRETRAINING = "unimodal/"
"""Begins the names of the stages in which the encoders are trained alone."""

RELEASED_EPOCHS = 4
"""Epochs of boosting, and of rectification, in a stage of the released code."""


class ReconBoost(Method):
    """Each modality learns what the others get wrong, by turns of several epochs."""

    info = MethodInfo(
        title="ReconBoost",
        family="optimisation",
        summary="boosts one modality at a time against what the others know, with joint "
        "rectification in between, from unimodally trained encoders",
        acts="in the order of training and in the loss, by turns of several epochs",
        cost="M unimodal trainings beforehand; then 1 forward, 1 backward, of one encoder in half "
        "of the epochs",
        authors="C. Hua, Q. Xu, S. Bao, Z. Yang, Q. Huang",
        venue="ICML",
        year=2024,
        arxiv="2405.09321",
        departures=(
            "The agreement term has a gradient: in the released code both of its arguments are "
            "detached, and it does nothing (variant=released).",
            "As many whole stages as fit into the recipe's epochs; the release goes through up to "
            "1001 of them (stages=1001) and keeps the best on the test set.",
            "From the first stage on every modality predicts with the shared head; in the release "
            "a modality does so from its own first turn on, and with its own layer before.",
            "While one modality is boosted the others' batch norms keep their statistics; in the "
            "release they drift with the batches.",
            "The recipe's learning-rate schedule spans all stages; the release divides the rate by "
            "10 every 30 stages on CREMA-D, or by 2 after 40 on AVE.",
            "More than two modalities: cyclic order, the modality before is the last one boosted, "
            "as in the released code for three.",
            "Features of unequal width, for which there is no released model, go through a linear "
            "layer per modality if -o width names a common width.",
        ),
        default_fusion="sum",
        fusions=("sum",),
    )

    class Config(Options):
        variant: Literal["corrected", "released"] = option(
            "corrected", "an agreement term that teaches, or, as released, one without a gradient"
        )
        truth_weight: float = option(
            5.0,
            "w_1; 5 as released for CREMA-D, 4 for AVE and ModelNet40",
            gt=0,
            search=[2.0, 4.0, 5.0],
        )
        known_weight: float = option(
            1.0, "w_2, of what the others know, 1 as released", ge=0, search=[0.5, 1.0, 2.0]
        )
        agreement: float = option(0.5, "alpha, as released", ge=0, search=[0.0, 0.5, 1.0])
        stages: int | None = option(
            None,
            "boosting stages, each with its rectification; none is as many as fit into the "
            "recipe's epochs, but one for each modality. Up to 1001 as released",
            ge=1,
        )
        boost_epochs: int | None = option(
            None,
            f"E_s; none is {RELEASED_EPOCHS} as released, or where the recipe's epochs do not hold "
            "a stage for each modality as few as it takes",
            ge=1,
        )
        rectify_epochs: int | None = option(
            None, "E_c; none is as for boost_epochs, 0 for no rectification", ge=0
        )
        pretrain_epochs: int | None = option(
            None, "epochs of the unimodal networks; none is the recipe's, 0 for none of them", ge=0
        )
        hidden: int = option(256, "width of the shared head's hidden layer, as released", ge=1)
        width: int | None = option(
            None, "width of a linear layer per modality before the head; none for no layer", ge=1
        )

        @model_validator(mode="after")
        def _settings_are_used(self) -> "ReconBoost.Config":
            if self.variant == "released":
                refuse_unused(self, ["agreement"], "by variant=released, without its gradient")
            if self.known_weight > self.truth_weight:
                raise ValueError(
                    "known_weight is at most truth_weight: beyond, what others know is unlearned"
                )
            return self

    def setup(self, run: Run) -> None:
        chosen: int | None = self.config.width
        width, hidden = shared_width(run.network.widths, chosen, "reconboost"), self.config.hidden
        head = nn.Sequential(
            linear(width, hidden, run.seed, "shared_head", "hidden"),
            nn.ReLU(),
            linear(hidden, run.classes, run.seed, "shared_head"),
        )
        share_head(run.network, head, chosen)
        self.rate = nn.Parameter(torch.ones(()))

    # -- order ---------------------------------------------------------------------------------

    def stages(self, run: Run) -> list[Stage]:
        usual = run.recipe.epochs
        alone = usual if self.config.pretrain_epochs is None else self.config.pretrain_epochs
        pretraining = [
            Stage(PRETRAINING + m, alone, modalities=(m,), fresh=True, select="protocol")
            for m in run.modalities
            if alone > 0
        ]
        epochs = self.boosting_stages(run) * sum(self.lengths(run))
        if self.config.stages is None and epochs > usual:
            run.note(
                f"reconboost trained for {epochs} epochs, one stage for each modality, rather than "
                f"the {usual} of the recipe"
            )
        return [*pretraining, Stage("train", epochs, select="protocol")]

    def lengths(self, run: Run) -> tuple[int, int]:
        """Return the epochs of boosting and of rectification in a stage."""
        usual = RELEASED_EPOCHS
        if self.config.stages is None:
            room = run.recipe.epochs // (2 * len(run.modality_specs))
            usual = min(usual, max(room, 1))
        boost, rectify = self.config.boost_epochs, self.config.rectify_epochs
        return usual if boost is None else boost, usual if rectify is None else rectify

    def boosting_stages(self, run: Run) -> int:
        """Return the number of boosting stages."""
        if self.config.stages is not None:
            return int(self.config.stages)
        return max(run.recipe.epochs // sum(self.lengths(run)), len(run.modality_specs))

    def boosted(self, run: Run) -> tuple[int, str | None]:
        """Return the number of the boosting stage, from 0, that this epoch of training belongs to,
        and the modality it boosts; None when it rectifies."""
        boost, rectify = self.lengths(run)
        number, place = divmod(run.epoch, boost + rectify)
        return number, None if place >= boost else run.modalities[number % len(run.modalities)]

    def on_epoch_start(self, run: Run) -> None:
        if run.stage.name.startswith(PRETRAINING):
            return
        boost, rectify = self.lengths(run)
        if run.epoch % (boost + rectify) in (0, boost):
            assert run.optimizer is not None
            run.optimizer.state.clear()  # a new optimiser for each part of a stage, as released
        _, boosted = self.boosted(run)
        if boosted is not None:
            for m in run.modalities:
                if m != boosted:
                    run.freeze(m, branch_of(run.network, m).adapter)

    def on_stage_end(self, run: Run) -> None:
        if run.stage.name.startswith(PRETRAINING):
            for m, encoder in run.network.encoders.items():
                run.main.encoders[m].load_state_dict(encoder.state_dict())

    # -- losses --------------------------------------------------------------------------------

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        if run.stage.name.startswith(PRETRAINING):
            return functional.cross_entropy(out.logits, batch.y)
        number, m = self.boosted(run)
        if m is None:
            run.log("rate", self.rate)
            return functional.cross_entropy(self.predict(run, out), batch.y)
        own = out.parts
        others = self.rate * (out.logits - own[m])
        truth = batch.y.unsqueeze(1)
        known = others.detach().softmax(dim=1).gather(1, truth).squeeze(1)
        weight = self.config.truth_weight - self.config.known_weight * known
        missed = functional.cross_entropy(own[m], batch.y, reduction="none")
        loss: Tensor = (weight * missed).mean() / run.classes
        run.log(f"coefficient.{m}", weight.mean() / run.classes)
        run.log(f"known_to_others.{m}", known.mean())
        if number > 0 and self.config.agreement > 0:
            before = own[run.modalities[(number - 1) % len(run.modalities)]].detach()
            now = own[m].detach() if self.config.variant == "released" else own[m]
            distance = functional.mse_loss(now.softmax(dim=1), before.softmax(dim=1))
            run.log(f"disagreement.{m}", distance)
            loss = loss + self.config.agreement * distance
        return loss

    # -- inference and record ------------------------------------------------------------------

    def predict(self, run: Run, out: Output) -> Tensor:
        return self.rate * out.logits

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        return out.parts

    def report(self, run: Run) -> dict[str, Any]:
        boost, rectify = self.lengths(run)
        return {
            "boosting_stages": self.boosting_stages(run),
            "boost_epochs": boost,
            "rectify_epochs": rectify,
            "rate": float(self.rate.detach()),
        }
