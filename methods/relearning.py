"""Diagnosing and re-learning: encoders go part of the way back to their initial weights.

At the end of some epochs, for each modality m, with features h_m of the rows learned from (T) and
of rows held out of train (V):

    purity(S) = (1/|S|) sum_clusters max_c #{i in cluster: y_i = c}
    gap_m     = | purity(h_m on T) - purity(h_m on V) |
    w_m       = tanh( lambda gap_m )
    theta_m  <- w_m theta_m^init + (1 - w_m) theta_m            for all parameters of encoder m

Clusters are those of k-means with as many clusters as classes, on features scaled to [-1, 1], of T
and of V separately. Y. Wei, S. Li, R. Feng, D. Hu: Diagnosing and Re-learning for Balanced
Multimodal Learning, ECCV 2024.
"""

import math
import warnings
from typing import Any

import numpy as np
import torch
from pydantic import model_validator

from mmbench.options import option, refuse_unused
from mmbench.train.holdout import hold_out, holdout_option
from mmbench.train.method import Method, MethodInfo, Options, Stage
from mmbench.train.run import Run

STARTS = 10
"""Initial centres that k-means tries, scikit-learn's default until version 1.4: the purity of a
single start varies."""
FEW = 10
"""Held-out rows per class below which the results bear a note: of labels at random among six
classes, clusters of 10 rows have a mean purity of 0.34, of 100 rows 0.22 (simulated)."""


class Relearning(Method):
    """Softly re-initialises each encoder by how much better it separates the rows it has seen."""

    info = MethodInfo(
        title="Diagnosing and re-learning",
        family="optimisation",
        summary="pulls an encoder back to its initial weights, the further the more its clusters "
        "are purer on rows learned from than on held-out ones",
        acts="on the encoders' weights, at the end of a few epochs",
        cost="1 forward, 1 backward; at three epochs a forward of all training rows, and k-means",
        authors="Y. Wei, S. Li, R. Feng, D. Hu",
        venue="ECCV",
        year=2024,
        arxiv="2407.09705",
        departures=(
            "The times of re-learning are those of the released 90 epochs, stretched to the "
            "recipe's (every=20 repeats the released number of epochs).",
            "Encoders are not re-initialised after the last epoch, which nothing could follow.",
            "Features of the rows learned from are taken without augmentation, those held out "
            "alike; the released code augments the former.",
            "The held-out rows are carved from train; BalanceBenchmark diagnoses on test labels.",
            "k-means takes the best of 10 starts, with seed 0 as released.",
            "As released, batch norm statistics and the optimiser's momentum stay as they are. The "
            "released training has a constant learning rate; here the recipe's schedule holds.",
        ),
        neutral={"strength": 0.0},
    )

    class Config(Options):
        strength: float = option(
            3.0,
            "lambda, 3 as released; 0 re-initialises nothing and holds nothing out",
            ge=0,
            search=[1.0, 3.0, 5.0, 10.0],
        )
        every: int | None = option(
            None,
            "epochs from one re-initialisation to the next: at the end of epochs every, 2 every, "
            "..., counted from 0 as released; none is 20 in 90 of all, as released",
            ge=1,
        )
        times: int = option(
            3, "number of re-initialisations, 3 as released", ge=1, search=[1, 2, 3]
        )
        holdout: float = holdout_option()

        @model_validator(mode="after")
        def _settings_are_used(self) -> "Relearning.Config":
            if self.strength == 0:
                refuse_unused(self, ["every", "times", "holdout"], "with strength=0")
            return self

    def setup(self, run: Run) -> None:
        self.kept, self.held = np.arange(len(run.train)), np.arange(0)
        self.diagnoses: list[dict[str, Any]] = []
        if self.config.strength == 0:
            return
        self.kept, self.held = hold_out(run, self.config.holdout, "relearning")
        if not self.epochs(run.recipe.epochs):
            run.note(
                f"relearning re-initialises nothing in {run.recipe.epochs} epochs: train for "
                "longer or use a lower -o every"
            )
        if len(self.held) < FEW * run.classes:
            run.note(
                f"relearning diagnoses on {len(self.held)} held-out rows of {run.classes} classes: "
                "clusters of so few rows are pure whatever the features, so that the gap in purity "
                "also tells how few they are: use a larger -o holdout"
            )

    def stages(self, run: Run) -> list[Stage]:
        rows = None if self.config.strength == 0 else self.kept
        return [Stage("train", run.recipe.epochs, rows=rows, select="protocol")]

    def epochs(self, total: int) -> list[int]:
        """Return the epochs of so many, from 0, at whose end encoders are re-initialised."""
        every = self.config.every or max(1, round(total * 20 / 90))
        return [*range(every, total - 1, every)][: self.config.times]

    def on_epoch_end(self, run: Run) -> None:
        if self.config.strength == 0 or run.epoch not in self.epochs(run.stage.epochs):
            return
        seen, unseen = self.purities(run, self.kept), self.purities(run, self.held)
        start = run.fresh_network(run.modalities)
        weights = {}
        for m in run.modalities:
            weights[m] = math.tanh(self.config.strength * abs(seen[m] - unseen[m]))
            run.log(f"purity.{m}", seen[m])
            run.log(f"held_out_purity.{m}", unseen[m])
            run.log(f"coefficient.{m}", weights[m])
            with torch.no_grad():
                initial = start.encoders[m].parameters()
                for parameter, first in zip(run.encoder_params(m), initial, strict=True):
                    parameter.lerp_(first, weights[m])
        self.diagnoses.append(
            {
                "epoch": run.epoch + 1,
                "purity": seen,
                "held_out_purity": unseen,
                "coefficient": weights,
            }
        )

    def purities(self, run: Run, rows: np.ndarray) -> dict[str, float]:
        """Return the purity of each modality's features on training rows."""
        read = [out.features for out, _ in run.outputs(rows)]
        labels = run.train.y.cpu().numpy()[rows]
        return {
            m: purity(torch.cat([h[m] for h in read]).double().cpu().numpy(), labels, run.classes)
            for m in run.modalities
        }

    # -- record and resume ---------------------------------------------------------------------

    def report(self, run: Run) -> dict[str, Any]:
        return {"diagnoses": self.diagnoses}

    def get_extra_state(self) -> dict[str, Any]:
        return {"diagnoses": list(self.diagnoses)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.diagnoses = list(state["diagnoses"])


def purity(features: np.ndarray, labels: np.ndarray, classes: int) -> float:
    """Return the share of rows that belong to the most frequent class of their cluster, for
    features ``(N, width)`` and class numbers ``(N,)``."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics.cluster import contingency_matrix
    from sklearn.preprocessing import MinMaxScaler
    from threadpoolctl import threadpool_limits

    scaled = MinMaxScaler((-1, 1)).fit_transform(features)
    # One thread: several add up in the order in which they finish, and a run could not be repeated.
    with threadpool_limits(1), warnings.catch_warnings():
        # Fewer distinct rows than clusters, as of an encoder that died, leave clusters empty.
        warnings.simplefilter("ignore", ConvergenceWarning)
        clusters = KMeans(classes, n_init=STARTS, random_state=0).fit_predict(scaled)
    return float(contingency_matrix(labels, clusters).max(axis=0).sum() / len(labels))
