"""IIBalance: intrinsic information budgets (mmbench reconstruction).

Z. Xiong, D. Li, K. Tang, P. Li, W. Kong, Y. Hu: Beyond Forced Modality Balance: Intrinsic
Information Budgets for Multimodal Learning, ICME 2026, arXiv 2603.17347. Only the abstract could be
read when this was written: every equation below is mmbench's reconstruction from it, and results
must be labelled so.

Stage 0, budgets. Unimodal models are cross-fitted on the training rows; with h the loss of the
class frequencies on the same held-out rows:

    I_m = mean(h) - mean(nll_m),   B_m = clip(I_m / mean(h), 0, 1),   pi = softmax(B / tau_pi)
    a = argmax B  (the anchor),    rho_m = B_m / B_a

Stage 1, training. u_m are own-head logits, v_m unit projections of the features, Q_a the anchor's
class prototypes, p_m = softmax(v_m . Q_a / tau) and c_m = p_m[y]:

    z   = M sum_m pi_m u_m                            (or a fusion of the features beside own heads)
    D_m = relu(rho_m - c_m / c_a) / rho_m             only what is below its potential is corrected
    L   = CE(z, y) + lambda_u sum_m CE(u_m, y) + lambda_p CE(v_a . Q_a / tau, y)
          + lambda(e) sum_(m != a) omega_m mean( D_m 1[c_a >= 1/C] (-log c_m) )

Stage 2, gate. On rows that the network was not trained on:

    z(x) = sum_m w_m(x) u_m(x) / T,   w(x) = M softmax_m( a log pi_m - beta v_m(x) + G_m(x) )

which starts as stage 1's fusion and moves from it only as far as held-out rows support.
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from mmbench.errors import RequestError
from mmbench.nets.encoders import initialise
from mmbench.nets.fusion import add, own_heads
from mmbench.nets.gate import Gate, HeldOut, fit_gate, summarise, weighted_logits
from mmbench.nets.prototypes import Prototypes, log_posterior
from mmbench.options import option, refuse_unused
from mmbench.seeds import default_stream, numpy_stream
from mmbench.train.budgets import BudgetEstimator, Budgets, power_prior, softmax_prior
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output, Stage
from mmbench.train.run import Run

SMALL = 5000
"""Below this many training rows, budgets and gate are cross-fitted: none can be held out."""


class BudgetOptions(Options):
    """Stage 0."""

    estimator: Literal[
        "vinfo", "acc", "linear", "shapley_vinfo", "in_sample", "shuffled", "uniform", "given"
    ] = option(
        "vinfo",
        "held-out information; acc: accuracy above chance; linear: of a linear classifier on the "
        "inputs; shapley_vinfo: shares over all subsets; in_sample: on the fitted rows; shuffled: "
        "vinfo in reverse order, a negative control; uniform: all equal; given: -o budget.given",
    )
    given: list[float] | None = option(None, "budgets in [0, 1] in the order of the modalities")
    folds: int | None = option(
        None,
        f"folds of the cross-fitting of budgets and gate; none is 5 below {SMALL} training rows, "
        "else 1 (one 80/10/10 division)",
        ge=1,
    )
    by: Literal["group", "row"] = option(
        "group",
        "what the folds of budgets and gate divide: whole groups where rows have them, so that "
        "budgets say what carries over to new speakers or videos; or rows, whatever their group",
    )
    prior: Literal["softmax", "power", "uniform"] = option("softmax", "how budgets become pi")
    temperature: float = option(1.0, "tau_pi of prior=softmax", gt=0, search=[0.25, 0.5, 1.0, 2.0])
    exponent: float = option(1.0, "exponent of prior=power", gt=0)

    @model_validator(mode="after")
    def _given_matches(self) -> "BudgetOptions":
        if (self.estimator == "given") != (self.given is not None):
            raise ValueError("estimator=given and given=[...] belong together")
        if self.given is not None and not all(0 <= b <= 1 for b in self.given):
            raise ValueError("given budgets lie between 0 and 1")
        if self.prior != "softmax":
            refuse_unused(self, ["temperature"], f"by prior={self.prior}")
        if self.prior != "power":
            refuse_unused(self, ["exponent"], f"by prior={self.prior}")
        if self.folds == 2:
            raise ValueError(
                "folds is 1 or at least 3: one part fits, one calibrates, one measures"
            )
        return self


class AlignOptions(Options):
    """Relative alignment in stage 1."""

    enabled: bool = option(True, "align at all")
    strength: float = option(1.0, "lambda_max", ge=0, search=[0.1, 0.3, 1.0, 3.0])
    gate: Literal["sample", "batch", "info", "off"] = option(
        "sample",
        "what opens it: a sample below its potential, the batch's mean below it, realised "
        "information below it, or always (forced alignment)",
    )
    gap_weight: Literal["ratio", "gap", "none"] = option("ratio", "omega_m: rho_m, 1 - rho_m, or 1")
    target: Literal["anchor", "interp"] = option(
        "anchor", "prototypes to align with: the anchor's, or rho_m Q_a + (1 - rho_m) Q_m"
    )
    anchor: Literal["highest", "lowest", "random"] = option(
        "highest", "anchor: the modality of highest budget, or two controls"
    )
    schedule: Literal["linear", "constant"] = option("linear", "lambda over the epochs")
    start: float = option(0.05, "share of the epochs before lambda rises", ge=0, lt=1)
    full: float = option(0.3, "share of the epochs after which lambda is lambda_max", gt=0, le=1)
    level: Literal["prototype", "instance"] = option(
        "prototype",
        "align with class prototypes, or with the anchor's projection of the same sample",
    )
    prototype_weight: float = option(0.1, "lambda_p", ge=0, search=[0.03, 0.1, 0.3])
    momentum: float = option(0.95, "of the prototypes", ge=0, lt=1, search=[0.9, 0.95, 0.99])
    temperature: float = option(0.1, "tau", gt=0, search=[0.07, 0.1, 0.2])
    width: int = option(128, "width of the projections", ge=2)

    @model_validator(mode="after")
    def _settings_are_used(self) -> "AlignOptions":
        if not self.enabled:
            names = [name for name in type(self).model_fields if name != "enabled"]
            refuse_unused(self, names, "with enabled=false")
        if self.schedule == "constant":
            refuse_unused(self, ["start", "full"], "by schedule=constant")
        if self.start >= self.full:
            raise ValueError("start lies before full: lambda rises from the one to the other")
        return self


class GateOptions(Options):
    """Stage 2."""

    enabled: bool = option(True, "gate at inference; without it the fusion of stage 1 predicts")
    uncertainty: bool = option(True, "use each sample's uncertainty; without it the prior alone")
    prior: bool = option(True, "use the budget prior")
    net: bool = option(True, "learn G; without it the closed form a log pi - beta v")
    calibration: bool = option(True, "fit the temperature T")
    fit_on: Literal["auto", "crossfit", "holdout", "train"] = option(
        "auto",
        f"rows to fit it on: crossfit below {SMALL} training rows and holdout above, or one of "
        "these; train is an ablation",
    )
    share: float = option(
        0.1, "share of the training rows that fit_on=holdout holds out", gt=0, lt=1
    )
    pull: float = option(
        0.1,
        "eta: weight of KL(mean weights || weights at the start, which are the prior)",
        ge=0,
        search=[0.0, 0.03, 0.1, 0.3, 1.0],
    )
    epochs: int = option(100, "largest number of epochs of its fit", ge=1)

    @model_validator(mode="after")
    def _settings_are_used(self) -> "GateOptions":
        if not self.enabled:
            names = [name for name in type(self).model_fields if name != "enabled"]
            refuse_unused(self, names, "with enabled=false")
        if not self.uncertainty:
            refuse_unused(self, ["net", "pull", "epochs"], "with uncertainty=false")
        if self.fit_on not in ("auto", "holdout"):
            refuse_unused(self, ["share"], f"by fit_on={self.fit_on}")
        return self


@dataclass(frozen=True)
class Plan:
    """What follows from the budgets, for the modalities by name."""

    prior: dict[str, float]
    """``pi_m``."""
    anchor: str
    ratio: dict[str, float]
    """``rho_m`` in [0, 1]."""
    aligned: tuple[str, ...]
    """Modalities that alignment may correct: not the anchor, nor what cannot be told from it."""


def make_plan(budgets: Budgets, budget: BudgetOptions, align: AlignOptions, seed: int) -> Plan:
    """Return prior, anchor and ratios. Where even the best budget is negligible the prior is
    uniform and nothing is aligned."""
    names, values = budgets.modalities, np.array(budgets.values)
    if budget.prior == "uniform" or budgets.are_negligible or np.ptp(values) == 0:
        prior = np.full(len(names), 1 / len(names))
    elif budget.prior == "softmax":
        prior = softmax_prior(values, budget.temperature)
    else:
        prior = power_prior(values, budget.exponent)
    by_budget = np.argsort(-values, kind="stable")
    drawn = int(numpy_stream(seed, "anchor").integers(len(names)))
    place = {"highest": by_budget[0], "lowest": by_budget[-1], "random": drawn}[align.anchor]
    anchor = names[int(place)]
    ratio = np.minimum(values / max(values[names.index(anchor)], 1e-12), 1.0)
    ratios = dict(zip(names, map(float, ratio), strict=True))
    spared = {anchor, *(budgets.tied if align.anchor == "highest" else ())}
    return Plan(
        dict(zip(names, map(float, prior), strict=True)),
        anchor,
        ratios,
        ()
        if budgets.are_negligible
        else tuple(m for m in names if m not in spared and ratios[m] > 1e-6),
    )


class RelativeAlignment(nn.Module):
    """Projections ``v_m``, their prototypes ``Q_m``, and the loss that pulls a modality towards the
    anchor's prototypes where it is below its budgeted potential."""

    own_losses: Tensor

    def __init__(
        self, widths: dict[str, int], y: Tensor, classes: int, options: AlignOptions, seed: int
    ) -> None:
        """``y`` are the classes of the training rows, for the entropy of the class frequencies."""
        super().__init__()
        self.options = options
        self.classes = classes
        counts = torch.bincount(y, minlength=classes).double()
        self.entropy = float(torch.special.entr(counts / counts.sum()).sum())
        self.projections = nn.ModuleDict()
        for m, width in widths.items():
            with default_stream(seed, "projection", m):
                self.projections[m] = nn.Sequential(
                    nn.Linear(width, options.width),
                    nn.BatchNorm1d(options.width),
                    nn.ReLU(),
                    nn.Linear(options.width, options.width),
                )
                initialise(self.projections[m])
        self.prototypes = nn.ModuleDict(
            {m: Prototypes(classes, options.width, options.momentum) for m in widths}
        )
        self.register_buffer("own_losses", torch.full((len(widths),), self.entropy))

    def project(self, out: Output) -> dict[str, Tensor]:
        """Return ``v_m (B, width)``, unit rows."""
        return {
            m: functional.normalize(self.projections[m](h), dim=1) for m, h in out.features.items()
        }

    def forward(
        self, run: Run, plan: Plan, strength: float, v: dict[str, Tensor], y: Tensor
    ) -> Tensor:
        """Return ``lambda_p L_proto + strength L_align`` for a batch, in nats."""
        options, anchor = self.options, self._prototypes(plan.anchor)
        known = anchor.seen[y]
        log_anchor = self._true_class(v[plan.anchor], anchor.rows, anchor.seen, y)
        loss = options.prototype_weight * torch.where(known, -log_anchor, 0.0).mean()
        if strength == 0:
            return loss
        c_anchor = log_anchor.detach().exp()
        teaches = known & (c_anchor >= 1 / self.classes)
        for m in plan.aligned:
            ratio = plan.ratio[m]
            rows, seen = self._target(plan, m)
            log_c = self._true_class(v[m], rows, seen, y)
            drift = self._drift(plan, m, log_c.detach().exp(), c_anchor)
            pull = -log_c
            if options.level == "instance":
                alike = v[m] @ v[plan.anchor].detach().T / options.temperature
                pull = -alike.log_softmax(dim=1).diagonal()
            corrected = drift * (teaches & seen[y])
            run.log(f"corrected.{m}", (corrected > 0).float().mean())
            weight = {"ratio": ratio, "gap": 1 - ratio, "none": 1.0}[options.gap_weight]
            loss = (
                loss + strength * weight * torch.where(corrected > 0, corrected * pull, 0.0).mean()
            )
        return loss

    def _prototypes(self, m: str) -> Prototypes:
        prototypes = self.prototypes[m]
        assert isinstance(prototypes, Prototypes)
        return prototypes

    def _target(self, plan: Plan, m: str) -> tuple[Tensor, Tensor]:
        """Return the prototypes that modality m is aligned with, and which classes have one."""
        anchor, own = self._prototypes(plan.anchor), self._prototypes(m)
        if self.options.target == "anchor":
            return anchor.rows, anchor.seen
        between = plan.ratio[m] * anchor.rows + (1 - plan.ratio[m]) * own.rows
        return functional.normalize(between, dim=1), anchor.seen & own.seen

    def _true_class(self, v: Tensor, rows: Tensor, seen: Tensor, y: Tensor) -> Tensor:
        """Return ``log c``: the prototype posterior of the true class, ``(B,)``."""
        posterior = log_posterior(v, rows, seen, self.options.temperature)
        return posterior.gather(1, y.unsqueeze(1)).squeeze(1)

    def _drift(self, plan: Plan, m: str, c: Tensor, c_anchor: Tensor) -> Tensor:
        """Return ``D_m`` in [0, 1]: how far below its potential modality m is, ``(B,)``."""
        ratio = plan.ratio[m]
        match self.options.gate:
            case "sample":
                level = c / (c_anchor + 1e-8)
            case "batch":
                level = (c.mean() / (c_anchor.mean() + 1e-8)).expand_as(c)
            case "info":
                names = list(self.projections)
                realised = 1 - self.own_losses / self.entropy
                informed = realised.clamp(min=0)
                level = informed[names.index(m)] / (informed[names.index(plan.anchor)] + 1e-8)
                level = level.expand_as(c)
            case _:
                return torch.ones_like(c)
        return (ratio - level).clamp(min=0) / ratio

    @torch.no_grad()
    def update(self, plan: Plan, v: dict[str, Tensor], own: dict[str, Tensor], y: Tensor) -> None:
        """Move what is read of the prototypes and of the running losses of the own heads."""
        for m in v if self.options.target == "interp" else [plan.anchor]:
            self._prototypes(m).update(v[m].detach(), y)
        if self.options.gate == "info":
            now = torch.stack([functional.cross_entropy(u.detach(), y) for u in own.values()])
            self.own_losses.lerp_(now, 1 - self.options.momentum)

    def nearest(self, out: Output, anchor: str) -> Tensor:
        """Return the probability of the nearest of the anchor's prototypes, ``(B, M)``."""
        target = self._prototypes(anchor)
        return torch.stack(
            [
                log_posterior(v, target.rows, target.seen, self.options.temperature).exp().amax(1)
                for v in self.project(out).values()
            ],
            dim=1,
        )


