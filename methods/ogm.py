"""OGM: on-the-fly gradient modulation, without generalisation enhancement.

    s_m   = sum_i softmax(z_m)[i, y_i]         z_m: the modality's part of the fused logits
    rho_m = s_m / mean_(j != m) s_j
    k_m   = 1 - tanh(alpha * rho_m)  if rho_m > 1  else 1
    g    <- k_m g                              for the weights of encoder m

X. Peng, Y. Wei, A. Deng, D. Wang, D. Hu: Balanced Multimodal Learning via On-the-fly Gradient
Modulation, CVPR 2022, eq. 8-10. Since rho > 1 wherever it acts, k is at most 1 - tanh(alpha), with
a jump at rho = 1.
"""

from mmbench.train.method import MethodInfo
from mmbench.train.ogm import GradientModulation


class OGM(GradientModulation):
    """Slows the encoder of the modality that predicts the true class better."""

    info = MethodInfo(
        title="On-the-fly gradient modulation",
        family="gradient",
        summary="scales down the gradient of the encoder whose modality is ahead",
        acts="on encoder gradients, after the backward pass, in a window of epochs",
        cost="1 forward, 1 backward",
        authors="X. Peng, Y. Wei, A. Deng, D. Wang, D. Hu",
        venue="CVPR",
        year=2022,
        arxiv="2203.15332",
        departures=(
            "Weights with two or more dimensions are scaled, not only convolutions: the released "
            "rule does nothing on encoders without convolutions (scope=conv repeats it).",
            "More than two modalities: each is compared with the mean of the others.",
            "Film and gated fusion, which the released code cannot run, use zero-feature ablations "
            "as the modalities' logits.",
            "Part m of concat fusion has the bias share b/M at training and at test.",
        ),
        neutral={"alpha": 0.0},
    )
