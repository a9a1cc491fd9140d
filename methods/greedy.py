"""Greedy: networks that gate each other, and windows in which one of them does not listen.

    a_m     gates of modality m's blocks, made from the blocks of all modalities (MMTM)
    L       = sum_m CE(u_m, y),    u_m = h_m U_m^T + c_m;     prediction: z = mean_m u_m

    after each backward pass outside of a window, for each modality
        by_m   += |grad of its gates|^2 / |its gates|^2         its bypass: G_m, and the shared F
        main_m += |grad of its branch|^2 / |its branch|^2       its encoder and head
        speed_m = log10(by_m / main_m)
        d_m     = speed_m - mean_(j != m) speed_j
    if max_m d_m > epsilon: a window of Q steps begins, in which modality argmax_m d_m has the
        running averages of its gates in place of them, and so learns from its own input alone

N. Wu, S. Jastrzebski, K. Cho, K. J. Geras: Characterizing and Overcoming the Greedy Nature of
Learning in Multi-modal Deep Neural Networks, ICML 2022. ``speed_m`` is its conditional learning
speed: how fast the branch learns from the other modalities, beside its own.
"""

from typing import Any, Literal

import torch
from pydantic import model_validator
from torch import Tensor, nn
from torch.nn import functional

from mmbench.errors import RequestError
from mmbench.nets.fusion import add
from mmbench.nets.mmtm import MMTM, Bridges
from mmbench.options import option, refuse_unused
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.run import Run

SMALLEST_SPEED = 1e-300
"""Keeps the logarithm finite where nothing has a gradient."""


