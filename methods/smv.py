"""SMV: sample-level modality valuation, and re-sampling of the modalities that contribute little.

For each training sample, with logits z_S of the modalities in S (zero features for the others):

    v(S)  = |S| 1[argmax z_S = y]
    phi_m = sum_(S without m) |S|! (M - |S| - 1)! / M! (v(S + m) - v(S))      sum_m phi_m = v(all)

Where every subset is right, each phi_m is 1, its equal share. Before each epoch after a warm-up,
copies of samples join the training rows; in a copy only modality m is kept, the features of the
others being zero:

    sample level:    3 copies if phi_m < -0.1,  2 if phi_m < 0.4,  1 if phi_m < 1,  else none
    modality level:  1 copy with chance  alpha 2/3 relu( mean_(j != m) phi_j - phi_m ),
                     phi being means over a random part of the samples

Y. Wei, R. Feng, Z. Wang, D. Hu: Enhancing Multimodal Cooperation via Sample-level Modality
Valuation, CVPR 2024.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations
from math import factorial
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import model_validator
from torch import Tensor
from torch.nn import functional

from mmbench.evaluate.contributions import masked, stand_ins
from mmbench.options import option, refuse_unused
from mmbench.train.budgets import subset_gains
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.run import Run, batches

COPIES_BELOW = (1.0, 0.4, -0.1)
"""A sample gets a copy for each of these that phi is below, as released."""
GAP_SHARE = 2 / 3
"""Of the gap between modalities, what gives the chance of a copy for alpha = 1, as released."""


class SMV(Method):
    """Shows samples again with only the modality that contributed little to their prediction."""

    info = MethodInfo(
        title="Sample-level modality valuation",
        family="data",
        summary="re-samples training rows with all but a low-contributing modality masked, by "
        "Shapley values of each sample's prediction",
        acts="on the training rows, in every epoch after a warm-up",
        cost="1 forward, 1 backward, the fusion M + 1 times; each epoch a forward of the training "
        "rows with the fusion 2^M - 1 times; variant=released: up to 1 + 3 M times as many steps",
        authors="Y. Wei, R. Feng, Z. Wang, D. Hu",
        venue="CVPR",
        year=2024,
        arxiv="2309.06255",
        departures=(
            "Copies are learned from in the batch of their sample, as weights of its loss: the "
            "same rows and masks in an epoch, with as many updates as every method and without "
            "another pass through the encoders, but also with the sample's own augmentation. "
            "variant=released grows the epoch, shuffles copies and samples together and makes as "
            "many more updates, in an order of its own.",
            "At modality level each sample is copied with a chance; variant=released draws that "
            "share of samples with replacement, as the released code does.",
            "The warm-up is 5 in 60 of all epochs, as in the released 60 epochs, and at least 1 "
            "(warmup_epochs=5 repeats the released number).",
            "More than two modalities: the thresholds stay, since phi of an equal share is 1 for "
            "any number, and at modality level each modality is compared with the mean of the "
            "others. This is our proposal.",
            "At modality level only the random part of the samples is evaluated.",
            "BalanceBenchmark values with 1[correct] in place of |S| 1[correct], keeps the "
            "thresholds, reuses the first batch's values, and zeroes inputs, not features.",
        ),
        neutral={"level": "modality", "strength": 0.0},
    )

    class Config(Options):
        level: Literal["sample", "modality"] = option(
            "sample",
            "copies by each sample's own values, or by the mean value of each modality",
            search=["sample", "modality"],
        )
        variant: Literal["corrected", "released"] = option(
            "corrected",
            "copies as weights in their sample's batch, or, as released, a longer epoch with more "
            "updates",
        )
        warmup_epochs: int | None = option(
            None, "first epochs without; none is 5 in 60 of all, as released, at least 1", ge=0
        )
        strength: float = option(
            1.0,
            "alpha of level=modality, 1 as released; 0 copies and evaluates nothing",
            ge=0,
        )
        subset: float = option(
            0.2,
            "share of the training rows, drawn each epoch, that level=modality evaluates, 0.2 as "
            "released",
            gt=0,
            le=1,
        )

        @model_validator(mode="after")
        def _settings_are_used(self) -> "SMV.Config":
            if self.level == "sample":
                refuse_unused(self, ["strength", "subset"], "by level=sample")
            if self.strength == 0:
                refuse_unused(self, ["variant", "warmup_epochs", "subset"], "with strength=0")
            return self

    def setup(self, run: Run) -> None:
        self.copies: Tensor | None = None
        self.grown: GrownEpoch | None = None
        self.last: dict[str, dict[str, float]] = {}
        if self.config.variant == "released":
            run.note(
                "smv variant=released makes more updates than other methods: its epochs are "
                "longer by the re-sampled rows"
            )
        if self.config.strength > 0 and self.warmup_epochs(run.recipe.epochs) >= run.recipe.epochs:
            run.note(
                f"smv re-samples nothing in {run.recipe.epochs} epochs, all of them its warm-up: "
                "use a lower -o warmup_epochs"
            )

    # -- what is copied ------------------------------------------------------------------------

    def on_epoch_start(self, run: Run) -> None:
        self.copies, self.grown = None, None
        if self.config.strength == 0 or run.epoch < self.warmup_epochs(run.stage.epochs):
            return
        rows = np.arange(len(run.train))
        if self.config.level == "modality":
            size = max(1, round(self.config.subset * len(rows)))
            order = torch.randperm(len(rows), generator=run.rng, device=run.device)
            rows = np.sort(order[:size].cpu().numpy())
        values = shapley_values(run.modalities, self.successes(run, rows))
        if self.config.level == "sample":
            self.copies = torch.as_tensor(sample_copies(values), device=run.device)
        else:
            self.copies = self.draw(run, copy_chances(values.mean(axis=0), self.config.strength))
        if self.config.variant == "released":
            self.grown = GrownEpoch.of(run, self.copies)
        for i, m in enumerate(run.modalities):
            value, share = float(values[:, i].mean()), float(self.copies[:, i].double().mean())
            run.log(f"value.{m}", value)
            run.log(f"copies.{m}", share)
            self.last[m] = {"value": value, "copies_per_row": share}

    def warmup_epochs(self, total: int) -> int:
        """Return how many of so many epochs, the first ones, have no copies."""
        chosen: int | None = self.config.warmup_epochs
        return max(1, 5 * total // 60) if chosen is None else chosen

    def successes(self, run: Run, rows: NDArray[np.int64]) -> dict[frozenset[str], NDArray[Any]]:
        """Return for each subset S of the modalities whether ``z_S`` is right, ``(N,)``."""
        names = run.modalities
        subsets = [
            frozenset(s) for size in range(len(names)) for s in combinations(names, size + 1)
        ]
        found: dict[frozenset[str], list[Tensor]] = {subset: [] for subset in subsets}
        for out, batch in run.outputs(rows):
            absent = stand_ins(out.features, "zero_feature")
            for subset in subsets:
                logits = run.network.fuse(masked(out.features, subset, absent)).logits
                found[subset].append(logits.argmax(dim=1) == batch.y)
        return {subset: torch.cat(hits).cpu().numpy() for subset, hits in found.items()}

    def draw(self, run: Run, chances: NDArray[np.float64]) -> Tensor:
        """Return how many copies ``(N, M)`` each training row gets, for chances ``(M,)``."""
        size = (len(run.train), len(chances))
        if self.config.variant == "corrected":
            draws = torch.rand(size, generator=run.rng, device=run.device)
            return (draws < torch.as_tensor(chances, device=run.device)).long()
        copies = torch.zeros(size, dtype=torch.int64, device=run.device)
        for i, chance in enumerate(chances):
            number = (int(chance * size[0]),)
            rows = torch.randint(size[0], number, generator=run.rng, device=run.device)
            copies[:, i] = torch.bincount(rows, minlength=size[0])
        return copies

    # -- how it is learned from ----------------------------------------------------------------

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        if self.copies is None:
            return functional.cross_entropy(out.logits, batch.y)
        copies = self.copies[batch.rows]
        absent = stand_ins(out.features, "zero_feature")
        total = functional.cross_entropy(out.logits, batch.y, reduction="sum")
        for i, m in enumerate(run.modalities):
            alone = run.network.fuse(masked(out.features, [m], absent)).logits
            losses = functional.cross_entropy(alone, batch.y, reduction="none")
            total = total + (losses * copies[:, i]).sum()
        return total / (len(batch) + copies.sum())

    def train_step(self, run: Run, batch: Batch) -> Tensor:
        if self.grown is None:
            return super().train_step(run, batch)
        losses = []
        for own, kept in self.grown.due(len(batch)):
            out = run.net(own)
            features = {m: h * kept[:, i : i + 1] for i, (m, h) in enumerate(out.features.items())}
            loss = functional.cross_entropy(run.network.fuse(features).logits, own.y)
            run.backward(loss)
            run.step()
            losses.append(loss.detach())
        return torch.stack(losses).mean()

    # -- record and resume ---------------------------------------------------------------------

    def report(self, run: Run) -> dict[str, Any]:
        return {"last_valuation": self.last}

    def get_extra_state(self) -> dict[str, Any]:
        return {"last": dict(self.last)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.last = dict(state["last"])


def shapley_values(
    modalities: tuple[str, ...], successes: dict[frozenset[str], NDArray[Any]]
) -> NDArray[np.float64]:
    """Return ``phi (N, M)`` for whether each subset of the modalities is right, ``{S: (N,)}``."""
    values = {subset: len(subset) * hits.astype(np.float64) for subset, hits in successes.items()}
    shares = subset_gains(modalities, values)
    # Multiples of 1 / M!, which sums of rounded fractions miss, so that they meet the thresholds.
    parts = factorial(len(modalities))
    return np.stack([np.rint(shares[m] * parts) / parts for m in modalities], axis=1)


def sample_copies(values: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the copies that keep each modality, from its values ``phi``; both ``(N, M)``."""
    below = values[..., None] < np.array(COPIES_BELOW)
    return np.asarray(below.sum(axis=-1))


