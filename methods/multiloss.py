"""Multi-loss: joint training plus the cross-entropy of each modality's own head.

    L = CE(z, y) + w * sum_m CE(u_m, y),    u_m = h_m U_m^T + c_m

The uniform baseline of MMPareto (Wei and Hu, ICML 2024) with w = 1: the control for every method
that adds unimodal losses and then weighs them.
"""

from torch import Tensor
from torch.nn import functional

from mmbench.nets.fusion import own_heads
from mmbench.options import option
from mmbench.train.method import Batch, Method, MethodInfo, Options, Output
from mmbench.train.run import Run


class MultiLoss(Method):
    """Own heads read the features beside the fusion; the fused logits are the prediction."""

    info = MethodInfo(
        title="Multi-loss (uniform unimodal losses)",
        family="control",
        summary="joint loss plus the loss of each modality's own head, all with one weight",
        acts="in the loss, at every step",
        cost="1 forward, 1 backward",
        authors="Y. Wei, D. Hu",
        venue="uniform baseline of MMPareto, ICML",
        year=2024,
        neutral={"weight": 0.0},
    )

    class Config(Options):
        weight: float = option(
            1.0, "weight w of each unimodal loss", ge=0, search=[0.1, 0.3, 1.0, 3.0]
        )

    def setup(self, run: Run) -> None:
        self.heads = own_heads(run.network.widths, run.classes, run.seed)

    def loss(self, run: Run, out: Output, batch: Batch) -> Tensor:
        loss = functional.cross_entropy(out.logits, batch.y)
        for logits in self.own_logits(run, out).values():
            loss = loss + self.config.weight * functional.cross_entropy(logits, batch.y)
        return loss

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        return {m: self.heads[m](h).float() for m, h in out.features.items()}
