"""Ensemble: unimodal models trained independently, combined at inference.

    product:  log p(y) = sum_m log softmax(u_m)[y]  + const
    mean:     p(y)     = mean_m softmax(u_m)[y]

The control that many balancing methods fail to beat: no modality can hold another back.
"""

from typing import Literal

import torch
from torch import Tensor

from mmbench.nets.fusion import add
from mmbench.options import option
from mmbench.train.method import Method, MethodInfo, Options, Output, Stage
from mmbench.train.run import Run


class Ensemble(Method):
    """Each model is trained and selected exactly as `unimodal` does it; their encoders and heads
    are then joined in one network of sum fusion, whose parts are the models' logits."""

    info = MethodInfo(
        title="Ensemble of unimodal models",
        family="control",
        summary="independently trained unimodal models, combined by product or mean",
        acts="at inference",
        cost="1 forward and 1 backward of each encoder, no fusion",
        default_fusion="sum",
        fusions=("sum",),
    )

    class Config(Options):
        combine: Literal["product", "mean"] = option(
            "product", "how the models' class probabilities are combined"
        )

    def stages(self, run: Run) -> list[Stage]:
        return [
            Stage(
                f"unimodal/{m}", run.recipe.epochs, modalities=(m,), fresh=True, select="protocol"
            )
            for m in run.modalities
        ]

    def on_stage_end(self, run: Run) -> None:
        run.main.load_state_dict(run.network.state_dict(), strict=False)

    def predict(self, run: Run, out: Output) -> Tensor:
        logs = {m: part.log_softmax(dim=1) for m, part in out.parts.items()}
        if self.config.combine == "product":
            return add(logs)
        return torch.stack(list(logs.values())).logsumexp(dim=0)

    def own_logits(self, run: Run, out: Output) -> dict[str, Tensor]:
        return out.parts