def copy_chances(means: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """Return the chance of a copy that keeps each modality, from the mean ``phi``; both ``(M,)``.
    It can exceed 1, which is as certain as 1."""
    others = (means.sum() - means) / (len(means) - 1)
    return np.asarray(strength * GAP_SHARE * np.maximum(others - means, 0.0))


@dataclass
class GrownEpoch:
    """Samples and copies of an epoch in an order and batches of their own, of which an equal share
    is due for every batch that the trainer offers."""

    batches: Iterator[Batch]
    kept: Tensor
    """``(T, M)``: 1 where a modality is kept, for the T rows in the order of the batches."""
    rows: int
    """Training rows, without the copies."""
    batch_size: int
    offered: int = 0
    done: int = 0

    @classmethod
    def of(cls, run: Run, copies: Tensor) -> "GrownEpoch":
        """Return the epoch of the training rows and their copies ``(N, M)``."""
        samples = torch.arange(len(copies), device=run.device)
        alone = torch.eye(copies.shape[1], device=run.device)
        rows, kept = [samples], [torch.ones_like(copies, dtype=alone.dtype)]
        for i, only in enumerate(alone):
            chosen = samples.repeat_interleave(copies[:, i])
            rows.append(chosen)
            kept.append(only.expand(len(chosen), -1))
        together, masks = torch.cat(rows), torch.cat(kept)
        order = torch.randperm(len(together), generator=run.rng, device=run.device)
        augment = run.stream("augment", "smv", run.epoch)
        size = run.recipe.batch_size
        own = batches(run.train, together[order], run.modalities, size, run.device, augment)
        return cls(own, masks[order], len(copies), size)

    def due(self, rows: int) -> Iterator[tuple[Batch, Tensor]]:
        """Yield the batches, and what they keep ``(B, M)``, that are due when the trainer has
        offered so many more rows; all that are left once it has offered every row."""
        self.offered += rows
        due = len(self.kept) * self.offered // self.rows
        is_last = self.offered >= self.rows
        while self.done + self.batch_size <= due or (is_last and self.done < due):
            batch = next(self.batches)
            yield batch, self.kept[self.done : self.done + len(batch)]
            self.done += len(batch)
