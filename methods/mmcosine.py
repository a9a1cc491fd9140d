"""MMCosine: multimodal cosine loss.

    z_m[i, c] = sigma * cos(h_m[i], W_m[c])       no bias
    z         = sum_m z_m
    L         = CE(z, y)

R. Xu, R. Feng, S. Zhang, D. Hu: MMCosine: Multi-Modal Cosine Loss Towards Balanced Audio-Visual
Fine-Grained Learning, ICASSP 2023. W_m are the modality's weights in the concat or sum fusion. Each
modality's part of the logits lies between -sigma and sigma, so that none can lead by the size of
its features or weights.
"""

from typing import Literal

from torch import Tensor

from mmbench.nets.cosine import CosineFusion
from mmbench.nets.fusion import Concat, Sum
from mmbench.options import option
from mmbench.train.method import Method, MethodInfo, Options, Output
from mmbench.train.run import Run


class MMCosine(Method):
    """Puts a cosine classifier in the place of the fusion's linear one."""

    info = MethodInfo(
        title="Multimodal cosine loss",
        family="forward",
        summary="classifies by the cosines between each modality's features and class weights",
        acts="in the forward pass, in training and at inference",
        cost="1 forward, 1 backward",
        authors="R. Xu, R. Feng, S. Zhang, D. Hu",
        venue="ICASSP",
        year=2023,
        arxiv="2303.05338",
        departures=(
            "Inference uses the cosine logits that were trained: the released validation takes "
            "the fusion's linear logits (infer=linear repeats it).",
            "The released contrastive loss, whose weight is 0 unless asked for, is left out.",
            "Film and gated fusion, of which the released models have versions of their own, are "
            "not supported.",
        ),
        fusions=("concat", "sum"),
    )

    class Config(Options):
        scale: float = option(
            10.0, "sigma, as released", gt=0, search=[5.0, 10.0, 15.0, 20.0, 30.0]
        )
        infer: Literal["cosine", "linear"] = option(
            "cosine", "logits at inference: those that were trained, or, as released, h W^T + b"
        )

    def setup(self, run: Run) -> None:
        linear = run.main.fusion
        assert isinstance(linear, Concat | Sum), "fusions in `info` are concat and sum"
        run.main.fusion = CosineFusion(linear, run.main.widths, self.config.scale)

    def predict(self, run: Run, out: Output) -> Tensor:
        if self.config.infer == "cosine":
            return out.logits
        assert isinstance(out.fusion, CosineFusion)
        logits: Tensor = out.fusion.linear(out.features)
        return logits