class IIBalance(Method):
    """Default: sum fusion, whose parts are the own heads. With another fusion, own heads stand
    beside it and the gate weighs its additive parts, or the features that enter it."""

    info = MethodInfo(
        title="Intrinsic information budgets (mmbench reconstruction)",
        family="budget",
        summary="lets each modality contribute up to what held-out data show that it knows",
        acts="before training (budgets), in the loss (alignment) and at inference (gate)",
        cost="1 forward, 1 backward; before that, folds x M unimodal and folds joint trainings",
        authors="Z. Xiong, D. Li, K. Tang, P. Li, W. Kong, Y. Hu",
        venue="ICME",
        year=2026,
        arxiv="2603.17347",
        departures=(
            "The whole method is reconstructed from the abstract; no code or equations of the "
            "authors were available. Never compare with the paper's table as a reproduction.",
            "Logits are pooled, not probabilities, with tau_pi = 1: a mixture of probabilities "
            "throws away the agreement of modalities (5 to 6 points in a pilot).",
            "The gate starts as the static fusion and is fitted on cross-fitted logits, so that no "
            "training row is given up for it.",
            "The warm-up and the rise of lambda are shares of the epochs (5 % and 30 %), so that "
            "short trainings keep them in proportion.",
        ),
        note=(
            "iibalance is mmbench's reconstruction from the abstract of arXiv 2603.17347, not the "
            "authors' method as published"
        ),
        default_fusion="sum",
        fusions=("sum", "concat", "attention", "film", "gated"),
        neutral={
            "budget.estimator": "uniform",
            "unimodal_weight": 0.0,
            "align.enabled": False,
            "gate.enabled": False,
        },
    )

    class Config(Options):
        budget: BudgetOptions = BudgetOptions()
        align: AlignOptions = AlignOptions()
        gate: GateOptions = GateOptions()
        unimodal_weight: float = option(1.0, "lambda_u", ge=0, search=[0.3, 1.0, 3.0])

    # -- set-up and stages ---------------------------------------------------------------------

    def setup(self, run: Run) -> None:
        options = self.config
        self.names = run.modalities
        self.sums_own_heads = run.spec.fusion == "sum"
        self.budgets = self._without_estimate(run)
        self.plan = self._plan(run)
        self.estimator = self._estimator(run)
        self._reset(run)
        uses_prior = self.sums_own_heads and options.gate.prior
        self.gate = Gate(
            1.0 if uses_prior else 0.0,
            options.gate.prior and options.gate.uncertainty,
            options.gate.uncertainty,
            options.gate.net,
            options.gate.calibration,
            len(self.names),
            run.seed,
        )
        self.gate_is_fitted = False
        self.gate_gain = 0.0
        self.gate_folds = self._gate_folds(run)
        fusion = run.network.fusion
        assert fusion is not None
        self.held_out = nn.ModuleList(
            HeldOut(fusion, run.network.widths, len(held)) for _, held in self.gate_folds
        )

    def stages(self, run: Run) -> list[Stage]:
        epochs = run.recipe.epochs
        budget = [] if self.estimator is None else [*self.estimator.stages(), Stage("budget", 0)]
        train = Stage("train", epochs, select="protocol")
        if not self.gate_folds:
            return [*budget, train]
        gate = Stage("gate", 0)
        match self._fit_on(run):
            case "crossfit":
                crossfits = [
                    Stage(f"crossfit/{k + 1}", epochs, rows=kept, fresh=True)
                    for k, (kept, _) in enumerate(self.gate_folds)
                ]
                return [*budget, *crossfits, gate, train]
            case "holdout":
                kept = self.gate_folds[0][0]
                return [*budget, Stage("train", epochs, rows=kept, select="protocol"), gate]
            case _:
                return [*budget, train, gate]

    def on_stage_start(self, run: Run) -> None:
        if run.stage.name == "train" or run.stage.name.startswith("crossfit/"):
            self._reset(run)

    def on_stage_end(self, run: Run) -> None:
        name = run.stage.name
        if self._estimates_in(run):
            assert self.estimator is not None
            self.estimator.collect(run)
        elif name == "budget":
            assert self.estimator is not None
            budgets = self.estimator.estimate(run)
            shuffled = self.config.budget.estimator == "shuffled"
            self.budgets = budgets.reversed() if shuffled else budgets
            self.plan = self._plan(run)
        elif name.startswith("crossfit/"):
            self._hold_out(run, int(name.removeprefix("crossfit/")) - 1)
        elif name == "gate":
            if self._fit_on(run) != "crossfit":
                self._hold_out(run, 0)
            self._fit_gate(run)

    def _reset(self, run: Run) -> None:
        """Give own heads, projections and prototypes their initial state."""
        widths, align = run.network.widths, self.config.align
        self.heads = (
            nn.ModuleDict() if self.sums_own_heads else own_heads(widths, run.classes, run.seed)
        )
        self.alignment = (
            RelativeAlignment(widths, run.train.y, run.classes, align, run.seed)
            if align.enabled
            else None
        )
        self._projected: dict[str, Tensor] = {}

    @property
    def _by_group(self) -> bool:
        return bool(self.config.budget.by == "group")

    def _folds(self, run: Run) -> int:
        """Return the number of folds for cross-fitting, at most one per group."""
        wanted = 5 if len(run.train) < SMALL else 1
        count = int(self.config.budget.folds or wanted)
        if run.train.groups is not None and self._by_group:
            groups = len(np.unique(run.train.groups))
            if groups < 3:
                raise RequestError(
                    f"iibalance cross-fits by group and needs 3 groups in the training rows, not "
                    f"{groups}: use -o budget.by=row, or a protocol that trains on more groups"
                )
            count = min(count, groups)
        return count

    # -- stage 0 -------------------------------------------------------------------------------

    def _without_estimate(self, run: Run) -> Budgets:
        """Return given budgets, or equal ones."""
        count, given = len(self.names), self.config.budget.given
        if given is not None and len(given) != count:
            raise RequestError(
                f"budget.given has {len(given)} budgets for {count} modalities "
                f"({', '.join(self.names)})"
            )
        return Budgets.certain(self.names, given or [1.0] * count, float(np.log(run.classes)))

    def _estimator(self, run: Run) -> BudgetEstimator | None:
        kind = self.config.budget.estimator
        if kind in ("uniform", "given"):
            return None
        return BudgetEstimator(
            run,
            self._folds(run),
            run.recipe.epochs,
            by_error=kind == "acc",
            by_subset=kind == "shapley_vinfo",
            linear=kind == "linear",
            in_sample=kind == "in_sample",
            by_group=self._by_group,
        )

    def _estimates_in(self, run: Run) -> bool:
        """Whether the stage trains a predictor whose losses make the budgets."""
        return self.estimator is not None and self.estimator.owns(run.stage)

    def _plan(self, run: Run) -> Plan:
        return make_plan(self.budgets, self.config.budget, self.config.align, run.seed)

    # -- stage 1 -------------------------------------------------------------------------------

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        if self.sums_own_heads:
            return out.parts
        return {m: self.heads[m](h) for m, h in out.features.items()}

    def _static(self, out: Output) -> Tensor:
        """Return the logits of stage 1: the parts weighted by M pi_m, or those of the fusion."""
        if not self.sums_own_heads:
            return out.logits
        count = len(out.parts)
        return add({m: (count * self.plan.prior[m]) * part for m, part in out.parts.items()})

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        if self._estimates_in(run):
            return functional.cross_entropy(out.logits, batch.y)
        loss = functional.cross_entropy(self._static(out), batch.y)
        if self.config.unimodal_weight > 0:
            own = self.own_logits(run, out)
            losses = {m: functional.cross_entropy(u, batch.y) for m, u in own.items()}
            loss = loss + self.config.unimodal_weight * add(losses)
        if self.alignment is not None:
            # Without a modality to align, projections only make the prototypes.
            with torch.set_grad_enabled(bool(self.plan.aligned)):
                self._projected = self.alignment.project(out)
            if self.plan.aligned:
                strength = self._strength(run)
                loss = loss + self.alignment(run, self.plan, strength, self._projected, batch.y)
        return loss

    def _strength(self, run: Run) -> float:
        """Return ``lambda(e)``."""
        align = self.config.align
        if align.schedule == "constant":
            return float(align.strength)
        begin, end = align.start * run.stage.epochs, align.full * run.stage.epochs
        risen = (run.epoch - begin) / max(end - begin, 1e-9)
        return float(align.strength * min(max(risen, 0.0), 1.0))

    def modulate(self, run: Run, out: Output, batch: Batch) -> None:
        if self.alignment is not None and not self._estimates_in(run):
            own = self.own_logits(run, out)
            self.alignment.update(self.plan, self._projected, own, batch.y)

    # -- stage 2 -------------------------------------------------------------------------------

    def _fit_on(self, run: Run) -> str:
        choice = str(self.config.gate.fit_on)
        if choice != "auto":
            return choice
        return "crossfit" if len(run.train) < SMALL else "holdout"

    def _gate_folds(self, run: Run) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return (rows trained on, rows held out) of each network that the gate is fitted to."""
        options, everything = self.config.gate, np.arange(len(run.train))
        if not options.enabled:
            return []
        match self._fit_on(run):
            case "train":
                return [(everything, everything)]
            case "holdout":
                return [run.holdout(options.share, "gate", by_group=self._by_group)]
            case _:
                count = max(self._folds(run), 3)
                parts = run.folds(count, "gate", by_group=self._by_group)
                return [(np.setdiff1d(everything, part), part) for part in parts]

    def _log_prior(self, run: Run) -> Tensor:
        return torch.tensor([self.plan.prior[m] for m in self.names], device=run.device).log()

    def _summary(self, run: Run, out: Output) -> Tensor:
        own = torch.stack(list(self.own_logits(run, out).values()), dim=1)
        if self.alignment is None:
            return summarise(own, own.new_ones(own.shape[:2]))
        return summarise(own, self.alignment.nearest(out, self.plan.anchor))

    @torch.no_grad()
    def _hold_out(self, run: Run, k: int) -> None:
        """Keep what the network and the own heads say of the rows held out of fold k."""
        self.eval()
        outputs = list(run.outputs(self.gate_folds[k][1]))
        fusion, held = run.network.fusion, self.held_out[k]
        assert fusion is not None
        assert isinstance(held, HeldOut)
        held.fill(
            fusion,
            {m: torch.cat([out.features[m] for out, _ in outputs]) for m in self.names},
            torch.cat([self._summary(run, out) for out, _ in outputs]),
            torch.cat([batch.y for _, batch in outputs]),
        )

    def _fit_gate(self, run: Run) -> None:
        held = [part for part in self.held_out if isinstance(part, HeldOut)]
        log_prior = self._log_prior(run)
        self.gate_gain = fit_gate(
            self.gate, held, log_prior, self.config.gate.pull, self.config.gate.epochs, run.seed
        )
        self.gate_is_fitted = True

    def predict(self, run: Run, out: Output) -> Tensor:
        if self._estimates_in(run):
            return out.logits
        if not self.gate_is_fitted:
            return self._static(out)
        assert out.fusion is not None
        weights = self.gate(self._log_prior(run), self._summary(run, out))
        logits = weighted_logits(out.fusion, out.features, weights)
        return logits / self.gate.temperature

    # -- record and resume ---------------------------------------------------------------------

    def report(self, run: Run) -> dict[str, Any]:
        return {
            "budgets": asdict(self.budgets),
            "prior": self.plan.prior,
            "anchor": self.plan.anchor,
            "aligned": list(self.plan.aligned),
            "gate": {
                "fitted_on": self._fit_on(run) if self.gate_is_fitted else "nothing",
                "a": float(self.gate.prior_weight.detach()),
                "beta": float(self.gate.entropy_weight.detach()),
                "temperature": float(self.gate.temperature),
                "gain_nats": self.gate_gain,
                "mean_weight": dict(zip(self.names, self.gate.mean_weights.tolist(), strict=True)),
            },
        }

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "budgets": asdict(self.budgets),
            "plan": asdict(self.plan),
            "gate_is_fitted": self.gate_is_fitted,
            "gate_gain": self.gate_gain,
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.budgets = Budgets(**state["budgets"])
        self.plan = Plan(**state["plan"])
        self.gate_is_fitted = bool(state["gate_is_fitted"])
        self.gate_gain = float(state["gate_gain"])
