"""SPCL: self-paced curriculum for modality balance.

    l_i   = -log softmax(z)[i, y_i]
    s_m,i = mean over the rows j of i's dialogue of softmax(z_m)[j, y_j]       z_m: parts of z
    s_i   = std_m( s_m,i )                             with M - 1; alone (sample): of p_m[i, y_i]
    rho_i = 2 s_i l_i / (s_i + l_i)                    difficulty, a constant in the backward pass
    v_i   = 1[ rho_i <= lambda ]
    L     = sum_i v_i l_i / sum_i v_i                  no update where nothing is admitted
    lambda <- min( alpha lambda, 60 )                  after each epoch, from lambda_0 on

Nguyen, Le, Le, Nguyen, Neural Computing & Applications 2026. The harmonic mean is at most twice
the smaller of the two, so a row is admitted when either its loss or its disparity is small. Before
the modalities diverge all disparities are near zero and everything is admitted; rare classes, whose
losses are large, are admitted last.
"""

import math
from typing import Any, Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from mmbench.errors import RequestError
from mmbench.options import option, refuse_unused
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.run import Run

NEARLY_ALL = 0.99
"""Quantile of the difficulties that the calibrated pace is to reach (mmbench's)."""
SMALLEST = 1e-12
"""Keeps quotients finite where losses and disparities are all zero."""


