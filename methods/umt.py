"""UMT: uni-modal teacher.

    t_m = features of modality m's teacher: the encoder that was trained alone, frozen
    L   = CE(z, y) + lambda sum_m MSE(h_m, t_m)      MSE: mean over the batch and the width

C. Du, J. Teng, T. Li, Y. Liu, T. Yuan, Y. Wang, Y. Yuan, H. Zhao: On Uni-Modal Feature Learning in
Supervised Multi-modal Learning, ICML 2023. Its sibling UME, the average of unimodal predictions, is
`ensemble` with combine=mean.
"""

from torch import Tensor
from torch.nn import functional

from mmbench.options import option
from mmbench.train.method import Batch, MethodInfo, Options, Output
from mmbench.train.run import Run
from mmbench.train.teachers import Distillation, feature_distances


class UMT(Distillation):
    """Draws the features of each modality to those of an encoder that learned it alone."""

    info = MethodInfo(
        title="Uni-modal teacher",
        family="teacher",
        summary="distils the features of separately trained unimodal encoders into the joint ones",
        acts="in the loss, at every step",
        cost="1 forward, a forward of each modality's teacher, 1 backward; first trains a unimodal "
        "model for each modality",
        authors="C. Du, J. Teng, T. Li, Y. Liu, T. Yuan, Y. Wang, Y. Yuan, H. Zhao",
        venue="ICML",
        year=2023,
        arxiv="2305.01233",
        departures=(
            "The official code was not found; lambda is BalanceBenchmark's.",
            "Teachers are in evaluation mode: BalanceBenchmark leaves them in training mode, where "
            "they use the statistics of the batch and their batch norms drift.",
            "Teachers are trained in the run, by its recipe and selection, on the rows it learns "
            "from.",
        ),
        neutral={"strength": 0.0},
    )

    class Config(Options):
        strength: float = option(
            10.0,
            "lambda; 10 as in BalanceBenchmark, the paper's value is not known here",
            ge=0,
            search=[1.0, 10.0, 50.0],
        )

    def needs_teachers(self) -> bool:
        return bool(self.config.strength > 0)

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        loss: Tensor = functional.cross_entropy(out.logits, batch.y)
        taught = self.taught(run, batch)
        if taught is None:
            return loss
        for distance in feature_distances(run, out, taught):
            loss = loss + self.config.strength * distance
        return loss