class Greedy(Method):
    """Puts MMTMs between the encoders and holds the gates of the branch that relies on them."""

    bypass: Tensor
    main: Tensor
    steps_left: Tensor

    info = MethodInfo(
        title="Balanced multi-modal learning by conditional learning speed",
        family="forward",
        summary="encoders gate each other's blocks, and the one that learns fastest from the "
        "others has its gates held constant for a few steps",
        acts="in the forward pass, always; gates are held in windows of steps, in training only",
        cost="1 forward, 1 backward; the gates, and the norms of all weights and gradients",
        authors="N. Wu, S. Jastrzebski, K. Cho, K. J. Geras",
        venue="ICML",
        year=2022,
        arxiv="2202.05306",
        departures=(
            "Each modality's average is of its own gates; the released code averages the first "
            "modality's gates for both (average_of=first repeats it).",
            "Averages are over training batches, and evaluation holds no gates: in the released "
            "code a pass over validation or test rows changes the averages, and holds the gates "
            "that the last training step would have held next.",
            "More than two modalities: one MMTM reads all of them, a modality's speed is compared "
            "with the mean of the others', and the one furthest ahead is held (mmbench's).",
            "ResNet-18 is gated after its last three layers, as released; the places in the other "
            "encoders are mmbench's: both layers of an MLP, the last two convolutions of a small "
            "CNN, both layers of a Transformer. Where encoders differ, their last blocks meet.",
            "A held gate has gradients of zero, so momentum and weight decay go on moving its "
            "weights; the released recipe has neither (-t lr=0.1 -t momentum=0 -t weight_decay=0).",
            "The number of epochs is the recipe's; the released training ends once all training "
            "rows have been right for five epochs.",
        ),
        default_fusion="late",
        fusions=("late",),
        note="greedy's encoders gate each other: what is read of one modality (probe, own head, "
        "zero-feature, Shapley, permutation) is read with its gates at their averages, without the "
        "others; its split accuracy holds some of the others",
    )

    class Config(Options):
        curation: Literal["guided", "random", "none"] = option(
            "guided",
            "windows by speed as above; the control that at each step holds one modality's gates, "
            "or none, at random; or gates that are never held",
        )
        epsilon: float = option(
            0.01, "difference of speeds, in decades, as released", ge=0, search=[0.001, 0.01, 0.1]
        )
        window: int = option(5, "Q, steps, as released", ge=1, search=[1, 5, 10, 20])
        first_epoch: int = option(
            1, "first epoch, from 0, with held gates; the second as released", ge=0
        )
        ratio: int = option(4, "by which an MMTM narrows, as released", ge=1)
        average_of: Literal["own", "first"] = option(
            "own", "gates that the averages are of: the modality's, or, as released, the first's"
        )

        @model_validator(mode="after")
        def _settings_are_used(self) -> "Greedy.Config":
            if self.curation != "guided":
                refuse_unused(self, ["epsilon", "window"], f"by curation={self.curation}")
            if self.curation == "none":
                refuse_unused(self, ["first_epoch", "average_of"], "by curation=none")
            return self

    def setup(self, run: Run) -> None:
        bridges = Bridges(
            run.main.encoders,
            self.config.ratio,
            run.seed,
            averages_of_first=self.config.average_of == "first",
        )
        if self.config.average_of == "first":
            check_equal_widths(bridges)
        run.main.bridges = bridges.to(run.device)
        count = len(run.modalities)
        self.register_buffer("bypass", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("main", torch.zeros(count, dtype=torch.float64))
        self.register_buffer("steps_left", torch.zeros((), dtype=torch.long))
        self.measured = Measured(
            [bypass_params(bridges, m) for m in run.modalities]
            + [run.branch_params(m) for m in run.modalities]
        )

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        out = run.net(batch)
        own = self.own_logits(run, out)
        loss = add({m: functional.cross_entropy(u, batch.y) for m, u in own.items()})
        run.backward(loss)
        if self.config.curation != "none":
            self.choose(run)
        run.step()
        return loss

    @torch.no_grad()
    def choose(self, run: Run) -> None:
        """Decide whose gates are held in the next step, without waiting for the device."""
        held = self.bridges(run).held
        for m, is_held in zip(run.modalities, held.to(torch.float32).unbind(), strict=True):
            run.log(f"held.{m}", is_held)
        has_begun = run.epoch >= self.config.first_epoch
        if self.config.curation == "guided":
            self.measure(run)
            if has_begun:
                self.choose_by_speed(held)
        elif has_begun:
            count = len(held)
            drawn = torch.randint(count + 1, (), generator=run.rng, device=run.device)
            held.copy_(numbers(held) == drawn)  # the last number holds none

    def measure(self, run: Run) -> None:
        """Add a step outside of a window to the speeds."""
        bypass, main = self.measured.relative_gradients().chunk(2)
        in_window = self.steps_left > 0
        self.bypass.add_(torch.where(in_window, 0.0, bypass))
        self.main.add_(torch.where(in_window, 0.0, main))
        for m, speed in zip(run.modalities, self.speeds().unbind(), strict=True):
            run.log(f"speed.{m}", speed)

    def choose_by_speed(self, held: Tensor) -> None:
        """Go on with a window, end it, or begin one."""
        leads = self.leads()
        in_window = self.steps_left > 0
        begins = ~in_window & (leads.max() > self.config.epsilon)
        self.steps_left.copy_(torch.where(begins, self.config.window, self.steps_left - 1))
        self.steps_left.clamp_(min=0)
        chosen = torch.where(in_window, held, numbers(held) == leads.argmax())
        held.copy_(chosen & (self.steps_left > 0))

    def speeds(self) -> Tensor:
        """Return each modality's conditional learning speed, ``(M,)`` in decades."""
        bypass, main = self.bypass.clamp(min=SMALLEST_SPEED), self.main.clamp(min=SMALLEST_SPEED)
        return torch.log10(bypass) - torch.log10(main)

    def leads(self) -> Tensor:
        """Return ``d (M,)``: how far each speed is above the mean of the others."""
        speeds = self.speeds()
        return speeds - (speeds.sum() - speeds) / (len(speeds) - 1)

    def bridges(self, run: Run) -> Bridges:
        assert run.network.bridges is not None, "put there in setup"
        return run.network.bridges

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        return {m: run.own_head(m)(h) for m, h in out.features.items()}

    def report(self, run: Run) -> dict[str, Any]:
        if self.config.curation != "guided":
            return {}
        return {"speed": dict(zip(run.modalities, self.speeds().tolist(), strict=True))}


class Measured:
    """Groups of parameters whose relative gradients are measured together."""

    def __init__(self, groups: list[list[nn.Parameter]]) -> None:
        self.parameters = [p for group in groups for p in group]
        counts = torch.tensor([len(group) for group in groups])
        # Row i marks the parameters of group i: one product sums over all groups.
        self.members = torch.repeat_interleave(
            torch.eye(len(groups), dtype=torch.float64), counts, dim=1
        ).to(self.parameters[0].device)

    def relative_gradients(self) -> Tensor:
        """Return ``|gradient|^2 / |weights|^2`` of each group; no gradient counts as zero."""
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in self.parameters]
        return self._squares(gradients) / self._squares([p.detach() for p in self.parameters])

    def _squares(self, tensors: list[Tensor]) -> Tensor:
        norms = torch.stack(torch._foreach_norm(tensors))
        return self.members @ norms.double().square()


def numbers(values: Tensor) -> Tensor:
    """Return 0, 1, ... for the elements of a vector."""
    return torch.arange(len(values), device=values.device)


def bypass_params(bridges: Bridges, modality: str) -> list[nn.Parameter]:
    """Return the parameters by which other modalities reach this one: its gates', and those that
    all gates share."""
    found: list[nn.Parameter] = []
    for mmtm in bridges.mmtms:
        assert isinstance(mmtm, MMTM)
        found += [*mmtm.squeeze.parameters(), *mmtm.excitation(modality).parameters()]
    return found


def check_equal_widths(bridges: Bridges) -> None:
    """Raise :class:`RequestError` unless the gates of all modalities have one width."""
    for mmtm in bridges.mmtms:
        assert isinstance(mmtm, MMTM)
        widths = {m: len(mmtm.excitation(m).average) for m in mmtm.excite}
        if len({*widths.values()}) > 1:
            listed = ", ".join(f"{m} {width}" for m, width in widths.items())
            raise RequestError(
                f"greedy: average_of=first needs encoders of one kind, the gates here are {listed} "
                "wide: use average_of=own, or one encoder for all (--encoder)"
            )