class SPCL(Method):
    """Learns from rows that are easy or on which modalities agree, and from more every epoch."""

    info = MethodInfo(
        title="Self-paced curriculum for modality balance",
        family="loss",
        summary="leaves rows out of the loss while both their loss and the disparity between their "
        "modalities are large, and admits more of them every epoch",
        acts="in the loss, after a plain first epoch; the threshold grows with every epoch",
        cost="1 forward, 1 backward; with a calibrated threshold or pace a forward of all training "
        "rows once",
        authors="Nguyen, Le, Le, Nguyen",
        venue="Neural Computing & Applications",
        year=2026,
        arxiv="2605.21565",
        departures=(
            "lambda_0 and alpha are calibrated after a plain epoch unless given: the released "
            "values, 0.2 to 1.3 and 1.05 to 1.85, were chosen for each backbone and dataset.",
            "The loss is divided by what is admitted, as in the paper's figure; the released code "
            "divides by the number of all rows (reduce=all), so that its steps shrink with the "
            "share admitted, and takes a step where nothing is admitted.",
            "The disparity of a dialogue is of the mean over its utterances: of their sum, as "
            "released (normalise=sum), long dialogues look hard.",
            "Released batches hold whole dialogues. Here they hold rows: each row counts in its "
            "dialogue with the probability that it had when it was last seen, a row not yet seen "
            "with the mean of the others.",
            "Rows without a dialogue are a group of one each (group=sample, the default).",
            "The released code leaves lambda out of its checkpoints.",
        ),
        fusions=("concat", "sum", "late", "attention"),
        neutral={"start": 2.0, "growth": 1.0},
    )

    class Config(Options):
        group: Literal["sample", "dialogue"] = option(
            "sample",
            "what disparity is measured on: each row, or the rows of one group of the dataset (its "
            "dialogue, video or speaker)",
        )
        normalise: Literal["mean", "sum"] = option(
            "mean", "of the probabilities in a dialogue, the mean (mmbench's) or, as released, sum"
        )
        difficulty: Literal["both", "loss", "disparity"] = option(
            "both", "rho: the harmonic mean, or the loss or the disparity alone (ablations)"
        )
        mask: Literal["hard", "soft", "random"] = option(
            "hard",
            "v: 0 or 1; soft: max(0, 1 - rho / lambda) (mmbench's); random: the hard ones dealt "
            "out at random among the rows of the batch, the control",
        )
        reduce: Literal["admitted", "all"] = option(
            "admitted", "divide by the sum of v, or, as released, by the number of rows"
        )
        start: float | None = option(
            None,
            "lambda_0; none is a quantile of the difficulties after the plain epochs; 0.4 when "
            "released, 0.2 to 1.3 by dataset",
            gt=0,
        )
        growth: float | None = option(
            None,
            "alpha, 1 for a fixed lambda; none lets lambda reach nearly all difficulties in "
            "time; 1.25 when released, 1.05 to 1.85 by dataset",
            ge=1,
        )
        ceiling: float = option(60.0, "largest lambda, as released", gt=0)
        warmup_epochs: int | None = option(
            None,
            "plain first epochs; none is 1 if something is calibrated after them (mmbench's), "
            "else 0, as released",
            ge=0,
        )
        quantile: float = option(
            0.4,
            "share of the rows that lambda_0 admits at first (mmbench's)",
            gt=0,
            lt=NEARLY_ALL,
            search=[0.2, 0.4, 0.6, 0.8],
        )
        reach: float = option(
            0.4,
            "share of the epochs after which lambda reaches the 99 % quantile (mmbench's)",
            gt=0,
            le=1,
            search=[0.2, 0.4, 0.7],
        )

        @model_validator(mode="after")
        def _settings_are_used(self) -> "SPCL.Config":
            if self.difficulty == "loss":
                refuse_unused(self, ["group", "normalise"], "by difficulty=loss")
            if self.group == "sample":
                refuse_unused(self, ["normalise"], "by group=sample")
            if self.start is not None:
                refuse_unused(self, ["quantile"], "beside a given start")
                if self.start > self.ceiling:
                    raise ValueError("start is not above ceiling")
            if self.growth is not None:
                refuse_unused(self, ["reach"], "beside a given growth")
            if self.warmup_epochs == 0 and self.is_calibrated:
                raise ValueError("warmup_epochs=0 needs a given start and growth")
            return self

        @property
        def is_calibrated(self) -> bool:
            return self.start is None or self.growth is None

    def setup(self, run: Run) -> None:
        given: int | None = self.config.warmup_epochs
        self.warmup = int(self.config.is_calibrated) if given is None else given
        if self.warmup >= run.recipe.epochs:
            run.note(
                f"all {run.recipe.epochs} epochs are plain first epochs, so nothing was left out: "
                "train longer"
            )
        self.start: float | None = self.config.start
        self.growth: float | None = self.config.growth
        self.threshold = math.inf
        """lambda, of the epoch in training; infinite in the plain epochs."""
        if self.warmup == 0:
            assert self.start is not None, "given, or calibrated after plain epochs"
            self.threshold = self.start
        self.has_dialogues = self.config.group == "dialogue"
        if self.has_dialogues:
            self._set_up_dialogues(run)

    def _set_up_dialogues(self, run: Run) -> None:
        groups = run.train.groups
        if groups is None:
            raise RequestError(
                "spcl: group=dialogue needs training rows that belong to dialogues, and the "
                "dataset names no groups: use -o group=sample"
            )
        _, group_of, sizes = np.unique(groups, return_inverse=True, return_counts=True)
        self.register_buffer("group_of", torch.as_tensor(group_of), persistent=False)
        self.register_buffer("sizes", torch.as_tensor(sizes), persistent=False)
        self.register_buffer("truth", torch.zeros(len(groups), len(run.modalities)))
        self.register_buffer("known", torch.zeros(len(groups)))

    group_of: Tensor
    """Number of each training row's dialogue."""
    sizes: Tensor
    """Rows of each dialogue."""
    truth: Tensor
    """Each training row's probability of its class by modality when last seen; else zero."""
    known: Tensor
    """1 for each training row that has been seen, else 0."""

    # -- a step ----------------------------------------------------------------------------------

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        out = run.net(batch)
        losses = functional.cross_entropy(out.logits, batch.y, reduction="none")
        with torch.no_grad():
            truth = self.of_truth(run, out, batch.y)
            difficulties = self.difficulties(losses, truth, batch.rows)
            admitted = self.mask(run, difficulties)
            self._note(run, truth, admitted, batch.y)
        can_skip = self.config.reduce == "admitted" and self.threshold < math.inf
        is_skipped = can_skip and not bool(admitted.any())
        run.log("skipped", float(is_skipped))
        loss = self.reduced(losses, admitted)
        if not is_skipped:
            run.backward(loss)
            run.step()
        return loss

    def of_truth(self, run: Run, out: Output, y: Tensor) -> Tensor:
        """Return ``softmax(z_m)[i, y_i]`` as ``(B, M)``."""
        parts = torch.stack([out.parts[m] for m in run.modalities], dim=1)
        of_class = y.view(-1, 1, 1).expand(-1, parts.shape[1], 1)
        return parts.softmax(dim=2).gather(2, of_class).squeeze(2)

    def difficulties(self, losses: Tensor, truth: Tensor, rows: Tensor) -> Tensor:
        """Return ``rho (B,)`` from losses ``(B,)`` and the true class's probabilities ``(B, M)`` of
        these training rows."""
        if self.config.difficulty == "loss":
            return losses
        disparity = self.by_dialogue(truth, rows) if self.has_dialogues else truth.std(dim=1)
        if self.config.difficulty == "disparity":
            return disparity
        return 2 * disparity * losses / (disparity + losses).clamp(min=SMALLEST)

    def by_dialogue(self, truth: Tensor, rows: Tensor) -> Tensor:
        """Remember the rows' probabilities ``(B, M)``, and return the disparity of the dialogue of
        each ``(B,)``."""
        self.truth.index_copy_(0, rows, truth.to(self.truth.dtype))
        self.known.index_fill_(0, rows, 1.0)
        sums = self.truth.new_zeros(len(self.sizes), truth.shape[1])
        sums.index_add_(0, self.group_of, self.truth)
        counts = self.known.new_zeros(len(self.sizes)).index_add_(0, self.group_of, self.known)
        scores = sums / counts.clamp(min=1).unsqueeze(1)
        if self.config.normalise == "sum":
            scores = scores * self.sizes.unsqueeze(1)
        return scores.std(dim=1)[self.group_of[rows]]

    def mask(self, run: Run, difficulties: Tensor) -> Tensor:
        """Return ``v (B,)``."""
        if self.config.mask == "soft":
            return (1 - difficulties / self.threshold).clamp(min=0.0)
        admitted = (difficulties <= self.threshold).to(difficulties.dtype)
        if self.config.mask == "hard":
            return admitted
        return admitted[torch.randperm(len(admitted), generator=run.rng, device=run.device)]

    def reduced(self, losses: Tensor, admitted: Tensor) -> Tensor:
        """Return the loss of a batch; zero where nothing is admitted."""
        total = (admitted * losses).sum()
        if self.config.reduce == "all":
            return total / len(losses)
        return total / admitted.sum().clamp(min=SMALLEST)

    # -- the pace --------------------------------------------------------------------------------

    def on_epoch_start(self, run: Run) -> None:
        self.rows_of_class = torch.zeros(run.classes, device=run.device)
        self.admitted_of_class = torch.zeros(run.classes, device=run.device)

    def on_epoch_end(self, run: Run) -> None:
        shares = self.admitted_of_class / self.rows_of_class.clamp(min=1)
        for number, share in enumerate(shares):
            run.log(f"admitted.class{number}", share)
        if self.threshold < math.inf:
            assert self.growth is not None, "given, or calibrated after plain epochs"
            run.log("threshold", self.threshold)
            self.threshold = min(self.growth * self.threshold, self.config.ceiling)
        elif run.epoch + 1 == self.warmup < run.stage.epochs:
            if self.config.is_calibrated:
                self._calibrate(run)
            assert self.start is not None
            self.threshold = self.start

    def _calibrate(self, run: Run) -> None:
        """Choose the threshold and the pace that are not given by the difficulties of all rows."""
        losses, truths = [], []
        for out, batch in run.outputs(np.arange(len(run.train))):
            losses.append(functional.cross_entropy(out.logits, batch.y, reduction="none"))
            truths.append(self.of_truth(run, out, batch.y))
        rows = torch.arange(len(run.train), device=run.device)
        difficulties = self.difficulties(torch.cat(losses), torch.cat(truths), rows).cpu().numpy()
        first, last = np.quantile(difficulties, [self.config.quantile, NEARLY_ALL])
        if self.start is None:
            self.start = min(max(float(first), SMALLEST), self.config.ceiling)
        if self.growth is None:
            epochs = max(1, round(self.config.reach * run.stage.epochs) - self.warmup)
            self.growth = max(1.0, (float(last) / self.start) ** (1 / epochs))

    # -- record and resume -----------------------------------------------------------------------

    def _note(self, run: Run, truth: Tensor, admitted: Tensor, y: Tensor) -> None:
        run.log("admitted", admitted.mean())
        self.rows_of_class.index_add_(0, y, torch.ones_like(self.rows_of_class[y]))
        self.admitted_of_class.index_add_(0, y, admitted.to(self.admitted_of_class.dtype))
        scores = truth.sum(dim=0)
        ratios = scores / scores.min().clamp(min=SMALLEST)
        for m, ratio in zip(run.modalities, ratios, strict=True):
            run.log(f"ratio.{m}", ratio)

    def report(self, run: Run) -> dict[str, Any]:
        reached = self.threshold if self.threshold < math.inf else None
        return {"start": self.start, "growth": self.growth, "threshold": reached}

    def get_extra_state(self) -> dict[str, Any]:
        return {"start": self.start, "growth": self.growth, "threshold": self.threshold}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.start, self.growth = state["start"], state["growth"]
        self.threshold = float(state["threshold"])
